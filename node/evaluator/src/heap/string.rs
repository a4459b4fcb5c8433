//! Strings, their context, and paths (which are strings of another kind).

use std::ptr::NonNull;

use tvix_node_protocol::nix::store_path::StorePath;

use super::Heap;
use super::thin::Thin;

/// Reference to a string: any bytes, with the store paths it refers to.
#[derive(Clone, Copy)]
pub(crate) struct Str<'h>(pub(super) Thin<'h, Option<Context<'h>>, u8>);

/// What a string depends on: sorted, without duplicates, never empty.
#[derive(Clone, Copy)]
pub(crate) struct Context<'h>(&'h &'h [&'h ContextElement<'h>]);

/// One thing that a string depends on. Interned by the evaluator: equal elements are one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ContextElement<'h> {
    /// A store path as it is.
    Opaque(&'h InternedPath),
    /// A derivation with everything it is made from and all its outputs (`builtins.addDrvOutputDependencies`
    /// and the `drvPath` attribute).
    Deep(&'h InternedPath),
    /// An output of a derivation.
    Output(&'h InternedPath, &'h str),
}

/// A store path that lives as long as the heap.
pub(crate) type InternedPath = StorePath;

impl<'h> Str<'h> {
    /// A string without context.
    #[inline]
    pub(crate) fn new(heap: &'h Heap, bytes: &[u8]) -> Self {
        Self(heap.thin_copy(None, bytes))
    }

    /// A string with its context.
    #[inline]
    pub(crate) fn with_context(heap: &'h Heap, bytes: &[u8], context: Option<Context<'h>>) -> Self {
        Self(heap.thin_copy(context, bytes))
    }

    /// The parts one after the other; none where that is longer than a string can be.
    pub(crate) fn concat(heap: &'h Heap, parts: &[&[u8]], context: Option<Context<'h>>) -> Option<Self> {
        let len = parts
            .iter()
            .try_fold(0_usize, |len, part| len.checked_add(part.len()))?;
        u32::try_from(len).ok()?;
        Some(Self(heap.thin_concat(context, parts)))
    }

    /// Its bytes.
    #[inline]
    pub(crate) fn bytes(self) -> &'h [u8] {
        self.0.elements()
    }

    /// What it depends on.
    #[inline]
    pub(crate) fn context(self) -> Option<Context<'h>> {
        *self.0.header()
    }

    /// # Safety
    /// The pointer must come from a string that lives for `'h`.
    #[inline]
    pub(super) unsafe fn from_ptr(pointer: NonNull<u8>) -> Self {
        // SAFETY: what the caller says.
        Self(unsafe { Thin::from_ptr(pointer) })
    }
}

impl<'h> Context<'h> {
    /// A context of sorted, distinct elements; `None` for none.
    pub(crate) fn new(heap: &'h Heap, elements: &[&'h ContextElement<'h>]) -> Option<Self> {
        if elements.is_empty() {
            return None;
        }
        debug_assert!(elements.is_sorted_by(|a, b| a < b));
        Some(Self(
            heap.alloc(heap.alloc_slice(elements.len(), |index| elements[index])),
        ))
    }

    /// Its elements, sorted.
    pub(crate) fn elements(self) -> &'h [&'h ContextElement<'h>] {
        self.0
    }

    /// Whether both are the same object.
    pub(crate) fn same(self, other: Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}
