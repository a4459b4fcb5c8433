//! Functions.

use super::scope::{Names, Scope};
use super::{Compiler, Result};
use crate::code::{Expr, Formal, Formals, Lambda, Parameter};
use crate::syntax::ast::{self, Param};
use crate::syntax::symbol::Symbol;

impl<'h> Compiler<'h, '_> {
    /// Compiles a function; curried parameters become those of one function, up to the first set pattern.
    pub(super) fn lambda(
        &self,
        tree: &ast::Expr<'_>,
        name: Option<Symbol>,
        scope: &Scope<'_>,
    ) -> Result<Expr<'h>> {
        let mut names = Vec::new();
        let mut parameters = Vec::new();
        let mut pattern = None;
        let mut body = tree;
        while let ast::Expr::Lambda { pos, inner } = body {
            body = &inner.body;
            match &inner.param {
                Param::Name(name) => {
                    parameters.push(Parameter {
                        name: Some(*name),
                        pos: *pos,
                    });
                    names.push((*name, names.len() as u32));
                }
                Param::Formals {
                    formals,
                    ellipsis,
                    whole,
                } => {
                    parameters.push(Parameter {
                        name: *whole,
                        pos: *pos,
                    });
                    pattern = Some((*formals, *ellipsis, *whole));
                    break;
                }
            }
        }
        let mut slots = names.len() as u32;
        let mut whole_slot = None;
        if let Some((formals, _, whole)) = &pattern {
            if let Some(whole) = whole {
                names.push((*whole, slots));
                whole_slot = Some(slots);
                slots += 1;
            }
            for formal in *formals {
                names.push((formal.name, slots));
                slots += 1;
            }
        }
        let names = Names::new(names);
        let inside = scope.inside(&names);
        let formals = match pattern {
            None => None,
            Some((formals, ellipsis, _)) => {
                Some(self.formals(formals, ellipsis, whole_slot, slots, &inside)?)
            }
        };
        let body = match body {
            // A set pattern ends what can be taken at once; what follows is a function of its own.
            ast::Expr::Lambda { .. } => self.lambda(body, name, &inside)?,
            _ => self.expr(body, &inside)?,
        };
        let parameters = self.slice(&parameters);
        Ok(Expr::Lambda(self.heap.alloc(Lambda {
            name,
            parameters,
            formals,
            slots,
            body,
        })))
    }

    fn formals(
        &self,
        formals: &[ast::Formal<'_>],
        ellipsis: bool,
        whole: Option<u32>,
        slots: u32,
        inside: &Scope<'_>,
    ) -> Result<&'h Formals<'h>> {
        let mut compiled = Vec::with_capacity(formals.len());
        for formal in formals {
            let default = formal
                .default
                .as_ref()
                .map(|tree| self.expr(tree, inside))
                .transpose()?;
            compiled.push((formal.name, formal.pos, default));
        }
        let mut sorted: Vec<u32> = (0..compiled.len() as u32).collect();
        sorted.sort_by_key(|index| compiled[*index as usize].0);
        let sorted = self.slice(&sorted);
        let formals = self.heap.alloc_slice(compiled.len(), |index| {
            let (name, pos, default) = compiled[index];
            Formal { name, pos, default }
        });
        let first = slots - formals.len() as u32;
        Ok(self.heap.alloc(Formals {
            formals,
            sorted,
            ellipsis,
            whole,
            first,
        }))
    }
}
