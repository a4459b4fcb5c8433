//! What a user sees while a command runs, on standard error. Standard output is for results alone.
//!
//! | file | what it has |
//! |---|---|
//! | `state` | what is known of a session, from its events |
//! | `frame` | the live lines: state and time in, lines out |
//! | `report` | the lines that stay: event in, lines out |
//! | `line` | text in columns, with tints |
//! | `screen` | redrawing in place, as bytes |
//! | `view` | who writes lines, and when |
//! | `json` | events as they are, for programs |

mod frame;
mod json;
mod line;
mod report;
mod screen;
mod state;
mod terminal;
#[cfg(test)]
mod testing;
mod time;
mod view;

use std::error::Error;

use clap::ValueEnum;
use tvix_node::command::{CommandError, Notice};

use crate::errors;
use json::JsonLines;
pub use line::clean;
use report::Detail;
pub use state::called;
use state::{Running, State, Work};
use terminal::Terminal;
pub use time::{count, running};
use view::View;

/// What the node calls itself where a place is named.
const THIS_NODE: &str = "this node";

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Live lines, redrawn in place
    Bar,
    /// Live lines, and above them every line of every build log
    BarWithLogs,
    /// A line for everything that happens, and every line of every build log
    Raw,
    /// One JSON object a line for everything that happens (docs/events.md)
    InternalJson,
}

/// Shows what a command does while it does it.
#[derive(Debug)]
pub enum Progress {
    /// For people.
    Lines(View),
    /// For programs.
    Json(JsonLines),
}

impl Progress {
    /// Begins. Without a wish it is live lines where standard error is a terminal that can redraw, else
    /// plain ones. `builds`: whether what is instantiated is going to be built.
    pub fn start(wish: Option<LogFormat>, builds: bool) -> Self {
        let terminal = Terminal::of_stderr();
        let wish = wish.unwrap_or(if terminal.redraws {
            LogFormat::Bar
        } else {
            LogFormat::Raw
        });
        if wish == LogFormat::InternalJson {
            return Self::Json(JsonLines::default());
        }
        let live = terminal.redraws && wish != LogFormat::Raw;
        let detail = Detail {
            beginnings: !live,
            logs: wish != LogFormat::Bar,
        };
        Self::Lines(View::start(State::new(builds), detail, live, terminal.colours))
    }

    /// Takes in what a command tells.
    pub fn notice(&mut self, notice: &Notice) {
        match self {
            Self::Lines(view) => view.notice(notice),
            Self::Json(lines) => lines.notice(notice),
        }
    }

    /// Ends, with the error that the command ended in.
    pub fn finish(self, error: Option<&CommandError>) {
        match self {
            Self::Lines(view) => view.finish(error),
            Self::Json(lines) => {
                if let Some(error) = error {
                    lines.message("error", errors::chain(error).join(": "));
                }
            }
        }
    }
}

/// Shows an error with its causes on standard error.
pub fn show_error(error: &dyn Error) {
    let colours = Terminal::of_stderr().colours;
    for line in report::error(error) {
        terminal::write((line.render(colours) + "\n").as_bytes());
    }
}

/// Where something happens, unless it is a build on this node.
fn place(running: &Running) -> Option<String> {
    match running.work {
        Work::Fetch => Some(format!("from {}", running.node)),
        Work::Push => Some(format!("to {}", running.node)),
        Work::Build(_) if running.node == THIS_NODE => None,
        Work::Build(_) => Some(format!("on {}", running.node)),
    }
}
