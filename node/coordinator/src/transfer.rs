//! Fetches paths into the own store and pushes them to desired stores.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::EventKind;

use crate::action::{Action, Source, Urgency};
use crate::coordinator::Coordinator;
use crate::graph::{Desired, DesiredId, Fetching, Own, Path, PathId};
use crate::id::{FetchId, PushId};
use crate::limits;
use crate::session_set::SessionSet;

/// What waits to be moved, and what is on its way.
#[derive(Default)]
pub(crate) struct Transfers {
    waiting_fetches: VecDeque<PathId>,
    waiting_pushes: VecDeque<(PathId, DesiredId)>,
    fetches: BTreeMap<FetchId, Fetch>,
    pushes: BTreeMap<PushId, (PathId, DesiredId)>,
}

struct Fetch {
    path: PathId,
    from: Vec<Source>,
    /// How urgent it is, as was said last.
    urgency: (Urgency, bool),
    /// Paths of its closure that users were told are on their way, and that are not here yet.
    begun: BTreeSet<StorePath>,
}

/// How urgently a path is wanted in the own store, and whether a build here waits for it.
fn urgency_of(path: &Path) -> (Urgency, bool) {
    let urgency = if !path.import.is_empty() {
        Urgency::Import
    } else if !path.demanded.is_empty() {
        Urgency::Demanded
    } else {
        Urgency::Speculative
    };
    (urgency, !path.waiting_builds.is_empty())
}

impl Coordinator {
    /// Has a path fetched that is wanted in the own store, once it can be had.
    pub(crate) fn queue_fetch(&mut self, id: PathId) {
        let path = &mut self.graph.paths[id];
        if path.fetch == Fetching::No && !path.sources.is_empty() {
            path.fetch = Fetching::Queued;
            self.transfers.waiting_fetches.push_back(id);
        }
    }

    /// Stops fetching a path that nobody wants in the own store.
    pub(crate) fn unqueue_fetch(&mut self, id: PathId) {
        let path = &mut self.graph.paths[id];
        match std::mem::replace(&mut path.fetch, Fetching::No) {
            Fetching::No | Fetching::Queued => {}
            Fetching::Running(fetch) => self.cancel_fetch(fetch),
        }
    }

    fn cancel_fetch(&mut self, fetch: FetchId) {
        if self.transfers.fetches.remove(&fetch).is_some() {
            self.actions.push(Action::CancelFetch { fetch });
        }
    }

    /// Stops what moves a path that nobody names any more.
    pub(crate) fn cancel_transfers(&mut self, path: &Path) {
        if let Fetching::Running(fetch) = path.fetch {
            self.cancel_fetch(fetch);
        }
        for entry in &path.desired {
            if let Desired::Pushing(push) = entry.state
                && self.transfers.pushes.remove(&push).is_some()
            {
                self.actions.push(Action::CancelPush { push });
            }
        }
    }

    pub(crate) fn queue_push(&mut self, id: PathId, store: DesiredId) {
        self.graph.paths[id].desired_mut(store).state = Desired::Queued;
        self.transfers.waiting_pushes.push_back((id, store));
    }

    /// Stops pushing a path that nobody wants in a desired store.
    pub(crate) fn unqueue_pushes(&mut self, id: PathId) {
        for at in 0..self.graph.paths[id].desired.len() {
            let path = &self.graph.paths[id];
            let (store, state) = (path.desired[at].store, path.desired[at].state);
            let wants = |slot| {
                self.sessions
                    .get(slot)
                    .is_some_and(|session| session.to == Some(store))
            };
            if path.goals.iter().any(|(slot, _)| wants(*slot)) {
                continue;
            }
            if let Desired::Pushing(push) = state
                && self.transfers.pushes.remove(&push).is_some()
            {
                self.actions.push(Action::CancelPush { push });
                self.graph.paths[id].desired[at].state = Desired::Absent;
            }
        }
    }

