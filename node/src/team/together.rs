//! One build for all who want the same work at the same time.
//!
//! Requests with an equal build key name the same derivation, the same inputs by content and the same options. The
//! first one begins the build; whoever comes while it is under way is told its log from the beginning and gets its
//! outputs, with a record made out to its own request. It ends when it is done, or when nobody waits for it any more:
//! that the one who asked first has cancelled does not matter to the others.
//!
//! This node's own builds take part: a request for what the owner's command is building already waits for that, and
//! a command that wants what is being built for another waits for that.
//!
//! Not shared are requests that say `fresh` or want the folder of a build that fails, and builds from inputs that this
//! node does not accept: what is made of them is for the one alone who vouches for them. Of the own builds, those of
//! fixed outputs and of what is private.

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
use tvix_node_store::Audience;

use super::limits::SHARED_LOG;

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

/// The builds that are under way and may be joined.
#[derive(Debug, Default)]
pub struct SharedBuilds(Mutex<All>);

#[derive(Debug, Default)]
struct All {
    /// Those for others, and how many wait for each.
    others: HashMap<Key, (Arc<SharedBuild>, usize)>,
    /// This node's own.
    own: HashMap<BuildKey, OwnEntry>,
}

#[derive(Debug)]
struct OwnEntry {
    build: Arc<SharedBuild>,
    /// Whose members may wait for it.
    audience: Audience,
    /// How many others wait for it.
    waiting: usize,
    /// Whether the owner's command still wants it.
    wanted: bool,
}

impl OwnEntry {
    fn is(&self, build: &Arc<SharedBuild>) -> bool {
        Arc::ptr_eq(&self.build, build)
    }
}

/// How a build of this node's own begins.
#[derive(Debug)]
pub enum OwnBegin {
    /// The same work is being done for another.
    Joined(Waiting),
    /// It is done, for all who ask for it meanwhile.
    Begun(Owned),
}

/// A build of this node's own that others may wait for. It is over when this is dropped.
#[derive(Debug)]
pub struct Owned {
    /// Which. Its token is what stops it.
    pub build: Arc<SharedBuild>,
    builds: Arc<SharedBuilds>,
    key: BuildKey,
}

impl Owned {
    /// The owner's command wants it no more: it is stopped, as soon as nobody else waits for it.
    pub fn abandon(&self) {
        let mut all = lock(&self.builds.0);
        match all.own.get_mut(&self.key) {
            Some(entry) if entry.is(&self.build) => {
                entry.wanted = false;
                all.stop_if_unwanted(self.key);
            }
            // Nobody could join it.
            _ => self.build.cancel.cancel(),
        }
    }

    /// How it ended.
    pub fn end(self, ended: Ended) {
        self.build.set(Progress::Over(Arc::new(ended)));
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let mut all = lock(&self.builds.0);
        if all.own.get(&self.key).is_some_and(|entry| entry.is(&self.build)) {
            all.own.remove(&self.key);
        }
        drop(all);
        if !matches!(self.build.progress(), Progress::Over(_)) {
            let refusal = Refusal {
                reason: RefusalReason::Busy,
                message: "the build that this waited for was given up".to_owned(),
            };
            self.build.set(Progress::Over(Arc::new(Ended::Refused(refusal))));
        }
    }
}

impl All {
    /// Under the lock: nobody joins what is being stopped.
    fn stop_if_unwanted(&mut self, key: BuildKey) {
        if let Some(entry) = self.own.get(&key)
            && entry.waiting == 0
            && !entry.wanted
            && let Some(entry) = self.own.remove(&key)
        {
            entry.build.cancel.cancel();
        }
    }
}

/// Whether who asks for these limits may wait for a build with those: none that it set itself is another one there.
fn fits(asked: BuildLimits, own: BuildLimits) -> bool {
    let pairs = fields(asked).into_iter().zip(fields(own));
    pairs
        .into_iter()
        .all(|(asked, own)| asked.is_none() || asked == own)
}

