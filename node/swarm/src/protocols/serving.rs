//! What is served at the moment: the files of each tree, and the hashes inside large files.
//!
//! A file is served as a part of a tree the asker may have. Which files are in a tree is found by walking
//! it once, and remembered for a while.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{File, Metadata};
use std::io::BufReader;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, Weak};

use bao_tree::BlockSize;
use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::CreateOutboard;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::tree::{BlobDigest, Leaf, Node, Tree, TreeDigest};

use crate::core::{Core, lock};
use crate::limits::{
    CONTENT_STREAMS, CONTENT_STREAMS_PER_PEER, OUTBOARD_BYTES, PLACE_PATIENCE, SERVED_BLOBS, WALK_STREAMS,
};
use crate::places::Places;
use crate::shelf::{Shelf, ShelfError};

/// Groups of 16 chunks of 1 KiB, as iroh-blobs has them: what is verified at once.
pub(crate) const BLOCK: BlockSize = iroh_blobs::store::IROH_BLOCK_SIZE;

/// The hashes inside a file above its groups of 16 KiB: 64 bytes each, 1/256 of the file.
pub(crate) type Outboard = PreOrderOutboard<Vec<u8>>;

/// What a file system changes when a file's content is changed, whatever is done to its other times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl FileState {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The hashes inside a file, and the file they were made from.
#[derive(Debug)]
pub(crate) struct Proof {
    pub(crate) outboard: Outboard,
    made_from: FileState,
}

impl Proof {
    /// Whether this is the file the hashes were made from, unchanged: then it need not be hashed again. What
    /// a disk loses without being written to is found by who fetches.
    pub(crate) fn is_from(&self, metadata: &Metadata) -> bool {
        self.made_from == FileState::of(metadata)
    }
}

/// Values that were used lately, bounded by their weight.
#[derive(Debug)]
struct Recent<K, V> {
    values: HashMap<K, (Arc<V>, usize)>,
    order: VecDeque<K>,
    weight: usize,
    limit: usize,
}

impl<K: Copy + Eq + std::hash::Hash, V> Recent<K, V> {
    fn new(limit: usize) -> Self {
        Self {
            values: HashMap::new(),
            order: VecDeque::new(),
            weight: 0,
            limit,
        }
    }

    fn get(&mut self, key: K) -> Option<Arc<V>> {
        let (value, _) = self.values.get(&key)?;
        let value = value.clone();
        self.order.retain(|other| *other != key);
        self.order.push_back(key);
        Some(value)
    }

    /// The oldest go until it fits; what does not fit alone is not kept.
    fn insert(&mut self, key: K, value: Arc<V>, weight: usize) {
        if weight > self.limit || self.values.contains_key(&key) {
            return;
        }
        while self.weight + weight > self.limit {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if let Some((_, freed)) = self.values.remove(&oldest) {
                self.weight -= freed;
            }
        }
        self.values.insert(key, (value, weight));
        self.order.push_back(key);
        self.weight += weight;
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Serving {
    trees: Mutex<Recent<TreeDigest, HashSet<BlobDigest>>>,
    proofs: Mutex<Recent<BlobDigest, Proof>>,
    /// Held by who makes the proof of a file.
    making: Mutex<HashMap<BlobDigest, Weak<Mutex<()>>>>,
    /// Streams that carry files, at once.
    pub(crate) streams: Arc<Semaphore>,
    /// Of those, to each peer.
    peers: Places,
    /// Streams that carry directories and texts.
    walks: Arc<Semaphore>,
}

/// A stream may carry content as long as this is held.
pub(crate) struct Place {
    _of_peer: Option<OwnedSemaphorePermit>,
    _of_all: OwnedSemaphorePermit,
}

impl Serving {
    pub(crate) fn new() -> Self {
        Self {
            trees: Mutex::new(Recent::new(SERVED_BLOBS)),
            proofs: Mutex::new(Recent::new(OUTBOARD_BYTES)),
            making: Mutex::default(),
            streams: Arc::new(Semaphore::new(CONTENT_STREAMS)),
            peers: Places::new(CONTENT_STREAMS_PER_PEER),
            walks: Arc::new(Semaphore::new(WALK_STREAMS)),
        }
    }

    /// A place for a stream of files to this peer. None: there was none for a while.
    pub(crate) async fn place(&self, peer: NodeKey) -> Option<Place> {
        let (own, all) = (self.peers.of(peer), Arc::clone(&self.streams));
        let waiting = async move {
            let of_peer = own.acquire_owned().await.ok()?;
            let of_all = all.acquire_owned().await.ok()?;
            Some(Place {
                _of_peer: Some(of_peer),
                _of_all: of_all,
            })
        };
        tokio::time::timeout(PLACE_PATIENCE, waiting).await.ok().flatten()
    }

    /// A place for a stream of directories or texts. None: there was none for a while.
    pub(crate) async fn walk_place(&self) -> Option<Place> {
        let waiting = Arc::clone(&self.walks).acquire_owned();
        let of_all = tokio::time::timeout(PLACE_PATIENCE, waiting).await.ok()?.ok()?;
        Some(Place {
            _of_peer: None,
            _of_all: of_all,
        })
    }

    pub(crate) fn remember(&self, root: TreeDigest, blobs: HashSet<BlobDigest>) -> Arc<HashSet<BlobDigest>> {
        let weight = blobs.len();
        let blobs = Arc::new(blobs);
        lock(&self.trees).insert(root, blobs.clone(), weight);
        blobs
    }

    /// The hashes inside a file, which is read for them where they are not remembered, by one at a time. Blocks. None
    /// where the file does not have the digest it should.
    pub(crate) fn proof(&self, blob: BlobDigest, file: &File) -> std::io::Result<Option<Arc<Proof>>> {
        if let Some(proof) = lock(&self.proofs).get(blob) {
            return Ok(Some(proof));
        }
        let turn = self.turn(blob);
        let _making = lock(&turn);
        if let Some(proof) = lock(&self.proofs).get(blob) {
            return Ok(Some(proof));
        }
        // As it was before it is read: a change meanwhile shows.
        let made_from = FileState::of(&file.metadata()?);
        let reader = BufReader::with_capacity(1 << 20, file);
        let outboard = Outboard::create_sized(reader, made_from.size, BLOCK)?;
        if *outboard.root.as_bytes() != blob.0 {
            return Ok(None);
        }
        let weight = outboard.data.len() + 128;
        let proof = Arc::new(Proof { outboard, made_from });
        lock(&self.proofs).insert(blob, proof.clone(), weight);
        Ok(Some(proof))
    }

    fn turn(&self, blob: BlobDigest) -> Arc<Mutex<()>> {
        let mut making = lock(&self.making);
        making.retain(|_, turn| turn.strong_count() > 0);
        let known = making.get(&blob).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let turn = Arc::new(Mutex::new(()));
            making.insert(blob, Arc::downgrade(&turn));
            turn
        })
    }
}

