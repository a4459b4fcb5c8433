//! What is still to be fetched of a tree, in pieces of work that any provider can do.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::BLOBS_BATCH;
use tvix_node_protocol::tree::BlobDigest;

use crate::limits::{
    LARGE_PIECE_CHUNKS, LEAST_SHARE, PACK_BYTES, PACKED_BLOB, PIECE_CHUNKS, PIECES, WORKERS_PER_FAR_PROVIDER,
};
use crate::protocols::serving::BLOCK;

/// Bytes of a chunk, the unit in which ranges are asked for.
pub(crate) const CHUNK: u64 = 1024;

/// Chunks that are verified together.
const GROUP: u64 = BLOCK.bytes() as u64 / CHUNK;

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

/// Names a piece of work while it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Turn(u64);

/// What is still to come of a piece of a large file.
#[derive(Debug)]
struct Share {
    provider: NodeKey,
    blob: BlobDigest,
    left: Range<u64>,
}

/// The work that is left.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    jobs: VecDeque<Job>,
    turns: u64,
    running: usize,
    shares: HashMap<Turn, Share>,
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
    pub(crate) fn add_large(&mut self, blob: BlobDigest, missing: &[Range<u64>]) -> usize {
        let piece = piece_of(missing.iter().map(|range| range.end - range.start).sum());
        let mut pieces = vec![];
        for range in missing {
            let mut start = range.start;
            while start < range.end {
                let end = (start - start % piece + piece).min(range.end);
                pieces.push(start..end);
                start = end;
            }
        }
        stagger(&mut pieces);
        let count = pieces.len();
        self.jobs
            .extend(pieces.into_iter().map(|chunks| Job::Piece { blob, chunks }));
        count
    }

    /// The next piece of work, for this provider.
    pub(crate) fn take(&mut self, provider: NodeKey) -> Option<(Turn, Job)> {
        let job = self.jobs.pop_front()?;
        Some((self.begin(provider, &job), job))
    }

    /// Where there is no other work: the second half of what a provider that is not faster still has to bring of a
    /// piece. It is one piece more of its file.
    pub(crate) fn share(
        &mut self,
        provider: NodeKey,
        speed: impl Fn(NodeKey) -> f64,
    ) -> Option<(Turn, BlobDigest, Range<u64>)> {
        let own = speed(provider);
        let left = |share: &Share| share.left.end - share.left.start;
        let share = self
            .shares
            .values_mut()
            .filter(|share| share.provider != provider && left(share) >= 2 * LEAST_SHARE)
            .filter(|share| own > 0.0 && speed(share.provider) <= own)
            .max_by_key(|share| left(share))?;
        let middle = (share.left.start + left(share) / 2).next_multiple_of(GROUP);
        let (blob, chunks) = (share.blob, middle..share.left.end);
        share.left.end = middle;
        let job = Job::Piece {
            blob,
            chunks: chunks.clone(),
        };
        Some((self.begin(provider, &job), blob, chunks))
    }

    fn begin(&mut self, provider: NodeKey, job: &Job) -> Turn {
        let turn = Turn(self.turns);
        self.turns += 1;
        self.running += 1;
        if let Job::Piece { blob, chunks } = job {
            let share = Share {
                provider,
                blob: *blob,
                left: chunks.clone(),
            };
            self.shares.insert(turn, share);
        }
        turn
    }

    /// A piece has come up to this chunk; answers what of it is left.
    pub(crate) fn reached(&mut self, turn: Turn, chunk: u64) -> Range<u64> {
        let Some(share) = self.shares.get_mut(&turn) else {
            return chunk..chunk;
        };
        share.left.start = chunk.clamp(share.left.start, share.left.end);
        share.left.clone()
    }

    /// A piece of work is done.
    pub(crate) fn finished(&mut self, turn: Turn) {
        self.running -= 1;
        self.shares.remove(&turn);
    }

    /// Small files that did not come have to be brought by another, or what is left of a piece.
    pub(crate) fn give_back(&mut self, turn: Turn, files: Vec<(BlobDigest, u64)>) {
        self.running -= 1;
        self.jobs.push_front(match self.shares.remove(&turn) {
            Some(Share { blob, left, .. }) => Job::Piece { blob, chunks: left },
            None => Job::Pack(files),
        });
    }

    /// Whether one more worker would have something to do beside so many, who have one piece each.
    pub(crate) fn wants_more(&self, workers: usize) -> bool {
        self.jobs.len() + self.running > workers
    }

    pub(crate) fn is_done(&self) -> bool {
        self.jobs.is_empty() && self.running == 0
    }
}

