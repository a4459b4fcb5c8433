//! What the evaluator needs of the world: the [`Host`] trait.
//!
//! The evaluator itself opens no socket and knows no store. Every effect goes through one `Host`: source files
//! are read through it, sources, texts and derivations leave through it at the moment they are known, and
//! import-from-derivation asks it for builds. All calls answer at once but [`Host::realise`] and
//! [`Host::begin_fetch`], which are answered by a ticket: the target that needs it is suspended, and other targets
//! go on.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use tvix_node_protocol::nix::hash::NixHash;
use tvix_node_protocol::nix::store_path::StorePath;

use crate::fetch::{Fetch, Fetched};
use crate::limits::MAX_FILE;

/// Kind of a file system object, links not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular {
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else (device, socket, pipe); it can be named but not read or added.
    Other,
}

impl FileKind {
    /// The word `builtins.readFileType` uses for it.
    #[must_use]
    pub const fn nix_name(self) -> &'static str {
        match self {
            Self::Regular { .. } => "regular",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::Other => "unknown",
        }
    }
}

/// An error of the host, with its cause; the message names the thing and the place.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct HostError {
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl HostError {
    /// An error with a message alone.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            source: None,
        }
    }

    /// An error with its cause kept.
    pub fn caused(
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            message: message.into(),
            source: Some(source.into()),
        }
    }
}

/// How a source becomes the content of a store path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingestion {
    /// The NAR of the tree (`recursive`).
    Nar,
    /// The bytes of one regular file (`flat`).
    Flat,
}

/// A source tree or file to be put into the store.
#[derive(Debug, Clone)]
pub struct Source<'a> {
    /// Name of the store path to make.
    pub name: &'a str,
    /// Logical path of the file or folder; no component but the last is a symbolic link.
    pub path: &'a Path,
    /// What of it is hashed.
    pub ingestion: Ingestion,
    /// With a filter: the paths (relative to `path`, parents before children, sorted by name in each folder)
    /// that are part of the source, `path` itself excluded. Without: everything.
    pub only: Option<&'a [PathBuf]>,
    /// Store paths that the content refers to, part of the store path's hash.
    pub references: &'a BTreeSet<StorePath>,
    /// The hash the expression demands. The host must refuse contents that differ; where the wanted store path
    /// is there already it need not read the source.
    pub expected: Option<&'a NixHash>,
}

/// A derivation that has just been instantiated.
#[derive(Debug, Clone)]
pub struct Instantiated<'a> {
    /// Its store path.
    pub drv_path: &'a StorePath,
    /// The contents of the `.drv` file.
    pub aterm: &'a [u8],
    /// Sources and derivations the `.drv` file refers to, sorted.
    pub references: &'a [&'a StorePath],
}

/// Something that must exist before an evaluation can go on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// Outputs of a derivation, to be built where they are not present.
    Outputs {
        /// The derivation.
        drv_path: StorePath,
        /// Its wanted outputs.
        outputs: BTreeSet<String>,
    },
    /// A store path that must be present (a source, or a path named by `builtins.storePath`).
    Path(StorePath),
}

/// Names a realisation or a fetch under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// How a realisation or a fetch ended.
pub type Realised = Result<(), HostError>;

/// What a message to the user is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// Output of `builtins.trace`.
    Trace,
    /// A warning (`builtins.warn`, or one of the evaluator itself).
    Warning,
}

/// The evaluator's door to files, store, environment and clock.
///
/// Paths are *logical*: `/nix/store/X` is a store path wherever the store physically lies.
/// [`Host::physical`] is the only method about files that most hosts write; the others have defaults over it.
/// They are called with paths in which no component but the last is a symbolic link, because the evaluator
/// resolves links itself, component by component, in logical paths.
pub trait Host {
    /// Where the file system object with this logical path lies on this machine.
    fn physical(&self, logical: &Path) -> PathBuf {
        logical.to_owned()
    }

    /// Kind of the object at a path, `None` where nothing is there.
    ///
    /// # Errors
    /// What the file system says, except that something is absent.
    fn lstat(&self, logical: &Path) -> io::Result<Option<FileKind>> {
        match std::fs::symlink_metadata(self.physical(logical)) {
            Ok(metadata) => Ok(Some(kind_of(&metadata))),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// What the file system says.
    fn read_link(&self, logical: &Path) -> io::Result<PathBuf> {
        std::fs::read_link(self.physical(logical))
    }

    /// Contents of a regular file.
    ///
    /// # Errors
    /// What the file system says.
    fn read_file(&self, logical: &Path) -> io::Result<Vec<u8>> {
        let file = std::fs::File::open(self.physical(logical))?;
        let mut contents = Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or(0));
        file.take(MAX_FILE + 1).read_to_end(&mut contents)?;
        match contents.len() as u64 > MAX_FILE {
            true => Err(io::ErrorKind::FileTooLarge.into()),
            false => Ok(contents),
        }
    }

    /// Entries of a directory, in any order.
    ///
    /// # Errors
    /// What the file system says.
    fn read_dir(&self, logical: &Path) -> io::Result<Vec<(OsString, FileKind)>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(self.physical(logical))? {
            let entry = entry?;
            entries.push((entry.file_name(), kind_of(&entry.metadata()?)));
        }
        Ok(entries)
    }

