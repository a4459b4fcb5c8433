use super::*;
use std::collections::BTreeSet;
use tvix_node_protocol::build::{BuildKey, BuiltOutput, RecordInput};
use tvix_node_protocol::envelope::{NodeSecret, seal};
use tvix_node_protocol::path_info::NarHash;
use tvix_node_protocol::roster::{Founder, Genesis, Roles};
use tvix_node_swarm::roster::Roster;

fn secret(number: u8) -> NodeSecret {
    NodeSecret::from_bytes(&[number; 32])
}

fn path(name: &str) -> StorePath {
    let mut hash = [0; 20];
    hash.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..20]);
    StorePath::from_parts(hash, name).unwrap()
}

fn tree(number: u8) -> TreeDigest {
    TreeDigest([number; 32])
}

/// Members 1 and 2 by key, with the roles that are left of all after these are taken.
fn members(taken: &[(u8, &[Role])]) -> Members {
    let founder = |number: u8| Founder {
        key: secret(number).key(),
        name: format!("member-{number}"),
    };
    let mut founders = vec![founder(1), founder(2)];
    founders.sort_by_key(|founder| founder.key);
    let roster = Roster::new(Genesis {
        name: "team".into(),
        founders,
        threshold: 1,
        salt: [0; 32],
    })
    .unwrap();
    let distrusted = taken.iter().map(|(number, roles)| {
        let roles: Roles = roles.iter().copied().collect();
        (secret(*number).key(), roles)
    });
    roster.members(0).without(&distrusted.collect())
}

fn info(name: &str, content: u8) -> PathInfo {
    PathInfo {
        path: path(name),
        tree: tree(content),
        nar_hash: NarHash([content; 32]),
        nar_size: 100,
        references: BTreeSet::from([path("libc")]),
        deriver: Some(path("hello.drv")),
        ca: None,
        origin: Origin::Built,
        registered: 1,
        signatures: vec![],
    }
}

fn record(info: &PathInfo, builder: u8, inputs: &[(&str, u8)]) -> Envelope {
    let output = BuiltOutput {
        path: info.path.clone(),
        tree: info.tree,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.iter().cloned().collect(),
    };
    let inputs = inputs.iter().map(|(name, content)| RecordInput {
        path: path(name),
        tree: tree(*content),
    });
    let record = BuildRecord {
        build_key: BuildKey([0; 32]),
        request: None,
        derivation: path("hello.drv"),
        inputs: inputs.collect(),
        outputs: [("out".to_owned(), output)].into(),
        builder: secret(builder).key(),
        started: 1,
        finished: 2,
        sandbox: "test".into(),
    };
    seal(&record, &secret(builder)).unwrap()
}

fn built(builder: u8, inputs: &[(&str, u8)]) -> Shown {
    let info = info("hello", 1);
    let record = Some(record(&info, builder, inputs));
    Shown { info, record }
}

const NO_STORE: &[(u8, &[Role])] = &[(1, &[Role::Store]), (2, &[Role::Store])];

fn accepted(inputs: &[(&str, u8)]) -> Accepted {
    inputs
        .iter()
        .map(|(name, content)| (path(name), tree(*content)))
        .collect()
}

#[test]
fn a_record_counts_where_every_input_is_accepted_as_what_it_names() {
    let shown = built(2, &[("gcc", 5), ("libc", 6)]);
    let peer = secret(1).key();
    let judge =
        |inputs: &[(&str, u8)]| judge(&members(NO_STORE), peer, &shown, &accepted(inputs), Word::Counts);
    let builder = secret(2).key();
    assert_eq!(
        judge(&[("gcc", 5), ("libc", 6)]),
        Verdict::Accepted(Origin::Record { builder })
    );
    assert_eq!(
        judge(&[("gcc", 5)]),
        Verdict::Needs(vec![(path("libc"), tree(6))])
    );
    // A trojaned compiler under gcc's name.
    let Verdict::Refused(why) = judge(&[("gcc", 66), ("libc", 6)]) else {
        panic!()
    };
    assert!(why.contains("an input that is something else here"), "{why}");
}

#[test]
fn a_record_counts_only_by_a_member_with_the_role_build() {
    let peer = secret(1).key();
    let taken: &[(u8, &[Role])] = &[(1, &[Role::Store]), (2, &[Role::Store, Role::Build])];
    let Verdict::Refused(why) = judge(
        &members(taken),
        peer,
        &built(2, &[]),
        &Accepted::new(),
        Word::Counts,
    ) else {
        panic!()
    };
    assert!(why.contains("does not have the role 'build'"), "{why}");
    let Verdict::Refused(_) = judge(
        &members(NO_STORE),
        peer,
        &built(9, &[]),
        &Accepted::new(),
        Word::Counts,
    ) else {
        panic!("a stranger's record")
    };
}

