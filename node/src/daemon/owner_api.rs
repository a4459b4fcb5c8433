//! What the control socket's door asks of what the owner decides.

use std::collections::BTreeSet;
use std::sync::Arc;

use tvix_node_gateway::control::{ApiError, ControlApi as _};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::control::{
    Explanation, FailureKind, NamedRequirement, OwnerAnswer, OwnerQuestion, ShownVerdict, THIS_NODE,
};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::path_info::Origin;
use tvix_node_protocol::trust::{PathPattern, Requirement, RuleError, TrustPolicy, TrustRule};
use tvix_node_swarm::FindScope;

use super::api::{Api, failed};
use super::doctor;
use super::team_api::refused;
use crate::team::evidence::{Evidence as _, Findings};
use crate::team::policy::{Word, opened, quorum};
use crate::team::traffic::TrafficError;
use crate::team::trust::TrustError;

/// Answers a question of the owner.
pub(super) async fn answer(api: &Api, question: OwnerQuestion) -> Result<OwnerAnswer, ApiError> {
    match question {
        OwnerQuestion::Trust => Ok(trust(api)),
        OwnerQuestion::SetTrust {
            paths,
            builder,
            require,
        } => {
            let rule = TrustRule {
                paths,
                builder: builder.map(|name| member(api, &name)).transpose()?,
                requirement: requirement(api, require)?,
                because: None,
            };
            change(api, move |policy| policy.set(rule)).await?;
            Ok(trust(api))
        }
        OwnerQuestion::UnsetTrust { paths, builder } => {
            let builder = builder.map(|name| member(api, &name)).transpose()?;
            let wanted = paths.clone();
            if !change(api, move |policy| Ok(policy.unset(wanted.as_ref(), builder))).await? {
                let of_what = paths.as_ref().map_or("all paths", PathPattern::as_str);
                let message =
                    format!("there is no such rule for {of_what}; 'tvix-node trust' shows those there are");
                return Err(ApiError::new(FailureKind::NotFound, message));
            }
            Ok(trust(api))
        }
        OwnerQuestion::ExplainTrust { path } => explain(api, path).await.map(OwnerAnswer::Explained),
        OwnerQuestion::Private => Ok(private(api)),
        OwnerQuestion::SetPrivate {
            private: hide,
            paths,
            patterns,
        } => {
            set_private(api, hide, paths, patterns).await?;
            Ok(private(api))
        }
        OwnerQuestion::Sharing => {
            api.share.settled().await;
            Ok(sharing(api))
        }
        OwnerQuestion::SetSharing { terms } => {
            let share = Arc::clone(&api.share);
            let set = tokio::task::spawn_blocking(move || share.set(terms)).await;
            let set = set.map_err(|error| {
                ApiError::caused(
                    FailureKind::Internal,
                    "the terms of sharing could not be changed",
                    error,
                )
            })?;
            set.map_err(|error| ApiError::new(FailureKind::Internal, error.to_string()))?;
            api.share.settled().await;
            Ok(sharing(api))
        }
        OwnerQuestion::Traffic => Ok(traffic(api)),
        OwnerQuestion::SetTraffic { terms } => {
            let book = Arc::clone(&api.traffic);
            let set = tokio::task::spawn_blocking(move || book.set(terms)).await;
            let set = set.map_err(|error| {
                ApiError::caused(
                    FailureKind::Internal,
                    "the limits of traffic could not be changed",
                    error,
                )
            })?;
            set.map_err(|error| match error {
                error @ TrafficError::TooLow(_) => invalid(error.to_string()),
                error => ApiError::new(FailureKind::Internal, error.to_string()),
            })?;
            Ok(traffic(api))
        }
        OwnerQuestion::Health => Ok(OwnerAnswer::Health {
            findings: doctor::findings(api).await,
        }),
        OwnerQuestion::IsPrivate { path } => Ok(OwnerAnswer::IsPrivate {
            private: api.depot.private.is_private(&path),
        }),
    }
}

fn sharing(api: &Api) -> OwnerAnswer {
    OwnerAnswer::Sharing {
        terms: api.share.terms(),
        withheld: api.share.withheld().borrow().clone(),
        load: api.share.load(),
    }
}

fn traffic(api: &Api) -> OwnerAnswer {
    let terms = api.traffic.terms();
    OwnerAnswer::Traffic { terms }
}

