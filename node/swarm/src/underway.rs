//! What this node has built at the moment, for members that are about to build the same.
//!
//! Two nodes that come to the same derivation at the same time ask each other before either begins it. Of two that are
//! both about to decide, the one that began to first decides first, and the other one waits for that: so one of them
//! sees what the other does, and nobody waits for one that waits for him. What is first is told by logical clocks, with
//! keys between equals (Lamport 1978; Ricart and Agrawala 1981): no machine's clock has to be right, and a member that
//! lies about it only gets its way later or sooner.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tvix_node_protocol::build::{BuildTerms, SwarmId};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::presence::{PresenceKey, PresenceSecret};

use crate::core::lock;
use crate::limits::UNDERWAY_TIME;

/// For whom something is built, which decides who may know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// For the owner: members that may know of the derivation.
    Owner,
    /// For a member of this team: its members.
    Team(SwarmId),
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Others are asked before it is placed, since this turn.
    Deciding(Turn),
    /// This node has been asked to build it, and has not begun.
    Waits,
    /// This node builds it.
    Here,
    /// This node has asked another one to build it.
    At(NodeKey),
}

/// When something began to be decided: turns of all nodes together are in one order, in which nobody's begins before one of
/// which he has heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Turn(pub u64);

#[derive(Debug)]
struct Entry {
    derivation: StorePath,
    terms: BuildTerms,
    whose: For,
    stage: Stage,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// The latest turn of this node or of one that has asked it.
    turn: Turn,
    entries: BTreeMap<u64, Entry>,
}

/// See the [module](self). One for all teams of a node.
#[derive(Debug)]
pub struct Underway {
    state: Mutex<State>,
    /// Counts what has changed, so that who waits for a decision sees it.
    changes: watch::Sender<u64>,
}

impl Default for Underway {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changes: watch::channel(0).0,
        }
    }
}

/// Something is under way as long as this is held.
#[derive(Debug)]
pub struct Noted {
    number: u64,
    underway: Arc<Underway>,
}

impl Noted {
    /// It has come so far.
    pub fn set(&self, stage: Stage) {
        if let Some(entry) = lock(&self.underway.state).entries.get_mut(&self.number) {
            entry.stage = stage;
        }
        self.underway.changes.send_modify(|changes| *changes += 1);
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        lock(&self.underway.state).entries.remove(&self.number);
        self.underway.changes.send_modify(|changes| *changes += 1);
    }
}

/// Where something is built, for one who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nowhere that this node knows of.
    Nowhere,
    /// It is decided now; who asks waits for that.
    Deciding,
    /// There.
    At(NodeKey),
}

/// What this node does for others with something that its owner wants, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForOthers {
    /// Nothing.
    Not,
    /// It was asked to build it.
    Waits,
    /// It builds it.
    Runs,
}

/// Who asks, and whom.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The team that both are members of.
    pub team: SwarmId,
    /// This node.
    pub me: NodeKey,
    /// Who asks.
    pub asker: NodeKey,
    /// Since when it has been about to decide.
    pub turn: Turn,
    /// On which terms it wants it built.
    pub terms: BuildTerms,
    /// Whether it may know of what is built for the owner.
    pub owners: bool,
}

/// What one who asks may be told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The derivation.
    pub derivation: StorePath,
    /// Whether it is built for the owner alone, so that it has to be seen whether the team may know of it.
    pub for_owner: bool,
}

impl Underway {
    /// Something is under way until the answer is dropped.
    #[must_use]
    pub fn note(
        self: &Arc<Self>,
        derivation: StorePath,
        terms: BuildTerms,
        whose: For,
        stage: Stage,
    ) -> Noted {
        let number = {
            let mut state = lock(&self.state);
            let number = state.next;
            state.next += 1;
            let entry = Entry {
                derivation,
                terms,
                whose,
                stage,
            };
            state.entries.insert(number, entry);
            number
        };
        self.changes.send_modify(|changes| *changes += 1);
        Noted {
            number,
            underway: Arc::clone(self),
        }
    }

