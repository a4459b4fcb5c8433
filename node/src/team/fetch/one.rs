//! One path of another member: its content from those who have it, and its place in the own store.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::tree::{BlobDigest, Tree, TreeDigest};
use tvix_node_store::{AddError, Arrived, ArrivedError, ArrivedFile, ComingFile, Naming, Prepared};
use tvix_node_swarm::limits::SMALL_TREE;
use tvix_node_swarm::{Arrival, ArrivedBlob, FetchOrder, GrowingBlob};

use super::FetchFailure;
use crate::daemon::room::Whom;
use crate::team::TeamNode;
use crate::team::purpose::Purpose;
use crate::team::surroundings::InStore;

/// Whether what has arrived may become part of the store another time: it is this machine that failed, or the rest of it is
/// still missing.
fn is_passing(error: &AddError) -> bool {
    matches!(
        error,
        AddError::Arrived(ArrivedError::Read { .. } | ArrivedError::Stored(_))
            | AddError::Write(_)
            | AddError::File(_)
            | AddError::Index(_)
    )
}

/// What arrived, as the store wants to see it.
pub(in crate::team) struct Content(pub(in crate::team) Arc<Arrival>);

/// A large file on its way, as the store wants to see it.
struct Coming(GrowingBlob);

impl ComingFile for Coming {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self) -> &File {
        self.0.file()
    }

    fn wait(&self, bytes: u64) -> io::Result<u64> {
        self.0.wait(bytes).map_err(io::Error::other)
    }
}

impl Arrived for Content {
    fn tree(&self, digest: TreeDigest) -> io::Result<Option<Tree>> {
        self.0.tree(digest).map_err(io::Error::other)
    }

    fn blob(&self, digest: BlobDigest) -> io::Result<Option<ArrivedFile>> {
        Ok(match self.0.blob(digest).map_err(io::Error::other)? {
            Some(ArrivedBlob::Bytes(bytes)) => Some(ArrivedFile::Bytes(bytes)),
            Some(ArrivedBlob::File(path)) => Some(ArrivedFile::Given(path)),
            Some(ArrivedBlob::Growing(growing)) => Some(ArrivedFile::Coming(Box::new(Coming(growing)))),
            None => None,
        })
    }
}

impl TeamNode {
    /// Fetches the tree of a path and prepares it for the store under a name that it must fit.
    pub async fn bring(
        &self,
        info: PathInfo,
        providers: Vec<NodeKey>,
        Purpose { whom, priority }: Purpose,
    ) -> Result<Prepared, FetchFailure> {
        let (path, tree, size) = (info.path.clone(), info.tree, info.nar_size);
        // The store takes large files over as they lie in the spool; small ones are there twice for a while.
        let room = self.depot.room.promise(whom, info.nar_size).await;
        let _room = room.map_err(|source| FetchFailure::Room {
            path: path.clone(),
            source,
        })?;
        let order = FetchOrder {
            // An archive has every byte of every file.
            max_bytes: Some(info.nar_size),
            for_another: whom == Whom::Another,
            priority,
            ..FetchOrder::new(tree, providers)
        };
        // The arrival goes once the store has it at its side: nobody may wait for something else while it
        // holds one, since another path may have the same content. The store writes while the rest comes.
        let depot = self.depot.clone();
        let prepare = |arrival| async move {
            let prepared = depot.blocking(move |store| {
                let content = Content(arrival);
                let prepared = store.prepare_arrived(tree, &content, Naming::Known(info));
                // What is not what it should be will not be so later.
                if !prepared.as_ref().is_err_and(is_passing)
                    && let Err(error) = content.0.remove()
                {
                    tracing::warn!(%error, "what has arrived could not be removed from the spool");
                }
                Ok(prepared?)
            });
            prepared.await
        };
        let fetched = match size <= SMALL_TREE {
            // It is soon here: nobody needs to wait for the rest of it on a thread.
            true => match self.swarm.fetch(order).await {
                Ok(arrival) => Ok(prepare(arrival).await),
                Err(error) => Err(error),
            },
            false => self.swarm.fetch_while(order, prepare).await,
        };
        match fetched {
            Ok(prepared) => prepared.map_err(|source| FetchFailure::Store { path, source }),
            Err(source) => Err(FetchFailure::Transfer {
                path,
                why: self.with_names(&source.to_string()),
                source,
            }),
        }
    }

    /// Makes what was brought part of the store.
    pub async fn register(
        &self,
        path: StorePath,
        prepared: Prepared,
        record: Option<Envelope>,
    ) -> Result<(), FetchFailure> {
        let (lease, depot) = (self.depot.lease(), Arc::clone(&self.depot));
        let (added, prepared) = (path.clone(), prepared.within(&self.view.audience()));
        let registered = self.depot.blocking(move |store| {
            match record {
                Some(record) => drop(store.register_built(vec![prepared], &record, &lease)?),
                None => drop(store.register(vec![prepared], &lease)?),
            }
            // Here, and not after the wait, which may be cancelled.
            Ok(depot.added(&[added])?)
        });
        registered
            .await
            .map_err(|source| FetchFailure::Store { path, source })
    }

    /// Keeps what was brought under its digest: nobody is believed for it, and nobody is told of it.
    pub(super) async fn register_aside(
        &self,
        path: StorePath,
        prepared: Prepared,
    ) -> Result<(), FetchFailure> {
        let (lease, prepared) = (self.depot.lease(), prepared.within(&self.view.audience()));
        let registered = self.depot.blocking(move |store| {
            store.register_unaccepted(vec![prepared], &lease)?;
            Ok(())
        });
        registered
            .await
            .map_err(|source| FetchFailure::Store { path, source })
    }

    /// What is known of a path that is here, as far as the team may know.
    pub async fn here(&self, path: &StorePath) -> Result<Option<PathInfo>, FetchFailure> {
        let held = self.held_for_team(vec![path.clone()]).await;
        let held = held.map_err(|source| FetchFailure::Store {
            path: path.clone(),
            source,
        })?;
        Ok(held.into_iter().next().and_then(InStore::for_team))
    }
}
