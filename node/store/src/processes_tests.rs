//! What is seen of processes: of real ones, and of what the kernel could say.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};

use super::*;

const NAMES: [&str; 6] = [
    "00000000000000000000000000000000-program",
    "11111111111111111111111111111111-folder",
    "22222222222222222222222222222222-open",
    "33333333333333333333333333333333-said",
    "44444444444444444444444444444444-by-name",
    "55555555555555555555555555555555-elsewhere",
];

fn path(number: usize) -> StorePath {
    StorePath::from_basename(NAMES[number].as_bytes()).unwrap()
}

/// A process that stays until it is ended.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped());
        loop {
            match command.spawn() {
                Ok(child) => return Self(child),
                // What another test just started has the program open for writing, until it is what it was started as.
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn what_processes_execute_and_stand_in_and_have_open_and_were_given_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("home/nix/store");
    let place = |number: usize| store.join(NAMES[number]);
    fs::create_dir_all(place(1).join("bin")).unwrap();
    fs::write(place(2), "").unwrap();
    let cat = std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .map(|folder| folder.join("cat"))
        .find(|program| program.is_file())
        .unwrap();
    fs::create_dir(place(0)).unwrap();
    fs::copy(cat, place(0).join("cat")).unwrap();

    let processes = [
        Process::start(&mut Command::new(place(0).join("cat"))),
        Process::start(Command::new("cat").current_dir(place(1).join("bin"))),
        Process::start(Command::new("cat").stderr(fs::File::open(place(2)).unwrap())),
        Process::start(Command::new("cat").env("X", format!("a=b:{}/lib", place(3).display()))),
        // These lead elsewhere: nobody sees this store at /nix/store, and the last one is another home's.
        Process::start(
            Command::new("cat")
                .env("X", format!("/nix/store/{}", NAMES[4]))
                .env("Y", format!("/elsewhere/nix/store/{}", NAMES[5])),
        ),
    ];
    let expected: BTreeMap<StorePath, u32> = processes[..4]
        .iter()
        .enumerate()
        .map(|(number, process)| (path(number), process.0.id()))
        .collect();
    let named = |but| named_by_processes(Path::new(PROC), &store, but, Bounds::default()).unwrap();
    assert_eq!(named(None), expected);
    // One's own, which are leased.
    assert_eq!(named(Some(std::process::id())), BTreeMap::new());
    assert_eq!(named(Some(processes[0].0.id())).len(), 3);
    drop(processes);
    assert_eq!(named(None), BTreeMap::new());
}

/// What the kernel could say of a process: `shown` is what it sees at `/nix/store`.
fn process(proc: &Path, number: u32, shown: Option<&Path>, mounts: &str) {
    let folder = proc.join(number.to_string());
    fs::create_dir_all(folder.join("fd")).unwrap();
    fs::create_dir(folder.join("ns")).unwrap();
    symlink(format!("mnt:[{number}]"), folder.join("ns/mnt")).unwrap();
    let root = proc.join(format!("root-of-{number}"));
    fs::create_dir_all(root.join("nix")).unwrap();
    if let Some(shown) = shown {
        symlink(shown, root.join("nix/store")).unwrap();
    }
    symlink(root, folder.join("root")).unwrap();
    is_started_by(proc, number, 1);
    symlink(
        format!("/nix/store/{}/bin/x (deleted)", NAMES[0]),
        folder.join("exe"),
    )
    .unwrap();
    let line = format!(
        "7f-8f r-xp 00000000 fe:00 12   /nix/store/{}/lib/libx.so\n",
        NAMES[1]
    );
    fs::write(folder.join("maps"), line).unwrap();
    fs::write(
        folder.join("environ"),
        format!("A=-I/nix/store/{}\0B=x\0", NAMES[2]),
    )
    .unwrap();
    fs::write(folder.join("mountinfo"), mounts).unwrap();
}

fn is_started_by(proc: &Path, number: u32, parent: u32) {
    let state =
        format!("{number} (a) (name)) S {parent} 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 {number}00 1 1\n");
    fs::write(proc.join(number.to_string()).join("stat"), state).unwrap();
}

fn named(proc: &Path, store: &Path, but: Option<u32>) -> BTreeMap<StorePath, u32> {
    named_by_processes(proc, store, but, Bounds::default()).unwrap()
}

#[test]
fn names_count_where_they_lead_to_this_store() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let home = folder.join("a home");
    let (store, other) = (home.join("nix/store"), folder.join("other"));
    fs::create_dir_all(&store).unwrap();
    fs::create_dir_all(&other).unwrap();
    let escaped = store.display().to_string().replace(' ', "\\040");
    let layers = |store: &str| {
        format!(
            "1 0 0:1 / / rw - tmpfs tvix-node rw\n2 1 0:2 / /nix/store ro - overlay {store} ro,lowerdir=/proc/self/fd/3:/nix/store\n"
        )
    };
    // The third one is only said, in the environment.
    for (shown, mounts, counts) in [
        (Some(&store), String::new(), 3),
        (None, layers(&escaped), 2),
        (Some(&other), String::new(), 0),
        (Some(&other), layers(&escaped), 3),
        (Some(&other), layers("/elsewhere/nix/store"), 0),
    ] {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 12, shown.map(PathBuf::as_path), &mounts);
        fs::write(proc.path().join("uptime"), "").unwrap();
        let expected = (0..counts).map(|number| (path(number), 12));
        let named = named(proc.path(), &store, None);
        assert_eq!(named, expected.collect(), "{shown:?} {mounts}");
    }
}

