//! What is served at the moment: the files of each tree, and the hashes inside large files.
//!
//! A file is served as a part of a tree the asker may have. Which files are in a tree is found by walking
//! it once, and remembered for a while. A file is read once for its hashes, whether it proves to be what it should or
//! not, and not for each piece of it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::ServeAnswer;
use tvix_node_protocol::subtrees::{ChainingValue, subtrees_of};
use tvix_node_protocol::tree::{BlobDigest, Node, Tree, TreeDigest};

use super::outboard::{BlobOutboard, FileState, Pairs, bytes_of};
use crate::core::{Core, lock};
use crate::limits::{
    CONTENT_STREAMS, CONTENT_STREAMS_PER_PEER, LISTINGS, LISTINGS_PER_PEER, OUTBOARD_BYTES,
    OUTBOARD_BYTES_OF_A_FILE, OUTBOARD_BYTES_ON_DISK, PLACE_PATIENCE, SERVED_BLOBS, SHARES, UNPROVEN,
    UNPROVEN_FILES, WALK_BYTES, WALK_BYTES_PER_PEER, WALK_STREAMS, WALK_STREAMS_PER_PEER,
};
use crate::places::Places;
use crate::recent::Recent;
use crate::room::Room;
use crate::shelf::{Loan, Shelf, ShelfError};

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
    outboards: Mutex<Recent<BlobDigest, BlobOutboard>>,
    /// Bytes of one that is in memory.
    in_memory: u64,
    /// Those of larger files, which lie in files.
    large: Mutex<Recent<BlobDigest, BlobOutboard>>,
    /// Files that could not be proven.
    unproven: Mutex<Recent<BlobDigest, Unproven>>,
    /// Held by who makes the outboard of a file.
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
            outboards: Mutex::new(Recent::new(OUTBOARD_BYTES)),
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

    /// The outboard of a file in this state. Where it is not remembered, the file is read for it, by one at a time: as a whole
    /// where `parts` does not know the hashes of its parts. Where it is too large for the memory it lies in `folder`, which
    /// need not be there yet. Blocks.
    ///
    /// # Errors
    /// The file cannot be read, or does not have the digest it should; that, too, is found out once for a while.
    pub(crate) fn outboard(
        &self,
        blob: BlobDigest,
        (file, state): (&File, FileState),
        folder: &Path,
        parts: impl FnOnce() -> Vec<ChainingValue>,
    ) -> io::Result<Arc<BlobOutboard>> {
        if let Some(outboard) = self.known(blob) {
            return Ok(outboard);
        }
        let turn = self.turn(blob);
        let _making = lock(&turn);
        if let Some(outboard) = self.known(blob) {
            return Ok(outboard);
        }
        if let Some(known) = lock(&self.unproven).get(blob)
            && known.file == state
            && known.since.elapsed() < UNPROVEN
        {
            return Err(io::Error::other(known.reason.clone()));
        }
        match self.make(blob, (file, state), folder, &parts()) {
            Ok(outboard) => {
                let kept = match &outboard.pairs {
                    Pairs::Memory(_) => &self.outboards,
                    Pairs::Disk(_) => &self.large,
                };
                let outboard = Arc::new(outboard);
                lock(kept).insert(blob, outboard.clone(), weight_of(state.size));
                Ok(outboard)
            }
            Err(error) => {
                let failed = Unproven {
                    file: state,
                    since: Instant::now(),
                    reason: error.to_string(),
                };
                lock(&self.unproven).insert(blob, Arc::new(failed), 1);
                Err(error)
            }
        }
    }

    fn known(&self, blob: BlobDigest) -> Option<Arc<BlobOutboard>> {
        let in_memory = lock(&self.outboards).get(blob);
        in_memory.or_else(|| lock(&self.large).get(blob))
    }

    fn make(
        &self,
        blob: BlobDigest,
        (file, state): (&File, FileState),
        folder: &Path,
        parts: &[ChainingValue],
    ) -> io::Result<BlobOutboard> {
        let pairs = || self.place_for(blob, state.size, folder);
        if let Some(outboard) = BlobOutboard::of_parts(blob, pairs, parts, (file, state))? {
            return Ok(outboard);
        }
        if !parts.is_empty() {
            tracing::warn!(%blob, "what is known of the file's parts is not true; all of it is read");
        }
        BlobOutboard::read(blob, pairs()?, file, state)
    }

    /// Where the pairs of a file of so many bytes go.
    fn place_for(&self, blob: BlobDigest, size: u64, folder: &Path) -> io::Result<Pairs> {
        if bytes_of(size) <= self.in_memory {
            return Ok(Pairs::in_memory(size));
        }
        if !lock(&self.large).fits(weight_of(size)) {
            return Err(io::Error::other(format!(
                "the file of blob {blob} has {size} bytes, more than is served"
            )));
        }
        std::fs::create_dir_all(folder)?;
        Ok(Pairs::Disk(tempfile::tempfile_in(folder)?))
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

/// Bytes of the outboard of a file of so many bytes, with what is kept beside it.
fn weight_of(size: u64) -> usize {
    let beside = subtrees_of(size).saturating_mul(256);
    usize::try_from(bytes_of(size).saturating_add(beside)).unwrap_or(usize::MAX)
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
        self.blobs.extend(tree.files().map(|(blob, _)| blob));
        let Tree::Directory(directory) = tree else {
            return;
        };
        for (_, node) in directory.entries() {
            if let Node::Directory(digest) = node
                && self.seen.insert(*digest)
            {
                self.queue.push_back(*digest);
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

/// The bytes of a file; none where it is not here, has more than `most`, or is not what it should be. Blocks.
pub(crate) fn small_file(
    shelf: &dyn Shelf,
    blob: BlobDigest,
    most: u64,
) -> Result<Option<Vec<u8>>, ShelfError> {
    let Some(file) = shelf.blob(blob)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(ShelfError::new)?;
    let sound = bytes.len() as u64 <= most && BlobDigest::of(&bytes) == blob;
    Ok(sound.then_some(bytes))
}

/// What keeps a tree here that the peer may have; none where it may not.
pub(crate) fn lend(shelf: &dyn Shelf, peer: NodeKey, root: TreeDigest) -> Result<Option<Loan>, ShelfError> {
    if !shelf.may_serve(peer, root)? {
        return Ok(None);
    }
    shelf.lend(peer, root).map(Some)
}

/// The files of a tree, which stays here as long as this is held.
pub(crate) struct Lent {
    pub(crate) files: Arc<HashSet<BlobDigest>>,
    _loan: Loan,
}

/// The files of a tree, where the peer may have it and it is here. If not: what the peer is answered.
pub(crate) async fn files_for(core: &Core, peer: NodeKey, root: TreeDigest) -> Result<Lent, ServeAnswer> {
    let broken = |error: ShelfError| {
        tracing::error!(%root, %error, "a tree could not be read for a peer");
        ServeAnswer::Broken
    };
    let lent = core.ask_shelf(move |shelf| lend(shelf, peer, root)).await;
    let Some(_loan) = lent.map_err(broken)? else {
        return Err(ServeAnswer::NotHere);
    };
    let known = || lock(&core.serving.trees).get(root);
    if let Some(files) = known() {
        return Ok(Lent { files, _loan });
    }
    let _place = core.serving.listing_place(peer).await.ok_or(ServeAnswer::Busy)?;
    // Somebody may have asked for the same a moment ago.
    if let Some(files) = known() {
        return Ok(Lent { files, _loan });
    }
    let files = core.ask_shelf(move |shelf| files(shelf, root)).await;
    match files.map_err(broken)? {
        Some(files) => {
            let files = core.serving.remember(root, files);
            Ok(Lent { files, _loan })
        }
        None => Err(ServeAnswer::NotHere),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use futures::FutureExt as _;
    use tvix_node_protocol::subtrees::{BlobHasher, SUBTREE_BYTES};

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

    /// What is used last stays, where both have just more room together than there is.
    fn holds_no_more_than<K: Copy + Eq + std::hash::Hash, V>(
        kept: &Mutex<Recent<K, V>>,
        most: usize,
        [first, last]: [(K, Arc<V>); 2],
    ) {
        let mut kept = lock(kept);
        kept.insert(first.0, Arc::clone(&first.1), most / 2);
        kept.insert(last.0, Arc::clone(&last.1), most - most / 2);
        assert_eq!(kept.len(), 2, "there is room for so much");
        kept.insert(last.0, last.1, most - most / 2 + 1);
        assert!(kept.get(first.0).is_none() && kept.get(last.0).is_some());
    }

    #[test]
    fn no_more_is_remembered_of_what_was_served_than_there_is_room_for() {
        let serving = Serving::new();
        let file = tempfile::tempfile().unwrap();
        let outboard = ask(&serving, BlobDigest::of(b""), &file, Path::new("")).unwrap();
        let serving = Serving::new();
        let blobs = [1, 2].map(|number| (BlobDigest([number; 32]), Arc::clone(&outboard)));
        holds_no_more_than(&serving.outboards, OUTBOARD_BYTES, blobs.clone());
        holds_no_more_than(&serving.large, OUTBOARD_BYTES_ON_DISK, blobs);
        let trees = [1, 2].map(|number| (TreeDigest([number; 32]), Arc::default()));
        holds_no_more_than(&serving.trees, SERVED_BLOBS, trees);
        let unproven = [1, 2].map(|number| {
            let unproven = Unproven {
                file: FileState::of(&file.metadata().unwrap()),
                since: Instant::now(),
                reason: String::new(),
            };
            (BlobDigest([number; 32]), Arc::new(unproven))
        });
        holds_no_more_than(&serving.unproven, UNPROVEN_FILES, unproven);
    }

    #[test]
    fn the_hashes_of_a_file_are_in_memory_or_on_the_disk_by_its_size_or_nowhere() {
        let (serving, folder) = (Serving::new(), tempfile::tempdir().unwrap());
        let place = |size| serving.place_for(BlobDigest([1; 32]), size, folder.path());
        // They are 1/256 of the file.
        let most_in_memory = OUTBOARD_BYTES_OF_A_FILE * 256;
        assert!(matches!(place(most_in_memory), Ok(Pairs::Memory(_))));
        assert!(matches!(place(most_in_memory + (1 << 20)), Ok(Pairs::Disk(_))));
        let most_on_disk = 256 << 30;
        assert!(matches!(place(most_on_disk), Ok(Pairs::Disk(_))));
        assert!(bytes_of(most_on_disk) <= OUTBOARD_BYTES_ON_DISK as u64);
        let error = place(OUTBOARD_BYTES_ON_DISK as u64 * 256)
            .unwrap_err()
            .to_string();
        assert!(error.contains("more than is served"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_content_waits_for_a_place_for_a_while_and_no_longer() {
        let (serving, ann) = (Serving::new(), NodeKey([1; 32]));
        let mut taken = vec![];
        for _ in 0..CONTENT_STREAMS_PER_PEER {
            taken.push(serving.place(ann).await.unwrap());
        }
        let since = tokio::time::Instant::now();
        assert!(serving.place(ann).await.is_none());
        // The time of the test goes on by itself where everybody waits.
        assert!(since.elapsed() >= PLACE_PATIENCE && since.elapsed() < 2 * PLACE_PATIENCE);
    }

    fn ask(serving: &Serving, blob: BlobDigest, file: &File, folder: &Path) -> io::Result<Arc<BlobOutboard>> {
        let state = FileState::of(&file.metadata().unwrap());
        serving.outboard(blob, (file, state), folder, Vec::new)
    }

    #[test]
    fn a_file_is_hashed_once_for_all_who_want_parts_of_it() {
        let bytes = vec![7; 4 << 20];
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        // All share one place in the file, and one of them reads.
        file.rewind().unwrap();
        let (serving, blob) = (Serving::new(), BlobDigest::of(&bytes));
        let outboards = std::thread::scope(|scope| {
            let asked = [(); 8].map(|()| {
                let own = file.try_clone().unwrap();
                let serving = &serving;
                scope.spawn(move || ask(serving, blob, &own, Path::new("")).unwrap())
            });
            asked.map(|thread| thread.join().unwrap())
        });
        assert!(
            outboards
                .iter()
                .all(|outboard| Arc::ptr_eq(outboard, &outboards[0]))
        );
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
        let first = ask(&serving, blob, &file, &spool).unwrap();
        assert!(matches!(first.pairs, Pairs::Disk(_)));
        assert_eq!(lock(&serving.outboards).len(), 0);
        assert!(Arc::ptr_eq(&first, &ask(&serving, blob, &file, &spool).unwrap()));
        assert_eq!(std::fs::read_dir(folder.path().join("spool")).unwrap().count(), 0);
        // They are the hashes that would be in memory.
        let other = Serving::new();
        file.rewind().unwrap();
        let other = ask(&other, blob, &file, Path::new("")).unwrap();
        assert!(matches!(other.pairs, Pairs::Memory(_)));
        // A whole group.
        let ranges = bao_tree::ChunkRanges::from(bao_tree::ChunkNum(704)..bao_tree::ChunkNum(720));
        let state = FileState::of(&file.metadata().unwrap());
        let [on_disk, in_memory] = [first, other].map(|outboard| {
            let mut encoded = Vec::new();
            let outboard = outboard.with(&file, state).unwrap();
            bao_tree::io::sync::encode_ranges_validated(&file, outboard, &ranges, &mut encoded).unwrap();
            encoded
        });
        assert!(on_disk.len() > 16 << 10, "{}", on_disk.len());
        assert!(on_disk == in_memory);
        // What is larger still is refused before it is read.
        serving.large = Mutex::new(Recent::new(4000));
        file.rewind().unwrap();
        let error = ask(&serving, blob, &file, &spool).unwrap_err().to_string();
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
            let asked = ask(&serving, blob, &own, Path::new("")).map(|_| ());
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

    #[test]
    fn a_file_whose_parts_are_not_known_truly_is_read_as_a_whole() {
        let size = 2 * SUBTREE_BYTES;
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        let mut hasher = BlobHasher::default();
        hasher.update(&vec![0; usize::try_from(size).unwrap()]);
        let (blob, parts) = hasher.finalize();
        let state = FileState::of(&file.metadata().unwrap());
        let mut wrong = parts.clone();
        wrong.swap(0, 1);
        for (parts, read) in [(parts.clone(), 0), (wrong, size), (parts[1..].to_vec(), size)] {
            (&file).rewind().unwrap();
            let asked = Serving::new().outboard(blob, (&file, state), Path::new(""), || parts);
            assert!(asked.is_ok());
            assert_eq!((&file).stream_position().unwrap(), read);
        }
    }
}
