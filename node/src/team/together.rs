//! One build for all who want the same work at the same time.
//!
//! Requests with an equal build key name the same derivation, the same inputs by content and the same options. The
//! first one begins the build; whoever comes while it is under way is told its log from the beginning and gets its
//! outputs, with a record made out to its own request. It ends when it is done, or when nobody waits for it any more:
//! that the one who asked first has cancelled does not matter to the others.
//!
//! Not shared are requests that say `fresh` or want the folder of a build that fails, and builds from inputs that this node does not accept: what is made of
//! them is for the one alone who vouches for them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tvix_node_protocol::build::{BuildKey, BuildLimits, BuildRecord};
use tvix_node_protocol::messages::{self, Refusal};
use tvix_node_protocol::tree::TreeDigest;

use super::limits::SHARED_LOG;

/// How a build ended.
#[derive(Debug)]
pub enum Ended {
    /// It was built.
    Built {
        /// The record, made out to the one who asked first.
        record: Box<BuildRecord>,
        /// Whether the outputs lie under their names, for everybody.
        accepted: bool,
        /// Trees that lie under their digests, for those who asked.
        aside: Vec<TreeDigest>,
    },
    /// It failed.
    Failed(messages::BuildFailure),
    /// It was not begun.
    Refused(Refusal),
}

/// How far a build is.
#[derive(Debug, Clone)]
pub enum Progress {
    /// Its inputs are brought, or a slot is waited for.
    Preparing,
    /// It runs. `for_one`: from inputs that only the one vouches for who asked first.
    Running {
        /// Whether it is for the first one alone.
        for_one: bool,
    },
    /// It is over.
    Over(Arc<Ended>),
}

/// The last part of a log.
#[derive(Debug, Default)]
struct Log {
    lines: VecDeque<Vec<u8>>,
    /// Lines before these that are not kept.
    dropped: usize,
    bytes: usize,
}

