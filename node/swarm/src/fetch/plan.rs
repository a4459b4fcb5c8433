//! What is still to be fetched of a tree, in pieces of work that any provider can do.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::BLOBS_BATCH;
use tvix_node_protocol::tree::BlobDigest;

use crate::core::lock;
use crate::limits::{
    HEDGE_SILENCE, LARGE_PIECE_CHUNKS, LEAST_SHARE, LEAST_SILENCE, PACK_BYTES, PACKED_BLOB, PIECE_CHUNKS,
    PIECES, WORKERS_PER_FAR_PROVIDER,
};
use crate::protocols::outboard::BLOCK;

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

/// The longest that a provider was waited for until something came, in one fetch. None: nothing has come.
#[derive(Debug, Clone, Default)]
struct Rhythm(Arc<Mutex<Option<Duration>>>);

impl Rhythm {
    fn waited(&self, time: Duration) {
        let mut longest = lock(&self.0);
        *longest = (*longest).max(Some(time));
    }

    /// How long it may be waited for until it counts as silent.
    fn patience(&self) -> Duration {
        lock(&self.0).map_or(HEDGE_SILENCE, |longest| {
            (2 * longest).clamp(LEAST_SILENCE, HEDGE_SILENCE)
        })
    }
}

/// Whether a provider gives signs of life.
#[derive(Debug, Clone)]
pub(crate) struct Signs {
    seen: Arc<Mutex<Seen>>,
    /// None: it is waited for as long as anybody of whom nothing is known.
    rhythm: Option<Rhythm>,
}

#[derive(Debug)]
struct Seen {
    /// Since when it is waited for; nothing while this node itself is what is waited for.
    waits_since: Option<Instant>,
    /// Whether it has brought anything.
    brought: bool,
}

impl Signs {
    pub(crate) fn new() -> Self {
        Self::of(None)
    }

    fn of(rhythm: Option<Rhythm>) -> Self {
        let seen = Seen {
            waits_since: Some(Instant::now()),
            brought: false,
        };
        Self {
            seen: Arc::new(Mutex::new(seen)),
            rhythm,
        }
    }

    /// From now on the provider is waited for, if it is not already: to be asked, and to find what it has, is part of it.
    pub(crate) fn waits(&self) {
        lock(&self.seen).waits_since.get_or_insert_with(Instant::now);
    }

    /// It has brought something, which this node is busy with now.
    pub(crate) fn came(&self) {
        let mut seen = lock(&self.seen);
        if let (Some(since), Some(rhythm)) = (seen.waits_since.take(), &self.rhythm) {
            rhythm.waited(since.elapsed());
        }
        seen.brought = true;
    }

    /// Whether it has brought anything: who does so now and then is slow, and not gone.
    pub(crate) fn has_brought(&self) -> bool {
        lock(&self.seen).brought
    }

    fn patience(&self) -> Duration {
        self.rhythm.as_ref().map_or(HEDGE_SILENCE, Rhythm::patience)
    }

    fn is_silent_for(&self, now: Instant, time: Duration) -> bool {
        let since = lock(&self.seen).waits_since;
        since.is_some_and(|since| now.duration_since(since) >= time)
    }

    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.is_silent_for(now, self.patience())
    }

    /// Whether it is silent for so long that it may be gone, whatever it did before.
    pub(crate) fn is_silent_for_long(&self, now: Instant) -> bool {
        self.is_silent_for(now, HEDGE_SILENCE)
    }

    /// When it will be silent if nothing comes from now on.
    fn silent_at(&self, now: Instant) -> Instant {
        lock(&self.seen).waits_since.unwrap_or(now) + self.patience()
    }
}

/// A piece of work that a provider does: what of it is still to come.
#[derive(Debug)]
struct Running {
    provider: NodeKey,
    left: Job,
    signs: Signs,
    /// Who had it before, and fell silent.
    tried: Vec<NodeKey>,
}

impl Job {
    fn is_empty(&self) -> bool {
        match self {
            Self::Pack(files) => files.is_empty(),
            Self::Piece { chunks, .. } => chunks.is_empty(),
        }
    }
}

