//! The outboard of a file that is served: the hashes that prove each 16 KiB of it.
//!
//! It is made from the file. Where the store knows the hashes of the file's parts of 8 MiB, the last part is read at once,
//! which says that the file has all its bytes, the one in which what is wanted begins before anything is answered, and each other
//! when the first byte of it is wanted; otherwise the file is
//! read as a whole before anything of it is served. What is served has been read and found right from that very file,
//! unless it was written to since: what a disk loses later is found by who fetches.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Mutex;
use std::time::Instant;

use bao_tree::blake3::Hash;
use bao_tree::io::sync::Outboard;
use bao_tree::{BaoTree, BlockSize, TreeNode};
use blake3::hazmat::HasherExt;
use tvix_node_protocol::subtrees::{ChainingValue, SUBTREE_BYTES, digest_of, left_of, merge, subtrees_of};
use tvix_node_protocol::tree::BlobDigest;

use crate::core::lock;
use crate::limits::UNPROVEN;

/// Groups of 16 chunks of 1 KiB, as iroh-blobs has them: what is verified at once.
pub(crate) const BLOCK: BlockSize = iroh_blobs::store::IROH_BLOCK_SIZE;

/// Bytes of a pair of hashes.
const PAIR: usize = 64;

/// Groups that are read at once: 256 KiB.
const GROUPS_AT_ONCE: usize = 16;

/// What a file system changes when a file's content is changed, whatever is done to its other times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileState {
    device: u64,
    inode: u64,
    pub(crate) size: u64,
    changed: (i64, i64),
}

impl FileState {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Where the pairs of an outboard lie, in the order of bao: each before those below it.
#[derive(Debug)]
pub(crate) enum Pairs {
    Memory(Mutex<Vec<u8>>),
    /// A file without a name, which goes when it is closed.
    Disk(File),
}

impl Pairs {
    /// In memory, for a file of so many bytes.
    pub(crate) fn in_memory(size: u64) -> Self {
        let bytes = usize::try_from(bytes_of(size)).unwrap_or(usize::MAX);
        Self::Memory(Mutex::new(vec![0; bytes]))
    }

    fn read(&self, place: u64) -> io::Result<[u8; PAIR]> {
        let mut pair = [0; PAIR];
        match self {
            Self::Memory(bytes) => {
                let at = usize::try_from(place)
                    .map_err(io::Error::other)?
                    .saturating_mul(PAIR);
                let bytes = lock(bytes);
                pair.copy_from_slice(bytes.get(at..at.saturating_add(PAIR)).ok_or_else(out_of_bounds)?);
            }
            Self::Disk(file) => file.read_exact_at(&mut pair, place * PAIR as u64)?,
        }
        Ok(pair)
    }

    fn write(&self, place: u64, pairs: &[[ChainingValue; 2]]) -> io::Result<()> {
        let pairs = pairs.as_flattened().as_flattened();
        match self {
            Self::Memory(bytes) => {
                let at = usize::try_from(place)
                    .map_err(io::Error::other)?
                    .saturating_mul(PAIR);
                let mut bytes = lock(bytes);
                let room = bytes.get_mut(at..at.saturating_add(pairs.len()));
                room.ok_or_else(out_of_bounds)?.copy_from_slice(pairs);
                Ok(())
            }
            Self::Disk(file) => file.write_all_at(pairs, place * PAIR as u64),
        }
    }
}

fn out_of_bounds() -> io::Error {
    io::Error::other("hashes that a file of its size does not have")
}

/// Bytes of the outboard of a file of so many bytes: 1/256 of it.
pub(crate) fn bytes_of(size: u64) -> u64 {
    BaoTree::new(size, BLOCK).outboard_size()
}

/// How far the pairs of a part are.
#[derive(Debug)]
enum State {
    Unread,
    /// They are there, and this is the file that was found to be right.
    Proven(FileState),
    /// Each try reads all of it, so it is not tried again for a while.
    Failed {
        file: FileState,
        since: Instant,
        reason: String,
    },
}

#[derive(Debug)]
struct Part {
    /// Of its first pair.
    place: u64,
    value: ChainingValue,
    state: Mutex<State>,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct BlobOutboard {
    blob: BlobDigest,
    tree: BaoTree,
    pub(crate) pairs: Pairs,
    /// Above the parts, by place.
    above: BTreeMap<u64, (Hash, Hash)>,
    /// One where the file is no larger than a part.
    parts: Vec<Part>,
}

impl BlobOutboard {
    /// Reads a file in this state as a whole, from where it stands. Blocks.
    ///
    /// # Errors
    /// It cannot be read, or is another one.
    pub(crate) fn read(
        blob: BlobDigest,
        pairs: Pairs,
        mut file: impl Read,
        state: FileState,
    ) -> io::Result<Self> {
        let mut values = Vec::new();
        for (index, place) in (0..).zip(Places::of(state.size).parts) {
            let (inside, value) = part_of(state.size, index, &mut file)?;
            pairs.write(place, &inside)?;
            values.push(value);
        }
        if merge(&values, true, &mut Vec::new()) != Some(blob.0) {
            return Err(other_content(blob));
        }
        Ok(Self::new(blob, pairs, &values, state.size, || {
            State::Proven(state)
        }))
    }

