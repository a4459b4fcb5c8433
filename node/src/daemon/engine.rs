//! The engine: one task that owns the coordinator, tells it what happens, and carries out what it
//! wants.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tvix_node_coordinator::{
    Action, BuildId, Config, Coordinator, Event, OwnBuilder, PathPresence, QuestionId, SessionId,
    SessionOptions, Time,
};
use tvix_node_gateway::control::ApiError;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{
    BuildStatus, Event as SessionEvent, EventKind, FailureKind, OpenSession, SessionMode, SessionStatus,
};

use super::depot::Depot;
use super::job::{Job, Jobs};
use super::limits::{BUILD_EVENTS, FAREWELL, IDLE, LONGEST_SLEEP, SESSION_EVENTS, TICK};

/// What the engine is told.
pub enum Message {
    /// A command begins.
    Open {
        /// What it wants.
        request: OpenSession,
        /// Its number.
        reply: oneshot::Sender<Result<u64, ApiError>>,
    },
    /// A command wants its events.
    Watch {
        /// Its number.
        session: u64,
        /// Where they come.
        reply: oneshot::Sender<Result<mpsc::Receiver<SessionEvent>, ApiError>>,
    },
    /// A command is gone.
    Close {
        /// Its number.
        session: u64,
        /// Answered at once.
        reply: oneshot::Sender<()>,
    },
    /// An evaluation went on. What it told is in the store already.
    Told {
        /// Its number.
        session: u64,
        /// In order.
        events: Vec<Event>,
        /// How many derivations are among it.
        derivations: u64,
        /// Answered when taken.
        reply: oneshot::Sender<Result<(), ApiError>>,
    },
    /// A build or a question made progress.
    Happened(Event),
    /// A build wrote a line.
    Line {
        /// Which build.
        build: BuildId,
        /// The line.
        line: String,
    },
    /// Somebody asks what is going on.
    Status(oneshot::Sender<Activity>),
    /// End everything.
    Stop,
}

/// What is going on.
pub struct Activity {
    /// Commands.
    pub sessions: Vec<SessionStatus>,
    /// Builds.
    pub builds: Vec<BuildStatus>,
}

struct Session {
    opened: Instant,
    mode: SessionMode,
    sender: mpsc::Sender<SessionEvent>,
    receiver: Option<mpsc::Receiver<SessionEvent>>,
    backlog: VecDeque<SessionEvent>,
    left_out: u64,
    derivations: u64,
    ended: bool,
}

struct Running {
    derivation: StorePath,
    started: Instant,
    slot: u32,
    cancel: CancellationToken,
    last_line: String,
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
    name: String,
    sessions: HashMap<u64, Session>,
    next_session: u64,
    running: HashMap<BuildId, Running>,
    free_slots: BTreeSet<u32>,
    reasons: HashMap<StorePath, String>,
    idle_exit: bool,
    last_used: Instant,
    stopping: Option<Instant>,
}

