use std::collections::BTreeSet;

use super::*;

type Told = oneshot::Receiver<Result<Option<Came>, ProviderError>>;

fn wanted(number: usize, most: u64, priority: &Rising) -> (Wanted, Told) {
    let (reply, told) = oneshot::channel();
    let mut root = [0; 32];
    root[..8].copy_from_slice(&(number as u64).to_le_bytes());
    let wanted = Wanted {
        root: TreeDigest(root),
        most,
        priority: priority.clone(),
        also: false,
        since: Instant::now(),
        number: 0,
        signs: Signs::new(),
        reply,
    };
    (wanted, told)
}

#[test]
fn what_is_most_urgent_by_then_is_asked_for_first_and_no_more_than_one_question_may_name() {
    let asking = Asking::new(1);
    let [ordinary, rises] = [Priority::Demanded, Priority::Speculative].map(Rising::from);
    let mut told = Vec::new();
    for number in 0..TREES_BATCH + 3 {
        let last = number == TREES_BATCH + 2;
        let (wanted, reply) = wanted(number, 1, if last { &rises } else { &ordinary });
        assert_eq!(asking.wait(wanted), number == 0, "one is asked at once");
        told.push(reply);
    }
    let urgency = asking.urgency().unwrap();
    assert_eq!(urgency.now(), Priority::Demanded);
    asking.raise(Priority::Awaited);
    assert_eq!(urgency.now(), Priority::Awaited, "while it stands in line");
    rises.raise(Priority::Import);
    // Nobody waits for this one any more.
    drop(told.remove(0));
    let first = asking.next();
    assert_eq!(first.len(), TREES_BATCH);
    let number = |wanted: &Wanted| u16::from_le_bytes([wanted.root.0[0], wanted.root.0[1]]);
    assert_eq!(usize::from(number(&first[0])), TREES_BATCH + 2);
    assert_eq!(number(&first[1]), 1);
    assert_eq!(asking.urgency().unwrap().now(), Priority::Demanded);
    assert_eq!(asking.next().len(), 2);
    assert!(asking.urgency().is_none());
    let (again, _told) = wanted(0, 1, &ordinary);
    assert!(asking.wait(again), "nobody asks any more");
}

#[test]
fn no_more_is_asked_for_at_once_than_may_be_answered_at_once() {
    let asking = Asking::new(1);
    let each = TREES_BYTES as u64 / 3;
    let told: Vec<Told> = (0..4)
        .map(|number| {
            let (wanted, told) = wanted(number, each, &Rising::default());
            asking.wait(wanted);
            told
        })
        .collect();
    assert_eq!(asking.next().len(), 3);
    assert_eq!(asking.next().len(), 1);
    drop(told);
}

#[tokio::test]
async fn who_asks_and_is_lost_lets_nobody_wait_for_ever() {
    let asking = Arc::new(Asking::new(1));
    let (one, told) = wanted(1, 1, &Rising::default());
    assert!(asking.wait(one));
    drop(Asker::of(&asking));
    assert!(told.await.is_err());
    let (other, _told) = wanted(2, 1, &Rising::default());
    assert!(asking.wait(other), "another one asks");
}

