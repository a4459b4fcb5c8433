//! The engine: one task that owns the coordinator, tells it what happens, and carries out what it
//! wants.
//!
//! `message` is what it is told, `sessions` are the commands, `actions` carries out what the coordinator wants, and
//! `lending` gives slots to builds for other members and to checks.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tvix_node_coordinator::{BuildId, Config, Coordinator, Event, FetchId, OwnBuilder, SessionId, Time};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{BuildStatus, SessionStatus};
use tvix_node_swarm::Rising;
use tvix_node_swarm::underway::Noted;

mod actions;
mod lending;
mod message;
mod sessions;

use super::depot::Depot;
use super::durations::DurationsFile;
use super::limits::{BUILD_EVENTS, DURATIONS_KEPT, FAREWELL, IDLE, LONGEST_SLEEP, TICK};
use super::perform::Jobs;
use super::session::Session;
use crate::team::membership::Membership;
use actions::Transfer;
use lending::{Borrower, Lent};
pub use lending::{LentSlot, LentTo};
pub use message::{Activity, Message};
use sessions::no_session;

struct Running {
    derivation: StorePath,
    started: Instant,
    /// The node it runs on, by name.
    node: String,
    /// The slot it has on this node; none: it runs on another one, or takes part in what this one builds for another.
    slot: Option<u32>,
    cancel: CancellationToken,
    last_line: String,
}

/// What is written down of durations.
struct Durations {
    file: DurationsFile,
    /// Up to which change.
    written: u64,
    /// When it is looked at again.
    due: Instant,
}

/// The engine's own state.
pub struct Engine {
    coordinator: Coordinator,
    origin: Instant,
    depot: Arc<Depot>,
    jobs: Arc<Jobs>,
    inbox: mpsc::Receiver<Message>,
    /// Handed to what runs beside the engine.
    outbox: mpsc::Sender<Message>,
    team: Arc<Membership>,
    sessions: HashMap<u64, Session>,
    next_session: u64,
    running: HashMap<BuildId, Running>,
    transfers: HashMap<Transfer, CancellationToken>,
    /// How urgent each fetch is.
    rising: HashMap<FetchId, Rising>,
    /// Builds that members are told of.
    announced: HashMap<BuildId, Noted>,
    /// Derivations that are about to be placed; members wait for that where this node goes first.
    deciding: HashMap<StorePath, Noted>,
    free_slots: BTreeSet<u32>,
    /// Slots of this node that build for others, or check.
    lent: BTreeMap<u32, Lent>,
    /// Builds for others, and checks, that wait for a slot.
    borrowers: VecDeque<Borrower>,
    /// How many slots are free, for the team to know.
    free: watch::Sender<u32>,
    /// Whether a command uses this node.
    in_use: watch::Sender<bool>,
    /// How many commands are connected: also what asks the store alone uses this node.
    commands: watch::Receiver<usize>,
    /// Why nothing is lent to other members; none: something is.
    withheld: watch::Sender<Option<String>>,
    /// Who was to build a derivation, and why.
    placements: HashMap<StorePath, (String, String)>,
    durations: Durations,
    idle_exit: bool,
    last_used: Instant,
    stopping: Option<Instant>,
}

impl Engine {
    /// An engine for a node with so many slots. `free` is told how many of them are free, `in_use` whether a command
    /// uses the node; `commands` says how many are connected. `withheld`: why nothing is lent to other members at first.
    pub fn new(
        (depot, jobs, team): (Arc<Depot>, Arc<Jobs>, Arc<Membership>),
        own: OwnBuilder,
        (free, in_use): (watch::Sender<u32>, watch::Sender<bool>),
        (commands, idle_exit): (watch::Receiver<usize>, bool),
        withheld: Option<String>,
        durations: DurationsFile,
        (outbox, inbox): (mpsc::Sender<Message>, mpsc::Receiver<Message>),
    ) -> Self {
        let mut engine = Self {
            coordinator: Coordinator::new(Config::new(THIS_NODE)),
            origin: Instant::now(),
            depot,
            jobs,
            inbox,
            outbox,
            team,
            sessions: HashMap::new(),
            next_session: 1,
            running: HashMap::new(),
            transfers: HashMap::new(),
            rising: HashMap::new(),
            announced: HashMap::new(),
            deciding: HashMap::new(),
            // Own builds take as many, beside those that are lent.
            free_slots: (0..own.slots.saturating_mul(2)).collect(),
            lent: BTreeMap::new(),
            borrowers: VecDeque::new(),
            free,
            in_use,
            commands,
            withheld: watch::channel(withheld).0,
            placements: HashMap::new(),
            durations: Durations {
                file: durations,
                written: 0,
                due: Instant::now() + DURATIONS_KEPT,
            },
            idle_exit,
            last_used: Instant::now(),
            stopping: None,
        };
        let durations = engine.durations.file.read();
        engine.happened(Event::Remembered { durations });
        engine.happened(Event::OwnBuilder(own));
        engine
    }

