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
    /// How long it has been waited for before this node itself was.
    waited: Duration,
    /// Whether it has brought anything.
    brought: bool,
}

impl Seen {
    /// For the provider, from now on.
    fn waiting(brought: bool) -> Self {
        Self {
            waits_since: Some(Instant::now()),
            waited: Duration::ZERO,
            brought,
        }
    }
}

impl Signs {
    pub(crate) fn new() -> Self {
        Self::of(None)
    }

    fn of(rhythm: Option<Rhythm>) -> Self {
        Self {
            seen: Arc::new(Mutex::new(Seen::waiting(false))),
            rhythm,
        }
    }

    /// From now on the provider is waited for, if it is not already: to be asked, and to find what it has, is part of it.
    pub(crate) fn waits(&self) {
        let mut seen = lock(&self.seen);
        if seen.waits_since.is_none() {
            let now = Instant::now();
            let waited = std::mem::take(&mut seen.waited);
            seen.waits_since = Some(now.checked_sub(waited).unwrap_or(now));
        }
    }

    /// It is going to be asked, together with others, when it has been asked for something else, or brings that now. That is no
    /// fault of its.
    pub(crate) fn queued(&self) {
        *lock(&self.seen) = Seen::waiting(true);
    }

    /// It is asked now, whatever was before.
    pub(crate) fn asked(&self) {
        *lock(&self.seen) = Seen::waiting(false);
    }

    /// It is this node that is waited for, until the provider is again: see [`Signs::waits`].
    pub(crate) fn rests(&self) {
        let mut seen = lock(&self.seen);
        if let Some(since) = seen.waits_since.take() {
            seen.waited = since.elapsed();
        }
    }

    /// It has brought something, which this node is busy with now.
    pub(crate) fn came(&self) {
        let mut seen = lock(&self.seen);
        if let (Some(since), Some(rhythm)) = (seen.waits_since.take(), &self.rhythm) {
            rhythm.waited(since.elapsed());
        }
        seen.waited = Duration::ZERO;
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
#[path = "plan_tests.rs"]
mod tests;
