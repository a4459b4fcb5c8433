use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use tvix_node_protocol::build::{BuiltOutput, RequestHash};
use tvix_node_protocol::tree::BlobDigest;
use tvix_node_store::{Audience, ContentName, Lease, Naming, Prepared, ScratchOutput};
use tvix_node_swarm::Shelf as _;

use super::super::grants::Grants;
use super::super::lent::Lent;
use super::super::private::PrivateBook;
use super::super::shelf::StoreShelf;
use super::super::traffic::TrafficBook;
use super::*;

const FIRST: SwarmId = SwarmId([1; 32]);
const SECOND: SwarmId = SwarmId([2; 32]);
/// Of the home, and so in the first team.
const HOME: [u8; 32] = [1; 32];
/// In the second team.
const APART: [u8; 32] = [2; 32];
/// A member of the first team.
const PEER: NodeKey = NodeKey([9; 32]);

fn view(team: SwarmId) -> TeamView {
    let home = NodeSecret::from_bytes(&HOME);
    let secret = NodeSecret::from_bytes(if team == FIRST { &HOME } else { &APART });
    TeamView::new(team, Arc::new(secret), home.key())
}

fn home() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    (folder, store)
}

fn path(name: &str) -> StorePath {
    StorePath::from_parts([7; 20], name).unwrap()
}

fn output_of(info: &PathInfo) -> BuiltOutput {
    BuiltOutput {
        path: info.path.clone(),
        tree: info.tree,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: Vec::new(),
    }
}

/// What a build with this content leaves.
fn output(store: &Store, folder: &Path, content: &str) -> Vec<Prepared> {
    let file = folder.join("built");
    fs::write(&file, content).unwrap();
    let output = ScratchOutput {
        path: path("built"),
        scratch: &file,
        ca: None,
        scanned: true,
    };
    let deriver = path("built.drv");
    store
        .prepare_built(&[output], &BTreeSet::new(), &deriver, &Origin::Built)
        .unwrap()
}

/// What a build that signs with `secret` leaves.
fn built(
    store: &Store,
    folder: &Path,
    secret: [u8; 32],
    request: Option<RequestHash>,
) -> (Vec<Prepared>, Envelope) {
    let prepared = output(store, folder, "what was built");
    let secret = NodeSecret::from_bytes(&secret);
    let record = BuildRecord {
        build_key: BuildKey([3; 32]),
        request,
        derivation: path("built.drv"),
        inputs: Vec::new(),
        outputs: BTreeMap::from([("out".to_owned(), output_of(prepared[0].info()))]),
        builder: secret.key(),
        started: 0,
        finished: 0,
        sandbox: String::new(),
    };
    (prepared, seal(&record, &secret).unwrap())
}

fn within(prepared: Vec<Prepared>, audience: &Audience) -> Vec<Prepared> {
    prepared
        .into_iter()
        .map(|output| output.within(audience))
        .collect()
}

fn add(store: &Store, folder: &Path, name: &str, audience: &Audience, lease: &Lease) -> PathInfo {
    let file = folder.join("source");
    fs::write(&file, format!("the content of {name}")).unwrap();
    let naming = Naming::Content(ContentName::source(name));
    let prepared = store.prepare_source(&file, naming).unwrap();
    let registered = store.register(within(vec![prepared], audience), lease);
    registered.unwrap().remove(0)
}

#[test]
fn the_owners_build_is_signed_with_the_key_that_each_team_knows() {
    let (folder, store) = home();
    let lease = store.lease();
    let (outputs, record) = built(&store, folder.path(), HOME, None);
    store.register_built(outputs, &record, &lease).unwrap();
    for team in [FIRST, SECOND] {
        let view = view(team);
        let shown = view
            .shown(&store, &path("built"))
            .unwrap()
            .expect("it is the owner's");
        let record = shown.record.expect("he built it");
        let opened: BuildRecord = record.open().unwrap();
        assert_eq!((record.signer, opened.builder), (view.me(), view.me()));
        assert_eq!(shown.info.origin, Origin::Built);
        let own = view.own_records(&store, &BuildKey([3; 32])).unwrap();
        assert_eq!(
            own.into_iter().map(|record| record.builder).collect::<Vec<_>>(),
            [view.me()]
        );
    }
}

