//! The folder a tree arrives in.
//!
//! Directories and small files lie one after the other in one file, the *pack*, since making a file for
//! each of twenty thousand would be done twice: here and in the store. Large files lie beside it, each
//! with the hashes that prove what has arrived of it. Nothing here is ever synced: what a crash leaves is
//! checked against its own digest when the folder is opened again, and what does not check out is fetched
//! anew.
//!
//! The pack of a small tree stays in memory, and its folder is not made: a thousand small paths of a closure would make
//! and remove a thousand folders, which costs the file system more than the trees themselves. Where it breaks off,
//! such a tree is fetched anew.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tvix_node_protocol::limits::TREE_NODE_BYTES;
use tvix_node_protocol::tree::{BlobDigest, Tree, TreeDigest, TreeError};

use super::growing::{Growing, GrowingBlob};
use crate::core::lock;
use crate::limits::{PACK_IN_MEMORY, PACKS_IN_MEMORY};

/// Why what has arrived could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file system says no.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A directory that was verified when it came is not one any more.
    #[error("{} is damaged: {source}", .path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        source: TreeError,
    },
    /// Who was waiting for a file waits in vain.
    #[error("the transfer ended before the file {0} came")]
    BrokenOff(BlobDigest),
}

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::Io { action, path, source }
}

/// What lies in the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Directory,
    File,
}

impl Kind {
    fn tag(self) -> u8 {
        match self {
            Self::Directory => 1,
            Self::File => 2,
        }
    }

    fn of(tag: u8) -> Option<Self> {
        match tag {
            1 => Some(Self::Directory),
            2 => Some(Self::File),
            _ => None,
        }
    }
}

/// Kind, digest, and length of what follows.
const HEADER: usize = 1 + 32 + 4;

/// Something verified, on its way into the pack.
pub(crate) struct Item {
    pub(crate) kind: Kind,
    pub(crate) digest: [u8; 32],
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    length: u32,
}

type Places = Vec<((Kind, [u8; 32]), Place)>;

/// These items as they follow in a pack, as far as it has not got them.
fn packed(pack: &Pack, items: &[Item]) -> (Vec<u8>, Places) {
    let mut bytes = Vec::with_capacity(items.iter().map(|item| HEADER + item.bytes.len()).sum());
    let mut places = Vec::with_capacity(items.len());
    for item in items {
        if pack.index.contains_key(&(item.kind, item.digest)) {
            continue;
        }
        // Directories and small files are far below 4 GiB.
        let length = u32::try_from(item.bytes.len()).unwrap_or(u32::MAX);
        bytes.push(item.kind.tag());
        bytes.extend_from_slice(&item.digest);
        bytes.extend_from_slice(&length.to_le_bytes());
        let offset = pack.end + bytes.len() as u64;
        bytes.extend_from_slice(&item.bytes);
        places.push(((item.kind, item.digest), Place { offset, length }));
    }
    (bytes, places)
}

/// Where a pack lies.
#[derive(Debug)]
enum Storage {
    Memory(Vec<u8>),
    File(Arc<File>),
}

/// How many bytes all packs together may have in memory: see [`PACKS_IN_MEMORY`].
#[derive(Debug, Default)]
pub(crate) struct PackRoom(AtomicUsize);

