use bumpalo::Bump;

use super::{accepts, refuses};
use crate::syntax::{Pos, Source, SymbolTable, parse};

#[test]
fn paths_become_absolute() {
    accepts(&[
        ("/a/b", "/a/b"),
        ("./a", "/base/a"),
        ("../a", "/a"),
        ("../../../a", "/a"),
        ("./.", "/base"),
        ("./a/../b/./c", "/base/b/c"),
        ("a/b", "/base/a/b"),
        ("a.b/c", "/base/a.b/c"),
        ("a+b-c_d/1", "/base/a+b-c_d/1"),
        ("1/2", "/base/1/2"),
        ("-1/2", "/base/-1/2"),
        (".../a", "/base/.../a"),
        ("~/a", "/home/me/a"),
        ("~/a/../b", "/home/me/b"),
        ("/.", "/"),
    ]);
}

#[test]
fn slashes_that_are_no_paths() {
    accepts(&[
        ("a / b", "(__div a b)"),
        ("a/ b", "(__div a b)"),
        ("a /b", "(a /b)"),
        ("a//b", "(a // b)"),
        ("a///b", "(a // /b)"),
        ("(a)/(b)", "(__div a b)"),
        ("a/*b*/", "a"),
        ("a'/b", "(a' /b)"),
        ("[ a.b.c d.e/f g.h ]", "[ ((a).b.c) (/base/d.e/f) ((g).h) ]"),
    ]);
}

#[test]
fn paths_end_where_no_path_character_follows() {
    accepts(&[("{ a = ./b; }", "{ a = /base/b; }"), ("[./a]", "[ (/base/a) ]")]);
    refuses(&[
        ("./a/", "1:5: path has a trailing slash"),
        ("./a/ b", "1:5: path has a trailing slash"),
        ("~/a/", "1:5: path has a trailing slash"),
        ("/a/b/;", "1:6: path has a trailing slash"),
        (
            "./a//b",
            "1:5: syntax error, unexpected '//', expecting one slash between the parts of a path",
        ),
        (
            "./a:b",
            "1:4: syntax error, unexpected ':', expecting end of file",
        ),
        ("~", "1:1: syntax error, unexpected invalid token"),
        ("~a", "1:1: syntax error, unexpected invalid token"),
    ]);
}

#[test]
fn interpolated_paths() {
    accepts(&[
        ("./${a}", "(/base/ + a)"),
        ("./a${b}", "(/base/a + b)"),
        ("./a/${b}", "(/base/a/ + b)"),
        ("./a/${b}/c", "(/base/a/ + b + \"/c\")"),
        ("./a/${b}.nix", "(/base/a/ + b + \".nix\")"),
        ("./${a}${b}", "(/base/ + a + b)"),
        ("./${a}/${b}", "(/base/ + a + \"/\" + b)"),
        ("./${a}/b//c${d}", "(/base/ + a + \"/b//c\" + d)"),
        ("./a//b${c}", "(/base/a/ + \"/b\" + c)"),
        ("a/${b}", "(/base/a/ + b)"),
        ("/${a}", "(/ + a)"),
        ("~/${a}", "(/home/me/ + a)"),
        ("~/a-${b}", "(/home/me/a- + b)"),
        ("../${a}", "(/ + a)"),
        ("./${./a}", "(/base/ + /base/a)"),
        ("[ ./${a} b ]", "[ ((/base/ + a)) (b) ]"),
    ]);
    refuses(&[
        ("./${a}/", "1:8: path has a trailing slash"),
        ("./a/${b}/ c", "1:10: path has a trailing slash"),
        (
            "./${a",
            "1:6: syntax error, unexpected end of file, expecting '}'",
        ),
    ]);
}

#[test]
fn search_paths() {
    accepts(&[
        ("<nixpkgs>", "(__findFile __nixPath \"nixpkgs\")"),
        ("<nixpkgs/lib>", "(__findFile __nixPath \"nixpkgs/lib\")"),
        ("<a+b.c/d_e-f>", "(__findFile __nixPath \"a+b.c/d_e-f\")"),
        ("import <a> { }", "(import (__findFile __nixPath \"a\") { })"),
        // Comparisons, for want of a closing bracket or for a space.
        ("a <b", "(__lessThan a b)"),
    ]);
    refuses(&[
        ("<a >", "1:1: syntax error, unexpected '<'"),
        ("</a>", "1:1: syntax error, unexpected '<'"),
        ("<a//b>", "1:1: syntax error, unexpected '<'"),
    ]);
}

#[test]
fn without_a_home_directory_home_paths_are_refused() {
    let arena = Bump::new();
    let source = Source {
        text: b"~/a",
        start: Pos::from_u32(1),
        base_dir: b"/",
        home: None,
    };
    let error = parse(&arena, &source, &mut SymbolTable::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the path '~/a' can not be resolved: there is no home directory (HOME is not set, or evaluation is pure)"
    );
}
