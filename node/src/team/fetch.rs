//! Bringing paths of other members into the own store: a closure in parallel, references first. `arriving` says who brings
//! which path, and `one` brings it.

mod arriving;
mod one;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tvix_node_coordinator::{Event, FetchId, Source};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_swarm::limits::{SHARES, SMALL_TREE};
use tvix_node_swarm::{FetchError, Line, ProviderError, Rising};

use super::TeamNode;
use super::evidence::{Evidence as _, Remote};
use super::limits::{ARRIVING, REFERENCES_PATIENCE, STEPS};
use super::purpose::Purpose;
use crate::daemon::depot::DepotError;
use crate::daemon::room::NoRoom;
pub use arriving::{Arriving, BringingTurn};
pub(super) use one::{Content, Intake};

/// Why a path was not brought here.
#[derive(Debug, thiserror::Error)]
pub enum FetchFailure {
    /// It cannot be had, or is not believed.
    #[error("{0}")]
    NotToBeHad(String),
    /// It did not come.
    #[error("{path} could not be fetched: {why}")]
    Transfer {
        /// Which.
        path: StorePath,
        /// Why, with members by their names.
        why: String,
        /// Why.
        source: FetchError,
    },
    /// What came is not what it should be, or the store does not take it.
    #[error("{path} could not be taken into the store: {source}")]
    Store {
        /// Which.
        path: StorePath,
        /// Why.
        source: DepotError,
    },
    /// The disk is too full.
    #[error("{path} is not fetched: {source}")]
    Room {
        /// Which.
        path: StorePath,
        /// Why.
        source: NoRoom,
    },
    /// Something it refers to did not come; that is reported for itself.
    #[error("something that {0} refers to did not come")]
    Reference(StorePath),
    /// A task of the node ended: a bug, or the node is going down.
    #[error("a transfer was lost: {0}")]
    Lost(String),
}

impl FetchFailure {
    /// Whether nobody who has it could be reached any more, and nothing else is wrong: it may be had soon.
    #[must_use]
    pub fn is_away(&self) -> bool {
        let away = |error: &ProviderError| match error {
            ProviderError::Call(error) => error.is_away(),
            ProviderError::Ended(_) => true,
            _ => false,
        };
        match self {
            Self::Transfer {
                source: FetchError::Failed { failures, .. },
                ..
            } => !failures.is_empty() && failures.iter().all(|(_, error)| away(error)),
            _ => false,
        }
    }
}

/// What is told while a closure comes.
#[derive(Debug, Clone)]
pub enum Step {
    /// A path is on its way.
    Started {
        /// Which.
        path: StorePath,
        /// From whom.
        from: NodeKey,
    },
    /// A path is here.
    Arrived {
        /// Which.
        path: StorePath,
        /// From whom.
        from: NodeKey,
        /// Bytes of its archive.
        bytes: u64,
    },
}

/// Who is told. Whoever has stopped listening need not know.
pub type Observer = mpsc::Sender<Step>;

/// A path that is to come.
#[derive(Debug, Clone)]
pub struct Item {
    /// What it must be.
    pub info: PathInfo,
    /// Who has it, the best first.
    pub providers: Vec<NodeKey>,
    /// How it is kept.
    pub keep: Keep,
}

impl Item {
    /// What somebody is believed for, with the record that speaks for it.
    pub fn accepted(remote: Remote) -> Self {
        let Remote {
            shown,
            origin,
            providers,
        } = remote;
        let speaks = |record: &Envelope| {
            origin
                == Origin::Record {
                    builder: record.signer,
                }
        };
        let record = shown.record.filter(speaks);
        let info = PathInfo {
            origin,
            registered: 0,
            ..shown.info
        };
        Self {
            info,
            providers,
            keep: Keep::Accepted { record },
        }
    }
}

/// How a path that comes is kept.
#[derive(Debug, Clone)]
pub enum Keep {
    /// Under its name: somebody is believed for it, perhaps for this record.
    Accepted {
        /// The record.
        record: Option<Envelope>,
    },
    /// Under its digest, for one build alone.
    Aside,
}

