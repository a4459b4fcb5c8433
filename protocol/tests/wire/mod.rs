//! Everything that other nodes, tickets and caches may bring, read from any bytes.
//!
//! The first byte says what the rest is read as. Shared by the test that replays the corpus and by the fuzzer
//! (`tests/fuzz`).

use tvix_node_protocol::build::{self, BuildRecord, BuildRequest};
use tvix_node_protocol::cbor;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::limits::SMALL_TREE;
use tvix_node_protocol::messages::{self, Message};
use tvix_node_protocol::nix::derivation::{Derivation, ModuloHash, check_output_paths};
use tvix_node_protocol::nix::hash::CAHash;
use tvix_node_protocol::nix::narinfo::{NarInfo, StoreDir};
use tvix_node_protocol::nix::signature::NixSecretKey;
use tvix_node_protocol::packed::Packed;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::presence::{PresenceHeader, PresenceWithdrawal};
use tvix_node_protocol::roster::{Genesis, Member, Revoked};
use tvix_node_protocol::ticket::Ticket;
use tvix_node_protocol::tree::{Tree, TreeDigest};
use tvix_node_protocol::trust::TrustPolicy;
use tvix_node_protocol::{StorePath, cbor::CborError};

use serde::{Serialize, de::DeserializeOwned};

/// What signs the statements that are looked at here.
const SIGNER: NodeKey = NodeKey([1; 32]);

/// Reads a value; what can be read can be written, and is then read as the same.
fn value<T: Serialize + DeserializeOwned>(bytes: &[u8], limit: usize) -> Option<T> {
    let read: Result<T, CborError> = cbor::from_slice(bytes, limit);
    let read = read.ok()?;
    let written = cbor::to_vec(&read).expect("what was read can be written");
    let again: T = cbor::from_slice(&written, usize::MAX).expect("what was written can be read");
    assert_eq!(cbor::to_vec(&again).expect("it can be written again"), written);
    Some(read)
}

/// Reads what is signed: there is one encoding of it.
fn statement<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let read: T = cbor::from_slice(bytes, 1 << 20).ok()?;
    let written = cbor::to_vec(&read).expect("what was read can be written");
    assert_eq!(written, bytes, "a second encoding of something signed");
    Some(read)
}

fn message<M: Message>(bytes: &[u8]) {
    value::<M>(bytes, M::LIMIT);
}

