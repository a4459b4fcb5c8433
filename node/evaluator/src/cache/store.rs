//! Entries in files.
//!
//! One file (a *pack*) has the entries of an evaluation, all written at its end; small packs are merged into the next
//! one, so that there are few. A pack is written to the side and renamed, and never changed after that: evaluations
//! that run at the same time do not disturb each other.
//!
//! ```text
//! <sources>-<time>-<process>.code:
//!   entries          checksum (8 bytes), then the entry
//!   index            key, place and length of each entry, by key
//!   foot             magic, how many entries, checksum of the index
//! ```

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustc_hash::{FxHashMap, FxHashSet};

use super::Key;

/// Most bytes that all packs may have together. Code has about half of the size of its text, all of nixpkgs 60 MB;
/// this is several versions of it.
const MAX_BYTES: u64 = 256 << 20;

/// Packs of more bytes are not merged any more: copying them costs more than one more file to look into.
const MAX_MERGED: u64 = 64 << 20;

/// So many packs are read, the youngest: each costs every evaluation an open file and its index.
const MAX_PACKS: usize = 24;

/// Entries that wait to be written are written early when they have so many bytes.
const MAX_WAITING: usize = 16 << 20;

/// What is left of a process that ended while it wrote is removed after so long: no write takes an hour.
const ABANDONED: Duration = Duration::from_secs(3600);

const MAGIC: &[u8; 8] = b"tvixcode";
const SUFFIX: &str = ".code";
const UNFINISHED: &str = ".unfinished-";
const CHECKSUM: usize = 8;
const INDEX_ENTRY: usize = Key::LEN + 8;
const FOOT: usize = MAGIC.len() + 4 + CHECKSUM;

/// The cache's entries on disk, and those that wait to be written.
pub(crate) struct CodeStore {
    folder: PathBuf,
    packs: RefCell<Vec<Pack>>,
    waiting: RefCell<Vec<(Key, Vec<u8>)>>,
    waiting_bytes: Cell<usize>,
}

/// A file of entries.
struct Pack {
    path: PathBuf,
    file: File,
    size: u64,
    index: Vec<u8>,
}

impl CodeStore {
    /// The cache in a folder. Where the folder does not exist it will be made; where the one around it does not
    /// exist either, nothing is kept.
    pub(crate) fn open(folder: &Path) -> Self {
        let mut paths: Vec<PathBuf> = match fs::read_dir(folder) {
            Ok(entries) => entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| is_pack(path) && is_ours(path))
                .collect(),
            // Nothing was kept yet, or nothing can be read: as good as empty.
            Err(_) => Vec::new(),
        };
        // Names begin with the time, so the youngest come first.
        paths.sort();
        paths.reverse();
        paths.truncate(MAX_PACKS);
        Self {
            folder: folder.to_owned(),
            packs: RefCell::new(paths.into_iter().filter_map(Pack::open).collect()),
            waiting: RefCell::default(),
            waiting_bytes: Cell::new(0),
        }
    }

    /// An entry, if it is there and whole.
    pub(crate) fn get(&self, key: &Key) -> Option<Vec<u8>> {
        self.packs.borrow().iter().find_map(|pack| pack.get(key))
    }

    /// Keeps an entry.
    ///
    /// # Errors
    /// Too many waited and could not be written; they are given up.
    pub(crate) fn put(&self, key: Key, entry: Vec<u8>) -> io::Result<()> {
        self.waiting_bytes.set(self.waiting_bytes.get() + entry.len());
        self.waiting.borrow_mut().push((key, entry));
        match self.waiting_bytes.get() > MAX_WAITING {
            true => self.write(),
            false => Ok(()),
        }
    }

    /// Writes the entries that wait.
    ///
    /// # Errors
    /// The folder cannot be written; the entries are given up.
    pub(crate) fn write(&self) -> io::Result<()> {
        let mut entries = self.waiting.take();
        let mut size = self.waiting_bytes.replace(0) as u64;
        if entries.is_empty() {
            return Ok(());
        }
        match fs::DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // It lies in a home, and who evaluates is not who makes homes.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            made => made?,
        }
        // A pack that is not much larger than what is new goes into the new one. So each entry is copied a few times
        // at most, and packs double in size from one to the next.
        let mut merged = Vec::new();
        let mut packs = self.packs.borrow_mut();
        while let Some(pack) = packs.first()
            && pack.size <= (2 * size).min(MAX_MERGED)
        {
            size += pack.size;
            merged.push(packs.remove(0));
        }
        let mut seen: FxHashSet<Key> = entries.iter().map(|(key, _)| *key).collect();
        for pack in &merged {
            let whole = pack.keys().filter(|key| seen.insert(*key));
            entries.extend(whole.filter_map(|key| Some((key, pack.get(&key)?))));
        }
        let path = write_pack(&self.folder, entries)?;
        packs.splice(0..0, Pack::open(path));
        for pack in merged {
            remove(&pack.path)?;
        }
        drop(packs);
        self.clean()
    }

    /// Removes what is damaged, abandoned, or too old to stay within the bound.
    fn clean(&self) -> io::Result<()> {
        let now = SystemTime::now();
        let mut found = Vec::new();
        let mut total = 0;
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                // Another evaluation removed it.
                continue;
            };
            let modified = metadata.modified()?;
            let unfinished = name(&path).starts_with(UNFINISHED);
            if unfinished && now.duration_since(modified).is_ok_and(|age| age > ABANDONED) {
                remove(&path)?;
            } else if is_pack(&path) {
                total += metadata.len();
                found.push((modified, metadata.len(), path));
            }
        }
        found.sort();
        for (_, size, path) in found {
            let damaged = || is_ours(&path) && Pack::open(path.clone()).is_none();
            if total > MAX_BYTES || damaged() {
                total -= size;
                remove(&path)?;
            }
        }
        Ok(())
    }
}

