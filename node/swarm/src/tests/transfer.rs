use super::shelf::{component, noise};
use super::*;
use crate::limits::{CONTENT_PIECE, PACKED_BLOB, PIECE_CHUNKS, WRITE_BATCH};
use crate::{Arrival, ArrivedBlob, Caps, FetchError, FetchOrder, FetchProgress, ProviderError, copy_blob};
use std::io::Read as _;
use tokio::sync::watch;
use tvix_node_protocol::tree::{BlobDigest, Directory, Leaf, Node, SymlinkTarget, Tree, TreeDigest};

/// Two members who know each other.
async fn pair() -> (TestNode, TestNode) {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    (ann, bob)
}

/// A tree with everything: nested and equal directories, links, empty, small, middling and large files.
fn mixed(shelf: &TestShelf) -> TreeDigest {
    let mut inner = Directory::default();
    for number in 0..300_u64 {
        let bytes = noise(number, usize::try_from(number % 40).unwrap() * 2000);
        let name = component(&format!("file {number}"));
        inner.insert(name, shelf.add_blob(&bytes)).unwrap();
    }
    let inner = shelf.add_tree(Tree::Directory(inner));
    let mut root = Directory::default();
    root.insert(component("a"), Node::Directory(inner)).unwrap();
    root.insert(component("b"), Node::Directory(inner)).unwrap();
    let link = Node::Symlink(SymlinkTarget::new(b"a/file 1").unwrap());
    root.insert(component("link"), link).unwrap();
    root.insert(component("large"), shelf.add_blob(&noise(1000, 3_000_001)))
        .unwrap();
    shelf.add_tree(Tree::Directory(root))
}

async fn fetch(node: &TestNode, root: TreeDigest, from: &[&TestNode]) -> Result<Arc<Arrival>, FetchError> {
    let providers = from.iter().map(|node| node.key()).collect();
    soon(node.handle.fetch_tree(root, providers, None)).await
}

#[tokio::test]
async fn a_few_files_come_whether_they_make_a_small_answer_or_not_and_however_little_may_be_sent() {
    let (ann, bob) = pair().await;
    // One that is small; one of as many files that is not; and small ones that together have to wait for the link.
    let files = |seed: u64, count: u64, size: usize| {
        let files = (0..count).map(|number| (format!("{number}"), noise(seed + number, size)));
        let files: Vec<(String, Vec<u8>)> = files.collect();
        let named: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(name, bytes)| (&name[..], &bytes[..]))
            .collect();
        let root = ann.shelf.add_directory(&named);
        ann.shelf.add_path(&format!("p{seed}"), root);
        root
    };
    for root in [files(0, 3, 20_000), files(100, 5, 60_000)] {
        bob.shelf.adopt(&fetch(&bob, root, &[&ann]).await.unwrap());
        assert!(bob.shelf.is_complete(root));
    }
    ann.handle.set_caps(Caps {
        upload: Some(512 << 10),
        download: None,
    });
    let roots: Vec<TreeDigest> = (2..22).map(|number| files(number * 1000, 2, 60_000)).collect();
    let from = [&ann];
    let all = roots.iter().map(|root| fetch(&bob, *root, &from));
    for arrival in futures::future::join_all(all).await {
        bob.shelf.adopt(&arrival.unwrap());
    }
    assert!(roots.iter().all(|root| bob.shelf.is_complete(*root)));
}

#[tokio::test]
async fn a_tree_of_every_kind_arrives() {
    let (ann, bob) = pair().await;
    let root = mixed(&ann.shelf);
    ann.shelf.add_path("mixed", root);
    let arrival = fetch(&bob, root, &[&ann]).await.unwrap();
    bob.shelf.adopt(&arrival);
    assert!(bob.shelf.is_complete(root));
    let spool = std::fs::read_dir(bob.home.path().join("spool")).unwrap();
    assert_eq!(spool.count(), 0, "the folder is gone once the store has taken it");
}

