//! From syntax tree to code: variables become (scope, slot) pairs, constants become values.
//!
//! Errors for undefined variables come from here, so they appear when a file is loaded, as in Nix.

mod bindings;
mod function;
mod operators;
mod scope;

use rustc_hash::FxHashMap;

use crate::code::{Dynamic, Expr, Field, HasAttr, If, Interpolate, Name, Select, With};
use crate::heap::{Attrs, Heap, List, Str, Value};
use crate::syntax::ast;
use crate::syntax::position::Pos;
use crate::syntax::symbol::{Symbol, known};

pub(crate) use scope::Names;
use scope::{Found, Scope};

/// Variables that are bound everywhere: names of values that are evaluated already.
pub(crate) type Globals<'h> = FxHashMap<Symbol, Value<'h>>;

/// A variable that no scope binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Undefined {
    /// Its name.
    pub(crate) name: Symbol,
    /// Where it is used.
    pub(crate) pos: Pos,
}

type Result<T> = std::result::Result<T, Undefined>;

/// Compiles the expressions of one file.
pub(crate) struct Compiler<'h, 't> {
    heap: &'h Heap,
    globals: &'t Globals<'h>,
    symbols: &'t crate::syntax::symbol::SymbolTable,
    empty_list: Value<'h>,
    empty_attrs: Value<'h>,
}

impl<'h, 't> Compiler<'h, 't> {
    /// A compiler that puts its code into `heap`.
    pub(crate) fn new(
        heap: &'h Heap,
        globals: &'t Globals<'h>,
        symbols: &'t crate::syntax::symbol::SymbolTable,
    ) -> Self {
        Self {
            heap,
            globals,
            symbols,
            empty_list: Value::list(List::from_slice(heap, &[])),
            empty_attrs: Value::attrs(Attrs::from_sorted(heap, &[])),
        }
    }

    /// Compiles a whole file. `names` are the variables of the scope it is loaded into (none for a plain import).
    ///
    /// # Errors
    /// A variable is not bound.
    pub(crate) fn file(&self, tree: &ast::Expr<'_>, names: Option<&Names>) -> Result<&'h Expr<'h>> {
        let expr = match names {
            Some(names) => self.expr(tree, &Scope::around(None, names))?,
            None => self.expr(tree, &Scope::base())?,
        };
        Ok(self.heap.alloc(expr))
    }