/// A build that several may wait for.
#[derive(Debug)]
pub struct SharedBuild {
    /// What it is stopped at.
    pub limits: BuildLimits,
    /// Stops it.
    pub cancel: CancellationToken,
    log: Mutex<Log>,
    progress: watch::Sender<Progress>,
    /// Counts lines and steps, so that who waits sees that something is new.
    changes: watch::Sender<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is changed in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedBuild {
    fn new(limits: BuildLimits) -> Self {
        Self {
            limits,
            cancel: CancellationToken::new(),
            log: Mutex::default(),
            progress: watch::channel(Progress::Preparing).0,
            changes: watch::channel(0).0,
        }
    }

    /// A line of its log.
    pub fn line(&self, line: &[u8]) {
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        let mut log = lock(&self.log);
        log.bytes += bytes.len();
        log.lines.push_back(bytes);
        while log.bytes > SHARED_LOG
            && let Some(oldest) = log.lines.pop_front()
        {
            log.bytes -= oldest.len();
            log.dropped += 1;
        }
        drop(log);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// It has come so far.
    pub fn set(&self, progress: Progress) {
        self.progress.send_replace(progress);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// To be waited on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The log from a line on: what to send, and the line to go on with. Lines that are not kept any more are
    /// replaced by one that says how many they were.
    pub fn log_from(&self, line: usize) -> (Vec<u8>, usize) {
        let log = lock(&self.log);
        let mut bytes = Vec::new();
        let lost = log.dropped.saturating_sub(line);
        if lost > 0 {
            bytes.extend_from_slice(format!("({lost} lines of the log are not kept any more)\n").as_bytes());
        }
        for kept in log.lines.iter().skip(line.saturating_sub(log.dropped)) {
            bytes.extend_from_slice(kept);
        }
        (bytes, log.dropped + log.lines.len())
    }
}

/// The builds for others that are under way and may be joined.
#[derive(Debug, Default)]
pub struct SharedBuilds(Mutex<HashMap<Key, (Arc<SharedBuild>, usize)>>);

/// What two requests must have in common: the work, and where it is stopped. One that is stopped by a narrower limit
/// than its requester set would fail for something that it did not ask for.
type Key = (BuildKey, [Option<u64>; 5]);

/// One who waits for a shared build.
#[derive(Debug)]
pub struct Waiting {
    /// Which.
    pub build: Arc<SharedBuild>,
    builds: Arc<SharedBuilds>,
    key: Option<Key>,
}

impl SharedBuilds {
    /// Joins the build of this work that is under way, or begins one. The second answer: whether it is begun by
    /// this. Without a key it is for one alone.
    pub fn join(self: &Arc<Self>, key: Option<BuildKey>, limits: BuildLimits) -> (Waiting, bool) {
        let builds = Arc::clone(self);
        let Some(key) = key else {
            let build = Arc::new(SharedBuild::new(limits));
            let waiting = Waiting {
                build,
                builds,
                key: None,
            };
            return (waiting, true);
        };
        let limits_of = |limits: BuildLimits| {
            [
                limits.time,
                limits.silence,
                limits.log,
                limits.disk,
                limits.memory,
            ]
        };
        let key = (key, limits_of(limits));
        let mut all = lock(&self.0);
        let begun = !all.contains_key(&key);
        let (build, count) = all
            .entry(key)
            .or_insert_with(|| (Arc::new(SharedBuild::new(limits)), 0));
        *count += 1;
        let waiting = Waiting {
            build: Arc::clone(build),
            builds,
            key: Some(key),
        };
        (waiting, begun)
    }

    /// It is over: who comes now begins anew.
    pub fn end(&self, build: &Arc<SharedBuild>) {
        lock(&self.0).retain(|_, (other, _)| !Arc::ptr_eq(other, build));
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(key) = self.key else {
            self.build.cancel.cancel();
            return;
        };
        let mut all = lock(&self.builds.0);
        match all.get_mut(&key) {
            Some((build, count)) if Arc::ptr_eq(build, &self.build) => {
                *count -= 1;
                if *count == 0 {
                    // Under the lock: nobody joins what is being stopped.
                    all.remove(&key);
                    self.build.cancel.cancel();
                }
            }
            // It is over.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: BuildKey = BuildKey([1; 32]);

    #[test]
    fn a_build_goes_on_as_long_as_anybody_waits_for_it() {
        let builds = Arc::new(SharedBuilds::default());
        let (first, begun) = builds.join(Some(KEY), BuildLimits::NONE);
        assert!(begun);
        let (second, begun) = builds.join(Some(KEY), BuildLimits::NONE);
        assert!(!begun && Arc::ptr_eq(&first.build, &second.build));
        let (other, begun) = builds.join(Some(BuildKey([2; 32])), BuildLimits::NONE);
        assert!(begun && !Arc::ptr_eq(&first.build, &other.build));
        let cancel = first.build.cancel.clone();
        drop(first);
        assert!(!cancel.is_cancelled(), "the second one waits for it");
        drop(second);
        assert!(cancel.is_cancelled());
        let (third, begun) = builds.join(Some(KEY), BuildLimits::NONE);
        assert!(begun && !third.build.cancel.is_cancelled(), "it begins anew");
        assert!(!other.build.cancel.is_cancelled());
    }

    #[test]
    fn what_is_over_or_for_one_alone_is_not_joined() {
        let builds = Arc::new(SharedBuilds::default());
        let (first, _) = builds.join(Some(KEY), BuildLimits::NONE);
        builds.end(&first.build);
        let (second, begun) = builds.join(Some(KEY), BuildLimits::NONE);
        assert!(begun);
        drop(first);
        assert!(!second.build.cancel.is_cancelled(), "it is another build");
        let (alone, begun) = builds.join(None, BuildLimits::NONE);
        assert!(begun);
        let cancel = alone.build.cancel.clone();
        drop(alone);
        assert!(cancel.is_cancelled());
    }

    #[test]
    fn who_comes_late_is_told_the_log_from_the_beginning() {
        let build = SharedBuild::new(BuildLimits::NONE);
        build.line(b"one");
        build.line(b"two");
        let (bytes, next) = build.log_from(0);
        assert_eq!((bytes.as_slice(), next), (&b"one\ntwo\n"[..], 2));
        assert_eq!(build.log_from(next), (Vec::new(), 2));
        build.line(b"three");
        assert_eq!(build.log_from(next), (b"three\n".to_vec(), 3));
    }

    #[test]
    fn a_log_that_is_too_long_loses_its_beginning_and_says_so() {
        let build = SharedBuild::new(BuildLimits::NONE);
        let line = vec![b'x'; 1000];
        let count = SHARED_LOG / 1000 + 10;
        for _ in 0..count {
            build.line(&line);
        }
        let (bytes, next) = build.log_from(0);
        assert_eq!(next, count);
        assert!(bytes.starts_with(b"("), "it says what is missing");
        assert!(bytes.len() <= SHARED_LOG + 100);
        let (rest, _) = build.log_from(next - 1);
        assert_eq!(rest.len(), 1001);
    }
}
