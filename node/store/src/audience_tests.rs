use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use redb::ReadableDatabase as _;
use tvix_node_protocol::build::{BuildRecord, BuiltOutput};
use tvix_node_protocol::envelope::{Envelope, NodeSecret, seal};
use tvix_node_protocol::nix::store_path::build_text_path;

use super::*;
use crate::{ContentName, GcOptions, Lease, Naming, Prepared, ScratchOutput, Text};

const ANNS: SwarmId = SwarmId([1; 32]);
const BOBS: SwarmId = SwarmId([2; 32]);

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    (folder, store)
}

/// A tree of one file, as somebody else would bring it.
fn brought(
    store: &Store,
    folder: &Path,
    name: &str,
    references: &[&StorePath],
    audience: &Audience,
) -> Prepared {
    let source = folder.join("source");
    fs::write(&source, format!("the content of {name}")).unwrap();
    let content = ContentName {
        references: references.iter().map(|path| (*path).clone()).collect(),
        ..ContentName::source(name)
    };
    store
        .prepare_source(&source, Naming::Content(content))
        .unwrap()
        .within(audience)
}

fn add(
    (store, folder): (&Store, &Path),
    name: &str,
    references: &[&StorePath],
    audience: &Audience,
    lease: &Lease,
) -> StorePath {
    let prepared = brought(store, folder, name, references, audience);
    store.register(vec![prepared], lease).unwrap().remove(0).path
}

fn audience(store: &Store, path: &StorePath) -> Option<Audience> {
    store.audiences([path]).unwrap().remove(0)
}

fn both() -> Audience {
    Audience::Teams(BTreeSet::from([ANNS, BOBS]))
}

fn text(name: &str, references: &[&StorePath]) -> Text {
    let references: BTreeSet<StorePath> = references.iter().map(|path| (*path).clone()).collect();
    Text {
        path: build_text_path(name, name.as_bytes(), &references).unwrap(),
        references,
        content: name.as_bytes().to_vec(),
    }
}

#[test]
fn what_came_from_a_team_is_for_that_team_and_what_is_the_owners_for_each() {
    let (folder, store) = store();
    let (at, lease) = ((&store, folder.path()), store.lease());
    let anns = add(at, "anns", &[], &Audience::team(ANNS), &lease);
    let own = add(at, "own", &[], &Audience::Everyone, &lease);
    assert_eq!(audience(&store, &anns), Some(Audience::team(ANNS)));
    assert_eq!(audience(&store, &own), Some(Audience::Everyone));
    assert_eq!(store.known_to(ANNS, [&anns, &own]).unwrap(), [true, true]);
    assert_eq!(store.known_to(BOBS, [&anns, &own]).unwrap(), [false, true]);
    let gone = text("gone", &[]).path;
    assert_eq!(audience(&store, &gone), None);
    assert_eq!(store.known_to(ANNS, [&gone]).unwrap(), [false]);
    assert_eq!(store.audience_of_all([&own, &gone]).unwrap(), Audience::nobody());
}

#[test]
fn who_brings_it_too_may_learn_of_it_and_the_owner_makes_it_everyones() {
    let (folder, store) = store();
    let (at, lease) = ((&store, folder.path()), store.lease());
    let path = add(at, "it", &[], &Audience::team(ANNS), &lease);
    add(at, "it", &[], &Audience::team(BOBS), &lease);
    assert_eq!(audience(&store, &path), Some(both()));
    add(at, "it", &[], &Audience::Everyone, &lease);
    assert_eq!(audience(&store, &path), Some(Audience::Everyone));
    // And it stays so, whoever brings it then.
    add(at, "it", &[], &Audience::team(ANNS), &lease);
    assert_eq!(audience(&store, &path), Some(Audience::Everyone));
}

#[test]
fn a_path_is_known_to_no_more_than_all_that_it_refers_to() {
    let (folder, store) = store();
    let (at, lease) = ((&store, folder.path()), store.lease());
    let anns = add(at, "anns", &[], &Audience::team(ANNS), &lease);
    let bobs = add(at, "bobs", &[], &Audience::team(BOBS), &lease);
    let onto_anns = add(at, "onto-anns", &[&anns], &Audience::Everyone, &lease);
    assert_eq!(audience(&store, &onto_anns), Some(Audience::team(ANNS)));
    let onto_both = add(at, "onto-both", &[&onto_anns, &bobs], &Audience::Everyone, &lease);
    assert_eq!(audience(&store, &onto_both), Some(Audience::nobody()));
    // Nor where it is the owner's own anew, before that is so of what it refers to.
    store.widen([&onto_anns], &Audience::Everyone).unwrap();
    assert_eq!(audience(&store, &onto_anns), Some(Audience::team(ANNS)));
    store.widen([&onto_anns, &anns], &Audience::Everyone).unwrap();
    assert_eq!(audience(&store, &onto_anns), Some(Audience::Everyone));
}