fn fields(limits: BuildLimits) -> [Option<u64>; 5] {
    let BuildLimits {
        time,
        silence,
        log,
        disk,
        memory,
    } = limits;
    [time, silence, log, disk, memory]
}

/// What two requests must have in common: the team, which sees nothing of what another one wants, the work, and where it is stopped. One that is stopped by a narrower limit
/// than its requester set would fail for something that it did not ask for.
type Key = (SwarmId, BuildKey, [Option<u64>; 5]);

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
        let key = (team, key, fields(limits));
        let mut all = lock(&self.0);
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

    /// Joins the owner's own build of this work, where there is one that members of this team may learn of, and that is
    /// stopped by nothing that `asked` does not name.
    pub fn join_own(self: &Arc<Self>, team: SwarmId, key: BuildKey, asked: BuildLimits) -> Option<Waiting> {
        lock(&self.0).join_own(self, Some(team), key, asked)
    }

    /// As [`SharedBuilds::join_own`]; where there is none to join, the build for others runs from now on. What begins
    /// in between is seen by one of the two.
    pub fn join_own_or_run(
        self: &Arc<Self>,
        team: SwarmId,
        key: Option<BuildKey>,
        asked: BuildLimits,
        build: &SharedBuild,
        for_one: bool,
    ) -> Option<Waiting> {
        let mut all = lock(&self.0);
        let own = key.and_then(|key| all.join_own(self, Some(team), key, asked));
        if own.is_none() {
            build.set(Progress::Running { for_one });
        }
        own
    }

    /// Begins a build of this node's own, or joins one of the same work that runs already, from inputs that count for
    /// everybody. A build for another that waits for a slot is not joined: it would wait for the one that the own
    /// build has. `audience`: whose members may wait for it.
    pub fn begin_own(self: &Arc<Self>, key: BuildKey, limits: BuildLimits, audience: &Audience) -> OwnBegin {
        let mut all = lock(&self.0);
        let running = |build: &SharedBuild| matches!(build.progress(), Progress::Running { for_one: false });
        let found = all.others.iter_mut().find(|((_, other, _), (build, _))| {
            *other == key && running(build) && !build.cancel.is_cancelled()
        });
        if let Some((key, (build, count))) = found {
            *count += 1;
            return OwnBegin::Joined(Waiting {
                build: Arc::clone(build),
                builds: Arc::clone(self),
                kind: Kind::Shared(*key),
            });
        }
        // One that a command has left goes on for others; it is as good for the next command.
        if let Some(waiting) = all.join_own(self, None, key, limits) {
            return OwnBegin::Joined(waiting);
        }
        let build = Arc::new(SharedBuild::new(limits));
        build.set(Progress::Running { for_one: false });
        // Beside one with other limits it is for its command alone: who waits for that one still finds it.
        all.own.entry(key).or_insert_with(|| OwnEntry {
            build: Arc::clone(&build),
            audience: audience.clone(),
            waiting: 0,
            wanted: true,
        });
        OwnBegin::Begun(Owned {
            build,
            builds: Arc::clone(self),
            key,
        })
    }

    /// It is over: who comes now begins anew.
    pub fn end(&self, build: &Arc<SharedBuild>) {
        lock(&self.0)
            .others
            .retain(|_, (other, _)| !Arc::ptr_eq(other, build));
    }
}

