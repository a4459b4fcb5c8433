//! Adding trees: first to the side, where nobody sees them, then all of a batch at once.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::CAHash;
use tvix_node_protocol::path_info::{NarHash, Origin, PathInfo};
use tvix_node_protocol::tree::TreeDigest;

use crate::arrived::{self, Arrived, ArrivedError, BuildError, Origins};
use crate::audience::Audience;
use crate::commit::Batch;
use crate::disk::FileError;
use crate::index::IndexError;
use crate::leases::Lease;
use crate::naming::{
    ContentName, Method, Naming, NamingError, TreeHashes, check_path, content_address, content_path,
};
use crate::nar_reader::{NarFault, NarReadError, expect_end, read_nar};
use crate::nar_tap::{NarSummary, NarTap};
use crate::scan::Candidates;
use crate::share::Sharing;
use crate::source_walk::{SourceError, WalkError, read_source};
use crate::store::Store;
use crate::tree_writer::{TreeWriteError, TreeWriter, Written};
use crate::trees::Temporary;

/// Why something was not added. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Not a proper archive.
    #[error(transparent)]
    Nar(#[from] NarFault),
    /// Not a proper source or output.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Not the tree that should have arrived.
    #[error(transparent)]
    Arrived(#[from] ArrivedError),
    /// The tree could not be written.
    #[error(transparent)]
    Write(#[from] TreeWriteError),
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The index refused.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The content cannot have this name.
    #[error(transparent)]
    Naming(#[from] NamingError),
    /// The archive is another one.
    #[error(
        "the content received for {path} has the NAR hash {} and {computed_size} bytes, not {} and {size}",
        .computed.to_nix(), .hash.to_nix()
    )]
    Archive {
        /// The path.
        path: StorePath,
        /// What was expected.
        hash: NarHash,
        /// What was expected.
        size: u64,
        /// What came.
        computed: NarHash,
        /// What came.
        computed_size: u64,
    },
    /// The tree is another one.
    #[error("the content received for {path} is the tree {computed}, not {tree}")]
    Tree {
        /// The path.
        path: StorePath,
        /// What was expected.
        tree: TreeDigest,
        /// What came.
        computed: TreeDigest,
    },
    /// A path may only be added after everything it refers to.
    #[error("{path} refers to {reference}, which is not in the store; add that first")]
    MissingReference {
        /// The path.
        path: StorePath,
        /// What is missing.
        reference: StorePath,
    },
    /// The name has another tree already.
    #[error("the store has another tree for {path} already: {have}, not {offered}")]
    Conflict {
        /// The path.
        path: StorePath,
        /// What lies under the name.
        have: TreeDigest,
        /// What was to be added.
        offered: TreeDigest,
    },
    /// Too large to be added from memory.
    #[error("the text for {path} has {size} bytes, more than the {limit} allowed")]
    TextSize {
        /// The path.
        path: StorePath,
        /// Bytes.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// No such tree.
    #[error("the store has no tree {tree} for {path}")]
    NoSuchTree {
        /// The path.
        path: StorePath,
        /// The tree.
        tree: TreeDigest,
    },
    /// One batch names a path twice.
    #[error("{0} is named twice in what should be added together")]
    Twice(StorePath),
    /// The thread that was to commit this ended.
    #[error("the store was interrupted before this was added")]
    Interrupted,
}

/// A tree that is written and described, but not part of the store yet. Dropping it removes it.
pub struct Prepared {
    pub(crate) info: PathInfo,
    pub(crate) written: Written,
    pub(crate) audience: Audience,
}

impl Prepared {
    /// One that every team of the node may learn of.
    pub(crate) fn new(info: PathInfo, written: Written) -> Self {
        Self {
            info,
            written,
            audience: Audience::Everyone,
        }
    }

    /// As far as it depends on this, only these teams may learn of it. Who may learn of less that it refers to learns
    /// nothing of it either.
    #[must_use]
    pub fn within(self, audience: &Audience) -> Self {
        Self {
            audience: self.audience.both(audience),
            ..self
        }
    }

    /// What will be known of the path. The time of registration is not set yet.
    #[must_use]
    pub fn info(&self) -> &PathInfo {
        &self.info
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Prepared")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// One output of a build, where the build left it.
#[derive(Debug, Clone)]
pub struct ScratchOutput<'a> {
    /// Its store path.
    pub path: StorePath,
    /// Where it lies now. Not trusted: nothing in it is followed or believed.
    pub scratch: &'a Path,
    /// What the derivation says of its content, for a fixed output.
    pub ca: Option<CAHash>,
    /// Whether references in it are looked for; without, it has none (`unsafeDiscardReferences`).
    pub scanned: bool,
}

impl Store {
    /// Writes an archive to the side and checks it against its name. Reads to the end of the archive
    /// and not further. Give it a buffered reader (256 KiB): the format is made of small words.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn prepare_nar(&self, reader: &mut impl Read, naming: Naming) -> Result<Prepared, AddError> {
        let method = method_of(&naming)?;
        let (summary, written) = self.write_tree(method, None, |tap, writer| {
            read_nar(reader, tap, writer).map_err(from_nar)
        })?;
        describe(naming, method, summary, written)
    }

    /// As [`Store::prepare_nar`], of an archive that must be all of what `reader` has.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn prepare_whole_nar(&self, mut reader: impl Read, naming: Naming) -> Result<Prepared, AddError> {
        let method = method_of(&naming)?;
        let (summary, written) = self.write_tree(method, None, |tap, writer| {
            read_nar(&mut reader, tap, writer)
                .and_then(|()| expect_end(&mut reader, tap))
                .map_err(from_nar)
        })?;
        describe(naming, method, summary, written)
    }

    /// Copies a file, directory or link of this machine to the side. `source`'s last component is not
    /// followed.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn prepare_source(&self, source: &Path, naming: Naming) -> Result<Prepared, AddError> {
        let method = method_of(&naming)?;
        let (summary, written) = self.write_tree(method, None, |tap, writer| {
            writer.large_files_around_cache();
            read_source(source, tap, writer).map_err(from_walk)
        })?;
        describe(naming, method, summary, written)
    }

    /// Writes the tree with the digest `root` to the side, from content that somebody sent who is not
    /// believed: every directory and every blob is checked against its digest, the whole against its
    /// name. What did not arrive is taken from this store's own trees. The archive's hash and size are
    /// computed in the same pass.
    ///
    /// A tree that is larger than its name says, or than [`Arrived::most_bytes`] allows where the name
    /// does not say, is refused before the byte too many is written.
    ///
    /// # Errors
    /// See [`AddError`]; what is missing or wrong is named by [`ArrivedError`].
    pub fn prepare_arrived(
        &self,
        root: TreeDigest,
        content: &dyn Arrived,
        naming: Naming,
    ) -> Result<Prepared, AddError> {
        let origins = Origins::ArrivedAndStored;
        self.prepare_from(root, content, naming, origins, &self.inner.sharing)
    }

    /// As [`Store::prepare_nar`], with files that are shared with no other tree.
    pub(crate) fn prepare_alone(&self, reader: &mut impl Read, naming: Naming) -> Result<Prepared, AddError> {
        let method = method_of(&naming)?;
        let (summary, written) = self.write_tree_sharing(&Sharing::none(), method, None, |tap, writer| {
            read_nar(reader, tap, writer).map_err(from_nar)
        })?;
        describe(naming, method, summary, written)
    }

    pub(crate) fn prepare_from(
        &self,
        root: TreeDigest,
        content: &dyn Arrived,
        naming: Naming,
        origins: Origins,
        sharing: &Sharing,
    ) -> Result<Prepared, AddError> {
        let method = method_of(&naming)?;
        let most = match &naming {
            Naming::Content(_) => None,
            Naming::Known(info) | Naming::KnownArchive(info) => Some(info.nar_size),
        };
        let (summary, written) = self.write_tree_sharing(sharing, method, None, |tap, writer| {
            arrived::build(self, root, (content, origins), most, tap, writer).map_err(from_build)
        })?;
        describe(naming, method, summary, written)
    }

    /// Copies the outputs of a build to the side: bytes, names and executable bits only, from
    /// directories that are not trusted. Each file is read once; what is hashed and scanned is what is
    /// written.
    ///
    /// `candidates` are the paths that the outputs may refer to, usually the build's input closure; the
    /// outputs themselves are always among them.
    ///
    /// # Errors
    /// See [`AddError`]; a fixed output with another hash than said is [`NamingError::Hash`].
    pub fn prepare_built(
        &self,
        outputs: &[ScratchOutput<'_>],
        candidates: &BTreeSet<StorePath>,
        deriver: &StorePath,
        origin: &Origin,
    ) -> Result<Vec<Prepared>, AddError> {
        let own = outputs.iter().map(|output| &output.path);
        let candidates = Candidates::new(candidates.iter().chain(own));
        let prepare = |output: &ScratchOutput<'_>| {
            let method = output.ca.as_ref().map(Method::of).transpose()?;
            let sought = output.scanned.then_some(&candidates);
            let (mut summary, written) = self.write_tree(method, sought, |tap, writer| {
                let read = read_source(output.scratch, tap, writer);
                read.map_err(|error| from_walk(error.seen_as(output.scratch, &output.path)))
            })?;
            let references = summary.scanner.take().map(|scanner| candidates.found(&scanner));
            let mut info = PathInfo {
                path: output.path.clone(),
                tree: written.tree,
                nar_hash: summary.hash,
                nar_size: summary.size,
                references: references.unwrap_or_default(),
                deriver: Some(deriver.clone()),
                ca: None,
                origin: origin.clone(),
                registered: 0,
                signatures: Vec::new(),
            };
            if let (Some(specified), Some(method)) = (&output.ca, method) {
                check_fixed(&info, specified, method, &summary, &written)?;
                info.ca = Some(specified.to_nix_string());
            }
            Ok(Prepared::new(info, written))
        };
        outputs.iter().map(prepare).collect()
    }

    /// Makes prepared trees part of the store: all of them or none, durable when this returns. Trees of
    /// several callers at once share the cost.
    ///
    /// A path that is valid already with the same tree is answered with what is known of it.
    ///
    /// # Errors
    /// [`AddError::MissingReference`], [`AddError::Conflict`], or what file system and index refuse.
    pub fn register(&self, prepared: Vec<Prepared>, lease: &Lease) -> Result<Vec<PathInfo>, AddError> {
        self.submit(Batch::accepted(prepared, None), lease)
    }

    /// Adds an archive, which must be all of what `reader` has. See [`Store::prepare_nar`].
    ///
    /// Where the path is known beforehand and valid, `reader` is not read.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add_nar(&self, reader: impl Read, naming: Naming, lease: &Lease) -> Result<PathInfo, AddError> {
        self.add_nar_within(reader, naming, &Audience::Everyone, lease)
    }

    /// The same, of which no more than `audience` may learn.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add_nar_within(
        &self,
        reader: impl Read,
        naming: Naming,
        audience: &Audience,
        lease: &Lease,
    ) -> Result<PathInfo, AddError> {
        if let Some(info) = self.present(&naming, lease)? {
            self.widen([&info.path], audience)?;
            return Ok(info);
        }
        let prepared = self.prepare_whole_nar(reader, naming)?;
        self.register_one(prepared.within(audience), lease)
    }

    /// Adds a file, directory or link of this machine. See [`Store::prepare_source`].
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add_source(&self, source: &Path, naming: Naming, lease: &Lease) -> Result<PathInfo, AddError> {
        if let Some(info) = self.present(&naming, lease)? {
            self.widen([&info.path], &Audience::Everyone)?;
            return Ok(info);
        }
        self.register_one(self.prepare_source(source, naming)?, lease)
    }

    fn register_one(&self, prepared: Prepared, lease: &Lease) -> Result<PathInfo, AddError> {
        self.register(vec![prepared], lease)?
            .pop()
            .ok_or(AddError::Interrupted)
    }

    /// What is known of the path that would be added, where it is known and valid.
    fn present(&self, naming: &Naming, lease: &Lease) -> Result<Option<PathInfo>, AddError> {
        match naming {
            Naming::Content(ContentName { expected: None, .. }) => Ok(None),
            Naming::Content(ContentName {
                expected: Some(path), ..
            }) => Ok(lease.hold_one(path)?),
            Naming::Known(known) => match lease.hold_one(&known.path)? {
                Some(info) if info.tree != known.tree => Err(AddError::Conflict {
                    path: info.path,
                    have: info.tree,
                    offered: known.tree,
                }),
                present => Ok(present),
            },
            Naming::KnownArchive(known) => match lease.hold_one(&known.path)? {
                Some(info) if info.nar_hash != known.nar_hash => {
                    Err(archive_error(known, info.nar_hash, info.nar_size))
                }
                present => Ok(present),
            },
        }
    }

    /// Runs `read` over a new tree and its archive.
    pub(crate) fn write_tree(
        &self,
        method: Option<Method>,
        candidates: Option<&Candidates>,
        read: impl FnOnce(&mut NarTap<'_>, &mut TreeWriter<'_>) -> Result<(), AddError>,
    ) -> Result<(NarSummary, Written), AddError> {
        self.write_tree_sharing(&self.inner.sharing, method, candidates, read)
    }

    fn write_tree_sharing(
        &self,
        sharing: &Sharing,
        method: Option<Method>,
        candidates: Option<&Candidates>,
        read: impl FnOnce(&mut NarTap<'_>, &mut TreeWriter<'_>) -> Result<(), AddError>,
    ) -> Result<(NarSummary, Written), AddError> {
        let inner = &self.inner;
        let extra = method.and_then(Method::extra);
        let mut tap = NarTap::new(&inner.buffers, extra, candidates.map(Candidates::scanner));
        let temporary = Temporary::new(&inner.trees, inner.next_number());
        let flat = method.and_then(Method::flat);
        let mut writer = TreeWriter::new(&inner.index, sharing, temporary, flat);
        read(&mut tap, &mut writer)?;
        let written = writer.finish()?;
        let summary = tap.finish().map_err(|source| SourceError::Read {
            path: inner.trees.path().join(written.temporary.name()),
            source,
        })?;
        Ok((summary, written))
    }
}