impl Engine {
    /// An engine for a node with so many slots.
    pub fn new(
        depot: Arc<Depot>,
        jobs: Arc<Jobs>,
        own: OwnBuilder,
        idle_exit: bool,
        (outbox, inbox): (mpsc::Sender<Message>, mpsc::Receiver<Message>),
    ) -> Self {
        let mut engine = Self {
            coordinator: Coordinator::new(Config::new(THIS_NODE)),
            origin: Instant::now(),
            depot,
            jobs,
            inbox,
            outbox,
            name: THIS_NODE.to_owned(),
            sessions: HashMap::new(),
            next_session: 1,
            running: HashMap::new(),
            free_slots: (0..own.slots).collect(),
            reasons: HashMap::new(),
            idle_exit,
            last_used: Instant::now(),
            stopping: None,
        };
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
                    None => return,
                },
                () = wake => {
                    self.flush();
                    self.happened(Event::Tick);
                }
            }
        }
    }

    /// How long the engine may sleep if nothing happens.
    fn patience(&self) -> Duration {
        if self.stopping.is_some() || self.sessions.values().any(|session| !session.backlog.is_empty()) {
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
            && self.sessions.is_empty()
            && self.running.is_empty()
            && self.last_used.elapsed() > IDLE
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn take(&mut self, message: Message) {
        if !matches!(message, Message::Line { .. }) {
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
                if let Event::BuildFinished { build, .. } | Event::BuildFailed { build, .. } = &event
                    && let Some(running) = self.running.remove(build)
                {
                    self.free_slots.insert(running.slot);
                }
                self.happened(event);
            }
            Message::Line { build, line } => self.line(build, line),
            Message::Status(reply) => drop(reply.send(self.activity())),
            Message::Stop => self.stop(),
        }
    }

    fn open(&mut self, request: &OpenSession) -> Result<u64, ApiError> {
        if self.stopping.is_some() {
            return Err(ApiError::new(
                FailureKind::Unavailable,
                "this node is going down; run the command again",
            ));
        }
        if request.to.is_some() {
            return Err(ApiError::new(
                FailureKind::Invalid,
                "desired stores (--to) are not there yet: outputs stay in this node's store",
            ));
        }
        let number = self.next_session;
        self.next_session += 1;
        let (sender, receiver) = mpsc::channel(SESSION_EVENTS);
        self.sessions.insert(
            number,
            Session {
                opened: Instant::now(),
                mode: request.mode,
                sender,
                receiver: Some(receiver),
                backlog: VecDeque::new(),
                left_out: 0,
                derivations: 0,
                ended: false,
            },
        );
        self.depot.begin_session(number);
        self.happened(Event::SessionOpened {
            session: SessionId(number),
            options: SessionOptions::of(request, None),
        });
        Ok(number)
    }

    fn watch(&mut self, session: u64) -> Result<mpsc::Receiver<SessionEvent>, ApiError> {
        let state = self
            .sessions
            .get_mut(&session)
            .ok_or_else(|| no_session(session))?;
        state.receiver.take().ok_or_else(|| {
            ApiError::new(
                FailureKind::Conflict,
                format!("the events of session {session} are read by somebody already"),
            )
        })
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
        for running in self.running.values() {
            running.cancel.cancel();
        }
    }

    /// Tells the coordinator, and does what it wants.
    fn happened(&mut self, event: Event) {
        let now = self.now();
        for action in self.coordinator.handle(now, event) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::AskPresence { question, paths, .. } => self.ask_presence(question, paths),
            Action::BuildHere {
                build,
                derivation,
                kind,
                demanded,
                cores,
                limits,
            } => {
                let Some(slot) = self.free_slots.pop_first() else {
                    // The coordinator counts the slots too; if it ever disagrees, the build is placed anew.
                    self.later(Event::BuildFailed {
                        build,
                        failure: super::job::no_slot(),
                    });
                    return;
                };
                let cancel = CancellationToken::new();
                let started = Instant::now();
                let running = Running {
                    derivation: derivation.clone(),
                    started,
                    slot,
                    cancel: cancel.clone(),
                    last_line: String::new(),
                };
                self.running.insert(build, running);
                let reason = self.reasons.get(&derivation).cloned().unwrap_or_default();
                let job = Job {
                    build,
                    derivation,
                    kind,
                    demanded,
                    cores,
                    limits,
                    slot,
                    reason,
                };
                tokio::spawn(Arc::clone(&self.jobs).run(job, self.outbox.clone(), cancel));
            }
            Action::CancelBuild { build, .. } => {
                if let Some(running) = self.running.get(&build) {
                    running.cancel.cancel();
                }
            }
            Action::Release { paths } => self.depot.release(&paths),
            Action::Tell { session, event } => self.tell(session.0, event),
            Action::Refuse { session, refusal } => {
                let text = refusal.to_string();
                tracing::warn!(session = session.0, refusal = text, "a session was refused");
                self.tell(
                    session.0,
                    EventKind::Message {
                        level: "error".to_owned(),
                        text,
                    },
                );
                self.end_refused(session.0);
            }
            // There is nobody to ask yet: with no peers and no caches the coordinator has no reason
            // for any of these, and a fetch or push that it wants all the same ends with an honest error.
            Action::WeighInputs { derivation, .. } => {
                self.later(Event::InputsWeighed {
                    derivation,
                    total: 0,
                    there: Vec::new(),
                });
            }
            Action::Fetch { fetch, path, .. } => {
                let error = format!("{path} cannot be fetched: this node knows no other store");
                self.later(Event::FetchFailed { fetch, error });
            }
            Action::Push { push, path, .. } => {
                let error = format!("{path} cannot be pushed: this node knows no other store");
                self.later(Event::PushFailed {
                    push,
                    error,
                    transient: false,
                });
            }
            Action::Request { build, .. } => {
                self.later(Event::BuildFailed {
                    build,
                    failure: super::job::no_peer(),
                });
            }
            Action::CancelFetch { .. } | Action::CancelPush { .. } | Action::RenewLease { .. } => {}
        }
    }

    /// Reports something to the coordinator after the current event.
    fn later(&self, event: Event) {
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            // Where the engine has ended, nobody needs to know.
            drop(outbox.send(Message::Happened(event)).await);
        });
    }

    fn ask_presence(&self, question: QuestionId, paths: Vec<StorePath>) {
        let (depot, outbox) = (Arc::clone(&self.depot), self.outbox.clone());
        tokio::spawn(async move {
            let paths = depot
                .presence(paths)
                .await
                .into_iter()
                .map(|(path, nar_size)| PathPresence {
                    own: nar_size.is_some(),
                    desired: false,
                    sources: Vec::new(),
                    nar_size,
                    path,
                });
            let event = Event::Presence {
                question,
                paths: paths.collect(),
            };
            drop(outbox.send(Message::Happened(event)).await);
        });
    }

    fn tell(&mut self, session: u64, kind: EventKind) {
        if let EventKind::Placed {
            derivation, reason, ..
        } = &kind
        {
            self.reasons.insert(derivation.clone(), reason.clone());
        }
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        match &kind {
            EventKind::BuildFinished { derivation, .. }
            | EventKind::BuildFailed { derivation, .. }
            | EventKind::Cancelled { derivation, .. } => drop(self.reasons.remove(derivation)),
            EventKind::Ended { .. } => state.ended = true,
            _ => {}
        }
        state.send(kind);
    }

    /// Ends a session whose events the coordinator will not follow.
    fn end_refused(&mut self, session: u64) {
        if self.sessions.get(&session).is_some_and(|state| !state.ended) {
            let outcome = tvix_node_protocol::control::Outcome::BuildFailed;
            self.tell(
                session,
                EventKind::Ended {
                    outcome,
                    built: 0,
                    fetched: 0,
                    present: 0,
                    failed: 1,
                },
            );
        }
    }

    fn line(&mut self, build: BuildId, line: String) {
        let Some(running) = self.running.get_mut(&build) else {
            return;
        };
        running.last_line.clone_from(&line);
        let derivation = running.derivation.clone();
        for watcher in self.coordinator.watchers(build) {
            if let Some(state) = self.sessions.get_mut(&watcher.0) {
                state.send(EventKind::Log {
                    derivation: derivation.clone(),
                    line: line.clone(),
                });
            }
        }
    }

    fn flush(&mut self) {
        for state in self.sessions.values_mut() {
            state.flush();
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
                node: self.name.clone(),
                age: seconds(running.started),
                last_line: running.last_line.clone(),
                sessions: self
                    .coordinator
                    .watchers(*build)
                    .into_iter()
                    .map(|session| session.0)
                    .collect(),
            })
            .collect();
        builds.sort_by(|a, b| a.derivation.cmp(&b.derivation));
        Activity { sessions, builds }
    }
}

