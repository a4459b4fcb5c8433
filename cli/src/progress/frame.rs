//! The live lines: what evaluates, builds and is fetched now, as text.

use tvix_node_protocol::build::BuildKind;

use super::line::{Line, Tint};
use super::state::{Running, State, Work, called};
use super::time::{count, running};

/// Most lines that are drawn: more moves the eye around without telling it more, and leaves no room
/// for what stays.
const MOST_LINES: usize = 16;

/// Columns that a name is padded to at most; longer ones push their line to the right.
const NAME_COLUMNS: usize = 32;

/// How large the terminal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub columns: usize,
    /// Rows.
    pub rows: usize,
}

/// Draws the live lines at `now`. None is wider than the terminal, and there are fewer than it has
/// rows.
pub fn frame(state: &State, now: u64, size: Size) -> Vec<Line> {
    // One row stays free for the cursor.
    let most = MOST_LINES.min(size.rows.saturating_sub(1));
    let mut lines = Vec::new();
    if !state.evaluation_ended {
        let imports = state
            .running
            .iter()
            .filter(|running| running.work == Work::Build(BuildKind::Ifd))
            .count();
        let waits = match imports {
            0 => String::new(),
            imports => format!(", waits for {}", count(imports as u64, "import")),
        };
        lines.push(
            Line::default()
                .add(Tint::Live, "evaluating ")
                .add(Tint::Plain, count(state.instantiated, "derivation"))
                .add(Tint::Plain, waits),
        );
    }
    // The last line is the summary's, and one may have to say how many are not shown.
    let room = most.saturating_sub(lines.len() + 1);
    let shown = if state.running.len() > room {
        room.saturating_sub(1)
    } else {
        state.running.len()
    };
    let columns = state.running[..shown]
        .iter()
        .map(|running| Line::plain(called(&running.path)).width())
        .max()
        .unwrap_or(0)
        .min(NAME_COLUMNS);
    lines.extend(
        state.running[..shown]
            .iter()
            .map(|running| row(running, now, columns)),
    );
    if shown < state.running.len() && room > 0 {
        let hidden = state.running.len() - shown;
        lines.push(Line::default().add(Tint::Dim, format!("… and {hidden} more")));
    }
    lines.push(summary(state, now));
    lines.truncate(most);
    // The last column stays free: terminals differ in what they do behind it.
    let columns = size.columns.saturating_sub(1);
    lines.into_iter().map(|line| line.fit(columns)).collect()
}

fn row(running_now: &Running, now: u64, columns: usize) -> Line {
    let verb = match running_now.work {
        Work::Build(BuildKind::Regular) => "building   ",
        Work::Build(BuildKind::Ifd) => "importing  ",
        Work::Fetch => "fetching   ",
        Work::Push => "pushing    ",
    };
    let name = called(&running_now.path);
    let padding = columns.saturating_sub(Line::plain(name).width());
    let age = running(now.saturating_sub(running_now.since));
    let mut line = Line::default()
        .add(Tint::Live, verb)
        .add(Tint::Bold, name)
        .add(Tint::Plain, " ".repeat(padding))
        .add(Tint::Plain, format!(" {age:>6}"));
    if let Some(place) = super::place(running_now) {
        line = line.add(Tint::Dim, format!("  {place}"));
    }
    if running_now.last_line.is_empty() {
        line
    } else {
        line.add(Tint::Plain, "  ").add(Tint::Dim, &running_now.last_line)
    }
}

fn summary(state: &State, now: u64) -> Line {
    let counts = state.counts;
    let mut line = Line::default().add(Tint::Dim, format!("{:<11}", running(now)));
    let counted = [
        (Tint::Good, counts.built, "built"),
        (Tint::Bad, counts.failed, "failed"),
        (Tint::Plain, counts.fetched, "fetched"),
        (Tint::Plain, counts.pushed, "pushed"),
        (Tint::Plain, counts.present, "present"),
        (Tint::Plain, state.waiting(), "waiting"),
    ];
    let shown = counted.into_iter().filter(|(_, number, _)| *number > 0);
    for (index, (tint, number, word)) in shown.enumerate() {
        if index > 0 {
            line = line.add(Tint::Dim, ", ");
        }
        line = line.add(tint, format!("{number} {word}"));
    }
    line
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
