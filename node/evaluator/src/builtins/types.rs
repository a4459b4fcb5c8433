//! Asking for the type of a value.

use super::PrimOp;
use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::heap::{Kind, Value, View};
use crate::syntax::position::Pos;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("typeOf", 1, type_of),
    PrimOp::new("isNull", 1, is_null).plain(),
    PrimOp::new("isFunction", 1, is_function),
    PrimOp::new("isInt", 1, is_int),
    PrimOp::new("isFloat", 1, is_float),
    PrimOp::new("isString", 1, is_string),
    PrimOp::new("isBool", 1, is_bool),
    PrimOp::new("isPath", 1, is_path),
    PrimOp::new("isAttrs", 1, is_attrs),
    PrimOp::new("isList", 1, is_list),
];

fn kind<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Kind> {
    Ok(evaluation.force_at(arguments[0], pos)?.kind())
}

fn type_of<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let name: &[u8] = match evaluation.force_at(arguments[0], pos)?.view() {
        View::Int(_) => b"int",
        View::Bool(_) => b"bool",
        View::Str(_) => b"string",
        View::Path(_) => b"path",
        View::Null => b"null",
        View::Attrs(_) => b"set",
        View::List(_) => b"list",
        View::Closure(_) | View::PrimOp(_) | View::Partial(_) => b"lambda",
        View::Float(_) => b"float",
        View::Thunk => unreachable!("the value was forced"),
    };
    let symbol = evaluation.symbol(name);
    Ok(evaluation.name_value(symbol))
}

fn is_null<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    Ok(Value::bool(kind(evaluation, arguments, pos)? == Kind::Null))
}

fn is_function<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    Ok(Value::bool(kind(evaluation, arguments, pos)? == Kind::Function))
}

fn is_int<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    Ok(Value::bool(kind(evaluation, arguments, pos)? == Kind::Int))
}

fn is_float<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    Ok(Value::bool(kind(evaluation, arguments, pos)? == Kind::Float))
}

fn is_string<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    Ok(Value::bool(kind(evaluation, arguments, pos)? == Kind::Str))
}

fn is_bool<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    Ok(Value::bool(kind(evaluation, arguments, pos)? == Kind::Bool))
}

fn is_path<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    Ok(Value::bool(kind(evaluation, arguments, pos)? == Kind::Path))
}

fn is_attrs<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    Ok(Value::bool(kind(evaluation, arguments, pos)? == Kind::Attrs))
}

fn is_list<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    Ok(Value::bool(kind(evaluation, arguments, pos)? == Kind::List))
}
