//! Whom this node believes about a path. Pure: no clock, no network, no disk.
//!
//! A path is accepted because
//!
//! - it names itself: its content address gives its store path, and the content is checked when it comes;
//! - or a member with the role `build` signed a record for exactly this content, **and every input that the
//!   record names is accepted**, as exactly the content that it names. A requester could otherwise have a
//!   trojaned compiler used under gcc's name, and an honest builder's record would spread what it made;
//! - or a member with the role `store`, asked itself, says so.
//!
//! Such a word does not tell what the path was made of. So it is not enough for what was made from a path for which the
//! owner's rules ask for more than a word, as far as that is known: there a record has to count, with every input.
//!
//! The owner's rules ([`TrustPolicy`]) ask for more: that this node built it, or that several named builders
//! signed that they made the same from the same inputs ([`quorum`]). What one builder says may not count at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildRecord, BuiltOutput, RecordInput};
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::messages::Shown;
use tvix_node_protocol::nix::hash::{CAHash, NixHash};
use tvix_node_protocol::nix::store_path::build_ca_path;
use tvix_node_protocol::path_info::{NarHash, Origin, PathInfo};
use tvix_node_protocol::roster::Role;
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_protocol::trust::{Requirement, TrustPolicy};
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
#[derive(Debug, Default)]
pub struct Accepted {
    /// What lies here under its name: that name stands for nothing else here.
    pub here: BTreeMap<StorePath, TreeDigest>,
    /// What is believed of what members have. Two of them may have made different things of one derivation, each of which
    /// is believed, and so is what was made of the one or the other.
    pub elsewhere: BTreeSet<(StorePath, TreeDigest)>,
}

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

/// The content address of a source with this archive, as paths in derivations and `builtins.path` make them.
pub fn source_address(nar_hash: NarHash) -> String {
    CAHash::Nar(NixHash::Sha256(nar_hash.0)).to_nix_string()
}

/// What is judged on.
#[derive(Clone)]
pub struct Grounds {
    /// Who has which role, in the team that is asked, or in each for what this node does by itself; none: this node takes
    /// part in no team, and nobody has any.
    pub members: Vec<Arc<Members>>,
    /// The owner's rules.
    pub policy: Arc<TrustPolicy>,
    /// This node, which needs no role to believe itself.
    pub me: NodeKey,
}

impl Grounds {
    /// Whether what a builder signed of a path counts.
    ///
    /// # Errors
    /// Why it does not, in words.
    pub fn counts(&self, builder: NodeKey, path: &StorePath) -> Result<(), String> {
        if builder == self.me {
            return Ok(());
        }
        if !self.may(builder, Role::Build) {
            return Err(format!(
                "it was built by {builder}, whose records do not count here: it does not have the role 'build'"
            ));
        }
        if self.policy.distrusts(builder, path) {
            return Err(format!(
                "it was built by {builder}, whose records do not count here: a rule of this node says so ('tvix-node trust')"
            ));
        }
        Ok(())
    }

    fn may(&self, node: NodeKey, role: Role) -> bool {
        self.members.iter().any(|members| members.may(node, role))
    }

    /// Whether the word of this member is enough for a path.
    fn takes_the_word_of(&self, peer: NodeKey, path: &StorePath) -> Result<(), String> {
        if !self.may(peer, Role::Store) {
            return Err(format!(
                "{peer} does not have the role 'store', on whose word it could be taken"
            ));
        }
        if self.policy.distrusts(peer, path) {
            return Err(format!(
                "the word of {peer} does not count here: a rule of this node says so"
            ));
        }
        Ok(())
    }

    /// Whoever is said to have made what is shown, or to have said so first, and of whom nothing counts here: he does not come
    /// in by the word of somebody who believes him.
    fn distrusted_maker(&self, shown: &Shown) -> Option<NodeKey> {
        let path = &shown.info.path;
        let signed = shown.record.as_ref().and_then(|record| opened(record).ok());
        let said = match shown.info.origin {
            Origin::Record { builder } => Some(builder),
            Origin::Peer { peer } => Some(peer),
            _ => None,
        };
        let mut makers = signed.map(|record| record.builder).into_iter().chain(said);
        makers.find(|maker| *maker != self.me && self.policy.distrusts(*maker, path))
    }
}

