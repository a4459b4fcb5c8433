//! Sets under construction: attribute paths become nested sets, and parts of one set are merged, as `addAttr` of
//! stock Nix's `parser-state.hh` does it.

use rustc_hash::FxHashMap;

use super::ast::{Attr, AttrName, AttrValue, Bindings, DynamicAttr, Expr};
use super::error::{SyntaxError, SyntaxErrorKind};
use super::parser::{Parser, Result};
use super::position::Pos;
use super::print;
use super::symbol::Symbol;

/// Up to this many attributes, a search from front to back is faster than hashing.
const FEW: usize = 16;

/// A set that may still get attributes.
pub(super) struct Builder<'a> {
    pub(super) pos: Pos,
    pub(super) recursive: bool,
    pub(super) attrs: Vec<Entry<'a>>,
    /// Where in `attrs` each name is, once there are more than [`FEW`].
    index: FxHashMap<Symbol, u32>,
    pub(super) dynamic: Vec<DynamicEntry<'a>>,
    pub(super) inherit_from: Vec<Expr<'a>>,
}

/// An attribute of a [`Builder`].
pub(super) struct Entry<'a> {
    pub(super) name: Symbol,
    pub(super) pos: Pos,
    pub(super) value: Value<'a>,
}

/// A dynamic attribute of a [`Builder`]. Never merged with another.
pub(super) struct DynamicEntry<'a> {
    name: Expr<'a>,
    pos: Pos,
    value: Value<'a>,
}

