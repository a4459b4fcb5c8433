//! Damaged texts are refused or parsed; neither parser nor printer nor error may panic on them.

use std::sync::Arc;

use bumpalo::Bump;

use crate::syntax::{Origin, Source, SourceMap, SymbolTable, parse, print};

const TEXTS: &[&str] = &[
    "{ a ? 1, b, ... }@args: let c.d = \"x${a}\\n$${b}\"; inherit (args) e f; in rec { inherit c; ${a}.g = 1; }",
    "''\n  a ${b}\n    ''$ ''' ''\\n ''${c}\n  $$''",
    "./a/${b}/c.nix ++ <nixpkgs/lib> // ~/x + http://a.b/c",
    "if a.b or c ? \"d\".${e} then -1.5e3 + 2 * 3 / 4 else !f -> g && h || i == j # k\n",
    "assert x; with y; let { body = [ 1 (z: z) { } ]; } /* c */ // { a.b = { }; a = { c = __curPos; }; }",
];

const PIECES: &[&str] = &[
    "${", "''", "\"", "}", "{", "(", ")", "[", "]", ";", "=", ".", "/", "\\", "$", "'", "\r", "\0", "<", ">",
    "@", ":", "?", "or", "let ", "in ", "rec ", "inherit ", "./", "é",
];

#[test]
fn damaged_texts_do_no_harm() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut parsed, mut refused) = (0, 0);
    for _ in 0..5_000 {
        let mut text = TEXTS[random(TEXTS.len())].as_bytes().to_vec();
        for _ in 0..=random(3) {
            let at = random(text.len() + 1);
            match random(4) {
                0 => text.truncate(at),
                1 => drop(text.drain(at..(at + random(8)).min(text.len()).max(at))),
                _ => drop(text.splice(at..at, PIECES[random(PIECES.len())].bytes())),
            }
        }
        let mut sources = SourceMap::new();
        let id = sources.add(Origin::String, Arc::from(text.as_slice())).unwrap();
        let mut symbols = SymbolTable::new();
        let arena = Bump::new();
        let source = Source {
            text: &text,
            start: sources.start(id),
            base_dir: b"/base",
            home: Some(b"/home"),
        };
        match parse(&arena, &source, &mut symbols) {
            Ok(expr) => {
                parsed += 1;
                assert!(!print::expr(&expr, &symbols).is_empty());
            }
            Err(error) => {
                refused += 1;
                assert!(error.render(&sources).starts_with("error: "));
            }
        }
    }
    assert!(
        parsed > 100 && refused > 100,
        "{parsed} parsed, {refused} refused"
    );
}
