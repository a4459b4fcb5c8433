//! Every file operation fails or is cut, one after the other; the store must come through.
//!
//! The killed processes are this test program itself, started again with a plan in its environment.
//! The short runs cut at a sample of all points; `--ignored` cuts at every one.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash, hash_bytes};
use tvix_node_protocol::nix::store_path::build_text_path;
use tvix_node_protocol::path_info::{Origin, PathInfo};

use crate::disk::Disk;
use crate::faults::{Faults, Plan, Step};
use crate::{ContentName, GcOptions, Lease, Naming, ScratchOutput, Store, Text};

type Failure = Box<dyn std::error::Error>;

fn open(home: &Path, plan: Plan) -> Result<(Store, Faults), crate::OpenError> {
    let disk = Disk::default();
    let faults = disk.faults.clone();
    faults.set(plan);
    // Both ways to sync are cut at.
    faults.set_dirty_bytes(match plan {
        Plan::Fail(step, _) | Plan::Full(step) | Plan::Kill(step) if step % 2 == 1 => u64::MAX,
        _ => 0,
    });
    Ok((Store::open_on(home, disk, None)?, faults))
}

fn text(name: &str, content: &str, references: &[&Text]) -> Text {
    let references: BTreeSet<StorePath> = references.iter().map(|text| text.path.clone()).collect();
    Text {
        path: build_text_path(name, content.as_bytes(), &references).unwrap(),
        references,
        content: content.as_bytes().to_vec(),
    }
}

