//! Arithmetic, concatenation and interpolation.

use super::coerce::{Coerce, ContextBuilder};
use super::{Evaluation, files};
use crate::code::{Binary, Expr, Interpolate, Operands, Operator};
use crate::error::Result;
use crate::heap::{Context, Env, List, Str, Value, View};
use crate::syntax::position::Pos;

/// Most strings have at most this many parts; theirs are kept on the stack.
const FEW: usize = 8;

impl<'h> Evaluation<'h> {
    pub(super) fn binary(&self, binary: &'h Binary<'h>, env: Env<'h>) -> Result<Value<'h>> {
        let pos = binary.pos;
        self.check_stack(pos)?;
        match binary.operator {
            Operator::Equal | Operator::NotEqual => {
                let equal = binary.operator == Operator::Equal;
                let name = if equal { "==" } else { "!=" };
                let left = self
                    .eval(&binary.left, env)
                    .map_err(|error| error.frame(pos, format!("in the left operand of '{name}'")))?;
                let right = self
                    .eval(&binary.right, env)
                    .map_err(|error| error.frame(pos, format!("in the right operand of '{name}'")))?;
                Ok(Value::bool(self.equal(left, right, pos)? == equal))
            }
            Operator::Add => {
                let [left_pos, right_pos] = binary.operand_positions;
                let left = self
                    .eval(&binary.left, env)
                    .map_err(|error| error.frame(left_pos, "in an operand of '+'"))?;
                let right = self
                    .eval(&binary.right, env)
                    .map_err(|error| error.frame(right_pos, "in an operand of '+'"))?;
                self.add(left, right, [left_pos, right_pos])
            }
            Operator::Subtract => self.called(binary, env, "sub"),
            Operator::Multiply => self.called(binary, env, "mul"),
            Operator::Divide => self.called(binary, env, "div"),
            Operator::Less => self.comparison(&binary.left, &binary.right, env, pos),
            Operator::Greater => self.comparison(&binary.right, &binary.left, env, pos),
            Operator::GreaterOrEqual => self
                .comparison(&binary.left, &binary.right, env, pos)
                .map(negate)
                .map_err(|error| negated(error, pos)),
            Operator::LessOrEqual => self
                .comparison(&binary.right, &binary.left, env, pos)
                .map(negate)
                .map_err(|error| negated(error, pos)),
        }
    }

    /// Operators that are calls of builtins in Nix, and look so in traces.
    fn called(&self, binary: &'h Binary<'h>, env: Env<'h>, name: &'static str) -> Result<Value<'h>> {
        let run = || {
            let left = self.eval(&binary.left, env)?;
            let right = self.eval(&binary.right, env)?;
            self.arithmetic(binary.operator, left, right, Pos::NONE)
        };
        run().map_err(|error| error.frame(binary.pos, format!("while calling the '{name}' builtin")))
    }

