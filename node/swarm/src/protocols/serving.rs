//! What is served at the moment: the files of each tree, and the hashes inside large files.
//!
//! A file is served as a part of a tree the asker may have. Which files are in a tree is found by walking
//! it once, and remembered for a while. A file is read as a whole once for its hashes, whether it proves to be what it
//! should or not, and not for each piece of it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{File, Metadata};
use std::io::{self, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::{CreateOutboard, ReadAt, WriteAt};
use bao_tree::{BaoTree, BlockSize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::ServeAnswer;
use tvix_node_protocol::tree::{BlobDigest, Leaf, Node, Tree, TreeDigest};

use crate::core::{Core, lock};
use crate::limits::{
    CONTENT_STREAMS, CONTENT_STREAMS_PER_PEER, LISTINGS, LISTINGS_PER_PEER, OUTBOARD_BYTES,
    OUTBOARD_BYTES_OF_A_FILE, OUTBOARD_BYTES_ON_DISK, PLACE_PATIENCE, SERVED_BLOBS, SHARES, UNPROVEN,
    UNPROVEN_FILES, WALK_BYTES, WALK_BYTES_PER_PEER, WALK_STREAMS, WALK_STREAMS_PER_PEER,
};
use crate::places::Places;
use crate::recent::Recent;
use crate::room::Room;
use crate::shelf::{Shelf, ShelfError};

/// Groups of 16 chunks of 1 KiB, as iroh-blobs has them: what is verified at once.
pub(crate) const BLOCK: BlockSize = iroh_blobs::store::IROH_BLOCK_SIZE;

/// The hashes inside a file above its groups of 16 KiB: 64 bytes each, 1/256 of the file.
pub(crate) type Outboard = PreOrderOutboard<Hashes>;

/// Where hashes inside a file lie.
#[derive(Debug)]
pub(crate) enum Hashes {
    Memory(Vec<u8>),
    /// A file without a name, which goes when it is closed.
    Disk(File),
}

impl ReadAt for Hashes {
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Memory(bytes) => bytes.read_at(at, buffer),
            Self::Disk(file) => file.read_at(at, buffer),
        }
    }
}

impl WriteAt for Hashes {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Memory(memory) => memory.write_at(at, bytes),
            Self::Disk(file) => file.write_at(at, bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Memory(memory) => memory.flush(),
            // Nobody but this process reads it, and after it there is no need for it.
            Self::Disk(_) => Ok(()),
        }
    }
}

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

