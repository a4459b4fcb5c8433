//! Questions about the store, as they come over the control socket.

use std::time::Duration;

use tvix_node_gateway::control::ApiError;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{
    CacheStatus, ChainLink, DamagedPath, FailureKind, PinView, ProgramUseView, StoreAnswer, StoreQuestion,
    TreeDifference,
};
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::tree::Node;
use tvix_node_store::{Damage, GcError, GcOptions, Pin, PinError, ProgramUse, ReadError, Store, VerifyError};

use super::api::{Api, failed};
use super::depot::DepotError;
use super::repair;

/// Places in one tree that are shown where a path is mentioned.
const PLACES: usize = 10;

/// Answers a question about the store.
pub(super) async fn answer(api: &Api, question: StoreQuestion) -> Result<StoreAnswer, ApiError> {
    let repairs = matches!(question, StoreQuestion::Verify { repair: true, .. });
    let collects = match question {
        StoreQuestion::Collect {
            dry_run: false,
            younger_than,
            ..
        } => Some(Duration::from_secs(younger_than.unwrap_or(0))),
        _ => None,
    };
    if matches!(question, StoreQuestion::Collect { .. }) {
        api.depot.let_go();
    }
    // What is asked runs on a thread that may block; a refusal is a result of its own there.
    let answered = api.depot.blocking(move |store| Ok(ask(store, question))).await;
    let mut answer = answered.map_err(failed)??;
    if repairs && let StoreAnswer::Verified { damaged, .. } = &mut answer {
        repair::repair(api, damaged).await?;
    }
    if let (
        Some(idle),
        StoreAnswer::Collected {
            removed, broken_off, ..
        },
    ) = (collects, &mut answer)
    {
        withdraw(api, removed.clone()).await?;
        *broken_off = tidy(api, idle).await?;
    }
    Ok(answer)
}

/// Takes back from all teams that these paths are here. One that was not told of a path has nothing to take back.
async fn withdraw(api: &Api, removed: Vec<StorePath>) -> Result<(), ApiError> {
    let teams = api.team.all();
    if teams.is_empty() {
        return Ok(());
    }
    for team in teams {
        team.swarm.withdraw(&removed);
    }
    // What came back meanwhile was announced too early.
    let back = api.depot.infos(removed).await.map_err(failed)?;
    let back: Vec<StorePath> = back.into_iter().map(|info| info.path).collect();
    api.depot.tell_added(back).await.map_err(failed)
}

/// Removes what broken transfers left that nobody has gone on with for so long.
async fn tidy(api: &Api, idle: Duration) -> Result<u64, ApiError> {
    let failed = |error: &dyn std::fmt::Display| {
        let message = format!("what broken transfers left could not be removed: {error}");
        ApiError::new(FailureKind::Internal, message)
    };
    let archives = api.depot.upstreams.tidy(idle).map_err(|error| failed(&error))?;
    let mut trees = 0;
    for team in api.team.all() {
        trees += team
            .swarm
            .tidy_spool(idle)
            .await
            .map_err(|error| failed(&error))?;
    }
    Ok(archives + trees)
}

/// How the binary caches do that paths are taken from.
pub(super) fn caches(api: &Api) -> Vec<CacheStatus> {
    let reports = api.depot.upstreams.reports().into_iter();
    let views = reports.map(|report| {
        let (skipped, reason) = report.skipped.unzip();
        CacheStatus {
            url: report.url,
            paths: report.paths,
            bytes: report.bytes,
            skipped,
            reason,
        }
    });
    views.collect()
}

fn ask(store: &Store, question: StoreQuestion) -> Result<StoreAnswer, ApiError> {
    let read = |error: ReadError| failed(DepotError::Read(error));
    match question {
        StoreQuestion::Closure { paths } => {
            let infos = store.closure(&paths).map_err(read)?;
            Ok(StoreAnswer::Paths { infos })
        }
        StoreQuestion::Referrers { path } => {
            valid(store, &path)?;
            let index = |error| failed(DepotError::Index(error));
            let paths = store.referrers(&path).map_err(index)?;
            let infos = store.query_many(&paths).map_err(index)?;
            let infos = infos.into_iter().flatten().collect();
            Ok(StoreAnswer::Paths { infos })
        }
        StoreQuestion::WhyDepends { path, needed } => {
            let chain = store.why_depends(&path, &needed).map_err(read)?;
            let chain = chain.unwrap_or_default();
            let mut links = Vec::with_capacity(chain.len());
            for (index, path) in chain.iter().enumerate() {
                let places = match chain.get(index + 1) {
                    Some(next) => store.mentions(path, next, PLACES).map_err(read)?,
                    None => Vec::new(),
                };
                links.push(ChainLink {
                    path: path.clone(),
                    places: places.iter().map(|place| shown(place)).collect(),
                });
            }
            Ok(StoreAnswer::Chain { links })
        }
        StoreQuestion::Diff { before, after } => {
            let (before, after) = (valid(store, &before)?, valid(store, &after)?);
            let found = store.diff(before.tree, after.tree).map_err(read)?;
            let differences = found
                .into_iter()
                .map(|difference| TreeDifference {
                    place: shown(&difference.place),
                    before: difference.before.as_ref().map(describe),
                    after: difference.after.as_ref().map(describe),
                })
                .collect();
            Ok(StoreAnswer::Differences { differences })
        }
        StoreQuestion::Usage { paths } => {
            let paths = if paths.is_empty() {
                let index = |error| failed(DepotError::Index(error));
                let roots = store.roots().map_err(index)?.into_iter().map(|root| root.path);
                let pins = store.pins().map_err(index)?.into_iter().map(|pin| pin.path);
                roots.chain(pins).collect()
            } else {
                paths
            };
            let closure = store.closure(&paths).map_err(read)?;
            let usage = store.usage(closure.iter().map(|info| &info.path)).map_err(read)?;
            Ok(StoreAnswer::Usage {
                paths: usage.paths,
                archives: usage.archives,
                files: usage.files,
            })
        }
        StoreQuestion::Collect {
            dry_run,
            younger_than,
            target,
            most,
        } => collect(
            store,
            &GcOptions {
                dry_run,
                most,
                target,
                younger_than,
                ..GcOptions::default()
            },
        ),
        StoreQuestion::Pin { paths } => {
            store.pin(&paths).map_err(unpinnable)?;
            pins(store)
        }
        StoreQuestion::Unpin { paths } => {
            store.unpin(&paths).map_err(unpinnable)?;
            pins(store)
        }
        StoreQuestion::Pins => pins(store),
        StoreQuestion::Verify { paths, .. } => verify(store, &paths),
    }
}

