use super::*;
use crate::envelope::{NodeSecret, seal};

fn secret(seed: u8) -> NodeSecret {
    NodeSecret::from_bytes(&[seed; 32])
}

fn genesis() -> Genesis {
    let mut founders: Vec<Founder> = [(1, "one"), (2, "two")]
        .map(|(seed, name)| Founder {
            key: secret(seed).key(),
            name: name.into(),
        })
        .into();
    founders.sort_by_key(|founder| founder.key);
    Genesis {
        name: "team".into(),
        founders,
        threshold: 2,
        salt: [7; 32],
    }
}

fn member() -> Member {
    Member {
        swarm: genesis().swarm().unwrap(),
        key: secret(3).key(),
        name: "laptop".into(),
        roles: [Role::Request, Role::Build].into_iter().collect(),
        issued_by: secret(1).key(),
        serial: 1,
        issued_at: 100,
        not_after: 200,
        ticket: Some(TicketId([5; 32])),
    }
}

#[test]
fn statements_come_back_from_the_wire() {
    let envelope = seal(&member(), &secret(1)).unwrap();
    assert_eq!(envelope.open::<Member>().unwrap(), member());
    assert_eq!(member().check_structure(envelope.signer), Ok(()));
    let revoked = Revoked {
        swarm: member().swarm,
        key: secret(3).key(),
        revoked_by: secret(1).key(),
        serial: 1,
        issued_at: 150,
        fresh: [9; 32],
    };
    let envelope = seal(&revoked, &secret(1)).unwrap();
    assert_eq!(envelope.open::<Revoked>().unwrap(), revoked);
    assert_eq!(revoked.check_structure(envelope.signer), Ok(()));
}

#[test]
fn the_genesis_names_the_swarm() {
    let swarm = genesis().swarm().unwrap();
    assert_eq!(swarm, genesis().swarm().unwrap());
    let changes: [fn(&mut Genesis); 4] = [
        |genesis| genesis.salt[0] ^= 1,
        |genesis| genesis.threshold = 1,
        |genesis| genesis.founders.truncate(1),
        |genesis| genesis.name.push('s'),
    ];
    for change in changes {
        let mut genesis = genesis();
        change(&mut genesis);
        assert_ne!(genesis.swarm().unwrap(), swarm);
    }
}

#[test]
fn a_genesis_that_cannot_found_a_team_is_refused() {
    assert_eq!(genesis().check_structure(), Ok(()));
    let refused = |change: fn(&mut Genesis)| {
        let mut genesis = genesis();
        change(&mut genesis);
        genesis.check_structure().unwrap_err()
    };
    assert_eq!(refused(|g| g.founders.clear()), RosterError::Founders);
    assert_eq!(refused(|g| g.founders.reverse()), RosterError::Founders);
    assert!(matches!(
        refused(|g| g.threshold = 0),
        RosterError::Threshold { .. }
    ));
    assert!(matches!(
        refused(|g| g.threshold = 3),
        RosterError::Threshold { .. }
    ));
    assert!(matches!(
        refused(|g| g.name = "a\nb".into()),
        RosterError::Name(_)
    ));
}

#[test]
fn a_member_statement_that_does_not_hold_together_is_refused() {
    let refused = |change: fn(&mut Member)| {
        let mut member = member();
        change(&mut member);
        member.check_structure(secret(1).key()).unwrap_err()
    };
    assert!(matches!(refused(|m| m.name.clear()), RosterError::Name(_)));
    assert_eq!(refused(|m| m.not_after = 99), RosterError::Times);
    assert!(matches!(
        refused(|m| m.issued_by = secret(2).key()),
        RosterError::Signer { .. }
    ));
    assert!(matches!(
        refused(|m| m.key = secret(1).key()),
        RosterError::SelfIssued(_)
    ));
}

#[test]
fn the_salt_is_not_printed() {
    let printed = format!("{:?}", genesis());
    assert!(
        !printed.contains("salt") && !printed.contains("7, 7"),
        "{printed}"
    );
}

#[test]
fn roles_have_names_for_people() {
    for role in Role::ALL {
        assert_eq!(role.name().parse::<Role>().unwrap(), role);
    }
    assert!("root".parse::<Role>().unwrap_err().contains("request"));
    assert_eq!(Roles::all().to_string(), "request, build, store, invite");
}

#[test]
fn nobody_is_called_like_a_key_or_in_a_way_that_is_not_seen() {
    for name in ["ann", "ann's laptop", "deadbee", "0123456789x", "ägypten", "日本"] {
        check_name(name).unwrap();
    }
    let long = "a".repeat(MEMBER_NAME_BYTES + 1);
    for name in [
        "",
        "deadbeef",
        "DEADBEEF",
        &"a".repeat(64),
        "a\tb",
        "\u{202e}evil",
        "an\u{200b}n",
        "\u{feff}ann",
        &long,
    ] {
        let error = check_name(name).unwrap_err().to_string();
        assert!(error.contains("cannot be a name"), "{error}");
    }
}
