//! Parsers of what comes from elsewhere, with bytes that somebody changed: nothing panics, nothing has two
//! encodings where it must have one, and nothing is believed that was not said.
//!
//! A few hundred changes of each in every run, as many as one likes with `TVIX_NODE_MUTATIONS=N`.

#![allow(clippy::unwrap_used)]

mod mutation;

use std::collections::{BTreeMap, BTreeSet};

use mutation::each_change;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKey, BuildRecord, BuiltOutput, RecordInput, SwarmId};
use tvix_node_protocol::cbor;
use tvix_node_protocol::envelope::{Envelope, NodeKey, NodeSecret, seal};
use tvix_node_protocol::nix::derivation::{Derivation, DerivationFields, OutputKind, read_derivation};
use tvix_node_protocol::nix::hash::{CAHash, NixHash};
use tvix_node_protocol::nix::narinfo::{Compression, NarInfo, StoreDir, TrustedPublicKey};
use tvix_node_protocol::nix::signature::{NixSecretKey, fingerprint};
use tvix_node_protocol::path_info::NarHash;
use tvix_node_protocol::ticket::Ticket;
use tvix_node_protocol::tree::{Directory, Node, PathComponent, SymlinkTarget, Tree, TreeDigest};

/// Changes of each sample: all of them together take a second.
const USUAL: u64 = 2000;

fn path(name: &str) -> StorePath {
    StorePath::from_parts([7; 20], name).unwrap()
}

#[test]
fn a_changed_tree_is_refused_or_the_only_encoding_of_another_one() {
    let name = |text: &str| PathComponent::new(text.as_bytes()).unwrap();
    let mut directory = Directory::default();
    directory
        .insert(name("a"), Node::Directory(TreeDigest([1; 32])))
        .unwrap();
    directory.insert(name("b"), Node::file(b"bytes", true)).unwrap();
    directory
        .insert(name("c"), Node::Symlink(SymlinkTarget::new(b"../b").unwrap()))
        .unwrap();
    let bytes = Tree::Directory(directory).to_bytes();
    each_change("a tree", &bytes, USUAL, |changed| {
        let digest = TreeDigest(*blake3::hash(changed).as_bytes());
        match Tree::from_bytes(changed, digest) {
            Err(_) => true,
            Ok(tree) => {
                assert_eq!(tree.to_bytes(), changed);
                false
            }
        }
    });
}

#[test]
fn a_changed_derivation_has_another_name_and_reads_back_as_it_was_read() {
    let fields = DerivationFields {
        name: "x".to_owned(),
        outputs: BTreeMap::from([(
            "out".to_owned(),
            OutputKind::Fixed(CAHash::Flat(NixHash::Sha256([3; 32]))),
        )]),
        input_derivations: BTreeMap::new(),
        input_sources: BTreeSet::from([path("source")]),
        system: b"x86_64-linux".to_vec(),
        builder: b"/bin/sh".to_vec(),
        arguments: vec![b"-c".to_vec(), b"echo \"a\\b\"\n".to_vec()],
        environment: BTreeMap::from([
            (b"name".to_vec(), b"x".to_vec()),
            (b"e".to_vec(), vec![0xff, b'\t']),
        ]),
    };
    let made = fields.instantiate(|_| None).unwrap();
    read_derivation(&made.drv_path, &made.aterm).unwrap();
    each_change("a derivation", &made.aterm, USUAL, |changed| {
        if let Ok(read) = Derivation::from_aterm_bytes(changed, "x") {
            let written = read.to_aterm_bytes();
            // As in Nix, the system is written without escapes: what has a quote in it does not read back.
            if let Ok(again) = Derivation::from_aterm_bytes(&written, "x") {
                assert_eq!(again.to_aterm_bytes(), written);
            }
        }
        let refused = read_derivation(&made.drv_path, changed).is_err();
        assert!(refused || changed == made.aterm);
        refused
    });
}

