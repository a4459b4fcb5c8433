//! Many small texts at once: derivations, `builtins.toFile`.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::CAHash;
use tvix_node_protocol::path_info::{NarHash, Origin, PathInfo};

use crate::add::{AddError, Prepared};
use crate::audience::Audience;
use crate::leases::Lease;
use crate::limits::TEXT_BYTES;
use crate::naming::check_path;
use crate::nar_framing as framing;
use crate::source_walk::SourceError;
use crate::store::Store;
use crate::tree_writer::TreeWriter;
use crate::trees::Temporary;

/// A text and the path it must have.
#[derive(Debug, Clone)]
pub struct Text {
    /// Its path, which must follow from name, content and references.
    pub path: StorePath,
    /// What it refers to. For a derivation: its input derivations and sources.
    pub references: BTreeSet<StorePath>,
    /// Its bytes.
    pub content: Vec<u8>,
}

impl Store {
    /// Adds texts together: all of them or none, durable when this returns. They may refer to each
    /// other. Texts that are valid already cost a look-up. Give many at once: a call costs some
    /// milliseconds for the disk, a text some ten microseconds.
    ///
    /// Answers in the order of the texts.
    ///
    /// # Errors
    /// See [`AddError`]; a path that does not follow from the content is refused.
    pub fn add_texts(&self, texts: &[Text], lease: &Lease) -> Result<Vec<PathInfo>, AddError> {
        self.add_texts_within(texts, &Audience::Everyone, lease)
    }

    /// The same, of which no more than `audience` may learn.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add_texts_within(
        &self,
        texts: &[Text],
        audience: &Audience,
        lease: &Lease,
    ) -> Result<Vec<PathInfo>, AddError> {
        let mut answers = lease.hold(texts.iter().map(|text| &text.path))?;
        // What others brought before is the caller's, too, from now on.
        self.widen(texts.iter().map(|text| &text.path), audience)?;
        let mut missing = BTreeSet::new();
        let mut prepared = Vec::new();
        for (text, present) in texts.iter().zip(&answers) {
            match present {
                None if missing.insert(&text.path) => {
                    prepared.push(self.prepare_text(text)?.within(audience));
                }
                None => {}
                // Its content has been compared with its name.
                Some(present) if present.ca.is_some() => {}
                // It was taken on somebody's word.
                Some(present) => {
                    let offered = self.prepare_text(text)?.info().tree;
                    if offered != present.tree {
                        return Err(AddError::Conflict {
                            path: text.path.clone(),
                            have: present.tree,
                            offered,
                        });
                    }
                }
            }
        }
        if !prepared.is_empty() {
            let mut added = self.register(prepared, lease)?;
            added.sort_unstable_by(|a, b| a.path.cmp(&b.path));
            for (text, answer) in texts.iter().zip(&mut answers) {
                if answer.is_none() {
                    let found = added.binary_search_by(|info| info.path.cmp(&text.path));
                    *answer = found.ok().map(|at| added[at].clone());
                }
            }
        }
        answers
            .into_iter()
            .map(|answer| answer.ok_or(AddError::Interrupted))
            .collect()
    }

    fn prepare_text(&self, text: &Text) -> Result<Prepared, AddError> {
        if text.content.len() > TEXT_BYTES {
            return Err(AddError::TextSize {
                path: text.path.clone(),
                size: text.content.len(),
                limit: TEXT_BYTES,
            });
        }
        let ca = CAHash::Text(Sha256::digest(&text.content).into());
        check_path(&text.path, &ca, &text.references)?;
        let (nar_hash, nar_size) = archive_of(&text.content).map_err(|source| SourceError::Read {
            path: self.physical(&text.path),
            source,
        })?;
        let inner = &self.inner;
        let temporary = Temporary::new(&inner.trees, inner.next_number());
        let mut writer = TreeWriter::new(&inner.index, &inner.sharing, temporary, None);
        writer.small_file(None, false, &text.content)?;
        let written = writer.finish()?;
        let info = PathInfo {
            path: text.path.clone(),
            tree: written.tree,
            nar_hash,
            nar_size,
            references: text.references.clone(),
            deriver: None,
            ca: Some(ca.to_nix_string()),
            origin: Origin::Content,
            registered: 0,
            signatures: Vec::new(),
        };
        Ok(Prepared::new(info, written))
    }
}

/// Hash and size of the archive of one file.
fn archive_of(content: &[u8]) -> std::io::Result<(NarHash, u64)> {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    framing::before_node(&mut before, None)?;
    framing::open_file(&mut before, false, content.len() as u64)?;
    framing::close_file(&mut after, content.len() as u64)?;
    let mut hasher = Sha256::new();
    let parts = [&before, content, &after];
    parts.iter().for_each(|part| hasher.update(part));
    let size = parts.iter().map(|part| part.len() as u64).sum();
    Ok((NarHash(hasher.finalize().into()), size))
}
