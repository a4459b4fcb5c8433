//! Reads a directory, file or link of the file system into a tree, without trusting what is there.
//!
//! Everything is opened by the descriptor of its directory and one name, no link is followed, and what
//! an object is is asked of the opened object, not of its name. Only the bytes, the names, the
//! executable bit and link targets are taken over; owners, times, modes and extended attributes are
//! not. The order and form are those of the archive, which goes to the hashes at the same time.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::limits::{DIRECTORY_ENTRIES, TREE_DEPTH};
use tvix_node_protocol::tree::{PathComponent, TreeError};

use crate::disk::{FileError, list, open_directory};
use crate::file_copy::{CopyError, copy_file};
use crate::nar_framing as framing;
use crate::nar_tap::NarTap;
use crate::tree_writer::{TreeWriteError, TreeWriter};

/// Why something in the file system cannot become a tree in the store.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// Neither directory, file nor link.
    #[error(
        "'{}' is {kind}; a store path holds only directories, files and symbolic links", .path.display()
    )]
    Kind {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It was written to meanwhile.
    #[error("'{}' changed while it was being read", .path.display())]
    Changed {
        /// Where it is.
        path: PathBuf,
    },
    /// Too deep.
    #[error("'{}' lies deeper than the {TREE_DEPTH} directories a store path may nest", .path.display())]
    Depth {
        /// Where it is.
        path: PathBuf,
    },
    /// A directory that no tree has.
    #[error("'{}': {source}", .path.display())]
    Tree {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        source: TreeError,
    },
    /// Reading or hashing failed.
    #[error("cannot read '{}': {source}", .path.display())]
    Read {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why reading a source into a tree ended early.
#[derive(Debug)]
pub(crate) enum WalkError {
    Source(SourceError),
    Write(TreeWriteError),
}

impl WalkError {
    /// As if what was read from `place` had been at `path`: for what lies aside for a moment, in a place that says
    /// nothing to anybody.
    pub(crate) fn seen_as(mut self, place: &Path, path: &StorePath) -> Self {
        let at = match &mut self {
            Self::Source(
                SourceError::Kind { path, .. }
                | SourceError::Changed { path }
                | SourceError::Depth { path }
                | SourceError::Tree { path, .. }
                | SourceError::Read { path, .. }
                | SourceError::File(FileError { path, .. }),
            ) => path,
            Self::Write(_) => return self,
        };
        if let Ok(inside) = at.strip_prefix(place) {
            let path = PathBuf::from(path.to_absolute_path());
            *at = match inside.as_os_str().is_empty() {
                true => path,
                false => path.join(inside),
            };
        }
        self
    }
}

impl From<SourceError> for WalkError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl From<TreeWriteError> for WalkError {
    fn from(error: TreeWriteError) -> Self {
        Self::Write(error)
    }
}

/// Reads what lies at `path`, whose last component is not followed if it is a link.
pub(crate) fn read_source(
    path: &Path,
    tap: &mut NarTap<'_>,
    writer: &mut TreeWriter<'_>,
) -> Result<(), WalkError> {
    Walk {
        path: path.to_owned(),
        tap,
        writer,
    }
    .run()
}

struct Frame {
    fd: OwnedFd,
    /// In descending order, so that the next one is the last.
    entries: Vec<(Vec<u8>, FileType)>,
    named: bool,
}

struct Walk<'a, 't, 'w> {
    /// Of the object at hand, for messages.
    path: PathBuf,
    tap: &'a mut NarTap<'t>,
    writer: &'a mut TreeWriter<'w>,
}

impl Walk<'_, '_, '_> {
    fn run(&mut self) -> Result<(), WalkError> {
        let mut stack: Vec<Frame> = Vec::new();
        let root = self.path.as_os_str().as_bytes().to_vec();
        if let Some(frame) = self.object(rustix::fs::CWD, &root, None, FileType::Unknown)? {
            stack.push(frame);
        }
        while let Some(frame) = stack.last_mut() {
            let Some((name, kind)) = frame.entries.pop() else {
                let named = frame.named;
                stack.pop();
                self.writer.close_directory()?;
                self.frame(|tap| {
                    framing::close_directory(tap)?;
                    framing::after_node(tap, named)
                })?;
                if named {
                    self.path.pop();
                }
                continue;
            };
            self.path.push(OsString::from_vec(name.clone()));
            let component = PathComponent::new(&name).map_err(|error| self.tree_error(error))?;
            let depth = stack.len();
            if depth >= TREE_DEPTH {
                return Err(SourceError::Depth {
                    path: self.path.clone(),
                }
                .into());
            }
            let Some(frame) = stack.last() else {
                continue;
            };
            match self.object(frame.fd.as_fd(), &name, Some(component), kind)? {
                Some(opened) => stack.push(opened),
                None => {
                    self.path.pop();
                }
            }
        }
        Ok(())
    }

    /// Reads one object; a directory is opened and returned.
    fn object(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        component: Option<PathComponent>,
        kind: FileType,
    ) -> Result<Option<Frame>, WalkError> {
        let kind = match kind {
            FileType::Unknown => {
                let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
                FileType::from_raw_mode(stat.map_err(|error| self.fail("look at", error))?.st_mode)
            }
            kind => kind,
        };
        match kind {
            FileType::Directory => return self.directory(parent, name, component).map(Some),
            FileType::RegularFile => self.file(parent, name, component)?,
            FileType::Symlink => self.link(parent, name, component)?,
            other => return Err(self.kind_error(other)),
        }
        Ok(None)
    }

    fn directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        component: Option<PathComponent>,
    ) -> Result<Frame, WalkError> {
        let fd = match open_directory(parent, name) {
            Err(Errno::ACCESS) => {
                make_readable(parent, name, FileType::Directory).and_then(|()| open_directory(parent, name))
            }
            result => result,
        };
        let fd = fd.map_err(|error| self.changed_or("open the directory", error))?;
        let mut entries = list(&fd).map_err(|error| self.fail("list", error))?;
        if entries.len() > DIRECTORY_ENTRIES {
            return Err(self.tree_error(TreeError::TooManyEntries(entries.len())).into());
        }
        entries.sort_unstable_by(|a, b| b.0.cmp(&a.0));
        let named = component.is_some();
        self.frame(|tap| {
            framing::before_node(tap, component.as_ref().map(PathComponent::as_bytes))?;
            framing::open_directory(tap)
        })?;
        self.writer.open_directory(component)?;
        Ok(Frame { fd, entries, named })
    }

    fn link(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        component: Option<PathComponent>,
    ) -> Result<(), WalkError> {
        let target = rustix::fs::readlinkat(parent, name, Vec::new());
        let target = target.map_err(|error| self.changed_or("read the link", error))?;
        self.frame(|tap| {
            framing::before_node(tap, component.as_ref().map(PathComponent::as_bytes))?;
            framing::symlink(tap, target.as_bytes())?;
            framing::after_node(tap, component.is_some())
        })?;
        Ok(self.writer.symlink(component, target.as_bytes())?)
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        component: Option<PathComponent>,
    ) -> Result<(), WalkError> {
        // Without O_NONBLOCK a FIFO put here meanwhile would hold us for ever.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open = || rustix::fs::openat(parent, name, flags, Mode::empty());
        let opened = match open() {
            Err(Errno::ACCESS) => make_readable(parent, name, FileType::RegularFile).and_then(|()| open()),
            result => result,
        };
        let fd = opened.map_err(|error| self.changed_or("open", error))?;
        let stat = rustix::fs::fstat(&fd).map_err(|error| self.fail("look at", error))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            return Err(self.kind_error(kind));
        }
        let (size, executable) = (file_size(&stat), stat.st_mode & 0o100 != 0);
        let named = component.is_some();
        self.frame(|tap| {
            framing::before_node(tap, component.as_ref().map(PathComponent::as_bytes))?;
            framing::open_file(tap, executable, size)
        })?;
        self.contents(&mut File::from(fd), component, executable, size)?;
        self.frame(|tap| {
            framing::close_file(tap, size)?;
            framing::after_node(tap, named)
        })
    }

    fn contents(
        &mut self,
        file: &mut File,
        component: Option<PathComponent>,
        executable: bool,
        size: u64,
    ) -> Result<(), WalkError> {
        let copied = copy_file(file, (component, executable, size), self.tap, self.writer);
        copied.map(|_| ()).map_err(|error| {
            let path = self.path.clone();
            match error {
                CopyError::Size => SourceError::Changed { path }.into(),
                CopyError::Read(source) => SourceError::Read { path, source }.into(),
                CopyError::Write(error) => error.into(),
            }
        })
    }

    fn frame(&mut self, write: impl FnOnce(&mut NarTap<'_>) -> io::Result<()>) -> Result<(), WalkError> {
        write(self.tap).map_err(|source| {
            let path = self.path.clone();
            SourceError::Read { path, source }.into()
        })
    }

    fn fail(&self, action: &'static str, error: Errno) -> SourceError {
        FileError::new(action, self.path.clone(), error).into()
    }

    /// A name that turned into something else between the look and the open.
    fn changed_or(&self, action: &'static str, error: Errno) -> SourceError {
        match error {
            Errno::LOOP | Errno::NOTDIR | Errno::INVAL | Errno::NXIO => SourceError::Changed {
                path: self.path.clone(),
            },
            error => self.fail(action, error),
        }
    }

    fn tree_error(&self, source: TreeError) -> SourceError {
        let path = self.path.clone();
        SourceError::Tree { path, source }
    }

    fn kind_error(&self, kind: FileType) -> WalkError {
        let kind = match kind {
            FileType::Fifo => "a named pipe (FIFO)",
            FileType::Socket => "a socket",
            FileType::CharacterDevice | FileType::BlockDevice => "a device node",
            _ => "of a kind unknown here",
        };
        let path = self.path.clone();
        SourceError::Kind { path, kind }.into()
    }
}

fn file_size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// A build may leave files and directories without read permission. Where they are our own, we give
/// ourselves that permission, on the object itself and never through a link.
fn make_readable(parent: BorrowedFd<'_>, name: &[u8], wanted: FileType) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let object = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&object)?;
    if FileType::from_raw_mode(stat.st_mode) != wanted {
        return Err(Errno::ACCESS);
    }
    let by_descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&object));
    let needed = match wanted {
        FileType::Directory => Mode::RUSR | Mode::XUSR,
        // Its executable bit is content and stays as it is.
        _ => Mode::RUSR,
    };
    let mode = Mode::from_raw_mode(stat.st_mode & 0o777) | needed;
    rustix::fs::chmod(by_descriptor, mode)
}
