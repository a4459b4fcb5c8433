//! One command's evaluation and its session with the node, run to the end.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tvix_node_evaluator::{
    Event as EvaluatorEvent, HostError, MessageKind, NamedDerivation, Options, Target,
};
use tvix_node_gateway::control::{ClientError, ControlClient, EventStream};
use tvix_node_protocol::control::{
    CONTROL_VERSION, Event, EventKind, FailureKind, OpenSession, Outcome, SessionMode, WorkerMessage,
};

use super::Notice;
use super::error::CommandError;
use super::options::Building;
use crate::background::connect_or_start;
use crate::fetch::Fetcher;
use crate::home::Home;
use crate::worker::{ImportSender, Link, NodeHost};

/// When the session is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// At once, while the evaluation begins.
    Now,
    /// When the evaluation first needs the store or a build.
    WhenNeeded,
}

/// What is left of a session that ran to its end.
pub struct Ended {
    /// Derivations that the targets named, in the order of the targets.
    pub derivations: Vec<NamedDerivation>,
    /// Outputs of the targets that were built, by their number in `derivations`.
    pub outputs: Vec<Option<std::collections::BTreeMap<String, tvix_node_protocol::StorePath>>>,
    /// Targets that could not be evaluated.
    pub failures: usize,
    /// Whether the node could not do something that the evaluation needed.
    pub node_failed: bool,
    /// How the node says it ended; none where no session was opened.
    pub outcome: Option<Outcome>,
    /// Keeps the session, and so what it made, until dropped.
    pub keep: Option<Open>,
}

/// An open session.
pub struct Open {
    /// Talks to the node.
    pub client: ControlClient,
    session: u64,
    /// Reading ends with this.
    events: tokio::task::JoinHandle<()>,
}

impl Open {
    /// Ends the session and waits until the node has ended everything it did for it.
    pub async fn close(self) {
        self.events.abort();
        // Aborting drops the stream, which closes the connection, which tells the node.
        drop(self.events.await);
        let ended = async {
            loop {
                match self.client.status().await {
                    Ok(status) if status.sessions.iter().any(|open| open.session == self.session) => {
                        tokio::time::sleep(CLOSING_PAUSE).await;
                    }
                    // A node that is gone has ended everything, too.
                    _ => return,
                }
            }
        };
        // One that does not answer goes on cleaning up when it does.
        tokio::time::timeout(CLOSING_TIME, ended).await.ok();
    }
}

/// Waiting for an interrupted session to end: builds are killed within a second; more is not waited
/// for, the node goes on cleaning up without us.
const CLOSING_TIME: std::time::Duration = std::time::Duration::from_secs(3);
const CLOSING_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

enum Step {
    Evaluator(EvaluatorEvent),
    Message(MessageKind, String),
    Node(Event),
    /// The node's events ended without their last one.
    Cut,
    /// There will be no session.
    NotOpened,
    /// The node could not do something, through no fault of the expression. What the evaluation says next
    /// may be for that.
    NodeFailed,
    /// The evaluation's thread has ended in the middle.
    BrokeOff,
    /// The evaluation's thread has ended.
    Evaluated {
        /// What the node refused of what it was told.
        refused: Option<HostError>,
        /// Whether the node could not do something, through no fault of the expression.
        node_failed: bool,
    },
}

