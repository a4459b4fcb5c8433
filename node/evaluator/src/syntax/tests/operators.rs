use super::{accepts, refuses};

#[test]
fn every_operator() {
    accepts(&[
        ("a -> b", "(a -> b)"),
        ("a || b", "(a || b)"),
        ("a && b", "(a && b)"),
        ("a == b", "(a == b)"),
        ("a != b", "(a != b)"),
        ("a < b", "(__lessThan a b)"),
        ("a <= b", "(! (__lessThan b a))"),
        ("a > b", "(__lessThan b a)"),
        ("a >= b", "(! (__lessThan a b))"),
        ("a // b", "(a // b)"),
        ("a + b", "(a + b)"),
        ("a - b", "(__sub a b)"),
        ("a * b", "(__mul a b)"),
        ("a / b", "(__div a b)"),
        ("a ++ b", "(a ++ b)"),
        ("a ? b", "((a) ? b)"),
        ("!a", "(! a)"),
        ("-a", "(__sub 0 a)"),
    ]);
}

/// From tightest to weakest; each operator takes the ones before it as operands, on both sides.
#[test]
fn precedence() {
    accepts(&[
        ("-f a", "(__sub 0 (f a))"),
        ("-a.b", "(__sub 0 (a).b)"),
        ("-a ? b", "(((__sub 0 a)) ? b)"),
        ("a ? b ++ c ? d", "(((a) ? b) ++ ((c) ? d))"),
        ("a ++ b * c ++ d", "(__mul (a ++ b) (c ++ d))"),
        ("a * b + c * d", "((__mul a b) + (__mul c d))"),
        ("!a + b", "(! (a + b))"),
        ("!a // b", "((! a) // b)"),
        ("!a ? b", "(! ((a) ? b))"),
        ("a + b // c + d", "((a + b) // (c + d))"),
        ("a // b < c // d", "(__lessThan (a // b) (c // d))"),
        ("a < b == c < d", "((__lessThan a b) == (__lessThan c d))"),
        ("a == b && c == d", "((a == b) && (c == d))"),
        ("a && b || c && d", "((a && b) || (c && d))"),
        ("a || b -> c || d", "((a || b) -> (c || d))"),
        (
            "a -> b || c && d == e < f // g + h * i ++ j ? k",
            "(a -> (b || (c && (d == (__lessThan e (f // (g + (__mul h (i ++ ((j) ? k))))))))))",
        ),
        (
            "a ? b ++ c * d + e // f < g == h && i || j -> k",
            "(((((__lessThan (((__mul (((a) ? b) ++ c) d) + e) // f) g) == h) && i) || j) -> k)",
        ),
    ]);
}

#[test]
fn prefix_operators_as_right_operands_reach_as_far_as_they_can() {
    accepts(&[
        ("a + !b + c", "(a + (! (b + c)))"),
        ("a + !b // c", "((a + (! b)) // c)"),
        ("a * -b * c", "(__mul (__mul a (__sub 0 b)) c)"),
        ("a - -b", "(__sub a (__sub 0 b))"),
        ("- -a", "(__sub 0 (__sub 0 a))"),
        ("!!a", "(! (! a))"),
        ("-!a + b", "(__sub 0 (! (a + b)))"),
        ("a && !b && c", "((a && (! b)) && c)"),
    ]);
}

#[test]
fn associativity() {
    accepts(&[
        ("a + b + c", "((a + b) + c)"),
        ("a - b + c - d", "(__sub ((__sub a b) + c) d)"),
        ("a * b / c", "(__div (__mul a b) c)"),
        ("a ++ b ++ c ++ d", "(a ++ (b ++ (c ++ d)))"),
        ("a // b // c", "(a // (b // c))"),
        ("a -> b -> c", "(a -> (b -> c))"),
        ("a && b && c", "((a && b) && c)"),
        ("a || b || c", "((a || b) || c)"),
        ("a + b * c + d", "((a + (__mul b c)) + d)"),
        ("a ++ b * c ++ d ++ e", "(__mul (a ++ b) (c ++ (d ++ e)))"),
    ]);
    refuses(&[
        (
            "a == b == c",
            "1:8: syntax error, unexpected '==', expecting parentheses around one of the two comparisons",
        ),
        (
            "a == b != c",
            "1:8: syntax error, unexpected '!=', expecting parentheses around one of the two comparisons",
        ),
        (
            "a < b >= c",
            "1:7: syntax error, unexpected '>=', expecting parentheses around one of the two comparisons",
        ),
        (
            "a == !b == c",
            "1:9: syntax error, unexpected '==', expecting parentheses around one of the two comparisons",
        ),
    ]);
}

