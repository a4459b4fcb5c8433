//! Many threads at once.

#![allow(clippy::unwrap_used)]

mod samples;

use std::fs;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use samples::{home_entries, source, store, text, write_sample};
use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash, hash_bytes};
use tvix_node_store::GcOptions;

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