#[test]
fn texts_that_come_together_are_known_to_those_who_may_learn_of_all_below_them() {
    let (folder, store) = store();
    let lease = store.lease();
    let anns = add(
        (&store, folder.path()),
        "anns",
        &[],
        &Audience::team(ANNS),
        &lease,
    );
    let below = text("below.drv", &[&anns]);
    let above = text("above.drv", &[&below.path]);
    let beside = text("beside.drv", &[]);
    let texts = [above.clone(), beside.clone(), below.clone()];
    store.add_texts(&texts, &lease).unwrap();
    assert_eq!(audience(&store, &above.path), Some(Audience::team(ANNS)));
    assert_eq!(audience(&store, &below.path), Some(Audience::team(ANNS)));
    assert_eq!(audience(&store, &beside.path), Some(Audience::Everyone));
}

#[test]
fn a_text_or_source_of_another_that_the_owner_adds_is_his_own() {
    let (folder, store) = store();
    let lease = store.lease();
    let own = text("it.drv", &[]);
    store.add_texts(std::slice::from_ref(&own), &lease).unwrap();
    let number_of_rows = |store: &Store| {
        let read = store
            .inner
            .index
            .read(|transaction| Ok(transaction.open_table(AUDIENCES)?.len()?));
        read.unwrap()
    };
    assert_eq!(number_of_rows(&store), 0);
    let source = add(
        (&store, folder.path()),
        "source",
        &[],
        &Audience::team(ANNS),
        &lease,
    );
    assert_eq!(number_of_rows(&store), 1);
    let file = folder.path().join("source");
    let naming = Naming::Content(ContentName {
        expected: Some(source.clone()),
        ..ContentName::source("source")
    });
    store.add_source(&file, naming, &lease).unwrap();
    assert_eq!(audience(&store, &source), Some(Audience::Everyone));
}

#[test]
fn what_is_collected_is_forgotten_with_its_audience() {
    let (folder, store) = store();
    let lease = store.lease();
    let anns = add(
        (&store, folder.path()),
        "anns",
        &[],
        &Audience::team(ANNS),
        &lease,
    );
    drop(lease);
    store.gc(&GcOptions::default()).unwrap();
    assert_eq!(audience(&store, &anns), None);
    let lease = store.lease();
    add(
        (&store, folder.path()),
        "anns",
        &[],
        &Audience::team(BOBS),
        &lease,
    );
    assert_eq!(audience(&store, &anns), Some(Audience::team(BOBS)));
}

#[test]
fn files_count_only_where_their_trees_do() {
    let (folder, store) = store();
    let (at, lease) = ((&store, folder.path()), store.lease());
    add(at, "anns", &[], &Audience::team(ANNS), &lease);
    let aside = brought(&store, folder.path(), "aside", &[], &Audience::team(BOBS));
    store.register_unaccepted(vec![aside], &lease).unwrap();
    let blobs =
        ["anns", "aside", "gone"].map(|name| BlobDigest::of(format!("the content of {name}").as_bytes()));
    let known_to = |team| {
        let counts = |_: Option<&StorePath>, audience: &Audience| audience.includes(team);
        store.has_blobs_among(&blobs, &counts).unwrap()
    };
    assert_eq!(known_to(ANNS), [true, false, false]);
    assert_eq!(known_to(BOBS), [false, true, false]);
    let named = |path: Option<&StorePath>, _: &Audience| path.is_some();
    assert_eq!(
        store.has_blobs_among(&blobs, &named).unwrap(),
        [true, false, false]
    );
}

#[test]
fn a_tree_that_becomes_the_accepted_one_is_known_to_those_who_knew_it() {
    let (folder, store) = store();
    let lease = store.lease();
    let aside = brought(&store, folder.path(), "aside", &[], &Audience::team(BOBS));
    let info = store.register_unaccepted(vec![aside], &lease).unwrap().remove(0);
    store.accept(&info.path, &info.tree, &lease).unwrap();
    assert_eq!(audience(&store, &info.path), Some(Audience::team(BOBS)));
}

fn record_of(info: &tvix_node_protocol::path_info::PathInfo, builder: u8, started: u64) -> Envelope {
    let secret = NodeSecret::from_bytes(&[builder; 32]);
    let output = BuiltOutput {
        path: info.path.clone(),
        tree: info.tree,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: Vec::new(),
    };
    let record = BuildRecord {
        build_key: BuildKey([3; 32]),
        request: None,
        derivation: text("it.drv", &[]).path,
        inputs: Vec::new(),
        outputs: BTreeMap::from([("out".to_owned(), output)]),
        builder: secret.key(),
        started,
        finished: started,
        sandbox: String::new(),
    };
    seal(&record, &secret).unwrap()
}

