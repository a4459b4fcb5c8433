//! Nonces that were used, in memory and in a file that survives a restart.
//!
//! The file is a log of records of 64 bytes: requester, nonce, when it may be forgotten, checksum.
//! Appending is cheap; making it durable is left to [`NonceSyncer`], so that requests that come
//! together share one sync. A record torn by a crash at the end of the file belongs to a request that
//! was never acted on. When most of the log may be forgotten it is written anew, and the latest time
//! forgotten is kept in front: what is older is refused whatever the clock says, so setting the clock
//! back does not bring an old request back to life.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tvix_node_protocol::envelope::NodeKey;

use crate::limits::{NONCES, NONCES_PER_REQUESTER};

const MAGIC: &[u8; 24] = b"tvix-node nonces\0\0\0\0\0\0\0\0";
const SCHEMA: u64 = 1;
const RECORD: usize = 64;
/// The log is written anew when it has this many records and half of them can be forgotten.
const REWRITE: usize = 4096;

/// Why a nonce is not recorded.
#[derive(Debug, thiserror::Error)]
pub enum NonceError {
    /// It was used before.
    #[error("the nonce was used before")]
    Used,
    /// It is so old that it may have been forgotten.
    #[error("the nonce is older than what is remembered")]
    Forgotten,
    /// No room for another.
    #[error("no room for more nonces")]
    Full,
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
    /// Not a log of nonces.
    #[error(
        "{} is damaged at byte {offset}. Moving it away makes it possible to replay requests of the last hour; \
         wait an hour before you do",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: usize,
    },
    /// Written by a newer program.
    #[error("{} has schema version {got}, this program knows {SCHEMA}: use the newer program", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        got: u64,
    },
}

/// Remembers which nonces were used. What a gate needs of it.
pub trait Nonces {
    /// Records that a requester used a nonce, to be remembered until `forget_after`, at the time `now`,
    /// both in seconds since 1970.
    ///
    /// # Errors
    /// See [`NonceError`]; the nonce then counts as not used.
    fn record(
        &mut self,
        requester: NodeKey,
        nonce: [u8; 16],
        forget_after: u64,
        now: u64,
    ) -> Result<(), NonceError>;
}

/// Nonces in memory. Pure: what is durable is up to who has it.
#[derive(Debug, Clone, Default)]
pub struct NonceBook {
    used: HashMap<NodeKey, HashMap<[u8; 16], u64>>,
    count: usize,
    /// Everything that could be forgotten at this time or before has been.
    forgotten: u64,
}

impl NonceBook {
    /// Whether a nonce can be recorded.
    fn check(&self, requester: NodeKey, nonce: [u8; 16], forget_after: u64) -> Result<(), NonceError> {
        if forget_after <= self.forgotten {
            return Err(NonceError::Forgotten);
        }
        let of_requester = self.used.get(&requester);
        if of_requester.is_some_and(|used| used.contains_key(&nonce)) {
            return Err(NonceError::Used);
        }
        Ok(())
    }

    fn is_full(&self, requester: NodeKey) -> bool {
        let used = self.used.get(&requester);
        self.count >= NONCES || used.is_some_and(|used| used.len() >= NONCES_PER_REQUESTER)
    }

    fn remember(&mut self, requester: NodeKey, nonce: [u8; 16], forget_after: u64) {
        let new = self
            .used
            .entry(requester)
            .or_default()
            .insert(nonce, forget_after);
        self.count += usize::from(new.is_none());
    }

    fn forget(&mut self, now: u64) {
        let before = self.count;
        for used in self.used.values_mut() {
            used.retain(|_, forget_after| *forget_after > now);
        }
        self.used.retain(|_, used| !used.is_empty());
        self.count = self.used.values().map(HashMap::len).sum();
        if self.count < before {
            self.forgotten = self.forgotten.max(now);
        }
    }
}

