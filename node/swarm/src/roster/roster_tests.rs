use super::*;
use crate::limits::CHAIN;
use tvix_node_protocol::envelope::{NodeSecret, seal};
use tvix_node_protocol::roster::{Founder, Lapse, Role, Roles};

const NOW: u64 = 1000;

fn secret(seed: u8) -> NodeSecret {
    NodeSecret::from_bytes(&[seed; 32])
}

fn key(seed: u8) -> NodeKey {
    secret(seed).key()
}

fn roster_of(founders: &[u8], threshold: u16) -> Roster {
    let mut founders: Vec<Founder> = founders
        .iter()
        .map(|seed| Founder {
            key: key(*seed),
            name: format!("founder {seed}"),
        })
        .collect();
    founders.sort_by_key(|founder| founder.key);
    Roster::new(Genesis {
        name: "team".into(),
        founders,
        threshold,
        salt: [7; 32],
    })
    .unwrap()
}

/// Builds statements about one team.
struct Scribe(SwarmId);

impl Scribe {
    fn member(&self, issuer: u8, subject: u8, roles: &[Role]) -> Envelope {
        self.member_with(issuer, subject, |member| {
            member.roles = roles.iter().copied().collect();
        })
    }

    fn member_with(&self, issuer: u8, subject: u8, change: impl FnOnce(&mut Member)) -> Envelope {
        let mut member = Member {
            swarm: self.0,
            key: key(subject),
            name: format!("node {subject}"),
            roles: Roles::all(),
            issued_by: key(issuer),
            serial: 0,
            issued_at: 100,
            not_after: 5000,
            ticket: None,
        };
        change(&mut member);
        seal(&member, &secret(issuer)).unwrap()
    }

    fn revoked(&self, signer: u8, subject: u8) -> Envelope {
        let revoked = Revoked {
            swarm: self.0,
            key: key(subject),
            revoked_by: key(signer),
            serial: 0,
            issued_at: 100,
            fresh: [subject ^ signer; 32],
        };
        seal(&revoked, &secret(signer)).unwrap()
    }
}

fn team() -> (Roster, Scribe) {
    let roster = roster_of(&[1], 1);
    let scribe = Scribe(roster.swarm());
    (roster, scribe)
}

#[test]
fn founders_have_every_role_and_strangers_none() {
    let (roster, _) = team();
    let members = roster.members(NOW);
    assert!(Role::ALL.into_iter().all(|role| members.may(key(1), role)));
    assert!(!members.contains(key(2)));
}

#[test]
fn a_chain_of_issuers_reaches_up_to_a_founder() {
    let (mut roster, scribe) = team();
    assert!(
        roster
            .merge(scribe.member(1, 2, &[Role::Invite, Role::Build]))
            .unwrap()
    );
    assert!(roster.merge(scribe.member(2, 3, &[Role::Build])).unwrap());
    let members = roster.members(NOW);
    assert!(members.may(key(3), Role::Build));
    assert_eq!(members.get(key(3)).unwrap().issued_by, Some(key(2)));
}

#[test]
fn who_may_not_invite_brings_nobody_in() {
    let (mut roster, scribe) = team();
    roster.merge(scribe.member(1, 2, &[Role::Build])).unwrap();
    roster.merge(scribe.member(2, 3, &[Role::Build])).unwrap();
    assert!(!roster.members(NOW).contains(key(3)));
    // A stranger's word does not even enter.
    roster.merge(scribe.member(8, 9, &[Role::Build])).unwrap();
    assert!(!roster.members(NOW).contains(key(9)));
    assert_eq!(roster.ids().len(), 2);
}

#[test]
fn nobody_gives_more_than_it_has() {
    let (mut roster, scribe) = team();
    roster
        .merge(scribe.member(1, 2, &[Role::Invite, Role::Request]))
        .unwrap();
    roster.merge(scribe.member(2, 3, &Role::ALL)).unwrap();
    let members = roster.members(NOW);
    assert!(members.may(key(3), Role::Request));
    assert!(!members.may(key(3), Role::Build));
    assert!(!members.may(key(3), Role::Store));
}

#[test]
fn a_statement_is_void_after_its_time_and_before_it() {
    let (mut roster, scribe) = team();
    roster
        .merge(scribe.member_with(1, 2, |member| {
            (member.issued_at, member.not_after) = (1000, 2000);
        }))
        .unwrap();
    assert!(
        !roster
            .members(1000 - crate::limits::CLOCK_SKEW - 1)
            .contains(key(2))
    );
    assert!(roster.members(1000).contains(key(2)));
    assert!(roster.members(2000).contains(key(2)));
    assert!(!roster.members(2001).contains(key(2)));
    assert!(roster.to_renew(2001).contains(&key(2)));
}