/// Two trees that share files, with files of one content twice in one tree.
fn write_sources(at: &Path) {
    for (number, tree) in ["one", "two"].iter().enumerate() {
        let tree = at.join(tree);
        fs::create_dir_all(tree.join("sub/empty")).unwrap();
        fs::write(tree.join("shared"), "the same in both\n").unwrap();
        fs::write(tree.join("sub/shared"), "the same in both\n").unwrap();
        fs::write(tree.join("own"), format!("only in {number}\n")).unwrap();
        fs::write(tree.join("tool"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(tree.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(tree.join("large"), vec![b'!'; crate::limits::SMALL_FILE + 5]).unwrap();
        symlink("own", tree.join("link")).unwrap();
    }
}

fn source(name: &str) -> Naming {
    Naming::Content(ContentName::source(name))
}

/// What a store goes through. `done` is told what is durable from then on; `risk` what may go from then
/// on.
struct Work<'a> {
    sources: &'a Path,
    done: &'a mut dyn FnMut(&PathInfo),
    risk: &'a mut dyn FnMut(),
}

impl Work<'_> {
    fn all(&mut self, store: &Store) -> Result<(), Failure> {
        let lease = store.lease();
        self.texts(store, &lease)?;
        let one = store.add_source(&self.sources.join("one"), source("one"), &lease)?;
        (self.done)(&one);
        let two = store.add_source(&self.sources.join("two"), source("two"), &lease)?;
        (self.done)(&two);
        let mut archive = Vec::new();
        store.dump_nar(&one.path, &mut archive)?;
        (self.done)(&store.add_nar(&archive[..], source("again"), &lease)?);
        self.built(store, &lease, &one)?;
        self.collect(store, lease, &two)
    }

    fn texts(&mut self, store: &Store, lease: &Lease) -> Result<(), Failure> {
        let first = text("first", "first", &[]);
        let second = text("second", "second", &[&first]);
        let third = text("third", "third", &[&first, &second]);
        store
            .add_texts(&[first, second, third], lease)?
            .iter()
            .for_each(&mut *self.done);
        Ok(())
    }

    fn built(&mut self, store: &Store, lease: &Lease, one: &PathInfo) -> Result<(), Failure> {
        let path = |name| StorePath::from_parts([9; 20], name).unwrap();
        let (out, dev, beside) = (path("out"), path("dev"), path("beside"));
        let scratch = self.sources.join("two");
        let output = |path: &StorePath| ScratchOutput {
            path: path.clone(),
            scratch: &scratch,
            ca: None,
            scanned: true,
        };
        let candidates = BTreeSet::from([one.path.clone()]);
        let deriver = path("out.drv");
        let outputs = [output(&out), output(&dev)];
        let prepared = store.prepare_built(&outputs, &candidates, &deriver, &Origin::Built)?;
        store.register(prepared, lease)?.iter().for_each(&mut *self.done);
        let prepared = store.prepare_built(&[output(&beside)], &candidates, &deriver, &Origin::Built)?;
        let info = store.register_unaccepted(prepared, lease)?.remove(0);
        store.accept(&beside, &info.tree, lease)?;
        (self.done)(&info);
        Ok(())
    }

    fn collect(&mut self, store: &Store, lease: Lease, keep: &PathInfo) -> Result<(), Failure> {
        let link = self.sources.join("result");
        store.add_root(&link, &keep.path)?;
        drop(lease);
        (self.risk)();
        store.gc(&GcOptions::default())?;
        (self.done)(keep);
        // Some of what went comes again.
        let lease = store.lease();
        self.texts(store, &lease)
    }
}

/// Everything in the store is whole, and there is nothing else.
fn assert_whole(store: &Store) {
    assert_eq!(
        whole_and_more(store),
        Vec::<String>::new(),
        "strange names among the trees"
    );
}

/// Everything in the store is whole; what else lies among the trees.
fn whole_and_more(store: &Store) -> Vec<String> {
    let known = store.inner.index.assert_consistent();
    let names = store.inner.trees.names().unwrap();
    let names: BTreeSet<String> = names
        .into_iter()
        .map(|name| String::from_utf8(name).unwrap())
        .collect();
    let missing: Vec<_> = known.keys().filter(|&name| !names.contains(name)).collect();
    assert!(missing.is_empty(), "missing: {missing:?}");
    for (name, info) in &known {
        let mut archive = Vec::new();
        if name.starts_with(".tree-") {
            store
                .dump_unaccepted(&info.path, &info.tree, &mut archive)
                .unwrap();
        } else {
            store.dump_nar(&info.path, &mut archive).unwrap();
        }
        assert_eq!(
            hash_bytes(HashAlgorithm::Sha256, &archive),
            NixHash::Sha256(info.nar_hash.0)
        );
        assert_canonical(&store.inner.trees.path().join(name));
    }
    names
        .into_iter()
        .filter(|name| !known.contains_key(name))
        .collect()
}

fn assert_canonical(at: &Path) {
    let metadata = fs::symlink_metadata(at).unwrap();
    assert_eq!(metadata.mtime(), 1, "{}", at.display());
    if metadata.is_dir() {
        assert_eq!(metadata.mode() & 0o7777, 0o555);
        for entry in fs::read_dir(at).unwrap() {
            assert_canonical(&entry.unwrap().path());
        }
    } else if metadata.is_file() {
        assert!(matches!(metadata.mode() & 0o7777, 0o444 | 0o555));
    }
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_sources(&folder.path().join("sources"));
        Self { folder }
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn sources(&self) -> PathBuf {
        self.folder.path().join("sources")
    }

    fn work(&self, store: &Store) -> Result<(), Failure> {
        Work {
            sources: &self.sources(),
            done: &mut |_| {},
            risk: &mut || {},
        }
        .all(store)
    }
}

/// How many steps all the work takes.
fn steps() -> u64 {
    let place = Place::new();
    let (store, faults) = open(&place.home(), Plan::Pass).unwrap();
    place.work(&store).unwrap();
    assert_whole(&store);
    faults.count()
}

#[test]
fn a_failing_operation_is_an_error_and_leaves_nothing() {
    let (steps, mut failed) = (steps(), 0);
    println!("{steps} steps");
    for step in (0..steps).step_by(11) {
        for errno in [Errno::IO, Errno::NOSPC] {
            failed += u64::from(fail_at(Plan::Fail(step, errno)));
        }
    }
    assert!(
        failed > steps / 11,
        "most failures are noticed: {failed} of {}",
        2 * steps / 11
    );
}

#[test]
#[ignore = "takes minutes; the sampled test is the short form"]
fn every_failing_operation_is_an_error_and_leaves_nothing() {
    for step in 0..steps() {
        for errno in [Errno::IO, Errno::NOSPC] {
            fail_at(Plan::Fail(step, errno));
        }
        fail_at(Plan::Full(step));
    }
}

#[test]
fn a_full_disk_is_an_error_that_says_so_and_leaves_nothing() {
    for step in (20..steps()).step_by(23) {
        let place = Place::new();
        let Ok((store, faults)) = open(&place.home(), Plan::Full(step)) else {
            continue;
        };
        match place.work(&store) {
            Ok(()) => continue,
            Err(error) => assert!(error.to_string().contains("No space left"), "{error}"),
        }
        faults.set(Plan::Pass);
        assert_whole(&store);
        place.work(&store).unwrap();
    }
}

/// True where the work failed.
fn fail_at(plan: Plan) -> bool {
    let place = Place::new();
    let (mut failed, store) = match open(&place.home(), plan) {
        Ok((store, faults)) => {
            let failed = place.work(&store).is_err();
            faults.set(Plan::Pass);
            (failed, store)
        }
        Err(_) => (true, open(&place.home(), Plan::Pass).unwrap().0),
    };
    // A removal that failed is made up for at the next start, and nothing else has to be.
    let rubbish = |name: &String| name.starts_with(".tmp-") || name.starts_with(".trash-");
    let more = whole_and_more(&store);
    assert!(more.len() <= 1 && more.iter().all(rubbish), "{plan:?}: {more:?}");
    failed |= !more.is_empty();
    drop(store);
    let (store, _) = open(&place.home(), Plan::Pass).unwrap();
    assert_whole(&store);
    place
        .work(&store)
        .unwrap_or_else(|error| panic!("{plan:?}: {error}"));
    assert_whole(&store);
    failed
}

#[test]
fn trees_are_synced_before_they_are_named_and_named_before_anybody_is_told() {
    for (dirty, step) in [(0, Step::Sync), (u64::MAX, Step::SyncFile)] {
        synced_named_told(dirty, step);
    }
}

fn synced_named_told(dirty: u64, sync: Step) {
    let place = Place::new();
    let (store, faults) = open(&place.home(), Plan::Pass).unwrap();
    faults.set_dirty_bytes(dirty);
    faults.record();
    store
        .add_source(&place.sources().join("one"), source("one"), &store.lease())
        .unwrap();
    let log = faults.recorded();
    let first = |step| log.iter().position(|&logged| logged == step).unwrap();
    let last = |step| log.iter().rposition(|&logged| logged == step).unwrap();
    if sync == Step::SyncFile {
        // Five files and three directories of the tree, and the one it is in.
        let synced = log.iter().filter(|&&step| step == Step::SyncFile).count();
        assert_eq!(synced, 9, "{log:?}");
    }
    let (sync, synced) = (first(sync), last(sync));
    for step in [
        Step::MakeDirectory,
        Step::MakeFile,
        Step::MakeSymlink,
        Step::Canonicalise,
    ] {
        assert!(last(step) < sync, "{step:?} after the sync: {log:?}");
    }
    let data = log[..sync].iter().filter(|&&step| step == Step::Write).count();
    assert!(data >= 5, "{log:?}");
    let named = last(Step::Rename);
    assert!(synced < named && named < last(Step::IndexSync), "{log:?}");
    assert!(last(Step::IndexWrite) < last(Step::IndexSync), "{log:?}");
}

#[test]
fn many_texts_share_the_syncs() {
    let place = Place::new();
    let (store, faults) = open(&place.home(), Plan::Pass).unwrap();
    let texts: Vec<Text> = (0..50)
        .map(|number| text("text", &number.to_string(), &[]))
        .collect();
    faults.record();
    store.add_texts(&texts, &store.lease()).unwrap();
    let log = faults.recorded();
    let syncs = |log: &[Step], wanted| log.iter().filter(|&&step| step == wanted).count();
    assert_eq!((syncs(&log, Step::Sync), syncs(&log, Step::SyncFile)), (1, 0));
    assert!(log.iter().filter(|&&step| step == Step::IndexSync).count() <= 2);
}

#[test]
fn a_file_that_has_all_the_links_it_may_have_is_followed_by_a_new_one() {
    let place = Place::new();
    let (store, faults) = open(&place.home(), Plan::Pass).unwrap();
    let lease = store.lease();
    let add = |name: &str| {
        let text = text(name, "the same bytes", &[]);
        let info = store.add_texts(&[text], &lease).unwrap().remove(0);
        fs::metadata(store.physical(&info.path)).unwrap()
    };
    let first = add("first");
    // The first time, the store finds out how files can be shared here.
    add("before");
    faults.record();
    let second = add("second");
    let log = faults.recorded();
    let Some(link) = log.iter().position(|&step| step == Step::HardLink) else {
        println!("SKIPPED: links past their number, because this file system shares extents instead");
        return;
    };
    assert_eq!(first.ino(), second.ino());
    faults.set(Plan::Fail(u64::try_from(link).unwrap(), Errno::MLINK));
    let third = add("third");
    assert_ne!(third.ino(), first.ino());
    // What comes later is linked to the newest, which has room.
    assert_eq!(add("fourth").ino(), third.ino());
}

const HOME: &str = "TVIX_NODE_STORE_TEST_HOME";
const SOURCES: &str = "TVIX_NODE_STORE_TEST_SOURCES";
const KILL_AT: &str = "TVIX_NODE_STORE_TEST_KILL_AT";

/// Not a test of its own: what the processes do that the tests below start and kill.
#[test]
fn child() {
    let (Some(home), Some(sources)) = (std::env::var_os(HOME), std::env::var_os(SOURCES)) else {
        return;
    };
    let plan = match std::env::var(KILL_AT) {
        Ok(step) => Plan::Kill(step.parse().unwrap()),
        Err(_) => Plan::Pass,
    };
    let (store, _) = open(Path::new(&home), plan).unwrap();
    loop {
        Work {
            sources: Path::new(&sources),
            done: &mut |info| say(&format!("DONE {}", info.path.to_basename())),
            risk: &mut || say("RISK"),
        }
        .all(&store)
        .unwrap();
        say("ROUND");
        if plan != Plan::Pass {
            break;
        }
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The parent may be gone: then so will we be.
    writeln!(out, "{line}").and_then(|()| out.flush()).unwrap();
}

/// What a killed process had reported and not put at risk again.
#[derive(Default)]
struct Reported(BTreeMap<String, ()>);

impl Reported {
    fn hear(&mut self, line: &str) {
        if let Some(name) = line.split_once("DONE ").map(|(_, name)| name) {
            self.0.insert(name.to_owned(), ());
        } else if line.contains("RISK") {
            self.0.clear();
        }
    }
}

/// Runs the child until it is killed or `enough` says so (then it is killed), and checks the home.
fn run_and_check(
    place: &Place,
    kill_at: Option<u64>,
    reported: &mut Reported,
    enough: &mut dyn FnMut(&str) -> bool,
) -> bool {
    run_killed(place, (kill_at, None), reported, enough)
}

/// The same, killed from outside after some time at the latest.
fn run_killed(
    place: &Place,
    (kill_at, after): (Option<u64>, Option<Duration>),
    reported: &mut Reported,
    enough: &mut dyn FnMut(&str) -> bool,
) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "fault_tests::child", "--nocapture", "--test-threads=1"]);
    command.env(HOME, place.home()).env(SOURCES, place.sources());
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
            let line = line.unwrap();
            reported.hear(&line);
            if enough(&line) {
                child.kill().unwrap();
            }
        }
    });
    let status = child.wait().unwrap();
    let killed = status.signal() == Some(9);
    assert!(killed || status.success(), "{status}");
    let (store, _) = open(&place.home(), Plan::Pass).unwrap();
    assert_whole(&store);
    for name in reported.0.keys() {
        let path = StorePath::from_basename(name.as_bytes()).unwrap();
        assert!(
            store.query(&path).unwrap().is_some(),
            "{name} was reported and is gone (killed at {kill_at:?})"
        );
    }
    killed
}

