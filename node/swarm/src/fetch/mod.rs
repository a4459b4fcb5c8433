//! Fetching a tree from those who have it.
//!
//! Directories come first, from one provider; then files, from several at once: small ones together,
//! large ones in pieces. Everything is verified as it comes. A provider that breaks off is replaced and
//! what it brought is kept; one that lies is cut at the first group of 16 KiB that is wrong, and asked
//! last from then on. What has arrived lies in a folder until the store has taken it, so a fetch that
//! breaks off goes on where it was. Small trees come as a whole, many at a time, and are verified when they are here.

mod arrival;
mod growing;
mod large;
mod plan;
mod progress;
mod provider;
mod small;
mod small_trees;
mod tidy;
mod walk;

pub use arrival::{Arrival, ArrivedBlob, SpoolError, copy_blob};
pub use growing::GrowingBlob;
pub use progress::{FetchOrder, FetchProgress};
pub use provider::ProviderError;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures::future::{Either, select};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::ServeAnswer;
use tvix_node_protocol::tree::{BlobDigest, TreeDigest};
use tvix_node_protocol::walk::Files;

use crate::core::{Core, Lost, blocking, lock};
use crate::limits::{
    BUSY_PAUSE, BUSY_TRIES, CONTENT_STREAMS_PER_PEER, LEAST_LOOK, PROVIDERS_AT_ONCE, ROUND_TRIP_PER_WORKER,
    SHARE_LOOK, SHARES, SMALL_TREE, SMALL_TREE_FILES, WORKERS_PER_FAR_PROVIDER, WORKERS_PER_PROVIDER,
};
use crate::line::Rising;
use crate::machine::{FetchPlace, FetchPlaces};
use crate::places::Lines;
use crate::room::Room;
use crate::shelf::ShelfError;
use arrival::{Coming, Kind, PackRoom};
use large::LargeFile;
use plan::{Job, Plan, Signs, Turn, is_small};
use progress::{Brought, Report};
use small_trees::Askings;

/// Why a tree could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody was named.
    #[error("nobody is known who has the tree {0}")]
    NoProvider(TreeDigest),
    /// Nobody brought it.
    #[error("the tree {root} could not be fetched from anyone: {}", list(.failures))]
    Failed {
        /// What was wanted.
        root: TreeDigest,
        /// Who failed, and how.
        failures: Vec<(NodeKey, ProviderError)>,
    },
    /// More than it may be.
    #[error("the tree {root} has {size} bytes that are not here yet, more than the {limit} expected")]
    TooLarge {
        /// What was wanted.
        root: TreeDigest,
        /// Its size.
        size: u64,
        /// What was allowed.
        limit: u64,
    },
    /// It comes too slowly for others who wait.
    #[error("the tree {0} came so slowly that it had to give way to what others wait for")]
    TooSlow(TreeDigest),
    /// What came could not be kept.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The store could not say what it has.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// The node is shutting down.
    #[error(transparent)]
    Lost(#[from] Lost),
}

fn list(failures: &[(NodeKey, ProviderError)]) -> String {
    // Several streams to one provider mostly end for the same reason.
    let mut each: Vec<String> = Vec::new();
    for (peer, error) in failures {
        let text = format!("{peer}: {error}");
        if !each.contains(&text) {
            each.push(text);
        }
    }
    each.join("; ")
}

/// Fetches that are going on.
#[derive(Debug)]
pub(crate) struct Fetching {
    spool: PathBuf,
    /// Room for what need not go through it.
    packs: Arc<PackRoom>,
    running: Mutex<HashMap<TreeDigest, Weak<tokio::sync::Mutex<()>>>>,
    places: FetchPlaces,
    /// Room for directories and small trees that come.
    coming: Arc<Room>,
    /// Streams that bring content, of each provider.
    pub(crate) streams: Lines,
    /// What each provider is asked for together with other things.
    pub(crate) asking: Askings,
}

impl Fetching {
    /// `places`: for so many trees at once. `coming`: room for their directories, and for small ones.
    pub(crate) fn new(spool: PathBuf, places: FetchPlaces, coming: Arc<Room>) -> Self {
        Self {
            spool,
            packs: Arc::default(),
            running: Mutex::default(),
            places,
            coming,
            streams: Lines::in_line(CONTENT_STREAMS_PER_PEER * SHARES as usize),
            asking: small_trees::askings(),
        }
    }