    /// Runs until the node is to end.
    pub async fn run(mut self) {
        while !self.over() {
            let wake = tokio::time::sleep(self.patience());
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => break,
                },
                Ok(()) = self.commands.changed() => self.last_used = Instant::now(),
                () = wake => {
                    self.flush();
                    self.happened(Event::Tick);
                }
            }
            if self.durations.due < Instant::now() {
                // Nobody waits for it.
                drop(self.keep_durations());
            }
        }
        // Fails where the process is torn down at this moment.
        drop(self.keep_durations().await);
    }

    /// Has what the coordinator remembers of durations written down, where it has changed.
    fn keep_durations(&mut self) -> tokio::task::JoinHandle<()> {
        let (changes, all) = self.coordinator.durations();
        let all = (changes != self.durations.written).then(|| all.collect::<Vec<_>>());
        self.durations.written = changes;
        self.durations.due = Instant::now() + DURATIONS_KEPT;
        let file = self.durations.file.clone();
        tokio::task::spawn_blocking(move || {
            if let Some(all) = all
                && let Err(error) = file.write(all)
            {
                let file = file.0.display();
                tracing::warn!(%file, %error, "how long builds took could not be written down");
            }
        })
    }

    /// How long the engine may sleep if nothing happens.
    fn patience(&self) -> Duration {
        if self.stopping.is_some() || self.sessions.values().any(Session::is_behind) {
            return TICK;
        }
        let due = self
            .coordinator
            .deadline()
            .map(|due| due.since(self.now()).max(Duration::from_millis(1)));
        let idle = self
            .idle_exit
            .then(|| (IDLE + TICK).saturating_sub(self.last_used.elapsed()));
        let idle = idle.map(|left| left.max(TICK));
        due.into_iter().chain(idle).min().unwrap_or(LONGEST_SLEEP)
    }

    fn over(&self) -> bool {
        if let Some(since) = self.stopping {
            return self.running.is_empty() || since.elapsed() > FAREWELL;
        }
        self.idle_exit
            && *self.commands.borrow() == 0
            && self.sessions.is_empty()
            && self.running.is_empty()
            && self.lent.is_empty()
            && !self.team.all().iter().any(|team| team.is_serving())
            && self.last_used.elapsed() > IDLE
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn take(&mut self, message: Message) {
        // What peers do of their own accord is no use.
        if !matches!(
            message,
            Message::Line { .. }
                | Message::Tell { .. }
                | Message::LentLine { .. }
                | Message::Happened(_)
                | Message::Complaints(_)
                | Message::Warn { .. }
                | Message::Withhold { .. }
        ) {
            self.last_used = Instant::now();
        }
        // Whoever asked may be gone when the answer comes; that is no fault.
        match message {
            Message::Open { request, reply } => drop(reply.send(self.open(&request))),
            Message::Watch { session, reply } => drop(reply.send(self.watch(session))),
            Message::Close { session, reply } => {
                self.happened(Event::SessionInterrupted {
                    session: SessionId(session),
                });
                self.depot.end_session(session);
                self.sessions.remove(&session);
                reply.send(()).unwrap_or_default();
            }
            Message::Told {
                session,
                events,
                derivations,
                reply,
            } => {
                let result = match self.sessions.get_mut(&session) {
                    // Harmless: the session may just have ended with a failure.
                    Some(state) => {
                        state.derivations += derivations;
                        Ok(())
                    }
                    None => Err(no_session(session)),
                };
                for event in events {
                    self.happened(event);
                }
                drop(reply.send(result));
            }
            Message::Happened(event) => {
                self.forget(&event);
                self.happened(event);
            }
            Message::Complaints(complaints) => self.complain(&complaints),
            Message::Tell { session, event } => self.tell(session, event),
            Message::LendSlot {
                derivation,
                to,
                urgency,
                reply,
            } => {
                self.borrowers.push_back(Borrower {
                    derivation,
                    to,
                    urgency,
                    reply,
                });
            }
            // Who has a slot is told by what it watches.
            Message::Withhold { reason } => drop(self.withheld.send_replace(reason)),
            Message::LentLine { slot, line } => {
                if let Some(lent) = self.lent.get_mut(&slot) {
                    lent.last_line = line;
                }
            }
            Message::SlotBack { slot } => {
                self.lent.remove(&slot);
                self.free_slots.insert(slot);
                self.lent_changed();
            }
            Message::Warn { text } => self.warn(&text),
            Message::Line { build, line } => self.line(build, line),
            Message::Status(reply) => drop(reply.send(self.activity())),
            Message::Stop => self.stop(),
        }
        self.lend();
    }

    fn stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Instant::now());
        let sessions: Vec<u64> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.happened(Event::SessionInterrupted {
                session: SessionId(session),
            });
        }
        self.jobs.down.cancel();
        for running in self.running.values() {
            running.cancel.cancel();
        }
    }

    /// What an event ends is not running any more.
    fn forget(&mut self, event: &Event) {
        match event {
            Event::BuildFinished { build, .. } | Event::BuildFailed { build, .. } => {
                if let Some(slot) = self.running.remove(build).and_then(|running| running.slot) {
                    self.free_slots.insert(slot);
                }
            }
            Event::FetchFinished { fetch }
            | Event::FetchFailed { fetch, .. }
            | Event::NoRoom { fetch, .. } => {
                self.transfers.remove(&Transfer::Fetch(*fetch));
                self.rising.remove(fetch);
            }
            Event::PushFinished { push } | Event::PushFailed { push, .. } => {
                self.transfers.remove(&Transfer::Push(*push));
            }
            _ => {}
        }
    }

    /// Tells the coordinator, and does what it wants.
    fn happened(&mut self, event: Event) {
        let now = self.now();
        let weighed = match &event {
            Event::InputsWeighed { derivation, .. } => Some(derivation.clone()),
            _ => None,
        };
        for action in self.coordinator.handle(now, event) {
            self.act(action);
        }
        if let Some(derivation) = weighed {
            self.deciding.remove(&derivation);
        }
    }

    fn activity(&self) -> Activity {
        let seconds = |since: Instant| since.elapsed().as_secs();
        let mut sessions: Vec<SessionStatus> = self
            .sessions
            .iter()
            .filter(|(_, state)| !state.ended)
            .map(|(number, state)| SessionStatus {
                session: *number,
                mode: state.mode,
                age: seconds(state.opened),
                derivations: state.derivations,
                waiting: self
                    .coordinator
                    .session(SessionId(*number))
                    .map_or(0, |view| view.waiting),
            })
            .collect();
        sessions.sort_by_key(|session| session.session);
        let mut builds: Vec<BuildStatus> = self
            .running
            .iter()
            .map(|(build, running)| BuildStatus {
                derivation: running.derivation.clone(),
                node: running.node.clone(),
                age: seconds(running.started),
                last_line: running.last_line.clone(),
                sessions: self
                    .coordinator
                    .watchers(*build)
                    .into_iter()
                    .map(|session| session.0)
                    .collect(),
                slot: running.slot,
                requester: None,
            })
            .collect();
        builds.extend(self.lent.iter().map(|(slot, lent)| BuildStatus {
            derivation: lent.derivation.clone(),
            node: THIS_NODE.to_owned(),
            age: seconds(lent.since),
            last_line: lent.last_line.clone(),
            sessions: match lent.to {
                LentTo::Session(session) => vec![session],
                LentTo::Member(_) | LentTo::Sample(_) => Vec::new(),
            },
            slot: Some(*slot),
            requester: match &lent.to {
                LentTo::Session(_) => None,
                LentTo::Member(name) | LentTo::Sample(name) => Some(name.clone()),
            },
        }));
        builds.sort_by(|a, b| a.derivation.cmp(&b.derivation));
        Activity { sessions, builds }
    }
}

/// What this node calls itself in front of its own user.
pub const THIS_NODE: &str = "this node";

/// Channel for one build's events.
pub fn build_channel<T>() -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    mpsc::channel(BUILD_EVENTS)
}
