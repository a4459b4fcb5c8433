//! Upstream binary caches: where paths come from that nobody here or in the team has.
//!
//! | file | what it has |
//! |---|---|
//! | `cache` | one cache: asking it, and leaving it alone for a while after it failed |
//! | `complaint` | what is told to whoever works with a cache that cannot be used |
//! | `find` | which paths can be had, from where, and whether that is believed |
//! | `bring` | a closure into the own store |
//! | `limits` | bounds, each with its reason |
//!
//! The keys that their owner configured are principals of the node's policy: what names itself is
//! accepted from any cache and checked when it comes; anything else only with a signature by one of these
//! keys, and only where the owner's rules of trust take anybody's word for the path. Nothing is configured by default.

mod bring;
mod cache;
mod complaint;
mod find;
mod limits;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Semaphore;
use tvix_node_builder::{AddressRange, Client};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::narinfo::TrustedPublicKey;

pub use bring::Step;
pub use cache::{Report, Upstream, UpstreamError};
pub use complaint::Complaint;

use crate::daemon::room::Room;
use crate::team::fetch::Arriving;
use crate::team::trust::TrustBook;
use limits::{CACHES, DOWNLOADS};

/// Why the caches cannot be configured like that.
#[derive(Debug, thiserror::Error)]
pub enum SubstituterError {
    /// A URL.
    #[error(transparent)]
    Cache(#[from] UpstreamError),
    /// A key.
    #[error(
        "'{key}' is no public key of a binary cache ('NAME:BASE64', as 'nix-store --generate-binary-cache-key' makes it): {reason}"
    )]
    Key {
        /// What was given.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// Too many.
    #[error("more than {CACHES} binary caches at once")]
    TooMany,
}

/// Caches and keys that somebody wants used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Substituters {
    /// URLs, the best first.
    pub caches: Vec<String>,
    /// `name:base64`.
    pub keys: Vec<String>,
}

/// The upstream caches of a node.
pub struct Upstreams {
    /// Where archives lie while they are unpacked.
    folder: PathBuf,
    trust: Arc<TrustBook>,
    room: Arc<Room>,
    listed: Mutex<Listed>,
    /// Where caches may be beside the public internet, see [`Client::for_caches`].
    private: OnceLock<Arc<[AddressRange]>>,
    client: OnceLock<Result<Client, String>>,
    arriving: Arriving,
    downloads: Semaphore,
}

/// Who wants a cache or believes a key: the node (0), or a session.
type Users = BTreeSet<u64>;

/// The node itself; sessions have numbers from 1.
const NODE: u64 = 0;

#[derive(Default)]
struct Listed {
    /// In the order in which they are asked for archives.
    caches: Vec<(Arc<Upstream>, Users)>,
    keys: BTreeMap<String, (TrustedPublicKey, Users)>,
}

