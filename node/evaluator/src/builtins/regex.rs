//! Regular expressions.

use std::rc::Rc;

use super::PrimOp;
use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::heap::{List, Value};
use crate::pure::regex::{Groups, Regex};
use crate::syntax::position::Pos;

pub(super) const TABLE: &[PrimOp] = &[PrimOp::new("match", 2, r#match), PrimOp::new("split", 2, split)];

fn r#match<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let pattern = evaluation.string_no_context(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.match",
    )?;
    let regex = compiled(evaluation, pattern.bytes(), pos)?;
    let text = evaluation.string(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.match",
    )?;
    let found = regex.match_whole(text.bytes());
    match found.map_err(|error| evaluation.error(pos, error.to_string()))? {
        None => Ok(Value::NULL),
        Some(groups) => Ok(groups_value(evaluation, text.bytes(), &groups)),
    }
}

/// The texts of groups, `null` for those that had no part in the match.
fn groups_value<'h>(evaluation: &Evaluation<'h>, text: &[u8], groups: &Groups) -> Value<'h> {
    Value::list(List::new(evaluation.heap, groups.len(), |index| {
        match &groups[index] {
            Some(range) => evaluation.text(&text[range.clone()]),
            None => Value::NULL,
        }
    }))
}

fn split<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let pattern = evaluation.string_no_context(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.split",
    )?;
    let regex = compiled(evaluation, pattern.bytes(), pos)?;
    let text = evaluation.string(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.split",
    )?;
    let bytes = text.bytes();
    let found = regex
        .matches(bytes)
        .map_err(|error| evaluation.error(pos, error.to_string()))?;
    if found.is_empty() {
        return Ok(Value::list(List::from_slice(
            evaluation.heap,
            &[Value::str(text)],
        )));
    }
    let mut parts = Vec::with_capacity(2 * found.len() + 1);
    let mut end = 0;
    for found in found {
        parts.push(evaluation.text(&bytes[end..found.range.start]));
        parts.push(groups_value(evaluation, bytes, &found.groups));
        end = found.range.end;
    }
    parts.push(evaluation.text(&bytes[end..]));
    Ok(Value::list(List::from_slice(evaluation.heap, &parts)))
}

fn compiled(evaluation: &Evaluation<'_>, pattern: &[u8], pos: Pos) -> Result<Rc<Regex>> {
    evaluation
        .regexes
        .borrow_mut()
        .get(pattern)
        .map_err(|error| evaluation.error(pos, error.to_string()))
}
