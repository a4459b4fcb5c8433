//! A table of entries named by small numbers, which are used again.

use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// A small number that names an entry of a [`Slab`].
pub(crate) trait Key: Copy {
    fn new(index: u32) -> Self;
    fn index(self) -> usize;
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) struct $name(u32);

        impl crate::slab::Key for $name {
            fn new(index: u32) -> Self {
                Self(index)
            }
            fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}
pub(crate) use key;

/// The table. Indexing with the key of an entry that was removed is a bug and panics; where a key
/// may be stale, use [`Slab::get_mut`].
pub(crate) struct Slab<K, T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
    key: PhantomData<K>,
}

impl<K, T> Default for Slab<K, T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            key: PhantomData,
        }
    }
}

impl<K: Key, T> Slab<K, T> {
    pub(crate) fn insert(&mut self, entry: T) -> K {
        if let Some(index) = self.free.pop() {
            self.entries[index as usize] = Some(entry);
            return K::new(index);
        }
        // What is held is bounded by sessions times derivations times outputs and inputs that are
        // new with each; memory ends long before the numbers do.
        let index = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push(Some(entry));
        K::new(index)
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<T> {
        let entry = self.entries.get_mut(key.index())?.take()?;
        self.free.push(key.index() as u32);
        if self.free.len() == self.entries.len() {
            self.entries = Vec::new();
            self.free = Vec::new();
        }
        Some(entry)
    }

    pub(crate) fn get(&self, key: K) -> Option<&T> {
        self.entries.get(key.index())?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut T> {
        self.entries.get_mut(key.index())?.as_mut()
    }

    /// Keys of all entries, in their order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = K> {
        let taken = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.is_some());
        taken.map(|(index, _)| K::new(index as u32))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.entries.len()
    }
}

impl<K: Key, T> Index<K> for Slab<K, T> {
    type Output = T;
    #[track_caller]
    fn index(&self, key: K) -> &T {
        match &self.entries[key.index()] {
            Some(entry) => entry,
            None => panic!("entry {} was removed", key.index()),
        }
    }
}

impl<K: Key, T> IndexMut<K> for Slab<K, T> {
    #[track_caller]
    fn index_mut(&mut self, key: K) -> &mut T {
        match &mut self.entries[key.index()] {
            Some(entry) => entry,
            None => panic!("entry {} was removed", key.index()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    key!(
        /// For the test.
        Number
    );

    #[test]
    fn an_entry_keeps_its_number_until_it_is_removed() {
        let mut slab: Slab<Number, &str> = Slab::default();
        let (a, b) = (slab.insert("a"), slab.insert("b"));
        assert_eq!(slab.remove(a), Some("a"));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab[b], "b");
        let c = slab.insert("c");
        assert_eq!(c, a, "numbers are used again");
        assert!(slab.keys().eq([c, b]));
        slab.remove(b);
        slab.remove(c);
        assert!(slab.is_empty() && slab.get(c).is_none());
    }
}
