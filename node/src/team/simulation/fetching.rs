//! How a machine finds what others have, and brings it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tvix_node_coordinator::{Event, FetchId, PathPresence, QuestionId, Source};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildRecord;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::messages::Shown;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::presence::{PresenceKey, Region};
use tvix_node_protocol::trust::TrustPolicy;
use tvix_node_store::AddError;
use tvix_node_swarm::presence::claimed;

use super::super::evidence::{Evidence as _, NamedBy, ShownPaths, Surroundings, names};
use super::super::fetch::{FetchFailure, Item, Keep};
use super::super::policy::{Grounds, opened};
use super::super::presence::believed_elsewhere;
use super::ledger::Judged;
use super::node::Node;
use super::plan::nar_hash;
use super::store::KEEPERS;
use super::world::lock;
use crate::daemon::depot::DepotError;

impl Surroundings for Node {
    fn grounds(&self) -> Grounds {
        Grounds {
            members: vec![Arc::clone(&self.view().members)],
            policy: Arc::clone(&self.world.plan.machines[self.at].policy),
            me: self.key,
        }
    }

    fn me(&self) -> NodeKey {
        self.key
    }

    fn connected(&self) -> BTreeSet<NodeKey> {
        let plan = &self.world.plan;
        self.seen().iter().map(|at| plan.machines[*at].key).collect()
    }

    fn remembered(&self) -> &ShownPaths {
        &self.shown
    }

    fn named_by(&self, path: &StorePath) -> Option<NamedBy> {
        self.told.named_by(path)
    }

    fn bound_input(&self, path: &StorePath, policy: &Arc<TrustPolicy>) -> Option<StorePath> {
        self.told.bound_input(path, policy)
    }

    async fn content_address(&self, _: &StorePath) -> Option<String> {
        // No output is fixed here.
        None
    }

    async fn ask_paths(&self, peer: NodeKey, paths: &[StorePath]) -> Result<Vec<Option<Shown>>, String> {
        let to = self.world.number(peer).ok_or("nobody")?;
        let (asker, paths) = (self.at, paths.to_vec());
        let answer = self
            .world
            .ask(self.at, to, move |node| node.show(asker, &paths))
            .await;
        answer.flatten().ok_or_else(|| "no answer".to_owned())
    }

    async fn holders(&self, paths: &[StorePath]) -> BTreeMap<StorePath, Vec<NodeKey>> {
        let (secret, swarm) = (self.view().secret.clone(), self.world.plan.swarm);
        let epoch = secret.epoch();
        let keys: Vec<PresenceKey> = paths.iter().map(|path| secret.key(path)).collect();
        let connected = self.seen();
        let mut found: BTreeMap<PresenceKey, BTreeSet<NodeKey>> = BTreeMap::new();
        let questions = connected.iter().map(|peer| {
            let (asker, keys) = (self.key, keys.clone());
            async move {
                let answer = self
                    .world
                    .ask(self.at, *peer, move |node| node.have(asker, epoch, &keys))
                    .await;
                (self.world.plan.machines[*peer].key, answer.flatten())
            }
        });
        for (peer, held) in futures::future::join_all(questions).await {
            for (key, held) in keys.iter().zip(held.unwrap_or_default()) {
                if held {
                    found.entry(*key).or_default().insert(peer);
                }
            }
        }
        let mut regions: BTreeMap<Region, Vec<PresenceKey>> = BTreeMap::new();
        let bits = Region::bits_for(self.world.plan.machines.len());
        for key in keys.iter().filter(|key| !found.contains_key(key)) {
            regions.entry(Region::of(*key, bits)).or_default().push(*key);
        }
        let mut questions = vec![];
        for (region, keys) in regions {
            for keeper in self.world.plan.keepers(&region.label(), KEEPERS) {
                let (asker, keys) = (self.key, keys.clone());
                questions.push(async move {
                    let ask = move |node: &Arc<Node>| node.query(asker, epoch, &keys);
                    self.world.ask(self.at, keeper, ask).await.flatten()
                });
            }
        }
        for claim in futures::future::join_all(questions)
            .await
            .into_iter()
            .flatten()
            .flatten()
        {
            let Some((holder, said)) = claimed(&claim, swarm, epoch, self.clock()) else {
                continue;
            };
            for key in said {
                if keys.contains(&key) {
                    if let Some(holder) = self.world.number(holder) {
                        self.world.ledger().handed_on(self.at, holder, key.0);
                    }
                    found.entry(key).or_default().insert(holder);
                }
            }
        }
        let members = Arc::clone(&self.view().members);
        let mut holders = BTreeMap::new();
        for (path, key) in paths.iter().zip(&keys) {
            let Some(peers) = found.get(key) else { continue };
            let mut peers: Vec<NodeKey> = peers
                .iter()
                .copied()
                .filter(|peer| members.contains(*peer))
                .collect();
            let near = self.connected();
            peers.sort_by_key(|peer| !near.contains(peer));
            holders.insert(path.clone(), peers);
        }
        holders
    }