impl Upstreams {
    /// None yet. `folder`: for archives while they are unpacked. `trust`: what the owner believes. `room`: on the disk.
    pub fn new(folder: PathBuf, trust: Arc<TrustBook>, room: Arc<Room>) -> Self {
        Self {
            folder,
            trust,
            room,
            listed: Mutex::default(),
            private: OnceLock::new(),
            client: OnceLock::new(),
            arriving: Arriving::default(),
            downloads: Semaphore::new(DOWNLOADS),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Listed> {
        // Entries are added and removed whole.
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are used as long as the node is up. `private`: addresses that are not public and at which caches, those of
    /// sessions too, may be although they are called by names, and where they may lead to. Said once, before anything
    /// is asked of a cache.
    ///
    /// # Errors
    /// See [`SubstituterError`]; nothing is used then.
    pub fn configure(
        &self,
        wanted: &Substituters,
        private: Vec<AddressRange>,
    ) -> Result<(), SubstituterError> {
        self.private.get_or_init(|| private.into());
        self.add(NODE, wanted)
    }

    /// These are used as long as a session is open.
    ///
    /// # Errors
    /// See [`SubstituterError`]; none of them is used then.
    pub fn begin_session(&self, session: u64, wanted: &Substituters) -> Result<(), SubstituterError> {
        self.add(session, wanted)
    }

    fn add(&self, user: u64, wanted: &Substituters) -> Result<(), SubstituterError> {
        let parse = |key: &String| {
            TrustedPublicKey::parse(key).map_err(|error| SubstituterError::Key {
                key: key.clone(),
                reason: error.to_string(),
            })
        };
        let keys = wanted.keys.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let caches = wanted
            .caches
            .iter()
            .map(|url| Upstream::new(url))
            .collect::<Result<Vec<_>, _>>()?;
        let mut listed = self.lock();
        if listed.caches.len() + caches.len() > CACHES {
            return Err(SubstituterError::TooMany);
        }
        for cache in caches {
            match listed
                .caches
                .iter_mut()
                .find(|(known, _)| known.url() == cache.url())
            {
                Some((_, users)) => drop(users.insert(user)),
                None => listed.caches.push((Arc::new(cache), Users::from([user]))),
            }
        }
        for (text, key) in wanted.keys.iter().zip(keys) {
            let entry = listed.keys.entry(text.clone());
            let (_, users) = entry.or_insert_with(|| (key, Users::new()));
            users.insert(user);
        }
        Ok(())
    }

    /// What only this session wanted is not used any more.
    pub fn end_session(&self, session: u64) {
        let mut listed = self.lock();
        listed.caches.retain_mut(|(_, users)| {
            users.remove(&session);
            !users.is_empty()
        });
        listed.keys.retain(|_, (_, users)| {
            users.remove(&session);
            !users.is_empty()
        });
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lock().caches.is_empty()
    }

    /// How each of them does.
    pub fn reports(&self) -> Vec<Report> {
        self.lock()
            .caches
            .iter()
            .map(|(cache, _)| cache.report())
            .collect()
    }

    /// Whether the owner takes anybody's word for what is in a path.
    fn takes_a_word(&self, path: &StorePath) -> bool {
        self.trust.policy().for_path(path).takes_a_word()
    }

    /// Those that are asked at the moment for a path, and the keys that are believed about it.
    fn view(&self, path: &StorePath) -> (Vec<Arc<Upstream>>, Vec<TrustedPublicKey>) {
        let takes_a_word = self.takes_a_word(path);
        let listed = self.lock();
        let caches = listed.caches.iter().map(|(cache, _)| Arc::clone(cache));
        let keys = listed.keys.values().filter(|_| takes_a_word);
        let keys = keys.map(|(key, _)| key.clone());
        (caches.filter(|cache| cache.is_asked()).collect(), keys.collect())
    }

    fn client(&self) -> Result<&Client, String> {
        let private = self.private.get().cloned().unwrap_or_default();
        let made = self
            .client
            .get_or_init(|| Client::for_caches(private).map_err(|error| error.to_string()));
        made.as_ref().map_err(Clone::clone)
    }
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::envelope::NodeSecret;

    use super::*;

    #[test]
    fn so_many_caches_are_used_at_once_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let me = NodeSecret::from_bytes(&[1; 32]).key();
        let trust = TrustBook::open(folder.path().join("trust.json"), me, Arc::default()).unwrap();
        let room = Room::of(folder.path().to_owned());
        let upstreams = Upstreams::new(folder.path().join("caches"), Arc::new(trust), room);
        let caches = |numbers: std::ops::Range<usize>| Substituters {
            caches: numbers
                .map(|number| format!("https://cache-{number}.example.org"))
                .collect(),
            keys: Vec::new(),
        };
        upstreams.begin_session(1, &caches(0..CACHES - 1)).unwrap();
        let refused = upstreams.begin_session(2, &caches(CACHES..CACHES + 2));
        assert!(
            matches!(refused, Err(SubstituterError::TooMany)),
            "those of all sessions count: {refused:?}"
        );
        assert_eq!(upstreams.reports().len(), CACHES - 1, "none of them is used");
        upstreams.begin_session(2, &caches(CACHES..CACHES + 1)).unwrap();
        upstreams.end_session(1);
        upstreams.begin_session(3, &caches(0..CACHES - 1)).unwrap();
        assert_eq!(upstreams.reports().len(), CACHES);
    }
}
