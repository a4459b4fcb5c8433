//! One derivation in one sandbox.
//!
//! A [`Builder`] runs a derivation's builder program in Linux namespaces, as an ordinary user and
//! without any other program, and shows it what Nix's sandbox shows: the same environment, paths,
//! user and group, and of the store exactly the inputs it is given.
//!
//! It is *not* a store: it neither fetches inputs nor registers outputs, and it believes the
//! derivation's output paths (check them first, see
//! [`check_output_paths`](tvix_node_protocol::nix::derivation::check_output_paths)). What comes out is
//! a folder per output that somebody hostile may have written: copy it without following links.
//!
//! A process with several threads cannot set up namespaces, so the builder starts the node's own
//! program again as a helper: `main` must begin with [`run_if_sandbox`].
//!
//! ```no_run
//! # use tvix_node_builder::*;
//! # async fn example(derivation: tvix_node_protocol::nix::derivation::Derivation, drv_path: StorePath,
//! #   inputs: Vec<BuildInput>) -> Result<(), Box<dyn std::error::Error>> {
//! let builder = Builder::new(Config::new("/home/me/.tvix-node/builds", Helper::this_program()))?;
//! builder.check(&derivation, &drv_path, false)?;
//! let (events, mut lines) = tokio::sync::mpsc::channel(64);
//! let cancel = tokio_util::sync::CancellationToken::new();
//! let build = builder.build(BuildSpec::new(derivation, drv_path, inputs), events, cancel);
//! let log = async {
//!     while let Some(event) = lines.recv().await {
//!         if let BuildEvent::Log(line) = event {
//!             println!("{}", String::from_utf8_lossy(&line));
//!         }
//!     }
//! };
//! let (built, ()) = tokio::join!(build, log);
//! let built = built?;
//! println!("{:?} after {:?}", built.outputs, built.timings.run);
//! built.discard().await;
//! # Ok(()) }
//! ```

mod build_spec;
mod builder;
mod cgroup;
mod channel;
mod closing;
mod compare;
mod config;
mod diagnosis;
mod disk;
mod environment;
mod error;
mod fetch;
mod held;
mod helper_process;
pub mod limits;
mod log;
mod nat;
mod network;
mod options;
mod output_checks;
mod outputs;
mod probe;
mod processes;
mod proxy;
mod references_graph;
mod refusal;
mod remove;
mod run;
mod sandbox;
mod scratch;
mod spare;
mod structured_attrs;
mod sys;
mod terminal;
mod unlinked;
mod watch;
mod wire;

pub use build_spec::{BuildEvent, BuildInput, BuildSpec, Built, GraphPath, Timings};
pub use builder::Builder;
pub use cgroup::{ControlGroups, GroupLayout};
pub use compare::{Difference, DifferenceKind};
pub use config::{Config, FIRST_BUILD_USER, Helper, Network, SANDBOX_ARGUMENT, SandboxPath};
pub use diagnosis::SandboxError;
pub use error::{BuildError, Cause, Chance, Refused, StartError};
pub use fetch::http::{Client, Downloaded};
pub use options::DerivationOptions;
pub use output_checks::{OutputCheckError, OutputChecks, PathFacts};
pub use proxy::address::AddressRange;
pub use sandbox::{Landlock, run_if_sandbox};
pub use tvix_node_protocol::StorePath;
