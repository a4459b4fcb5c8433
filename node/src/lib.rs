//! The node.
pub mod home;
pub mod namespace;
pub mod worker;
