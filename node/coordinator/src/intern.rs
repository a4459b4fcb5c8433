//! Values that stand for themselves by a small number.

use std::hash::Hash;
use std::marker::PhantomData;

use rustc_hash::FxHashMap;

/// A small number that names a value of an [`Interner`].
pub(crate) trait Key: Copy {
    fn new(index: u32) -> Self;
    fn index(self) -> usize;
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) struct $name(u32);

        impl crate::intern::Key for $name {
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

/// The values. They are forgotten together, when nothing is left that names one.
pub(crate) struct Interner<K, T> {
    values: Vec<T>,
    numbers: FxHashMap<T, u32>,
    key: PhantomData<K>,
}

impl<K, T> Default for Interner<K, T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            numbers: FxHashMap::default(),
            key: PhantomData,
        }
    }
}

impl<K: Key, T: Clone + Eq + Hash> Interner<K, T> {
    pub(crate) fn intern(&mut self, value: &T) -> K {
        if let Some(number) = self.numbers.get(value) {
            return K::new(*number);
        }
        let number = self.values.len() as u32;
        self.values.push(value.clone());
        self.numbers.insert(value.clone(), number);
        K::new(number)
    }

    pub(crate) fn find(&self, value: &T) -> Option<K> {
        self.numbers.get(value).copied().map(K::new)
    }

    pub(crate) fn get(&self, key: K) -> &T {
        &self.values[key.index()]
    }
}