    /// Of a file in this state whose parts have these hashes. None where they are not this file's. Blocks.
    ///
    /// # Errors
    /// It cannot be read, or is another one.
    pub(crate) fn of_parts(
        blob: BlobDigest,
        pairs: impl FnOnce() -> io::Result<Pairs>,
        values: &[ChainingValue],
        file: (&File, FileState),
    ) -> io::Result<Option<Self>> {
        let size = file.1.size;
        if values.len() as u64 != subtrees_of(size) || digest_of(values) != Some(blob) {
            return Ok(None);
        }
        let outboard = Self::new(blob, pairs()?, values, size, || State::Unread);
        outboard.prove_last(file)?;
        Ok(Some(outboard))
    }

    fn new(
        blob: BlobDigest,
        pairs: Pairs,
        values: &[ChainingValue],
        size: u64,
        state: impl Fn() -> State,
    ) -> Self {
        let places = Places::of(size);
        let mut above = Vec::new();
        merge(values, true, &mut above);
        let above = above
            .into_iter()
            .map(|[left, right]| (Hash::from_bytes(left), Hash::from_bytes(right)));
        let parts = places.parts.into_iter().zip(values).map(|(place, value)| Part {
            place,
            value: *value,
            state: Mutex::new(state()),
        });
        Self {
            blob,
            tree: BaoTree::new(size, BLOCK),
            pairs,
            above: places.above.into_iter().zip(above).collect(),
            parts: parts.collect(),
        }
    }

    /// With the file at hand, in this state, whose parts are read when their pairs are wanted. Blocks.
    ///
    /// # Errors
    /// It cannot be read, or is another one; the same of what bao asks of it.
    pub(crate) fn with<'a>(&'a self, file: &'a File, state: FileState) -> io::Result<WithFile<'a>> {
        if state.size != self.tree.size() {
            return Err(other_content(self.blob));
        }
        self.prove_last((file, state))?;
        Ok(WithFile {
            outboard: self,
            file,
            state,
            proven: Cell::new(None),
        })
    }

    /// The last part says how many bytes there are, and may have no pairs.
    fn prove_last(&self, file: (&File, FileState)) -> io::Result<()> {
        self.prove(self.parts.len().checked_sub(1).ok_or_else(out_of_bounds)?, file)
    }

