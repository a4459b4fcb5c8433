//! Environments: the variables of one scope, and the scope around it.

use std::cell::Cell;
use std::ptr::NonNull;

use super::thin::Thin;
use super::{Heap, Value};

/// Reference to the environment of a scope. Which slot holds which variable is decided when the code is
/// compiled.
#[derive(Clone, Copy)]
pub(crate) struct Env<'h>(pub(super) Thin<'h, Option<EnvLink<'h>>, Cell<Value<'h>>>);

/// The environment around another one.
#[derive(Clone, Copy)]
pub(crate) struct EnvLink<'h>(Env<'h>);

impl<'h> Env<'h> {
    /// A scope whose slots are [`Value::UNSET`], to be set before they are read.
    #[inline]
    pub(crate) fn new(heap: &'h Heap, up: Option<Self>, len: usize) -> Self {
        Self(heap.thin(up.map(EnvLink), len, |_| Cell::new(Value::UNSET)))
    }

    /// A scope whose slots are known.
    #[inline]
    pub(crate) fn filled(
        heap: &'h Heap,
        up: Option<Self>,
        len: usize,
        mut slot: impl FnMut(usize) -> Value<'h>,
    ) -> Self {
        Self(heap.thin(up.map(EnvLink), len, |index| Cell::new(slot(index))))
    }

    /// A scope with one slot.
    #[inline]
    pub(crate) fn one(heap: &'h Heap, up: Self, value: Value<'h>) -> Self {
        Self(heap.thin(Some(EnvLink(up)), 1, |_| Cell::new(value)))
    }

    /// The scope `depth` levels around this one.
    #[inline]
    pub(crate) fn up(self, depth: u32) -> Self {
        let mut env = self;
        for _ in 0..depth {
            match *env.0.header() {
                Some(EnvLink(up)) => env = up,
                None => unreachable!("code refers to a scope outside of its file"),
            }
        }
        env
    }

    /// A slot.
    #[inline]
    pub(crate) fn slot(self, index: u32) -> &'h Cell<Value<'h>> {
        &self.0.elements()[index as usize]
    }

    /// All slots.
    pub(crate) fn slots(self) -> &'h [Cell<Value<'h>>] {
        self.0.elements()
    }

    /// # Safety
    /// The pointer must come from an environment that lives for `'h`.
    #[inline]
    pub(super) unsafe fn from_ptr(pointer: NonNull<u8>) -> Self {
        // SAFETY: what the caller says.
        Self(unsafe { Thin::from_ptr(pointer) })
    }
}