/// The record that was shown with a path, where it is one for exactly this content by somebody whose
/// records count.
pub fn speaking_record(grounds: &Grounds, shown: &Shown) -> Result<BuildRecord, String> {
    let envelope = shown.record.as_ref().ok_or("no build record was shown")?;
    let record = opened(envelope)?;
    let info = &shown.info;
    grounds.counts(record.builder, &info.path)?;
    let same = record.outputs.values().any(|output| is_content(output, info));
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

fn is_content(output: &BuiltOutput, info: &PathInfo) -> bool {
    output.path == info.path
        && output.tree == info.tree
        && output.nar_hash == info.nar_hash
        && output.nar_size == info.nar_size
        && output.references.iter().eq(&info.references)
}

/// Opens a record, whose signature must be that of the builder that it names.
///
/// # Errors
/// Why it does not hold, in words.
pub fn opened(envelope: &Envelope) -> Result<BuildRecord, String> {
    let record: BuildRecord = envelope
        .open()
        .map_err(|error| format!("the build record shown does not hold: {error}"))?;
    if record.builder != envelope.signer {
        return Err("the build record shown is signed by another than the builder it names".to_owned());
    }
    Ok(record)
}

/// What the builders of a quorum have come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuorumOutcome {
    /// As many as are needed made exactly this, all outputs alike, from these inputs.
    Agreed {
        /// Who.
        builders: Vec<NodeKey>,
        /// From what.
        inputs: Vec<RecordInput>,
    },
    /// Two of them made something else of the same inputs. What is in none of their records is not believed
    /// either: somebody is wrong, and it is not known who.
    Disagreed {
        /// Who made what.
        made: BTreeMap<NodeKey, TreeDigest>,
    },
    /// All that have built it agree, and they are not enough.
    TooFew {
        /// Who agrees.
        builders: Vec<NodeKey>,
        /// How many have to.
        needed: u32,
    },
}

/// What the records at hand say of a path, by the builders of `of`. `tree`: the content that is to be believed;
/// none: whichever they agree on.
pub fn quorum(
    grounds: &Grounds,
    (needed, of): (u32, &[NodeKey]),
    path: &StorePath,
    tree: Option<TreeDigest>,
    records: &[BuildRecord],
) -> QuorumOutcome {
    type Used<'a> = (&'a StorePath, Vec<(&'a StorePath, TreeDigest)>);
    type Made<'a> = BTreeMap<NodeKey, BTreeSet<Vec<(&'a str, &'a StorePath, TreeDigest)>>>;
    let of_path = |record: &BuildRecord| {
        let mut outputs = record.outputs.values();
        outputs
            .find(|output| output.path == *path)
            .map(|output| output.tree)
    };
    // Only what was made of the same inputs can be compared.
    let mut groups: BTreeMap<Used<'_>, (Made<'_>, &BuildRecord)> = BTreeMap::new();
    for record in records {
        if !of.contains(&record.builder)
            || of_path(record).is_none()
            || grounds.counts(record.builder, path).is_err()
        {
            continue;
        }
        let inputs = record
            .inputs
            .iter()
            .map(|input| (&input.path, input.tree))
            .collect();
        let outputs = record.outputs.iter();
        let outputs = outputs.map(|(name, output)| (name.as_str(), &output.path, output.tree));
        let (made, _) = groups
            .entry((&record.derivation, inputs))
            .or_insert_with(|| (Made::new(), record));
        made.entry(record.builder).or_default().insert(outputs.collect());
    }
    let mut most: Vec<NodeKey> = Vec::new();
    let mut agreed = None;
    for (made, example) in groups.values() {
        let different: BTreeSet<_> = made.values().flatten().collect();
        let has_it = |outputs: &Vec<(&str, &StorePath, TreeDigest)>| {
            let mut outputs = outputs.iter();
            outputs.any(|(_, other, made)| *other == path && tree.is_none_or(|tree| tree == *made))
        };
        if !different.iter().any(|outputs| has_it(outputs)) {
            continue;
        }
        if different.len() > 1 {
            let trees = made.iter().filter_map(|(builder, outputs)| {
                let outputs = outputs.iter().flatten();
                let mut made = outputs
                    .filter(|(_, other, _)| *other == path)
                    .map(|(_, _, tree)| *tree);
                Some((*builder, made.next_back()?))
            });
            return QuorumOutcome::Disagreed {
                made: trees.collect(),
            };
        }
        let builders: Vec<NodeKey> = made.keys().copied().collect();
        if builders.len() > most.len() {
            agreed = Some(example.inputs.clone());
            most = builders;
        }
    }
    match agreed {
        Some(inputs) if most.len() >= needed.max(1) as usize => QuorumOutcome::Agreed {
            builders: most,
            inputs,
        },
        _ => QuorumOutcome::TooFew {
            builders: most,
            needed,
        },
    }
}

impl QuorumOutcome {
    /// In words. `name`: what people call a node.
    pub fn describe(&self, name: impl Fn(NodeKey) -> String) -> String {
        let list = |nodes: &[NodeKey]| {
            nodes
                .iter()
                .map(|node| name(*node))
                .collect::<Vec<_>>()
                .join(", ")
        };
        match self {
            Self::Agreed { builders, .. } => format!("agreed: {} made the same", list(builders)),
            Self::Disagreed { made } => {
                let made: Vec<String> = made
                    .iter()
                    .map(|(node, tree)| format!("{} made the tree {tree}", name(*node)))
                    .collect();
                format!(
                    "disagreed: from the same inputs {}; 'tvix-node record' shows what each signed",
                    made.join(", ")
                )
            }
            Self::TooFew { builders, needed } if builders.is_empty() => {
                format!("too few: {needed} of the builders named have to agree, and none has built it")
            }
            Self::TooFew { builders, needed } => format!(
                "too few: {needed} of the builders named have to agree, and so far only {} made this",
                list(builders)
            ),
        }
    }
}

