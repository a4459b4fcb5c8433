//! Whole trees in the places of damaged ones.

use tvix_node_gateway::control::ApiError;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{DamagedPath, Repair};

use super::api::{Api, failed};

/// Repairs what is damaged of the accepted trees, one after the other, as far as the content can be had.
/// What came is compared with what was registered before it takes the place of the damaged tree; nothing
/// is removed where it cannot be had.
pub(super) async fn repair(api: &Api, damaged: &mut [DamagedPath]) -> Result<(), ApiError> {
    for damage in damaged {
        let outcome = if damage.accepted {
            one(api, &damage.path).await?
        } else {
            let reason =
                "it is a tree beside the accepted one; build it again, or let 'tvix-node store gc' remove it";
            Err(reason.to_owned())
        };
        damage.repair = Some(match outcome {
            Ok(from) => Repair::Done { from },
            Err(reason) => Repair::Failed { reason },
        });
    }
    Ok(())
}

/// From whom a path was repaired, or why it was not.
async fn one(api: &Api, path: &StorePath) -> Result<Result<String, String>, ApiError> {
    let known = api.depot.infos(vec![path.clone()]).await.map_err(failed)?;
    let Some(info) = known.into_iter().next() else {
        return Ok(Err("it has been collected meanwhile".to_owned()));
    };
    let mut reasons = Vec::new();
    let asked = info.path.clone();
    let audience = api
        .depot
        .blocking(move |store| Ok(store.audience_of_all([&asked])?));
    let audience = audience.await.map_err(failed)?;
    let teams = api.team.all();
    if teams.is_empty() {
        reasons.push("this node takes part in no team".to_owned());
    }
    for team in teams {
        // Who may not know that it is here is not asked for it.
        if !audience.includes(team.view.team()) {
            continue;
        }
        match team.repair(&info).await {
            Ok(from) => return Ok(Ok(from)),
            Err(reason) => reasons.push(reason),
        }
    }
    if reasons.is_empty() {
        reasons.push("no team of this node may learn of it".to_owned());
    }
    if api.depot.upstreams.is_empty() {
        reasons.push("no binary cache is configured".to_owned());
    } else {
        match api.depot.upstreams.repair(&api.depot, &info).await {
            Ok(from) => return Ok(Ok(from)),
            Err(reason) => reasons.push(reason),
        }
    }
    Ok(Err(reasons.join(", and ")))
}