/// Waits for what a path refers to.
async fn all_came(path: &StorePath, references: Vec<watch::Receiver<Progress>>) -> Result<(), FetchFailure> {
    for mut reference in references {
        let progress = reference.wait_for(|progress| *progress != Progress::Coming).await;
        if *progress.map_err(|error| FetchFailure::Lost(error.to_string()))? == Progress::Failed {
            return Err(FetchFailure::Reference(path.clone()));
        }
    }
    Ok(())
}

/// Who brings a path.
enum Turn {
    /// Nobody: it is here.
    Here,
    /// Who has this.
    Own(BringingTurn),
}

/// Whether what a path refers to is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Coming,
    Here,
    Failed,
}

impl TeamNode {
    /// Brings these paths and everything they refer to into the own store, from these members first.
    ///
    /// # Errors
    /// See [`FetchFailure`]; what has come so far stays.
    pub async fn ensure(
        self: &Arc<Self>,
        roots: &[StorePath],
        providers: &[NodeKey],
        priority: &Rising,
        observer: Option<Observer>,
    ) -> Result<(), FetchFailure> {
        let survey = self
            .survey(roots, providers)
            .await
            .map_err(FetchFailure::NotToBeHad)?;
        let items = survey.there.into_iter();
        let items = items.map(|(path, remote)| (path, Item::accepted(remote)));
        self.bring_all(items.collect(), Purpose::own(priority.clone()), observer)
            .await
    }