    /// The folder in which trees arrive.
    pub(crate) fn spool(&self) -> &Path {
        &self.spool
    }

    /// Waits until nobody else fetches or holds this tree.
    async fn alone(&self, root: TreeDigest) -> tokio::sync::OwnedMutexGuard<()> {
        self.turn(root).lock_owned().await
    }

    /// Held by whoever fetches or holds this tree.
    fn turn(&self, root: TreeDigest) -> Arc<tokio::sync::Mutex<()>> {
        let mut running = lock(&self.running);
        running.retain(|_, turn| turn.strong_count() > 0);
        match running.get(&root).and_then(Weak::upgrade) {
            Some(turn) => turn,
            None => {
                let turn = Arc::new(tokio::sync::Mutex::new(()));
                running.insert(root, Arc::downgrade(&turn));
                turn
            }
        }
    }
}

/// What a provider says before it sends.
pub(crate) fn coming(answer: ServeAnswer) -> Result<(), ProviderError> {
    match answer {
        ServeAnswer::Coming => Ok(()),
        ServeAnswer::NotHere => Err(ProviderError::NotThere),
        ServeAnswer::Busy => Err(ProviderError::Busy),
        ServeAnswer::Broken => Err(ProviderError::Broken),
    }
}

/// A tree whose directories have come, so that it is known which files are to come.
struct Begun {
    arrival: Arc<Arrival>,
    coming: Coming,
    missing: Vec<(BlobDigest, u64)>,
    providers: VecDeque<NodeKey>,
    failures: Vec<(NodeKey, ProviderError)>,
    report: Report,
    place: FetchPlace,
    priority: Rising,
}

async fn begin(core: &Arc<Core>, order: FetchOrder) -> Result<Begun, FetchError> {
    let FetchOrder {
        root,
        providers,
        max_bytes,
        whole,
        progress,
        for_another,
        priority,
    } = order;
    let report = Report::new(progress);
    if providers.is_empty() {
        return Err(FetchError::NoProvider(root));
    }
    let alone = core.fetching.alone(root).await;
    let first = for_another.then(|| providers[0]);
    // Places are never taken away.
    let place = core
        .fetching
        .places
        .enter(
            first,
            &priority,
            shares(max_bytes.is_some_and(|most| most <= SMALL_TREE)),
        )
        .await
        .ok_or(FetchError::NoProvider(root))?;
    let (spool, room) = (core.fetching.spool.clone(), Arc::clone(&core.fetching.packs));
    let arrival = match Arrival::has_come_before(&spool, root) {
        true => blocking(move || Arrival::open(&spool, root, &room, alone)).await??,
        false => Arrival::new(&spool, root, &room, alone),
    };
    let arrival = Arc::new(arrival);
    let mut failures = vec![];
    let mut providers = VecDeque::from(providers);
    let walk = walk::first(
        core,
        (&arrival, &report),
        (max_bytes, &priority),
        (&mut providers, &mut failures),
    );
    let files = tokio::select! {
        files = walk => files,
        () = place.outstayed(&core.throttles.download, || report.moved()) => return Err(FetchError::TooSlow(root)),
    };
    let Some(files) = files else {
        return Err(FetchError::Failed { root, failures });
    };
    let missing = missing(core, &arrival, files, whole).await?;
    let size = missing.iter().map(|(_, size)| size).sum();
    if let Some(limit) = max_bytes
        && size > limit
    {
        return Err(FetchError::TooLarge { root, size, limit });
    }
    let coming = arrival.expect(missing.iter().map(|(blob, _)| *blob));
    Ok(Begun {
        arrival,
        coming,
        missing,
        providers,
        failures,
        report,
        place,
        priority,
    })
}

impl Begun {
    async fn finish(self, core: &Arc<Core>) -> Result<(), FetchError> {
        let (who, report) = ((self.providers, self.failures), Arc::new(self.report));
        let moved = || report.moved();
        let fetched = tokio::select! {
            fetched = fetch_files(core, (&self.arrival, self.priority.clone()), self.missing, who, report.clone()) => fetched,
            () = self.place.outstayed(&core.throttles.download, moved) => Err(FetchError::TooSlow(self.arrival.root())),
        };
        drop((self.coming, self.place));
        fetched
    }
}