/// The work that is left.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    jobs: VecDeque<Job>,
    turns: u64,
    running: HashMap<Turn, Running>,
    rhythms: HashMap<NodeKey, Rhythm>,
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

    /// Cuts what is missing of a large file; answers how many pieces that makes. They are in order, so that its beginning comes
    /// first. Of many the first ones are of different lengths: streams that begin together would else come to their ends
    /// together, over and over, and leave a far link empty until the next pieces flow. The last ones are short, so that the
    /// streams end together.
    pub(crate) fn add_large(&mut self, blob: BlobDigest, missing: &[Range<u64>]) -> usize {
        let mut left = missing.iter().map(|range| range.end - range.start).sum();
        let piece = piece_of(left);
        let streams = WORKERS_PER_FAR_PROVIDER as u64;
        let (share, are_many) = (piece / streams, left > piece * streams);
        let mut pieces = vec![];
        for range in missing {
            let mut start = range.start;
            while start < range.end {
                let shares = match are_many {
                    true if left <= piece => 1,
                    true => streams.min(pieces.len() as u64 + 1),
                    false => streams,
                };
                // At fixed places, whatever came before a break.
                let end = ((start + shares * share) / share * share).min(range.end);
                pieces.push(start..end);
                left -= end - start;
                start = end;
            }
        }
        let count = pieces.len();
        self.jobs
            .extend(pieces.into_iter().map(|chunks| Job::Piece { blob, chunks }));
        count
    }

    /// The next piece of work, for this provider.
    pub(crate) fn take(&mut self, provider: NodeKey) -> Option<(Turn, Job)> {
        let job = self.jobs.pop_front()?;
        Some((self.begin(provider, job.clone(), Vec::new()), job))
    }

    /// Where there is no other work: what one who has fallen silent still has to bring. If that one brings it all the
    /// same, it has come in vain; whoever is first with it here has it, which a silent one is not.
    pub(crate) fn hedge(&mut self, provider: NodeKey, now: Instant) -> Option<(Turn, Job)> {
        let turn = self.stuck_for(provider, now)?;
        let Running {
            provider: silent,
            left,
            mut tried,
            ..
        } = self.running.remove(&turn)?;
        tried.push(silent);
        Some((self.begin(provider, left.clone(), tried), left))
    }

    /// What somebody has fallen silent over and this provider could bring. Who had it before, and was too slow, may have it again
    /// where the next one may be gone.
    fn stuck_for(&self, provider: NodeKey, now: Instant) -> Option<Turn> {
        let may = |running: &Running| {
            let again = running.provider != provider && running.signs.is_silent_for_long(now);
            running.is_stuck(now) && (again || !running.was_with(provider))
        };
        let found = self.running.iter().find(|(_, running)| may(running));
        found.map(|(turn, _)| *turn)
    }

    /// Whether a provider with nothing to do would get something now.
    pub(crate) fn has_work(&self, provider: NodeKey, speed: impl Fn(NodeKey) -> f64, now: Instant) -> bool {
        !self.jobs.is_empty()
            || self.worth_sharing(provider, speed).is_some()
            || self.stuck_for(provider, now).is_some()
    }

    /// Whether somebody has fallen silent, and none of these providers can bring what it should.
    pub(crate) fn wants_another(
        &self,
        now: Instant,
        providers: impl Iterator<Item = NodeKey> + Clone,
    ) -> bool {
        let mut stuck = self.running.values().filter(|running| running.is_stuck(now));
        stuck.any(|running| providers.clone().all(|provider| running.was_with(provider)))
    }

    /// How long until somebody falls silent at the earliest, of those who are not.
    pub(crate) fn next_silence(&self, now: Instant) -> Option<Duration> {
        let running = self.running.values().filter(|running| !running.is_stuck(now));
        let silent = running.map(|running| running.signs.silent_at(now).saturating_duration_since(now));
        silent.min()
    }

    /// The signs of life of who does this piece of work.
    pub(crate) fn signs(&self, turn: Turn) -> Signs {
        let running = self.running.get(&turn);
        running.map_or_else(Signs::new, |running| running.signs.clone())
    }

    /// Whether this piece of work is of no use any more: all is done, or another one does it and there is other work.
    pub(crate) fn is_released(&self, turn: Turn) -> bool {
        self.is_done() || !self.running.contains_key(&turn) && !self.jobs.is_empty()
    }

    /// Where there is no other work: the second half of what a provider that is not faster still has to bring of a
    /// piece. It is one piece more of its file.
    pub(crate) fn share(
        &mut self,
        provider: NodeKey,
        speed: impl Fn(NodeKey) -> f64,
    ) -> Option<(Turn, BlobDigest, Range<u64>)> {
        let turn = self.worth_sharing(provider, speed)?;
        let Job::Piece { blob, chunks: left } = &mut self.running.get_mut(&turn)?.left else {
            return None;
        };
        let blob = *blob;
        let middle = (left.start + (left.end - left.start) / 2).next_multiple_of(GROUP);
        let chunks = middle..left.end;
        left.end = middle;
        let job = Job::Piece {
            blob,
            chunks: chunks.clone(),
        };
        Some((self.begin(provider, job, Vec::new()), blob, chunks))
    }

    /// The piece of which most is left, of those that a provider that is not faster brings and that are worth sharing.
    fn worth_sharing(&self, provider: NodeKey, speed: impl Fn(NodeKey) -> f64) -> Option<Turn> {
        let own = speed(provider);
        let left = |running: &Running| match &running.left {
            Job::Piece { chunks, .. } => chunks.end.saturating_sub(chunks.start),
            Job::Pack(_) => 0,
        };
        let slower = |running: &Running| {
            running.provider != provider
                && own > 0.0
                && speed(running.provider) <= own
                && left(running) >= 2 * LEAST_SHARE
        };
        let slower = self.running.iter().filter(|(_, running)| slower(running));
        slower
            .max_by_key(|(_, running)| left(running))
            .map(|(turn, _)| *turn)
    }

    fn begin(&mut self, provider: NodeKey, left: Job, tried: Vec<NodeKey>) -> Turn {
        let turn = Turn(self.turns);
        self.turns += 1;
        let running = Running {
            provider,
            left,
            signs: Signs::of(Some(self.rhythms.entry(provider).or_default().clone())),
            tried,
        };
        self.running.insert(turn, running);
        turn
    }

    /// A piece has come up to this chunk; answers what of it is left, and nothing where another one brings it by now.
    pub(crate) fn reached(&mut self, turn: Turn, chunk: u64) -> Option<Range<u64>> {
        let Job::Piece { chunks, .. } = &mut self.running.get_mut(&turn)?.left else {
            return None;
        };
        chunks.start = chunk.clamp(chunks.start, chunks.end);
        Some(chunks.clone())
    }

    /// So many more small files have come, in order; false where another one brings them by now.
    pub(crate) fn brought(&mut self, turn: Turn, count: usize) -> bool {
        let Some(running) = self.running.get_mut(&turn) else {
            return false;
        };
        if let Job::Pack(files) = &mut running.left {
            files.drain(..count.min(files.len()));
        }
        true
    }

    /// A piece of work is done.
    pub(crate) fn finished(&mut self, turn: Turn) {
        self.running.remove(&turn);
    }

    /// What is left of a piece of work has to be brought by another, if none does so by now.
    pub(crate) fn give_back(&mut self, turn: Turn) {
        if let Some(running) = self.running.remove(&turn) {
            self.jobs.push_front(running.left);
        }
    }

    /// Whether one more worker would have something to do beside so many, who have one piece each.
    pub(crate) fn wants_more(&self, workers: usize) -> bool {
        self.jobs.len() + self.running.len() > workers
    }

    pub(crate) fn is_done(&self) -> bool {
        self.jobs.is_empty() && self.running.is_empty()
    }
}

