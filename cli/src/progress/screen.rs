//! Redrawing lines in place, as bytes for a terminal.

use std::fmt::Write as _;

use super::frame::Size;
use super::line::Line;

/// The live lines that are on the terminal now. The cursor stands at the beginning of the row below.
///
/// The cursor is never hidden and no mode of the terminal is changed for longer than one write, so a
/// program that is killed leaves nothing to restore.
#[derive(Debug, Default)]
pub struct Screen {
    /// Columns of each live line.
    drawn: Vec<usize>,
    /// Columns of the terminal when they were drawn.
    columns: usize,
}

impl Screen {
    /// What to write so that `stay` stands where the live lines were, and `frame` below it.
    pub fn redraw(&mut self, stay: &[Line], frame: &[Line], size: Size, colours: bool) -> String {
        let mut bytes = String::new();
        if self.drawn.is_empty() && stay.is_empty() && frame.is_empty() {
            return bytes;
        }
        // A terminal that knows synchronised updates shows all of it at once; others ignore this.
        bytes.push_str("\x1b[?2026h\r");
        let rows = self.rows(size.columns);
        if rows > 0 {
            // Writing to a string does not fail.
            let _ = write!(bytes, "\x1b[{rows}A");
        }
        if size.columns != self.columns {
            // Terminals remember which rows they wrapped, and some (tmux) forget it only where a row is
            // cleared; the next change would move the cursor to another place than is assumed here.
            bytes.push_str("\x1b[J");
            self.columns = size.columns;
        }
        // Else lines are written over, not cleared first: nothing flickers.
        for line in stay.iter().chain(frame) {
            bytes.push_str(&line.render(colours));
            bytes.push_str("\x1b[K\r\n");
        }
        bytes.push_str("\x1b[J\x1b[?2026l");
        self.drawn = frame.iter().map(Line::width).collect();
        bytes
    }

    /// The live lines are where they are and stay: the terminal was somebody else's for a while.
    pub fn forget(&mut self) {
        self.drawn.clear();
    }

    /// Rows that the live lines take on a terminal of now `columns` columns, which has wrapped them if
    /// it became narrower.
    fn rows(&self, columns: usize) -> usize {
        self.drawn
            .iter()
            .map(|width| width.div_ceil(columns.max(1)).max(1))
            .sum()
    }
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
