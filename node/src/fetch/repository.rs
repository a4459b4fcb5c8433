//! One Git repository on this machine, through the program `git`.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::FetchError;

/// Variables that would have `git` work on another repository than the one named.
const MISLEADING: &[&str] = &[
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_COMMON_DIR",
];

/// A repository.
pub(super) struct Repository {
    /// The folder that `git -C` is given.
    pub(super) folder: PathBuf,
    /// What errors call it.
    pub(super) url: String,
}

/// What a file of a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Executable,
    Link,
    Folder,
    /// Another repository's commit.
    Submodule,
}

/// A file of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) kind: Kind,
    /// Name of the object.
    pub(super) object: String,
    /// Path from the top, with `/`.
    pub(super) path: Vec<u8>,
}

impl Repository {
    pub(super) fn error(&self, reason: impl Into<String>) -> FetchError {
        FetchError::Git {
            url: self.url.clone(),
            reason: reason.into(),
        }
    }

    /// A command on this repository.
    pub(super) fn git<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("git");
        for variable in MISLEADING {
            command.env_remove(variable);
        }
        // Whose repository it is does not matter: none of its programs (hooks, filters) are run.
        command
            .args(["-c", "safe.directory=*", "--no-optional-locks", "-C"])
            .arg(&self.folder)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts a command.
    pub(super) fn start(&self, command: &mut Command) -> Result<Child, FetchError> {
        command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                self.error("the program 'git' is needed for that and is not there; install it")
            }
            _ => self.error(format!("'git' cannot be started: {error}")),
        })
    }

    /// Output of a command; none where it ends with a status other than 0.
    pub(super) fn try_run<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Result<Vec<u8>, String>, FetchError> {
        let child = self.start(&mut self.git(arguments))?;
        let output = child
            .wait_with_output()
            .map_err(|error| self.error(error.to_string()))?;
        Ok(match output.status.success() {
            true => Ok(output.stdout),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        })
    }

    /// Output of a command that must succeed.
    pub(super) fn run<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Vec<u8>, FetchError> {
        self.try_run(arguments)?.map_err(|said| self.error(said))
    }

    /// Output of a command that must succeed, as one line.
    fn line<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String, FetchError> {
        let output = self.run(arguments)?;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    /// Output of a command that is given something to read. A thread writes, so that neither side waits for
    /// the other.
    pub(super) fn feed(
        &self,
        command: &mut Command,
        input: Vec<u8>,
        read: &mut dyn FnMut(&mut dyn Read) -> Result<(), String>,
    ) -> Result<(), FetchError> {
        let mut child = self.start(command.stdin(Stdio::piped()).stderr(Stdio::null()))?;
        let writer = child.stdin.take();
        let writer = std::thread::spawn(move || writer.map_or(Ok(()), |mut to| to.write_all(&input)));
        let result = match &mut child.stdout {
            Some(output) => read(output),
            None => Err("it has no output".to_owned()),
        };
        if result.is_err() {
            // It may be waiting for a reader that is gone; that it cannot be killed means that it has ended.
            drop(child.kill());
        }
        drop(child.stdout.take());
        let status = child.wait().map_err(|error| self.error(error.to_string()))?;
        let written = writer.join();
        result.map_err(|reason| self.error(reason))?;
        match written {
            Ok(Ok(())) if status.success() => Ok(()),
            _ => Err(self.error(format!("'git' failed ({status})"))),
        }
    }

    /// The commit that a name means, if it means one.
    pub(super) fn commit(&self, name: &str) -> Result<Option<String>, FetchError> {
        let name = format!("{name}^{{commit}}");
        let found = self.try_run(["rev-parse", "--quiet", "--verify", "--end-of-options", &name])?;
        Ok(found
            .ok()
            .map(|output| String::from_utf8_lossy(&output).trim().to_owned()))
    }

    /// When a commit was made, in seconds since 1970.
    pub(super) fn date(&self, commit: &str) -> Result<u64, FetchError> {
        let date = self.line(["log", "-1", "--format=%ct", "--no-show-signature", commit])?;
        date.parse()
            .map_err(|_| self.error(format!("'{date}' is not the date of a commit")))
    }

    /// Commits up to and with this one.
    pub(super) fn count(&self, commit: &str) -> Result<u64, FetchError> {
        if self.line(["rev-parse", "--is-shallow-repository"])? == "true" {
            return Err(self.error(
                "it is a shallow Git repository, but shallow repositories are only allowed when \
                 `shallow = true;` is specified",
            ));
        }
        let count = self.line(["rev-list", "--count", commit])?;
        count
            .parse()
            .map_err(|_| self.error(format!("'{count}' is not a number of commits")))
    }

    /// All files and folders of a commit's tree, folders first.
    pub(super) fn files(&self, commit: &str) -> Result<Vec<Listed>, FetchError> {
        let output = self.run(["ls-tree", "-r", "-t", "-z", "--full-tree", commit])?;
        output
            .split(|byte| *byte == 0)
            .filter(|line| !line.is_empty())
            .map(|line| listed(line).ok_or_else(|| self.error("'git ls-tree' says something unexpected")))
            .collect()
    }

    /// Contents of objects, one after the other.
    pub(super) fn contents(
        &self,
        objects: &[&str],
        take: &mut dyn FnMut(usize, &mut dyn Read) -> Result<(), String>,
    ) -> Result<(), FetchError> {
        let mut input = Vec::new();
        for object in objects {
            input.extend_from_slice(object.as_bytes());
            input.push(b'\n');
        }
        self.feed(&mut self.git(["cat-file", "--batch"]), input, &mut |output| {
            let mut output = BufReader::with_capacity(256 << 10, output);
            for index in 0..objects.len() {
                let mut head = String::new();
                output.read_line(&mut head).map_err(|error| error.to_string())?;
                let size = head.trim_end().rsplit(' ').next();
                let size: u64 = size
                    .and_then(|size| size.parse().ok())
                    .ok_or_else(|| format!("an object is missing: {}", head.trim_end()))?;
                let mut content = Read::by_ref(&mut output).take(size);
                take(index, &mut content)?;
                // What was not read of it, and the newline after it.
                std::io::copy(&mut content, &mut std::io::sink()).map_err(|error| error.to_string())?;
                let mut newline = [0];
                output
                    .read_exact(&mut newline)
                    .map_err(|error| error.to_string())?;
            }
            Ok(())
        })
    }

    /// Whether it is a work tree or a bare repository, and not something else.
    pub(super) fn is_there(&self) -> Result<bool, FetchError> {
        Ok(self.try_run(["rev-parse", "--git-dir"])?.is_ok())
    }

    /// A path of this repository as the system has it.
    pub(super) fn place(&self, path: &[u8]) -> PathBuf {
        self.folder
            .join(Path::new(std::os::unix::ffi::OsStrExt::from_bytes(path) as &OsStr))
    }
}

/// A line of `git ls-tree -r -z`: mode, type, object, tab, path.
fn listed(line: &[u8]) -> Option<Listed> {
    let tab = line.iter().position(|byte| *byte == b'\t')?;
    let head = std::str::from_utf8(&line[..tab]).ok()?;
    let mut words = head.split(' ');
    let kind = match words.next()? {
        "100755" => Kind::Executable,
        "120000" => Kind::Link,
        "160000" => Kind::Submodule,
        "040000" => Kind::Folder,
        mode if mode.starts_with("100") => Kind::File,
        _ => return None,
    };
    let _type = words.next()?;
    Some(Listed {
        kind,
        object: words.next()?.to_owned(),
        path: line[tab + 1..].to_vec(),
    })
}
