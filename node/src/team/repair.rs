//! Content of damaged paths from other members.
//!
//! What was accepted once is known by its digest, so nobody has to be believed again: any member may
//! bring it, and what it brings is that tree or is refused.

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_swarm::{FetchOrder, FindScope};

use super::TeamNode;
use super::evidence::Evidence as _;
use super::fetch::Content;
use super::limits::PROVIDERS;

impl TeamNode {
    /// Fetches the tree of a path that is damaged here, and puts it in the place of the damaged one. Gives
    /// the name of the member that was asked first.
    ///
    /// # Errors
    /// Why it cannot be had, in words; the damaged tree is as it was.
    pub async fn repair(&self, info: &PathInfo) -> Result<String, String> {
        let holders = self
            .swarm
            .find(std::slice::from_ref(&info.path), FindScope::All)
            .await;
        let holders = holders
            .get(&info.path)
            .map(|holders| self.swarm.providers(holders));
        let mut holders = holders.unwrap_or_default();
        holders.retain(|peer| *peer != self.swarm.key());
        let mut providers: Vec<NodeKey> = Vec::new();
        for peer in &holders {
            let shown = self.shown_by(*peer, std::slice::from_ref(&info.path)).await;
            let same = shown
                .into_iter()
                .flatten()
                .any(|shown| shown.info.tree == info.tree);
            if same {
                providers.push(*peer);
            }
            if providers.len() >= PROVIDERS {
                break;
            }
        }
        let Some(first) = providers.first().copied() else {
            return Err(match holders.len() {
                0 => "no member of the team that can be reached has it".to_owned(),
                count => format!("{count} members have the path, and none of them with this content"),
            });
        };
        let order = FetchOrder {
            // An archive has every byte of every file.
            max_bytes: Some(info.nar_size),
            whole: true,
            ..FetchOrder::new(info.tree, providers)
        };
        let arrival = self.swarm.fetch(order).await.map_err(|error| error.to_string())?;
        let path = info.path.clone();
        let repaired = self.depot.blocking(move |store| {
            let content = Content(arrival);
            let repaired = store.repair(&path, &content);
            if let Err(error) = content.0.remove() {
                tracing::warn!(%error, "what has arrived could not be removed from the spool");
            }
            Ok(repaired)
        });
        let repaired = repaired.await.map_err(|error| error.to_string())?;
        repaired.map_err(|error| error.to_string())?;
        Ok(self.name_of(first))
    }
}
