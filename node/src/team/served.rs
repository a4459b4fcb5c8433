//! How many builds for whom are under way, in all teams together, so that nobody fills the queue alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::{Refusal, RefusalReason};
use tvix_node_swarm::Places as PlacesOfEach;

use super::inputs::refusal;
use super::limits::{CONSIDERED, CONSIDERED_PER_REQUESTER, SERVED_BUILDS, SERVED_BUILDS_PER_REQUESTER};
use super::together::{Key, Progress, SharedBuild};

/// How many builds for whom are under way.
#[derive(Debug, Default)]
pub struct Served(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    counts: HashMap<NodeKey, usize>,
    /// Of these, those whose requester has left and may come back for them.
    left: Vec<Left>,
    /// How many were left so far, which names them.
    numbers: u64,
}

/// The place of a build whose requester has left.
#[derive(Debug)]
struct Left {
    number: u64,
    requester: NodeKey,
    /// Who asks for this joins the build.
    sought: Key,
    build: Arc<SharedBuild>,
    /// Whether that one is on its way to it again.
    back: bool,
}

impl Places {
    fn enter(&mut self, requester: NodeKey) -> Result<(), Refusal> {
        let all: usize = self.counts.values().sum();
        let own = self.counts.get(&requester).copied().unwrap_or(0);
        if all >= SERVED_BUILDS || own >= SERVED_BUILDS_PER_REQUESTER {
            // How many there are for whom is nothing to one of another team.
            let message =
                format!("this builder takes no more builds at the moment; {own} of yours are under way");
            return Err(refusal(RefusalReason::Busy, message));
        }
        self.counts.insert(requester, own + 1);
        Ok(())
    }

    fn leave(&mut self, requester: NodeKey) {
        if let Some(count) = self.counts.get_mut(&requester) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&requester);
            }
        }
    }

    fn position(&self, number: u64) -> Option<usize> {
        self.left.iter().position(|left| left.number == number)
    }

    /// Who came back for this place waits for this build from now on.
    fn settle(&mut self, number: u64, build: &Arc<SharedBuild>) -> Result<(), Refusal> {
        let Some(at) = self.position(number) else {
            // What was kept is over, and its place has passed on.
            return Ok(());
        };
        let left = &self.left[at];
        if Arc::ptr_eq(&left.build, build) || matches!(left.build.progress(), Progress::Over(_)) {
            self.left.swap_remove(at);
            return Ok(());
        }
        self.enter(self.left[at].requester)?;
        self.left[at].back = false;
        Ok(())
    }
}

impl Served {
    fn lock(&self) -> std::sync::MutexGuard<'_, Places> {
        // A count is changed in one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any is.
    pub fn is_serving(&self) -> bool {
        !self.lock().counts.is_empty()
    }

    /// Counts one in, if there is room for it. Who comes back for what it has left has the place that it had.
    /// `sought`: what the request shares a build by; none: it shares none.
    pub(super) fn enter(
        self: &Arc<Self>,
        requester: NodeKey,
        sought: Option<Key>,
    ) -> Result<EnteredPlace, Refusal> {
        let mut places = self.lock();
        let served = Arc::clone(self);
        let is_sought = |left: &&mut Left| {
            !left.back && left.requester == requester && sought.as_ref() == Some(&left.sought)
        };
        if let Some(left) = places.left.iter_mut().find(is_sought) {
            left.back = true;
            return Ok(EnteredPlace::Back(BackPlace {
                served,
                requester,
                number: left.number,
                settled: false,
            }));
        }
        places.enter(requester)?;
        Ok(EnteredPlace::New(ServedPlace {
            served,
            requester,
            held: true,
        }))
    }
}

/// Places for requests whose derivations are looked at, for all teams together. Some of them come from the requester
/// itself, which may let this node wait for them: it does not have all places.
#[derive(Debug)]
pub(super) struct Considering {
    all: Arc<Semaphore>,
    each: PlacesOfEach,
}

impl Default for Considering {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(CONSIDERED)),
            each: PlacesOfEach::new(CONSIDERED_PER_REQUESTER),
        }
    }
}

impl Considering {
    /// Waits for a place, for as long as what it gives is held. None: there are no places any more.
    pub(super) async fn enter(&self, requester: NodeKey) -> Option<[OwnedSemaphorePermit; 2]> {
        let own = self.each.of(requester).acquire_owned().await.ok()?;
        let all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some([own, all])
    }
}

/// A place of one of whom it is not known yet which build it waits for.
#[derive(Debug)]
pub(super) enum EnteredPlace {
    /// It is new.
    New(ServedPlace),
    /// It is that of what its requester had left.
    Back(BackPlace),
}

impl EnteredPlace {
    /// It waits for this build from now on. Where that is not the one that was kept for it, both have places.
    ///
    /// # Errors
    /// There is no room for both.
    pub(super) fn joined(self, build: &Arc<SharedBuild>) -> Result<ServedPlace, Refusal> {
        match self {
            Self::New(place) => Ok(place),
            Self::Back(place) => place.joined(build),
        }
    }
}

/// The place of what was left, while who has come back for it is on its way to it. It is kept on, if that one does not get there.
#[derive(Debug)]
pub(super) struct BackPlace {
    served: Arc<Served>,
    requester: NodeKey,
    number: u64,
    /// Whether another one follows it.
    settled: bool,
}

impl BackPlace {
    fn joined(mut self, build: &Arc<SharedBuild>) -> Result<ServedPlace, Refusal> {
        let settled = self.served.lock().settle(self.number, build);
        settled?;
        self.settled = true;
        Ok(ServedPlace {
            served: Arc::clone(&self.served),
            requester: self.requester,
            held: true,
        })
    }
}

impl Drop for BackPlace {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut places = self.served.lock();
        match places.position(self.number) {
            Some(at) => places.left[at].back = false,
            // What was kept is over.
            None => places.leave(self.requester),
        }
    }
}

/// One build for another member, for as long as it is under way.
#[derive(Debug)]
pub(super) struct ServedPlace {
    served: Arc<Served>,
    requester: NodeKey,
    /// Whether it is counted out with this.
    held: bool,
}

impl ServedPlace {
    /// Its requester has left, and may come back for this build.
    pub(super) fn left(mut self, sought: Key, build: Arc<SharedBuild>) -> LeftPlace {
        let served = Arc::clone(&self.served);
        let mut places = served.lock();
        places.numbers += 1;
        let number = places.numbers;
        places.left.push(Left {
            number,
            requester: self.requester,
            sought,
            build,
            back: false,
        });
        drop(places);
        // It still counts, and is counted out by who comes back, or with what this gives.
        self.held = false;
        LeftPlace { served, number }
    }
}

impl Drop for ServedPlace {
    fn drop(&mut self) {
        if self.held {
            self.served.lock().leave(self.requester);
        }
    }
}

/// A place whose requester has left: it is free when this is dropped, unless that one has come back for it.
#[derive(Debug)]
pub(super) struct LeftPlace {
    served: Arc<Served>,
    number: u64,
}

impl Drop for LeftPlace {
    fn drop(&mut self) {
        let mut places = self.served.lock();
        if let Some(at) = places.position(self.number) {
            let left = places.left.swap_remove(at);
            if !left.back {
                places.leave(left.requester);
            }
        }
    }
}

#[cfg(test)]
#[path = "served_tests.rs"]
mod tests;
