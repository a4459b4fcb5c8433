//! Targets: what is found behind attribute paths, and what is instantiated of it.

use tvix_node_evaluator::{
    Action, Argument, DryRun, Event, ExpressionSource, Format, Options, Target, evaluate,
};

const PACKAGES: &str = r#"
{ suffix ? "", which ? [ ] }:
let
  mk = name: derivation { name = name + suffix; builder = "b"; system = "s"; outputs = [ "out" "dev" ]; };
in
{
  hello = mk "hello";
  world = mk "world";
  number = 1;
  inner = { recurseForDerivations = true; a = mk "a"; deeper = { b = mk "b"; }; };
  closed = { c = mk "c"; };
  list = [ (mk "l0") { recurseForDerivations = true; x = mk "lx"; } ];
  broken = throw "this one is broken";
  "x.y" = mk "dotted";
  function = { n ? "n" }: mk n;
  needs = { missing }: missing;
  count = builtins.length which;
  dev = (mk "hello").dev;
}
"#;

/// What targets came to, one line an event.
fn run(options: &Options, attributes: &[&str], action: Action) -> Vec<String> {
    let targets: Vec<Target> = attributes
        .iter()
        .map(|attribute| Target {
            source: ExpressionSource::Text(PACKAGES.to_owned()),
            attribute: (*attribute).to_owned(),
            action,
        })
        .collect();
    let mut lines = Vec::new();
    evaluate(options, &targets, &DryRun::default(), &mut |event| {
        lines.push(match event {
            Event::Derivation(found) => {
                assert!(found.outputs.contains_key("dev"), "all outputs are named");
                format!("{} {} {}", found.attribute, found.name, found.output_name)
            }
            Event::Value { text, .. } => String::from_utf8_lossy(&text).into_owned(),
            Event::Failed { attribute, error, .. } => format!("{attribute}: {}", error.message),
            Event::Finished { target } => format!("end {target}"),
        });
    })
    .expect("the options are valid");
    lines
}

fn instantiate(attributes: &[&str]) -> Vec<String> {
    run(&Options::default(), attributes, Action::Instantiate)
}

#[test]
fn attributes_are_found_along_their_path() {
    assert_eq!(instantiate(&["hello"]), ["hello hello out", "end 0"]);
    assert_eq!(
        instantiate(&["inner.deeper.b"]),
        ["inner.deeper.b b out", "end 0"]
    );
    assert_eq!(instantiate(&["list.0"]), ["list.0 l0 out", "end 0"]);
    assert_eq!(instantiate(&["\"x.y\""]), ["\"x.y\" dotted out", "end 0"]);
    assert_eq!(instantiate(&["function"]), ["function n out", "end 0"]);
    assert_eq!(instantiate(&["dev"]), ["dev hello dev", "end 0"]);
}

#[test]
fn what_is_not_there_is_said_with_the_nearest_names() {
    assert_eq!(
        instantiate(&["helo"]),
        [
            "helo: attribute 'helo' in selection path 'helo' not found\nDid you mean hello?",
            "end 0"
        ]
    );
    assert_eq!(
        instantiate(&["list.7"]),
        [
            "list.7: list index 7 in selection path 'list.7' is out of range",
            "end 0"
        ]
    );
    assert_eq!(
        instantiate(&["number.x"]),
        [
            "number.x: the expression selected by the selection path 'number.x' should be a set but is an integer",
            "end 0"
        ]
    );
    assert_eq!(
        instantiate(&["number"]),
        [
            "number: expression does not evaluate to a derivation (or a set or list of those)",
            "end 0"
        ]
    );
    assert!(instantiate(&["needs"])[0].contains("has an argument without a value ('missing')"));
}

#[test]
fn sets_are_entered_where_they_ask_for_it_and_failures_are_apart() {
    let mut lines = instantiate(&[""]);
    assert_eq!(
        lines.pop().as_deref(),
        Some("end 0"),
        "the target ends after its members"
    );
    lines.sort();
    assert_eq!(
        lines,
        [
            "broken: this one is broken",
            "dev hello dev",
            "hello hello out",
            "inner.a a out",
            "world world out",
        ]
    );
}

#[test]
fn members_of_lists_are_instantiated() {
    assert_eq!(
        instantiate(&["list"]),
        ["list.0 l0 out", "list.1.x lx out", "end 0"]
    );
}

