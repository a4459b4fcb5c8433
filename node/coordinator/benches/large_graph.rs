//! How long the coordinator itself takes for a graph the size of nixpkgs: everything streamed in,
//! asked for, built and taken apart again. `cargo bench -p tvix-node-coordinator`, with `DRVS=n` for
//! another size.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tvix_node_coordinator::{
    Action, BuildId, BuiltPath, Config, Coordinator, Delivery, Derivation, Event, InputDerivation,
    OwnBuilder, PathPresence, SessionId, SessionOptions, Time,
};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildLimits;
use tvix_node_protocol::control::{EventKind, SessionMode};

const INPUTS: usize = 20;
const BATCH: usize = 100;
const SLOTS: u32 = 64;

fn path(kind: u8, number: usize, name: &str) -> StorePath {
    let mut digest = [kind; 20];
    let mixed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    digest[1..9].copy_from_slice(&mixed.to_be_bytes());
    digest[9..17].copy_from_slice(&(number as u64).to_be_bytes());
    StorePath::from_parts(digest, name).expect("a valid name")
}

/// Each derivation reads a few near ones, as packages do, and the one that all read, as with stdenv.
fn derivation(number: usize) -> Derivation {
    let mut inputs: Vec<usize> = (1..INPUTS)
        .map(|back| number.wrapping_sub(back * back * 7))
        .collect();
    inputs.push(0);
    inputs.retain(|input| *input < number);
    inputs.sort_unstable();
    inputs.dedup();
    let input = |input: usize| InputDerivation {
        derivation: path(0, input, "package.drv"),
        outputs: vec!["out".to_owned()],
    };
    Derivation {
        path: path(0, number, "package.drv"),
        outputs: BTreeMap::from([("out".to_owned(), path(1, number, "package"))]),
        inputs: inputs.into_iter().map(input).collect(),
        sources: vec![path(2, number, "source")],
        system: "x86_64-linux".to_owned(),
        required_features: vec![],
        prefer_local: false,
        fixed_output: false,
        quorum: None,
    }
}

/// Drives the coordinator, and times it alone.
struct Driver {
    coordinator: Coordinator,
    spent: Duration,
    longest: Duration,
    events: u64,
    questions: VecDeque<Event>,
    running: VecDeque<(BuildId, StorePath)>,
    ended: bool,
}

impl Driver {
    fn send(&mut self, event: Event) {
        let now = Time(self.events);
        let start = Instant::now();
        let actions = self.coordinator.handle(now, event);
        let spent = start.elapsed();
        self.spent += spent;
        self.longest = self.longest.max(spent);
        self.events += 1;
        for action in actions {
            match action {
                Action::AskPresence { question, paths, .. } => {
                    let answer = |path: StorePath| PathPresence {
                        own: path.name() == "source",
                        path,
                        desired: false,
                        sources: vec![],
                        unheard: false,
                        nar_size: None,
                    };
                    let paths = paths.into_iter().map(answer).collect();
                    self.questions.push_back(Event::Presence { question, paths });
                }
                Action::BuildHere {
                    build, derivation, ..
                } => self.running.push_back((build, derivation)),
                Action::Tell {
                    event: EventKind::Ended { .. },
                    ..
                } => self.ended = true,
                _ => {}
            }
        }
    }

    fn answer(&mut self) {
        while let Some(answer) = self.questions.pop_front() {
            self.send(answer);
        }
    }

    fn report(&mut self, what: &str) {
        let each = self.spent.as_secs_f64() * 1e6 / self.events.max(1) as f64;
        println!(
            "{what:<28} {:>8.1} ms, {:>7} events, {each:>7.1} us each, longest {:>7.2} ms",
            self.spent.as_secs_f64() * 1e3,
            self.events,
            self.longest.as_secs_f64() * 1e3
        );
        (self.spent, self.longest, self.events) = (Duration::ZERO, Duration::ZERO, 0);
    }
}

fn main() {
    let count: usize = std::env::var("DRVS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(100_000);
    println!("{count} derivations with up to {INPUTS} inputs each, {SLOTS} slots");
    let mut driver = Driver {
        coordinator: Coordinator::new(Config::new("bench")),
        spent: Duration::ZERO,
        longest: Duration::ZERO,
        events: 0,
        questions: VecDeque::new(),
        running: VecDeque::new(),
        ended: false,
    };
    let session = SessionId(1);
    let options = SessionOptions {
        mode: SessionMode::Build,
        keep_going: true,
        jobs: None,
        cores: 0,
        limits: BuildLimits::NONE,
        to: None,
    };
    driver.send(Event::SessionOpened { session, options });
    let numbers: Vec<usize> = (0..count).collect();
    for batch in numbers.chunks(BATCH) {
        let derivations = batch.iter().map(|number| derivation(*number)).collect();
        driver.send(Event::Instantiated { session, derivations });
        driver.answer();
    }
    driver.report("instantiated and asked for");
    for target in (0..count).step_by(count.div_ceil(1000)).chain([count - 1]) {
        driver.send(Event::TargetNamed {
            session,
            target: target as u64,
            name: String::new(),
            derivation: path(0, target, "package.drv"),
            outputs: vec!["out".to_owned()],
        });
        driver.answer();
    }
    driver.send(Event::EvaluationEnded { session });
    driver.report("1000 targets named");
    let systems = vec!["x86_64-linux".to_owned()];
    driver.send(Event::OwnBuilder(OwnBuilder {
        slots: SLOTS,
        systems,
        features: vec![],
    }));
    let mut built = 0;
    while let Some((build, derivation)) = driver.running.pop_front() {
        built += 1;
        let mut digest = *derivation.digest();
        digest[0] = 1;
        digest[17..].fill(1);
        let output = StorePath::from_parts(digest, "package").expect("a valid name");
        let outputs = BTreeMap::from([(
            "out".to_owned(),
            BuiltPath {
                path: output,
                nar_size: 1,
            },
        )]);
        driver.send(Event::BuildFinished {
            build,
            outputs,
            delivery: Delivery::OwnStore,
        });
    }
    driver.report(&format!("{built} built"));
    assert!(
        driver.ended && driver.coordinator.is_idle(),
        "it did not come to its end"
    );
}
