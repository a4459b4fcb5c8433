//! Why a build did not happen, or did not succeed.

use std::io;
use std::path::PathBuf;

use tvix_node_protocol::build::BuildLimits;

use crate::StorePath;
use crate::diagnosis::SandboxError;

/// Why a derivation is not built here. Nothing has been started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The output's path would follow from its content.
    #[error(
        "output '{output}' is floating content-addressed, which is not supported; give it an output hash, or remove __contentAddressed"
    )]
    FloatingOutput {
        /// The output.
        output: String,
    },
    /// The output may differ every time.
    #[error(
        "output '{output}' is impure, which is not supported; give it an output hash, or remove __impure"
    )]
    ImpureOutput {
        /// The output.
        output: String,
    },
    /// The output's path depends on a content-addressed derivation.
    #[error(
        "the path of output '{output}' depends on a floating content-addressed derivation, which is not supported"
    )]
    DeferredOutput {
        /// The output.
        output: String,
    },
    /// The content address is of a kind that no builder makes.
    #[error(
        "output '{output}' is addressed by {method}, which is not supported; use a flat or recursive hash"
    )]
    OutputMethod {
        /// The output.
        output: String,
        /// How it is addressed.
        method: &'static str,
    },
    /// An input is an output of a derivation that is itself an output.
    #[error("the input {0} is a dynamic derivation, which is not supported")]
    DynamicInput(StorePath),
    /// It wants to run without a sandbox.
    #[error(
        "the derivation sets __noChroot, but builds always run in a sandbox here: remove it, or name '{0}' in \
         'no-chroot-in-sandbox' in config.toml, and your own node builds it in the sandbox all the same"
    )]
    NoChroot(String),
    /// It wants to see paths of the machine.
    #[error(
        "the derivation wants the machine's '{path}' (__impureHostDeps), which builds do not see here: name it in 'sandbox-paths' in config.toml, or remove it"
    )]
    HostPath {
        /// The first path that is not allowed.
        path: String,
    },
    /// Made for another machine.
    #[error("a '{wanted}' is required to build it, but this node builds for {available}")]
    System {
        /// The derivation's platform.
        wanted: String,
        /// What this node builds for.
        available: String,
    },
    /// Features this node does not have.
    #[error("the system features {missing} are required to build it, but this node has {available}")]
    Features {
        /// What is missing.
        missing: String,
        /// What this node has.
        available: String,
    },
    /// A builder inside of Nix that does not exist here.
    #[error("the builder 'builtin:{0}' is not supported")]
    Builtin(String),
    /// It needs the network, which is switched off.
    #[error("'builtin:fetchurl' needs the network, but this node gives builds none")]
    NoNetwork,
    /// An attribute that the builder must understand cannot be understood.
    #[error("the attribute '{name}' cannot be used: {reason}")]
    Attribute {
        /// Which.
        name: String,
        /// Why.
        reason: String,
    },
}

/// Why a builder cannot work at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The folder for builds cannot be used.
    #[error("the folder for builds '{path}' cannot be {action}: {source}", path = path.display())]
    Scratch {
        /// The folder, or what in it.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A build that did not succeed. Nothing of it is left, except what [`BuildError::kept`] names.
#[derive(Debug, thiserror::Error)]
#[error("building '{drv_path}' failed: {cause}{}", if *disk_full { " (the disk is full, which may be the reason)" } else { "" })]
#[non_exhaustive]
pub struct BuildError {
    /// What was to be built.
    pub drv_path: StorePath,
    /// Why it was not. Boxed, because it is larger than any success.
    #[source]
    pub cause: Box<Cause>,
    /// The last lines of the log, at most [`crate::limits::LOG_TAIL_LINES`].
    pub log_tail: Vec<String>,
    /// Whether the disk was full when it failed, which may be the reason.
    pub disk_full: bool,
    /// The build folder, where it was to be kept and could be.
    pub kept: Option<PathBuf>,
}

/// What may help where something cannot be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chance {
    /// Later it may be had.
    Later,
    /// Another machine may be allowed more, or have other certificates; this one will not have it.
    Elsewhere,
    /// Nothing: the server says that it is not there, say.
    None,
}

