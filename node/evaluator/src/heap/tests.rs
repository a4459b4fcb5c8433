//! The heap by itself; these run under Miri.

use super::{
    Attr, Attrs, AttrsBuilder, Context, ContextElement, Env, Heap, List, State, Str, Thunk, Value, View,
};
use crate::code::Expr;
use crate::syntax::position::Pos;
use crate::syntax::symbol::Symbol;

fn symbol(number: u32) -> Symbol {
    Symbol::from_u32(number).expect("not zero")
}

fn set<'h>(heap: &'h Heap, attrs: &[(u32, i32)]) -> Attrs<'h> {
    let mut builder = AttrsBuilder::with_capacity(attrs.len());
    for (name, value) in attrs {
        builder.insert(symbol(*name), Value::small_int(*value));
    }
    builder.finish(heap)
}

fn contents(attrs: Attrs<'_>) -> Vec<(u32, i64)> {
    attrs
        .iter()
        .map(|attr| (attr.name.to_u32(), attr.value().as_int().expect("an integer")))
        .collect()
}

#[test]
fn values_and_thunks_are_small() {
    assert_eq!(size_of::<Value<'_>>(), 8);
    assert_eq!(size_of::<Option<Value<'_>>>(), 8);
    assert_eq!(size_of::<crate::error::Result<Value<'_>>>(), 16);
    assert_eq!(size_of::<Attr<'_>>(), 16);
}

#[test]
fn integers_of_all_sizes_come_back() {
    let heap = Heap::new();
    for int in [
        0,
        1,
        -1,
        i64::MAX,
        i64::MIN,
        1 << 60,
        -(1 << 60),
        (1 << 60) - 1,
        i64::from(i32::MIN),
    ] {
        assert_eq!(Value::int(&heap, int).as_int(), Some(int));
        assert!(matches!(Value::int(&heap, int).view(), View::Int(found) if found == int));
    }
}

#[test]
fn strings_keep_bytes_and_context() {
    let heap = Heap::new();
    for len in 0..40 {
        let bytes: Vec<u8> = (0..len).collect();
        let text = Str::new(&heap, &bytes);
        assert_eq!(text.bytes(), bytes);
        assert!(text.context().is_none());
        let (left, right) = bytes.split_at(bytes.len() / 2);
        assert_eq!(
            Str::concat(&heap, &[left, b"", right], None).unwrap().bytes(),
            bytes
        );
    }
    let path = "/nix/store/00000000000000000000000000000000-a"
        .parse()
        .expect("a store path");
    let element = heap.alloc(ContextElement::Opaque(heap.keep_path(path)));
    let context = Context::new(&heap, &[element]);
    let text = Value::str(Str::with_context(&heap, b"a", context))
        .as_str()
        .expect("a string");
    assert_eq!(text.context().map(|context| context.elements().len()), Some(1));
}

#[test]
fn lists_and_large_objects_span_chunks() {
    let heap = Heap::new();
    let list = List::new(&heap, 100_000, |index| Value::int(&heap, index as i64));
    let value = Value::list(list).as_list().expect("a list");
    assert_eq!(value.len(), 100_000);
    assert_eq!(value.iter().next_back().and_then(Value::as_int), Some(99_999));
    assert!(value.get(100_000).is_none());
}

#[test]
fn updates_in_layers_look_like_copies() {
    let heap = Heap::new();
    let mut layered = set(
        &heap,
        &(0..30)
            .map(|name| (name * 2 + 1, name as i32))
            .collect::<Vec<_>>(),
    );
    let mut plain: std::collections::BTreeMap<u32, i64> = contents(layered).into_iter().collect();
    for round in 0..20u32 {
        let over: Vec<(u32, i32)> = (0..3)
            .map(|at| ((round * 7 + at * 5) % 70 + 1, (round * 100 + at) as i32))
            .collect();
        layered = layered.update(&heap, set(&heap, &over));
        // Of equal names in `over` the first counts.
        for (name, value) in over.iter().rev() {
            plain.insert(*name, i64::from(*value));
        }
        assert_eq!(contents(layered), plain.clone().into_iter().collect::<Vec<_>>());
        assert_eq!(layered.len(), plain.len());
        for name in 1..80 {
            let found = layered.get(symbol(name)).and_then(|attr| attr.value().as_int());
            assert_eq!(found, plain.get(&name).copied());
        }
    }
}

#[test]
fn thunks_are_overwritten_and_restored() {
    let heap = Heap::new();
    let env = Env::new(&heap, None, 1);
    env.slot(0).set(Value::TRUE);
    let code = heap.alloc(Expr::Local {
        slot: 0,
        pos: Pos::NONE,
    });
    let thunk = Value::thunk(Thunk::suspended(&heap, code, env))
        .as_thunk()
        .expect("a thunk");
    assert!(matches!(thunk.state(), State::Suspended(found, _) if std::ptr::eq(found, code)));
    let saved = thunk.begin(7);
    assert!(matches!(thunk.state(), State::Forced(7)));
    thunk.restore(saved);
    let State::Suspended(_, env) = thunk.state() else {
        panic!("not restored")
    };
    assert_eq!(env.slot(0).get().as_bool(), Some(true));
    thunk.finish(Value::NULL);
    assert!(
        thunk
            .result()
            .is_some_and(|value| matches!(value.view(), View::Null))
    );
    let call = Thunk::application2(&heap, Value::NULL, [Value::TRUE, Value::FALSE]);
    let State::Apply(call) = call.state() else {
        panic!("not an application")
    };
    assert_eq!((call.count, call.arguments[1].as_bool()), (2, Some(false)));
}
