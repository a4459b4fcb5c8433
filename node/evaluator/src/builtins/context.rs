//! What strings depend on.

use std::collections::BTreeMap;

use tvix_node_protocol::nix::store_path::StorePath;

use super::PrimOp;
use crate::error::Result;
use crate::evaluation::{Coerce, ContextBuilder, Evaluation};
use crate::heap::{AttrsBuilder, ContextElement, List, Str, Value};
use crate::syntax::position::Pos;
use crate::syntax::symbol::known;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("unsafeDiscardStringContext", 1, unsafe_discard_string_context),
    PrimOp::new("hasContext", 1, has_context),
    PrimOp::new(
        "unsafeDiscardOutputDependency",
        1,
        unsafe_discard_output_dependency,
    ),
    PrimOp::new("addDrvOutputDependencies", 1, add_drv_output_dependencies),
    PrimOp::new("getContext", 1, get_context),
    PrimOp::new("appendContext", 2, append_context),
];

fn unsafe_discard_string_context<'h>(
    evaluation: &Evaluation<'h>,
    arguments: &[Value<'h>],
    pos: Pos,
) -> Result<Value<'h>> {
    let text = evaluation.coerce_str(
        arguments[0],
        pos,
        Coerce::COPY,
        "while evaluating the argument passed to builtins.unsafeDiscardStringContext",
    )?;
    Ok(match text.context() {
        None => Value::str(text),
        Some(_) => evaluation.text(text.bytes()),
    })
}

fn has_context<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let text = evaluation.string(
        arguments[0],
        pos,
        "while evaluating the argument passed to builtins.hasContext",
    )?;
    Ok(Value::bool(text.context().is_some()))
}

fn unsafe_discard_output_dependency<'h>(
    evaluation: &Evaluation<'h>,
    arguments: &[Value<'h>],
    pos: Pos,
) -> Result<Value<'h>> {
    let text = evaluation.coerce_str(
        arguments[0],
        pos,
        Coerce::COPY,
        "while evaluating the argument passed to builtins.unsafeDiscardOutputDependency",
    )?;
    let mut context = ContextBuilder::default();
    for element in text.context().map_or(&[][..], |context| context.elements()) {
        match element {
            ContextElement::Deep(path) => context.push(evaluation.heap.alloc(ContextElement::Opaque(path))),
            _ => context.push(element),
        }
    }
    let context = context.finish(evaluation.heap);
    Ok(Value::str(Str::with_context(
        evaluation.heap,
        text.bytes(),
        context,
    )))
}

fn add_drv_output_dependencies<'h>(
    evaluation: &Evaluation<'h>,
    arguments: &[Value<'h>],
    pos: Pos,
) -> Result<Value<'h>> {
    let text = evaluation.coerce_str(
        arguments[0],
        pos,
        Coerce::COPY,
        "while evaluating the argument passed to builtins.addDrvOutputDependencies",
    )?;
    let elements = text.context().map_or(&[][..], |context| context.elements());
    let [element] = elements else {
        let shown = String::from_utf8_lossy(text.bytes());
        return Err(evaluation.error(
            pos,
            format!(
                "context of string '{shown}' must have exactly one element, but has {}",
                elements.len()
            ),
        ));
    };
    let path = match element {
        ContextElement::Deep(_) => return Ok(Value::str(text)),
        ContextElement::Opaque(path) => path,
        ContextElement::Output(_, output) => {
            return Err(evaluation.error(
                pos,
                format!(
                    "`addDrvOutputDependencies` can only act on derivations, not on a derivation output such as \
                     '{output}'"
                ),
            ));
        }
    };
    if !path.name().ends_with(".drv") {
        let path = path.to_absolute_path();
        return Err(evaluation.error(pos, format!("path '{path}' is not a derivation")));
    }
    let context = evaluation.context_of(ContextElement::Deep(path));
    Ok(Value::str(Str::with_context(
        evaluation.heap,
        text.bytes(),
        context,
    )))
}

/// How a path is in a context.
#[derive(Default)]
struct Info<'h> {
    path: bool,
    all_outputs: bool,
    outputs: Vec<&'h str>,
}

