//! Fetching the directories of a tree: one question, and every answer is checked against the digest that
//! is next in turn.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::TREE_NODE_BYTES;
use tvix_node_protocol::messages::{ServeAnswer, TreeQuestion};
use tvix_node_protocol::tree::{BlobDigest, Leaf, Node, Tree};
use tvix_node_protocol::walk::{Files, Walk, WalkError};

use super::arrival::{Arrival, Item, Kind, SpoolError};
use super::coming;
use super::plan::Signs;
use super::progress::Report;
use super::provider::ProviderError;
use super::small_trees::{self, Small};
use crate::call::{self, CallError};
use crate::core::{Core, blocking, lock};
use crate::limits::{BUSY_PAUSE, BUSY_TRIES, TREE_ENTRIES, WALK_LOOK, WRITE_BATCH};
use crate::line::Rising;
use crate::net::Door;
use crate::room::Held;

/// An archive has at least so many bytes for each entry of a directory: the words around its name and what it is.
const ENTRY_BYTES: u64 = 160;

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
    let mut walk = Walk::new(root, TREE_ENTRIES);
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
        let lied = |error: WalkError| ProviderError::Lied(error.to_string());
        let digest = walk.take(&bytes).map_err(lied)?;
        if let Some(most) = max_bytes
            && walk.entries() as u64 > most / ENTRY_BYTES
        {
            // Who sends it has not said how large it is.
            let entries = walk.entries();
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
    if !walk.is_done() {
        return Err(ProviderError::Lied("the tree ends before its end".to_owned()));
    }
    batch.write(arrival).await?;
    Ok(walk.into_files())
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
    (max_bytes, priority): (Option<u64>, &Rising),
    (providers, failures): (&mut VecDeque<NodeKey>, &mut Vec<(NodeKey, ProviderError)>),
) -> Option<Files> {
    // Whether others are asked already.
    let walk = |provider: NodeKey, signs: Signs, pause: Duration, also: bool| async move {
        tokio::time::sleep(pause).await;
        // It is not silent as long as it is not asked.
        signs.waits();
        let small = Small {
            most: max_bytes,
            priority,
            also,
        };
        let walked = match small_trees::fetch(core, (provider, &signs), (arrival, report), small).await {
            Ok(None) => fetch(core, (provider, &signs), (arrival, report), max_bytes).await,
            Ok(Some(files)) => Ok(files),
            Err(error) => Err(error),
        };
        (provider, walked)
    };
    let mut walks = FuturesUnordered::new();
    let mut asked: Vec<(NodeKey, Signs)> = Vec::new();
    let mut busy = 0;
    loop {
        let stuck = asked.iter().all(|(_, signs)| signs.is_silent(Instant::now()));
        if stuck && let Some(provider) = providers.pop_front() {
            let signs = Signs::new();
            walks.push(walk(provider, signs.clone(), Duration::ZERO, !asked.is_empty()));
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
                walks.push(walk(provider, signs.clone(), BUSY_PAUSE, false));
                asked.push((provider, signs));
            }
            Ok(files) => {
                let mut standing = lock(&core.standing);
                standing.served(provider);
                providers.push_front(provider);
                for (slower, signs) in asked {
                    if !signs.has_brought() && signs.is_silent(Instant::now()) {
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
