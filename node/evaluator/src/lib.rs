//! The Nix language: expressions in, values and a stream of derivations out.
//!
//! This crate evaluates Nix expressions as Nix does, and hands every derivation to its [`Host`] at the moment it
//! is instantiated, while the evaluation still runs. It builds nothing, stores nothing and opens no connection:
//! files, store and builds are the host's.
//!
//! The wiring side is small: [`Options`] say how, [`Target`]s say what, a [`Host`] serves the effects, and
//! [`Event`]s tell what each target came to. [`evaluate`] runs it all on the calling thread:
//! `evaluate(&Options, &[Target], &dyn Host, &mut dyn FnMut(Event)) -> Summary`.

mod error;
mod host;
pub mod limits;
mod options;
pub mod pure;
pub mod syntax;
mod target;

pub use error::Rendered;
pub use host::{
    FileKind, Host, HostError, Ingestion, Instantiated, MessageKind, Realised, Source, Ticket, Wanted,
};
pub use options::{Argument, Options, Reading, SearchPathEntry};
pub use target::{Action, Event, ExpressionSource, Format, NamedDerivation, Summary, Target};
