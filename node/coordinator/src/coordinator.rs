//! The state machine itself: events in, then everything that follows from them, actions out.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::DesiredStore;
use tvix_node_protocol::control::{EventKind, Outcome};
use tvix_node_protocol::envelope::NodeKey;

use crate::action::{Action, Source};
use crate::build::Attempt;
use crate::builders::Builders;
use crate::event::Event;
use crate::graph::{DrvId, Graph, Own, Path};
use crate::history::{BuildDuration, History};
use crate::id::{BuildId, SessionId, Time};
use crate::limits::Bounds;
use crate::line::Queues;
use crate::placement::{self, CostModel};
use crate::presence::Asking;
use crate::session::Sessions;
use crate::session_set::Slot;
use crate::transfer::Transfers;
use crate::weighing::Weighed;

/// What is fixed for the life of a coordinator.
#[derive(Debug, Clone)]
pub struct Config {
    /// What people call this node.
    pub name: String,
    /// Chooses between builders.
    pub cost: CostModel,
    /// How much it holds.
    pub bounds: Bounds,
}

impl Config {
    /// With the cost model that this crate brings.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            cost: placement::waiting_time,
            bounds: Bounds::default(),
        }
    }
}

/// The coordinator of one node. See the [crate's documentation](crate).
pub struct Coordinator {
    pub(crate) config: Config,
    pub(crate) now: Time,
    last_number: u64,
    pub(crate) graph: Graph,
    pub(crate) sessions: Sessions,
    pub(crate) asking: Asking,
    pub(crate) transfers: Transfers,
    pub(crate) builders: Builders,
    pub(crate) attempts: BTreeMap<BuildId, Attempt>,
    /// Builds on peers that are not waited for any more, whose late results are still of use.
    pub(crate) given_up: BTreeMap<BuildId, Attempt>,
    pub(crate) queues: Queues,
    /// How long builds took before.
    pub(crate) history: History,
    /// Moving bytes costs more than time.
    pub(crate) metered: bool,
    /// Derivations that nobody knows any more.
    pub(crate) gone: BTreeSet<DrvId>,
    pub(crate) released: Vec<StorePath>,
    pub(crate) actions: Vec<Action>,
}

/// What is known of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionView {
    /// Derivations instantiated so far.
    pub derivations: u64,
    /// Derivations that it demands and that are neither present nor failed.
    pub waiting: u64,
}

/// What is known of a build that is placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildView {
    /// Its number.
    pub build: BuildId,
    /// What is built.
    pub derivation: StorePath,
    /// Where; none: here.
    pub node: Option<NodeKey>,
    /// Why there, in words.
    pub reason: String,
    /// When it was placed.
    pub placed: Time,
    /// Sessions that take part.
    pub sessions: Vec<SessionId>,
}

