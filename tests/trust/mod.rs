//! Members that lie, against real nodes: what is refused, and that nothing false is ever spread.
//!
//! The liar is in this process and speaks the swarm's protocols itself; who is lied to is the program as
//! users have it.

#![allow(
    clippy::unwrap_used,
    reason = "what a scene needs and cannot have ends its test"
)]

mod fixed_outputs;
mod mallory;
mod poisoning;
mod refusals;