    fn comparison(
        &self,
        left: &'h Expr<'h>,
        right: &'h Expr<'h>,
        env: Env<'h>,
        pos: Pos,
    ) -> Result<Value<'h>> {
        let run = || {
            let left = self.eval(left, env)?;
            let right = self.eval(right, env)?;
            self.less(left, right, Pos::NONE).map(Value::bool)
        };
        run().map_err(|error| error.frame(pos, "while calling the 'lessThan' builtin"))
    }

    /// `-`, `*` and `/` of two evaluated values.
    pub(crate) fn arithmetic(
        &self,
        operator: Operator,
        left: Value<'h>,
        right: Value<'h>,
        pos: Pos,
    ) -> Result<Value<'h>> {
        let (name, first, second) = match operator {
            Operator::Subtract => (
                "subtracting",
                "while evaluating the first argument of the subtraction",
                "while evaluating the second argument of the subtraction",
            ),
            Operator::Multiply => (
                "multiplying",
                "while evaluating the first argument of the multiplication",
                "while evaluating the second argument of the multiplication",
            ),
            Operator::Divide => (
                "dividing",
                "while evaluating the first operand of the division",
                "while evaluating the second operand of the division",
            ),
            _ => (
                "adding",
                "while evaluating the first argument of the addition",
                "while evaluating the second argument of the addition",
            ),
        };
        if operator == Operator::Divide && right.as_int().is_none_or(|divisor| divisor == 0) {
            // The divisor is looked at first.
            if self.float(right, pos, second)? == 0.0 {
                return Err(self.error(pos, "division by zero"));
            }
        }
        if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
            let (result, sign) = match operator {
                Operator::Subtract => (a.checked_sub(b), '-'),
                Operator::Multiply => (a.checked_mul(b), '*'),
                Operator::Divide => (a.checked_div(b), '/'),
                _ => (a.checked_add(b), '+'),
            };
            return match result {
                Some(result) => Ok(Value::int(self.heap, result)),
                None => Err(self.error(pos, format!("integer overflow in {name} {a} {sign} {b}"))),
            };
        }
        if matches!(left.view(), View::Float(_)) || matches!(right.view(), View::Float(_)) {
            let a = self.float(left, pos, first)?;
            let b = self.float(right, pos, second)?;
            let result = match operator {
                Operator::Subtract => a - b,
                Operator::Multiply => a * b,
                Operator::Divide => a / b,
                _ => a + b,
            };
            return Ok(Value::float(self.heap, result));
        }
        // One of them is not a number.
        self.int(left, pos, first)?;
        self.int(right, pos, second)?;
        Err(self.expected(pos, "an integer", right))
    }

    /// `a + b` of two evaluated values: numbers are added, strings and paths are joined.
    fn add(&self, left: Value<'h>, right: Value<'h>, positions: [Pos; 2]) -> Result<Value<'h>> {
        let [left_pos, pos] = positions;
        match (left.view(), right.view()) {
            (View::Int(a), View::Int(b)) => match a.checked_add(b) {
                Some(sum) => Ok(Value::int(self.heap, sum)),
                None => Err(self.error(pos, format!("integer overflow in adding {a} + {b}"))),
            },
            (View::Int(a), View::Float(b)) => Ok(Value::float(self.heap, a as f64 + b)),
            (View::Float(a), View::Int(b)) => Ok(Value::float(self.heap, a + b as f64)),
            (View::Float(a), View::Float(b)) => Ok(Value::float(self.heap, a + b)),
            (View::Int(_), _) => {
                let message = format!("cannot add {} to an integer", self.describe(right));
                Err(self.error(pos, message))
            }
            (View::Float(_), _) => {
                let message = format!("cannot add {} to a float", self.describe(right));
                Err(self.error(pos, message))
            }
            (View::Path(path), _) => {
                let mut context = ContextBuilder::default();
                let rest = self.coerce(
                    right,
                    pos,
                    &mut context,
                    Coerce::PLAIN,
                    "while evaluating a path segment",
                )?;
                self.join_path(&[path.bytes(), rest], &context, pos)
            }
            (first, _) => {
                let mut context = ContextBuilder::default();
                let left = match first {
                    View::Str(text) => {
                        context.add(text.context());
                        text.bytes()
                    }
                    // The first operand decides: what is not a string is none of what `+` joins, unless it can be
                    // made a string without copying it to the store.
                    _ => self.coerce(
                        left,
                        left_pos,
                        &mut context,
                        Coerce::PLAIN,
                        "while evaluating a path segment",
                    )?,
                };
                let how = if matches!(first, View::Str(_)) {
                    Coerce::COPY
                } else {
                    Coerce::PLAIN
                };
                let right = self.coerce(right, pos, &mut context, how, "while evaluating a path segment")?;
                let context = context.finish(self.heap);
                self.joined(&[left, right], context, pos)
            }
        }
    }

    fn join_path(&self, parts: &[&[u8]], context: &ContextBuilder<'h>, pos: Pos) -> Result<Value<'h>> {
        if !context.is_empty() {
            return Err(self.error(
                pos,
                "a string that refers to a store path cannot be appended to a path",
            ));
        }
        let joined = files::canonical(&parts.concat());
        Ok(Value::path(self.heap, Str::new(self.heap, &joined)))
    }

    /// Strings one after the other.
    pub(crate) fn joined(
        &self,
        parts: &[&[u8]],
        context: Option<Context<'h>>,
        pos: Pos,
    ) -> Result<Value<'h>> {
        match Str::concat(self.heap, parts, context) {
            Some(joined) => Ok(Value::str(joined)),
            None => Err(self.error(pos, format!("a string cannot be longer than {} bytes", u32::MAX))),
        }
    }

    /// `a + b + c + …`. Strings are joined at once; anything else two by two.
    pub(super) fn sum(&self, sum: &'h Operands<'h>, env: Env<'h>) -> Result<Value<'h>> {
        let mut operands = sum.operands.iter().zip(sum.positions.iter().copied());
        let operand = |code: &'h Expr<'h>, pos: Pos| {
            self.eval(code, env)
                .map_err(|error| error.frame(pos, "in an operand of '+'"))
        };
        let Some((first, first_pos)) = operands.next() else {
            unreachable!("an operator has operands")
        };
        let mut result = operand(first, first_pos)?;
        while result.as_str().is_none() {
            let Some((next, next_pos)) = operands.next() else {
                return Ok(result);
            };
            result = self.add(result, operand(next, next_pos)?, [first_pos, next_pos])?;
        }
        let mut context = ContextBuilder::default();
        let mut parts: Vec<&[u8]> = Vec::with_capacity(sum.operands.len());
        parts.push(self.coerce(result, first_pos, &mut context, Coerce::COPY, "")?);
        for (code, pos) in operands {
            let value = operand(code, pos)?;
            parts.push(self.coerce(
                value,
                pos,
                &mut context,
                Coerce::COPY,
                "while evaluating a path segment",
            )?);
        }
        let context = context.finish(self.heap);
        self.joined(&parts, context, sum.pos)
    }

    /// `"…${…}…"` and `./…${…}…`.
    pub(super) fn interpolate(&self, code: &'h Interpolate<'h>, env: Env<'h>) -> Result<Value<'h>> {
        let mut context = ContextBuilder::default();
        let mut few: [&[u8]; FEW] = [b""; FEW];
        let mut many;
        let len = code.parts.len();
        let parts = if len <= FEW {
            &mut few[..len]
        } else {
            many = vec![b"".as_slice(); len];
            &mut many[..]
        };
        let how = if code.path { Coerce::PLAIN } else { Coerce::COPY };
        for (part, (code, pos)) in parts.iter_mut().zip(code.parts) {
            let value = self
                .eval(code, env)
                .map_err(|error| error.frame(*pos, "while evaluating a path segment"))?;
            *part = self.coerce(value, *pos, &mut context, how, "while evaluating a path segment")?;
        }
        if code.path {
            return self.join_path(parts, &context, code.pos);
        }
        let context = context.finish(self.heap);
        self.joined(parts, context, code.pos)
    }

    /// `a ++ b ++ …`
    pub(super) fn concat_lists(&self, operands: &'h Operands<'h>, env: Env<'h>) -> Result<Value<'h>> {
        let pos = operands.pos;
        let mut lists = Vec::with_capacity(operands.operands.len());
        for (index, code) in operands.operands.iter().enumerate() {
            let trace = if index == 0 {
                "in the left operand of '++'"
            } else {
                "in the right operand of '++'"
            };
            let value = self.eval(code, env).map_err(|error| error.frame(pos, trace))?;
            lists.push(value);
        }
        let mut forced = Vec::with_capacity(lists.len());
        for value in lists {
            forced.push(self.list(value, pos, "while evaluating one of the elements to concatenate")?);
        }
        Ok(self.concat(&forced))
    }

    /// The elements of all lists, in one list.
    pub(crate) fn concat(&self, lists: &[List<'h>]) -> Value<'h> {
        let len: usize = lists.iter().map(|list| list.len()).sum();
        if let Some(only) = lists.iter().find(|list| !list.is_empty() && list.len() == len) {
            return Value::list(*only);
        }
        if len == 0 {
            return self.empty_list;
        }
        let mut items = lists.iter().flat_map(|list| list.iter());
        Value::list(List::new(self.heap, len, |_| match items.next() {
            Some(item) => item,
            None => unreachable!("lists have as many elements as they say"),
        }))
    }
}

#[cold]
fn negated(error: crate::error::Error, pos: Pos) -> crate::error::Error {
    error.frame(pos, "in the argument of '!'")
}

fn negate(value: Value<'_>) -> Value<'_> {
    Value::bool(value.as_bool() == Some(false))
}
