//! Decides what is asked, fetched, pushed and built, where and in which order.
//!
//! The coordinator of a node is a pure state machine: [`Event`]s in, [`Action`]s out. The caller
//! carries the actions out and reports back.

pub mod action;
pub mod event;
pub mod id;
pub mod limits;
pub mod placement;

pub use action::{Action, Refusal, Source, Urgency};
pub use event::{
    BuildFailure, BuiltPath, Delivery, Derivation, Event, FailureKind, InputDerivation, OwnBuilder,
    PathPresence, PeerOffer, SessionOptions,
};
pub use id::{BuildId, FetchId, PushId, QuestionId, SessionId, Time};
