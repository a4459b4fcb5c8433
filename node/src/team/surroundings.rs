//! The swarm and the store, as what [`Evidence`](super::evidence::Evidence) looks at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildRecord;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::messages::Shown;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::trust::TrustPolicy;
use tvix_node_swarm::FindScope;

use super::TeamNode;
use super::evidence::{NamedBy, ShownPaths, Surroundings, names};
use super::policy::{Grounds, opened};
use crate::daemon::depot::{DepotError, read_from};

/// A path, as one team stands to it.
pub(super) enum InStore {
    /// It is here, and members may know.
    Seen(PathInfo),
    /// It is here, and came from another team: to this one it is as if it were not.
    Hidden(PathInfo),
    /// It is not here.
    Not,
}

impl InStore {
    /// What the team may know of it.
    pub(super) fn for_team(self) -> Option<PathInfo> {
        match self {
            Self::Seen(info) => Some(info),
            Self::Hidden(_) | Self::Not => None,
        }
    }
}

impl TeamNode {
    /// How the team stands to these paths, in their order. Those that are here stay, also those it may not know of.
    pub(super) async fn held_for_team(&self, paths: Vec<StorePath>) -> Result<Vec<InStore>, DepotError> {
        let (lease, team) = (self.depot.lease(), self.view.team());
        self.depot
            .blocking(move |store| {
                let infos = lease.hold(paths.iter())?;
                let known = store.known_to(team, paths.iter())?;
                let held = infos.into_iter().zip(known).map(|(info, known)| match info {
                    Some(info) if known => InStore::Seen(info),
                    Some(info) => InStore::Hidden(info),
                    None => InStore::Not,
                });
                Ok(held.collect())
            })
            .await
    }
}

impl TeamNode {
    /// Those of these paths that are here and that the team may not know of.
    pub(super) async fn hidden_among(
        &self,
        paths: Vec<StorePath>,
    ) -> Result<BTreeSet<StorePath>, DepotError> {
        let hidden = self
            .held_for_team(paths)
            .await?
            .into_iter()
            .filter_map(|held| match held {
                InStore::Hidden(info) => Some(info.path),
                InStore::Seen(_) | InStore::Not => None,
            });
        Ok(hidden.collect())
    }

    /// A path among these that the team may not know of, or that is gone.
    pub(super) async fn first_hidden(&self, infos: &[PathInfo]) -> Result<Option<StorePath>, DepotError> {
        let (team, paths) = (self.view.team(), infos.iter().map(|info| info.path.clone()));
        let paths: Vec<StorePath> = paths.collect();
        self.depot
            .blocking(move |store| {
                let known = store.known_to(team, &paths)?;
                let hidden = paths.into_iter().zip(known).find(|(_, known)| !known);
                Ok(hidden.map(|(path, _)| path))
            })
            .await
    }
}

impl Surroundings for TeamNode {
    fn grounds(&self) -> Grounds {
        self.trust.grounds_in(&self.swarm)
    }

    fn me(&self) -> NodeKey {
        self.swarm.key()
    }

    fn connected(&self) -> BTreeSet<NodeKey> {
        self.swarm.connected()
    }

    fn remembered(&self) -> &ShownPaths {
        &self.shown
    }

    fn named_by(&self, path: &StorePath) -> Option<NamedBy> {
        self.depot.told.named_by(path)
    }

    fn bound_input(&self, path: &StorePath, policy: &Arc<TrustPolicy>) -> Option<StorePath> {
        self.depot.told.bound_input(path, policy)
    }

    async fn content_address(&self, path: &StorePath) -> Option<String> {
        let derivation = self.depot.told.fixed_by(path)?;
        let read = self
            .depot
            .blocking(move |store| read_from(store, &derivation))
            .await;
        let derivation = match read {
            Ok(derivation) => derivation,
            Err(error) => {
                tracing::info!(%path, %error, "what a fixed output is to be cannot be read");
                return None;
            }
        };
        let mut outputs = derivation.outputs().values();
        let address = outputs.find_map(|output| output.fixed_content_address())?;
        Some(address.to_nix_string())
    }

    async fn ask_paths(&self, peer: NodeKey, paths: &[StorePath]) -> Result<Vec<Option<Shown>>, String> {
        let shown = self.swarm.path_infos(peer, paths).await;
        shown.map_err(|error| error.to_string())
    }

    async fn holders(&self, paths: &[StorePath]) -> BTreeMap<StorePath, Vec<NodeKey>> {
        let found = self.swarm.find(paths, FindScope::All).await;
        let holders = found
            .into_iter()
            .map(|(path, holders)| (path, self.swarm.providers(&holders)));
        holders.collect()
    }

    async fn held(&self, paths: &[StorePath]) -> Result<Vec<Option<PathInfo>>, String> {
        let held = self.held_for_team(paths.to_vec()).await;
        let held = held.map_err(|error| error.to_string())?.into_iter();
        Ok(held.map(InStore::for_team).collect())
    }

    async fn hidden(&self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>, String> {
        let hidden = self.hidden_among(paths.to_vec()).await;
        hidden.map_err(|error| error.to_string())
    }

    async fn keep_signed(
        &self,
        paths: Vec<StorePath>,
        mut signed: BTreeMap<StorePath, Vec<Envelope>>,
    ) -> Result<Vec<(StorePath, Vec<BuildRecord>)>, String> {
        let view = self.view.clone();
        let kept = self.depot.blocking(move |store| {
            let mut all = Vec::with_capacity(paths.len());
            for path in paths {
                let mut known = store.records_of_known_to(view.team(), &path)?;
                for record in signed.remove(&path).unwrap_or_default() {
                    if names(&record, &path) && !known.contains(&record) {
                        store.put_record(&record, &view.audience())?;
                        // A newer one takes the place of an older one of the same work.
                        known = store.records_of_known_to(view.team(), &path)?;
                    }
                }
                let records = known.iter().filter_map(|record| opened(record).ok());
                let records: Vec<BuildRecord> = records.map(|record| view.as_seen(record)).collect();
                all.push((path, records));
            }
            Ok(all)
        });
        kept.await.map_err(|error| error.to_string())
    }
}
