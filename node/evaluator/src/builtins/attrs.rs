//! Attribute sets, and what functions say of their arguments.

use super::PrimOp;
use crate::error::Result;
use crate::evaluation::{Evaluation, formals_of};
use crate::heap::{Attr, Attrs, AttrsBuilder, List, Thunk, Value, View};
use crate::syntax::position::Pos;
use crate::syntax::symbol::{Symbol, known};

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("attrNames", 1, attr_names),
    PrimOp::new("attrValues", 1, attr_values),
    PrimOp::new("getAttr", 2, get_attr),
    PrimOp::new("hasAttr", 2, has_attr),
    PrimOp::new("unsafeGetAttrPos", 2, unsafe_get_attr_pos),
    PrimOp::new("removeAttrs", 2, remove_attrs).plain(),
    PrimOp::new("listToAttrs", 1, list_to_attrs),
    PrimOp::new("intersectAttrs", 2, intersect_attrs),
    PrimOp::new("catAttrs", 2, cat_attrs),
    PrimOp::new("mapAttrs", 2, map_attrs).lazy(),
    PrimOp::new("zipAttrsWith", 2, zip_attrs_with),
    PrimOp::new("functionArgs", 1, function_args),
];

fn sorted<'h>(evaluation: &Evaluation<'h>, attrs: Attrs<'h>) -> Vec<&'h Attr<'h>> {
    let mut sorted: Vec<&'h Attr<'h>> = attrs.iter().collect();
    evaluation.sort_by_name(&mut sorted, |attr| attr.name);
    sorted
}

fn attr_names<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let attrs = evaluation.attrs(
        arguments[0],
        pos,
        "while evaluating the argument passed to builtins.attrNames",
    )?;
    let sorted = sorted(evaluation, attrs);
    Ok(Value::list(List::new(evaluation.heap, sorted.len(), |index| {
        evaluation.name_value(sorted[index].name)
    })))
}

fn attr_values<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let attrs = evaluation.attrs(
        arguments[0],
        pos,
        "while evaluating the argument passed to builtins.attrValues",
    )?;
    let sorted = sorted(evaluation, attrs);
    Ok(Value::list(List::new(evaluation.heap, sorted.len(), |index| {
        sorted[index].value()
    })))
}

fn get_attr<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let name = evaluation.string_no_context(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.getAttr",
    )?;
    let attrs = evaluation.attrs(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.getAttr",
    )?;
    let name = evaluation.symbol(name.bytes());
    let attr = evaluation.attribute(attrs, name, "in the attribute set under consideration")?;
    evaluation
        .force_slot(attr.slot())
        .map_err(|error| error.at(attr.pos))
}

fn has_attr<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let name = evaluation.string_no_context(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.hasAttr",
    )?;
    let attrs = evaluation.attrs(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.hasAttr",
    )?;
    let symbol = evaluation.symbols.borrow().lookup(name.bytes());
    Ok(Value::bool(symbol.is_some_and(|name| attrs.get(name).is_some())))
}

fn unsafe_get_attr_pos<'h>(
    evaluation: &Evaluation<'h>,
    arguments: &[Value<'h>],
    pos: Pos,
) -> Result<Value<'h>> {
    let name = evaluation.string_no_context(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.unsafeGetAttrPos",
    )?;
    let attrs = evaluation.attrs(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.unsafeGetAttrPos",
    )?;
    let symbol = evaluation.symbols.borrow().lookup(name.bytes());
    Ok(match symbol.and_then(|name| attrs.get(name)) {
        Some(attr) => evaluation.position_value(attr.pos),
        None => Value::NULL,
    })
}

fn remove_attrs<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let attrs = evaluation.attrs(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.removeAttrs",
    )?;
    let list = evaluation.list(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.removeAttrs",
    )?;
    let mut names: Vec<Symbol> = Vec::with_capacity(list.len());
    for name in list.iter() {
        let name = evaluation.string_no_context(
            name,
            pos,
            "while evaluating the values of the second argument passed to builtins.removeAttrs",
        )?;
        names.extend(evaluation.symbols.borrow().lookup(name.bytes()));
    }
    names.sort_unstable();
    let left: Vec<Attr<'h>> = attrs
        .iter()
        .filter(|attr| names.binary_search(&attr.name).is_err())
        .cloned()
        .collect();
    if left.len() == attrs.len() {
        return Ok(Value::attrs(attrs));
    }
    Ok(Value::attrs(Attrs::from_sorted(evaluation.heap, &left)))
}

