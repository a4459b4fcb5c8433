//! w
pub mod source;
