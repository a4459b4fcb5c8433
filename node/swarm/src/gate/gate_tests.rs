use super::*;
use crate::roster::Roster;
use serde::{Deserialize, Serialize};
use tvix_node_protocol::build::{BuildKind, BuildLimits, BuildOptions};
use tvix_node_protocol::cbor;
use tvix_node_protocol::envelope::{NodeSecret, Statement, seal};
use tvix_node_protocol::limits::PAYLOAD_BYTES;
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::roster::{Founder, Genesis, Member, Roles};

const NOW: u64 = 10_000;
const BUILDER: u8 = 1;
const ANN: u8 = 2;
const GUEST: u8 = 3;
const STRANGER: u8 = 4;

fn secret(seed: u8) -> NodeSecret {
    NodeSecret::from_bytes(&[seed; 32])
}

fn key(seed: u8) -> NodeKey {
    secret(seed).key()
}

fn team() -> Roster {
    let mut roster = Roster::new(Genesis {
        name: "team".into(),
        founders: vec![Founder {
            key: key(BUILDER),
            name: "builder".into(),
        }],
        threshold: 1,
        salt: [7; 32],
    })
    .unwrap();
    for (subject, roles) in [(ANN, Roles::all()), (GUEST, [Role::Store].into_iter().collect())] {
        let member = Member {
            swarm: roster.swarm(),
            key: key(subject),
            name: format!("node {subject}"),
            roles,
            issued_by: key(BUILDER),
            serial: 0,
            issued_at: 100,
            not_after: 50_000,
            ticket: None,
        };
        roster.merge(seal(&member, &secret(BUILDER)).unwrap()).unwrap();
    }
    roster
}

fn request(requester: u8) -> BuildRequest {
    BuildRequest {
        swarm: team().swarm(),
        requester: key(requester),
        builder: key(BUILDER),
        derivation: StorePath::from_parts([1; 20], "x.drv").unwrap(),
        inputs: vec![],
        outputs: vec!["out".into()],
        kind: BuildKind::Regular,
        desired_store: None,
        options: BuildOptions::default(),
        limits: BuildLimits::NONE,
        urgency: 0,
        fresh: false,
        keep_failed: false,
        nonce: [9; 16],
        issued_at: NOW - 10,
        not_after: NOW + 600,
    }
}

struct Gate {
    gate: RequestGate,
    members: Members,
    home: tempfile::TempDir,
}

impl Gate {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let nonces = NonceStore::open(home.path()).unwrap();
        Self {
            gate: RequestGate::new(team().swarm(), key(BUILDER), nonces),
            members: team().members(NOW),
            home,
        }
    }

    fn send(&mut self, bytes: &[u8], sender: u8, now: u64) -> Result<Admitted, Refusal> {
        self.gate.check(bytes, key(sender), &self.members, now)
    }
}

fn sealed(request: &BuildRequest, signer: u8) -> Envelope {
    seal(request, &secret(signer)).unwrap()
}

fn bytes_of(request: &BuildRequest, signer: u8) -> Vec<u8> {
    sealed(request, signer).to_bytes().unwrap()
}

/// Why a request of Ann's is refused after a change, by a fresh gate.
fn refused(change: impl FnOnce(&mut BuildRequest)) -> RefusalReason {
    let mut request = request(ANN);
    change(&mut request);
    Gate::new()
        .send(&bytes_of(&request, ANN), ANN, NOW)
        .unwrap_err()
        .reason
}

#[test]
fn a_good_request_passes_and_is_named_by_its_payload() {
    let envelope = sealed(&request(ANN), ANN);
    let admitted = Gate::new().send(&envelope.to_bytes().unwrap(), ANN, NOW).unwrap();
    assert_eq!(admitted.request, request(ANN));
    assert_eq!(admitted.hash, RequestHash(envelope.payload_hash()));
}

#[test]
fn an_unsigned_request_is_refused() {
    let mut envelope = sealed(&request(ANN), ANN);
    envelope.signature = [0; 64];
    let error = Gate::new()
        .send(&envelope.to_bytes().unwrap(), ANN, NOW)
        .unwrap_err();
    assert_eq!(error.reason, RefusalReason::Signature);
    let bare = cbor::to_vec(&request(ANN)).unwrap();
    let error = Gate::new().send(&bare, ANN, NOW).unwrap_err();
    assert_eq!(error.reason, RefusalReason::Malformed);
    assert!(error.message.contains("not a signed request"), "{error}");
}

#[test]
fn a_stranger_is_refused_and_told_so() {
    let error = Gate::new()
        .send(&bytes_of(&request(STRANGER), STRANGER), STRANGER, NOW)
        .unwrap_err();
    assert_eq!(error.reason, RefusalReason::Stranger);
}

