//! Opening a home: one process at a time, no newer version, and what a crash left behind goes.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::SwarmId;

use crate::audience::begin_audiences;
use crate::buffers::Buffers;
use crate::commit::Committer;
use crate::disk::{Context, Disk, FileError, at};
use crate::index::{Index, IndexError};
use crate::intent::{Intended, Intent};
use crate::leases::Leases;
use crate::logs::{LOGGED_AT_START, end_logs};
use crate::registration::Gate;
use crate::share::Sharing;
use crate::store::{Inner, Store};
use crate::trees::{TEMPORARY, TRASH, Trees, temporary_name};

/// Version of what lies on the disk, as written and understood here: it has pins, and who may learn of a path.
pub const SCHEMA: u32 = 2;

/// The version before, without either.
const WITHOUT_AUDIENCES: u32 = 1;

/// Why a home cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Written by a newer program.
    #[error(
        "the store in '{}' has version {found}, and this program understands version {SCHEMA}; \
         use the newer program, or another home (TVIX_NODE_HOME)", .home.display()
    )]
    Newer {
        /// The home.
        home: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The version cannot be told.
    #[error("'{}' should hold the store's version, but holds '{found}'", .path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// Another process has the home open.
    #[error("the store in '{}' is in use by {user}; one home belongs to one process at a time", .home.display())]
    InUse {
        /// The home.
        home: PathBuf,
        /// Who uses it.
        user: String,
    },
    /// There are trees, and nothing is known of them.
    #[error(
        "the store in '{}' has {trees} trees, but its index '{}' is missing, and nothing else says what they are; \
         put the index back, or move '{}' away to begin with an empty store",
        .home.display(), .index.display(), .home.join("nix/store").display()
    )]
    NoIndex {
        /// The home.
        home: PathBuf,
        /// Where the index should be.
        index: PathBuf,
        /// How many there are.
        trees: usize,
    },
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The index cannot be opened.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// Keeps other processes out of the home.
#[derive(Debug)]
pub(crate) struct HomeLock {
    file: std::fs::File,
}

impl Drop for HomeLock {
    fn drop(&mut self) {
        // Closing is not enough: a process that was forked just now holds a copy until it executes
        // something else.
        if let Err(error) = rustix::fs::flock(self.file.as_fd(), FlockOperation::Unlock) {
            tracing::warn!(%error, "the home's lock could not be given back");
        }
    }
}

impl Store {
    /// Opens the store of a home whose node never belonged to a team. See [`Store::open_in_teams`].
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(home: &Path) -> Result<Self, OpenError> {
        Self::open_in_teams(home, None)
    }

    /// Opens the store of a home, and makes it where there is none. `teams`: those that the node belongs to, perhaps none
    /// any more, where it ever belonged to any; what a store of version 1 has is known to them alone from now on.
    ///
    /// Trees go to `<home>/nix/store`, everything else to `<home>/store` and `<home>/log`. What an
    /// earlier process had begun and never reported is removed.
    ///
    /// # Errors
    /// [`OpenError`]; a home of a newer version is refused and nothing in it is touched.
    pub fn open_in_teams(home: &Path, teams: Option<&BTreeSet<SwarmId>>) -> Result<Self, OpenError> {
        Self::open_on(home, Disk::default(), teams)
    }