    /// Starts what may be moved now, and hurries what is moved and has become more urgent.
    pub(crate) fn flush_transfers(&mut self) {
        for (fetch, running) in &mut self.transfers.fetches {
            let Some(path) = self.graph.paths.get(running.path) else {
                continue;
            };
            let (now, before) = (urgency_of(path), running.urgency);
            let raised = (now.0.max(before.0), now.1 || before.1);
            if raised != before {
                running.urgency = raised;
                let (fetch, (urgency, awaited)) = (*fetch, raised);
                self.actions.push(Action::HurryFetch {
                    fetch,
                    urgency,
                    awaited,
                });
            }
        }
        let most_urgent = |id: &PathId| std::cmp::Reverse(self.graph.paths.get(*id).map(urgency_of));
        if self.transfers.fetches.len() < limits::FETCHES {
            self.transfers
                .waiting_fetches
                .make_contiguous()
                .sort_by_key(most_urgent);
        }
        while self.transfers.fetches.len() < limits::FETCHES
            && let Some(id) = self.transfers.waiting_fetches.pop_front()
        {
            self.start_fetch(id);
        }
        while self.transfers.pushes.len() < limits::PUSHES
            && let Some((id, store)) = self.transfers.waiting_pushes.pop_front()
        {
            self.start_push(id, store);
        }
    }

    pub(crate) fn fetches_free(&self) -> usize {
        limits::FETCHES.saturating_sub(self.transfers.fetches.len())
    }

    fn start_fetch(&mut self, id: PathId) {
        let Some(path) = self.graph.paths.get(id) else {
            return;
        };
        if path.fetch != Fetching::Queued {
            return;
        }
        let from: Vec<Source> = path
            .sources
            .iter()
            .map(|source| self.graph.sources.get(*source).clone())
            .collect();
        if from.is_empty() || path.own == Own::Here {
            self.graph.paths[id].fetch = Fetching::No;
            return;
        }
        let (urgency, awaited) = urgency_of(path);
        let name = path.name.clone();
        let fetch = FetchId(self.next_number());
        self.graph.paths[id].fetch = Fetching::Running(fetch);
        self.transfers.fetches.insert(
            fetch,
            Fetch {
                path: id,
                from: from.clone(),
                urgency: (urgency, awaited),
                begun: BTreeSet::new(),
            },
        );
        self.actions.push(Action::Fetch {
            fetch,
            path: name,
            from,
            urgency,
            awaited,
        });
    }

    fn start_push(&mut self, id: PathId, store: DesiredId) {
        let Some(path) = self.graph.paths.get_mut(id) else {
            return;
        };
        let wanted = !path.goals.is_empty() && path.own == Own::Here;
        let entry = path.desired_mut(store);
        if entry.state != Desired::Queued {
            return;
        }
        if !wanted {
            entry.state = Desired::Absent;
            return;
        }
        let push = PushId(self.next_number());
        let path = &mut self.graph.paths[id];
        path.desired_mut(store).state = Desired::Pushing(push);
        let path = path.name.clone();
        self.transfers.pushes.insert(push, (id, store));
        self.tell_of_push(id, store, |path, to| EventKind::PushStarted { path, to });
        let to = self.graph.desired.get(store).clone();
        self.actions.push(Action::Push { push, path, to });
    }

    /// Tells the sessions that want a path in a desired store what becomes of it.
    fn tell_of_push(&mut self, id: PathId, store: DesiredId, event: impl Fn(StorePath, String) -> EventKind) {
        let to = self.desired_name(self.graph.desired.get(store));
        let path = &self.graph.paths[id];
        let (name, slots): (_, SessionSet) = (
            path.name.clone(),
            path.goals.iter().map(|(slot, _)| *slot).collect(),
        );
        for slot in slots.iter() {
            if self
                .sessions
                .get(slot)
                .is_some_and(|session| session.to == Some(store))
            {
                self.tell(slot, event(name.clone(), to.clone()));
            }
        }
    }

    /// Sessions that want a path in the own store, for themselves or for a build.
    fn fetch_watchers(&self, id: PathId) -> SessionSet {
        let path = &self.graph.paths[id];
        let goals: SessionSet = path.goals.iter().map(|(slot, _)| *slot).collect();
        let builds = path.waiting_builds.iter().map(|build| self.participants(*build));
        builds.fold(goals, SessionSet::or)
    }

