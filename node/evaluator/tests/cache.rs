//! The cache of compiled files: what comes out of it is what a fresh compilation gives, and it is never taken for
//! something it is not.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tvix_node_evaluator::{Action, DryRun, Event, ExpressionSource, Format, Options, Target, evaluate};

/// Expressions that together have every kind of code, with errors and positions.
const FILES: &[&str] = &[
    "{ a = 1; b = -2.5; c = \"text\"; d = null; e = true; f = false; g = []; h = {}; i = 9223372036854775807; }",
    "[ ./here ../above ./a/b.nix /absolute/path <nixpkgs-is-not-there> ]",
    "let x = 1; y = x + 1; in { inherit x y; z = let inherit (builtins) add; in add x y; }",
    "rec { zebra = apple + 1; apple = 1; mango = { inherit zebra; inherit (deep) b; }; deep = rec { b = a; a = 7; }; }",
    "rec { __overrides = { b = 10; }; a = b; b = 1; c = 2; }",
    "let f = { z, a ? z + 1, m ? 3, ... }@all: [ z a m (builtins.attrNames all) ]; in [ (f { z = 1; extra = 2; }) (builtins.functionArgs f) ]",
    "let f = a: b: { c, d ? a }: a + b + c + d; g = f 1; in [ (g 2 { c = 3; }) (f 1 2 { c = 3; d = 4; }) ]",
    "with { a = 1; b = { c = 2; }; }; with b; [ a c (a < c) (a >= c) (a == c) (a != c) (a <= c) (a > c) ]",
    "let s = { a.b.c = 1; }; n = \"b\"; in [ s.a.b.c s.a.${n}.c (s.x or 5) (s.a.b.d or s.a.b.c) (s ? a.b) (s ? a.${n}.x) ]",
    "{ ${\"dyn\" + \"amic\"} = a: a; ${null} = 1; static = 2; }",
    "let p = \"part\"; in [ \"a${p}b${toString 1}\" (./. + \"/x\") ./dir-${p}/file \"${\"only\"}\" ''\n  in\n    dented ${p}\n'' ]",
    "[ (1 + 2 - 3 * 4 / 2) (true && false || true) (false -> true) (!true) ([ 1 ] ++ [ 2 ] ++ [ 3 ]) ({ a = 1; } // { b = 2; } // { a = 3; }) (\"a\" + \"b\" + \"c\") ]",
    "{ pos = builtins.unsafeGetAttrPos \"b\" { a = 1;\n   b = 2; }; here = __curPos; lines = map (x: x.line) [ __curPos\n __curPos ]; }",
    "[ (if 1 == 1 then \"yes, and this text is long enough to be put off until it is needed, if it is\" else throw \"no\") (assert 1 + 1 == 2; \"held\") ]",
    "builtins.length (builtins.attrNames builtins) > 50 && builtins ? builtins && builtins.typeOf builtins.map == \"lambda\"",
    "[ builtins.langVersion builtins.nixVersion __nixVersion builtins.storeDir (builtins.add 1 2) (map (x: x * x) [ 1 2 3 ]) ]",
    "{ lazy = { a = 1 + 1; b = \"a long constant text that is not put off, because a constant is no thunk\"; f = x: x; l = [ (1 + 1) ]; }; }",
    "let self = { a = self.b; b = self.a; }; in self.a",
    "assert 1 + 1 == 3; \"never\"",
    "let f = { needed }: needed; in f { other = 1; }",
    "let deeper = x: if x == 0 then throw \"at the bottom of a function whose body is long enough\" else deeper (x - 1); in deeper 3",
    "{ a = 1; }.b",
    "undefined_variable",
    "{ a = 1; a = 2; }",
    "import ./0.nix",
    "builtins.scopedImport { secret = 5; } ./scoped.nix",
    "(import ./0.nix).a + (import ./2.nix).y",
    "[ ~/in-home ]",
];

fn files() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (number, text) in FILES.iter().enumerate() {
        fs::write(folder.path().join(format!("{number}.nix")), text).expect("a file");
    }
    fs::write(folder.path().join("scoped.nix"), "secret + 1").expect("a file");
    folder
}

fn eval(folder: &Path, cache: Option<&Path>, expression: &str, format: Format) -> String {
    let options = Options {
        base: folder.to_owned(),
        code_cache: cache.map(Path::to_owned),
        show_trace: true,
        ..Options::default()
    };
    eval_with(&options, expression, format)
}

fn eval_with(options: &Options, expression: &str, format: Format) -> String {
    let target = Target {
        source: ExpressionSource::Text(expression.to_owned()),
        attribute: String::new(),
        action: Action::Print(format),
    };
    let mut result = String::new();
    evaluate(options, &[target], &DryRun::default(), &mut |event| match event {
        Event::Value { text, .. } => result = String::from_utf8_lossy(&text).into_owned(),
        Event::Failed { error, .. } => result = error.text,
        Event::Finished { .. } => {}
        Event::Derivation(_) => panic!("a value was asked for"),
    })
    .expect("the options are valid");
    result
}

fn packs(cache: &Path) -> Vec<std::path::PathBuf> {
    let mut packs: Vec<_> = fs::read_dir(cache)
        .map(|entries| entries.map(|entry| entry.expect("an entry").path()).collect())
        .unwrap_or_default();
    packs.sort();
    packs
}

