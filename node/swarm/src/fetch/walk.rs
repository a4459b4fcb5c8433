//! Fetching the directories of a tree: one question, and every answer is checked against the digest that
//! is next in turn.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::{TREE_DEPTH, TREE_NODE_BYTES};
use tvix_node_protocol::messages::{ServeAnswer, TreeQuestion};
use tvix_node_protocol::tree::{BlobDigest, Leaf, Node, Tree, TreeDigest};

use super::arrival::{Arrival, Item, Kind, SpoolError};
use super::coming;
use super::plan::Signs;
use super::progress::Report;
use super::provider::ProviderError;
use crate::call::{self, CallError};
use crate::core::{Core, blocking, lock};
use crate::limits::{BUSY_PAUSE, BUSY_TRIES, TREE_ENTRIES, WALK_LOOK, WRITE_BATCH};
use crate::net::Door;
use crate::room::Held;

/// An archive has at least so many bytes for each entry of a directory: the words around its name and what it is.
const ENTRY_BYTES: u64 = 160;

/// The files of a tree and their sizes.
pub(crate) type Files = HashMap<BlobDigest, u64>;

/// Follows a tree breadth first, as directories come.
struct Walk {
    queue: VecDeque<(TreeDigest, usize)>,
    seen: HashSet<TreeDigest>,
    files: Files,
    entries: usize,
}

impl Walk {
    fn new(root: TreeDigest) -> Self {
        Self {
            queue: VecDeque::from([(root, 0)]),
            seen: HashSet::from([root]),
            files: Files::new(),
            entries: 0,
        }
    }

    /// Takes the next directory in.
    fn take(&mut self, bytes: &[u8]) -> Result<TreeDigest, String> {
        let (digest, depth) = self.queue.pop_front().ok_or("more than the tree has")?;
        let tree = Tree::from_bytes(bytes, digest).map_err(|error| error.to_string())?;
        match tree {
            Tree::Leaf(Leaf::File { blob, size, .. }) => self.file(blob, size)?,
            Tree::Leaf(Leaf::Symlink(_)) => {}
            Tree::Directory(directory) => {
                self.entries += directory.entries().len();
                if self.entries > TREE_ENTRIES {
                    return Err(format!("a tree of more than {TREE_ENTRIES} entries"));
                }
                for (_, node) in directory.entries() {
                    match node {
                        Node::Symlink(_) => {}
                        Node::File { blob, size, .. } => self.file(*blob, *size)?,
                        Node::Directory(_) if depth >= TREE_DEPTH => {
                            return Err(format!("a tree deeper than {TREE_DEPTH}"));
                        }
                        Node::Directory(digest) => {
                            if self.seen.insert(*digest) {
                                self.queue.push_back((*digest, depth + 1));
                            }
                        }
                    }
                }
            }
        }
        Ok(digest)
    }

    fn file(&mut self, blob: BlobDigest, size: u64) -> Result<(), String> {
        match self.files.insert(blob, size) {
            Some(other) if other != size => Err(format!("a tree that has the file {blob} with two sizes")),
            _ => Ok(()),
        }
    }
}

/// Fetches all directories from one provider, who gives signs of life, into the arrival.
async fn fetch(
    core: &Arc<Core>,
    (provider, signs): (NodeKey, &Signs),
    (arrival, report): (&Arc<Arrival>, &Report),
    max_bytes: Option<u64>,
) -> Result<Files, ProviderError> {
    let root = arrival.root();
    let at = call::at(provider, Door::Tree);
    let mut wire = core.open_at_provider(provider, Door::Tree).await?;
    coming(
        wire.ask::<_, ServeAnswer>(&TreeQuestion { root })
            .await
            .map_err(at)?,
    )?;
    let mut walk = Walk::new(root);
    let mut batch = Batch::default();
    loop {
        signs.waits();
        let size = wire.reader.size(TREE_NODE_BYTES).await;
        signs.came();
        let size = size.map_err(at)?;
        let size = size.ok_or_else(|| ProviderError::Ended("not all directories came".to_owned()))?;
        if size == 0 {
            break;
        }
        let coming = &core.fetching.coming;
        let held = match coming.try_take(provider, size) {
            Some(held) => Some(held),
            // Who waits holds nothing that another waits for.
            None => {
                batch.write(arrival).await?;
                coming.take(provider, size).await
            }
        };
        let held = held.ok_or_else(|| ProviderError::Ended("this node is shutting down".to_owned()))?;
        signs.waits();
        let bytes = wire.reader.frame(size).await;
        signs.came();
        let bytes = bytes.map_err(at)?;
        report.moves(bytes.len());
        core.throttles.download.pass(bytes.len()).await;
        let digest = walk.take(&bytes).map_err(ProviderError::Lied)?;
        if let Some(most) = max_bytes
            && walk.entries as u64 > most / ENTRY_BYTES
        {
            // Who sends it has not said how large it is.
            let entries = walk.entries;
            return Err(ProviderError::Ended(format!(
                "it has more than {entries} entries, and an archive of {most} bytes has not"
            )));
        }
        batch.size += bytes.len();
        batch.held.push(held);
        batch.items.push(Item {
            kind: Kind::Directory,
            digest: digest.0,
            bytes,
        });
        if batch.size >= WRITE_BATCH {
            batch.write(arrival).await?;
        }
    }
    if !walk.queue.is_empty() {
        return Err(ProviderError::Lied("the tree ends before its end".to_owned()));
    }
    batch.write(arrival).await?;
    Ok(walk.files)
}

