//! What a builder is asked: the derivation, and everything that it reads by its content.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildOptions, BuildRequest, Input};

use super::{Order, RequestFailure};
use crate::daemon::clock::now;
use crate::daemon::perform::as_input;
use crate::team::TeamNode;
use crate::team::answer::Asked;
use crate::team::evidence::Evidence as _;
use crate::team::limits::REQUEST_TIME;

impl TeamNode {
    /// What a request for a derivation has to name: its outputs, and the complete closure of what it reads.
    pub(super) async fn what_is_asked(&self, order: &Order) -> Result<Asked, RequestFailure> {
        let (derivation, checked, wanted) = self.depot.checked(order.derivation.clone()).await?;
        let wanted: Vec<StorePath> = wanted.into_iter().collect();
        // Before anybody is asked for what it reads.
        let of_order = self.hidden_among(vec![order.derivation.clone()]).await?;
        if let Some(path) = of_order.into_iter().next() {
            return Err(RequestFailure::OtherTeam(path));
        }
        let private = |path: &&StorePath| self.depot.private.is_private(path);
        let named = std::iter::once(&order.derivation).chain(checked.outputs.values());
        if let Some(path) = named.chain(&wanted).find(private) {
            return Err(RequestFailure::Private(path.clone()));
        }
        let mut surveyed = self.survey(&wanted, &[order.node]).await;
        if surveyed.is_err() && !self.depot.upstreams.is_empty() {
            // What only a binary cache has is named by its tree, so it has to come here first.
            match self.depot.upstreams.bring(&self.depot, &[], &wanted, None).await {
                Ok(()) => surveyed = self.survey(&wanted, &[order.node]).await,
                Err(error) => tracing::info!(%error, "inputs of a far build do not come from a binary cache"),
            }
        }
        let survey = match surveyed {
            Ok(survey) => survey,
            Err(reason) => {
                let here: BTreeSet<StorePath> = self
                    .depot
                    .infos(wanted.clone())
                    .await?
                    .into_iter()
                    .map(|info| info.path)
                    .collect();
                // All is here, and not for this team: nothing is to be looked for or made anew.
                if let Some(path) = self.hidden_among(wanted.clone()).await?.into_iter().next() {
                    return Err(RequestFailure::OtherTeam(path));
                }
                if self.strays(&order.derivation) {
                    return Err(RequestFailure::Elsewhere(reason));
                }
                let direct = wanted.into_iter().filter(|path| !here.contains(path)).collect();
                return Err(RequestFailure::Inputs { direct, reason });
            }
        };
        let here: Vec<StorePath> = survey.here.into_keys().collect();
        let closure = self
            .depot
            .blocking(move |store| Ok(store.closure(here.iter())?))
            .await?;
        let mut inputs: BTreeMap<StorePath, Input> = survey
            .there
            .into_values()
            .map(|remote| (remote.shown.info.path.clone(), as_input(&remote.shown.info)))
            .collect();
        let mut read = closure.iter().map(|info| &info.path);
        if let Some(path) = read.find(private) {
            return Err(RequestFailure::Private(path.clone()));
        }
        if let Some(path) = self.first_hidden(&closure).await? {
            return Err(RequestFailure::OtherTeam(path));
        }
        // What is here counts, whatever others have under the same name.
        inputs.extend(closure.iter().map(|info| (info.path.clone(), as_input(info))));
        Ok(Asked {
            derivation,
            outputs: (*checked.outputs).clone(),
            inputs: inputs.into_values().collect(),
        })
    }

    /// A request for it, to be sent once.
    pub(super) fn signed_request(
        &self,
        order: &Order,
        inputs: Vec<Input>,
    ) -> Result<BuildRequest, RequestFailure> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(RequestFailure::Random)?;
        let mut outputs = order.outputs.clone();
        outputs.sort();
        let issued_at = now();
        Ok(BuildRequest {
            swarm: self.swarm.swarm(),
            requester: self.swarm.key(),
            builder: order.node,
            derivation: order.derivation.clone(),
            inputs,
            outputs,
            kind: order.kind,
            desired_store: order.desired_store.clone(),
            options: BuildOptions { cores: order.cores },
            limits: order.limits,
            urgency: order.urgency.to_wire(),
            fresh: false,
            keep_failed: order.keep_failed,
            nonce,
            issued_at,
            not_after: issued_at + REQUEST_TIME,
        })
    }
}
