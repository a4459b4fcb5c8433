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

/// What a link is taken for while nothing is known of the inputs: as much as a small package with
/// its compiler.
const UNKNOWN_INPUTS: u64 = 256 << 20;

/// Bytes per second at which this node is taken to get what it lacks.
const OWN_BANDWIDTH: u64 = 50 << 20;

/// What sending a build away costs besides its bytes: a request, a record, the outputs' way back.
const SENDING: u64 = 50;

/// What it costs to move a build that its author says is not worth moving.
const NOT_WORTH_MOVING: u64 = 60_000;

/// The milliseconds a build waits for its inputs in a place, and a little for a place that is nearly
/// full, so that equal places share the work.
#[must_use]
pub fn waiting_time(job: &Job, candidate: &Candidate) -> u64 {
    let total = job.input_bytes.unwrap_or(UNKNOWN_INPUTS);
    let missing = match (candidate.bytes_there, candidate.link) {
        (Some(there), _) => total.saturating_sub(there),
        (None, Some(_)) => total,
        (None, None) => 0,
    };
    let bandwidth = candidate.link.map_or(OWN_BANDWIDTH, |link| link.bandwidth).max(1);
    let moving = missing.saturating_mul(1000) / bandwidth;
    let way = candidate
        .link
        .map_or(0, |link| u64::from(link.round_trip).saturating_mul(2) + SENDING);
    let used = u64::from(candidate.slots.saturating_sub(candidate.slots_free));
    let load = used.saturating_mul(200) / u64::from(candidate.slots.max(1));
    let unwise = if job.prefer_local && candidate.link.is_some() {
        NOT_WORTH_MOVING
    } else {
        0
    };
    moving
        .saturating_add(way)
        .saturating_add(load)
        .saturating_add(unwise)
}

/// What else the reason for a placement may have to say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Circumstances {
    pub(crate) speculative: bool,
    /// Nobody else could build it, free or not.
    pub(crate) only_capable: bool,
    /// What came of earlier tries, in words.
    pub(crate) before: Vec<String>,
    /// The builder that is silent and beside which this one starts.
    pub(crate) silent: Option<String>,
    /// How many builders have to agree on it.
    pub(crate) quorum: Option<u32>,
}

/// Chooses the cheapest candidate and says why.
pub(crate) fn choose(
    cost: CostModel,
    job: &Job,
    candidates: &[Candidate],
    circumstances: &Circumstances,
) -> Option<(Option<NodeKey>, String)> {
    let best = candidates.iter().min_by_key(|candidate| cost(job, candidate))?;
    let name = if best.node.is_some() {
        best.name.as_str()
    } else {
        "this node"
    };
    let why = if let Some(silent) = &circumstances.silent {
        let seconds = crate::limits::HEDGE_AFTER.as_secs();
        format!("{silent} has been silent for {seconds} s")
    } else if let Some(needed) = circumstances.quorum {
        match needed {
            0 | 1 => "the policy lets nobody else build it".to_owned(),
            needed => format!("one of the {needed} builders that have to agree"),
        }
    } else if circumstances.speculative {
        "a free slot that nothing demanded wants".to_owned()
    } else if circumstances.only_capable {
        "the only builder that can build it".to_owned()
    } else if best.node.is_none() && job.prefer_local {
        "not worth moving".to_owned()
    } else if candidates.len() == 1 {
        "the only builder that has free slots".to_owned()
    } else {
        weighed(job, best)
    };
    let mut reason = format!("{name}: {why}");
    if !circumstances.before.is_empty() {
        reason.push_str(&format!("; tried before: {}", circumstances.before.join("; ")));
    }
    Some((best.node, reason))
}

fn weighed(job: &Job, best: &Candidate) -> String {
    let slots = match best.slots_free {
        1 => "1 free slot".to_owned(),
        free => format!("{free} free slots"),
    };
    match (best.bytes_there, job.input_bytes) {
        (Some(there), Some(total)) if there >= total => {
            format!("has all {} of the inputs, {slots}", size(total))
        }
        (Some(there), Some(total)) => {
            format!("has {} of {} of the inputs, {slots}", size(there), size(total))
        }
        _ => format!("cheapest by its link and load, {slots}"),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        1_000_000..1_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!(
            "{}.{} GB",
            bytes / 1_000_000_000,
            bytes % 1_000_000_000 / 100_000_000
        ),
    }
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
