use super::{accepts, outcome, refuses};

#[test]
fn integers() {
    accepts(&[
        ("0", "0"),
        ("007", "7"),
        ("9223372036854775807", "9223372036854775807"),
        ("-9223372036854775807", "(__sub 0 9223372036854775807)"),
    ]);
    refuses(&[
        (
            " 9223372036854775808",
            "1:2: invalid integer '9223372036854775808': integers go from -9223372036854775808 to 9223372036854775807",
        ),
        (
            "99999999999999999999999",
            "1:1: invalid integer '99999999999999999999999': integers go from -9223372036854775808 to \
             9223372036854775807",
        ),
    ]);
}

#[test]
fn floats() {
    accepts(&[
        ("1.5", "1.5"),
        ("1.", "1"),
        (".5", "0.5"),
        ("0.5", "0.5"),
        ("0.0", "0"),
        ("1.e3", "1000"),
        ("1.5e-3", "0.0015"),
        ("1.5E+3", "1500"),
        ("12.25e2", "1225"),
        ("0.0e5", "0"),
        ("1.7976931348623157e308", "1.79769e+308"),
        // Not floats: an integer, applied to or followed by something else.
        ("1 e5", "(1 e5)"),
        ("1e5", "(1 e5)"),
        ("1.5e", "(1.5 e)"),
        ("1.5e+ 1", "((1.5 e) + 1)"),
        ("00.5", "(0 0.5)"),
        ("01.5", "(1 0.5)"),
    ]);
    refuses(&[
        (
            "1.5e999",
            "1:1: invalid float '1.5e999': it is too large or too small for a double",
        ),
        (
            "1.5e-999",
            "1:1: invalid float '1.5e-999': it is too large or too small for a double",
        ),
        (
            "1.0e-310",
            "1:1: invalid float '1.0e-310': it is too large or too small for a double",
        ),
        (
            "0.",
            "1:3: syntax error, unexpected end of file, expecting identifier or 'or' or '${' or '\"'",
        ),
    ]);
}

#[test]
fn uris() {
    accepts(&[
        ("x:x", r#""x:x""#),
        ("http://a.b/c?d=e&f%20", r#""http://a.b/c?d=e&f%20""#),
        ("a+b-c.d:e'", r#""a+b-c.d:e'""#),
        ("[ a:b c ]", r#"[ ("a:b") (c) ]"#),
        // A lambda needs white space or something else that is no URI character behind the colon.
        ("x: x", "(x: x)"),
        ("x:[x]", "(x: [ (x) ])"),
        ("x:{}", "(x: { })"),
        ("x_y:z", "(x_y: z)"),
        ("x':z", "(x': z)"),
    ]);
}

#[test]
fn names_and_keywords() {
    accepts(&[
        ("a'b-c_1", "a'b-c_1"),
        ("_", "_"),
        ("iff", "iff"),
        ("in-", "in-"),
        ("recx", "recx"),
        ("__curPos", "__curPos"),
        ("null", "null"),
        ("a.b.c", "(a).b.c"),
        ("a.or", "(a).or"),
        ("a-1", "a-1"),
        ("a- 1", "(a- 1)"),
    ]);
}

#[test]
fn comments_and_white_space() {
    accepts(&[
        ("# a\n1 # b", "1"),
        ("# a\r1", "1"),
        ("/**/1/***/", "1"),
        ("/* * / */ 1 /* /* */", "1"),
        ("\t\r\n 1", "1"),
        ("[1/**/2]", "[ (1) (2) ]"),
        ("a/**/b", "(a b)"),
        ("# é\n1", "1"),
    ]);
    refuses(&[
        ("1 /* *", "1:3: this comment has no end; expecting '*/'"),
        ("1 /*/", "1:3: this comment has no end; expecting '*/'"),
    ]);
}

#[test]
fn lists() {
    accepts(&[
        ("[]", "[ ]"),
        (
            "[ 1 [ a.b ] (f x) (-1) ]",
            "[ (1) ([ ((a).b) ]) ((f x)) ((__sub 0 1)) ]",
        ),
        ("[ a.b or c d ]", "[ ((a).b or (c)) (d) ]"),
        (
            "[ { } rec { } let { body = 1; } ]",
            "[ ({ }) (rec { }) ((rec { body = 1; }).body) ]",
        ),
    ]);
    refuses(&[
        (
            "[ -1 ]",
            "1:3: syntax error, unexpected '-', expecting a list element or ']'",
        ),
        (
            "[ 1, 2 ]",
            "1:4: syntax error, unexpected ',', expecting a list element or ']'",
        ),
        (
            "[ x: x ]",
            "1:4: syntax error, unexpected ':', expecting a list element or ']'",
        ),
        (
            "[ 1",
            "1:4: syntax error, unexpected end of file, expecting a list element or ']'",
        ),
    ]);
}

#[test]
fn sources_need_not_be_utf_8() {
    assert_eq!(outcome(b"# \xff\n\"\xff\""), Ok("\"\u{fffd}\"".to_owned()));
    assert_eq!(
        outcome(b"1 \xff"),
        Err("1:3: syntax error, unexpected invalid token, expecting end of file".to_owned())
    );
    assert_eq!(
        outcome(b"1 \0 2"),
        Err("1:3: syntax error, unexpected invalid token, expecting end of file".to_owned())
    );
}