    async fn hidden(&self, _: &[StorePath]) -> Result<BTreeSet<StorePath>, String> {
        // There is one team.
        Ok(BTreeSet::new())
    }

    async fn held(&self, paths: &[StorePath]) -> Result<Vec<Option<PathInfo>>, String> {
        let disk = lock(&self.world.disks[self.at]);
        Ok(paths.iter().map(|path| disk.paths.get(path).cloned()).collect())
    }

    async fn keep_signed(
        &self,
        paths: Vec<StorePath>,
        mut signed: BTreeMap<StorePath, Vec<Envelope>>,
    ) -> Result<Vec<(StorePath, Vec<BuildRecord>)>, String> {
        let mut disk = lock(&self.world.disks[self.at]);
        let mut all = vec![];
        for path in paths {
            for record in signed.remove(&path).unwrap_or_default() {
                if names(&record, &path) {
                    disk.put_record(&record);
                }
            }
            let known = disk.records.get(&path).map_or(&[][..], Vec::as_slice);
            let records = known.iter().filter_map(|record| opened(record).ok()).collect();
            all.push((path, records));
        }
        Ok(all)
    }
}

impl Node {
    // What this node finds and brings.

    pub async fn answer_presence(self: &Arc<Self>, question: QuestionId, paths: Vec<StorePath>) {
        let from = self.world.now();
        let own: Vec<Option<PathInfo>> = {
            let disk = lock(&self.world.disks[self.at]);
            paths.iter().map(|path| disk.paths.get(path).cloned()).collect()
        };
        let missing: Vec<StorePath> = paths
            .iter()
            .zip(&own)
            .filter(|(_, own)| own.is_none())
            .map(|(path, _)| path.clone())
            .collect();
        let mut elsewhere = if missing.is_empty() {
            BTreeMap::new()
        } else {
            believed_elsewhere(self.as_ref(), &missing).await
        };
        let answers = paths.iter().zip(own).map(|(path, own)| {
            let found = elsewhere.remove(path).unwrap_or_default();
            PathPresence {
                path: path.clone(),
                own: own.is_some(),
                desired: false,
                sources: found.sources,
                unheard: false,
                nar_size: own.map(|info| info.nar_size).or(found.nar_size),
            }
        });
        let answers = answers.collect();
        self.world
            .ledger()
            .presence_answered(self.at, &paths, from, self.world.now());
        self.event(Event::Presence {
            question,
            paths: answers,
        });
    }

