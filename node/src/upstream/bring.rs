//! Bringing paths of upstream caches into the own store: a closure in parallel, references first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tempfile::TempPath;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tvix_node_coordinator::Source;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_store::{CacheError, Prepared, archive_file_bytes};
use tvix_node_swarm::Rising;

use super::Upstreams;
use super::cache::{Upstream, UpstreamError};
use super::find::Offer;
use super::limits::{ASKED, CLOSURE, HEDGE_AFTER, LEAST_MOVE, STANDSTILL};
use crate::daemon::depot::{Depot, DepotError};
use crate::daemon::room::{Promise, Whom};
use crate::team::TeamNode;

/// Why a path was not brought here.
#[derive(Debug, thiserror::Error)]
pub enum BringError {
    /// It cannot be had, or is not believed.
    #[error("{path} cannot be had from a binary cache: {reason}")]
    NotToBeHad {
        /// Which.
        path: StorePath,
        /// Why, for each cache.
        reason: String,
    },
    /// More than is taken at once.
    #[error("the closure of {0} has more than {CLOSURE} paths")]
    TooMany(StorePath),
    /// Somebody lies.
    #[error("{0} refers to itself through other paths, which nothing that was built does")]
    Circle(StorePath),
    /// It did not come, or is not what the cache said.
    #[error("{path} could not be fetched: {}", .reasons.join("; "))]
    Transfer {
        /// Which.
        path: StorePath,
        /// Why, for each cache.
        reasons: Vec<String>,
    },
    /// The store does not take it.
    #[error("{path} could not be taken into the store: {source}")]
    Store {
        /// Which.
        path: StorePath,
        /// Why.
        source: DepotError,
    },
    /// Something it refers to did not come; that is reported for itself.
    #[error("something that {0} refers to did not come")]
    Reference(StorePath),
    /// A task of the node ended: a bug, or the node is going down.
    #[error("a transfer was lost: {0}")]
    Lost(String),
}

/// What is told while a closure comes.
#[derive(Debug, Clone)]
pub enum Step {
    /// A path is on its way.
    Started {
        /// Which.
        path: StorePath,
        /// From where.
        from: Source,
    },
    /// A path is here.
    Arrived {
        /// Which.
        path: StorePath,
        /// From where.
        from: Source,
        /// Bytes of its archive.
        bytes: u64,
    },
}

/// Who is told. Whoever has stopped listening need not know.
pub type Observer = mpsc::Sender<Step>;

/// Whether what a path refers to is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Coming,
    Here,
    Failed,
}

/// Brings a path from the first of these teams that has it. `reason`: why no cache has.
async fn from_a_team(teams: &[Arc<TeamNode>], path: StorePath, mut reason: String) -> Result<(), BringError> {
    for team in teams {
        match team
            .ensure(std::slice::from_ref(&path), &[], &Rising::default(), None)
            .await
        {
            Ok(()) => return Ok(()),
            Err(error) => reason.push_str(&format!("; {error}")),
        }
    }
    Err(BringError::NotToBeHad { path, reason })
}

