//! Errors, traces, strictness, and closures.

use std::collections::VecDeque;

use super::PrimOp;
use crate::derivation::derivation_strict;
use crate::error::{ErrorKind, EvalError, Result};
use crate::evaluation::{Coerce, ContextBuilder, Evaluation};
use crate::heap::{AttrsBuilder, Kind, List, Value, View};
use crate::host::MessageKind;
use crate::syntax::position::Pos;
use crate::syntax::symbol::known;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("abort", 1, abort).plain(),
    PrimOp::new("throw", 1, throw).plain(),
    PrimOp::new("addErrorContext", 2, add_error_context)
        .lazy()
        .silent(),
    PrimOp::new("tryEval", 1, try_eval).lazy(),
    PrimOp::new("seq", 2, seq),
    PrimOp::new("deepSeq", 2, deep_seq),
    PrimOp::new("trace", 2, trace),
    PrimOp::new("traceVerbose", 2, second).lazy(),
    PrimOp::new("warn", 2, warn),
    PrimOp::new("break", 1, first).plain(),
    PrimOp::new("genericClosure", 1, generic_closure),
    PrimOp::new("derivationStrict", 1, derivation_strict).plain(),
];

fn message<'h>(
    evaluation: &Evaluation<'h>,
    value: Value<'h>,
    pos: Pos,
    context: &'static str,
) -> Result<String> {
    let mut unused = ContextBuilder::default();
    let text = evaluation.coerce(value, pos, &mut unused, Coerce::COPY, context)?;
    Ok(String::from_utf8_lossy(text).into_owned())
}

fn abort<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let text = message(
        evaluation,
        arguments[0],
        pos,
        "while evaluating the error message passed to builtins.abort",
    )?;
    let text = format!("evaluation aborted with the following error message: '{text}'");
    Err(EvalError::new(ErrorKind::Abort, Pos::NONE, text))
}

fn throw<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let text = message(
        evaluation,
        arguments[0],
        pos,
        "while evaluating the error message passed to builtin.throw",
    )?;
    Err(EvalError::new(ErrorKind::Throw, Pos::NONE, text))
}

fn add_error_context<'h>(
    evaluation: &Evaluation<'h>,
    arguments: &[Value<'h>],
    pos: Pos,
) -> Result<Value<'h>> {
    match evaluation.force(arguments[1]) {
        Ok(value) => Ok(value),
        Err(error) => {
            let mut unused = ContextBuilder::default();
            let text = evaluation.coerce(
                arguments[0],
                pos,
                &mut unused,
                Coerce::PLAIN,
                "while evaluating the error message passed to builtins.addErrorContext",
            )?;
            let mut error = error.frame(Pos::NONE, String::from_utf8_lossy(text).into_owned());
            if let Some(frame) = error.frames.last_mut() {
                frame.shown = crate::error::Shown::Always;
            }
            Err(error)
        }
    }
}

fn try_eval<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], _pos: Pos) -> Result<Value<'h>> {
    let mut attrs = AttrsBuilder::with_capacity(2);
    match evaluation.force(arguments[0]) {
        Ok(value) => {
            attrs.insert(known::VALUE, value);
            attrs.insert(known::SUCCESS, Value::TRUE);
        }
        Err(error) if error.is_catchable() => {
            attrs.insert(known::VALUE, Value::FALSE);
            attrs.insert(known::SUCCESS, Value::FALSE);
        }
        Err(error) => return Err(error),
    }
    Ok(Value::attrs(attrs.finish(evaluation.heap)))
}

fn first<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    evaluation.force_at(arguments[0], pos)
}

fn second<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    evaluation.force_at(arguments[1], pos)
}

fn seq<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    evaluation.force_at(arguments[0], pos)?;
    evaluation.force_at(arguments[1], pos)
}

fn deep_seq<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    evaluation.force_deep(arguments[0])?;
    evaluation.force_at(arguments[1], pos)
}

fn trace<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let value = evaluation.force_at(arguments[0], pos)?;
    let text = match value.view() {
        View::Str(text) => String::from_utf8_lossy(text.bytes()).into_owned(),
        _ => evaluation.show_whole(value),
    };
    evaluation.host.message(MessageKind::Trace, &text);
    evaluation.force_at(arguments[1], pos)
}

fn warn<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let text = evaluation.string(
        arguments[0],
        pos,
        "while evaluating the first argument; the message passed to builtins.warn",
    )?;
    evaluation
        .host
        .message(MessageKind::Warning, &String::from_utf8_lossy(text.bytes()));
    evaluation.force_at(arguments[1], pos)
}

