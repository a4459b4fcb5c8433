//! Cuts and failures below the file operations, for tests.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

/// Kinds of operations that change the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    MakeDirectory,
    MakeFile,
    Write,
    MakeSymlink,
    HardLink,
    CloneFile,
    Canonicalise,
    MakeWritable,
    Rename,
    Remove,
    Truncate,
    Sync,
    SyncFile,
    IndexWrite,
    IndexGrow,
    IndexSync,
}

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing.
    Pass,
    /// The step with this number, from 0, fails; later ones pass.
    Fail(u64, Errno),
    /// From this step on, steps that take space fail.
    Full(u64),
    /// The process is killed at this step, before it happens.
    Kill(u64),
}

#[derive(Debug)]
struct State {
    plan: Mutex<Plan>,
    count: AtomicU64,
    dirty: AtomicU64,
    log: Mutex<Option<Vec<Step>>>,
}

/// Shared by a store's disk and index.
#[derive(Debug, Clone)]
pub(crate) struct Faults(Arc<State>);

impl Default for Faults {
    fn default() -> Self {
        Self(Arc::new(State {
            plan: Mutex::new(Plan::Pass),
            count: AtomicU64::new(0),
            dirty: AtomicU64::new(0),
            log: Mutex::new(None),
        }))
    }
}

impl Faults {
    /// Counts steps from here.
    pub(crate) fn set(&self, plan: Plan) {
        *self.0.plan.lock().unwrap() = plan;
        self.0.count.store(0, Ordering::SeqCst);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.count.load(Ordering::SeqCst)
    }

    /// What the system would say that all programs have written and the disks do not have yet.
    pub(crate) fn set_dirty_bytes(&self, bytes: u64) {
        self.0.dirty.store(bytes, Ordering::SeqCst);
    }

    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.0.dirty.load(Ordering::SeqCst)
    }

    /// Records all steps from here.
    pub(crate) fn record(&self) {
        *self.0.log.lock().unwrap() = Some(Vec::new());
    }

    pub(crate) fn recorded(&self) -> Vec<Step> {
        self.0.log.lock().unwrap().take().unwrap_or_default()
    }

    pub(crate) fn reach(&self, step: Step) -> Result<(), Errno> {
        if let Some(log) = self.0.log.lock().unwrap().as_mut() {
            log.push(step);
        }
        let number = self.0.count.fetch_add(1, Ordering::SeqCst);
        let plan = *self.0.plan.lock().unwrap();
        match plan {
            Plan::Fail(at, errno) if at == number => Err(errno),
            Plan::Full(from) if number >= from && takes_space(step) => Err(Errno::NOSPC),
            Plan::Kill(at) if at == number => {
                let own = rustix::process::getpid();
                rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
                unreachable!("a killed process goes on")
            }
            _ => Ok(()),
        }
    }
}

fn takes_space(step: Step) -> bool {
    matches!(
        step,
        Step::MakeDirectory
            | Step::MakeFile
            | Step::Write
            | Step::MakeSymlink
            | Step::HardLink
            | Step::CloneFile
            | Step::IndexGrow
    )
}
