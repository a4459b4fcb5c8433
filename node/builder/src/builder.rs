//! The builder.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tvix_node_protocol::nix::derivation::Derivation;

use crate::build_spec::{BuildEvent, BuildSpec, Built};
use crate::config::Config;
use crate::diagnosis::SandboxError;
use crate::error::{BuildError, Cause, Refused, StartError};
use crate::{probe, refusal, run, scratch};

/// Runs builds. Cheap to clone; builds run at once as long as their slots differ.
#[derive(Debug, Clone)]
pub struct Builder {
    config: Arc<Config>,
}

impl Builder {
    /// Takes the folder for builds, and removes what a killed node left in it. Blocks while it does.
    ///
    /// # Errors
    /// [`StartError`] where that cannot be done.
    pub fn new(config: Config) -> Result<Self, StartError> {
        scratch::prepare(&config.scratch)?;
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// What it was told.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether a derivation can be built here.
    ///
    /// # Errors
    /// The first reason against it, by name.
    pub fn check(&self, derivation: &Derivation) -> Result<(), Refused> {
        refusal::check(&self.config, derivation).map(|_| ())
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
        let build = tokio::spawn(run::build(self.config.clone(), spec, events, cancel.clone()));
        let _cancel_when_dropped = cancel.drop_guard();
        match build.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends.
                Err(_) => Err(BuildError {
                    drv_path,
                    cause: Box::new(Cause::Cancelled),
                    log_tail: Vec::new(),
                    disk_full: false,
                    kept: None,
                }),
            },
        }
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
