//! Operators: precedence, associativity, chains.
//!
//! Operator precedence parsing ("Pratt"), with the table of `parser.y`. Operands of equal precedence are collected
//! in a loop whichever way they associate, so the recursion is as deep as brackets nest, not as chains are long.

use super::ast::{BinaryOp, Chain, ChainLink, Expr, HasAttr};
use super::lexer::Kind;
use super::parser::{Parser, Result};

/// `!` binds weaker than arithmetic and tighter than `//`.
const NOT: u8 = 7;
/// `?`
const HAS_ATTR: u8 = 11;
/// Unary `-` binds tighter than every binary operator.
const NEGATE: u8 = 12;

/// What a token means between two operands, with its precedence from 1 (weakest).
#[inline]
fn binary(kind: Kind) -> Option<(BinaryOp, u8)> {
    Some(match kind {
        Kind::Implies => (BinaryOp::Implies, 1),
        Kind::OrOr => (BinaryOp::Or, 2),
        Kind::And => (BinaryOp::And, 3),
        Kind::Equal => (BinaryOp::Equal, 4),
        Kind::NotEqual => (BinaryOp::NotEqual, 4),
        Kind::Less => (BinaryOp::Less, 5),
        Kind::LessOrEqual => (BinaryOp::LessOrEqual, 5),
        Kind::Greater => (BinaryOp::Greater, 5),
        Kind::GreaterOrEqual => (BinaryOp::GreaterOrEqual, 5),
        Kind::Update => (BinaryOp::Update, 6),
        Kind::Plus => (BinaryOp::Add, 8),
        Kind::Minus => (BinaryOp::Subtract, 8),
        Kind::Star => (BinaryOp::Multiply, 9),
        Kind::Slash => (BinaryOp::Divide, 9),
        Kind::Concat => (BinaryOp::Concat, 10),
        _ => return None,
    })
}

/// Whether operators of a precedence cannot stand side by side: `a == b == c`.
fn is_not_associative(precedence: u8) -> bool {
    matches!(precedence, 4 | 5)
}

impl<'a> Parser<'a, '_> {
    /// `expr_op` of the grammar, with operators of at least the given precedence. `head` is the first operand, as
    /// far as it was parsed already.
    pub(super) fn operation(&mut self, head: Option<Expr<'a>>, weakest: u8) -> Result<Expr<'a>> {
        let outer = self.measure();
        let mut left = match (head, self.token.kind) {
            (None, Kind::Not) => {
                let pos = self.pos();
                let operand = self.right_operand(NOT + 1)?;
                Expr::Not {
                    pos,
                    operand: self.arena.alloc(operand),
                }
            }
            (None, Kind::Minus) => {
                let pos = self.pos();
                let operand = self.right_operand(NEGATE + 1)?;
                Expr::Negate {
                    pos,
                    operand: self.arena.alloc(operand),
                }
            }
            (head, _) => self.application(head)?,
        };
        loop {
            if self.token.kind == Kind::Question {
                if HAS_ATTR < weakest {
                    break;
                }
                left = self.has_attr(left)?;
                continue;
            }
            let Some((op, precedence)) = binary(self.token.kind) else {
                break;
            };
            if precedence < weakest {
                break;
            }
            left = self.chain(left, op, precedence)?;
        }
        self.measured(outer);
        Ok(left)
    }

    /// The operand behind the current token, which is an operator.
    #[inline]
    fn right_operand(&mut self, weakest: u8) -> Result<Expr<'a>> {
        self.advance();
        self.enter()?;
        let operand = self.operation(None, weakest)?;
        self.depth -= 1;
        Ok(operand)
    }

    fn has_attr(&mut self, subject: Expr<'a>) -> Result<Expr<'a>> {
        let pos = self.pos();
        self.deepen()?;
        self.advance();
        let mark = self.names.len();
        self.attr_path()?;
        let path = self.names_since(mark);
        Ok(Expr::HasAttr {
            pos,
            inner: self.arena.alloc(HasAttr { subject, path }),
        })
    }

    /// `left`, followed by operators of one precedence, the first of them the current token.
    fn chain(&mut self, left: Expr<'a>, op: BinaryOp, precedence: u8) -> Result<Expr<'a>> {
        let pos = self.pos();
        self.deepen()?;
        let right = self.right_operand(precedence + 1)?;
        let next = binary(self.token.kind).filter(|&(_, next)| next == precedence);
        let Some(mut next) = next else {
            return Ok(Expr::Binary {
                op,
                pos,
                operands: self.arena.alloc([left, right]),
            });
        };
        if is_not_associative(precedence) {
            return Err(self.unexpected("parentheses around one of the two comparisons"));
        }
        let mark = self.links.len();
        self.links.push(ChainLink {
            op,
            pos,
            operand: right,
        });
        loop {
            let pos = self.pos();
            let operand = self.right_operand(precedence + 1)?;
            self.links.push(ChainLink {
                op: next.0,
                pos,
                operand,
            });
            match binary(self.token.kind) {
                Some(other) if other.1 == precedence => next = other,
                _ => break,
            }
        }
        let rest = self.arena.alloc_slice_copy(&self.links[mark..]);
        self.links.truncate(mark);
        Ok(Expr::Chain {
            pos,
            inner: self.arena.alloc(Chain { first: left, rest }),
        })
    }
}