#[test]
fn nobody_asks_in_anothers_name_or_passes_on_anothers_request() {
    let mut gate = Gate::new();
    let in_anns_name = bytes_of(&request(ANN), GUEST);
    assert_eq!(
        gate.send(&in_anns_name, GUEST, NOW).unwrap_err().reason,
        RefusalReason::Structure
    );
    let anns = bytes_of(&request(ANN), ANN);
    assert_eq!(
        gate.send(&anns, GUEST, NOW).unwrap_err().reason,
        RefusalReason::Structure
    );
}

#[test]
fn a_request_for_another_builder_or_team_is_refused() {
    assert_eq!(
        refused(|request| request.builder = key(GUEST)),
        RefusalReason::Addressee
    );
    assert_eq!(
        refused(|request| request.swarm = SwarmId([0; 32])),
        RefusalReason::Addressee
    );
}

#[test]
fn a_request_is_good_for_its_time_and_the_stated_skew() {
    let expired = |end| refused(move |request| (request.issued_at, request.not_after) = (end - 100, end));
    assert_eq!(expired(NOW - CLOCK_SKEW - 1), RefusalReason::Expired);
    assert_eq!(
        refused(|request| {
            (request.issued_at, request.not_after) = (NOW + CLOCK_SKEW + 1, NOW + CLOCK_SKEW + 2);
        }),
        RefusalReason::FromTheFuture
    );
    assert_eq!(
        refused(|request| request.not_after = request.issued_at + REQUEST_LIFETIME + 1),
        RefusalReason::FromTheFuture
    );
    for (issued_at, not_after) in [
        (NOW - 500, NOW - CLOCK_SKEW),
        (NOW + CLOCK_SKEW, NOW + CLOCK_SKEW),
        (NOW, NOW + REQUEST_LIFETIME),
    ] {
        let mut request = request(ANN);
        (request.issued_at, request.not_after) = (issued_at, not_after);
        assert!(Gate::new().send(&bytes_of(&request, ANN), ANN, NOW).is_ok());
    }
}

#[test]
fn a_request_is_taken_once_also_after_a_restart() {
    let mut gate = Gate::new();
    let bytes = bytes_of(&request(ANN), ANN);
    gate.send(&bytes, ANN, NOW).unwrap();
    assert_eq!(
        gate.send(&bytes, ANN, NOW).unwrap_err().reason,
        RefusalReason::Replayed
    );
    gate.gate.nonces().syncer().sync().unwrap();
    let nonces = NonceStore::open(gate.home.path()).unwrap();
    gate.gate = RequestGate::new(team().swarm(), key(BUILDER), nonces);
    assert_eq!(
        gate.send(&bytes, ANN, NOW).unwrap_err().reason,
        RefusalReason::Replayed
    );
    // To the end of its time.
    let last = request(ANN).not_after + CLOCK_SKEW;
    assert_eq!(
        gate.send(&bytes, ANN, last).unwrap_err().reason,
        RefusalReason::Replayed
    );
    assert_eq!(
        gate.send(&bytes, ANN, last + 1).unwrap_err().reason,
        RefusalReason::Expired
    );
}

#[test]
fn who_lacks_the_role_is_refused() {
    let error = Gate::new()
        .send(&bytes_of(&request(GUEST), GUEST), GUEST, NOW)
        .unwrap_err();
    assert_eq!(error.reason, RefusalReason::Role);
    let distrusted = [(key(BUILDER), [Role::Build].into_iter().collect())].into();
    let mut gate = Gate::new();
    gate.members = team().members(NOW).without(&distrusted);
    let error = gate.send(&bytes_of(&request(ANN), ANN), ANN, NOW).unwrap_err();
    assert_eq!(
        error.reason,
        RefusalReason::Role,
        "a builder that may not build says so"
    );
}

#[test]
fn a_message_too_large_is_refused_by_its_size() {
    let error = Gate::new()
        .send(&vec![0; ENVELOPE_BYTES + 1], ANN, NOW)
        .unwrap_err();
    assert_eq!(error.reason, RefusalReason::TooLarge);
    let mut envelope = sealed(&request(ANN), ANN);
    envelope.payload = vec![0; PAYLOAD_BYTES + 1];
    let error = Gate::new()
        .send(&envelope.to_bytes().unwrap(), ANN, NOW)
        .unwrap_err();
    assert_eq!(error.reason, RefusalReason::TooLarge);
}

/// Signs bytes that are not a request as if they were one.
fn signed_payload(payload: Vec<u8>) -> Vec<u8> {
    struct Raw(Vec<u8>);
    impl Serialize for Raw {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(&self.0)
        }
    }
    impl<'de> Deserialize<'de> for Raw {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Vec::deserialize(deserializer).map(Self)
        }
    }
    impl Statement for Raw {
        const DOMAIN: &'static str = BuildRequest::DOMAIN;
        const VERSION: u16 = BuildRequest::VERSION;
    }
    // A byte string's encoding begins with its length; a payload without that head is signed by hand.
    let mut envelope = seal(&Raw(vec![]), &secret(ANN)).unwrap();
    envelope.payload = payload;
    let mut signed = b"tvix-node statement\0".to_vec();
    signed.extend_from_slice(&(envelope.domain.len() as u64).to_le_bytes());
    signed.extend_from_slice(envelope.domain.as_bytes());
    signed.extend_from_slice(&envelope.version.to_le_bytes());
    signed.extend_from_slice(&(envelope.payload.len() as u64).to_le_bytes());
    signed.extend_from_slice(&envelope.payload);
    envelope.signature = secret(ANN).sign_raw(&signed);
    assert!(envelope.verify().is_ok());
    envelope.to_bytes().unwrap()
}

