//! What follows from a build's record by the owner's rules, this node's own builds included.

use tvix_node_protocol::StorePath;
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
    /// It is one of several that have to agree, in each of these matters.
    Open(Vec<Matter<'a>>),
}

/// That on which several builders have to agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matter<'a> {
    /// How many.
    pub needed: u32,
    /// Who they are.
    pub of: &'a [NodeKey],
    /// What their records are found by. They say all that a build makes.
    pub output: &'a BuiltOutput,
}

/// What follows from the record of a build whose inputs are accepted, before those of others are looked at. Each of its
/// outputs is judged by the rule that is for it, and none is taken alone.
pub fn ballot<'a>(grounds: &'a Grounds, record: &'a BuildRecord) -> Ballot<'a> {
    let builder = record.builder;
    let refused = |why: String| Ballot::Decided(Standing::Refused(why));
    let mut matters: Vec<Matter<'a>> = Vec::new();
    for output in record.outputs.values() {
        let path = &output.path;
        if let Err(why) = grounds.counts(builder, path) {
            return refused(why);
        }
        match grounds.policy.for_path(path) {
            Requirement::Roster | Requirement::Sample { .. } => {}
            Requirement::Own if builder == grounds.me => {}
            Requirement::Own => {
                return refused(format!(
                    "a rule of this node takes for {path} only what it built itself ('tvix-node trust')"
                ));
            }
            Requirement::Quorum { needed, of } if of.contains(&builder) => {
                let (needed, of) = (*needed, of.as_slice());
                if !matters
                    .iter()
                    .any(|matter| (matter.needed, matter.of) == (needed, of))
                {
                    matters.push(Matter { needed, of, output });
                }
            }
            Requirement::Quorum { .. } => {
                return refused(format!(
                    "it is none of the builders that have to agree on {path} ('tvix-node trust')"
                ));
            }
        }
    }
    match (matters.is_empty(), record.outputs.is_empty()) {
        (_, true) => refused("it has no outputs".to_owned()),
        (true, false) => Ballot::Decided(Standing::Counts),
        (false, false) => Ballot::Open(matters),
    }
}

/// What the records at hand of what a matter names come to, for one of them. `name`: what people call a node.
fn count_one(
    grounds: &Grounds,
    matter: &Matter<'_>,
    record: &BuildRecord,
    all: &[BuildRecord],
    name: &impl Fn(NodeKey) -> String,
) -> Standing {
    let Matter { needed, of, output } = matter;
    let outcome = quorum(grounds, (*needed, of), &output.path, Some(output.tree), all);
    match outcome {
        // Those who agree have to have used what this build used.
        QuorumOutcome::Agreed { inputs, .. } if inputs == record.inputs => Standing::Counts,
        QuorumOutcome::Agreed { .. } | QuorumOutcome::TooFew { .. } => Standing::Vote,
        QuorumOutcome::Disagreed { .. } => Standing::Disagreed(outcome.describe(name)),
    }
}

/// What the records at hand come to, for one of them: it counts where enough agree in every matter. `all`: those for each
/// matter, in the order of these. `name`: what people call a node.
pub fn count(
    grounds: &Grounds,
    matters: &[Matter<'_>],
    record: &BuildRecord,
    all: &[Vec<BuildRecord>],
    name: impl Fn(NodeKey) -> String,
) -> Standing {
    let mut standing = Standing::Counts;
    for (matter, all) in matters.iter().zip(all) {
        match count_one(grounds, matter, record, all, &name) {
            Standing::Counts => {}
            Standing::Vote => standing = Standing::Vote,
            other => return other,
        }
    }
    standing
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
    let matters = match ballot(grounds, record) {
        Ballot::Decided(standing) => return Ok(standing),
        Ballot::Open(matters) => matters,
    };
    let paths: Vec<StorePath> = matters.iter().map(|matter| matter.output.path.clone()).collect();
    let kept = envelope.clone();
    let (audience, view) = match side {
        Side::Own(audience) => (audience, None),
        Side::Team(view) => (view.audience(), Some(view.clone())),
    };
    // Kept before the others are looked at: of two that come at once, one sees both.
    let all = depot.blocking(move |store| {
        store.put_record(&kept, &audience)?;
        let mut all = Vec::with_capacity(paths.len());
        for path in &paths {
            let records = match &view {
                Some(view) => store.records_of_known_to(view.team(), path)?,
                None => store.records_of(path)?,
            };
            let records = records.iter().filter_map(|record| opened(record).ok());
            let seen = records.map(|record| match &view {
                Some(view) => view.as_seen(record),
                None => record,
            });
            all.push(seen.collect::<Vec<BuildRecord>>());
        }
        Ok(all)
    });
    Ok(count(grounds, &matters, record, &all.await?, name))
}

#[cfg(test)]
#[path = "votes_tests.rs"]
mod tests;
