use super::{accepts, refuses};

#[test]
fn sets() {
    accepts(&[
        ("{ }", "{ }"),
        ("{ a = 1; b = 2; }", "{ a = 1; b = 2; }"),
        ("{ b = 1; a = 2; }", "{ a = 2; b = 1; }"),
        ("rec { a = b; b = 1; }", "rec { a = b; b = 1; }"),
        ("rec { }", "rec { }"),
        (
            "{ \"a b\" = 1; \"c\" = 2; or = 3; \"if\" = 4; }",
            "{ \"a b\" = 1; c = 2; \"if\" = 4; or = 3; }",
        ),
        ("{ \"\" = 1; }", "{ \"\" = 1; }"),
        ("{ a = x: x; }", "{ a = (x: x); }"),
    ]);
    refuses(&[
        ("{ a = 1 }", "1:9: syntax error, unexpected '}', expecting ';'"),
        (
            "{ a; }",
            "1:4: syntax error, unexpected ';', expecting '.' or '='",
        ),
        (
            "{ 1 = 2; }",
            "1:3: syntax error, unexpected integer, expecting an attribute name, 'inherit' or '}'",
        ),
        (
            "{ a = 1; ",
            "1:10: syntax error, unexpected end of file, expecting an attribute name, 'inherit' or '}'",
        ),
        (
            "{ a.b.1 = 2; }",
            "1:6: syntax error, unexpected floating-point literal, expecting '.' or '='",
        ),
        ("rec a", "1:5: syntax error, unexpected identifier, expecting '{'"),
        ("{ a = ; }", "1:7: syntax error, unexpected ';'"),
    ]);
}

#[test]
fn attribute_paths_become_sets() {
    accepts(&[
        ("{ a.b.c = 1; }", "{ a = { b = { c = 1; }; }; }"),
        ("{ a.b = 1; a.c = 2; }", "{ a = { b = 1; c = 2; }; }"),
        (
            "{ a.b = 1; c = 2; a.d.e = 3; a.d.f = 4; }",
            "{ a = { b = 1; d = { e = 3; f = 4; }; }; c = 2; }",
        ),
        ("{ \"a\".b = 1; ${\"a\"}.c = 2; }", "{ a = { b = 1; c = 2; }; }"),
        ("rec { a.b = 1; }", "rec { a = { b = 1; }; }"),
        ("let a.b = 1; a.c = 2; in a", "(let a = { b = 1; c = 2; }; in a)"),
    ]);
}

#[test]
fn parts_of_a_set_are_merged() {
    accepts(&[
        ("{ a.b = 1; a = { c = 2; }; }", "{ a = { b = 1; c = 2; }; }"),
        ("{ a = { c = 2; }; a.b = 1; }", "{ a = { b = 1; c = 2; }; }"),
        (
            "{ a = { b = 1; }; a = { c = 2; }; }",
            "{ a = { b = 1; c = 2; }; }",
        ),
        (
            "{ a.b.c = 1; a = { b = { d = 2; }; }; }",
            "{ a = { b = { c = 1; d = 2; }; }; }",
        ),
        (
            "{ a = { b.c = 1; }; a = { b.d = 2; }; a.b.e = 3; }",
            "{ a = { b = { c = 1; d = 2; e = 3; }; }; }",
        ),
        ("{ a = { }; a = { }; a.b = 1; }", "{ a = { b = 1; }; }"),
        (
            "{ a = { ${b} = 1; }; a = { ${c} = 2; d = 3; }; }",
            "{ a = { d = 3; \"${b}\" = 1; \"${c}\" = 2; }; }",
        ),
        ("{ a = ({ b = 1; }); a.c = 2; }", "{ a = { b = 1; c = 2; }; }"),
        (
            "{ a = { inherit (x) b; }; a = { inherit (y) c; inherit d; }; a = { inherit (z) e; }; }",
            "{ a = { inherit d; inherit (x) b; inherit (y) c; inherit (z) e; }; }",
        ),
        // The first part alone decides whether the whole is recursive.
        (
            "{ a = rec { b = 1; }; a = { c = b; }; }",
            "{ a = rec { b = 1; c = b; }; }",
        ),
        (
            "{ a = { b = 1; }; a = rec { c = b; }; }",
            "{ a = { b = 1; c = b; }; }",
        ),
    ]);
}

#[test]
fn what_is_no_set_is_defined_once() {
    refuses(&[
        (
            "{ a = 1; a = 2; }",
            "1:10: attribute 'a' already defined at «string»:1:3",
        ),
        (
            "{ a = 1;\n a.b = 2; }",
            "2:2: attribute 'a' already defined at «string»:1:3",
        ),
        (
            "{ a.b = 1; a.b = 2; }",
            "1:12: attribute 'a.b' already defined at «string»:1:3",
        ),
        (
            "{ a.b = 1; a.b.c = 2; }",
            "1:12: attribute 'a.b' already defined at «string»:1:3",
        ),
        (
            "{ a.b = 1; a = 2; }",
            "1:12: attribute 'a' already defined at «string»:1:3",
        ),
        (
            "{ a.b = 1; a = { b = 2; }; }",
            "1:18: attribute 'a.b' already defined at «string»:1:3",
        ),
        (
            "{ a.\"b c\" = 1; a.\"b c\" = 2; }",
            "1:16: attribute 'a.\"b c\"' already defined at «string»:1:3",
        ),
        (
            "{ a = { }; a = b; }",
            "1:12: attribute 'a' already defined at «string»:1:3",
        ),
        (
            "{ a = b; a = { }; }",
            "1:10: attribute 'a' already defined at «string»:1:3",
        ),
        (
            "{ inherit a; a = 1; }",
            "1:14: attribute 'a' already defined at «string»:1:11",
        ),
        (
            "{ inherit a; a.b = 1; }",
            "1:14: attribute 'a' already defined at «string»:1:11",
        ),
        (
            "{ inherit (a) b; b = { }; }",
            "1:18: attribute 'b' already defined at «string»:1:15",
        ),
        (
            "{ a = 1; inherit a; }",
            "1:18: attribute 'a' already defined at «string»:1:3",
        ),
        (
            "{ inherit a a; }",
            "1:13: attribute 'a' already defined at «string»:1:11",
        ),
        (
            "{ inherit (a) b; inherit (c) b; }",
            "1:30: attribute 'b' already defined at «string»:1:15",
        ),
        (
            "{ a = { inherit b; }; a = { inherit b; }; }",
            "1:37: attribute 'a.b' already defined at «string»:1:17",
        ),
        (
            "let a = 1; a = 2; in a",
            "1:12: attribute 'a' already defined at «string»:1:5",
        ),
    ]);
}

