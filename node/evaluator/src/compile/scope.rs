//! Scopes at compile time.

use crate::syntax::symbol::Symbol;

/// Names of one scope and their slots, sorted by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names(Vec<(Symbol, u32)>);

impl Names {
    /// Names with their slots; of equal names the last one counts.
    pub(crate) fn new(mut names: Vec<(Symbol, u32)>) -> Self {
        names.reverse();
        names.sort_by_key(|(name, _)| *name);
        names.dedup_by_key(|(name, _)| *name);
        Self(names)
    }

    fn find(&self, name: Symbol) -> Option<u32> {
        let index = self.0.binary_search_by_key(&name, |(name, _)| *name).ok()?;
        Some(self.0[index].1)
    }
}

/// A scope, and those around it.
pub(super) struct Scope<'s> {
    around: Option<&'s Scope<'s>>,
    kind: Kind<'s>,
}

enum Kind<'s> {
    /// The scope of a file: no variables.
    Base,
    /// Variables in slots.
    Names(&'s Names),
    /// A `with`.
    With,
}

/// Where a variable is.
pub(super) enum Found {
    /// In a slot of the scope `depth` levels around.
    Slot { depth: u32, slot: u32 },
    /// Not bound by name; the `with`s around, as levels, innermost first.
    Nowhere { withs: Vec<u32> },
}

impl<'s> Scope<'s> {
    pub(super) fn base() -> Self {
        Self {
            around: None,
            kind: Kind::Base,
        }
    }

    pub(super) fn around(around: Option<&'s Scope<'s>>, names: &'s Names) -> Self {
        Self {
            around,
            kind: Kind::Names(names),
        }
    }

    pub(super) fn inside(&'s self, names: &'s Names) -> Self {
        Self::around(Some(self), names)
    }

    pub(super) fn with(around: &'s Scope<'s>) -> Self {
        Self {
            around: Some(around),
            kind: Kind::With,
        }
    }

    pub(super) fn find(&self, name: Symbol) -> Found {
        let mut withs = Vec::new();
        let mut scope = Some(self);
        let mut depth = 0;
        while let Some(current) = scope {
            match &current.kind {
                Kind::Names(names) => {
                    if let Some(slot) = names.find(name) {
                        return Found::Slot { depth, slot };
                    }
                }
                Kind::With => withs.push(depth),
                Kind::Base => {}
            }
            depth += 1;
            scope = current.around;
        }
        Found::Nowhere { withs }
    }

    /// Whether a scope binds the name (a `with` does not count).
    pub(super) fn binds(&self, name: Symbol) -> bool {
        matches!(self.find(name), Found::Slot { .. })
    }
}
