//! Which candidate builds a derivation, and why: a small pure function on facts.

use tvix_node_protocol::envelope::NodeKey;

use crate::action::Urgency;

/// What it costs to reach a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Round trip in milliseconds.
    pub round_trip: u32,
    /// Bytes per second, as measured.
    pub bandwidth: u64,
}

/// A place where a derivation could be built now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node; none: this one.
    pub node: Option<NodeKey>,
    /// What people call it.
    pub name: String,
    /// Slots free, this build's included.
    pub slots_free: u32,
    /// Slots in all.
    pub slots: u32,
    /// Bytes of the inputs that are there, where that is known.
    pub bytes_there: Option<u64>,
    /// The link to it; none for this node.
    pub link: Option<Link>,
}

/// What is known of a derivation that is to be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// How badly it is wanted.
    pub urgency: Urgency,
    /// Bytes of its input closure, where known.
    pub input_bytes: Option<u64>,
    /// Cheap enough that moving it is a waste.
    pub prefer_local: bool,
}

/// Cost of building in a place, in milliseconds of waiting; the lowest wins, the first among equals.
/// This node stands first, then peers in the order of their keys.
pub type CostModel = fn(&Job, &Candidate) -> u64;
