//! What comes back from a builder: a record that has to fit what was asked, and the outputs, or the folder of a build that failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tvix_node_coordinator::{BuiltPath, Delivery};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildRecord;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::messages::{self, Pushed};
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::roster::Role;
use tvix_node_store::Prepared;

use super::{Delivered, Order, RequestFailure};
use crate::daemon::depot::{BuildFacts, BuildNote};
use crate::team::TeamNode;
use crate::team::answer::{Asked, described};
use crate::team::evidence::Evidence as _;
use crate::team::fetch::FetchFailure;
use crate::team::purpose::{Purpose, priority};
use crate::team::votes::{self, Side, Standing};

impl TeamNode {
    /// Checks what a builder says it built, and brings it here unless it is where it should be.
    pub(super) async fn receive(
        self: &Arc<Self>,
        order: &Order,
        name: &str,
        asked: &Asked,
        record: &BuildRecord,
        envelope: &Envelope,
        pushed: Pushed,
    ) -> Result<Delivered, RequestFailure> {
        let wrong = |reason: String| RequestFailure::Record {
            name: name.to_owned(),
            reason,
        };
        let members = self.swarm.members();
        if !members.may(record.builder, Role::Build) {
            return Err(wrong("it does not have the role 'build' any more".to_owned()));
        }
        let infos = described(asked, &order.derivation, record).map_err(wrong)?;
        let facts = BuildFacts {
            derivation: order.derivation.clone(),
            audience: self.view.audience(),
            record: envelope.clone(),
            note: BuildNote {
                reason: order.reason.clone(),
                started: record.started,
                finished: record.finished,
            },
        };
        let outputs = infos.iter().map(|(output, info)| {
            let (path, nar_size) = (info.path.clone(), info.nar_size);
            (output.clone(), BuiltPath { path, nar_size })
        });
        let outputs: BTreeMap<String, BuiltPath> = outputs.collect();
        let (grounds, side) = (self.trust.grounds_in(&self.swarm), Side::Team(&self.view));
        let name_of = |node| self.name_of(node);
        match votes::standing(&self.depot, (&grounds, side), record, envelope, name_of).await? {
            Standing::Counts => {}
            Standing::Vote => {
                let delivery = Delivery::Vote;
                return Ok(Delivered { outputs, delivery });
            }
            Standing::Disagreed(reason) => return Err(RequestFailure::Disagreed(reason)),
            Standing::Refused(reason) => {
                let name = name.to_owned();
                return Err(RequestFailure::Untrusted { name, reason });
            }
        }
        let elsewhere = if pushed == Pushed::Pushed {
            Some(Delivery::DesiredStore)
        } else if !order.bring && self.are_at(order.node, &infos).await {
            Some(Delivery::AtBuilder)
        } else {
            None
        };
        if let Some(delivery) = elsewhere {
            self.depot.keep_record(facts).await?;
            return Ok(Delivered { outputs, delivery });
        }
        if let Pushed::NotPushed { reason } = &pushed {
            tracing::info!(derivation = %order.derivation, builder = name, reason, "the builder did not push");
        }
        let failed = |source| RequestFailure::Outputs {
            name: name.to_owned(),
            source,
        };
        let prepared = self.bring_outputs(order, infos).await.map_err(failed)?;
        self.depot.register(prepared, facts).await?;
        self.sample(envelope);
        let delivery = Delivery::OwnStore;
        Ok(Delivered { outputs, delivery })
    }

    /// Whether a builder shows everybody what it has built, under its name. What it built from inputs that it
    /// does not accept itself is for the requester alone, and can only be had now.
    async fn are_at(&self, builder: NodeKey, infos: &BTreeMap<String, PathInfo>) -> bool {
        let paths: Vec<StorePath> = infos.values().map(|info| info.path.clone()).collect();
        let shown = self.shown_by(builder, &paths).await;
        let mut both = infos.values().zip(shown);
        both.all(|(info, shown)| shown.is_some_and(|shown| shown.info.tree == info.tree))
    }

    /// The outputs of a build from its builder, after what they refer to.
    async fn bring_outputs(
        self: &Arc<Self>,
        order: &Order,
        infos: BTreeMap<String, PathInfo>,
    ) -> Result<Vec<Prepared>, FetchFailure> {
        let (builder, purpose) = (order.node, Purpose::own(priority(order.urgency, false)));
        let own: BTreeSet<StorePath> = infos.values().map(|info| info.path.clone()).collect();
        let references: BTreeSet<StorePath> = infos
            .values()
            .flat_map(|info| info.references.iter().cloned())
            .filter(|path| !own.contains(path))
            .collect();
        let references: Vec<StorePath> = references.into_iter().collect();
        let bringing: Vec<_> = infos
            .into_values()
            .map(|info| self.bring(info, vec![builder], purpose.clone()))
            .collect();
        let providers = [builder];
        let (ensured, brought) = tokio::join!(
            self.ensure(&references, &providers, &purpose.priority, None),
            futures::future::try_join_all(bringing)
        );
        ensured?;
        brought
    }

    /// Brings the folder of a build that failed here where that was asked for, and says in the failure where
    /// it is.
    pub(super) async fn with_folder(
        &self,
        order: &Order,
        name: &str,
        mut failure: messages::BuildFailure,
    ) -> messages::BuildFailure {
        let folder = failure.folder.take().filter(|_| order.keep_failed);
        if let Some(folder) = folder {
            let brought = self.bring_folder(order.node, &order.derivation, folder).await;
            failure.message.push_str(&match brought {
                Ok(place) => format!("; its folder is kept as '{}'", place.display()),
                Err(error) => format!("; its folder could not be brought here from {name}: {error}"),
            });
        }
        failure
    }
}
