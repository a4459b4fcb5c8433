//! The bindings inside `{ … }` and `let … in`, and attribute paths.

use super::ast::{AttrName, Bindings, Expr};
use super::attributes::Value;
use super::error::SyntaxErrorKind;
use super::lexer::{Kind, Token};
use super::parser::{Parser, Result};
use super::position::Pos;
use super::symbol::known;

impl<'a> Parser<'a, '_> {
    /// Bindings up to the token that closes them, which is left as the current one. `first` is a name that was
    /// consumed already and begins the first attribute path.
    pub(super) fn bindings(
        &mut self,
        close: Kind,
        mut first: Option<Token>,
        pos: Pos,
        recursive: bool,
    ) -> Result<Bindings<'a>> {
        let mut builder = self.new_builder(pos, recursive);
        loop {
            match self.token.kind {
                _ if first.is_some() => {}
                Kind::Name | Kind::Or | Kind::Quote | Kind::DollarBrace => {}
                Kind::Inherit => {
                    self.inherit(&mut builder)?;
                    continue;
                }
                kind if kind == close => break,
                _ if close == Kind::In => return Err(self.unexpected("an attribute name, 'inherit' or 'in'")),
                _ => return Err(self.unexpected("an attribute name, 'inherit' or '}'")),
            }
            let mark = self.names.len();
            let pos = match first.take() {
                Some(name) => {
                    let symbol = self.symbol_of(name);
                    self.names.push(AttrName::Static(symbol));
                    self.rest_of_attr_path()?;
                    self.pos_at(name.start)
                }
                None => {
                    let pos = self.pos();
                    self.attr_path()?;
                    pos
                }
            };
            self.expect(Kind::Assign, "'.' or '='")?;
            // Each name but the first is a set of its own.
            let levels = (self.names.len() - mark - 1) as u32;
            self.depth += levels;
            let value = self.expr()?;
            self.depth -= levels;
            self.expect(Kind::Semicolon, "';'")?;
            self.add_path(&mut builder, mark, pos, value)?;
            self.names.truncate(mark);
        }
        Ok(self.finish(builder))
    }

    /// `inherit a b;` and `inherit (e) a b;`
    fn inherit(&mut self, builder: &mut super::attributes::Builder<'a>) -> Result<()> {
        self.advance();
        let value = if self.token.kind == Kind::ParenOpen {
            self.advance();
            let from = self.expr()?;
            self.expect(Kind::ParenClose, "')'")?;
            builder.inherit_from.push(from);
            Value::InheritedFrom(builder.inherit_from.len() as u32 - 1)
        } else {
            Value::Inherited
        };
        loop {
            let pos = self.pos();
            let name = match self.token.kind {
                Kind::Semicolon => break,
                Kind::Name | Kind::Or | Kind::Quote | Kind::DollarBrace => match self.attr_name()? {
                    AttrName::Static(name) => name,
                    AttrName::Dynamic(_) => return Err(self.error(pos, SyntaxErrorKind::DynamicInInherit)),
                },
                _ => return Err(self.unexpected("an attribute name or ';'")),
            };
            if let Some(index) = builder.find(name) {
                let previous = builder.attrs[index].pos;
                return Err(self.duplicate_attr(&[AttrName::Static(name)], pos, previous));
            }
            let value = match value {
                Value::InheritedFrom(index) => Value::InheritedFrom(index),
                _ => Value::Inherited,
            };
            builder.push(name, pos, value);
        }
        self.advance();
        Ok(())
    }

    /// `a.b."c".${d}`, pushed to the stack of names.
    pub(super) fn attr_path(&mut self) -> Result<()> {
        let name = self.attr_name()?;
        self.names.push(name);
        self.rest_of_attr_path()
    }

    #[inline]
    fn rest_of_attr_path(&mut self) -> Result<()> {
        while self.token.kind == Kind::Dot {
            self.advance();
            let name = self.attr_name()?;
            self.names.push(name);
        }
        Ok(())
    }

    /// One name of an attribute path. Strings without interpolation are names like any other, in whichever notation.
    #[inline]
    fn attr_name(&mut self) -> Result<AttrName<'a>> {
        let expr = match self.token.kind {
            Kind::Name => {
                let symbol = self.symbol_of(self.token);
                self.advance();
                return Ok(AttrName::Static(symbol));
            }
            Kind::Or => {
                self.advance();
                return Ok(AttrName::Static(known::OR));
            }
            Kind::Quote => {
                self.enter()?;
                let expr = self.quoted_string()?;
                self.depth -= 1;
                expr
            }
            Kind::DollarBrace => {
                let (expr, end) = self.interpolation(self.token.start)?;
                self.continue_at(end);
                expr
            }
            _ => return Err(self.unexpected("identifier or 'or' or '${' or '\"'")),
        };
        Ok(match expr {
            Expr::Str { text, .. } => AttrName::Static(self.symbols.intern(text)),
            expr => AttrName::Dynamic(expr),
        })
    }
}
