//! Many threads at once.

#![allow(clippy::unwrap_used)]

mod samples;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use samples::coming::InPieces;
use samples::sent::Sent;
use samples::{home_entries, source, store, text, write_sample};
use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash, hash_bytes};
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::tree::BlobDigest;
use tvix_node_store::{GcOptions, Naming, ReadError, ScratchOutput, Store};

#[test]
fn threads_that_add_the_same_get_the_same() {
    let (folder, store) = store();
    let sample = folder.path().join("sample");
    write_sample(&sample);
    let barrier = Barrier::new(6);
    let infos: Vec<_> = std::thread::scope(|scope| {
        let add = || {
            barrier.wait();
            store
                .add_source(&sample, source("sample"), &store.lease())
                .unwrap()
        };
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(add)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(infos.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(home_entries(&store), [infos[0].path.to_basename()]);
    assert_eq!(store.count().unwrap(), 1);
}

/// Additions, reads and collections at once: what is leased is always whole.
#[test]
fn what_is_leased_is_whole_while_others_add_and_collect() {
    let (folder, store) = store();
    for thread in 0..3 {
        write_sample(&folder.path().join(thread.to_string()));
        fs::write(
            folder.path().join(thread.to_string()).join("own"),
            thread.to_string(),
        )
        .unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut removed = 0;
            while !done.load(Ordering::SeqCst) {
                let report = store.gc(&GcOptions::default()).unwrap();
                assert!(report.failures.is_empty());
                removed += report.removed.len();
            }
            removed
        });
        let workers: Vec<_> = (0..3)
            .map(|thread| {
                let (store, folder) = (&store, folder.path());
                scope.spawn(move || {
                    for round in 0..8 {
                        let lease = store.lease();
                        let base = text("base", &[round], &[]);
                        let user = text("user", &[round, thread], &[&base]);
                        store.add_texts(&[base, user.clone()], &lease).unwrap();
                        let at = folder.join(thread.to_string());
                        let info = store.add_source(&at, source("tree"), &lease).unwrap();
                        let mut archive = Vec::new();
                        store.dump_nar(&info.path, &mut archive).unwrap();
                        let hash = hash_bytes(HashAlgorithm::Sha256, &archive);
                        assert_eq!(hash, NixHash::Sha256(info.nar_hash.0));
                        assert_eq!(store.closure([&user.path]).unwrap().len(), 2);
                        assert_eq!(fs::read(store.physical(&user.path)).unwrap(), user.content);
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::SeqCst);
        collector.join().unwrap();
    });
    store.gc(&GcOptions::default()).unwrap();
    assert_eq!(home_entries(&store), Vec::<String>::new());
}

/// What a peer has: a tree, and an output that refers to it.
fn peer_with(folder: &Path, number: usize) -> (Store, [PathInfo; 2]) {
    let peer = Store::open(&folder.join(format!("peer-{number}"))).unwrap();
    let lease = peer.lease();
    let at = folder.join(format!("base-{number}"));
    write_sample(&at);
    fs::write(at.join("own"), format!("{number}")).unwrap();
    let base = peer
        .add_source(&at, source(&format!("base-{number}")), &lease)
        .unwrap();
    let scratch = folder.join(format!("scratch-{number}"));
    fs::create_dir(&scratch).unwrap();
    fs::write(scratch.join("refers"), base.path.to_string()).unwrap();
    fs::write(scratch.join("large"), vec![b'0' + number as u8; 1 << 20]).unwrap();
    let output = ScratchOutput {
        path: samples::path(&format!("output-{number}")),
        scratch: &scratch,
        ca: None,
        scanned: true,
    };
    let prepared = peer
        .prepare_built(
            &[output],
            &[base.path.clone()].into(),
            &samples::path("x.drv"),
            &Origin::Built,
        )
        .unwrap();
    let output = peer.register(prepared, &lease).unwrap().remove(0);
    assert_eq!(output.references, BTreeSet::from([base.path.clone()]));
    (peer, [base, output])
}

fn archive_hash(archive: &[u8]) -> NixHash {
    hash_bytes(HashAlgorithm::Sha256, archive)
}

/// Everything of a path is there and is what it was: as an archive, and object by object, as peers ask for it.
fn assert_there(store: &Store, info: &PathInfo) {
    let mut archive = Vec::new();
    store.dump_nar(&info.path, &mut archive).unwrap();
    assert_eq!(archive_hash(&archive), NixHash::Sha256(info.nar_hash.0));
    for (blob, bytes) in Sent::of(store, info.tree).blobs {
        assert_eq!(BlobDigest::of(&bytes), blob);
    }
}

/// Where an archive goes to that is taken slowly: a whole collection has its turn after its first bytes.
struct Slowly<'a> {
    archive: Vec<u8>,
    collections: &'a AtomicU64,
}

impl std::io::Write for Slowly<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.archive.is_empty() {
            let begun = self.collections.load(Ordering::SeqCst);
            // One that was at it already, and one that was not.
            wait_until(|| self.collections.load(Ordering::SeqCst) >= begun + 2);
        }
        self.archive.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Or a second later, if that does not come.
fn wait_until(so: impl Fn() -> bool) {
    let mut looks = 0..1000;
    while looks.next().is_some() && !so() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Paths arrive from peers, in pieces and one after what it refers to, are read and are served, and all the while there are
/// collections: whatever somebody has leased is whole, and whatever nobody has is there whole or not at all.
#[test]
fn nothing_that_arrives_or_is_read_is_collected() {
    let (folder, store) = store();
    let spool = folder.path().join("spool");
    fs::create_dir(&spool).unwrap();
    let peers: Vec<_> = (0..2).map(|number| peer_with(folder.path(), number)).collect();
    let (removed, served) = (AtomicU64::new(0), AtomicU64::new(0));
    let (done, collections) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let report = store.gc(&GcOptions::default()).unwrap();
                assert!(report.failures.is_empty());
                removed.fetch_add(report.removed.len() as u64, Ordering::SeqCst);
                collections.fetch_add(1, Ordering::SeqCst);
            }
        });
        // Somebody who asks for what may just be going.
        let server = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                for (_, infos) in &peers {
                    for info in infos {
                        let mut to = Slowly {
                            archive: Vec::new(),
                            collections: &collections,
                        };
                        match store.export_nar(&info.path, &mut to) {
                            Ok(()) => {
                                let hash = archive_hash(&to.archive);
                                assert_eq!(hash, NixHash::Sha256(info.nar_hash.0));
                            }
                            Err(ReadError::NotValid(_)) => continue,
                            Err(error) => panic!("{error}"),
                        }
                        served.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        });
        let workers: Vec<_> = peers
            .iter()
            .map(|(peer, infos)| {
                let (store, spool) = (&store, &spool);
                scope.spawn(move || {
                    let sent = infos.each_ref().map(|info| Sent::of(peer, info.tree));
                    for _ in 0..6 {
                        let lease = store.lease();
                        for (info, sent) in infos.iter().zip(&sent) {
                            let pieces = InPieces { sent, spool };
                            let naming = Naming::Known(info.clone());
                            let prepared = store.prepare_arrived(info.tree, &pieces, naming).unwrap();
                            store.register(vec![prepared], &lease).unwrap();
                        }
                        infos.iter().for_each(|info| assert_there(store, info));
                        drop(lease);
                        // A build that takes it up leases what it reads, or finds that it is gone.
                        let lease = store.lease();
                        if lease.hold_one(&infos[1].path).unwrap().is_some() {
                            infos.iter().for_each(|info| assert_there(store, info));
                        }
                        drop(lease);
                        // So that it goes now and then, or would, if it were not served.
                        wait_until(|| store.query(&infos[1].path).unwrap().is_none());
                    }
                })
            })
            .collect();
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::SeqCst);
        collector.join().unwrap();
        server.join().unwrap();
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
    println!("{removed:?} collected, {served:?} served meanwhile");
    // Else nothing of this was tried.
    assert!(removed.load(Ordering::SeqCst) > 0, "nothing was collected");
    store.gc(&GcOptions::default()).unwrap();
    assert_eq!(home_entries(&store), Vec::<String>::new());
    assert_eq!(fs::read_dir(&spool).unwrap().count(), 0);
}