fn generic_closure<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let attrs = evaluation.attrs(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.genericClosure",
    )?;
    let start = evaluation.attribute(
        attrs,
        known::START_SET,
        "in the attrset passed as argument to builtins.genericClosure",
    )?;
    let start = evaluation.list(
        start.value(),
        pos,
        "while evaluating the 'startSet' attribute passed as argument to builtins.genericClosure",
    )?;
    if start.is_empty() {
        return Ok(Value::list(start));
    }
    let operator = evaluation.attribute(
        attrs,
        known::OPERATOR,
        "in the attrset passed as argument to builtins.genericClosure",
    )?;
    let operator = evaluation.function(
        operator.value(),
        pos,
        "while evaluating the 'operator' attribute passed as argument to builtins.genericClosure",
    )?;
    let mut work: VecDeque<Value<'h>> = start.iter().collect();
    let mut result = Vec::new();
    // Keys seen, sorted; and as a short cut those that are strings or integers, which most are.
    let mut keys: Vec<Value<'h>> = Vec::new();
    let mut texts = rustc_hash::FxHashSet::default();
    let mut ints = rustc_hash::FxHashSet::default();
    let mut first_kind = None;
    while let Some(element) = work.pop_front() {
        let element_trace = |error: crate::error::Error| {
            let shown = evaluation.show(element);
            error.frame(Pos::NONE, format!("in genericClosure element {shown}"))
        };
        let members = evaluation.attrs(element, pos, "").map_err(element_trace)?;
        let key = evaluation
            .attribute(members, known::KEY, "")
            .map_err(element_trace)?;
        let key = evaluation.force_at(key.value(), pos)?;
        let kind = *first_kind.get_or_insert(key.kind());
        let new = match (key.view(), kind) {
            (View::Str(text), Kind::Str) => texts.insert(text.bytes()),
            (View::Int(int), Kind::Int) => ints.insert(int),
            _ => {
                let shown = evaluation.show(element);
                let other = result.first().map(|first| evaluation.show(*first));
                insert_key(evaluation, &mut keys, key, &texts, &ints, pos).map_err(|error| match other {
                    Some(other) => error
                        .frame(Pos::NONE, format!("with element {other}"))
                        .frame(Pos::NONE, format!("while comparing element {shown}")),
                    None => error.frame(Pos::NONE, format!("while checking key of element {shown}")),
                })?
            }
        };
        if !new {
            continue;
        }
        result.push(element);
        let trace = |error: crate::error::Error| {
            let shown = evaluation.show(element);
            error.frame(
                Pos::NONE,
                format!("while calling operator on genericClosure element {shown}"),
            )
        };
        let more = evaluation.call(operator, &[element], pos).map_err(trace)?;
        let more = evaluation
            .list(
                more,
                pos,
                "while evaluating the return value of the `operator` passed to builtins.genericClosure",
            )
            .map_err(trace)?;
        for item in more.iter() {
            evaluation.force_at(item, pos).map_err(trace)?;
            work.push_back(item);
        }
    }
    Ok(Value::list(List::from_slice(evaluation.heap, &result)))
}

/// Puts a key among the sorted ones; whether it was not there. Keys that cannot be compared with those seen before
/// are an error.
fn insert_key<'h>(
    evaluation: &Evaluation<'h>,
    keys: &mut Vec<Value<'h>>,
    key: Value<'h>,
    texts: &rustc_hash::FxHashSet<&'h [u8]>,
    ints: &rustc_hash::FxHashSet<i64>,
    pos: Pos,
) -> Result<bool> {
    // Keys of the short cut are moved among the others when a key of another kind comes.
    if keys.is_empty() {
        let mut seen: Vec<Value<'h>> = texts.iter().map(|text| evaluation.text(text)).collect();
        seen.extend(ints.iter().map(|int| Value::int(evaluation.heap, *int)));
        for seen in seen {
            place(evaluation, keys, seen, pos)?;
        }
    }
    place(evaluation, keys, key, pos)
}

fn place<'h>(
    evaluation: &Evaluation<'h>,
    keys: &mut Vec<Value<'h>>,
    key: Value<'h>,
    pos: Pos,
) -> Result<bool> {
    // The first key is compared with nothing; of which kind it is does not matter while it is the only one.
    let (mut low, mut high) = (0, keys.len());
    while low < high {
        let middle = (low + high) / 2;
        match super::lists::order(evaluation, key, keys[middle], pos)? {
            std::cmp::Ordering::Less => high = middle,
            std::cmp::Ordering::Greater => low = middle + 1,
            std::cmp::Ordering::Equal => return Ok(false),
        }
    }
    keys.insert(low, key);
    Ok(true)
}