/// What this node calls itself in front of its own user.
const THIS_NODE: &str = "this node";

fn no_session(session: u64) -> ApiError {
    ApiError::new(
        FailureKind::NotFound,
        format!("there is no session {session}; it has ended"),
    )
}

impl Session {
    fn send(&mut self, kind: EventKind) {
        let at = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        let log = matches!(kind, EventKind::Log { .. });
        let event = SessionEvent { at, kind };
        self.flush();
        if self.backlog.is_empty() {
            match self.sender.try_send(event) {
                // Without a receiver the command is gone; closing the session is under way.
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
                Err(mpsc::error::TrySendError::Full(event)) if !log => self.backlog.push_back(event),
                Err(mpsc::error::TrySendError::Full(_)) => self.left_out += 1,
            }
        } else if log {
            self.left_out += 1;
        } else {
            self.backlog.push_back(event);
        }
    }

    /// Sends what waits. Only what the coordinator says waits, so it is bounded by the derivations
    /// of the session.
    fn flush(&mut self) {
        while let Some(event) = self.backlog.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(event)) = self.sender.try_send(event) {
                self.backlog.push_front(event);
                return;
            }
        }
        if self.left_out > 0 {
            let text = format!(
                "{} log lines were left out here; tvix-node log shows them all",
                self.left_out
            );
            let at = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
            let kind = EventKind::Message {
                level: "info".to_owned(),
                text,
            };
            if self.sender.try_send(SessionEvent { at, kind }).is_ok() {
                self.left_out = 0;
            }
        }
    }
}

/// Channel for one build's events.
pub fn build_channel<T>() -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    mpsc::channel(BUILD_EVENTS)
}
