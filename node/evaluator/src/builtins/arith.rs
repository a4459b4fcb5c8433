//! Numbers.

use super::PrimOp;
use crate::code::Operator;
use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::heap::{Value, View};
use crate::syntax::position::Pos;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("add", 2, add),
    PrimOp::new("sub", 2, sub),
    PrimOp::new("mul", 2, mul),
    PrimOp::new("div", 2, div),
    PrimOp::new("bitAnd", 2, bit_and),
    PrimOp::new("bitOr", 2, bit_or),
    PrimOp::new("bitXor", 2, bit_xor),
    PrimOp::new("lessThan", 2, less_than),
    PrimOp::new("ceil", 1, ceil),
    PrimOp::new("floor", 1, floor),
];

fn operate<'h>(
    evaluation: &Evaluation<'h>,
    operator: Operator,
    arguments: &[Value<'h>],
    pos: Pos,
) -> Result<Value<'h>> {
    let left = evaluation.force_at(arguments[0], pos)?;
    let right = evaluation.force_at(arguments[1], pos)?;
    evaluation.arithmetic(operator, left, right, pos)
}

fn add<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    operate(evaluation, Operator::Add, arguments, pos)
}

fn sub<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    operate(evaluation, Operator::Subtract, arguments, pos)
}

fn mul<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    operate(evaluation, Operator::Multiply, arguments, pos)
}

fn div<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    operate(evaluation, Operator::Divide, arguments, pos)
}

fn bits<'h>(
    evaluation: &Evaluation<'h>,
    arguments: &[Value<'h>],
    pos: Pos,
    traces: [&'static str; 2],
    combine: fn(i64, i64) -> i64,
) -> Result<Value<'h>> {
    let left = evaluation.int(arguments[0], pos, traces[0])?;
    let right = evaluation.int(arguments[1], pos, traces[1])?;
    Ok(Value::int(evaluation.heap, combine(left, right)))
}

fn bit_and<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let traces = [
        "while evaluating the first argument passed to builtins.bitAnd",
        "while evaluating the second argument passed to builtins.bitAnd",
    ];
    bits(evaluation, arguments, pos, traces, |a, b| a & b)
}

fn bit_or<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let traces = [
        "while evaluating the first argument passed to builtins.bitOr",
        "while evaluating the second argument passed to builtins.bitOr",
    ];
    bits(evaluation, arguments, pos, traces, |a, b| a | b)
}

fn bit_xor<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let traces = [
        "while evaluating the first argument passed to builtins.bitXor",
        "while evaluating the second argument passed to builtins.bitXor",
    ];
    bits(evaluation, arguments, pos, traces, |a, b| a ^ b)
}

fn less_than<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let left = evaluation.force_at(arguments[0], pos)?;
    let right = evaluation.force_at(arguments[1], pos)?;
    evaluation.less(left, right, pos).map(Value::bool)
}

/// Rounds; integers stay as they are, results must fit into an integer.
fn round<'h>(
    evaluation: &Evaluation<'h>,
    value: Value<'h>,
    pos: Pos,
    name: &str,
    trace: &'static str,
    rounded: fn(f64) -> f64,
) -> Result<Value<'h>> {
    let value = evaluation.force_at(value, pos)?;
    if let View::Int(_) = value.view() {
        return Ok(value);
    }
    let float = evaluation.float(value, pos, trace)?;
    let whole = rounded(float);
    // 2^63 is the first whole number that does not fit; its negative does.
    let limit = 9_223_372_036_854_775_808.0;
    if whole >= -limit && whole < limit {
        return Ok(Value::int(evaluation.heap, whole as i64));
    }
    let shown = crate::pure::float_format::general(float);
    Err(evaluation.error(
        pos,
        format!("NixFloat argument {shown} is not in the range of NixInt: builtins.{name} cannot round it"),
    ))
}

fn ceil<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let trace = "while evaluating the first argument passed to builtins.ceil";
    round(evaluation, arguments[0], pos, "ceil", trace, f64::ceil)
}

fn floor<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let trace = "while evaluating the first argument passed to builtins.floor";
    round(evaluation, arguments[0], pos, "floor", trace, f64::floor)
}
