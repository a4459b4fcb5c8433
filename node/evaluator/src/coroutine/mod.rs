//! The stack switch: targets as coroutines.
//!
//! A target runs on a stack of its own and gives the processor back in two cases: it needs a thunk that another
//! target is forcing, or it needs a realisation (import-from-derivation) that is under way. Nothing else switches.
//!
//! # Where `unsafe` is, and what it relies on
//!
//! 1. A [`Task`] runs a closure that borrows for `'e`, and is dropped before `'e` ends, as its type says. A task
//!    that is dropped half-way is first resumed with [`Resume::Cancel`] until it ends: every wait then answers
//!    with an error, which unwinds as an ordinary result. No stack is ever freed with frames on it.
//! 2. [`Switch`] holds a pointer to the yielder of the running task. It is set when a task is entered or resumed
//!    and reset when it leaves, so it is only ever used on the stack that it belongs to.
//!
//! Checkers that cannot follow stack switches (Miri) check everything else: without a running task, waits are
//! answered on the spot (see [`Switch::wait_for_ticket`]).

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ptr::NonNull;

use corosensei::stack::{DefaultStack, Stack as _};
use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::error::{ErrorKind, EvalError, Result};
use crate::evaluation::Evaluation;
use crate::heap::{State, Thunk};
use crate::host::{Realised, Ticket};
use crate::limits::{STACK_RESERVE, STACK_SIZE};
use crate::syntax::position::Pos;

/// Why a target gives the processor back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Until this thunk is no longer being forced by that target.
    Thunk {
        /// Address of the thunk.
        thunk: usize,
        /// The target that forces it.
        owner: u32,
    },
    /// Until a realisation has ended.
    Ticket(Ticket),
}

/// How a target is gone on with.
#[derive(Debug)]
pub(crate) enum Resume {
    /// The thunk it waited for is no longer being forced.
    Go,
    /// Waiting for the thunk would never end: the targets wait for each other.
    Cycle,
    /// The realisation has ended.
    Realised(Realised),
    /// It must end.
    Cancel,
}

type Yields = Yielder<Resume, Wait>;

/// The running target's way to give the processor back.
#[derive(Default)]
pub(crate) struct Switch<'h> {
    yielder: Cell<Option<NonNull<Yields>>>,
    /// How many targets wait for thunks; while there are none, ended forces need not be told.
    waiting: Cell<usize>,
    /// Thunks that are no longer being forced, for the scheduler.
    ended: RefCell<Vec<usize>>,
    lives: PhantomData<Cell<&'h ()>>,
}

impl<'h> Switch<'h> {
    /// Waits until a thunk is no longer being forced by another target.
    ///
    /// # Errors
    /// The targets wait for each other (an infinite recursion), or the target is cancelled.
    pub(crate) fn wait_for_thunk(&self, evaluation: &Evaluation<'h>, thunk: Thunk<'h>) -> Result<()> {
        let State::Forced(owner) = thunk.state() else {
            return Ok(());
        };
        self.waiting.set(self.waiting.get() + 1);
        let resume = self.suspend(
            evaluation,
            Wait::Thunk {
                thunk: thunk.address(),
                owner,
            },
        );
        self.waiting.set(self.waiting.get() - 1);
        match resume {
            Some(Resume::Go | Resume::Realised(_)) => Ok(()),
            Some(Resume::Cycle) | None => Err(EvalError::new(
                ErrorKind::InfiniteRecursion(thunk.address()),
                Pos::NONE,
                "infinite recursion encountered",
            )),
            Some(Resume::Cancel) => Err(cancelled()),
        }
    }

    /// Waits for a realisation. Without a running task it blocks until the host says that it has ended.
    ///
    /// # Errors
    /// The target is cancelled, or the host fails.
    pub(crate) fn wait_for_ticket(&self, evaluation: &Evaluation<'h>, ticket: Ticket) -> Result<Realised> {
        match self.suspend(evaluation, Wait::Ticket(ticket)) {
            Some(Resume::Realised(realised)) => Ok(realised),
            Some(_) => Err(cancelled()),
            None => loop {
                let finished = evaluation
                    .host
                    .finished(true)
                    .map_err(|error| evaluation.host_error(Pos::NONE, &error))?;
                for (ended, realised) in finished {
                    if ended == ticket {
                        return Ok(realised);
                    }
                }
            },
        }
    }

