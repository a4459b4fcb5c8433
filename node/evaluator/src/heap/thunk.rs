//! Thunks: what is not evaluated yet, overwritten in place by what it evaluates to.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use super::value::TAG_CLOSURE;
use super::{Closure, Env, Heap, Value};
use crate::code::Expr;

// Low bits of a thunk's first word. Zero is a pointer to code; the tag of closures is left for closures.
const CODE: usize = 0;
const DONE: usize = 1;
const FORCED: usize = 2;
const APPLICATION: usize = 3;
const MASK: usize = 7;
const OWNER_SHIFT: u32 = 3;

/// The two words of a thunk: code and environment, or the application of a function, or a result.
struct Words {
    first: Cell<*mut u8>,
    second: Cell<*mut u8>,
}

/// Reference to a thunk.
#[derive(Clone, Copy)]
pub(crate) struct Thunk<'h> {
    words: NonNull<Words>,
    lives: PhantomData<&'h Cell<Value<'h>>>,
}

/// A call that is not made yet.
#[derive(Clone, Copy)]
pub(crate) struct Application<'h> {
    /// The function, perhaps a thunk itself.
    pub(crate) function: Value<'h>,
    /// Its arguments, one or two.
    pub(crate) arguments: [Value<'h>; 2],
    /// How many of them count.
    pub(crate) count: usize,
}

/// State of a thunk.
#[derive(Clone, Copy)]
pub(crate) enum State<'h> {
    /// Code that is not evaluated yet, and its environment.
    Suspended(&'h Expr<'h>, Env<'h>),
    /// A function that is not called yet.
    Apply(Application<'h>),
    /// Being evaluated by the target with this number.
    Forced(u32),
    /// Evaluated; never a thunk itself.
    Done(Value<'h>),
}

/// The state of a thunk before it was forced, to be put back if that fails.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'h> {
    first: *mut u8,
    second: *mut u8,
    lives: PhantomData<Cell<&'h ()>>,
}

impl<'h> Thunk<'h> {
    #[inline]
    fn words(&self) -> &'h Words {
        // SAFETY: thunks are made only below, initialised, in the heap that lives for 'h.
        unsafe { self.words.as_ref() }
    }

    #[inline]
    fn new(heap: &'h Heap, first: *mut u8, second: *mut u8) -> Self {
        let words = heap.alloc(Words {
            first: Cell::new(first),
            second: Cell::new(second),
        });
        Self {
            words: NonNull::from(words),
            lives: PhantomData,
        }
    }

    /// Code to be evaluated in an environment.
    #[inline]
    pub(crate) fn suspended(heap: &'h Heap, code: &'h Expr<'h>, env: Env<'h>) -> Self {
        const { assert!(align_of::<Expr<'_>>() >= 8) };
        Self::new(
            heap,
            ptr::from_ref(code).cast_mut().cast(),
            env.0.as_ptr().as_ptr(),
        )
    }

    /// A function to be called with one argument.
    pub(crate) fn application(heap: &'h Heap, function: Value<'h>, argument: Value<'h>) -> Self {
        if function.is_closure() {
            return Self::new(heap, function.into_raw(), argument.into_raw());
        }
        Self::boxed_application(heap, function, [argument, Value::NULL], 1)
    }

    /// A function to be called with two arguments.
    pub(crate) fn application2(heap: &'h Heap, function: Value<'h>, arguments: [Value<'h>; 2]) -> Self {
        Self::boxed_application(heap, function, arguments, 2)
    }

    fn boxed_application(
        heap: &'h Heap,
        function: Value<'h>,
        arguments: [Value<'h>; 2],
        count: usize,
    ) -> Self {
        let boxed = ptr::from_ref(heap.alloc(Application {
            function,
            arguments,
            count,
        }));
        Self::new(
            heap,
            ptr::without_provenance_mut(APPLICATION),
            boxed.cast_mut().cast(),
        )
    }

    /// A thunk that is done already: where a slot must be shared before its value is known.
    pub(crate) fn done(heap: &'h Heap, value: Value<'h>) -> Self {
        debug_assert!(!value.is_thunk());
        Self::new(heap, ptr::without_provenance_mut(DONE), value.into_raw())
    }

    /// Its result, if it is done.
    #[inline]
    pub(crate) fn result(self) -> Option<Value<'h>> {
        let words = self.words();
        // SAFETY: invariant 4: the second word of a done thunk is a value.
        (words.first.get().addr() == DONE).then(|| unsafe { Value::from_raw(words.second.get()) })
    }

    /// Its state.
    #[inline]
    pub(crate) fn state(self) -> State<'h> {
        let (first, second) = (self.words().first.get(), self.words().second.get());
        // SAFETY: invariant 4: both words are always written together, the first says what they are.
        unsafe {
            match first.addr() & MASK {
                CODE => State::Suspended(
                    &*first.cast_const().cast::<Expr<'h>>(),
                    Env::from_ptr(NonNull::new_unchecked(second)),
                ),
                DONE => State::Done(Value::from_raw(second)),
                FORCED => State::Forced((first.addr() >> OWNER_SHIFT) as u32),
                TAG_CLOSURE => State::Apply(Application {
                    function: Value::from_raw(first),
                    arguments: [Value::from_raw(second), Value::NULL],
                    count: 1,
                }),
                _ => State::Apply(*second.cast_const().cast::<Application<'h>>()),
            }
        }
    }

    /// Marks it as being evaluated by a target and returns what it was.
    #[inline]
    pub(crate) fn begin(self, owner: u32) -> Saved<'h> {
        let words = self.words();
        let saved = Saved {
            first: words.first.get(),
            second: words.second.get(),
            lives: PhantomData,
        };
        words.first.set(ptr::without_provenance_mut(
            ((owner as usize) << OWNER_SHIFT) | FORCED,
        ));
        words.second.set(ptr::null_mut());
        saved
    }

    /// Puts back what it was before a force that failed, so that forcing it again fails again.
    pub(crate) fn restore(self, saved: Saved<'h>) {
        self.words().first.set(saved.first);
        self.words().second.set(saved.second);
    }

    /// Overwrites it with its result, which is not a thunk.
    #[inline]
    pub(crate) fn finish(self, value: Value<'h>) {
        debug_assert!(!value.is_thunk());
        self.words().first.set(ptr::without_provenance_mut(DONE));
        self.words().second.set(value.into_raw());
    }

    /// Number that names this thunk among those being forced.
    pub(crate) fn address(self) -> usize {
        self.words.addr().get()
    }

    #[inline]
    pub(super) fn as_ptr(self) -> NonNull<u8> {
        self.words.cast()
    }

    /// # Safety
    /// The pointer must come from [`Self::as_ptr`] of a thunk that lives for `'h`.
    #[inline]
    pub(super) unsafe fn from_ptr(pointer: NonNull<u8>) -> Self {
        Self {
            words: pointer.cast(),
            lives: PhantomData,
        }
    }
}

impl<'h> Closure<'h> {
    #[inline]
    pub(super) fn as_ptr(self) -> NonNull<u8> {
        NonNull::from(self.0).cast()
    }

    /// # Safety
    /// The pointer must come from [`Self::as_ptr`] of a closure that lives for `'h`.
    #[inline]
    pub(super) unsafe fn from_ptr(pointer: NonNull<u8>) -> Self {
        // SAFETY: what the caller says.
        Self(unsafe { pointer.cast().as_ref() })
    }
}
