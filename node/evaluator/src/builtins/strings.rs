//! Strings.

use super::PrimOp;
use crate::error::Result;
use crate::evaluation::{Coerce, ContextBuilder, Evaluation};
use crate::heap::{Str, Value, View};
use crate::syntax::position::Pos;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("toString", 1, to_string).plain(),
    PrimOp::new("substring", 3, substring),
    PrimOp::new("stringLength", 1, string_length),
    PrimOp::new("concatStringsSep", 2, concat_strings_sep),
    PrimOp::new("replaceStrings", 3, replace_strings),
];

fn to_string<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    evaluation
        .coerce_str(
            arguments[0],
            pos,
            Coerce::TO_STRING,
            "while evaluating the first argument passed to builtins.toString",
        )
        .map(Value::str)
}

fn substring<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let start = evaluation.int(
        arguments[0],
        pos,
        "while evaluating the first argument (the start offset) passed to builtins.substring",
    )?;
    let Ok(start) = usize::try_from(start) else {
        return Err(evaluation.error(pos, "negative start position in 'substring'"));
    };
    let len = evaluation.int(
        arguments[1],
        pos,
        "while evaluating the second argument (the substring length) passed to builtins.substring",
    )?;
    if len == 0 {
        // Often asked for the context of a value alone; a string is not looked into then.
        let value = evaluation.force_at(arguments[2], pos)?;
        if let View::Str(text) = value.view() {
            return Ok(Value::str(Str::with_context(
                evaluation.heap,
                b"",
                text.context(),
            )));
        }
    }
    let text = evaluation.coerce_str(
        arguments[2],
        pos,
        Coerce::COPY,
        "while evaluating the third argument (the string) passed to builtins.substring",
    )?;
    let bytes = text.bytes();
    let start = start.min(bytes.len());
    // A negative length means all of the rest.
    let len = usize::try_from(len)
        .map_or(bytes.len(), |len| len)
        .min(bytes.len() - start);
    if start == 0 && len == bytes.len() {
        return Ok(Value::str(text));
    }
    Ok(Value::str(Str::with_context(
        evaluation.heap,
        &bytes[start..start + len],
        text.context(),
    )))
}

fn string_length<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let text = evaluation.coerce_str(
        arguments[0],
        pos,
        Coerce::COPY,
        "while evaluating the argument passed to builtins.stringLength",
    )?;
    Ok(Value::int(evaluation.heap, text.bytes().len() as i64))
}

fn concat_strings_sep<'h>(
    evaluation: &Evaluation<'h>,
    arguments: &[Value<'h>],
    pos: Pos,
) -> Result<Value<'h>> {
    let mut context = ContextBuilder::default();
    let separator = evaluation.string(
        arguments[0],
        pos,
        "while evaluating the first argument (the separator string) passed to builtins.concatStringsSep",
    )?;
    context.add(separator.context());
    let list = evaluation.list(
        arguments[1],
        pos,
        "while evaluating the second argument (the list of strings to concat) passed to builtins.concatStringsSep",
    )?;
    let mut parts: Vec<&[u8]> = Vec::with_capacity(2 * list.len());
    for (index, item) in list.iter().enumerate() {
        if index > 0 {
            parts.push(separator.bytes());
        }
        parts.push(evaluation.coerce(
            item,
            pos,
            &mut context,
            Coerce::COPY,
            "while evaluating one element of the list of strings to concat passed to builtins.concatStringsSep",
        )?);
    }
    let context = context.finish(evaluation.heap);
    evaluation.joined(&parts, context, pos)
}

fn replace_strings<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let from = evaluation.list(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.replaceStrings",
    )?;
    let to = evaluation.list(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.replaceStrings",
    )?;
    if from.len() != to.len() {
        return Err(evaluation.error(
            pos,
            "'from' and 'to' arguments passed to builtins.replaceStrings have different lengths",
        ));
    }
    let mut patterns: Vec<&[u8]> = Vec::with_capacity(from.len());
    for pattern in from.iter() {
        let trace = "while evaluating one of the strings to replace passed to builtins.replaceStrings";
        patterns.push(evaluation.string(pattern, pos, trace)?.bytes());
    }
    let text = evaluation.string(
        arguments[2],
        pos,
        "while evaluating the third argument passed to builtins.replaceStrings",
    )?;
    let mut context = ContextBuilder::default();
    context.add(text.context());
    let bytes = text.bytes();
    // Which first bytes can begin a match at all.
    let mut begins = [false; 256];
    let mut empty = false;
    for pattern in &patterns {
        match pattern.first() {
            Some(first) => begins[usize::from(*first)] = true,
            None => empty = true,
        }
    }
    // Replacements are only evaluated when they are needed.
    let mut replacements: Vec<Option<&[u8]>> = vec![None; patterns.len()];
    let mut result = Vec::with_capacity(bytes.len());
    let mut at = 0;
    // One step past the end, where an empty pattern still matches.
    while at <= bytes.len() {
        let rest = &bytes[at..];
        let candidate = empty || rest.first().is_some_and(|first| begins[usize::from(*first)]);
        let found = match candidate {
            true => patterns.iter().position(|pattern| rest.starts_with(pattern)),
            false => None,
        };
        let Some(index) = found else {
            result.extend(rest.first());
            at += 1;
            continue;
        };
        let replacement = match (replacements[index], to.get(index)) {
            (Some(replacement), _) => replacement,
            (None, Some(value)) => {
                let trace =
                    "while evaluating one of the replacement strings passed to builtins.replaceStrings";
                let replacement = evaluation.string(value, pos, trace)?;
                context.add(replacement.context());
                *replacements[index].insert(replacement.bytes())
            }
            (None, None) => unreachable!("both lists have one length"),
        };
        result.extend_from_slice(replacement);
        if patterns[index].is_empty() {
            result.extend(rest.first());
            at += 1;
        } else {
            at += patterns[index].len();
        }
    }
    let context = context.finish(evaluation.heap);
    Ok(Value::str(Str::with_context(evaluation.heap, &result, context)))
}