fn method_of(naming: &Naming) -> Result<Option<Method>, AddError> {
    match naming {
        Naming::Content(content) => Ok(Some(content.method)),
        Naming::Known(info) | Naming::KnownArchive(info) => known_ca(info)?
            .as_ref()
            .map(Method::of)
            .transpose()
            .map_err(AddError::from),
    }
}

pub(crate) fn known_ca(info: &PathInfo) -> Result<Option<CAHash>, NamingError> {
    let parse = |ca: &String| {
        CAHash::parse(ca).map_err(|error| NamingError::ContentAddress {
            path: info.path.clone(),
            ca: ca.clone(),
            reason: error.to_string(),
        })
    };
    info.ca.as_ref().map(parse).transpose()
}

/// Checks a written tree against its name and says what is known of it.
fn describe(
    naming: Naming,
    method: Option<Method>,
    summary: NarSummary,
    written: Written,
) -> Result<Prepared, AddError> {
    let hashes = || TreeHashes {
        nar: summary.hash.0,
        extra: summary.extra.clone(),
        flat: written.flat.clone(),
    };
    let tree_known = matches!(naming, Naming::Known(_));
    let info = match naming {
        Naming::Content(content) => {
            let ca = content_address(content.method, &content.name, hashes())?;
            let path = content_path(&content.name, &ca, &content.references)?;
            if let Some(expected) = content.expected
                && expected != path
            {
                let computed = path;
                return Err(NamingError::Mismatch { expected, computed }.into());
            }
            PathInfo {
                path,
                tree: written.tree,
                nar_hash: summary.hash,
                nar_size: summary.size,
                references: content.references,
                deriver: None,
                ca: Some(ca.to_nix_string()),
                origin: Origin::Content,
                registered: 0,
                signatures: Vec::new(),
            }
        }
        Naming::Known(mut info) | Naming::KnownArchive(mut info) => {
            if (info.nar_hash, info.nar_size) != (summary.hash, summary.size) {
                return Err(archive_error(&info, summary.hash, summary.size));
            }
            if tree_known && info.tree != written.tree {
                return Err(AddError::Tree {
                    path: info.path,
                    tree: info.tree,
                    computed: written.tree,
                });
            }
            info.tree = written.tree;
            if let (Some(said), Some(method)) = (known_ca(&info)?, method) {
                let computed = content_address(method, info.path.name(), hashes())?;
                check_hash(&info.path, &said, &computed)?;
                check_path(&info.path, &computed, &info.references)?;
            }
            info
        }
    };
    Ok(Prepared::new(info, written))
}