#[test]
fn cbor_that_is_not_deterministic_is_refused() {
    let good = sealed(&request(ANN), ANN);
    // A map of fields with the length in a needlessly long form.
    assert_eq!(good.payload[0] & 0xe0, 0xa0);
    let fields = good.payload[0] & 0x1f;
    let longer = [&[0xb8, fields][..], &good.payload[1..]].concat();
    let error = Gate::new().send(&signed_payload(longer), ANN, NOW).unwrap_err();
    assert_eq!(error.reason, RefusalReason::Malformed);
    assert!(error.message.contains("deterministic"), "{error}");
    let envelope = good.to_bytes().unwrap();
    let fields = envelope[0] & 0x1f;
    let longer = [&[0xb8, fields][..], &envelope[1..]].concat();
    let error = Gate::new().send(&longer, ANN, NOW).unwrap_err();
    assert_eq!(error.reason, RefusalReason::Malformed);
}

#[derive(Serialize, Deserialize)]
struct Tomorrow(String);
impl Statement for Tomorrow {
    const DOMAIN: &'static str = BuildRequest::DOMAIN;
    const VERSION: u16 = BuildRequest::VERSION + 1;
}

#[derive(Serialize, Deserialize)]
struct Other(String);
impl Statement for Other {
    const DOMAIN: &'static str = "recipe";
    const VERSION: u16 = 1;
}

#[test]
fn an_unknown_version_is_refused_and_both_are_named() {
    let bytes = seal(&Tomorrow("x".into()), &secret(ANN))
        .unwrap()
        .to_bytes()
        .unwrap();
    let error = Gate::new().send(&bytes, ANN, NOW).unwrap_err();
    assert_eq!(error.reason, RefusalReason::Version);
    for version in [Tomorrow::VERSION, BuildRequest::VERSION] {
        assert!(error.message.contains(&format!("version {version}")), "{error}");
    }
}

#[test]
fn another_kind_of_statement_is_refused() {
    let bytes = seal(&Other("x".into()), &secret(ANN))
        .unwrap()
        .to_bytes()
        .unwrap();
    assert_eq!(
        Gate::new().send(&bytes, ANN, NOW).unwrap_err().reason,
        RefusalReason::Domain
    );
}

#[test]
fn a_request_that_does_not_hold_together_is_refused() {
    assert_eq!(
        refused(|request| request.outputs.clear()),
        RefusalReason::Structure
    );
    assert_eq!(refused(|request| request.not_after = 1), RefusalReason::Structure);
}

/// A request that is wrong in every way is refused for the first reason in the order; mending it
/// step by step gives one reason after the other.
#[test]
fn the_checks_come_in_their_order() {
    let mut gate = Gate::new();
    let mut wrong = request(STRANGER);
    wrong.outputs.clear();
    wrong.builder = key(GUEST);
    wrong.not_after = NOW - CLOCK_SKEW - 1;
    wrong.issued_at = wrong.not_after;
    let mut unsigned = sealed(&wrong, STRANGER);
    unsigned.signature[0] ^= 1;
    let mut reasons = vec![
        gate.send(&unsigned.to_bytes().unwrap(), STRANGER, NOW)
            .unwrap_err()
            .reason,
    ];
    let mends: [fn(&mut BuildRequest); 4] = [
        |_| (),
        |request| request.outputs = vec!["out".into()],
        |request| request.builder = key(BUILDER),
        |request| request.not_after = NOW + 10,
    ];
    for mend in mends {
        mend(&mut wrong);
        reasons.push(
            gate.send(&bytes_of(&wrong, STRANGER), STRANGER, NOW)
                .unwrap_err()
                .reason,
        );
    }
    assert_eq!(
        reasons,
        [
            RefusalReason::Signature,
            RefusalReason::Structure,
            RefusalReason::Addressee,
            RefusalReason::Expired,
            RefusalReason::Stranger,
        ]
    );
}

#[test]
fn a_refused_request_does_not_use_up_its_nonce() {
    let mut gate = Gate::new();
    let bytes = bytes_of(&request(ANN), ANN);
    let members = std::mem::take(&mut gate.members);
    assert_eq!(
        gate.send(&bytes, ANN, NOW).unwrap_err().reason,
        RefusalReason::Stranger
    );
    gate.members = members;
    assert!(gate.send(&bytes, ANN, NOW).is_ok());
}