#[test]
fn a_revocation_wins_for_ever_whatever_the_order() {
    let (roster, scribe) = team();
    let before = scribe.member(1, 2, &Role::ALL);
    let revoked = scribe.revoked(1, 2);
    let after = scribe.member_with(1, 2, |member| member.issued_at = 900);
    for order in [
        [&before, &revoked, &after],
        [&revoked, &before, &after],
        [&after, &before, &revoked],
    ] {
        let mut roster = roster.clone();
        for envelope in order {
            roster.merge(envelope.clone()).unwrap();
        }
        assert!(
            !roster.members(NOW).contains(key(2)),
            "a revoked key never returns"
        );
    }
}

#[test]
fn who_was_invited_by_a_revoked_key_needs_a_new_statement() {
    let (mut roster, scribe) = team();
    roster.merge(scribe.member(1, 2, &Role::ALL)).unwrap();
    roster.merge(scribe.member(2, 3, &Role::ALL)).unwrap();
    roster.merge(scribe.revoked(1, 2)).unwrap();
    assert!(!roster.members(NOW).contains(key(3)));
    assert_eq!(roster.to_renew(NOW), BTreeSet::from([key(3)]));
    roster.merge(scribe.member(1, 3, &[Role::Build])).unwrap();
    assert!(roster.members(NOW).may(key(3), Role::Build));
}

#[test]
fn who_waits_for_a_new_statement_is_known_by_name_with_the_reason() {
    let (mut roster, scribe) = team();
    roster.merge(scribe.member(1, 2, &Role::ALL)).unwrap();
    roster.merge(scribe.member(2, 3, &[Role::Build])).unwrap();
    roster.merge(scribe.member(3, 4, &Role::ALL)).unwrap();
    roster
        .merge(scribe.member_with(1, 5, |member| member.not_after = 500))
        .unwrap();
    roster
        .merge(scribe.member_with(5, 6, |member| member.issued_at = 200))
        .unwrap();
    let why = |roster: &Roster| -> Vec<(String, Lapse)> {
        let mut waiting: Vec<_> = roster.waiting(NOW).into_values().collect();
        waiting.sort_by(|one, other| one.name.cmp(&other.name));
        waiting.into_iter().map(|waits| (waits.name, waits.why)).collect()
    };
    let reasons = |list: &[(u8, Lapse)]| -> Vec<(String, Lapse)> {
        list.iter()
            .map(|(seed, why)| (format!("node {seed}"), *why))
            .collect()
    };
    let (may_not, ended, no_member) = (Lapse::IssuerMayNot, Lapse::Ended, Lapse::IssuerNoMember);
    assert_eq!(why(&roster), reasons(&[(4, may_not), (5, ended), (6, no_member)]));
    assert_eq!(roster.waiting(NOW)[&key(4)].issued_by, key(3));
    // Who is out for ever waits for nothing, and those who came by its word do.
    roster.merge(scribe.revoked(2, 2)).unwrap();
    roster.merge(scribe.revoked(5, 5)).unwrap();
    let (out, no_member) = (Lapse::IssuerOut, Lapse::IssuerNoMember);
    assert_eq!(why(&roster), reasons(&[(3, out), (4, no_member), (6, out)]));
    assert_eq!(roster.last_name(key(2)), Some("node 2"));
}

#[test]
fn only_a_founder_or_the_key_itself_puts_a_member_out() {
    let (mut roster, scribe) = team();
    roster.merge(scribe.member(1, 2, &Role::ALL)).unwrap();
    roster.merge(scribe.member(2, 3, &Role::ALL)).unwrap();
    assert!(
        !roster.merge(scribe.revoked(2, 3)).unwrap(),
        "its inviter may not"
    );
    assert!(!roster.merge(scribe.revoked(3, 2)).unwrap());
    assert!(roster.members(NOW).contains(key(3)));
    roster.merge(scribe.revoked(3, 3)).unwrap();
    assert!(!roster.members(NOW).contains(key(3)), "it may leave");
}