/// Walks a tree: its directories breadth first, each once. `each` gets every encoding and may stop the
/// walk by answering false. The files come back; none where a part of the tree is not here. Blocks.
pub(crate) fn walk(
    shelf: &dyn Shelf,
    root: TreeDigest,
    mut each: impl FnMut(Vec<u8>) -> bool,
) -> Result<Option<HashSet<BlobDigest>>, ShelfError> {
    let mut blobs = HashSet::new();
    let mut seen = HashSet::from([root]);
    let mut queue = VecDeque::from([root]);
    while let Some(digest) = queue.pop_front() {
        let Some(tree) = shelf.tree(digest)? else {
            return Ok(None);
        };
        if !each(tree.to_bytes()) {
            return Ok(None);
        }
        match tree {
            Tree::Leaf(Leaf::File { blob, .. }) => {
                blobs.insert(blob);
            }
            Tree::Leaf(Leaf::Symlink(_)) => {}
            Tree::Directory(directory) => {
                for (_, node) in directory.entries() {
                    match node {
                        Node::Directory(digest) if seen.insert(*digest) => queue.push_back(*digest),
                        Node::Directory(_) | Node::Symlink(_) => {}
                        Node::File { blob, .. } => {
                            blobs.insert(*blob);
                        }
                    }
                }
            }
        }
    }
    Ok(Some(blobs))
}

/// The files of a tree, where the peer may have it and it is here.
pub(crate) async fn files_for(
    core: &Core,
    peer: NodeKey,
    root: TreeDigest,
) -> Result<Option<Arc<HashSet<BlobDigest>>>, ShelfError> {
    if !core.ask_shelf(move |shelf| shelf.may_serve(peer, root)).await? {
        return Ok(None);
    }
    if let Some(blobs) = lock(&core.serving.trees).get(root) {
        return Ok(Some(blobs));
    }
    let blobs = core.ask_shelf(move |shelf| walk(shelf, root, |_| true)).await?;
    Ok(blobs.map(|blobs| core.serving.remember(root, blobs)))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn what_was_used_lately_is_kept_within_its_bound() {
        let mut recent = Recent::new(10);
        recent.insert(1, Arc::new("one"), 4);
        recent.insert(2, Arc::new("two"), 4);
        assert_eq!(recent.get(1).as_deref(), Some(&"one"));
        recent.insert(3, Arc::new("three"), 4);
        assert_eq!(recent.get(2), None, "the one not used for longest goes");
        assert!(recent.get(1).is_some() && recent.get(3).is_some());
        recent.insert(4, Arc::new("too heavy"), 11);
        assert_eq!(recent.get(4), None);
        assert_eq!(recent.weight, 8);
    }

    #[tokio::test]
    async fn nobody_takes_the_places_of_others() {
        let (serving, ann, bob) = (Serving::new(), NodeKey([1; 32]), NodeKey([2; 32]));
        let mut taken = vec![];
        for _ in 0..CONTENT_STREAMS_PER_PEER {
            taken.push(serving.place(ann).await.unwrap());
        }
        assert!(serving.place(ann).now_or_never().is_none(), "it waits");
        assert!(serving.place(bob).now_or_never().flatten().is_some());
        assert!(serving.walk_place().now_or_never().flatten().is_some());
        taken.pop();
        assert!(serving.place(ann).now_or_never().flatten().is_some());
    }

    #[test]
    fn a_file_is_hashed_once_for_all_who_want_parts_of_it() {
        let bytes = vec![7; 4 << 20];
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let (serving, blob) = (Serving::new(), BlobDigest::of(&bytes));
        let proofs = std::thread::scope(|scope| {
            let asked = [(); 8].map(|()| {
                let mut own = file.try_clone().unwrap();
                let serving = &serving;
                scope.spawn(move || {
                    own.rewind().unwrap();
                    serving.proof(blob, &own).unwrap().unwrap()
                })
            });
            asked.map(|thread| thread.join().unwrap())
        });
        assert!(proofs.iter().all(|proof| Arc::ptr_eq(proof, &proofs[0])));
        assert!(serving.proof(BlobDigest::of(b"other"), &file).unwrap().is_none());
    }
}
