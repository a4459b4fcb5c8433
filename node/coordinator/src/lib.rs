//! Decides what is asked, fetched, pushed and built, where and in which order.
//!
//! One [`Coordinator`] per node serves several commands ([sessions](SessionId)) at once. It is a pure
//! state machine: [`Event`]s in, [`Action`]s out. The caller carries the actions out, in their order,
//! and reports back; the coordinator itself has no I/O, no clock, no threads and no randomness, so a
//! thousand nodes run in one deterministic test.
//!
//! # What it guarantees
//!
//! - What can be had (own store, desired store, peers, caches) is not built, nor is anything that
//!   only it would need.
//! - What an evaluation waits for goes before what a target needs, and that before speculation:
//!   derivations that were instantiated while nobody is known to need them. Speculation uses only
//!   slots of this node that nothing demanded wants, and its failure never ends a command.
//! - Sessions that want the same derivation with the same `NIX_BUILD_CORES` share one build. With
//!   different ones they do not share it; the second waits, and takes the first one's outputs if
//!   there are any, because what is present is not built. A shared build has the widest limits of
//!   those who shared it when it was placed; one that is stopped by a limit fails only for sessions
//!   that would not have let it go on.
//! - A session that ends takes along only what nobody else wants.
//! - A session that checks builds its targets again on this node, where their outputs are, once what
//!   they read is here; it shares that with nobody.
//! - Builders that refuse, vanish or fall silent are replaced, a bounded number of times.
//! - What several builders have to agree on ([`Quorum`]) is built once by each of as many of them as are
//!   needed, and by nobody else. Their results are compared by the caller; where they differ, or too few
//!   can build it, the derivation fails.
//! - Every session that is told [`Ended`](tvix_node_protocol::control::EventKind::Ended) is told
//!   nothing after it, and every session ends if its evaluation does and what was asked for is
//!   answered.
//!
//! # What it is not for
//!
//! It does not check signatures, policies or content: what it is told has been checked. It does not
//! know closures: fetches and pushes are of a path with its closure, and stores hold nothing without
//! its closure.
//!
//! ```
//! use std::collections::BTreeMap;
//! use tvix_node_coordinator::*;
//! use tvix_node_protocol::{StorePath, build::BuildLimits, control::{EventKind, SessionMode}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut coordinator = Coordinator::new(Config::new("laptop"));
//! let now = Time(0); // milliseconds since whenever the caller likes
//! let (systems, features) = (vec!["x86_64-linux".to_owned()], vec![]);
//! coordinator.handle(now, Event::OwnBuilder(OwnBuilder { slots: 2, systems, features }));
//!
//! let session = SessionId(1);
//! let options = SessionOptions {
//!     mode: SessionMode::Build, keep_going: false, jobs: None, cores: 0,
//!     limits: BuildLimits::NONE, to: None,
//! };
//! coordinator.handle(now, Event::SessionOpened { session, options });
//!
//! // A derivation arrives from the evaluator: where its output is, is asked at once.
//! let hello = StorePath::from_basename(b"gyc4xdr28k2dq4d1hkb3nzgwa5d43q8l-hello.drv")?;
//! let output = StorePath::from_basename(b"0c6kzph7l0dcbfmjap64f0czdafn3b7x-hello")?;
//! let derivation = Derivation {
//!     path: hello.clone(),
//!     outputs: BTreeMap::from([("out".to_owned(), output.clone())]),
//!     inputs: vec![], sources: vec![],
//!     system: "x86_64-linux".to_owned(), required_features: vec![],
//!     prefer_local: false, fixed_output: false, quorum: None,
//! };
//! let actions = coordinator.handle(now, Event::Instantiated { session, derivations: vec![derivation] });
//! let Some(Action::AskPresence { question, .. }) = actions.last() else { panic!("{actions:?}") };
//!
//! // Nobody has it, and there are slots that nothing demanded wants: it is built at once, here.
//! let nowhere = PathPresence { path: output.clone(), own: false, desired: false, sources: vec![], unheard: false, nar_size: None };
//! let actions = coordinator.handle(now, Event::Presence { question: *question, paths: vec![nowhere] });
//! let Some(Action::BuildHere { build, demanded: false, .. }) = actions.last() else { panic!("{actions:?}") };
//!
//! // The target is named and the build finishes: the session ends by itself.
//! let outputs = vec!["out".to_owned()];
//! let name = "hello".to_owned();
//! coordinator.handle(now, Event::TargetNamed { session, target: 0, name, derivation: hello, outputs });
//! coordinator.handle(now, Event::EvaluationEnded { session });
//! let outputs = BTreeMap::from([("out".to_owned(), BuiltPath { path: output, nar_size: 120 })]);
//! let delivery = Delivery::OwnStore;
//! let actions = coordinator.handle(Time(900), Event::BuildFinished { build: *build, outputs, delivery });
//! let ended = |action: &Action| matches!(action, Action::Tell { event: EventKind::Ended { built: 1, .. }, .. });
//! assert!(actions.iter().any(ended));
//! # Ok(())
//! # }
//! ```

pub mod action;
mod build;
mod builders;
mod check;
mod coordinator;
mod demand;
pub mod event;
mod failure;
mod goal;
mod graph;
mod history;
pub mod id;
mod intern;
mod lease;
pub mod limits;
mod line;
pub mod placement;
mod presence;
mod quorum;
mod result;
mod schedule;
mod session;
mod session_set;
mod settle;
mod slab;
mod timing;
mod transfer;
mod weighing;

pub use action::{Action, Refusal, Source, Urgency};
pub use coordinator::{BuildView, Config, Coordinator, SessionView};
pub use event::{
    BuildFailure, BuiltPath, CheckOutcome, Delivery, Derivation, Event, FailureKind, InputDerivation,
    OwnBuilder, PathPresence, PeerOffer, Quorum, SessionOptions,
};
pub use history::BuildDuration;
pub use id::{BuildId, FetchId, PushId, QuestionId, SessionId, Time};
