//! Paths out of the store and into it, as streams over the control socket.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use tvix_node_gateway::control::{ApiError, LogReader, Outflow, UploadBody};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::FailureKind;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_store::{ImportError, Lease, ReadError, Store};

use super::api::{ARCHIVE_BUFFER, Api, failed};
use super::depot::DepotError;

/// The archive of one path.
pub(super) async fn archive(api: &Api, path: StorePath) -> Result<LogReader, ApiError> {
    let lease = hold(api, vec![path.clone()]).await?;
    Ok(stream(api, lease, move |store, outflow| {
        store.export_nar(&path, outflow)
    }))
}

/// Paths as `nix-store --export` writes them.
pub(super) async fn export(api: &Api, paths: Vec<StorePath>) -> Result<LogReader, ApiError> {
    let lease = hold(api, paths.clone()).await?;
    let paths: BTreeSet<StorePath> = paths.into_iter().collect();
    Ok(stream(api, lease, move |store, outflow| {
        store.export(&paths, outflow)
    }))
}

/// Leases paths, all of which must be valid: what is missing is said before the first byte is sent.
async fn hold(api: &Api, paths: Vec<StorePath>) -> Result<Lease, ApiError> {
    let held = api.depot.blocking(move |store| {
        let lease = store.lease();
        let infos = lease.hold(paths.iter())?;
        let missing = paths.into_iter().zip(infos).find(|(_, info)| info.is_none());
        match missing {
            Some((path, _)) => Err(ReadError::NotValid(path).into()),
            None => Ok(lease),
        }
    });
    held.await.map_err(failed)
}

fn stream(
    api: &Api,
    lease: Lease,
    write: impl FnOnce(&Store, &mut Outflow) -> Result<(), ReadError> + Send + 'static,
) -> LogReader {
    let (mut outflow, reader) = Outflow::new();
    let depot = Arc::clone(&api.depot);
    tokio::task::spawn_blocking(move || {
        let written = write(depot.store(), &mut outflow).map_err(|error| match error {
            ReadError::Output(error) => error,
            error => {
                tracing::warn!(%error, "a path could not be read to its end, and what was sent of it breaks off");
                io::Error::other(error)
            }
        });
        outflow.end(written);
        drop(lease);
    });
    reader
}

/// Adds what is in an export.
pub(super) async fn import(api: &Api, export: UploadBody) -> Result<Vec<PathInfo>, ApiError> {
    let reader = export.into_reader();
    let imported = api.depot.blocking(move |store| {
        let lease = store.lease();
        let mut reader = io::BufReader::with_capacity(ARCHIVE_BUFFER, reader);
        Ok(store.import(&mut reader, &Origin::Imported, &lease))
    });
    let infos = imported.await.map_err(failed)?.map_err(|error| match error {
        ImportError::Add(error) => failed(DepotError::Add(error)),
        error => ApiError::new(FailureKind::Invalid, error.to_string()),
    })?;
    let paths: Vec<StorePath> = infos.iter().map(|info| info.path.clone()).collect();
    api.depot.tell_added(paths).await.map_err(failed)?;
    Ok(infos)
}
