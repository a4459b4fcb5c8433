//! What the control socket's door asks about the team.

use tvix_node_gateway::control::ApiError;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildRecord;
use tvix_node_protocol::control::{
    FailureKind, InviteRequest, Invited, JoinRequest, Joined, MemberName, PeerView, RecordView, RenewRequest,
    TeamView,
};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::path_info::{Origin, PathInfo};

use super::api::{Api, failed};

fn no_team() -> ApiError {
    ApiError::new(
        FailureKind::NotFound,
        "this node takes part in no team yet: nodes do not talk to each other so far",
    )
}

/// Makes a ticket for one new member.
pub async fn invite(_api: &Api, _request: InviteRequest) -> Result<Invited, ApiError> {
    Err(no_team())
}

/// Redeems a ticket.
pub async fn join(_api: &Api, _request: JoinRequest) -> Result<Joined, ApiError> {
    Err(no_team())
}

/// Who is in the team.
pub async fn team(_api: &Api) -> Result<TeamView, ApiError> {
    Err(no_team())
}

/// Members there is a connection to.
pub async fn peers(_api: &Api) -> Result<Vec<PeerView>, ApiError> {
    Err(no_team())
}

/// Puts a member out of the team.
pub async fn revoke(_api: &Api, _member: MemberName) -> Result<(), ApiError> {
    Err(no_team())
}

/// Vouches for a member anew.
pub async fn renew(_api: &Api, _request: RenewRequest) -> Result<(), ApiError> {
    Err(no_team())
}

/// Leaves the team.
pub async fn leave(_api: &Api) -> Result<(), ApiError> {
    Err(no_team())
}

/// The signed records of the builds that made a path, the newest first.
pub async fn records(api: &Api, path: StorePath) -> Result<Vec<RecordView>, ApiError> {
    let wanted = path.clone();
    let envelopes = api
        .depot
        .blocking(move |store| Ok(store.records_of(&wanted)?))
        .await
        .map_err(failed)?;
    let info = match envelopes.is_empty() {
        // Nothing is known of it, so it should at least be here.
        true => Some(api.valid(&path).await?),
        false => api
            .depot
            .infos(vec![path.clone()])
            .await
            .map_err(failed)?
            .into_iter()
            .next(),
    };
    let mut records = Vec::with_capacity(envelopes.len());
    for envelope in envelopes {
        let mut view = RecordView::of(&envelope, None, false).map_err(|error| {
            ApiError::caused(
                FailureKind::Internal,
                format!("a record of {path} in the store cannot be read"),
                error,
            )
        })?;
        view.accepted = info
            .as_ref()
            .is_some_and(|info| came_by(info, &view.record, api.node));
        records.push(view);
    }
    records.sort_by_key(|view| std::cmp::Reverse(view.record.finished));
    Ok(records)
}

/// Whether a path lies in the store of `node` because of this record.
fn came_by(info: &PathInfo, record: &BuildRecord, node: NodeKey) -> bool {
    let builder = match &info.origin {
        Origin::Built => node,
        Origin::Record { builder } => *builder,
        Origin::Content | Origin::Peer { .. } | Origin::Cache { .. } => return false,
    };
    builder == record.builder
        && record
            .outputs
            .values()
            .any(|output| output.path == info.path && output.tree == info.tree)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use tvix_node_protocol::build::{BuildKey, BuiltOutput};
    use tvix_node_protocol::path_info::NarHash;
    use tvix_node_protocol::tree::TreeDigest;

    use super::*;

    const ME: NodeKey = NodeKey([1; 32]);
    const BOB: NodeKey = NodeKey([2; 32]);

    fn path() -> StorePath {
        StorePath::from_parts([0; 20], "hello").unwrap()
    }

    fn info(origin: Origin) -> PathInfo {
        PathInfo {
            path: path(),
            tree: TreeDigest([5; 32]),
            nar_hash: NarHash([0; 32]),
            nar_size: 1,
            references: BTreeSet::new(),
            deriver: None,
            ca: None,
            origin,
            registered: 0,
            signatures: Vec::new(),
        }
    }

    fn record(builder: NodeKey, tree: u8) -> BuildRecord {
        let output = BuiltOutput {
            path: path(),
            tree: TreeDigest([tree; 32]),
            nar_hash: NarHash([0; 32]),
            nar_size: 1,
            references: Vec::new(),
        };
        BuildRecord {
            build_key: BuildKey([0; 32]),
            request: None,
            derivation: StorePath::from_parts([0; 20], "hello.drv").unwrap(),
            inputs: Vec::new(),
            outputs: BTreeMap::from([("out".to_owned(), output)]),
            builder,
            started: 0,
            finished: 0,
            sandbox: String::new(),
        }
    }

    #[test]
    fn a_path_came_by_the_record_of_whoever_it_is_from_and_of_this_content() {
        let cases = [
            (Origin::Built, ME, 5, true),
            (Origin::Built, BOB, 5, false),
            (Origin::Built, ME, 6, false),
            (Origin::Record { builder: BOB }, BOB, 5, true),
            (Origin::Record { builder: BOB }, ME, 5, false),
            (Origin::Content, ME, 5, false),
            (Origin::Peer { peer: BOB }, BOB, 5, false),
        ];
        for (origin, builder, tree, accepted) in cases {
            let found = came_by(&info(origin.clone()), &record(builder, tree), ME);
            assert_eq!(found, accepted, "{origin:?} {builder} {tree}");
        }
    }
}