    pub(crate) fn open_on(
        home: &Path,
        disk: Disk,
        teams: Option<&BTreeSet<SwarmId>>,
    ) -> Result<Self, OpenError> {
        let schema = home.join("store").join("schema");
        check_schema(home, &schema)?;
        for directory in [
            home.to_owned(),
            home.join("nix"),
            home.join("nix/store"),
            home.join("store"),
        ] {
            disk.make_directories(&directory, 0o777)?;
        }
        let home = std::fs::canonicalize(home).map_err(|error| FileError::of_io("find", home, &error))?;
        let lock = lock(&disk, &home)?;
        let schema = home.join("store").join("schema");
        let found = check_schema(&home, &schema)?;
        if found.is_none() {
            write_schema(&disk, &schema)?;
        }
        let trees = Trees::open(&home.join("nix/store"), disk.clone())?;
        let index = home.join("store/index.redb");
        if !index.exists() {
            expect_no_trees(&home, &index, &trees)?;
        }
        let index = Index::open(&index, disk.clone())?;
        if found == Some(WITHOUT_AUDIENCES) {
            begin_audiences(&index, teams)?;
            // Last: a start that is cut short before this does it again.
            write_schema(&disk, &schema)?;
        }
        let intent = Intent::open(&disk, &home.join("store/intent"))?;
        clean_up(&index, &trees, &intent)?;
        end_logs(&disk, &home);
        let inner = Inner {
            next_number: AtomicU64::new(index.next_tree_number()?),
            trees: Arc::new(trees),
            index,
            sharing: Sharing::default(),
            buffers: Buffers::default(),
            leases: Leases::default(),
            committer: Committer::default(),
            gate: Mutex::new(Gate::new(intent)),
            logged: AtomicU64::new(LOGGED_AT_START),
            home,
            _lock: lock,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }
}

/// A new index says that there is nothing: that must be so.
fn expect_no_trees(home: &Path, index: &Path, trees: &Trees) -> Result<(), OpenError> {
    let names = trees.names()?;
    let is_tree = |name: &&Vec<u8>| StorePath::from_basename(name).is_ok();
    match names.iter().filter(is_tree).count() {
        0 => Ok(()),
        trees => Err(OpenError::NoIndex {
            home: home.to_owned(),
            index: index.to_owned(),
            trees,
        }),
    }
}

/// The version, where there is one; ours or one that can be brought to ours.
fn check_schema(home: &Path, path: &Path) -> Result<Option<u32>, OpenError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::of_io("read", path, &error).into()),
    };
    match text.trim_end().parse::<u32>() {
        Ok(found @ (SCHEMA | WITHOUT_AUDIENCES)) => Ok(Some(found)),
        Ok(found) if found > SCHEMA => Err(OpenError::Newer {
            home: home.to_owned(),
            found,
        }),
        _ => Err(OpenError::Schema {
            path: path.to_owned(),
            found: text.chars().take(80).collect(),
        }),
    }
}

/// Written beside and renamed: there is a whole version or none.
fn write_schema(disk: &Disk, path: &Path) -> Result<(), FileError> {
    let beside = path.with_extension("new");
    let write = || {
        let file = disk.make_anew(&beside, 0o644)?;
        disk.write(&file, format!("{SCHEMA}\n").as_bytes())?;
        disk.sync_file(file.as_fd())?;
        disk.replace(at(&beside), at(path))
    };
    write().on("write", || path)?;
    disk.sync_directory(path.parent().unwrap_or(Path::new("/")))
}

fn lock(disk: &Disk, home: &Path) -> Result<HomeLock, OpenError> {
    let path = home.join("store/lock");
    let file = disk.open_or_make(&path, 0o600).on("open", || &path)?;
    let mut file = std::fs::File::from(file);
    match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut user = String::new();
            let read = file.read_to_string(&mut user);
            let known = read.is_ok() && !user.trim().is_empty();
            return Err(OpenError::InUse {
                home: home.to_owned(),
                user: if known {
                    format!("process {}", user.trim())
                } else {
                    "another process".to_owned()
                },
            });
        }
        Err(error) => return Err(FileError::new("lock", path, error).into()),
    }
    let noted = disk
        .truncate(file.as_fd(), 0)
        .and_then(|()| disk.write(&file, format!("{}\n", std::process::id()).as_bytes()));
    noted.on("write", || &path)?;
    Ok(HomeLock { file })
}

/// Removes what was begun and never reported, and ends what was reported and not ended.
fn clean_up(index: &Index, trees: &Trees, intent: &Intent) -> Result<(), OpenError> {
    for Intended { name, before } in intent.read()? {
        if index.knows_name(&name)? {
            continue;
        }
        match before {
            // The renaming of a stored tree was never written down: it has its old name.
            Some(before) if index.knows_name(&before)? && !trees.exists(&before)? => {
                trees.name_tree(&name, &before)?;
            }
            _ => {
                trees.discard(&name)?;
            }
        }
    }
    for name in trees.names()? {
        let Ok(name) = String::from_utf8(name) else {
            continue;
        };
        if let Some(number) = name.strip_prefix(TEMPORARY) {
            let registered = match number.parse() {
                Ok(number) if temporary_name(number) == name => index.tree_name(number)?,
                _ => None,
            };
            match registered {
                // Power was lost after the index had reached the disk and before the new name had.
                Some(registered) if !trees.exists(&registered)? => {
                    trees.name_tree(&name, &registered)?;
                }
                _ => trees.remove(&name)?,
            }
        } else if name.starts_with(TRASH) {
            trees.remove(&name)?;
        }
    }
    intent.clear(&trees.disk).map_err(OpenError::from)
}