fn cut_at(step: u64) {
    let place = Place::new();
    let mut reported = Reported::default();
    run_and_check(&place, Some(step), &mut reported, &mut |_| false);
    let (store, _) = open(&place.home(), Plan::Pass).unwrap();
    place.work(&store).unwrap();
    assert_whole(&store);
}

#[test]
fn a_process_killed_at_any_operation_leaves_a_whole_store() {
    let steps = steps();
    for step in (1..steps).step_by(usize::try_from(steps / 24).unwrap().max(1)) {
        cut_at(step);
    }
}

#[test]
#[ignore = "takes minutes; the sampled test is the short form"]
fn a_process_killed_at_every_operation_leaves_a_whole_store() {
    (0..steps()).for_each(cut_at);
}

/// The same home is cut again and again, recovery included.
#[test]
fn what_was_reported_survives_any_number_of_kills() {
    let place = Place::new();
    let mut reported = Reported::default();
    let steps = steps();
    let mut random = 7u64;
    for _ in 0..12 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        run_and_check(&place, Some((random >> 33) % steps), &mut reported, &mut |_| {
            false
        });
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
    let (place, mut reported, mut random) = (Place::new(), Reported::default(), Random(11));
    let mut kills = 0;
    while !enough(kills) {
        // From before the store is open to some rounds of work.
        let after = Duration::from_micros(random.below(600_000));
        let killed = run_killed(&place, (None, Some(after)), &mut reported, &mut |_| false);
        assert!(killed, "the process ends only when it is killed");
        kills += 1;
    }
    println!("{kills} kills");
}

#[test]
fn a_store_survives_kills_at_random_times() {
    killed_at_random(&mut |kills| kills == 10);
}

/// `cargo test -p tvix-node-store --release -- --ignored --nocapture an_hour`
#[test]
#[ignore = "takes an hour; the test of ten kills is the short form"]
fn a_store_survives_an_hour_of_kills_at_random_times() {
    let start = Instant::now();
    killed_at_random(&mut |_| start.elapsed() > Duration::from_secs(3600));
}

/// Killed from outside, after some reports, wherever the process is by then.
#[test]
fn a_process_killed_from_outside_leaves_a_whole_store() {
    let place = Place::new();
    let mut reported = Reported::default();
    for reports in [1, 2, 5, 9, 14, 20, 33] {
        let mut heard = 0;
        let killed = run_and_check(&place, None, &mut reported, &mut |line| {
            heard += u64::from(line.contains("DONE") || line.contains("RISK"));
            heard == reports
        });
        assert!(killed);
    }
}