#[tokio::test]
async fn a_tree_that_is_one_file_or_link_arrives() {
    let (ann, bob) = pair().await;
    for (name, bytes) in [
        ("empty", vec![]),
        ("small", noise(1, 100)),
        ("large", noise(2, 200_000)),
    ] {
        let Node::File {
            blob,
            size,
            executable,
        } = ann.shelf.add_blob(&bytes)
        else {
            panic!()
        };
        let root = ann.shelf.add_tree(Tree::Leaf(Leaf::File {
            blob,
            size,
            executable,
        }));
        ann.shelf.add_path(name, root);
        bob.shelf.adopt(&fetch(&bob, root, &[&ann]).await.unwrap());
        assert!(bob.shelf.is_complete(root), "{name}");
    }
    let link = Tree::Leaf(Leaf::Symlink(SymlinkTarget::new(b"x").unwrap()));
    let root = ann.shelf.add_tree(link);
    ann.shelf.add_path("link", root);
    bob.shelf.adopt(&fetch(&bob, root, &[&ann]).await.unwrap());
    assert!(bob.shelf.is_complete(root));
}

#[tokio::test]
async fn files_that_are_here_are_not_fetched() {
    let (ann, bob) = pair().await;
    let large = noise(1, 2_000_000);
    let root = ann.shelf.add_directory(&[("large", &large), ("small", b"x")]);
    ann.shelf.add_path("p", root);
    bob.shelf.add_blob(&large);
    let arrival = fetch(&bob, root, &[&ann]).await.unwrap();
    assert!(arrival.blob(BlobDigest::of(&large)).unwrap().is_none());
    assert!(bob.handle.traffic()[&ann.key()].content_received < 10_000);
}

#[tokio::test]
async fn bytes_are_counted_per_peer_and_direction() {
    let (ann, bob) = pair().await;
    let root = ann.shelf.add_directory(&[("large", &noise(1, 1_000_000))]);
    ann.shelf.add_path("p", root);
    fetch(&bob, root, &[&ann]).await.unwrap();
    let (sent, received) = (ann.handle.traffic()[&bob.key()], bob.handle.traffic()[&ann.key()]);
    assert!(
        sent.content_sent > 1_000_000 && sent.content_sent < 1_020_000,
        "{sent:?}"
    );
    assert!(received.content_received > 1_000_000, "{received:?}");
    assert_eq!((sent.content_received, received.content_sent), (0, 0));
    assert!(sent.other_sent < 100_000, "{sent:?}");
}

#[tokio::test]
async fn what_one_provider_lacks_comes_from_another() {
    let (ann, bob) = pair().await;
    let mut cat = ann.invite(3).await;
    cat.meets(ann.key()).await;
    cat.meets(bob.key()).await;
    let root = mixed(&bob.shelf);
    bob.shelf.add_path("mixed", root);
    let arrival = fetch(&cat, root, &[&ann, &bob]).await.unwrap();
    cat.shelf.adopt(&arrival);
    assert!(cat.shelf.is_complete(root));
}

#[tokio::test]
async fn several_providers_share_the_work() {
    let (ann, bob) = pair().await;
    let mut cat = ann.invite(3).await;
    cat.meets(ann.key()).await;
    cat.meets(bob.key()).await;
    let large = noise(1, 6 * 1024 * usize::try_from(PIECE_CHUNKS).unwrap());
    for shelf in [&ann.shelf, &bob.shelf] {
        let root = shelf.add_directory(&[("large", &large)]);
        shelf.add_path("p", root);
    }
    // However busy the machine is, neither is through before the other one has begun.
    for node in [&ann, &bob] {
        node.handle.set_caps(Caps {
            upload: Some(16 << 20),
            download: None,
        });
    }
    let root = ann.shelf.tree_of(&super::shelf::path("p"));
    cat.shelf.adopt(&fetch(&cat, root, &[&ann, &bob]).await.unwrap());
    assert!(cat.shelf.is_complete(root));
    let traffic = cat.handle.traffic();
    let piece = 1024 * PIECE_CHUNKS;
    assert!(traffic[&ann.key()].content_received > piece);
    assert!(traffic[&bob.key()].content_received > piece);
}

