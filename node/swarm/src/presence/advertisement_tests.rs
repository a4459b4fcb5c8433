use super::*;
use tvix_node_protocol::roster::{Founder, Genesis};

const ANN: NodeKey = NodeKey([1; 32]);
const BOB: NodeKey = NodeKey([2; 32]);

fn secret() -> PresenceSecret {
    let founders = vec![Founder {
        key: ANN,
        name: "ann".into(),
    }];
    let genesis = Genesis {
        name: "team".into(),
        founders,
        threshold: 1,
        salt: [1; 32],
    };
    PresenceSecret::derive(&genesis, [])
}

fn path(number: u32) -> StorePath {
    let mut hash = [0; 20];
    hash[..4].copy_from_slice(&number.to_be_bytes());
    StorePath::from_parts(hash, "x").unwrap()
}

fn paths(range: std::ops::Range<u32>) -> Vec<StorePath> {
    range.map(path).collect()
}

fn all_keys(own: &mut Advertisement) -> BTreeSet<PresenceKey> {
    own.regions()
        .into_iter()
        .flat_map(|region| own.cells(region))
        .flat_map(|cell| cell.keys)
        .collect()
}

#[test]
fn every_path_is_in_one_cell_whatever_the_size_of_the_team() {
    for members in [1, 40, 2000] {
        let mut own = Advertisement::new(secret(), members);
        own.add(&paths(0..5000));
        let cells: Vec<OwnCell> = own
            .regions()
            .into_iter()
            .flat_map(|region| own.cells(region))
            .collect();
        assert_eq!(cells.iter().map(|cell| cell.keys.len()).sum::<usize>(), 5000);
        assert!(cells.iter().all(|cell| cell.keys.len() <= CELL_KEYS));
        assert!((0..5000).all(|number| own.has(own.secret().key(&path(number)))));
        assert!(!own.has(own.secret().key(&path(5000))));
    }
}

#[test]
fn a_member_is_told_once_and_again_when_something_changed_or_it_is_time() {
    let mut own = Advertisement::new(secret(), 1);
    own.add(&paths(0..3));
    let region = own.regions()[0];
    assert!(own.is_due(region, ANN, 0));
    own.told(region, ANN, own.change(region), 100);
    assert!(!own.is_due(region, ANN, 99));
    assert!(own.is_due(region, BOB, 99), "each member for itself");
    assert!(own.is_due(region, ANN, 100), "time to renew");
    own.add(&paths(0..3));
    assert!(!own.is_due(region, ANN, 99), "nothing new");
    own.add(&paths(3..4));
    assert!(own.is_due(region, ANN, 99));
    own.told(region, ANN, own.change(region), 100);
    own.remove(&paths(0..1));
    assert!(own.is_due(region, ANN, 99));
    own.told(region, ANN, own.change(region), 100);
    own.forget_member(ANN);
    assert!(own.is_due(region, ANN, 99), "it was restarted");
    own.is_away(ANN, 99, 200);
    assert!(!own.is_due(region, ANN, 199), "it cannot be reached");
    assert!(own.is_due(region, ANN, 200) && own.is_due(region, BOB, 99));
    own.is_away(ANN, 200, 300);
    own.forget_member(ANN);
    assert!(own.is_due(region, ANN, 200), "it was seen");
}

#[test]
fn a_change_while_telling_is_told_too() {
    let mut own = Advertisement::new(secret(), 1);
    own.add(&paths(0..3));
    let region = own.regions()[0];
    let change = own.change(region);
    own.add(&paths(3..4));
    own.told(region, ANN, change, 100);
    assert!(own.is_due(region, ANN, 50));
}

#[test]
fn paths_that_are_gone_leave_an_empty_cell_that_says_so() {
    let mut own = Advertisement::new(secret(), 1);
    own.add(&paths(0..3));
    own.remove(&paths(0..3));
    assert!(own.is_empty());
    let cells = own.cells(own.regions()[0]);
    assert_eq!(cells.len(), 1);
    assert!(cells[0].keys.is_empty());
}

#[test]
fn a_region_is_not_cut_anew_with_every_path() {
    let mut own = Advertisement::new(secret(), 1);
    let mut depths = BTreeSet::new();
    own.add(&paths(0..PRESENCE_CELL_FILL as u32 + 1));
    let region = own.regions()[0];
    for _ in 0..10 {
        own.remove(&paths(0..2));
        depths.insert(own.cells(region)[0].depth);
        own.add(&paths(0..2));
        depths.insert(own.cells(region)[0].depth);
    }
    assert_eq!(depths.len(), 1);
}

#[test]
fn a_team_that_grows_is_told_anew() {
    let mut own = Advertisement::new(secret(), 4);
    own.add(&paths(0..100));
    let region = own.regions()[0];
    own.told(region, ANN, own.change(region), 1000);
    own.resize(5);
    assert!(!own.is_due(region, ANN, 0), "the regions are as they were");
    own.resize(64);
    assert_eq!(own.regions().len(), 16);
    for region in own.regions() {
        assert!(own.is_due(region, ANN, 0), "it has been told of other regions");
    }
    assert_eq!(all_keys(&mut own).len(), 100);
}

#[test]
fn what_goes_while_the_store_is_listed_stays_gone() {
    let mut own = Advertisement::new(secret(), 1);
    let has = |own: &Advertisement, number| own.has(own.secret().key(&path(number)));
    own.begin_listing();
    own.add_listed(&paths(0..2));
    // Two pages have been read; before they are taken in, paths come and go.
    own.remove(&paths(1..4));
    own.add(&paths(3..4));
    own.add_listed(&paths(2..6));
    let there: Vec<u32> = (0..6).filter(|number| has(&own, *number)).collect();
    assert_eq!(there, [0, 3, 4, 5]);
    own.end_listing();
    own.add_listed(&paths(1..2));
    assert!(has(&own, 1), "another listing knows nothing of that");
}

#[test]
fn messages_of_a_renewal_are_counted_by_regions_and_not_by_paths() {
    use crate::limits::PRESENCE_CELLS_PER_PUT;
    for members in [16, 200, 2000] {
        let messages = |count: u32| {
            let mut own = Advertisement::new(secret(), members);
            own.add(&paths(0..count));
            let regions = own.regions();
            let puts = regions
                .iter()
                .map(|region| own.cells(*region).len().div_ceil(PRESENCE_CELLS_PER_PUT));
            (regions.len(), puts.sum::<usize>())
        };
        let (few, many) = (messages(5_000), messages(100_000));
        assert_eq!(few, many);
        let regions = 1 << Region::bits_for(members);
        assert_eq!(few, (regions, regions), "one message for each region and keeper");
    }
}

#[test]
fn who_may_keep_something_is_taken_it_back_from() {
    let mut own = Advertisement::new(secret(), 2);
    assert!(own.audience().is_empty());
    // The answer has not come, and never may.
    own.tells(ANN);
    assert_eq!(own.audience(), BTreeSet::from([ANN]));
    // In a team that has grown the regions are others; what was told lies where it was.
    let region = Region::of(PresenceKey([0; 16]), 0);
    own.told(region, BOB, 1, 100);
    own.resize(10_000);
    assert_eq!(own.audience(), BTreeSet::from([ANN, BOB]));
    own.forget_member(BOB);
    assert_eq!(own.audience(), BTreeSet::from([ANN]));
}
