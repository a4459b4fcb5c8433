//! Where paths are: the desired store, this node, the team.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_coordinator::{Event, PathPresence, Source, limits::SOURCES};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::DesiredStore;
use tvix_node_protocol::envelope::NodeKey;

use super::TeamNode;
use super::evidence::{Evidence as _, Findings, Surroundings};
use super::limits::PROVIDERS;
use super::policy::Word;

impl TeamNode {
    /// Where paths are. `own`: what this node has of them, and its size.
    pub async fn presence(
        &self,
        desired: Option<DesiredStore>,
        own: Vec<(StorePath, Option<u64>)>,
    ) -> Vec<PathPresence> {
        let paths: Vec<StorePath> = own.iter().map(|(path, _)| path.clone()).collect();
        let missing: Vec<StorePath> = own
            .iter()
            .filter(|(_, size)| size.is_none())
            .map(|(path, _)| path.clone())
            .collect();
        let (in_desired, mut elsewhere) =
            tokio::join!(self.in_desired(desired.as_ref(), &own), self.elsewhere(&missing));
        let paths = paths.into_iter().zip(own).map(|(path, (_, nar_size))| {
            let found = elsewhere.remove(&path).unwrap_or_default();
            PathPresence {
                own: nar_size.is_some(),
                desired: in_desired.contains(&path),
                nar_size: nar_size.or(found.nar_size),
                sources: found.sources,
                path,
            }
        });
        paths.collect()
    }

    /// Which of these paths the desired store has. One that cannot be asked has none: the push that
    /// follows will say why.
    async fn in_desired(
        &self,
        desired: Option<&DesiredStore>,
        own: &[(StorePath, Option<u64>)],
    ) -> BTreeSet<StorePath> {
        let paths: Vec<StorePath> = own.iter().map(|(path, _)| path.clone()).collect();
        let has = match desired {
            None => return BTreeSet::new(),
            Some(DesiredStore::Node(node)) if *node == self.swarm.key() => {
                own.iter().map(|(_, size)| size.is_some()).collect()
            }
            Some(DesiredStore::Node(node)) => match self.swarm.have(*node, &paths).await {
                Ok(has) => has,
                Err(error) => {
                    tracing::info!(%node, %error, "the desired store could not be asked what it has");
                    return BTreeSet::new();
                }
            },
            Some(DesiredStore::Folder(folder)) => {
                crate::daemon::folder::has(&self.depot, folder.clone(), paths.clone()).await
            }
        };
        let has = paths.into_iter().zip(has).filter(|(_, has)| *has);
        has.map(|(path, _)| path).collect()
    }

    /// Who in the team has these paths and is believed for them.
    async fn elsewhere(&self, paths: &[StorePath]) -> BTreeMap<StorePath, Found> {
        if paths.is_empty() || self.swarm.members().len() < 2 {
            return BTreeMap::new();
        }
        believed_elsewhere(self, paths).await
    }

    /// How much of a derivation's inputs which of these nodes has: of what is here the whole closure counts,
    /// of what is not here what each says that it has itself.
    pub async fn weigh(&self, derivation: StorePath, inputs: Vec<StorePath>, nodes: Vec<NodeKey>) {
        let lease = self.depot.lease();
        let asked = inputs.clone();
        let here = self.depot.blocking(move |store| {
            let infos = lease.hold(asked.iter())?;
            let (here, missing): (Vec<_>, Vec<_>) =
                asked.into_iter().zip(infos).partition(|(_, info)| info.is_some());
            let paths =
                |part: Vec<(StorePath, _)>| part.into_iter().map(|(path, _)| path).collect::<Vec<_>>();
            Ok((store.closure(paths(here).iter())?, paths(missing)))
        });
        let (closure, missing) = here.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "a derivation's inputs could not be weighed");
            (Vec::new(), Vec::new())
        });
        let total: u64 = closure.iter().map(|info| info.nar_size).sum();
        let paths: Vec<StorePath> = closure.iter().map(|info| info.path.clone()).collect();
        let asked = nodes.into_iter().map(|node| {
            let (paths, closure, missing) = (&paths, &closure, &missing);
            async move {
                let (has, shown) = tokio::join!(self.swarm.have(node, paths), self.shown_by(node, missing));
                let bytes = closure.iter().zip(has.ok()?).filter(|(_, has)| *has);
                let bytes: u64 = bytes.map(|(info, _)| info.nar_size).sum();
                Some((node, bytes, shown))
            }
        });
        let answers = futures::future::join_all(asked).await;
        let mut sizes: BTreeMap<StorePath, u64> = BTreeMap::new();
        let mut there = vec![(None, total)];
        for (node, mut bytes, shown) in answers.into_iter().flatten() {
            for shown in shown.into_iter().flatten() {
                bytes = bytes.saturating_add(shown.info.nar_size);
                sizes.insert(shown.info.path, shown.info.nar_size);
            }
            there.push((Some(node), bytes));
        }
        self.tell(Event::InputsWeighed {
            derivation,
            total: total.saturating_add(sizes.values().sum()),
            there,
        })
        .await;
    }
}

/// Who has these paths and is believed for them, as far as the node can find out.
pub(super) async fn believed_elsewhere(
    node: &impl Surroundings,
    paths: &[StorePath],
) -> BTreeMap<StorePath, Found> {
    let mut waiting = node.holders(paths).await;
    for providers in waiting.values_mut() {
        providers.retain(|peer| *peer != node.me());
        providers.truncate(SOURCES);
    }
    let mut found = BTreeMap::new();
    let mut findings = Findings::default();
    // In each round every path is asked of the best holder that has not been asked for it yet.
    for round in 0..PROVIDERS {
        let mut questions: BTreeMap<NodeKey, Vec<StorePath>> = BTreeMap::new();
        for (path, providers) in &waiting {
            if let Some(peer) = providers.get(round) {
                questions.entry(*peer).or_default().push(path.clone());
            }
        }
        let answers = questions.into_iter().map(|(peer, paths)| async move {
            let shown = node.shown_by(peer, &paths).await;
            (peer, paths, shown)
        });
        for (peer, paths, shown) in futures::future::join_all(answers).await {
            let there = paths.iter().zip(&shown).filter(|(_, shown)| shown.is_some());
            let there: Vec<StorePath> = there.map(|(path, _)| path.clone()).collect();
            if let Err(error) = node.gather_signed(&there, &mut findings).await {
                tracing::warn!(error, "what builders signed could not be looked up");
            }
            for (path, shown) in paths.into_iter().zip(shown) {
                let Some(shown) = shown else { continue };
                if let Err(why) = node.accept(peer, &shown, Word::Counts, &mut findings).await {
                    tracing::info!(%path, %peer, why, "a path that is there is not accepted");
                    continue;
                }
                let Some(mut providers) = waiting.remove(&path) else {
                    continue;
                };
                providers.retain(|provider| *provider != peer);
                providers.insert(0, peer);
                let sources = providers.into_iter().map(Source::Peer).collect();
                let nar_size = Some(shown.info.nar_size);
                found.insert(path, Found { sources, nar_size });
            }
        }
        if waiting.is_empty() {
            break;
        }
    }
    found
}

/// Who has a path.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// From whom it can be fetched, the best first.
    pub(super) sources: Vec<Source>,
    /// Bytes of its archive, where known.
    pub(super) nar_size: Option<u64>,
}
