//! Whether what is to be known of a path is known by the time that somebody could act on it.
//!
//! Presence is asked for when a derivation is instantiated, so that the answer is there when a target turns out to
//! need it. Where it is not, that costs something only if a slot or a fetch stood free meanwhile: this is what is
//! counted, for each session, of the paths that it demands and the own store lacks.

use std::collections::BTreeMap;

use tvix_node_protocol::control::PresenceTiming;

use crate::action::Urgency;
use crate::coordinator::Coordinator;
use crate::graph::{Own, PathId};
use crate::id::Time;
use crate::session_set::{SessionSet, Slot};

/// Demanded paths of which it is not known whether they can be had, and for each session that demands one what could have
/// been done for it meanwhile: one may have waited long when another comes to wait for the same.
#[derive(Default)]
pub(crate) struct Due(BTreeMap<PathId, BTreeMap<Slot, Held>>);

/// What could have been done about a path whose answer is due, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Held {
    /// It could have been fetched.
    fetch: Option<Time>,
    /// It, or what it needs, could have been built.
    build: Option<Time>,
}

impl Due {
    /// These sessions wait, too.
    pub(crate) fn insert(&mut self, id: PathId, sessions: SessionSet) {
        for slot in sessions.iter() {
            self.0.entry(id).or_default().entry(slot).or_default();
        }
    }

    /// A session does not demand the path any more: it does not wait for what is to be known of it.
    pub(crate) fn remove(&mut self, id: PathId, slot: Slot) {
        if let Some(held) = self.0.get_mut(&id) {
            held.remove(&slot);
            if held.is_empty() {
                self.0.remove(&id);
            }
        }
    }
}

impl Coordinator {
    /// It is known of a path whether it can be had.
    pub(crate) fn answer_came(&mut self, id: PathId) {
        let held = self.asking.due.0.remove(&id).unwrap_or_default();
        for slot in self.graph.paths[id].demanded.iter() {
            self.count_answer(slot, id, held.get(&slot).copied().unwrap_or_default());
        }
    }

    /// A session demands a path of which all is known.
    pub(crate) fn answer_was_there(&mut self, slot: Slot, id: PathId) {
        self.count_answer(slot, id, Held::default());
    }

    fn count_answer(&mut self, slot: Slot, id: PathId, held: Held) {
        let path = &self.graph.paths[id];
        let available = path.available();
        let since = if available { held.fetch } else { held.build };
        let without = path.unheard && !available;
        let Some(session) = self.sessions.get_mut(slot).filter(|_| path.own != Own::Here) else {
            return;
        };
        let timing: &mut PresenceTiming = &mut session.timing;
        match since {
            _ if without => timing.without += 1,
            Some(_) => timing.waited += 1,
            None => timing.in_time += 1,
        }
        if let Some(since) = since {
            timing.longest = timing.longest.max(millis(self.now.since(since)));
        }
    }

    /// Notes which answers are waited for now: as many as there are slots and fetches that nothing else wants.
    pub(crate) fn note_waiting(&mut self) {
        if self.asking.due.0.is_empty() {
            return;
        }
        let free = self.builders.room_here(Urgency::Demanded);
        let free = free.saturating_add(self.builders.free_at_peers()) as usize;
        let builds = free.saturating_sub(self.queues.weighing.len());
        let fetches = self.fetches_free();
        // What several sessions wait for is built or fetched once.
        let due = self.asking.due.0.values_mut().enumerate();
        for (place, sessions) in due.take(builds.max(fetches)) {
            for held in sessions.values_mut() {
                if place < builds {
                    held.build.get_or_insert(self.now);
                }
                if place < fetches {
                    held.fetch.get_or_insert(self.now);
                }
            }
        }
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
