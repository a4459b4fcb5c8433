//! Where the work is done: a home, what goes into it, and what else it writes to.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::tree::{BlobDigest, Tree, TreeDigest};

use super::{Failure, source, text};
use crate::disk::Disk;
use crate::faults::{Faults, Plan};
use crate::{Arrived, ArrivedFile, ComingFile, OpenError, Store};

/// A folder with everything in it. The store of somebody else is made without faults.
pub(super) struct Place {
    /// Removed with this, where it is the test's own.
    _folder: Option<tempfile::TempDir>,
    path: PathBuf,
}

impl Place {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        for (number, tree) in ["one", "two"].iter().enumerate() {
            write_source(&path.join(tree), &format!("only in {number}\n"));
        }
        fs::create_dir(path.join("spool")).unwrap();
        fs::create_dir(path.join("cache")).unwrap();
        let place = Self {
            _folder: Some(folder),
            path,
        };
        place.make_theirs();
        place
    }

    /// One that another process made.
    pub(super) fn at(path: &Path) -> Self {
        let path = path.to_owned();
        Self { _folder: None, path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn home(&self) -> PathBuf {
        self.path.join("home")
    }

    pub(super) fn source(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn link(&self) -> PathBuf {
        self.path.join("result")
    }

    pub(super) fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }

    pub(super) fn open(
        &self,
        faults: &Faults,
        teams: Option<&BTreeSet<SwarmId>>,
    ) -> Result<Store, OpenError> {
        Store::open_on(&self.home(), disk(faults), teams)
    }

    /// Opens the store, and nothing fails.
    pub(super) fn open_safely(&self) -> Store {
        self.open(&Faults::default(), None).unwrap()
    }

    /// Sources under their names, and a text that refers to another one.
    fn make_theirs(&self) {
        let theirs = self.theirs();
        let lease = theirs.lease();
        for name in ["sent", "given", "coming", "exported"] {
            let at = self.path.join(name);
            write_source(&at, &format!("only in what is {name}\n"));
            theirs.add_source(&at, source(name), &lease).unwrap();
        }
        let low = text("low", "low", &[]);
        let high = text("high", "high", &[&low]);
        theirs.add_texts(&[low, high], &lease).unwrap();
    }

    /// The store of a peer.
    pub(super) fn theirs(&self) -> Store {
        Store::open(&self.path.join("theirs")).unwrap()
    }
}

/// A tree with files of one content twice, and with what another one has, too.
fn write_source(tree: &Path, own: &str) {
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("shared"), "the same in both\n").unwrap();
    fs::write(tree.join("sub/shared"), "the same in both\n").unwrap();
    fs::write(tree.join("own"), own).unwrap();
    fs::write(tree.join("tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(tree.join("large"), vec![b'!'; crate::limits::SMALL_FILE + 5]).unwrap();
    fs::write(tree.join("larger"), own.repeat(20_000)).unwrap();
    symlink("own", tree.join("link")).unwrap();
}

/// How files come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    InMemory,
    /// By a name in the spool.
    Given,
    /// The same, and not yet all of them.
    InParts,
}

/// A peer that sends what it has.
pub(super) struct Peer<'a> {
    pub(super) store: Store,
    pub(super) place: &'a Place,
    pub(super) how: How,
}

impl Peer<'_> {
    pub(super) fn info(&self, name: &str) -> Result<PathInfo, Failure> {
        let all = self.store.paths_after(None, 100)?;
        let path = all.into_iter().find(|path| path.name() == name);
        let path = path.ok_or("the peer does not have it")?;
        Ok(self.store.query(&path)?.ok_or("the peer does not have it")?)
    }

    pub(super) fn export(&self, names: &[&str]) -> Result<Vec<u8>, Failure> {
        let infos = names.iter().map(|name| self.info(name));
        let paths: BTreeSet<StorePath> = infos.map(|info| Ok(info?.path)).collect::<Result<_, Failure>>()?;
        let mut export = Vec::new();
        self.store.export(&paths, &mut export)?;
        Ok(export)
    }
}

impl Arrived for Peer<'_> {
    fn tree(&self, digest: TreeDigest) -> io::Result<Option<Tree>> {
        self.store.tree(&digest).map_err(io::Error::other)
    }

    fn blob(&self, digest: BlobDigest) -> io::Result<Option<ArrivedFile>> {
        let Some(mut stored) = self.store.open_blob(&digest).map_err(io::Error::other)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        stored.read_to_end(&mut bytes)?;
        if self.how == How::InMemory {
            return Ok(Some(ArrivedFile::Bytes(bytes)));
        }
        let path = self.place.path.join("spool").join(digest.to_string());
        // An older one may have become a part of a tree.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if self.how == How::Given {
            fs::write(&path, bytes)?;
            return Ok(Some(ArrivedFile::Given(path)));
        }
        let file = fs::OpenOptions::new()
            .read(true)
            .append(true)
            .create_new(true)
            .open(&path)?;
        Ok(Some(ArrivedFile::Coming(Box::new(Coming { path, file, bytes }))))
    }
}

/// A file of which a third more comes whenever somebody waits for it.
struct Coming {
    path: PathBuf,
    file: fs::File,
    bytes: Vec<u8>,
}

impl ComingFile for Coming {
    fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self) -> &fs::File {
        &self.file
    }

    fn wait(&self, bytes: u64) -> io::Result<u64> {
        let mut come = usize::try_from(self.file.metadata()?.len()).unwrap();
        while come < self.bytes.len() && come as u64 <= bytes {
            let next = (come + self.bytes.len() / 3 + 1).min(self.bytes.len());
            (&self.file).write_all(&self.bytes[come..next])?;
            come = next;
        }
        Ok(come as u64)
    }
}

pub(super) fn disk(faults: &Faults) -> Disk {
    let faults = faults.clone();
    Disk { faults }
}

/// Faults by a plan. Of the two ways to sync, both come to their turn.
pub(super) fn faults(plan: Plan) -> Faults {
    let faults = Faults::default();
    faults.set(plan);
    faults.set_dirty_bytes(match plan {
        Plan::Fail(step, _) | Plan::Full(step) | Plan::Kill(step) if step % 2 == 1 => u64::MAX,
        _ => 0,
    });
    faults
}