    /// A derivation is being decided on until the answer is dropped, and since which turn, which those who are asked are
    /// to be told.
    #[must_use]
    pub fn decide(self: &Arc<Self>, derivation: StorePath, terms: BuildTerms, whose: For) -> (Noted, Turn) {
        let turn = {
            let mut state = lock(&self.state);
            state.turn = Turn(state.turn.0.saturating_add(1));
            state.turn
        };
        let noted = self.note(derivation, terms, whose, Stage::Deciding(turn));
        (noted, turn)
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        lock(&self.state).entries.is_empty()
    }

    /// What these keys name among what is under way for a team or the owner, in their order.
    #[must_use]
    pub fn named(&self, team: SwarmId, secret: &PresenceSecret, keys: &[PresenceKey]) -> Vec<Option<Named>> {
        let mut named: BTreeMap<PresenceKey, Named> = BTreeMap::new();
        for entry in lock(&self.state).entries.values() {
            let for_owner = match entry.whose {
                For::Owner => true,
                For::Team(other) if other == team => false,
                For::Team(_) => continue,
            };
            let known = named
                .entry(secret.key(&entry.derivation))
                .or_insert_with(|| Named {
                    derivation: entry.derivation.clone(),
                    for_owner,
                });
            known.for_owner &= for_owner;
        }
        keys.iter().map(|key| named.get(key).cloned()).collect()
    }

    /// How far a derivation is that other members have asked this node to build on these terms.
    #[must_use]
    pub fn for_others(&self, derivation: &StorePath, terms: BuildTerms) -> ForOthers {
        let state = lock(&self.state);
        let same = |entry: &Entry| entry.derivation == *derivation && entry.terms == terms;
        let theirs = |entry: &&Entry| same(entry) && matches!(entry.whose, For::Team(_));
        let stages = state
            .entries
            .values()
            .filter(theirs)
            .map(|entry| match entry.stage {
                Stage::Here => ForOthers::Runs,
                _ => ForOthers::Waits,
            });
        stages.max().unwrap_or(ForOthers::Not)
    }

    /// A member that is about to decide has asked: what this node decides on from now on comes after that.
    pub fn heard(&self, turn: Turn) {
        let mut state = lock(&self.state);
        state.turn = state.turn.max(turn);
    }

    /// Where a derivation is built, as far as this node knows; none: nowhere. Waits a moment where this node is just
    /// deciding, and goes first.
    pub async fn place(&self, derivation: &StorePath, asked: Asked) -> Option<NodeKey> {
        let mut changes = self.changes.subscribe();
        let decided = async {
            loop {
                changes.mark_unchanged();
                match self.seen(derivation, asked) {
                    Seen::Nowhere => return None,
                    Seen::At(node) => return Some(node),
                    // The sender is there as long as this is.
                    Seen::Deciding => drop(changes.changed().await),
                }
            }
        };
        tokio::time::timeout(UNDERWAY_TIME, decided).await.unwrap_or(None)
    }

    /// As [`Underway::place`], as it is at the moment.
    #[must_use]
    pub fn seen(&self, derivation: &StorePath, asked: Asked) -> Seen {
        let Asked {
            team,
            me,
            asker,
            turn,
            terms,
            owners,
        } = asked;
        let state = lock(&self.state);
        let visible = |entry: &&Entry| {
            entry.derivation == *derivation
                && entry.terms == terms
                && match entry.whose {
                    For::Owner => owners,
                    For::Team(other) => other == team,
                }
        };
        let mut seen = Seen::Nowhere;
        for entry in state.entries.values().filter(visible) {
            match (entry.stage, seen) {
                (Stage::Here | Stage::Waits, _) => return Seen::At(me),
                // Also to that one, to whom the request may be on its way.
                (Stage::At(node), _) => seen = Seen::At(node),
                (Stage::Deciding(own), Seen::Nowhere) if (own, me) < (turn, asker) => seen = Seen::Deciding,
                _ => {}
            }
        }
        seen
    }
}

#[cfg(test)]
#[path = "underway_tests.rs"]
mod tests;
