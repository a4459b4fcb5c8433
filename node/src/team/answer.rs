//! What a builder answers, held against what it was asked for. Pure.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildRecord, BuildRequest, Input, RequestHash};
use tvix_node_protocol::cbor::CborError;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::nix::derivation::Derivation;
use tvix_node_protocol::path_info::{Origin, PathInfo};

/// A derivation to be asked for, and what it reads.
pub(super) struct Asked {
    pub(super) derivation: Derivation,
    pub(super) outputs: BTreeMap<String, StorePath>,
    pub(super) inputs: Vec<Input>,
}

/// The record of a build of this node, by the key that the requester knows it by, made out to a request for the same
/// work: of equal inputs, whichever outputs are wanted. All of them were built.
///
/// # Errors
/// [`CborError::Encode`], which a checked request does not cause.
pub(super) fn made_out(
    record: BuildRecord,
    me: NodeKey,
    request: &BuildRequest,
    hash: RequestHash,
) -> Result<BuildRecord, CborError> {
    Ok(BuildRecord {
        build_key: request.build_key()?,
        request: Some(hash),
        builder: me,
        ..record
    })
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

#[cfg(test)]
mod tests {
    use tvix_node_protocol::build::{BuildKind, BuildLimits, BuildOptions, BuiltOutput, SwarmId, build_key};
    use tvix_node_protocol::envelope::{NodeSecret, seal};
    use tvix_node_protocol::path_info::NarHash;
    use tvix_node_protocol::tree::TreeDigest;

    use super::*;

    fn path(number: u8, name: &str) -> StorePath {
        StorePath::from_parts([number; 20], name).unwrap()
    }

    #[test]
    fn one_record_answers_requests_for_any_of_the_outputs() {
        let (builder, requester) = (NodeSecret::from_bytes(&[1; 32]), NodeSecret::from_bytes(&[2; 32]));
        let derivation = path(1, "a.drv");
        let all = ["dev".to_owned(), "out".to_owned()];
        let options = BuildOptions { cores: 0 };
        let built = |number: u8| BuiltOutput {
            path: path(number, "a"),
            tree: TreeDigest([number; 32]),
            nar_hash: NarHash([number; 32]),
            nar_size: 1,
            references: vec![],
        };
        let record = BuildRecord {
            build_key: build_key(&derivation, &[], &all, options).unwrap(),
            request: None,
            derivation: derivation.clone(),
            inputs: vec![],
            outputs: BTreeMap::from([("dev".to_owned(), built(2)), ("out".to_owned(), built(3))]),
            builder: builder.key(),
            started: 1,
            finished: 2,
            sandbox: String::new(),
        };
        for wanted in [&all[..1], &all[1..], &all[..]] {
            let request = BuildRequest {
                swarm: SwarmId([0; 32]),
                requester: requester.key(),
                builder: builder.key(),
                derivation: derivation.clone(),
                inputs: vec![],
                outputs: wanted.to_vec(),
                kind: BuildKind::Regular,
                desired_store: None,
                options,
                limits: BuildLimits::NONE,
                urgency: 0,
                fresh: false,
                keep_failed: false,
                nonce: [0; 16],
                issued_at: 0,
                not_after: 1,
            };
            let hash = RequestHash(seal(&request, &requester).unwrap().payload_hash());
            let answer = seal(
                &made_out(record.clone(), builder.key(), &request, hash).unwrap(),
                &builder,
            )
            .unwrap();
            let taken = request.answered_by(hash, &answer);
            assert_eq!(taken.map(|record| record.outputs.len()), Ok(2), "{wanted:?}");
        }
    }
}
