//! One build for all who want the same work at the same time.
//!
//! Requests with an equal build key name the same derivation, the same inputs by content and the same options. The
//! first one begins the build; whoever comes while it is under way is told its log from the beginning and gets its
//! outputs, with a record made out to its own request. It ends when it is done, or when nobody waits for it any more:
//! that the one who asked first has cancelled does not matter to the others.
//!
//! This node's own builds take part: a request for what the owner's command is building already waits for that, and
//! a command that wants what is being built for another waits for that (`own`).
//!
//! Not shared are requests that say `fresh` or want the folder of a build that fails, and builds from inputs that this
//! node does not accept: what is made of them is for the one alone who vouches for them, and who had joined it shares
//! another one. Of the own builds, those of
//! fixed outputs and of what is private.

mod own;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{
    BuildKey, BuildLimits, BuildOptions, BuildRecord, Input, SwarmId, build_key,
};
use tvix_node_protocol::messages::{self, Refusal, RefusalReason};
use tvix_node_protocol::tree::TreeDigest;

use super::limits::SHARED_LOG;
use own::OwnEntry;
pub use own::{OwnBegin, Owned};

/// What names the work of a build for the purpose of sharing it: all outputs are built, whichever were asked for.
#[must_use]
pub fn work_key(
    derivation: &StorePath,
    inputs: &[Input],
    outputs: &BTreeMap<String, StorePath>,
    options: BuildOptions,
) -> Option<BuildKey> {
    let names: Vec<String> = outputs.keys().cloned().collect();
    // Encoding fails for nothing that has been checked; then the build is shared with nobody.
    build_key(derivation, inputs, &names, options).ok()
}

/// How a build ended.
#[derive(Debug, Clone)]
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
    /// It was not begun, or says nothing about anybody else's: the owner's own build was stopped, or is not believed.
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

impl Progress {
    /// Whether it says nothing about the request of one who has joined: what is only for the one who asked first, or
    /// failed for what he has.
    pub fn is_for_another(&self) -> bool {
        match self {
            Self::Preparing => false,
            Self::Running { for_one } => *for_one,
            Self::Over(ended) => match &**ended {
                Ended::Refused(refusal) => refusal.reason != RefusalReason::Busy,
                Ended::Built { accepted, .. } => !accepted,
                Ended::Failed(_) => false,
            },
        }
    }
}

/// What is said, after how many they are, of lines that are not kept.
pub const NOT_KEPT: &str = " lines of the log are not kept any more)";

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
    /// What it was asked to be stopped at, besides what this node stops builds for others at.
    pub limits: BuildLimits,
    /// Stops it.
    pub cancel: CancellationToken,
    log: Mutex<Log>,
    progress: watch::Sender<Progress>,
    /// Counts lines and steps, so that who waits sees that something is new.
    changes: watch::Sender<u64>,
}

/// One who follows a build.
#[derive(Debug)]
pub struct Following<'a> {
    build: &'a SharedBuild,
    changes: watch::Receiver<u64>,
    next: usize,
}

/// What one who follows a build hears.
#[derive(Debug)]
pub enum Heard {
    /// Lines of its log, each with its end.
    Log(Vec<u8>),
    /// It is over. Nothing comes after that.
    Over(Arc<Ended>),
}

impl Following<'_> {
    /// What comes next.
    pub async fn next(&mut self) -> Heard {
        loop {
            self.changes.mark_unchanged();
            // First how far it is: no line comes after its end.
            let progress = self.build.progress();
            let (bytes, after) = self.build.log_from(self.next);
            self.next = after;
            if !bytes.is_empty() {
                return Heard::Log(bytes);
            }
            if let Progress::Over(ended) = progress {
                return Heard::Over(ended);
            }
            // The build is there as long as it is followed, and its sender with it.
            drop(self.changes.changed().await);
        }
    }
}

/// The lines of a part of a log.
pub fn lines(log: &[u8]) -> impl Iterator<Item = &[u8]> {
    let log = log.strip_suffix(b"\n").unwrap_or(log);
    log.split(|byte| *byte == b'\n')
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

    /// To follow it from the first line of its log to its end.
    pub fn follow(&self) -> Following<'_> {
        Following {
            build: self,
            changes: self.changes(),
            next: 0,
        }
    }

    /// Ends it for who waits, where it has no end yet.
    fn give_up(&self) {
        if !matches!(self.progress(), Progress::Over(_)) {
            let refusal = Refusal {
                reason: RefusalReason::Busy,
                message: "the build that this waited for was given up".to_owned(),
            };
            self.set(Progress::Over(Arc::new(Ended::Refused(refusal))));
        }
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
            bytes.extend_from_slice(format!("({lost}{NOT_KEPT}\n").as_bytes());
        }
        for kept in log.lines.iter().skip(line.saturating_sub(log.dropped)) {
            bytes.extend_from_slice(kept);
        }
        (bytes, log.dropped + log.lines.len())
    }
}

/// The builds that are under way and may be joined.
#[derive(Debug)]
pub struct SharedBuilds {
    all: Mutex<All>,
    /// Counts the own builds that were begun.
    own_begun: watch::Sender<u64>,
}

impl Default for SharedBuilds {
    fn default() -> Self {
        Self {
            all: Mutex::default(),
            own_begun: watch::channel(0).0,
        }
    }
}

#[derive(Debug, Default)]
struct All {
    /// Those for others, and how many wait for each.
    others: HashMap<Key, (Arc<SharedBuild>, usize)>,
    /// Those of them that turned out to be for the one alone who asked first: nobody joins them any more.
    apart: Vec<(Arc<SharedBuild>, usize)>,
    /// This node's own.
    own: HashMap<BuildKey, OwnEntry>,
}