#[test]
fn what_the_owner_built_from_what_came_from_a_team_is_no_earlier_build_for_another() {
    let (folder, store) = home();
    let lease = store.lease();
    let (outputs, record) = built(&store, folder.path(), HOME, None);
    let outputs = within(outputs, &view(FIRST).audience());
    store.register_built(outputs, &record, &lease).unwrap();
    let own = |team| view(team).own_records(&store, &BuildKey([3; 32])).unwrap().len();
    assert_eq!((own(FIRST), own(SECOND)), (1, 0));
    assert!(view(SECOND).shown(&store, &path("built")).unwrap().is_none());
}

#[test]
fn an_earlier_build_counts_while_its_outputs_have_their_names_and_are_not_private() {
    let (folder, store) = home();
    let lease = store.lease();
    let private = PrivateBook::open(folder.path().join("private.json")).unwrap();
    let found = |store: &Store, keys: &[u8]| {
        let keys: Vec<BuildKey> = keys.iter().map(|key| BuildKey([*key; 32])).collect();
        let record = view(FIRST).built_before((store, &lease), &private, &keys);
        record.unwrap().is_some()
    };
    let (outputs, record) = built(&store, folder.path(), HOME, None);
    store.put_record(&record, &Audience::Everyone).unwrap();
    assert!(!found(&store, &[3]), "what it made is not here");
    store.register_built(outputs, &record, &lease).unwrap();
    assert!(found(&store, &[4, 3]) && !found(&store, &[4]));
    private.add([path("built")], []).unwrap();
    assert!(!found(&store, &[3]), "it is private now");

    let (folder, store) = home();
    let lease = store.lease();
    let private = PrivateBook::open(folder.path().join("private.json")).unwrap();
    let (outputs, record) = built(&store, folder.path(), HOME, None);
    let other = output(&store, folder.path(), "built elsewhere");
    store.register(other, &lease).unwrap();
    store.put_record(&record, &Audience::Everyone).unwrap();
    store.register_unaccepted(outputs, &lease).unwrap();
    let keys = [BuildKey([3; 32])];
    let before = view(FIRST).built_before((&store, &lease), &private, &keys);
    assert_eq!(before.unwrap(), None, "it lies beside what has its name");
}

#[test]
fn of_a_build_for_one_team_another_learns_neither_the_record_nor_who_wanted_it() {
    let (folder, store) = home();
    let lease = store.lease();
    let (outputs, record) = built(&store, folder.path(), HOME, Some(RequestHash([5; 32])));
    let outputs = within(outputs, &view(FIRST).audience());
    store.register_built(outputs, &record, &lease).unwrap();
    let shown = |team| view(team).shown(&store, &path("built")).unwrap();
    assert!(shown(FIRST).expect("it was built for them").record.is_some());
    assert!(shown(SECOND).is_none());
    assert!(
        view(SECOND)
            .own_records(&store, &BuildKey([3; 32]))
            .unwrap()
            .is_empty()
    );
    // The other team brings the same: now they know it, and nothing else.
    let (outputs, _) = built(&store, folder.path(), HOME, None);
    store
        .register(within(outputs, &view(SECOND).audience()), &lease)
        .unwrap();
    let other = shown(SECOND).expect("they brought it");
    assert!(other.record.is_none());
    let peer = view(SECOND).me();
    assert_eq!(
        (other.info.origin, other.info.deriver),
        (Origin::Peer { peer }, None)
    );
    assert!(
        view(SECOND)
            .own_records(&store, &BuildKey([3; 32]))
            .unwrap()
            .is_empty()
    );
    // And even where the record itself is theirs as well, it was made out to somebody, and is not the owner's own.
    let opened = record.open::<BuildRecord>().unwrap();
    assert_eq!(view(SECOND).as_seen(opened.clone()), opened);
}

