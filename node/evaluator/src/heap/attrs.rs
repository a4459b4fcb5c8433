//! Attribute sets: sorted by symbol, immutable, perhaps in layers.
//!
//! `a // b` with a small `b` does not copy `a`: the new set holds `b`'s attributes and refers to `a` as the layer
//! below (as current Nix does; a third to a half of what an evaluation of nixpkgs copies goes away). Nobody outside
//! of this file sees layers: look-ups search from the top, iteration merges.

use std::cell::Cell;
use std::ptr::NonNull;

use super::thin::Thin;
use super::{Heap, Value};
use crate::limits::{LAYER_SHARE, MAX_LAYER_LEN, MAX_LAYERS};
use crate::syntax::position::Pos;
use crate::syntax::symbol::Symbol;

/// One attribute. Its value is a cell only so that a thunk can be replaced by its result.
#[derive(Clone)]
pub(crate) struct Attr<'h> {
    /// Its name.
    pub(crate) name: Symbol,
    /// Where it is defined.
    pub(crate) pos: Pos,
    value: Cell<Value<'h>>,
}

impl<'h> Attr<'h> {
    /// An attribute.
    #[inline]
    pub(crate) fn new(name: Symbol, pos: Pos, value: Value<'h>) -> Self {
        Self {
            name,
            pos,
            value: Cell::new(value),
        }
    }

    /// Its value, perhaps a thunk.
    #[inline]
    pub(crate) fn value(&self) -> Value<'h> {
        self.value.get()
    }

    /// The slot of its value.
    #[inline]
    pub(crate) fn slot(&self) -> &Cell<Value<'h>> {
        &self.value
    }
}

/// What stands before the attributes of a layer.
pub(super) struct AttrsHead<'h> {
    below: Option<Attrs<'h>>,
    /// Attributes of all layers, those of equal names counted once.
    total: u32,
    /// Layers, this one included.
    layers: u32,
}

/// Reference to an attribute set.
#[derive(Clone, Copy)]
pub(crate) struct Attrs<'h>(pub(super) Thin<'h, AttrsHead<'h>, Attr<'h>>);

impl<'h> Attrs<'h> {
    /// A set of `len` attributes, made one by one in ascending order of their symbols.
    #[inline]
    pub(crate) fn new(heap: &'h Heap, len: usize, attr: impl FnMut(usize) -> Attr<'h>) -> Self {
        let attrs = Self(heap.thin(
            AttrsHead {
                below: None,
                total: len as u32,
                layers: 1,
            },
            len,
            attr,
        ));
        debug_assert!(attrs.0.elements().is_sorted_by(|a, b| a.name < b.name));
        attrs
    }

