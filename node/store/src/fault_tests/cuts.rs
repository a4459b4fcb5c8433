//! Processes that are killed, at a step of theirs or from outside.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::failures::work_again;
use super::place::{Place, faults};
use super::whole::{Heard, assert_whole};
use super::work::{Told, Work};
use super::{Sample, at_steps, operations};
use crate::faults::Plan;

const PLACE: &str = "TVIX_NODE_STORE_TEST_PLACE";
const KILL_AT: &str = "TVIX_NODE_STORE_TEST_KILL_AT";

/// How long the long run takes, in minutes: an hour where it is not said.
const MINUTES: &str = "TVIX_NODE_STORE_KILL_MINUTES";

/// Not a test of its own: what the processes do that the tests below start and kill.
#[test]
fn child() {
    let Some(place) = std::env::var_os(PLACE) else {
        return;
    };
    let plan = match std::env::var(KILL_AT) {
        Ok(step) => Plan::Kill(step.parse().unwrap()),
        Err(_) => Plan::Pass,
    };
    let (place, faults) = (Place::at(Path::new(&place)), faults(plan));
    loop {
        let mut say = |told| say(&told);
        Work::new(&place, &faults, &mut say).all().unwrap();
        if plan != Plan::Pass {
            break;
        }
    }
}

fn say(told: &Told) {
    let line = match told {
        Told::Begin(name) => format!("BEGIN {name}"),
        Told::Done(fact) => format!("DONE {fact}"),
        Told::Risk(prefix) => format!("RISK {prefix}"),
        Told::Hurt => "HURT".to_owned(),
        Told::Healed => "HEALED".to_owned(),
    };
    let mut out = std::io::stdout().lock();
    // The parent may be gone: then so will we be.
    writeln!(out, "{line}").and_then(|()| out.flush()).unwrap();
}

/// The test program writes a word of its own before the first line.
fn heard_in(line: &str) -> Option<Told> {
    let after = |word: &str| line.split_once(word).map(|(_, rest)| rest.to_owned());
    let told = match () {
        () if line.ends_with("HURT") => Told::Hurt,
        () if line.ends_with("HEALED") => Told::Healed,
        () => return after("DONE ").map(Told::Done).or(after("RISK ").map(Told::Risk)),
    };
    Some(told)
}

/// Runs the child until it is killed, at a step of its own, or from outside when `enough` says so of what it said or after
/// some time, and checks the home. True where it was killed.
fn run_killed(
    place: &Place,
    (kill_at, after): (Option<u64>, Option<Duration>),
    heard: &mut Heard,
    enough: &mut dyn FnMut(&Told) -> bool,
) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = concat!(module_path!(), "::child");
    let test = test.split_once("::").map_or(test, |(_, test)| test);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(PLACE, place.path());
    if let Some(step) = kill_at {
        command.env(KILL_AT, step.to_string());
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    std::thread::scope(|scope| {
        if let Some(after) = after {
            // Nobody waits for the process before this thread has ended, so its number stays its own.
            let process = Pid::from_child(&child);
            scope.spawn(move || {
                std::thread::sleep(after);
                kill_process(process, Signal::KILL).unwrap();
            });
        }
        for line in lines {
            if let Some(told) = heard_in(&line.unwrap()) {
                if enough(&told) {
                    child.kill().unwrap();
                }
                heard.hear(told);
            }
        }
    });
    let status = child.wait().unwrap();
    let killed = status.signal() == Some(9);
    assert!(killed || status.success(), "{status}");
    let store = place.open_safely();
    heard.check(
        &store,
        place,
        &format!("killed at {kill_at:?} or after {after:?}"),
    );
    assert_whole(&store, place);
    killed
}

/// True where the process came so far.
fn cut_at(step: u64, sample: &Sample) -> bool {
    let (place, mut heard) = (Place::new(), Heard::default());
    let killed = run_killed(&place, (Some(step), None), &mut heard, &mut |_| false);
    // As long as everything else together.
    if matches!(sample, Sample::All) {
        work_again(&place, &format!("killed at {step}"));
    }
    killed
}

fn cut_at_steps(sample: &Sample) {
    let (mut cuts, mut all) = (0, 0);
    at_steps(sample, &mut |step| {
        cuts += u32::from(cut_at(step, sample));
        all += 1;
    });
    println!("{cuts} processes were killed");
    // The database may need a page less in one run than in another, so the last step of all may not be reached.
    assert!(cuts + 1 >= all, "only {cuts} of {all} were killed");
}

#[test]
fn a_process_killed_at_any_operation_leaves_a_whole_store() {
    cut_at_steps(&Sample::LastOfEachKind);
}

#[test]
#[ignore = "takes minutes; the sampled test is the short form"]
fn a_process_killed_at_every_operation_leaves_a_whole_store() {
    cut_at_steps(&Sample::All);
}

/// The same home is cut again and again, recovery included.
#[test]
fn what_was_reported_survives_any_number_of_kills() {
    let (place, mut heard) = (Place::new(), Heard::default());
    let steps = operations().last().unwrap().steps.end;
    let mut random = Random(7);
    for _ in 0..12 {
        let step = random.below(steps);
        run_killed(&place, (Some(step), None), &mut heard, &mut |_| false);
    }
}

/// Numbers without a pattern, the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// One home, killed from outside at random times, recovery included.
fn killed_at_random(enough: &mut dyn FnMut(u64) -> bool) {
    let (place, mut heard, mut random) = (Place::new(), Heard::default(), Random(11));
    let (mut kills, mut rounds) = (0, 0);
    while !enough(kills) {
        // From before the store is open to some rounds of work.
        let after = Duration::from_micros(random.below(600_000));
        let killed = run_killed(&place, (None, Some(after)), &mut heard, &mut |told| {
            rounds += u64::from(*told == Told::Healed);
            false
        });
        assert!(killed, "the process ends only when it is killed");
        kills += 1;
        if kills % 100 == 0 {
            println!("{kills} kills");
        }
    }
    println!("{kills} kills; a path was damaged and repaired {rounds} times between them");
}

#[test]
fn a_store_survives_kills_at_random_times() {
    killed_at_random(&mut |kills| kills == 10);
}

/// `TVIX_NODE_STORE_KILL_MINUTES=60 cargo test -p tvix-node-store --release -- --ignored --nocapture random_times_for_long`
#[test]
#[ignore = "takes an hour; the test of ten kills is the short form"]
fn a_store_survives_kills_at_random_times_for_long() {
    let minutes = std::env::var(MINUTES).map_or(60, |minutes| minutes.parse().unwrap());
    let start = Instant::now();
    killed_at_random(&mut |_| start.elapsed() > Duration::from_secs(minutes * 60));
}

/// Killed from outside, after some reports, wherever the process is by then.
#[test]
fn a_process_killed_from_outside_leaves_a_whole_store() {
    let (place, mut heard) = (Place::new(), Heard::default());
    for reports in [1, 2, 5, 9, 14, 20, 33, 47] {
        let mut count = 0;
        let killed = run_killed(&place, (None, None), &mut heard, &mut |_| {
            count += 1;
            count == reports
        });
        assert!(killed);
    }
}