/// Fetches a tree, as far as its files are not here yet.
pub(crate) async fn fetch_tree(core: &Arc<Core>, order: FetchOrder) -> Result<Arc<Arrival>, FetchError> {
    let begun = begin(core, order).await?;
    let arrival = begun.arrival.clone();
    begun.finish(core).await?;
    Ok(arrival)
}

/// As [`fetch_tree`], while somebody takes what arrives.
pub(crate) async fn fetch_while<T, E, F>(
    core: &Arc<Core>,
    order: FetchOrder,
    take: impl FnOnce(Arc<Arrival>) -> F,
) -> Result<Result<T, E>, FetchError>
where
    F: Future<Output = Result<T, E>>,
{
    let begun = begin(core, order).await?;
    let taking = pin!(take(begun.arrival.clone()));
    let fetching = pin!(begun.finish(core));
    match select(fetching, taking).await {
        Either::Left((Ok(()), taking)) => Ok(taking.await),
        // Who takes is told that no more comes; what had come may be enough.
        Either::Left((Err(failed), taking)) => taking.await.map(Ok).map_err(|_| failed),
        Either::Right((Ok(taken), fetching)) => {
            // Streams that are no longer needed come to their ends.
            if let Err(error) = fetching.await {
                tracing::debug!(%error, "a fetch failed after everything had come");
            }
            Ok(Ok(taken))
        }
        Either::Right((Err(error), _)) => Ok(Err(error)),
    }
}

/// Files that are neither in the store (unless they are wanted all the same) nor in the arrival, with
/// their sizes, in the order in which a store writes them.
async fn missing(
    core: &Arc<Core>,
    arrival: &Arc<Arrival>,
    files: Files,
    whole: bool,
) -> Result<Vec<(BlobDigest, u64)>, FetchError> {
    // As with a small tree, mostly.
    if files.keys().all(|blob| arrival.has(Kind::File, blob.0)) {
        return Ok(Vec::new());
    }
    let arrival = arrival.clone();
    let missing = core.ask_shelf(move |shelf| {
        let wanted = walk::in_order(&arrival, files).map_err(ShelfError::new)?;
        let blobs: Vec<BlobDigest> = wanted.iter().map(|(blob, _)| *blob).collect();
        let here = shelf.has_blobs(&blobs)?;
        let mut missing = vec![];
        for ((blob, size), here) in wanted.into_iter().zip(here) {
            if (here && !whole) || arrival.has(Kind::File, blob.0) {
                continue;
            }
            if !is_small(size) && arrival.completed_before(blob).map_err(ShelfError::new)? {
                continue;
            }
            missing.push((blob, size));
        }
        Ok(missing)
    });
    Ok(missing.await?)
}

/// Shares of a place that a tree takes, or a stream with its files.
fn shares(is_small: bool) -> u32 {
    if is_small { 1 } else { SHARES }
}

/// What the workers of one fetch share.
struct Work {
    /// Of a provider's place, that a stream takes.
    shares: u32,
    /// Which streams go first.
    priority: Rising,
    core: Arc<Core>,
    arrival: Arc<Arrival>,
    plan: Mutex<Plan>,
    report: Arc<Report>,
    large: HashMap<BlobDigest, Arc<LargeFile>>,
    /// Providers that are asked for nothing more.
    cut: Mutex<HashSet<NodeKey>>,
    /// Something was given back, or all is done.
    changed: Notify,
}

