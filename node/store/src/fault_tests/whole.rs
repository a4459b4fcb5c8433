//! What must be so after every cut and every failure.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash, hash_bytes};
use tvix_node_protocol::nix::narinfo::{NarInfo, StoreDir};

use super::place::{How, Peer, Place};
use super::work::{KEY, Told, output};
use crate::running::named_in_files;
use crate::{FolderCache, Store};

/// What the work has said and not taken back.
#[derive(Debug, Default)]
pub(super) struct Heard {
    facts: BTreeSet<String>,
    hurt: bool,
}

impl Heard {
    pub(super) fn hear(&mut self, told: Told) {
        match told {
            Told::Begin(_) => {}
            Told::Done(fact) => drop(self.facts.insert(fact)),
            Told::Risk(prefix) => self.facts.retain(|fact| !fact.starts_with(&prefix)),
            Told::Hurt => self.hurt = true,
            Told::Healed => self.hurt = false,
        }
    }

    /// Panics where something that was said is not so, or is not whole. What the test damaged is repaired first.
    pub(super) fn check(&mut self, store: &Store, place: &Place, when: &str) {
        if self.hurt {
            for name in ["sent", "given"] {
                let (how, theirs) = (How::InMemory, place.theirs());
                let peer = Peer {
                    store: theirs,
                    place,
                    how,
                };
                let path = peer.info(name).unwrap().path;
                if store.query(&path).unwrap().is_some() {
                    store.repair(&path, &peer).unwrap();
                }
            }
            self.hurt = false;
        }
        for fact in &self.facts {
            assert!(
                holds(fact, store, place),
                "'{fact}' was said and is not so ({when})"
            );
        }
        assert_cache_whole(&place.cache());
    }
}

fn holds(fact: &str, store: &Store, place: &Place) -> bool {
    let (kind, name) = fact.split_once(' ').unwrap_or((fact, ""));
    let path = StorePath::from_basename(name.as_bytes()).unwrap_or_else(|_| output("none"));
    match kind {
        "path" => store.query(&path).unwrap().is_some(),
        "record" => !store.records_of(&path).unwrap().is_empty(),
        "key" => store.records(&KEY).unwrap().len() == 1,
        "pin" => store.pins().unwrap().iter().any(|pin| pin.path == path),
        "unpinned" => store.pins().unwrap().iter().all(|pin| pin.path != path),
        "root" => store.roots().unwrap().iter().any(|root| root.path == path),
        "link" => store
            .roots()
            .unwrap()
            .iter()
            .any(|root| root.link == place.link()),
        "log" => store.log_tail(&path, 9).unwrap() == ["three"],
        "cached" => cache_has(&place.cache(), &path),
        _ => panic!("a fact of an unknown kind: {fact}"),
    }
}

fn cache_has(folder: &Path, path: &StorePath) -> bool {
    let cache = FolderCache::open(folder).unwrap();
    cache.has(std::slice::from_ref(path)).unwrap() == [true]
}

/// What has a name in the cache is whole, and what it refers to is there.
fn assert_cache_whole(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "narinfo") {
            continue;
        }
        let info = NarInfo::parse_in(&StoreDir::default(), &fs::read(&file).unwrap()).unwrap();
        let archive = fs::read(folder.join(info.url())).unwrap();
        assert_eq!(hash_bytes(HashAlgorithm::Sha256, &archive), *info.nar_hash());
        for reference in info.references() {
            assert!(cache_has(folder, reference), "{reference} is missing");
        }
    }
}

/// Everything in the store, which nobody works with, is whole; and there is nothing else in the home.
pub(super) fn assert_whole(store: &Store, place: &Place) {
    assert_eq!(
        whole_and_more(store),
        Vec::<String>::new(),
        "strange names among the trees"
    );
    let names = names_in(&place.home().join("store"));
    assert_eq!(names, ["index.redb", "intent", "lock", "schema"]);
    assert_eq!(names_in(&place.home().join("log/running")), [""; 0]);
    // What a collection looks at first, and what removes the files of programs that have ended.
    named_in_files(&store.inner.trees.disk, &place.home()).unwrap();
    assert_eq!(names_in(&place.home().join("running")), [""; 0]);
}

/// In order; none where there is no folder.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Everything in the store is whole; what else lies among the trees.
pub(super) fn whole_and_more(store: &Store) -> Vec<String> {
    let known = store.inner.index.assert_consistent();
    let names = store.inner.trees.names().unwrap();
    let names: BTreeSet<String> = names
        .into_iter()
        .map(|name| String::from_utf8(name).unwrap())
        .collect();
    let missing: Vec<_> = known.keys().filter(|&name| !names.contains(name)).collect();
    assert!(missing.is_empty(), "missing: {missing:?}");
    for (name, info) in &known {
        let mut archive = Vec::new();
        if name.starts_with(".tree-") {
            store
                .dump_unaccepted(&info.path, &info.tree, &mut archive)
                .unwrap();
        } else {
            store.dump_nar(&info.path, &mut archive).unwrap();
        }
        assert_eq!(
            hash_bytes(HashAlgorithm::Sha256, &archive),
            NixHash::Sha256(info.nar_hash.0)
        );
        assert_canonical(&store.inner.trees.path().join(name));
    }
    names
        .into_iter()
        .filter(|name| !known.contains_key(name))
        .collect()
}

fn assert_canonical(at: &Path) {
    let metadata = fs::symlink_metadata(at).unwrap();
    assert_eq!(metadata.mtime(), 1, "{}", at.display());
    if metadata.is_dir() {
        assert_eq!(metadata.mode() & 0o7777, 0o555);
        for entry in fs::read_dir(at).unwrap() {
            assert_canonical(&entry.unwrap().path());
        }
    } else if metadata.is_file() {
        assert!(matches!(metadata.mode() & 0o7777, 0o444 | 0o555));
    }
}