    pub(crate) fn fetch_started(&mut self, fetch: FetchId, path: StorePath, from: &Source) {
        let Some(running) = self.transfers.fetches.get_mut(&fetch) else {
            return;
        };
        running.begun.insert(path.clone());
        let wanted = running.path;
        let from = self.source_name(from);
        for slot in self.fetch_watchers(wanted).iter() {
            let (path, from) = (path.clone(), from.clone());
            self.tell(slot, EventKind::FetchStarted { path, from });
        }
    }

    pub(crate) fn fetch_arrived(&mut self, fetch: FetchId, path: StorePath, from: &Source, bytes: u64) {
        match self.graph.path(&path) {
            Some(id) => self.path_arrived(id),
            // It came as part of a closure; the path that was fetched keeps it in the store.
            None => self.released.push(path.clone()),
        }
        let Some(running) = self.transfers.fetches.get_mut(&fetch) else {
            return;
        };
        running.begun.remove(&path);
        let wanted = running.path;
        let from = self.source_name(from);
        for slot in self.fetch_watchers(wanted).iter() {
            if let Some(session) = self.sessions.get_mut(slot) {
                session.fetched += 1;
            }
            let (path, from) = (path.clone(), from.clone());
            self.tell(slot, EventKind::FetchFinished { path, from, bytes });
        }
    }

    pub(crate) fn fetch_finished(&mut self, fetch: FetchId) {
        let Some(done) = self.transfers.fetches.remove(&fetch) else {
            return;
        };
        self.graph.paths[done.path].fetch = Fetching::No;
        self.path_arrived(done.path);
    }

    pub(crate) fn fetch_failed(&mut self, fetch: FetchId, error: &str) {
        let Some(failed) = self.transfers.fetches.remove(&fetch) else {
            return;
        };
        for slot in self.fetch_watchers(failed.path).iter() {
            let told = EventKind::FetchFailed {
                path: self.graph.paths[failed.path].name.clone(),
                error: error.to_owned(),
                unfinished: failed.begun.iter().cloned().collect(),
            };
            self.tell(slot, told);
        }
        let path = &mut self.graph.paths[failed.path];
        path.fetch = Fetching::No;
        path.fetch_tries = path.fetch_tries.saturating_add(1);
        self.remove_sources(failed.path, &|source| failed.from.contains(source));
        self.graph.touch_path(failed.path);
    }

    /// A path that is there is not built because it does not fit: what is built would not fit either.
    pub(crate) fn no_room(&mut self, fetch: FetchId, error: &str) {
        let wanted = self.transfers.fetches.get(&fetch).map(|fetch| fetch.path);
        self.fetch_failed(fetch, error);
        let Some(id) = wanted else { return };
        // A build that waits for it may be placed where there is more room.
        for (slot, goal) in self.graph.paths[id].goals.clone() {
            self.fail_goal_counted(slot, goal, error.to_owned());
        }
    }

    pub(crate) fn push_finished(&mut self, push: PushId) {
        let Some((id, store)) = self.transfers.pushes.remove(&push) else {
            return;
        };
        self.graph.paths[id].desired_mut(store).state = Desired::There;
        self.graph.touch_path(id);
        self.tell_of_push(id, store, |path, to| EventKind::Pushed { path, to });
    }

    pub(crate) fn push_failed(&mut self, push: PushId, error: String, transient: bool) {
        let Some((id, store)) = self.transfers.pushes.remove(&push) else {
            return;
        };
        self.tell_of_push(id, store, |path, to| EventKind::PushFailed {
            path,
            to,
            error: error.clone(),
        });
        let entry = self.graph.paths[id].desired_mut(store);
        entry.tries = entry.tries.saturating_add(1);
        entry.error = error;
        let again = transient && entry.tries < limits::PUSH_TRIES;
        entry.state = if again { Desired::Absent } else { Desired::Failed };
        self.graph.touch_path(id);
    }
}
