//! Where paths are: the desired store, this node, the team.

use std::collections::BTreeMap;
use std::sync::Arc;

use tvix_node_coordinator::{Source, limits::SOURCES};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildTerms;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_swarm::underway::Turn;

use super::TeamNode;
use super::evidence::{Evidence as _, Findings, Surroundings, is_named_by_content};
use super::limits::{PROVIDERS, WEIGH_TIME};
use super::policy::Word;

impl TeamNode {
    /// Which of these paths another member's store has, in their order. One that cannot be asked has none.
    pub(super) async fn in_store_of(&self, node: NodeKey, paths: &[StorePath]) -> Vec<bool> {
        match self.swarm.have(node, paths).await {
            Ok(has) => has,
            Err(error) => {
                tracing::info!(%node, %error, "the desired store could not be asked what it has");
                vec![false; paths.len()]
            }
        }
    }

    /// Who in the team has these paths and is believed for them.
    pub(super) async fn elsewhere(&self, paths: &[StorePath]) -> BTreeMap<StorePath, Found> {
        if paths.is_empty() || self.swarm.members().len() < 2 {
            return BTreeMap::new();
        }
        believed_elsewhere(self, paths).await
    }

    /// Whether a connected member did not answer lately, so that nobody knows what it has.
    pub(super) fn somebody_is_silent(&self) -> bool {
        let connected = self.swarm.connected();
        connected.into_iter().any(|peer| self.swarm.is_silent(peer))
    }

    /// How much of a derivation's inputs which of these members has: of what is here the whole closure counts, of what
    /// is not here what each says that it has itself. And who of them builds it, or has made it.
    pub(super) async fn weigh(&self, about: &About, mut nodes: Vec<NodeKey>) -> Weighed {
        let About {
            derivation,
            inputs,
            outputs,
            terms,
            joins,
        } = about;
        // Who may not know of the derivation is not asked to build it, nor for what it reads.
        match self.hidden_among(vec![derivation.clone()]).await {
            Ok(hidden) if hidden.is_empty() => {}
            Ok(_) => nodes.clear(),
            Err(error) => {
                tracing::warn!(%error, "a derivation could not be looked up");
                nodes.clear();
            }
        }
        let (lease, team, private) = (
            self.depot.lease(),
            self.view.team(),
            Arc::clone(&self.depot.private),
        );
        let asked = inputs.clone();
        let named: Vec<StorePath> = outputs.iter().chain([derivation]).cloned().collect();
        let here = self.depot.blocking(move |store| {
            let infos = lease.hold(asked.iter())?;
            let (here, missing): (Vec<_>, Vec<_>) =
                asked.into_iter().zip(infos).partition(|(_, info)| info.is_some());
            let paths =
                |part: Vec<(StorePath, _)>| part.into_iter().map(|(path, _)| path).collect::<Vec<_>>();
            let mut closure = store.closure(paths(here).iter())?;
            let bytes = closure.iter().map(|info| info.nar_size).sum();
            // Nobody is asked for what he may not know of, nor by name for what he would not know of if it were here.
            let mut missing = paths(missing);
            let read = closure.iter().map(|info| &info.path);
            let secret = read
                .chain(&missing)
                .chain(&named)
                .any(|path| private.is_private(path));
            missing.retain(|path| !private.is_private(path));
            let known = store.known_to(team, closure.iter().map(|info| &info.path))?;
            let mut known = known.into_iter();
            closure.retain(|info| known.next().unwrap_or(false) && !private.is_private(&info.path));
            Ok((bytes, closure, missing, secret))
        });
        let (here, closure, missing, secret): (u64, _, _, _) = here.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "a derivation's inputs could not be weighed");
            (0, Vec::new(), Vec::new(), true)
        });
        // Nobody hears of what is private, nor what others cannot take part in.
        let joined = joins.filter(|_| !secret).map(|turn| (derivation, (turn, *terms)));
        let outputs: &[StorePath] = if joined.is_some() { outputs } else { &[] };
        let paths = closure.iter().map(|info| &info.path);
        let paths: Vec<StorePath> = paths.chain(outputs).cloned().collect();
        nodes.retain(|node| !self.swarm.is_silent(*node));
        let asked = nodes.into_iter().map(|node| {
            let (paths, closure, missing) = (&paths, &closure, &missing);
            async move {
                let asking = async {
                    tokio::join!(
                        self.has_and_builds(node, paths, joined),
                        self.shown_by(node, missing)
                    )
                };
                let (has, shown) = tokio::time::timeout(WEIGH_TIME, asking).await.ok()?;
                let (has, maker) = has?;
                let (read, made) = has.split_at(closure.len());
                let bytes = closure.iter().zip(read).filter(|(_, has)| **has);
                let bytes: u64 = bytes.map(|(info, _)| info.nar_size).sum();
                let made = !made.is_empty() && made.iter().all(|made| *made);
                Some((node, bytes, shown, (maker, made)))
            }
        });
        let answers = futures::future::join_all(asked).await;
        let mut sizes: BTreeMap<StorePath, u64> = BTreeMap::new();
        let mut there = Vec::new();
        let (mut makers, mut all_made, mut promised) = (Vec::new(), false, false);
        for (node, mut bytes, shown, (maker, made)) in answers.into_iter().flatten() {
            match maker {
                // Its request may be on its way.
                Some(maker) if maker == self.view.me() => promised = true,
                maker => makers.extend(maker),
            }
            all_made |= made;
            for shown in shown.into_iter().flatten() {
                bytes = bytes.saturating_add(shown.info.nar_size);
                sizes.insert(shown.info.path, shown.info.nar_size);
            }
            there.push((node, bytes));
        }
        Weighed {
            total: here.saturating_add(sizes.values().sum()),
            here,
            there,
            makers,
            promised,
            made: all_made,
        }
    }

    /// Which of these paths a member has, and who builds a derivation, as far as it knows; none: it does not answer.
    async fn has_and_builds(
        &self,
        node: NodeKey,
        paths: &[StorePath],
        joined: Option<(&StorePath, (Turn, BuildTerms))>,
    ) -> Option<(Vec<bool>, Option<NodeKey>)> {
        let Some((derivation, wanted)) = joined else {
            return Some((self.swarm.have(node, paths).await.ok()?, None));
        };
        let answer = self
            .swarm
            .have_and_underway(node, paths, derivation, wanted)
            .await;
        answer.ok()
    }
}

/// What is about to be placed.
pub struct About {
    /// The derivation.
    pub derivation: StorePath,
    /// Its direct inputs.
    pub inputs: Vec<StorePath>,
    /// What it makes that is nowhere, as far as is known.
    pub outputs: Vec<StorePath>,
    /// On which terms it is to be built.
    pub terms: BuildTerms,
    /// Since when it is being decided on, where it may be had from somebody else's build.
    pub joins: Option<Turn>,
}

/// How much of a derivation's inputs is where, in bytes.
pub(super) struct Weighed {
    /// All of it, as far as it is known.
    pub(super) total: u64,
    /// What this node has.
    pub(super) here: u64,
    /// What members have.
    pub(super) there: Vec<(NodeKey, u64)>,
    /// Who builds it.
    pub(super) makers: Vec<NodeKey>,
    /// Whether a member says that it has asked this node to.
    pub(super) promised: bool,
    /// Whether a member says that it has all that is to be made.
    pub(super) made: bool,
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
                let Some(mut shown) = shown else { continue };
                if is_named_by_content(node, &path) {
                    shown = node.addressed(shown).await;
                }
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
