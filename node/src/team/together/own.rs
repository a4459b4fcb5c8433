//! The owner's own builds among those that are shared.

use std::sync::Arc;

use tvix_node_protocol::build::{BuildKey, BuildLimits, SwarmId};
use tvix_node_protocol::messages::{Refusal, RefusalReason};
use tvix_node_store::Audience;

use super::{All, Ended, Heard, Kind, Progress, SharedBuild, SharedBuilds, Waiting, lines, lock};

#[derive(Debug)]
pub(super) struct OwnEntry {
    build: Arc<SharedBuild>,
    /// Whose members may wait for it.
    audience: Audience,
    /// How many others wait for it.
    pub(super) waiting: usize,
    /// Whether the owner's command still wants it.
    wanted: bool,
}

impl OwnEntry {
    pub(super) fn is(&self, build: &Arc<SharedBuild>) -> bool {
        Arc::ptr_eq(&self.build, build)
    }
}

/// How a build of this node's own begins.
#[derive(Debug)]
pub enum OwnBegin {
    /// The same work is being done for another.
    Joined(Waiting),
    /// It is done, for all who ask for it meanwhile.
    Begun(Owned),
    /// There is nothing to join, and it is not to be begun.
    Nothing,
}

/// A build of this node's own that others may wait for. It is over when this is dropped.
#[derive(Debug)]
pub struct Owned {
    /// Which. Its token is what stops it.
    pub build: Arc<SharedBuild>,
    builds: Arc<SharedBuilds>,
    key: BuildKey,
}

impl Owned {
    /// The owner's command wants it no more: it is stopped, as soon as nobody else waits for it.
    pub fn abandon(&self) {
        let mut all = lock(&self.builds.all);
        match all.own.get_mut(&self.key) {
            Some(entry) if entry.is(&self.build) => {
                entry.wanted = false;
                all.stop_if_unwanted(self.key);
            }
            // Nobody could join it.
            _ => self.build.cancel.cancel(),
        }
    }

    /// How it ended.
    pub fn end(self, ended: Ended) {
        self.build.set(Progress::Over(Arc::new(ended)));
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let mut all = lock(&self.builds.all);
        if all.own.get(&self.key).is_some_and(|entry| entry.is(&self.build)) {
            all.own.remove(&self.key);
        }
        drop(all);
        self.build.give_up();
    }
}

impl All {
    /// Under the lock: nobody joins what is being stopped.
    pub(super) fn stop_if_unwanted(&mut self, key: BuildKey) {
        if let Some(entry) = self.own.get(&key)
            && entry.waiting == 0
            && !entry.wanted
            && let Some(entry) = self.own.remove(&key)
        {
            entry.build.cancel.cancel();
        }
    }

    /// `team`: whose member joins; none: the owner.
    fn join_own(
        &mut self,
        builds: &Arc<SharedBuilds>,
        team: Option<SwarmId>,
        key: BuildKey,
        asked: BuildLimits,
    ) -> Option<Waiting> {
        let entry = self.own.get_mut(&key)?;
        let seen = team.is_none_or(|team| entry.audience.includes(team));
        // A narrower limit would end what is wanted to go on, and a wider one would let go on what is to be ended.
        if !seen || asked != entry.build.limits {
            return None;
        }
        entry.waiting += 1;
        Some(Waiting {
            build: Arc::clone(&entry.build),
            builds: Arc::clone(builds),
            kind: Kind::Own(key),
        })
    }
}

impl SharedBuild {
    /// Takes part in the build of the same work that the owner's command began, until that is over. None: what came of
    /// it says nothing about this one, which is prepared from now on.
    pub async fn follow_own(&self, own: &Self) -> Option<Ended> {
        self.set(Progress::Running { for_one: false });
        let mut following = own.follow();
        let ended = loop {
            let heard = tokio::select! {
                // First, because a log that is written without end always has something.
                biased;
                () = self.cancel.cancelled() => {
                    return Some(Ended::Refused(Refusal {
                        reason: RefusalReason::Busy,
                        message: "nobody waits for it any more".to_owned(),
                    }));
                }
                heard = following.next() => heard,
            };
            match heard {
                Heard::Log(log) => lines(&log).for_each(|line| self.line(line)),
                Heard::Over(ended) => break ended,
            }
        };
        match &*ended {
            Ended::Built { .. } | Ended::Failed(_) => Some((*ended).clone()),
            Ended::Refused(_) => {
                // It needs inputs and a slot of its own. The owner's next command would wait for the slot that it has
                // itself, and whoever joins has to see from what it is built.
                self.set(Progress::Preparing);
                None
            }
        }
    }
}

