//! What all teams of one node share: the bounds that keep the machine from doing too much at once.
//!
//! Each team of a node has a network of its own. What is bounded because a machine has so much memory, so many threads or so
//! wide a link is bounded for all of them together, so that a node in many teams does no more than one in a single team. What
//! one team does shows another no more than that the machine is busy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tvix_node_protocol::envelope::NodeKey;

use crate::limits::{
    COMING_BYTES, COMING_BYTES_PER_PEER, FETCH_PACE, FETCHES, FETCHES_FOR_EACH, FETCHES_FOR_OTHERS,
    PUSHES_TAKEN, PUSHES_TAKEN_PER_PEER, SHARES, STREAMS,
};
use crate::line::{Held, Line, Rising};
use crate::net::caps::Throttle;
use crate::places::Places;
use crate::protocols::serving::Serving;
use crate::room::Room;
use crate::underway::Underway;

/// See the [module](self). Clones are the same machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Content that goes out, and the hashes of what was served lately.
    pub(crate) serving: Arc<Serving>,
    /// Trees that are fetched.
    pub(crate) fetches: FetchPlaces,
    /// Room for directories and small trees that come.
    pub(crate) coming: Arc<Room>,
    /// What is built at the moment, for the owner and for others.
    pub underway: Arc<Underway>,
    /// Streams that are served.
    pub(crate) streams: Arc<Semaphore>,
    /// Pushes that are taken.
    pub(crate) pushes: Arc<Semaphore>,
    /// Of those, from each member.
    pub(crate) pushes_of_each: Arc<Places>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            serving: Arc::new(Serving::new()),
            fetches: FetchPlaces::default(),
            coming: Arc::new(Room::new(COMING_BYTES, COMING_BYTES_PER_PEER)),
            underway: Arc::default(),
            streams: Arc::new(Semaphore::new(STREAMS)),
            pushes: Arc::new(Semaphore::new(PUSHES_TAKEN)),
            pushes_of_each: Arc::new(Places::new(PUSHES_TAKEN_PER_PEER)),
        }
    }
}

/// Places for trees that are fetched at once. What other members want here, who may let this node wait, leaves some to the
/// owner, and to other members.
#[derive(Debug, Clone)]
pub(crate) struct FetchPlaces {
    pub(crate) all: Arc<Line>,
    others: Arc<Semaphore>,
    each: Arc<Places>,
    pub(crate) pace: Pace,
    /// Members that wait for a place of another's.
    waiting: Arc<AtomicUsize>,
}

/// So many bytes in so long a time.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long.
    pub time: Duration,
    /// How many.
    pub bytes: u64,
}

/// A tree may be fetched as long as this is held.
#[derive(Debug)]
pub(crate) struct FetchPlace {
    /// Of one for another member: how fast it has to be where so many wait.
    kept_by: Option<(Pace, Arc<AtomicUsize>)>,
    shares: u32,
    _of_each: Option<OwnedSemaphorePermit>,
    _of_others: Option<OwnedSemaphorePermit>,
    _of_all: Held,
}

impl Pace {
    /// How many bytes have to come for so many shares of a place, where all places together may have so many a second.
    fn least(&self, cap: Option<u64>, shares: u32) -> u64 {
        let share = cap.map(|rate| rate.saturating_mul(self.time.as_secs()) / FETCHES as u64);
        let of_place = self.bytes.min(share.unwrap_or(u64::MAX));
        of_place * u64::from(shares) / u64::from(SHARES)
    }
}

/// Somebody waits, as long as this is there.
struct Waiting<'w>(&'w AtomicUsize);

impl<'w> Waiting<'w> {
    fn new(waiting: &'w AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for FetchPlaces {
    fn default() -> Self {
        Self::new(FETCHES, FETCHES_FOR_OTHERS, FETCH_PACE)
    }
}

impl FetchPlaces {
    /// So many, of which so many are for other members.
    pub(crate) fn new(all: usize, others: usize, pace: Pace) -> Self {
        Self {
            all: Arc::new(Line::new(all * SHARES as usize)),
            others: Arc::new(Semaphore::new(others * SHARES as usize)),
            each: Arc::new(Places::new(FETCHES_FOR_EACH * SHARES as usize)),
            pace,
            waiting: Arc::default(),
        }
    }

