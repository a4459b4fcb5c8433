//! Archives and caches with bytes that somebody changed: what is accepted is whole, the rest leaves nothing.
//!
//! A few hundred changes of each in every run, as many as one likes with `TVIX_NODE_MUTATIONS=N`.

#![allow(clippy::unwrap_used)]

#[path = "../../../protocol/tests/mutation/mod.rs"]
mod mutation;
mod samples;

use std::fs;

use mutation::each_change;
use samples::{home_entries, source, store};
use tvix_node_protocol::nix::narinfo::TrustedPublicKey;
use tvix_node_protocol::nix::nixbase32;
use tvix_node_protocol::nix::signature::NixSecretKey;
use tvix_node_protocol::path_info::Origin;
use tvix_node_store::{AddError, FolderCache, GcOptions, ScratchOutput};

#[test]
fn a_changed_archive_is_refused_at_a_byte_or_the_only_one_of_another_tree() {
    let (folder, store) = store();
    let at = folder.path().join("sample");
    fs::create_dir_all(at.join("d/e")).unwrap();
    fs::write(at.join("d/file"), "some text").unwrap();
    fs::write(at.join("empty"), "").unwrap();
    std::os::unix::fs::symlink("d/file", at.join("link")).unwrap();
    let info = store.add_source(&at, source("sample"), &store.lease()).unwrap();
    let mut archive = Vec::new();
    store.dump_nar(&info.path, &mut archive).unwrap();
    each_change("an archive", &archive, 400, |changed| {
        match store.add_nar(changed, source("changed"), &store.lease()) {
            Err(AddError::Nar(fault)) => {
                assert!(fault.offset <= changed.len() as u64, "{fault}");
                true
            }
            Err(error) => panic!("{error}"),
            Ok(info) => {
                let mut dumped = Vec::new();
                store.dump_nar(&info.path, &mut dumped).unwrap();
                assert_eq!(dumped, changed);
                assert_eq!(store.verify_path(&info.path).unwrap(), None);
                false
            }
        }
    });
    assert_eq!(home_entries(&store).len() as u64, store.count().unwrap());
}

#[test]
fn a_cache_with_changed_files_gives_the_right_content_or_none() {
    let (folder, from) = store();
    let scratch = folder.path().join("scratch");
    fs::write(&scratch, "what was built\n").unwrap();
    let output = ScratchOutput {
        path: samples::path("built"),
        scratch: &scratch,
        ca: None,
        scanned: true,
    };
    let deriver = samples::path("built.drv");
    let prepared = from
        .prepare_built(&[output], &[].into(), &deriver, &Origin::Built)
        .unwrap();
    let lease = from.lease();
    let info = from.register(prepared, &lease).unwrap().remove(0);
    let cache = folder.path().join("cache");
    fs::create_dir(&cache).unwrap();
    let secret = NixSecretKey::from_bytes("cache-1", &[5; 32]).unwrap();
    let keys: [TrustedPublicKey; 1] = [secret.public().parse().unwrap()];
    let opened = FolderCache::open(&cache).unwrap().signing(secret);
    opened.put(&from, &info.path).unwrap();
    let said = cache.join(format!("{}.narinfo", nixbase32::encode(info.path.digest())));
    let archive = fs::read_dir(cache.join("nar"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let (_folder, to) = store();
    for file in [said, archive] {
        let whole = fs::read(&file).unwrap();
        each_change(&file.display().to_string(), &whole, 300, |changed| {
            fs::write(&file, changed).unwrap();
            let lease = to.lease();
            let refused = match opened.fetch(&to, &info.path, &keys, &lease) {
                Err(_) => true,
                Ok(fetched) => {
                    assert_eq!((fetched.nar_hash, fetched.tree), (info.nar_hash, info.tree));
                    false
                }
            };
            drop(lease);
            to.gc(&GcOptions::default()).unwrap();
            assert_eq!(home_entries(&to), Vec::<String>::new());
            refused
        });
        fs::write(&file, &whole).unwrap();
    }
}
