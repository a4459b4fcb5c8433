//! Sets of sessions, as the bits of one word.

use crate::limits;

/// The place of a session among those that are open. Used again after its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(u8);

impl Slot {
    /// The least of them.
    pub(crate) const FIRST: Self = Self(0);

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..limits::SESSIONS as u8).map(Self)
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SessionSet(u64);

const _: () = assert!(limits::SESSIONS <= u64::BITS as usize);

impl SessionSet {
    pub(crate) const EMPTY: Self = Self(0);

    pub(crate) fn of(slot: Slot) -> Self {
        Self(1 << slot.0)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn contains(self, slot: Slot) -> bool {
        self.0 & (1 << slot.0) != 0
    }

    /// Whether it was not there before.
    pub(crate) fn insert(&mut self, slot: Slot) -> bool {
        let before = self.0;
        self.0 |= 1 << slot.0;
        self.0 != before
    }

    /// Whether it was there before.
    pub(crate) fn remove(&mut self, slot: Slot) -> bool {
        let before = self.0;
        self.0 &= !(1 << slot.0);
        self.0 != before
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// In the order of their slots.
    pub(crate) fn iter(self) -> impl Iterator<Item = Slot> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let slot = Slot(u8::try_from(rest.trailing_zeros()).ok().filter(|_| rest != 0)?);
            rest &= rest - 1;
            Some(slot)
        })
    }
}

impl FromIterator<Slot> for SessionSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut set = Self::EMPTY;
        for slot in slots {
            set.insert(slot);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_gives_back_what_was_put_in_and_nothing_that_was_taken_out() {
        let all: Vec<Slot> = Slot::all().collect();
        let mut set: SessionSet = all.iter().copied().filter(|slot| slot.index() % 3 == 0).collect();
        assert!(set.contains(all[63]) && !set.contains(all[62]));
        assert!(set.remove(all[63]) && !set.remove(all[63]));
        assert!(set.insert(all[62]) && !set.insert(all[62]));
        assert!(
            set.iter()
                .map(Slot::index)
                .eq((0..63).filter(|index| index % 3 == 0 || *index == 62))
        );
        assert!(SessionSet::EMPTY.iter().next().is_none());
    }
}