impl Nonces for NonceBook {
    fn record(
        &mut self,
        requester: NodeKey,
        nonce: [u8; 16],
        forget_after: u64,
        now: u64,
    ) -> Result<(), NonceError> {
        self.check(requester, nonce, forget_after)?;
        if self.is_full(requester) {
            self.forget(now);
            if self.is_full(requester) {
                return Err(NonceError::Full);
            }
        }
        self.remember(requester, nonce, forget_after);
        Ok(())
    }
}

/// The nonces one builder has seen in one team.
#[derive(Debug)]
pub struct NonceStore {
    path: PathBuf,
    file: Arc<File>,
    book: NonceBook,
    /// Records in the file, forgotten ones included.
    logged: usize,
    appended: Arc<AtomicU64>,
}

/// Makes durable what was appended so far.
#[derive(Debug, Clone)]
pub struct NonceSyncer {
    path: PathBuf,
    file: Arc<File>,
    appended: Arc<AtomicU64>,
}

impl NonceSyncer {
    /// How many records have been appended since the store was opened.
    #[must_use]
    pub fn appended(&self) -> u64 {
        self.appended.load(Ordering::Acquire)
    }

    /// Blocks until all of them are on the disk.
    ///
    /// # Errors
    /// [`NonceError::Io`]
    pub fn sync(&self) -> Result<(), NonceError> {
        self.file.sync_data().map_err(io_error("sync", &self.path))
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NonceError {
    let path = path.to_owned();
    move |source| NonceError::Io { action, path, source }
}

impl NonceStore {
    /// Opens the store in a team's folder, or makes a new one.
    ///
    /// # Errors
    /// [`NonceError::Io`], [`NonceError::Damaged`], [`NonceError::Newer`]
    pub fn open(folder: &Path) -> Result<Self, NonceError> {
        let path = folder.join("nonces");
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(mut file) => {
                file.read_to_end(&mut bytes).map_err(io_error("read", &path))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = Arc::new(write_log(&path, 0, &HashMap::new())?);
                return Ok(Self::empty(path, file, 0));
            }
            Err(error) => return Err(io_error("open", &path)(error)),
        }
        let (forgotten, records) = read_header(&path, &bytes)?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let mut store = Self::empty(path, Arc::new(file), forgotten);
        let whole = records.len() / RECORD * RECORD;
        for (index, record) in records[..whole].chunks_exact(RECORD).enumerate() {
            let Some((requester, nonce, forget_after)) = from_record(record) else {
                let last = (index + 1) * RECORD == whole;
                if last {
                    break;
                }
                return Err(NonceError::Damaged {
                    path: store.path,
                    offset: MAGIC.len() + 16 + index * RECORD,
                });
            };
            store.book.remember(requester, nonce, forget_after);
            store.logged += 1;
        }
        // A torn record at the end: the log is written anew, so that the next one begins where it should.
        if store.logged * RECORD != records.len() {
            store.rewrite()?;
        }
        Ok(store)
    }

    fn empty(path: PathBuf, file: Arc<File>, forgotten: u64) -> Self {
        Self {
            path,
            file,
            book: NonceBook {
                forgotten,
                ..NonceBook::default()
            },
            logged: 0,
            appended: Arc::default(),
        }
    }

    /// Forgets what may be forgotten now, in memory and in the file.
    ///
    /// # Errors
    /// [`NonceError::Io`]
    pub fn forget(&mut self, now: u64) -> Result<(), NonceError> {
        self.book.forget(now);
        if self.logged > self.book.count {
            self.rewrite()?;
        }
        Ok(())
    }

    /// What makes the records durable.
    #[must_use]
    pub fn syncer(&self) -> NonceSyncer {
        NonceSyncer {
            path: self.path.clone(),
            file: self.file.clone(),
            appended: self.appended.clone(),
        }
    }

    fn rewrite(&mut self) -> Result<(), NonceError> {
        self.file = Arc::new(write_log(&self.path, self.book.forgotten, &self.book.used)?);
        self.logged = self.book.count;
        Ok(())
    }
}

impl Nonces for NonceStore {
    fn record(
        &mut self,
        requester: NodeKey,
        nonce: [u8; 16],
        forget_after: u64,
        now: u64,
    ) -> Result<(), NonceError> {
        self.book.check(requester, nonce, forget_after)?;
        if self.book.is_full(requester) {
            self.forget(now)?;
            if self.book.is_full(requester) {
                return Err(NonceError::Full);
            }
        }
        if self.logged >= REWRITE && self.logged > 2 * self.book.count {
            self.forget(now)?;
        }
        (&*self.file)
            .write_all(&to_record(requester, nonce, forget_after))
            .map_err(io_error("write", &self.path))?;
        self.logged += 1;
        self.appended.fetch_add(1, Ordering::AcqRel);
        self.book.remember(requester, nonce, forget_after);
        Ok(())
    }
}

type Used = HashMap<NodeKey, HashMap<[u8; 16], u64>>;

/// Writes the log beside the old one, syncs it, and puts it in its place.
fn write_log(path: &Path, forgotten: u64, used: &Used) -> Result<File, NonceError> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&SCHEMA.to_le_bytes());
    bytes.extend_from_slice(&forgotten.to_le_bytes());
    for (requester, used) in used {
        for (nonce, forget_after) in used {
            bytes.extend_from_slice(&to_record(*requester, *nonce, *forget_after));
        }
    }
    let beside = path.with_extension("new");
    let mut file = File::create(&beside).map_err(io_error("create", &beside))?;
    file.write_all(&bytes).map_err(io_error("write", &beside))?;
    file.sync_all().map_err(io_error("sync", &beside))?;
    std::fs::rename(&beside, path).map_err(io_error("replace", path))?;
    if let Some(folder) = path.parent() {
        let folder_file = File::open(folder).map_err(io_error("open", folder))?;
        folder_file.sync_all().map_err(io_error("sync", folder))?;
    }
    Ok(file)
}

