//! The swarm.
mod disk;
pub mod gate;
pub mod identity;
pub mod invitations;
pub mod limits;
mod net;
pub mod presence;
pub mod roster;
pub mod standing;
