//! The bytes of one archive on their way from where they come from to the tree and to the hashes.
//!
//! Bytes are read straight into the tap's buffer, used from there by whoever writes the tree, and
//! hashed from there when the buffer is full: nothing is copied in memory. Archives larger than one
//! buffer are hashed by a thread of their own while the next buffer is filled.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};
use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash, NixHasher};
use tvix_node_protocol::nix::nar::ReferenceScanner;
use tvix_node_protocol::path_info::NarHash;

use crate::buffers::{Buffer, Buffers, Piece};
use crate::limits::{NAR_BUFFER, NAR_BUFFERS, SMALL_FILE};

const _: () = assert!(SMALL_FILE < NAR_BUFFER);

/// Bytes after which a second thread pays: half a millisecond of hashing.
const THREAD_FROM: u64 = 1 << 20;

/// What is computed over an archive.
struct Hashes {
    nar: Sha256,
    extra: Option<NixHasher>,
    scanner: Option<ReferenceScanner>,
}

impl Hashes {
    fn update(&mut self, bytes: &[u8]) {
        self.nar.update(bytes);
        if let Some(extra) = &mut self.extra {
            extra.update(bytes);
        }
        if let Some(scanner) = &mut self.scanner {
            scanner.scan(bytes);
        }
    }
}

/// What came out over the whole archive.
pub(crate) struct NarSummary {
    pub(crate) hash: NarHash,
    pub(crate) size: u64,
    /// Of the algorithm asked for.
    pub(crate) extra: Option<NixHash>,
    pub(crate) scanner: Option<ReferenceScanner>,
}

struct Worker {
    full: SyncSender<Piece>,
    empty: Receiver<Buffer>,
    back: SyncSender<Buffer>,
    thread: JoinHandle<Option<Box<Hashes>>>,
    /// Buffers made so far, the one in hand included.
    buffers: usize,
}

impl Worker {
    /// An empty buffer; waits for one where all are in use.
    fn next(&mut self, buffers: &Buffers) -> io::Result<Buffer> {
        match self.empty.try_recv() {
            Ok(buffer) => Ok(buffer),
            Err(_) if self.buffers < NAR_BUFFERS => {
                self.buffers += 1;
                Ok(buffers.take())
            }
            Err(_) => self.empty.recv().map_err(|_| lost()),
        }
    }
}

enum Hashing {
    Here(Box<Hashes>),
    Thread(Worker),
    /// Only while one becomes the other.
    Moving,
}

/// See the [module](self).
pub(crate) struct NarTap<'s> {
    buffers: &'s Buffers,
    buffer: Buffer,
    used: usize,
    flushed: u64,
    hashing: Hashing,
}

fn lost() -> io::Error {
    io::Error::other("the thread that hashes the archive ended early")
}

impl<'s> NarTap<'s> {
    /// Computes the NAR hash, and besides it a hash of another algorithm and the references, if wanted.
    pub(crate) fn new(
        buffers: &'s Buffers,
        extra: Option<HashAlgorithm>,
        scanner: Option<ReferenceScanner>,
    ) -> Self {
        let hashes = Hashes {
            nar: Sha256::new(),
            extra: extra.map(NixHasher::new),
            scanner,
        };
        let (buffer, hashing) = (buffers.take(), Hashing::Here(Box::new(hashes)));
        Self {
            buffers,
            buffer,
            used: 0,
            flushed: 0,
            hashing,
        }
    }

    /// Bytes of the archive so far.
    pub(crate) fn position(&self) -> u64 {
        self.flushed + self.used as u64
    }

    /// The bytes of a file of this size come next. Those of a large one begin with a buffer, so that they lie in buffers as
    /// they do in the file: whole pages are copied, and whole trees of blocks hashed.
    pub(crate) fn begin_file(&mut self, size: u64) -> io::Result<()> {
        match self.used > 0 && size >= self.buffer.len() as u64 {
            true => self.flush_buffer(false),
            false => Ok(()),
        }
    }

