use super::{accepts, outcome, refuses};

#[test]
fn quoted_strings() {
    accepts(&[
        (r#""""#, r#""""#),
        (r#""a""#, r#""a""#),
        (r#""\n\r\t\"\\\$\a\{""#, r#""\n\r\t\"\\$a{""#),
        (r#""a\${b}""#, r#""a\${b}""#),
        // A dollar sign pairs with the character behind it.
        (r#""$${a}""#, r#""$\${a}""#),
        (r#""$$${a}""#, r#"("$$" + a)"#),
        (r#""a$""#, r#""a$""#),
        (r#""$\n""#, r#""$\n""#),
        (r#""$a""#, r#""$a""#),
        ("\"a\nb\"", r#""a\nb""#),
        ("\"a\r\nb\rc\"", r#""a\nb\nc""#),
        ("\"'' # /* \"", r#""'' # /* ""#),
    ]);
}

#[test]
fn interpolation_in_quoted_strings() {
    accepts(&[
        (r#""${a}""#, "(a)"),
        (r#""${"a"}""#, r#"("a")"#),
        (r#""a${b}c""#, r#"("a" + b + "c")"#),
        (r#""${a}${b}""#, "(a + b)"),
        (r#""${{ a = "}"; }.a}""#, r#"(({ a = "}"; }).a)"#),
        (r#""a${"b${c}"}d""#, r#"("a" + ("b" + c) + "d")"#),
        (
            r#""a${ # }
          b}c""#,
            r#"("a" + b + "c")"#,
        ),
        (r#""\n${a}\t""#, r#"("\n" + a + "\t")"#),
    ]);
    refuses(&[
        (
            r#""${a""#,
            "1:6: syntax error, unexpected end of file, expecting '\"'",
        ),
        (
            r#""${a b; }""#,
            "1:7: syntax error, unexpected ';', expecting '}'",
        ),
        (r#""${}""#, "1:4: syntax error, unexpected '}'"),
    ]);
}

#[test]
fn quoted_strings_that_do_not_end() {
    for text in ["\"a", "\"a\\", "\"a$", "\"$\\", "\"a${b}c"] {
        let message = outcome(text.as_bytes()).unwrap_err();
        let column = text.len() + 1;
        assert_eq!(
            message,
            format!("1:{column}: syntax error, unexpected end of file, expecting '\"'"),
            "{text}"
        );
    }
}

#[test]
fn null_bytes_are_refused() {
    refuses(&[
        (
            "\"a\0\"",
            "1:3: a string contains a null byte; Nix strings cannot",
        ),
        (
            "\"a\\\0\"",
            "1:4: a string contains a null byte; Nix strings cannot",
        ),
        (
            "''a\0''",
            "1:4: a string contains a null byte; Nix strings cannot",
        ),
        (
            "''$\0''",
            "1:4: a string contains a null byte; Nix strings cannot",
        ),
        (
            "''''\\\0''",
            "1:6: a string contains a null byte; Nix strings cannot",
        ),
    ]);
}

#[test]
fn indented_strings() {
    accepts(&[
        ("''''", r#""""#),
        ("''a''", r#""a""#),
        ("''  a''", r#""a""#),
        ("''\n  a\n    b\n  ''", r#""a\n  b\n""#),
        ("''\n  a\n\n  b''", r#""a\n\nb""#),
        // A blank line does not count, however short; longer ones keep what is past the indentation.
        ("''\n    a\n \n      \n    b\n''", r#""a\n\n  \nb\n""#),
        // The last line counts unless it is blank, and goes if it is.
        ("''\n  a\n b''", r#"" a\nb""#),
        ("''\n  a\n ''", r#""a\n""#),
        // The blank rest of the first line goes; anything else makes it a line like any other.
        ("''   \n  a''", r#""a""#),
        ("''  x\n    a''", r#""x\n  a""#),
        ("''\t\n  a''", r#""\t\n  a""#),
        ("''\n\ta\n\t b''", r#""\ta\n\t b""#),
        ("''\n  ''", r#""""#),
        ("''\n\n''", r#""\n""#),
        // Carriage returns are kept, and are no indentation.
        ("''\r\n  a\r\n''", r#""\r\n  a\r\n""#),
    ]);
}

#[test]
fn escapes_in_indented_strings() {
    accepts(&[
        ("''a''$b''", r#""a$b""#),
        ("''a''${b}''", r#""a\${b}""#),
        ("''a'''b''", r#""a''b""#),
        ("''a''\\nb''\\r''\\t''\\x''", r#""a\nb\r\tx""#),
        ("''a''\\${b}''", r#""a\${b}""#),
        ("''$${a}''", r#""$\${a}""#),
        ("''$a'b$''", r#""$a'b$""#),
        ("''a'${b}''", r#"("a'" + b)"#),
        ("''a\\n''", r#""a\\n""#),
        ("'''''a''", r#""''a""#),
        ("''\"''", r#""\"""#),
        // An escape ends the indentation of its line, even one that stands for white space.
        ("''\n    a\n  ''\\n    b''", r#""  a\n\n  b""#),
        ("''\n    a\n  ''$''", r#""  a\n$""#),
        ("''\n   '''\n    a''", r#""''\n a""#),
    ]);
}

#[test]
fn interpolation_in_indented_strings() {
    accepts(&[
        ("''${a}''", "(a)"),
        // A literal alone is no concatenation, not even an interpolated one.
        ("''${\"a\"}''", r#""a""#),
        ("''\n  ${a}\n    b\n''", r#"(a + "\n  b\n")"#),
        ("''\n    a\n  ${b}''", r#"("  a\n" + b)"#),
        ("''\n  a${b}  c\n  d''", r#"("a" + b + "  c\nd")"#),
        ("''\n  a ${b}\n  ''", r#"("a " + b + "\n")"#),
        ("''${a}\n  ''", r#"(a + "\n")"#),
        ("''  ${a}  ${b}''", r#"(a + "  " + b)"#),
        ("''a${''b${c}''}d''", r#"("a" + ("b" + c) + "d")"#),
        ("''\n  ${''\n    x\n    ''}''", r#""x\n""#),
    ]);
    refuses(&[
        (
            "''a",
            "1:4: syntax error, unexpected end of file, expecting end of an indented string",
        ),
        (
            "''a'",
            "1:5: syntax error, unexpected end of file, expecting end of an indented string",
        ),
        (
            "''a$",
            "1:5: syntax error, unexpected end of file, expecting end of an indented string",
        ),
        (
            "''a''\\",
            "1:7: syntax error, unexpected end of file, expecting end of an indented string",
        ),
        (
            "''${a ''",
            "1:9: syntax error, unexpected end of file, expecting end of an indented string",
        ),
    ]);
}