fn private(api: &Api) -> OwnerAnswer {
    let (patterns, paths) = api.depot.private.list();
    OwnerAnswer::Private { patterns, paths }
}

/// Hides paths with everything that refers to them, or shows them again.
async fn set_private(
    api: &Api,
    hide: bool,
    paths: Vec<StorePath>,
    patterns: Vec<PathPattern>,
) -> Result<(), ApiError> {
    let book = Arc::clone(&api.depot.private);
    let named = paths.first().map(ToString::to_string);
    let named = named.or_else(|| patterns.first().map(ToString::to_string));
    let changed = api.depot.blocking(move |store| {
        if !hide {
            return Ok(book.remove(&paths, &patterns));
        }
        // What refers to it could not be had without it, and may tell what is in it.
        let mut all: BTreeSet<StorePath> = paths.iter().cloned().collect();
        let mut frontier = paths;
        while let Some(path) = frontier.pop() {
            for referrer in store.referrers(&path)? {
                if all.insert(referrer.clone()) {
                    frontier.push(referrer);
                }
            }
        }
        Ok(book.add(all, patterns).map(|()| true))
    });
    let changed = changed.await.map_err(failed)?;
    if !changed.map_err(|error| ApiError::new(FailureKind::Internal, error.to_string()))? {
        let message = format!(
            "'{}' is not among what is private; 'tvix-node private' shows that",
            named.unwrap_or_default()
        );
        return Err(ApiError::new(FailureKind::NotFound, message));
    }
    // Who was told before is told that it is gone; what is shown again is announced.
    for team in api.team.all() {
        let (hidden, shown) = seen_by(api, team.view.team()).await?;
        team.swarm.withdraw(&hidden);
        if !hide {
            let tell = |public: &[StorePath]| team.swarm.announce(public);
            api.depot.private.tell_public(&shown, tell);
        }
    }
    Ok(())
}

/// Of what members of a team may learn of, what is private, and what is not.
async fn seen_by(api: &Api, team: SwarmId) -> Result<(Vec<StorePath>, Vec<StorePath>), ApiError> {
    let book = Arc::clone(&api.depot.private);
    let listing = api.depot.blocking(move |store| {
        let (mut after, mut hidden, mut shown) = (None, Vec::new(), Vec::new());
        loop {
            let page = store.paths_after(after.as_ref(), LISTED)?;
            let Some(last) = page.last() else {
                return Ok((hidden, shown));
            };
            after = Some(last.clone());
            let known = store.known_to(team, &page)?;
            for (path, _) in page.into_iter().zip(known).filter(|(_, known)| *known) {
                match book.is_private(&path) {
                    true => hidden.push(path),
                    false => shown.push(path),
                }
            }
        }
    });
    listing.await.map_err(failed)
}

/// Paths listed at once.
const LISTED: usize = 4096;

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(FailureKind::Invalid, message)
}

/// The member that is called this. Rules may name somebody who has left, by the whole key.
fn member(api: &Api, name: &str) -> Result<NodeKey, ApiError> {
    if name == THIS_NODE {
        return Ok(api.node);
    }
    if let Ok(key) = name.parse::<NodeKey>() {
        return Ok(key);
    }
    let (_, key) = api.team.member(name).map_err(refused)?;
    // The rules name this node by the key of its home, in whichever team.
    Ok(match api.team.own_keys().contains(&key) {
        true => api.node,
        false => key,
    })
}

fn requirement(api: &Api, named: NamedRequirement) -> Result<Requirement, ApiError> {
    Ok(match named {
        NamedRequirement::Own => Requirement::Own,
        NamedRequirement::Roster => Requirement::Roster,
        NamedRequirement::Sample { percent } => Requirement::Sample { percent },
        NamedRequirement::Quorum { needed, of } => Requirement::Quorum {
            needed,
            of: of
                .iter()
                .map(|name| member(api, name))
                .collect::<Result<_, _>>()?,
        },
    })
}

async fn change<T: Send + 'static>(
    api: &Api,
    change: impl FnOnce(&mut TrustPolicy) -> Result<T, RuleError> + Send + 'static,
) -> Result<T, ApiError> {
    let trust = Arc::clone(&api.trust);
    let changed = tokio::task::spawn_blocking(move || trust.change(change)).await;
    let changed = changed.map_err(|error| {
        ApiError::caused(
            FailureKind::Internal,
            "the rules of trust could not be changed",
            error,
        )
    })?;
    let answer = changed.map_err(|error| match error {
        TrustError::Rule(error) => invalid(error.to_string()),
        error => ApiError::new(FailureKind::Internal, error.to_string()),
    })?;
    for team in api.team.all() {
        team.tell_offers().await;
    }
    Ok(answer)
}