    /// Makes the pairs of a part, and sees to it that this file has the part, unless that is known.
    fn prove(&self, index: usize, (file, now): (&File, FileState)) -> io::Result<()> {
        let part = self.parts.get(index).ok_or_else(out_of_bounds)?;
        let mut state = lock(&part.state);
        match &*state {
            State::Proven(by) if *by == now => return Ok(()),
            State::Failed { file, since, reason } if *file == now && since.elapsed() < UNPROVEN => {
                return Err(io::Error::other(reason.clone()));
            }
            _ => {}
        }
        let offset = index as u64 * SUBTREE_BYTES;
        let made = part_of(self.tree.size(), index as u64, FileFrom { file, offset });
        let made = made.and_then(|(inside, value)| match value == part.value {
            true => self.pairs.write(part.place, &inside),
            false => Err(other_content(self.blob)),
        });
        *state = match &made {
            Ok(()) => State::Proven(now),
            Err(error) => State::Failed {
                file: now,
                since: Instant::now(),
                reason: error.to_string(),
            },
        };
        made
    }
}

fn other_content(blob: BlobDigest) -> io::Error {
    io::Error::other(format!("the file of blob {blob} has other content"))
}

/// A [`BlobOutboard`] and a file, as bao reads them.
pub(crate) struct WithFile<'a> {
    outboard: &'a BlobOutboard,
    file: &'a File,
    state: FileState,
    /// The part that was asked for last: it is read once, even if another file with the same bytes is read meanwhile.
    proven: Cell<Option<usize>>,
}

impl WithFile<'_> {
    /// Sees to it that the file has the part with this chunk of 1 KiB. Where it does not, nothing from that chunk on can be proven.
    /// Blocks.
    pub(crate) fn prove_from(&self, chunk: u64) -> io::Result<()> {
        let index = usize::try_from(chunk / (SUBTREE_BYTES / 1024)).unwrap_or(usize::MAX);
        // Who asks for what is past the end is given the end.
        let last = self.outboard.parts.len().saturating_sub(1);
        self.outboard.prove(index.min(last), (self.file, self.state))
    }
}

impl Outboard for WithFile<'_> {
    fn root(&self) -> Hash {
        Hash::from_bytes(self.outboard.blob.0)
    }

    fn tree(&self) -> BaoTree {
        self.outboard.tree
    }

    fn load(&self, node: TreeNode) -> io::Result<Option<(Hash, Hash)>> {
        let Some(place) = self.outboard.tree.pre_order_offset(node) else {
            return Ok(None);
        };
        if let Some(pair) = self.outboard.above.get(&place) {
            return Ok(Some(*pair));
        }
        let after = self.outboard.parts.partition_point(|part| part.place <= place);
        let index = after.checked_sub(1).ok_or_else(out_of_bounds)?;
        if self.proven.get() != Some(index) {
            self.outboard.prove(index, (self.file, self.state))?;
            self.proven.set(Some(index));
        }
        let pair = self.outboard.pairs.read(place)?;
        let half = |at: usize| pair[at..].first_chunk().copied().map(Hash::from_bytes);
        Ok(half(0).zip(half(PAIR / 2)))
    }
}

/// A file from some place on, wherever it stands.
struct FileFrom<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for FileFrom<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Where pairs lie.
#[derive(Default)]
struct Places {
    /// The first of each part; one that has none has that of the next.
    parts: Vec<u64>,
    /// Those above the parts, in order.
    above: Vec<u64>,
    /// The place that is next.
    next: u64,
}

impl Places {
    fn of(size: u64) -> Self {
        let mut places = Self::default();
        let count = usize::try_from(subtrees_of(size)).unwrap_or(usize::MAX);
        places.walk(count, size);
        places
    }

    fn walk(&mut self, count: usize, size: u64) {
        let Some(left) = left_of(count) else {
            let groups = groups_in(size, self.parts.len() as u64);
            self.parts.push(self.next);
            self.next += groups - 1;
            return;
        };
        self.above.push(self.next);
        self.next += 1;
        self.walk(left, size);
        self.walk(count - left, size);
    }
}

/// Bytes of the part of this number, in a file of so many.
fn bytes_in(size: u64, part: u64) -> u64 {
    size.saturating_sub(part * SUBTREE_BYTES).min(SUBTREE_BYTES)
}

/// There is one in an empty file, too.
fn groups_in(size: u64, part: u64) -> u64 {
    bytes_in(size, part).div_ceil(BLOCK.bytes() as u64).max(1)
}

