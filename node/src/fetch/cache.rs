//! What is remembered of what was fetched: one small file for each key.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tvix_node_evaluator::{Fetched, GitRevision, MercurialRevision};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::NixHash;

use super::FetchError;
use super::limits::{CURRENT, ENTRY_BYTES};

/// Format of the files; others are not read.
const VERSION: u32 = 1;

/// The files.
pub(super) struct Cache {
    folder: PathBuf,
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: StorePath,
    pub(super) nar_hash: NixHash,
    pub(super) last_modified: Option<u64>,
    pub(super) git: Option<GitRevision>,
    pub(super) mercurial: Option<MercurialRevision>,
    /// What the server calls this version.
    pub(super) tag: Option<String>,
    /// When it was fetched, or found current, in seconds since 1970.
    pub(super) at: u64,
}

impl Entry {
    /// Whether it need not be looked at whether there is something newer.
    pub(super) fn is_current(&self) -> bool {
        is_current(self.at)
    }

    pub(super) fn fetched(&self) -> Fetched {
        Fetched {
            path: self.path.clone(),
            nar_hash: self.nar_hash.clone(),
            last_modified: self.last_modified,
            git: self.git.clone(),
            mercurial: self.mercurial.clone(),
        }
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs())
}

/// How the store finds again what was added for a key.
pub(super) fn fingerprint(key: &str) -> String {
    let digest = blake3::derive_key("tvix-node 2026 fetched sources", key.as_bytes());
    blake3::Hash::from_bytes(digest).to_hex().to_string()
}

/// The commit that a reference of a repository meant when it was fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reference {
    pub(super) commit: String,
    /// When it was fetched, in seconds since 1970.
    pub(super) at: u64,
}

impl Reference {
    /// Whether it need not be looked at whether it means another one by now.
    pub(super) fn is_current(&self) -> bool {
        is_current(self.at)
    }
}

fn is_current(at: u64) -> bool {
    // A clock that was set back makes nothing current.
    now().checked_sub(at).is_some_and(|age| age < CURRENT.as_secs())
}

/// A file.
#[derive(Serialize, Deserialize)]
struct Stored<T> {
    version: u32,
    key: String,
    value: T,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    path: String,
    nar_hash: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_modified: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    git: Option<WrittenGit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mercurial: Option<WrittenMercurial>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    at: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenGit {
    revision: Option<String>,
    changed: Option<String>,
    count: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct WrittenMercurial {
    branch: String,
    revision: String,
    count: u64,
}

impl Cache {
    pub(super) const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn file(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{}.json", fingerprint(key)))
    }

    /// What is remembered under a key. A file that cannot be read as one counts as none: it is fetched again.
    pub(super) fn get(&self, key: &str) -> Option<Entry> {
        let written: Written = self.read(key)?;
        Some(Entry {
            path: StorePath::from_absolute_path(written.path.as_bytes()).ok()?,
            nar_hash: NixHash::parse(&written.nar_hash).ok()?,
            last_modified: written.last_modified,
            git: written.git.map(|git| GitRevision {
                revision: git.revision,
                changed: git.changed,
                count: git.count,
            }),
            mercurial: written.mercurial.map(|mercurial| MercurialRevision {
                branch: mercurial.branch,
                changeset: Some((mercurial.revision, mercurial.count)),
            }),
            tag: written.tag,
            at: written.at,
        })
    }

    /// Remembers something.
    pub(super) fn put(&self, key: &str, entry: &Entry) -> Result<(), FetchError> {
        let written = Written {
            path: entry.path.to_absolute_path(),
            nar_hash: entry.nar_hash.to_sri_string(),
            last_modified: entry.last_modified,
            git: entry.git.as_ref().map(|git| WrittenGit {
                revision: git.revision.clone(),
                changed: git.changed.clone(),
                count: git.count,
            }),
            mercurial: entry.mercurial.as_ref().and_then(|mercurial| {
                let (revision, count) = mercurial.changeset.clone()?;
                Some(WrittenMercurial {
                    branch: mercurial.branch.clone(),
                    revision,
                    count,
                })
            }),
            tag: entry.tag.clone(),
            at: entry.at,
        };
        self.write(key, written)
    }

    /// What a reference meant.
    pub(super) fn reference(&self, key: &str) -> Option<Reference> {
        self.read(key)
    }

    /// Remembers what a reference means.
    pub(super) fn put_reference(&self, key: &str, reference: Reference) -> Result<(), FetchError> {
        self.write(key, reference)
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, key: &str) -> Option<T> {
        let mut text = Vec::new();
        fs::File::open(self.file(key))
            .and_then(|file| file.take(ENTRY_BYTES).read_to_end(&mut text))
            .ok()?;
        let stored: Stored<T> = serde_json::from_slice(&text).ok()?;
        (stored.version == VERSION && stored.key == key).then_some(stored.value)
    }

    fn write<T: Serialize>(&self, key: &str, value: T) -> Result<(), FetchError> {
        let stored = Stored {
            version: VERSION,
            key: key.to_owned(),
            value,
        };
        let text = serde_json::to_vec(&stored)
            .map_err(|error| FetchError::io(&self.folder, "written to")(error.into()))?;
        fs::create_dir_all(&self.folder).map_err(FetchError::io(&self.folder, "created"))?;
        let file = self.file(key);
        // Renamed into place, so that another command never reads half of it.
        let aside = tempfile::NamedTempFile::new_in(&self.folder)
            .map_err(FetchError::io(&self.folder, "written to"))?;
        fs::write(aside.path(), text).map_err(FetchError::io(aside.path(), "written"))?;
        aside
            .persist(&file)
            .map_err(|error| FetchError::io(&file, "written")(error.error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: u64) -> Entry {
        Entry {
            path: StorePath::from_parts([3; 20], "source").unwrap(),
            nar_hash: NixHash::Sha256([7; 32]),
            last_modified: Some(5),
            git: Some(GitRevision {
                revision: Some("a".repeat(40)),
                changed: None,
                count: Some(3),
            }),
            mercurial: Some(MercurialRevision {
                branch: "default".to_owned(),
                changeset: Some(("b".repeat(40), 4)),
            }),
            tag: Some("\"x\"".to_owned()),
            at,
        }
    }

    #[test]
    fn what_is_remembered_is_read_again_and_damage_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("known"));
        assert_eq!(cache.get("a"), None);
        cache.put("a", &entry(1)).unwrap();
        assert_eq!(cache.get("a"), Some(entry(1)));
        assert_eq!(cache.get("b"), None);
        // Another key's file under this key's name is not believed.
        fs::copy(cache.file("a"), cache.file("b")).unwrap();
        assert_eq!(cache.get("b"), None);
        fs::write(cache.file("a"), "{").unwrap();
        assert_eq!(cache.get("a"), None);
    }

    #[test]
    fn so_much_of_an_entry_is_read_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("known"));
        cache.put("a", &entry(1)).unwrap();
        let mut text = fs::read(cache.file("a")).unwrap();
        let most = usize::try_from(ENTRY_BYTES).unwrap();
        // Filled as JSON may be.
        for (bytes, read) in [(most, Some(entry(1))), (most + 1, None)] {
            let end = text.pop().unwrap();
            text.resize(bytes - 1, b' ');
            text.push(end);
            fs::write(cache.file("a"), &text).unwrap();
            assert_eq!(cache.get("a"), read);
        }
    }

    #[test]
    fn entries_are_current_for_a_while_and_never_from_the_future() {
        assert!(entry(now()).is_current());
        assert!(!entry(now() - CURRENT.as_secs() - 1).is_current());
        assert!(!entry(now() + 1000).is_current());
    }
}
