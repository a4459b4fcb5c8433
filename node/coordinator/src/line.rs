//! The lines in which derivations wait that could be built at once.
//!
//! Each session has lines of its own, so that a large command does not keep a small one waiting:
//! among sessions that want something equally badly, the one with the fewest builds goes first.
//! Within a session, what is farthest from its targets goes first, then what came first. Within a
//! line, all require the same of a builder, so that a line is passed over as a whole.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::action::Urgency;
use crate::graph::{Drv, DrvId, RequirementId};
use crate::id::Time;
use crate::session_set::{SessionSet, Slot};
use crate::slab::Slab;

/// Place in a line: the farthest from what is wanted first, then the first to come.
pub(crate) type Entry = (Reverse<u32>, u64, DrvId);

/// Lines of one session at one urgency, by what a builder must offer.
pub(crate) type Lines = BTreeMap<RequirementId, BTreeSet<Entry>>;

/// In which lines a derivation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) requirement: RequirementId,
    pub(crate) rank: u32,
    pub(crate) seq: u64,
    pub(crate) import: SessionSet,
    pub(crate) demanded: SessionSet,
    pub(crate) speculative: SessionSet,
}

impl Queued {
    fn lines(&self) -> impl Iterator<Item = (Urgency, Slot)> {
        let of = |urgency, set: SessionSet| set.iter().map(move |slot| (urgency, slot));
        of(Urgency::Import, self.import)
            .chain(of(Urgency::Demanded, self.demanded))
            .chain(of(Urgency::Speculative, self.speculative))
    }
}

/// Everything that could be built at once.
#[derive(Default)]
pub(crate) struct Queues {
    pub(crate) lines: BTreeMap<(Urgency, Slot), Lines>,
    /// Derivations of which it is being found out who has their inputs.
    pub(crate) weighing: BTreeSet<DrvId>,
    /// Derivations that are no guess any more, because another node was found to be at them.
    pub(crate) left: BTreeSet<DrvId>,
    /// When it is looked again at what waits for this node to begin it for another.
    pub(crate) held: Option<Time>,
    /// Derivations that some builders do not get again.
    pub(crate) troubled: BTreeSet<DrvId>,
    /// Since when there is something demanded that no builder could build.
    pub(crate) stranded: BTreeMap<(Slot, RequirementId), Time>,
    /// Since when something demanded waits for a slot that speculation holds.
    pub(crate) starved: Option<Time>,
    pub(crate) demanded_since_ranking: usize,
    pub(crate) demanded_at_ranking: usize,
}

impl Queues {
    /// Puts a derivation in its lines, or takes it out.
    pub(crate) fn set(&mut self, drvs: &mut Slab<DrvId, Drv>, id: DrvId, queued: Option<Queued>) {
        let Some(drv) = drvs.get_mut(id) else { return };
        if drv.queued == queued {
            return;
        }
        if let Some(before) = std::mem::replace(&mut drv.queued, queued.clone()) {
            let entry = (Reverse(before.rank), before.seq, id);
            for key in before.lines() {
                let Some(lines) = self.lines.get_mut(&key) else {
                    continue;
                };
                if let Some(line) = lines.get_mut(&before.requirement) {
                    line.remove(&entry);
                    if line.is_empty() {
                        lines.remove(&before.requirement);
                    }
                }
                if lines.is_empty() {
                    self.lines.remove(&key);
                }
            }
        }
        if let Some(now) = queued {
            let entry = (Reverse(now.rank), now.seq, id);
            for key in now.lines() {
                self.lines
                    .entry(key)
                    .or_default()
                    .entry(now.requirement)
                    .or_default()
                    .insert(entry);
            }
        }
    }
}