#[test]
fn a_record_counts_only_for_exactly_its_content() {
    let peer = secret(1).key();
    let members = members(NO_STORE);
    let honest = built(2, &[]);
    assert!(matches!(
        judge(&members, peer, &honest, &Accepted::new(), Word::Counts),
        Verdict::Accepted(Origin::Record { .. })
    ));
    let changes: [fn(&mut Shown); 7] = [
        |shown| shown.info.tree = tree(9),
        |shown| shown.info.nar_hash = NarHash([9; 32]),
        |shown| shown.info.nar_size = 9,
        |shown| shown.info.references.clear(),
        |shown| shown.info.path = path("other"),
        |shown| shown.info.deriver = Some(path("other.drv")),
        |shown| shown.record.as_mut().unwrap().signature[3] ^= 1,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut shown = honest.clone();
        change(&mut shown);
        let verdict = judge(&members, peer, &shown, &Accepted::new(), Word::Counts);
        assert!(
            matches!(verdict, Verdict::Refused(_)),
            "change {number}: {verdict:?}"
        );
    }
}

#[test]
fn a_record_signed_by_another_than_its_builder_does_not_count() {
    let info = info("hello", 1);
    let mut envelope = record(&info, 2, &[]);
    let opened: BuildRecord = envelope.open().unwrap();
    envelope = seal(&opened, &secret(1)).unwrap();
    let shown = Shown {
        info,
        record: Some(envelope),
    };
    let verdict = judge(
        &members(NO_STORE),
        secret(1).key(),
        &shown,
        &Accepted::new(),
        Word::Counts,
    );
    let Verdict::Refused(why) = verdict else { panic!() };
    assert!(why.contains("signed by another"), "{why}");
}

#[test]
fn the_word_of_a_member_with_the_role_store_counts_for_itself_alone() {
    let shown = Shown {
        info: info("hello", 1),
        record: None,
    };
    let only_two: &[(u8, &[Role])] = &[(1, &[Role::Store])];
    let (one, two) = (secret(1).key(), secret(2).key());
    let verdict = judge(&members(only_two), two, &shown, &Accepted::new(), Word::Counts);
    assert_eq!(verdict, Verdict::Accepted(Origin::Peer { peer: two }));
    let verdict = judge(&members(only_two), one, &shown, &Accepted::new(), Word::Counts);
    assert!(matches!(verdict, Verdict::Refused(_)));
}

#[test]
fn nobody_s_word_counts_for_the_inputs_of_his_own_request() {
    let shown = Shown {
        info: info("hello", 1),
        record: None,
    };
    let one = secret(1).key();
    let judged = |word| judge(&members(&[]), one, &shown, &Accepted::new(), word);
    assert_eq!(
        judged(Word::Counts),
        Verdict::Accepted(Origin::Peer { peer: one })
    );
    assert!(matches!(judged(Word::DoesNotCount), Verdict::Refused(_)));
    // What speaks for itself does.
    let shown = built(2, &[]);
    let verdict = judge(&members(&[]), one, &shown, &Accepted::new(), Word::DoesNotCount);
    assert!(matches!(verdict, Verdict::Accepted(Origin::Record { .. })));
}

#[test]
fn what_names_itself_needs_nobody() {
    let mut info = info("x", 1);
    info.references.clear();
    info.deriver = None;
    let hash = tvix_node_protocol::nix::hash::NixHash::Sha256(info.nar_hash.0);
    let ca = CAHash::Nar(hash);
    info.path = build_ca_path("x", &ca, std::iter::empty(), false).unwrap();
    info.ca = Some(ca.to_nix_string());
    let shown = |info: &PathInfo| Shown {
        info: info.clone(),
        record: None,
    };
    let nobody = secret(9).key();
    let verdict = judge(
        &members(NO_STORE),
        nobody,
        &shown(&info),
        &Accepted::new(),
        Word::Counts,
    );
    assert_eq!(verdict, Verdict::Accepted(Origin::Content));
    // A content address that does not give the path proves nothing.
    info.path = path("x");
    let verdict = judge(
        &members(NO_STORE),
        nobody,
        &shown(&info),
        &Accepted::new(),
        Word::Counts,
    );
    assert!(matches!(verdict, Verdict::Refused(_)));
}
