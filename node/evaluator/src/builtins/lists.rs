//! Lists.

use std::cmp::Ordering;

use super::PrimOp;
use crate::error::Result;
use crate::evaluation::{Evaluation, position_of};
use crate::heap::{AttrsBuilder, List, Thunk, Value};
use crate::syntax::position::Pos;
use crate::syntax::symbol::{Symbol, known};

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("elemAt", 2, elem_at),
    PrimOp::new("head", 1, head),
    PrimOp::new("tail", 1, tail),
    PrimOp::new("length", 1, length),
    PrimOp::new("map", 2, map).plain().lazy(),
    PrimOp::new("filter", 2, filter).lazy(),
    PrimOp::new("elem", 2, elem).lazy(),
    PrimOp::new("concatLists", 1, concat_lists),
    PrimOp::new("foldl'", 3, foldl),
    PrimOp::new("any", 2, any),
    PrimOp::new("all", 2, all),
    PrimOp::new("genList", 2, gen_list).lazy(),
    PrimOp::new("sort", 2, sort).lazy(),
    PrimOp::new("partition", 2, partition),
    PrimOp::new("groupBy", 2, group_by),
    PrimOp::new("concatMap", 2, concat_map),
];

fn make<'h>(evaluation: &Evaluation<'h>, items: &[Value<'h>]) -> Value<'h> {
    match items {
        [] => evaluation.empty_list,
        items => Value::list(List::from_slice(evaluation.heap, items)),
    }
}

fn elem_at<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let list = evaluation.list(
        arguments[0],
        pos,
        "while evaluating the first argument passed to 'builtins.elemAt'",
    )?;
    let index = evaluation.int(
        arguments[1],
        pos,
        "while evaluating the second argument passed to 'builtins.elemAt'",
    )?;
    match usize::try_from(index)
        .ok()
        .and_then(|index| list.slots().get(index))
    {
        Some(slot) => evaluation.force_slot(slot),
        None => Err(evaluation.error(
            pos,
            format!(
                "'builtins.elemAt' called with index {index} on a list of size {}",
                list.len()
            ),
        )),
    }
}

fn head<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let list = evaluation.list(
        arguments[0],
        pos,
        "while evaluating the first argument passed to 'builtins.head'",
    )?;
    match list.slots().first() {
        Some(slot) => evaluation.force_slot(slot),
        None => Err(evaluation.error(pos, "'builtins.head' called on an empty list")),
    }
}

fn tail<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let list = evaluation.list(
        arguments[0],
        pos,
        "while evaluating the first argument passed to 'builtins.tail'",
    )?;
    match list.slots().split_first() {
        Some((_, rest)) => Ok(Value::list(List::new(evaluation.heap, rest.len(), |index| {
            rest[index].get()
        }))),
        None => Err(evaluation.error(pos, "'builtins.tail' called on an empty list")),
    }
}

fn length<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let list = evaluation.list(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.length",
    )?;
    Ok(Value::int(evaluation.heap, list.len() as i64))
}

fn map<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let list = evaluation.list(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.map",
    )?;
    if list.is_empty() {
        return Ok(Value::list(list));
    }
    let function = evaluation.function(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.map",
    )?;
    let heap = evaluation.heap;
    let items = list.slots();
    Ok(Value::list(List::new(heap, items.len(), |index| {
        Value::thunk(Thunk::application(heap, function, items[index].get()))
    })))
}

fn filter<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let list = evaluation.list(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.filter",
    )?;
    if list.is_empty() {
        return Ok(Value::list(list));
    }
    let function = evaluation.function(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.filter",
    )?;
    let mut kept = Vec::with_capacity(list.len());
    for item in list.iter() {
        let keep = evaluation.call(function, &[item], pos)?;
        let trace = "while evaluating the return value of the filtering function passed to builtins.filter";
        if evaluation.bool(keep, pos, trace)? {
            kept.push(item);
        }
    }
    if kept.len() == list.len() {
        return Ok(Value::list(list));
    }
    Ok(make(evaluation, &kept))
}

