//! What is known of a session, gathered from its events.

use std::collections::{HashMap, HashSet};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildKind;
use tvix_node_protocol::control::{Event, EventKind, Outcome, PresenceTiming};

/// What is known of a session. Times are milliseconds of the command's own clock, so that what runs
/// can be shown with its age between two events.
#[derive(Debug, Default)]
pub struct State {
    /// Whether what is instantiated is going to be built where it is needed.
    builds: bool,
    /// Whether the evaluation still goes on.
    pub evaluation_ended: bool,
    /// Derivations instantiated.
    pub instantiated: u64,
    /// What runs now, the oldest first.
    pub running: Vec<Running>,
    /// What the counts are at present.
    pub counts: Counts,
    /// How it ended, once it has.
    pub ended: Option<Outcome>,
    /// Whether it was known in time what others have, once it has ended.
    pub presence: PresenceTiming,
    /// Derivations of which something is known, and what.
    derivations: HashMap<StorePath, Standing>,
    /// Derivations of the targets, by number.
    targets: HashMap<u64, StorePath>,
    /// Builds that failed and count, and what they made impossible, with the failed build.
    failed: HashMap<StorePath, StorePath>,
    /// Builds that began and failed before anything was known to need them.
    failed_early: HashSet<StorePath>,
    /// Why and for whom builds were placed that have not started.
    placed: HashMap<StorePath, BuildKind>,
    /// Derivations that would be built.
    pub would_build: Vec<StorePath>,
    /// Paths that would be fetched.
    pub would_fetch: Vec<StorePath>,
}

/// Something that takes time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The derivation that is built, or the path that is fetched or pushed.
    pub path: StorePath,
    /// What is done.
    pub work: Work,
    /// Name of the node or store that does it, gives it or takes it.
    pub node: String,
    /// When it began.
    pub since: u64,
    /// The last line of its log.
    pub last_line: String,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A build; whether an evaluation waits for it.
    Build(BuildKind),
    /// A fetch.
    Fetch,
    /// A push.
    Push,
}

/// Counts of what is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Builds that succeeded.
    pub built: u64,
    /// Paths fetched.
    pub fetched: u64,
    /// Derivations found present.
    pub present: u64,
    /// Builds that failed and count.
    pub failed: u64,
    /// Paths pushed.
    pub pushed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Instantiated; nothing has been begun.
    Known,
    Begun,
    Over,
}

impl State {
    /// Nothing has happened yet. `builds`: whether what is instantiated is going to be built where it is
    /// needed.
    pub fn new(builds: bool) -> Self {
        Self {
            builds,
            ..Self::default()
        }
    }

    /// Derivations that may still have to be built: neither begun nor found present nor given up.
    pub fn waiting(&self) -> u64 {
        if !self.builds {
            return 0;
        }
        let count = self
            .derivations
            .values()
            .filter(|standing| **standing == Standing::Known)
            .count();
        count as u64
    }

    /// The failed build that keeps a target from being had, where one does: the target's derivation and
    /// that of the build, which may be the same. `error` is what the node says of the target.
    pub fn culprit(&self, target: u64, error: &str) -> Option<(&StorePath, &StorePath)> {
        let derivation = self.targets.get(&target)?;
        let mut culprit = derivation;
        // Each step goes from what cannot be built to what keeps it from being built.
        for _ in 0..self.failed.len() {
            match self.failed.get(culprit) {
                Some(because) if because == culprit => return Some((derivation, culprit)),
                Some(because) => culprit = because,
                None => break,
            }
        }
        // A session that ends at once is not told what all became impossible.
        let named = |failed: &&StorePath| {
            self.failed.get(*failed) == Some(*failed) && error.contains(&failed.to_absolute_path())
        };
        self.failed.keys().find(named).map(|failed| (derivation, failed))
    }

