//! Builds that other nodes do for this one, and what has been told of their logs.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use tvix_node_protocol::envelope::NodeKey;

use super::together::NOT_KEPT;

/// How many builds each node does for this one.
#[derive(Debug, Default)]
pub(super) struct Calls(Mutex<HashMap<NodeKey, usize>>);

/// One of them, until this is dropped.
#[derive(Debug)]
pub(super) struct Calling {
    calls: Arc<Calls>,
    builder: NodeKey,
}

impl Calls {
    pub(super) fn begin(self: &Arc<Self>, builder: NodeKey) -> Calling {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(builder).or_insert(0) += 1;
        Calling {
            calls: Arc::clone(self),
            builder,
        }
    }

    /// Whether a node does any.
    pub(super) fn has(&self, builder: NodeKey) -> bool {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.contains_key(&builder)
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        let mut counts = self.calls.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.builder) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.builder);
            }
        }
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
    fn a_builder_has_calls_until_the_last_one_is_over() {
        let calls = Arc::new(Calls::default());
        let (ann, bob) = (NodeKey([1; 32]), NodeKey([2; 32]));
        let (one, two) = (calls.begin(ann), calls.begin(ann));
        drop(one);
        assert!(calls.has(ann) && !calls.has(bob));
        drop(two);
        assert!(!calls.has(ann));
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