/// Whether the word of a member with the role `store` is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It is: the member is asked what it has.
    Counts,
    /// It is not: the member wants something of this node, and what it says is its own request's matter.
    DoesNotCount,
    /// It is not: a rule asks for more than that of something from which the path was made, and whoever is believed for the
    /// path alone need not have asked for it.
    InputsDecide,
}

/// How far the inputs of a record are accepted.
enum Inputs {
    Accepted,
    Unknown(Vec<(StorePath, TreeDigest)>),
    Contradicted,
}

fn weigh_inputs(inputs: &[RecordInput], accepted: &Accepted) -> Inputs {
    let mut unknown = Vec::new();
    for input in inputs {
        let wanted = (input.path.clone(), input.tree);
        match accepted.here.get(&input.path) {
            Some(tree) if *tree == input.tree => {}
            Some(_) => return Inputs::Contradicted,
            None if accepted.elsewhere.contains(&wanted) => {}
            None => unknown.push(wanted),
        }
    }
    if unknown.is_empty() {
        Inputs::Accepted
    } else {
        Inputs::Unknown(unknown)
    }
}

/// Judges what the member `peer` shows of a path. `records`: all that is at hand of what builders signed of the
/// path, the record shown included; needed where several have to agree. `accepted` has what is accepted of the
/// inputs of its records, as far as known.
pub fn judge(
    grounds: &Grounds,
    peer: NodeKey,
    shown: &Shown,
    records: &[BuildRecord],
    accepted: &Accepted,
    word: Word,
) -> Verdict {
    if names_itself(&shown.info) {
        return Verdict::Accepted(Origin::Content);
    }
    let path = &shown.info.path;
    let refused = |why: String| Verdict::Refused(format!("{path} from {peer} is not accepted: {why}"));
    let requirement = grounds.policy.for_path(path);
    if let Requirement::Quorum { needed, of } = requirement {
        return match quorum(grounds, (*needed, of), path, Some(shown.info.tree), records) {
            QuorumOutcome::Agreed { builders, inputs } => match weigh_inputs(&inputs, accepted) {
                Inputs::Unknown(needs) => Verdict::Needs(needs),
                Inputs::Contradicted => {
                    refused("its builders agree, and used an input that is something else here".to_owned())
                }
                Inputs::Accepted if !is_described(shown, records, of) => {
                    refused("what is shown of it is not what its builders signed".to_owned())
                }
                Inputs::Accepted => {
                    let shown = speaking_record(grounds, shown).ok().map(|record| record.builder);
                    let builder = shown.filter(|builder| builders.contains(builder));
                    match builder.or(builders.first().copied()) {
                        Some(builder) => Verdict::Accepted(Origin::Record { builder }),
                        None => refused("nobody has built it".to_owned()),
                    }
                }
            },
            outcome => refused(outcome.describe(|node| node.to_string())),
        };
    }
    let mut spoken = speaking_record(grounds, shown);
    if *requirement == Requirement::Own
        && let Ok(record) = &spoken
        && record.builder != grounds.me
    {
        spoken = Err(format!(
            "it was built by {}, and a rule of this node takes only what it built itself",
            record.builder
        ));
    }
    let inputs = spoken
        .as_ref()
        .map(|record| weigh_inputs(&record.inputs, accepted));
    if let (Ok(record), Ok(Inputs::Accepted)) = (&spoken, &inputs) {
        let builder = record.builder;
        return Verdict::Accepted(Origin::Record { builder });
    }
    let no_word = match word {
        Word::Counts if !requirement.takes_a_word() => {
            "nobody's word is enough for it, as a rule of this node says".to_owned()
        }
        Word::Counts => match (
            grounds.takes_the_word_of(peer, path),
            grounds.distrusted_maker(shown),
        ) {
            (Ok(()), None) => return Verdict::Accepted(Origin::Peer { peer }),
            (Ok(()), Some(maker)) => {
                format!(
                    "{peer} has it from {maker}, of whom nothing counts here: a rule of this node says so"
                )
            }
            (Err(why), _) => why,
        },
        Word::InputsDecide => {
            "nobody's word is enough for what was made from a path for which a rule of this node \
                               asks for more"
                .to_owned()
        }
        Word::DoesNotCount => "nobody's word is taken for the inputs of his own request".to_owned(),
    };
    let why = match (&spoken, inputs) {
        (Ok(_), Ok(Inputs::Unknown(needs))) => return Verdict::Needs(needs),
        (Ok(record), _) => format!(
            "it was built by {} from an input that is something else here",
            record.builder
        ),
        (Err(why), _) => why.clone(),
    };
    refused(format!("{why}, and {no_word}"))
}

/// Whether a record of one of these builders is for exactly what is shown, hashes and references included.
fn is_described(shown: &Shown, records: &[BuildRecord], of: &[NodeKey]) -> bool {
    let mut records = records.iter().filter(|record| of.contains(&record.builder));
    records.any(|record| {
        let deriver = shown.info.deriver.as_ref();
        deriver.is_none_or(|deriver| *deriver == record.derivation)
            && record
                .outputs
                .values()
                .any(|output| is_content(output, &shown.info))
    })
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "policy_worlds.rs"]
mod worlds;
