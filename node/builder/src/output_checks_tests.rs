use std::collections::BTreeMap;

use tvix_node_protocol::nix::derivation::{DerivationFields, OutputKind};

use super::*;
use crate::options::DerivationOptions;

fn path(number: u8, name: &str) -> StorePath {
    StorePath::from_parts([number; 20], name).unwrap()
}

/// The checks of a derivation with outputs `out` and `dev`.
fn read(variables: &[(&str, &str)]) -> Result<OutputChecks, Refused> {
    let mut fields = DerivationFields {
        name: "x".to_owned(),
        outputs: BTreeMap::from(["out", "dev"].map(|name| (name.to_owned(), OutputKind::InputAddressed))),
        input_derivations: BTreeMap::new(),
        input_sources: BTreeSet::new(),
        system: b"x86_64-linux".to_vec(),
        builder: b"/builder".to_vec(),
        arguments: Vec::new(),
        environment: BTreeMap::new(),
    };
    for (name, value) in variables {
        fields.environment.insert((*name).into(), (*value).into());
    }
    let made = fields.instantiate(|_| None).unwrap();
    let derivation = Derivation::from_aterm_bytes(&made.aterm, "x").unwrap();
    DerivationOptions::read(&derivation).map(|options| options.output_checks)
}

/// `out` (100 bytes) refers to itself and `dev`, `dev` (10) to `lib` (1000), `lib` to `libc` (5).
fn apply(checks: &OutputChecks) -> Result<(), OutputCheckError> {
    let [out, dev, lib, libc] = [path(1, "out"), path(2, "dev"), path(3, "lib"), path(4, "libc")];
    let references = [
        BTreeSet::from([out.clone(), dev.clone()]),
        BTreeSet::from([lib.clone()]),
        BTreeSet::from([libc.clone()]),
        BTreeSet::new(),
    ];
    let facts = |index: usize, nar_size| PathFacts {
        nar_size,
        references: &references[index],
    };
    let outputs = BTreeMap::from([
        ("out".to_owned(), (out, facts(0, 100))),
        ("dev".to_owned(), (dev, facts(1, 10))),
    ]);
    checks.apply(&outputs, |path| {
        (*path == lib)
            .then(|| facts(2, 1000))
            .or_else(|| (*path == libc).then(|| facts(3, 5)))
    })
}

fn forbidden(checks: &OutputChecks) -> Vec<String> {
    match apply(checks) {
        Err(OutputCheckError::Forbidden { paths, .. }) => {
            paths.iter().map(|path| path.name().to_owned()).collect()
        }
        Ok(()) => Vec::new(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn lists_in_the_environment_hold_for_all_outputs() {
    let (lib, libc) = (path(3, "lib").to_string(), path(4, "libc").to_string());
    let one = |name: &str, value: &str| forbidden(&read(&[(name, value)]).unwrap());
    assert!(read(&[]).unwrap().is_empty());
    assert_eq!(one("allowedReferences", &format!("out dev {lib}")), [""; 0]);
    assert_eq!(one("allowedReferences", &format!("out dev {libc}")), ["lib"]);
    // An empty list allows nothing, no list everything.
    assert_eq!(one("allowedReferences", ""), ["lib"]);
    assert_eq!(one("allowedRequisites", &format!("dev {lib} {libc}")), [""; 0]);
    assert_eq!(one("allowedRequisites", &format!("dev {lib}")), ["libc"]);
    assert_eq!(one("disallowedReferences", &libc), [""; 0]);
    assert_eq!(one("disallowedReferences", &format!("{lib}/include")), ["lib"]);
    assert_eq!(one("disallowedRequisites", &libc), ["libc"]);
    assert_eq!(one("disallowedRequisites", "out"), [""; 0]);
}

#[test]
fn structured_checks_are_per_output() {
    let read = |json: &str| read(&[("__json", &format!(r#"{{"outputChecks":{json}}}"#))]);
    let libc = path(4, "libc").to_string();
    assert!(apply(&read(r#"{"out":{"maxSize":100},"dev":{"maxSize":10}}"#).unwrap()).is_ok());
    assert!(matches!(
        apply(&read(r#"{"out":{"maxSize":99}}"#).unwrap()),
        Err(OutputCheckError::TooLarge {
            size: 100,
            limit: 99,
            ..
        })
    ));
    assert!(matches!(
        apply(&read(r#"{"out":{"maxClosureSize":1114}}"#).unwrap()),
        Err(OutputCheckError::ClosureTooLarge { size: 1115, .. })
    ));
    assert!(apply(&read(r#"{"dev":{"maxClosureSize":1015}}"#).unwrap()).is_ok());
    assert_eq!(
        forbidden(&read(&format!(r#"{{"dev":{{"disallowedRequisites":["{libc}"]}}}}"#)).unwrap()),
        ["libc"]
    );
    // Here an output does not forget itself.
    assert_eq!(
        forbidden(&read(r#"{"out":{"allowedReferences":["dev"]}}"#).unwrap()),
        ["out"]
    );
    for wrong in [
        "[]",
        r#"{"out":1}"#,
        r#"{"out":{"maxSize":"1"}}"#,
        r#"{"out":{"allowedReferences":"x"}}"#,
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn names_of_no_output_are_told() {
    let checks = read(&[("allowedReferences", "lib")]).unwrap();
    assert!(matches!(apply(&checks), Err(OutputCheckError::NoSuchOutput { named, .. }) if named == "lib"));
}

#[test]
fn references_to_be_discarded_are_read() {
    let json = r#"{"unsafeDiscardReferences":{"out":true,"dev":false}}"#;
    let text = format!(
        r#"Derive([("out","/nix/store/00000000000000000000000000000000-x","","")],[],[],"x86_64-linux","/b",[],[("__json",{})])"#,
        serde_json::to_string(json).unwrap()
    );
    let derivation = Derivation::from_aterm_bytes(text.as_bytes(), "x").unwrap();
    let options = DerivationOptions::read(&derivation).unwrap();
    assert_eq!(options.discard_references, BTreeSet::from(["out".to_owned()]));
}