/// Evaluates, builds what `mode` says, and reports every step to `notice`.
///
/// # Errors
/// The node cannot be reached, refuses, or goes away; [`CommandError::Interrupted`].
pub async fn run(
    home: &Home,
    mode: SessionMode,
    opening: Opening,
    building: &Building,
    (options, targets): (Options, Vec<Target>),
    notice: &mut dyn FnMut(Notice),
) -> Result<Ended, CommandError> {
    let request = OpenSession {
        version: CONTROL_VERSION,
        mode,
        keep_going: building.keep_going,
        keep_failed: building.keep_failed,
        private: building.private,
        jobs: building.jobs,
        cores: building.cores,
        limits: building.limits,
        to: building.to.clone(),
        substituters: building.substituters.clone(),
        trusted_public_keys: building.trusted_public_keys.clone(),
    };
    let (steps, mut inbox) = mpsc::unbounded_channel();
    let opened: Arc<Mutex<Opened>> = Arc::default();
    let starter = Starter {
        home: home.clone(),
        request,
        steps: steps.clone(),
        opened: Arc::clone(&opened),
    };
    let runtime = tokio::runtime::Handle::current();
    let eager = (opening == Opening::Now).then(|| runtime.spawn(starter.clone().open()));
    let store_folder = home.store_folder();
    let fetcher = Fetcher::new(home.fetch_folder(), runtime.clone());
    let evaluation = Evaluating {
        runtime,
        starter,
        eager,
        store_folder,
        fetcher,
        options,
        targets,
        steps,
    };
    std::thread::Builder::new()
        .name("evaluation".to_owned())
        .spawn(move || evaluation.run_to_an_end())
        .map_err(|source| CommandError::Io {
            what: "no thread for the evaluation".to_owned(),
            source,
        })?;

    let mut progress = Progress::new(mode);
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    while !progress.complete(opened_any(&opened)) {
        let step = tokio::select! {
            step = inbox.recv() => step,
            _ = &mut interrupt => {
                if let Some(open) = take_open(&opened) {
                    tokio::select! {
                        () = open.close() => {}
                        // Whoever says it twice does not want to wait.
                        _ = tokio::signal::ctrl_c() => {}
                    }
                }
                return Err(CommandError::Interrupted);
            }
        };
        // Whoever would say what is still to come is gone.
        let step = step.ok_or(CommandError::BrokeOff)?;
        if let Err(error) = progress.take(step, home, notice) {
            // The first cause is the one to tell: why the session could not be opened or broke.
            let failure = opened
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .failure
                .take();
            return Err(failure.unwrap_or(error));
        }
    }
    let keep = take_open(&opened);
    let Progress {
        named,
        outputs,
        failures,
        node_failed,
        outcome,
        ..
    } = progress;
    let mut derivations: Vec<(usize, usize, NamedDerivation)> = named
        .into_iter()
        .enumerate()
        .map(|(number, named)| (named.target, number, named))
        .collect();
    derivations.sort_by_key(|(target, number, _)| (*target, *number));
    let outputs = derivations
        .iter()
        .map(|(_, number, _)| outputs.get(number).cloned())
        .collect();
    let derivations = derivations.into_iter().map(|(_, _, named)| named).collect();
    Ok(Ended {
        derivations,
        outputs,
        failures,
        node_failed,
        outcome,
        keep,
    })
}

#[derive(Default)]
struct Opened {
    any: bool,
    open: Option<Open>,
    failure: Option<CommandError>,
}

fn opened_any(opened: &Mutex<Opened>) -> bool {
    opened.lock().unwrap_or_else(PoisonError::into_inner).any
}

fn take_open(opened: &Mutex<Opened>) -> Option<Open> {
    opened.lock().unwrap_or_else(PoisonError::into_inner).open.take()
}

/// Opens the session, once.
#[derive(Clone)]
struct Starter {
    home: Home,
    request: OpenSession,
    steps: mpsc::UnboundedSender<Step>,
    opened: Arc<Mutex<Opened>>,
}

impl Starter {
    async fn open(self) -> Result<Link, HostError> {
        let (opened, steps) = (Arc::clone(&self.opened), self.steps.clone());
        match self.try_open().await {
            Ok(link) => Ok(link),
            Err(error) => {
                let message = error.to_string();
                opened.lock().unwrap_or_else(PoisonError::into_inner).failure = Some(error);
                // Where nobody listens any more, the command has ended.
                drop(steps.send(Step::NotOpened));
                Err(HostError::new(message))
            }
        }
    }

