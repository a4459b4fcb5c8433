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

/// A generator of numbers, the same for the same seed (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % most as u64) as usize
    }
}

/// Each path's size is that of what is reached from it, one by one.
fn sizes_one_by_one(graph: &[GraphPath]) -> Vec<u64> {
    let facts: BTreeMap<&StorePath, &GraphPath> = graph.iter().map(|facts| (&facts.path, facts)).collect();
    let size = |start: &GraphPath| {
        let mut seen = BTreeSet::new();
        let mut open = vec![&start.path];
        while let Some(path) = open.pop() {
            if seen.insert(path) {
                open.extend(&facts[path].references);
            }
        }
        seen.into_iter().map(|path| facts[path].nar_size).sum()
    };
    graph.iter().map(size).collect()
}

#[test]
fn sizes_are_those_of_what_is_reached_whatever_refers_to_what() {
    for seed in 1..=60 {
        let mut numbers = Numbers(seed);
        let count = 1 + numbers.below(200);
        // Sorted, as closures are.
        let path = |number: usize| {
            let mut hash = [0; 20];
            hash[..8].copy_from_slice(&(number as u64).to_be_bytes());
            hash.reverse();
            StorePath::from_parts(hash, "x").unwrap()
        };
        let mut paths: Vec<StorePath> = (0..count).map(path).collect();
        paths.sort();
        let circles = seed % 3 == 0;
        let mut graph = Vec::new();
        for at in 0..count {
            let mut references = BTreeSet::new();
            for _ in 0..numbers.below(4) {
                let other = if circles {
                    numbers.below(count)
                } else {
                    numbers.below(at + 1)
                };
                references.insert(&paths[other]);
            }
            let references: Vec<&StorePath> = references.into_iter().collect();
            graph.push(facts(&paths[at], 1 + numbers.below(1 << 30) as u64, &references));
        }
        let closure: Closure<'_> = graph.iter().map(|facts| Member { facts }).collect();
        let expected = sizes_one_by_one(&graph);
        // With several sets, and with one.
        assert_eq!(closure_sizes::<1>(&closure), expected, "seed {seed}");
        assert_eq!(closure_sizes::<SET_WORDS>(&closure), expected, "seed {seed}");
    }
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
