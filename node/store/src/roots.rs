//! Roots: links outside the store whose targets are kept.
//!
//! A root counts as long as its link is there and points into the store, as in stock Nix. Removing the
//! link is removing the root.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use redb::{ReadableTable, ReadableTableMetadata};
use rustix::io::Errno;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::store_path::STORE_DIR;

use crate::disk::{Context, FileError, at};
use crate::index::{IndexError, IndexFault, PATHS, ROOTS, path_from_key, path_key};
use crate::limits::ROOTS as MOST;
use crate::registration::Registration;
use crate::store::{Inner, Store};

/// What a link's name is followed by until it takes the place of an older one. Always the same, so that what a killed
/// process left goes with the next change of the link.
const BESIDE: &str = ".new-root";

/// Why a root was not made.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Not absolute.
    #[error("'{}' is not an absolute path; a root is found again by its path alone", .0.display())]
    Relative(PathBuf),
    /// Something else has the name.
    #[error(
        "'{}' exists and is not a link into this store; remove it, or choose another name for the link",
        .0.display()
    )]
    Occupied(PathBuf),
    /// Not there.
    #[error("{0} is not in the store, so nothing can point to it")]
    NotValid(StorePath),
    /// Too many.
    #[error("the store has {MOST} roots, the most it takes; remove some links and collect garbage")]
    TooMany,
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The index refused.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// A root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The link.
    pub link: PathBuf,
    /// What it points to now.
    pub path: StorePath,
}

/// What a root's link is now.
enum Link {
    Points(StorePath),
    /// Gone, or about something else.
    Elsewhere,
    /// It cannot be told.
    Unreadable(Errno),
}

impl Store {
    /// Makes `link`, or changes it if it is a link into this store already, so that it points to the
    /// tree of `path`, and keeps what it points to as long as the link is there. Lease the path first,
    /// else it may be gone before the root counts.
    ///
    /// # Errors
    /// See [`RootError`].
    pub fn add_root(&self, link: &Path, path: &StorePath) -> Result<(), RootError> {
        if !link.is_absolute() {
            return Err(RootError::Relative(link.to_owned()));
        }
        let replaced = match std::fs::symlink_metadata(link) {
            Ok(_) if matches!(self.inner.read_link(link), Link::Points(_)) => true,
            Ok(_) => return Err(RootError::Occupied(link.to_owned())),
            Err(_) => false,
        };
        let (link_bytes, key) = (link.as_os_str().as_bytes(), path_key(path));
        // No collection sees a root whose link is not there yet and forgets it.
        let registration = Registration::begin(&self.inner, &[])?;
        // The root is written down before there is a link: no link is ever without its root.
        let refused = self.inner.index.write(|transaction| {
            if transaction.open_table(PATHS)?.get(key.as_slice())?.is_none() {
                return Ok(Some(RootError::NotValid(path.clone())));
            }
            let mut roots = transaction.open_table(ROOTS)?;
            if roots.len()? >= MOST && roots.get(link_bytes)?.is_none() {
                return Ok(Some(RootError::TooMany));
            }
            roots.insert(link_bytes, key.as_slice())?;
            Ok(None)
        })?;
        if let Some(error) = refused {
            return Err(error);
        }
        let pointed = self.point(link, path, replaced);
        registration.end();
        pointed
    }

    fn point(&self, link: &Path, path: &StorePath, replaced: bool) -> Result<(), RootError> {
        let target = self.physical(path);
        let disk = &self.inner.trees.disk;
        if !replaced {
            return match disk.make_symlink(target.as_os_str().as_bytes(), at(link)) {
                Err(Errno::EXIST) => Err(RootError::Occupied(link.to_owned())),
                made => Ok(made.on("make the link", || link)?),
            };
        }
        let mut beside = link.as_os_str().to_owned();
        beside.push(BESIDE);
        let beside = PathBuf::from(beside);
        self.link_beside(&target, &beside)
            .on("make the link", || &beside)?;
        let replaced = disk.replace(at(&beside), at(link));
        if replaced.is_err() {
            let removed = disk.unlink(at(&beside));
            tracing::debug!(?removed, "took back a link that could not be renamed");
        }
        Ok(replaced.on("replace the link", || link)?)
    }

    /// Makes the link that is then renamed. Only the process that owns the home does, and for one link at a time; so what
    /// points into this store there was left by one that was killed.
    fn link_beside(&self, target: &Path, beside: &Path) -> Result<(), Errno> {
        let disk = &self.inner.trees.disk;
        let make = || disk.make_symlink(target.as_os_str().as_bytes(), at(beside));
        match make() {
            Err(Errno::EXIST) if matches!(self.inner.read_link(beside), Link::Points(_)) => {
                disk.unlink(at(beside))?;
                make()
            }
            made => made,
        }
    }

    /// The roots whose links point into the store now, by link.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn roots(&self) -> Result<Vec<Root>, IndexError> {
        let inner = &self.inner;
        let (roots, _) = inner
            .index
            .read(|transaction| inner.read_roots(&transaction.open_table(ROOTS)?))?;
        Ok(roots)
    }
}

impl Inner {
    /// The roots that count now, and the links of those that do not any more.
    pub(crate) fn read_roots(
        &self,
        table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    ) -> Result<(Vec<Root>, Vec<PathBuf>), IndexFault> {
        let mut known = Vec::new();
        for entry in table.iter()? {
            let (link, key) = entry?;
            let link = PathBuf::from(OsStr::from_bytes(link.value()));
            known.push((link, path_from_key(key.value())?));
        }
        let (mut roots, mut gone) = (Vec::new(), Vec::new());
        for (link, path) in known {
            match self.read_link(&link) {
                Link::Points(path) => roots.push(Root { link, path }),
                Link::Elsewhere => gone.push(link),
                Link::Unreadable(error) => {
                    // A link that cannot be looked at may well be there.
                    tracing::warn!(link = %link.display(), %error, "a root's link cannot be read; it still counts");
                    roots.push(Root { link, path });
                }
            }
        }
        Ok((roots, gone))
    }

    fn read_link(&self, link: &Path) -> Link {
        let target = match rustix::fs::readlink(link, Vec::new()) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::INVAL) => return Link::Elsewhere,
            Err(error) => return Link::Unreadable(error),
        };
        let target = Path::new(OsStr::from_bytes(target.as_bytes()));
        let relative = target
            .strip_prefix(self.trees.path())
            .or_else(|_| target.strip_prefix(STORE_DIR));
        let first = relative.ok().and_then(|relative| relative.components().next());
        match first.map(|first| StorePath::from_basename(first.as_os_str().as_bytes())) {
            Some(Ok(path)) => Link::Points(path),
            _ => Link::Elsewhere,
        }
    }
}
