use super::{accepts, refuses};

#[test]
fn functions_of_a_name() {
    accepts(&[
        ("x: x", "(x: x)"),
        ("x: y: x y", "(x: (y: (x y)))"),
        ("x : x", "(x: x)"),
        ("(x: x) 1", "((x: x) 1)"),
    ]);
    refuses(&[
        ("x:", "1:3: syntax error, unexpected end of file"),
        ("or: 1", "1:1: syntax error, unexpected 'or'"),
    ]);
}

#[test]
fn functions_of_a_set() {
    accepts(&[
        ("{ }: 1", "({  }: 1)"),
        ("{ ... }: 1", "({ ... }: 1)"),
        ("{ a }: a", "({ a }: a)"),
        ("{ a, }: a", "({ a }: a)"),
        ("{ b, a }: a", "({ a, b }: a)"),
        ("{ a, ... }: a", "({ a, ... }: a)"),
        ("{ a ? 1 }: a", "({ a ? 1 }: a)"),
        (
            "{ a ? x: x, b ? { c = 1; }, ... }: a",
            "({ a ? (x: x), b ? { c = 1; }, ... }: a)",
        ),
        ("{a}: {b}: a", "({ a }: ({ b }: a))"),
    ]);
    refuses(&[
        (
            "{ a b }: a",
            "1:5: syntax error, unexpected identifier, expecting '.' or '='",
        ),
        (
            "{ a, b c }: a",
            "1:8: syntax error, unexpected identifier, expecting '}', ',' or '?'",
        ),
        (
            "{ a ? 1; }: a",
            "1:8: syntax error, unexpected ';', expecting '}' or ','",
        ),
        (
            "{ ..., a }: a",
            "1:6: syntax error, unexpected ',', expecting '}'",
        ),
        (
            "{ a, ..., }: a",
            "1:9: syntax error, unexpected ',', expecting '}'",
        ),
        (
            "{ a, , b }: a",
            "1:6: syntax error, unexpected ',', expecting identifier, '...' or '}'",
        ),
        (
            "{ , }: a",
            "1:3: syntax error, unexpected ',', expecting an attribute name, 'inherit' or '}'",
        ),
        (
            "{ a }",
            "1:6: syntax error, unexpected end of file, expecting '@' or ':'",
        ),
        (
            "f { a }",
            "1:7: syntax error, unexpected '}', expecting '.' or '='",
        ),
        (
            "{ or }: a",
            "1:6: syntax error, unexpected '}', expecting '.' or '='",
        ),
        (
            "{ \"a\" }: a",
            "1:7: syntax error, unexpected '}', expecting '.' or '='",
        ),
    ]);
}

#[test]
fn names_for_the_whole_set() {
    accepts(&[
        ("{ a, ... }@args: a", "({ a, ... } @ args: a)"),
        ("args@{ a }: a", "({ a } @ args: a)"),
        ("args @ { }: 1", "({  } @ args: 1)"),
        ("{ } @ args: 1", "({  } @ args: 1)"),
        ("args@{ a ? args }: a", "({ a ? args } @ args: a)"),
    ]);
    refuses(&[
        (
            "args@ x : a",
            "1:7: syntax error, unexpected identifier, expecting '{'",
        ),
        (
            "{ a }@{ b }: a",
            "1:7: syntax error, unexpected '{', expecting identifier",
        ),
        ("a@{ b }@c: a", "1:8: syntax error, unexpected '@', expecting ':'"),
        ("{ b }@c@d: a", "1:8: syntax error, unexpected '@', expecting ':'"),
    ]);
}

#[test]
fn formals_are_unique() {
    refuses(&[
        ("{ a, b, a }: a", "1:9: duplicate formal function argument 'a'"),
        (" { a, b }@a: a", "1:2: duplicate formal function argument 'a'"),
        ("a@{ b, a }: a", "1:1: duplicate formal function argument 'a'"),
    ]);
    let many: String = (0..40).map(|n| format!("a{n}, ")).collect();
    let error = super::outcome(format!("{{ {many}a39 }}: 1").as_bytes()).unwrap_err();
    assert!(
        error.ends_with("duplicate formal function argument 'a39'"),
        "{error}"
    );
    assert!(super::outcome(format!("{{ {many}a40 }}: 1").as_bytes()).is_ok());
}

#[test]
fn branches_assertions_and_scopes() {
    accepts(&[
        ("if a then b else c", "(if a then b else c)"),
        (
            "if a then b else if c then d else e",
            "(if a then b else (if c then d else e))",
        ),
        (
            "if if a then b else c then d else e",
            "(if (if a then b else c) then d else e)",
        ),
        ("assert a; b", "assert a; b"),
        ("assert a; assert b; c", "assert a; assert b; c"),
        ("with a; b", "(with a; b)"),
        ("with a; with b; c", "(with a; (with b; c))"),
        ("with x: x; a", "(with (x: x); a)"),
        ("x: with x; y: y", "(x: (with x; (y: y)))"),
        ("(with a; b) + c", "((with a; b) + c)"),
        ("with a; b + c", "(with a; (b + c))"),
    ]);
    refuses(&[
        (
            "if a then b",
            "1:12: syntax error, unexpected end of file, expecting 'else'",
        ),
        (
            "if a else b",
            "1:6: syntax error, unexpected 'else', expecting 'then'",
        ),
        (
            "assert a",
            "1:9: syntax error, unexpected end of file, expecting ';'",
        ),
        (
            "with a b",
            "1:9: syntax error, unexpected end of file, expecting ';'",
        ),
        ("with; a", "1:5: syntax error, unexpected ';'"),
    ]);
}
