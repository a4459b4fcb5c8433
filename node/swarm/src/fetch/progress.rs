//! What is to be fetched, and how far it is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::tree::TreeDigest;

use crate::core::lock;
use crate::line::Rising;

/// A tree to be fetched.
#[derive(Debug)]
pub struct FetchOrder {
    /// The tree.
    pub root: TreeDigest,
    /// Who has it, the first to ask first.
    pub providers: Vec<NodeKey>,
    /// Bytes that may come at most; none: as many as it has.
    pub max_bytes: Option<u64>,
    /// Files that are in the store come, too: what is there may be what is damaged. Those of a small tree come in any case.
    pub whole: bool,
    /// It is fetched because another member wants it here, who is the first of the providers or in league with it.
    pub for_another: bool,
    /// Which of several trees goes first. What is begun of it when that rises goes on as it was.
    pub priority: Rising,
    /// Is told how far it is.
    pub progress: Option<watch::Sender<FetchProgress>>,
}

impl FetchOrder {
    /// All of a tree, however large, from these providers.
    #[must_use]
    pub fn new(root: TreeDigest, providers: Vec<NodeKey>) -> Self {
        Self {
            root,
            providers,
            max_bytes: None,
            whole: false,
            for_another: false,
            priority: Rising::default(),
            progress: None,
        }
    }
}

/// How far a fetch is. Bytes are those of files, verified and written; directories and what proves the
/// content are not among them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FetchProgress {
    /// Bytes that have to come: neither in the store nor left from an earlier try, unless the tree is small, which comes as a
    /// whole. None while the directories come, when it is not known yet.
    pub expected: Option<u64>,
    /// Bytes that have come.
    pub received: u64,
    /// Of those, by each provider.
    pub by_provider: BTreeMap<NodeKey, u64>,
}

/// What one provider brought, and in what time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Brought {
    pub(crate) bytes: u64,
    since: Instant,
    last: Instant,
}

impl Brought {
    /// From when it was asked first to when the last came.
    pub(crate) fn time(&self) -> Duration {
        self.last.duration_since(self.since)
    }

    /// Bytes a second since it was asked first, up to now.
    pub(crate) fn speed(&self) -> f64 {
        self.bytes as f64 / self.since.elapsed().as_secs_f64().max(f64::EPSILON)
    }
}

/// Notes what comes, and tells who wants to know.
#[derive(Debug)]
pub(crate) struct Report {
    progress: Option<watch::Sender<FetchProgress>>,
    brought: Mutex<HashMap<NodeKey, Brought>>,
    /// Bytes of all kinds that have come over the network, written or not.
    moved: AtomicU64,
}

impl Report {
    pub(crate) fn new(progress: Option<watch::Sender<FetchProgress>>) -> Self {
        Self {
            progress,
            brought: Mutex::default(),
            moved: AtomicU64::new(0),
        }
    }

    /// Something has come, which is not written yet.
    pub(crate) fn moves(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that have come.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// A provider is asked for the first time.
    pub(crate) fn asked(&self, provider: NodeKey) {
        let now = Instant::now();
        let nothing = Brought {
            bytes: 0,
            since: now,
            last: now,
        };
        lock(&self.brought).entry(provider).or_insert(nothing);
    }

    /// What each has brought so far.
    pub(crate) fn brought(&self) -> HashMap<NodeKey, Brought> {
        lock(&self.brought).clone()
    }

    /// So many bytes have to come, with those that were known of before.
    pub(crate) fn expect(&self, bytes: u64) {
        if let Some(progress) = &self.progress {
            progress.send_modify(|progress| *progress.expected.get_or_insert_default() += bytes);
        }
    }

    pub(crate) fn came(&self, provider: NodeKey, bytes: u64) {
        if bytes == 0 {
            return;
        }
        if let Some(brought) = lock(&self.brought).get_mut(&provider) {
            brought.bytes += bytes;
            brought.last = Instant::now();
        }
        if let Some(progress) = &self.progress {
            progress.send_modify(|progress| {
                progress.received += bytes;
                *progress.by_provider.entry(provider).or_default() += bytes;
            });
        }
    }
}