impl Pack {
    /// Opens a pack; `None` if it is not whole.
    fn open(path: PathBuf) -> Option<Self> {
        let file = File::open(&path).ok()?;
        let size = file.metadata().ok()?.size();
        let mut foot = [0; FOOT];
        let foot_at = size.checked_sub(FOOT as u64)?;
        file.read_exact_at(&mut foot, foot_at).ok()?;
        let (magic, rest) = foot.split_first_chunk::<8>()?;
        let (count, checksum) = rest.split_first_chunk::<4>()?;
        let length = (u32::from_le_bytes(*count) as usize).checked_mul(INDEX_ENTRY)?;
        let index_at = foot_at.checked_sub(length as u64)?;
        if magic != MAGIC {
            return None;
        }
        let mut index = vec![0; length];
        file.read_exact_at(&mut index, index_at).ok()?;
        (checksum == checksum_of(&index)).then_some(Self {
            path,
            file,
            size,
            index,
        })
    }

    fn entries(&self) -> &[[u8; INDEX_ENTRY]] {
        self.index.as_chunks().0
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        self.entries().iter().map(key_of)
    }

    fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let entries = self.entries();
        let found = entries.binary_search_by_key(key, key_of).ok()?;
        let (place, length) = entries[found][Key::LEN..].split_at(4);
        let place = u32::from_le_bytes(place.try_into().ok()?);
        let length = u32::from_le_bytes(length.try_into().ok()?);
        if u64::from(place) + u64::from(length) > self.size {
            return None;
        }
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, u64::from(place)).ok()?;
        let (checksum, entry) = bytes.split_at_checked(CHECKSUM)?;
        if *checksum != checksum_of(entry) {
            return None;
        }
        bytes.drain(..CHECKSUM);
        Some(bytes)
    }
}

fn key_of(entry: &[u8; INDEX_ENTRY]) -> Key {
    let mut key = [0; Key::LEN];
    key.copy_from_slice(&entry[..Key::LEN]);
    Key(key)
}

fn checksum_of(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut checksum = [0; CHECKSUM];
    checksum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM]);
    checksum
}

/// Writes a pack and gives its place.
fn write_pack(folder: &Path, entries: Vec<(Key, Vec<u8>)>) -> io::Result<PathBuf> {
    let entries: FxHashMap<Key, Vec<u8>> = entries.into_iter().collect();
    let mut entries: Vec<(Key, Vec<u8>)> = entries.into_iter().collect();
    entries.sort();
    let mut bytes = Vec::with_capacity(entries.iter().map(|(_, entry)| entry.len() + 64).sum());
    let mut index = Vec::with_capacity(entries.len() * INDEX_ENTRY);
    for (key, entry) in &entries {
        let too_large = |_| io::Error::other("the compiled code of one evaluation passes 4 GiB");
        let place = u32::try_from(bytes.len()).map_err(too_large)?;
        let length = u32::try_from(entry.len() + CHECKSUM).map_err(too_large)?;
        index.extend_from_slice(&key.0);
        index.extend_from_slice(&place.to_le_bytes());
        index.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&checksum_of(entry));
        bytes.extend_from_slice(entry);
    }
    let checksum = checksum_of(&index);
    bytes.extend_from_slice(&index);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&checksum);
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let process = std::process::id();
    let unfinished = folder.join(format!("{UNFINISHED}{time:032x}-{process}"));
    let path = folder.join(format!(
        "{}-{time:032x}-{process}{SUFFIX}",
        env!("EVALUATOR_SOURCES")
    ));
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| fs::rename(&unfinished, &path));
    if let Err(error) = written {
        // The first error is the one to tell.
        let (Ok(()) | Err(_)) = fs::remove_file(&unfinished);
        return Err(error);
    }
    Ok(path)
}

