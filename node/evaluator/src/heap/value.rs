//! Values: one word each.

use std::marker::PhantomData;
use std::ptr::NonNull;

use super::{Attrs, Closure, Heap, List, Partial, Str, Thunk};
use crate::builtins::PrimOp;

const TAG_BITS: u32 = 3;
const TAG_MASK: usize = 7;
const TAG_THUNK: usize = 0;
const TAG_ATTRS: usize = 1;
const TAG_LIST: usize = 2;
const TAG_STRING: usize = 3;
const TAG_INT: usize = 4;
pub(super) const TAG_CLOSURE: usize = 5;
const TAG_BOXED: usize = 6;
const TAG_CONSTANT: usize = 7;

const NULL: usize = TAG_CONSTANT;
const FALSE: usize = (1 << TAG_BITS) | TAG_CONSTANT;
const TRUE: usize = (2 << TAG_BITS) | TAG_CONSTANT;
const UNSET: usize = (3 << TAG_BITS) | TAG_CONSTANT;

/// A value, perhaps not evaluated yet.
#[derive(Clone, Copy)]
pub(crate) struct Value<'h> {
    raw: NonNull<u8>,
    lives: PhantomData<&'h ()>,
}

/// Kinds that do not deserve a tag of their own.
#[derive(Clone, Copy)]
enum Boxed<'h> {
    Int(i64),
    Float(f64),
    Path(Str<'h>),
    PrimOp(&'static PrimOp),
    Partial(Partial<'h>),
}

/// A value taken apart.
#[derive(Clone, Copy)]
pub(crate) enum View<'h> {
    /// Not evaluated, or evaluated with the result behind it; see [`Value::as_thunk`].
    Thunk,
    /// An attribute set.
    Attrs(Attrs<'h>),
    /// A list.
    List(List<'h>),
    /// A string with its context.
    Str(Str<'h>),
    /// An absolute path.
    Path(Str<'h>),
    /// An integer.
    Int(i64),
    /// A floating point number.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// `null`.
    Null,
    /// A function written in Nix.
    Closure(Closure<'h>),
    /// A builtin function.
    PrimOp(&'static PrimOp),
    /// A function that has got some of its arguments.
    Partial(Partial<'h>),
}

/// Kind of an evaluated value, as `builtins.typeOf` distinguishes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not evaluated.
    Thunk,
    /// `set`
    Attrs,
    /// `list`
    List,
    /// `string`
    Str,
    /// `path`
    Path,
    /// `int`
    Int,
    /// `float`
    Float,
    /// `bool`
    Bool,
    /// `null`
    Null,
    /// `lambda`
    Function,
}

impl<'h> Value<'h> {
    /// `null`.
    pub(crate) const NULL: Self = Self::constant(NULL);
    /// `true`.
    pub(crate) const TRUE: Self = Self::constant(TRUE);
    /// `false`.
    pub(crate) const FALSE: Self = Self::constant(FALSE);

    /// Marks a variable of a recursive scope that has not got its value yet; no expression ever sees it.
    pub(crate) const UNSET: Self = Self::constant(UNSET);

    const fn constant(raw: usize) -> Self {
        match NonNull::new(std::ptr::without_provenance_mut(raw)) {
            Some(raw) => Self {
                raw,
                lives: PhantomData,
            },
            None => unreachable!(),
        }
    }

    #[inline]
    fn tagged(pointer: NonNull<u8>, tag: usize) -> Self {
        debug_assert_eq!(pointer.addr().get() & TAG_MASK, 0);
        Self {
            raw: pointer.map_addr(|address| address | tag),
            lives: PhantomData,
        }
    }

    #[inline]
    fn tag(self) -> usize {
        self.raw.addr().get() & TAG_MASK
    }

    #[inline]
    fn pointer(self, tag: usize) -> NonNull<u8> {
        debug_assert_eq!(self.tag(), tag);
        // SAFETY: the tag was added to a non-null aligned pointer, so subtracting it gives that pointer.
        unsafe { self.raw.byte_sub(tag) }
    }

    /// A boolean.
    #[inline]
    pub(crate) const fn bool(value: bool) -> Self {
        if value { Self::TRUE } else { Self::FALSE }
    }

    /// An integer; those of more than 61 bits go to the heap.
    #[inline]
    pub(crate) fn int(heap: &'h Heap, value: i64) -> Self {
        if (value << TAG_BITS) >> TAG_BITS == value {
            return Self::constant(((value << TAG_BITS) as usize) | TAG_INT);
        }
        Self::boxed(heap, Boxed::Int(value))
    }

    /// An integer with an identity of its own: a constant that code refers to by name.
    pub(crate) fn own_int(heap: &'h Heap, value: i64) -> Self {
        Self::boxed(heap, Boxed::Int(value))
    }

    /// Whether it is in the heap, so that its [`address`](Self::address) is no other value's.
    pub(crate) fn is_in_heap(self) -> bool {
        !matches!(self.tag(), TAG_INT | TAG_CONSTANT)
    }

    /// An integer that is known to be small (at most 60 bits and a sign).
    #[inline]
    pub(crate) fn small_int(value: i32) -> Self {
        Self::constant(((i64::from(value) << TAG_BITS) as usize) | TAG_INT)
    }

    /// A floating point number.
    pub(crate) fn float(heap: &'h Heap, value: f64) -> Self {
        Self::boxed(heap, Boxed::Float(value))
    }

    /// An absolute path.
    pub(crate) fn path(heap: &'h Heap, path: Str<'h>) -> Self {
        Self::boxed(heap, Boxed::Path(path))
    }

    /// A builtin function.
    pub(crate) fn primop(heap: &'h Heap, primop: &'static PrimOp) -> Self {
        Self::boxed(heap, Boxed::PrimOp(primop))
    }

    /// A partially applied function.
    pub(crate) fn partial(heap: &'h Heap, partial: Partial<'h>) -> Self {
        Self::boxed(heap, Boxed::Partial(partial))
    }

    fn boxed(heap: &'h Heap, boxed: Boxed<'h>) -> Self {
        Self::tagged(NonNull::from(heap.alloc(boxed)).cast(), TAG_BOXED)
    }

    /// A string.
    #[inline]
    pub(crate) fn str(string: Str<'h>) -> Self {
        Self::tagged(string.0.as_ptr(), TAG_STRING)
    }

    /// An attribute set.
    #[inline]
    pub(crate) fn attrs(attrs: Attrs<'h>) -> Self {
        Self::tagged(attrs.0.as_ptr(), TAG_ATTRS)
    }

    /// A list.
    #[inline]
    pub(crate) fn list(list: List<'h>) -> Self {
        Self::tagged(list.0.as_ptr(), TAG_LIST)
    }

    /// A function written in Nix.
    #[inline]
    pub(crate) fn closure(closure: Closure<'h>) -> Self {
        Self::tagged(closure.as_ptr(), TAG_CLOSURE)
    }

    /// Something not evaluated yet.
    #[inline]
    pub(crate) fn thunk(thunk: Thunk<'h>) -> Self {
        Self::tagged(thunk.as_ptr(), TAG_THUNK)
    }

    /// Whether it is a thunk (perhaps one that is done).
    #[inline]
    pub(crate) fn is_thunk(self) -> bool {
        self.tag() == TAG_THUNK
    }

    /// Whether it is a function written in Nix.
    #[inline]
    pub(crate) fn is_closure(self) -> bool {
        self.tag() == TAG_CLOSURE
    }

    /// Whether it is of a kind whose identity is that of the thunk it came from: closures and lists.
    #[inline]
    pub(crate) fn keeps_its_thunk(self) -> bool {
        matches!(self.tag(), TAG_CLOSURE | TAG_LIST)
    }

    /// The thunk, if it is one.
    #[inline]
    pub(crate) fn as_thunk(self) -> Option<Thunk<'h>> {
        // SAFETY: invariant 3.
        (self.tag() == TAG_THUNK).then(|| unsafe { Thunk::from_ptr(self.pointer(TAG_THUNK)) })
    }

    /// The attribute set, if it is one.
    #[inline]
    pub(crate) fn as_attrs(self) -> Option<Attrs<'h>> {
        // SAFETY: invariant 3.
        (self.tag() == TAG_ATTRS).then(|| unsafe { Attrs::from_ptr(self.pointer(TAG_ATTRS)) })
    }

    /// The list, if it is one.
    #[inline]
    pub(crate) fn as_list(self) -> Option<List<'h>> {
        // SAFETY: invariant 3.
        (self.tag() == TAG_LIST).then(|| unsafe { List::from_ptr(self.pointer(TAG_LIST)) })
    }

    /// The string, if it is one.
    #[inline]
    pub(crate) fn as_str(self) -> Option<Str<'h>> {
        // SAFETY: invariant 3.
        (self.tag() == TAG_STRING).then(|| unsafe { Str::from_ptr(self.pointer(TAG_STRING)) })
    }

    /// The closure, if it is one.
    #[inline]
    pub(crate) fn as_closure(self) -> Option<Closure<'h>> {
        // SAFETY: invariant 3.
        (self.tag() == TAG_CLOSURE).then(|| unsafe { Closure::from_ptr(self.pointer(TAG_CLOSURE)) })
    }

    /// The boolean, if it is one.
    #[inline]
    pub(crate) fn as_bool(self) -> Option<bool> {
        match self.raw.addr().get() {
            TRUE => Some(true),
            FALSE => Some(false),
            _ => None,
        }
    }

    /// The integer, if it is one.
    #[inline]
    pub(crate) fn as_int(self) -> Option<i64> {
        if self.tag() == TAG_INT {
            return Some((self.raw.addr().get() as i64) >> TAG_BITS);
        }
        match self.view() {
            View::Int(int) => Some(int),
            _ => None,
        }
    }

    /// Takes the value apart.
    #[inline]
    pub(crate) fn view(self) -> View<'h> {
        // SAFETY: invariant 3: the tag says what the pointer points to, and it lives for 'h.
        unsafe {
            match self.tag() {
                TAG_THUNK => View::Thunk,
                TAG_ATTRS => View::Attrs(Attrs::from_ptr(self.pointer(TAG_ATTRS))),
                TAG_LIST => View::List(List::from_ptr(self.pointer(TAG_LIST))),
                TAG_STRING => View::Str(Str::from_ptr(self.pointer(TAG_STRING))),
                TAG_INT => View::Int((self.raw.addr().get() as i64) >> TAG_BITS),
                TAG_CLOSURE => View::Closure(Closure::from_ptr(self.pointer(TAG_CLOSURE))),
                TAG_BOXED => match *self.pointer(TAG_BOXED).cast::<Boxed<'h>>().as_ref() {
                    Boxed::Int(int) => View::Int(int),
                    Boxed::Float(float) => View::Float(float),
                    Boxed::Path(path) => View::Path(path),
                    Boxed::PrimOp(primop) => View::PrimOp(primop),
                    Boxed::Partial(partial) => View::Partial(partial),
                },
                _ => match self.raw.addr().get() {
                    NULL => View::Null,
                    TRUE => View::Bool(true),
                    FALSE => View::Bool(false),
                    _ => unreachable!("a variable is read before it is set"),
                },
            }
        }
    }

    /// Whether it is [`Self::UNSET`].
    #[inline]
    pub(crate) fn is_unset(self) -> bool {
        self.raw.addr().get() == UNSET
    }

    /// Its kind; thunks are not looked into.
    pub(crate) fn kind(self) -> Kind {
        match self.view() {
            View::Thunk => Kind::Thunk,
            View::Attrs(_) => Kind::Attrs,
            View::List(_) => Kind::List,
            View::Str(_) => Kind::Str,
            View::Path(_) => Kind::Path,
            View::Int(_) => Kind::Int,
            View::Float(_) => Kind::Float,
            View::Bool(_) => Kind::Bool,
            View::Null => Kind::Null,
            View::Closure(_) | View::PrimOp(_) | View::Partial(_) => Kind::Function,
        }
    }

    /// Whether both are one and the same object (or equal constants).
    #[inline]
    pub(crate) fn same(self, other: Self) -> bool {
        self.raw == other.raw
    }

    /// The word itself, to recognise an object that was seen before.
    #[inline]
    pub(crate) fn address(self) -> usize {
        self.raw.addr().get()
    }

    #[inline]
    pub(super) fn into_raw(self) -> *mut u8 {
        self.raw.as_ptr()
    }

    /// # Safety
    /// The word must come from [`Self::into_raw`] of a value that lives for `'h`.
    #[inline]
    pub(super) unsafe fn from_raw(raw: *mut u8) -> Self {
        // SAFETY: words of values are never zero.
        Self {
            raw: unsafe { NonNull::new_unchecked(raw) },
            lives: PhantomData,
        }
    }
}
