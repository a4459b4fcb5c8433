//! Lists.

use std::cell::Cell;
use std::ptr::NonNull;

use super::thin::Thin;
use super::{Heap, Value};

/// Reference to a list. Its slots are cells only so that a thunk in them can be replaced by its result.
#[derive(Clone, Copy)]
pub(crate) struct List<'h>(pub(super) Thin<'h, (), Cell<Value<'h>>>);

impl<'h> List<'h> {
    /// A list made element by element.
    #[inline]
    pub(crate) fn new(heap: &'h Heap, len: usize, mut element: impl FnMut(usize) -> Value<'h>) -> Self {
        Self(heap.thin((), len, |index| Cell::new(element(index))))
    }

    /// A list of known values.
    pub(crate) fn from_slice(heap: &'h Heap, values: &[Value<'h>]) -> Self {
        Self::new(heap, values.len(), |index| values[index])
    }

    /// Number of elements.
    #[inline]
    pub(crate) fn len(self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// An element, `None` past the end.
    #[inline]
    pub(crate) fn get(self, index: usize) -> Option<Value<'h>> {
        self.0.elements().get(index).map(Cell::get)
    }

    /// The elements in order.
    #[inline]
    pub(crate) fn iter(self) -> impl ExactSizeIterator<Item = Value<'h>> + DoubleEndedIterator {
        self.0.elements().iter().map(Cell::get)
    }

    /// The slots, for replacing thunks by their results.
    #[inline]
    pub(crate) fn slots(self) -> &'h [Cell<Value<'h>>] {
        self.0.elements()
    }

    /// Whether both are the same object.
    pub(crate) fn same(self, other: Self) -> bool {
        self.0.same(other.0)
    }

    /// # Safety
    /// The pointer must come from a list that lives for `'h`.
    #[inline]
    pub(super) unsafe fn from_ptr(pointer: NonNull<u8>) -> Self {
        // SAFETY: what the caller says.
        Self(unsafe { Thin::from_ptr(pointer) })
    }
}
