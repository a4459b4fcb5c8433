//! Whether the tables of the index agree with each other, for tests.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use redb::ReadableTable;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::subtrees::{digest_of, subtrees_of};
use tvix_node_protocol::tree::{BlobDigest, Leaf, Node, Tree, TreeDigest};

use super::objects::decode_node;
use super::*;

type OwnFileKey = ([u8; 32], bool, u32, u64);

impl Index {
    /// Panics where the tables disagree. Returns the name of every tree and what is known of it.
    pub(crate) fn assert_consistent(&self) -> BTreeMap<String, tvix_node_protocol::path_info::PathInfo> {
        self.read(|transaction| {
            let mut trees = BTreeMap::new();
            let mut numbers = BTreeMap::new();
            let mut referrers = BTreeSet::new();
            let mut valid = BTreeSet::new();
            for entry in transaction.open_table(PATHS)?.iter()? {
                let (key, record) = entry?;
                let path = path_from_key(key.value())?;
                let record = PathRecord::decode(path.clone(), record.value())?;
                for reference in record
                    .info
                    .references
                    .iter()
                    .filter(|&reference| *reference != path)
                {
                    referrers.insert((path_key(reference), path_key(&path)));
                }
                valid.insert(path.clone());
                assert_eq!(
                    numbers.insert(record.number, (path.to_basename(), record.info.tree)),
                    None
                );
                trees.insert(path.to_basename(), record.info);
            }
            for (reference, referrer) in &referrers {
                let reference: StorePath = path_from_key(reference)?;
                assert!(
                    valid.contains(&reference),
                    "{referrer:?} refers to {reference}, which is not valid"
                );
            }
            for entry in transaction.open_table(UNACCEPTED)?.iter()? {
                let (key, record) = entry?;
                let path = path_from_key(key.value().0)?;
                let record = PathRecord::decode(path.clone(), record.value())?;
                let name = crate::trees::unaccepted_name(&path, record.info.tree);
                assert_eq!(
                    numbers.insert(record.number, (name.clone(), record.info.tree)),
                    None
                );
                trees.insert(name, record.info);
            }
            let mut listed = BTreeSet::new();
            for entry in transaction.open_table(REFERRERS)?.iter()? {
                let (key, _) = entry?;
                listed.insert((key.value().0.to_vec(), key.value().1.to_vec()));
            }
            assert_eq!(listed, referrers, "referrers");
            let mut named = BTreeMap::new();
            for entry in transaction.open_table(TREES)?.iter()? {
                let (number, name) = entry?;
                named.insert(number.value(), name.value().to_owned());
            }
            let expected: BTreeMap<u64, String> = numbers
                .iter()
                .map(|(number, (name, _))| (*number, name.clone()))
                .collect();
            assert_eq!(named, expected, "trees");
            assert_objects(transaction, &numbers)?;
            Ok(trees)
        })
        .unwrap()
    }
}

