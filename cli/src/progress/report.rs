//! The lines that stay: what each event has to say for good, and the summary at the end.

use std::collections::BTreeMap;
use std::error::Error;

use tvix_node::command::MessageKind;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildKind;
use tvix_node_protocol::control::{Event, EventKind, Outcome, OutputDifference, PresenceTiming};

use crate::errors;

use super::line::{Line, Tint};
use super::state::{State, called};
use super::time::{count, took};

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detail {
    /// What begins is told too: nothing else shows it.
    pub beginnings: bool,
    /// Every line of every build log is told.
    pub logs: bool,
}

/// Milliseconds that a wait has to take to be worth a line.
const NOTICED: u64 = 1_000;

/// What of an event stays. `state` does not know the event yet.
pub fn lines(state: &State, event: &Event, detail: Detail) -> Vec<Line> {
    match &event.kind {
        EventKind::BuildStarted { derivation, node } if detail.beginnings => {
            vec![
                Line::default()
                    .add(Tint::Live, "building ")
                    .add(Tint::Bold, called(derivation))
                    .add(Tint::Plain, on(node)),
            ]
        }
        EventKind::Placed {
            derivation,
            node,
            reason,
            kind,
            ..
        } if detail.beginnings && node != super::THIS_NODE => {
            let what = match kind {
                BuildKind::Regular => "",
                BuildKind::Ifd => " (the evaluation waits for it)",
            };
            vec![Line::plain(format!(
                "placed {}{what}{}: {reason}",
                called(derivation),
                on(node)
            ))]
        }
        EventKind::Log { derivation, line } if detail.logs => {
            vec![
                Line::default()
                    .add(Tint::Dim, format!("{}> ", called(derivation)))
                    .add(Tint::Plain, line),
            ]
        }
        EventKind::BuildFinished {
            derivation,
            node,
            duration,
            ..
        } => vec![
            Line::default()
                .add(Tint::Good, "built ")
                .add(Tint::Bold, called(derivation))
                .add(Tint::Plain, format!(" in {}{}", took(*duration), on(node))),
        ],
        EventKind::Checked {
            derivation,
            node,
            duration,
            differences,
        } if differences.is_empty() => vec![
            Line::default()
                .add(Tint::Good, "checked ")
                .add(Tint::Bold, called(derivation))
                .add(
                    Tint::Plain,
                    format!(" in {}{}: the same", took(*duration), on(node)),
                ),
        ],
        EventKind::Checked {
            derivation,
            differences,
            ..
        } => different(derivation, differences),
        EventKind::BuildFailed {
            derivation,
            node,
            error,
            log_tail,
            demanded: true,
        } => {
            let has_log = state.has_begun(derivation) || !log_tail.is_empty();
            let log_seen = state.has_said_something(derivation);
            failure(derivation, node, error, (has_log.then_some(log_tail), log_seen))
        }
        EventKind::BuildFailed { derivation, .. } if detail.beginnings => {
            vec![Line::plain(format!(
                "{} failed, and nothing is known to need it yet",
                called(derivation)
            ))]
        }
        EventKind::DependencyFailed { derivation, because } if detail.beginnings => {
            vec![Line::plain(format!(
                "{} cannot be built: {} failed",
                called(derivation),
                called(because)
            ))]
        }
        EventKind::FetchStarted { path, from } if detail.beginnings => {
            vec![Line::plain(format!("fetching {} from {from}", called(path)))]
        }
        EventKind::FetchFailed { path, error, .. } => message(
            "warning",
            &format!("{} could not be fetched: {error}", called(path)),
        ),
        EventKind::PushStarted { path, to } if detail.beginnings => {
            vec![Line::plain(format!("pushing {} to {to}", called(path)))]
        }
        EventKind::PushFailed { path, to, error } => message(
            "warning",
            &format!("{} could not be pushed to {to}: {error}", called(path)),
        ),
        EventKind::Pushed { path, to } => {
            vec![
                Line::default()
                    .add(Tint::Good, "pushed ")
                    .add(Tint::Bold, called(path))
                    .add(Tint::Plain, format!(" to {to}")),
            ]
        }
        EventKind::TargetFailed { target, name, error } => {
            let why = match state.culprit(*target, error) {
                Some((derivation, culprit)) if derivation == culprit => return Vec::new(),
                Some((_, culprit)) => format!("{} failed", called(culprit)),
                None => error.clone(),
            };
            vec![
                Line::default()
                    .add(Tint::Bad, "error:")
                    .add(Tint::Plain, format!(" {name} cannot be had: {why}")),
            ]
        }
        EventKind::Message { level, text } => message(level, text),
        _ => Vec::new(),
    }
}