/// What ended a build.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// It cannot be built here; nothing was started.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Two builds may not have the same slot at once: they would be the same user.
    #[error("build slot {0} is in use by another build")]
    SlotTaken(u32),
    /// The sandbox could not be set up: the machine's fault, not the derivation's.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// What `builtin:fetchurl` wants cannot be had.
    #[error("'{url}' cannot be fetched: {reason}")]
    Fetch {
        /// What was wanted.
        url: String,
        /// Why not.
        reason: String,
        /// What may still help.
        chance: Chance,
    },
    /// The builder program could not be started.
    #[error("the builder '{builder}' could not be executed: {source}{hint}")]
    Execute {
        /// The program.
        builder: String,
        /// What the system said.
        source: io::Error,
        /// What it may mean.
        hint: &'static str,
    },
    /// The builder ended with a status other than 0.
    #[error("the builder failed with exit code {0}")]
    Exit(i32),
    /// The builder was killed.
    #[error("the builder was killed by signal {number} ({name})")]
    Signal {
        /// The signal.
        number: i32,
        /// Its name.
        name: &'static str,
    },
    /// It took too long.
    #[error("timed out after {0} seconds")]
    TimedOut(u64),
    /// It said nothing for too long.
    #[error("killed after {0} seconds of silence")]
    Silent(u64),
    /// It wrote too much log.
    #[error("killed after writing more than {0} bytes of log")]
    LogTooLarge(u64),
    /// It used too much disk.
    #[error("killed after using more than {0} bytes of disk")]
    DiskTooLarge(u64),
    /// It failed so, and this builder's disk is full: who has more room may build it. How full is not for everybody.
    #[error("{0}, and the disk of this builder is full")]
    DiskOfBuilder(Box<Cause>),
    /// It used more memory than this builder allows, though its own limit did not say so.
    #[error("killed after using more than the {0} bytes of memory that a build may use on this node")]
    MemoryOfBuilder(u64),
    /// It used too much memory.
    #[error("killed after using more than {0} bytes of memory")]
    MemoryTooLarge(u64),
    /// It had too many processes.
    #[error(
        "killed after having more than {0} processes and threads at once ('--max-build-processes' raises that, on other \
         members up to {most})", most = BuildLimits::PROCESSES
    )]
    TooManyProcesses(u64),
    /// It had more processes than this builder allows, though its own limit did not say so.
    #[error(
        "killed after having more than the {0} processes and threads at once that a build may have on this node"
    )]
    ProcessesOfBuilder(u64),
    /// It succeeded without producing an output.
    #[error("the builder succeeded, but did not produce the output '{output}' at {path}")]
    OutputMissing {
        /// The output.
        output: String,
        /// Where it should be.
        path: StorePath,
    },
    /// It produced something that cannot be an output.
    #[error("the output '{output}' at {path} is rejected: {reason}")]
    OutputRejected {
        /// The output.
        output: String,
        /// Where it is.
        path: StorePath,
        /// What is wrong with it.
        reason: String,
    },
    /// An input cannot be shown to the build.
    #[error("the input {path} cannot be used: {reason}")]
    Input {
        /// The input.
        path: StorePath,
        /// Why not.
        reason: String,
    },
    /// The folder of the build cannot be used: most often a full disk.
    #[error("'{path}' cannot be {action}: {source}", path = path.display())]
    Scratch {
        /// The folder or file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The helper that sets up and watches the sandbox ended without a word.
    #[error("the sandbox helper ended early ({0}); its last words may be in the log above")]
    HelperDied(String),
    /// It was asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Cause {
    /// Whether building again, here or elsewhere, may end differently: what failed is the machine or
    /// the moment and not the derivation.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::SlotTaken(_)
            | Self::Sandbox(_)
            | Self::Input { .. }
            | Self::Fetch {
                chance: Chance::Later | Chance::Elsewhere,
                ..
            }
            | Self::Scratch { .. }
            | Self::HelperDied(_)
            | Self::Cancelled => true,
            Self::Refused(_)
            | Self::Fetch {
                chance: Chance::None, ..
            }
            | Self::Execute { .. }
            | Self::Exit(_)
            | Self::Signal { .. }
            | Self::TimedOut(_)
            | Self::Silent(_)
            | Self::LogTooLarge(_)
            | Self::DiskTooLarge(_)
            | Self::MemoryTooLarge(_)
            | Self::TooManyProcesses(_)
            | Self::OutputMissing { .. }
            | Self::OutputRejected { .. }
            | Self::DiskOfBuilder(_)
            | Self::MemoryOfBuilder(_)
            | Self::ProcessesOfBuilder(_) => false,
        }
    }
}