    async fn try_open(self) -> Result<Link, CommandError> {
        let client = connect_or_start(&self.home).await?;
        let answer = client.open_session(&self.request).await;
        let answer = answer.map_err(|error| match &error {
            // What the command line asks for cannot be, as this node knows.
            ClientError::Refused(failure, _) if failure.kind == FailureKind::Invalid => {
                CommandError::Usage(failure.error.clone())
            }
            _ => error.into(),
        })?;
        let events = client.events(answer.session).await?;
        let (link, imports) = Link::new(client.clone(), &answer);
        let events = tokio::spawn(read_events(events, imports, self.steps));
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.any = true;
        opened.open = Some(Open {
            client,
            session: answer.session,
            events,
        });
        Ok(link)
    }
}

/// Passes the session's events on, those of imports to the evaluation too. Stays until aborted: the
/// session lives as long as the stream.
async fn read_events(mut events: EventStream, imports: ImportSender, steps: mpsc::UnboundedSender<Step>) {
    loop {
        let step = match events.next().await {
            Ok(Some(event)) => {
                let import = match &event.kind {
                    EventKind::ImportDone { import } => Some((*import, Ok(()))),
                    EventKind::ImportFailed { import, error } => Some((*import, Err(error.clone()))),
                    _ => None,
                };
                if let Some((import, result)) = import {
                    imports.send(import, result);
                }
                Step::Node(event)
            }
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "the events of the session broke off");
                Step::Cut
            }
        };
        let cut = matches!(step, Step::Cut);
        if steps.send(step).is_err() || cut {
            break;
        }
    }
    drop(imports);
    // Keeps the connection, and with it the session, until the command is done with what it made.
    std::future::pending::<()>().await;
    drop(events);
}

/// The thread that evaluates.
struct Evaluating {
    runtime: tokio::runtime::Handle,
    starter: Starter,
    eager: Option<tokio::task::JoinHandle<Result<Link, HostError>>>,
    store_folder: std::path::PathBuf,
    fetcher: Fetcher,
    options: Options,
    targets: Vec<Target>,
    steps: mpsc::UnboundedSender<Step>,
}

impl Evaluating {
    /// Tells of an end whatever happens. A panic is a fault of this program, and has been printed; without this the
    /// command would wait for ever, or take what there is for all there is.
    fn run_to_an_end(self) {
        let steps = self.steps.clone();
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run())).is_err() {
            // Where nobody listens any more, the command has ended.
            drop(steps.send(Step::BrokeOff));
        }
    }

    fn run(self) {
        let Self {
            runtime,
            starter,
            eager,
            store_folder,
            fetcher,
            options,
            targets,
            steps,
        } = self;
        let eager_given = eager.is_some();
        let eager = std::cell::RefCell::new(eager);
        let open = move || match eager.borrow_mut().take() {
            Some(task) => runtime
                .block_on(task)
                .unwrap_or_else(|error| Err(HostError::new(format!("opening the session failed: {error}")))),
            None => runtime.block_on(starter.clone().open()),
        };
        let messages = steps.clone();
        let host = NodeHost::new(
            store_folder,
            fetcher,
            Box::new(open),
            // Where nobody listens any more, nobody reads it either.
            Box::new(move |kind, text| drop(messages.send(Step::Message(kind, text.to_owned())))),
        );
        let mut refused = None;
        let mut number = 0;
        let summary = tvix_node_evaluator::evaluate(&options, &targets, &host, &mut |event| {
            let message = match &event {
                EvaluatorEvent::Derivation(named) => {
                    number += 1;
                    Some(WorkerMessage::Target {
                        target: number - 1,
                        name: shown(&named.attribute),
                        derivation: named.drv_path.clone(),
                        outputs: vec![named.output_name.clone()],
                    })
                }
                EvaluatorEvent::Failed {
                    target,
                    attribute,
                    error,
                } if eager_given || host.is_linked() => Some(WorkerMessage::TargetFailed {
                    target: *target as u64,
                    name: shown(attribute),
                    error: error.message.lines().next().unwrap_or_default().to_owned(),
                }),
                _ => None,
            };
            if host.node_failed() {
                drop(steps.send(Step::NodeFailed));
            }
            // Shown before the node can answer with the little that it is told of it.
            drop(steps.send(Step::Evaluator(event)));
            if let Some(Err(error)) = message.map(|message| host.tell(message)) {
                refused.get_or_insert(error);
            }
        });
        match summary {
            Ok(summary) => tracing::debug!(?summary, "evaluated"),
            // It could not even begin: an argument that does not parse, no memory for a stack.
            Err(error) => {
                let event = EvaluatorEvent::Failed {
                    target: 0,
                    attribute: String::new(),
                    error,
                };
                drop(steps.send(Step::Evaluator(event)));
            }
        }
        if eager_given || host.is_linked() {
            let ended = host
                .tell(WorkerMessage::EvaluationEnded)
                .and_then(|()| host.settle());
            if let Err(error) = ended {
                refused.get_or_insert(error);
            }
        }
        drop(steps.send(Step::Evaluated {
            refused,
            node_failed: host.node_failed(),
        }));
    }
}

