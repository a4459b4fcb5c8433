use std::thread;

use super::outcome;
use crate::syntax::limits::MAX_DEPTH;

/// Runs on a stack that holds `MAX_DEPTH` levels of a build without optimisation.
fn on_big_stack<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    thread::Builder::new()
        .stack_size(64 << 20)
        .spawn(run)
        .unwrap()
        .join()
        .unwrap()
}

fn nested(open: &str, middle: &str, close: &str, levels: usize) -> String {
    format!("{}{middle}{}", open.repeat(levels), close.repeat(levels))
}

#[test]
fn what_nests_too_deeply_is_an_error() {
    on_big_stack(|| {
        for (open, middle, close) in [
            ("(", "1", ")"),
            ("[", "1", "]"),
            ("{ a = ", "1", "; }"),
            ("rec { a = ", "1", "; }"),
            ("f { a = ", "1", "; }"),
            ("{ inherit (", "a", ") b; }"),
            ("{ ${", "a", "} = 1; }"),
            ("let a = ", "1", "; in a"),
            ("let in ", "1", ""),
            ("let { body = ", "1", "; }"),
            ("x: ", "x", ""),
            ("{ x ? ", "1", " }: x"),
            ("x@{ }: ", "1", ""),
            ("if ", "a", " then b else c"),
            ("if a then b else ", "c", ""),
            ("with a; ", "b", ""),
            ("with ", "b", "; a"),
            ("assert a; ", "b", ""),
            ("\"${", "a", "}\""),
            ("''${", "a", "}''"),
            ("./a${", "b", "}"),
            ("!", "a", ""),
            ("-", " a", ""),
            ("a.${", "b", "}"),
            ("a.b or ", "c", ""),
            ("(", "a", ").b"),
            ("(", "a", ") b"),
            ("(", "a", ") ? b"),
            ("(", "a", " + b)"),
            ("f (", "a", ")"),
            ("(1 -> 1 || 1 && 1 == 1 < 1 // 1 + 1 * 1 ++ ", "1", ")"),
            ("(", "1", " ? a ++ 1 * 1 + 1 // 1 < 1 == 1 && 1 || 1 -> 1)"),
        ] {
            let error = outcome(nested(open, middle, close, 5_000).as_bytes()).unwrap_err();
            assert!(
                error.ends_with("is nested too deeply; the limit is 1000 levels"),
                "{open}: {error}"
            );
            let shallow = nested(open, middle, close, 40);
            assert!(outcome(shallow.as_bytes()).is_ok(), "{open}");
        }
    });
}

#[test]
fn long_attribute_paths_are_nested_sets() {
    on_big_stack(|| {
        let path = |names: usize| format!("{{ {}a = 1; }}", "a.".repeat(names - 1));
        let error = outcome(path(100_000).as_bytes()).unwrap_err();
        assert!(
            error.ends_with("is nested too deeply; the limit is 1000 levels"),
            "{error}"
        );
        assert!(outcome(path(MAX_DEPTH as usize / 2).as_bytes()).is_ok());
    });
}

#[test]
fn what_is_long_but_flat_has_no_limit() {
    let joined = |term: &str, by: &str| vec![term; 30_000].join(by);
    for text in [
        joined("1", " + "),
        joined("f a.b (c d)", " - "),
        joined("[ a ]", " ++ "),
        joined("{ a = b.c; }", " // "),
        joined("a.b ? c", " && "),
        joined("!a", " || "),
        joined("a", " -> "),
        joined("1 * 2", " + "),
        format!("[ {} ]", joined("a.b (f x) { c = (1); }", " ")),
        format!("f {}", joined("a.b (g x)", " ")),
        format!("\"{}\"", joined("${a.b}", " ")),
        format!("''{}''", joined("${a.b}", "\n")),
        format!("./{}", joined("${a.b}", "/")),
        format!("a.{}", joined("${b}", ".")),
        format!(
            "{{ {} }}",
            (0..20_000)
                .map(|n| format!("a{n} = (f x).y; "))
                .collect::<String>()
        ),
        format!(
            "{{ {} }}",
            (0..20_000)
                .map(|n| format!("a.b{n} = (f x).y; "))
                .collect::<String>()
        ),
        format!(
            "{{ {} }}: 1",
            (0..10_000)
                .map(|n| format!("a{n} ? (f x).y, "))
                .collect::<String>()
        ),
    ] {
        assert!(outcome(text.as_bytes()).is_ok(), "{}", &text[..40]);
    }
}