#[test]
fn large_sets_find_their_duplicates_too() {
    let many = |extra: &str| {
        let attrs: String = (0..100).map(|n| format!("a{n}.x = {n}; ")).collect();
        format!("{{ {attrs}{extra} }}")
    };
    let merged = super::outcome(many("a99.y = 1; a3.y = 2;").as_bytes()).unwrap();
    assert!(
        merged.contains("a99 = { x = 99; y = 1; };") && merged.contains("a3 = { x = 3; y = 2; };"),
        "{merged}"
    );
    for name in ["a0", "a16", "a17", "a99"] {
        let error = super::outcome(many(&format!("{name} = 1;")).as_bytes()).unwrap_err();
        assert!(
            error.contains(&format!("attribute '{name}' already defined")),
            "{error}"
        );
    }
}

#[test]
fn inherit() {
    accepts(&[
        ("{ inherit; }", "{ }"),
        ("{ inherit (a); }", "{ }"),
        ("{ inherit a b; }", "{ inherit a b; }"),
        (
            "{ inherit (x.y) b a; inherit c; }",
            "{ inherit c; inherit ((x).y) a b; }",
        ),
        (
            "{ inherit (x) a; inherit (x) b; }",
            "{ inherit (x) a; inherit (x) b; }",
        ),
        ("{ inherit \"a b\" or ${\"c\"}; }", "{ inherit \"a b\" c or; }"),
        ("rec { inherit a; }", "rec { inherit a; }"),
        ("let inherit (a) b; in b", "(let inherit (a) b; in b)"),
    ]);
    refuses(&[
        (
            "{ inherit ${a}; }",
            "1:11: dynamic attributes not allowed in inherit",
        ),
        (
            "{ inherit \"${a}\"; }",
            "1:11: dynamic attributes not allowed in inherit",
        ),
        (
            "{ inherit a.b; }",
            "1:12: syntax error, unexpected '.', expecting an attribute name or ';'",
        ),
        (
            "{ inherit a, b; }",
            "1:12: syntax error, unexpected ',', expecting an attribute name or ';'",
        ),
        (
            "{ inherit (a b; }",
            "1:15: syntax error, unexpected ';', expecting ')'",
        ),
        (
            "{ inherit http://x; }",
            "1:11: syntax error, unexpected URI, expecting an attribute name or ';'",
        ),
    ]);
}

#[test]
fn dynamic_attributes() {
    accepts(&[
        ("{ ${a} = 1; }", "{ \"${a}\" = 1; }"),
        ("{ \"a${b}\" = 1; }", "{ \"${(\"a\" + b)}\" = 1; }"),
        (
            "{ ${a}.b = 1; ${a}.c = 2; }",
            "{ \"${a}\" = { b = 1; }; \"${a}\" = { c = 2; }; }",
        ),
        (
            "{ a.${b}.c = 1; a.d = 2; }",
            "{ a = { d = 2; \"${b}\" = { c = 1; }; }; }",
        ),
        ("rec { ${a} = 1; b = 2; }", "rec { b = 2; \"${a}\" = 1; }"),
        ("let a.${b} = 1; in a", "(let a = { \"${b}\" = 1; }; in a)"),
        (
            "let { ${a} = 1; body = 2; }",
            "(rec { body = 2; \"${a}\" = 1; }).body",
        ),
    ]);
    refuses(&[
        (
            " let ${a} = 1; in a",
            "1:2: dynamic attributes not allowed in let",
        ),
        (
            "let \"${a}\".b = 1; in a",
            "1:1: dynamic attributes not allowed in let",
        ),
    ]);
}

#[test]
fn let_expressions() {
    accepts(&[
        ("let in 1", "(let in 1)"),
        ("let a = 1; in a", "(let a = 1; in a)"),
        (
            "let a = 1; in let b = a; in b",
            "(let a = 1; in (let b = a; in b))",
        ),
        ("let { a = 1; body = a; }", "(rec { a = 1; body = a; }).body"),
        ("let { body = f; } x", "((rec { body = f; }).body x)"),
        ("f let { body = 1; }", "(f (rec { body = 1; }).body)"),
    ]);
    refuses(&[
        (
            "let a = 1; a",
            "1:13: syntax error, unexpected end of file, expecting '.' or '='",
        ),
        (
            "let a = 1; }",
            "1:12: syntax error, unexpected '}', expecting an attribute name, 'inherit' or 'in'",
        ),
        ("let a = 1; in", "1:14: syntax error, unexpected end of file"),
    ]);
}
