//! Sources on their way into the store: what identifies them unread, and their archive.
//!
//! A source that has not changed is not read again: a [`Fingerprint`] is made of what the file
//! system says of it (names, kinds, sizes, inodes, times of change). It is only made where every
//! time of change lies safely in the past, because a file may change twice within one tick.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tvix_node_gateway::control::Upload;
use tvix_node_protocol::limits::TREE_DEPTH;
use tvix_node_protocol::nix::nar::{Encoder, NarError};

/// Younger than this when it was looked at, a change may have been followed by another one in the
/// same tick of the file system's clock (4 ms with most kernels, up to 2 s on FAT).
const SETTLED_AFTER_SECONDS: i64 = 3;

/// Bytes read at a time. Large reads are what an archive of large files needs.
const BLOCK: usize = 256 * 1024;

/// Why a source cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file system refuses.
    #[error("'{}' cannot be read: {source}", .path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A device, a socket or a pipe.
    #[error("'{}' is a {kind}; only regular files, folders and links can be put into the store", .path.display())]
    Kind {
        /// What.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It changed meanwhile.
    #[error("'{}' changed while it was read", .0.display())]
    Changed(PathBuf),
    /// Deeper than an archive may be.
    #[error("'{}' is nested deeper than {TREE_DEPTH} folders", .0.display())]
    TooDeep(PathBuf),
    /// The archive could not be written.
    #[error("the archive of '{}' cannot be made: {source}", .path.display())]
    Archive {
        /// Of what.
        path: PathBuf,
        /// Why not.
        source: NarError,
    },
}

/// A source: a place on this machine, and what of it counts.
pub struct SourceTree {
    root: PathBuf,
    /// With a filter: for each folder (relative to the root) the names that count, sorted.
    only: Option<BTreeMap<PathBuf, Vec<OsString>>>,
    /// Whether only the bytes count, not whether a file is executable.
    bytes_alone: bool,
}

/// What can be seen of a source without reading it.
#[derive(Default)]
struct Look {
    hash: blake3::Hasher,
    /// When something in it changed last, in seconds since 1970.
    changed: i64,
}

impl Look {
    fn take_in(&mut self, visit: &Visit<'_>) {
        match visit {
            Visit::Enter { name, metadata, .. } | Visit::Leaf { name, metadata, .. } => {
                field(&mut self.hash, name.unwrap_or_default().as_bytes());
                for number in [
                    u64::from(metadata.mode()),
                    metadata.dev(),
                    metadata.ino(),
                    metadata.size(),
                    metadata.mtime() as u64,
                    metadata.mtime_nsec() as u64,
                    metadata.ctime() as u64,
                    metadata.ctime_nsec() as u64,
                ] {
                    self.hash.update(&number.to_le_bytes());
                }
                self.changed = self.changed.max(metadata.ctime());
            }
            Visit::Exit => field(&mut self.hash, b"/"),
        }
    }
}

