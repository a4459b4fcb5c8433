//! Content that a peer sends while it is written down.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tvix_node_protocol::tree::{BlobDigest, Tree, TreeDigest};
use tvix_node_store::{Arrived, ArrivedFile, ComingFile};

use super::sent::Sent;

/// Files come into the spool a piece at a time, and others have their turn in between.
pub struct InPieces<'a> {
    pub sent: &'a Sent,
    pub spool: &'a Path,
}

impl Arrived for InPieces<'_> {
    fn tree(&self, digest: TreeDigest) -> io::Result<Option<Tree>> {
        self.sent.tree(digest)
    }

    fn blob(&self, digest: BlobDigest) -> io::Result<Option<ArrivedFile>> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Some(bytes) = self.sent.blobs.get(&digest) else {
            return Ok(None);
        };
        let path = self.spool.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create_new(true).open(&path)?;
        Ok(Some(ArrivedFile::Coming(Box::new(Piece {
            path,
            file,
            bytes: bytes.clone(),
        }))))
    }
}

struct Piece {
    path: PathBuf,
    file: File,
    bytes: Vec<u8>,
}

impl ComingFile for Piece {
    fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self) -> &File {
        &self.file
    }

    fn wait(&self, bytes: u64) -> io::Result<u64> {
        let mut come = usize::try_from(self.file.metadata()?.len()).unwrap();
        while come < self.bytes.len() && come as u64 <= bytes {
            std::thread::yield_now();
            let next = (come + (64 << 10)).min(self.bytes.len());
            (&self.file).write_all(&self.bytes[come..next])?;
            come = next;
        }
        Ok(come as u64)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // The tree has another name for it, or a copy.
        std::fs::remove_file(&self.path).unwrap();
    }
}
