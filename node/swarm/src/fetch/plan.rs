//! What is still to be fetched of a tree, in pieces of work that any provider can do.

use std::collections::VecDeque;
use std::ops::Range;

use tvix_node_protocol::limits::BLOBS_BATCH;
use tvix_node_protocol::tree::BlobDigest;

use crate::limits::{PACK_BYTES, PACKED_BLOB, PIECE_CHUNKS};

/// Bytes of a chunk, the unit in which ranges are asked for.
pub(crate) const CHUNK: u64 = 1024;

/// One piece of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Job {
    /// Small files, with their sizes.
    Pack(Vec<(BlobDigest, u64)>),
    /// A part of a large file, in chunks.
    Piece {
        /// The file.
        blob: BlobDigest,
        /// The part.
        chunks: Range<u64>,
    },
}

/// The work that is left.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    jobs: VecDeque<Job>,
    running: usize,
}

impl Plan {
    /// Puts small files together, in the order given.
    pub(crate) fn add_small(&mut self, blobs: impl IntoIterator<Item = (BlobDigest, u64)>) {
        let (mut pack, mut bytes) = (vec![], 0);
        for (blob, size) in blobs {
            if pack.len() >= BLOBS_BATCH || (bytes + size > PACK_BYTES && !pack.is_empty()) {
                self.jobs.push_back(Job::Pack(std::mem::take(&mut pack)));
                bytes = 0;
            }
            pack.push((blob, size));
            bytes += size;
        }
        if !pack.is_empty() {
            self.jobs.push_back(Job::Pack(pack));
        }
    }

    /// Cuts what is missing of a large file; answers how many pieces that makes.
    pub(crate) fn add_large(
        &mut self,
        blob: BlobDigest,
        missing: impl IntoIterator<Item = Range<u64>>,
    ) -> usize {
        let before = self.jobs.len();
        for range in missing {
            let mut start = range.start;
            while start < range.end {
                let end = (start - start % PIECE_CHUNKS + PIECE_CHUNKS).min(range.end);
                let chunks = start..end;
                self.jobs.push_back(Job::Piece { blob, chunks });
                start = end;
            }
        }
        self.jobs.len() - before
    }

    pub(crate) fn take(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        self.running += 1;
        Some(job)
    }

    /// A piece of work is done.
    pub(crate) fn finished(&mut self) {
        self.running -= 1;
    }

    /// A piece of work, or what is left of it, has to be done by another.
    pub(crate) fn give_back(&mut self, job: Job) {
        self.running -= 1;
        self.jobs.push_front(job);
    }

    /// Whether one more provider would have something to do.
    pub(crate) fn wants_more(&self, active: usize) -> bool {
        self.jobs.len() > active || (active == 0 && !self.is_done())
    }

    pub(crate) fn is_done(&self) -> bool {
        self.jobs.is_empty() && self.running == 0
    }
}

/// Whether a file travels together with others.
pub(crate) fn is_small(size: u64) -> bool {
    size <= PACKED_BLOB
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(seed: u32) -> BlobDigest {
        BlobDigest::of(&seed.to_le_bytes())
    }

    #[test]
    fn small_files_travel_together_within_bounds() {
        let mut plan = Plan::default();
        let files: Vec<_> = (0..10_000)
            .map(|seed| (blob(seed), u64::from(seed % 64) * 1000))
            .collect();
        plan.add_small(files.clone());
        let mut seen = vec![];
        while let Some(Job::Pack(pack)) = plan.take() {
            assert!(pack.len() <= BLOBS_BATCH);
            assert!(pack.iter().map(|(_, size)| size).sum::<u64>() <= PACK_BYTES);
            seen.extend(pack);
            plan.finished();
        }
        assert_eq!(seen, files);
        assert!(plan.is_done());
    }

    #[test]
    fn a_large_file_is_cut_at_fixed_places() {
        let mut plan = Plan::default();
        let missing = [5..2 * PIECE_CHUNKS + 1, 3 * PIECE_CHUNKS..3 * PIECE_CHUNKS + 7];
        assert_eq!(plan.add_large(blob(1), missing), 4);
        let mut ranges = vec![];
        while let Some(Job::Piece { chunks, .. }) = plan.take() {
            ranges.push(chunks);
        }
        let whole = PIECE_CHUNKS;
        assert_eq!(
            ranges,
            [
                5..whole,
                whole..2 * whole,
                2 * whole..2 * whole + 1,
                3 * whole..3 * whole + 7
            ]
        );
    }

    #[test]
    fn work_given_back_is_done_by_another_and_nothing_ends_before() {
        let mut plan = Plan::default();
        plan.add_small([(blob(1), 1)]);
        let job = plan.take().unwrap();
        assert!(plan.take().is_none());
        assert!(!plan.is_done(), "it may come back");
        plan.give_back(job.clone());
        assert_eq!(plan.take(), Some(job));
        plan.finished();
        assert!(plan.is_done());
    }
}