fn assert_objects(
    transaction: &ReadTransaction,
    numbers: &BTreeMap<u64, (String, TreeDigest)>,
) -> Result<(), IndexFault> {
    let nodes = transaction.open_table(NODES)?;
    let load = |digest: TreeDigest| -> Result<Tree, IndexFault> {
        let bytes = nodes.get(&digest.0)?.expect("every object that is used is there");
        decode_node(bytes.value(), digest)
    };
    let mut uses: HashMap<TreeDigest, u64> = HashMap::new();
    let mut files: BTreeMap<OwnFileKey, BTreeSet<Vec<u8>>> = BTreeMap::new();
    let mut large = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (number, (_, root)) in numbers {
        *uses.entry(*root).or_insert(0) += 1;
        let mut occurrences: HashMap<(BlobDigest, bool), Vec<Vec<u8>>> = HashMap::new();
        let mut pending = vec![(*root, Vec::new())];
        while let Some((digest, prefix)) = pending.pop() {
            match load(digest)? {
                Tree::Directory(directory) => {
                    for (name, node) in directory.entries() {
                        let path = match prefix.as_slice() {
                            [] => name.as_bytes().to_vec(),
                            prefix => [prefix, b"/", name.as_bytes()].concat(),
                        };
                        match node {
                            Node::Directory(child) => {
                                if !seen.contains(&digest) {
                                    *uses.entry(*child).or_insert(0) += 1;
                                }
                                pending.push((*child, path));
                            }
                            Node::File {
                                blob,
                                executable,
                                size,
                            } => {
                                large.insert(*blob, *size);
                                occurrences.entry((*blob, *executable)).or_default().push(path);
                            }
                            Node::Symlink(_) => {}
                        }
                    }
                }
                Tree::Leaf(Leaf::File {
                    blob,
                    executable,
                    size,
                }) => {
                    large.insert(blob, size);
                    occurrences
                        .entry((blob, executable))
                        .or_default()
                        .push(Vec::new());
                }
                Tree::Leaf(Leaf::Symlink(_)) => {}
            }
            seen.insert(digest);
        }
        for ((blob, executable), paths) in occurrences {
            for occurrence in 0..u32::try_from(paths.len()).unwrap() {
                files.insert(
                    (blob.0, executable, occurrence, *number),
                    paths.iter().cloned().collect(),
                );
            }
        }
    }
    let mut counted = HashMap::new();
    for entry in transaction.open_table(NODE_USES)?.iter()? {
        let (digest, count) = entry?;
        counted.insert(TreeDigest(*digest.value()), count.value());
    }
    assert_eq!(counted, uses, "uses of objects");
    assert_eq!(nodes.iter()?.count(), uses.len(), "objects");
    let mut listed = BTreeSet::new();
    for entry in transaction.open_table(FILES)?.iter()? {
        let (key, path) = entry?;
        let (blob, executable, occurrence, number) = key.value();
        let key = (*blob, executable, occurrence, number);
        let possible = files
            .get(&key)
            .unwrap_or_else(|| panic!("a file that no tree has: {key:?}"));
        assert!(
            possible.contains(path.value()),
            "{:?}",
            path.value().escape_ascii()
        );
        listed.insert(key);
    }
    assert_eq!(listed.len(), files.len(), "files");
    assert_subtrees(transaction, &large)?;
    let mut by_digest = BTreeSet::new();
    for entry in transaction.open_table(TREE_NUMBERS)?.iter()? {
        let (key, _) = entry?;
        by_digest.insert((key.value().1, TreeDigest(*key.value().0)));
    }
    let expected: BTreeSet<(u64, TreeDigest)> = numbers
        .iter()
        .map(|(number, (_, root))| (*number, *root))
        .collect();
    assert_eq!(by_digest, expected, "numbers of trees");
    Ok(())
}

/// Every file that has parts has their hashes, and no other. So it is where the store began with the table.
fn assert_subtrees(
    transaction: &ReadTransaction,
    sizes: &BTreeMap<BlobDigest, u64>,
) -> Result<(), IndexFault> {
    let mut listed = BTreeMap::new();
    let table = match transaction.open_table(SUBTREES) {
        Err(redb::TableError::TableDoesNotExist(_)) => None,
        table => Some(table?),
    };
    if let Some(table) = table {
        for entry in table.iter()? {
            let (blob, parts) = entry?;
            let (parts, rest) = parts.value().as_chunks();
            assert_eq!(rest, [0; 0]);
            let blob = BlobDigest(*blob.value());
            assert_eq!(digest_of(parts), Some(blob), "parts of {blob}");
            listed.insert(blob, parts.len() as u64);
        }
    }
    let with_parts = sizes.iter().map(|(blob, size)| (*blob, subtrees_of(*size)));
    let expected: BTreeMap<_, _> = with_parts.filter(|(_, parts)| *parts > 1).collect();
    assert_eq!(listed, expected, "files with parts");
    Ok(())
}
