//! Buffers for the bytes of archives, which are used again, so that small archives do not each clear one.

use std::ops::{Deref, DerefMut};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

use crate::limits::{NAR_BUFFER, NAR_BUFFERS};

/// Where a buffer begins in memory: what disks and file systems ask for of who writes around the page cache.
pub(crate) const ALIGNMENT: usize = 4096;

/// [`NAR_BUFFER`] bytes that begin with a page of memory; an empty one has none.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    /// Where the first whole page begins.
    start: usize,
    length: usize,
}

impl Buffer {
    fn allocate() -> Self {
        let bytes = vec![0; NAR_BUFFER + ALIGNMENT].into_boxed_slice();
        // The box does not move its bytes. An offset that cannot be had costs the alignment alone.
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let length = NAR_BUFFER;
        Self { bytes, start, length }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// The beginning of a buffer, read by several threads. Whoever has done with it last gives the buffer back.
pub(crate) struct Piece {
    buffer: Option<Arc<Buffer>>,
    length: usize,
    back: SyncSender<Buffer>,
}

impl Piece {
    /// `back` must have room for every buffer of its archive.
    pub(crate) fn new(buffer: Buffer, length: usize, back: SyncSender<Buffer>) -> Self {
        let buffer = Some(Arc::new(buffer));
        Self { buffer, length, back }
    }

    /// The same bytes, for another reader.
    pub(crate) fn share(&self) -> Self {
        Self {
            buffer: self.buffer.clone(),
            length: self.length,
            back: self.back.clone(),
        }
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[..self.length])
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take().and_then(Arc::into_inner) {
            // Nobody wants the buffer back once the archive ended.
            drop(self.back.try_send(buffer));
        }
    }
}

/// Buffers that nobody uses at the moment.
#[derive(Default)]
pub(crate) struct Buffers(Mutex<Vec<Buffer>>);

impl Buffers {
    /// Kept at most: two archives at once.
    const KEPT: usize = 2 * NAR_BUFFERS;

    pub(crate) fn take(&self) -> Buffer {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(Buffer::allocate)
    }

    pub(crate) fn give_back(&self, buffer: Buffer) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < Self::KEPT {
            kept.push(buffer);
        }
    }
}
