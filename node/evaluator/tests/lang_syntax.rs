//! The parser against the language tests of stock Nix (`tests/functional/lang` of its sources).
//!
//! Set `NIX_LANG_TESTS` to that folder to run them; they are not part of this project.
//!
//! * `parse-okay-*.nix` must print as `parse-okay-*.exp` says,
//! * `parse-fail-*.nix` must be refused, at the place and with the complaint (up to what was expected instead) that
//!   `parse-fail-*.err.exp` has, except where stock Nix complains about an undefined variable: that is the compile
//!   pass's to find,
//! * `eval-okay-*.nix` must parse.

#![allow(clippy::unwrap_used)] // a test panics to fail

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bumpalo::Bump;
use tvix_node_evaluator::syntax::{Origin, Source, SourceMap, SymbolTable, parse, print};

/// The files of the folder that begin so and end in `.nix`, or nothing, with a note, if there is no folder.
fn files(test: &str, prefix: &str) -> Vec<PathBuf> {
    let Some(folder) = std::env::var_os("NIX_LANG_TESTS") else {
        println!("SKIPPED: {test} because NIX_LANG_TESTS does not name a folder with Nix's language tests");
        return Vec::new();
    };
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension() == Some(OsStr::new("nix")))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no {prefix}*.nix", folder.display());
    files
}

/// The printed tree, or the rendered error. Nix's tests pass the text on standard input, from the root folder.
fn outcome(file: &Path) -> Result<String, String> {
    let text: Arc<[u8]> = fs::read(file).unwrap().into();
    let mut sources = SourceMap::new();
    let id = sources.add(Origin::Stdin, text.clone()).unwrap();
    let mut symbols = SymbolTable::new();
    let arena = Bump::new();
    let source = Source {
        text: &text,
        start: sources.start(id),
        base_dir: b"/",
        home: Some(b"/home"),
    };
    match parse(&arena, &source, &mut symbols) {
        Ok(expr) => Ok(String::from_utf8_lossy(&print::expr(&expr, &symbols)).into_owned()),
        Err(error) => Err(error.render(&sources)),
    }
}

#[test]
fn parse_okay() {
    for file in files("parse-okay", "parse-okay-") {
        let expected = fs::read_to_string(file.with_extension("exp")).unwrap();
        let printed = outcome(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert_eq!(printed.trim_end(), expected.trim_end(), "{}", file.display());
    }
}

#[test]
fn parse_fail() {
    for file in files("parse-fail", "parse-fail-") {
        let expected = fs::read_to_string(file.with_extension("err.exp")).unwrap();
        if expected.contains("undefined variable") {
            continue;
        }
        let error = outcome(&file).expect_err("must be refused");
        // The first line without what was expected, and the other lines as they are.
        let essence = |error: &str| {
            let (first, rest) = error.trim_end().split_once('\n').unwrap();
            let first = first.split(", expecting").next().unwrap().to_owned();
            let rest: Vec<_> = rest.lines().map(|line| line.trim_end().to_owned()).collect();
            (first, rest)
        };
        assert_eq!(essence(&error), essence(&expected), "{}", file.display());
    }
}

#[test]
fn eval_okay() {
    for file in files("eval-okay", "eval-okay-") {
        if let Err(error) = outcome(&file) {
            // One of the tests is about a feature that Nix hides behind a flag.
            assert!(error.contains("pipe-operators"), "{}: {error}", file.display());
        }
    }
}