#[test]
fn records_are_known_to_the_team_that_they_came_from() {
    let (folder, store) = store();
    let lease = store.lease();
    let built = folder.path().join("built");
    fs::write(&built, "built").unwrap();
    let output = ScratchOutput {
        path: StorePath::from_parts([9; 20], "built").unwrap(),
        scratch: &built,
        ca: None,
        scanned: true,
    };
    let deriver = text("it.drv", &[]).path;
    let prepared = store
        .prepare_built(&[output], &BTreeSet::new(), &deriver, &Origin::Built)
        .unwrap();
    let prepared: Vec<Prepared> = prepared
        .into_iter()
        .map(|output| output.within(&Audience::team(ANNS)))
        .collect();
    let info = prepared[0].info().clone();
    let first = record_of(&info, 1, 0);
    store.register_built(prepared, &first, &lease).unwrap();
    let key = BuildKey([3; 32]);
    let known_to = |team| {
        let by_key = store.records_known_to(team, &key).unwrap();
        assert_eq!(store.records_of_known_to(team, &info.path).unwrap(), by_key);
        by_key
    };
    assert_eq!(known_to(ANNS), std::slice::from_ref(&first));
    assert_eq!(known_to(BOBS), []);
    // The same by another way.
    store.put_record(&first, &Audience::team(BOBS)).unwrap();
    assert_eq!(known_to(ANNS), std::slice::from_ref(&first));
    assert_eq!(known_to(BOBS), std::slice::from_ref(&first));
    // Another one takes its place, and whoever it did not come from has none.
    let second = record_of(&info, 1, 5);
    store.put_record(&second, &Audience::team(BOBS)).unwrap();
    assert_eq!(known_to(ANNS), []);
    assert_eq!(known_to(BOBS), [second]);
    // With its outputs it goes, and who may learn of it with it.
    drop(lease);
    store.gc(&GcOptions::default()).unwrap();
    let rows = store
        .inner
        .index
        .read(|transaction| Ok(transaction.open_table(RECORD_AUDIENCES)?.len()?));
    assert_eq!(rows.unwrap(), 0);
}

/// A store as the version before wrote it.
fn of_version_1(home: &Path, fill: impl FnOnce(&Store)) {
    let store = Store::open(home).unwrap();
    fill(&store);
    drop(store);
    fs::write(home.join("store/schema"), "1\n").unwrap();
    let database = redb::Database::open(home.join("store/index.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.delete_table(AUDIENCES).unwrap();
    transaction.delete_table(RECORD_AUDIENCES).unwrap();
    transaction.commit().unwrap();
    assert!(database.begin_read().unwrap().open_table(AUDIENCES).is_err());
}

#[test]
fn what_an_older_store_has_is_known_to_the_teams_of_then_alone() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let mut path = None;
    of_version_1(&home, |store| {
        let at = (store, folder.path());
        path = Some(add(at, "it", &[], &Audience::Everyone, &store.lease()));
    });
    let path = path.unwrap();
    let store = Store::open_in_teams(&home, Some(&BTreeSet::from([ANNS]))).unwrap();
    assert_eq!(audience(&store, &path), Some(Audience::team(ANNS)));
    let new = add(
        (&store, folder.path()),
        "new",
        &[],
        &Audience::Everyone,
        &store.lease(),
    );
    drop(store);
    // Once.
    let store = Store::open_in_teams(&home, Some(&BTreeSet::from([BOBS]))).unwrap();
    assert_eq!(audience(&store, &path), Some(Audience::team(ANNS)));
    assert_eq!(audience(&store, &new), Some(Audience::Everyone));
}

#[test]
fn what_an_older_store_outside_of_any_team_has_is_the_owners_unless_a_member_vouched_for_any_of_it() {
    for vouched in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        let mut path = None;
        of_version_1(&home, |store| {
            let lease = store.lease();
            let mut first = brought(store, folder.path(), "first", &[], &Audience::Everyone);
            if vouched {
                let peer = NodeSecret::from_bytes(&[1; 32]).key();
                first.info.origin = Origin::Peer { peer };
            }
            store.register(vec![first], &lease).unwrap();
            path = Some(add(
                (store, folder.path()),
                "second",
                &[],
                &Audience::Everyone,
                &lease,
            ));
        });
        let store = Store::open(&home).unwrap();
        let expected = if vouched {
            Audience::nobody()
        } else {
            Audience::Everyone
        };
        assert_eq!(audience(&store, &path.unwrap()), Some(expected), "{vouched}");
    }
}

#[test]
fn what_an_older_store_has_is_for_nobody_where_its_node_has_left_its_teams() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let mut path = None;
    // A source names itself, whoever brought it.
    of_version_1(&home, |store| {
        let at = (store, folder.path());
        path = Some(add(at, "source", &[], &Audience::Everyone, &store.lease()));
    });
    let path = path.unwrap();
    let store = Store::open_in_teams(&home, Some(&BTreeSet::new())).unwrap();
    assert_eq!(audience(&store, &path), Some(Audience::nobody()));
    assert_eq!(store.known_to(BOBS, [&path]).unwrap(), [false]);
    // The owner who adds it again makes it his own.
    let lease = store.lease();
    let again = add(
        (&store, folder.path()),
        "source",
        &[],
        &Audience::Everyone,
        &lease,
    );
    assert_eq!(again, path);
    assert_eq!(audience(&store, &path), Some(Audience::Everyone));
}