#[test]
fn what_does_not_fit_one_heap_goes_on_with_a_fresh_one() {
    let attributes = ["", "list", "inner", "dev", "missing", "function"];
    let targets = attributes.map(|attribute| Target {
        source: ExpressionSource::Text(PACKAGES.to_owned()),
        attribute: attribute.to_owned(),
        action: Action::Instantiate,
    });
    let run = |heap_limit| {
        let options = Options {
            heap_limit,
            ..Options::default()
        };
        let mut lines = Vec::new();
        let summary = evaluate(&options, &targets, &DryRun::default(), &mut |event| {
            lines.push(match event {
                Event::Derivation(found) => {
                    format!("{} {} {}", found.target, found.attribute, found.drv_path)
                }
                Event::Failed {
                    target,
                    attribute,
                    error,
                } => format!("{target} {attribute}: {}", error.message),
                Event::Finished { target } => format!("{target} ends"),
                Event::Value { .. } => panic!("no value was asked for"),
            });
        })
        .expect("the options are valid");
        for target in 0..targets.len() {
            let last = lines.iter().rfind(|line| line.starts_with(&target.to_string()));
            assert_eq!(
                last,
                Some(&format!("{target} ends")),
                "a target ends after its members"
            );
        }
        lines.sort();
        (lines, summary)
    };
    let (together, one) = run(usize::MAX);
    let (apart, many) = run(0);
    assert_eq!(together, apart);
    assert_eq!(one.heaps, 1);
    // Every piece of work was begun on a heap of its own.
    assert!(many.heaps > 15, "{many:?}");
    assert_eq!((one.derivations, one.failures), (many.derivations, many.failures));
}

#[test]
fn a_failed_target_does_not_end_the_others() {
    assert_eq!(
        instantiate(&["broken", "hello", "nope"]),
        [
            "broken: this one is broken",
            "end 0",
            "hello hello out",
            "end 1",
            "nope: attribute 'nope' in selection path 'nope' not found",
            "end 2"
        ]
    );
}

#[test]
fn arguments_reach_functions_that_are_called_automatically() {
    let options = Options {
        arguments: vec![
            ("suffix".to_owned(), Argument::Text("-1.0".to_owned())),
            (
                "which".to_owned(),
                Argument::Expression("[ 1 (1 + 1) ]".to_owned()),
            ),
            ("unused".to_owned(), Argument::Text(String::new())),
        ],
        ..Options::default()
    };
    assert_eq!(
        run(&options, &["hello"], Action::Instantiate),
        ["hello hello-1.0 out", "end 0"]
    );
    assert_eq!(
        run(&options, &["count"], Action::Print(Format::Lazy)),
        ["2", "end 0"]
    );
    let wrong = Options {
        arguments: vec![("suffix".to_owned(), Argument::Expression("1 +".to_owned()))],
        ..Options::default()
    };
    let target = Target {
        source: ExpressionSource::Text("1".to_owned()),
        attribute: String::new(),
        action: Action::Print(Format::Lazy),
    };
    let error = evaluate(&wrong, &[target], &DryRun::default(), &mut |_| {}).expect_err("it does not parse");
    assert!(error.text.contains("syntax error"), "{}", error.text);
}

#[test]
fn values_are_printed_in_every_form() {
    let print = |format| run(&Options::default(), &["closed.c.outputs"], Action::Print(format));
    assert_eq!(print(Format::Strict), ["[ \"out\" \"dev\" ]", "end 0"]);
    assert_eq!(print(Format::Json), ["[\"out\",\"dev\"]", "end 0"]);
    assert_eq!(
        run(&Options::default(), &["hello.name"], Action::Print(Format::Raw)),
        ["hello", "end 0"]
    );
    assert_eq!(
        run(&Options::default(), &["closed"], Action::Print(Format::Lazy)),
        ["{ c = <CODE>; }", "end 0"]
    );
    assert_eq!(
        run(
            &Options::default(),
            &["closed.c.outputs"],
            Action::Print(Format::Xml {
                strict: true,
                locations: false
            })
        ),
        [
            "<?xml version='1.0' encoding='utf-8'?>\n<expr>\n  <list>\n    <string value=\"out\" />\n    \
             <string value=\"dev\" />\n  </list>\n</expr>\n",
            "end 0"
        ]
    );
}