/// Reads one part: the pairs inside it, and what it contributes; the digest where it is the whole file.
fn part_of(
    size: u64,
    part: u64,
    mut file: impl Read,
) -> io::Result<(Vec<[ChainingValue; 2]>, ChainingValue)> {
    let whole = subtrees_of(size) == 1;
    let count = usize::try_from(groups_in(size, part)).map_err(io::Error::other)?;
    let mut groups = Vec::with_capacity(count);
    let mut buffer = vec![0; GROUPS_AT_ONCE.min(count) * BLOCK.bytes()];
    let (mut offset, mut left) = (part * SUBTREE_BYTES, bytes_in(size, part));
    while groups.len() < count {
        let now = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        file.read_exact(&mut buffer[..now])?;
        if whole && count == 1 {
            return Ok((Vec::new(), *blake3::hash(&buffer[..now]).as_bytes()));
        }
        for group in buffer[..now].chunks(BLOCK.bytes()) {
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(offset).update(group);
            groups.push(hasher.finalize_non_root());
            offset += group.len() as u64;
        }
        left -= now as u64;
    }
    let mut pairs = Vec::with_capacity(count - 1);
    let value = merge(&groups, whole, &mut pairs).ok_or_else(out_of_bounds)?;
    Ok((pairs, value))
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use bao_tree::io::outboard::PreOrderMemOutboard;
    use bao_tree::io::sync::{encode_ranges, encode_ranges_validated};
    use bao_tree::{ChunkNum, ChunkRanges};
    use tvix_node_protocol::subtrees::BlobHasher;

    use super::*;

    const PART: usize = SUBTREE_BYTES as usize;

    fn sample(size: usize) -> (Vec<u8>, BlobDigest, Vec<ChainingValue>) {
        let bytes: Vec<u8> = (0..size).map(|at| (at >> 4) as u8 ^ (at >> 13) as u8).collect();
        let mut hasher = BlobHasher::default();
        hasher.update(&bytes);
        let (blob, parts) = hasher.finalize();
        (bytes, blob, parts)
    }

    fn file_of(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn state_of(file: &File) -> FileState {
        FileState::of(&file.metadata().unwrap())
    }

    fn ranges(chunks: Range<u64>) -> ChunkRanges {
        ChunkRanges::from(ChunkNum(chunks.start)..ChunkNum(chunks.end))
    }

    fn by_parts(blob: BlobDigest, parts: &[ChainingValue], file: &File) -> io::Result<Option<BlobOutboard>> {
        let state = state_of(file);
        BlobOutboard::of_parts(blob, || Ok(Pairs::in_memory(state.size)), parts, (file, state))
    }

    fn encoded(outboard: &BlobOutboard, file: &File, chunks: Range<u64>) -> io::Result<Vec<u8>> {
        let mut to = vec![];
        let outboard = outboard.with(file, state_of(file))?;
        encode_ranges(file, outboard, &ranges(chunks), &mut to).map_err(io::Error::other)?;
        Ok(to)
    }

    #[test]
    fn it_is_what_bao_makes_of_the_file_whether_made_at_once_or_part_by_part() {
        let group = BLOCK.bytes();
        let sizes = [
            0,
            1,
            group,
            group + 1,
            3 * group + 5,
            PART,
            PART + 1,
            PART + group,
        ];
        for size in sizes
            .into_iter()
            .chain([2 * PART, 2 * PART + group + 1, 3 * PART + 7])
        {
            let (bytes, blob, parts) = sample(size);
            let file = file_of(&bytes);
            let state = state_of(&file);
            let on_disk = || Ok(Pairs::Disk(tempfile::tempfile().unwrap()));
            let ways = [
                Some(BlobOutboard::read(blob, Pairs::in_memory(state.size), &bytes[..], state).unwrap()),
                by_parts(blob, &parts, &file).unwrap(),
                BlobOutboard::of_parts(blob, on_disk, &parts, (&file, state)).unwrap(),
            ];
            assert_eq!(ways.iter().flatten().count(), if size > PART { 3 } else { 1 });
            let reference = PreOrderMemOutboard::create(&bytes, BLOCK);
            let chunks = (size as u64).div_ceil(1024).max(1);
            for wanted in [
                0..chunks,
                chunks - 1..chunks,
                chunks / 2..chunks / 2 + 20,
                3..chunks * 2 / 3,
            ] {
                let mut expected = vec![];
                encode_ranges_validated(&bytes[..], &reference, &ranges(wanted.clone()), &mut expected)
                    .unwrap();
                for outboard in ways.iter().flatten() {
                    let made = encoded(outboard, &file, wanted.clone()).unwrap();
                    assert!(made == expected, "{size}, {wanted:?}");
                }
            }
        }
    }

    #[test]
    fn a_part_is_served_without_the_others_having_been_read() {
        let (bytes, blob, parts) = sample(3 * PART + 9);
        let file = file_of(&bytes);
        let whole = by_parts(blob, &parts, &file).unwrap().unwrap();
        let expected = encoded(&whole, &file, 9000..9010).unwrap();
        // All of the first and third part is lost.
        file.write_all_at(&vec![0; PART], 0).unwrap();
        file.write_all_at(&vec![0; PART], 2 * SUBTREE_BYTES).unwrap();
        let outboard = by_parts(blob, &parts, &file).unwrap().unwrap();
        assert!(encoded(&outboard, &file, 9000..9010).unwrap() == expected);
        let error = encoded(&outboard, &file, 0..16).unwrap_err().to_string();
        assert!(error.contains("has other content"), "{error}");
    }

    #[test]
    fn a_part_that_is_not_what_it_should_be_is_read_once_until_the_file_changes() {
        let (bytes, blob, parts) = sample(2 * PART);
        let file = file_of(&bytes);
        let outboard = by_parts(blob, &parts, &file).unwrap().unwrap();
        file.write_all_at(&[bytes[5] ^ 1], 5).unwrap();
        assert!(encoded(&outboard, &file, 0..16).is_err());
        let failed_at = || match &*lock(&outboard.parts[0].state) {
            State::Failed { since, .. } => Some(*since),
            _ => None,
        };
        let once = failed_at();
        assert!(once.is_some() && encoded(&outboard, &file, 0..16).is_err());
        assert_eq!(failed_at(), once, "it was not read again");
        // The clock of a file system may stand still for some milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        file.write_all_at(&bytes[5..6], 5).unwrap();
        assert!(encoded(&outboard, &file, 0..16).is_ok());
    }

    /// A store may have the same bytes twice, and lose them once.
    #[test]
    fn what_another_file_proved_is_not_taken_from_one_that_is_damaged() {
        // The last part has no pairs, the first has all its pairs from the other file.
        let (bytes, blob, parts) = sample(PART + 9);
        let good = file_of(&bytes);
        for (damaged_at, wanted) in [(5, 0..16), (PART + 5, 8192..8193)] {
            let mut damaged = bytes.clone();
            damaged[damaged_at] ^= 1;
            let damaged = file_of(&damaged);
            let state = state_of(&good);
            let at_once = BlobOutboard::read(blob, Pairs::in_memory(state.size), &bytes[..], state).unwrap();
            for outboard in [at_once, by_parts(blob, &parts, &good).unwrap().unwrap()] {
                assert!(encoded(&outboard, &good, wanted.clone()).is_ok());
                let error = encoded(&outboard, &damaged, wanted.clone())
                    .unwrap_err()
                    .to_string();
                assert!(error.contains("has other content"), "{error}");
                assert!(encoded(&outboard, &good, wanted.clone()).is_ok());
            }
        }
    }

    #[test]
    fn a_file_that_has_lost_its_end_or_has_other_parts_is_not_served_by_parts() {
        let (bytes, blob, mut parts) = sample(2 * PART + 100);
        let file = file_of(&bytes);
        let whole = by_parts(blob, &parts, &file).unwrap().unwrap();
        file.set_len(2 * SUBTREE_BYTES + 99).unwrap();
        let errors = [
            by_parts(blob, &parts, &file).map(|_| ()).unwrap_err(),
            encoded(&whole, &file, 0..16).unwrap_err(),
        ];
        for error in errors.map(|error| error.to_string()) {
            assert!(error.contains("has other content"), "{error}");
        }
        file.set_len(2 * SUBTREE_BYTES).unwrap();
        assert!(by_parts(blob, &parts, &file).unwrap().is_none());
        parts[1][0] ^= 1;
        file.set_len(2 * SUBTREE_BYTES + 100).unwrap();
        assert!(by_parts(blob, &parts, &file).unwrap().is_none());
    }
}