/// A file that could not be proven, as it was then.
#[derive(Debug)]
struct Unproven {
    file: FileState,
    since: Instant,
    reason: String,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Serving {
    trees: Mutex<Recent<TreeDigest, HashSet<BlobDigest>>>,
    proofs: Mutex<Recent<BlobDigest, Proof>>,
    /// Bytes of one that is in memory.
    in_memory: u64,
    /// Those of larger files, which lie in files.
    large: Mutex<Recent<BlobDigest, Proof>>,
    /// Files that could not be proven.
    unproven: Mutex<Recent<BlobDigest, Unproven>>,
    /// Held by who makes the proof of a file.
    making: Mutex<HashMap<BlobDigest, Weak<Mutex<()>>>>,
    /// Streams that carry files, at once.
    pub(crate) streams: Arc<Semaphore>,
    /// Of those, to each peer.
    peers: Places,
    /// Streams that carry directories and texts.
    walks: Arc<Semaphore>,
    /// Of those, to each peer.
    walking_peers: Places,
    /// Room for what they read ahead.
    pub(crate) ahead: Arc<Room>,
    /// Trees whose files are listed.
    listings: Arc<Semaphore>,
    /// Of those, for each peer.
    listings_of_each: Places,
}

/// A stream may carry content, or a tree be listed for it, as long as this is held.
pub(crate) struct Place {
    _of_peer: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// Waits for a place of a peer's, and then for one of all, for a while.
async fn place(own: Arc<Semaphore>, all: Arc<Semaphore>, shares: u32) -> Option<Place> {
    let waiting = async move {
        Some(Place {
            _of_peer: own.acquire_many_owned(shares).await.ok()?,
            _of_all: all.acquire_many_owned(shares).await.ok()?,
        })
    };
    tokio::time::timeout(PLACE_PATIENCE, waiting).await.ok().flatten()
}

impl Serving {
    pub(crate) fn new() -> Self {
        Self {
            trees: Mutex::new(Recent::new(SERVED_BLOBS)),
            proofs: Mutex::new(Recent::new(OUTBOARD_BYTES)),
            in_memory: OUTBOARD_BYTES_OF_A_FILE,
            large: Mutex::new(Recent::new(OUTBOARD_BYTES_ON_DISK)),
            unproven: Mutex::new(Recent::new(UNPROVEN_FILES)),
            making: Mutex::default(),
            streams: Arc::new(Semaphore::new(CONTENT_STREAMS * SHARES as usize)),
            peers: Places::new(CONTENT_STREAMS_PER_PEER * SHARES as usize),
            walks: Arc::new(Semaphore::new(WALK_STREAMS)),
            walking_peers: Places::new(WALK_STREAMS_PER_PEER),
            ahead: Arc::new(Room::new(WALK_BYTES, WALK_BYTES_PER_PEER)),
            listings: Arc::new(Semaphore::new(LISTINGS)),
            listings_of_each: Places::new(LISTINGS_PER_PEER),
        }
    }

    /// A place for a stream of files to this peer. None: there was none for a while.
    pub(crate) async fn place(&self, peer: NodeKey) -> Option<Place> {
        place(self.peers.of(peer), Arc::clone(&self.streams), SHARES).await
    }

    /// A share of such a place, for an answer that is in memory.
    pub(crate) async fn small_place(&self, peer: NodeKey) -> Option<Place> {
        place(self.peers.of(peer), Arc::clone(&self.streams), 1).await
    }

    /// A place for a stream of directories or texts to this peer. None: there was none for a while.
    pub(crate) async fn walk_place(&self, peer: NodeKey) -> Option<Place> {
        place(self.walking_peers.of(peer), Arc::clone(&self.walks), 1).await
    }

    /// A place to list the files of a tree for this peer. None: there was none for a while.
    pub(crate) async fn listing_place(&self, peer: NodeKey) -> Option<Place> {
        place(self.listings_of_each.of(peer), Arc::clone(&self.listings), 1).await
    }

    pub(crate) fn remember(&self, root: TreeDigest, blobs: HashSet<BlobDigest>) -> Arc<HashSet<BlobDigest>> {
        // A tree without a file costs something, too.
        let weight = blobs.len() + 1;
        let blobs = Arc::new(blobs);
        lock(&self.trees).insert(root, blobs.clone(), weight);
        blobs
    }

    /// The hashes inside a file, which is read for them where they are not remembered, by one at a time. Where they are too
    /// many for the memory they lie in `folder`, which need not be there yet. Blocks.
    ///
    /// # Errors
    /// The file cannot be read, or does not have the digest it should; that, too, is found out once for a while.
    pub(crate) fn proof(&self, blob: BlobDigest, file: &File, folder: &Path) -> io::Result<Arc<Proof>> {
        if let Some(proof) = self.known(blob) {
            return Ok(proof);
        }
        let turn = self.turn(blob);
        let _making = lock(&turn);
        if let Some(proof) = self.known(blob) {
            return Ok(proof);
        }
        // As it was before it is read: a change meanwhile shows.
        let made_from = FileState::of(&file.metadata()?);
        if let Some(known) = lock(&self.unproven).get(blob)
            && known.file == made_from
            && known.since.elapsed() < UNPROVEN
        {
            return Err(io::Error::other(known.reason.clone()));
        }
        match self.make(blob, (file, made_from.size), folder) {
            Ok(outboard) => {
                let kept = match &outboard.data {
                    Hashes::Memory(_) => &self.proofs,
                    Hashes::Disk(_) => &self.large,
                };
                let proof = Arc::new(Proof { outboard, made_from });
                lock(kept).insert(blob, proof.clone(), weight_of(made_from.size));
                Ok(proof)
            }
            Err(error) => {
                let failed = Unproven {
                    file: made_from,
                    since: Instant::now(),
                    reason: error.to_string(),
                };
                lock(&self.unproven).insert(blob, Arc::new(failed), 1);
                Err(error)
            }
        }
    }

