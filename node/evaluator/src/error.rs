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
    /// A value needs itself; carries the address of its thunk.
    InfiniteRecursion(usize),
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
    /// When it is shown.
    pub(crate) shown: Shown,
}

/// When a line of a trace is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// If it is among the first few, or with `--show-trace`.
    First,
    /// Always (`builtins.addErrorContext`, derivations).
    Always,
    /// With `--show-trace` alone (calls of functions).
    Traced,
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
        })
    }

    /// Whether `builtins.tryEval` turns it into a value.
    pub(crate) fn is_catchable(&self) -> bool {
        matches!(self.kind, ErrorKind::Throw | ErrorKind::Assertion)
    }

    /// Adds a line to the trace.
    #[cold]
    pub(crate) fn frame(self: Box<Self>, pos: Pos, text: impl Into<Cow<'static, str>>) -> Error {
        self.frame_shown(pos, text, Shown::First)
    }

    /// Adds a line to the trace and says when it is shown. An empty line is left out.
    #[cold]
    pub(crate) fn frame_shown(
        mut self: Box<Self>,
        pos: Pos,
        text: impl Into<Cow<'static, str>>,
        shown: Shown,
    ) -> Error {
        let text = text.into();
        if self.frames.len() < crate::limits::MAX_TRACE_FRAMES && !text.is_empty() {
            self.frames.push(Frame { pos, text, shown });
        }
        self
    }

    /// Gives an infinite recursion the position where it was noticed; other errors have theirs, or their trace.
    #[cold]
    pub(crate) fn at(mut self: Box<Self>, pos: Pos) -> Error {
        if self.pos.is_none() && matches!(self.kind, ErrorKind::InfiniteRecursion(_)) {
            self.pos = pos;
        }
        self
    }

    /// Renders it, in the form of Nix.
    pub(crate) fn render(&self, sources: &SourceMap, show_trace: bool) -> Rendered {
        let mut text = String::new();
        let frames: Vec<&Frame> = self
            .frames
            .iter()
            .rev()
            .filter(|frame| show_trace || frame.shown != Shown::Traced)
            .collect();
        if !frames.is_empty() {
            trace(&mut text, sources, &frames, show_trace);
            text.push_str("\nerror: ");
        }
        text.push_str(&self.message);
        text.push('\n');
        excerpt(&mut text, sources, self.pos, "");
        let hint = self.hint();
        if let Some(hint) = &hint {
            text.push_str(hint);
            text.push('\n');
        }
        let mut message = self.message.clone();
        if let Some(hint) = hint {
            message.push('\n');
            message.push_str(&hint);
        }
        Rendered {
            message,
            text: indented(&text),
        }
    }

    /// The names that were perhaps meant.
    fn hint(&self) -> Option<String> {
        let (last, first) = self.suggestions.split_last()?;
        Some(match first {
            [] => format!("Did you mean {last}?"),
            first => format!("Did you mean one of {} or {last}?", first.join(", ")),
        })
    }
}

/// Without `--show-trace` this many places of a trace are shown; a line with a position counts twice.
const SHOWN_PLACES: usize = 3;

/// Fewer repeated lines than this are written out.
const MIN_OMITTED: usize = 6;

/// Writes a trace, outermost line first. Lines that were seen before are counted instead.
fn trace(text: &mut String, sources: &SourceMap, frames: &[&Frame], show_trace: bool) {
    let mut seen = rustc_hash::FxHashSet::default();
    let mut skipped: Vec<&Frame> = Vec::new();
    let mut count = 0;
    let mut truncated = false;
    let line = |text: &mut String, count: &mut usize, frame: &Frame| {
        let _ = writeln!(text, "\n… {}", frame.text);
        if excerpt(text, sources, frame.pos, "  ") {
            *count += 1;
        }
    };
    let flush = |text: &mut String, count: &mut usize, skipped: &mut Vec<&Frame>| {
        if skipped.len() < MIN_OMITTED {
            for frame in skipped.iter() {
                line(text, count, frame);
            }
        } else {
            let _ = writeln!(text, "\n({} duplicate frames omitted)", skipped.len());
        }
        skipped.clear();
    };
    for frame in frames {
        truncated |= !show_trace && count > SHOWN_PLACES;
        if truncated && frame.shown != Shown::Always {
            continue;
        }
        if !seen.insert((frame.pos, frame.text.as_ref())) {
            skipped.push(frame);
            continue;
        }
        flush(text, &mut count, &mut skipped);
        count += 1;
        line(text, &mut count, frame);
    }
    flush(text, &mut count, &mut skipped);
    if truncated {
        text.push_str("\n(stack trace truncated; use '--show-trace' to show the full, detailed trace)\n");
    }
}

/// The whole error under its first word.
fn indented(text: &str) -> String {
    let mut result = String::new();
    for (index, line) in text.trim_end().split('\n').enumerate() {
        let line = match index {
            0 => format!("error: {line}"),
            _ => format!("\n       {line}"),
        };
        result.push_str(match index {
            0 => line.trim_end(),
            _ => &line[..1 + line[1..].trim_end().len()],
        });
    }
    result
}

/// Longest piece of a source line that errors show.
const SHOWN_LINE: usize = 400;

/// Writes where a position is, with the source line, those around it, and a caret; whether there is a position.
fn excerpt(text: &mut String, sources: &SourceMap, pos: Pos, by: &str) -> bool {
    let Some(location) = sources.resolve(pos) else {
        return false;
    };
    let _ = write!(text, "{by}at {location}:");
    let Some(line) = location.file.line(location.line) else {
        return true;
    };
    // Of very long lines (generated code) only the surroundings of the place are shown.
    let column = (location.column as usize - 1).min(line.len());
    let from = match line.len() > SHOWN_LINE {
        true => column.saturating_sub(SHOWN_LINE / 2),
        false => 0,
    };
    let mut row = |number: u32, line: &[u8], from: usize| {
        let part = &line[from.min(line.len())..line.len().min(from + SHOWN_LINE)];
        let _ = write!(text, "\n {number:>5}| {}", String::from_utf8_lossy(part));
    };
    if let Some(before) = location
        .line
        .checked_sub(1)
        .and_then(|number| location.file.line(number))
    {
        row(location.line - 1, before, 0);
    }
    row(location.line, line, from);
    let _ = write!(text, "\n      |{:column$}^", "", column = column - from + 1);
    if let Some(after) = location.file.line(location.line + 1) {
        let _ = write!(text, "\n {:>5}| {}", location.line + 1, {
            String::from_utf8_lossy(&after[..after.len().min(SHOWN_LINE)])
        });
    }
    text.push('\n');
    true
}