    fn expr(&self, tree: &ast::Expr<'_>, scope: &Scope<'_>) -> Result<Expr<'h>> {
        let heap = self.heap;
        Ok(match *tree {
            ast::Expr::Int { value, .. } => Expr::Value(Value::int(heap, value)),
            ast::Expr::Float { value, .. } => Expr::Value(Value::float(heap, value)),
            ast::Expr::Str { text, .. } => Expr::Value(Value::str(Str::new(heap, text))),
            ast::Expr::Path { text, .. } => Expr::Value(Value::path(heap, Str::new(heap, text))),
            ast::Expr::Interpolated { pos, parts } => self.interpolate(parts, pos, false, scope)?,
            ast::Expr::InterpolatedPath { pos, parts } => self.interpolate(parts, pos, true, scope)?,
            ast::Expr::SearchPath { pos, text } => self.search_path(pos, text, scope)?,
            ast::Expr::Var { pos, name } => self.variable(name, pos, scope)?,
            ast::Expr::CurPos { pos } => Expr::CurrentPosition(pos),
            ast::Expr::List { items, .. } => {
                if items.is_empty() {
                    return Ok(Expr::Value(self.empty_list));
                }
                Expr::List(heap.alloc(self.exprs(items, scope)?))
            }
            ast::Expr::Attrs(bindings) => self.attrs(bindings, scope)?,
            ast::Expr::Let { inner, .. } => self.let_in(inner, scope)?,
            ast::Expr::With { inner, .. } => {
                let attrs = self.expr(&inner.scope, scope)?;
                let body = self.expr(&inner.body, &Scope::with(scope))?;
                Expr::With(heap.alloc(With { scope: attrs, body }))
            }
            ast::Expr::Assert { pos, inner } => self.assert(pos, inner, scope)?,
            ast::Expr::If { pos, inner } => Expr::If(heap.alloc(If {
                condition: self.expr(&inner.condition, scope)?,
                consequence: self.expr(&inner.consequence, scope)?,
                alternative: self.expr(&inner.alternative, scope)?,
                pos,
            })),
            ast::Expr::Lambda { .. } => self.lambda(tree, None, scope)?,
            ast::Expr::Call { pos, inner } => {
                let function = self.expr(&inner.function, scope)?;
                let arguments = self.exprs(inner.arguments, scope)?;
                self.call(function, arguments, pos)
            }
            ast::Expr::Select { pos, inner } => self.select(inner, pos, scope)?,
            ast::Expr::HasAttr { pos, inner } => Expr::HasAttr(heap.alloc(HasAttr {
                subject: self.expr(&inner.subject, scope)?,
                path: self.path(inner.path, scope)?,
                pos,
            })),
            ast::Expr::Not { operand, .. } => self.not(self.expr(operand, scope)?, operand.pos()),
            ast::Expr::Negate { pos, operand } => {
                let zero = Expr::Value(Value::small_int(0));
                let operand = (self.expr(operand, scope)?, operand.pos());
                self.operator(ast::BinaryOp::Subtract, (zero, pos), operand, pos, scope)?
            }
            ast::Expr::Binary { op, pos, operands } => self.binary(op, pos, operands, scope)?,
            ast::Expr::Chain { pos, inner } => self.chain(pos, inner, scope)?,
        })
    }

    fn exprs(&self, trees: &[ast::Expr<'_>], scope: &Scope<'_>) -> Result<&'h [Expr<'h>]> {
        let compiled = trees
            .iter()
            .map(|tree| self.expr(tree, scope))
            .collect::<Result<Vec<_>>>()?;
        Ok(self.slice(&compiled))
    }

    fn slice<T: Copy>(&self, items: &[T]) -> &'h [T] {
        self.heap.alloc_slice(items.len(), |index| items[index])
    }

    fn variable(&self, name: Symbol, pos: Pos, scope: &Scope<'_>) -> Result<Expr<'h>> {
        match scope.find(name) {
            Found::Slot { depth: 0, slot } => Ok(Expr::Local { slot, pos }),
            // Scopes nest at most as deep as syntax does, which is far below 65,536.
            Found::Slot { depth, slot } => Ok(Expr::Outer {
                depth: depth as u16,
                slot,
                pos,
            }),
            Found::Nowhere { withs } => {
                if let Some(value) = self.globals.get(&name) {
                    return Ok(Expr::Value(*value));
                }
                if withs.is_empty() {
                    return Err(Undefined { name, pos });
                }
                let scopes = self.slice(&withs);
                Ok(Expr::Dynamic(self.heap.alloc(Dynamic { name, pos, scopes })))
            }
        }
    }

    fn select(&self, select: &ast::Select<'_>, pos: Pos, scope: &Scope<'_>) -> Result<Expr<'h>> {
        let subject = self.expr(&select.subject, scope)?;
        if let ([ast::AttrName::Static(name)], None) = (select.path, &select.default) {
            // `builtins.x` is a constant.
            if let Expr::Value(value) = subject
                && let Some(attrs) = value.as_attrs()
                && let Some(attr) = attrs.get(*name)
                && !attr.value().is_thunk()
            {
                return Ok(Expr::Value(attr.value()));
            }
            return Ok(Expr::Field(self.heap.alloc(Field {
                subject,
                name: *name,
                pos,
            })));
        }
        Ok(Expr::Select(
            self.heap.alloc(Select {
                subject,
                path: self.path(select.path, scope)?,
                default: select
                    .default
                    .as_ref()
                    .map(|tree| self.expr(tree, scope))
                    .transpose()?,
                pos,
            }),
        ))
    }

    fn path(&self, path: &[ast::AttrName<'_>], scope: &Scope<'_>) -> Result<&'h [Name<'h>]> {
        let mut names = Vec::with_capacity(path.len());
        for name in path {
            names.push(match name {
                ast::AttrName::Static(name) => Name::Static(*name),
                ast::AttrName::Dynamic(tree) => Name::Computed(self.expr(tree, scope)?, tree.pos()),
            });
        }
        let mut names = names.into_iter();
        Ok(self.heap.alloc_slice(path.len(), |_| match names.next() {
            Some(name) => name,
            None => unreachable!("as many names as parts of the path"),
        }))
    }

    fn interpolate(
        &self,
        parts: &[ast::Expr<'_>],
        pos: Pos,
        path: bool,
        scope: &Scope<'_>,
    ) -> Result<Expr<'h>> {
        let parts = parts
            .iter()
            .map(|part| Ok((self.expr(part, scope)?, interpolation_pos(part))))
            .collect::<Result<Vec<_>>>()?;
        let parts = self.slice(&parts);
        Ok(Expr::Interpolate(self.heap.alloc(Interpolate {
            parts,
            path,
            pos,
        })))
    }

    fn search_path(&self, pos: Pos, text: &[u8], scope: &Scope<'_>) -> Result<Expr<'h>> {
        let function = self.variable(known::FIND_FILE, pos, scope)?;
        let entries = self.variable(known::NIX_PATH, pos, scope)?;
        let text = Expr::Value(Value::str(Str::new(self.heap, text)));
        Ok(self.call(function, self.slice(&[entries, text]), pos))
    }

    fn call(&self, function: Expr<'h>, arguments: &'h [Expr<'h>], pos: Pos) -> Expr<'h> {
        Expr::Call(self.heap.alloc(crate::code::Call {
            function,
            arguments,
            pos,
        }))
    }
}

/// Where the `${` of an interpolated part is: Nix reports that. The tree knows where the expression in it begins,
/// except for operators.
fn interpolation_pos(part: &ast::Expr<'_>) -> Pos {
    match part {
        ast::Expr::Str { pos, .. } | ast::Expr::Path { pos, .. } => *pos,
        ast::Expr::Binary { .. } | ast::Expr::Chain { .. } | ast::Expr::HasAttr { .. } => part.pos(),
        _ => match part.pos().to_u32().checked_sub(2) {
            Some(before) => Pos::from_u32(before),
            None => part.pos(),
        },
    }
}
