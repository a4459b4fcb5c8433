//! Forcing thunks.

use std::cell::Cell;

use super::Evaluation;
use crate::error::{ErrorKind, EvalError, Result, Shown};
use crate::heap::{State, Thunk, Value};
use crate::syntax::position::Pos;

impl<'h> Evaluation<'h> {
    /// Evaluates a value until it is not a thunk.
    #[inline]
    pub(crate) fn force(&self, value: Value<'h>) -> Result<Value<'h>> {
        match value.as_thunk() {
            None => Ok(value),
            Some(thunk) => match thunk.result() {
                Some(result) => Ok(result),
                None => self.force_thunk(thunk),
            },
        }
    }

    /// Forces what is in a slot and leaves the result there, so that the next look does not go through the thunk.
    ///
    /// Functions and lists are left behind their thunk: whether two functions in equal sets are the same one, and
    /// whether a list was printed before, is decided by the thunk (see `compare` and `print`), as in Nix.
    #[inline]
    pub(crate) fn force_slot(&self, slot: &Cell<Value<'h>>) -> Result<Value<'h>> {
        let value = slot.get();
        if !value.is_thunk() {
            return Ok(value);
        }
        let result = self.force(value)?;
        if !result.keeps_its_thunk() {
            slot.set(result);
        }
        Ok(result)
    }

    /// Forces a value; an infinite recursion without a position gets this one.
    #[inline]
    pub(crate) fn force_at(&self, value: Value<'h>, pos: Pos) -> Result<Value<'h>> {
        match self.force(value) {
            Err(error) if error.pos.is_none() => Err(error.at(pos)),
            result => result,
        }
    }

    #[inline(never)]
    fn force_thunk(&self, thunk: Thunk<'h>) -> Result<Value<'h>> {
        loop {
            match thunk.state() {
                State::Done(value) => return Ok(value),
                State::Forced(owner) if owner == self.current.get() => {
                    return Err(EvalError::new(
                        ErrorKind::InfiniteRecursion(thunk.address()),
                        Pos::NONE,
                        "infinite recursion encountered",
                    ));
                }
                State::Forced(_) => self.switch.wait_for_thunk(self, thunk)?,
                State::Suspended(code, env) => {
                    self.check_stack(Pos::NONE)?;
                    let saved = thunk.begin(self.current.get());
                    return match self.eval(code, env) {
                        Ok(value) => {
                            thunk.finish(value);
                            self.switch.thunk_ended(thunk);
                            Ok(value)
                        }
                        Err(error) => {
                            thunk.restore(saved);
                            self.switch.thunk_ended(thunk);
                            Err(entering(error, thunk))
                        }
                    };
                }
                State::Apply(call) => {
                    self.check_stack(Pos::NONE)?;
                    let saved = thunk.begin(self.current.get());
                    return match self.call(call.function, &call.arguments[..call.count], Pos::NONE) {
                        Ok(value) => {
                            thunk.finish(value);
                            self.switch.thunk_ended(thunk);
                            Ok(value)
                        }
                        Err(error) => {
                            thunk.restore(saved);
                            self.switch.thunk_ended(thunk);
                            Err(error)
                        }
                    };
                }
            }
        }
    }

    /// Refuses to go deeper when the stack is nearly used up.
    #[inline]
    pub(crate) fn check_stack(&self, pos: Pos) -> Result<()> {
        let here = 0u8;
        if (&raw const here).addr() < self.stack_limit.get() {
            return Err(stack_overflow(pos));
        }
        Ok(())
    }

    /// Runs something one call deeper.
    #[inline]
    pub(crate) fn deeper<T>(&self, pos: Pos, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let depth = self.depth.get();
        if depth >= self.options.max_call_depth {
            return Err(stack_overflow(pos));
        }
        self.check_stack(pos)?;
        self.depth.set(depth + 1);
        let result = run();
        self.depth.set(depth);
        result
    }

    /// Nested calls of the running target; a suspended target keeps its own count.
    pub(crate) fn depth(&self) -> &Cell<u32> {
        &self.depth
    }

    /// Forces a value and everything in it.
    pub(crate) fn force_deep(&self, value: Value<'h>) -> Result<()> {
        let mut seen = rustc_hash::FxHashSet::default();
        self.force_deep_once(value, &mut seen)
    }

    fn force_deep_once(&self, value: Value<'h>, seen: &mut rustc_hash::FxHashSet<usize>) -> Result<()> {
        let value = self.force(value)?;
        if let Some(attrs) = value.as_attrs() {
            if !seen.insert(value.address()) {
                return Ok(());
            }
            return self.deeper(Pos::NONE, || {
                for attr in attrs.iter() {
                    self.force_deep_once(attr.value(), seen).map_err(|error| {
                        let name = self.name(attr.name);
                        error.frame(attr.pos, format!("while evaluating the attribute '{name}'"))
                    })?;
                }
                Ok(())
            });
        }
        if let Some(list) = value.as_list() {
            if !seen.insert(value.address()) {
                return Ok(());
            }
            return self.deeper(Pos::NONE, || {
                for (index, item) in list.iter().enumerate() {
                    self.force_deep_once(item, seen).map_err(|error| {
                        error.frame(
                            Pos::NONE,
                            format!("while evaluating list element at index {index}"),
                        )
                    })?;
                }
                Ok(())
            });
        }
        Ok(())
    }
}

/// Marks in the trace where an infinite recursion begins.
#[cold]
#[inline(never)]
fn entering(error: crate::error::Error, thunk: Thunk<'_>) -> crate::error::Error {
    match error.kind {
        ErrorKind::InfiniteRecursion(address) if address == thunk.address() => {
            error.frame_shown(Pos::NONE, "entering the infinite recursion", Shown::Always)
        }
        _ => error,
    }
}

#[cold]
#[inline(never)]
fn stack_overflow(pos: Pos) -> crate::error::Error {
    EvalError::new(
        ErrorKind::StackOverflow,
        pos,
        "stack overflow; max-call-depth exceeded",
    )
}