    /// A set of attributes in ascending order of their symbols.
    pub(crate) fn from_sorted(heap: &'h Heap, attrs: &[Attr<'h>]) -> Self {
        Self::new(heap, attrs.len(), |index| attrs[index].clone())
    }

    /// Number of attributes.
    #[inline]
    pub(crate) fn len(self) -> usize {
        self.0.header().total as usize
    }

    /// Whether there are none.
    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The attribute of that name.
    #[inline]
    pub(crate) fn get(self, name: Symbol) -> Option<&'h Attr<'h>> {
        let mut layer = self;
        loop {
            let attrs = layer.0.elements();
            if let Some(found) = search(attrs, name) {
                return Some(found);
            }
            layer = layer.0.header().below?;
        }
    }

    /// The attributes in ascending order of their symbols (which is not the alphabetical one).
    pub(crate) fn iter(self) -> Iter<'h> {
        match self.0.header().below {
            None => Iter::Flat(self.0.elements().iter()),
            Some(_) => Iter::Merged(self.merged().into_iter()),
        }
    }

    fn merged(self) -> Vec<&'h Attr<'h>> {
        let Some(below) = self.0.header().below else {
            return self.0.elements().iter().collect();
        };
        let mut all = Vec::with_capacity(self.len());
        let mut top = self.0.elements().iter().peekable();
        let mut push = |attr: &'h Attr<'h>| {
            while let Some(&higher) = top.peek()
                && higher.name < attr.name
            {
                all.push(higher);
                top.next();
            }
            if top.peek().is_none_or(|higher| higher.name != attr.name) {
                all.push(attr);
            }
        };
        match below.0.header().below {
            None => below.0.elements().iter().for_each(&mut push),
            Some(_) => below.merged().into_iter().for_each(&mut push),
        }
        all.extend(top);
        all
    }

    /// `self // over`.
    pub(crate) fn update(self, heap: &'h Heap, over: Self) -> Self {
        if self.is_empty() {
            return over;
        }
        if over.is_empty() {
            return self;
        }
        let head = self.0.header();
        let small = over.len() <= MAX_LAYER_LEN.max(self.len() / LAYER_SHARE);
        if small && head.layers < MAX_LAYERS && self.len() > over.len() {
            let new = over.iter().filter(|attr| self.get(attr.name).is_none()).count() as u32;
            let head = AttrsHead {
                below: Some(self),
                total: head.total + new,
                layers: head.layers + 1,
            };
            let mut own = over.iter();
            return Self(heap.thin(head, over.len(), |_| match own.next() {
                Some(attr) => attr.clone(),
                None => unreachable!("a set has as many attributes as it says"),
            }));
        }
        let mut left = self.iter().peekable();
        let mut right = over.iter().peekable();
        let mut all = Vec::with_capacity(self.len() + over.len());
        loop {
            match (left.peek(), right.peek()) {
                (Some(a), Some(b)) => {
                    if a.name < b.name {
                        all.extend(left.next());
                    } else {
                        if a.name == b.name {
                            left.next();
                        }
                        all.extend(right.next());
                    }
                }
                (Some(_), None) => all.extend(left.next()),
                (None, Some(_)) => all.extend(right.next()),
                (None, None) => break,
            }
        }
        Self::new(heap, all.len(), |index| all[index].clone())
    }

    /// Whether both are the same object.
    #[inline]
    pub(crate) fn same(self, other: Self) -> bool {
        self.0.same(other.0)
    }

    /// # Safety
    /// The pointer must come from a set that lives for `'h`.
    #[inline]
    pub(super) unsafe fn from_ptr(pointer: NonNull<u8>) -> Self {
        // SAFETY: what the caller says.
        Self(unsafe { Thin::from_ptr(pointer) })
    }
}

#[inline]
fn search<'a, 'h>(attrs: &'a [Attr<'h>], name: Symbol) -> Option<&'a Attr<'h>> {
    // Halving without a branch on the comparison, which nothing could predict.
    let mut base = 0;
    let mut size = attrs.len();
    if size == 0 {
        return None;
    }
    while size > 1 {
        let half = size / 2;
        let middle = base + half;
        base = std::hint::select_unpredictable(attrs[middle].name <= name, middle, base);
        size -= half;
    }
    let found = &attrs[base];
    (found.name == name).then_some(found)
}

/// Iterator over the attributes of a set.
pub(crate) enum Iter<'h> {
    /// Of a set of one layer.
    Flat(std::slice::Iter<'h, Attr<'h>>),
    /// Of several layers.
    Merged(std::vec::IntoIter<&'h Attr<'h>>),
}

impl<'h> Iterator for Iter<'h> {
    type Item = &'h Attr<'h>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Flat(attrs) => attrs.next(),
            Self::Merged(attrs) => attrs.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Self::Flat(attrs) => attrs.size_hint(),
            Self::Merged(attrs) => attrs.size_hint(),
        }
    }
}

impl ExactSizeIterator for Iter<'_> {}

/// Collects attributes in any order; of equal names the first one counts.
#[derive(Clone)]
pub(crate) struct AttrsBuilder<'h> {
    attrs: Vec<Attr<'h>>,
}

impl<'h> AttrsBuilder<'h> {
    /// An empty builder with room for some attributes.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self {
            attrs: Vec::with_capacity(capacity),
        }
    }

    /// Adds an attribute without a position.
    pub(crate) fn insert(&mut self, name: Symbol, value: Value<'h>) {
        self.insert_at(name, Pos::NONE, value);
    }

    /// Adds an attribute.
    pub(crate) fn insert_at(&mut self, name: Symbol, pos: Pos, value: Value<'h>) {
        self.attrs.push(Attr::new(name, pos, value));
    }

    /// The set.
    pub(crate) fn finish(mut self, heap: &'h Heap) -> Attrs<'h> {
        // Stable, so the first of equal names stays the first.
        self.attrs.sort_by_key(|attr| attr.name);
        self.attrs.dedup_by_key(|attr| attr.name);
        Attrs::from_sorted(heap, &self.attrs)
    }
}
