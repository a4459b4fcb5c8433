use super::*;

fn alone() -> tokio::sync::OwnedMutexGuard<()> {
    Arc::new(tokio::sync::Mutex::new(())).try_lock_owned().unwrap()
}

fn room() -> Arc<PackRoom> {
    Arc::default()
}

/// More than stays in memory.
fn much() -> Vec<u8> {
    (0..PACK_IN_MEMORY).map(|index| index as u8).collect()
}

fn file(bytes: &[u8]) -> Item {
    Item {
        kind: Kind::File,
        digest: BlobDigest::of(bytes).0,
        bytes: bytes.to_vec(),
    }
}

fn read(arrival: &Arrival, bytes: &[u8]) -> Option<Vec<u8>> {
    let blob = arrival.blob(BlobDigest::of(bytes)).unwrap()?;
    let mut copy = vec![];
    copy_blob(blob, &mut copy).unwrap();
    Some(copy)
}

const ROOT: TreeDigest = TreeDigest([1; 32]);

#[test]
fn what_arrived_is_there_after_a_break() {
    let spool = tempfile::tempdir().unwrap();
    let arrival = Arrival::open(spool.path(), ROOT, &room(), alone()).unwrap();
    arrival.add(&[file(b"one"), file(b"two")]).unwrap();
    arrival
        .add(&[file(b"two"), file(b"three"), file(b""), file(&much())])
        .unwrap();
    drop(arrival);
    let arrival = Arrival::open(spool.path(), ROOT, &room(), alone()).unwrap();
    for bytes in [&b"one"[..], b"two", b"three", b""] {
        assert_eq!(read(&arrival, bytes).as_deref(), Some(bytes));
    }
    assert_eq!(read(&arrival, &much()), Some(much()));
    assert_eq!(read(&arrival, b"four"), None);
    arrival.remove().unwrap();
    assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 0);
}

#[test]
fn a_small_tree_stays_in_memory_where_there_is_room() {
    let (spool, room) = (tempfile::tempdir().unwrap(), room());
    let opened = |root| Arrival::open(spool.path(), TreeDigest([root; 32]), &room, alone()).unwrap();
    let folders = || fs::read_dir(spool.path()).unwrap().count();
    let part = file(&much()[..PACK_IN_MEMORY - HEADER]);
    let most = PACKS_IN_MEMORY / PACK_IN_MEMORY;
    let mut small: Vec<Arrival> = (0..most).map(|root| opened(root as u8)).collect();
    for arrival in &small {
        arrival.add(std::slice::from_ref(&part)).unwrap();
    }
    assert_eq!(folders(), 0);
    // One more than all together may have.
    let last = opened(255);
    last.add(&[file(b"one")]).unwrap();
    assert_eq!(folders(), 1);
    assert_eq!(read(&last, b"one").as_deref(), Some(&b"one"[..]));
    // One that grows takes what it has along, and leaves room for another.
    let grown = small.pop().unwrap();
    grown.add(&[file(b"two")]).unwrap();
    assert_eq!(folders(), 2);
    assert_eq!(read(&grown, &part.bytes).as_ref(), Some(&part.bytes));
    assert_eq!(read(&grown, b"two").as_deref(), Some(&b"two"[..]));
    let next = opened(254);
    next.add(&[file(b"three")]).unwrap();
    assert_eq!(folders(), 2);
    assert_eq!(read(&next, b"three").as_deref(), Some(&b"three"[..]));
    for arrival in small.iter().chain([&last, &grown, &next]) {
        arrival.remove().unwrap();
    }
    assert_eq!(folders(), 0);
    drop((small, last, grown, next));
    assert_eq!(room.0.load(Ordering::Relaxed), 0, "all room is given back");
}

#[test]
fn what_does_not_stay_in_memory_is_not_added_without_blocking() {
    let spool = tempfile::tempdir().unwrap();
    assert!(!Arrival::has_come_before(spool.path(), ROOT));
    let arrival = Arrival::new(spool.path(), ROOT, &room(), alone());
    assert!(arrival.add_in_memory(&[file(b"one"), file(b"two")]));
    assert!(arrival.add_in_memory(&[file(b"two"), file(b"three")]));
    assert!(!arrival.add_in_memory(&[file(&much())]));
    assert_eq!(read(&arrival, &much()), None);
    assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 0);
    arrival.add(&[file(&much())]).unwrap();
    assert!(!arrival.add_in_memory(&[file(b"four")]), "it is a file now");
    for bytes in [&b"one"[..], b"two", b"three", &much()] {
        assert_eq!(read(&arrival, bytes).as_deref(), Some(bytes));
    }
    drop(arrival);
    assert!(Arrival::has_come_before(spool.path(), ROOT));
}