#[tokio::test]
async fn a_provider_that_is_through_takes_over_what_a_slow_one_has_left() {
    let (ann, bob) = pair().await;
    let mut cat = ann.invite(3).await;
    cat.meets(ann.key()).await;
    cat.meets(bob.key()).await;
    let piece = 1024 * PIECE_CHUNKS;
    // Ann is asked first, for a piece with each of her streams; what is left is bob's.
    let large = noise(1, usize::try_from(3 * piece).unwrap());
    for shelf in [&ann.shelf, &bob.shelf] {
        let root = shelf.add_directory(&[("large", &large)]);
        shelf.add_path("p", root);
    }
    ann.handle.set_caps(Caps {
        upload: Some(1 << 20),
        download: None,
    });
    let root = ann.shelf.tree_of(&super::shelf::path("p"));
    let (progress, watched) = watch::channel(FetchProgress::default());
    let order = FetchOrder {
        progress: Some(progress),
        ..FetchOrder::new(root, vec![ann.key(), bob.key()])
    };
    cat.shelf.adopt(&cat.handle.fetch(order).await.unwrap());
    assert!(cat.shelf.is_complete(root));
    let seen = watched.borrow().clone();
    assert_eq!(seen.received, 3 * piece, "nothing is counted twice");
    assert!(seen.by_provider[&bob.key()] > piece + piece / 2, "{seen:?}");
    assert!(seen.by_provider[&ann.key()] > 0, "{seen:?}");
}

#[tokio::test]
async fn nobody_to_ask_is_an_error_that_says_so() {
    let (ann, bob) = pair().await;
    let root = TreeDigest([7; 32]);
    let error = fetch(&bob, root, &[]).await.unwrap_err();
    assert!(matches!(error, FetchError::NoProvider(_)), "{error}");
    let error = fetch(&bob, root, &[&ann]).await.unwrap_err().to_string();
    assert!(error.contains("does not have it"), "{error}");
}

