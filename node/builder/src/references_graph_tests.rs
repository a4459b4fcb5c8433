use std::collections::BTreeMap;

use tvix_node_protocol::nix::derivation::{DerivationFields, OutputKind, read_derivation};
use tvix_node_protocol::path_info::NarHash;

use super::*;
use crate::build_spec::BuildInput;

fn path(number: u8, name: &str) -> StorePath {
    StorePath::from_parts([number; 20], name).unwrap()
}

fn facts(path: &StorePath, size: u64, references: &[&StorePath]) -> GraphPath {
    GraphPath {
        path: path.clone(),
        nar_hash: NarHash([7; 32]),
        nar_size: size,
        references: references.iter().map(|&reference| reference.clone()).collect(),
        ca: None,
    }
}

fn fields(name: &str) -> DerivationFields {
    DerivationFields {
        name: name.to_owned(),
        outputs: BTreeMap::from([("out".to_owned(), OutputKind::InputAddressed)]),
        input_derivations: BTreeMap::new(),
        input_sources: BTreeSet::new(),
        system: b"x86_64-linux".to_vec(),
        builder: b"/builder".to_vec(),
        arguments: Vec::new(),
        environment: BTreeMap::new(),
    }
}

/// A build that asks for the closure of `root` under the name `graph`.
fn asking(root: &StorePath, inputs: &[&StorePath], graph: Vec<GraphPath>) -> BuildSpec {
    let mut fields = fields("asks");
    fields.environment.insert(
        b"exportReferencesGraph".to_vec(),
        format!("graph {root}").into_bytes(),
    );
    let made = fields.instantiate(|_| None).unwrap();
    let derivation = read_derivation(&made.drv_path, &made.aterm).unwrap();
    let inputs = inputs
        .iter()
        .map(|&path| BuildInput {
            path: path.clone(),
            physical: "/nowhere".into(),
        })
        .collect();
    let mut spec = BuildSpec::new(derivation, made.drv_path, inputs);
    spec.graph = graph;
    spec
}

fn exported(spec: &BuildSpec) -> Result<BTreeMap<String, Closure<'_>>, Cause> {
    closures(spec, &DerivationOptions::read(&spec.derivation).unwrap())
}

#[test]
fn a_closure_is_told_sorted_with_references_and_sizes() {
    let (a, b, c) = (path(1, "a"), path(2, "b"), path(3, "c"));
    // a -> b -> b, and c that nobody asks for.
    let graph = vec![facts(&c, 1000, &[]), facts(&a, 1, &[&b]), facts(&b, 10, &[&b])];
    let spec = asking(&a, &[&a, &b, &c], graph);
    let graphs = exported(&spec).unwrap();
    let text = registration(&graphs["graph"]);
    assert_eq!(text, format!("{a}\n\n1\n{b}\n{b}\n\n1\n{b}\n"));
    let json = to_json(&graphs["graph"]);
    assert_eq!(json[0]["path"], a.to_string());
    assert_eq!(
        (json[0]["narSize"].as_u64(), json[0]["closureSize"].as_u64()),
        (Some(1), Some(11))
    );
    assert_eq!(
        (json[1]["narSize"].as_u64(), json[1]["closureSize"].as_u64()),
        (Some(10), Some(10))
    );
    assert_eq!(json[0]["narHash"], NarHash([7; 32]).to_nix());
    assert_eq!(json[0]["valid"], true);
    assert!(json[0].get("ca").is_none());
}

#[test]
fn outputs_of_derivations_in_a_closure_belong_to_it() {
    let made = fields("other").instantiate(|_| None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let physical = folder.path().join("other.drv");
    std::fs::write(&physical, &made.aterm).unwrap();
    let output = &made.outputs["out"];
    let graph = vec![facts(&made.drv_path, 1, &[]), facts(output, 2, &[])];
    let mut spec = asking(&made.drv_path, &[&made.drv_path, output], graph);
    spec.inputs[0].physical = physical;
    let graphs = exported(&spec).unwrap();
    let told: Vec<_> = graphs["graph"]
        .iter()
        .map(|member| member.facts.path.clone())
        .collect();
    assert!(told.contains(output) && told.contains(&made.drv_path) && told.len() == 2);
}

#[test]
fn what_is_not_an_input_or_not_known_is_refused_by_name() {
    let (a, b) = (path(1, "a"), path(2, "b"));
    let spec = asking(&a, &[], vec![facts(&a, 1, &[])]);
    assert!(matches!(exported(&spec), Err(Cause::Input { path, .. }) if path == a));
    let spec = asking(&a, &[&a], vec![facts(&a, 1, &[&b])]);
    assert!(matches!(exported(&spec), Err(Cause::Input { path, .. }) if path == b));
}
