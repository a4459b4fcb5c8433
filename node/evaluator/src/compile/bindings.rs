//! Sets and `let`.

use super::scope::{Names, Scope};
use super::{Compiler, Result};
use crate::code::{self, AttrCode, AttrsCode, DynamicAttr, Expr, Field, Let};
use crate::syntax::ast::{self, AttrValue};
use crate::syntax::position::Pos;
use crate::syntax::symbol::{Symbol, known};

/// Where the sources of `inherit (…)` are: an expression that is cheap to evaluate again, or a slot.
enum Source<'h> {
    Again(Expr<'h>),
    Slot(u32),
}

impl<'h> Compiler<'h, '_> {
    /// Compiles the value of a binding, which gives functions their name.
    fn bound(&self, tree: &ast::Expr<'_>, name: Symbol, scope: &Scope<'_>) -> Result<Expr<'h>> {
        match tree {
            ast::Expr::Lambda { .. } => self.lambda(tree, Some(name), scope),
            _ => self.expr(tree, scope),
        }
    }

    /// Compiles the sources of `inherit (…)` in the scope of the bindings. Plain variables are used again wherever
    /// they are needed, others get slots from `first` on.
    fn sources(
        &self,
        trees: &[ast::Expr<'_>],
        scope: &Scope<'_>,
        first: u32,
    ) -> Result<(Vec<Source<'h>>, Vec<Expr<'h>>)> {
        let mut sources = Vec::with_capacity(trees.len());
        let mut shared = Vec::new();
        for tree in trees {
            let source = self.expr(tree, scope)?;
            sources.push(match source {
                Expr::Local { .. } | Expr::Outer { .. } | Expr::Value(_) => Source::Again(source),
                _ => {
                    shared.push(source);
                    Source::Slot(first + shared.len() as u32 - 1)
                }
            });
        }
        Ok((sources, shared))
    }

    fn inherited_from(&self, source: &Source<'h>, name: Symbol, pos: Pos) -> Expr<'h> {
        let subject = match source {
            Source::Again(expr) => *expr,
            Source::Slot(slot) => Expr::Local { slot: *slot, pos },
        };
        if let Expr::Value(value) = subject
            && let Some(attrs) = value.as_attrs()
            && let Some(attr) = attrs.get(name)
            && !attr.value().is_thunk()
        {
            return Expr::Value(attr.value());
        }
        Expr::Field(self.heap.alloc(Field { subject, name, pos }))
    }

    pub(super) fn attrs(&self, bindings: &ast::Bindings<'_>, scope: &Scope<'_>) -> Result<Expr<'h>> {
        if bindings.attrs.is_empty() && bindings.dynamic.is_empty() {
            return Ok(Expr::Value(self.empty_attrs));
        }
        let mut order: Vec<&ast::Attr<'_>> = bindings.attrs.iter().collect();
        order.sort_by_key(|attr| attr.name);
        let names = if bindings.recursive {
            Names::new(
                order
                    .iter()
                    .enumerate()
                    .map(|(slot, attr)| (attr.name, slot as u32))
                    .collect(),
            )
        } else {
            Names::default()
        };
        let recursive_scope = scope.inside(&names);
        let inner = if bindings.recursive {
            &recursive_scope
        } else {
            scope
        };
        let first = if bindings.recursive { order.len() as u32 } else { 0 };
        let (sources, shared) = self.sources(bindings.inherit_from, inner, first)?;
        let mut attrs = Vec::with_capacity(order.len());
        for attr in order {
            let (value, place) = match &attr.value {
                AttrValue::Plain(tree) => (self.bound(tree, attr.name, inner)?, code::Scope::Inner),
                AttrValue::Inherited => (self.variable(attr.name, attr.pos, scope)?, code::Scope::Around),
                AttrValue::InheritedFrom(index) => {
                    let source = &sources[*index as usize];
                    let place = match source {
                        Source::Slot(_) if !bindings.recursive => code::Scope::Shared,
                        _ => code::Scope::Inner,
                    };
                    (self.inherited_from(source, attr.name, attr.pos), place)
                }
            };
            attrs.push((attr.name, attr.pos, value, place));
        }
        let mut dynamic = Vec::with_capacity(bindings.dynamic.len());
        for attr in bindings.dynamic {
            dynamic.push((
                self.expr(&attr.name, inner)?,
                attr.pos,
                self.expr(&attr.value, inner)?,
            ));
        }
        let overrides = attrs
            .iter()
            .position(|attr| attr.0 == known::OVERRIDES)
            .map(|index| index as u32);
        let code = self.heap.alloc(AttrsCode {
            attrs: self.heap.alloc_slice(attrs.len(), |index| {
                let (name, pos, value, scope) = attrs[index];
                AttrCode {
                    name,
                    pos,
                    value,
                    scope,
                    slot: index as u32,
                }
            }),
            dynamic: self.heap.alloc_slice(dynamic.len(), |index| {
                let (name, pos, value) = dynamic[index];
                DynamicAttr { name, pos, value }
            }),
            shared: self.slice(&shared),
            overrides: overrides.filter(|_| bindings.recursive),
        });
        Ok(if bindings.recursive {
            Expr::Rec(code)
        } else {
            Expr::Attrs(code)
        })
    }

    pub(super) fn let_in(&self, tree: &ast::Let<'_>, scope: &Scope<'_>) -> Result<Expr<'h>> {
        let bindings = &tree.bindings;
        let names = bindings
            .attrs
            .iter()
            .enumerate()
            .map(|(slot, attr)| (attr.name, slot as u32));
        let names = Names::new(names.collect());
        let inner = scope.inside(&names);
        let (sources, shared) = self.sources(bindings.inherit_from, &inner, bindings.attrs.len() as u32)?;
        let mut values = Vec::with_capacity(bindings.attrs.len() + shared.len());
        for attr in bindings.attrs {
            values.push(match &attr.value {
                AttrValue::Plain(tree) => (self.bound(tree, attr.name, &inner)?, code::Scope::Inner),
                AttrValue::Inherited => (self.variable(attr.name, attr.pos, scope)?, code::Scope::Around),
                AttrValue::InheritedFrom(index) => (
                    self.inherited_from(&sources[*index as usize], attr.name, attr.pos),
                    code::Scope::Inner,
                ),
            });
        }
        values.extend(shared.into_iter().map(|source| (source, code::Scope::Inner)));
        let values = self.slice(&values);
        let body = self.expr(&tree.body, &inner)?;
        Ok(Expr::Let(self.heap.alloc(Let { values, body })))
    }
}
