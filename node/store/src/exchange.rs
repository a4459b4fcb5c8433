//! Nix's own format for paths in a stream, which `nix-store --export` writes and `nix-store --import`
//! reads.
//!
//! Of each path: a 1, the archive, a magic number, the path, what it refers to, its deriver, and a 0
//! where a signature once stood. A 0 ends the stream. There is no hash in it and no signature: whoever
//! imports believes where the stream comes from.
//!
//! Source: Nix, `export-import.cc`.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::{CAHash, NixHash};
use tvix_node_protocol::path_info::{NarHash, Origin, PathInfo};

use crate::add::{AddError, Prepared, from_nar};
use crate::graph::references_first;
use crate::leases::Lease;
use crate::limits::{EXPORT_REFERENCES, IMPORT_GROUP, NAR_TOKEN};
use crate::naming::{Method, content_path};
use crate::nar_framing::{padding, token};
use crate::nar_reader::read_nar;
use crate::read::ReadError;
use crate::store::Store;

/// Stands after each archive.
const MAGIC: u64 = 0x4558_494e;

/// Bytes at the end of an archive that are held back until its hash is known: the token that closes it. Without
/// that, nobody takes what was written before for an archive.
const HELD_BACK: usize = 16;

/// Why a stream was not imported. Paths are registered in groups of [`IMPORT_GROUP`]; the groups before the fault stay.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The stream cannot be read.
    #[error("the export cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Another format, or cut short.
    #[error("this is not an export as 'nix-store --export' writes it: {0}")]
    Format(String),
    /// A path in it cannot be added.
    #[error(transparent)]
    Add(#[from] AddError),
}

impl Store {
    /// Writes the archive (NAR) of a valid path and checks it against its hash. Where the path is damaged, the
    /// archive lacks its end.
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn export_nar(&self, path: &StorePath, to: &mut impl Write) -> Result<(), ReadError> {
        let lease = self.lease();
        let info = lease.hold_one(path)?;
        self.checked_nar(&info.ok_or_else(|| ReadError::NotValid(path.clone()))?, to)?;
        to.flush().map_err(ReadError::Output)
    }

    /// The archive of a path that is leased.
    fn checked_nar(&self, info: &PathInfo, to: &mut impl Write) -> Result<(), ReadError> {
        let mut checking = Checking::new(to);
        self.dump_nar(&info.path, &mut checking)?;
        let (hash, end) = checking.finish();
        if hash != info.nar_hash {
            return Err(ReadError::Damaged {
                path: self.physical(&info.path),
                reason: "has another archive than when it was registered",
            });
        }
        to.write_all(&end).map_err(ReadError::Output)
    }

    /// Writes valid paths as `nix-store --export` does, those that are referred to first, and nothing
    /// that they refer to beyond: export a closure for what can be imported anywhere. Each archive is
    /// checked against its hash; where one is damaged, the stream ends before its path is named.
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn export(&self, paths: &BTreeSet<StorePath>, to: &mut impl Write) -> Result<(), ReadError> {
        let lease = self.lease();
        let known = lease.hold(paths)?;
        let mut infos = Vec::with_capacity(known.len());
        for (path, info) in paths.iter().zip(known) {
            infos.push(info.ok_or_else(|| ReadError::NotValid(path.clone()))?);
        }
        for info in sorted(infos) {
            number(to, 1)?;
            self.checked_nar(&info, to)?;
            trailer(to, &info)?;
        }
        number(to, 0)?;
        to.flush().map_err(ReadError::Output)
    }

    /// Adds what is in an export, on the word of who gave it: `origin` is written down for what is not
    /// named by its content. Everything that a path refers to must be in the store or come before it.
    /// Reads up to the end of the export and not further; give it a buffered reader.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn import(
        &self,
        from: &mut impl Read,
        origin: &Origin,
        lease: &Lease,
    ) -> Result<Vec<PathInfo>, ImportError> {
        let mut added = Vec::new();
        let mut group: Vec<Prepared> = Vec::new();
        loop {
            match read_number(from)? {
                0 => break,
                1 => {}
                other => return Err(ImportError::Format(format!("{other} stands where a path begins"))),
            }
            group.push(self.prepare_exported(from, origin)?);
            if group.len() >= IMPORT_GROUP {
                added.extend(self.register(std::mem::take(&mut group), lease)?);
            }
        }
        added.extend(self.register(group, lease)?);
        Ok(added)
    }

    fn prepare_exported(&self, from: &mut impl Read, origin: &Origin) -> Result<Prepared, ImportError> {
        // The name comes after the content. The hash of one file's bytes is made for texts.
        let (summary, written) = self.write_tree(Some(Method::Text), None, |tap, writer| {
            read_nar(from, tap, writer).map_err(from_nar)
        })?;
        if read_number(from)? != MAGIC {
            return Err(ImportError::Format(
                "a path's archive is not followed by its name".to_owned(),
            ));
        }
        let path = read_path(from)?;
        let count = read_number(from)?;
        if count > EXPORT_REFERENCES {
            return Err(ImportError::Format(format!("{path} refers to {count} paths")));
        }
        let references = (0..count)
            .map(|_| read_path(from))
            .collect::<Result<BTreeSet<_>, _>>()?;
        let deriver = match read_token(from)?.as_slice() {
            [] => None,
            text => Some(parse_path(text)?),
        };
        if read_number(from)? != 0 {
            return Err(ImportError::Format(format!(
                "{path} has a signature of an old kind"
            )));
        }
        let ca = content_address(&path, &references, summary.hash, written.flat.as_ref());
        let info = PathInfo {
            tree: written.tree,
            nar_hash: summary.hash,
            nar_size: summary.size,
            references,
            deriver,
            origin: match ca {
                Some(_) => Origin::Content,
                None => origin.clone(),
            },
            ca: ca.map(|ca| ca.to_nix_string()),
            path,
            registered: 0,
            signatures: Vec::new(),
        };
        Ok(Prepared::new(info, written))
    }
}