#[test]
fn who_reads_a_file_waits_until_it_is_here_or_will_not_come() {
    let spool = tempfile::tempdir().unwrap();
    let arrival = Arc::new(Arrival::open(spool.path(), ROOT, &room(), alone()).unwrap());
    let [one, two] = [&b"one"[..], b"two"].map(BlobDigest::of);
    let large = vec![7; 100_000];
    let coming = arrival.expect([one, two, BlobDigest::of(&large)]);
    let read_by_another = |blob| {
        let arrival = arrival.clone();
        std::thread::spawn(move || arrival.blob(blob))
    };
    let readers = [one, BlobDigest::of(&large), two].map(read_by_another);
    assert!(arrival.blob(BlobDigest::of(b"here")).unwrap().is_none());
    arrival.add(&[file(b"one")]).unwrap();
    let (part, hashes) = arrival.part(BlobDigest::of(&large));
    arrival.make_folder().unwrap();
    fs::write(part, &large).unwrap();
    fs::write(hashes, b"").unwrap();
    arrival.complete(BlobDigest::of(&large)).unwrap();
    drop(coming);
    let [one, large, missed] = readers.map(|reader| reader.join().unwrap());
    assert!(matches!(one, Ok(Some(ArrivedBlob::Bytes(bytes))) if bytes == b"one"));
    assert!(matches!(large, Ok(Some(ArrivedBlob::File(_)))));
    assert!(matches!(missed, Err(SpoolError::BrokenOff(blob)) if blob == two));
}

#[test]
fn a_pack_cut_or_damaged_anywhere_loses_only_what_comes_after() {
    let spool = tempfile::tempdir().unwrap();
    let arrival = Arrival::open(spool.path(), ROOT, &room(), alone()).unwrap();
    arrival.add(&[file(b"one"), file(b"two"), file(&much())]).unwrap();
    let path = arrival.folder.join("pack");
    drop(arrival);
    let mut whole = fs::read(&path).unwrap();
    whole.truncate(2 * (HEADER + 3));
    let first = HEADER + 3;
    for position in 0..whole.len() {
        for cut in [true, false] {
            let mut bytes = whole.clone();
            if cut {
                bytes.truncate(position);
            } else {
                bytes[position] ^= 0x40;
            }
            fs::write(&path, &bytes).unwrap();
            let arrival = Arrival::open(spool.path(), ROOT, &room(), alone()).unwrap();
            assert_eq!(
                read(&arrival, b"one").is_some(),
                position >= first,
                "at {position}"
            );
            assert_eq!(read(&arrival, b"two"), None);
            arrival.add(&[file(b"two")]).unwrap();
            assert_eq!(read(&arrival, b"two").as_deref(), Some(&b"two"[..]));
        }
    }
}

#[test]
fn a_large_file_that_was_complete_is_checked_before_it_counts() {
    let spool = tempfile::tempdir().unwrap();
    let bytes = vec![7; 100_000];
    let blob = BlobDigest::of(&bytes);
    let arrival = Arrival::open(spool.path(), ROOT, &room(), alone()).unwrap();
    let (part, hashes) = arrival.part(blob);
    arrival.make_folder().unwrap();
    fs::write(&part, &bytes).unwrap();
    fs::write(&hashes, b"").unwrap();
    arrival.complete(blob).unwrap();
    assert!(read(&arrival, &bytes).is_some());
    drop(arrival);
    let arrival = Arrival::open(spool.path(), ROOT, &room(), alone()).unwrap();
    assert!(arrival.blob(blob).unwrap().is_none());
    assert!(arrival.completed_before(blob).unwrap());
    let Some(ArrivedBlob::File(path)) = arrival.blob(blob).unwrap() else {
        panic!("not there")
    };
    fs::write(path, vec![8; 100_000]).unwrap();
    assert!(!arrival.completed_before(blob).unwrap());
    assert!(!arrival.completed_before(BlobDigest([0; 32])).unwrap());
}