impl PackRoom {
    fn take(&self, bytes: usize) -> bool {
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                Some(taken + bytes).filter(|taken| *taken <= PACKS_IN_MEMORY)
            });
        taken.is_ok()
    }

    fn give(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Pack {
    storage: Storage,
    index: HashMap<(Kind, [u8; 32]), Place>,
    end: u64,
    /// Files, large ones too, that are being fetched.
    coming: HashSet<BlobDigest>,
    /// Files that were, and did not come.
    missed: HashSet<BlobDigest>,
}

impl Pack {
    fn new(storage: Storage) -> Self {
        Self {
            storage,
            index: HashMap::new(),
            end: 0,
            coming: HashSet::new(),
            missed: HashSet::new(),
        }
    }
}

/// A tree as it arrives, and when it has arrived.
#[derive(Debug)]
pub struct Arrival {
    folder: PathBuf,
    root: TreeDigest,
    room: Arc<PackRoom>,
    pack: Mutex<Pack>,
    /// Something has come, or nothing more will.
    came: Condvar,
    large: Mutex<HashMap<BlobDigest, PathBuf>>,
    /// Large files that can be read while they come.
    growing: Mutex<HashMap<BlobDigest, Arc<Growing>>>,
    /// Nobody else fetches this tree meanwhile.
    _alone: tokio::sync::OwnedMutexGuard<()>,
}

/// A file that has arrived.
#[derive(Debug)]
pub enum ArrivedBlob {
    /// A small one: its bytes.
    Bytes(Vec<u8>),
    /// A large one: a file that may be moved away.
    File(PathBuf),
    /// A very large one that is still coming.
    Growing(GrowingBlob),
}

impl Arrival {
    /// Opens the folder of a tree, with what is in it already, where there is one. Blocks.
    pub(crate) fn open(
        spool: &Path,
        root: TreeDigest,
        room: &Arc<PackRoom>,
        alone: tokio::sync::OwnedMutexGuard<()>,
    ) -> Result<Self, SpoolError> {
        let mut arrival = Self::new(spool, root, room, alone);
        let path = arrival.folder.join("pack");
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => {
                let pack = scan(file).map_err(io_error("read", &path))?;
                if let Storage::File(file) = &pack.storage {
                    file.set_len(pack.end).map_err(io_error("cut", &path))?;
                }
                arrival.pack = Mutex::new(pack);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("open", &path)(error)),
        }
        Ok(arrival)
    }

    /// A tree of which nothing has come before: see [`Arrival::has_come_before`].
    pub(crate) fn new(
        spool: &Path,
        root: TreeDigest,
        room: &Arc<PackRoom>,
        alone: tokio::sync::OwnedMutexGuard<()>,
    ) -> Self {
        Self {
            folder: spool.join(root.to_string()),
            root,
            room: Arc::clone(room),
            pack: Mutex::new(Pack::new(Storage::Memory(Vec::new()))),
            came: Condvar::new(),
            large: Mutex::default(),
            growing: Mutex::default(),
            _alone: alone,
        }
    }

    /// Whether there is a folder of this tree. One look at a name: less than a thread that may block costs.
    pub(crate) fn has_come_before(spool: &Path, root: TreeDigest) -> bool {
        spool.join(root.to_string()).exists()
    }

    /// The tree.
    #[must_use]
    pub fn root(&self) -> TreeDigest {
        self.root
    }

    /// The tree itself, or a directory in it. None where it is not part of it. Blocks.
    ///
    /// # Errors
    /// See [`SpoolError`].
    pub fn tree(&self, digest: TreeDigest) -> Result<Option<Tree>, SpoolError> {
        let Some(bytes) = self.read(Kind::Directory, digest.0)? else {
            return Ok(None);
        };
        let damaged = |source| SpoolError::Damaged {
            path: self.folder.join("pack"),
            source,
        };
        Tree::from_bytes(&bytes, digest).map(Some).map_err(damaged)
    }

    /// A file of the tree; where it is on its way, as soon as it is here, or can be read while it comes. None where it has not
    /// arrived, since the store had it already. Blocks.
    ///
    /// # Errors
    /// See [`SpoolError`].
    pub fn blob(&self, digest: BlobDigest) -> Result<Option<ArrivedBlob>, SpoolError> {
        if let Some(growing) = self.wait_for(digest)? {
            return Ok(Some(ArrivedBlob::Growing(GrowingBlob::new(growing))));
        }
        if let Some(bytes) = self.read(Kind::File, digest.0)? {
            return Ok(Some(ArrivedBlob::Bytes(bytes)));
        }
        Ok(lock(&self.large).get(&digest).cloned().map(ArrivedBlob::File))
    }

    /// Removes the folder: the store has taken what it wants. Blocks.
    ///
    /// # Errors
    /// [`SpoolError::Io`]; the spool then holds what nobody needs.
    pub fn remove(&self) -> Result<(), SpoolError> {
        match fs::remove_dir_all(&self.folder) {
            // All of it was in memory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(io_error("remove", &self.folder)),
        }
    }

    /// Makes the folder, for what does not stay in memory. Blocks.
    pub(crate) fn make_folder(&self) -> Result<(), SpoolError> {
        fs::create_dir_all(&self.folder).map_err(io_error("create", &self.folder))
    }

    /// Until it is here, or will not be; or the file that it becomes.
    fn wait_for(&self, blob: BlobDigest) -> Result<Option<Arc<Growing>>, SpoolError> {
        let mut pack = lock(&self.pack);
        while pack.coming.contains(&blob) {
            if let Some(growing) = lock(&self.growing).get(&blob) {
                return Ok(Some(growing.clone()));
            }
            pack = self.came.wait(pack).unwrap_or_else(PoisonError::into_inner);
        }
        match pack.missed.contains(&blob) {
            true => Err(SpoolError::BrokenOff(blob)),
            false => Ok(None),
        }
    }

    /// A file that is being fetched can be read from now on.
    pub(crate) fn grows(&self, blob: BlobDigest, growing: Arc<Growing>) {
        let pack = lock(&self.pack);
        match pack.coming.contains(&blob) {
            true => drop(lock(&self.growing).insert(blob, growing)),
            // Nobody fetches it any more.
            false => growing.ended(false),
        }
        drop(pack);
        self.came.notify_all();
    }

    /// These files are being fetched, as long as what this gives is there.
    pub(crate) fn expect(self: &Arc<Self>, files: impl IntoIterator<Item = BlobDigest>) -> Coming {
        let mut pack = lock(&self.pack);
        pack.coming.extend(files);
        pack.missed.clear();
        Coming(self.clone())
    }

    fn read(&self, kind: Kind, digest: [u8; 32]) -> Result<Option<Vec<u8>>, SpoolError> {
        let (place, file) = {
            let pack = lock(&self.pack);
            let Some(place) = pack.index.get(&(kind, digest)).copied() else {
                return Ok(None);
            };
            match &pack.storage {
                // What has a place is there, and memory is not larger than a place can say.
                Storage::Memory(bytes) => {
                    let from = usize::try_from(place.offset).unwrap_or(usize::MAX);
                    return Ok(bytes.get(from..from + place.length as usize).map(<[u8]>::to_vec));
                }
                Storage::File(file) => (place, Arc::clone(file)),
            }
        };
        let mut bytes = vec![0; place.length as usize];
        file.read_exact_at(&mut bytes, place.offset)
            .map_err(io_error("read", &self.folder.join("pack")))?;
        Ok(Some(bytes))
    }

    pub(crate) fn has(&self, kind: Kind, digest: [u8; 32]) -> bool {
        lock(&self.pack).index.contains_key(&(kind, digest))
    }

    /// Adds what has been verified. Blocks.
    pub(crate) fn add(&self, items: &[Item]) -> Result<(), SpoolError> {
        let mut pack = lock(&self.pack);
        let (bytes, places) = packed(&pack, items);
        self.append(&mut pack, &bytes)?;
        self.placed(pack, &bytes, places);
        Ok(())
    }

    /// The same where it stays in memory and nobody else is at it, which does not block; else nothing.
    pub(crate) fn add_in_memory(&self, items: &[Item]) -> bool {
        let Ok(mut pack) = self.pack.try_lock() else {
            return false;
        };
        let (bytes, places) = packed(&pack, items);
        match &mut pack.storage {
            Storage::Memory(kept) if self.has_room(kept, &bytes) => kept.extend_from_slice(&bytes),
            _ => return false,
        }
        self.placed(pack, &bytes, places);
        true
    }

    fn has_room(&self, kept: &[u8], bytes: &[u8]) -> bool {
        kept.len() + bytes.len() <= PACK_IN_MEMORY && self.room.take(bytes.len())
    }

    fn placed(&self, mut pack: MutexGuard<'_, Pack>, bytes: &[u8], places: Places) {
        pack.end += bytes.len() as u64;
        for (key, place) in places {
            pack.index.insert(key, place);
            if key.0 == Kind::File {
                pack.coming.remove(&BlobDigest(key.1));
            }
        }
        drop(pack);
        self.came.notify_all();
    }

    /// Writes to the end of the pack, which stays in memory as long as it is small and there is room.
    fn append(&self, pack: &mut Pack, bytes: &[u8]) -> Result<(), SpoolError> {
        let path = self.folder.join("pack");
        let file = match &mut pack.storage {
            Storage::File(file) => file,
            Storage::Memory(kept) => {
                if self.has_room(kept, bytes) {
                    kept.extend_from_slice(bytes);
                    return Ok(());
                }
                self.make_folder()?;
                let mut new = OpenOptions::new();
                let file = new.read(true).write(true).create(true).truncate(true).open(&path);
                let file = file.map_err(io_error("open", &path))?;
                file.write_all_at(kept, 0).map_err(io_error("write", &path))?;
                self.room.give(kept.len());
                pack.storage = Storage::File(Arc::new(file));
                return self.append(pack, bytes);
            }
        };
        file.write_all_at(bytes, pack.end)
            .map_err(io_error("write", &path))
    }

    /// Where a large file is while it arrives, and its hashes. The folder may have to be made.
    pub(crate) fn part(&self, blob: BlobDigest) -> (PathBuf, PathBuf) {
        (
            self.folder.join(format!("{blob}.part")),
            self.folder.join(format!("{blob}.hashes")),
        )
    }

    /// A large file is complete. Blocks.
    pub(crate) fn complete(&self, blob: BlobDigest) -> Result<(), SpoolError> {
        // Who asks for it from now on waits for its name.
        let growing = lock(&self.growing).remove(&blob);
        let named = self.name_whole(blob);
        if let Some(growing) = growing {
            growing.ended(named.is_ok());
        }
        lock(&self.large).insert(blob, named?);
        lock(&self.pack).coming.remove(&blob);
        self.came.notify_all();
        Ok(())
    }

    fn name_whole(&self, blob: BlobDigest) -> Result<PathBuf, SpoolError> {
        let (part, hashes) = self.part(blob);
        let whole = self.folder.join(blob.to_string());
        fs::rename(&part, &whole).map_err(io_error("rename", &part))?;
        fs::remove_file(&hashes).map_err(io_error("remove", &hashes))?;
        Ok(whole)
    }

    /// A large file that was complete when the folder was left, if its content still is what it should
    /// be. Blocks.
    pub(crate) fn completed_before(&self, blob: BlobDigest) -> Result<bool, SpoolError> {
        let whole = self.folder.join(blob.to_string());
        let file = match File::open(&whole) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(io_error("open", &whole)(error)),
        };
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut io::BufReader::with_capacity(1 << 20, file), &mut hasher)
            .map_err(io_error("read", &whole))?;
        if hasher.finalize().as_bytes() == &blob.0 {
            lock(&self.large).insert(blob, whole);
            return Ok(true);
        }
        fs::remove_file(&whole).map_err(io_error("remove", &whole))?;
        Ok(false)
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let pack = self.pack.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Storage::Memory(kept) = &pack.storage {
            self.room.give(kept.len());
        }
    }
}