#[test]
fn attribute_paths_behind_a_question_mark() {
    accepts(&[
        ("a ? b.c", "((a) ? b.c)"),
        ("a ? \"b c\".${d}", "((a) ? \"b c\".\"${d}\")"),
        ("a.b ? c", "(((a).b) ? c)"),
        ("f a ? b", "(((f a)) ? b)"),
        ("a ? or", "((a) ? or)"),
        ("(a ? b) ? c", "((((a) ? b)) ? c)"),
        // `?` is declared not associative in stock Nix, which has no effect: its right operand is no expression.
        ("a ? b ? c", "((((a) ? b)) ? c)"),
    ]);
    refuses(&[
        (
            "a ? (b)",
            "1:5: syntax error, unexpected '(', expecting identifier or 'or' or '${' or '\"'",
        ),
        (
            "a ? 1",
            "1:5: syntax error, unexpected integer, expecting identifier or 'or' or '${' or '\"'",
        ),
    ]);
}

#[test]
fn application_and_selection() {
    accepts(&[
        ("f a b", "(f a b)"),
        ("(f a) b", "(f a b)"),
        ("f (a b)", "(f (a b))"),
        ("f a.b c", "(f (a).b c)"),
        ("f { } [ ]", "(f { } [ ])"),
        ("a.b.c", "(a).b.c"),
        ("(a.b).c", "((a).b).c"),
        ("a.\"b\".\"c d\".${\"e\"}.${''f''}", "(a).b.\"c d\".e.f"),
        (
            "a.${b}.\"${c}\".\"d${e}\"",
            "(a).\"${b}\".\"${(c)}\".\"${(\"d\" + e)}\"",
        ),
        ("{ a = 1; }.a", "({ a = 1; }).a"),
        ("\"x\".y", "(\"x\").y"),
        ("a.b or c", "(a).b or (c)"),
        ("a.b or c.d or e", "(a).b or ((c).d or (e))"),
        ("a.b or f x", "((a).b or (f) x)"),
        ("f a.b or c d", "(f (a).b or (c) d)"),
        ("a.or or b", "(a).or or (b)"),
    ]);
    refuses(&[
        ("a.b or", "1:7: syntax error, unexpected end of file"),
        (
            "a.",
            "1:3: syntax error, unexpected end of file, expecting identifier or 'or' or '${' or '\"'",
        ),
    ]);
    // `.1` is a number.
    accepts(&[("a.1", "(a 0.1)")]);
}

/// Nixpkgs once had a function of that name, so `or` behind an operand is an argument called `or`.
#[test]
fn or_as_an_argument() {
    accepts(&[
        ("f or", "(f or)"),
        ("f or a", "(f or a)"),
        ("f a or b", "(f (a or) b)"),
        ("[ f or a ]", "[ ((f or)) (a) ]"),
        ("(f a) or", "(f a or)"),
    ]);
    refuses(&[
        ("or", "1:1: syntax error, unexpected 'or'"),
        ("or a", "1:1: syntax error, unexpected 'or'"),
    ]);
}

#[test]
fn what_is_desugared_to_a_call_takes_more_arguments() {
    accepts(&[
        ("(a - b) c", "(__sub a b c)"),
        ("(-a) b", "(__sub 0 a b)"),
        ("<a> b", "(__findFile __nixPath \"a\" b)"),
        ("(a < b) c", "(__lessThan a b c)"),
        ("(a <= b) c", "((! (__lessThan b a)) c)"),
        ("(a + b - c) d", "(__sub (a + b) c d)"),
        ("(a - b + c) d", "(((__sub a b) + c) d)"),
    ]);
}

#[test]
fn functions_and_branches_are_no_operands() {
    refuses(&[
        (
            "a + x: x",
            "1:6: syntax error, unexpected ':', expecting end of file",
        ),
        ("a + if b then c else d", "1:5: syntax error, unexpected 'if'"),
        (
            "f if b then c else d",
            "1:3: syntax error, unexpected 'if', expecting end of file",
        ),
        ("a && assert b; c", "1:6: syntax error, unexpected 'assert'"),
        (
            "a ++ let b = 1; in b",
            "1:10: syntax error, unexpected identifier, expecting '{' (put a 'let … in …' in parentheses here)",
        ),
        ("!with a; b", "1:2: syntax error, unexpected 'with'"),
    ]);
    accepts(&[
        ("a + (x: x)", "(a + (x: x))"),
        ("if a then b else c + d", "(if a then b else (c + d))"),
    ]);
}

#[test]
fn pipe_operators_are_refused_by_name() {
    refuses(&[
        (
            "a |> b",
            "1:3: the pipe operator '|>' belongs to the experimental Nix feature 'pipe-operators', which is not \
             supported; write a function call",
        ),
        (
            "a <| b",
            "1:3: the pipe operator '<|' belongs to the experimental Nix feature 'pipe-operators', which is not \
             supported; write a function call",
        ),
    ]);
}