/// Chunks of a large file that are asked for at once, where so many are missing.
fn piece_of(missing: u64) -> u64 {
    let piece = (missing / PIECES).clamp(PIECE_CHUNKS, LARGE_PIECE_CHUNKS);
    piece.next_multiple_of(PIECE_CHUNKS)
}

/// Makes the first pieces of different lengths, what they lose follows last: streams that begin together would else
/// come to their ends together, over and over, and leave a far link empty until the next pieces flow.
fn stagger(pieces: &mut Vec<Range<u64>>) {
    let streams = WORKERS_PER_FAR_PROVIDER;
    if pieces.len() <= streams {
        return;
    }
    let mut rest = vec![];
    for (number, piece) in (1..).zip(&mut pieces[..streams - 1]) {
        let length = (piece.end - piece.start) * number / streams as u64;
        let cut = (piece.start + length).next_multiple_of(GROUP);
        if cut < piece.end {
            rest.push(cut..piece.end);
            piece.end = cut;
        }
    }
    pieces.extend(rest);
}

/// Whether a file travels together with others.
pub(crate) fn is_small(size: u64) -> bool {
    size <= PACKED_BLOB
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: NodeKey = NodeKey([1; 32]);
    const BOB: NodeKey = NodeKey([2; 32]);

    fn blob(seed: u32) -> BlobDigest {
        BlobDigest::of(&seed.to_le_bytes())
    }

    fn up_to(end: u64) -> Vec<Range<u64>> {
        vec![Range { start: 0, end }]
    }

    fn pieces(plan: &mut Plan) -> Vec<Range<u64>> {
        let taken = std::iter::from_fn(|| plan.take(ANN));
        taken
            .map(|(_, job)| match job {
                Job::Piece { chunks, .. } => chunks,
                Job::Pack(files) => panic!("{files:?}"),
            })
            .collect()
    }

    #[test]
    fn small_files_travel_together_within_bounds() {
        let mut plan = Plan::default();
        let files: Vec<_> = (0..10_000)
            .map(|seed| (blob(seed), u64::from(seed % 64) * 1000))
            .collect();
        plan.add_small(files.clone());
        let mut seen = vec![];
        while let Some((turn, Job::Pack(pack))) = plan.take(ANN) {
            assert!(pack.len() <= BLOBS_BATCH);
            assert!(pack.iter().map(|(_, size)| size).sum::<u64>() <= PACK_BYTES);
            seen.extend(pack);
            plan.finished(turn);
        }
        assert_eq!(seen, files);
        assert!(plan.is_done());
    }

    #[test]
    fn a_large_file_is_cut_at_fixed_places() {
        let mut plan = Plan::default();
        let whole = PIECE_CHUNKS;
        let missing = [5..2 * whole + 1, 3 * whole..3 * whole + 7];
        assert_eq!(plan.add_large(blob(1), &missing), 4);
        assert_eq!(
            pieces(&mut plan),
            [
                5..whole,
                whole..2 * whole,
                2 * whole..2 * whole + 1,
                3 * whole..3 * whole + 7
            ]
        );
    }

    #[test]
    fn the_larger_a_file_the_larger_its_pieces_up_to_a_bound() {
        let cut = |chunks: u64| {
            let mut plan = Plan::default();
            let count = plan.add_large(blob(1), &up_to(chunks)) as u64;
            let mut pieces = pieces(&mut plan);
            assert_eq!(pieces.len() as u64, count);
            let largest = pieces.iter().map(|piece| piece.end - piece.start).max().unwrap();
            pieces.sort_by_key(|piece| piece.start);
            let next = pieces.iter().fold(0, |next, piece| {
                assert_eq!(piece.start, next);
                piece.end
            });
            assert_eq!(next, chunks);
            (count, largest)
        };
        let more = WORKERS_PER_FAR_PROVIDER as u64 - 1;
        assert_eq!(cut(PIECES * PIECE_CHUNKS), (PIECES + more, PIECE_CHUNKS));
        assert_eq!(
            cut(PIECES * PIECE_CHUNKS + PIECES),
            (PIECES / 2 + 1 + more, 2 * PIECE_CHUNKS)
        );
        assert_eq!(
            cut(3 * PIECES * LARGE_PIECE_CHUNKS),
            (3 * PIECES + more, LARGE_PIECE_CHUNKS)
        );
    }

    #[test]
    fn streams_that_begin_together_do_not_come_to_their_ends_together() {
        let mut plan = Plan::default();
        plan.add_large(blob(1), &up_to(PIECES * PIECE_CHUNKS));
        let pieces = pieces(&mut plan);
        let first = &pieces[..WORKERS_PER_FAR_PROVIDER];
        let lengths: Vec<u64> = first.iter().map(|piece| piece.end - piece.start).collect();
        assert!(
            lengths.is_sorted_by(|one, next| one + GROUP <= *next),
            "{lengths:?}"
        );
    }

    #[test]
    fn work_given_back_is_done_by_another_and_nothing_ends_before() {
        let mut plan = Plan::default();
        plan.add_small([(blob(1), 1), (blob(2), 1)]);
        let (turn, _) = plan.take(ANN).unwrap();
        assert!(plan.take(BOB).is_none());
        assert!(!plan.is_done(), "it may come back");
        plan.give_back(turn, vec![(blob(2), 1)]);
        let (turn, job) = plan.take(BOB).unwrap();
        assert_eq!(job, Job::Pack(vec![(blob(2), 1)]));
        plan.finished(turn);
        assert!(plan.is_done());
    }

    #[test]
    fn who_has_nothing_to_do_takes_half_of_what_a_slower_one_has_left() {
        let mut plan = Plan::default();
        plan.add_large(blob(1), &up_to(PIECE_CHUNKS));
        let speed = |of: f64| move |provider| if provider == ANN { 10.0 } else { of };
        let (ann, _) = plan.take(ANN).unwrap();
        assert_eq!(plan.reached(ann, 100), 100..PIECE_CHUNKS);
        assert!(plan.share(BOB, speed(9.0)).is_none(), "bob is slower");
        assert!(plan.share(ANN, speed(9.0)).is_none(), "that is ann's own");
        let middle = (100 + (PIECE_CHUNKS - 100) / 2).next_multiple_of(GROUP);
        let (bob, _, chunks) = plan.share(BOB, speed(10.0)).unwrap();
        assert_eq!(chunks, middle..PIECE_CHUNKS);
        // Ann is told, whatever she has brought meanwhile; and what bob fails to bring is there again.
        assert_eq!(plan.reached(ann, 200), 200..middle);
        assert_eq!(plan.reached(bob, middle + 50), middle + 50..PIECE_CHUNKS);
        plan.give_back(bob, vec![]);
        assert_eq!(plan.reached(ann, middle + 1000), middle..middle);
        plan.finished(ann);
        assert!(!plan.is_done());
        assert_eq!(pieces(&mut plan).pop(), Some(middle + 50..PIECE_CHUNKS));
    }

    #[test]
    fn there_are_no_more_workers_than_pieces() {
        let mut plan = Plan::default();
        assert!(!plan.wants_more(0));
        plan.add_large(blob(1), &up_to(3 * PIECE_CHUNKS));
        assert!(plan.wants_more(2) && !plan.wants_more(3));
        let (turn, _) = plan.take(ANN).unwrap();
        assert!(plan.wants_more(2), "who took it is one of the two");
        plan.finished(turn);
        assert!(!plan.wants_more(2));
    }

    #[test]
    fn little_is_not_shared() {
        let mut plan = Plan::default();
        plan.add_large(blob(1), &up_to(2 * LEAST_SHARE));
        let (ann, _) = plan.take(ANN).unwrap();
        plan.reached(ann, 1);
        assert!(plan.share(BOB, |_| 1.0).is_none());
        let mut plan = Plan::default();
        plan.add_small([(blob(1), 1 << 20)]);
        plan.take(ANN).unwrap();
        assert!(plan.share(BOB, |_| 1.0).is_none());
    }
}