impl SourceTree {
    /// The tree at a physical path. `only` lists the paths below it (relative, parents included)
    /// that count; none: all of them.
    #[must_use]
    pub fn new(root: PathBuf, only: Option<&[PathBuf]>) -> Self {
        let only = only.map(|paths| {
            let mut folders: BTreeMap<PathBuf, Vec<OsString>> = BTreeMap::new();
            for path in paths {
                if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
                    folders
                        .entry(parent.to_owned())
                        .or_default()
                        .push(name.to_owned());
                }
            }
            for names in folders.values_mut() {
                names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
            }
            folders
        });
        Self {
            root,
            only,
            bytes_alone: false,
        }
    }

    /// Of files the bytes alone count: what is to be named by the hash of its bytes is never executable.
    #[must_use]
    pub fn bytes_alone(self) -> Self {
        Self {
            bytes_alone: true,
            ..self
        }
    }

    /// What identifies the source without reading it; `tag` says what becomes of it (name, method).
    /// `None` where something in it changed too recently to tell.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn fingerprint(&self, tag: &str) -> Result<Option<String>, SourceError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs() as i64);
        let look = self.look()?;
        let mut hash = blake3::Hasher::new();
        field(&mut hash, tag.as_bytes());
        field(&mut hash, self.root.as_os_str().as_bytes());
        hash.update(look.hash.finalize().as_bytes());
        let settled = look.changed + SETTLED_AFTER_SECONDS < now;
        Ok(settled.then(|| hash.finalize().to_hex().to_string()))
    }

    fn look(&self) -> Result<Look, SourceError> {
        let mut look = Look::default();
        self.walk(&mut |visit| {
            look.take_in(&visit);
            Ok(())
        })?;
        Ok(look)
    }

    /// The time of the youngest file or folder, in seconds since 1970; 0 where all are older.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn last_modified(&self) -> Result<u64, SourceError> {
        let mut youngest = 0;
        self.walk(&mut |visit| {
            if let Visit::Enter { metadata, .. } | Visit::Leaf { metadata, .. } = visit {
                youngest = youngest.max(u64::try_from(metadata.mtime()).unwrap_or(0));
            }
            Ok(())
        })?;
        Ok(youngest)
    }

    /// Writes the source's archive (NAR). What is written is the source at one moment: if it has changed when it is read,
    /// half of it may be old and half new, and that is an error.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn write_archive(&self, writer: impl Write) -> Result<(), SourceError> {
        let archive = |source| SourceError::Archive {
            path: self.root.clone(),
            source,
        };
        let mut encoder = Encoder::new(writer).map_err(archive)?;
        let mut block = vec![0; BLOCK];
        let mut read = Look::default();
        self.walk(&mut |visit| {
            read.take_in(&visit);
            match visit {
                Visit::Enter { name, .. } => encoder
                    .start_directory(name.map(OsStrExt::as_bytes))
                    .map_err(archive),
                Visit::Exit => encoder.end_directory().map_err(archive),
                Visit::Leaf { name, path, metadata } if metadata.is_symlink() => {
                    let target = fs::read_link(path).map_err(|source| io_error(path, source))?;
                    encoder
                        .symlink(name.map(OsStrExt::as_bytes), target.as_os_str().as_bytes())
                        .map_err(archive)
                }
                Visit::Leaf { name, path, metadata } => {
                    let executable = !self.bytes_alone && metadata.permissions().mode() & 0o100 != 0;
                    let mut file = File::open(path).map_err(|source| io_error(path, source))?;
                    let mut content = encoder
                        .start_regular(name.map(OsStrExt::as_bytes), executable, metadata.size())
                        .map_err(archive)?;
                    let mut left = metadata.size();
                    while left > 0 {
                        let want = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
                        let got = file
                            .read(&mut block[..want])
                            .map_err(|source| io_error(path, source))?;
                        if got == 0 {
                            return Err(SourceError::Changed(path.to_owned()));
                        }
                        content
                            .write_all(&block[..got])
                            .map_err(|source| archive(source.into()))?;
                        left -= got as u64;
                    }
                    content.finish().map_err(archive)
                }
            }
        })?;
        match self.look() {
            Ok(look) if look.hash.finalize() == read.hash.finalize() => {}
            Err(SourceError::Io { path, source }) if source.kind() != io::ErrorKind::NotFound => {
                return Err(SourceError::Io { path, source });
            }
            _ => return Err(SourceError::Changed(self.root.clone())),
        }
        encoder.finish().map_err(archive)?;
        Ok(())
    }

    /// Visits everything that counts, folders before what is in them, names in the order of their
    /// bytes.
    fn walk(&self, visit: &mut dyn FnMut(Visit<'_>) -> Result<(), SourceError>) -> Result<(), SourceError> {
        self.walk_below(&self.root, Path::new(""), None, 0, visit)
    }

    fn walk_below(
        &self,
        path: &Path,
        relative: &Path,
        name: Option<&OsStr>,
        depth: usize,
        visit: &mut dyn FnMut(Visit<'_>) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let metadata = fs::symlink_metadata(path).map_err(|source| io_error(path, source))?;
        if !metadata.is_dir() {
            return match special(&metadata) {
                Some(kind) => Err(SourceError::Kind {
                    path: path.to_owned(),
                    kind,
                }),
                None => visit(Visit::Leaf {
                    name,
                    path,
                    metadata: &metadata,
                }),
            };
        }
        if depth >= TREE_DEPTH {
            return Err(SourceError::TooDeep(path.to_owned()));
        }
        visit(Visit::Enter {
            name,
            metadata: &metadata,
        })?;
        for entry in self.names(path, relative)? {
            self.walk_below(
                &path.join(&entry),
                &relative.join(&entry),
                Some(&entry),
                depth + 1,
                visit,
            )?;
        }
        visit(Visit::Exit)
    }

    fn names(&self, path: &Path, relative: &Path) -> Result<Vec<OsString>, SourceError> {
        if let Some(only) = &self.only {
            return Ok(only.get(relative).cloned().unwrap_or_default());
        }
        let read = || -> io::Result<Vec<OsString>> {
            fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect()
        };
        let mut names = read().map_err(|source| io_error(path, source))?;
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        Ok(names)
    }
}

enum Visit<'a> {
    Enter {
        name: Option<&'a OsStr>,
        metadata: &'a Metadata,
    },
    Leaf {
        name: Option<&'a OsStr>,
        path: &'a Path,
        metadata: &'a Metadata,
    },
    Exit,
}

fn field(hash: &mut blake3::Hasher, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn io_error(path: &Path, source: io::Error) -> SourceError {
    SourceError::Io {
        path: path.to_owned(),
        source,
    }
}

/// What a file is that is neither regular nor a folder nor a link.
fn special(metadata: &Metadata) -> Option<&'static str> {
    use std::os::unix::fs::FileTypeExt as _;
    let kind = metadata.file_type();
    if kind.is_fifo() {
        Some("named pipe")
    } else if kind.is_socket() {
        Some("socket")
    } else if kind.is_char_device() || kind.is_block_device() {
        Some("device")
    } else {
        None
    }
}

