//! Which candidate builds a derivation, and why: a small pure function on facts.

use tvix_node_protocol::envelope::NodeKey;

use crate::action::Urgency;

/// What it costs to reach a node, as far as it has been measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// Round trip in milliseconds; none: not measured yet.
    pub round_trip: Option<u32>,
    /// Bytes per second; none: nothing large enough has been moved yet.
    pub bandwidth: Option<u64>,
}

impl Link {
    fn bandwidth(&self) -> u64 {
        self.bandwidth.unwrap_or(ASSUMED_BANDWIDTH).max(1)
    }
}

/// A place where a derivation could be built now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node; none: this one.
    pub node: Option<NodeKey>,
    /// What people call it.
    pub name: String,
    /// Slots free, this build's included; 0 on this node where builds for others give way to it.
    pub slots_free: u32,
    /// Slots in all.
    pub slots: u32,
    /// Bytes of the inputs that are there, where that is known.
    pub bytes_there: Option<u64>,
    /// The link to it; none for this node.
    pub link: Option<Link>,
    /// Bytes per second at which this node got what it fetched lately; none: not measured.
    pub own_bandwidth: Option<u64>,
    /// Hundredths of one core that its other work keeps busy.
    pub load: u32,
    /// Its cores; 0: not known.
    pub cores: u32,
    /// Milliseconds that a build of this package took there before; none: none has been seen.
    pub took: Option<u64>,
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
    /// Milliseconds that builds of this package took, wherever one has been seen; none: nowhere.
    pub took: Option<u64>,
}

/// Cost of building in a place, in milliseconds of waiting; the lowest wins, the first among equals.
/// This node stands first, then peers in the order of their keys.
pub type CostModel = fn(&Job, &Candidate) -> u64;

/// What a link is taken for while nothing is known of the inputs: as much as a small package with
/// its compiler.
const UNKNOWN_INPUTS: u64 = 256 << 20;

/// Bytes per second at which this node is taken to get what it lacks, until it has been measured.
const OWN_BANDWIDTH: u64 = 50 << 20;

/// Round trip that is assumed of a peer until it has been measured, in milliseconds: a local network.
const ASSUMED_ROUND_TRIP: u32 = 5;

/// Bandwidth that is assumed of a peer until something large has been moved, in bytes per second: an ordinary
/// local network.
const ASSUMED_BANDWIDTH: u64 = 100_000_000;

/// What a build is taken to last where none of its package has been seen, in milliseconds: only so much that a
/// machine whose owner keeps it busy is passed over for an equal one that is idle.
const UNKNOWN_BUILD: u64 = 100;

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
    let own = candidate.own_bandwidth.unwrap_or(OWN_BANDWIDTH).max(1);
    let bandwidth = candidate.link.map_or(own, |link| link.bandwidth());
    let moving = missing.saturating_mul(1000) / bandwidth;
    let way = candidate.link.map_or(0, |link| {
        u64::from(link.round_trip.unwrap_or(ASSUMED_ROUND_TRIP)).saturating_mul(2) + SENDING
    });
    // Who has not built it yet is taken to be as fast as those who have.
    let took = candidate.took.or(job.took).unwrap_or(UNKNOWN_BUILD);
    let capacity = u64::from(candidate.cores).saturating_mul(100);
    // What is busy with something else builds more slowly by as much, down to half as fast: it shares.
    let load = u64::from(candidate.load).min(capacity);
    let building = match took.saturating_mul(load).checked_div(capacity) {
        Some(longer) if candidate.took.is_none() => took.saturating_add(longer),
        // What was seen was under such a load, too.
        _ => took,
    };
    let used = u64::from(candidate.slots.saturating_sub(candidate.slots_free));
    let load = used.saturating_mul(200) / u64::from(candidate.slots.max(1));
    let unwise = if job.prefer_local && candidate.link.is_some() {
        NOT_WORTH_MOVING
    } else {
        0
    };
    moving
        .saturating_add(building)
        .saturating_add(way)
        .saturating_add(load)
        .saturating_add(unwise)
}

/// What is said of this node where it builds beside what it builds for others.
const LENT: &str = "what it builds for others gives way";

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
    } else if candidates.len() == 1 && best.slots_free == 0 {
        LENT.to_owned()
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
        0 => LENT.to_owned(),
        1 => "1 free slot".to_owned(),
        free => format!("{free} free slots"),
    };
    let mut facts = vec![match (best.bytes_there, job.input_bytes) {
        (Some(there), Some(total)) if there >= total => format!("has all {} of the inputs", size(total)),
        (Some(there), Some(total)) => format!("has {} of {} of the inputs", size(there), size(total)),
        _ => "cheapest by its link and load".to_owned(),
    }];
    let link = best.link.unwrap_or_default();
    if let Some(bandwidth) = link.bandwidth {
        facts.push(format!("{}/s", size(bandwidth)));
    }
    if let Some(round_trip) = link.round_trip {
        facts.push(format!("{round_trip} ms away"));
    }
    if let Some(took) = best.took {
        facts.push(format!(
            "built it before in {}.{} s",
            took / 1000,
            took % 1000 / 100
        ));
    }
    facts.push(slots);
    facts.join(", ")
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
