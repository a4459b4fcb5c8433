//! What goes past a bound of the messages that make rosters equal.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tvix_node_protocol::envelope::{Envelope, Statement, seal};
use tvix_node_protocol::messages::{JoinRefusal, RosterAnswer, RosterDone, RosterQuestion, RosterStatements};

use super::*;
use crate::core::{Core, lock};
use crate::limits::{CHAIN, ROSTER_ROUND, ROSTER_ROUNDS, ROSTER_STATEMENTS_PER_MINUTE};
use crate::net::Door;
use crate::net::doors::Inbound;
use crate::net::wire::{Wire, WireError};
use crate::protocols::roster::synchronise;

/// A word of a newer version, as which everything is kept and passed on that a member signed.
#[derive(serde::Serialize, serde::Deserialize)]
struct Word(u64);

impl Statement for Word {
    const DOMAIN: &'static str = "roster-word";
    const VERSION: u16 = 1;
}

fn word(signer: u8, number: u64) -> Envelope {
    seal(&Word(number), &secret(signer)).unwrap()
}

/// What is refused as soon as it is looked at.
fn nothing() -> Envelope {
    Envelope {
        signature: [0xff; 64],
        ..word(9, 0)
    }
}

fn has(node: &TestNode, statement: &Envelope) -> bool {
    let team = &node.handle.core().team;
    team.with_roster(|roster| roster.statements().any(|(_, envelope)| envelope == statement))
}

/// One node brings another one these, asked for or not.
async fn brings(from: &TestNode, to: &TestNode, statements: Vec<Envelope>) {
    let mut wire = from.handle.core().open(to.key(), Door::Roster).await.unwrap();
    let question = RosterQuestion { known: vec![] };
    let _: RosterAnswer = soon(wire.ask(&question)).await.unwrap();
    let _: RosterDone = soon(wire.ask(&RosterStatements { statements })).await.unwrap();
}

#[tokio::test]
async fn of_one_message_so_many_statements_are_looked_at() {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    ann.meets(bob.key()).await;
    let word = word(2, 1);
    let mut statements = vec![nothing(); ROSTER_ROUND];
    statements.push(word.clone());
    brings(&bob, &ann, statements.clone()).await;
    assert!(!has(&ann, &word));
    brings(&bob, &ann, statements.split_off(1)).await;
    assert!(has(&ann, &word));
}

#[tokio::test]
async fn a_member_that_floods_with_statements_is_not_listened_to_and_others_are() {
    let time = Arc::new(AtomicU64::new(now()));
    let clock = {
        let time = time.clone();
        Clock::new(move || time.load(Ordering::Relaxed))
    };
    let mut bob = TestNode::founder(1).await;
    let ann = bob
        .invite_as(2, Roles::all(), honestly, |config| config.clock = clock)
        .await;
    let cat = bob.invite(3).await;
    bob.meets(ann.key()).await;
    eventually(async || ann.handle.members().contains(cat.key())).await;
    {
        // What is left after they have met.
        let mut left = lock(&ann.handle.core().roster_statements);
        let now = time.load(Ordering::Relaxed);
        let used = (0..ROSTER_STATEMENTS_PER_MINUTE)
            .take_while(|_| left.take(bob.key(), 1, now))
            .count();
        assert!(used > ROSTER_ROUND, "a full roster may come at once: {used}");
    }
    let [flood, other, later] = [word(1, 1), word(3, 2), word(1, 3)];
    brings(&bob, &ann, vec![flood.clone()]).await;
    assert!(!has(&ann, &flood));
    brings(&cat, &ann, vec![other.clone()]).await;
    assert!(has(&ann, &other));
    time.fetch_add(1, Ordering::Relaxed);
    brings(&bob, &ann, vec![later.clone()]).await;
    assert!(has(&ann, &later));
}

/// Has a new word for whoever wants to make its roster equal, whenever it is asked, and does not say hello.
fn never_equal(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    match inbound.door {
        Door::Roster => {}
        Door::Hello => return async { drop(inbound) }.boxed(),
        _ => return honestly(core, inbound),
    }
    async move {
        let _permits = inbound.permits;
        let counted = core
            .traffic
            .counted_serving(inbound.stream, inbound.peer, inbound.door);
        let mut wire = Wire::new(counted);
        let _question: RosterQuestion = wire.reader.receive().await?;
        let round = ROUNDS.fetch_add(1, Ordering::Relaxed);
        let answer = RosterAnswer {
            statements: vec![word(2, round as u64)],
            wanted: vec![],
        };
        wire.writer.send(&answer).await?;
        wire.writer.flush().await?;
        let _sent: RosterStatements = wire.reader.receive().await?;
        wire.answer(&RosterDone { roster: [0; 32] }).await
    }
    .map(|answered: Result<(), WireError>| answered.unwrap())
    .boxed()
}

static ROUNDS: AtomicUsize = AtomicUsize::new(0);

#[tokio::test]
async fn a_member_that_has_always_something_new_is_asked_so_often_in_a_row() {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite_as(2, Roles::all(), never_equal, |_| ()).await;
    ann.meets(bob.key()).await;
    assert_eq!(ROUNDS.load(Ordering::Relaxed), 0);
    soon(synchronise(ann.handle.core(), bob.key())).await.unwrap();
    assert_eq!(ROUNDS.load(Ordering::Relaxed), ROSTER_ROUNDS);
}

#[tokio::test]
async fn who_shows_more_than_a_chain_of_invitations_is_not_let_in_by_it() {
    let ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    let (core, chain) = (ann.handle.core(), bob.handle.core().team.introduction());
    assert!(core.team.introduced(bob.key(), chain.clone()).is_ok());
    let mut long = vec![nothing(); CHAIN];
    long.extend(chain);
    let refused = core.team.introduced(bob.key(), long.clone());
    assert!(
        matches!(&refused, Err((JoinRefusal::NotAMember, message)) if message.contains("no chain")),
        "{refused:?}"
    );
    assert!(core.team.introduced(bob.key(), long.split_off(1)).is_ok());
}
