use super::*;
use crate::roster::Roster;
use crate::team::JoinError;
use tvix_node_protocol::messages::JoinRefusal;
use tvix_node_protocol::ticket::Ticket;

async fn join_with(ticket: &Ticket, seed: u8) -> Result<Team, JoinError> {
    let home = tempfile::tempdir().unwrap();
    join(home.path(), &secret(seed), ticket, "newcomer", &Clock::system()).await
}

fn refusal(result: Result<Team, JoinError>) -> JoinRefusal {
    match result {
        Err(JoinError::Refused { reason, .. }) => reason,
        other => panic!("not refused but {other:?}"),
    }
}

#[tokio::test]
async fn who_is_taken_for_gone_though_it_is_connected_is_greeted_anew() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    // What is heard late of a connection that a newer one has replaced.
    bob.handle.core().gone(ann.key());
    assert!(!bob.handle.peers().contains_key(&ann.key()));
    crate::protocols::hello::greet_unknown(bob.handle.core());
    bob.meets(ann.key()).await;
}

#[tokio::test]
async fn a_node_that_was_started_again_is_believed_over_what_it_said_before_and_told_everything_anew() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let path = bob.shelf.add_small("hello");
    bob.handle.announce(std::slice::from_ref(&path));
    bob.publishes().await;
    let core = bob.handle.core();
    let said = bob.handle.peers()[&ann.key()].facts.clone();
    let says = |serial, slots| {
        let facts = Facts {
            serial,
            slots,
            ..said.clone()
        };
        core.met(ann.key(), facts, core.team.now());
        bob.handle.peers()[&ann.key()].facts.slots
    };
    assert_eq!(says(said.serial + 1, 7), 7);
    assert_eq!(says(said.serial, 8), 7, "it comes late");
    assert!(bob.handle.is_published().await);
    // Two seconds later.
    let again = crate::core::first_serial_of_facts(said.serial / 1000 + 2);
    assert_eq!(says(again, 9), 9);
    assert!(!bob.handle.is_published().await, "its table is empty");
}

#[tokio::test]
async fn who_has_a_ticket_becomes_a_member_and_both_meet() {
    let mut ann = TestNode::founder(1).await;
    let text = ann.ticket().await.to_text().unwrap();
    let home = tempfile::tempdir().unwrap();
    let ticket = Ticket::from_text(&text).unwrap();
    let team = join(home.path(), &secret(2), &ticket, "bob", &Clock::system())
        .await
        .unwrap();
    assert_eq!(team.swarm(), ann.handle.swarm());
    let mut bob = TestNode::start(2, home, team).await;
    ann.meets(bob.key()).await;
    bob.meets(ann.key()).await;
    assert_eq!(ann.handle.members().get(bob.key()).unwrap().name, "bob");
    assert_eq!(ann.handle.members(), bob.handle.members());
    assert_eq!(bob.handle.peers()[&ann.key()].facts.version, "test");
}

#[tokio::test]
async fn a_ticket_is_used_once() {
    let ann = TestNode::founder(1).await;
    let ticket = ann.ticket().await;
    join_with(&ticket, 2).await.unwrap();
    assert_eq!(refusal(join_with(&ticket, 3).await), JoinRefusal::Used);
    assert!(join_with(&ticket, 2).await.is_ok(), "the answer was lost");
}

#[tokio::test]
async fn a_ticket_of_another_node_or_team_is_refused() {
    let ann = TestNode::founder(1).await;
    let mut unknown = ann.ticket().await;
    unknown.secret = [9; 16];
    assert_eq!(refusal(join_with(&unknown, 2).await), JoinRefusal::UnknownTicket);
    let mut foreign = ann.ticket().await;
    foreign.swarm.0[0] ^= 1;
    assert_eq!(refusal(join_with(&foreign, 2).await), JoinRefusal::OtherSwarm);
}