#[test]
fn a_founder_is_put_out_by_as_many_founders_as_the_genesis_says() {
    let mut roster = roster_of(&[1, 2, 3], 2);
    let scribe = Scribe(roster.swarm());
    roster.merge(scribe.member(1, 9, &Role::ALL)).unwrap();
    roster.merge(scribe.revoked(2, 1)).unwrap();
    roster.merge(scribe.revoked(9, 1)).unwrap();
    assert!(roster.members(NOW).contains(key(1)), "one founder is not enough");
    assert_eq!(
        roster.put_out_by(key(1)),
        [key(2)],
        "whoever has no say has said nothing"
    );
    roster.merge(scribe.revoked(3, 1)).unwrap();
    assert!(!roster.members(NOW).contains(key(1)));
    assert!(!roster.members(NOW).contains(key(9)), "nor whom it brought in");
    assert!(roster.members(NOW).contains(key(2)), "the team goes on");
    roster.merge(scribe.revoked(2, 2)).unwrap();
    assert!(!roster.members(NOW).contains(key(2)), "a founder may leave alone");
    assert_eq!(roster.put_out_by(key(2)), []);
}

#[test]
fn nobody_changes_who_stands_between_itself_and_a_founder() {
    let (mut roster, scribe) = team();
    roster.merge(scribe.member(1, 2, &Role::ALL)).unwrap();
    roster.merge(scribe.member(2, 3, &Role::ALL)).unwrap();
    // The invited one says of its inviter, later, that it may do nothing.
    roster
        .merge(scribe.member_with(3, 2, |member| {
            (member.roles, member.issued_at) = (Roles::default(), 900);
        }))
        .unwrap();
    assert!(roster.members(NOW).may(key(2), Role::Invite));
    assert!(roster.members(NOW).contains(key(3)));
}

#[test]
fn of_several_statements_the_youngest_counts() {
    let (mut roster, scribe) = team();
    let old = scribe.member(1, 2, &Role::ALL);
    let young = scribe.member_with(1, 2, |member| {
        (member.roles, member.serial) = ([Role::Request].into_iter().collect(), 1);
    });
    assert!(roster.merge(young).unwrap());
    assert!(!roster.merge(old).unwrap(), "nothing new");
    assert!(!roster.members(NOW).may(key(2), Role::Build));
    assert_eq!(roster.ids().len(), 1);
}

#[test]
fn every_order_gives_the_same_roster() {
    let (roster, scribe) = team();
    let statements = [
        scribe.member(1, 2, &Role::ALL),
        scribe.member(2, 3, &Role::ALL),
        scribe.member(3, 4, &Role::ALL),
        scribe.member_with(1, 3, |member| member.issued_at = 300),
        scribe.member(4, 2, &Role::ALL),
        scribe.revoked(1, 2),
        scribe.revoked(4, 4),
    ];
    let mut results = BTreeSet::new();
    // Every rotation of every stride: 42 orders of seven.
    for start in 0..7 {
        for stride in 1..7 {
            let mut roster = roster.clone();
            for step in 0..7 {
                roster
                    .merge(statements[(start + step * stride) % 7].clone())
                    .unwrap();
            }
            let members: Vec<_> = roster.members(NOW).iter().map(|(key, _)| key).collect();
            results.insert((roster.digest(), members, roster.presence_secret().epoch()));
        }
    }
    assert_eq!(results.len(), 1);
    let (_, members, _) = results.into_iter().next().unwrap();
    assert_eq!(members, {
        let mut expected = vec![key(1), key(3)];
        expected.sort();
        expected
    });
}