fn trust(api: &Api) -> OwnerAnswer {
    let rules = api.trust.policy().rules().to_vec();
    OwnerAnswer::Trust {
        names: names(api, rules.iter().flat_map(named)),
        rules,
        me: api.node,
        slots: api.slots,
    }
}

/// Nodes that a rule names.
fn named(rule: &TrustRule) -> Vec<NodeKey> {
    let mut named: Vec<NodeKey> = rule.builder.into_iter().collect();
    if let Requirement::Quorum { of, .. } = &rule.requirement {
        named.extend(of);
    }
    named
}

fn names(api: &Api, nodes: impl IntoIterator<Item = NodeKey>) -> Vec<(NodeKey, String)> {
    let nodes: BTreeSet<NodeKey> = nodes.into_iter().collect();
    let named = nodes
        .into_iter()
        .filter_map(|node| Some((node, api.team.name_of(node)?)));
    named.collect()
}

async fn explain(api: &Api, path: StorePath) -> Result<Explanation, ApiError> {
    let policy = api.trust.policy();
    let rule = policy.rule_for_path(&path).cloned();
    let here = api.depot.infos(vec![path.clone()]).await.map_err(failed)?;
    let here = match here.is_empty() {
        true => None,
        false => Some(api.why(path.clone()).await?.summary),
    };
    let mut shown = Vec::new();
    for team in api.team.all() {
        let holders = team.swarm.find(std::slice::from_ref(&path), FindScope::All).await;
        let mut findings = Findings::default();
        // All that builders say is found out, whoever has the path.
        let gathered = team
            .gather_signed(std::slice::from_ref(&path), &mut findings)
            .await;
        gathered.map_err(|error| ApiError::new(FailureKind::Internal, error))?;
        let holders = holders.get(&path).map(|holders| team.swarm.providers(holders));
        for peer in holders.unwrap_or_default() {
            if peer == team.view.me() {
                continue;
            }
            let Some(known) = team
                .shown_by(peer, std::slice::from_ref(&path))
                .await
                .pop()
                .flatten()
            else {
                continue;
            };
            let verdict = team.accept(peer, &known, Word::Counts, &mut findings).await;
            shown.push(ShownVerdict {
                peer,
                accepted: verdict.is_ok(),
                why: match verdict {
                    Ok(Origin::Content) => {
                        "it names itself by its content, which is checked when it comes".to_owned()
                    }
                    Ok(Origin::Record { builder }) => {
                        format!("the record of {} counts", team.name_of(builder))
                    }
                    Ok(Origin::Peer { peer }) => format!("the word of {} is enough", team.name_of(peer)),
                    Ok(Origin::Built) => "this node built it".to_owned(),
                    Ok(Origin::Imported) => "the owner of this node imported it".to_owned(),
                    Ok(Origin::Cache { url, .. }) => format!("it is signed by {url}"),
                    Err(why) => why,
                },
            });
        }
    }
    let agreement = match rule.as_ref().map(|rule| &rule.requirement) {
        Some(Requirement::Quorum { needed, of }) => {
            let wanted = path.clone();
            let records = api
                .depot
                .blocking(move |store| Ok(store.records_of(&wanted)?))
                .await;
            let records = records.map_err(failed)?;
            let records: Vec<_> = records.iter().filter_map(|record| opened(record).ok()).collect();
            let grounds = api.trust.grounds();
            let outcome = quorum(&grounds, (*needed, of), &path, None, &records);
            let name = |node: NodeKey| match node == api.node {
                true => "this node".to_owned(),
                false => api.team.name_of(node).unwrap_or_else(|| node.to_string()),
            };
            Some(outcome.describe(name))
        }
        _ => None,
    };
    let nodes = rule
        .iter()
        .flat_map(named)
        .chain(shown.iter().map(|shown| shown.peer));
    Ok(Explanation {
        names: names(api, nodes),
        rule,
        here,
        quorum: agreement,
        shown,
        me: api.node,
    })
}