#[tokio::test]
async fn a_founder_joins_by_its_key_and_nobody_else_with_its_ticket() {
    let (mut ann, dan) = super::leaving::two_founders(1).await;
    let ticket = ann.handle.invite_founder(dan.key(), now() + DAY).unwrap();
    assert_eq!(refusal(join_with(&ticket, 2).await), JoinRefusal::UnknownTicket);
    // Nor is a ticket made for one that is none.
    let mut made_up = ann.ticket().await;
    made_up.founder = Some(key(9));
    let error = join_with(&made_up, 9).await.unwrap_err();
    assert!(matches!(error, JoinError::NotAFounder { .. }), "{error}");
    ann.meets(dan.key()).await;
    assert!(ann.handle.invite_founder(key(9), now() + DAY).is_err());
}

#[tokio::test]
async fn an_expired_ticket_is_refused_on_both_sides() {
    let ann = TestNode::founder(1).await;
    let ticket = ann.handle.invite(Roles::all(), now() - 1, DAY).await.unwrap();
    assert_eq!(refusal(join_with(&ticket, 2).await), JoinRefusal::Expired);
    let late = Clock::new(move || now() + 10_000);
    let home = tempfile::tempdir().unwrap();
    let error = join(home.path(), &secret(2), &ticket, "late", &late)
        .await
        .unwrap_err();
    assert!(matches!(error, JoinError::Expired { .. }), "{error}");
}