/// How each kind is read, by the first byte.
pub const KINDS: &[fn(&[u8])] = &[
    |bytes| {
        if let Ok(envelope) = Envelope::from_bytes(bytes, 1 << 20) {
            assert_eq!(envelope.to_bytes().expect("it can be written"), bytes);
            assert!(envelope.open::<BuildRequest>().is_err() || envelope.signer != SIGNER);
        }
    },
    |bytes| {
        if let Some(request) = statement::<BuildRequest>(bytes)
            && request.check_structure().is_ok()
        {
            request.build_key().expect("a checked request has a key");
        }
    },
    |bytes| {
        let _read = statement::<BuildRecord>(bytes);
    },
    |bytes| {
        if let Some(member) = statement::<Member>(bytes) {
            let _checked = member.check_structure(SIGNER);
        }
    },
    |bytes| {
        if let Some(revoked) = statement::<Revoked>(bytes) {
            let _checked = revoked.check_structure(SIGNER);
        }
    },
    |bytes| {
        if let Some(genesis) = statement::<Genesis>(bytes) {
            let _checked = genesis.check_structure();
        }
    },
    |bytes| {
        if let Some(header) = statement::<PresenceHeader>(bytes) {
            let _checked = header.check_structure(SIGNER);
        }
    },
    |bytes| {
        let _read = statement::<PresenceWithdrawal>(bytes);
    },
    message::<messages::JoinRequest>,
    message::<messages::JoinAnswer>,
    message::<messages::Hello>,
    message::<messages::RosterQuestion>,
    message::<messages::RosterAnswer>,
    message::<messages::RosterStatements>,
    message::<messages::RosterDone>,
    message::<messages::PresenceQuestion>,
    message::<messages::PresenceAnswer>,
    message::<messages::PathsQuestion>,
    message::<messages::PathAnswer>,
    message::<messages::TreeQuestion>,
    message::<messages::BlobsQuestion>,
    message::<messages::BlobQuestion>,
    message::<messages::TextsQuestion>,
    message::<messages::ServeAnswer>,
    message::<messages::BuildControl>,
    message::<messages::BuildFrame>,
    message::<messages::PushOffer>,
    message::<messages::PushFrame>,
    |bytes| {
        if let Some(info) = value::<PathInfo>(bytes, 1 << 20) {
            let _path = info.path.to_string();
        }
    },
    |bytes| {
        if let Some(inputs) = value::<Vec<build::Input>>(bytes, 1 << 20) {
            let _checked = build::check_closure(&inputs);
        }
    },
    |bytes| {
        let digest = TreeDigest(*blake3::hash(bytes).as_bytes());
        if let Ok(tree) = Tree::from_bytes(bytes, digest) {
            assert_eq!(tree.to_bytes(), bytes);
        }
    },
    |bytes| {
        if let Some(text) = text(bytes)
            && let Ok(ticket) = Ticket::from_text(text)
        {
            let written = ticket.to_text().expect("what was read can be written");
            Ticket::from_text(&written).expect("it reads what it writes");
        }
    },
    // Behind its checksum, which no fuzzer finds.
    |bytes| {
        if let Some(ticket) = value::<Ticket>(bytes, 1 << 16)
            && let Ok(written) = ticket.to_text()
            && let Ok(again) = Ticket::from_text(&written)
        {
            assert_eq!(again.to_text().expect("it can be written again"), written);
        }
    },
    |bytes| {
        if let Ok(derivation) = Derivation::from_aterm_bytes(bytes, "x") {
            let written = derivation.to_aterm_bytes();
            // As in Nix, system and outputs' names are written without escapes: what needs them does not read back.
            let special = |text: &str| text.contains(['"', '\\', '\n', '\r', '\t']);
            let outputs = derivation.outputs().keys().any(|output| special(output));
            if outputs {
                let computed = check_output_paths(&derivation, |_| Some(ModuloHash([0; 32])));
                computed.expect_err("no store path has such a name");
            }
            let inputs = derivation.input_derivations().values();
            let inputs = inputs
                .flat_map(|input| input.outputs())
                .any(|output| special(output));
            let plain = !outputs && !inputs && !special(derivation.system());
            if plain && let Ok(again) = Derivation::from_aterm_bytes(&written, "x") {
                assert_eq!(again.to_aterm_bytes(), written);
            }
        }
    },
    |bytes| {
        let folder = StoreDir::default();
        if let Ok(info) = NarInfo::parse_in(&folder, bytes) {
            let written = info.to_canonical_bytes();
            let again = NarInfo::parse_in(&folder, &written).expect("it reads what it writes");
            // Of a line that ends as in another system, the end is no part of it: each reading takes one away.
            let plain = !written.windows(2).any(|end| end == b"\r\n");
            assert!(!plain || again.to_canonical_bytes() == written);
        }
    },
    |bytes| {
        if let Some(text) = text(bytes)
            && let Ok(path) = text.parse::<StorePath>()
        {
            assert_eq!(path.to_string(), text);
        }
    },
    |bytes| {
        if let Some(text) = text(bytes)
            && let Ok(ca) = CAHash::parse(text)
        {
            let again = CAHash::parse(&ca.to_nix_string()).expect("it reads what it writes");
            assert_eq!(again, ca);
        }
    },
    |bytes| {
        if let Some(text) = text(bytes) {
            let _key = NixSecretKey::parse(text);
        }
    },
    |bytes| {
        let _read = value::<TrustPolicy>(bytes, 1 << 20);
    },
    message::<messages::ReachabilityQuestion>,
    message::<messages::ReachabilityAnswer>,
    message::<messages::PresenceCells>,
    message::<messages::TreesQuestion>,
    // A tree by its first directory, and what comes of it.
    |bytes| {
        let directory = bytes.split_first_chunk().and_then(|(length, rest)| {
            let length = u32::from_le_bytes(*length) as usize;
            rest.get(..length)
        });
        if let Some(directory) = directory {
            let root = TreeDigest(*blake3::hash(directory).as_bytes());
            if let Ok(packed) = Packed::from_bytes(bytes, root, SMALL_TREE) {
                let mut written = Vec::new();
                packed.append_to(&mut written);
                assert_eq!(written, bytes, "a second encoding of a tree");
            }
        }
    },
];

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Reads an input.
pub fn read(input: &[u8]) {
    if let Some((kind, bytes)) = input.split_first()
        && let Some(read) = KINDS.get(usize::from(*kind))
    {
        read(bytes);
    }
}