    fn known(&self, blob: BlobDigest) -> Option<Arc<Proof>> {
        let in_memory = lock(&self.proofs).get(blob);
        in_memory.or_else(|| lock(&self.large).get(blob))
    }

    fn make(&self, blob: BlobDigest, (file, size): (&File, u64), folder: &Path) -> io::Result<Outboard> {
        let bytes = hashes_of(size);
        let data = if bytes <= self.in_memory {
            Hashes::Memory(Vec::new())
        } else if lock(&self.large).fits(weight_of(size)) {
            std::fs::create_dir_all(folder)?;
            Hashes::Disk(tempfile::tempfile_in(folder)?)
        } else {
            return Err(io::Error::other(format!(
                "the file of blob {blob} has {size} bytes, more than is served"
            )));
        };
        let mut outboard = Outboard {
            root: bao_tree::blake3::Hash::from_bytes([0; 32]),
            tree: BaoTree::new(size, BLOCK),
            data,
        };
        outboard.init_from(BufReader::with_capacity(1 << 20, file))?;
        if *outboard.root.as_bytes() != blob.0 {
            return Err(io::Error::other(format!(
                "the file of blob {blob} has other content"
            )));
        }
        Ok(outboard)
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

/// Bytes of the hashes inside a file of so many bytes.
fn hashes_of(size: u64) -> u64 {
    BaoTree::new(size, BLOCK).outboard_size()
}

/// With what is kept beside them.
fn weight_of(size: u64) -> usize {
    usize::try_from(hashes_of(size).saturating_add(128)).unwrap_or(usize::MAX)
}

/// A walk through a tree: its directories breadth first, each once.
pub(crate) struct TreeWalk {
    queue: VecDeque<TreeDigest>,
    seen: HashSet<TreeDigest>,
    /// Files of what has been taken.
    pub(crate) blobs: HashSet<BlobDigest>,
}

impl TreeWalk {
    /// From here.
    pub(crate) fn new(root: TreeDigest) -> Self {
        Self {
            queue: VecDeque::from([root]),
            seen: HashSet::from([root]),
            blobs: HashSet::new(),
        }
    }

    /// What has to be read and taken next.
    pub(crate) fn next(&mut self) -> Option<TreeDigest> {
        self.queue.pop_front()
    }

    /// Takes what is next.
    pub(crate) fn take(&mut self, tree: &Tree) {
        match tree {
            Tree::Leaf(Leaf::File { blob, .. }) => drop(self.blobs.insert(*blob)),
            Tree::Leaf(Leaf::Symlink(_)) => {}
            Tree::Directory(directory) => {
                for (_, node) in directory.entries() {
                    match node {
                        Node::Directory(digest) if self.seen.insert(*digest) => self.queue.push_back(*digest),
                        Node::Directory(_) | Node::Symlink(_) => {}
                        Node::File { blob, .. } => drop(self.blobs.insert(*blob)),
                    }
                }
            }
        }
    }
}

/// The files of a tree; none where a part of it is not here. Blocks.
pub(crate) fn files(shelf: &dyn Shelf, root: TreeDigest) -> Result<Option<HashSet<BlobDigest>>, ShelfError> {
    let mut walk = TreeWalk::new(root);
    while let Some(digest) = walk.next() {
        let Some(tree) = shelf.tree(digest)? else {
            return Ok(None);
        };
        walk.take(&tree);
    }
    Ok(Some(walk.blobs))
}

/// The files of a tree, where the peer may have it and it is here. If not: what the peer is answered.
pub(crate) async fn files_for(
    core: &Core,
    peer: NodeKey,
    root: TreeDigest,
) -> Result<Arc<HashSet<BlobDigest>>, ServeAnswer> {
    let broken = |error: ShelfError| {
        tracing::error!(%root, %error, "a tree could not be read for a peer");
        ServeAnswer::Broken
    };
    let may = core.ask_shelf(move |shelf| shelf.may_serve(peer, root)).await;
    if !may.map_err(broken)? {
        return Err(ServeAnswer::NotHere);
    }
    let known = || lock(&core.serving.trees).get(root);
    if let Some(files) = known() {
        return Ok(files);
    }
    let _place = core.serving.listing_place(peer).await.ok_or(ServeAnswer::Busy)?;
    // Somebody may have asked for the same a moment ago.
    if let Some(files) = known() {
        return Ok(files);
    }
    let files = core.ask_shelf(move |shelf| files(shelf, root)).await;
    match files.map_err(broken)? {
        Some(files) => Ok(core.serving.remember(root, files)),
        None => Err(ServeAnswer::NotHere),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn nobody_takes_the_places_of_others() {
        let (serving, ann, bob) = (Serving::new(), NodeKey([1; 32]), NodeKey([2; 32]));
        let mut taken = vec![];
        for _ in 0..CONTENT_STREAMS_PER_PEER {
            taken.push(serving.place(ann).await.unwrap());
        }
        assert!(serving.place(ann).now_or_never().is_none(), "it waits");
        assert!(serving.small_place(ann).now_or_never().is_none(), "it waits");
        assert!(serving.place(bob).now_or_never().flatten().is_some());
        taken.pop();
        assert!(serving.place(ann).now_or_never().flatten().is_some());
        let mut small = vec![];
        for _ in 0..SHARES {
            small.push(serving.small_place(ann).now_or_never().flatten().unwrap());
        }
        assert!(serving.small_place(ann).now_or_never().is_none());
        // Directories and texts do not wait for files, nor for who reads them slowly.
        let mut walks = vec![];
        for _ in 0..WALK_STREAMS_PER_PEER {
            walks.push(serving.walk_place(ann).now_or_never().flatten().unwrap());
        }
        assert!(serving.walk_place(ann).now_or_never().is_none());
        assert!(serving.walk_place(bob).now_or_never().flatten().is_some());
        let mut listings = vec![];
        for _ in 0..LISTINGS_PER_PEER {
            listings.push(serving.listing_place(ann).now_or_never().flatten().unwrap());
        }
        assert!(serving.listing_place(ann).now_or_never().is_none());
        assert!(serving.listing_place(bob).now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn so_many_streams_carry_content_at_once_whoever_asks() {
        let serving = Serving::new();
        let (mut files, mut walks) = (vec![], vec![]);
        let peer = |number: usize| NodeKey([u8::try_from(number).unwrap(); 32]);
        for number in 0..CONTENT_STREAMS {
            files.push(serving.place(peer(number)).await.unwrap());
        }
        for number in 0..WALK_STREAMS {
            walks.push(serving.walk_place(peer(number)).await.unwrap());
        }
        // Who has done so much at once is made to wait by the runtime, too.
        tokio::task::yield_now().await;
        let another = NodeKey([0xff; 32]);
        assert!(serving.place(another).now_or_never().is_none());
        assert!(serving.walk_place(another).now_or_never().is_none());
        drop((files.pop(), walks.pop()));
        assert!(serving.place(another).now_or_never().flatten().is_some());
        assert!(serving.walk_place(another).now_or_never().flatten().is_some());
    }

    #[test]
    fn of_so_many_trees_it_is_remembered_what_is_in_them_even_if_that_is_nothing() {
        let serving = Serving {
            trees: Mutex::new(Recent::new(3)),
            ..Serving::new()
        };
        for number in 0..4 {
            serving.remember(TreeDigest([number; 32]), HashSet::new());
        }
        let trees = lock(&serving.trees);
        assert_eq!(trees.len(), 3);
    }

    #[test]
    fn a_file_is_hashed_once_for_all_who_want_parts_of_it() {
        let bytes = vec![7; 4 << 20];
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        // All share one place in the file, and one of them reads.
        file.rewind().unwrap();
        let (serving, blob) = (Serving::new(), BlobDigest::of(&bytes));
        let proofs = std::thread::scope(|scope| {
            let asked = [(); 8].map(|()| {
                let own = file.try_clone().unwrap();
                let serving = &serving;
                scope.spawn(move || serving.proof(blob, &own, Path::new("")).unwrap())
            });
            asked.map(|thread| thread.join().unwrap())
        });
        assert!(proofs.iter().all(|proof| Arc::ptr_eq(proof, &proofs[0])));
    }

    #[test]
    fn the_hashes_of_the_largest_files_lie_on_the_disk_and_are_made_once_too() {
        let bytes: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
        let (blob, folder) = (BlobDigest::of(&bytes), tempfile::tempdir().unwrap());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file.rewind().unwrap();
        let mut serving = Serving::new();
        serving.in_memory = 1000;
        let spool = folder.path().join("spool");
        let first = serving.proof(blob, &file, &spool).unwrap();
        assert!(matches!(first.outboard.data, Hashes::Disk(_)));
        assert_eq!(lock(&serving.proofs).len(), 0);
        assert!(Arc::ptr_eq(&first, &serving.proof(blob, &file, &spool).unwrap()));
        assert_eq!(std::fs::read_dir(folder.path().join("spool")).unwrap().count(), 0);
        // They are the hashes that would be in memory.
        let other = Serving::new();
        file.rewind().unwrap();
        let other = other.proof(blob, &file, Path::new("")).unwrap();
        assert!(matches!(other.outboard.data, Hashes::Memory(_)));
        // A whole group.
        let ranges = bao_tree::ChunkRanges::from(bao_tree::ChunkNum(704)..bao_tree::ChunkNum(720));
        let [on_disk, in_memory] = [first, other].map(|proof| {
            let mut encoded = Vec::new();
            bao_tree::io::sync::encode_ranges_validated(&file, &proof.outboard, &ranges, &mut encoded)
                .unwrap();
            encoded
        });
        assert!(on_disk.len() > 16 << 10, "{}", on_disk.len());
        assert!(on_disk == in_memory);
        // What is larger still is refused before it is read.
        serving.large = Mutex::new(Recent::new(4000));
        file.rewind().unwrap();
        let error = serving.proof(blob, &file, &spool).unwrap_err().to_string();
        assert!(error.contains("more than is served"), "{error}");
        assert_eq!(file.stream_position().unwrap(), 0);
    }

    #[test]
    fn a_file_that_is_not_what_it_should_be_is_read_once_until_it_changes() {
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(b"something").unwrap();
        let (serving, blob) = (Serving::new(), BlobDigest::of(b"else"));
        let ask = || {
            let mut own = file.try_clone().unwrap();
            own.rewind().unwrap();
            let asked = serving.proof(blob, &own, Path::new("")).map(|_| ());
            (asked, own.stream_position().unwrap())
        };
        let (first, read) = ask();
        assert!(first.unwrap_err().to_string().contains("has other content"));
        assert_eq!(read, 9);
        let (again, read) = ask();
        assert!(again.unwrap_err().to_string().contains("has other content"));
        assert_eq!(read, 0);
        file.set_len(0).unwrap();
        (&file).rewind().unwrap();
        (&file).write_all(b"else").unwrap();
        assert!(ask().0.is_ok());
    }
}
