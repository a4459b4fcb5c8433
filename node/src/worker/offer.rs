//! Small sources: read and named here, and sent while the evaluation goes on.
//!
//! The path of a source follows from its content, so the evaluation need not wait for the node to tell it. What it
//! tells the node afterwards is sent when the source is there, because it may refer to it. Sources that arrive
//! together share the store's syncs, which are most of what a small one costs.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;

use tvix_node_evaluator::{HostError, Ingestion, Source};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{AddSource, AddedAs};
use tvix_node_protocol::nix::hash::{CAHash, HashAlgorithm, NixHasher};
use tvix_node_protocol::nix::nar::NarError;
use tvix_node_protocol::nix::store_path::build_ca_path;

use super::limits::{OFFER_BYTES, SOURCE_TRIES};
use super::source::{SourceError, SourceTree};

/// A source that was read as a whole.
pub(super) struct Offer {
    /// What the node is to be asked.
    pub(super) request: AddSource,
    /// Its archive.
    pub(super) archive: Vec<u8>,
    /// The path that follows from it.
    pub(super) path: StorePath,
}

impl Offer {
    /// Reads a source; none where it is large, or of a kind that the node looks at more closely.
    ///
    /// # Errors
    /// It cannot be read, or changes all the time.
    pub(super) fn read(source: &Source<'_>, physical: PathBuf, tag: &str) -> Result<Option<Self>, HostError> {
        if source.ingestion != Ingestion::Nar || source.expected.is_some() || !source.references.is_empty() {
            return Ok(None);
        }
        let failed = |error: SourceError| {
            HostError::caused(
                format!("'{}' cannot be put into the store", source.path.display()),
                error,
            )
        };
        let tree = SourceTree::new(physical, source.only);
        for _ in 0..SOURCE_TRIES {
            let fingerprint = tree.fingerprint(tag).map_err(failed)?;
            let mut archive = Bounded(Vec::new());
            match tree.write_archive(&mut archive) {
                Err(SourceError::Changed(_)) => continue,
                Err(SourceError::Archive {
                    source: NarError::Io(error),
                    ..
                }) if error.kind() == io::ErrorKind::FileTooLarge => return Ok(None),
                written => written.map_err(failed)?,
            }
            let archive = archive.0;
            let mut hasher = NixHasher::new(HashAlgorithm::Sha256);
            hasher.update(&archive);
            let content = CAHash::Nar(hasher.finalize());
            // A name that cannot be is for the node to explain.
            let Ok(path) = build_ca_path(source.name, &content, std::iter::empty(), false) else {
                return Ok(None);
            };
            return Ok(Some(Self {
                request: AddSource {
                    name: source.name.to_owned(),
                    method: AddedAs::Nar,
                    fingerprint,
                    expected: None,
                    references: BTreeSet::new(),
                },
                archive,
                path,
            }));
        }
        Err(failed(SourceError::Changed(source.path.to_owned())))
    }
}

/// Bytes in memory, up to [`OFFER_BYTES`].
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.0.len() + data.len() > OFFER_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn offer(path: &std::path::Path) -> Option<Offer> {
        let references = BTreeSet::new();
        let source = Source {
            references: &references,
            name: "note",
            path,
            ingestion: Ingestion::Nar,
            only: None,
            expected: None,
        };
        Offer::read(&source, path.to_owned(), "tag").unwrap()
    }

    #[test]
    fn a_small_source_has_the_path_that_follows_from_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("note");
        fs::write(&file, "text").unwrap();
        let offer = offer(&file).unwrap();
        let host = tvix_node_evaluator::DryRun::default();
        let references = BTreeSet::new();
        let source = Source {
            references: &references,
            name: "note",
            path: &file,
            ingestion: Ingestion::Nar,
            only: None,
            expected: None,
        };
        assert_eq!(
            offer.path,
            tvix_node_evaluator::source_path(&host, &source).unwrap()
        );
        assert_eq!(offer.request.fingerprint, None, "it has changed just now");
    }

    #[test]
    fn a_large_source_is_not_held_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("note");
        fs::write(&file, vec![0; OFFER_BYTES]).unwrap();
        assert!(offer(&file).is_none());
    }
}