/// How a target is called in front of people.
fn shown(attribute: &str) -> String {
    if attribute.is_empty() {
        "(the expression)".to_owned()
    } else {
        attribute.to_owned()
    }
}

/// What is known so far.
struct Progress {
    named: Vec<NamedDerivation>,
    outputs:
        std::collections::BTreeMap<usize, std::collections::BTreeMap<String, tvix_node_protocol::StorePath>>,
    failures: usize,
    mode: SessionMode,
    evaluated: bool,
    node_failed: bool,
    outcome: Option<Outcome>,
}

impl Progress {
    fn new(mode: SessionMode) -> Self {
        Self {
            named: Vec::new(),
            outputs: std::collections::BTreeMap::new(),
            failures: 0,
            mode,
            evaluated: false,
            node_failed: false,
            outcome: None,
        }
    }

    /// Whether everything has ended.
    fn complete(&self, session: bool) -> bool {
        if self.evaluated {
            return !session || self.outcome.is_some();
        }
        // A build that failed ends the command though the evaluation still runs; where the value is
        // what counts, the evaluation has the last word.
        matches!(self.mode, SessionMode::Build | SessionMode::Check)
            && self.outcome.is_some_and(|outcome| outcome != Outcome::Success)
    }

    fn take(&mut self, step: Step, home: &Home, notice: &mut dyn FnMut(Notice)) -> Result<(), CommandError> {
        match step {
            Step::Message(kind, text) => notice(Notice::Message(kind, text)),
            Step::Evaluator(EvaluatorEvent::Derivation(named)) => self.named.push(named),
            Step::Evaluator(EvaluatorEvent::Value { target, text }) => notice(Notice::Value { target, text }),
            Step::Evaluator(EvaluatorEvent::Failed { attribute, error, .. }) => {
                self.failures += 1;
                notice(Notice::EvaluationFailed {
                    name: shown(&attribute),
                    error,
                });
            }
            Step::Evaluator(EvaluatorEvent::Finished { .. }) => {}
            Step::Evaluated { refused, node_failed } => {
                self.evaluated = true;
                self.node_failed |= node_failed;
                if let (Some(error), None) = (refused, self.outcome) {
                    return Err(CommandError::BuildFailed(error.to_string()));
                }
            }
            Step::NodeFailed => self.node_failed = true,
            Step::BrokeOff => return Err(CommandError::BrokeOff),
            Step::NotOpened => {
                let reason = "there is no session with the node".to_owned();
                return Err(CommandError::BuildFailed(reason));
            }
            Step::Cut if self.outcome.is_none() => return Err(CommandError::Broken(home.background_log())),
            Step::Cut => {}
            Step::Node(event) => {
                match &event.kind {
                    EventKind::TargetDone { target, outputs, .. } => {
                        if let Ok(target) = usize::try_from(*target) {
                            self.outputs.insert(target, outputs.clone());
                        }
                    }
                    EventKind::Ended { outcome, .. } => self.outcome = Some(*outcome),
                    _ => {}
                }
                notice(Notice::Step(event));
            }
        }
        Ok(())
    }
}