#[test]
fn a_changed_narinfo_is_not_believed_for_what_nobody_signed() {
    let secret = NixSecretKey::from_bytes("cache-1", &[5; 32]).unwrap();
    let keys: [TrustedPublicKey; 1] = [secret.public().parse().unwrap()];
    let (hash, references) = (NarHash([4; 32]), BTreeSet::from([path("a"), path("b")]));
    let signature = secret.sign(&fingerprint(&path("a"), hash, 1234, &references));
    let info = NarInfo::builder(path("a"), "nar/a.nar.xz", NixHash::Sha256(hash.0), 1234)
        .compression(Compression::Xz)
        .references(references)
        .deriver(Some(path("a.drv")))
        .signatures([signature])
        .build()
        .unwrap();
    let store_dir = StoreDir::default();
    assert!(info.has_valid_signature(&store_dir, &keys));
    let signed = info.fingerprint(&store_dir);
    each_change("a narinfo", &info.to_canonical_bytes(), USUAL, |changed| {
        let Ok(read) = NarInfo::parse_in(&store_dir, changed) else {
            return true;
        };
        let written = read.to_canonical_bytes();
        let again = NarInfo::parse_in(&store_dir, &written).unwrap();
        assert_eq!(again.to_canonical_bytes(), written);
        let believed = read.has_valid_signature(&store_dir, &keys);
        assert!(!believed || read.fingerprint(&store_dir) == signed);
        !believed
    });
}

fn record() -> BuildRecord {
    let output = BuiltOutput {
        path: path("x"),
        tree: TreeDigest([1; 32]),
        nar_hash: NarHash([2; 32]),
        nar_size: 3,
        references: vec![path("a")],
    };
    BuildRecord {
        build_key: BuildKey([1; 32]),
        request: None,
        derivation: path("x.drv"),
        inputs: vec![RecordInput {
            path: path("a"),
            tree: TreeDigest([9; 32]),
        }],
        outputs: BTreeMap::from([("out".to_owned(), output)]),
        builder: NodeSecret::from_bytes(&[8; 32]).key(),
        started: 1,
        finished: 2,
        sandbox: "namespaces".to_owned(),
    }
}

#[test]
fn a_changed_record_is_nobodys() {
    let envelope = seal(&record(), &NodeSecret::from_bytes(&[8; 32])).unwrap();
    each_change("a record", &envelope.to_bytes().unwrap(), USUAL / 4, |changed| {
        let Ok(read) = Envelope::from_bytes(changed, changed.len()) else {
            return true;
        };
        assert_eq!(read.to_bytes().unwrap(), changed, "there is one encoding");
        match read.open::<BuildRecord>() {
            Err(_) => true,
            Ok(opened) => {
                assert_eq!((opened, read), (record(), envelope.clone()));
                false
            }
        }
    });
    // Signed by somebody, whatever it says.
    let payload = cbor::to_vec(&record()).unwrap();
    each_change(
        "what a record says",
        &payload,
        USUAL,
        |changed| match cbor::from_slice::<BuildRecord>(changed, changed.len()) {
            Err(_) => true,
            Ok(read) => {
                assert_eq!(cbor::to_vec(&read).unwrap(), changed, "there is one encoding");
                false
            }
        },
    );
}

#[test]
fn a_changed_ticket_is_recognised() {
    let ticket = Ticket {
        swarm: SwarmId([1; 32]),
        inviter: NodeKey([2; 32]),
        addresses: vec!["/ip4/192.0.2.1/tcp/4001".to_owned()],
        not_after: 7,
        secret: [3; 16],
        founder: None,
    };
    let text = ticket.to_text().unwrap();
    each_change("a ticket", text.as_bytes(), USUAL, |changed| {
        let read = std::str::from_utf8(changed)
            .ok()
            .and_then(|text| Ticket::from_text(text).ok());
        match read {
            None => true,
            Some(read) => {
                assert_eq!(read.to_text().unwrap(), text);
                false
            }
        }
    });
}
