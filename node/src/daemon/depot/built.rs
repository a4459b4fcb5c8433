//! What builds made, on its way into the store: under the names of the outputs, or beside them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::Envelope;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_store::{Audience, Lease, Prepared, RecordError, Store};

use super::{Depot, DepotError};

/// What is kept of a build beside its record, for `why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildNote {
    /// Why it was placed where it was.
    pub reason: String,
    /// Seconds since 1970.
    pub started: u64,
    /// Seconds since 1970.
    pub finished: u64,
}

/// What a build comes to: its record, why it was placed where it was, and who may learn of what it had to do with,
/// besides what its outputs refer to.
pub struct BuildFacts {
    /// What was built.
    pub derivation: StorePath,
    /// Who may learn of it.
    pub audience: Audience,
    /// What its builder signed.
    pub record: Envelope,
    /// For people.
    pub note: BuildNote,
}

impl Depot {
    /// Makes the outputs of a build part of the store, with their record and note. An output whose name has another
    /// tree already keeps that: not every package is reproducible, and the first one accepted counts. Whether every name
    /// has now what was built.
    pub async fn register(
        self: &Arc<Self>,
        outputs: Vec<Prepared>,
        facts: BuildFacts,
    ) -> Result<bool, DepotError> {
        let (own, file, depot) = (
            self.holding.lease(),
            self.note_file(&facts.derivation),
            Arc::clone(self),
        );
        self.blocking(move |store| {
            let all = outputs.len();
            let outputs = where_names_are_free(&own, outputs)?;
            let complete = outputs.len() == all;
            depot.put_in(store, &own, outputs, facts, &file)?;
            Ok(complete)
        })
        .await
    }

    /// The same for what was built for another. Where only one of the names has another tree, or where `accepted` is not
    /// said, all outputs are kept under their digests. Gives these: none where what was built has the names.
    pub async fn register_for_another(
        self: &Arc<Self>,
        accepted: bool,
        outputs: Vec<Prepared>,
        facts: BuildFacts,
    ) -> Result<Vec<TreeDigest>, DepotError> {
        let (own, file, depot) = (
            self.holding.lease(),
            self.note_file(&facts.derivation),
            Arc::clone(self),
        );
        self.blocking(move |store| {
            if accepted && !any_name_is_taken(&own, &outputs)? {
                depot.put_in(store, &own, outputs, facts, &file)?;
                return Ok(Vec::new());
            }
            let outputs = outputs.into_iter().map(|output| output.within(&facts.audience));
            let kept = store.register_unaccepted(outputs.collect(), &own)?;
            Ok(kept.into_iter().map(|info| info.tree).collect())
        })
        .await
    }

    fn put_in(
        &self,
        store: &Store,
        own: &Lease,
        outputs: Vec<Prepared>,
        facts: BuildFacts,
        note: &Path,
    ) -> Result<(), DepotError> {
        let paths: Vec<StorePath> = outputs.iter().map(|output| output.info().path.clone()).collect();
        if outputs.is_empty() {
            match store.put_record(&facts.record, &facts.audience) {
                // Of so many that say something else this one is not missed.
                Ok(()) | Err(RecordError::TooMany) => {}
                Err(error) => return Err(error.into()),
            }
        } else {
            let outputs = outputs.into_iter().map(|output| output.within(&facts.audience));
            store.register_built(outputs.collect(), &facts.record, own)?;
        }
        note_down(note, &facts.note);
        Ok(self.added(&paths)?)
    }

    /// Keeps a record, and why the build was placed where it was, without the outputs: they are
    /// elsewhere.
    pub async fn keep_record(&self, facts: BuildFacts) -> Result<(), DepotError> {
        let file = self.note_file(&facts.derivation);
        self.blocking(move |store| {
            store.put_record(&facts.record, &facts.audience)?;
            note_down(&file, &facts.note);
            Ok(())
        })
        .await
    }

    /// The bytes of the archive of each of these outputs, where all of them are here.
    pub async fn all_here(&self, outputs: &BTreeMap<String, StorePath>) -> Option<BTreeMap<String, u64>> {
        let sizes = self.presence(outputs.values().cloned().collect()).await;
        let named = outputs.keys().zip(sizes);
        named
            .map(|(name, (_, size))| Some((name.clone(), size?)))
            .collect()
    }

    fn note_file(&self, derivation: &StorePath) -> PathBuf {
        self.notes.join(derivation.to_basename())
    }

    /// The note of the last build of a derivation here.
    pub async fn note(&self, derivation: &StorePath) -> Option<BuildNote> {
        let text = tokio::fs::read(self.note_file(derivation)).await.ok()?;
        serde_json::from_slice(&text).ok()
    }
}

fn has_another_tree(present: Option<&PathInfo>, output: &Prepared) -> bool {
    present.is_some_and(|present| present.tree != output.info().tree)
}

/// What is known of what these outputs' names have already. It stays.
fn present(own: &Lease, outputs: &[Prepared]) -> Result<Vec<Option<PathInfo>>, DepotError> {
    Ok(own.hold(outputs.iter().map(|output| &output.info().path))?)
}

fn any_name_is_taken(own: &Lease, outputs: &[Prepared]) -> Result<bool, DepotError> {
    let present = present(own, outputs)?;
    let mut both = present.iter().zip(outputs);
    Ok(both.any(|(present, output)| has_another_tree(present.as_ref(), output)))
}

fn where_names_are_free(own: &Lease, outputs: Vec<Prepared>) -> Result<Vec<Prepared>, DepotError> {
    let present = present(own, &outputs)?;
    let both = present.into_iter().zip(outputs);
    let free = both.filter(|(present, output)| !has_another_tree(present.as_ref(), output));
    Ok(free.map(|(_, output)| output).collect())
}

/// A note is for people: a build does not fail for want of one.
fn note_down(file: &Path, note: &BuildNote) {
    if let Err(error) = write_note(file, note) {
        tracing::warn!(%error, "why a build was placed where it was could not be written down");
    }
}

fn write_note(file: &Path, note: &BuildNote) -> Result<(), DepotError> {
    let failed = |source| DepotError::File {
        file: file.to_owned(),
        action: "written",
        source,
    };
    let text = serde_json::to_vec(note).map_err(|error| DepotError::Record(error.to_string()))?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut aside = tempfile_in(folder).map_err(failed)?;
    aside.1.write_all(&text).map_err(failed)?;
    std::fs::rename(&aside.0, file).map_err(failed)
}

fn tempfile_in(folder: &Path) -> std::io::Result<(PathBuf, std::fs::File)> {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = folder.join(format!(".new-{}-{number}", std::process::id()));
    let file = std::fs::File::create(&path)?;
    Ok((path, file))
}

#[cfg(test)]
#[path = "built_tests.rs"]
mod tests;