/// The content address that makes this path, if one does.
fn content_address(
    path: &StorePath,
    references: &BTreeSet<StorePath>,
    nar: NarHash,
    flat: Option<&NixHash>,
) -> Option<CAHash> {
    let mut possible = vec![CAHash::Nar(NixHash::Sha256(nar.0))];
    if let Some(NixHash::Sha256(digest)) = flat {
        possible.push(CAHash::Text(*digest));
        possible.push(CAHash::Flat(NixHash::Sha256(*digest)));
    }
    possible
        .into_iter()
        .find(|ca| content_path(path.name(), ca, references).is_ok_and(|made| made == *path))
}

/// Those that are referred to before those that refer.
fn sorted(infos: Vec<PathInfo>) -> Vec<PathInfo> {
    let graph: HashMap<StorePath, PathInfo> =
        infos.into_iter().map(|info| (info.path.clone(), info)).collect();
    references_first(&graph, |info| &info.references)
        .into_iter()
        .filter_map(|path| graph.get(path).cloned())
        .collect()
}

fn trailer(to: &mut impl Write, info: &PathInfo) -> Result<(), ReadError> {
    number(to, MAGIC)?;
    text(to, info.path.to_absolute_path().as_bytes())?;
    number(to, info.references.len() as u64)?;
    for reference in &info.references {
        text(to, reference.to_absolute_path().as_bytes())?;
    }
    let deriver = info.deriver.as_ref().map(StorePath::to_absolute_path);
    text(to, deriver.unwrap_or_default().as_bytes())?;
    number(to, 0)
}

fn number(to: &mut impl Write, number: u64) -> Result<(), ReadError> {
    to.write_all(&number.to_le_bytes()).map_err(ReadError::Output)
}

fn text(to: &mut impl Write, text: &[u8]) -> Result<(), ReadError> {
    token(to, text).map_err(ReadError::Output)
}

fn read_exactly(from: &mut impl Read, to: &mut [u8]) -> Result<(), ImportError> {
    from.read_exact(to).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ImportError::Format("it ends in the middle".to_owned()),
        _ => ImportError::Read(error),
    })
}

fn read_number(from: &mut impl Read) -> Result<u64, ImportError> {
    let mut bytes = [0; 8];
    read_exactly(from, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn read_token(from: &mut impl Read) -> Result<Vec<u8>, ImportError> {
    let length = read_number(from)?;
    let short = usize::try_from(length).ok().filter(|&length| length <= NAR_TOKEN);
    let Some(short) = short else {
        return Err(ImportError::Format(format!("a store path of {length} bytes")));
    };
    let mut bytes = vec![0; short + padding(length)];
    read_exactly(from, &mut bytes)?;
    if bytes[short..].iter().any(|&byte| byte != 0) {
        return Err(ImportError::Format("fill bytes that are not zero".to_owned()));
    }
    bytes.truncate(short);
    Ok(bytes)
}

fn read_path(from: &mut impl Read) -> Result<StorePath, ImportError> {
    parse_path(&read_token(from)?)
}

fn parse_path(bytes: &[u8]) -> Result<StorePath, ImportError> {
    StorePath::from_absolute_path(bytes).map_err(|error| {
        let shown = bytes.escape_ascii();
        ImportError::Format(format!("'{shown}' is not a store path of /nix/store: {error}"))
    })
}

/// Hashes what passes, and holds its end back.
struct Checking<'a, W> {
    to: &'a mut W,
    hasher: Sha256,
    held: Vec<u8>,
}

impl<'a, W: Write> Checking<'a, W> {
    fn new(to: &'a mut W) -> Self {
        Self {
            to,
            hasher: Sha256::new(),
            held: Vec::new(),
        }
    }

    /// The hash of everything, and the end that was not passed on.
    fn finish(self) -> (NarHash, Vec<u8>) {
        (NarHash(self.hasher.finalize().into()), self.held)
    }
}

impl<W: Write> Write for Checking<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        let passed = (self.held.len() + bytes.len()).saturating_sub(HELD_BACK);
        let held = passed.min(self.held.len());
        self.to.write_all(&self.held[..held])?;
        self.held.drain(..held);
        let (now, later) = bytes.split_at(passed - held);
        self.to.write_all(now)?;
        self.held.extend_from_slice(later);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