#[tokio::test]
async fn a_tree_larger_than_expected_is_not_fetched() {
    let (ann, bob) = pair().await;
    let root = ann.shelf.add_directory(&[("large", &noise(1, 1_000_000))]);
    ann.shelf.add_path("p", root);
    let fetched = bob.handle.fetch_tree(root, vec![ann.key()], Some(999_999)).await;
    assert!(matches!(
        fetched,
        Err(FetchError::TooLarge { size: 1_000_000, .. })
    ));
    assert!(
        soon(bob.handle.fetch_tree(root, vec![ann.key()], Some(1_000_000)))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_tree_of_more_entries_than_its_archive_has_room_for_is_not_walked_to_its_end() {
    let (ann, bob) = pair().await;
    let names: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (&name[..], &b""[..])).collect();
    let root = ann.shelf.add_directory(&files);
    ann.shelf.add_path("p", root);
    let most = |bytes| bob.handle.fetch_tree(root, vec![ann.key()], Some(bytes));
    let error = soon(most(150_000)).await.unwrap_err().to_string();
    assert!(error.contains("1000 entries"), "{error}");
    // Words and names of an empty file take that much and some more.
    assert!(soon(most(184_000)).await.is_ok());
}

#[tokio::test]
async fn a_grant_serves_one_peer_and_no_other() {
    let (ann, bob) = pair().await;
    let mut cat = ann.invite(3).await;
    cat.meets(ann.key()).await;
    let root = ann.shelf.add_directory(&[("x", b"for bob alone")]);
    ann.shelf.grant(bob.key(), root);
    assert!(fetch(&bob, root, &[&ann]).await.is_ok());
    assert!(fetch(&cat, root, &[&ann]).await.is_err());
}

#[tokio::test]
async fn a_file_is_served_as_part_of_a_tree_the_peer_may_have_and_not_otherwise() {
    use crate::net::Door;
    use tvix_node_protocol::messages::{BlobQuestion, BlobsQuestion, ServeAnswer};
    let (ann, bob) = pair().await;
    let private = ann.shelf.add_directory(&[("secret", b"secret")]);
    let public = ann.shelf.add_directory(&[("x", b"x")]);
    ann.shelf.add_path("public", public);
    let secret = BlobDigest::of(b"secret");
    let core = bob.handle.core();
    for (root, expected) in [(private, ServeAnswer::NotHere), (public, ServeAnswer::NotHere)] {
        let mut wire = core.open(ann.key(), Door::Blob).await.unwrap();
        let answer: ServeAnswer = wire.ask(&BlobQuestion { root, blob: secret }).await.unwrap();
        assert_eq!(answer, expected);
    }
    let mut wire = core.open(ann.key(), Door::Blobs).await.unwrap();
    let blobs = secret.0.to_vec();
    let answer: ServeAnswer = wire.ask(&BlobsQuestion { root: public, blobs }).await.unwrap();
    assert_eq!(answer, ServeAnswer::Coming);
    let mut status = [0xff];
    futures::AsyncReadExt::read_exact(wire.reader.bytes(), &mut status)
        .await
        .unwrap();
    assert_eq!(status, [crate::protocols::blobs::MISSING]);
}

#[tokio::test]
async fn files_that_travel_together_are_no_larger_than_that_is_for() {
    use crate::net::Door;
    use crate::protocols::blobs::{FOLLOWS, MISSING};
    use tvix_node_protocol::messages::{BlobsQuestion, ServeAnswer};
    let (ann, bob) = pair().await;
    let most = usize::try_from(PACKED_BLOB).unwrap();
    for (bytes, expected) in [(noise(1, most), FOLLOWS), (noise(2, most + 1), MISSING)] {
        let root = ann.shelf.add_directory(&[("x", &bytes)]);
        ann.shelf.add_path(&format!("{}", bytes.len()), root);
        let mut wire = bob.handle.core().open(ann.key(), Door::Blobs).await.unwrap();
        let blobs = BlobDigest::of(&bytes).0.to_vec();
        let answer: ServeAnswer = wire.ask(&BlobsQuestion { root, blobs }).await.unwrap();
        assert_eq!(answer, ServeAnswer::Coming);
        let mut status = [0xff];
        futures::AsyncReadExt::read_exact(wire.reader.bytes(), &mut status)
            .await
            .unwrap();
        assert_eq!(status, [expected], "{} bytes", bytes.len());
    }
}

#[tokio::test]
async fn one_tree_is_fetched_once_at_a_time() {
    let (ann, bob) = pair().await;
    let root = mixed(&ann.shelf);
    ann.shelf.add_path("mixed", root);
    let both = async { tokio::join!(take(&bob, &ann, root), take(&bob, &ann, root)) };
    soon(both).await;
    assert!(bob.shelf.is_complete(root));
    let received = bob.handle.traffic()[&ann.key()].content_received;
    let size = received;
    assert!(size < 2 * 9_000_000, "{size}");
}

async fn take(node: &TestNode, from: &TestNode, root: TreeDigest) {
    let arrival = node
        .handle
        .fetch_tree(root, vec![from.key()], None)
        .await
        .unwrap();
    node.shelf.adopt(&arrival);
}

/// Bytes after which a large file is surely broken off in the middle.
const MIDDLE: usize = 3 * CONTENT_PIECE;

#[tokio::test]
async fn a_fetch_that_broke_off_goes_on_where_it_was() {
    // Neither comes back by itself before the other has seen it go.
    let aloof = |config: &mut Config| config.keep_peers = 0;
    let ann = TestNode::founder_as(1, aloof).await;
    let mut bob = ann.invite_as(2, Roles::all(), honestly, aloof).await;
    soon(bob.handle.connect(ann.key())).await.unwrap();
    bob.meets(ann.key()).await;
    let large = noise(1, 40 << 20);
    let root = ann.shelf.add_directory(&[("large", &large), ("small", b"x")]);
    ann.shelf.add_path("p", root);
    // Breaks off while the first pieces come.
    let mut breaking = Box::pin(bob.handle.fetch_tree(root, vec![ann.key()], None));
    let traffic = || {
        bob.handle
            .traffic()
            .get(&ann.key())
            .map_or(0, |traffic| traffic.content_received)
    };
    loop {
        tokio::select! {
            done = &mut breaking => panic!("too fast to be broken off: {done:?}"),
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
        if traffic() > MIDDLE as u64 * 10 {
            break;
        }
    }
    drop(breaking);
    ann.handle.disconnect(bob.key()).await;
    eventually(async || !bob.handle.connected().contains(&ann.key())).await;
    let before = traffic();
    // The rest is read as it comes, after what was there.
    let shelf = bob.shelf.clone();
    let take = |arrival: Arc<Arrival>| async move {
        tokio::task::spawn_blocking(move || shelf.adopt(&arrival)).await
    };
    let order = FetchOrder::new(root, vec![ann.key()]);
    soon(bob.handle.fetch_while(order, take)).await.unwrap().unwrap();
    assert!(bob.shelf.is_complete(root));
    let again = traffic() - before;
    // What was on its way when it broke off, and not more, comes twice.
    assert!(again < large.len() as u64, "{again} bytes came the second time");
    assert!(
        before + again < large.len() as u64 + (12 << 20),
        "{before} and {again}"
    );
}

#[tokio::test]
async fn what_arrives_is_taken_while_the_rest_comes() {
    let (ann, bob) = pair().await;
    let root = mixed(&ann.shelf);
    ann.shelf.add_path("mixed", root);
    let shelf = bob.shelf.clone();
    let take = |arrival: Arc<Arrival>| async move {
        tokio::task::spawn_blocking(move || shelf.adopt(&arrival)).await
    };
    let order = FetchOrder::new(root, vec![ann.key()]);
    soon(bob.handle.fetch_while(order, take)).await.unwrap().unwrap();
    assert!(bob.shelf.is_complete(root));
}

/// A file that takes ten seconds to come: its bytes, the tree it is in, its name.
fn slowly(from: &TestNode, to: &TestNode) -> (Vec<u8>, TreeDigest, BlobDigest) {
    let large = noise(1, 40 << 20);
    let root = from.shelf.add_directory(&[("large", &large)]);
    from.shelf.add_path("p", root);
    to.handle.set_caps(Caps {
        upload: None,
        download: Some(4 << 20),
    });
    let blob = BlobDigest::of(&large);
    (large, root, blob)
}

#[tokio::test]
async fn a_large_file_can_be_read_while_the_rest_of_it_comes() {
    let (ann, bob) = pair().await;
    let (large, root, blob) = slowly(&ann, &bob);
    let received = || bob.handle.traffic()[&ann.key()].content_received;
    let take = async |arrival: Arc<Arrival>| {
        let begin = tokio::task::spawn_blocking(move || {
            let Some(ArrivedBlob::Growing(mut growing)) = arrival.blob(blob).unwrap() else {
                panic!("it does not grow");
            };
            let mut bytes = vec![0; 1 << 20];
            growing.read_exact(&mut bytes).unwrap();
            (growing, bytes)
        });
        let (mut growing, mut bytes) = begin.await.unwrap();
        assert!(received() < large.len() as u64);
        bob.handle.set_caps(Caps::default());
        let rest = tokio::task::spawn_blocking(move || {
            growing.read_to_end(&mut bytes).unwrap();
            bytes
        });
        assert!(rest.await.unwrap() == large);
        Ok::<_, ()>(())
    };
    soon(
        bob.handle
            .fetch_while(FetchOrder::new(root, vec![ann.key()]), take),
    )
    .await
    .unwrap()
    .unwrap();
}

/// Reads the large file of an arrival, which waits for it.
async fn read_large(arrival: Arc<Arrival>, blob: BlobDigest) -> Result<u64, String> {
    let read = tokio::task::spawn_blocking(move || {
        let file = arrival.blob(blob).map_err(|error| error.to_string())?;
        let file = file.ok_or("it is not there")?;
        copy_blob(file, &mut std::io::sink()).map_err(|error| error.to_string())
    });
    read.await.unwrap()
}

#[tokio::test]
async fn who_takes_what_arrives_is_told_when_no_more_comes() {
    let (ann, bob) = pair().await;
    let (_, root, blob) = slowly(&ann, &bob);
    let come = || {
        let traffic = bob.handle.traffic();
        traffic
            .get(&ann.key())
            .map_or(0, |traffic| traffic.content_received)
    };
    let order = || FetchOrder::new(root, vec![ann.key()]);
    // Who asked goes away: what reads ends.
    let (told, mut ended) = tokio::sync::mpsc::channel(1);
    let take = |arrival| async move {
        let reading = tokio::spawn(async move {
            let read = read_large(arrival, blob).await;
            told.send(read).await.unwrap();
        });
        reading.await
    };
    let mut breaking = Box::pin(bob.handle.fetch_while(order(), take));
    while come() < CONTENT_PIECE as u64 {
        tokio::select! {
            done = &mut breaking => panic!("too fast to be broken off: {done:?}"),
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
    drop(breaking);
    let read = soon(ended.recv()).await.unwrap();
    assert!(
        read.as_ref()
            .is_err_and(|error| error.contains("ended before the file")),
        "{read:?}"
    );
    // Who takes fails: nothing more is fetched.
    let refused = soon(bob.handle.fetch_while(order(), async |_| Err::<(), _>("full"))).await;
    assert_eq!(refused.unwrap(), Err("full"));
    // The only provider goes away: the error is that of the transfer.
    let before = come();
    let fetching = bob
        .handle
        .fetch_while(order(), |arrival| read_large(arrival, blob));
    let leaving = async {
        eventually(async || come() > before + CONTENT_PIECE as u64).await;
        ann.handle.shutdown().await;
    };
    let (fetched, ()) = soon(async { tokio::join!(fetching, leaving) }).await;
    assert!(matches!(fetched, Err(FetchError::Failed { .. })), "{fetched:?}");
}

#[tokio::test]
async fn what_nobody_went_on_with_is_tidied_and_what_is_held_stays() {
    let (ann, bob) = pair().await;
    let root = mixed(&ann.shelf);
    ann.shelf.add_path("mixed", root);
    let arrival = fetch(&bob, root, &[&ann]).await.unwrap();
    let spool = bob.home.path().join("spool");
    std::fs::create_dir(spool.join("other")).unwrap();
    let left = || std::fs::read_dir(&spool).unwrap().count();
    let tidy = async |idle| bob.handle.tidy_spool(idle).await.unwrap();
    assert_eq!((tidy(Duration::ZERO).await, left()), (0, 2), "it is held");
    drop(arrival);
    assert_eq!(
        (tidy(Duration::from_secs(3600)).await, left()),
        (0, 2),
        "it is young"
    );
    assert!(tidy(Duration::ZERO).await > 3_000_000);
    assert_eq!(left(), 1, "what is not the spool's is not touched");
    // And it can come again.
    bob.shelf.adopt(&fetch(&bob, root, &[&ann]).await.unwrap());
    assert!(bob.shelf.is_complete(root));
}

#[tokio::test]
async fn who_fetches_sees_how_far_it_is_and_who_brings_it() {
    let (ann, bob) = pair().await;
    // More than one batch of each kind; the last chunk is not a whole one.
    let large = noise(1, 3 * WRITE_BATCH + 5);
    let small: Vec<Vec<u8>> = (0..100).map(|seed| noise(seed, 30_001)).collect();
    let names: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    let mut files: Vec<(&str, &[u8])> = vec![("large", &large)];
    files.extend(
        names
            .iter()
            .map(String::as_str)
            .zip(small.iter().map(Vec::as_slice)),
    );
    let root = ann.shelf.add_directory(&files);
    ann.shelf.add_path("p", root);
    // One of them is here already.
    bob.shelf.add_blob(&small[7]);
    let size = (large.len() + 99 * 30_001) as u64;
    let (progress, mut watched) = watch::channel(FetchProgress::default());
    let order = FetchOrder {
        progress: Some(progress),
        ..FetchOrder::new(root, vec![ann.key()])
    };
    let watching = async {
        let mut seen = vec![watched.borrow().clone()];
        while watched.changed().await.is_ok() {
            seen.push(watched.borrow_and_update().clone());
        }
        seen
    };
    let (fetched, seen) = soon(async { tokio::join!(bob.handle.fetch(order), watching) }).await;
    fetched.unwrap();
    assert_eq!((seen[0].expected, seen[0].received), (None, 0));
    let last = seen.last().unwrap();
    assert_eq!((last.expected, last.received), (Some(size), size));
    assert_eq!(last.by_provider, [(ann.key(), size)].into());
    assert!(seen.windows(2).all(|two| two[0].received <= two[1].received));
    assert!(seen.iter().any(|step| step.received > 0 && step.received < size));
    let speed = bob.handle.overview()[&ann.key()].speed;
    assert!(speed.is_some_and(|speed| speed > 0), "{speed:?}");
}

/// Seconds that fetching a megabyte takes, half of it in small files.
async fn seconds_of_a_megabyte(ann: &TestNode, bob: &TestNode, name: &str) -> f64 {
    let seed = name.len() as u64;
    let small: Vec<Vec<u8>> = (0..10).map(|number| noise(seed * 100 + number, 50_000)).collect();
    let names: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    let large = noise(seed, 500_000);
    let mut files: Vec<(&str, &[u8])> = vec![("large", &large)];
    files.extend(
        names
            .iter()
            .map(String::as_str)
            .zip(small.iter().map(Vec::as_slice)),
    );
    let root = ann.shelf.add_directory(&files);
    ann.shelf.add_path(name, root);
    let start = std::time::Instant::now();
    fetch(bob, root, &[ann]).await.unwrap();
    start.elapsed().as_secs_f64()
}

#[tokio::test]
async fn caps_hold_in_both_directions() {
    let (ann, bob) = pair().await;
    let half = Some(500_000);
    ann.handle.set_caps(Caps {
        upload: half,
        download: None,
    });
    // The last piece goes at once: with pieces of a quarter of a megabyte a second or more is left.
    let time = seconds_of_a_megabyte(&ann, &bob, "up").await;
    assert!(time > 0.9, "{time} s");
    ann.handle.set_caps(Caps::default());
    bob.handle.set_caps(Caps {
        upload: None,
        download: half,
    });
    let time = seconds_of_a_megabyte(&ann, &bob, "down").await;
    assert!(time > 1.5, "{time} s");
}

#[tokio::test]
async fn a_file_that_is_damaged_after_it_was_served_is_not_served_and_is_no_lie() {
    let (ann, bob) = pair().await;
    let mut cat = ann.invite(3).await;
    cat.meets(ann.key()).await;
    let large = noise(1, 1_000_000);
    let root = ann.shelf.add_directory(&[("large", &large)]);
    ann.shelf.add_path("p", root);
    // Its hashes are remembered from now on.
    fetch(&bob, root, &[&ann]).await.unwrap();
    let mut damaged = large.clone();
    damaged[500_000] ^= 1;
    ann.shelf.damage(BlobDigest::of(&large), &damaged);
    fetch(&cat, root, &[&ann]).await.unwrap_err();
    let now = now();
    assert!(!crate::core::lock(&cat.handle.core().standing).is_liar(ann.key(), now));
}

#[tokio::test]
async fn a_large_file_is_served_before_all_of_it_has_been_read() {
    for kept in [false, true] {
        let (ann, bob) = pair().await;
        let large = noise(1, 3 << 23);
        let root = ann.shelf.add_directory(&[("large", &large)]);
        ann.shelf.add_path("p", root);
        if kept {
            ann.shelf.keep_parts(&large);
        }
        // Whoever reads all of it finds that it is another one.
        let mut damaged = large.clone();
        damaged[(1 << 23) + 500_000] ^= 1;
        ann.shelf.damage(BlobDigest::of(&large), &damaged);
        fetch(&bob, root, &[&ann]).await.unwrap_err();
        let came = bob.handle.traffic()[&ann.key()].content_received;
        assert_eq!(came > 1 << 20, kept, "{came} bytes came");
        assert!(!crate::core::lock(&bob.handle.core().standing).is_liar(ann.key(), now()));
    }
}

/// Who wants what it has could have it built by then.
#[tokio::test]
async fn a_provider_that_is_gone_is_not_waited_for() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let path = ann.shelf.add_small("hello");
    let tree = ann.shelf.tree_of(&path);
    ann.handle.shutdown().await;
    eventually(async || !bob.handle.connected().contains(&ann.key())).await;
    let fetched = soon(bob.handle.fetch_tree(tree, vec![ann.key()], None)).await;
    let error = fetched.expect_err("nobody has it").to_string();
    assert!(error.contains("it has gone"), "{error}");
}

#[tokio::test]
async fn what_is_served_is_lent_for_as_long_as_each_question_is_being_answered() {
    let (ann, bob) = pair().await;
    let root = mixed(&ann.shelf);
    ann.shelf.add_path("p", root);
    ann.shelf.collect_what_is_not_lent();
    assert!(!ann.shelf.is_complete(root), "nothing is lent yet");
    bob.shelf.adopt(&fetch(&bob, root, &[&ann]).await.unwrap());
    assert!(bob.shelf.is_complete(root));
    eventually(async || ann.shelf.lent() == 0).await;
}

/// What a fetch from one provider alone failed for.
async fn failure(bob: &TestNode, root: TreeDigest, ann: &TestNode) -> ProviderError {
    match fetch(bob, root, &[ann]).await {
        Err(FetchError::Failed { mut failures, .. }) => failures.remove(0).1,
        other => panic!("{other:?}"),
    }
}

/// Whoever takes it for a broken connection waits for the provider, and asks it again.
#[tokio::test]
async fn who_has_not_all_of_a_tree_or_cannot_read_it_says_so() {
    let (ann, bob) = pair().await;
    // Alone in an answer that is in memory, in one that is not, and in pieces.
    for (seed, (count, size)) in (0..).zip([(1, 20_000), (70, 1000), (1, 500_000)]) {
        let files: Vec<(String, Vec<u8>)> = (0..count)
            .map(|number| (number.to_string(), noise(1000 * seed + number, size)))
            .collect();
        let named: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(name, bytes)| (&name[..], &bytes[..]))
            .collect();
        let root = ann.shelf.add_directory(&named);
        ann.shelf.add_path(&format!("p{seed}"), root);
        let last = BlobDigest::of(&files[files.len() - 1].1);
        ann.shelf.lose(last);
        let failed = failure(&bob, root, &ann).await;
        assert!(matches!(failed, ProviderError::NotThere), "{size}: {failed:?}");
        ann.shelf.make_unreadable(last);
        let failed = failure(&bob, root, &ann).await;
        assert!(matches!(failed, ProviderError::Broken), "{size}: {failed:?}");
    }
}

#[tokio::test]
async fn who_is_asked_for_what_begins_in_a_damaged_part_says_that_it_cannot_read_it() {
    let (ann, bob) = pair().await;
    let large = noise(1, 3 << 23);
    let root = ann.shelf.add_directory(&[("large", &large)]);
    ann.shelf.add_path("p", root);
    ann.shelf.keep_parts(&large);
    let mut damaged = large.clone();
    damaged[500_000] ^= 1;
    ann.shelf.damage(BlobDigest::of(&large), &damaged);
    // It is taken neither for a broken connection nor for a lie.
    let failed = failure(&bob, root, &ann).await;
    assert!(matches!(failed, ProviderError::Broken), "{failed:?}");
}
