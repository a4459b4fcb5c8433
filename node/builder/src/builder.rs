//! The builder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tvix_node_protocol::nix::derivation::Derivation;

use crate::StorePath;
use crate::build_spec::{BuildEvent, BuildSpec, Built};
use crate::cgroup::ControlGroups;
use crate::config::Config;
use crate::diagnosis::SandboxError;
use crate::error::{BuildError, Cause, Refused, StartError};
use crate::sandbox::Landlock;
use crate::spare::Spare;
use crate::{cgroup, network, probe, refusal, remove, run, scratch};

/// Which slots are in use.
#[derive(Debug, Clone, Default)]
struct Slots(Arc<Mutex<BTreeSet<u32>>>);

/// A slot in use, until dropped.
struct TakenSlot {
    slots: Slots,
    number: u32,
}

impl Slots {
    fn take(&self, number: u32) -> Option<TakenSlot> {
        let new = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number);
        let slots = self.clone();
        new.then_some(TakenSlot { slots, number })
    }
}

impl Drop for TakenSlot {
    fn drop(&mut self) {
        let mut slots = self.slots.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.remove(&self.number);
    }
}

/// Runs builds. Cheap to clone; builds run at once as long as their slots differ.
#[derive(Debug, Clone)]
pub struct Builder {
    config: Arc<Config>,
    slots: Slots,
    spare: Spare,
}

impl Builder {
    /// Takes the folder for builds, and removes what a killed node left in it. Blocks while it does.
    ///
    /// # Errors
    /// [`StartError`] where that cannot be done.
    pub fn new(config: Config) -> Result<Self, StartError> {
        scratch::prepare(&config.scratch)?;
        cgroup::remove_leftovers();
        Ok(Self {
            config: Arc::new(config),
            slots: Slots::default(),
            spare: Spare::default(),
        })
    }

    /// What it was told.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether a derivation can be built here, for the owner of this node or for another.
    ///
    /// # Errors
    /// The first reason against it, by name.
    pub fn check(
        &self,
        derivation: &Derivation,
        drv_path: &StorePath,
        for_another: bool,
    ) -> Result<(), Refused> {
        refusal::check(&self.config, derivation, drv_path, for_another).map(|_| ())
    }

    /// Why fixed-output builds have no way to the network but the proxy, although they are to have one; none where
    /// they have it or are not to.
    #[must_use]
    pub fn tunnel_missing(&self) -> Option<std::io::Error> {
        network::tunnel_available(&self.config)?.err()
    }

    /// What control groups do here for limits on memory. Blocks for a moment: it tries to make one.
    #[must_use]
    pub fn control_groups(&self) -> ControlGroups {
        ControlGroups::of_machine(self.config.control_groups)
    }

    /// Whether builds are confined by Landlock as well.
    #[must_use]
    pub fn landlock(&self) -> Landlock {
        Landlock::of_machine()
    }

    /// Builds.
    ///
    /// Events go to `events`, which slows the build down when it is full; the build goes on when nobody
    /// listens any more. The build is killed when `cancel` is cancelled, or when the future is dropped.
    /// All of its processes are dead when this returns, and nothing of a failed build is left.
    ///
    /// # Errors
    /// [`BuildError`], with the last lines of the log.
    pub async fn build(
        &self,
        spec: BuildSpec,
        events: mpsc::Sender<BuildEvent>,
        cancel: CancellationToken,
    ) -> Result<Built, BuildError> {
        let drv_path = spec.drv_path.clone();
        let cancel = cancel.child_token();
        // A task of its own, because killing and removing must go on where this future is dropped.
        let Some(slot) = self.slots.take(spec.slot) else {
            return Err(run::not_begun(drv_path, Cause::SlotTaken(spec.slot)));
        };
        let (config, spare) = (self.config.clone(), self.spare.clone());
        let build = run::build(config.clone(), spare.clone(), spec, events, cancel.clone());
        let build = tokio::spawn(async move {
            let result = build.await;
            drop(slot);
            spare.refill(config);
            result
        });
        let _cancel_when_dropped = cancel.drop_guard();
        match build.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends.
                Err(_) => Err(run::not_begun(drv_path, Cause::Cancelled)),
            },
        }
    }

    /// Makes a new folder for something that is kept, under [`Config::kept`] and private to its owner.
    ///
    /// # Errors
    /// [`Cause::Scratch`]
    pub fn kept_folder(&self, name: &str) -> Result<PathBuf, Cause> {
        scratch::new_folder(&self.config.kept, name)
    }

    /// Removes what was kept of a failed build ([`BuildError::kept`]), whatever the build left in it. Blocks.
    ///
    /// # Errors
    /// The system's, for the first thing that cannot be removed.
    pub fn remove_kept(&self, folder: &Path) -> std::io::Result<()> {
        remove::remove_tree(folder)
    }

    /// Whether sandboxes work on this machine: sets one up to the point where the builder program
    /// would be executed.
    ///
    /// # Errors
    /// [`SandboxError`] with what forbids it and the way out.
    pub async fn probe(&self) -> Result<(), SandboxError> {
        probe::probe(&self.config).await
    }
}