    /// Carries out a fetch; gives what came of it.
    pub async fn fetch(self: &Arc<Self>, fetch: FetchId, path: StorePath, from: Vec<Source>) -> Event {
        let providers: Vec<NodeKey> = from
            .into_iter()
            .filter_map(|source| match source {
                Source::Peer(node) => Some(node),
                Source::Cache(_) | Source::Folder(_) => None,
            })
            .collect();
        let first = providers.first().copied().unwrap_or(self.key);
        if let Err(error) = self.ensure(std::slice::from_ref(&path), &providers).await {
            self.world.ledger().not_fetched(self.at, &path);
            let error = error.to_string();
            return Event::FetchFailed { fetch, error };
        }
        let from = Source::Peer(first);
        self.event(Event::FetchStarted {
            fetch,
            path: path.clone(),
            from: from.clone(),
        });
        self.event(Event::FetchArrived {
            fetch,
            path,
            from,
            bytes: 1,
        });
        Event::FetchFinished { fetch }
    }

    /// Brings these paths and everything they refer to here.
    pub async fn ensure(
        self: &Arc<Self>,
        roots: &[StorePath],
        providers: &[NodeKey],
    ) -> Result<(), FetchFailure> {
        let judged = Judged::own(self.world.now());
        let survey = self.survey(roots, providers).await;
        let survey = survey.map_err(FetchFailure::NotToBeHad)?;
        let items = survey.there.into_iter();
        let items = items.map(|(path, remote)| (path, Item::accepted(remote)));
        self.bring_all(items.collect(), judged).await
    }

    /// Brings these paths, each after those of them that it refers to.
    pub async fn bring_all(
        self: &Arc<Self>,
        mut items: BTreeMap<StorePath, Item>,
        judged: Judged,
    ) -> Result<(), FetchFailure> {
        while !items.is_empty() {
            let ready = items.iter().find(|(path, item)| {
                let mut references = item.info.references.iter();
                references.all(|other| other == *path || !items.contains_key(other))
            });
            let Some(path) = ready.map(|(path, _)| path.clone()) else {
                return Err(FetchFailure::NotToBeHad("references go in a circle".to_owned()));
            };
            let Some(item) = items.remove(&path) else { continue };
            if self.tree_of(&path) == Some(item.info.tree) {
                continue;
            }
            if let Err(error) = self.bring(&item.info, &item.providers).await {
                self.shown.forget(&path);
                return Err(error);
            }
            match item.keep {
                Keep::Accepted { record } => {
                    self.syncs().await;
                    let here = self.tree_of(&path);
                    let offered = item.info.tree;
                    if let Some(have) = here.filter(|have| *have != offered) {
                        self.world.ledger().count("names taken meanwhile");
                        let source = AddError::Conflict {
                            path: path.clone(),
                            have,
                            offered,
                        };
                        return Err(not_stored(path, source));
                    }
                    self.commit(vec![item.info], record.as_ref(), judged);
                }
                Keep::Aside => self.keep_aside(vec![item.info]).await,
            }
        }
        Ok(())
    }

    /// Fetches the tree of a path, every byte checked against its digest, and the whole against what is known.
    pub async fn bring(self: &Arc<Self>, info: &PathInfo, providers: &[NodeKey]) -> Result<(), FetchFailure> {
        for provider in providers {
            let Some(to) = self.world.number(*provider) else {
                continue;
            };
            let (asker, tree) = (self.key, info.tree);
            let came = self
                .world
                .ask(self.at, to, move |node| node.serve_tree(asker, tree))
                .await
                .flatten();
            if came != Some(tree) {
                if came.is_some() {
                    self.world.ledger().count("wrong content cut");
                }
                continue;
            }
            self.sleep(1 + info.nar_size / 50_000).await;
            if !self.world.fits(info) {
                self.world.ledger().count("false infos found out");
                let path = info.path.clone();
                let source = AddError::Archive {
                    path: path.clone(),
                    hash: info.nar_hash,
                    size: info.nar_size,
                    computed: nar_hash(info.tree),
                    computed_size: self.world.tree(info.tree).map_or(0, |tree| tree.size),
                };
                return Err(not_stored(path, source));
            }
            return Ok(());
        }
        Err(FetchFailure::NotToBeHad(format!("nobody gives {}", info.path)))
    }
}

fn not_stored(path: StorePath, error: AddError) -> FetchFailure {
    let source = DepotError::Add(error);
    FetchFailure::Store { path, source }
}
