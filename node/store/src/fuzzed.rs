//! What the store keeps of itself, read from any bytes: for the fuzzer (`tests/fuzz`) and the test that replays what it kept.
//! Nothing that a user of the store needs.

use redb::{Key, TableDefinition, Value};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKey, SwarmId};
use tvix_node_protocol::tree::{BlobDigest, TreeDigest};

use crate::audience::Audience;
use crate::gc::{GcOptions, InUse};
use crate::index::{
    AUDIENCES, DecodeError, FILES, IndexError, NODES, PATHS, PINS, PathRecord, RECORD_AUDIENCES,
    RECORD_OUTPUTS, RECORDS, REFERRERS, ROOTS, SOURCES, SUBTREES, TREE_NUMBERS, TREES, UNACCEPTED,
    parts_from, path_from_key, path_key,
};
use crate::intent::{names_of, note_of};
use crate::processes::named_in;
use crate::running::paths_of;
use crate::store::Store;

/// Reads a key of the index. The answer is how the path that it stands for is written.
///
/// # Errors
/// [`DecodeError`]
pub fn read_path_key(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    Ok(path_key(&path_from_key(bytes)?))
}

/// Reads what the index has of `path`. The answer is how that is written.
///
/// # Errors
/// [`DecodeError`]
pub fn read_path_record(path: &StorePath, bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    Ok(PathRecord::decode(path.clone(), bytes)?.encode())
}

/// Reads who may learn of a tree. The answer is how that is written.
///
/// # Errors
/// [`DecodeError`]
pub fn read_audience(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    Ok(Audience::decode(Some(bytes))?.encode().unwrap_or_default())
}

/// Reads the hashes of a large file's parts. The answer is how they are written.
///
/// # Errors
/// [`DecodeError`]
pub fn read_parts(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    Ok(parts_from(bytes)?.as_flattened().to_vec())
}

/// Reads a note of names that are about to appear. The answer is how what it names is written.
#[must_use]
pub fn read_note(bytes: &[u8]) -> String {
    note_of(&names_of(bytes))
}

/// Reads what a program uses from what was written for it. The answer is how that is written.
#[must_use]
pub fn read_running(text: &str) -> Option<String> {
    let paths = paths_of(text).ok()?;
    Some(paths.iter().map(|path| path.to_basename() + "\n").collect())
}

/// Reads what a process shows of itself: the paths that it names in a store whose trees lie in `/home/nix/store`.
#[must_use]
pub fn read_shown(bytes: &[u8]) -> Vec<StorePath> {
    named_in(bytes, &[b"/home".to_vec()])
}

/// Puts any entry into any table, looks at it in every way there is, and takes it out again. The first byte says which
/// table, the second how long the key is. Whatever is found must be an answer or an error.
///
/// # Errors
/// [`IndexError`], where the entry could not be put in or taken out.
pub fn look_at_entry(store: &Store, bytes: &[u8]) -> Result<(), IndexError> {
    let [table, length, rest @ ..] = bytes else {
        return Ok(());
    };
    let (key, value) = rest.split_at(usize::from(*length).min(rest.len()));
    let (text, said) = (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
    let (short, small) = (fixed::<32>(key), fixed::<32>(value));
    let number = u64::from_le_bytes(fixed(key));
    match table % 15 {
        0 => with(store, PATHS, key, value, key),
        1 => with(store, REFERRERS, (key, value), (), key),
        2 => with(store, UNACCEPTED, (key, &small), value, key),
        3 => with(store, TREES, number, &*said, key),
        4 => with(
            store,
            TREE_NUMBERS,
            (&short, u64::from_le_bytes(fixed(value))),
            (),
            key,
        ),
        5 => with(store, NODES, &short, value, key),
        6 => {
            let file = (&short, value.len() % 2 == 1, 0, number);
            with(store, FILES, file, value, key)
        }
        7 => with(store, SUBTREES, &short, value, key),
        8 => with(store, PINS, key, u64::from_le_bytes(fixed(value)), key),
        9 => with(store, ROOTS, key, value, key),
        10 => with(store, SOURCES, &*text, (number, value), key),
        11 => with(store, RECORDS, (&short, &short), value, key),
        12 => with(store, RECORD_OUTPUTS, (key, &small, &small), (), key),
        13 => with(store, AUDIENCES, &*text, value, key),
        _ => with(store, RECORD_AUDIENCES, (&short, &short), value, key),
    }
}

/// The beginning, and zeros where there is no more.
fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    let length = bytes.len().min(N);
    array[..length].copy_from_slice(&bytes[..length]);
    array
}

fn with<K: Key + 'static, V: Value + 'static>(
    store: &Store,
    table: TableDefinition<'static, K, V>,
    key: K::SelfType<'_>,
    value: V::SelfType<'_>,
    bytes: &[u8],
) -> Result<(), IndexError> {
    let index = &store.inner.index;
    index.write_lazily(|transaction| {
        transaction.open_table(table)?.insert(&key, &value)?;
        Ok(())
    })?;
    look(store, bytes);
    index.write_lazily(|transaction| {
        transaction.open_table(table)?.remove(&key)?;
        Ok(())
    })
}

/// What is answered does not matter, but the database must not have given up over it.
fn seen<T, E: std::error::Error>(answer: Result<T, E>) {
    if let Err(error) = answer {
        let said = error.to_string();
        assert!(!said.contains("it makes no sense"), "{said}");
    }
}

/// Everything that is read of an index.
fn look(store: &Store, key: &[u8]) {
    let index = &store.inner.index;
    let path = path_from_key(key).or_else(|_| path_from_key(b"00000000000000000000x"));
    let digest: [u8; 32] = fixed(key);
    let (tree, blob, team) = (TreeDigest(digest), BlobDigest(digest), SwarmId(digest));
    if let Ok(path) = &path {
        seen(store.query(path));
        seen(store.closure([path]));
        seen(store.referrers(path));
        seen(store.unaccepted(path));
        seen(store.verify_path(path));
        seen(store.records_of(path));
        seen(store.records_of_known_to(team, path));
        seen(store.audiences([path]));
        seen(store.usage([path]));
        seen(store.widen([path], &Audience::team(team)));
    }
    seen(store.paths_with_hash(&fixed(key)));
    seen(store.paths_after(None, 9));
    seen(store.paths_of_tree(tree));
    seen(store.tree(&tree));
    seen(store.open_blob(&blob));
    seen(store.blob_subtrees(&blob));
    seen(store.has_blobs_among(&[blob], &|_, _| true));
    seen(store.records(&BuildKey(digest)));
    seen(store.roots());
    seen(store.pins());
    seen(store.source(&String::from_utf8_lossy(key), &store.lease()));
    seen(index.next_tree_number());
    seen(index.knows_name(&String::from_utf8_lossy(key)));
    let (options, in_use) = (GcOptions::default(), InUse::default());
    seen(index.preview(|transaction| store.inner.sweep(transaction, &options, &in_use)));
}