/// Writes a tree to an upload. Where the node takes no more, the end of the upload has its reason.
///
/// # Errors
/// The tree cannot be read.
pub(super) fn send(tree: &SourceTree, upload: &mut Upload) -> Result<(), SourceError> {
    match tree.write_archive(upload) {
        Err(SourceError::Archive {
            source: NarError::Io(error),
            ..
        }) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(tree: &SourceTree) -> Vec<u8> {
        let mut bytes = Vec::new();
        tree.write_archive(&mut bytes).unwrap();
        bytes
    }

    fn sample() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/run"), "#!").unwrap();
        fs::set_permissions(folder.path().join("sub/run"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.path().join("note"), "text").unwrap();
        std::os::unix::fs::symlink("note", folder.path().join("link")).unwrap();
        folder
    }

    fn settle(folder: &Path) -> Option<String> {
        SourceTree::new(folder.to_owned(), None).fingerprint("x").unwrap()
    }

    #[test]
    fn an_archive_with_everything_listed_is_the_archive_of_everything() {
        let folder = sample();
        let all = archive(&SourceTree::new(folder.path().to_owned(), None));
        let listed = ["link", "note", "sub", "sub/run"].map(PathBuf::from);
        assert_eq!(
            archive(&SourceTree::new(folder.path().to_owned(), Some(&listed))),
            all
        );
        let fewer = ["note", "sub"].map(PathBuf::from);
        assert_ne!(
            archive(&SourceTree::new(folder.path().to_owned(), Some(&fewer))),
            all
        );
    }

    /// Changes the source once something of it has been written.
    struct Meddler<'a> {
        written: Vec<u8>,
        change: Option<Box<dyn FnOnce() + 'a>>,
    }

    impl Write for Meddler<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.written.extend_from_slice(bytes);
            if self.written.len() > BLOCK
                && let Some(change) = self.change.take()
            {
                change();
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_source_that_changes_while_it_is_read_is_refused() {
        let folder = sample();
        let large = folder.path().join("large");
        fs::write(&large, vec![b'A'; 4 * BLOCK]).unwrap();
        let tree = SourceTree::new(folder.path().to_owned(), None);
        let meddle = |change: Box<dyn FnOnce()>| {
            let (written, change) = (Vec::new(), Some(change));
            tree.write_archive(Meddler { written, change })
        };
        meddle(Box::new(|| {})).unwrap();
        let place = folder.path().to_owned();
        let changes: [Box<dyn FnOnce()>; 2] = [
            Box::new(move || fs::write(&large, vec![b'B'; 4 * BLOCK]).unwrap()),
            Box::new(move || fs::write(place.join("extra"), "").unwrap()),
        ];
        for change in changes {
            let error = meddle(change).unwrap_err();
            assert!(matches!(error, SourceError::Changed(_)), "{error}");
        }
    }

    #[test]
    fn what_changed_just_now_has_no_fingerprint() {
        assert_eq!(settle(sample().path()), None);
    }

    #[test]
    fn a_pipe_is_refused_by_name() {
        let folder = sample();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let error = SourceTree::new(folder.path().to_owned(), None)
            .write_archive(io::sink())
            .unwrap_err();
        assert!(error.to_string().contains("pipe' is a named pipe"), "{error}");
    }

    #[test]
    fn a_source_of_one_file_is_an_archive_of_one_file() {
        let folder = sample();
        let bytes = archive(&SourceTree::new(folder.path().join("note"), None));
        let mut expected = Encoder::new(Vec::new()).unwrap();
        expected.regular(None, false, b"text").unwrap();
        assert_eq!(bytes, expected.finish().unwrap());
    }

    #[test]
    fn a_file_of_which_the_bytes_alone_count_is_not_executable() {
        let folder = sample();
        let run = folder.path().join("sub/run");
        let plain = archive(&SourceTree::new(run.clone(), None).bytes_alone());
        assert_ne!(plain, archive(&SourceTree::new(run.clone(), None)));
        fs::set_permissions(&run, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(plain, archive(&SourceTree::new(run, None)));
    }

    #[test]
    fn the_youngest_file_tells_when_a_source_was_modified() {
        let folder = sample();
        let time = |path: &str, seconds| {
            let file = fs::File::open(folder.path().join(path)).unwrap();
            let time = UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            file.set_modified(time).unwrap();
        };
        fs::remove_file(folder.path().join("link")).unwrap();
        for (path, seconds) in [("sub/run", 50), ("note", 70), ("sub", 60), ("", 10)] {
            time(path, seconds);
        }
        let tree = SourceTree::new(folder.path().to_owned(), None);
        assert_eq!(tree.last_modified().unwrap(), 70);
    }
}