    /// Brings these paths, each after those of them that it refers to.
    ///
    /// # Errors
    /// See [`FetchFailure`]; what has come so far stays.
    pub async fn bring_all(
        self: &Arc<Self>,
        items: BTreeMap<StorePath, Item>,
        purpose: Purpose,
        observer: Option<Observer>,
    ) -> Result<(), FetchFailure> {
        if let Some(path) = circle(&items) {
            let message =
                format!("{path} refers to itself through other paths, which nothing that was built does");
            return Err(FetchFailure::NotToBeHad(message));
        }
        let (senders, receivers): (BTreeMap<_, _>, BTreeMap<_, _>) = items
            .keys()
            .map(|path| {
                let (sender, receiver) = watch::channel(Progress::Coming);
                ((path.clone(), sender), (path.clone(), receiver))
            })
            .unzip();
        let mut turns = self.turns(&items, &purpose.priority).await?;
        let places = Arc::new(Line::new(ARRIVING * SHARES as usize));
        let mut coming = JoinSet::new();
        for ((path, item), (_, sender)) in items.into_iter().zip(senders) {
            let turn = match turns.remove(&path) {
                Some(Turn::Here) => {
                    sender.send_replace(Progress::Here);
                    continue;
                }
                Some(Turn::Own(turn)) => Some(turn),
                None => None,
            };
            let references: Vec<watch::Receiver<Progress>> = match item.keep {
                Keep::Accepted { .. } => item
                    .info
                    .references
                    .iter()
                    .filter(|reference| **reference != path)
                    .filter_map(|reference| receivers.get(reference).cloned())
                    .collect(),
                Keep::Aside => Vec::new(),
            };
            let (node, places, observer) = (Arc::clone(self), Arc::clone(&places), observer.clone());
            let purpose = purpose.clone();
            coming.spawn(async move {
                let result = node
                    .arrive(&path, turn, (item, purpose), references, &places, observer)
                    .await;
                if result.is_err() {
                    node.shown.forget(&path);
                }
                sender.send_replace(if result.is_ok() {
                    Progress::Here
                } else {
                    Progress::Failed
                });
                result
            });
        }
        let mut failure = None;
        while let Some(result) = coming.join_next().await {
            match result
                .map_err(|error| FetchFailure::Lost(error.to_string()))
                .flatten()
            {
                Ok(()) => {}
                Err(FetchFailure::Reference(path)) => {
                    failure.get_or_insert(FetchFailure::Reference(path));
                }
                // What failed first is what the others failed for.
                Err(error) => match failure {
                    None | Some(FetchFailure::Reference(_)) => failure = Some(error),
                    Some(_) => {}
                },
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Turns to bring those of these paths that nobody else is bringing, and which of them are here: with one look at the store.
    async fn turns(
        &self,
        items: &BTreeMap<StorePath, Item>,
        priority: &Rising,
    ) -> Result<BTreeMap<StorePath, Turn>, FetchFailure> {
        let turns = items.iter().filter_map(|(path, item)| {
            let turn = self.arriving.turn_now(path, priority)?;
            Some((path, item.info.tree, turn))
        });
        let turns: Vec<_> = turns.collect();
        let paths: Vec<StorePath> = turns.iter().map(|(path, ..)| (*path).clone()).collect();
        let Some(first) = paths.first().cloned() else {
            return Ok(BTreeMap::new());
        };
        let held = self.held_for_team(paths).await;
        let held = held.map_err(|source| FetchFailure::Store { path: first, source })?;
        let turns = turns.into_iter().zip(held).map(|((path, tree, turn), held)| {
            let here = held.for_team().is_some_and(|here| here.tree == tree);
            let turn = if here { Turn::Here } else { Turn::Own(turn) };
            (path.clone(), turn)
        });
        Ok(turns.collect())
    }

    /// `turn`: to bring this path, which was not here when that was taken.
    async fn arrive(
        self: &Arc<Self>,
        path: &StorePath,
        turn: Option<BringingTurn>,
        (item, purpose): (Item, Purpose),
        references: Vec<watch::Receiver<Progress>>,
        places: &Arc<Line>,
        observer: Option<Observer>,
    ) -> Result<(), FetchFailure> {
        let Item {
            info,
            providers,
            keep,
        } = item;
        let turn = match turn {
            Some(turn) => turn,
            None => {
                let turn = self.arriving.turn(path, &purpose.priority).await;
                if self.here(path).await?.is_some_and(|here| here.tree == info.tree) {
                    // Another fetch has brought it meanwhile.
                    return Ok(());
                }
                turn
            }
        };
        let from = providers.first().copied().unwrap_or(self.swarm.key());
        let (bytes, tree) = (info.nar_size, info.tree);
        let prepared = {
            let shares = if bytes <= SMALL_TREE { 1 } else { SHARES };
            // Who else waits for it may raise it, and so may whoever raises this.
            let for_all = turn.priority().clone();
            let of_all = Purpose {
                priority: for_all.clone(),
                ..purpose.clone()
            };
            let bringing = async {
                let _place = places.enter_rising(&for_all, shares).await;
                let path = path.clone();
                tell(observer.as_ref(), Step::Started { path, from }).await;
                self.bring(info, providers, of_all).await
            };
            purpose.priority.raising(&for_all, bringing).await?
        };
        match keep {
            Keep::Accepted { record } => {
                let mut waiting = pin!(all_came(path, references));
                let (_turn, came) = match tokio::time::timeout(REFERENCES_PATIENCE, &mut waiting).await {
                    Ok(came) => (turn, came),
                    // Somebody else may hold what is waited for, and wait for this.
                    Err(_) => {
                        drop(turn);
                        let came = waiting.await;
                        let turn = self.arriving.turn(path, &purpose.priority).await;
                        if self.here(path).await?.is_some_and(|here| here.tree == tree) {
                            return Ok(());
                        }
                        (turn, came)
                    }
                };
                came?;
                self.register(path.clone(), prepared, record.clone()).await?;
                if let Some(record) = record {
                    self.sample(&record);
                }
            }
            Keep::Aside => self.register_aside(path.clone(), prepared).await?,
        }
        let path = path.clone();
        tell(observer.as_ref(), Step::Arrived { path, from, bytes }).await;
        Ok(())
    }

    /// Carries out a fetch of the coordinator from these members and whoever else has it, and tells of its
    /// steps.
    ///
    /// # Errors
    /// [`FetchFailure`]
    pub async fn fetch(
        self: Arc<Self>,
        fetch: FetchId,
        path: StorePath,
        providers: Vec<NodeKey>,
        priority: &Rising,
    ) -> Result<(), FetchFailure> {
        let (steps, mut told) = mpsc::channel(STEPS);
        let roots = [path];
        let forwarding = async {
            let mut arrived = false;
            while let Some(step) = told.recv().await {
                let event = match step {
                    Step::Started { path, from } => {
                        let from = Source::Peer(from);
                        Event::FetchStarted { fetch, path, from }
                    }
                    Step::Arrived { path, from, bytes } => {
                        arrived |= path == roots[0];
                        let from = Source::Peer(from);
                        Event::FetchArrived {
                            fetch,
                            path,
                            from,
                            bytes,
                        }
                    }
                };
                self.tell(event).await;
            }
            arrived
        };
        let (result, arrived) =
            tokio::join!(self.ensure(&roots, &providers, priority, Some(steps)), forwarding);
        result?;
        if !arrived {
            let [path] = roots;
            let from = Source::Peer(providers.first().copied().unwrap_or(self.swarm.key()));
            let bytes = 0;
            self.tell(Event::FetchArrived {
                fetch,
                path,
                from,
                bytes,
            })
            .await;
        }
        Ok(())
    }
}

async fn tell(observer: Option<&Observer>, step: Step) {
    if let Some(observer) = observer {
        drop(observer.send(step).await);
    }
}

/// A path that refers to itself through others, if there is one among these.
fn circle(items: &BTreeMap<StorePath, Item>) -> Option<&StorePath> {
    let graph = items
        .iter()
        .map(|(path, item)| (path, item.info.references.iter().collect()));
    circle_in(&graph.collect())
}

/// A path that refers to itself through others, if there is one in this graph of references. Nothing that
/// was built can: somebody lies.
pub fn circle_in<'a>(graph: &BTreeMap<&'a StorePath, Vec<&'a StorePath>>) -> Option<&'a StorePath> {
    let mut waiting: BTreeMap<&StorePath, usize> = BTreeMap::new();
    let mut referrers: BTreeMap<&StorePath, Vec<&StorePath>> = BTreeMap::new();
    for (path, references) in graph {
        let references = references.iter();
        let references: Vec<_> = references
            .filter(|reference| *reference != path && graph.contains_key(*reference))
            .collect();
        waiting.insert(path, references.len());
        for reference in references {
            referrers.entry(reference).or_default().push(path);
        }
    }
    let mut ready: Vec<&StorePath> = waiting
        .iter()
        .filter(|(_, count)| **count == 0)
        .map(|(path, _)| *path)
        .collect();
    while let Some(path) = ready.pop() {
        waiting.remove(path);
        for referrer in referrers.get(path).into_iter().flatten() {
            if let Some(count) = waiting.get_mut(referrer) {
                *count -= 1;
                if *count == 0 {
                    ready.push(referrer);
                }
            }
        }
    }
    let left = waiting.into_keys().next()?;
    graph.keys().copied().find(|path| *path == left)
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::path_info::NarHash;
    use tvix_node_protocol::tree::TreeDigest;

    use super::*;

    fn path(name: &str) -> StorePath {
        let mut hash = [0; 20];
        hash.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..20]);
        StorePath::from_parts(hash, name).unwrap()
    }

    fn items(graph: &[(&str, &[&str])]) -> BTreeMap<StorePath, Item> {
        let item = |name: &str, references: &[&str]| Item {
            info: PathInfo {
                path: path(name),
                tree: TreeDigest([1; 32]),
                nar_hash: NarHash([1; 32]),
                nar_size: 1,
                references: references.iter().map(|name| path(name)).collect(),
                deriver: None,
                ca: None,
                origin: Origin::Built,
                registered: 1,
                signatures: vec![],
            },
            providers: vec![],
            keep: Keep::Accepted { record: None },
        };
        graph
            .iter()
            .map(|(name, references)| (path(name), item(name, references)))
            .collect()
    }

    #[test]
    fn references_in_a_circle_are_found() {
        assert_eq!(
            circle(&items(&[("a", &["b", "a"]), ("b", &["c"]), ("c", &["here"])])),
            None
        );
        let circular = items(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]);
        assert!(circle(&circular).is_some());
    }

    #[test]
    fn who_has_not_all_of_it_is_not_away() {
        let failure = |failures: Vec<ProviderError>| FetchFailure::Transfer {
            path: path("a"),
            why: String::new(),
            source: FetchError::Failed {
                root: TreeDigest([1; 32]),
                failures: failures
                    .into_iter()
                    .map(|error| (NodeKey([1; 32]), error))
                    .collect(),
            },
        };
        let gone = || ProviderError::Ended("it went away".to_owned());
        assert!(failure(vec![gone(), gone()]).is_away());
        for other in [
            ProviderError::NotThere,
            ProviderError::Broken,
            ProviderError::Busy,
            ProviderError::Lied(String::new()),
        ] {
            assert!(!failure(vec![gone(), other]).is_away());
        }
        assert!(!failure(vec![]).is_away());
    }
}
