//! `instantiate` and `eval`.

use crate::harness::{Machine, examples, skipped};

#[test]
fn values_print_in_nix_s_own_form() {
    let machine = Machine::new();
    let eval = |expression: &str, more: &[&str]| {
        let mut arguments = vec!["eval", "-E", expression];
        arguments.extend(more);
        machine.run(&arguments).ok().to_owned()
    };
    assert_eq!(eval("1 + 2", &[]), "3");
    assert_eq!(
        eval("{ b = [ 1 (x: x) ]; a = \"q\\\"\"; }", &["--strict"]),
        "{ a = \"q\\\"\"; b = [ 1 <LAMBDA> ]; }"
    );
    assert_eq!(
        eval("{ a = 1.5; b = [ null true ]; }", &["--json", "--strict"]),
        r#"{"a":1.5,"b":[null,true]}"#
    );
}

#[test]
fn names_are_looked_up_through_the_search_path() {
    let machine = Machine::new();
    machine.write("pkgs.nix", "{ name ? \"none\" }: { value = \"hello \" + name; }");
    let found = machine.run(&[
        "eval",
        "-I",
        "pkgs=./pkgs.nix",
        "-f",
        "<pkgs>",
        "-A",
        "value",
        "--argstr",
        "name",
        "you",
    ]);
    assert_eq!(found.ok(), "\"hello you\"");
    let mut command = machine.command(&["eval", "-E", "(import <pkgs> { }).value"]);
    let found = crate::harness::finish(command.env(
        "NIX_PATH",
        format!("pkgs={}/pkgs.nix", machine.folder().display()),
    ));
    assert_eq!(found.ok(), "\"hello none\"");
}

#[test]
fn without_a_file_the_folder_s_default_is_taken() {
    let machine = Machine::new();
    machine.write("default.nix", "{ a.b = 7; }");
    assert_eq!(machine.run(&["eval", "-A", "a.b"]).ok(), "7");
}

#[test]
fn instantiated_derivations_are_in_the_store() {
    let machine = Machine::new();
    machine.write(
        "default.nix",
        "derivation { name = \"simple\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; }",
    );
    let path = machine.run(&["instantiate"]).ok().to_owned();
    // What stock Nix instantiates.
    assert_eq!(path, "/nix/store/2wwpgwhlrid6ypd4f01r72hdpr4l7qgz-simple.drv");
    let text = std::fs::read_to_string(machine.physical(&path)).expect("the derivation is there");
    assert!(
        text.starts_with("Derive([(\"out\",\"/nix/store/nj83liashqlzmxjq8lyfxrx21whvgpqj-simple\""),
        "{text}"
    );
}

/// In the process that instantiated it, and in another one that knows its path alone.
#[test]
fn a_derivation_is_read_back_from_the_store() {
    let machine = Machine::new();
    machine.write(
        "default.nix",
        r#"let made = derivation { name = "made"; system = "s"; builder = "/b"; outputs = [ "out" "dev" ]; };
           in { inherit made; back = import made.drvPath; }"#,
    );
    let eval = |expression: &str| {
        machine
            .run(&["eval", "--strict", "-E", expression])
            .ok()
            .to_owned()
    };
    assert_eq!(
        eval(
            r#"with import ./default.nix; [ (back.outPath == made.outPath) (back.dev.outPath == made.dev.outPath)
               (back.drvPath == made.drvPath) back.outputName (builtins.getContext back.dev.outPath == builtins.getContext made.dev.outPath) ]"#
        ),
        // A `.drv` file has its outputs in alphabetical order, and the first one is the default, as in Nix.
        r#"[ false true true "dev" true ]"#
    );
    let path = machine.run(&["instantiate", "-A", "made"]).ok().to_owned();
    let out = eval("(import ./default.nix).made.dev.outPath");
    assert_eq!(
        eval(&format!(r#"(import (builtins.storePath "{path}")).dev.outPath"#)),
        out
    );
    // As an input it is the same derivation, with the whole closure behind it.
    let uses = |input: &str| {
        let uses = r#"(derivation { name = "uses"; system = "s"; builder = "/b"; inherit input; }).drvPath"#;
        eval(&format!("let input = {input}; in {uses}"))
    };
    assert_eq!(
        uses(&format!(r#"(import (builtins.storePath "{path}")).dev"#)),
        uses("(import ./default.nix).made.dev")
    );
}

/// What is a part of a store path refers to what the store path refers to, as in current Nix.
#[test]
fn a_part_of_a_store_path_keeps_its_references() {
    let machine = Machine::new();
    let eval = |expression: &str| {
        let files = r#"let f = builtins.toFile "f" "hi"; g = builtins.toFile "g" "see ${f}"; in "#;
        machine
            .run(&["eval", "-E", &format!("{files}{expression}")])
            .ok()
            .to_owned()
    };
    let with = eval(r#"builtins.path { path = g; name = "h"; }"#);
    assert_eq!(with, r#""/nix/store/ab61k5m2cd01p9ai5zg51lkly2l6yjpn-h""#);
    let without = eval(r#"builtins.path { path = builtins.unsafeDiscardStringContext g; name = "h"; }"#);
    assert_eq!(without, r#""/nix/store/saffdd3ywmrq4p3jpqydd8bhx43gs7cc-h""#);
    let info = machine.run(&["store", "info", with.trim_matches('"')]);
    assert!(info.ok().contains("-f"), "{}", info.ok());
}

/// Every derivation of the example against stock Nix's answers. Needs the example's inputs.
#[test]
fn the_c_package_graph_instantiates_as_in_stock_nix() {
    let example = examples().join("ministdenv");
    if !example.join("inputs/.complete").exists() || example.join("inputs/.differs").exists() {
        let reason =
            "examples/ministdenv/inputs is not filled as inputs.sha256 says (examples/ministdenv/fetch does)";
        skipped("the_c_package_graph_instantiates_as_in_stock_nix", reason);
        return;
    }
    let table = std::fs::read_to_string(example.join("expected.tsv")).expect("the table can be read");
    let mut rows: Vec<(&str, &str)> = Vec::new();
    for row in table.lines().skip(1) {
        let mut columns = row.split('\t');
        let pair = (
            columns.next().expect("an attribute"),
            columns.next().expect("a derivation"),
        );
        if rows.last() != Some(&pair) {
            rows.push(pair);
        }
    }
    let machine = Machine::new();
    let file = example.to_string_lossy().into_owned();
    let mut arguments = vec!["instantiate", "-f", &file];
    for (attribute, _) in &rows {
        arguments.extend(["-A", attribute]);
    }
    let printed = machine.run(&arguments);
    let expected: Vec<&str> = rows.iter().map(|(_, path)| *path).collect();
    assert_eq!(printed.ok().lines().collect::<Vec<_>>(), expected);
}