fn archive_error(info: &PathInfo, computed: NarHash, computed_size: u64) -> AddError {
    AddError::Archive {
        path: info.path.clone(),
        hash: info.nar_hash,
        size: info.nar_size,
        computed,
        computed_size,
    }
}

fn check_hash(path: &StorePath, specified: &CAHash, computed: &CAHash) -> Result<(), NamingError> {
    if specified == computed {
        return Ok(());
    }
    Err(NamingError::Hash {
        path: path.clone(),
        specified: specified.hash().to_sri_string(),
        got: computed.hash().to_sri_string(),
    })
}

fn check_fixed(
    info: &PathInfo,
    specified: &CAHash,
    method: Method,
    summary: &NarSummary,
    written: &Written,
) -> Result<(), NamingError> {
    let hashes = TreeHashes {
        nar: summary.hash.0,
        extra: summary.extra.clone(),
        flat: written.flat.clone(),
    };
    let computed = content_address(method, info.path.name(), hashes)?;
    check_hash(&info.path, specified, &computed)?;
    if let Some(reference) = info.references.first() {
        let (path, reference) = (info.path.clone(), reference.clone());
        return Err(NamingError::FixedReference { path, reference });
    }
    check_path(&info.path, &computed, &BTreeSet::new())
}

pub(crate) fn from_nar(error: NarReadError) -> AddError {
    match error {
        NarReadError::Fault(fault) => fault.into(),
        NarReadError::Write(error) => error.into(),
    }
}

fn from_build(error: BuildError) -> AddError {
    match error {
        BuildError::Arrived(error) => error.into(),
        BuildError::Write(error) => error.into(),
    }
}

fn from_walk(error: WalkError) -> AddError {
    match error {
        WalkError::Source(error) => error.into(),
        WalkError::Write(error) => error.into(),
    }
}