/// A build for others that is under way.
#[derive(Debug)]
pub struct Undertaken {
    /// The build.
    pub build: Arc<SharedBuild>,
    builds: Arc<SharedBuilds>,
}

impl Undertaken {
    /// What came of it.
    pub fn end(self, ended: Ended) {
        // In this order: who comes in between begins anew, and finds what is there.
        self.builds.end(&self.build);
        self.build.set(Progress::Over(Arc::new(ended)));
    }
}

impl Drop for Undertaken {
    fn drop(&mut self) {
        self.builds.end(&self.build);
        self.build.give_up();
    }
}

fn fields(limits: BuildLimits) -> [Option<u64>; 6] {
    let BuildLimits {
        time,
        silence,
        log,
        disk,
        memory,
        processes: _,
    } = limits;
    [time, silence, log, disk, memory, Some(limits.processes())]
}

/// What two requests must have in common: the team, which sees nothing of what another one wants, the work, and where it
/// is stopped. One that is stopped by a narrower limit than its requester set would fail for something that it did not
/// ask for.
pub type Key = (SwarmId, BuildKey, [Option<u64>; 6]);

/// What requests of this team for this work, with these limits, have in common.
#[must_use]
pub fn share_key(team: SwarmId, key: BuildKey, limits: BuildLimits) -> Key {
    (team, key, fields(limits))
}

/// One who waits for a shared build.
#[derive(Debug)]
pub struct Waiting {
    /// Which.
    pub build: Arc<SharedBuild>,
    builds: Arc<SharedBuilds>,
    kind: Kind,
}

/// What becomes of a build when one waits for it no more.
#[derive(Debug)]
enum Kind {
    /// It is for that one alone.
    Alone,
    /// It goes on as long as another one waits.
    Shared(Key),
    /// It goes on as long as another one waits, or the owner's command wants it.
    Own(BuildKey),
}

impl Waiting {
    /// Whether who asks for the same again joins it.
    #[must_use]
    pub fn can_be_joined(&self) -> bool {
        let is_shared = !matches!(self.kind, Kind::Alone);
        is_shared && matches!(self.build.progress(), Progress::Running { for_one: false })
    }
}

impl SharedBuilds {
    /// Joins the build of this work that is under way, or begins one. The second answer: whether it is begun by
    /// this. Without a key it is for one alone.
    pub fn join(
        self: &Arc<Self>,
        team: SwarmId,
        key: Option<BuildKey>,
        limits: BuildLimits,
    ) -> (Waiting, bool) {
        let builds = Arc::clone(self);
        let Some(key) = key else {
            let waiting = Waiting {
                build: Arc::new(SharedBuild::new(limits)),
                builds,
                kind: Kind::Alone,
            };
            return (waiting, true);
        };
        let key = share_key(team, key, limits);
        let mut all = lock(&self.all);
        let begun = !all.others.contains_key(&key);
        let (build, count) = all
            .others
            .entry(key)
            .or_insert_with(|| (Arc::new(SharedBuild::new(limits)), 0));
        *count += 1;
        let waiting = Waiting {
            build: Arc::clone(build),
            builds,
            kind: Kind::Shared(key),
        };
        (waiting, begun)
    }

    /// A build for others begins. Whatever becomes of it, nobody waits for it for ever.
    pub fn undertake(self: &Arc<Self>, build: Arc<SharedBuild>) -> Undertaken {
        Undertaken {
            build,
            builds: Arc::clone(self),
        }
    }

    /// It is over: who comes now begins anew.
    pub fn end(&self, build: &Arc<SharedBuild>) {
        let mut all = lock(&self.all);
        all.others.retain(|_, (other, _)| !Arc::ptr_eq(other, build));
        all.apart.retain(|(other, _)| !Arc::ptr_eq(other, build));
    }
}

impl All {
    fn set_apart(&mut self, build: &SharedBuild) {
        let is_this = |entry: &(Arc<SharedBuild>, usize)| std::ptr::eq(Arc::as_ptr(&entry.0), build);
        let key = self.others.iter().find(|(_, entry)| is_this(entry));
        if let Some(key) = key.map(|(key, _)| *key)
            && let Some(entry) = self.others.remove(&key)
        {
            self.apart.push(entry);
        }
    }

    /// One waits no more for a build for others. One that nobody waits for is stopped, under the lock: nobody joins
    /// what is being stopped.
    fn leave(&mut self, key: Key, build: &Arc<SharedBuild>) {
        if let Some((other, count)) = self.others.get_mut(&key)
            && Arc::ptr_eq(other, build)
        {
            *count -= 1;
            if *count == 0 {
                self.others.remove(&key);
                build.cancel.cancel();
            }
            return;
        }
        // Where it is not among these either, it is over.
        if let Some(at) = self.apart.iter().position(|(other, _)| Arc::ptr_eq(other, build)) {
            self.apart[at].1 -= 1;
            if self.apart[at].1 == 0 {
                self.apart.swap_remove(at);
                build.cancel.cancel();
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut all = lock(&self.builds.all);
        match self.kind {
            Kind::Alone => self.build.cancel.cancel(),
            Kind::Shared(key) => all.leave(key, &self.build),
            Kind::Own(key) => {
                if let Some(entry) = all.own.get_mut(&key)
                    && entry.is(&self.build)
                {
                    entry.waiting -= 1;
                    all.stop_if_unwanted(key);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "together_tests.rs"]
mod tests;