/// Directories that are written together.
#[derive(Default)]
struct Batch {
    items: Vec<Item>,
    /// Their bytes.
    size: usize,
    /// Room for them.
    held: Vec<Held>,
}

impl Batch {
    async fn write(&mut self, arrival: &Arc<Arrival>) -> Result<(), ProviderError> {
        let batch = std::mem::take(self);
        write(arrival, batch.items).await
    }
}

/// The directories, from the first provider that brings them. It stays the first. Where one falls silent, the next is asked,
/// too.
pub(crate) async fn first(
    core: &Arc<Core>,
    (arrival, report): (&Arc<Arrival>, &Report),
    max_bytes: Option<u64>,
    (providers, failures): (&mut VecDeque<NodeKey>, &mut Vec<(NodeKey, ProviderError)>),
) -> Option<Files> {
    let walk = |provider: NodeKey, signs: Signs, pause: Duration| async move {
        tokio::time::sleep(pause).await;
        // It is not silent as long as it is not asked.
        signs.waits();
        let walked = fetch(core, (provider, &signs), (arrival, report), max_bytes).await;
        (provider, walked)
    };
    let mut walks = FuturesUnordered::new();
    let mut asked: Vec<(NodeKey, Signs)> = Vec::new();
    let mut busy = 0;
    loop {
        let stuck = asked.iter().all(|(_, signs)| signs.is_silent(Instant::now()));
        if stuck && let Some(provider) = providers.pop_front() {
            let signs = Signs::new();
            walks.push(walk(provider, signs.clone(), Duration::ZERO));
            asked.push((provider, signs));
        }
        let (provider, walked) = match tokio::time::timeout(WALK_LOOK, walks.next()).await {
            Ok(Some(ended)) => ended,
            Ok(None) => return None,
            // Somebody may have fallen silent.
            Err(_) => continue,
        };
        let place = asked.iter().position(|(asked, _)| *asked == provider);
        let signs = place.map(|place| asked.swap_remove(place).1);
        match walked {
            // There is nobody else.
            Err(ProviderError::Busy) if providers.is_empty() && asked.is_empty() && busy < BUSY_TRIES => {
                busy += 1;
                let signs = signs.unwrap_or_else(Signs::new);
                signs.came();
                walks.push(walk(provider, signs.clone(), BUSY_PAUSE));
                asked.push((provider, signs));
            }
            Ok(files) => {
                let mut standing = lock(&core.standing);
                standing.served(provider);
                providers.push_front(provider);
                for (slower, signs) in asked {
                    if !signs.has_brought() {
                        standing.failed(slower, core.team.now());
                    }
                    providers.push_back(slower);
                }
                return Some(files);
            }
            Err(error) => {
                error.mark(core, provider);
                failures.push((provider, error));
            }
        }
    }
}