/// The value of an [`Entry`].
pub(super) enum Value<'a> {
    Plain(Expr<'a>),
    Inherited,
    InheritedFrom(u32),
    /// A set that more was added to, or that came to be by an attribute path.
    Open(Box<Builder<'a>>),
}

impl<'a> Builder<'a> {
    pub(super) fn find(&self, name: Symbol) -> Option<usize> {
        if self.attrs.len() <= FEW {
            self.attrs.iter().position(|entry| entry.name == name)
        } else {
            self.index.get(&name).map(|&index| index as usize)
        }
    }

    /// Adds an attribute that is not there yet.
    pub(super) fn push(&mut self, name: Symbol, pos: Pos, value: Value<'a>) {
        self.attrs.push(Entry { name, pos, value });
        if self.attrs.len() == FEW + 1 {
            let numbered = self.attrs.iter().zip(0..);
            self.index
                .extend(numbered.map(|(entry, index)| (entry.name, index)));
        } else if self.attrs.len() > FEW {
            self.index.insert(name, self.attrs.len() as u32 - 1);
        }
    }
}

impl<'a> Parser<'a, '_> {
    pub(super) fn new_builder(&mut self, pos: Pos, recursive: bool) -> Box<Builder<'a>> {
        let mut builder = self.builders.pop().unwrap_or_else(|| {
            Box::new(Builder {
                pos,
                recursive,
                attrs: Vec::new(),
                index: FxHashMap::default(),
                dynamic: Vec::new(),
                inherit_from: Vec::new(),
            })
        });
        builder.pos = pos;
        builder.recursive = recursive;
        builder
    }

    /// Takes a set into the arena, with all that is open in it.
    pub(super) fn finish(&mut self, mut builder: Box<Builder<'a>>) -> Bindings<'a> {
        for entry in &mut builder.attrs {
            self.close(&mut entry.value);
        }
        for entry in &mut builder.dynamic {
            self.close(&mut entry.value);
        }
        let attrs = self
            .arena
            .alloc_slice_fill_iter(builder.attrs.drain(..).map(|entry| {
                let value = match entry.value {
                    Value::Plain(expr) => AttrValue::Plain(expr),
                    Value::InheritedFrom(index) => AttrValue::InheritedFrom(index),
                    Value::Inherited | Value::Open(_) => AttrValue::Inherited,
                };
                Attr {
                    name: entry.name,
                    pos: entry.pos,
                    value,
                }
            }));
        let dynamic = self
            .arena
            .alloc_slice_fill_iter(builder.dynamic.drain(..).map(|entry| {
                let Value::Plain(value) = entry.value else {
                    unreachable!("closed above")
                };
                DynamicAttr {
                    name: entry.name,
                    pos: entry.pos,
                    value,
                }
            }));
        let inherit_from = self.arena.alloc_slice_copy(&builder.inherit_from);
        let bindings = Bindings {
            pos: builder.pos,
            recursive: builder.recursive,
            attrs,
            dynamic,
            inherit_from,
        };
        builder.index.clear();
        builder.inherit_from.clear();
        self.builders.push(builder);
        bindings
    }

    fn close(&mut self, value: &mut Value<'a>) {
        if let Value::Open(_) = value
            && let Value::Open(builder) = std::mem::replace(value, Value::Inherited)
        {
            let bindings = self.finish(builder);
            *value = Value::Plain(Expr::Attrs(self.arena.alloc(bindings)));
        }
    }

    /// The set behind a value, opened for more attributes; `None` if it is no set.
    fn open<'v>(&mut self, value: &'v mut Value<'a>) -> Option<&'v mut Builder<'a>> {
        if let Value::Plain(Expr::Attrs(bindings)) = *value {
            let mut builder = self.new_builder(bindings.pos, bindings.recursive);
            for attr in bindings.attrs {
                let value = match attr.value {
                    AttrValue::Plain(expr) => Value::Plain(expr),
                    AttrValue::Inherited => Value::Inherited,
                    AttrValue::InheritedFrom(index) => Value::InheritedFrom(index),
                };
                builder.push(attr.name, attr.pos, value);
            }
            for &DynamicAttr { name, pos, value } in bindings.dynamic {
                builder.dynamic.push(DynamicEntry {
                    name,
                    pos,
                    value: Value::Plain(value),
                });
            }
            builder.inherit_from.extend_from_slice(bindings.inherit_from);
            *value = Value::Open(builder);
        }
        match value {
            Value::Open(builder) => Some(builder),
            _ => None,
        }
    }

    /// `a.b.c = value;`, the path being what is on the stack of names above a mark.
    pub(super) fn add_path(
        &mut self,
        builder: &mut Builder<'a>,
        mark: usize,
        pos: Pos,
        value: Expr<'a>,
    ) -> Result<()> {
        let mut holder = builder;
        for index in mark..self.names.len() - 1 {
            holder = match self.names[index] {
                AttrName::Static(name) => {
                    let at = match holder.find(name) {
                        Some(at) => at,
                        None => {
                            let nested = self.new_builder(Pos::NONE, false);
                            holder.push(name, pos, Value::Open(nested));
                            holder.attrs.len() - 1
                        }
                    };
                    let entry = &mut holder.attrs[at];
                    let previous = entry.pos;
                    match self.open(&mut entry.value) {
                        Some(nested) => nested,
                        None => return Err(self.duplicate_attr(&self.names[mark..=index], pos, previous)),
                    }
                }
                AttrName::Dynamic(name) => {
                    let nested = self.new_builder(Pos::NONE, false);
                    let at = holder.dynamic.len();
                    holder.dynamic.push(DynamicEntry {
                        name,
                        pos,
                        value: Value::Open(nested),
                    });
                    match &mut holder.dynamic[at].value {
                        Value::Open(nested) => nested,
                        _ => unreachable!("pushed above"),
                    }
                }
            };
        }
        match self.names[self.names.len() - 1] {
            AttrName::Static(name) => self.add(holder, mark, name, pos, Value::Plain(value)),
            AttrName::Dynamic(name) => {
                holder.dynamic.push(DynamicEntry {
                    name,
                    pos,
                    value: Value::Plain(value),
                });
                Ok(())
            }
        }
    }

    /// Adds one attribute; if there is one of that name and both are sets, merges them. The stack of names above
    /// the mark is the path to the attribute, for messages.
    ///
    /// As in stock Nix, whether the merged set is `rec` is decided by the one that came first.
    fn add(
        &mut self,
        holder: &mut Builder<'a>,
        mark: usize,
        name: Symbol,
        pos: Pos,
        mut value: Value<'a>,
    ) -> Result<()> {
        let Some(at) = holder.find(name) else {
            holder.push(name, pos, value);
            return Ok(());
        };
        let previous = holder.attrs[at].pos;
        let Some(added) = self.open(&mut value) else {
            return Err(self.duplicate_attr(&self.names[mark..], pos, previous));
        };
        let Some(target) = self.open(&mut holder.attrs[at].value) else {
            return Err(self.duplicate_attr(&self.names[mark..], pos, previous));
        };
        let shift = target.inherit_from.len() as u32;
        for entry in added.attrs.drain(..) {
            let value = match entry.value {
                Value::InheritedFrom(index) => Value::InheritedFrom(index + shift),
                value => value,
            };
            self.names.push(AttrName::Static(entry.name));
            self.add(target, mark, entry.name, entry.pos, value)?;
            self.names.pop();
        }
        target.dynamic.append(&mut added.dynamic);
        target.inherit_from.append(&mut added.inherit_from);
        Ok(())
    }

    #[cold]
    pub(super) fn duplicate_attr(&self, path: &[AttrName<'a>], pos: Pos, previous: Pos) -> Box<SyntaxError> {
        let path = String::from_utf8_lossy(&print::attr_path(path, self.symbols)).into_owned();
        self.error(pos, SyntaxErrorKind::DuplicateAttr { path, previous })
    }
}
