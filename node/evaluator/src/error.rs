//! Errors of an evaluation, and how they are rendered for people.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::syntax::position::{Pos, SourceMap};

/// An error made readable: what the command prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The message alone, one line or more, without position and trace.
    pub message: String,
    /// Message, position, source line with a caret and the trace, as Nix prints them, without colours;
    /// begins with `error:`.
    pub text: String,
}

/// What sort of error it is; only the first two can be caught by `builtins.tryEval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// `builtins.throw`.
    Throw,
    /// A failed `assert`.
    Assertion,
    /// `builtins.abort`.
    Abort,
    /// A value needs itself; carries the address of the thunk.
    InfiniteRecursion,
    /// Calls nested too deep, or the stack used up.
    StackOverflow,
    /// An attribute path of a target is not there.
    MissingAttribute,
    /// Something that must be built or fetched first could not be.
    Realisation,
    /// The evaluation was given up from outside.
    Cancelled,
    /// Any other error of the expression.
    Evaluation,
}

/// One line of a trace.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) pos: Pos,
    pub(crate) text: Cow<'static, str>,
    /// Shown even without `--show-trace` (`builtins.addErrorContext`).
    pub(crate) always: bool,
}

/// An error of an evaluation.
#[derive(Debug)]
pub(crate) struct EvalError {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    pub(crate) pos: Pos,
    /// Innermost first.
    pub(crate) frames: Vec<Frame>,
    /// Names that were perhaps meant.
    pub(crate) suggestions: Vec<String>,
    /// A position in a text that is not Nix (JSON, TOML) or a parse error already rendered with its source line.
    pub(crate) excerpt: Option<String>,
}

/// Errors travel in a box, so that results stay two words.
pub(crate) type Error = Box<EvalError>;

/// Result of evaluating something.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl EvalError {
    /// An error at a position.
    #[cold]
    pub(crate) fn new(kind: ErrorKind, pos: Pos, message: impl Into<String>) -> Error {
        Box::new(Self {
            kind,
            message: message.into(),
            pos,
            frames: Vec::new(),
            suggestions: Vec::new(),
            excerpt: None,
        })
    }

    /// Whether `builtins.tryEval` turns it into a value.
    pub(crate) fn is_catchable(&self) -> bool {
        matches!(self.kind, ErrorKind::Throw | ErrorKind::Assertion)
    }

    /// Adds a line to the trace.
    #[cold]
    pub(crate) fn frame(mut self: Box<Self>, pos: Pos, text: impl Into<Cow<'static, str>>) -> Error {
        // A runaway recursion has thousands of frames; nobody reads more than the ends of it.
        if self.frames.len() < crate::limits::MAX_TRACE_FRAMES {
            self.frames.push(Frame {
                pos,
                text: text.into(),
                always: false,
            });
        }
        self
    }

    /// Gives it a position if it has none.
    #[cold]
    pub(crate) fn at(mut self: Box<Self>, pos: Pos) -> Error {
        if self.pos.is_none() {
            self.pos = pos;
        }
        self
    }

    /// Renders it.
    pub(crate) fn render(&self, sources: &SourceMap, show_trace: bool) -> Rendered {
        let mut message = self.message.clone();
        if !self.suggestions.is_empty() {
            message.push_str("\nDid you mean ");
            let (last, first) = match self.suggestions.split_last() {
                Some(split) => split,
                None => unreachable!("checked not to be empty"),
            };
            if first.is_empty() {
                let _ = write!(message, "{last}?");
            } else {
                let _ = write!(message, "one of {} or {last}?", first.join(", "));
            }
        }
        let mut text = String::from("error:");
        let shown: Vec<&Frame> = self
            .frames
            .iter()
            .filter(|frame| show_trace || frame.always)
            .collect();
        for frame in shown.iter().rev() {
            let _ = write!(text, "\n       … {}", indent(&frame.text, 9));
            excerpt(&mut text, sources, frame.pos, 9);
            text.push('\n');
        }
        let hidden = self.frames.len() - shown.len();
        if hidden > 0 {
            text.push_str(
                "\n       (stack trace truncated; use '--show-trace' to show the full, detailed trace)\n",
            );
        }
        if self.frames.is_empty() {
            let _ = write!(text, " {}", indent(&message, 7));
        } else {
            let _ = write!(text, "\n       error: {}", indent(&message, 7));
        }
        excerpt(&mut text, sources, self.pos, 7);
        if let Some(excerpt) = &self.excerpt {
            let _ = write!(text, "\n{excerpt}");
        }
        Rendered { message, text }
    }
}

fn indent(text: &str, by: usize) -> String {
    text.replace('\n', &format!("\n{:by$}", ""))
}

/// Longest piece of a source line that errors show.
const SHOWN_LINE: usize = 400;

/// Writes where a position is, with the source line, those around it, and a caret.
fn excerpt(text: &mut String, sources: &SourceMap, pos: Pos, by: usize) {
    let Some(location) = sources.resolve(pos) else {
        return;
    };
    let _ = write!(text, "\n{:by$}at {location}:", "");
    let Some(line) = location.file.line(location.line) else {
        return;
    };
    // Of very long lines (generated code) only the surroundings of the place are shown.
    let column = (location.column as usize - 1).min(line.len());
    let from = match line.len() > SHOWN_LINE {
        true => column.saturating_sub(SHOWN_LINE / 2),
        false => 0,
    };
    let show = |line: &[u8], from: usize| {
        let part = &line[from.min(line.len())..line.len().min(from + SHOWN_LINE)];
        String::from_utf8_lossy(part).replace('\t', " ")
    };
    let mut row = |number: u32, line: &[u8], from: usize| {
        let _ = write!(text, "\n{:by$}{number:>6}| {}", "", show(line, from));
    };
    if let Some(before) = location
        .line
        .checked_sub(1)
        .and_then(|number| location.file.line(number))
    {
        row(location.line - 1, before, 0);
    }
    row(location.line, line, from);
    let column = String::from_utf8_lossy(&line[from..column]).chars().count();
    let _ = write!(text, "\n{:by$}      | {:column$}^", "", "");
    if let Some(after) = location.file.line(location.line + 1)
        && !(after.is_empty() && location.file.line(location.line + 2).is_none())
    {
        let _ = write!(text, "\n{:by$}{:>6}| {}", "", location.line + 1, show(after, 0));
    }
}
