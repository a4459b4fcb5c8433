//! What follows from a build's record by the owner's rules, this node's own builds included.

use tvix_node_protocol::build::{BuildRecord, BuiltOutput};
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::trust::Requirement;

use super::policy::{Grounds, QuorumOutcome, opened, quorum};
use super::view::TeamView;
use crate::daemon::depot::{Depot, DepotError};
use tvix_node_store::Audience;

/// How a build's record stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Its outputs are believed.
    Counts,
    /// Others have to say the same first. It is kept.
    Vote,
    /// Another builder made something else of the same inputs. Both records are kept.
    Disagreed(String),
    /// It does not count.
    Refused(String),
}

/// What follows from a record by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ballot<'a> {
    /// All there is to it.
    Decided(Standing),
    /// It is one of several that have to agree.
    Open {
        /// How many.
        needed: u32,
        /// Who they are.
        of: &'a [NodeKey],
        /// What their records are found by.
        output: &'a BuiltOutput,
    },
}

/// What follows from the record of a build whose inputs are accepted, before those of others are looked at.
pub fn ballot<'a>(grounds: &'a Grounds, record: &'a BuildRecord) -> Ballot<'a> {
    let builder = record.builder;
    let paths = || record.outputs.values().map(|output| &output.path);
    let refused = |why: &str| Ballot::Decided(Standing::Refused(why.to_owned()));
    if let Some(why) = paths().find_map(|path| grounds.counts(builder, path).err()) {
        return refused(&why);
    }
    let (needed, of) = match grounds.policy.for_paths(paths()) {
        Requirement::Roster | Requirement::Sample { .. } => return Ballot::Decided(Standing::Counts),
        Requirement::Own if builder == grounds.me => return Ballot::Decided(Standing::Counts),
        Requirement::Own => {
            return refused("a rule of this node takes only what it built itself ('tvix-node trust')");
        }
        Requirement::Quorum { needed, of } if of.contains(&builder) => (*needed, of.as_slice()),
        Requirement::Quorum { .. } => {
            return refused("it is none of the builders that have to agree ('tvix-node trust')");
        }
    };
    match record.outputs.values().next() {
        Some(output) => Ballot::Open { needed, of, output },
        None => refused("it has no outputs"),
    }
}

/// What the records at hand of what `output` names come to, for one of them. `name`: what people call a node.
pub fn count(
    grounds: &Grounds,
    (needed, of): (u32, &[NodeKey]),
    output: &BuiltOutput,
    record: &BuildRecord,
    all: &[BuildRecord],
    name: impl Fn(NodeKey) -> String,
) -> Standing {
    let outcome = quorum(grounds, (needed, of), &output.path, Some(output.tree), all);
    match outcome {
        // Those who agree have to have used what this build used.
        QuorumOutcome::Agreed { inputs, .. } if inputs == record.inputs => Standing::Counts,
        QuorumOutcome::Agreed { .. } | QuorumOutcome::TooFew { .. } => Standing::Vote,
        QuorumOutcome::Disagreed { .. } => Standing::Disagreed(outcome.describe(name)),
    }
}

/// From which side a build is looked at.
pub enum Side<'a> {
    /// As the owner's own. It has to do with what these may learn of.
    Own(Audience),
    /// As one that a member of a team did, or wanted.
    Team(&'a TeamView),
}

/// How the record of a build stands whose inputs are accepted. The record of one of several builders that have
/// to agree is kept. `name`: what people call a node.
///
/// # Errors
/// See [`DepotError`].
pub async fn standing(
    depot: &Depot,
    (grounds, side): (&Grounds, Side<'_>),
    record: &BuildRecord,
    envelope: &Envelope,
    name: impl Fn(NodeKey) -> String,
) -> Result<Standing, DepotError> {
    let (needed, of, output) = match ballot(grounds, record) {
        Ballot::Decided(standing) => return Ok(standing),
        Ballot::Open { needed, of, output } => (needed, of, output),
    };
    let (path, kept) = (output.path.clone(), envelope.clone());
    let (audience, view) = match side {
        Side::Own(audience) => (audience, None),
        Side::Team(view) => (view.audience(), Some(view.clone())),
    };
    // Kept before the others are looked at: of two that come at once, one sees both.
    let all = depot.blocking(move |store| {
        store.put_record(&kept, &audience)?;
        let records = match &view {
            Some(view) => store.records_of_known_to(view.team(), &path)?,
            None => store.records_of(&path)?,
        };
        let records = records.iter().filter_map(|record| opened(record).ok());
        let seen = records.map(|record| match &view {
            Some(view) => view.as_seen(record),
            None => record,
        });
        Ok(seen.collect::<Vec<BuildRecord>>())
    });
    Ok(count(grounds, (needed, of), output, record, &all.await?, name))
}