#[test]
fn nobody_hears_from_whom_another_team_a_path_came() {
    let (folder, store) = home();
    let lease = store.lease();
    // Some content, to come under another name.
    let content = add(&store, folder.path(), "content", &Audience::nobody(), &lease);
    let mut archive = Vec::new();
    store.dump_nar(&content.path, &mut archive).unwrap();
    let prepared = |audience: &Audience, origin: Origin| {
        let info = PathInfo {
            path: path("fetched"),
            ca: None,
            deriver: Some(path("fetched.drv")),
            origin,
            signatures: vec!["first-1:c2lnbmF0dXJl".to_owned()],
            ..content.clone()
        };
        let prepared = store
            .prepare_nar(&mut archive.as_slice(), Naming::Known(info))
            .unwrap();
        vec![prepared.within(audience)]
    };
    let first = prepared(&view(FIRST).audience(), Origin::Peer { peer: PEER });
    store.register(first, &lease).unwrap();
    let shown = |team| view(team).shown(&store, &path("fetched")).unwrap();
    assert_eq!(shown(FIRST).unwrap().info.origin, Origin::Peer { peer: PEER });
    assert!(shown(SECOND).is_none());
    let peer = view(SECOND).me();
    let second = prepared(&view(SECOND).audience(), Origin::Peer { peer });
    store.register(second, &lease).unwrap();
    let info = shown(SECOND).expect("they brought it, too").info;
    assert_eq!(info.origin, Origin::Peer { peer });
    assert_eq!((info.deriver, info.signatures), (None, vec![]));
}

#[test]
fn the_shelf_of_a_team_has_nothing_that_came_from_another() {
    let (folder, store) = home();
    let lease = store.lease();
    let theirs = add(&store, folder.path(), "theirs", &view(FIRST).audience(), &lease);
    let own = add(&store, folder.path(), "own", &Audience::Everyone, &lease);
    let private = add(&store, folder.path(), "private", &Audience::Everyone, &lease);
    let book = Arc::new(PrivateBook::open(folder.path().join("private.json")).unwrap());
    book.add([private.path.clone()], []).unwrap();
    let traffic = Arc::new(TrafficBook::open(folder.path().join("traffic.json")).unwrap());
    let blobs =
        ["theirs", "own", "private"].map(|name| BlobDigest::of(format!("the content of {name}").as_bytes()));
    for (team, knows) in [(FIRST, true), (SECOND, false)] {
        let grants = Arc::new(Grants::default());
        let shelf = StoreShelf::new(
            store.clone(),
            Arc::clone(&book),
            (Arc::clone(&grants), Arc::clone(&traffic)),
            Arc::new(Lent::new(store.clone())),
            view(team),
        );
        let advertised = shelf.advertised(None, 10).unwrap();
        assert_eq!(advertised.contains(&theirs.path), knows);
        assert!(advertised.contains(&own.path) && !advertised.contains(&private.path));
        assert_eq!(shelf.path_info(PEER, &theirs.path).unwrap().is_some(), knows);
        assert!(shelf.path_info(PEER, &own.path).unwrap().is_some());
        assert_eq!(shelf.may_serve(PEER, theirs.tree).unwrap(), knows);
        assert!(shelf.may_serve(PEER, own.tree).unwrap());
        // Who names the content of what is hidden has to bring it.
        assert_eq!(shelf.has_blobs(&blobs).unwrap(), [knows, true, false]);
        // What was made for one member is for that one.
        grants.give(PEER, theirs.tree, crate::daemon::clock::now());
        assert!(shelf.may_serve(PEER, theirs.tree).unwrap());
    }
}

#[test]
fn a_path_does_not_tell_when_it_came() {
    let (folder, store) = home();
    let lease = store.lease();
    let info = add(&store, folder.path(), "it", &view(FIRST).audience(), &lease);
    assert!(info.registered > 0);
    // It comes from the other team, too; that it was here before is nothing to that one.
    add(&store, folder.path(), "it", &view(SECOND).audience(), &lease);
    let shown = view(SECOND).shown(&store, &info.path).unwrap().unwrap();
    assert_eq!(shown.info.registered, 0);
}
