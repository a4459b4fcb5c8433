//! Operators.

use super::scope::Scope;
use super::{Compiler, Result};
use crate::code::{Assert, Binary, Expr, Logic, LogicOperator, Operands, Operator, Unary};
use crate::syntax::ast::{self, BinaryOp};
use crate::syntax::position::Pos;

impl<'h> Compiler<'h, '_> {
    pub(super) fn not(&self, operand: Expr<'h>, pos: Pos) -> Expr<'h> {
        Expr::Not(self.heap.alloc(Unary { operand, pos }))
    }

    pub(super) fn assert(&self, pos: Pos, tree: &ast::Assert<'_>, scope: &Scope<'_>) -> Result<Expr<'h>> {
        let shown = crate::syntax::print::expr(&tree.condition, self.symbols);
        Ok(Expr::Assert(self.heap.alloc(Assert {
            condition: self.expr(&tree.condition, scope)?,
            body: self.expr(&tree.body, scope)?,
            pos,
            shown: self.slice(&shown),
        })))
    }

    pub(super) fn binary(
        &self,
        op: BinaryOp,
        pos: Pos,
        operands: &[ast::Expr<'_>; 2],
        scope: &Scope<'_>,
    ) -> Result<Expr<'h>> {
        let left = (self.expr(&operands[0], scope)?, operands[0].pos());
        let right = (self.expr(&operands[1], scope)?, operands[1].pos());
        self.operator(op, left, right, pos, scope)
    }

    pub(super) fn operator(
        &self,
        op: BinaryOp,
        (left, left_pos): (Expr<'h>, Pos),
        (right, right_pos): (Expr<'h>, Pos),
        pos: Pos,
        scope: &Scope<'_>,
    ) -> Result<Expr<'h>> {
        let both = [left_pos, right_pos];
        if let Some(name) = op.shadowing_name()
            && scope.binds(name)
        {
            let function = self.variable(name, pos, scope)?;
            let (left, right) = match op {
                BinaryOp::Greater | BinaryOp::LessOrEqual => (right, left),
                _ => (left, right),
            };
            let call = self.call(function, self.slice(&[left, right]), pos);
            return Ok(match op {
                BinaryOp::LessOrEqual | BinaryOp::GreaterOrEqual => self.not(call, pos),
                _ => call,
            });
        }
        let operator = match op {
            BinaryOp::And => return Ok(self.logic(LogicOperator::And, &[left, right], &both)),
            BinaryOp::Or => return Ok(self.logic(LogicOperator::Or, &[left, right], &both)),
            BinaryOp::Implies => return Ok(self.logic(LogicOperator::Implies, &[left, right], &both)),
            BinaryOp::Update => return Ok(Expr::Update(self.operands(&[left, right], pos, &both))),
            BinaryOp::Concat => return Ok(Expr::ConcatLists(self.operands(&[left, right], pos, &both))),
            BinaryOp::Equal => Operator::Equal,
            BinaryOp::NotEqual => Operator::NotEqual,
            BinaryOp::Less => Operator::Less,
            BinaryOp::LessOrEqual => Operator::LessOrEqual,
            BinaryOp::Greater => Operator::Greater,
            BinaryOp::GreaterOrEqual => Operator::GreaterOrEqual,
            BinaryOp::Add => Operator::Add,
            BinaryOp::Subtract => Operator::Subtract,
            BinaryOp::Multiply => Operator::Multiply,
            BinaryOp::Divide => Operator::Divide,
        };
        Ok(Expr::Binary(self.heap.alloc(Binary {
            operator,
            left,
            right,
            pos,
            operand_positions: both,
        })))
    }

    pub(super) fn chain(&self, pos: Pos, chain: &ast::Chain<'_>, scope: &Scope<'_>) -> Result<Expr<'h>> {
        let first = self.expr(&chain.first, scope)?;
        let op = chain.rest[0].op;
        let collected = |this: &Self| -> Result<Vec<Expr<'h>>> {
            let mut operands = vec![first];
            for link in chain.rest {
                operands.push(this.expr(&link.operand, scope)?);
            }
            Ok(operands)
        };
        let positions: Vec<Pos> = std::iter::once(chain.first.pos())
            .chain(chain.rest.iter().map(|link| link.operand.pos()))
            .collect();
        match op {
            BinaryOp::And => Ok(self.logic(LogicOperator::And, &collected(self)?, &positions)),
            BinaryOp::Or => Ok(self.logic(LogicOperator::Or, &collected(self)?, &positions)),
            BinaryOp::Implies => Ok(self.logic(LogicOperator::Implies, &collected(self)?, &positions)),
            BinaryOp::Update => Ok(Expr::Update(self.operands(&collected(self)?, pos, &positions))),
            BinaryOp::Concat => Ok(Expr::ConcatLists(self.operands(
                &collected(self)?,
                pos,
                &positions,
            ))),
            _ if chain.rest.iter().all(|link| link.op == BinaryOp::Add) => {
                Ok(Expr::Sum(self.operands(&collected(self)?, pos, &positions)))
            }
            _ => {
                let mut left = (first, chain.first.pos());
                for link in chain.rest {
                    let right = (self.expr(&link.operand, scope)?, link.operand.pos());
                    left = (self.operator(link.op, left, right, link.pos, scope)?, link.pos);
                }
                Ok(left.0)
            }
        }
    }

    fn logic(&self, operator: LogicOperator, operands: &[Expr<'h>], positions: &[Pos]) -> Expr<'h> {
        let (operands, positions) = (self.slice(operands), self.slice(positions));
        Expr::Logic(self.heap.alloc(Logic {
            operator,
            operands,
            positions,
        }))
    }

    fn operands(&self, operands: &[Expr<'h>], pos: Pos, positions: &[Pos]) -> &'h Operands<'h> {
        let positions = self.slice(positions);
        self.heap.alloc(Operands {
            operands: self.slice(operands),
            pos,
            positions,
        })
    }
}