/// The files in the order of an archive, each once. Blocks.
pub(crate) fn in_order(arrival: &Arrival, mut files: Files) -> Result<Vec<(BlobDigest, u64)>, SpoolError> {
    let mut order = Vec::with_capacity(files.len());
    let mut file = |blob: BlobDigest| order.extend(files.remove(&blob).map(|size| (blob, size)));
    let mut seen = HashSet::new();
    let mut next = vec![];
    match arrival.tree(arrival.root())? {
        Some(Tree::Leaf(Leaf::File { blob, .. })) => file(blob),
        _ => next.push(Node::Directory(arrival.root())),
    }
    while let Some(node) = next.pop() {
        match node {
            Node::Symlink(_) => {}
            Node::File { blob, .. } => file(blob),
            Node::Directory(digest) => {
                if seen.insert(digest)
                    && let Some(Tree::Directory(directory)) = arrival.tree(digest)?
                {
                    let entries = directory.entries().map(|(_, node)| node.clone());
                    let place = next.len();
                    next.extend(entries);
                    next[place..].reverse();
                }
            }
        }
    }
    Ok(order)
}

/// Writes what has been verified, where that may block, if it has to be.
pub(crate) async fn write(arrival: &Arc<Arrival>, items: Vec<Item>) -> Result<(), ProviderError> {
    if arrival.add_in_memory(&items) {
        return Ok(());
    }
    let arrival = arrival.clone();
    match blocking(move || arrival.add(&items)).await {
        Ok(written) => Ok(written?),
        Err(lost) => Err(ProviderError::Ended(lost.to_string())),
    }
}

impl From<CallError> for Box<ProviderError> {
    fn from(error: CallError) -> Self {
        Self::new(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tvix_node_protocol::tree::{Directory, PathComponent};

    fn directory(entries: Vec<(&str, Node)>) -> Tree {
        let mut directory = Directory::default();
        for (name, node) in entries {
            directory
                .insert(PathComponent::new(name.as_bytes()).unwrap(), node)
                .unwrap();
        }
        Tree::Directory(directory)
    }

    #[test]
    fn a_walk_takes_the_directories_in_order_and_nothing_else() {
        let inner = directory(vec![("x", Node::file(b"x", false))]);
        let root = directory(vec![
            ("a", inner.clone().into()),
            ("b", inner.clone().into()),
            ("y", Node::file(b"yy", true)),
        ]);
        let mut walk = Walk::new(root.digest());
        assert!(walk.take(&inner.to_bytes()).is_err(), "not in its turn");
        let mut walk = Walk::new(root.digest());
        walk.take(&root.to_bytes()).unwrap();
        walk.take(&inner.to_bytes()).unwrap();
        assert!(walk.queue.is_empty(), "an equal directory comes once");
        assert_eq!(walk.files.len(), 2);
        assert_eq!(walk.files[&BlobDigest::of(b"yy")], 2);
        assert!(
            walk.take(&inner.to_bytes())
                .unwrap_err()
                .contains("more than the tree has")
        );
    }

    #[test]
    fn a_tree_deeper_than_allowed_is_refused() {
        let mut tree = directory(vec![]);
        let mut chain = vec![tree.clone()];
        for _ in 0..=TREE_DEPTH {
            tree = directory(vec![("d", tree.into())]);
            chain.push(tree.clone());
        }
        let mut walk = Walk::new(tree.digest());
        let results: Vec<_> = chain
            .iter()
            .rev()
            .map(|tree| walk.take(&tree.to_bytes()))
            .collect();
        assert!(results[TREE_DEPTH - 1].is_ok());
        assert!(results[TREE_DEPTH].as_ref().unwrap_err().contains("deeper"));
    }

    #[test]
    fn a_tree_of_more_entries_than_allowed_is_refused() {
        let inner = directory(vec![("x", Node::file(b"x", false))]);
        let root = directory(vec![("a", inner.clone().into()), ("y", Node::file(b"y", false))]);
        // What other directories of it had before.
        let mut walk = Walk::new(root.digest());
        walk.entries = TREE_ENTRIES - 3;
        assert!(walk.take(&root.to_bytes()).is_ok() && walk.take(&inner.to_bytes()).is_ok());
        let mut walk = Walk::new(root.digest());
        walk.entries = TREE_ENTRIES - 2;
        walk.take(&root.to_bytes()).unwrap();
        let error = walk.take(&inner.to_bytes()).unwrap_err();
        assert!(
            error.contains(&format!("more than {TREE_ENTRIES} entries")),
            "{error}"
        );
    }

    #[test]
    fn a_tree_that_contradicts_itself_is_refused() {
        let blob = BlobDigest::of(b"x");
        let file = |size| Node::File {
            blob,
            size,
            executable: false,
        };
        let tree = directory(vec![("a", file(1)), ("b", file(2))]);
        let error = Walk::new(tree.digest()).take(&tree.to_bytes()).unwrap_err();
        assert!(error.contains("two sizes"), "{error}");
    }
}
