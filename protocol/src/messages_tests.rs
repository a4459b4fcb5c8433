use super::*;
use crate::cbor;
use crate::envelope::{NodeSecret, Statement, seal};

fn comes_back<T: Message + PartialEq + std::fmt::Debug>(message: &T) {
    let bytes = cbor::to_vec(message).unwrap();
    assert!(bytes.len() <= T::LIMIT);
    assert_eq!(&cbor::from_slice::<T>(&bytes, T::LIMIT).unwrap(), message);
}

#[derive(Serialize, Deserialize)]
struct Word(String);
impl Statement for Word {
    const DOMAIN: &'static str = "word";
    const VERSION: u16 = 1;
}

fn envelope() -> Envelope {
    seal(&Word("x".into()), &NodeSecret::from_bytes(&[1; 32])).unwrap()
}

#[test]
fn paths_come_back_from_the_wire_wherever_they_came_from() {
    use crate::path_info::{NarHash, Origin, PathInfo};
    let node = NodeKey([3; 32]);
    let origins = [
        Origin::Content,
        Origin::Built,
        Origin::Record { builder: node },
        Origin::Peer { peer: node },
        Origin::Cache {
            url: "file:///cache".into(),
            key: "key".into(),
        },
    ];
    let paths = origins.map(|origin| Shown {
        info: PathInfo {
            path: StorePath::from_parts([1; 20], "hello").unwrap(),
            tree: TreeDigest([2; 32]),
            nar_hash: NarHash([4; 32]),
            nar_size: 5,
            references: [StorePath::from_parts([6; 20], "libc").unwrap()].into(),
            deriver: Some(StorePath::from_parts([7; 20], "hello.drv").unwrap()),
            ca: None,
            origin,
            registered: 8,
            signatures: vec![],
        },
        record: Some(envelope()),
    });
    comes_back(&PushOffer { paths: paths.into() });
}

#[test]
fn messages_come_back_from_the_wire() {
    comes_back(&envelope());
    comes_back(&JoinRequest::Introduce {
        swarm: SwarmId([1; 32]),
        statements: vec![envelope()],
    });
    comes_back(&JoinAnswer::Refused {
        reason: JoinRefusal::Used,
        message: "used".into(),
    });
    comes_back(&PresenceAnswer::Underway {
        at: vec![None, Some(NodeKey([7; 32]))],
    });
    comes_back(&PresenceAnswer::Wanted {
        cells: vec![1, 2],
        refused: vec![
            (0, PresenceRefusal::Stale { newest: 7 }),
            (3, PresenceRefusal::Quota),
            (4, PresenceRefusal::Version { got: 2, known: 1 }),
        ],
    });
    comes_back(&BuildFrame::Finished {
        record: envelope(),
        pushed: Pushed::NotPushed {
            reason: "no such folder".into(),
        },
    });
    comes_back(&BuildFrame::Heartbeat);
    comes_back(&PushFrame::Done);
    comes_back(&ServeAnswer::NotHere);
    comes_back(&BuildControl::Cancel);
    comes_back(&TextsQuestion { paths: vec![] });
}

#[test]
fn an_envelope_inside_a_message_keeps_its_signature() {
    let message = RosterStatements {
        statements: vec![envelope()],
    };
    let bytes = cbor::to_vec(&message).unwrap();
    let back: RosterStatements = cbor::from_slice(&bytes, RosterStatements::LIMIT).unwrap();
    assert!(back.statements[0].verify().is_ok());
}

/// Nodes that do not know of fixed outputs refuse what they do not know, and must not meet it needlessly.
#[test]
fn that_no_fixed_outputs_are_offered_is_not_said() {
    let facts = |fixed_outputs| Facts {
        fixed_outputs,
        ..Facts::default()
    };
    let says = |facts: &Facts| {
        let bytes = cbor::to_vec(facts).unwrap();
        assert_eq!(
            &cbor::from_slice::<Facts>(&bytes, limits::HELLO_BYTES).unwrap(),
            facts
        );
        bytes.windows(12).any(|part| part == b"fixedOutputs")
    };
    assert!(!says(&facts(false)));
    assert!(says(&facts(true)));
}

#[test]
fn the_largest_roster_question_fits() {
    comes_back(&RosterQuestion {
        known: vec![0xff; limits::ROSTER_STATEMENTS * 32],
    });
}

#[test]
fn the_largest_questions_about_paths_fit() {
    let name = "n".repeat(211);
    let path = StorePath::from_parts([0xff; 20], &name).unwrap();
    comes_back(&PathsQuestion::about(&vec![path.clone(); limits::PATHS_QUESTION]));
    comes_back(&TextsQuestion {
        paths: vec![path; limits::TEXTS_QUESTION],
    });
}

#[test]
fn a_question_about_paths_names_none() {
    let path = StorePath::from_parts([7; 20], "secret-project").unwrap();
    let question = PathsQuestion::about(std::slice::from_ref(&path));
    assert_eq!(question.hashes(), [*path.digest()]);
    let sent = crate::cbor::to_vec(&question).unwrap();
    assert!(!sent.windows(14).any(|part| part == b"secret-project"));
    let encoded: Vec<u8> = path.to_basename().into_bytes();
    assert!(
        !sent
            .windows(8)
            .any(|part| encoded.windows(8).any(|name| name == part))
    );
}

#[test]
fn a_ticket_secret_is_not_printed() {
    let request = JoinRequest::Redeem {
        swarm: SwarmId([1; 32]),
        secret: [3; 16],
        name: "x".into(),
    };
    assert!(!format!("{request:?}").contains("3, 3"));
    comes_back(&request);
}