fn pins(store: &Store) -> Result<StoreAnswer, ApiError> {
    let pins = store.pins().map_err(|error| failed(DepotError::Index(error)))?;
    let view = |pin: Pin| PinView {
        path: pin.path,
        since: pin.since,
    };
    Ok(StoreAnswer::Pins {
        pins: pins.into_iter().map(view).collect(),
    })
}

fn unpinnable(error: PinError) -> ApiError {
    match error {
        PinError::NotValid(_) | PinError::NotPinned(_) => {
            ApiError::new(FailureKind::NotFound, error.to_string())
        }
        PinError::TooMany => ApiError::new(FailureKind::Invalid, error.to_string()),
        PinError::Index(error) => failed(DepotError::Index(error)),
    }
}

fn collect(store: &Store, options: &GcOptions) -> Result<StoreAnswer, ApiError> {
    let report = store.gc(options).map_err(|error| match error {
        GcError::Index(error) => failed(DepotError::Index(error)),
        GcError::Running(error) => ApiError::caused(FailureKind::Internal, "no garbage was collected", error),
        GcError::File(error) => ApiError::caused(
            FailureKind::Internal,
            "the collection of garbage was ended early by the file system",
            error,
        ),
    })?;
    let program = |used: ProgramUse| ProgramUseView {
        path: used.path,
        process: used.process,
    };
    Ok(StoreAnswer::Collected {
        removed: report.removed,
        removed_beside: report.removed_unaccepted.len() as u64,
        bytes: report.bytes,
        kept: report.kept,
        pins: report.pins,
        programs: report.programs.into_iter().map(program).collect(),
        stale_roots: report
            .stale_roots
            .iter()
            .map(|link| link.display().to_string())
            .collect(),
        failures: report.failures.iter().map(ToString::to_string).collect(),
        broken_off: 0,
    })
}

fn verify(store: &Store, paths: &[StorePath]) -> Result<StoreAnswer, ApiError> {
    if paths.is_empty() {
        let report = store
            .verify(&mut |_, _| {})
            .map_err(|error| failed(DepotError::Index(error)))?;
        return Ok(StoreAnswer::Verified {
            trees: report.trees,
            bytes: report.bytes,
            damaged: report.damaged.into_iter().map(damaged).collect(),
        });
    }
    let (mut bytes, mut found) = (0, Vec::new());
    for path in paths {
        bytes += valid(store, path)?.nar_size;
        let damage = store.verify_path(path).map_err(|error| match error {
            VerifyError::NotValid(path) => failed(DepotError::Read(ReadError::NotValid(path))),
            VerifyError::Index(error) => failed(DepotError::Index(error)),
        })?;
        found.extend(damage.map(damaged));
    }
    Ok(StoreAnswer::Verified {
        trees: paths.len() as u64,
        bytes,
        damaged: found,
    })
}

fn damaged(damage: Damage) -> DamagedPath {
    DamagedPath {
        path: damage.path,
        accepted: damage.accepted,
        reason: damage.reason,
        repair: None,
    }
}

fn valid(store: &Store, path: &StorePath) -> Result<PathInfo, ApiError> {
    let info = store
        .query(path)
        .map_err(|error| failed(DepotError::Index(error)))?;
    info.ok_or_else(|| failed(DepotError::Read(ReadError::NotValid(path.clone()))))
}

fn describe(node: &Node) -> String {
    match node {
        Node::Directory(_) => "directory".to_owned(),
        Node::File {
            size,
            executable: true,
            ..
        } => format!("executable file of {size} bytes"),
        Node::File { size, .. } => format!("file of {size} bytes"),
        Node::Symlink(target) => format!("link to {}", shown(target.as_bytes())),
    }
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