/// What was built again and is not what it was.
fn different(derivation: &StorePath, differences: &BTreeMap<String, OutputDifference>) -> Vec<Line> {
    let mut lines = vec![
        Line::default()
            .add(Tint::Bad, "error:")
            .add(Tint::Plain, " ")
            .add(Tint::Bold, called(derivation))
            .add(Tint::Plain, " is not the same when built again:"),
    ];
    for (name, difference) in differences {
        lines.push(Line::plain(format!(
            "       output '{name}', {}",
            difference.path
        )));
        lines.extend(
            difference
                .places
                .iter()
                .map(|place| Line::plain(format!("         {place}"))),
        );
        if difference.more {
            lines.push(Line::plain("         and more"));
        }
        lines.push(match &difference.kept {
            Some(kept) => Line::plain("       as built now: ").add(Tint::Bold, kept),
            None => Line::plain("       as built now, it could not be kept"),
        });
    }
    lines
}

fn on(node: &str) -> String {
    if node == super::THIS_NODE {
        String::new()
    } else {
        format!(" on {node}")
    }
}

/// `log_tail`: none where the build was not begun. `log_seen`: lines of it were told already; whoever went away in the middle
/// of a build has sent no end of it.
fn failure(
    derivation: &StorePath,
    node: &str,
    error: &str,
    (log_tail, log_seen): (Option<&Vec<String>>, bool),
) -> Vec<Line> {
    let mut said = error.lines();
    let first = said.next().unwrap_or_default();
    let mut lines = vec![
        Line::default()
            .add(Tint::Bad, "error:")
            .add(Tint::Plain, " the build of ")
            .add(Tint::Bold, called(derivation))
            .add(Tint::Plain, format!(" failed{}: {first}", on(node))),
    ];
    lines.extend(said.map(|line| Line::plain(format!("       {line}"))));
    let Some(log_tail) = log_tail else {
        return lines;
    };
    if log_tail.is_empty() && !log_seen {
        lines.push(Line::plain("       Its log is empty."));
    } else if !log_tail.is_empty() {
        let last = count(log_tail.len() as u64, "line");
        lines.push(Line::plain(format!("       The last {last} of its log:")));
        lines.extend(
            log_tail
                .iter()
                .map(|line| Line::default().add(Tint::Dim, "       > ").add(Tint::Plain, line)),
        );
    }
    lines.push(Line::plain("       All of it: ").add(Tint::Bold, format!("tvix-node log {derivation}")));
    lines
}

/// A message of the node, whose text may have several lines.
pub fn message(level: &str, text: &str) -> Vec<Line> {
    let tint = match level {
        "error" => Tint::Bad,
        "warning" => Tint::Warning,
        _ => return text.lines().map(Line::plain).collect(),
    };
    let mut rest = text.lines();
    let first = Line::default()
        .add(tint, format!("{level}:"))
        .add(Tint::Plain, format!(" {}", rest.next().unwrap_or_default()));
    std::iter::once(first).chain(rest.map(Line::plain)).collect()
}