#[test]
fn a_process_that_changed_its_root_does_not_speak_for_others_of_the_same_mounts() {
    let store = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let proc = tempfile::tempdir().unwrap();
    let shown = [(12, None), (13, Some(other.path())), (14, Some(store.path()))];
    for (number, shown) in shown {
        process(proc.path(), number, shown, "");
        let mounts = proc.path().join(number.to_string()).join("ns/mnt");
        fs::remove_file(&mounts).unwrap();
        symlink("mnt:[1]", mounts).unwrap();
    }
    // The first one executes and maps what may be of this store, wherever it looks now; what it was told says nothing.
    let expected = [(path(0), 12), (path(1), 12), (path(2), 14)];
    assert_eq!(named(proc.path(), store.path(), None), expected.into());
}

#[test]
fn nothing_is_read_of_the_family() {
    let store = tempfile::tempdir().unwrap();
    let proc = tempfile::tempdir().unwrap();
    for (number, parent) in [(20, 1), (21, 20), (22, 21), (30, 1)] {
        process(proc.path(), number, Some(store.path()), "");
        is_started_by(proc.path(), number, parent);
    }
    let expected: BTreeMap<_, _> = (0..3).map(|number| (path(number), 30)).collect();
    // More than may be read, had it been read.
    let maps = proc.path().join("22/maps");
    let bounds = Bounds {
        file_bytes: 1000,
        ..Bounds::default()
    };
    fs::write(maps, [b'x'; 1001]).unwrap();
    let named = |but| named_by_processes(proc.path(), store.path(), but, bounds);
    assert_eq!(named(Some(20)).unwrap(), expected);
    assert!(matches!(
        named(None),
        Err(RunningError::ProcessTooLarge { most: 1000, .. })
    ));
}

#[test]
fn what_is_too_much_to_look_at_is_refused_whole() {
    let store = tempfile::tempdir().unwrap();
    let proc = tempfile::tempdir().unwrap();
    (1..=10).for_each(|number| process(proc.path(), number, Some(store.path()), ""));
    let named = |bounds| named_by_processes(proc.path(), store.path(), None, bounds);
    assert_eq!(named(Bounds::default()).unwrap().len(), 3);

    let bytes = 1000;
    let error = named(Bounds {
        bytes,
        ..Bounds::default()
    });
    let error = error.unwrap_err();
    assert!(
        matches!(
            error,
            RunningError::TooManyProcesses {
                process: 2..10,
                most: 1000,
                bytes: 1001..,
                ..
            }
        ),
        "{error}"
    );
    let message = error.to_string();
    assert!(
        message.contains("at most 1000") && message.contains("fewer"),
        "{message}"
    );

    let time = Duration::ZERO;
    let error = named(Bounds {
        time,
        ..Bounds::default()
    });
    assert!(matches!(
        error,
        Err(RunningError::TooManyProcesses { process: 1, .. })
    ));

    let file_bytes = 10;
    let error = named(Bounds {
        file_bytes,
        ..Bounds::default()
    });
    let message = error.unwrap_err().to_string();
    assert!(
        message.contains("1/maps") && message.contains("10 bytes"),
        "{message}"
    );
}

#[test]
fn a_process_is_told_from_a_later_one_of_the_same_number() {
    let said = |text: &str| state_in(text.as_bytes());
    let state = |parent, started| Some(State { parent, started });
    let numbers = "1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0";
    assert_eq!(said(&format!("7 (cat) S 4 {numbers} 815 1 1")), state(4, 815));
    assert_eq!(said(&format!("7 (x) S 9 (1)) R 4 {numbers} 816")), state(4, 816));
    assert_eq!(said(&format!("7 (cat) S 4 {numbers}")), None);
    assert_eq!(said("7 cat S 4"), None);
    // As the kernel says it of this one.
    let me = fs::read("/proc/self/stat").unwrap();
    let state = state_in(&me).unwrap();
    assert_eq!(state.parent, std::os::unix::process::parent_id());
    assert!(state.started > 0);
}

#[test]
fn names_are_found_whole() {
    let homes = [b"/h".to_vec()];
    let found = |text: &str| {
        let mut found = Vec::new();
        names_in(text.as_bytes(), &homes, &mut found);
        found
    };
    let name = NAMES[0];
    for (text, by) in [
        (format!("/nix/store/{name}"), By::Name),
        (format!("PATH=/bin:/nix/store/{name}/bin:/sbin"), By::Name),
        (format!("/a/b=/nix/store/{name}"), By::Name),
        (format!("-L/nix/store/{name}\0"), By::Name),
        (format!("file:///nix/store/{name} (deleted)"), By::Name),
        (format!("X=/h/nix/store/{name}/x"), By::Place),
    ] {
        assert_eq!(found(&text), [(path(0), by)], "{text}");
    }
    for text in [
        "/nix/store".to_owned(),
        "/nix/store/".to_owned(),
        "/nix/store/.links".to_owned(),
        format!("/nix/stored/{name}"),
        format!("/other/nix/store/{name}"),
        format!("/nix/store/{}", &name[1..]),
    ] {
        assert_eq!(found(&text), [], "{text}");
    }
    assert_eq!(unescaped(b"a\\040b\\x\\"), "a b\\x\\");
}
