//! Bringing paths into the store of another member, and taking what others push here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tvix_node_coordinator::{Event, PushId};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::PUSH_BYTES;
use tvix_node_protocol::messages::{PushRefusal, Shown};
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_swarm::PushError;
use tvix_node_swarm::events::IncomingPush;

use super::TeamNode;
use super::evidence::{Evidence as _, Findings};
use super::fetch::{FetchFailure, Item, Keep};
use super::limits::{CLOSURE, OFFERED};
use super::policy::Word;
use super::purpose::Purpose;
use super::surroundings::InStore;
use crate::daemon::depot::DepotError;
use crate::daemon::folder::FolderError;

/// Why paths are not in the desired store.
#[derive(Debug, thiserror::Error)]
pub enum PushFailure {
    /// The own store.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// The other store.
    #[error(transparent)]
    Push(#[from] PushError),
    /// It could not be asked what it has.
    #[error(transparent)]
    Call(#[from] tvix_node_swarm::CallError),
    /// A folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// It stays here.
    #[error("{0} is private ('tvix-node private'), so it does not leave this node")]
    Private(StorePath),
    /// It came from another team.
    #[error("{0} came from another team, so it does not go to this one")]
    OtherTeam(StorePath),
    /// Too much at once.
    #[error("the closure has {0} paths, more than the {CLOSURE} allowed")]
    TooLarge(usize),
}

impl PushFailure {
    /// Whether trying again may help.
    fn is_transient(&self) -> bool {
        match self {
            Self::Depot(_) | Self::Folder(_) | Self::TooLarge(_) | Self::Private(_) | Self::OtherTeam(_) => {
                false
            }
            Self::Call(_) => true,
            Self::Push(error) => match error {
                PushError::Call(_) | PushError::Unconfirmed { .. } => true,
                PushError::Refused { reason, .. } => {
                    matches!(reason, PushRefusal::Busy | PushRefusal::Content)
                }
            },
        }
    }
}

impl TeamNode {
    /// Carries out a push of the coordinator to a member, and reports how it went.
    pub async fn push(self: Arc<Self>, push: PushId, path: StorePath, to: NodeKey) {
        let event = match self.push_to_node(to, vec![path]).await {
            Ok(()) => Event::PushFinished { push },
            Err(error) => Event::PushFailed {
                push,
                transient: error.is_transient(),
                error: error.to_string(),
            },
        };
        self.tell(event).await;
    }

    /// Brings paths of this store, with their closures, into the store of a member, which confirms every
    /// one with its tree digest.
    pub async fn push_to_node(&self, store: NodeKey, paths: Vec<StorePath>) -> Result<(), PushFailure> {
        if store == self.swarm.key() {
            return Ok(());
        }
        let roots: BTreeSet<StorePath> = paths.iter().cloned().collect();
        let closure = self
            .depot
            .blocking(move |store| Ok(store.closure(paths.iter())?))
            .await?;
        if let Some(info) = closure
            .iter()
            .find(|info| self.depot.private.is_private(&info.path))
        {
            return Err(PushFailure::Private(info.path.clone()));
        }
        if let Some(path) = self.first_hidden(&closure).await? {
            return Err(PushFailure::OtherTeam(path));
        }
        if closure.len() > CLOSURE {
            return Err(PushFailure::TooLarge(closure.len()));
        }
        let names: Vec<StorePath> = closure.iter().map(|info| info.path.clone()).collect();
        let has = self.swarm.have(store, &names).await?;
        let missing: Vec<PathInfo> = closure
            .into_iter()
            .zip(has)
            // What is asked for is offered in any case: the store has to confirm it with its content.
            .filter(|(info, has)| !has || roots.contains(&info.path))
            .map(|(info, _)| info)
            .collect();
        let view = self.view.clone();
        let offered: Vec<Shown> = self
            .depot
            .blocking(move |store| {
                let mut offered = Vec::with_capacity(missing.len());
                for info in references_first(missing) {
                    offered.extend(view.shown(store, &info.path)?);
                }
                Ok(offered)
            })
            .await?;
        for part in parts(offered) {
            self.swarm.push(store, part).await?;
        }
        Ok(())
    }

    /// Takes what another member pushes here, as far as the policy accepts it.
    pub async fn take(self: Arc<Self>, incoming: IncomingPush) {
        let (peer, paths) = (incoming.peer, incoming.paths.clone());
        let _work = self.depot.work();
        let taken = incoming.accept();
        if paths.len() > OFFERED {
            let message = format!("{} paths at once, more than the {OFFERED} allowed", paths.len());
            return taken.refuse(PushRefusal::Busy, message).await;
        }
        if self.traffic.terms().metered {
            let message = "its connection is metered ('tvix-node traffic' there says so)".to_owned();
            return taken.refuse(PushRefusal::Policy, message).await;
        }
        let names: Vec<StorePath> = paths.iter().map(|shown| shown.info.path.clone()).collect();
        let own = self.held_for_team(names).await;
        let own = match own {
            Ok(own) => own,
            Err(error) => return taken.refuse(PushRefusal::Failed, error.to_string()).await,
        };
        let mut items = BTreeMap::new();
        let mut findings = Findings::default();
        for (shown, own) in paths.iter().zip(own) {
            let path = &shown.info.path;
            // What is hidden is as if it were not here: it has to come, and is known to this team as well then.
            let hidden = self.depot.private.is_private(path) || matches!(own, InStore::Hidden(_));
            match own.for_team().filter(|_| !hidden) {
                Some(info) if info.tree == shown.info.tree => continue,
                Some(info) => {
                    let message = format!("{path} is something else here: the tree {}", info.tree);
                    return taken.refuse(PushRefusal::Policy, message).await;
                }
                None => {}
            }
            let origin = match self.accept(peer, shown, Word::Counts, &mut findings).await {
                Ok(origin) => origin,
                Err(why) => return taken.refuse(PushRefusal::Policy, why).await,
            };
            let record = shown.record.clone().filter(|record| {
                origin
                    == Origin::Record {
                        builder: record.signer,
                    }
            });
            let info = PathInfo {
                origin,
                registered: 0,
                ..shown.info.clone()
            };
            let (providers, keep) = (vec![peer], Keep::Accepted { record });
            items.insert(
                path.clone(),
                Item {
                    info,
                    providers,
                    keep,
                },
            );
        }
        if let Err(error) = self.bring_all(items, Purpose::another(), None).await {
            tracing::info!(%peer, %error, "what a member pushed is not kept");
            let message = match error {
                // What it says of what is here is not for everybody.
                FetchFailure::Store { path, .. } | FetchFailure::Room { path, .. } => {
                    format!("{path} could not be taken into the store")
                }
                error => error.to_string(),
            };
            return taken.refuse(PushRefusal::Content, message).await;
        }
        for shown in paths {
            if taken.stored(shown.info.path, shown.info.tree).await.is_err() {
                return;
            }
        }
        // Whoever offered them may be gone; what is stored is stored.
        taken.done().await.ok();
    }
}

/// Cuts an offer so that each part fits into a message.
fn parts(offered: Vec<Shown>) -> Vec<Vec<Shown>> {
    let mut parts: Vec<Vec<Shown>> = Vec::new();
    let mut room = 0;
    for shown in offered {
        let record = shown.record.as_ref().map_or(0, |record| record.payload.len());
        let size = 1024 + record + shown.info.references.len() * 256;
        match parts.last_mut() {
            Some(part) if part.len() < OFFERED && size <= room => {
                room -= size;
                part.push(shown);
            }
            _ => {
                room = (PUSH_BYTES / 2).saturating_sub(size);
                parts.push(vec![shown]);
            }
        }
    }
    parts
}

/// A closure, or what is left of one, with references before what refers to them.
fn references_first(infos: Vec<PathInfo>) -> Vec<PathInfo> {
    let mut left: BTreeMap<StorePath, PathInfo> =
        infos.into_iter().map(|info| (info.path.clone(), info)).collect();
    let mut ordered = Vec::with_capacity(left.len());
    while let Some((_, first)) = left.pop_first() {
        let mut stack = vec![first];
        while let Some(info) = stack.last() {
            let next: Option<PathInfo> = info.references.iter().find_map(|path| left.remove(path));
            match next {
                Some(next) => stack.push(next),
                None => ordered.extend(stack.pop()),
            }
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use tvix_node_protocol::path_info::NarHash;
    use tvix_node_protocol::tree::TreeDigest;

    fn path(name: &str) -> StorePath {
        let mut hash = [0; 20];
        hash.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..20]);
        StorePath::from_parts(hash, name).unwrap()
    }

    fn info(name: &str, references: &[&str]) -> PathInfo {
        PathInfo {
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
        }
    }

    #[test]
    fn references_are_offered_before_what_refers_to_them() {
        let ordered = references_first(vec![
            info("a", &["b", "c", "a"]),
            info("b", &["c", "gone"]),
            info("c", &[]),
            info("d", &["a"]),
        ]);
        let at = |name: &str| ordered.iter().position(|info| info.path == path(name)).unwrap();
        assert!(at("c") < at("b") && at("b") < at("a") && at("a") < at("d"));
        // Even where something refers in a circle, all of it is offered.
        assert_eq!(
            references_first(vec![info("x", &["y"]), info("y", &["x"])]).len(),
            2
        );
    }

    #[test]
    fn an_offer_is_cut_into_parts_that_fit() {
        let shown = |name: &str, references: &[&str]| Shown {
            info: info(name, references),
            record: None,
        };
        let many: Vec<Shown> = (0..OFFERED * 2 + 1)
            .map(|n| shown(&format!("p{n}"), &[]))
            .collect();
        let cut = parts(many.clone());
        assert_eq!(cut.len(), 3);
        assert_eq!(cut.concat(), many);
        assert!(parts(vec![]).is_empty());
    }
}
