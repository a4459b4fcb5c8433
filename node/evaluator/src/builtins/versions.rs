//! Versions and package names.

use super::PrimOp;
use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::heap::{AttrsBuilder, List, Value};
use crate::pure::version;
use crate::syntax::position::Pos;
use crate::syntax::symbol::known;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("parseDrvName", 1, parse_drv_name),
    PrimOp::new("compareVersions", 2, compare_versions),
    PrimOp::new("splitVersion", 1, split_version),
];

fn parse_drv_name<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let trace = "while evaluating the first argument passed to builtins.parseDrvName";
    let text = evaluation.string_no_context(arguments[0], pos, trace)?;
    let (name, number) = version::split_name(text.bytes());
    let mut attrs = AttrsBuilder::with_capacity(2);
    attrs.insert(known::NAME, evaluation.text(name));
    attrs.insert(known::VERSION, evaluation.text(number));
    Ok(Value::attrs(attrs.finish(evaluation.heap)))
}

fn compare_versions<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let first = "while evaluating the first argument passed to builtins.compareVersions";
    let second = "while evaluating the second argument passed to builtins.compareVersions";
    let left = evaluation.string_no_context(arguments[0], pos, first)?;
    let right = evaluation.string_no_context(arguments[1], pos, second)?;
    Ok(Value::small_int(
        version::compare(left.bytes(), right.bytes()) as i32
    ))
}

fn split_version<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let trace = "while evaluating the first argument passed to builtins.splitVersion";
    let text = evaluation.string_no_context(arguments[0], pos, trace)?;
    let components: Vec<Value<'h>> = version::components(text.bytes())
        .map(|component| evaluation.text(component))
        .collect();
    Ok(Value::list(List::from_slice(evaluation.heap, &components)))
}