#[test]
fn what_fails_fails_for_all_that_were_asked_for_together() {
    let peer = NodeKey([1; 32]);
    let fails = |error| {
        let (left, told): (VecDeque<_>, Vec<_>) =
            (0..3).map(|number| wanted(number, 1, &Rising::default())).unzip();
        end(peer, left, Err(error));
        let told = told.into_iter().map(|mut told| told.try_recv().unwrap());
        told.map(|told| told.map(|came| came.is_some()))
            .collect::<Vec<_>>()
    };
    // What was not lied about may come by itself.
    let told = fails(ProviderError::Lied("it".to_owned()));
    assert!(matches!(
        &told[..],
        [Err(ProviderError::Lied(_)), Ok(false), Ok(false)]
    ));
    // What broke: the first is told exactly, the others what it comes to.
    let door = Door::Trees;
    let wire = |source| ProviderError::from(CallError::Wire { peer, door, source });
    let told = fails(wire(WireError::Closed));
    assert!(matches!(&told[0], Err(ProviderError::Call(error)) if error.is_away()));
    assert!(matches!(
        &told[1..],
        [Err(ProviderError::Ended(_)), Err(ProviderError::Ended(_))]
    ));
    // Nobody asks a silent one again for each.
    for told in fails(wire(WireError::Silent(TREES_PATIENCE))) {
        assert!(matches!(told, Err(ProviderError::Call(error)) if !error.is_away()));
    }
    let (size, limit) = (2, 1);
    let told = fails(wire(WireError::TooLarge { size, limit }));
    assert!(matches!(
        &told[..],
        [Err(ProviderError::Call(_)), Ok(false), Ok(false)]
    ));
    // A program that has no such door is asked for each.
    let theirs = BTreeSet::new();
    let source = OpenError::OtherVersion { door, theirs };
    for told in fails(CallError::Open { peer, source }.into()) {
        assert!(matches!(told, Ok(false)));
    }
}

#[test]
fn two_who_are_asked_for_the_same_begin_at_its_two_ends() {
    let asking = Asking::new(1);
    let mut told = Vec::new();
    for number in 0..6 {
        let (mut wanted, reply) = wanted(number, 1, &Rising::default());
        // Of these, others are asked for all but the fourth.
        wanted.also = number != 3;
        asking.wait(wanted);
        told.push(reply);
    }
    let order: Vec<u8> = asking.next().iter().map(|wanted| wanted.root.0[0]).collect();
    assert_eq!(order, [3, 5, 4, 2, 1, 0]);
}

#[test]
fn all_who_stand_in_line_are_as_urgent_as_what_waits() {
    let asking = Asking::new(2);
    let waits = |number| asking.wait(wanted(number, 1, &Rising::default()).0);
    let (one, mut told) = wanted(0, 1, &Rising::default());
    assert!(asking.wait(one) && waits(1) && !waits(2));
    let [first, second] = [asking.urgency().unwrap(), asking.urgency().unwrap()];
    asking.raise(Priority::Import);
    assert_eq!([first.now(), second.now()], [Priority::Import; 2]);
    // Who has a stream is no longer among them.
    drop(first);
    asking.raise(Priority::Import);
    assert_eq!(lock(&asking.state).lines.len(), 1);
    assert!(told.try_recv().is_err());
}

#[test]
fn what_waits_for_a_provider_that_brings_things_may_be_had_elsewhere_when_it_has_waited_for_long() {
    let asking = Asking::new(1);
    let long_ago = Instant::now().checked_sub(TREES_PATIENCE).unwrap();
    let mut told = Vec::new();
    let mut add = |number: usize, since: Option<Instant>| {
        let (mut wanted, reply) = wanted(number, 1, &Rising::default());
        wanted.since = since.unwrap_or(wanted.since);
        told.push(reply);
        wanted
    };
    let mut asked = VecDeque::from([add(0, None), add(1, Some(long_ago))]);
    asked.iter().for_each(|wanted| wanted.signs.asked());
    let behind = [add(2, None), add(3, Some(long_ago))];
    let signs: Vec<Signs> = behind.iter().map(|wanted| wanted.signs.clone()).collect();
    for wanted in behind {
        asking.wait(wanted);
    }
    let later = Instant::now() + crate::limits::HEDGE_SILENCE;
    std::thread::sleep(std::time::Duration::from_millis(2));
    asking.brings(&asked);
    let silent = |signs: &Signs| signs.is_silent(later);
    assert!(!silent(&asked[0].signs) && silent(&asked[1].signs));
    assert!(!silent(&signs[0]) && silent(&signs[1]));
    // What was asked and has brought nothing is at fault; what only stood behind is not.
    assert!(!asked[1].signs.has_brought() && signs[1].has_brought());
    asked.clear();
}