fn elem<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let list = evaluation.list(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.elem",
    )?;
    for item in list.iter() {
        if evaluation.equal_elements(arguments[0], item, pos)? {
            return Ok(Value::TRUE);
        }
    }
    Ok(Value::FALSE)
}

fn concat_lists<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let outer = evaluation.list(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.concatLists",
    )?;
    let mut lists = Vec::with_capacity(outer.len());
    for list in outer.iter() {
        lists.push(evaluation.list(
            list,
            pos,
            "while evaluating a value of the list passed to builtins.concatLists",
        )?);
    }
    Ok(evaluation.concat(&lists))
}

fn foldl<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let function = evaluation.function(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.foldlStrict",
    )?;
    let list = evaluation.list(
        arguments[2],
        pos,
        "while evaluating the third argument passed to builtins.foldlStrict",
    )?;
    let mut result = arguments[1];
    for item in list.iter() {
        result = evaluation.call(function, &[result, item], pos)?;
    }
    evaluation.force_at(result, pos)
}

/// Whether the predicate answers `wanted` for some element.
fn answers<'h>(
    evaluation: &Evaluation<'h>,
    arguments: &[Value<'h>],
    pos: Pos,
    wanted: bool,
    traces: [&'static str; 3],
) -> Result<bool> {
    let function = evaluation.function(arguments[0], pos, traces[0])?;
    let list = evaluation.list(arguments[1], pos, traces[1])?;
    for item in list.iter() {
        let answer = evaluation.call(function, &[item], pos)?;
        if evaluation.bool(answer, pos, traces[2])? == wanted {
            return Ok(true);
        }
    }
    Ok(false)
}

fn any<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let traces = [
        "while evaluating the first argument passed to builtins.any",
        "while evaluating the second argument passed to builtins.any",
        "while evaluating the return value of the function passed to builtins.any",
    ];
    answers(evaluation, arguments, pos, true, traces).map(Value::bool)
}

fn all<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let traces = [
        "while evaluating the first argument passed to builtins.all",
        "while evaluating the second argument passed to builtins.all",
        "while evaluating the return value of the function passed to builtins.all",
    ];
    answers(evaluation, arguments, pos, false, traces).map(|refused| Value::bool(!refused))
}

/// Longest list that is made at once; a longer one would exhaust the memory before anything could be said.
const LONGEST: i64 = u32::MAX as i64;

fn gen_list<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let len = evaluation.int(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.genList",
    )?;
    if !(0..=LONGEST).contains(&len) {
        return Err(evaluation.error(pos, format!("cannot create list of size {len}")));
    }
    if len == 0 {
        return Ok(evaluation.empty_list);
    }
    let function = evaluation.function(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.genList",
    )?;
    let heap = evaluation.heap;
    Ok(Value::list(List::new(heap, len as usize, |index| {
        Value::thunk(Thunk::application(heap, function, Value::int(heap, index as i64)))
    })))
}

fn sort<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let list = evaluation.list(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.sort",
    )?;
    if list.is_empty() {
        return Ok(Value::list(list));
    }
    let function = evaluation.function(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.sort",
    )?;
    let mut items: Vec<Value<'h>> = list.iter().collect();
    // The elements are forced first, as in Nix.
    for item in &items {
        evaluation.force_at(*item, pos)?;
    }
    let less = |a: Value<'h>, b: Value<'h>| -> Result<bool> {
        if let crate::heap::View::PrimOp(primop) = function.view()
            && primop.name == "lessThan"
        {
            return evaluation.less(evaluation.force(a)?, evaluation.force(b)?, pos);
        }
        let answer = evaluation.call(function, &[a, b], pos)?;
        let trace = "while evaluating the return value of the sorting function passed to builtins.sort";
        evaluation.bool(answer, pos, trace)
    };
    merge_sort(&mut items, &less)?;
    Ok(make(evaluation, &items))
}

