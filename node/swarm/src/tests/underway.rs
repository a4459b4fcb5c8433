//! Members that ask each other what they build.

use super::shelf::path;
use super::*;
use crate::underway::{For, Stage, Turn};
use tvix_node_protocol::build::{BuildLimits, BuildOptions, BuildTerms};

pub(super) const TERMS: BuildTerms = BuildTerms {
    options: BuildOptions { cores: 0 },
    limits: BuildLimits::NONE,
};

#[tokio::test]
async fn members_are_told_where_something_is_built_and_what_is_there() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let cat = ann.invite(3).await;
    let names = ["here.drv", "elsewhere.drv", "far.drv"];
    let [here, elsewhere, far] = names.map(|name| ann.shelf.add_small(name));
    ann.handle.announce(std::slice::from_ref(&here));
    let underway = ann.handle.core().underway.clone();
    let asked = async |derivation: &_| {
        let paths = [here.clone(), path("absent")];
        let asking = bob
            .handle
            .have_and_underway(ann.key(), &paths, derivation, (Turn(0), TERMS));
        let (has, place) = soon(asking).await.unwrap();
        assert_eq!(has, [true, false]);
        place
    };
    assert_eq!(asked(&here).await, None);
    let _here = underway.note(here.clone(), TERMS, For::Owner, Stage::Here);
    let _elsewhere = underway.note(elsewhere.clone(), TERMS, For::Owner, Stage::At(cat.key()));
    let _in_another_team = underway.note(far.clone(), TERMS, For::Owner, Stage::At(key(7)));
    assert_eq!(asked(&here).await, Some(ann.key()));
    assert_eq!(asked(&elsewhere).await, Some(cat.key()));
    assert_eq!(asked(&far).await, None, "who is no member here is not named");
}

#[tokio::test]
async fn what_members_may_not_know_of_is_not_told_to_be_built() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let private = ann.shelf.add_small("private.drv");
    ann.shelf.make_private(&private);
    let underway = ann.handle.core().underway.clone();
    let noted = [
        underway.note(private.clone(), TERMS, For::Owner, Stage::Here),
        // Not in the store any more, or of another team.
        underway.note(path("gone.drv"), TERMS, For::Owner, Stage::Here),
    ];
    let asked = async |derivation: &_| {
        let asking = bob
            .handle
            .have_and_underway(ann.key(), &[], derivation, (Turn(0), TERMS));
        soon(asking).await.unwrap().1
    };
    assert_eq!(asked(&private).await, None);
    assert_eq!(asked(&path("gone.drv")).await, None);
    // What a member asked for is no secret to members.
    let team = ann.handle.swarm();
    let _for_team = underway.note(path("gone.drv"), TERMS, For::Team(team), Stage::Here);
    assert_eq!(asked(&path("gone.drv")).await, Some(ann.key()));
    drop(noted);
}

#[tokio::test]
async fn of_two_who_are_about_to_build_the_same_the_later_one_waits_for_the_other() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let derivation = ann.shelf.add_small("wanted.drv");
    bob.shelf.add_small("wanted.drv");
    let of = |node: &TestNode| node.handle.core().underway.clone();
    let (anns, bobs) = (of(&ann), of(&bob));
    // Both at once: with equal turns.
    let (deciding, of_ann) = anns.decide(derivation.clone(), TERMS, For::Owner);
    let (_deciding, of_bob) = bobs.decide(derivation.clone(), TERMS, For::Owner);
    assert_eq!(of_ann, of_bob);
    let (first, then, underway, noted) = match ann.key() < bob.key() {
        true => (&ann, &bob, &anns, deciding),
        false => (&bob, &ann, &bobs, _deciding),
    };
    let asks = async |from: &TestNode, to: &TestNode| {
        let asking = from
            .handle
            .have_and_underway(to.key(), &[], &derivation, (of_ann, TERMS));
        soon(asking).await.unwrap().1
    };
    assert_eq!(asks(first, then).await, None, "the first one is not kept waiting");
    let decides = async {
        let built = underway.note(derivation.clone(), TERMS, For::Owner, Stage::Here);
        drop(noted);
        built
    };
    let (place, _built) = tokio::join!(asks(then, first), decides);
    assert_eq!(place, Some(first.key()));
}

#[tokio::test]
async fn more_paths_than_one_question_may_have_are_asked_for_with_it() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let many = 65_536;
    let mut paths: Vec<_> = (0..many).map(|number| path(&format!("p{number}"))).collect();
    paths.push(path("last"));
    ann.handle.announce(&[paths[7].clone(), path("last")]);
    let team = ann.handle.swarm();
    let derivation = path("wanted.drv");
    let _built = ann
        .handle
        .underway()
        .note(derivation.clone(), TERMS, For::Team(team), Stage::Waits);
    let asking = bob
        .handle
        .have_and_underway(ann.key(), &paths, &derivation, (Turn(0), TERMS));
    let (has, place) = soon(asking).await.unwrap();
    let held: Vec<usize> = (0..paths.len()).filter(|index| has[*index]).collect();
    assert_eq!((held, place), (vec![7, many], Some(ann.key())));
}
