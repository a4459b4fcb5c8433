//! What was used lately, and no more of it than there is room for.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

/// One of [`Recent`].
#[derive(Debug)]
struct Kept<V> {
    value: Arc<V>,
    weight: usize,
    /// Its place in the order.
    used: u64,
}

/// Values that were used lately, bounded by their weight. There can be a million of them.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    values: HashMap<K, Kept<V>>,
    /// By when they were used last.
    order: BTreeMap<u64, K>,
    /// How often any was used.
    uses: u64,
    weight: usize,
    limit: usize,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            values: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
            weight: 0,
            limit,
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether something of this weight would be kept.
    pub(crate) fn fits(&self, weight: usize) -> bool {
        weight <= self.limit
    }

    pub(crate) fn get(&mut self, key: K) -> Option<Arc<V>> {
        let kept = self.values.get_mut(&key)?;
        self.order.remove(&kept.used);
        self.uses += 1;
        kept.used = self.uses;
        self.order.insert(kept.used, key);
        Some(kept.value.clone())
    }

    pub(crate) fn remove(&mut self, key: K) {
        if let Some(kept) = self.values.remove(&key) {
            self.order.remove(&kept.used);
            self.weight -= kept.weight;
        }
    }

    /// The oldest go until it fits; what does not fit alone is not kept. What had the key goes, too.
    pub(crate) fn insert(&mut self, key: K, value: Arc<V>, weight: usize) {
        self.remove(key);
        if !self.fits(weight) {
            return;
        }
        while self.weight + weight > self.limit {
            let Some((_, oldest)) = self.order.first_key_value() else {
                break;
            };
            self.remove(*oldest);
        }
        self.uses += 1;
        let used = self.uses;
        self.values.insert(key, Kept { value, weight, used });
        self.order.insert(used, key);
        self.weight += weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_lately_is_kept_within_its_bound() {
        let mut recent = Recent::new(10);
        recent.insert(1, Arc::new("one"), 4);
        recent.insert(2, Arc::new("two"), 4);
        assert_eq!(recent.get(1).as_deref(), Some(&"one"));
        recent.insert(3, Arc::new("three"), 4);
        assert_eq!(recent.get(2), None, "the one not used for longest goes");
        assert!(recent.get(1).is_some() && recent.get(3).is_some());
        recent.insert(4, Arc::new("too heavy"), 11);
        assert_eq!(recent.get(4), None);
        assert_eq!(recent.weight, 8);
        recent.insert(1, Arc::new("once more"), 2);
        assert_eq!(recent.get(1).as_deref(), Some(&"once more"));
        assert_eq!(
            (recent.weight, recent.values.len(), recent.order.len()),
            (6, 2, 2)
        );
    }
}
