//! Values as JSON, XML and TOML, and back.

use super::PrimOp;
use crate::error::Result;
use crate::evaluation::{ContextBuilder, Evaluation};
use crate::heap::{Str, Value};
use crate::syntax::position::Pos;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("toJSON", 1, to_json),
    PrimOp::new("fromJSON", 1, from_json),
    PrimOp::new("fromTOML", 1, from_toml).plain(),
    PrimOp::new("toXML", 1, to_xml),
];

fn to_json<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let mut context = ContextBuilder::default();
    let text = evaluation.to_json(arguments[0], pos, &mut context, true)?;
    let context = context.finish(evaluation.heap);
    Ok(Value::str(Str::with_context(evaluation.heap, &text, context)))
}

fn to_xml<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let mut context = ContextBuilder::default();
    let text = evaluation.to_xml(arguments[0], true, false, &mut context, pos)?;
    let context = context.finish(evaluation.heap);
    Ok(Value::str(Str::with_context(evaluation.heap, &text, context)))
}

fn from_json<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let trace = "while evaluating the first argument passed to builtins.fromJSON";
    let text = evaluation.string_no_context(arguments[0], pos, trace)?;
    evaluation.parse_json(text.bytes(), pos)
}

fn from_toml<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let trace = "while evaluating the argument passed to builtins.fromTOML";
    let text = evaluation.string_no_context(arguments[0], pos, trace)?;
    evaluation.parse_toml(text.bytes(), pos)
}
