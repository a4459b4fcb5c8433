//! The Nix language: expressions in, values and a stream of derivations out.
//!
//! This crate evaluates Nix expressions as Nix does, and hands every derivation to its [`Host`] at the moment it
//! is instantiated, while the evaluation still runs. It builds nothing, stores nothing and opens no connection:
//! files, store and builds are the host's.
//!
//! Compatible with current Nix: values, laziness, errors (to the letter where that is reasonable), string context,
//! and derivations byte for byte. Not there: flakes and the inputs that belong to them,
//! floating content-addressed, impure and dynamic derivations. What is not there is refused by name.
//!
//! The code is a pipeline. [`syntax`] makes trees of texts, `compile` makes code of trees (or finds it in the `cache`), `evaluation` makes values of
//! code in a `heap`, `builtins` and `derivation` are what code can call; `run` and `schedule` evaluate targets as
//! coroutines over one heap.
//!
//! The wiring side is small: [`Options`] say how, [`Target`]s say what, a [`Host`] serves the effects, and
//! [`Event`]s tell what each target came to. [`evaluate`] runs it all on the calling thread. [`DryRun`] is a host
//! that only computes.
//!
//! ```
//! use tvix_node_evaluator::{
//!     Action, DryRun, Event, ExpressionSource, Format, Options, Target, evaluate,
//! };
//!
//! let target = Target {
//!     source: ExpressionSource::Text("{ greeting = \"hello\"; numbers = map (x: x * x) [ 1 2 3 ]; }".to_owned()),
//!     attribute: String::new(),
//!     action: Action::Print(Format::Strict),
//! };
//! let mut printed = Vec::new();
//! let summary = evaluate(&Options::default(), &[target], &DryRun::default(), &mut |event| {
//!     if let Event::Value { text, .. } = event {
//!         printed = text;
//!     }
//! });
//! assert_eq!(summary.expect("the options are valid").failures, 0);
//! assert_eq!(printed, b"{ greeting = \"hello\"; numbers = [ 1 4 9 ]; }");
//! ```

mod attribute_path;
mod builtins;
mod cache;
mod code;
mod compile;
mod coroutine;
mod derivation;
mod dry_run;
mod error;
mod evaluation;
mod fetch;
mod heap;
mod host;
mod json;
pub mod limits;
mod options;
mod print;
pub mod pure;
mod run;
mod schedule;
pub mod syntax;
mod target;
mod xml;

pub use dry_run::{DryRun, source_path};
pub use error::Rendered;
pub use fetch::{Fetch, Fetched, GitFetch, GitRevision, MercurialFetch, MercurialRevision};
pub use host::{
    FileKind, Host, HostError, Ingestion, Instantiated, MessageKind, Realised, Source, Ticket, Wanted,
};
pub use options::{Argument, Options, Reading, SearchPathEntry};
pub use run::evaluate;
pub use target::{Action, Event, ExpressionSource, Format, NamedDerivation, Summary, Target};
