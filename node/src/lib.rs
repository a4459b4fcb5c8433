//! The node: owns a home, wires the parts together, and is what the program's commands call.
//!
//! | module | what it has |
//! |---|---|
//! | [`home`] | the folder that everything is kept in |
//! | [`config`] | what its owner configured |
//! | [`numbers`] | whole numbers and bounds, as people write them |
//! | [`daemon`] | the process that a home belongs to: store, coordinator, builder behind the control socket |
//! | [`background`] | commands find that process, or start it |
//! | [`worker`] | the evaluation in the process of a command, as the coordinator's worker |
//! | [`fetch`] | files, archives and Git repositories that expressions want fetched |
//! | [`command`] | what `build`, `instantiate`, `eval`, `run` and `shell` do |
//! | `upstream` | binary caches that paths are taken from |
//! | `team` | the node in its team: the swarm wired to store, coordinator and builder |
//! | [`namespace`] | programs that see the home's store at `/nix/store` |
//!
//! It is *not* where anything is decided: which derivation is built where and when is the
//! coordinator's, what a value is the evaluator's, what a build may see the builder's.
//!
//! A program that uses this crate calls [`take_over`] first thing:
//!
//! ```no_run
//! tvix_node::take_over();
//! let home = tvix_node::home::Home::locate().expect("a home");
//! println!("{}", home.root().display());
//! ```

pub mod background;
pub mod command;
pub mod config;
pub mod daemon;
mod descriptors;
pub mod fetch;
pub mod home;
pub mod namespace;
pub mod numbers;
mod team;
mod upstream;
pub mod worker;

pub use tvix_node_gateway as gateway;
pub use tvix_node_protocol as protocol;

/// Becomes a sandbox helper, or the program that is to run with the store in sight, where this
/// process was started as that; does not return then. Must come first in `main`: no thread may
/// exist yet.
pub fn take_over() {
    tvix_node_builder::run_if_sandbox();
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|first| first == namespace::ENTER_ARGUMENT)
    {
        let rest: Vec<_> = arguments.collect();
        let error = namespace::enter(&rest);
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

/// Whether builds can run on this machine. Sets up a sandbox in a temporary folder, so it takes some
/// milliseconds. `program` is the `tvix-node` program.
///
/// # Errors
/// What forbids it, and the way out, in words.
pub fn sandbox_probe(program: &std::path::Path, scratch: &std::path::Path) -> Result<(), String> {
    use tvix_node_builder::{Builder, Config, Helper};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let builder =
        Builder::new(Config::new(scratch, Helper::program(program))).map_err(|error| error.to_string())?;
    runtime
        .block_on(builder.probe())
        .map_err(|error| error.to_string())
}