impl Running {
    fn is_stuck(&self, now: Instant) -> bool {
        !self.left.is_empty() && self.signs.is_silent(now)
    }

    fn was_with(&self, provider: NodeKey) -> bool {
        self.provider == provider || self.tried.contains(&provider)
    }
}

/// Chunks of a large file that are asked for at once, where so many are missing.
fn piece_of(missing: u64) -> u64 {
    let piece = (missing / PIECES).clamp(PIECE_CHUNKS, LARGE_PIECE_CHUNKS);
    piece.next_multiple_of(PIECE_CHUNKS)
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
        let cuts = |chunks: u64, of: u64, largest: u64| {
            let (count, found) = cut(chunks);
            assert_eq!(found, largest);
            let streams = WORKERS_PER_FAR_PROVIDER as u64;
            assert!((of..of + 2 * streams).contains(&count), "{count} of {of}");
        };
        cuts(PIECES * PIECE_CHUNKS, PIECES, PIECE_CHUNKS);
        cuts(PIECES * PIECE_CHUNKS + PIECES, PIECES / 2 + 1, 2 * PIECE_CHUNKS);
        cuts(3 * PIECES * LARGE_PIECE_CHUNKS, 3 * PIECES, LARGE_PIECE_CHUNKS);
    }

    /// Who reads a file while it comes has as much of it as can be.
    #[test]
    fn the_beginning_of_a_file_is_never_more_than_a_piece_for_each_stream_behind() {
        for streams in [1, 2, WORKERS_PER_FAR_PROVIDER] {
            for count in [3, PIECES, 3 * PIECES] {
                let mut plan = Plan::default();
                let (size, piece) = (count * LARGE_PIECE_CHUNKS, piece_of(count * LARGE_PIECE_CHUNKS));
                plan.add_large(blob(1), &up_to(size));
                let mut waiting: VecDeque<_> = pieces(&mut plan).into();
                let mut running: Vec<Range<u64>> = vec![];
                let mut came = 0;
                loop {
                    running.retain(|piece| !piece.is_empty());
                    let free = streams - running.len();
                    running.extend(waiting.drain(..free.min(waiting.len())));
                    let next = running.iter().chain(&waiting).map(|piece| piece.start).min();
                    let Some(beginning) = next else {
                        break;
                    };
                    assert!(
                        came - beginning <= (streams as u64 - 1) * piece,
                        "{came} of {size}, {beginning}"
                    );
                    for piece in &mut running {
                        let step = GROUP.min(piece.end - piece.start);
                        piece.start += step;
                        came += step;
                    }
                }
                assert_eq!(came, size);
            }
        }
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
        assert!(plan.brought(turn, 1));
        plan.give_back(turn);
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
        assert_eq!(plan.reached(ann, 100), Some(100..PIECE_CHUNKS));
        assert!(plan.share(BOB, speed(9.0)).is_none(), "bob is slower");
        assert!(plan.share(ANN, speed(9.0)).is_none(), "that is ann's own");
        let middle = (100 + (PIECE_CHUNKS - 100) / 2).next_multiple_of(GROUP);
        let (bob, _, chunks) = plan.share(BOB, speed(10.0)).unwrap();
        assert_eq!(chunks, middle..PIECE_CHUNKS);
        // Ann is told, whatever she has brought meanwhile; and what bob fails to bring is there again.
        assert_eq!(plan.reached(ann, 200), Some(200..middle));
        assert_eq!(plan.reached(bob, middle + 50), Some(middle + 50..PIECE_CHUNKS));
        plan.give_back(bob);
        assert_eq!(plan.reached(ann, middle + 1000), Some(middle..middle));
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
    fn what_a_silent_one_has_left_is_brought_by_another_once_each() {
        let mut plan = Plan::default();
        plan.add_large(blob(1), &up_to(PIECE_CHUNKS));
        plan.add_small([(blob(2), 1), (blob(3), 1)]);
        let (piece, _) = plan.take(ANN).unwrap();
        let (pack, _) = plan.take(ANN).unwrap();
        assert_eq!(plan.reached(piece, 100), Some(100..PIECE_CHUNKS));
        assert!(plan.brought(pack, 1));
        let now = Instant::now();
        let later = now + 2 * HEDGE_SILENCE;
        let both = || [ANN, BOB].into_iter();
        assert!(plan.hedge(BOB, now).is_none(), "nobody is silent");
        assert!(!plan.wants_another(now, [ANN].into_iter()));
        assert!(plan.wants_another(later, [ANN].into_iter()) && !plan.wants_another(later, both()));
        assert!(plan.hedge(ANN, later).is_none(), "it is ann who is silent");
        let taken = [(); 2].map(|()| plan.hedge(BOB, later).unwrap());
        let expected = [
            Job::Pack(vec![(blob(3), 1)]),
            Job::Piece {
                blob: blob(1),
                chunks: 100..PIECE_CHUNKS,
            },
        ];
        assert!(
            expected
                .iter()
                .all(|job| taken.iter().any(|(_, taken)| taken == job)),
            "{taken:?}"
        );
        // Ann wakes up in vain.
        assert_eq!(plan.reached(piece, 200), None);
        assert!(!plan.brought(pack, 1));
        plan.finished(piece);
        plan.give_back(pack);
        assert!(!plan.is_done() && plan.jobs.is_empty() && !plan.is_released(piece));
        let again = later + 2 * HEDGE_SILENCE;
        assert!(plan.hedge(BOB, again).is_none(), "bob is at it");
        assert!(plan.wants_another(again, both()));
        let cat = NodeKey([3; 32]);
        let (last, _) = plan.hedge(cat, again).unwrap();
        plan.finished(last);
        let (last, _) = plan.hedge(cat, again).unwrap();
        plan.give_back(last);
        assert!(plan.is_released(piece), "there is other work");
        let (last, _) = plan.take(BOB).unwrap();
        plan.finished(last);
        assert!(plan.is_done() && plan.is_released(pack));
    }

    #[test]
    fn who_waits_for_this_node_itself_is_not_silent() {
        let mut plan = Plan::default();
        plan.add_small([(blob(1), 1)]);
        let (turn, _) = plan.take(ANN).unwrap();
        let later = Instant::now() + 2 * HEDGE_SILENCE;
        let signs = plan.signs(turn);
        assert!(!signs.has_brought());
        signs.came();
        assert!(plan.hedge(BOB, later).is_none());
        signs.waits();
        assert!(signs.has_brought(), "it is slow, and not gone");
        assert!(plan.hedge(BOB, later + HEDGE_SILENCE).is_some());
    }

    /// A laptop that is closed in the middle of a transfer.
    #[test]
    fn who_has_brought_something_at_once_is_silent_soon() {
        let mut plan = Plan::default();
        plan.add_large(blob(1), &up_to(3 * PIECE_CHUNKS));
        let turns = [(); 3].map(|()| plan.take(ANN).unwrap().0);
        let begun = Instant::now();
        assert!(
            plan.next_silence(begun).unwrap() > LEAST_SILENCE,
            "nothing has come"
        );
        let signs = plan.signs(turns[0]);
        signs.came();
        let now = Instant::now();
        // As long as this machine took for these lines, twice.
        let soon = now + plan.rhythms[&ANN].patience();
        assert!(plan.hedge(BOB, soon).is_some());
        assert!(plan.hedge(BOB, soon).is_some());
        assert!(plan.hedge(BOB, soon).is_none(), "what came is dealt with");
        plan.finished(turns[0]);
    }

    #[test]
    fn to_be_asked_is_part_of_the_waiting() {
        let mut plan = Plan::default();
        plan.add_small([(blob(1), 1)]);
        let (turn, _) = plan.take(ANN).unwrap();
        let signs = plan.signs(turn);
        std::thread::sleep(Duration::from_millis(5));
        signs.waits();
        signs.came();
        let longest = *lock(&plan.rhythms[&ANN].0);
        assert!(longest >= Some(Duration::from_millis(5)), "{longest:?}");
    }

    #[test]
    fn who_was_too_slow_may_have_it_again_where_the_next_one_may_be_gone() {
        let mut plan = Plan::default();
        plan.add_large(blob(1), &up_to(PIECE_CHUNKS));
        let (first, _) = plan.take(ANN).unwrap();
        plan.signs(first).came();
        plan.signs(first).waits();
        let soon = Instant::now() + plan.rhythms[&ANN].patience();
        let (second, _) = plan.hedge(BOB, soon).unwrap();
        let signs = plan.signs(second);
        signs.came();
        signs.waits();
        let (now, patience) = (Instant::now(), plan.rhythms[&BOB].patience());
        if patience < HEDGE_SILENCE {
            assert!(plan.hedge(ANN, now + patience).is_none(), "ann had it");
        }
        assert!(plan.has_work(ANN, |_| 0.0, now + HEDGE_SILENCE));
        assert!(plan.hedge(ANN, now + HEDGE_SILENCE).is_some());
    }

    #[test]
    fn who_takes_its_time_is_waited_for_accordingly_within_bounds() {
        let rhythm = Rhythm::default();
        assert_eq!(rhythm.patience(), HEDGE_SILENCE);
        let waited = |milliseconds| {
            rhythm.waited(Duration::from_millis(milliseconds));
            rhythm.patience()
        };
        assert_eq!(waited(1), LEAST_SILENCE);
        assert_eq!(waited(300), Duration::from_millis(600));
        assert_eq!(waited(20), Duration::from_millis(600), "it may be so slow again");
        assert_eq!(waited(5000), HEDGE_SILENCE);
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
