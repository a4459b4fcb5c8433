//! Functions: `x: …`, `{ a, b ? 1, ... }: …`, `args@{ … }: …`.

use rustc_hash::FxHashSet;

use super::ast::{Expr, Formal, Lambda, Param};
use super::error::SyntaxErrorKind;
use super::lexer::{Kind, Token};
use super::parser::{Parser, Result};
use super::position::Pos;
use super::symbol::Symbol;

/// Up to this many formals, comparing each with each is faster than hashing.
const FEW: usize = 16;

impl<'a> Parser<'a, '_> {
    /// `name: …` and `name@{ … }: …`. The name is consumed, the colon or at sign is not.
    pub(super) fn function_of_name(&mut self, name: Token) -> Result<Expr<'a>> {
        let pos = self.pos_at(name.start);
        let symbol = self.symbol_of(name);
        if self.token.kind == Kind::Colon {
            return self.function(pos, Param::Name(symbol));
        }
        self.advance();
        self.expect(Kind::BraceOpen, "'{'")?;
        let (formals, ellipsis) = self.formals(None)?;
        self.refuse_duplicate(formals, symbol, pos)?;
        if self.token.kind != Kind::Colon {
            return Err(self.unexpected("':'"));
        }
        self.function(
            pos,
            Param::Formals {
                formals,
                ellipsis,
                whole: Some(symbol),
            },
        )
    }

    /// An expression that begins with `{`: a function of a set, or an operation that begins with a set.
    pub(super) fn set_or_function(&mut self) -> Result<Expr<'a>> {
        let pos = self.pos();
        self.advance();
        let head = match self.token.kind {
            Kind::Ellipsis => return self.function_of_set(pos, None),
            Kind::BraceClose => {
                self.advance();
                if matches!(self.token.kind, Kind::Colon | Kind::At) {
                    return self.function_of_formals(pos, &[], false);
                }
                self.empty_set(pos)
            }
            Kind::Name => {
                let name = self.token;
                self.advance();
                if matches!(self.token.kind, Kind::Comma | Kind::Question | Kind::BraceClose) {
                    return self.function_of_set(pos, Some(name));
                }
                let bindings = self.bindings(Kind::BraceClose, Some(name), pos, false)?;
                self.advance();
                Expr::Attrs(self.arena.alloc(bindings))
            }
            _ => self.set(pos, false)?,
        };
        self.operation(Some(head), 1)
    }

    /// `{ … }: …` behind the brace and the first name, if that was consumed.
    fn function_of_set(&mut self, pos: Pos, first: Option<Token>) -> Result<Expr<'a>> {
        let (formals, ellipsis) = self.formals(first)?;
        self.function_of_formals(pos, formals, ellipsis)
    }

    /// The rest of a function behind the closing brace of its formals.
    fn function_of_formals(
        &mut self,
        pos: Pos,
        formals: &'a [Formal<'a>],
        ellipsis: bool,
    ) -> Result<Expr<'a>> {
        let mut whole = None;
        if self.token.kind == Kind::At {
            self.advance();
            if self.token.kind != Kind::Name {
                return Err(self.unexpected("identifier"));
            }
            let symbol = self.symbol_of(self.token);
            self.refuse_duplicate(formals, symbol, pos)?;
            whole = Some(symbol);
            self.advance();
        }
        if self.token.kind != Kind::Colon {
            return Err(self.unexpected(if whole.is_some() { "':'" } else { "'@' or ':'" }));
        }
        self.function(
            pos,
            Param::Formals {
                formals,
                ellipsis,
                whole,
            },
        )
    }

    /// The rest of a function from its colon on.
    fn function(&mut self, pos: Pos, param: Param<'a>) -> Result<Expr<'a>> {
        self.advance();
        let body = self.expr()?;
        Ok(Expr::Lambda {
            pos,
            inner: self.arena.alloc(Lambda { param, body }),
        })
    }

    /// The formals up to and including the closing brace, and whether there is an ellipsis. `name` is the first
    /// name, if it was consumed.
    fn formals(&mut self, mut name: Option<Token>) -> Result<(&'a [Formal<'a>], bool)> {
        let mark = self.formals.len();
        let mut ellipsis = false;
        loop {
            let token = match (name.take(), self.token.kind) {
                (Some(name), _) => name,
                (None, Kind::Name) => {
                    let name = self.token;
                    self.advance();
                    name
                }
                (None, Kind::Ellipsis) => {
                    ellipsis = true;
                    self.advance();
                    break;
                }
                (None, Kind::BraceClose) => break,
                _ => return Err(self.unexpected("identifier, '...' or '}'")),
            };
            let pos = self.pos_at(token.start);
            let symbol = self.symbol_of(token);
            let default = if self.token.kind == Kind::Question {
                self.advance();
                Some(self.expr()?)
            } else {
                None
            };
            self.formals.push(Formal {
                name: symbol,
                pos,
                default,
            });
            match self.token.kind {
                Kind::Comma => self.advance(),
                Kind::BraceClose => break,
                _ if default.is_some() => return Err(self.unexpected("'}' or ','")),
                _ => return Err(self.unexpected("'}', ',' or '?'")),
            }
        }
        self.expect(Kind::BraceClose, "'}'")?;
        let formals = &*self.arena.alloc_slice_copy(&self.formals[mark..]);
        self.formals.truncate(mark);
        self.refuse_duplicates(formals)?;
        Ok((formals, ellipsis))
    }

    fn refuse_duplicates(&self, formals: &[Formal<'a>]) -> Result<()> {
        let duplicate = if formals.len() <= FEW {
            formals
                .iter()
                .enumerate()
                .find(|(index, formal)| formals[..*index].iter().any(|other| other.name == formal.name))
                .map(|(_, formal)| formal)
        } else {
            let mut seen = FxHashSet::default();
            formals.iter().find(|formal| !seen.insert(formal.name))
        };
        match duplicate {
            Some(formal) => Err(self.duplicate(formal.name, formal.pos)),
            None => Ok(()),
        }
    }

    fn refuse_duplicate(&self, formals: &[Formal<'a>], name: Symbol, pos: Pos) -> Result<()> {
        if formals.iter().any(|formal| formal.name == name) {
            return Err(self.duplicate(name, pos));
        }
        Ok(())
    }

    #[cold]
    fn duplicate(&self, name: Symbol, pos: Pos) -> Box<super::error::SyntaxError> {
        self.error(
            pos,
            SyntaxErrorKind::DuplicateFormal(self.symbols.display(name).into_owned()),
        )
    }
}