    /// Reads at most `most` bytes, as many as there is room for, and returns what was read; less at the end of `from`
    /// alone, and nothing there.
    pub(crate) fn take(&mut self, from: &mut impl Read, most: u64) -> io::Result<&[u8]> {
        if self.used == self.buffer.len() {
            self.flush_buffer(false)?;
        }
        let room = self.buffer.len() - self.used;
        let most = usize::try_from(most).map_or(room, |most| most.min(room));
        let (start, end) = (self.used, self.used + most);
        while self.used < end {
            match from.read(&mut self.buffer[self.used..end]) {
                Ok(0) => break,
                Ok(read) => self.used += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.buffer[start..self.used])
    }

    /// Reads [`NAR_BUFFER`] bytes, which must be there, in a buffer of their own that others may go on reading while it is
    /// hashed. None where the hashing has no thread; then nothing has been read.
    pub(crate) fn take_shared(&mut self, from: &mut impl Read) -> io::Result<Option<Piece>> {
        if self.used > 0 {
            self.flush_buffer(false)?;
        }
        self.start_thread();
        let Hashing::Thread(worker) = &mut self.hashing else {
            return Ok(None);
        };
        from.read_exact(&mut self.buffer)?;
        let length = self.buffer.len();
        self.flushed += length as u64;
        let next = worker.next(self.buffers)?;
        let full = std::mem::replace(&mut self.buffer, next);
        let piece = Piece::new(full, length, worker.back.clone());
        worker.full.send(piece.share()).map_err(|_| lost())?;
        Ok(Some(piece))
    }

    /// Reads exactly `length` bytes, at most [`SMALL_FILE`], in one piece.
    pub(crate) fn take_exactly(&mut self, from: &mut impl Read, length: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.used < length {
            self.flush_buffer(false)?;
        }
        let start = self.used;
        from.read_exact(&mut self.buffer[start..start + length])?;
        self.used += length;
        Ok(&self.buffer[start..self.used])
    }

    /// Reads a whole file of `length` bytes, at most [`SMALL_FILE`]; one that has become shorter or
    /// longer is an unexpected end.
    pub(crate) fn take_whole(&mut self, from: &mut impl Read, length: usize) -> io::Result<&[u8]> {
        // One byte more than there should be: a file that did not grow does not fill it.
        if self.buffer.len() - self.used <= length {
            self.flush_buffer(false)?;
        }
        let start = self.used;
        let room = &mut self.buffer[start..=start + length];
        let mut read = 0;
        loop {
            match from.read(&mut room[read..]) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if read >= length {
                break;
            }
        }
        if read != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.used += length;
        Ok(&self.buffer[start..self.used])
    }

    /// Hashes what is left and returns the results.
    pub(crate) fn finish(mut self) -> io::Result<NarSummary> {
        self.flush_buffer(true)?;
        let hashes = match std::mem::replace(&mut self.hashing, Hashing::Moving) {
            Hashing::Here(hashes) => hashes,
            Hashing::Thread(worker) => {
                drop(worker.full);
                let hashes = worker.thread.join().ok().flatten().ok_or_else(lost)?;
                worker
                    .empty
                    .try_iter()
                    .for_each(|buffer| self.buffers.give_back(buffer));
                hashes
            }
            Hashing::Moving => return Err(lost()),
        };
        self.buffers.give_back(std::mem::take(&mut self.buffer));
        Ok(NarSummary {
            hash: NarHash(hashes.nar.finalize().into()),
            size: self.flushed,
            extra: hashes.extra.map(NixHasher::finalize),
            scanner: hashes.scanner,
        })
    }

    fn flush_buffer(&mut self, ending: bool) -> io::Result<()> {
        let used = std::mem::take(&mut self.used);
        self.flushed += used as u64;
        if self.flushed >= THREAD_FROM && !ending {
            self.start_thread();
        }
        match &mut self.hashing {
            Hashing::Here(hashes) => hashes.update(&self.buffer[..used]),
            Hashing::Thread(worker) => {
                let next = worker.next(self.buffers)?;
                let full = std::mem::replace(&mut self.buffer, next);
                let piece = Piece::new(full, used, worker.back.clone());
                worker.full.send(piece).map_err(|_| lost())?;
            }
            Hashing::Moving => return Err(lost()),
        }
        Ok(())
    }

    /// Moves the hashing to a thread of its own. Where none can be had, it stays here.
    fn start_thread(&mut self) {
        if !matches!(self.hashing, Hashing::Here(_)) {
            return;
        }
        let (hand_over, receive_hashes) = sync_channel::<Box<Hashes>>(1);
        let (full, receive) = sync_channel::<Piece>(NAR_BUFFERS);
        let (back, empty) = sync_channel(NAR_BUFFERS);
        let run = move || {
            let mut hashes = receive_hashes.recv().ok()?;
            for piece in receive {
                hashes.update(&piece);
            }
            Some(hashes)
        };
        let Ok(thread) = std::thread::Builder::new().name("nar-hash".to_owned()).spawn(run) else {
            return;
        };
        if let Hashing::Here(hashes) = std::mem::replace(&mut self.hashing, Hashing::Moving)
            && hand_over.send(hashes).is_ok()
        {
            self.hashing = Hashing::Thread(Worker {
                full,
                empty,
                back,
                thread,
                buffers: 1,
            });
        }
    }
}

impl Write for NarTap<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.used == self.buffer.len() {
            self.flush_buffer(false)?;
        }
        let written = bytes.len().min(self.buffer.len() - self.used);
        self.buffer[self.used..self.used + written].copy_from_slice(&bytes[..written]);
        self.used += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