impl All {
    /// `team`: whose member joins; none: the owner.
    fn join_own(
        &mut self,
        builds: &Arc<SharedBuilds>,
        team: Option<SwarmId>,
        key: BuildKey,
        asked: BuildLimits,
    ) -> Option<Waiting> {
        let entry = self.own.get_mut(&key)?;
        let seen = team.is_none_or(|team| entry.audience.includes(team));
        if !seen || !fits(asked, entry.build.limits) {
            return None;
        }
        entry.waiting += 1;
        Some(Waiting {
            build: Arc::clone(&entry.build),
            builds: Arc::clone(builds),
            kind: Kind::Own(key),
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut all = lock(&self.builds.0);
        match self.kind {
            Kind::Alone => self.build.cancel.cancel(),
            Kind::Shared(key) => match all.others.get_mut(&key) {
                Some((build, count)) if Arc::ptr_eq(build, &self.build) => {
                    *count -= 1;
                    if *count == 0 {
                        // Under the lock: nobody joins what is being stopped.
                        all.others.remove(&key);
                        self.build.cancel.cancel();
                    }
                }
                // It is over.
                _ => {}
            },
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
mod tests {
    use super::*;

    const KEY: BuildKey = BuildKey([1; 32]);
    const TEAM: SwarmId = SwarmId([1; 32]);
    const OTHER_TEAM: SwarmId = SwarmId([2; 32]);

    #[test]
    fn members_of_two_teams_do_not_wait_for_one_build() {
        let builds = Arc::new(SharedBuilds::default());
        let (first, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
        assert!(begun);
        let (second, begun) = builds.join(OTHER_TEAM, Some(KEY), BuildLimits::NONE);
        assert!(begun && !Arc::ptr_eq(&first.build, &second.build));
    }

    #[test]
    fn the_owner_s_build_is_joined_by_those_alone_who_may_learn_of_what_it_reads() {
        let builds = Arc::new(SharedBuilds::default());
        let OwnBegin::Begun(_owned) = builds.begin_own(KEY, BuildLimits::NONE, &Audience::team(TEAM)) else {
            panic!("there is nothing to join");
        };
        assert!(builds.join_own(OTHER_TEAM, KEY, BuildLimits::NONE).is_none());
        let (theirs, _) = builds.join(OTHER_TEAM, Some(KEY), BuildLimits::NONE);
        let followed = builds.join_own_or_run(OTHER_TEAM, Some(KEY), BuildLimits::NONE, &theirs.build, false);
        assert!(followed.is_none());
        assert!(builds.join_own(TEAM, KEY, BuildLimits::NONE).is_some());
    }

    #[test]
    fn a_build_goes_on_as_long_as_anybody_waits_for_it() {
        let builds = Arc::new(SharedBuilds::default());
        let (first, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
        assert!(begun);
        let (second, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
        assert!(!begun && Arc::ptr_eq(&first.build, &second.build));
        let (other, begun) = builds.join(TEAM, Some(BuildKey([2; 32])), BuildLimits::NONE);
        assert!(begun && !Arc::ptr_eq(&first.build, &other.build));
        let cancel = first.build.cancel.clone();
        drop(first);
        assert!(!cancel.is_cancelled(), "the second one waits for it");
        drop(second);
        assert!(cancel.is_cancelled());
        let (third, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
        assert!(begun && !third.build.cancel.is_cancelled(), "it begins anew");
        assert!(!other.build.cancel.is_cancelled());
    }

    #[test]
    fn what_is_over_or_for_one_alone_is_not_joined() {
        let builds = Arc::new(SharedBuilds::default());
        let (first, _) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
        builds.end(&first.build);
        let (second, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
        assert!(begun);
        drop(first);
        assert!(!second.build.cancel.is_cancelled(), "it is another build");
        let (alone, begun) = builds.join(TEAM, None, BuildLimits::NONE);
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

    fn begun(builds: &Arc<SharedBuilds>, limits: BuildLimits) -> Owned {
        match builds.begin_own(KEY, limits, &Audience::Everyone) {
            OwnBegin::Begun(own) => own,
            OwnBegin::Joined(other) => panic!("joined {other:?}"),
        }
    }

    #[test]
    fn the_owner_s_build_goes_on_for_others_when_the_owner_leaves() {
        let builds = Arc::new(SharedBuilds::default());
        let own = begun(&builds, BuildLimits::NONE);
        let other = builds.join_own(TEAM, KEY, BuildLimits::NONE).expect("it runs");
        own.abandon();
        assert!(!own.build.cancel.is_cancelled(), "another one waits for it");
        drop(other);
        assert!(own.build.cancel.is_cancelled());
        assert!(
            builds.join_own(TEAM, KEY, BuildLimits::NONE).is_none(),
            "it is being stopped"
        );
        drop(own);
        let own = begun(&builds, BuildLimits::NONE);
        own.abandon();
        assert!(own.build.cancel.is_cancelled(), "nobody waits for it");
    }

    #[test]
    fn a_build_that_goes_on_for_others_is_joined_by_the_owner_s_next_command() {
        let builds = Arc::new(SharedBuilds::default());
        let own = begun(&builds, BuildLimits::NONE);
        let other = builds.join_own(TEAM, KEY, BuildLimits::NONE).expect("it runs");
        own.abandon();
        let OwnBegin::Joined(next) = builds.begin_own(KEY, BuildLimits::NONE, &Audience::Everyone) else {
            panic!("built twice");
        };
        drop(other);
        assert!(!own.build.cancel.is_cancelled(), "the next command waits for it");
        // With a limit of its own a command has its own build, which leaves the first one where it is.
        let hour = BuildLimits {
            time: Some(3600),
            ..BuildLimits::NONE
        };
        let limited = begun(&builds, hour);
        limited.abandon();
        assert!(limited.build.cancel.is_cancelled());
        drop(limited);
        assert!(!own.build.cancel.is_cancelled());
        drop(next);
        assert!(own.build.cancel.is_cancelled(), "nobody waits for it any more");
    }

    #[test]
    fn who_leaves_does_not_stop_what_the_owner_wants() {
        let builds = Arc::new(SharedBuilds::default());
        let own = begun(&builds, BuildLimits::NONE);
        drop(builds.join_own(TEAM, KEY, BuildLimits::NONE).expect("it runs"));
        assert!(!own.build.cancel.is_cancelled());
        let waiting = builds
            .join_own(TEAM, KEY, BuildLimits::NONE)
            .expect("it still runs");
        drop(own);
        assert!(
            matches!(waiting.build.progress(), Progress::Over(_)),
            "it is not waited for in vain"
        );
        assert!(builds.join_own(TEAM, KEY, BuildLimits::NONE).is_none());
    }

    #[test]
    fn a_limit_that_was_asked_for_is_kept() {
        let builds = Arc::new(SharedBuilds::default());
        let hour = BuildLimits {
            time: Some(3600),
            ..BuildLimits::NONE
        };
        let own = begun(&builds, BuildLimits::NONE);
        assert!(builds.join_own(TEAM, KEY, hour).is_none());
        drop(own);
        let own = begun(&builds, hour);
        assert!(builds.join_own(TEAM, KEY, hour).is_some());
        assert!(builds.join_own(TEAM, KEY, BuildLimits::NONE).is_some());
        drop(own);
    }

    #[test]
    fn the_owner_joins_what_runs_for_others_and_nothing_that_waits() {
        let builds = Arc::new(SharedBuilds::default());
        let (other, _) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
        // It may wait for the slot that the own build has.
        drop(begun(&builds, BuildLimits::NONE));
        other.build.set(Progress::Running { for_one: true });
        drop(begun(&builds, BuildLimits::NONE));
        let none = builds.join_own_or_run(TEAM, Some(KEY), BuildLimits::NONE, &other.build, false);
        assert!(none.is_none());
        let OwnBegin::Joined(joined) = builds.begin_own(KEY, BuildLimits::NONE, &Audience::Everyone) else {
            panic!("built twice");
        };
        assert!(Arc::ptr_eq(&joined.build, &other.build));
        let cancel = other.build.cancel.clone();
        drop(other);
        assert!(!cancel.is_cancelled(), "the owner waits for it");
        drop(joined);
        assert!(cancel.is_cancelled());
    }

    #[test]
    fn a_build_for_others_that_begins_meanwhile_follows_the_owner_s() {
        let builds = Arc::new(SharedBuilds::default());
        let (other, _) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
        let own = begun(&builds, BuildLimits::NONE);
        let followed = builds.join_own_or_run(TEAM, Some(KEY), BuildLimits::NONE, &other.build, false);
        assert!(followed.is_some_and(|followed| Arc::ptr_eq(&followed.build, &own.build)));
        assert!(matches!(other.build.progress(), Progress::Preparing));
    }
}