    /// Tells that a thunk is no longer being forced.
    #[inline]
    pub(crate) fn thunk_ended(&self, thunk: Thunk<'h>) {
        if self.waiting.get() > 0 {
            self.ended.borrow_mut().push(thunk.address());
        }
    }

    /// Thunks that ended since the last call.
    pub(crate) fn take_ended(&self) -> Vec<usize> {
        self.ended.take()
    }

    /// Gives the processor back; `None` where there is nobody to give it to.
    fn suspend(&self, evaluation: &Evaluation<'h>, wait: Wait) -> Option<Resume> {
        let yielder = self.yielder.get()?;
        let depth = evaluation.depth().get();
        let current = evaluation.current.get();
        let limit = evaluation.stack_limit.get();
        // SAFETY: invariant 2, the yielder belongs to the running task, on whose stack this is.
        let resume = unsafe { yielder.as_ref() }.suspend(wait);
        self.yielder.set(Some(yielder));
        evaluation.depth().set(depth);
        evaluation.current.set(current);
        evaluation.stack_limit.set(limit);
        Some(resume)
    }
}

#[cold]
fn cancelled() -> crate::error::Error {
    EvalError::new(ErrorKind::Cancelled, Pos::NONE, "the evaluation was cancelled")
}

/// A stack, to be used again.
pub(crate) struct Stack(DefaultStack);

impl Stack {
    /// A fresh stack. Its pages are taken when they are touched.
    ///
    /// # Errors
    /// The system has no address space for it.
    pub(crate) fn new() -> std::io::Result<Self> {
        DefaultStack::new(STACK_SIZE).map(Self)
    }
}

/// A target on a stack of its own, which may use what lives for `'e`.
pub(crate) struct Task<'e> {
    /// `None` only while it is taken apart.
    coroutine: Option<Coroutine<Resume, Wait, (), DefaultStack>>,
    lives: PhantomData<Cell<&'e ()>>,
}

impl<'e> Task<'e> {
    /// A task that will run `body` as target `number`.
    pub(crate) fn new(
        stack: Stack,
        number: u32,
        evaluation: &'e Evaluation<'_>,
        body: impl FnOnce() + 'e,
    ) -> Self {
        let limit = stack.0.limit().get() + STACK_RESERVE;
        let start = move |yielder: &Yields, _first: Resume| {
            evaluation.switch.yielder.set(Some(NonNull::from(yielder)));
            evaluation.depth().set(0);
            evaluation.current.set(number);
            evaluation.stack_limit.set(limit);
            body();
        };
        // SAFETY: invariant 1: the closure is run to its end before 'e ends, as the task cannot outlive 'e and its
        // destructor runs it to its end.
        let coroutine = unsafe { Coroutine::with_stack_unchecked(stack.0, start) };
        Self {
            coroutine: Some(coroutine),
            lives: PhantomData,
        }
    }

    /// Runs the task until it waits (`Some`) or has ended (`None`).
    pub(crate) fn resume(&mut self, evaluation: &Evaluation<'_>, resume: Resume) -> Option<Wait> {
        let coroutine = self.coroutine.as_mut()?;
        if coroutine.done() {
            return None;
        }
        let outer = evaluation.switch.yielder.take();
        let result = coroutine.resume(resume);
        evaluation.switch.yielder.set(outer);
        match result {
            CoroutineResult::Yield(wait) => Some(wait),
            CoroutineResult::Return(()) => None,
        }
    }

    /// The stack of a task that has ended.
    pub(crate) fn into_stack(mut self) -> Option<Stack> {
        let coroutine = self.coroutine.take_if(|coroutine| coroutine.done())?;
        Some(Stack(coroutine.into_stack()))
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        let Some(coroutine) = &mut self.coroutine else {
            return;
        };
        // A task that was never started has nothing to end.
        while coroutine.started() && !coroutine.done() {
            match coroutine.resume(Resume::Cancel) {
                CoroutineResult::Yield(_) | CoroutineResult::Return(()) => {}
            }
        }
    }
}
