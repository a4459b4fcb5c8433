//! What programs use, seen from a collection.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;
use crate::{GcOptions, Store, Text};

fn texts(store: &Store, names: &[&str]) -> Vec<StorePath> {
    let text = |name: &&str| {
        let references = BTreeSet::new();
        let path =
            tvix_node_protocol::nix::store_path::build_text_path(name, name.as_bytes(), &references).unwrap();
        let content = name.as_bytes().to_vec();
        Text {
            path,
            references,
            content,
        }
    };
    let texts: Vec<Text> = names.iter().map(text).collect();
    store.add_texts(&texts, &store.lease()).unwrap();
    texts.into_iter().map(|text| text.path).collect()
}

fn named_in_files(home: &Path) -> Result<BTreeSet<StorePath>, RunningError> {
    super::named_in_files(&Disk::default(), home)
}

fn read_if_held(path: &Path) -> Result<Vec<StorePath>, RunningError> {
    super::read_if_held(&Disk::default(), path)
}

fn names(home: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(home.join(FOLDER)).unwrap();
    let name = |entry: io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    entries.map(name).collect()
}

#[test]
fn what_a_program_uses_stays_until_the_last_process_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    let paths = texts(&store, &["used", "unused"]);
    let running = Running::begin(store.home(), &[paths[0].clone()].into()).unwrap();
    running.inherit(true).unwrap();
    let mut program = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    running.inherit(false).unwrap();
    let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();

    assert_eq!(store.gc(&GcOptions::default()).unwrap().removed, paths[1..]);
    // Whoever started it is gone, it is not.
    drop(running);
    let dry_run = true;
    let plan = GcOptions {
        dry_run,
        ..GcOptions::default()
    };
    assert_eq!(store.gc(&plan).unwrap().removed, []);
    assert_eq!(store.gc(&GcOptions::default()).unwrap().removed, []);
    assert_eq!(names(store.home()).len(), 1);

    program.kill().unwrap();
    program.wait().unwrap();
    // One that was started beside it holds nothing.
    assert_eq!(store.gc(&GcOptions::default()).unwrap().removed, paths[..1]);
    assert_eq!(names(store.home()), Vec::<String>::new());
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn what_is_named_for_a_program_has_a_bound() {
    let folder = tempfile::tempdir().unwrap();
    // 211 letters are the most that a name has.
    let path = |number: usize| StorePath::from_parts([7; 20], &format!("{number:0>200}")).unwrap();
    let line = path(0).to_basename().len() + 1;
    let most = RUNNING_BYTES / line;
    let paths = |count: usize| (0..count).map(path).collect::<BTreeSet<StorePath>>();
    let running = Running::begin(folder.path(), &paths(most)).unwrap();
    assert_eq!(named_in_files(folder.path()).unwrap().len(), most);
    let file = folder.path().join(FOLDER).join(&names(folder.path())[0]);
    let error = Running::begin(folder.path(), &paths(most + 1)).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("names of all paths") && error.contains("too large"),
        "{error}"
    );
    assert_eq!(names(folder.path()).len(), 1);
    // Written by something else.
    let mut written = File::options().append(true).open(&file).unwrap();
    written.write_all(&vec![b'\n'; RUNNING_BYTES]).unwrap();
    let error = named_in_files(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains(&format!("more than {RUNNING_BYTES} bytes")),
        "{error}"
    );
    drop(running);
}

#[test]
fn a_program_that_let_go_of_what_it_inherited_is_seen_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    let paths = texts(&store, &["used", "unused"]);
    let place = |path: &StorePath| store.physical(path);
    // Not started by this process, whose own are left out.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "exec 3<&0; cat <&3 3<&- >/dev/null 2>&1 & echo $!"])
        .env("USED", format!("-L{}/lib", place(&paths[0]).display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    let mut said = String::new();
    shell.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let stdin = shell.stdin.take().unwrap();
    shell.wait().unwrap();
    let program: u32 = said.trim().parse().unwrap();

    let report = store.gc(&GcOptions::default()).unwrap();
    assert_eq!(report.removed, paths[1..]);
    let expected = ProgramUse {
        path: paths[0].clone(),
        process: Some(program),
    };
    assert_eq!(report.programs, [expected]);
    // It ends with its input; nobody here is its parent, so there is nobody to wait for it.
    drop(stdin);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while store.gc(&GcOptions::default()).unwrap().removed != paths[..1] {
        assert!(std::time::Instant::now() < deadline, "{program} has not ended");
    }
}

#[test]
fn what_ends_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    drop(Running::begin(folder.path(), &BTreeSet::new()).unwrap());
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn one_that_is_being_made_is_not_in_the_way_and_one_that_was_never_made_goes() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(FOLDER)).unwrap();
    let make = |name: &str| {
        let path = folder.path().join(FOLDER).join(format!("{BEGUN}{name}"));
        std::fs::write(&path, "half of a na").unwrap();
        path
    };
    let (being_made, left) = (make("1"), make("2"));
    let maker = File::open(&being_made).unwrap();
    rustix::fs::flock(maker.as_fd(), FlockOperation::LockExclusive).unwrap();
    assert_eq!(named_in_files(folder.path()).unwrap(), BTreeSet::new());
    assert!(being_made.exists() && !left.exists());
}