async fn fetch_files(
    core: &Arc<Core>,
    (arrival, priority): (&Arc<Arrival>, Rising),
    missing: Vec<(BlobDigest, u64)>,
    (mut providers, mut failures): (VecDeque<NodeKey>, Vec<(NodeKey, ProviderError)>),
    report: Arc<Report>,
) -> Result<(), FetchError> {
    let root = arrival.root();
    let (small, large): (Vec<_>, Vec<_>) = missing.into_iter().partition(|(_, size)| is_small(*size));
    let mut plan = Plan::default();
    let mut expected: u64 = small.iter().map(|(_, size)| size).sum();
    let has_large = !large.is_empty();
    let is_small = !has_large && expected <= SMALL_TREE && small.len() <= SMALL_TREE_FILES;
    plan.add_small(small);
    let opening = arrival.clone();
    let open = move || {
        let open = |(blob, size)| Ok((blob, LargeFile::open(&opening, blob, size)?));
        large
            .into_iter()
            .map(open)
            .collect::<Result<Vec<_>, SpoolError>>()
    };
    let opened = match has_large {
        true => blocking(open).await??,
        false => Vec::new(),
    };
    let mut files = HashMap::new();
    for (blob, (file, missing)) in opened {
        expected += missing.iter().map(|chunks| file.bytes_in(chunks)).sum::<u64>();
        let pieces = plan.add_large(blob, &missing);
        if pieces == 0 {
            // All of it had come before the break.
            let arrival = arrival.clone();
            blocking(move || arrival.complete(blob)).await??;
            continue;
        }
        file.expect(pieces);
        files.insert(blob, Arc::new(file));
    }
    report.expect(expected);
    let work = Arc::new(Work {
        shares: shares(is_small),
        priority,
        core: core.clone(),
        arrival: arrival.clone(),
        plan: Mutex::new(plan),
        report,
        large: files,
        cut: Mutex::default(),
        changed: Notify::new(),
    });
    let mut workers = JoinSet::new();
    let mut active: HashMap<NodeKey, usize> = HashMap::new();
    // A small tree is one question.
    let at_first = if is_small { 1 } else { WORKERS_PER_PROVIDER };
    loop {
        while active.len() < PROVIDERS_AT_ONCE && work.wants_provider(&active, workers.len()) {
            let Some(provider) = providers.pop_front() else {
                break;
            };
            work.report.asked(provider);
            for _ in 0..at_first {
                workers.spawn(work_with(work.clone(), provider));
            }
            active.insert(provider, at_first);
        }
        // Behind the others, so that one that is far away does not take their work.
        for (provider, count) in &mut active {
            let most = workers_for(core.network.link(*provider).least_round_trip());
            while *count < most && work.wants_more(*provider, workers.len()) {
                workers.spawn(work_with(work.clone(), *provider));
                *count += 1;
            }
        }
        let ended = match tokio::time::timeout(work.next_look(), workers.join_next()).await {
            Ok(Some(ended)) => ended,
            Ok(None) => break,
            // Somebody may have fallen silent.
            Err(_) => continue,
        };
        let (provider, result) = ended.map_err(Lost::from)?;
        if let Err(error) = result {
            if let ProviderError::Spool(error) = error {
                return Err(error.into());
            }
            error.mark(core, provider);
            failures.push((provider, error));
        }
        if let Some(count) = active.get_mut(&provider) {
            *count -= 1;
            if *count == 0 {
                active.remove(&provider);
            }
        }
    }
    for (provider, brought) in work.report.brought() {
        lock(&core.standing).brought(provider, brought.bytes, brought.time());
    }
    if lock(&work.plan).is_done() {
        Ok(())
    } else {
        Err(FetchError::Failed { root, failures })
    }
}

/// How many streams fill the link to a provider so far away.
fn workers_for(round_trip: Option<Duration>) -> usize {
    let more = round_trip.unwrap_or_default().as_millis() / ROUND_TRIP_PER_WORKER.as_millis();
    let more = usize::try_from(more).unwrap_or(usize::MAX);
    WORKERS_PER_PROVIDER
        .saturating_add(more)
        .min(WORKERS_PER_FAR_PROVIDER)
}