fn name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

fn is_pack(path: &Path) -> bool {
    name(path).ends_with(SUFFIX)
}

fn is_ours(path: &Path) -> bool {
    name(path).starts_with(env!("EVALUATOR_SOURCES"))
}

/// Removes a file that another evaluation may remove at the same time.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Key {
        Key([number; Key::LEN])
    }

    fn write(folder: &Path, entries: &[(u8, &[u8])]) {
        let store = CodeStore::open(folder);
        for (number, entry) in entries {
            store.put(key(*number), entry.to_vec()).unwrap();
        }
        store.write().unwrap();
    }

    fn packs(folder: &Path) -> Vec<PathBuf> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    }

    #[test]
    fn entries_are_found_by_later_evaluations() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("no/home"), &[(1, b"one")]);
        assert!(packs(folder.path()).is_empty());
        let folder = folder.path().join("code");
        assert_eq!(CodeStore::open(&folder).get(&key(1)), None);
        write(&folder, &[(2, b"two"), (1, b"one")]);
        let store = CodeStore::open(&folder);
        assert_eq!(store.get(&key(1)).unwrap(), b"one");
        assert_eq!(store.get(&key(2)).unwrap(), b"two");
        assert_eq!(store.get(&key(3)), None);
    }

    #[test]
    fn small_packs_are_merged_and_large_ones_left() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[(0, &[7; 100_000])]);
        for number in 1..20 {
            write(folder.path(), &[(number, &[number; 100])]);
        }
        let names = packs(folder.path());
        assert!(names.len() < 8, "{names:?}");
        let store = CodeStore::open(folder.path());
        assert_eq!(store.get(&key(0)).unwrap(), [7; 100_000]);
        for number in 1..20 {
            assert_eq!(store.get(&key(number)).unwrap(), [number; 100]);
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_loses_entries_but_never_changes_one() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[(1, b"first entry"), (2, b"second entry")]);
        let [pack] = &packs(folder.path())[..] else {
            panic!("one pack")
        };
        let whole = fs::read(pack).unwrap();
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            fs::write(pack, &damaged).unwrap();
            let store = CodeStore::open(folder.path());
            let found = [1, 2].map(|number| store.get(&key(number)));
            for (entry, right) in found.iter().zip([&b"first entry"[..], b"second entry"]) {
                assert!(entry.as_ref().is_none_or(|entry| entry == right), "byte {place}");
            }
            assert!(found.contains(&None), "byte {place} is not covered");
        }
        for length in 0..whole.len() {
            fs::write(pack, &whole[..length]).unwrap();
            let store = CodeStore::open(folder.path());
            assert_eq!(store.get(&key(1)), None, "cut to {length} bytes");
        }
    }

    #[test]
    fn a_damaged_entry_is_written_anew_and_a_damaged_pack_removed() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[(1, &[1; 1000])]);
        let pack = packs(folder.path()).remove(0);
        let mut bytes = fs::read(&pack).unwrap();
        bytes[500] ^= 1;
        fs::write(&pack, &bytes).unwrap();
        write(folder.path(), &[(1, b"anew")]);
        assert_eq!(CodeStore::open(folder.path()).get(&key(1)).unwrap(), b"anew");
        let torn = folder
            .path()
            .join(format!("{}-0-0{SUFFIX}", env!("EVALUATOR_SOURCES")));
        fs::write(&torn, b"torn").unwrap();
        write(folder.path(), &[(2, b"two")]);
        assert!(!torn.exists());
    }

    #[test]
    fn the_oldest_packs_go_where_there_are_too_many_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("0123456789abcdef-0-0.code");
        let file = File::create(&old).unwrap();
        file.set_len(MAX_BYTES).unwrap();
        file.set_modified(UNIX_EPOCH).unwrap();
        write(folder.path(), &[(1, b"one")]);
        assert!(!old.exists(), "of another version, too large, and the oldest");
        assert_eq!(CodeStore::open(folder.path()).get(&key(1)).unwrap(), b"one");
    }
}