fn get_context<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let text = evaluation.string(
        arguments[0],
        pos,
        "while evaluating the argument passed to builtins.getContext",
    )?;
    let mut infos: BTreeMap<&StorePath, Info<'h>> = BTreeMap::new();
    for element in text.context().map_or(&[][..], |context| context.elements()) {
        match element {
            ContextElement::Opaque(path) => infos.entry(path).or_default().path = true,
            ContextElement::Deep(path) => infos.entry(path).or_default().all_outputs = true,
            ContextElement::Output(path, output) => infos.entry(path).or_default().outputs.push(output),
        }
    }
    let heap = evaluation.heap;
    let mut attrs = AttrsBuilder::with_capacity(infos.len());
    for (path, info) in infos {
        let mut members = AttrsBuilder::with_capacity(3);
        if info.path {
            members.insert(known::PATH, Value::TRUE);
        }
        if info.all_outputs {
            members.insert(evaluation.symbol(b"allOutputs"), Value::TRUE);
        }
        if !info.outputs.is_empty() {
            let outputs = List::new(heap, info.outputs.len(), |index| {
                evaluation.text(info.outputs[index].as_bytes())
            });
            members.insert(known::OUTPUTS, Value::list(outputs));
        }
        let name = evaluation.symbol(path.to_absolute_path().as_bytes());
        attrs.insert(name, Value::attrs(members.finish(heap)));
    }
    Ok(Value::attrs(attrs.finish(heap)))
}

fn append_context<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let heap = evaluation.heap;
    let text = evaluation.string(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.appendContext",
    )?;
    let attrs = evaluation.attrs(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.appendContext",
    )?;
    let mut context = ContextBuilder::default();
    context.add(text.context());
    let all_outputs = evaluation.symbol(b"allOutputs");
    for attr in attrs.iter() {
        let key = evaluation.symbols.borrow().bytes(attr.name).to_vec();
        let path = StorePath::from_absolute_path(&key).map_err(|_| {
            let key = String::from_utf8_lossy(&key);
            evaluation.error(attr.pos, format!("context key '{key}' is not a store path"))
        })?;
        let path = evaluation.intern_path(&path);
        let is_derivation = path.name().ends_with(".drv");
        let members = evaluation.attrs(
            attr.value(),
            attr.pos,
            "while evaluating the value of a string context",
        )?;
        if let Some(member) = members.get(known::PATH)
            && evaluation.bool(
                member.value(),
                member.pos,
                "while evaluating the `path` attribute of a string context",
            )?
        {
            context.push(heap.alloc(ContextElement::Opaque(path)));
        }
        if let Some(member) = members.get(all_outputs)
            && evaluation.bool(
                member.value(),
                member.pos,
                "while evaluating the `allOutputs` attribute of a string context",
            )?
        {
            if !is_derivation {
                let key = String::from_utf8_lossy(&key);
                let message = format!(
                    "tried to add all-outputs context of {key}, which is not a derivation, to a string"
                );
                return Err(evaluation.error(attr.pos, message));
            }
            context.push(heap.alloc(ContextElement::Deep(path)));
        }
        if let Some(member) = members.get(known::OUTPUTS) {
            let outputs = evaluation.list(
                member.value(),
                member.pos,
                "while evaluating the `outputs` attribute of a string context",
            )?;
            if !outputs.is_empty() && !is_derivation {
                let key = String::from_utf8_lossy(&key);
                let message = format!(
                    "tried to add derivation output context of {key}, which is not a derivation, to a string"
                );
                return Err(evaluation.error(attr.pos, message));
            }
            for output in outputs.iter() {
                let output = evaluation.string_no_context(
                    output,
                    member.pos,
                    "while evaluating an output name within a string context",
                )?;
                let output = String::from_utf8_lossy(output.bytes());
                let output = evaluation.intern_output(&output);
                context.push(heap.alloc(ContextElement::Output(path, output)));
            }
        }
    }
    let context = context.finish(heap);
    Ok(Value::str(Str::with_context(heap, text.bytes(), context)))
}
