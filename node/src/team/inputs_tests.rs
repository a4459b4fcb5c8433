use super::*;
use tvix_node_protocol::nix::derivation::{DerivationFields, OutputKind};
use tvix_node_protocol::nix::hash::CAHash;
use tvix_node_protocol::nix::store_path::build_ca_path;
use tvix_node_protocol::path_info::NarHash;
use tvix_node_protocol::tree::TreeDigest;

fn path(name: &str) -> StorePath {
    let mut hash = [0; 20];
    hash.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..20]);
    StorePath::from_parts(hash, name).unwrap()
}

fn inputs(closure: &[(&str, &[&str])]) -> Vec<Input> {
    let mut inputs: Vec<Input> = closure
        .iter()
        .map(|(name, references)| {
            let mut references: Vec<StorePath> = references.iter().map(|name| path(name)).collect();
            references.sort();
            Input {
                path: path(name),
                tree: TreeDigest([1; 32]),
                nar_hash: NarHash([1; 32]),
                nar_size: 1,
                references,
            }
        })
        .collect();
    inputs.sort_by(|a, b| a.path.cmp(&b.path));
    inputs
}

fn direct(names: &[&str]) -> BTreeSet<StorePath> {
    names.iter().map(|name| path(name)).collect()
}

#[test]
fn the_inputs_of_a_request_are_the_closure_of_what_the_build_reads() {
    let closure = inputs(&[("a", &["b"]), ("b", &["b", "c"]), ("c", &[])]);
    assert!(check_closure_of(&closure, &direct(&["a"])).is_ok());
    assert!(check_closure_of(&closure, &direct(&["a", "c"])).is_ok());
    let missing = check_closure_of(&closure, &direct(&["a", "d"])).unwrap_err();
    assert_eq!(missing.reason, RefusalReason::Structure);
    assert!(missing.message.contains("-d is needed by the build"), "{missing}");
    let stray = check_closure_of(&closure, &direct(&["b"])).unwrap_err();
    assert!(stray.message.contains("-a is among the inputs"), "{stray}");
}

#[test]
fn references_come_before_what_refers_to_them() {
    let closure = inputs(&[
        ("a", &["b", "c"]),
        ("b", &["c", "b"]),
        ("c", &["d"]),
        ("d", &[]),
        ("e", &["a"]),
    ]);
    let ordered = in_order(closure.iter().map(|input| (input, false)).collect());
    assert_eq!(ordered.len(), closure.len());
    for (at, (input, _)) in ordered.iter().enumerate() {
        for reference in input.references.iter().filter(|path| **path != input.path) {
            assert!(ordered[..at].iter().any(|(before, _)| before.path == *reference));
        }
    }
}

#[test]
fn what_a_request_says_of_known_content_must_fit() {
    let input = &inputs(&[("a", &["b"])])[0];
    let info = claimed(input, None);
    assert!(check_references(input, &info).is_ok());
    let mut other = info.clone();
    other.references.clear();
    assert_eq!(
        check_references(input, &other).unwrap_err().reason,
        RefusalReason::InputContent
    );
    let mut other = info;
    other.nar_hash = NarHash([2; 32]);
    assert_eq!(
        check_references(input, &other).unwrap_err().reason,
        RefusalReason::InputContent
    );
}

/// A derivation that reads this source, checked; and its output.
fn checked(source: &StorePath) -> (CheckedDerivations, StorePath) {
    let fields = DerivationFields {
        name: "made".to_owned(),
        outputs: [("out".to_owned(), OutputKind::InputAddressed)].into(),
        input_derivations: BTreeMap::new(),
        input_sources: [source.clone()].into(),
        system: b"x86_64-linux".to_vec(),
        builder: b"/bin/sh".to_vec(),
        arguments: vec![],
        environment: BTreeMap::new(),
    };
    let made = fields.instantiate(|_| None).unwrap();
    let derivation = read_derivation(&made.drv_path, &made.aterm).unwrap();
    let derivations = CheckedDerivations::default();
    let none = |_: &StorePath| Err(DepotError::Bug("it has no inputs".to_owned()));
    derivations.check(&made.drv_path, &derivation, none).unwrap();
    (derivations, made.outputs["out"].clone())
}

#[test]
fn a_source_that_was_taken_on_a_word_is_not_built_from_for_others() {
    let true_archive = NarHash([7; 32]);
    let ca = CAHash::parse(&source_address(true_archive)).unwrap();
    let source = build_ca_path("source", &ca, std::iter::empty(), false).unwrap();
    let (derivations, output) = checked(&source);
    let peer = Origin::Peer {
        peer: NodeKey([1; 32]),
    };
    let here = |path: &StorePath, nar_hash: NarHash, origin: &Origin| {
        let input = Input {
            path: path.clone(),
            nar_hash,
            ..inputs(&[("any", &[])])[0].clone()
        };
        let info = PathInfo {
            origin: origin.clone(),
            ..claimed(&input, None)
        };
        known_here(&derivations, &input, info).map(|_| ())
    };
    let refused = here(&source, NarHash([66; 32]), &peer).unwrap_err();
    assert_eq!(refused.reason, RefusalReason::InputContent);
    assert!(refused.message.contains("no content address"), "{refused}");
    // The store has computed what its archive hashes to.
    assert_eq!(here(&source, true_archive, &peer), Ok(()));
    assert_eq!(here(&output, NarHash([66; 32]), &peer), Ok(()));
}

#[test]
fn a_request_of_too_many_derivations_or_too_large_ones_is_refused() {
    let (root, mut room) = (path("root.drv"), DerivationRoom::default());
    assert_eq!(room.check_number(&root, REQUEST_DERIVATIONS), Ok(()));
    let refused = room.check_number(&root, REQUEST_DERIVATIONS + 1).unwrap_err();
    assert_eq!(refused.reason, RefusalReason::TooLarge);
    assert_eq!(room.take(REQUEST_DERIVATION_BYTES - 1), Ok(()));
    assert_eq!(room.take(2).unwrap_err().reason, RefusalReason::TooLarge);
    assert_eq!(room.take(1), Ok(()));
    assert_eq!(room.take(1).unwrap_err().reason, RefusalReason::TooLarge);
}

#[test]
fn a_request_of_too_large_inputs_is_refused_whatever_they_add_up_to() {
    let mut inputs = inputs(&[("a", &[]), ("b", &[])]);
    (inputs[0].nar_size, inputs[1].nar_size) = (REQUEST_INPUT_BYTES - 1, 1);
    assert_eq!(check_sizes(&inputs), Ok(()));
    for size in [2, u64::MAX] {
        inputs[1].nar_size = size;
        let refused = check_sizes(&inputs).unwrap_err();
        assert_eq!(refused.reason, RefusalReason::TooLarge);
    }
}
