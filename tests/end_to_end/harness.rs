//! A machine of one's own: a folder with a home in it, and the program.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// The builder that `examples/offline` builds with, compiled once a run.
pub fn tool() -> &'static Path {
    static TOOL: OnceLock<PathBuf> = OnceLock::new();
    TOOL.get_or_init(|| {
        // Another test program may be compiling it too: each to a file of its own, then renamed.
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let place = folder.join("tool");
        let aside = folder.join(format!("tool-{}", std::process::id()));
        let prepare = examples().join("offline/prepare");
        let status = Command::new(prepare)
            .arg(&aside)
            .status()
            .expect("examples/offline/prepare runs");
        assert!(status.success(), "examples/offline/prepare failed");
        fs::rename(&aside, &place).expect("the tool can be put in its place");
        place
    })
}

pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// Says visibly that a test was skipped: not through the macros, whose output a passing test keeps
/// to itself.
pub fn skipped(test: &str, reason: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {test}, because {reason}").expect("standard error takes it");
}

/// Whether builds can run here; says why not, visibly.
pub fn sandbox_works(test: &str) -> bool {
    let program = Path::new(env!("CARGO_BIN_EXE_tvix-node"));
    // Says nothing about this machine, so it must not count as a reason to skip.
    assert!(program.is_file(), "there is no program {}", program.display());
    let scratch = tempfile::tempdir().expect("a temporary folder can be made");
    match tvix_node::sandbox_probe(program, &scratch.path().join("probe")) {
        Ok(()) => true,
        Err(reason) => {
            skipped(test, &format!("builds cannot run here: {reason}"));
            false
        }
    }
}

/// What a finished command left.
pub struct Finished {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// The trimmed standard output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(
            self.status, 0,
            "the command failed:\n{}\n{}",
            self.stdout, self.stderr
        );
        self.stdout.trim_end()
    }

    #[track_caller]
    pub fn failed(&self, status: i32, fragments: &[&str]) {
        assert_eq!(
            self.status, status,
            "stdout:\n{}\nstderr:\n{}",
            self.stdout, self.stderr
        );
        for fragment in fragments {
            assert!(
                self.stderr.contains(fragment),
                "no '{fragment}' in:\n{}",
                self.stderr
            );
        }
    }
}

pub struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder can be made"),
        }
    }

    /// Where expressions are written and commands run.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// The physical place of a store path.
    pub fn physical(&self, store_path: &str) -> PathBuf {
        self.home().join(store_path.trim_start_matches('/'))
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("a file can be written");
        path
    }

    /// Writes `default.nix` whose `build name attributes script` makes a derivation of the tool.
    pub fn expression(&self, body: &str) {
        let tool = tool().display();
        self.write(
            "default.nix",
            &format!(
                "let\n  tool = builtins.path {{ name = \"tool\"; path = {tool}; }};\n  build = name: attributes: script:\n    \
                 derivation ({{ inherit name; system = builtins.currentSystem; builder = tool; args = [ script ]; }} // attributes);\n\
                 in\n{body}\n"
            ),
        );
    }

    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tvix-node"));
        command
            .args(arguments)
            .current_dir(self.folder())
            .env("TVIX_NODE_HOME", self.home());
        for variable in ["NIX_PATH", "NIX_CONFIG", "NO_COLOR"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Finished {
        finish(&mut self.command(arguments))
    }

    /// Starts a command whose standard error is read line by line.
    pub fn start(&self, arguments: &[&str]) -> Running {
        let mut child = self
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        Running {
            child,
            stderr,
            seen: String::new(),
        }
    }

    /// Names in the store's folder, sorted.
    pub fn stored(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.home().join("nix/store"))
            .expect("the store can be read")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(
            self.command(&["down"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status(),
        );
        make_writable(self.folder.path());
    }
}

/// Store paths are read-only; a temporary folder could not be removed by an ordinary user.
fn make_writable(path: &Path) {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return;
    };
    if metadata.is_dir() {
        drop(fs::set_permissions(path, fs::Permissions::from_mode(0o700)));
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            make_writable(&entry.path());
        }
    }
}

pub fn finish(command: &mut Command) -> Finished {
    let output = command.output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Finished {
        status: output.status.code().unwrap_or(-1),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// A command under way.
pub struct Running {
    pub child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    seen: String,
}

impl Running {
    /// Reads standard error up to a line that contains the fragment, and gives that line.
    #[track_caller]
    pub fn until(&mut self, fragment: &str) -> String {
        loop {
            let mut line = String::new();
            let count = self
                .stderr
                .read_line(&mut line)
                .expect("standard error can be read");
            assert!(
                count > 0,
                "the command ended without '{fragment}':\n{}",
                self.seen
            );
            self.seen.push_str(&line);
            if line.contains(fragment) {
                return line;
            }
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the command still runs");
    }

    pub fn finish(mut self) -> Finished {
        self.stderr
            .read_to_string(&mut self.seen)
            .expect("standard error can be read");
        let mut stdout = String::new();
        self.child
            .stdout
            .take()
            .expect("a pipe")
            .read_to_string(&mut stdout)
            .expect("standard output can be read");
        let status = self.child.wait().expect("the command ends");
        Finished {
            status: status.code().unwrap_or(-1),
            stdout,
            stderr: std::mem::take(&mut self.seen),
        }
    }
}

/// Builds by [`tool`] whose script contains this marker of a test. Nothing else that happens to have the
/// word in its command line: what is found here is sent signals.
pub fn processes_with(marker: &str) -> Vec<i32> {
    fs::read_dir("/proc")
        .expect("/proc can be read")
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().into_string().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line);
            let (program, script) = line.split_once('\0')?;
            let found = program.ends_with("-tool") && script.contains(marker);
            if found { pid.parse().ok() } else { None }
        })
        .collect()
}

/// Lets a build go on whose script says `wait` after this marker (`echo MARKER` before it).
pub fn release(marker: &str) {
    for pid in processes_with(marker) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            // Another process of the sandbox may be gone by now.
            match rustix::process::kill_process(pid, rustix::process::Signal::USR1) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => panic!("process {pid:?} cannot be signalled: {error}"),
            }
        }
    }
}