/// A stable sort that may fail and never panics, whatever the order function answers.
fn merge_sort<T: Copy, E>(
    items: &mut [T],
    less: &impl Fn(T, T) -> std::result::Result<bool, E>,
) -> std::result::Result<(), E> {
    const SMALL: usize = 8;
    if items.len() <= SMALL {
        for end in 1..items.len() {
            let mut at = end;
            while at > 0 && less(items[at], items[at - 1])? {
                items.swap(at, at - 1);
                at -= 1;
            }
        }
        return Ok(());
    }
    let middle = items.len() / 2;
    merge_sort(&mut items[..middle], less)?;
    merge_sort(&mut items[middle..], less)?;
    let left = items[..middle].to_vec();
    let (mut from_left, mut from_right, mut to) = (0, middle, 0);
    while from_left < left.len() && from_right < items.len() {
        if less(items[from_right], left[from_left])? {
            items[to] = items[from_right];
            from_right += 1;
        } else {
            items[to] = left[from_left];
            from_left += 1;
        }
        to += 1;
    }
    let rest = left.len() - from_left;
    items[to..to + rest].copy_from_slice(&left[from_left..]);
    Ok(())
}

fn partition<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let function = evaluation.function(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.partition",
    )?;
    let list = evaluation.list(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.partition",
    )?;
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    for item in list.iter() {
        let answer = evaluation.call(function, &[item], pos)?;
        let trace =
            "while evaluating the return value of the partition function passed to builtins.partition";
        match evaluation.bool(answer, pos, trace)? {
            true => right.push(item),
            false => wrong.push(item),
        }
    }
    let mut attrs = AttrsBuilder::with_capacity(2);
    attrs.insert(known::RIGHT, make(evaluation, &right));
    attrs.insert(known::WRONG, make(evaluation, &wrong));
    Ok(Value::attrs(attrs.finish(evaluation.heap)))
}

fn group_by<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let function = evaluation.function(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.groupBy",
    )?;
    let list = evaluation.list(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.groupBy",
    )?;
    let mut groups: rustc_hash::FxHashMap<Symbol, Vec<Value<'h>>> = rustc_hash::FxHashMap::default();
    for item in list.iter() {
        let name = evaluation.call(function, &[item], pos)?;
        let name = evaluation.string_no_context(
            name,
            pos,
            "while evaluating the return value of the grouping function passed to builtins.groupBy",
        )?;
        groups
            .entry(evaluation.symbol(name.bytes()))
            .or_default()
            .push(item);
    }
    let mut attrs = AttrsBuilder::with_capacity(groups.len());
    for (name, items) in groups {
        attrs.insert(name, make(evaluation, &items));
    }
    Ok(Value::attrs(attrs.finish(evaluation.heap)))
}

fn concat_map<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let function = evaluation.function(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.concatMap",
    )?;
    let list = evaluation.list(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.concatMap",
    )?;
    let mut lists = Vec::with_capacity(list.len());
    for item in list.iter() {
        let result = evaluation.call(function, &[item], pos)?;
        lists.push(evaluation.list(
            result,
            position_of(function),
            "while evaluating the return value of the function passed to builtins.concatMap",
        )?);
    }
    Ok(evaluation.concat(&lists))
}

/// Orders values as `<` does; used where a builtin keeps things sorted.
pub(super) fn order<'h>(
    evaluation: &Evaluation<'h>,
    a: Value<'h>,
    b: Value<'h>,
    pos: Pos,
) -> Result<Ordering> {
    evaluation.order(a, b, pos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorting_is_stable_and_survives_senseless_orders() {
        let mut items: Vec<(u32, usize)> = (0..100).map(|index| ((index as u32 * 7) % 10, index)).collect();
        let mut expected = items.clone();
        expected.sort_by_key(|item| item.0);
        merge_sort::<_, ()>(&mut items, &|a, b| Ok(a.0 < b.0)).expect("the order does not fail");
        assert_eq!(items, expected);
        merge_sort::<_, ()>(&mut items, &|_, _| Ok(true)).expect("the order does not fail");
        assert_eq!(items.len(), 100);
        assert_eq!(merge_sort(&mut items, &|_, _| Err("no")), Err("no"));
    }
}