    /// Takes in what happened, at `now`.
    pub fn step(&mut self, event: &Event, now: u64) {
        match &event.kind {
            EventKind::Instantiated { derivations } => {
                self.instantiated += derivations.len() as u64;
                for derivation in derivations {
                    self.derivations
                        .entry(derivation.clone())
                        .or_insert(Standing::Known);
                }
            }
            EventKind::EvaluationEnded => self.evaluation_ended = true,
            EventKind::Present { derivation } => {
                self.counts.present += 1;
                self.set(derivation, Standing::Over);
            }
            EventKind::WouldBuild { derivation } => {
                self.would_build.push(derivation.clone());
                self.set(derivation, Standing::Over);
            }
            EventKind::WouldFetch { path } => self.would_fetch.push(path.clone()),
            EventKind::Placed { derivation, kind, .. } => {
                self.placed.insert(derivation.clone(), *kind);
            }
            EventKind::BuildStarted { derivation, node } => {
                self.set(derivation, Standing::Begun);
                let kind = self.placed.remove(derivation).unwrap_or(BuildKind::Regular);
                self.begin(derivation, Work::Build(kind), node, now);
            }
            EventKind::Log { derivation, line } => {
                let of_it = |running: &&mut Running| running.is_build_of(derivation);
                if let Some(running) = self.running.iter_mut().find(of_it) {
                    running.last_line.clone_from(line);
                }
            }
            EventKind::BuildFinished { derivation, .. } => {
                self.counts.built += 1;
                self.end_build(derivation);
            }
            EventKind::Checked {
                derivation,
                differences,
                ..
            } => {
                if differences.is_empty() {
                    self.counts.built += 1;
                } else {
                    self.counts.failed += 1;
                    self.failed.insert(derivation.clone(), derivation.clone());
                }
                self.end_build(derivation);
            }
            EventKind::BuildFailed {
                derivation, demanded, ..
            } => {
                if *demanded {
                    self.counts.failed += 1;
                    self.failed.insert(derivation.clone(), derivation.clone());
                } else if self.is_running(derivation) {
                    self.failed_early.insert(derivation.clone());
                }
                self.end_build(derivation);
            }
            EventKind::DependencyFailed { derivation, because } => {
                self.failed.insert(derivation.clone(), because.clone());
                self.end_build(derivation);
            }
            EventKind::Cancelled { derivation, .. } => self.end_build(derivation),
            EventKind::TargetNamed {
                target, derivation, ..
            } => {
                self.targets.insert(*target, derivation.clone());
            }
            EventKind::FetchStarted { path, from } => self.begin(path, Work::Fetch, from, now),
            EventKind::FetchFinished { path, .. } => {
                self.counts.fetched += 1;
                self.end(path, Work::Fetch);
            }
            EventKind::FetchFailed { path, unfinished, .. } => {
                for path in std::iter::once(path).chain(unfinished) {
                    self.end(path, Work::Fetch);
                }
            }
            EventKind::PushStarted { path, to } => self.begin(path, Work::Push, to, now),
            EventKind::Pushed { path, .. } => {
                self.counts.pushed += 1;
                self.end(path, Work::Push);
            }
            EventKind::PushFailed { path, .. } => self.end(path, Work::Push),
            EventKind::Ended {
                outcome,
                built,
                fetched,
                present,
                failed,
                presence,
            } => {
                self.running.clear();
                self.presence = *presence;
                self.ended = Some(*outcome);
                self.counts = Counts {
                    built: *built,
                    fetched: *fetched,
                    present: *present,
                    failed: *failed,
                    pushed: self.counts.pushed,
                };
            }
            EventKind::ImportDone { .. }
            | EventKind::ImportFailed { .. }
            | EventKind::TargetDone { .. }
            | EventKind::TargetFailed { .. }
            | EventKind::Message { .. } => {}
        }
    }

    fn set(&mut self, derivation: &StorePath, standing: Standing) {
        self.derivations.insert(derivation.clone(), standing);
    }

    fn begin(&mut self, path: &StorePath, work: Work, node: &str, now: u64) {
        if matches!(work, Work::Fetch | Work::Push) {
            // It may begin again, from somebody else, without having been told of as failed.
            self.end(path, work);
        }
        self.running.push(Running {
            path: path.clone(),
            work,
            node: node.to_owned(),
            since: now,
            last_line: String::new(),
        });
    }

    fn end(&mut self, path: &StorePath, work: Work) {
        self.running
            .retain(|running| running.work != work || running.path != *path);
    }

    /// Whether a build of it has begun, so that it has a log.
    pub(super) fn has_begun(&self, derivation: &StorePath) -> bool {
        self.is_running(derivation) || self.failed_early.contains(derivation)
    }

    /// Whether a line of its log has come.
    pub(super) fn has_said_something(&self, derivation: &StorePath) -> bool {
        let mut running = self.running.iter();
        running.any(|running| running.is_build_of(derivation) && !running.last_line.is_empty())
    }

    fn is_running(&self, derivation: &StorePath) -> bool {
        self.running.iter().any(|running| running.is_build_of(derivation))
    }

    fn end_build(&mut self, derivation: &StorePath) {
        self.set(derivation, Standing::Over);
        self.placed.remove(derivation);
        self.running.retain(|running| !running.is_build_of(derivation));
    }
}

impl Running {
    fn is_build_of(&self, derivation: &StorePath) -> bool {
        matches!(self.work, Work::Build(_)) && self.path == *derivation
    }
}

/// What a derivation or path is called in a sentence: its name, without `.drv`.
pub fn called(path: &StorePath) -> &str {
    let name = path.name();
    name.strip_suffix(".drv").unwrap_or(name)
}
