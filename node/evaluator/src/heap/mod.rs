//! The heap: values and everything they are made of.
//!
//! One bump arena per evaluation. Nothing is freed before the evaluation ends, so references into it live as
//! long as the [`Heap`] (`'h`), and no collector has to find them. Why no collector: an evaluation of nixpkgs
//! keeps most of what it makes, its peak is below that of a collected heap that also pays for headers, and a
//! bump allocation is a handful of instructions.
//!
//! Layouts are packed, because an evaluation is bound by memory traffic:
//!
//! - [`Value`]: 8 bytes, a pointer with its kind in the low three bits, or a small integer, or a constant. (An enum
//!   with its payload would be 16: twice the size of every environment and list, half as much again for every
//!   attribute. Most of what an evaluation of nixpkgs keeps is these three.)
//! - [`Thunk`]: 16 bytes, overwritten in place when it is forced.
//! - [`Env`], [`List`], [`Str`], [`Attrs`]: a small header followed by the elements in the same allocation.
//!
//! # Where `unsafe` is, and what it relies on
//!
//! `unsafe` is allowed in this folder alone (and in the stack switch). The invariants:
//!
//! 1. **Arena**: memory handed out by [`arena::Arena`] is exclusively the caller's, aligned to 8 bytes or
//!    more, and stays where it is until the arena is dropped. Nothing in it has a destructor that must run.
//! 2. **Thin objects** ([`thin::Thin`]): made only by `Heap::thin`, which initialises header, length and every
//!    element before the pointer can be seen. The pointer keeps the provenance of the whole allocation.
//! 3. **Values** ([`value::Value`]): the tag in the low bits always says what the pointer points to, because
//!    only the constructors in `value.rs` make values, each from the matching type. Objects are aligned to 8,
//!    so the three bits are free.
//! 4. **Thunks** ([`thunk::Thunk`]): the same for the first word of a thunk, whose states are written only in
//!    `thunk.rs`, always both words.
//! 5. Mutation is through `Cell` only, and no reference to the inside of a `Cell` is ever given out.
//!
//! These files know nothing of coroutines, so that Miri can run their tests.

#![allow(unsafe_code)]

mod arena;
mod attrs;
mod env;
mod function;
mod list;
mod string;
mod thin;
mod thunk;
mod value;

pub(crate) use arena::Heap;
pub(crate) use attrs::{Attr, Attrs, AttrsBuilder};
pub(crate) use env::Env;
pub(crate) use function::{Closure, Partial};
pub(crate) use list::List;
pub(crate) use string::{Context, ContextElement, Str};
pub(crate) use thunk::{State, Thunk};
pub(crate) use value::{Kind, Value, View};

#[cfg(test)]
mod tests;
