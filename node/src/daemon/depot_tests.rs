use std::collections::BTreeSet;
use std::path::Path;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::nix::store_path::build_text_path;
use tvix_node_store::ContentName;

use super::*;

const FIRST: SwarmId = SwarmId([1; 32]);
const SECOND: SwarmId = SwarmId([2; 32]);

fn depot() -> (tempfile::TempDir, Arc<Depot>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    let private = PrivateBook::open(folder.path().join("private.json")).unwrap();
    let trust = TrustBook::open(folder.path().join("trust.json"), NodeKey([1; 32]), Arc::default()).unwrap();
    let depot = Depot::new(store, Arc::new(private), Arc::new(trust));
    (folder, Arc::new(depot))
}

/// A path that came from these teams.
fn brought(depot: &Depot, folder: &Path, name: &str, audience: &Audience) -> StorePath {
    let file = folder.join("source");
    std::fs::write(&file, name).unwrap();
    let naming = Naming::Content(ContentName::source(name));
    let prepared = depot
        .store()
        .prepare_source(&file, naming)
        .unwrap()
        .within(audience);
    let registered = depot.store().register(vec![prepared], &depot.lease()).unwrap();
    registered[0].path.clone()
}

fn text(name: &str) -> Text {
    Text {
        path: build_text_path(name, name.as_bytes(), &BTreeSet::new()).unwrap(),
        references: BTreeSet::new(),
        content: name.as_bytes().to_vec(),
    }
}

#[tokio::test]
async fn a_source_is_private_before_it_is_there_unless_it_was_there_before() {
    let (folder, depot) = depot();
    let known = brought(&depot, folder.path(), "known", &Audience::Everyone);
    let mut archive = Vec::new();
    depot.store().dump_nar(&known, &mut archive).unwrap();
    let add = |name: &str, archive: &[u8]| {
        let naming = Naming::Content(ContentName::source(name));
        depot.add_privately(archive, naming, &Audience::Everyone, &depot.lease())
    };
    assert_eq!(add("known", &archive).unwrap().path, known);
    assert!(!depot.private.is_private(&known));
    let secret = add("secret", &archive).unwrap().path;
    assert!(depot.private.is_private(&secret));
    // Where it cannot be said that it is, it is not there.
    let blocked = folder.path().join("private.json");
    std::fs::remove_file(&blocked).unwrap();
    std::fs::create_dir(&blocked).unwrap();
    add("other", &archive).unwrap_err();
    assert_eq!(depot.store().paths_after(None, 9).unwrap().len(), 2);
    // An archive with something behind it is none.
    add("torn", &[&archive[..], b"x"].concat()).unwrap_err();
}

fn audience(depot: &Depot, path: &StorePath) -> Option<Audience> {
    depot.store().audiences([path]).unwrap().remove(0)
}

#[tokio::test]
async fn what_is_evaluated_after_something_of_a_team_was_read_is_for_that_team() {
    let (folder, depot) = depot();
    let own = brought(&depot, folder.path(), "own", &Audience::Everyone);
    let theirs = brought(&depot, folder.path(), "theirs", &Audience::team(FIRST));
    depot.begin_session(1);
    depot.begin_session(2);
    depot.read_by(1, vec![own.clone()]).await.unwrap();
    depot.add_texts(1, vec![text("before.drv")]).await.unwrap();
    let read = depot.read_by(1, vec![theirs, own]).await.unwrap();
    assert_eq!(read.len(), 2);
    depot.add_texts(1, vec![text("after.drv")]).await.unwrap();
    // Another command has not read it, and one that comes to the same without makes it the owner's.
    depot.add_texts(2, vec![text("beside.drv")]).await.unwrap();
    assert_eq!(
        audience(&depot, &text("before.drv").path),
        Some(Audience::Everyone)
    );
    assert_eq!(
        audience(&depot, &text("after.drv").path),
        Some(Audience::team(FIRST))
    );
    assert_eq!(
        audience(&depot, &text("beside.drv").path),
        Some(Audience::Everyone)
    );
    depot.end_session(1);
    assert_eq!(
        depot.audience_of(1),
        Audience::nobody(),
        "what it read is forgotten"
    );
    depot.add_texts(2, vec![text("after.drv")]).await.unwrap();
    assert_eq!(
        audience(&depot, &text("after.drv").path),
        Some(Audience::Everyone)
    );
}

#[tokio::test]
async fn each_team_is_told_of_what_it_may_learn_of() {
    let (folder, depot) = depot();
    type Told = Vec<(SwarmId, Vec<StorePath>)>;
    let told: Arc<Mutex<Told>> = Arc::default();
    for team in [FIRST, SECOND] {
        let told = Arc::clone(&told);
        let announcer = move |paths: &[StorePath]| lock(&told).push((team, paths.to_vec()));
        depot.announce_with(team, Arc::new(announcer));
    }
    let own = brought(&depot, folder.path(), "own", &Audience::Everyone);
    let theirs = brought(&depot, folder.path(), "theirs", &Audience::team(FIRST));
    let hidden = brought(&depot, folder.path(), "hidden", &Audience::Everyone);
    depot.private.add([hidden.clone()], []).unwrap();
    let gone = text("gone").path;
    depot.added(&[own.clone(), theirs.clone(), hidden, gone]).unwrap();
    let expected = vec![
        (FIRST, vec![own.clone(), theirs.clone()]),
        (SECOND, vec![own.clone()]),
    ];
    assert_eq!(std::mem::take(&mut *lock(&told)), expected);
    depot.announce_no_more(FIRST);
    depot.added(&[own.clone(), theirs]).unwrap();
    assert_eq!(*lock(&told), [(SECOND, vec![own])]);
}