    /// Waits for a place, or for so many [`SHARES`] of one, behind what is more urgent; `other`: the member that has what another
    /// one wants here.
    pub(crate) async fn enter(
        &self,
        other: Option<NodeKey>,
        priority: &Rising,
        shares: u32,
    ) -> Option<FetchPlace> {
        let (mut of_each, mut of_others, mut kept_by) = (None, None, None);
        if let Some(other) = other {
            of_each = Some(self.each.of(other).acquire_many_owned(shares).await.ok()?);
            let _waiting = Waiting::new(&self.waiting);
            let others = Arc::clone(&self.others);
            of_others = Some(others.acquire_many_owned(shares).await.ok()?);
            kept_by = Some((self.pace, Arc::clone(&self.waiting)));
        }
        Some(FetchPlace {
            kept_by,
            shares,
            _of_each: of_each,
            _of_others: of_others,
            _of_all: self.all.enter_rising(priority, shares).await,
        })
    }
}

impl FetchPlace {
    /// Returns when the place had better be another's: what is fetched comes too slowly, by the bytes that `came` counts,
    /// and others wait. What is fetched for the owner is waited for, and whoever is held up by the owner's cap.
    pub(crate) async fn outstayed(&self, cap: &Throttle, came: impl Fn() -> u64) {
        let Some((pace, waiting)) = &self.kept_by else {
            return std::future::pending().await;
        };
        let mut before = came();
        loop {
            tokio::time::sleep(pace.time).await;
            let now = came();
            if now - before < pace.least(cap.rate(), self.shares) && waiting.load(Ordering::Relaxed) > 0 {
                return;
            }
            before = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn what_others_want_here_leaves_places_to_the_owner_and_to_each_other() {
        let places = FetchPlaces::default();
        let (ann, bob) = (Some(NodeKey([1; 32])), Some(NodeKey([2; 32])));
        let mut taken = vec![];
        for _ in 0..FETCHES_FOR_EACH {
            taken.push(places.enter(ann, &Rising::default(), SHARES).await.unwrap());
        }
        assert!(
            places
                .enter(ann, &Rising::default(), SHARES)
                .now_or_never()
                .is_none()
        );
        for _ in 0..FETCHES_FOR_OTHERS - FETCHES_FOR_EACH {
            taken.push(
                places
                    .enter(bob, &Rising::default(), SHARES)
                    .now_or_never()
                    .flatten()
                    .unwrap(),
            );
        }
        assert!(
            places
                .enter(bob, &Rising::default(), SHARES)
                .now_or_never()
                .is_none()
        );
        for _ in 0..FETCHES - FETCHES_FOR_OTHERS {
            taken.push(
                places
                    .enter(None, &Rising::default(), SHARES)
                    .now_or_never()
                    .flatten()
                    .unwrap(),
            );
        }
        assert!(
            places
                .enter(None, &Rising::default(), SHARES)
                .now_or_never()
                .is_none()
        );
        assert!(places.enter(None, &Rising::default(), 1).now_or_never().is_none());
        // One that was not small makes room for several that are.
        taken.pop();
        for _ in 0..SHARES {
            taken.push(
                places
                    .enter(None, &Rising::default(), 1)
                    .now_or_never()
                    .flatten()
                    .unwrap(),
            );
        }
        assert!(places.enter(None, &Rising::default(), 1).now_or_never().is_none());
    }

    #[tokio::test]
    async fn who_is_slow_gives_way_to_others_who_wait_and_to_nobody_else() {
        let pace = Pace {
            time: Duration::from_millis(10),
            bytes: 100,
        };
        let places = FetchPlaces::new(3, 1, pace);
        let [ann, bob] = [1, 2].map(|byte| NodeKey([byte; 32]));
        let own = places.enter(None, &Rising::default(), SHARES).await.unwrap();
        let slow = places.enter(Some(ann), &Rising::default(), SHARES).await.unwrap();
        let soon = async |outstayed| {
            tokio::time::timeout(Duration::from_millis(100), outstayed)
                .await
                .is_ok()
        };
        let (count, free) = (AtomicU64::new(0), Throttle::default());
        let by = |more| {
            let count = &count;
            move || count.fetch_add(more, Ordering::Relaxed)
        };
        assert!(
            !soon(slow.outstayed(&free, by(0)).boxed_local()).await,
            "nobody waits"
        );
        let rising = Rising::default();
        let mut waits = Box::pin(places.enter(Some(bob), &rising, SHARES));
        assert!(waits.as_mut().now_or_never().is_none());
        assert!(
            !soon(own.outstayed(&free, by(0)).boxed_local()).await,
            "it is the owner's"
        );
        assert!(
            !soon(slow.outstayed(&free, by(100)).boxed_local()).await,
            "it is fast enough"
        );
        assert!(soon(slow.outstayed(&free, by(99)).boxed_local()).await);
        drop(waits);
        assert!(
            !soon(slow.outstayed(&free, by(99)).boxed_local()).await,
            "nobody waits any more"
        );
        // Who may not be faster is not slow.
        assert_eq!(
            [None, Some(1 << 30), Some(32_000)].map(|cap| FETCH_PACE.least(cap, SHARES)),
            [1 << 20, 1 << 20, 60_000]
        );
        // A small tree is asked for its share of that, which it may be as a whole.
        assert_eq!(FETCH_PACE.least(None, 1), 128 << 10);
        assert_eq!(FETCH_PACE.least(Some(32_000), 1), 60_000 / 8);
    }
}
