use std::sync::Arc;

use tvix_node_protocol::build::BuildKey;
use tvix_node_protocol::envelope::NodeSecret;
use tvix_node_protocol::path_info::NarHash;
use tvix_node_protocol::roster::{Founder, Genesis};
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_protocol::trust::{PathPattern, TrustPolicy, TrustRule};
use tvix_node_swarm::roster::Roster;

use super::*;

const ME: u8 = 9;

fn key(number: u8) -> NodeKey {
    NodeSecret::from_bytes(&[number; 32]).key()
}

fn quorum_of(of: &[u8]) -> Requirement {
    Requirement::Quorum {
        needed: 2,
        of: of.iter().map(|number| key(*number)).collect(),
    }
}

/// A node in a team of three builders, with rules for the paths of these names.
fn grounds(rules: &[(&str, Requirement)]) -> Grounds {
    let founder = |number: u8| Founder {
        key: key(number),
        name: format!("member-{number}"),
    };
    let mut founders = vec![founder(1), founder(2), founder(3)];
    founders.sort_by_key(|founder| founder.key);
    let roster = Roster::new(Genesis {
        name: "team".into(),
        founders,
        threshold: 1,
        salt: [0; 32],
    });
    let rules = rules.iter().map(|(name, requirement)| TrustRule {
        paths: Some(PathPattern::new(name).unwrap()),
        builder: None,
        requirement: requirement.clone(),
        because: None,
    });
    Grounds {
        members: vec![Arc::new(roster.unwrap().members(0))],
        policy: Arc::new(TrustPolicy::new(rules.collect()).unwrap()),
        me: key(ME),
    }
}

/// That a builder has made an `a` and an `a-dev`.
fn record(builder: u8) -> BuildRecord {
    let output = |number: u8, name: &str| BuiltOutput {
        path: StorePath::from_parts([number; 20], name).unwrap(),
        tree: TreeDigest([number; 32]),
        nar_hash: NarHash([number; 32]),
        nar_size: 1,
        references: vec![],
    };
    BuildRecord {
        build_key: BuildKey([0; 32]),
        request: None,
        derivation: StorePath::from_parts([0; 20], "a.drv").unwrap(),
        inputs: vec![],
        outputs: [
            ("dev".to_owned(), output(2, "a-dev")),
            ("out".to_owned(), output(1, "a")),
        ]
        .into(),
        builder: key(builder),
        started: 1,
        finished: 2,
        sandbox: "test".into(),
    }
}

/// What is made of the record of the first of these builders when the records of all are at hand.
fn stands(rules: &[(&str, Requirement)], builders: &[u8]) -> Standing {
    let grounds = grounds(rules);
    let all: Vec<BuildRecord> = builders.iter().copied().map(record).collect();
    match ballot(&grounds, &all[0]) {
        Ballot::Decided(standing) => standing,
        Ballot::Open(matters) => {
            let known = vec![all.clone(); matters.len()];
            count(&grounds, &matters, &all[0], &known, |node| node.to_string())
        }
    }
}

fn refused_for(standing: &Standing, path: &str) -> bool {
    matches!(standing, Standing::Refused(why) if why.contains(path))
}

#[test]
fn what_a_node_built_itself_is_no_quorum_on_another_output() {
    let rules = [("a-dev", Requirement::Own), ("a", quorum_of(&[1, ME]))];
    assert_eq!(stands(&rules, &[ME]), Standing::Vote);
    let others = stands(&rules, &[1, ME]);
    assert!(refused_for(&others, "-a-dev"), "{others:?}");
    assert_eq!(stands(&rules, &[ME, 1]), Standing::Counts);
    let only_others = [("a-dev", Requirement::Own), ("a", quorum_of(&[1, 2]))];
    let own = stands(&only_others, &[ME, 1, 2]);
    assert!(refused_for(&own, "-a "), "{own:?}");
}

#[test]
fn those_who_agree_on_one_output_are_not_those_who_have_to_on_another() {
    let rules = [("a-dev", quorum_of(&[2, 3])), ("a", quorum_of(&[1, 2, 3]))];
    let stranger = stands(&rules, &[1, 2]);
    assert!(refused_for(&stranger, "-a-dev"), "{stranger:?}");
    assert_eq!(stands(&rules, &[2, 1]), Standing::Vote);
    assert_eq!(stands(&rules, &[2, 3]), Standing::Counts);
}

#[test]
fn one_rule_for_all_outputs_is_one_matter() {
    let rules = [("a*", quorum_of(&[1, 2]))];
    let grounds = grounds(&rules);
    let record = record(1);
    assert!(matches!(ballot(&grounds, &record), Ballot::Open(matters) if matters.len() == 1));
    assert_eq!(stands(&rules, &[1]), Standing::Vote);
    assert_eq!(stands(&rules, &[1, 2]), Standing::Counts);
    assert_eq!(stands(&[], &[1]), Standing::Counts);
}
