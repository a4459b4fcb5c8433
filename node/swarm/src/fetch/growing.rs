//! A large file that is read from its beginning while the rest of it still comes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bao_tree::ChunkRanges;
use tvix_node_protocol::tree::BlobDigest;

use super::arrival::SpoolError;
use super::plan::CHUNK;
use crate::core::lock;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Coming,
    /// All of it is there, and nothing writes to it any more.
    Complete,
    BrokenOff,
}

#[derive(Debug)]
struct State {
    /// What is written, and verified.
    there: ChunkRanges,
    end: End,
}

/// A large file on its way, for who brings it.
#[derive(Debug)]
pub(crate) struct Growing {
    blob: BlobDigest,
    size: u64,
    path: PathBuf,
    file: Arc<File>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Growing {
    /// `there`: what is there already.
    pub(crate) fn new(
        (blob, size): (BlobDigest, u64),
        path: &Path,
        file: Arc<File>,
        there: ChunkRanges,
    ) -> Arc<Self> {
        let end = End::Coming;
        Arc::new(Self {
            blob,
            size,
            path: path.to_owned(),
            file,
            state: Mutex::new(State { there, end }),
            changed: Condvar::new(),
        })
    }

    /// These chunks are written.
    pub(crate) fn came(&self, chunks: ChunkRanges) {
        lock(&self.state).there |= chunks;
        self.changed.notify_all();
    }

    /// Nothing more will be written: it is complete, or it will not be.
    pub(crate) fn ended(&self, complete: bool) {
        let end = if complete { End::Complete } else { End::BrokenOff };
        lock(&self.state).end = end;
        self.changed.notify_all();
    }

    /// See [`GrowingBlob::wait`].
    fn wait(&self, bytes: u64) -> Result<u64, SpoolError> {
        let mut state = lock(&self.state);
        loop {
            match state.end {
                End::Complete => return Ok(self.size),
                End::BrokenOff => return Err(SpoolError::BrokenOff(self.blob)),
                End::Coming => {}
            }
            let there = self.beginning(&state.there);
            if there > bytes {
                return Ok(there);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn beginning(&self, there: &ChunkRanges) -> u64 {
        match there.boundaries() {
            [start, end, ..] if start.0 == 0 => (end.0 * CHUNK).min(self.size),
            [start] if start.0 == 0 => self.size,
            _ => 0,
        }
    }
}

/// A large file on its way, for who takes it. Reads it from its beginning, as far as it has been verified, and waits for the rest. At
/// its end nothing writes to the file any more. Blocks.
#[derive(Debug)]
pub struct GrowingBlob {
    growing: Arc<Growing>,
    /// Where it is read next.
    at: u64,
    /// So many bytes are known to be there.
    there: u64,
}

impl GrowingBlob {
    pub(crate) fn new(growing: Arc<Growing>) -> Self {
        let (at, there) = (0, 0);
        Self { growing, at, there }
    }

    /// Where the file is, until it is complete.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.growing.path
    }

    /// The file, of which nothing may be read that has not come.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.growing.file
    }

    /// Waits until more than so many bytes of the beginning are there, and says how many are; or all of them, where that is
    /// all there is and nothing writes to it any more. Blocks.
    ///
    /// # Errors
    /// [`SpoolError::BrokenOff`]
    pub fn wait(&self, bytes: u64) -> Result<u64, SpoolError> {
        self.growing.wait(bytes)
    }
}

impl Read for GrowingBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.at == self.there {
            self.there = self.growing.wait(self.at).map_err(io::Error::other)?;
        }
        let left = usize::try_from(self.there - self.at).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let read = self.growing.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use bao_tree::ChunkNum;

    use super::*;

    const SIZE: u64 = 100 * CHUNK + 7;

    fn growing(there: std::ops::Range<u64>) -> Arc<Growing> {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..SIZE).map(|at| (at / 3) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        Growing::new(
            (BlobDigest::of(&bytes), SIZE),
            Path::new("x"),
            Arc::new(file),
            chunks(there),
        )
    }

    fn chunks(range: std::ops::Range<u64>) -> ChunkRanges {
        ChunkRanges::from(ChunkNum(range.start)..ChunkNum(range.end))
    }

    #[test]
    fn it_is_read_as_far_as_its_beginning_is_there() {
        let growing = growing(10..20);
        let state = || growing.beginning(&lock(&growing.state).there);
        assert_eq!(state(), 0);
        growing.came(chunks(0..8));
        assert_eq!(state(), 8 * CHUNK);
        growing.came(chunks(8..10));
        assert_eq!(state(), 20 * CHUNK);
        growing.came(chunks(90..101));
        assert_eq!(state(), 20 * CHUNK);
        growing.came(chunks(20..90));
        assert_eq!(state(), SIZE);
    }

    #[test]
    fn who_reads_waits_for_what_is_missing_and_at_the_end_until_nothing_writes_any_more() {
        let growing = growing(0..1);
        let (said, heard) = std::sync::mpsc::channel();
        let mut reader = GrowingBlob::new(growing.clone());
        let reading = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            let mut all = vec![];
            loop {
                let read = reader.read(&mut buffer).unwrap();
                all.extend_from_slice(&buffer[..read]);
                said.send(read as u64).unwrap();
                if read == 0 {
                    return all;
                }
            }
        });
        assert_eq!(heard.recv().unwrap(), CHUNK);
        growing.came(chunks(3..101));
        growing.came(chunks(1..3));
        let mut rest = heard.recv().unwrap();
        while rest < SIZE - CHUNK {
            rest += heard.recv().unwrap();
        }
        // All is read, and somebody may still write what is there already.
        let early = heard.recv_timeout(std::time::Duration::from_millis(50));
        assert!(early.is_err());
        growing.ended(true);
        assert_eq!(heard.recv().unwrap(), 0);
        assert_eq!(BlobDigest::of(&reading.join().unwrap()), growing.blob);
    }

    #[test]
    fn who_waits_for_more_is_told_that_no_more_comes() {
        let growing = growing(0..1);
        let mut reader = GrowingBlob::new(growing.clone());
        let mut buffer = vec![0; 2000];
        assert_eq!(reader.read(&mut buffer).unwrap(), 1024);
        growing.ended(false);
        let error = reader.read(&mut buffer).unwrap_err().to_string();
        assert!(error.contains("ended before the file"), "{error}");
    }
}
