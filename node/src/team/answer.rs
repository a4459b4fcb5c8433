//! What a builder answers, held against what it was asked for. Pure.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildRecord, Input};
use tvix_node_protocol::nix::derivation::Derivation;
use tvix_node_protocol::path_info::{Origin, PathInfo};

/// A derivation to be asked for, and what it reads.
pub(super) struct Asked {
    pub(super) derivation: Derivation,
    pub(super) outputs: BTreeMap<String, StorePath>,
    pub(super) inputs: Vec<Input>,
}

/// The outputs as this node will know them. Everything the record says must follow from what was asked.
///
/// # Errors
/// What does not follow, in words.
pub(super) fn described(
    asked: &Asked,
    deriver: &StorePath,
    record: &BuildRecord,
) -> Result<BTreeMap<String, PathInfo>, String> {
    if !record.outputs.keys().eq(asked.outputs.keys()) {
        return Err("it names other outputs than the derivation has".to_owned());
    }
    let same = record.inputs.iter().map(|input| (&input.path, &input.tree));
    if !same.eq(asked.inputs.iter().map(|input| (&input.path, &input.tree))) {
        return Err("it names other inputs than were asked to be used".to_owned());
    }
    let own: BTreeSet<&StorePath> = asked.outputs.values().collect();
    let mut infos = BTreeMap::new();
    for (name, output) in &record.outputs {
        if asked.outputs.get(name) != Some(&output.path) {
            return Err(format!("it puts the output '{name}' at {}", output.path));
        }
        let stray = output.references.iter().find(|reference| {
            let input = asked.inputs.binary_search_by(|input| input.path.cmp(reference));
            input.is_err() && !own.contains(reference)
        });
        if let Some(stray) = stray {
            return Err(format!(
                "the output '{name}' refers to {stray}, which is no input of the build"
            ));
        }
        let fixed = asked
            .derivation
            .outputs()
            .get(name)
            .and_then(|output| output.fixed_content_address());
        let ca = fixed.map(|ca| ca.to_nix_string());
        let info = PathInfo {
            path: output.path.clone(),
            tree: output.tree,
            nar_hash: output.nar_hash,
            nar_size: output.nar_size,
            references: output.references.iter().cloned().collect(),
            deriver: Some(deriver.clone()),
            ca,
            origin: Origin::Record {
                builder: record.builder,
            },
            registered: 0,
            signatures: Vec::new(),
        };
        infos.insert(name.clone(), info);
    }
    Ok(infos)
}
