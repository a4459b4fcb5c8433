//! Where the tests' builds happen.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tvix_node_builder::{
    BuildError, BuildEvent, BuildInput, BuildSpec, Builder, Built, Cause, Config, Helper, SandboxPath,
    StorePath,
};
use tvix_node_protocol::nix::derivation::{DerivationFields, OutputKind, read_derivation};

/// Stands for the path of the output `out`, as `builtins.placeholder "out"`.
pub const OUT: &str = "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9";

/// The tests' own program.
pub const ACTOR: &str = env!("CARGO_BIN_EXE_sandbox-actor");

/// Says visibly that something was not tested: not through the macros, whose output a passing test
/// keeps to itself.
pub fn skipped(what: &str, reason: &dyn Display) {
    writeln!(std::io::stderr(), "SKIPPED: {what}, because {reason}").expect("standard error takes it");
}

/// What came of a build.
pub struct Played {
    pub result: Result<Built, BuildError>,
    pub log: Vec<String>,
    pub started: bool,
}

impl Played {
    /// The cause of a failure.
    pub fn cause(self) -> Cause {
        match self.result {
            Ok(built) => panic!("it succeeded: {built:?}, {:?}", self.log),
            Err(error) => *error.cause,
        }
    }

    /// The outputs of a success.
    pub fn built(self) -> Built {
        self.result
            .unwrap_or_else(|error| panic!("{error}, {:?}", self.log))
    }
}

/// Processes of the machine that have this in their command line.
pub fn processes_with(token: &str) -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(move |entry| {
            let path = entry.ok()?.path();
            let line = std::fs::read(path.join("cmdline")).ok()?;
            let found = line.windows(token.len()).any(|part| part == token.as_bytes());
            found.then(|| path.file_name()?.to_str()?.parse().ok())?
        })
}

/// A process of the machine that has nothing to do with any build. Killed when dropped.
pub struct Bystander(Child);

impl Bystander {
    pub fn new() -> Self {
        let mut command = Command::new(ACTOR);
        command.arg("wait").stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("the actor runs"))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn is_alive(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_none()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.0.kill().expect("a child");
        self.0.wait().expect("a child");
    }
}

/// Whether there is any such process.
pub fn is_running(token: &str) -> bool {
    processes_with(token).next().is_some()
}

/// A word that no other process has in its command line.
pub fn token() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("token-{}-{number}-end", std::process::id())
}

thread_local! {
    /// What names the builds of this test: each runs on a thread of its own.
    static BUILDS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A builder with a folder of its own. When it goes, nothing of its builds is left.
pub struct Stage {
    pub builder: Builder,
    pub folder: TempDir,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let (left, processes, groups) = (self.leftovers(), self.processes(), control_groups());
            assert!(left.is_empty(), "left behind: {left:?}");
            assert!(processes.is_empty(), "still running: {processes:?}");
            assert!(groups.is_empty(), "left behind: {groups:?}");
        }
    }
}

impl Stage {
    /// None, with a visible note, where this machine does not allow sandboxes.
    pub async fn new() -> Option<Self> {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Option<Self> {
        // Another than that of builds, which must not depend on the node's.
        rustix::process::umask(rustix::fs::Mode::empty());
        let folder = tempfile::tempdir().expect("a folder for tests");
        let mut config = Config::new(folder.path().join("builds"), Helper::program(ACTOR));
        config.sandbox_paths = libraries();
        change(&mut config);
        let builder = Builder::new(config).expect("a folder for builds");
        match builder.probe().await {
            Ok(()) => Some(Self { builder, folder }),
            Err(error) => {
                skipped("a build in a sandbox", &error);
                None
            }
        }
    }

    /// Runs one act of the actor as a build.
    pub async fn act(&self, arguments: &[&str]) -> Played {
        self.play(spec(fields(arguments))).await
    }

    /// Runs one act that has no output worth a look, and gives its log.
    pub async fn look(&self, arguments: &[&str]) -> Vec<String> {
        let played = self.act(arguments).await;
        let cause = *played.result.expect_err("it makes no output").cause;
        assert!(
            matches!(cause, Cause::OutputMissing { .. }),
            "{cause}, {:?}",
            played.log
        );
        played.log
    }

    /// Builds to the end.
    pub async fn play(&self, spec: BuildSpec) -> Played {
        self.play_until(spec, |_| false).await
    }

    /// Builds, and cancels after the first line of log for which `enough` holds.
    pub async fn play_until(&self, spec: BuildSpec, enough: impl Fn(&str) -> bool) -> Played {
        let (events, mut heard) = mpsc::channel(16);
        let cancel = CancellationToken::new();
        let mut log = Vec::new();
        let mut started = false;
        let listen = async {
            while let Some(event) = heard.recv().await {
                match event {
                    BuildEvent::Started => started = true,
                    BuildEvent::Log(line) => {
                        let line = String::from_utf8_lossy(&line).into_owned();
                        if enough(&line) {
                            cancel.cancel();
                        }
                        log.push(line);
                    }
                    _ => {}
                }
            }
        };
        let build = self.builder.build(spec, events, cancel.clone());
        let (result, ()) = tokio::join!(build, listen);
        Played { result, log, started }
    }

    /// Processes that see anything of the folder for builds, in a namespace of their own: those of builds.
    pub fn processes(&self) -> Vec<String> {
        let folder = self.builder.config().scratch.to_string_lossy().into_owned();
        let mounts = |process: &Path| std::fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        std::fs::read_dir("/proc")
            .expect("/proc")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|process| mounts(process).contains(&folder))
            .map(|process| process.display().to_string())
            .collect()
    }

