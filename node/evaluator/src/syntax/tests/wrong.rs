use std::sync::Arc;

use bumpalo::Bump;

use super::refuses;
use crate::syntax::{Origin, Source, SourceMap, SymbolTable, parse};

#[test]
fn what_is_left_over() {
    refuses(&[
        ("", "1:1: syntax error, unexpected end of file"),
        ("# nothing\n", "2:1: syntax error, unexpected end of file"),
        ("1 }", "1:3: syntax error, unexpected '}', expecting end of file"),
        ("(1", "1:3: syntax error, unexpected end of file, expecting ')'"),
        ("(1 ]", "1:4: syntax error, unexpected ']', expecting ')'"),
        (
            "a = 1",
            "1:3: syntax error, unexpected '=', expecting end of file",
        ),
        (
            "123 é 4",
            "1:5: syntax error, unexpected invalid token, expecting end of file",
        ),
        ("$a", "1:1: syntax error, unexpected invalid token"),
        ("${a}", "1:1: syntax error, unexpected '${'"),
        (
            "a & b",
            "1:3: syntax error, unexpected invalid token, expecting end of file",
        ),
        (
            "a | b",
            "1:3: syntax error, unexpected invalid token, expecting end of file",
        ),
        ("'a'", "1:1: syntax error, unexpected invalid token"),
        ("1 != != 2", "1:6: syntax error, unexpected '!='"),
    ]);
}

#[test]
fn errors_show_their_line() {
    let text = b"{\n  a = 1;\n  b = 2\n}\n";
    let mut sources = SourceMap::new();
    let id = sources
        .add(Origin::File(b"/x/y.nix".to_vec()), Arc::from(&text[..]))
        .unwrap();
    let arena = Bump::new();
    let source = Source {
        text,
        start: sources.start(id),
        base_dir: b"/x",
        home: None,
    };
    let error = parse(&arena, &source, &mut SymbolTable::new()).unwrap_err();
    let expected = "\
error: syntax error, unexpected '}', expecting ';'
       at /x/y.nix:4:1:
            3|   b = 2
            4| }
             | ^
            5|";
    assert_eq!(error.render(&sources), expected);
}
