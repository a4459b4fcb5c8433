//! Whom this node believes about a path. Pure: no clock, no network, no disk.
//!
//! A path is accepted because
//!
//! - it names itself: its content address gives its store path, and the content is checked when it comes;
//! - or a member with the role `build` signed a record for exactly this content, **and every input that the
//!   record names is accepted**, as exactly the content that it names. A requester could otherwise have a
//!   trojaned compiler used under gcc's name, and an honest builder's record would spread what it made;
//! - or a member with the role `store`, asked itself, says so.

use std::collections::BTreeMap;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildRecord;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::messages::Shown;
use tvix_node_protocol::nix::hash::CAHash;
use tvix_node_protocol::nix::store_path::build_ca_path;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::roster::Role;
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_swarm::roster::Members;

/// What the policy says of a path as a member shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is believed.
    Accepted(Origin),
    /// A record would speak for it if these inputs were accepted with this content.
    Needs(Vec<(StorePath, TreeDigest)>),
    /// It is not believed, and why.
    Refused(String),
}

/// Content of paths that is accepted already.
pub type Accepted = BTreeMap<StorePath, TreeDigest>;

/// Whether the store path follows from the content address given, so that nobody needs to be believed:
/// content with another address is refused when it comes.
pub fn names_itself(info: &PathInfo) -> bool {
    let Some(ca) = info.ca.as_deref().and_then(|ca| CAHash::parse(ca).ok()) else {
        return false;
    };
    let others = info
        .references
        .iter()
        .filter(|reference| **reference != info.path);
    let refers_to_itself = info.references.contains(&info.path);
    build_ca_path(info.path.name(), &ca, others, refers_to_itself).is_ok_and(|path| path == info.path)
}

/// The record that was shown with a path, where it is one for exactly this content by somebody whose
/// records count.
pub fn speaking_record(members: &Members, shown: &Shown) -> Result<BuildRecord, String> {
    let envelope = shown.record.as_ref().ok_or("no build record was shown")?;
    let record = opened(envelope)?;
    if !members.may(record.builder, Role::Build) {
        return Err(format!(
            "it was built by {}, whose records do not count here: it does not have the role 'build'",
            record.builder
        ));
    }
    let info = &shown.info;
    let same = record.outputs.values().any(|output| {
        output.path == info.path
            && output.tree == info.tree
            && output.nar_hash == info.nar_hash
            && output.nar_size == info.nar_size
            && output.references.iter().eq(&info.references)
    });
    if !same
        || info
            .deriver
            .as_ref()
            .is_some_and(|deriver| *deriver != record.derivation)
    {
        return Err("the build record shown is for something else".to_owned());
    }
    Ok(record)
}

fn opened(envelope: &Envelope) -> Result<BuildRecord, String> {
    let record: BuildRecord = envelope
        .open()
        .map_err(|error| format!("the build record shown does not hold: {error}"))?;
    if record.builder != envelope.signer {
        return Err("the build record shown is signed by another than the builder it names".to_owned());
    }
    Ok(record)
}

/// Whether the word of a member with the role `store` is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It is: the member is asked what it has.
    Counts,
    /// It is not: the member wants something of this node, and what it says is its own request's matter.
    DoesNotCount,
}

/// Judges what the member `peer` shows of a path. `accepted` has what is accepted of the inputs of its
/// record, as far as known.
pub fn judge(members: &Members, peer: NodeKey, shown: &Shown, accepted: &Accepted, word: Word) -> Verdict {
    if names_itself(&shown.info) {
        return Verdict::Accepted(Origin::Content);
    }
    let spoken = speaking_record(members, shown);
    let mut needs = Vec::new();
    if let Ok(record) = &spoken {
        let mut contradicted = false;
        for input in &record.inputs {
            match accepted.get(&input.path) {
                Some(tree) if *tree == input.tree => {}
                Some(_) => contradicted = true,
                None => needs.push((input.path.clone(), input.tree)),
            }
        }
        if !contradicted && needs.is_empty() {
            return Verdict::Accepted(Origin::Record {
                builder: record.builder,
            });
        }
        if contradicted {
            needs.clear();
        }
    }
    if word == Word::Counts && members.may(peer, Role::Store) {
        return Verdict::Accepted(Origin::Peer { peer });
    }
    if !needs.is_empty() {
        return Verdict::Needs(needs);
    }
    let path = &shown.info.path;
    let why = match spoken {
        Ok(record) => format!(
            "it was built by {} from an input that is something else here",
            record.builder
        ),
        Err(why) => why,
    };
    let no_word = match word {
        Word::Counts => format!("{peer} does not have the role 'store', on whose word it could be taken"),
        Word::DoesNotCount => "nobody's word is taken for the inputs of his own request".to_owned(),
    };
    Verdict::Refused(format!(
        "{path} from {peer} is not accepted: {why}, and {no_word}"
    ))
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "policy_worlds.rs"]
mod worlds;
