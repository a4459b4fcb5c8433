//! What the parser makes of every construct of the language, by way of the printer.

mod functions;
mod limits;
mod literals;
mod mutated;
mod operators;
mod paths;
mod positions;
mod sets;
mod strings;
mod wrong;

use std::sync::Arc;

use bumpalo::Bump;

use super::{Origin, Source, SourceMap, SymbolTable, parse, print};

/// The printed tree of a text, or what is wrong with it as `line:column: message`. Relative paths are relative to
/// `/base`, home is `/home/me`.
fn outcome(text: &[u8]) -> Result<String, String> {
    let mut sources = SourceMap::new();
    let id = sources.add(Origin::String, Arc::from(text)).unwrap();
    let mut symbols = SymbolTable::new();
    let arena = Bump::new();
    let source = Source {
        text,
        start: sources.start(id),
        base_dir: b"/base",
        home: Some(b"/home/me"),
    };
    match parse(&arena, &source, &mut symbols) {
        Ok(expr) => Ok(String::from_utf8_lossy(&print::expr(&expr, &symbols)).into_owned()),
        Err(error) => {
            let place = sources.resolve(error.pos).unwrap();
            Err(format!(
                "{}:{}: {}",
                place.line,
                place.column,
                error.message(&sources)
            ))
        }
    }
}

/// Each text is parsed as the tree beside it.
#[track_caller]
fn accepts(cases: &[(&str, &str)]) {
    for (text, printed) in cases {
        assert_eq!(outcome(text.as_bytes()).as_deref(), Ok(*printed), "for {text:?}");
    }
}

/// Each text is refused at the place and with the message beside it.
#[track_caller]
fn refuses(cases: &[(&str, &str)]) {
    for (text, message) in cases {
        assert_eq!(
            outcome(text.as_bytes()),
            Err((*message).to_owned()),
            "for {text:?}"
        );
    }
}
