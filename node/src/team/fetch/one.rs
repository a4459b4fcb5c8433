//! One path of another member: its content from those who have it, and its place in the own store.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::tree::{BlobDigest, Tree, TreeDigest};
use tvix_node_store::{AddError, Arrived, ArrivedError, ArrivedFile, ComingFile, Naming, Prepared, Store};
use tvix_node_swarm::limits::SMALL_TREE;
use tvix_node_swarm::{Arrival, ArrivedBlob, FetchOrder, GrowingBlob};

use super::FetchFailure;
use crate::daemon::combined::Combined;
use crate::daemon::depot::{Depot, DepotError};
use crate::daemon::room::Whom;
use crate::team::TeamNode;
use crate::team::limits::{PREPARED_AT_ONCE, PREPARING};
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

fn lost<T>() -> Result<T, DepotError> {
    Err(DepotError::Thread("a bug has ended it".to_owned()))
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

/// A small tree that has come, for the store.
pub struct Preparing {
    arrival: Arc<Arrival>,
    info: PathInfo,
}

/// Something that becomes part of the store.
pub struct Registering {
    path: StorePath,
    prepared: Prepared,
    record: Option<Envelope>,
}

/// What many paths of a closure have done for them together.
pub struct Intake {
    prepares: Combined<Preparing, Result<Prepared, DepotError>>,
    registers: Combined<Registering, Result<(), DepotError>>,
}

impl Intake {
    /// With this depot.
    pub fn new(depot: &Arc<Depot>) -> Self {
        let (preparing, registering) = (Arc::clone(depot), Arc::clone(depot));
        Self {
            prepares: Combined::new(
                (PREPARING, PREPARED_AT_ONCE),
                move |several: Vec<Preparing>, answer| {
                    for Preparing { arrival, info } in several {
                        answer(prepare(preparing.store(), arrival, info));
                    }
                },
            ),
            // One at a time: they share their syncs.
            registers: Combined::new((1, usize::MAX), move |several, answer| {
                register(&registering, several).into_iter().for_each(answer);
            }),
        }
    }
}

/// Prepares what has arrived, or arrives meanwhile, for the store. Blocks.
fn prepare(store: &Store, arrival: Arc<Arrival>, info: PathInfo) -> Result<Prepared, DepotError> {
    let content = Content(arrival);
    let prepared = store.prepare_arrived(info.tree, &content, Naming::Known(info));
    // What is not what it should be will not be so later.
    if !prepared.as_ref().is_err_and(is_passing)
        && let Err(error) = content.0.remove()
    {
        tracing::warn!(%error, "what has arrived could not be removed from the spool");
    }
    Ok(prepared?)
}

/// Makes several paths part of the store, and tells of those that are. Blocks.
fn register(depot: &Depot, several: Vec<Registering>) -> Vec<Result<(), DepotError>> {
    let paths: Vec<StorePath> = several.iter().map(|one| one.path.clone()).collect();
    let several = several.into_iter().map(|one| (vec![one.prepared], one.record));
    let registered = depot.store().register_each(several.collect(), &depot.lease());
    let mut results: Vec<Result<(), DepotError>> = registered
        .into_iter()
        .map(|registered| {
            registered?;
            Ok(())
        })
        .collect();
    let there = results.iter().zip(paths).filter(|(result, _)| result.is_ok());
    let there: Vec<StorePath> = there.map(|(_, path)| path).collect();
    // Here, and not where it is waited for, which may be cancelled.
    if let Err(error) = depot.added(&there) {
        for result in results.iter_mut().filter(|result| result.is_ok()) {
            *result = Err(error.clone().into());
        }
    }
    results
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
        let fetched = match size <= SMALL_TREE {
            // It is soon here: nobody needs to wait for the rest of it on a thread.
            true => match self.swarm.fetch(order).await {
                Ok(arrival) => {
                    let prepared = self.intake.prepares.ask(Preparing { arrival, info }).await;
                    Ok(prepared.unwrap_or_else(lost))
                }
                Err(error) => Err(error),
            },
            false => {
                let prepare = |arrival| self.depot.blocking(move |store| prepare(store, arrival, info));
                self.swarm.fetch_while(order, prepare).await
            }
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
        let registering = Registering {
            path: path.clone(),
            prepared: prepared.within(&self.view.audience()),
            record,
        };
        let registered = self.intake.registers.ask(registering).await;
        registered
            .unwrap_or_else(lost)
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
