//! The log of a build: bytes in, bounded lines out.

use std::collections::VecDeque;

use crate::limits::{LOG_LINE_BYTES, LOG_TAIL_LINE_BYTES, LOG_TAIL_LINES};

/// Splits a log into lines, keeps the last of them, and counts.
#[derive(Debug, Default)]
pub(crate) struct Log {
    unfinished: Vec<u8>,
    tail: VecDeque<String>,
    bytes: u64,
}

impl Log {
    /// Takes what was read and gives the lines that are complete now, without their ends. Lines longer
    /// than [`LOG_LINE_BYTES`] come in pieces.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.bytes += bytes.len() as u64;
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ended) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            let mut text = text;
            while self.unfinished.len() + text.len() > LOG_LINE_BYTES {
                let (now, later) = text.split_at(LOG_LINE_BYTES - self.unfinished.len());
                self.unfinished.extend_from_slice(now);
                lines.push(self.finish_line());
                text = later;
            }
            self.unfinished.extend_from_slice(text);
            if ended {
                lines.push(self.finish_line());
            }
        }
        lines
    }

    /// The last line, where it has no end.
    pub(crate) fn finish(&mut self) -> Option<Vec<u8>> {
        (!self.unfinished.is_empty()).then(|| self.finish_line())
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The last lines.
    pub(crate) fn into_tail(self) -> Vec<String> {
        self.tail.into()
    }

    fn finish_line(&mut self) -> Vec<u8> {
        let line = std::mem::take(&mut self.unfinished);
        if self.tail.len() == LOG_TAIL_LINES {
            self.tail.pop_front();
        }
        let shown = &line[..line.len().min(LOG_TAIL_LINE_BYTES)];
        self.tail.push_back(String::from_utf8_lossy(shown).into_owned());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_when_they_are_complete() {
        let mut log = Log::default();
        assert_eq!(log.push(b"one\ntw"), [b"one".to_vec()]);
        assert_eq!(log.push(b"o\n\nthree"), [b"two".to_vec(), b"".to_vec()]);
        assert_eq!(log.finish(), Some(b"three".to_vec()));
        assert_eq!(log.finish(), None);
        assert_eq!(log.bytes(), 14);
        assert_eq!(log.into_tail(), ["one", "two", "", "three"]);
    }

    #[test]
    fn a_line_without_end_comes_in_bounded_pieces() {
        let mut log = Log::default();
        let mut pieces = Vec::new();
        for _ in 0..10 {
            pieces.extend(log.push(&vec![b'x'; LOG_LINE_BYTES / 3]));
            assert!(log.unfinished.len() <= LOG_LINE_BYTES);
        }
        pieces.extend(log.finish());
        assert!(pieces.iter().all(|piece| piece.len() <= LOG_LINE_BYTES));
        assert_eq!(pieces.concat().len(), LOG_LINE_BYTES / 3 * 10);
        assert!(
            log.into_tail()
                .iter()
                .all(|line| line.len() <= LOG_TAIL_LINE_BYTES)
        );
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let mut log = Log::default();
        for number in 0..100 {
            log.push(format!("{number}\n").as_bytes());
        }
        let tail = log.into_tail();
        assert_eq!(tail.len(), LOG_TAIL_LINES);
        assert_eq!(
            (tail[0].as_str(), tail[LOG_TAIL_LINES - 1].as_str()),
            ("75", "99")
        );
    }
}