#[test]
fn one_that_a_collection_took_before_it_was_locked_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let (begun, path) = (folder.path().join(".new-1"), folder.path().join("1"));
    let disk = Disk::default();
    let file = disk.make(&begun, 0o644).unwrap();
    assert_eq!(read_if_held(&begun).unwrap(), []);
    assert!(!begun.exists());
    let locked = Running::lock(&disk, file, &begun, (path.clone(), ""));
    assert!(locked.unwrap().is_none());
    assert!(!path.exists());
}

#[test]
fn nothing_is_lost_to_collections_that_run_while_it_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let path = StorePath::from_basename(b"00000000000000000000000000000000-used").unwrap();
    let expected = BTreeSet::from([path]);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    named_in_files(home).unwrap();
                }
            });
        }
        let tries: Vec<bool> = (0..300)
            .map(|_| {
                let running = Running::begin(home, &expected);
                running.is_ok_and(|_running| named_in_files(home).is_ok_and(|used| used == expected))
            })
            .collect();
        // First, so that a failure ends the others, too.
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(tries.iter().all(|kept| *kept));
    });
    assert_eq!(names(home), Vec::<String>::new());
}

#[test]
fn a_file_that_cannot_be_understood_stops_a_collection() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    let paths = texts(&store, &["perhaps-used"]);
    let running = Running::begin(store.home(), &paths.iter().cloned().collect()).unwrap();
    std::fs::write(&running.path, "something else\n").unwrap();
    let error = store.gc(&GcOptions::default()).unwrap_err().to_string();
    assert!(
        error.contains("something else") && error.contains("/running/"),
        "{error}"
    );
    assert!(store.query(&paths[0]).unwrap().is_some());
}

#[test]
fn what_is_no_file_among_them_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let path = StorePath::from_basename(b"00000000000000000000000000000000-used").unwrap();
    let expected = BTreeSet::from([path]);
    let _running = Running::begin(home, &expected).unwrap();
    let place = |name: &str| home.join(FOLDER).join(name);
    std::fs::create_dir(place("folder")).unwrap();
    std::fs::write(place("folder").join("something"), "else").unwrap();
    std::fs::create_dir(place(".new-folder")).unwrap();
    std::os::unix::fs::symlink("folder/something", place("link")).unwrap();
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place("pipe"),
        rustix::fs::FileType::Fifo,
        mode,
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(place("socket")).unwrap();
    assert_eq!(named_in_files(home).unwrap(), expected);
    // Whoever put them there may want them.
    assert_eq!(names(home).len(), 6);
    assert!(place("folder").join("something").exists());
}

/// The home that [`what_another_user_started_counts_or_is_named_with_its_owner`] lets another user look at.
const INSIDE: &str = "TVIX_NODE_TEST_RUNNING_OF_ANOTHER";

/// Somebody who is not root.
const NOBODY: u32 = 65534;

#[test]
fn what_another_user_started_counts_or_is_named_with_its_owner() {
    let test = "running::tests::what_another_user_started_counts_or_is_named_with_its_owner";
    let path = StorePath::from_basename(b"00000000000000000000000000000000-used").unwrap();
    if let Some(home) = std::env::var_os(INSIDE) {
        let place = |name: &str| Path::new(&home).join(FOLDER).join(name);
        assert_eq!(read_if_held(&place("running")).unwrap(), [path]);
        assert_eq!(read_if_held(&place("ended")).unwrap(), []);
        assert!(!place("ended").exists());
        let error = read_if_held(&place("closed")).unwrap_err();
        assert!(
            matches!(
                error,
                RunningError::NotOurs {
                    owner: 0,
                    me: NOBODY,
                    ..
                }
            ),
            "{error}"
        );
        let error = error.to_string();
        for part in ["running/closed", "user 0 ", "remove the file"] {
            assert!(error.contains(part), "no '{part}' in: {error}");
        }
        return;
    }
    let skipped = |reason: &str| println!("SKIPPED: {test}, because {reason}");
    if !rustix::process::geteuid().is_root() {
        return skipped("only root can start something as another user");
    }
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let open = |path: &Path, mode| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(home, 0o755);
    let running = Running::begin(home, &[path].into()).unwrap();
    let place = |name: &str| home.join(FOLDER).join(name);
    std::os::unix::fs::chown(place(""), Some(NOBODY), None).unwrap();
    std::fs::hard_link(&running.path, place("running")).unwrap();
    std::fs::copy(&running.path, place("ended")).unwrap();
    std::fs::copy(&running.path, place("closed")).unwrap();
    open(&place("closed"), 0o600);
    let child = std::os::unix::process::CommandExt::uid(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env(INSIDE, home)
            .current_dir("/"),
        NOBODY,
    )
    .output();
    match child {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
        }
        Err(error) => skipped(&format!("another user cannot run this test: {error}")),
    }
}