/// Works with one provider until all is done or the provider fails.
async fn work_with(work: Arc<Work>, provider: NodeKey) -> (NodeKey, Result<(), ProviderError>) {
    let streams = work.core.fetching.streams.of(provider);
    let mut busy = 0;
    loop {
        let changed = work.changed.notified();
        tokio::pin!(changed);
        // From here on no change is missed.
        changed.as_mut().enable();
        if lock(&work.plan).is_done() || lock(&work.cut).contains(&provider) {
            return (provider, Ok(()));
        }
        if !work.has_work(provider) {
            // A provider may become so slow that its work is worth sharing, or fall silent.
            tokio::time::timeout(work.next_look(), changed).await.ok();
            continue;
        }
        // Before it is taken: what waits here can be done by another.
        let stream = tokio::select! {
            stream = streams.enter_rising(&work.priority, work.shares) => stream,
            () = &mut changed => continue,
        };
        let job = {
            let mut plan = lock(&work.plan);
            if lock(&work.cut).contains(&provider) {
                return (provider, Ok(()));
            }
            let job = plan
                .take(provider)
                .or_else(|| work.share(&mut plan, provider))
                .or_else(|| plan.hedge(provider, Instant::now()));
            job.map(|(turn, job)| (turn, job, plan.signs(turn)))
        };
        let Some((turn, job, signs)) = job else {
            // Another was faster.
            continue;
        };
        let result = tokio::select! {
            result = run(&work, provider, (turn, signs.clone()), job) => result,
            // It was silent, and another one has brought what it should, or there is something else that it may bring.
            () = work.released(turn) => {
                if !signs.has_brought() && signs.is_silent_for_long(Instant::now()) {
                    lock(&work.core.standing).failed(provider, work.core.team.now());
                }
                continue;
            }
        };
        drop(stream);
        match result {
            Ok(()) => {
                busy = 0;
                lock(&work.core.standing).served(provider);
                let done = {
                    let mut plan = lock(&work.plan);
                    plan.finished(turn);
                    plan.is_done()
                };
                if done {
                    work.changed.notify_waiters();
                }
            }
            Err(ProviderError::Busy) if busy < BUSY_TRIES => {
                busy += 1;
                lock(&work.plan).give_back(turn);
                work.changed.notify_waiters();
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(error) => {
                lock(&work.cut).insert(provider);
                lock(&work.plan).give_back(turn);
                work.changed.notify_waiters();
                return (provider, Err(error));
            }
        }
    }
}

impl Work {
    /// Whether one more provider would have something to do beside these, who do it with so many workers.
    fn wants_provider(&self, active: &HashMap<NodeKey, usize>, workers: usize) -> bool {
        let plan = lock(&self.plan);
        plan.wants_more(workers) || plan.wants_another(Instant::now(), active.keys().copied())
    }

    /// How long who has nothing to do waits until it looks around.
    fn next_look(&self) -> Duration {
        let silence = lock(&self.plan).next_silence(Instant::now());
        silence.map_or(SHARE_LOOK, |silence| silence.clamp(LEAST_LOOK, SHARE_LOOK))
    }

    /// Returns when what is being done there is of no use any more.
    async fn released(&self, turn: Turn) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if lock(&self.plan).is_released(turn) {
                return;
            }
            changed.await;
        }
    }

    /// Whether one more worker would have something to do with this provider.
    fn wants_more(&self, provider: NodeKey, workers: usize) -> bool {
        !lock(&self.cut).contains(&provider) && lock(&self.plan).wants_more(workers)
    }

    /// Whether there is something to do with this provider.
    fn has_work(&self, provider: NodeKey) -> bool {
        let speed = self.speeds();
        lock(&self.plan).has_work(provider, speed, Instant::now())
    }

    /// How fast each provider has been in this fetch.
    fn speeds(&self) -> impl Fn(NodeKey) -> f64 {
        let brought = self.report.brought();
        move |of| brought.get(&of).map_or(0.0, Brought::speed)
    }

    /// Half of what a slower provider has left of a piece.
    fn share(&self, plan: &mut Plan, provider: NodeKey) -> Option<(Turn, Job)> {
        let (turn, blob, chunks) = plan.share(provider, self.speeds())?;
        // While the plan is held: who has the first half cannot be through with it before.
        if let Some(file) = self.large.get(&blob) {
            file.one_more_piece();
        }
        Some((turn, Job::Piece { blob, chunks }))
    }
}

/// On an error, the plan knows what is left.
async fn run(
    work: &Work,
    provider: NodeKey,
    (turn, signs): (Turn, Signs),
    job: Job,
) -> Result<(), ProviderError> {
    match job {
        Job::Pack(files) => small::fetch(work, provider, (turn, signs), files).await,
        Job::Piece { blob, chunks } => {
            let Some(file) = work.large.get(&blob) else {
                // Pieces are planned of files that are open.
                return Ok(());
            };
            large::fetch(work, provider, file, (turn, signs, chunks)).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_farther_a_provider_is_the_more_streams_it_gets_up_to_a_bound() {
        let far = |milliseconds| workers_for(Some(Duration::from_millis(milliseconds)));
        assert_eq!(workers_for(None), 2);
        assert_eq!([1, 7, 8, 30, 47, 48, 5000].map(far), [2, 2, 3, 5, 7, 8, 8]);
    }
}