    /// Puts a source into the store (or computes where it would lie) and returns its path.
    ///
    /// # Errors
    /// Unreadable files, refused kinds of files, contents that differ from [`Source::expected`].
    fn add_source(&self, source: &Source<'_>) -> Result<StorePath, HostError>;

    /// Takes a text file (`builtins.toFile`) whose store path the evaluator has computed.
    ///
    /// # Errors
    /// The store could not take it.
    fn add_text(
        &self,
        path: &StorePath,
        contents: &[u8],
        references: &BTreeSet<StorePath>,
    ) -> Result<(), HostError>;

    /// Takes a derivation, at the moment `derivationStrict` has finished it; everything it refers to has
    /// been handed over before.
    ///
    /// # Errors
    /// The derivation could not be taken.
    fn instantiate(&self, derivation: &Instantiated<'_>) -> Result<(), HostError>;

    /// Begins to make things present that an evaluation needs (import-from-derivation). Does not wait.
    ///
    /// # Errors
    /// This host cannot realise anything.
    fn realise(&self, wanted: &[Wanted]) -> Result<Ticket, HostError>;

    /// Tickets that have ended since the last call. With `wait` it returns only when there is at least one;
    /// the evaluator waits only when no target can go on.
    ///
    /// # Errors
    /// The connection to whatever builds is gone; every target that waits fails with this.
    fn finished(&self, wait: bool) -> Result<Vec<(Ticket, Realised)>, HostError>;

    /// Whether a store path is present and valid.
    ///
    /// # Errors
    /// The store could not be asked.
    fn is_valid(&self, path: &StorePath) -> Result<bool, HostError>;

    /// References of a valid store path that this evaluation did not make itself.
    ///
    /// # Errors
    /// The path is not there or the store could not be asked.
    fn references(&self, path: &StorePath) -> Result<BTreeSet<StorePath>, HostError>;

    /// Value of an environment variable (`builtins.getEnv`).
    fn variable(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    /// Seconds since 1970, for `builtins.currentTime`.
    fn now(&self) -> i64;

    /// Something to tell the user while the evaluation goes on.
    fn message(&self, kind: MessageKind, text: &str);

    /// Begins to fetch something into the store without waiting for it. Its end is one of [`Host::finished`]; then
    /// [`Host::fetched`] has the result. None: this host fetches at once, by [`Host::fetch`].
    ///
    /// # Errors
    /// As of [`Host::fetch`], where it is known at once.
    fn begin_fetch(&self, _wanted: &Fetch) -> Result<Option<Ticket>, HostError> {
        Ok(None)
    }

    /// The result of a fetch that was begun and has ended well. Asked for once.
    ///
    /// # Errors
    /// No such fetch has ended. The default: this host begins none.
    fn fetched(&self, ticket: Ticket) -> Result<Fetched, HostError> {
        let Ticket(number) = ticket;
        Err(HostError::new(format!("no fetch has the number {number}")))
    }

    /// Fetches something into the store. Must refuse what differs from the hash that is demanded.
    ///
    /// # Errors
    /// It cannot be fetched or differs. The default refuses: this host does not fetch.
    fn fetch(&self, wanted: &Fetch) -> Result<Fetched, HostError> {
        let what = match wanted {
            Fetch::File { url, .. } | Fetch::Archive { url, .. } => url.clone(),
            Fetch::Path { path, .. } => path.display().to_string(),
            Fetch::Git(git) => git.url.clone(),
            Fetch::Mercurial(mercurial) => mercurial.url.clone(),
        };
        Err(HostError::new(format!(
            "cannot fetch '{what}': fetching is not available here; use a local path"
        )))
    }
}

fn kind_of(metadata: &std::fs::Metadata) -> FileKind {
    use std::os::unix::fs::PermissionsExt;
    let kind = metadata.file_type();
    if kind.is_file() {
        FileKind::Regular {
            executable: metadata.permissions().mode() & 0o100 != 0,
        }
    } else if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_symlink() {
        FileKind::Symlink
    } else {
        FileKind::Other
    }
}