    /// What is left in the folder for builds, except what the builds of a slot share, and of mounts on the
    /// machine.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let folder = self.folder.path().to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
        let mounts = mounts.lines().filter(|line| line.contains(&folder));
        std::fs::read_dir(&self.builder.config().scratch)
            .expect("the folder for builds")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| !path.to_string_lossy().contains("/slot-"))
            .chain(mounts.map(PathBuf::from))
            .collect()
    }
}

/// Control groups for the builds of this test.
pub fn control_groups() -> Vec<PathBuf> {
    fn search(folder: &Path, builds: &[String], found: &mut Vec<PathBuf>) {
        // Groups come and go, and some may not be read.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                if builds.iter().any(|build| name.contains(build)) {
                    found.push(entry.path());
                }
                search(&entry.path(), builds, found);
            }
        }
    }
    let mut found = Vec::new();
    BUILDS.with_borrow(|builds| search(Path::new("/sys/fs/cgroup"), builds, &mut found));
    found
}

/// What the dynamic linker needs to run the actor, wherever this machine has it.
pub fn libraries() -> BTreeMap<PathBuf, SandboxPath> {
    static LIBRARIES: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let files = LIBRARIES.get_or_init(|| {
        let output = Command::new(ACTOR)
            .arg("libraries")
            .output()
            .expect("the actor runs");
        let text = String::from_utf8(output.stdout).expect("paths in UTF-8");
        let mapped = text
            .lines()
            .map(PathBuf::from)
            .filter(|path| path != Path::new(ACTOR));
        // The loader is asked for by the path that stands in the program, which may be a link.
        let loaders = [
            "/lib64/ld-linux-x86-64.so.2",
            "/lib/ld-linux-aarch64.so.1",
            "/lib/ld-musl-x86_64.so.1",
        ];
        let links = ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64"]
            .into_iter()
            .flat_map(|folder| {
                ["libc.so.6", "libgcc_s.so.1", "libm.so.6"].map(|name| format!("{folder}/{name}"))
            });
        mapped
            .chain(loaders.into_iter().map(PathBuf::from))
            .chain(links.map(PathBuf::from))
            .filter(|path| path.exists())
            .collect()
    });
    let shown = |path: &PathBuf| SandboxPath {
        outside: path.clone(),
        writable: false,
    };
    files.iter().map(|path| (path.clone(), shown(path))).collect()
}

/// The actor's place in the store.
pub fn actor_path() -> StorePath {
    StorePath::from_parts([7; 20], "actor").expect("a valid name")
}

/// A derivation that runs one act.
pub fn fields(arguments: &[&str]) -> DerivationFields {
    let actor = actor_path();
    DerivationFields {
        name: "play".to_owned(),
        outputs: BTreeMap::from([("out".to_owned(), OutputKind::InputAddressed)]),
        input_derivations: BTreeMap::new(),
        input_sources: BTreeSet::from([actor.clone()]),
        system: format!("{}-linux", std::env::consts::ARCH).into_bytes(),
        builder: actor.to_absolute_path().into_bytes(),
        arguments: arguments
            .iter()
            .map(|argument| argument.as_bytes().to_vec())
            .collect(),
        environment: BTreeMap::new(),
    }
}

/// A build of it, with the actor as its only input.
pub fn spec(fields: DerivationFields) -> BuildSpec {
    let made = fields.instantiate(|_| None).expect("a valid derivation");
    let derivation = read_derivation(&made.drv_path, &made.aterm).expect("a derivation that reads back");
    let actor = BuildInput {
        path: actor_path(),
        physical: ACTOR.into(),
    };
    BuildSpec::new(derivation, unlike_any_other(), vec![actor])
}

/// Names a build alone, so that what is left of it can be told from what belongs to others.
fn unlike_any_other() -> StorePath {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mut digest = [0; 20];
    digest[..4].copy_from_slice(&std::process::id().to_le_bytes());
    digest[4..8].copy_from_slice(&NUMBER.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    let path = StorePath::from_parts(digest, "play.drv").expect("a valid name");
    BUILDS.with_borrow_mut(|builds| builds.push(path.to_basename()[..32].to_owned()));
    path
}

#[tokio::test]
async fn what_is_there_of_a_build_is_seen_while_it_runs() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = spec(fields(&["wait"]));
    asked.limits.memory = Some(64 << 20);
    let seen = std::cell::Cell::new((0, 0, 0));
    let look = |line: &str| {
        seen.set((
            stage.leftovers().len(),
            stage.processes().len(),
            control_groups().len(),
        ));
        line == "waiting"
    };
    let played = stage.play_until(asked, look).await;
    assert!(matches!(played.cause(), Cause::Cancelled));
    let (folders, processes, groups) = seen.get();
    assert_eq!((folders, processes), (1, 1));
    if groups == 0 {
        skipped("a look for control groups", &"this user may make none here");
    }
}

#[tokio::test]
async fn what_is_left_behind_is_told() {
    let Some(stage) = Stage::new().await else { return };
    std::fs::create_dir(stage.builder.config().scratch.join("left")).unwrap();
    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(stage)));
    let told = told.unwrap_err().downcast::<String>().unwrap();
    assert!(told.starts_with("left behind: ["), "{told}");
}