impl SharedBuilds {
    /// Joins the owner's own build of this work, where there is one that members of this team may learn of, with the limits
    /// that are asked for.
    pub fn join_own(self: &Arc<Self>, team: SwarmId, key: BuildKey, asked: BuildLimits) -> Option<Waiting> {
        lock(&self.all).join_own(self, Some(team), key, asked)
    }

    /// As [`SharedBuilds::join_own`], once there is one to join.
    pub async fn own_begun(
        self: &Arc<Self>,
        team: SwarmId,
        key: Option<BuildKey>,
        asked: BuildLimits,
    ) -> Waiting {
        let mut begun = self.own_begun.subscribe();
        loop {
            begun.mark_unchanged();
            if let Some(waiting) = key.and_then(|key| self.join_own(team, key, asked)) {
                return waiting;
            }
            // The sender is there as long as this is.
            drop(begun.changed().await);
        }
    }

    /// As [`SharedBuilds::join_own`]; where there is none to join, the build for others runs from now on. What begins
    /// in between is seen by one of the two. Who asks for the same as one that is for one alone begins anew.
    pub fn join_own_or_run(
        self: &Arc<Self>,
        team: SwarmId,
        key: Option<BuildKey>,
        asked: BuildLimits,
        build: &SharedBuild,
        for_one: bool,
    ) -> Option<Waiting> {
        let mut all = lock(&self.all);
        let own = key.and_then(|key| all.join_own(self, Some(team), key, asked));
        if own.is_none() {
            if for_one {
                all.set_apart(build);
            }
            build.set(Progress::Running { for_one });
        }
        own
    }

    /// Begins a build of this node's own, or joins one of the same work that runs already, from inputs that count for
    /// everybody. A build for another that waits for a slot is not joined: it would wait for the one that the own
    /// build has. `audience`: whose members may wait for it; none: it has no slot, so that it is not begun, and may wait
    /// for one that waits for a slot.
    pub fn begin_own(
        self: &Arc<Self>,
        key: BuildKey,
        limits: BuildLimits,
        audience: Option<&Audience>,
    ) -> OwnBegin {
        let mut all = lock(&self.all);
        let running = |build: &SharedBuild| match build.progress() {
            Progress::Running { for_one } => !for_one,
            Progress::Preparing => audience.is_none(),
            Progress::Over(_) => false,
        };
        let found = all.others.iter_mut().find(|((_, other, _), (build, _))| {
            *other == key && running(build) && limits == build.limits && !build.cancel.is_cancelled()
        });
        if let Some((key, (build, count))) = found {
            *count += 1;
            return OwnBegin::Joined(Waiting {
                build: Arc::clone(build),
                builds: Arc::clone(self),
                kind: Kind::Shared(*key),
            });
        }
        // One that a command has left goes on for others; it is as good for the next command.
        if let Some(waiting) = all.join_own(self, None, key, limits) {
            return OwnBegin::Joined(waiting);
        }
        let Some(audience) = audience else {
            return OwnBegin::Nothing;
        };
        let build = Arc::new(SharedBuild::new(limits));
        build.set(Progress::Running { for_one: false });
        // Beside one with other limits it is for its command alone: who waits for that one still finds it.
        all.own.entry(key).or_insert_with(|| OwnEntry {
            build: Arc::clone(&build),
            audience: audience.clone(),
            waiting: 0,
            wanted: true,
        });
        drop(all);
        self.own_begun.send_modify(|begun| *begun += 1);
        OwnBegin::Begun(Owned {
            build,
            builds: Arc::clone(self),
            key,
        })
    }
}