/// Files are on their way; who waits for one is told when none will come any more.
pub(crate) struct Coming(Arc<Arrival>);

impl Drop for Coming {
    fn drop(&mut self) {
        let mut pack = lock(&self.0.pack);
        pack.missed = std::mem::take(&mut pack.coming);
        drop(pack);
        for (_, growing) in lock(&self.0.growing).drain() {
            growing.ended(false);
        }
        self.0.came.notify_all();
    }
}

/// Reads a pack from its beginning, up to the first thing that is not what it says.
fn scan(file: File) -> io::Result<Pack> {
    let file = Arc::new(file);
    let mut reader = io::BufReader::with_capacity(1 << 20, &*file);
    let mut pack = Pack::new(Storage::File(Arc::clone(&file)));
    loop {
        let mut header = [0; HEADER];
        if !fill(&mut reader, &mut header)? {
            return Ok(pack);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(&header[1..33]);
        let mut length = [0; 4];
        length.copy_from_slice(&header[33..]);
        let length = u32::from_le_bytes(length);
        let Some(kind) = Kind::of(header[0]).filter(|_| length as usize <= TREE_NODE_BYTES) else {
            return Ok(pack);
        };
        let mut bytes = vec![0; length as usize];
        if !fill(&mut reader, &mut bytes)? || blake3::hash(&bytes).as_bytes() != &digest {
            return Ok(pack);
        }
        let offset = pack.end + HEADER as u64;
        pack.index.insert((kind, digest), Place { offset, length });
        pack.end = offset + u64::from(length);
    }
}

/// False where the file ends before.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Copies a file that arrived to a writer, whichever way it lies here. Blocks.
///
/// # Errors
/// [`io::Error`]
pub fn copy_blob(blob: ArrivedBlob, to: &mut impl Write) -> io::Result<u64> {
    match blob {
        ArrivedBlob::Bytes(bytes) => {
            to.write_all(&bytes)?;
            Ok(bytes.len() as u64)
        }
        ArrivedBlob::File(path) => io::copy(&mut File::open(path)?, to),
        ArrivedBlob::Growing(mut growing) => io::copy(&mut growing, to),
    }
}

#[cfg(test)]
#[path = "arrival_tests.rs"]
mod tests;
