//! Lines on standard error: who writes them, and when.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tvix_node::command::Notice;

use super::frame::frame;
use super::line::Line;
use super::report::{self, Detail};
use super::screen::Screen;
use super::state::State;
use super::terminal;

/// Time between two drawings. Ages are in seconds; this is for the lines of logs.
const PERIOD: Duration = Duration::from_millis(100);

/// A pause after which the terminal was probably somebody else's: the process was stopped (Ctrl-Z) and
/// continued.
const STOPPED: Duration = Duration::from_secs(2);

/// Lines that stay, and on a terminal live lines below them, drawn by a thread of their own so that
/// ages go on between two events.
#[derive(Debug)]
pub struct View {
    shared: Arc<(Mutex<Shared>, Condvar)>,
    thread: Option<JoinHandle<()>>,
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
    /// Begins. `live`: with live lines.
    pub fn start(state: State, detail: Detail, live: bool, colours: bool) -> Self {
        let shared = Arc::new((
            Mutex::new(Shared {
                state,
                began: Instant::now(),
                stay: Vec::new(),
                screen: live.then(Screen::default),
                colours,
                over: false,
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
        Self {
            shared,
            thread,
            detail,
        }
    }

    /// Takes in what a command tells.
    pub fn notice(&self, notice: &Notice) {
        let mut shared = lock(&self.shared.0);
        let lines = match notice {
            Notice::Step(event) => {
                let lines = report::lines(&shared.state, event, self.detail);
                let now = shared.now();
                shared.state.step(event, now);
                lines
            }
            Notice::Message(kind, text) => report::evaluation_message(*kind, text),
            Notice::EvaluationFailed { error, .. } => report::evaluation_error(&error.text),
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

    /// Ends, and says these lines last.
    pub fn finish(mut self, last: Vec<Line>) {
        {
            let mut shared = lock(&self.shared.0);
            shared.end();
            shared.stay = last;
            shared.draw();
        }
        self.shared.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // It only draws; a panic of it has been reported on standard error.
            drop(thread.join());
        }
    }
}

fn draw_periodically((shared, wake): &(Mutex<Shared>, Condvar)) {
    let mut drawn = Instant::now();
    let mut shared = lock(shared);
    while !shared.over {
        shared = wake
            .wait_timeout(shared, PERIOD)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        if shared.over || drawn.elapsed() < PERIOD {
            continue;
        }
        if drawn.elapsed() > STOPPED
            && let Some(screen) = &mut shared.screen
        {
            screen.forget();
        }
        shared.draw();
        drawn = Instant::now();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // A panic while drawing leaves at worst a line drawn twice.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
