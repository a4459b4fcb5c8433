//! Lines on standard error: who writes them, and when.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tvix_node::command::{CommandError, Notice};
use tvix_node_protocol::control::{Event, EventKind, Outcome};

use super::frame::frame;
use super::line::Line;
use super::report::{self, Detail};
use super::screen::Screen;
use super::state::State;
use super::terminal;

/// Time between two drawings. Ages are in seconds; this is for the lines of logs.
const PERIOD: Duration = Duration::from_millis(100);

/// How long the size of the terminal must have been the same before it is drawn on again: while it
/// changes, what is on it moves around.
const STEADY: Duration = Duration::from_millis(300);

/// Lines that stay, and on a terminal live lines below them, drawn by a thread of their own so that
/// ages go on between two events.
#[derive(Debug)]
pub struct View {
    shared: Arc<(Mutex<Shared>, Condvar)>,
    thread: Option<JoinHandle<()>>,
    /// Listens for the end of a stop.
    listener: Option<tokio::task::JoinHandle<()>>,
    detail: Detail,
}

#[derive(Debug)]
struct Shared {
    state: State,
    began: Instant,
    /// Lines that stay and are not written yet.
    stay: Vec<Line>,
    /// Where the live lines are; none: there are no live lines.
    screen: Option<Screen>,
    colours: bool,
    over: bool,
    /// What could not be evaluated, and has been told so.
    unevaluated: Vec<String>,
}

impl Shared {
    /// Milliseconds since the command began.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn draw(&mut self) {
        let (stay, now) = (std::mem::take(&mut self.stay), self.now());
        let text = match &mut self.screen {
            Some(screen) => {
                let size = terminal::size();
                let lines = if self.over {
                    Vec::new()
                } else {
                    frame(&self.state, now, size)
                };
                screen.redraw(&stay, &lines, size, self.colours)
            }
            None => stay.iter().map(|line| line.render(self.colours) + "\n").collect(),
        };
        terminal::write(text.as_bytes());
    }

    /// Takes the live lines away for good and says what it all came to.
    fn end(&mut self) {
        if !self.over {
            self.over = true;
            self.stay.extend(report::summary(&self.state, self.now()));
        }
        self.draw();
    }
}

impl View {
    /// Begins. `live`: with live lines. Must be called within a tokio runtime.
    pub fn start(state: State, detail: Detail, live: bool, colours: bool) -> Self {
        let shared = Arc::new((
            Mutex::new(Shared {
                state,
                began: Instant::now(),
                stay: Vec::new(),
                screen: live.then(Screen::default),
                colours,
                over: false,
                unevaluated: Vec::new(),
            }),
            Condvar::new(),
        ));
        let drawn = Arc::clone(&shared);
        // Without a thread, what stays is written at the end.
        let thread = live
            .then(|| {
                std::thread::Builder::new()
                    .name("progress".to_owned())
                    .spawn(move || draw_periodically(&drawn))
                    .ok()
            })
            .flatten();
        let listener = live.then(|| tokio::spawn(forget_when_continued(Arc::clone(&shared))));
        Self {
            shared,
            thread,
            listener,
            detail,
        }
    }

    /// Takes in what a command tells.
    pub fn notice(&self, notice: &Notice) {
        let mut shared = lock(&self.shared.0);
        let lines = match notice {
            Notice::Step(Event {
                kind: EventKind::TargetFailed { name, .. },
                ..
            }) if shared.unevaluated.contains(name) => Vec::new(),
            Notice::Step(event) => {
                let lines = report::lines(&shared.state, event, self.detail);
                let now = shared.now();
                shared.state.step(event, now);
                lines
            }
            Notice::Message(kind, text) => report::evaluation_message(*kind, text),
            Notice::EvaluationFailed { name, error } => {
                shared.unevaluated.push(name.clone());
                report::evaluation_error(&error.text)
            }
            Notice::Value { .. } => Vec::new(),
        };
        shared.stay.extend(lines);
        if shared.state.ended.is_some() {
            // What comes next may be another program's output.
            shared.end();
        } else if shared.screen.is_none() {
            shared.draw();
        }
    }

    /// Ends, with the error that the command ended in.
    pub fn finish(mut self, error: Option<&CommandError>) {
        {
            let mut shared = lock(&self.shared.0);
            shared.end();
            let told = match error {
                Some(CommandError::Evaluation(_)) => !shared.unevaluated.is_empty(),
                // The summary has said that it failed, and the lines before it why.
                Some(CommandError::BuildFailed(_)) => {
                    shared.state.ended == Some(Outcome::BuildFailed) && shared.state.counts.failed > 0
                }
                _ => false,
            };
            if let Some(error) = error.filter(|_| !told) {
                shared.stay = report::error(error);
                shared.draw();
            }
        }
        self.shared.1.notify_all();
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
        if let Some(thread) = self.thread.take() {
            // It only draws; a panic of it has been reported on standard error.
            drop(thread.join());
        }
    }
}

fn draw_periodically((shared, wake): &(Mutex<Shared>, Condvar)) {
    let mut drawn = Instant::now();
    let (mut size, mut resized) = (terminal::size(), None);
    let mut shared = lock(shared);
    while !shared.over {
        shared = wake
            .wait_timeout(shared, PERIOD)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        let now = terminal::size();
        if now != size {
            (size, resized) = (now, Some(Instant::now()));
        }
        let moving = resized.is_some_and(|resized| resized.elapsed() < STEADY);
        if shared.over || moving || drawn.elapsed() < PERIOD {
            continue;
        }
        shared.draw();
        drawn = Instant::now();
    }
}

/// After a stop (Ctrl-Z) the terminal was somebody else's: what was drawn is no longer below the cursor.
async fn forget_when_continued(shared: Arc<(Mutex<Shared>, Condvar)>) {
    let kind = SignalKind::from_raw(rustix::process::Signal::CONT.as_raw());
    // Where it cannot be listened for, a line of the shell may be drawn over.
    if let Ok(mut continued) = signal(kind) {
        while continued.recv().await.is_some() {
            if let Some(screen) = &mut lock(&shared.0).screen {
                screen.forget();
            }
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // A panic while drawing leaves at worst a line drawn twice.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