/// A trace or warning of an evaluation, as Nix prints them.
pub fn evaluation_message(kind: MessageKind, text: &str) -> Vec<Line> {
    match kind {
        MessageKind::Trace => message("info", &format!("trace: {text}")),
        MessageKind::Warning => message("warning", text),
    }
}

/// An error that the evaluator rendered, `error:` included.
pub fn evaluation_error(text: &str) -> Vec<Line> {
    text.lines()
        .map(|line| match line.find("error:") {
            Some(at) if line[..at].trim().is_empty() => Line::plain(&line[..at])
                .add(Tint::Bad, "error:")
                .add(Tint::Plain, &line[at + "error:".len()..]),
            _ => Line::plain(line),
        })
        .collect()
}

/// An error with its causes.
pub fn error(error: &dyn Error) -> Vec<Line> {
    let mut lines = Vec::new();
    for (index, message) in errors::chain(error).iter().enumerate() {
        let mut texts = message.lines();
        let first = texts.next().unwrap_or_default();
        lines.push(match index {
            0 => Line::default()
                .add(Tint::Bad, "error:")
                .add(Tint::Plain, format!(" {first}")),
            _ => Line::default()
                .add(Tint::Dim, "  caused by: ")
                .add(Tint::Plain, first),
        });
        lines.extend(texts.map(|text| Line::plain(format!("  {text}"))));
    }
    lines
}

/// What a session came to. None where there is nothing to say.
pub fn summary(state: &State, now: u64) -> Vec<Line> {
    let mut lines = planned("derivation", "would be built", &state.would_build);
    lines.extend(planned("path", "would be fetched", &state.would_fetch));
    let Some(outcome) = state.ended else { return lines };
    let counts = state.counts;
    let mut parts = Vec::new();
    for (number, word) in [
        (counts.built, "built"),
        (counts.fetched, "fetched"),
        (counts.pushed, "pushed"),
        (counts.failed, "failed"),
    ] {
        if number > 0 {
            parts.push(format!("{number} {word}"));
        }
    }
    if parts.is_empty() && outcome == Outcome::Success {
        // A run that had nothing to do is quiet, and so is one that only planned.
        return lines;
    }
    if counts.present > 0 {
        parts.push(format!("{} present", counts.present));
    }
    let (tint, word) = match outcome {
        Outcome::Success => (Tint::Good, "done"),
        Outcome::BuildFailed | Outcome::EvaluationFailed => (Tint::Bad, "failed"),
        Outcome::Interrupted => (Tint::Warning, "interrupted"),
    };
    let mut line = Line::default()
        .add(tint, word)
        .add(Tint::Plain, format!(" after {}", took(now)));
    if !parts.is_empty() {
        line = line.add(Tint::Plain, format!(": {}", parts.join(", ")));
    }
    lines.push(line);
    lines.extend(late_answers(state.presence).map(Line::plain));
    lines
}

/// What there is to say of questions to others about what they have: nothing where nobody noticed them.
fn late_answers(presence: PresenceTiming) -> impl Iterator<Item = String> {
    let PresenceTiming {
        in_time,
        waited,
        without,
        longest,
    } = presence;
    let all = count(in_time + waited + without, "path");
    let waited = (longest >= NOTICED).then(|| {
        format!(
            "Up to {} were waited to learn who has a path, for {waited} of {all}.",
            took(longest)
        )
    });
    let without = (without > 0).then(|| {
        format!(
            "Of {without} of {all} a member that does not answer did not say whether it has them: they count as being \
             nowhere ('tvix-node doctor' looks at every member)."
        )
    });
    waited.into_iter().chain(without)
}

fn planned(thing: &str, fate: &str, paths: &[StorePath]) -> Vec<Line> {
    if paths.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![Line::plain(format!(
        "{} {fate}:",
        count(paths.len() as u64, thing)
    ))];
    // They are found from the targets on; what comes first is built first.
    lines.extend(paths.iter().rev().map(|path| Line::plain(format!("  {path}"))));
    lines
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
