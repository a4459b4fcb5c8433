use super::*;

fn path(name: &str) -> StorePath {
    StorePath::from_parts([7; 20], name).unwrap()
}

fn pattern(text: &str) -> PathPattern {
    PathPattern::new(text).unwrap()
}

fn key(number: u8) -> NodeKey {
    NodeKey([number; 32])
}

fn rule(paths: Option<&str>, builder: Option<u8>, requirement: Requirement) -> TrustRule {
    TrustRule {
        paths: paths.map(pattern),
        builder: builder.map(key),
        requirement,
        because: None,
    }
}

fn quorum(needed: u32, of: &[u8]) -> Requirement {
    let of = of.iter().map(|number| key(*number)).collect();
    Requirement::Quorum { needed, of }
}

#[test]
fn patterns_are_matched_against_names_and_whole_paths() {
    let cases = [
        ("hello", "hello", true),
        ("hello", "hello-2.10", false),
        ("hello*", "hello-2.10", true),
        ("*openssl*", "openssl-3", true),
        ("*-openssl-*", "openssl-3", false),
        ("hello-?.10", "hello-2.10", true),
        ("a*b*c", "aXbXbXc", true),
        ("a*b*c", "aXbXbX", false),
        ("*", "x", true),
        ("**", "x", true),
        ("", "x", false),
    ];
    for (text, name, expected) in cases {
        let found = PathPattern::new(text).is_ok_and(|pattern| pattern.fits(&path(name)));
        assert_eq!(found, expected, "{text} {name}");
    }
    let whole = path("hello").to_absolute_path();
    assert!(pattern(&whole).fits(&path("hello")));
    assert!(pattern("/nix/store/*-hello").fits(&path("hello")));
    assert!(!pattern("/nix/store/*-hello").fits(&path("hello-1")));
}

#[test]
fn a_hostile_pattern_costs_little() {
    let stars = "*a".repeat(PATTERN_BYTES / 2);
    assert!(!pattern(&stars).fits(&path(&"b".repeat(200))));
    assert!(matches!(
        PathPattern::new(&"a".repeat(PATTERN_BYTES + 1)),
        Err(RuleError::PatternLength(_))
    ));
}