fn read_header<'a>(path: &Path, bytes: &'a [u8]) -> Result<(u64, &'a [u8]), NonceError> {
    let damaged = |offset| NonceError::Damaged {
        path: path.to_owned(),
        offset,
    };
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged(0))?;
    let (schema, rest) = rest
        .split_first_chunk::<8>()
        .ok_or_else(|| damaged(MAGIC.len()))?;
    let got = u64::from_le_bytes(*schema);
    if got != SCHEMA {
        let path = path.to_owned();
        return Err(NonceError::Newer { path, got });
    }
    let (forgotten, rest) = rest
        .split_first_chunk::<8>()
        .ok_or_else(|| damaged(MAGIC.len() + 8))?;
    Ok((u64::from_le_bytes(*forgotten), rest))
}

fn to_record(requester: NodeKey, nonce: [u8; 16], forget_after: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..32].copy_from_slice(&requester.0);
    record[32..48].copy_from_slice(&nonce);
    record[48..56].copy_from_slice(&forget_after.to_le_bytes());
    let checksum = blake3::hash(&record[..56]);
    record[56..].copy_from_slice(&checksum.as_bytes()[..8]);
    record
}

fn from_record(record: &[u8]) -> Option<(NodeKey, [u8; 16], u64)> {
    let (content, checksum) = record.split_at_checked(56)?;
    if blake3::hash(content).as_bytes()[..8] != *checksum {
        return None;
    }
    let requester = NodeKey(content[..32].try_into().ok()?);
    let nonce = content[32..48].try_into().ok()?;
    let forget_after = u64::from_le_bytes(content[48..].try_into().ok()?);
    Some((requester, nonce, forget_after))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: NodeKey = NodeKey([1; 32]);

    fn nonce(number: usize) -> [u8; 16] {
        (number as u128).to_le_bytes()
    }

    #[test]
    fn a_nonce_is_used_once_also_after_a_restart() {
        let home = tempfile::tempdir().unwrap();
        let mut store = NonceStore::open(home.path()).unwrap();
        store.record(ANN, nonce(1), 500, 100).unwrap();
        assert!(matches!(
            store.record(ANN, nonce(1), 500, 100),
            Err(NonceError::Used)
        ));
        store.record(NodeKey([2; 32]), nonce(1), 500, 100).unwrap();
        store.syncer().sync().unwrap();
        let mut store = NonceStore::open(home.path()).unwrap();
        assert!(matches!(
            store.record(ANN, nonce(1), 500, 100),
            Err(NonceError::Used)
        ));
        store.record(ANN, nonce(2), 500, 100).unwrap();
        assert_eq!(store.book.count, 3);
    }

    #[test]
    fn setting_the_clock_back_revives_nothing() {
        let home = tempfile::tempdir().unwrap();
        let mut store = NonceStore::open(home.path()).unwrap();
        store.record(ANN, nonce(1), 500, 100).unwrap();
        store.forget(600).unwrap();
        assert_eq!(store.book.count, 0);
        assert!(matches!(
            store.record(ANN, nonce(1), 500, 100),
            Err(NonceError::Forgotten)
        ));
        let mut store = NonceStore::open(home.path()).unwrap();
        assert!(matches!(
            store.record(ANN, nonce(1), 500, 100),
            Err(NonceError::Forgotten)
        ));
        store.record(ANN, nonce(1), 700, 100).unwrap();
    }

    #[test]
    fn one_requester_cannot_use_up_the_room_of_all() {
        let home = tempfile::tempdir().unwrap();
        let mut store = NonceStore::open(home.path()).unwrap();
        for number in 0..NONCES_PER_REQUESTER {
            store.book.remember(ANN, nonce(number), 500);
        }
        let one_more = nonce(NONCES_PER_REQUESTER);
        assert!(matches!(
            store.record(ANN, one_more, 500, 100),
            Err(NonceError::Full)
        ));
        store.record(NodeKey([2; 32]), one_more, 500, 100).unwrap();
        store.record(ANN, one_more, 900, 500).unwrap();
        assert_eq!(store.book.count, 1, "what may be forgotten makes room");
        store.book.count = NONCES;
        store.book.used.entry(ANN).or_default().insert(nonce(7), 900);
        assert!(
            store.record(NodeKey([3; 32]), nonce(1), 900, 500).is_ok(),
            "recounted"
        );
    }

    #[test]
    fn the_file_is_written_anew_when_most_of_it_may_be_forgotten() {
        let home = tempfile::tempdir().unwrap();
        let mut store = NonceStore::open(home.path()).unwrap();
        for number in 0..REWRITE {
            store.record(ANN, nonce(number), 500, 100).unwrap();
        }
        store.forget(501).unwrap();
        store.record(ANN, nonce(0), 900, 501).unwrap();
        let length = std::fs::metadata(home.path().join("nonces")).unwrap().len();
        assert_eq!(length as usize, MAGIC.len() + 16 + RECORD);
    }

    #[test]
    fn a_torn_record_at_the_end_is_no_damage() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("nonces");
        for cut in [1, 7, 8, 9, 40, RECORD - 1] {
            let mut store = NonceStore::open(home.path()).unwrap();
            store.record(ANN, nonce(1), 500, 100).unwrap();
            store.record(ANN, nonce(2), 500, 100).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
            let mut store = NonceStore::open(home.path()).unwrap();
            store.record(ANN, nonce(2), 500, 100).unwrap();
            let mut store = NonceStore::open(home.path()).unwrap();
            assert!(matches!(
                store.record(ANN, nonce(1), 500, 100),
                Err(NonceError::Used)
            ));
            assert!(matches!(
                store.record(ANN, nonce(2), 500, 100),
                Err(NonceError::Used)
            ));
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn damage_in_the_middle_is_not_passed_over() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("nonces");
        let mut store = NonceStore::open(home.path()).unwrap();
        store.record(ANN, nonce(1), 500, 100).unwrap();
        store.record(ANN, nonce(2), 500, 100).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[MAGIC.len() + 20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(
            NonceStore::open(home.path()),
            Err(NonceError::Damaged { offset: 40, .. })
        ));
        bytes[MAGIC.len()] = 2;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(
            NonceStore::open(home.path()),
            Err(NonceError::Newer { got: 2, .. })
        ));
    }
}