impl Coordinator {
    /// A coordinator that knows of nothing: no session, no builder, not even its own.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            now: Time::default(),
            last_number: 0,
            graph: Graph::default(),
            sessions: Sessions::default(),
            asking: Asking::default(),
            transfers: Transfers::default(),
            builders: Builders::default(),
            attempts: BTreeMap::new(),
            given_up: BTreeMap::new(),
            queues: Queues::default(),
            history: History::default(),
            metered: false,
            gone: BTreeSet::new(),
            released: Vec::new(),
            actions: Vec::new(),
        }
    }

    /// How long builds took where, to be told again by [`Event::Remembered`] after a restart; and a number that is
    /// another one whenever that has changed.
    pub fn durations(&self) -> (u64, impl Iterator<Item = BuildDuration> + '_) {
        self.history.all()
    }

    /// Takes note of an event and answers with what is to be done, in order.
    pub fn handle(&mut self, now: Time, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        self.take(event);
        loop {
            self.settle();
            if self.end_sessions() {
                continue;
            }
            self.schedule();
            if self.is_settled() && !self.end_sessions() {
                break;
            }
        }
        self.flush_transfers();
        self.note_waiting();
        self.flush_questions();
        if !self.released.is_empty() {
            let paths = std::mem::take(&mut self.released);
            self.actions.push(Action::Release { paths });
        }
        std::mem::take(&mut self.actions)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::SessionOpened { session, options } => self.open_session(session, options),
            Event::SessionInterrupted { session } => {
                if let Some(slot) = self.sessions.find(session) {
                    self.stop_session(slot, Outcome::Interrupted);
                }
            }
            Event::Instantiated { session, derivations } => self.instantiated(session, &derivations),
            Event::TargetNamed {
                session,
                target,
                name,
                derivation,
                outputs,
            } => {
                self.target_named(session, target, name, &derivation, &outputs);
            }
            Event::ImportRequested {
                session,
                import,
                derivation,
                outputs,
            } => {
                self.import_requested(session, import, &derivation, &outputs);
            }
            Event::EnsureRequested {
                session,
                import,
                path,
            } => self.ensure_requested(session, import, &path),
            Event::TargetFailed {
                session,
                target,
                name,
                error,
            } => {
                self.target_failed(session, target, name, error);
            }
            Event::EvaluationEnded { session } => self.evaluation_ended(session),
            Event::OwnBuilder(builder) => self.builders.set_own(builder),
            Event::Remembered { durations } => self.history.remember(durations),
            Event::Metered(metered) => self.metered = metered,
            Event::SlotsLent { count, giving_way } => self.builders.set_lent(count, giving_way),
            Event::Peer { node, offer } => self.peer_offers(node, offer),
            Event::Linked { node, link } => self.builders.set_link(&node, link),
            Event::Team { names, builders } => self.builders.set_team(names, builders),
            Event::PeerGone { node } => self.peer_gone(node),
            Event::Presence { question, paths } => self.presence(question, paths),
            Event::InputsWeighed {
                derivation,
                total,
                there,
                makers,
                promised,
                made,
            } => self.weighed(
                &derivation,
                Weighed {
                    total,
                    there,
                    makers,
                    promised,
                    made,
                },
            ),
            Event::FetchStarted { fetch, path, from } => self.fetch_started(fetch, path, &from),
            Event::FetchArrived {
                fetch,
                path,
                from,
                bytes,
            } => self.fetch_arrived(fetch, path, &from, bytes),
            Event::FetchFinished { fetch } => self.fetch_finished(fetch),
            Event::FetchFailed { fetch, error } => self.fetch_failed(fetch, &error),
            Event::NoRoom { fetch, error } => self.no_room(fetch, &error),
            Event::PushFinished { push } => self.push_finished(push),
            Event::PushFailed {
                push,
                error,
                transient,
            } => self.push_failed(push, error, transient),
            Event::BuildStarted { build } => self.build_started(build),
            Event::BuildDone { build } => self.build_done(build),
            Event::Heartbeat { build } => self.heartbeat(build),
            Event::InputsMissing { build, paths } => self.inputs_missing(build, &paths),
            Event::BuildFinished {
                build,
                outputs,
                delivery,
            } => {
                self.build_finished(build, &outputs, delivery);
            }
            Event::BuildFailed { build, failure } => self.build_failed(build, failure),
            Event::Checked {
                session,
                derivation,
                outcome,
            } => self.checked(session, &derivation, outcome),
            Event::Tick => self.tick(),
        }
    }

    /// When [`Event::Tick`] is due at the latest, if nothing else happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let dues = [
            self.questions_due(),
            self.leases_due(),
            self.schedule_due(),
            self.endings_due(),
        ];
        dues.into_iter().flatten().min()
    }

    /// Whether there is neither a session nor anything left of one.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.attempts.is_empty()
    }

    /// Slots of this node that are neither used, promised to a build whose inputs are still on their way,
    /// nor lent.
    #[must_use]
    pub fn free_slots(&self) -> u32 {
        self.builders.free_here()
    }

    /// Sessions to which a build's log is of interest: those that were told that it was placed.
    #[must_use]
    pub fn watchers(&self, build: BuildId) -> Vec<SessionId> {
        let told = self
            .attempts
            .get(&build)
            .map(|attempt| attempt.told)
            .unwrap_or_default();
        told.iter()
            .filter_map(|slot| Some(self.sessions.get(slot)?.id))
            .collect()
    }

    /// What is known of a session; none where it is not open.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<SessionView> {
        let session = self.sessions.get(self.sessions.find(id)?)?;
        let (derivations, waiting) = (session.derivations.len() as u64, session.pending as u64);
        Some(SessionView { derivations, waiting })
    }

    /// Builds that are placed and not over.
    pub fn builds(&self) -> impl Iterator<Item = BuildView> {
        self.attempts.iter().map(|(build, attempt)| BuildView {
            build: *build,
            derivation: attempt.derivation.clone(),
            node: attempt.node,
            reason: attempt.reason.clone(),
            placed: attempt.placed,
            sessions: self.watchers(*build),
        })
    }

    /// A number that was not used before.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    pub(crate) fn tell(&mut self, slot: Slot, event: EventKind) {
        if let Some(session) = self.sessions.get(slot) {
            self.actions.push(Action::Tell {
                session: session.id,
                event,
            });
        }
    }

    /// What people call a node.
    pub(crate) fn node_name(&self, node: Option<&NodeKey>) -> String {
        match node {
            None => self.config.name.clone(),
            Some(node) => self.builders.name(node),
        }
    }

    pub(crate) fn source_name(&self, source: &Source) -> String {
        match source {
            Source::Peer(node) => self.node_name(Some(node)),
            Source::Cache(_) | Source::Folder(_) => source.to_string(),
        }
    }

    pub(crate) fn desired_name(&self, store: &DesiredStore) -> String {
        match store {
            DesiredStore::Node(node) => self.node_name(Some(node)),
            DesiredStore::Folder(folder) => format!("file://{folder}"),
        }
    }

    /// Cleans up after a path that nobody names any more.
    pub(crate) fn path_dropped(&mut self, path: Path) {
        self.cancel_transfers(&path);
        if path.own == Own::Here {
            self.released.push(path.name);
        }
    }
}
