//! The swarm and the store, as what [`Evidence`](super::evidence::Evidence) looks at.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildRecord;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::messages::Shown;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_swarm::FindScope;

use super::TeamNode;
use super::evidence::{ShownPaths, Surroundings, names};
use super::policy::{Grounds, opened};

impl Surroundings for TeamNode {
    fn grounds(&self) -> Grounds {
        self.trust.grounds()
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
        let (lease, paths) = (self.depot.lease(), paths.to_vec());
        let infos = self.depot.blocking(move |_| Ok(lease.hold(paths.iter())?)).await;
        infos.map_err(|error| error.to_string())
    }

    async fn keep_signed(
        &self,
        paths: Vec<StorePath>,
        mut signed: BTreeMap<StorePath, Vec<Envelope>>,
    ) -> Result<Vec<(StorePath, Vec<BuildRecord>)>, String> {
        let kept = self.depot.blocking(move |store| {
            let mut all = Vec::with_capacity(paths.len());
            for path in paths {
                let mut known = store.records_of(&path)?;
                for record in signed.remove(&path).unwrap_or_default() {
                    if names(&record, &path) && !known.contains(&record) {
                        store.put_record(&record)?;
                        // A newer one takes the place of an older one of the same work.
                        known = store.records_of(&path)?;
                    }
                }
                let records: Vec<BuildRecord> =
                    known.iter().filter_map(|record| opened(record).ok()).collect();
                all.push((path, records));
            }
            Ok(all)
        });
        kept.await.map_err(|error| error.to_string())
    }
}