#[test]
fn a_statement_that_does_not_verify_is_refused() {
    let (mut roster, scribe) = team();
    let mut forged = scribe.member(1, 2, &Role::ALL);
    forged.signature[0] ^= 1;
    assert!(matches!(
        roster.merge(forged),
        Err(MergeError::Envelope(EnvelopeError::Signature(_)))
    ));
    let foreign = Scribe(SwarmId([9; 32])).member(1, 2, &Role::ALL);
    assert!(matches!(
        roster.merge(foreign),
        Err(MergeError::OtherSwarm { .. })
    ));
    let claims = scribe.member_with(5, 2, |member| member.issued_by = key(1));
    assert!(matches!(
        roster.merge(claims),
        Err(MergeError::Structure(RosterError::Signer { .. }))
    ));
    assert!(roster.ids().is_empty());
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Tomorrow(String);
impl Statement for Tomorrow {
    const DOMAIN: &'static str = "roster-member";
    const VERSION: u16 = 2;
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Other(String);
impl Statement for Other {
    const DOMAIN: &'static str = "recipe";
    const VERSION: u16 = 1;
}

#[test]
fn statements_of_unknown_version_are_kept_and_passed_on() {
    let (mut roster, scribe) = team();
    let newer = seal(&Tomorrow("x".into()), &secret(1)).unwrap();
    assert!(roster.merge(newer.clone()).unwrap());
    assert!(roster.statements().any(|(_, envelope)| *envelope == newer));
    // Of a stranger it is not: anyone could fill the roster.
    roster
        .merge(seal(&Tomorrow("y".into()), &secret(8)).unwrap())
        .unwrap();
    assert_eq!(roster.ids().len(), 1);
    // Once somebody vouches for it, it is.
    roster.merge(scribe.member(1, 8, &Role::ALL)).unwrap();
    assert_eq!(roster.ids().len(), 3);
    let other = seal(&Other("x".into()), &secret(1)).unwrap();
    assert!(matches!(roster.merge(other), Err(MergeError::Kind(_))));
}

#[test]
fn no_member_fills_the_roster_alone() {
    let (mut roster, _) = team();
    for serial in 0..UNKNOWN_STATEMENTS_PER_SIGNER {
        let word = seal(&Tomorrow(serial.to_string()), &secret(1)).unwrap();
        assert!(roster.merge(word).unwrap());
    }
    let word = seal(&Tomorrow("one more".into()), &secret(1)).unwrap();
    assert!(matches!(roster.merge(word), Err(MergeError::Full(_))));
    let large = seal(&Tomorrow("x".repeat(ROSTER_STATEMENT_BYTES)), &secret(1)).unwrap();
    assert!(matches!(roster.merge(large), Err(MergeError::TooLarge { .. })));
}

#[test]
fn nobody_but_a_founder_brings_in_more_than_so_many() {
    let (mut roster, scribe) = team();
    roster.merge(scribe.member(1, 2, &Role::ALL)).unwrap();
    let numbered = |issuer: u8, number: usize| {
        scribe.member_with(issuer, 3, |member| {
            member.key.0[..8].copy_from_slice(&(number as u64).to_le_bytes());
        })
    };
    for number in 0..MEMBERSHIPS_PER_ISSUER {
        assert!(roster.merge(numbered(2, number)).unwrap());
    }
    let one_more = roster.merge(numbered(2, MEMBERSHIPS_PER_ISSUER));
    assert!(matches!(one_more, Err(MergeError::Full(_))), "{one_more:?}");
    assert!(roster.merge(numbered(1, MEMBERSHIPS_PER_ISSUER)).unwrap());
    // Full or not, who is put out is out.
    assert!(roster.merge(scribe.revoked(1, 2)).unwrap());
}

/// A key that nobody has.
fn numbered(number: usize) -> NodeKey {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&(number as u64).to_le_bytes());
    NodeKey(key)
}

/// What the roster keeps of a statement, as if it were by others: signing thousands takes long.
fn kept<T: Statement + serde::de::DeserializeOwned>(envelope: &Envelope) -> Kept<T> {
    Kept {
        says: envelope.open().unwrap(),
        id: statement_id(envelope).unwrap(),
        envelope: envelope.clone(),
    }
}

#[test]
fn a_roster_brings_in_so_many_and_no_more_whoever_vouches() {
    let (mut roster, scribe) = team();
    roster.merge(scribe.member(1, 2, &Role::ALL)).unwrap();
    let one = kept::<Member>(&scribe.member(1, 3, &Role::ALL));
    for number in roster.memberships.len()..MEMBERSHIPS {
        roster.memberships.insert((numbered(number), key(3)), one.clone());
    }
    let full = |merged| matches!(merged, Err(MergeError::Full(_)));
    assert!(full(roster.merge(scribe.member(2, 4, &Role::ALL))));
    assert!(full(roster.merge(scribe.member(1, 4, &Role::ALL))), "a founder's");
    // Who is in is renewed, and put out.
    let renewal = scribe.member_with(1, 2, |member| member.issued_at += 1);
    assert!(roster.merge(renewal).unwrap());
    assert!(roster.merge(scribe.revoked(1, 2)).unwrap());
    assert_eq!(roster.memberships.len(), MEMBERSHIPS);
}

#[test]
fn who_put_themselves_out_leave_room_for_founders_and_those_for_each_other() {
    let mut roster = roster_of(&[1, 2], 1);
    let scribe = Scribe(roster.swarm());
    for seed in [3, 4, 5] {
        roster.merge(scribe.member(1, seed, &Role::ALL)).unwrap();
    }
    let one = kept::<Revoked>(&scribe.revoked(1, 9));
    let fill = |roster: &mut Roster, numbers: std::ops::Range<usize>, by: fn(usize) -> NodeKey| {
        for number in numbers {
            let said = (numbered(number), by(number));
            roster.revocations.insert(said, one.clone());
        }
    };
    let full = |merged| matches!(merged, Err(MergeError::Full(_)));
    fill(&mut roster, 0..REVOCATIONS_OF_ONESELF, numbered);
    assert!(full(roster.merge(scribe.revoked(3, 3))));
    assert!(roster.merge(scribe.revoked(1, 3)).unwrap());
    fill(&mut roster, REVOCATIONS_OF_ONESELF..REVOCATIONS - 1, |_| key(1));
    assert_eq!(roster.revocations.len(), REVOCATIONS);
    assert!(full(roster.merge(scribe.revoked(1, 4))) && full(roster.merge(scribe.revoked(2, 4))));
    // One founder has filled it: another one puts that out, which does not count.
    assert!(roster.merge(scribe.revoked(2, 1)).unwrap() && roster.is_revoked(key(1)));
    roster.revocations.remove(&(key(3), key(1)));
    assert!(roster.merge(scribe.revoked(2, 4)).unwrap());
}

#[test]
fn statements_of_unknown_kind_have_so_much_room_and_no_more() {
    let (mut roster, _) = team();
    let word = |text: &str| seal(&Tomorrow(text.into()), &secret(1)).unwrap();
    for number in 0..UNKNOWN_STATEMENTS {
        let mut envelope = word("x");
        envelope.signer = numbered(number);
        roster.unknown.insert(statement_id(&envelope).unwrap(), envelope);
    }
    assert!(matches!(roster.merge(word("y")), Err(MergeError::Full(_))));
    roster.unknown.pop_first();
    assert!(roster.merge(word("y")).unwrap());
}

/// A statement that says one thing as often as it likes.
#[derive(serde::Serialize, serde::Deserialize)]
struct Padded {
    swarm: SwarmId,
    key: NodeKey,
    name: String,
    roles: Vec<Role>,
    issued_by: NodeKey,
    serial: u64,
    issued_at: u64,
    not_after: u64,
    ticket: Option<tvix_node_protocol::roster::TicketId>,
}
impl Statement for Padded {
    const DOMAIN: &'static str = Member::DOMAIN;
    const VERSION: u16 = Member::VERSION;
}

#[test]
fn a_full_roster_goes_into_a_message_and_into_its_file() {
    use crate::limits::REVOCATIONS_AMONG_FOUNDERS;
    use tvix_node_protocol::limits::{MEMBER_NAME_BYTES, ROSTER_BYTES, ROSTER_STATEMENTS};
    const KNOWN: usize = MEMBERSHIPS + REVOCATIONS + REVOCATIONS_AMONG_FOUNDERS;
    const { assert!(KNOWN + UNKNOWN_STATEMENTS <= ROSTER_STATEMENTS) };
    const BYTES: usize = KNOWN * KNOWN_STATEMENT_BYTES + UNKNOWN_STATEMENTS * ROSTER_STATEMENT_BYTES;
    // What is around them besides: the genesis.
    const { assert!(BYTES + (1 << 20) <= ROSTER_BYTES) };
    let (mut roster, scribe) = team();
    let padded = |roles: usize| Padded {
        swarm: roster.swarm(),
        key: key(2),
        name: "n".into(),
        roles: vec![Role::Store; roles],
        issued_by: key(1),
        serial: 0,
        issued_at: 100,
        not_after: 5000,
        ticket: None,
    };
    let [some, many] = [padded(2), padded(150)].map(|padded| seal(&padded, &secret(1)).unwrap());
    assert!(some.open::<Member>().is_ok() && many.open::<Member>().is_ok());
    let refused = roster.merge(many);
    assert!(
        matches!(
            refused,
            Err(MergeError::TooLarge {
                limit: KNOWN_STATEMENT_BYTES,
                ..
            })
        ),
        "{refused:?}"
    );
    // The longest there is when nobody says anything twice.
    let longest = scribe.member_with(1, 2, |member| {
        member.name = "n".repeat(MEMBER_NAME_BYTES);
        (member.serial, member.issued_at, member.not_after) = (u64::MAX, u64::MAX, u64::MAX);
        member.ticket = Some(tvix_node_protocol::roster::TicketId([0xff; 32]));
    });
    assert!(longest.to_bytes().unwrap().len() < KNOWN_STATEMENT_BYTES * 2 / 3);
    assert!(roster.merge(longest).unwrap());
}

#[test]
fn a_chain_of_invitations_has_so_many_steps() {
    let (mut roster, scribe) = team();
    let last = u8::try_from(CHAIN).unwrap() + 2;
    for subject in 2..=last {
        roster
            .merge(scribe.member(subject - 1, subject, &Role::ALL))
            .unwrap();
    }
    let members = roster.members(NOW);
    assert!(members.contains(key(last - 1)) && !members.contains(key(last)));
    assert_eq!(members.len(), CHAIN + 1);
}

#[test]
fn orphans_are_bounded() {
    let (mut roster, _) = team();
    for serial in 0..=ORPHANED_STATEMENTS {
        let word = seal(&Tomorrow(serial.to_string()), &secret(8)).unwrap();
        roster.merge(word).unwrap();
    }
    assert_eq!(roster.orphans.len(), ORPHANED_STATEMENTS);
}

#[test]
fn many_statements_in_the_worst_order_are_all_taken() {
    let (mut roster, scribe) = team();
    let mut statements = vec![scribe.member(4, 5, &Role::ALL); ORPHANED_STATEMENTS];
    for (issuer, subject) in [(3, 4), (2, 3), (1, 2)] {
        statements.push(scribe.member(issuer, subject, &Role::ALL));
    }
    statements.push(scribe.member(8, 9, &Role::ALL));
    assert!(roster.merge_all(statements));
    assert_eq!(roster.members(NOW).len(), 5);
    assert_eq!(roster.orphans.len(), 1);
}

#[test]
fn a_revocation_changes_the_presence_secret_in_a_way_the_revoked_cannot_guess() {
    let (mut roster, scribe) = team();
    roster.merge(scribe.member(1, 2, &Role::ALL)).unwrap();
    let before = roster.presence_secret();
    assert_eq!(before, roster.presence_secret());
    let mut with = roster.clone();
    with.merge(scribe.revoked(1, 2)).unwrap();
    assert_ne!(with.presence_secret().epoch(), before.epoch());
    // The same key put out with other fresh bytes gives another secret.
    let mut other = roster.clone();
    let revoked = Revoked {
        swarm: roster.swarm(),
        key: key(2),
        revoked_by: key(1),
        serial: 0,
        issued_at: 100,
        fresh: [99; 32],
    };
    other.merge(seal(&revoked, &secret(1)).unwrap()).unwrap();
    assert_ne!(other.presence_secret().epoch(), with.presence_secret().epoch());
}

#[test]
fn an_introduction_convinces_who_knows_only_the_founder() {
    let (mut roster, scribe) = team();
    let newcomer = roster.clone();
    roster.merge(scribe.member(1, 2, &Role::ALL)).unwrap();
    roster.merge(scribe.member(2, 3, &Role::ALL)).unwrap();
    roster.merge(scribe.member(1, 4, &Role::ALL)).unwrap();
    let introduction = roster.introduction(key(3), NOW);
    assert_eq!(introduction.len(), 2);
    let mut newcomer = newcomer;
    for envelope in introduction {
        newcomer.merge(envelope).unwrap();
    }
    assert!(newcomer.members(NOW).contains(key(3)));
}

#[test]
fn what_a_node_distrusts_it_takes_away_for_itself() {
    let (mut roster, scribe) = team();
    roster.merge(scribe.member(1, 2, &Role::ALL)).unwrap();
    let distrusted = BTreeMap::from([(key(2), [Role::Build].into_iter().collect::<Roles>())]);
    let members = roster.members(NOW).without(&distrusted);
    assert!(!members.may(key(2), Role::Build));
    assert!(members.may(key(2), Role::Request));
}

#[test]
fn the_roster_survives_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let file = RosterFile::in_folder(home.path());
    let (mut roster, scribe) = team();
    assert!(file.load(roster.swarm()).unwrap().is_none());
    roster.merge(scribe.member(1, 2, &Role::ALL)).unwrap();
    roster.merge(scribe.member(2, 3, &Role::ALL)).unwrap();
    roster
        .merge(seal(&Tomorrow("x".into()), &secret(3)).unwrap())
        .unwrap();
    roster.merge(scribe.revoked(1, 3)).unwrap();
    file.save(&roster).unwrap();
    let back = file.load(roster.swarm()).unwrap().unwrap();
    assert_eq!(back.digest(), roster.digest());
    assert_eq!(back.members(NOW), roster.members(NOW));
    assert!(matches!(
        file.load(SwarmId([0; 32])),
        Err(RosterFileError::Genesis { .. })
    ));
}
