//! A file of a new tree whose bytes come in pieces, and the ways in which they get to the disk: through the page cache, around
//! it, or not at all, because they are there already.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use tvix_node_protocol::subtrees::BlobHasher;
use tvix_node_protocol::tree::{BlobDigest, PathComponent};

use super::{TreeWriteError, TreeWriter};
use crate::around_cache::AroundCache;
use crate::buffers::Piece;
use crate::disk::FileError;
use crate::limits::AROUND_CACHE_FROM;
use crate::share::Shared;

/// See the [module](self).
pub(super) struct OpenFile {
    fd: OwnedFd,
    name: Option<PathComponent>,
    executable: bool,
    hasher: Box<BlobHasher>,
    written: u64,
    bytes: Bytes,
}

/// How the bytes of an open file get there.
enum Bytes {
    Written,
    AroundCache(AroundCache),
    /// They are there already.
    Taken,
}

/// Bytes after which the kernel is asked to write out a large file in the background.
const WRITE_OUT_EVERY: u64 = 8 << 20;

impl TreeWriter<'_> {
    /// Begins a file of `size` bytes, which come in pieces.
    pub(crate) fn open_file(
        &mut self,
        name: Option<PathComponent>,
        executable: bool,
        size: u64,
    ) -> Result<(), TreeWriteError> {
        self.count()?;
        let parent_length = self.enter(name.as_ref());
        let disk = &self.temporary.trees().disk;
        let made = self.with_place(name.as_ref(), |parent, name| {
            disk.make_file(parent, name, executable)
        });
        let fd = made.map_err(|error| self.fail("make the file", error))?;
        self.relative.truncate(parent_length);
        let around_cache = match self.around_cache && size >= AROUND_CACHE_FROM {
            true => AroundCache::begin(disk, &fd),
            false => None,
        };
        let bytes = around_cache.map_or(Bytes::Written, Bytes::AroundCache);
        self.begin(fd, name, executable, bytes);
        Ok(())
    }

    /// As [`TreeWriter::open_file`], with a file that has its bytes already and gets one name more. They must still
    /// come by [`TreeWriter::write`], from the descriptor that this returns; none where the file cannot be had so.
    pub(crate) fn take_over(
        &mut self,
        name: Option<&PathComponent>,
        executable: bool,
        given: &Path,
    ) -> Result<Option<File>, TreeWriteError> {
        let disk = &self.temporary.trees().disk;
        let (parent, own_name) = self.place(name);
        let given = (rustix::fs::CWD, given.as_os_str().as_bytes());
        match disk.hard_link(given, (parent, own_name)) {
            Ok(()) => {}
            // It has been moved away, another file system, or one without such links.
            Err(
                Errno::NOENT | Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK,
            ) => {
                return Ok(None);
            }
            Err(error) => {
                self.enter(name);
                return Err(self.fail("take over the file as", error).into());
            }
        }
        let taken = alone_with_its_giver(parent, own_name);
        if !matches!(taken, Ok(Some(_))) {
            disk.unlink((parent, own_name))
                .map_err(|error| self.fail("remove the second name", error))?;
        }
        let Some(fd) = taken.map_err(|error| self.fail("open what was taken over as", error))? else {
            return Ok(None);
        };
        let file = fd.try_clone();
        let file = file.map_err(|error| FileError::of_io("open", self.temporary.trees().path(), &error))?;
        self.count()?;
        self.begin(fd, name.cloned(), executable, Bytes::Taken);
        Ok(Some(file.into()))
    }

    fn begin(&mut self, fd: OwnedFd, name: Option<PathComponent>, executable: bool, bytes: Bytes) {
        self.file = Some(OpenFile {
            fd,
            name,
            executable,
            hasher: Box::default(),
            written: 0,
            bytes,
        });
    }

    /// Whether the open file's bytes may come by [`TreeWriter::write_piece`].
    pub(crate) fn wants_pieces(&self) -> bool {
        let file = self.file.as_ref();
        file.is_some_and(|file| matches!(file.bytes, Bytes::AroundCache(_)))
    }

    /// As [`TreeWriter::write`], which must not have been called for the file before; may return before the bytes are
    /// written.
    pub(crate) fn write_piece(&mut self, piece: Piece) -> Result<(), TreeWriteError> {
        if let Some(file) = &mut self.file
            && let Bytes::AroundCache(around) = &mut file.bytes
        {
            let written = around.piece(&file.fd, piece.share());
            return self.written(&piece, written);
        }
        self.write(&piece)
    }

    /// The next bytes of the open file.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), TreeWriteError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let disk = &self.temporary.trees().disk;
        let written = match &mut file.bytes {
            Bytes::Taken => Ok(()),
            Bytes::Written => disk.write(&file.fd, bytes),
            Bytes::AroundCache(around) => around.rest(&file.fd, bytes),
        };
        self.written(bytes, written)
    }

    /// Counts and hashes bytes of the open file that were written, or were not.
    fn written(&mut self, bytes: &[u8], written: Result<(), Errno>) -> Result<(), TreeWriteError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        file.hasher.update(bytes);
        let before = file.written;
        file.written += bytes.len() as u64;
        let (done, begun) = (before / WRITE_OUT_EVERY, file.written / WRITE_OUT_EVERY);
        let is_large = written.is_ok() && begun > done;
        if is_large && !matches!(file.bytes, Bytes::AroundCache(_)) {
            let (from, length) = (done * WRITE_OUT_EVERY, (begun - done) * WRITE_OUT_EVERY);
            self.temporary
                .trees()
                .disk
                .start_writing_out(&file.fd, from, length);
        }
        let looks = is_large && !matches!(file.bytes, Bytes::Taken);
        let flat = file.name.is_none() && !file.executable;
        let name = file.name.clone();
        self.flat_hash(flat, bytes);
        if let Err(error) = written {
            self.enter(name.as_ref());
            return Err(self.fail("write", error).into());
        }
        match looks {
            true => Ok(self.look_at_room()?),
            false => Ok(()),
        }
    }

    /// Ends the open file and returns the digest of its bytes; an equal stored one takes its place.
    pub(crate) fn close_file(&mut self) -> Result<BlobDigest, TreeWriteError> {
        let Some(mut open) = self.file.take() else {
            return Err(self.fail("finish the file", Errno::INVAL).into());
        };
        let parent_length = self.enter(open.name.as_ref());
        if let Bytes::AroundCache(around) = &mut open.bytes {
            around.wait().map_err(|error| self.fail("write", error))?;
        }
        let (blob, parts) = open.hasher.finalize();
        if !parts.is_empty() {
            self.subtrees.insert(blob, parts);
        }
        let file = self.occurrence(blob, open.written, open.executable);
        let shared = self.share_instead(open.name.as_ref(), &file)?;
        if shared == Shared::Not {
            let disk = &self.temporary.trees().disk;
            let finished = disk.canonicalise(open.fd.as_fd(), open.executable);
            finished.map_err(|error| self.fail("finish", error))?;
        }
        let made = self.bytes_made;
        self.file_row(&file, shared, parent_length);
        if matches!(open.bytes, Bytes::AroundCache(_)) {
            self.bytes_made = made;
        }
        self.leaf(open.name, file.leaf())?;
        Ok(file.blob)
    }
}

/// Opens a regular file that has one name besides this one: a third could be in another tree, or in this one.
fn alone_with_its_giver(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::LOOP) => return Ok(None),
        file => file?,
    };
    let stat = rustix::fs::fstat(&file)?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    Ok((regular && stat.st_nlink == 2).then_some(file))
}
