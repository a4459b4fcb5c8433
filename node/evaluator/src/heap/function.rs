//! Functions: closures, and functions that have got some of their arguments.

use super::{Env, Heap, Value};
use crate::code::Lambda;

/// A function written in Nix, with the environment it was made in.
#[derive(Clone, Copy)]
pub(crate) struct Closure<'h>(pub(super) &'h (&'h Lambda<'h>, Env<'h>));

impl<'h> Closure<'h> {
    /// A function that closes over an environment.
    #[inline]
    pub(crate) fn new(heap: &'h Heap, lambda: &'h Lambda<'h>, env: Env<'h>) -> Self {
        Self(heap.alloc((lambda, env)))
    }

    /// Its code.
    #[inline]
    pub(crate) fn lambda(self) -> &'h Lambda<'h> {
        self.0.0
    }

    /// Its environment.
    #[inline]
    pub(crate) fn env(self) -> Env<'h> {
        self.0.1
    }
}

/// A function and its first arguments, fewer than it takes.
#[derive(Clone, Copy)]
pub(crate) struct Partial<'h>(&'h (Value<'h>, &'h [Value<'h>]));

impl<'h> Partial<'h> {
    /// `function` is a builtin or a closure that takes more than `first` and `more` together.
    pub(crate) fn new(heap: &'h Heap, function: Value<'h>, first: &[Value<'h>], more: &[Value<'h>]) -> Self {
        let len = first.len() + more.len();
        let arguments = heap.alloc_slice(len, |index| {
            *first.get(index).unwrap_or_else(|| &more[index - first.len()])
        });
        Self(heap.alloc((function, arguments)))
    }

    /// The function.
    pub(crate) fn function(self) -> Value<'h> {
        self.0.0
    }

    /// The arguments it has got.
    pub(crate) fn arguments(self) -> &'h [Value<'h>] {
        self.0.1
    }
}