#[test]
fn bad_rules_are_refused_with_what_is_wrong() {
    let cases = [
        (rule(None, None, quorum(0, &[1])), "at least one"),
        (
            rule(None, None, quorum(3, &[1, 2])),
            "quorum of 3 cannot be had of 2",
        ),
        (rule(None, None, quorum(2, &[1, 1])), "named twice"),
        (
            rule(None, None, quorum(1, &[1, 2, 3, 4, 5, 6, 7, 8, 9])),
            "at most 8",
        ),
        (rule(None, Some(1), quorum(1, &[1])), "of several builders"),
        (rule(None, None, Requirement::Sample { percent: 0 }), "1% to 100%"),
        (
            rule(None, None, Requirement::Sample { percent: 101 }),
            "1% to 100%",
        ),
    ];
    for (rule, wanted) in cases {
        let error = TrustPolicy::default().set(rule.clone()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
        assert!(TrustPolicy::new(vec![rule]).is_err());
    }
    for text in ["a b", "hello/bin", "/usr/bin/*", "ü"] {
        assert!(PathPattern::new(text).is_err(), "{text}");
    }
}

#[test]
fn the_first_rule_that_fits_counts_and_the_general_one_comes_last() {
    let mut policy = TrustPolicy::default();
    assert_eq!(policy.for_path(&path("openssl-3")), &Requirement::Roster);
    policy
        .set(rule(Some("openssl-*"), None, quorum(1, &[1])))
        .unwrap();
    policy
        .set(rule(None, None, Requirement::Sample { percent: 5 }))
        .unwrap();
    policy.set(rule(Some("*-3"), None, Requirement::Own)).unwrap();
    assert_eq!(policy.for_path(&path("openssl-3")), &Requirement::Own);
    assert_eq!(policy.for_path(&path("openssl-1")), &quorum(1, &[1]));
    assert_eq!(policy.for_path(&path("x")), &Requirement::Sample { percent: 5 });
    // The same paths: it takes the other's place.
    policy.set(rule(Some("*-3"), None, Requirement::Roster)).unwrap();
    assert_eq!(policy.rules().len(), 3);
    assert_eq!(policy.for_path(&path("openssl-3")), &Requirement::Roster);
    assert!(policy.unset(Some(&pattern("*-3")), None));
    assert!(!policy.unset(Some(&pattern("*-3")), None));
    assert_eq!(policy.for_path(&path("openssl-3")), &quorum(1, &[1]));
}

#[test]
fn of_all_outputs_of_a_build_the_strictest_requirement_counts() {
    let mut policy = TrustPolicy::default();
    policy
        .set(rule(Some("a"), None, Requirement::Sample { percent: 5 }))
        .unwrap();
    policy.set(rule(Some("a-dev"), None, quorum(2, &[1, 2]))).unwrap();
    let (a, dev, doc) = (path("a"), path("a-dev"), path("a-doc"));
    assert_eq!(policy.for_paths([&doc]), &Requirement::Roster);
    assert_eq!(policy.for_paths([&a, &doc]), &Requirement::Sample { percent: 5 });
    assert_eq!(policy.for_paths([&a, &dev, &doc]), &quorum(2, &[1, 2]));
}

#[test]
fn a_rule_for_a_builder_adds_to_that_for_the_path() {
    let mut policy = TrustPolicy::default();
    policy.set(rule(None, Some(1), Requirement::Own)).unwrap();
    policy.set(rule(Some("x"), None, quorum(1, &[1, 2]))).unwrap();
    assert!(policy.distrusts(key(1), &path("x")) && policy.distrusts_wholly(key(1)));
    assert!(!policy.distrusts(key(2), &path("x")) && !policy.distrusts_wholly(key(2)));
    assert_eq!(
        policy.for_path(&path("y")),
        &Requirement::Roster,
        "it is for one builder"
    );
    policy.set(rule(Some("x"), Some(1), Requirement::Roster)).unwrap();
    assert!(!policy.distrusts(key(1), &path("x")) && policy.distrusts(key(1), &path("y")));
    assert!(!policy.distrusts_wholly(key(1)));
    policy
        .set(rule(None, None, Requirement::Sample { percent: 10 }))
        .unwrap();
    assert_eq!(policy.sampled(key(2), &path("y")), 10);
    policy.set(rule(None, Some(2), Requirement::Roster)).unwrap();
    assert_eq!(policy.sampled(key(2), &path("y")), 0);
    policy
        .set(rule(None, Some(2), Requirement::Sample { percent: 100 }))
        .unwrap();
    assert_eq!(policy.sampled(key(2), &path("x")), 100);
}

#[test]
fn there_is_a_bound_on_rules() {
    let mut policy = TrustPolicy::default();
    for number in 0..TRUST_RULES {
        let name = format!("p{number}");
        policy.set(rule(Some(&name), None, Requirement::Own)).unwrap();
    }
    let one_more = rule(Some("more"), None, Requirement::Own);
    assert_eq!(policy.set(one_more), Err(RuleError::TooManyRules));
    // One that takes another's place fits.
    policy.set(rule(Some("p0"), None, Requirement::Roster)).unwrap();
}

#[test]
fn rules_speak_of_a_node_by_the_key_that_it_has_where_they_are_applied() {
    let (home, apart, other) = (NodeKey([1; 32]), NodeKey([2; 32]), NodeKey([3; 32]));
    let rule = |builder, of: Vec<NodeKey>| TrustRule {
        paths: None,
        builder,
        requirement: Requirement::Quorum { needed: 2, of },
        because: None,
    };
    let own = |builder: NodeKey| TrustRule {
        requirement: Requirement::Own,
        ..rule(Some(builder), vec![])
    };
    let policy = TrustPolicy::new(vec![rule(None, vec![home, other]), own(home), own(other)]).unwrap();
    let renamed = policy.renamed(home, apart);
    assert_eq!(
        renamed.rules(),
        [rule(None, vec![apart, other]), own(apart), own(other)]
    );
    assert_eq!(renamed.renamed(apart, home), policy);
}
