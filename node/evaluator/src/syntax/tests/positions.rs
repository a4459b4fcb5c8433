//! Which positions the tree carries, as `offset` of the text.

use bumpalo::Bump;

use crate::syntax::ast::{AttrValue, Expr, Param};
use crate::syntax::{Pos, Source, SymbolTable, parse};

/// Runs a check on the tree of a text whose first byte has position 1.
fn with_tree(text: &str, check: impl FnOnce(Expr<'_>)) {
    let arena = Bump::new();
    let source = Source {
        text: text.as_bytes(),
        start: Pos::from_u32(1),
        base_dir: b"/",
        home: None,
    };
    check(parse(&arena, &source, &mut SymbolTable::new()).unwrap());
}

fn offset(pos: Pos) -> Option<u32> {
    pos.to_u32().checked_sub(1)
}

#[test]
fn expressions_know_where_they_begin() {
    for (text, at) in [
        (" 1", 1),
        (" a", 1),
        (" \"a\"", 1),
        (" \"${a}\"", 1),
        (" ''${a}''", 1),
        (" ./a", 1),
        (" ./${a}", 1),
        (" <a>", 1),
        (" [ ]", 1),
        (" { }", 1),
        (" { a = 1; }", 1),
        (" rec { }", 1),
        (" let in 1", 1),
        (" with a; b", 1),
        (" assert a; b", 1),
        (" if a then b else c", 1),
        (" x: x", 1),
        (" { x }: x", 1),
        (" a@{ x }: x", 1),
        (" f x", 1),
        (" (f) x", 1),
        (" a.b", 1),
        (" (a).b", 1),
        (" let { body = 1; }", 1),
        (" __curPos", 1),
        (" !a", 1),
        (" -a", 1),
        // Operators between operands are where they stand.
        (" a + b", 3),
        (" a + b + c", 3),
        (" a ? b", 3),
        (" a == b", 3),
    ] {
        with_tree(text, |expr| assert_eq!(offset(expr.pos()), Some(at), "{text}"));
    }
}

#[test]
fn attributes_know_where_their_path_begins() {
    let text = "{ a = 1; b.c.d = 2; inherit e; inherit (x) f; \"g\" = 3; ${h} = 4; b.i = 5; }";
    with_tree(text, |expr| {
        let Expr::Attrs(set) = expr else {
            panic!("{expr:?}")
        };
        let at: Vec<_> = set.attrs.iter().map(|attr| offset(attr.pos).unwrap()).collect();
        assert_eq!(at, [2, 9, 28, 43, 46]);
        assert_eq!(offset(set.dynamic[0].pos), Some(55));
        let AttrValue::Plain(Expr::Attrs(nested)) = set.attrs[1].value else {
            panic!()
        };
        assert_eq!(offset(nested.pos), None);
        let at: Vec<_> = nested
            .attrs
            .iter()
            .map(|attr| offset(attr.pos).unwrap())
            .collect();
        assert_eq!(at, [9, 65]);
    });
}

#[test]
fn formals_know_where_they_stand() {
    with_tree("{ a, b ? 1 }: a", |expr| {
        let Expr::Lambda { inner, .. } = expr else {
            panic!("{expr:?}")
        };
        let Param::Formals { formals, .. } = inner.param else {
            panic!()
        };
        let at: Vec<_> = formals.iter().map(|formal| offset(formal.pos).unwrap()).collect();
        assert_eq!(at, [2, 5]);
    });
}

#[test]
fn links_of_a_chain_know_their_operators() {
    with_tree("a + b - c + d", |expr| {
        let Expr::Chain { inner, .. } = expr else {
            panic!("{expr:?}")
        };
        let at: Vec<_> = inner.rest.iter().map(|link| offset(link.pos).unwrap()).collect();
        assert_eq!(at, [2, 6, 10]);
    });
}

#[test]
fn parts_of_strings_know_where_they_stand() {
    with_tree("\"ab${c}\\n${d}\"", |expr| {
        let Expr::Interpolated { parts, .. } = expr else {
            panic!("{expr:?}")
        };
        let at: Vec<_> = parts.iter().map(|part| offset(part.pos()).unwrap()).collect();
        assert_eq!(at, [1, 5, 7, 11]);
    });
}
