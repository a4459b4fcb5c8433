//! A large file on its way to the disk around the page cache, by a thread of its own: while it waits for the disk, the
//! next bytes are read and hashed.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use rustix::io::Errno;

use crate::buffers::Piece;
use crate::disk::Disk;
use crate::limits::NAR_BUFFERS;

/// See the [module](self). Bytes come in pieces at first, one after the other, and the rest at the end.
pub(crate) struct AroundCache {
    disk: Disk,
    writer: Option<Writer>,
}

struct Writer {
    pieces: SyncSender<Piece>,
    thread: JoinHandle<Result<(), Errno>>,
}

impl AroundCache {
    /// None where the file system cannot do it.
    pub(crate) fn begin(disk: &Disk, file: &OwnedFd) -> Option<Self> {
        disk.begin_around_cache(file).then(|| Self {
            disk: disk.clone(),
            writer: None,
        })
    }

    /// The next bytes. An error may be that of an earlier piece.
    pub(crate) fn piece(&mut self, file: &OwnedFd, piece: Piece) -> Result<(), Errno> {
        if self.writer.is_none() {
            self.writer = self.start(file);
        }
        match &self.writer {
            None => self.disk.write_around_cache(file, &piece),
            Some(writer) if writer.pieces.send(piece).is_ok() => Ok(()),
            Some(_) => self.wait().and(Err(Errno::IO)),
        }
    }

    /// The last bytes; what follows goes through the cache.
    pub(crate) fn rest(&mut self, file: &OwnedFd, bytes: &[u8]) -> Result<(), Errno> {
        self.wait()?;
        self.disk.write_around_cache(file, bytes)
    }

    /// All pieces are written afterwards.
    pub(crate) fn wait(&mut self) -> Result<(), Errno> {
        let Some(Writer { pieces, thread }) = self.writer.take() else {
            return Ok(());
        };
        drop(pieces);
        thread.join().unwrap_or(Err(Errno::IO))
    }

    /// None where no thread can be had.
    fn start(&self, file: &OwnedFd) -> Option<Writer> {
        let (disk, file) = (self.disk.clone(), file.try_clone().ok()?);
        let (send, pieces) = sync_channel::<Piece>(NAR_BUFFERS);
        let run = move || {
            let mut pieces = pieces.iter();
            pieces.try_for_each(|piece| disk.write_around_cache(&file, &piece))
        };
        let thread = std::thread::Builder::new().name("store-write".to_owned());
        Some(Writer {
            pieces: send,
            thread: thread.spawn(run).ok()?,
        })
    }
}

impl Drop for AroundCache {
    fn drop(&mut self) {
        // A file that is not ended is removed, and nobody writes to it then.
        if let Err(error) = self.wait() {
            tracing::debug!(%error, "a file that was not wanted in the end could not be written");
        }
    }
}

#[cfg(test)]
#[path = "around_cache_tests.rs"]
mod tests;