fn list_to_attrs<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let list = evaluation.list(
        arguments[0],
        pos,
        "while evaluating the argument passed to builtins.listToAttrs",
    )?;
    let mut attrs = AttrsBuilder::with_capacity(list.len());
    let mut seen = rustc_hash::FxHashSet::default();
    for item in list.iter() {
        let item = evaluation.attrs(
            item,
            pos,
            "while evaluating an element of the list passed to builtins.listToAttrs",
        )?;
        let name = evaluation.attribute(item, known::NAME, "in a {name=...; value=...;} pair")?;
        let text = evaluation.string_no_context(
            name.value(),
            name.pos,
            "while evaluating the `name` attribute of an element of the list passed to builtins.listToAttrs",
        )?;
        let symbol = evaluation.symbol(text.bytes());
        if seen.insert(symbol) {
            let value = evaluation.attribute(item, known::VALUE, "in a {name=...; value=...;} pair")?;
            attrs.insert_at(symbol, value.pos, value.value());
        }
    }
    Ok(Value::attrs(attrs.finish(evaluation.heap)))
}

fn intersect_attrs<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let left = evaluation.attrs(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.intersectAttrs",
    )?;
    let right = evaluation.attrs(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.intersectAttrs",
    )?;
    // The smaller set is walked, the larger one searched.
    let common: Vec<Attr<'h>> = if left.len() <= right.len() {
        left.iter()
            .filter_map(|attr| right.get(attr.name))
            .cloned()
            .collect()
    } else {
        right
            .iter()
            .filter(|attr| left.get(attr.name).is_some())
            .cloned()
            .collect()
    };
    Ok(Value::attrs(Attrs::from_sorted(evaluation.heap, &common)))
}

fn cat_attrs<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let name = evaluation.string_no_context(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.catAttrs",
    )?;
    let name = evaluation.symbol(name.bytes());
    let list = evaluation.list(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.catAttrs",
    )?;
    let mut found = Vec::new();
    for item in list.iter() {
        let attrs = evaluation.attrs(
            item,
            pos,
            "while evaluating an element in the list passed as second argument to builtins.catAttrs",
        )?;
        found.extend(attrs.get(name).map(Attr::value));
    }
    Ok(Value::list(List::from_slice(evaluation.heap, &found)))
}

fn map_attrs<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let attrs = evaluation.attrs(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.mapAttrs",
    )?;
    let heap = evaluation.heap;
    let mut items = attrs.iter();
    Ok(Value::attrs(Attrs::new(heap, attrs.len(), |_| {
        match items.next() {
            Some(attr) => {
                let name = evaluation.name_value(attr.name);
                let thunk = Thunk::application2(heap, arguments[0], [name, attr.value()]);
                Attr::new(attr.name, Pos::NONE, Value::thunk(thunk))
            }
            None => unreachable!("a set has as many attributes as it says"),
        }
    })))
}

fn zip_attrs_with<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let function = evaluation.function(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.zipAttrsWith",
    )?;
    let list = evaluation.list(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.zipAttrsWith",
    )?;
    let mut found: rustc_hash::FxHashMap<Symbol, Vec<Value<'h>>> = rustc_hash::FxHashMap::default();
    for item in list.iter() {
        let attrs = evaluation.attrs(
            item,
            pos,
            "while evaluating a value of the list passed as second argument to builtins.zipAttrsWith",
        )?;
        for attr in attrs.iter() {
            found.entry(attr.name).or_default().push(attr.value());
        }
    }
    let heap = evaluation.heap;
    let mut attrs = AttrsBuilder::with_capacity(found.len());
    for (name, values) in found {
        let values = Value::list(List::from_slice(heap, &values));
        let thunk = Thunk::application2(heap, function, [evaluation.name_value(name), values]);
        attrs.insert(name, Value::thunk(thunk));
    }
    Ok(Value::attrs(attrs.finish(heap)))
}

fn function_args<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let function = evaluation.force_at(arguments[0], pos)?;
    if !matches!(
        function.view(),
        View::Closure(_) | View::PrimOp(_) | View::Partial(_)
    ) {
        return Err(evaluation.error(pos, "'functionArgs' requires a function"));
    }
    let Some(formals) = formals_of(function) else {
        return Ok(evaluation.empty_attrs);
    };
    Ok(Value::attrs(Attrs::new(
        evaluation.heap,
        formals.sorted.len(),
        |index| {
            let formal = &formals.formals[formals.sorted[index] as usize];
            Attr::new(formal.name, formal.pos, Value::bool(formal.default.is_some()))
        },
    )))
}
