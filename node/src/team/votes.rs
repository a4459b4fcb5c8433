//! What follows from a build's record by the owner's rules, this node's own builds included.

use tvix_node_protocol::build::BuildRecord;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::trust::Requirement;

use super::policy::{QuorumOutcome, opened, quorum};
use super::trust::TrustBook;
use crate::daemon::depot::{Depot, DepotError};

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

/// How the record of a build stands whose inputs are accepted. The record of one of several builders that have
/// to agree is kept. `name`: what people call a node.
///
/// # Errors
/// See [`DepotError`].
pub async fn standing(
    depot: &Depot,
    trust: &TrustBook,
    record: &BuildRecord,
    envelope: &Envelope,
    name: impl Fn(NodeKey) -> String,
) -> Result<Standing, DepotError> {
    let grounds = trust.grounds();
    let builder = record.builder;
    let paths = || record.outputs.values().map(|output| &output.path);
    if let Some(why) = paths().find_map(|path| grounds.counts(builder, path).err()) {
        return Ok(Standing::Refused(why));
    }
    let (needed, of) = match grounds.policy.for_paths(paths()) {
        Requirement::Roster | Requirement::Sample { .. } => return Ok(Standing::Counts),
        Requirement::Own if builder == grounds.me => return Ok(Standing::Counts),
        Requirement::Own => {
            let why = "a rule of this node takes only what it built itself ('tvix-node trust')";
            return Ok(Standing::Refused(why.to_owned()));
        }
        Requirement::Quorum { needed, of } if of.contains(&builder) => (*needed, of.as_slice()),
        Requirement::Quorum { .. } => {
            let why = "it is none of the builders that have to agree ('tvix-node trust')";
            return Ok(Standing::Refused(why.to_owned()));
        }
    };
    let Some(output) = record.outputs.values().next() else {
        return Ok(Standing::Refused("it has no outputs".to_owned()));
    };
    let (path, kept) = (output.path.clone(), envelope.clone());
    // Kept before the others are looked at: of two that come at once, one sees both.
    let all = depot.blocking(move |store| {
        store.put_record(&kept)?;
        Ok(store.records_of(&path)?)
    });
    let all: Vec<BuildRecord> = all
        .await?
        .iter()
        .filter_map(|record| opened(record).ok())
        .collect();
    let outcome = quorum(&grounds, (needed, of), &output.path, Some(output.tree), &all);
    Ok(match outcome {
        // Those who agree have to have used what this build used.
        QuorumOutcome::Agreed { inputs, .. } if inputs == record.inputs => Standing::Counts,
        QuorumOutcome::Agreed { .. } | QuorumOutcome::TooFew { .. } => Standing::Vote,
        QuorumOutcome::Disagreed { .. } => Standing::Disagreed(outcome.describe(name)),
    })
}