#[test]
fn code_from_the_cache_gives_what_fresh_code_gives() {
    let folder = files();
    let cache = tempfile::tempdir().expect("a temporary folder");
    for format in [Format::Lazy, Format::Strict] {
        for number in 0..FILES.len() {
            let expression = format!("import ./{number}.nix");
            let fresh = eval(folder.path(), None, &expression, format);
            let first = eval(folder.path(), Some(cache.path()), &expression, format);
            let again = eval(folder.path(), Some(cache.path()), &expression, format);
            assert_eq!(first, fresh, "file {number}");
            assert_eq!(again, fresh, "file {number}");
        }
    }
    let kept = packs(cache.path());
    assert!(!kept.is_empty());
    // All of it is there: nothing more is written.
    let all = "map (n: (builtins.tryEval (import (./. + \"/${toString n}.nix\"))).success) (builtins.genList (n: n) 17)";
    eval(folder.path(), Some(cache.path()), all, Format::Strict);
    assert_eq!(packs(cache.path()), kept);
}

#[test]
fn the_order_in_which_names_are_met_does_not_matter() {
    let folder = files();
    let cache = tempfile::tempdir().expect("a temporary folder");
    for number in [0, 2, 3, 4, 5, 9, 12, 16] {
        let file = format!("import ./{number}.nix");
        eval(folder.path(), Some(cache.path()), &file, Format::Strict);
        let names = "{ zebra = 1; mango = 2; apple = 3; z = 4; y = 5; x = 6; m = 7; i = 8; h = 9; g = 10; c = 11; b = 12; a = 13; }";
        let other = format!("builtins.seq {names} ({file})");
        assert_eq!(
            eval(folder.path(), Some(cache.path()), &other, Format::Strict),
            eval(folder.path(), None, &other, Format::Strict),
            "file {number}"
        );
    }
}

#[test]
fn a_file_that_changed_is_compiled_anew() {
    let folder = files();
    let cache = tempfile::tempdir().expect("a temporary folder");
    let value = || {
        eval(
            folder.path(),
            Some(cache.path()),
            "import ./value.nix",
            Format::Strict,
        )
    };
    for number in 0..3 {
        fs::write(folder.path().join("value.nix"), format!("{number}")).expect("a file");
        assert_eq!(value(), number.to_string());
        assert_eq!(value(), number.to_string());
    }
}

#[test]
fn equal_files_in_two_folders_have_paths_of_their_own() {
    let folder = files();
    let cache = tempfile::tempdir().expect("a temporary folder");
    for name in ["one", "two"] {
        fs::create_dir(folder.path().join(name)).expect("a folder");
        fs::write(folder.path().join(name).join("file.nix"), "toString ./x").expect("a file");
        let expression = format!("import ./{name}/file.nix");
        let path = eval(folder.path(), Some(cache.path()), &expression, Format::Strict);
        assert_eq!(path, format!("\"{}/{name}/x\"", folder.path().display()));
    }
}

#[test]
fn constants_are_those_of_the_evaluation_at_hand() {
    let folder = files();
    let cache = tempfile::tempdir().expect("a temporary folder");
    fs::write(
        folder.path().join("system.nix"),
        "[ builtins.currentSystem __currentSystem (builtins.currentTime > 0) ]",
    )
    .expect("a file");
    for system in ["one-linux", "two-linux"] {
        let options = Options {
            base: folder.path().to_owned(),
            code_cache: Some(cache.path().to_owned()),
            system: system.to_owned(),
            ..Options::default()
        };
        let value = eval_with(&options, "import ./system.nix", Format::Strict);
        assert_eq!(value, format!("[ \"{system}\" \"{system}\" true ]"));
    }
    // The time is kept by its name, not as a number.
    let bytes: Vec<u8> = packs(cache.path())
        .iter()
        .flat_map(|pack| fs::read(pack).expect("a pack"))
        .collect();
    let name = b"currentTime";
    assert!(bytes.windows(name.len()).any(|part| part == name));
}

#[test]
fn damage_costs_time_only() {
    let folder = files();
    let cache = tempfile::tempdir().expect("a temporary folder");
    let expression = "import ./3.nix";
    let right = eval(folder.path(), Some(cache.path()), expression, Format::Strict);
    let [pack] = &packs(cache.path())[..] else {
        panic!("one pack")
    };
    let whole = fs::read(pack).expect("a pack");
    for place in (0..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x20;
        fs::write(pack, damaged).expect("a pack");
        let options = Options {
            base: folder.path().to_owned(),
            code_cache: Some(cache.path().to_owned()),
            ..Options::default()
        };
        assert_eq!(
            eval_with(&options, expression, Format::Strict),
            right,
            "byte {place}"
        );
        for other in packs(cache.path()) {
            if other != *pack {
                fs::remove_file(other).expect("removed");
            }
        }
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_a_warning() {
    let folder = files();
    let file = folder.path().join("0.nix");
    let value = eval(
        folder.path(),
        Some(&file.join("cache")),
        "(import ./0.nix).a",
        Format::Strict,
    );
    assert_eq!(value, "1");
}
