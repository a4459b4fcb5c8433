//! The log of a build that another node does, as its pieces come, and what has been told of it.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::together::NOT_KEPT;

/// Pieces of a log, cut into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    open: Vec<u8>,
}

/// Bytes of one line that are kept together; a longer one comes in pieces.
const LINE: usize = 64 << 10;

impl Lines {
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.open.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.open.pop();
                lines.push(std::mem::take(&mut self.open));
            } else if self.open.len() >= LINE {
                lines.push(std::mem::take(&mut self.open));
            }
        }
        lines
    }

    pub(super) fn rest(self) -> Option<Vec<u8>> {
        (!self.open.is_empty()).then_some(self.open)
    }
}

/// Lines of a log that are remembered: 8 bytes each.
const REMEMBERED: usize = 1 << 18;

/// What has been told of a log that may come again from its beginning.
#[derive(Debug, Default)]
pub(super) struct Told {
    lines: Vec<u64>,
    next: usize,
}

impl Told {
    /// Whether the next line has to be told: it was not before, or it is another one now.
    pub(super) fn is_new(&mut self, line: &[u8]) -> bool {
        if self.next == 0
            && !self.lines.is_empty()
            && let Some(count) = not_kept(line)
        {
            self.next = count;
            return false;
        }
        let mut hasher = DefaultHasher::new();
        line.hash(&mut hasher);
        let (line, at) = (hasher.finish(), self.next);
        self.next += 1;
        if self.lines.get(at) == Some(&line) {
            return false;
        }
        self.lines.truncate(at);
        if self.lines.len() == at && at < REMEMBERED {
            self.lines.push(line);
        }
        true
    }

    /// It comes from its beginning again.
    pub(super) fn begin_again(&mut self) {
        self.next = 0;
    }
}

/// How many lines a builder does not have any more, where this line says so.
fn not_kept(line: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(line).ok()?;
    let count = text.strip_prefix('(')?.strip_suffix(NOT_KEPT)?;
    count.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_cut_into_lines_however_they_come() {
        let text = b"one\n\ntwo\nthree";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut all: Vec<Vec<u8>> = Vec::new();
            for piece in text.chunks(size) {
                all.extend(lines.take(piece));
            }
            all.extend(lines.rest());
            assert_eq!(all, [&b"one"[..], b"", b"two", b"three"], "in pieces of {size}");
        }
    }

    #[test]
    fn an_endless_line_comes_in_pieces() {
        let mut lines = Lines::default();
        let pieces = lines.take(&vec![b'x'; LINE * 2 + 1]);
        assert!(!pieces.is_empty());
        assert!(lines.open.len() < LINE);
    }

    #[test]
    fn of_a_long_log_only_the_end_comes_again() {
        let mut told = Told::default();
        for line in ["a", "b", "c"] {
            assert!(told.is_new(line.as_bytes()));
        }
        told.begin_again();
        let marker = format!("(2{NOT_KEPT}");
        let again = [&marker, "c", "d"].map(|line| told.is_new(line.as_bytes()));
        assert_eq!(again, [false, false, true]);
    }

    #[test]
    fn what_comes_again_is_told_once_and_what_differs_is_told() {
        let mut told = Told::default();
        let tell = |told: &mut Told, lines: &[&str]| -> Vec<bool> {
            lines.iter().map(|line| told.is_new(line.as_bytes())).collect()
        };
        assert_eq!(tell(&mut told, &["a", "b", "b"]), [true; 3]);
        told.begin_again();
        assert_eq!(
            tell(&mut told, &["a", "b", "b", "c"]),
            [false, false, false, true]
        );
        told.begin_again();
        // Another build of the same.
        assert_eq!(tell(&mut told, &["a", "x", "b", "c"]), [false, true, true, true]);
        told.begin_again();
        assert_eq!(tell(&mut told, &["a", "x", "b", "c"]), [false; 4]);
    }
}
