//! Builds that other nodes do for this one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tvix_node_protocol::envelope::NodeKey;

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
