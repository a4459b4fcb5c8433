//! Operands: literals, variables, what has brackets around it, selections and applications.

use super::ast::{Call, Expr, Select};
use super::error::SyntaxErrorKind;
use super::lexer::{Kind, Token};
use super::parser::{Parser, Result};
use super::position::Pos;
use super::symbol::known;

impl<'a> Parser<'a, '_> {
    #[inline]
    pub(super) fn variable(&mut self, name: Token) -> Expr<'a> {
        let pos = self.pos_at(name.start);
        let text = self.text_of(name);
        if text == b"__curPos" {
            return Expr::CurPos { pos };
        }
        Expr::Var {
            pos,
            name: self.symbols.intern(text),
        }
    }

    /// `expr_app` of the grammar: something, applied to any number of arguments. `head` is what was parsed of it
    /// already.
    #[inline]
    pub(super) fn application(&mut self, head: Option<Expr<'a>>) -> Result<Expr<'a>> {
        let outer = self.measure();
        let pos = match head {
            Some(head) => head.pos(),
            None => self.pos(),
        };
        let function = self.selection(head)?;
        if !self.token.kind.begins_operand() {
            self.measured(outer);
            return Ok(function);
        }
        self.deepen()?;
        let mark = self.exprs.len();
        // A call that is called goes on with more arguments, and keeps its position.
        let (pos, function) = match function {
            Expr::Call { pos, inner } => {
                self.exprs.extend_from_slice(inner.arguments);
                (pos, inner.function)
            }
            function => (pos, function),
        };
        self.enter()?;
        while self.token.kind.begins_operand() {
            let argument = self.selection(None)?;
            self.exprs.push(argument);
        }
        self.depth -= 1;
        self.measured(outer);
        let arguments = self.exprs_since(mark);
        Ok(Expr::Call {
            pos,
            inner: self.arena.alloc(Call { function, arguments }),
        })
    }

    /// `expr_select` of the grammar: `e`, `e.a.b`, `e.a.b or d`, and `e or`, which is `e` applied to a variable of
    /// that name (nixpkgs once had a function called so).
    #[inline]
    pub(super) fn selection(&mut self, head: Option<Expr<'a>>) -> Result<Expr<'a>> {
        let start = self.token.start;
        let outer = self.measure();
        let (pos, subject) = match head {
            Some(head) => (head.pos(), head),
            None => (self.pos_at(start), self.operand()?),
        };
        if self.token.kind == Kind::Dot {
            self.deepen()?;
        }
        self.measured(outer);
        match self.token.kind {
            Kind::Dot => self.selection_path(pos, subject),
            Kind::Or => {
                let or = Expr::Var {
                    pos: self.pos(),
                    name: known::OR,
                };
                self.advance();
                Ok(match subject {
                    Expr::Call { pos, inner } => {
                        let mark = self.exprs.len();
                        self.exprs.extend_from_slice(inner.arguments);
                        self.exprs.push(or);
                        let arguments = self.exprs_since(mark);
                        Expr::Call {
                            pos,
                            inner: self.arena.alloc(Call {
                                function: inner.function,
                                arguments,
                            }),
                        }
                    }
                    function => {
                        let arguments = self.arena.alloc_slice_copy(&[or]);
                        Expr::Call {
                            pos,
                            inner: self.arena.alloc(Call { function, arguments }),
                        }
                    }
                })
            }
            _ => Ok(subject),
        }
    }

    fn selection_path(&mut self, pos: Pos, subject: Expr<'a>) -> Result<Expr<'a>> {
        let mark = self.names.len();
        self.advance();
        self.attr_path()?;
        let path = self.names_since(mark);
        let default = match self.token.kind {
            Kind::Or => {
                self.advance();
                self.enter()?;
                let default = self.selection(None)?;
                self.depth -= 1;
                Some(default)
            }
            _ => None,
        };
        Ok(Expr::Select {
            pos,
            inner: self.arena.alloc(Select {
                subject,
                path,
                default,
            }),
        })
    }

    /// `expr_simple` of the grammar: literals, variables, and what has brackets around it.
    fn operand(&mut self) -> Result<Expr<'a>> {
        let pos = self.pos();
        match self.token.kind {
            Kind::Name => {
                let name = self.token;
                self.advance();
                Ok(self.variable(name))
            }
            Kind::Quote => self.quoted_string(),
            Kind::IndentedQuote => self.indented_string(),
            Kind::Path | Kind::HomePath => self.path(),
            Kind::Int => {
                let value = self.integer()?;
                self.advance();
                Ok(Expr::Int { pos, value })
            }
            Kind::Float => {
                let value = self.float()?;
                self.advance();
                Ok(Expr::Float { pos, value })
            }
            Kind::SearchPath => {
                let text = &self.text[self.token.start as usize + 1..self.token.end as usize - 1];
                self.advance();
                Ok(Expr::SearchPath { pos, text })
            }
            Kind::Uri => {
                let text = self.text_of(self.token);
                self.advance();
                Ok(Expr::Str { pos, text })
            }
            Kind::ParenOpen => {
                self.advance();
                let expr = self.expr()?;
                self.expect(Kind::ParenClose, "')'")?;
                Ok(expr)
            }
            Kind::BracketOpen => self.list(pos),
            Kind::BraceOpen => {
                self.advance();
                self.enter()?;
                let set = self.set(pos, false)?;
                self.depth -= 1;
                Ok(set)
            }
            Kind::Rec => {
                self.advance();
                self.expect(Kind::BraceOpen, "'{'")?;
                self.enter()?;
                let set = self.set(pos, true)?;
                self.depth -= 1;
                Ok(set)
            }
            Kind::Let => {
                self.advance();
                if self.token.kind != Kind::BraceOpen {
                    return Err(self.unexpected("'{' (put a 'let … in …' in parentheses here)"));
                }
                self.enter()?;
                let selection = self.old_let(pos)?;
                self.depth -= 1;
                Ok(selection)
            }
            _ => Err(self.unexpected("")),
        }
    }

    fn list(&mut self, pos: Pos) -> Result<Expr<'a>> {
        self.advance();
        self.enter()?;
        let mark = self.exprs.len();
        while self.token.kind.begins_operand() {
            let item = self.selection(None)?;
            self.exprs.push(item);
        }
        self.depth -= 1;
        self.expect(Kind::BracketClose, "a list element or ']'")?;
        Ok(Expr::List {
            pos,
            items: self.exprs_since(mark),
        })
    }

    fn integer(&self) -> Result<i64> {
        let digits = self.text_of(self.token);
        let mut value: i64 = 0;
        for digit in digits {
            let next = value
                .checked_mul(10)
                .and_then(|value| value.checked_add(i64::from(digit - b'0')));
            let Some(next) = next else {
                let digits = String::from_utf8_lossy(digits).into_owned();
                return Err(self.error(self.pos(), SyntaxErrorKind::InvalidInteger(digits)));
            };
            value = next;
        }
        Ok(value)
    }

    fn float(&self) -> Result<f64> {
        let text = self.text_of(self.token);
        let mantissa = text
            .split(|byte| matches!(byte, b'e' | b'E'))
            .next()
            .unwrap_or(text);
        let is_zero = mantissa.iter().all(|byte| matches!(byte, b'0' | b'.'));
        match std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse::<f64>().ok())
        {
            // As `strtod`, which reports a result that is infinite or has lost precision by being too small.
            Some(value) if value.is_normal() || is_zero => Ok(value),
            _ => {
                let text = String::from_utf8_lossy(text).into_owned();
                Err(self.error(self.pos(), SyntaxErrorKind::InvalidFloat(text)))
            }
        }
    }
}
