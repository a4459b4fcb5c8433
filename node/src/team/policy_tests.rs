use super::*;
use tvix_node_protocol::build::BuildKey;
use tvix_node_protocol::envelope::{NodeSecret, seal};
use tvix_node_protocol::path_info::NarHash;
use tvix_node_protocol::roster::{Founder, Genesis, Roles};
use tvix_node_protocol::trust::{PathPattern, TrustRule};
use tvix_node_swarm::roster::Roster;

/// Judged by a node that has set no rule, on the record shown alone.
fn judge(members: &Members, peer: NodeKey, shown: &Shown, accepted: &Accepted, word: Word) -> Verdict {
    let grounds = Grounds {
        members: vec![Arc::new(members.clone())],
        policy: Arc::new(TrustPolicy::default()),
        me: NodeKey([0xee; 32]),
    };
    super::judge(&grounds, peer, shown, &[], accepted, word)
}

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

/// What is here.
fn accepted(inputs: &[(&str, u8)]) -> Accepted {
    let here = inputs.iter().map(|(name, content)| (path(name), tree(*content)));
    Accepted {
        here: here.collect(),
        ..Accepted::default()
    }
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
fn only_what_is_here_contradicts_a_record() {
    let believed = |here: &[(&str, u8)], elsewhere: &[(&str, u8)]| {
        let mut inputs = accepted(here);
        let elsewhere = elsewhere
            .iter()
            .map(|(name, content)| (path(name), tree(*content)));
        inputs.elsewhere.extend(elsewhere);
        let shown = built(2, &[("gcc", 5)]);
        judge(&members(NO_STORE), secret(1).key(), &shown, &inputs, Word::Counts)
    };
    let builder = secret(2).key();
    let accepted = Verdict::Accepted(Origin::Record { builder });
    assert_eq!(believed(&[], &[("gcc", 5)]), accepted);
    // One member has built it twice differently, or two members have.
    assert_eq!(believed(&[], &[("gcc", 4), ("gcc", 5), ("gcc", 6)]), accepted);
    let needs = Verdict::Needs(vec![(path("gcc"), tree(5))]);
    assert_eq!(believed(&[], &[("gcc", 6)]), needs);
    let Verdict::Refused(why) = believed(&[("gcc", 6)], &[("gcc", 5)]) else {
        panic!("it is something else here")
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
        &Accepted::default(),
        Word::Counts,
    ) else {
        panic!()
    };
    assert!(why.contains("does not have the role 'build'"), "{why}");
    let Verdict::Refused(_) = judge(
        &members(NO_STORE),
        peer,
        &built(9, &[]),
        &Accepted::default(),
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
        judge(&members, peer, &honest, &Accepted::default(), Word::Counts),
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
        let verdict = judge(&members, peer, &shown, &Accepted::default(), Word::Counts);
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
        &Accepted::default(),
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
    let verdict = judge(
        &members(only_two),
        two,
        &shown,
        &Accepted::default(),
        Word::Counts,
    );
    assert_eq!(verdict, Verdict::Accepted(Origin::Peer { peer: two }));
    let verdict = judge(
        &members(only_two),
        one,
        &shown,
        &Accepted::default(),
        Word::Counts,
    );
    assert!(matches!(verdict, Verdict::Refused(_)));
}

#[test]
fn nobody_s_word_counts_for_the_inputs_of_his_own_request() {
    let shown = Shown {
        info: info("hello", 1),
        record: None,
    };
    let one = secret(1).key();
    let judged = |word| judge(&members(&[]), one, &shown, &Accepted::default(), word);
    assert_eq!(
        judged(Word::Counts),
        Verdict::Accepted(Origin::Peer { peer: one })
    );
    assert!(matches!(judged(Word::DoesNotCount), Verdict::Refused(_)));
    // What speaks for itself does.
    let shown = built(2, &[]);
    let verdict = judge(
        &members(&[]),
        one,
        &shown,
        &Accepted::default(),
        Word::DoesNotCount,
    );
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
        &Accepted::default(),
        Word::Counts,
    );
    assert_eq!(verdict, Verdict::Accepted(Origin::Content));
    // A content address that does not give the path proves nothing.
    info.path = path("x");
    let verdict = judge(
        &members(NO_STORE),
        nobody,
        &shown(&info),
        &Accepted::default(),
        Word::Counts,
    );
    assert!(matches!(verdict, Verdict::Refused(_)));
}

/// Judged with rules by a node of its own, whose key is 9.
fn by_rules(
    rules: &[(Option<&str>, Option<u8>, Requirement)],
    shown: &Shown,
    records: &[Envelope],
    inputs: &Accepted,
) -> Verdict {
    let mut policy = TrustPolicy::default();
    for (paths, builder, requirement) in rules {
        let rule = TrustRule {
            paths: paths.map(|paths| PathPattern::new(paths).unwrap()),
            builder: builder.map(|number| secret(number).key()),
            requirement: requirement.clone(),
            because: None,
        };
        policy.set(rule).unwrap();
    }
    let grounds = Grounds {
        members: vec![Arc::new(members(&[]))],
        policy: Arc::new(policy),
        me: secret(9).key(),
    };
    let records: Vec<BuildRecord> = records.iter().map(|record| opened(record).unwrap()).collect();
    super::judge(&grounds, secret(1).key(), shown, &records, inputs, Word::Counts)
}

fn both() -> Requirement {
    let of = vec![secret(1).key(), secret(2).key()];
    Requirement::Quorum { needed: 2, of }
}

fn refusal(verdict: Verdict) -> String {
    match verdict {
        Verdict::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_what_this_node_built_is_accepted_where_a_rule_says_so() {
    let own = [(None, None, Requirement::Own)];
    let why = refusal(by_rules(&own, &built(2, &[]), &[], &Accepted::default()));
    assert!(why.contains("takes only what it built itself"), "{why}");
    let verdict = by_rules(&own, &built(9, &[]), &[], &Accepted::default());
    assert!(matches!(verdict, Verdict::Accepted(Origin::Record { .. })));
    // For other paths nothing changes.
    let other = [(Some("other*"), None, Requirement::Own)];
    let verdict = by_rules(&other, &built(2, &[]), &[], &Accepted::default());
    assert!(matches!(verdict, Verdict::Accepted(Origin::Record { .. })));
}

#[test]
fn a_builder_that_a_rule_distrusts_counts_neither_by_its_record_nor_by_its_word() {
    let rules = [(None, Some(1), Requirement::Own)];
    let why = refusal(by_rules(&rules, &built(1, &[]), &[], &Accepted::default()));
    assert!(why.contains("a rule of this node says so"), "{why}");
    let word = Shown {
        info: info("hello", 1),
        record: None,
    };
    let why = refusal(by_rules(&rules, &word, &[], &Accepted::default()));
    assert!(why.contains("the word of"), "{why}");
    let verdict = by_rules(&rules, &built(2, &[]), &[], &Accepted::default());
    assert!(matches!(verdict, Verdict::Accepted(Origin::Record { .. })));
}

#[test]
fn a_builder_that_a_rule_distrusts_does_not_come_in_by_the_word_of_who_believes_it() {
    // Member 1 shows it, whose word counts.
    let rules = [(None, Some(2), Requirement::Own)];
    let word = |origin, record| Shown {
        info: PathInfo {
            origin,
            ..info("hello", 1)
        },
        record,
    };
    let [one, two, me] = [1, 2, 9].map(|number| secret(number).key());
    let torn = built(2, &[("input", 7)]).record;
    for shown in [
        built(2, &[]),
        word(Origin::Peer { peer: one }, torn),
        word(Origin::Record { builder: two }, None),
        word(Origin::Peer { peer: two }, None),
    ] {
        let why = refusal(by_rules(&rules, &shown, &[], &Accepted::default()));
        assert!(why.contains("of whom nothing counts here"), "{why}");
    }
    for origin in [
        Origin::Peer { peer: one },
        Origin::Record { builder: me },
        Origin::Built,
    ] {
        let verdict = by_rules(&rules, &word(origin, None), &[], &Accepted::default());
        assert!(matches!(verdict, Verdict::Accepted(Origin::Peer { peer }) if peer == one));
    }
}

#[test]
fn a_quorum_agrees_is_too_small_or_disagrees() {
    let rules = [(Some("hel*"), None, both())];
    let inputs = accepted(&[("gcc", 5)]);
    let made =
        |builder: u8, content: u8, input: u8| record(&info("hello", content), builder, &[("gcc", input)]);
    let shown = built(2, &[("gcc", 5)]);
    let judged = |records: &[Envelope]| by_rules(&rules, &shown, records, &inputs);
    let builder = secret(2).key();
    assert_eq!(
        judged(&[made(1, 1, 5), made(2, 1, 5)]),
        Verdict::Accepted(Origin::Record { builder })
    );
    // One alone, the same one twice, and somebody who is not named.
    for records in [
        vec![made(2, 1, 5)],
        vec![made(2, 1, 5), made(2, 1, 5)],
        vec![made(2, 1, 5), made(9, 1, 5)],
    ] {
        assert!(refusal(judged(&records)).contains("too few"), "{records:?}");
    }
    let why = refusal(judged(&[made(1, 7, 5), made(2, 1, 5)]));
    assert!(
        why.contains("disagreed") && why.contains(&secret(1).key().to_string()),
        "{why}"
    );
    // From other inputs other things come, which says nothing.
    assert!(refusal(judged(&[made(1, 7, 6), made(2, 1, 5)])).contains("too few"));
    // They agree on what was made of a trojaned compiler.
    let trojaned = by_rules(
        &rules,
        &built(2, &[("gcc", 6)]),
        &[made(1, 1, 6), made(2, 1, 6)],
        &inputs,
    );
    assert!(refusal(trojaned).contains("an input that is something else here"));
    // Inputs that are not known yet have to be looked at.
    let unknown = by_rules(
        &rules,
        &shown,
        &[made(1, 1, 5), made(2, 1, 5)],
        &Accepted::default(),
    );
    assert_eq!(unknown, Verdict::Needs(vec![(path("gcc"), tree(5))]));
}

#[test]
fn a_quorum_compares_all_outputs_and_takes_nobody_s_word() {
    let rules = [(None, None, both())];
    let shown = built(2, &[]);
    let with_doc = |builder: u8, doc: u8| {
        let mut signed: BuildRecord = record(&shown.info, builder, &[]).open().unwrap();
        let mut output = signed.outputs["out"].clone();
        (output.path, output.tree) = (path("hello-doc"), tree(doc));
        signed.outputs.insert("doc".to_owned(), output);
        seal(&signed, &secret(builder)).unwrap()
    };
    let judged = |records: &[Envelope]| by_rules(&rules, &shown, records, &Accepted::default());
    let verdict = judged(&[with_doc(1, 3), with_doc(2, 3)]);
    assert!(matches!(verdict, Verdict::Accepted(_)), "{verdict:?}");
    assert!(refusal(judged(&[with_doc(1, 3), with_doc(2, 4)])).contains("disagreed"));
    let word = Shown {
        info: shown.info.clone(),
        record: None,
    };
    assert!(refusal(by_rules(&rules, &word, &[], &Accepted::default())).contains("too few"));
    // What is shown has to be what they signed, its references included.
    let mut other = shown.clone();
    other.info.references.clear();
    let records = [record(&shown.info, 1, &[]), record(&shown.info, 2, &[])];
    assert!(
        refusal(by_rules(&rules, &other, &records, &Accepted::default()))
            .contains("not what its builders signed")
    );
}