impl Upstreams {
    /// Brings these paths and everything they refer to into the own store, as far as it is not there. What
    /// no cache has comes from one of these teams.
    ///
    /// # Errors
    /// See [`BringError`]; what has come so far stays.
    pub async fn bring(
        self: &Arc<Self>,
        depot: &Arc<Depot>,
        teams: &[Arc<TeamNode>],
        roots: &[StorePath],
        observer: Option<Observer>,
    ) -> Result<(), BringError> {
        let offers = self.survey(depot, teams, roots).await?;
        if let Some(path) = circle(&offers) {
            return Err(BringError::Circle(path.clone()));
        }
        let (senders, receivers): (BTreeMap<_, _>, BTreeMap<_, _>) = offers
            .keys()
            .map(|path| {
                let (sender, receiver) = watch::channel(Progress::Coming);
                ((path.clone(), sender), (path.clone(), receiver))
            })
            .unzip();
        let mut coming = JoinSet::new();
        for ((path, offer), (_, sender)) in offers.into_iter().zip(senders) {
            let references = offer.cached.info().references().iter();
            let references: Vec<watch::Receiver<Progress>> = references
                .filter(|reference| **reference != path)
                .filter_map(|reference| receivers.get(reference).cloned())
                .collect();
            let (upstreams, depot, observer) = (Arc::clone(self), Arc::clone(depot), observer.clone());
            coming.spawn(async move {
                let result = upstreams.arrive(&depot, &path, offer, references, observer).await;
                sender.send_replace(match result {
                    Ok(()) => Progress::Here,
                    Err(_) => Progress::Failed,
                });
                result
            });
        }
        let mut failure = None;
        while let Some(result) = coming.join_next().await {
            match result
                .map_err(|error| BringError::Lost(error.to_string()))
                .flatten()
            {
                Ok(()) => {}
                Err(BringError::Reference(path)) => {
                    failure.get_or_insert(BringError::Reference(path));
                }
                // What failed first is what the others failed for.
                Err(error) => match failure {
                    None | Some(BringError::Reference(_)) => failure = Some(error),
                    Some(_) => {}
                },
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Everything of a closure that is not here, as caches offer it.
    async fn survey(
        self: &Arc<Self>,
        depot: &Arc<Depot>,
        teams: &[Arc<TeamNode>],
        roots: &[StorePath],
    ) -> Result<BTreeMap<StorePath, Offer>, BringError> {
        let mut offers = BTreeMap::new();
        let mut seen: BTreeSet<StorePath> = roots.iter().cloned().collect();
        let mut level: Vec<StorePath> = seen.iter().cloned().collect();
        while !level.is_empty() {
            let missing = missing(depot, level).await?;
            let asked = missing.into_iter().map(|path| async move {
                let offer = self.offer(&path).await;
                (path, offer)
            });
            let mut answers = futures::stream::iter(asked).buffer_unordered(ASKED);
            let mut next = BTreeSet::new();
            while let Some((path, offer)) = answers.next().await {
                match offer {
                    Ok(offer) => {
                        next.extend(offer.cached.info().references().iter().cloned());
                        offers.insert(path, offer);
                    }
                    Err(none) => from_a_team(teams, path, none.reason).await?,
                }
            }
            level = next.into_iter().filter(|path| !seen.contains(path)).collect();
            seen.extend(level.iter().cloned());
            if seen.len() > CLOSURE
                && let Some(root) = roots.first()
            {
                return Err(BringError::TooMany(root.clone()));
            }
        }
        Ok(offers)
    }

    async fn arrive(
        self: &Arc<Self>,
        depot: &Arc<Depot>,
        path: &StorePath,
        offer: Offer,
        references: Vec<watch::Receiver<Progress>>,
        observer: Option<Observer>,
    ) -> Result<(), BringError> {
        let _turn = self.arriving.turn(path, &Rising::default()).await;
        if missing(depot, vec![path.clone()]).await?.is_empty() {
            // Another fetch has brought it meanwhile.
            return Ok(());
        }
        let from = offer.cache.source();
        let (prepared, cache) = {
            let place = self.downloads.acquire().await;
            let _place = place.map_err(|error| BringError::Lost(error.to_string()))?;
            let path = path.clone();
            tell(observer.as_ref(), Step::Started { path, from }).await;
            self.take(depot, offer).await?
        };
        for mut reference in references {
            let progress = reference.wait_for(|progress| *progress != Progress::Coming).await;
            let progress = *progress.map_err(|error| BringError::Lost(error.to_string()))?;
            if progress == Progress::Failed {
                return Err(BringError::Reference(path.clone()));
            }
        }
        let bytes = prepared.info().nar_size;
        let (lease, told) = (depot.lease(), Arc::clone(depot));
        let registered = depot.blocking(move |store| {
            let added = prepared.info().path.clone();
            store.register(vec![prepared], &lease)?;
            // Here, and not after the wait, which may be cancelled.
            Ok(told.added(&[added])?)
        });
        if let Err(source) = registered.await
            // The team may have brought it meanwhile, with other content: what was first counts.
            && !missing(depot, vec![path.clone()]).await?.is_empty()
        {
            let path = path.clone();
            return Err(BringError::Store { path, source });
        }
        cache.brought(bytes);
        let (path, from) = (path.clone(), cache.source());
        tell(observer.as_ref(), Step::Arrived { path, from, bytes }).await;
        Ok(())
    }

    /// Downloads an archive and prepares it for the store, from the first cache that has it as it says. One
    /// that is slow gets a rival.
    async fn take(
        self: &Arc<Self>,
        depot: &Arc<Depot>,
        offer: Offer,
    ) -> Result<(Prepared, Arc<Upstream>), BringError> {
        let path = offer.cached.info().store_path().clone();
        let mut reasons = Vec::new();
        let mut offers = vec![offer];
        let mut tried: Vec<String> = Vec::new();
        loop {
            tried.extend(offers.iter().map(|offer| offer.cache.url().to_owned()));
            let (offer, file) = match self.race(&path, offers, &mut tried, &mut reasons).await {
                Some(won) => won,
                None => return Err(BringError::Transfer { path, reasons }),
            };
            let cached = offer.cached.clone();
            let place = file.place.clone();
            let prepared = depot.blocking(move |store| Ok(store.prepare_cached(&cached, &place)));
            let prepared = prepared.await.map_err(|source| BringError::Store {
                path: path.clone(),
                source,
            })?;
            drop(file);
            match prepared {
                Ok(prepared) => return Ok((prepared, offer.cache)),
                // The own disk.
                Err(CacheError::Add(
                    error @ (tvix_node_store::AddError::Write(_)
                    | tvix_node_store::AddError::File(_)
                    | tvix_node_store::AddError::Index(_)),
                )) => {
                    let source = error.into();
                    return Err(BringError::Store { path, source });
                }
                Err(error) => {
                    // Whatever else such a cache has may be as wrong; another one is asked.
                    offer.cache.forget(&path);
                    offer.cache.failed(&error);
                    reasons.push(error.to_string());
                    offers = self.other_offers(&path, &tried).await;
                }
            }
        }
    }

    /// The file of the first of these offers that comes. A download that stands still gets a rival from
    /// among the others, and after a while is given up.
    async fn race(
        self: &Arc<Self>,
        path: &StorePath,
        offers: Vec<Offer>,
        tried: &mut Vec<String>,
        reasons: &mut Vec<String>,
    ) -> Option<(Offer, Archive)> {
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => {
                reasons.push(error);
                return None;
            }
        };
        let mut waiting = VecDeque::from(offers);
        let mut running = FuturesUnordered::new();
        let mut files: Vec<PathBuf> = Vec::new();
        let mut asked: Vec<Arc<Upstream>> = Vec::new();
        let (mut moved, mut size) = (Instant::now(), 0);
        let mut start = waiting.pop_front();
        loop {
            if let Some(offer) = start.take() {
                match self.place(bytes_of(&offer), running.is_empty()).await {
                    // There is no room for a rival now.
                    Ok(None) => waiting.push_front(offer),
                    Ok(Some((target, room))) => {
                        files.push(target.to_path_buf());
                        asked.push(Arc::clone(&offer.cache));
                        running.push(async move {
                            let info = offer.cached.info();
                            let most = offer.cached.most_bytes();
                            let came = offer.cache.archive(client, info, most, &target).await;
                            (
                                offer,
                                came.map(|place| Archive {
                                    place,
                                    _aside: target,
                                    _room: room,
                                }),
                            )
                        });
                        moved = Instant::now();
                    }
                    Err(reason) => {
                        reasons.push(reason);
                        return None;
                    }
                }
            }
            tokio::select! {
                ended = running.next() => match ended {
                    Some((offer, Ok(archive))) => return Some((offer, archive)),
                    Some((offer, Err(error))) => {
                        offer.cache.forget(path);
                        if !matches!(error, UpstreamError::Answer { .. }) {
                            offer.cache.failed(&error);
                        }
                        reasons.push(error.to_string());
                        start = self.next(path, &mut waiting, tried).await;
                        if start.is_none() && running.is_empty() {
                            return None;
                        }
                    }
                    None => return None,
                },
                () = tokio::time::sleep(HEDGE_AFTER) => {
                    let now = sizes(&files);
                    if has_moved(size, now) {
                        (moved, size) = (Instant::now(), now);
                    } else if moved.elapsed() >= STANDSTILL {
                        let seconds = STANDSTILL.as_secs();
                        let reason = format!("{} bytes came in {seconds} seconds", now.saturating_sub(size));
                        // Everything else would take as long from there.
                        asked.iter().for_each(|cache| cache.failed(&reason));
                        reasons.push(reason);
                        return None;
                    } else if running.len() < 2 {
                        start = self.next(path, &mut waiting, tried).await;
                    }
                }
            }
        }
    }

    async fn next(
        self: &Arc<Self>,
        path: &StorePath,
        waiting: &mut VecDeque<Offer>,
        tried: &mut Vec<String>,
    ) -> Option<Offer> {
        if let Some(offer) = waiting.pop_front() {
            return Some(offer);
        }
        let offer = self.other_offers(path, tried).await.into_iter().next()?;
        tried.push(offer.cache.url().to_owned());
        Some(offer)
    }

    /// A new file for an archive, and room on the disk for so many bytes: it and what is unpacked from it. None where
    /// there is none at the moment and it is not `waited` for.
    ///
    /// # Errors
    /// In words.
    async fn place(&self, bytes: u64, waited: bool) -> Result<Option<(TempPath, Promise)>, String> {
        let room = match waited {
            true => self
                .room
                .promise(Whom::Owner, bytes)
                .await
                .map_err(|error| error.to_string())?,
            false => match self.room.promise_now(Whom::Owner, bytes) {
                Some(room) => room,
                None => return Ok(None),
            },
        };
        let folder = self.folder.display();
        let failed = |error: std::io::Error| format!("no file can be made in '{folder}': {error}");
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        let file = tempfile::Builder::new()
            .prefix("nar-")
            .tempfile_in(&self.folder)
            .map_err(failed)?;
        Ok(Some((file.into_temp_path(), room)))
    }

    /// Removes archives that were left by downloads which broke off with the node, and that nobody has
    /// written to for so long. Gives the bytes of them.
    ///
    /// # Errors
    /// The folder cannot be read, or a file in it not be removed.
    pub fn tidy(&self, idle: std::time::Duration) -> std::io::Result<u64> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let mut bytes = 0;
        for entry in entries {
            let entry = entry?;
            let metadata = match entry.metadata() {
                // It was unpacked meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            // One that is under way is written to all the time, or is given up.
            let idle = idle.max(STANDSTILL * 2);
            if metadata.modified()?.elapsed().is_ok_and(|since| since >= idle) {
                std::fs::remove_file(entry.path())?;
                bytes += metadata.len();
            }
        }
        Ok(bytes)
    }

    /// Puts the content that a cache has of a path that is damaged here in its place. Nobody needs to be
    /// believed: it must be exactly what is registered. Gives the cache's URL.
    ///
    /// # Errors
    /// Why it cannot be had, in words; the damaged tree is as it was.
    pub async fn repair(self: &Arc<Self>, depot: &Arc<Depot>, info: &PathInfo) -> Result<String, String> {
        let client = self.client()?;
        let mut reasons = Vec::new();
        for (said, cache) in self.said(&info.path).await {
            let url = cache.url();
            if said.nar_size() != info.nar_size {
                let (said, size) = (said.nar_size(), info.nar_size);
                reasons.push(format!(
                    "{url}: it has an archive of {said} bytes, and not the one of {size}"
                ));
                continue;
            }
            let most = archive_file_bytes(&said);
            let Some((target, _room)) = self.place(most.saturating_add(info.nar_size), true).await? else {
                continue;
            };
            match cache.archive(client, &said, most, &target).await {
                Err(error) => reasons.push(error.to_string()),
                Ok(place) => {
                    let (path, url) = (info.path.clone(), cache.url().to_owned());
                    let from = url.clone();
                    let repaired =
                        depot.blocking(move |store| Ok(store.repair_cached(&path, &said, &from, &place)));
                    match repaired.await.map_err(|error| error.to_string())? {
                        Ok(_) => return Ok(url),
                        Err(error) => reasons.push(format!("{url}: {error}")),
                    }
                }
            }
        }
        if reasons.is_empty() {
            reasons.push("no binary cache that can be asked has it".to_owned());
        }
        Err(reasons.join("; "))
    }
}

/// The file of an archive, and the place and the room that go when they are not needed any more.
struct Archive {
    place: PathBuf,
    _aside: TempPath,
    _room: Promise,
}

/// Bytes that an archive and what is unpacked from it may have.
fn bytes_of(offer: &Offer) -> u64 {
    let unpacked = offer.cached.info().nar_size();
    offer.cached.most_bytes().saturating_add(unpacked)
}

/// Whether enough has come since there was so much: what drips stands still.
fn has_moved(before: u64, now: u64) -> bool {
    // Less than before: one of the files begins anew.
    now < before || now - before >= LEAST_MOVE
}

fn sizes(files: &[PathBuf]) -> u64 {
    let size = |file: &PathBuf| Path::metadata(file).map_or(0, |metadata| metadata.len());
    files.iter().map(size).sum()
}

/// Of these paths, those that are not here. The others stay.
async fn missing(depot: &Arc<Depot>, paths: Vec<StorePath>) -> Result<Vec<StorePath>, BringError> {
    let lease = depot.lease();
    let asked = paths.clone();
    let held = depot.blocking(move |_| Ok(lease.hold(asked.iter())?)).await;
    let held = held.map_err(|error| BringError::Lost(error.to_string()))?;
    let missing = paths.into_iter().zip(held).filter(|(_, info)| info.is_none());
    Ok(missing.map(|(path, _)| path).collect())
}

async fn tell(observer: Option<&Observer>, step: Step) {
    if let Some(observer) = observer {
        drop(observer.send(step).await);
    }
}

/// A path that refers to itself through others, if there is one among these.
fn circle(offers: &BTreeMap<StorePath, Offer>) -> Option<&StorePath> {
    let graph: BTreeMap<&StorePath, Vec<&StorePath>> = offers
        .iter()
        .map(|(path, offer)| (path, offer.cached.info().references().iter().collect()))
        .collect();
    crate::team::fetch::circle_in(&graph)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::room::Room;
    use crate::team::trust::TrustBook;

    #[test]
    fn what_drips_stands_still() {
        assert!(!has_moved(1000, 1000) && !has_moved(1000, 1030));
        assert!(has_moved(1000, 1000 + LEAST_MOVE) && has_moved(1000, 0));
    }

    #[tokio::test]
    async fn nothing_is_begun_that_the_disk_has_no_room_for() {
        let folder = tempfile::tempdir().unwrap();
        let me = tvix_node_protocol::envelope::NodeSecret::from_bytes(&[1; 32]).key();
        let trust = Arc::new(TrustBook::open(folder.path().join("trust.json"), me, Arc::default()).unwrap());
        let room = Room::of(folder.path().to_owned());
        let upstreams = Upstreams::new(folder.path().join("caches"), trust, room);
        let error = upstreams.place(u64::MAX, true).await.err().unwrap();
        assert!(error.contains("'tvix-node store gc' makes room"), "{error}");
        assert!(upstreams.place(u64::MAX, false).await.unwrap().is_none());
        assert!(!folder.path().join("caches").exists());
        assert!(upstreams.place(1, true).await.unwrap().is_some());
    }
}