#[tokio::test]
async fn an_inviter_that_is_not_there_is_named() {
    let ann = TestNode::founder(1).await;
    let ticket = ann.ticket().await;
    ann.handle.shutdown().await;
    let error = join_with(&ticket, 2).await.unwrap_err();
    assert!(matches!(error, JoinError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_node_does_not_join_twice() {
    let ann = TestNode::founder(1).await;
    let home = tempfile::tempdir().unwrap();
    let ticket = ann.ticket().await;
    join(home.path(), &secret(2), &ticket, "bob", &Clock::system())
        .await
        .unwrap();
    let ticket = ann.ticket().await;
    let error = join(home.path(), &secret(2), &ticket, "bob", &Clock::system())
        .await
        .unwrap_err();
    assert!(matches!(error, JoinError::AlreadyIn(_)), "{error}");
}

#[tokio::test]
async fn nobody_invites_beyond_its_roles() {
    let ann = TestNode::founder(1).await;
    let bob = ann
        .invite_as(2, roles(&[Role::Build, Role::Invite]), honestly, |_| ())
        .await;
    assert!(
        bob.handle
            .invite(roles(&[Role::Build]), now() + DAY, DAY)
            .await
            .is_ok()
    );
    assert!(
        bob.handle
            .invite(roles(&[Role::Store]), now() + DAY, DAY)
            .await
            .is_err()
    );
    let guest = ann.invite_as(3, roles(&[Role::Build]), honestly, |_| ()).await;
    assert!(
        guest
            .handle
            .invite(roles(&[Role::Build]), now() + DAY, DAY)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_member_that_is_not_known_yet_introduces_itself() {
    // Bob is down while Cat joins; Ann, who invited Cat, is down when Bob comes back.
    let ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    let bob_addresses = bob.handle.addresses();
    let mut cat = ann.invite(3).await;
    eventually(async || bob.handle.members().len() == 3 || !bob.handle.connected().contains(&ann.key()))
        .await;
    let _ = bob_addresses;
    let swarm = ann.handle.swarm();
    ann.handle.shutdown().await;
    // Bob forgets Cat: as if it had been down.
    let (home, seed) = (bob.home, bob.seed);
    bob.handle.shutdown().await;
    let forgetful = {
        let team = Team::open(home.path(), swarm).unwrap();
        let mut roster = Roster::new(team.roster().genesis().clone()).unwrap();
        let of_bob = team.roster().introduction(key(2), now());
        roster.merge_all(of_bob);
        assert!(!roster.members(now()).contains(cat.key()));
        crate::roster::RosterFile::in_folder(team.folder())
            .save(&roster)
            .unwrap();
        Team::open(home.path(), swarm).unwrap()
    };
    let mut bob = TestNode::start(seed, home, forgetful).await;
    assert!(!bob.handle.members().contains(cat.key()));
    let addresses: Vec<_> = bob
        .handle
        .addresses()
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
    cat.handle.core().contacts.with(|contacts| {
        for address in addresses {
            contacts.add(bob.key(), address);
        }
    });
    soon(cat.handle.connect(bob.key())).await.unwrap();
    cat.meets(bob.key()).await;
    bob.meets(cat.key()).await;
    assert!(bob.handle.members().contains(cat.key()));
}

#[tokio::test]
async fn a_new_statement_reaches_everyone_who_is_connected() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let cat = ann.invite(3).await;
    bob.notice(|handle, _| handle.members().contains(cat.key())).await;
    ann.handle
        .renew(cat.key(), roles(&[Role::Request]), DAY)
        .await
        .unwrap();
    let cat_key = cat.key();
    bob.notice(move |handle, _| !handle.members().may(cat_key, Role::Build))
        .await;
}

#[tokio::test]
async fn a_revoked_member_is_cut_off_by_all() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    let mut cat = ann.invite(3).await;
    bob.meets(cat.key()).await;
    let epoch = ann.handle.team().presence_secret().epoch();
    ann.handle.revoke(cat.key()).await.unwrap();
    let cat_key = cat.key();
    bob.notice(move |handle, _| {
        !handle.peers().contains_key(&cat_key) && !handle.members().contains(cat_key)
    })
    .await;
    assert_ne!(bob.handle.team().presence_secret().epoch(), epoch);
    cat.notice(|handle, _| handle.peers().is_empty()).await;
    assert!(
        soon(cat.handle.have(ann.key(), &[shelf::path("x")]))
            .await
            .is_err()
    );
    let error = bob.handle.connect(cat.key()).await.unwrap_err().to_string();
    assert!(error.contains("cannot reach"), "{error}");
    // With its old key it cannot come back.
    let ticket = ann.ticket().await;
    assert_eq!(refusal(join_with(&ticket, 3).await), JoinRefusal::NotAMember);
}

#[tokio::test]
async fn members_find_each_other_again_after_a_restart() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let mut bob = bob.restart().await;
    bob.meets(ann.key()).await;
}

#[tokio::test]
async fn of_every_member_it_is_known_where_and_how_far_it_is() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    // A round trip is measured as soon as there is a connection.
    eventually(async || bob.handle.overview()[&ann.key()].round_trip.is_some()).await;
    let overview = bob.handle.overview();
    assert_eq!(
        overview.keys().collect::<Vec<_>>(),
        [&ann.key()],
        "this node is not in it"
    );
    let seen = &overview[&ann.key()];
    assert!(
        !seen.connections.is_empty() && !seen.addresses.is_empty(),
        "{seen:?}"
    );
    assert!(
        seen.round_trip.unwrap() < PATIENCE && seen.status.is_some(),
        "{seen:?}"
    );
    assert!(
        seen.traffic.other_sent > 0 && !seen.lied && seen.speed.is_none(),
        "{seen:?}"
    );
    ann.handle.shutdown().await;
    eventually(async || bob.handle.overview()[&ann.key()].connections.is_empty()).await;
    let gone = &bob.handle.overview()[&ann.key()];
    assert!(
        gone.round_trip.is_none() && !gone.addresses.is_empty(),
        "{gone:?}"
    );
}

#[tokio::test]
async fn a_node_listens_where_it_did_before() {
    // An address that no other test uses, so that nobody gets the port meanwhile.
    let of_its_own = |config: &mut Config| {
        config.listen = vec![
            "/ip4/127.77.0.1/tcp/0".into(),
            "/ip4/127.77.0.1/udp/0/quic-v1".into(),
        ];
    };
    let again = async |home: tempfile::TempDir, swarm| {
        let team = Team::open(home.path(), swarm).unwrap();
        TestNode::start_with(1, home, team, honestly, of_its_own).await
    };
    let ann = TestNode::founder(1).await;
    let (home, swarm) = (ann.home, ann.handle.swarm());
    ann.handle.shutdown().await;
    let ann = again(home, swarm).await;
    let before = ann.handle.addresses();
    ann.handle.shutdown().await;
    let ann = again(ann.home, swarm).await;
    assert_eq!(ann.handle.addresses(), before);
    ann.handle.shutdown().await;
    // Where somebody else has the port meanwhile, there is another one.
    let port = before[0].split('/').nth(4).unwrap();
    let taken = std::net::TcpListener::bind(format!("127.77.0.1:{port}")).unwrap();
    let ann = again(ann.home, swarm).await;
    assert_ne!(ann.handle.addresses(), before);
    drop(taken);
}
