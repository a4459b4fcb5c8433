//! A host without a store: paths are computed, nothing is kept or built.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tvix_node_protocol::nix::hash::{CAHash, HashAlgorithm, NixHash, NixHasher};
use tvix_node_protocol::nix::store_path::{StorePath, build_ca_path};

use crate::host::{
    FileKind, Host, HostError, Ingestion, Instantiated, MessageKind, Realised, Source, Ticket, Wanted,
};

/// What a [`DryRun`] does with a derivation.
type OnDerivation = Box<dyn Fn(&Instantiated<'_>)>;

/// Computes what an evaluation would put into a store, without a store. Sources are hashed where they lie; a source
/// that was added can be read under its store path. Builds are refused.
///
/// For tests, and for printing derivation paths on a machine without a node.
pub struct DryRun {
    sources: RefCell<BTreeMap<PathBuf, PathBuf>>,
    texts: RefCell<BTreeMap<PathBuf, Vec<u8>>>,
    references: RefCell<BTreeMap<StorePath, BTreeSet<StorePath>>>,
    on_derivation: OnDerivation,
}

impl DryRun {
    /// A host that calls `on_derivation` for every derivation.
    pub fn new(on_derivation: impl Fn(&Instantiated<'_>) + 'static) -> Self {
        Self {
            sources: RefCell::default(),
            texts: RefCell::default(),
            references: RefCell::default(),
            on_derivation: Box::new(on_derivation),
        }
    }
}

impl Default for DryRun {
    fn default() -> Self {
        Self::new(|_| {})
    }
}

impl Host for DryRun {
    fn physical(&self, logical: &Path) -> PathBuf {
        let mut prefix = PathBuf::from("/nix/store");
        let Ok(rest) = logical.strip_prefix(&prefix) else {
            return logical.to_owned();
        };
        let mut components = rest.components();
        let Some(first) = components.next() else {
            return logical.to_owned();
        };
        prefix.push(first);
        match self.sources.borrow().get(&prefix) {
            Some(source) if components.as_path().as_os_str().is_empty() => source.clone(),
            Some(source) => source.join(components.as_path()),
            None => logical.to_owned(),
        }
    }

    fn lstat(&self, logical: &Path) -> io::Result<Option<FileKind>> {
        if self.texts.borrow().contains_key(logical) {
            return Ok(Some(FileKind::Regular { executable: false }));
        }
        Physical(self).lstat(logical)
    }

    fn read_file(&self, logical: &Path) -> io::Result<Vec<u8>> {
        if let Some(text) = self.texts.borrow().get(logical) {
            return Ok(text.clone());
        }
        std::fs::read(self.physical(logical))
    }

    fn add_source(&self, source: &Source<'_>) -> Result<StorePath, HostError> {
        let path = source_path(self, source)?;
        let logical = PathBuf::from(path.to_absolute_path());
        self.sources
            .borrow_mut()
            .insert(logical, self.physical(source.path));
        Ok(path)
    }

    fn add_text(
        &self,
        path: &StorePath,
        contents: &[u8],
        references: &BTreeSet<StorePath>,
    ) -> Result<(), HostError> {
        self.texts
            .borrow_mut()
            .insert(PathBuf::from(path.to_absolute_path()), contents.to_vec());
        self.references
            .borrow_mut()
            .insert(path.clone(), references.clone());
        Ok(())
    }

    fn instantiate(&self, derivation: &Instantiated<'_>) -> Result<(), HostError> {
        (self.on_derivation)(derivation);
        Ok(())
    }

    fn realise(&self, wanted: &[Wanted]) -> Result<Ticket, HostError> {
        let names: Vec<String> = wanted
            .iter()
            .map(|wanted| match wanted {
                Wanted::Outputs { drv_path, .. } => drv_path.to_absolute_path(),
                Wanted::Path(path) => path.to_absolute_path(),
            })
            .collect();
        Err(HostError::new(format!(
            "cannot build during a dry run: {}",
            names.join(", ")
        )))
    }

    fn finished(&self, _wait: bool) -> Result<Vec<(Ticket, Realised)>, HostError> {
        Ok(Vec::new())
    }

    fn is_valid(&self, path: &StorePath) -> Result<bool, HostError> {
        let logical = PathBuf::from(path.to_absolute_path());
        Ok(self.sources.borrow().contains_key(&logical) || self.texts.borrow().contains_key(&logical))
    }

    fn references(&self, path: &StorePath) -> Result<BTreeSet<StorePath>, HostError> {
        Ok(self.references.borrow().get(path).cloned().unwrap_or_default())
    }

    fn now(&self) -> i64 {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }

    fn message(&self, kind: MessageKind, text: &str) {
        match kind {
            MessageKind::Trace => eprintln!("trace: {text}"),
            MessageKind::Warning => eprintln!("evaluation warning: {text}"),
        }
    }
}

/// The default methods of [`Host`] for a host that overrides some of them.
struct Physical<'a>(&'a DryRun);

impl Physical<'_> {
    fn lstat(&self, logical: &Path) -> io::Result<Option<FileKind>> {
        use std::os::unix::fs::PermissionsExt;
        let metadata = match std::fs::symlink_metadata(self.0.physical(logical)) {
            Ok(metadata) => metadata,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let kind = metadata.file_type();
        Ok(Some(if kind.is_file() {
            FileKind::Regular {
                executable: metadata.permissions().mode() & 0o100 != 0,
            }
        } else if kind.is_dir() {
            FileKind::Directory
        } else if kind.is_symlink() {
            FileKind::Symlink
        } else {
            FileKind::Other
        }))
    }
}

/// Computes the store path of a source by reading it through a host.
///
/// # Errors
/// Something cannot be read, is neither file nor folder nor link, or differs from the hash that is demanded.
pub fn source_path(host: &dyn Host, source: &Source<'_>) -> Result<StorePath, HostError> {
    let mut hasher = NixHasher::new(HashAlgorithm::Sha256);
    match source.ingestion {
        Ingestion::Nar => {
            let only = source
                .only
                .map(|paths| paths.iter().map(PathBuf::as_path).collect());
            hash_nar(host, source.path, &mut hasher, only.as_ref())?;
        }
        Ingestion::Flat => {
            let contents = host.read_file(source.path).map_err(|error| {
                HostError::caused(format!("cannot read '{}'", source.path.display()), error)
            })?;
            hasher.update(&contents);
        }
    }
    let hash = hasher.finalize();
    if let Some(expected) = source.expected
        && *expected != hash
    {
        return Err(mismatch(source, expected, &hash));
    }
    let content = match source.ingestion {
        Ingestion::Nar => CAHash::Nar(hash),
        Ingestion::Flat => CAHash::Flat(hash),
    };
    build_ca_path(source.name, &content, source.references, false)
        .map_err(|error| HostError::caused(format!("'{}' cannot be named in the store", source.name), error))
}

fn mismatch(source: &Source<'_>, expected: &NixHash, found: &NixHash) -> HostError {
    HostError::new(format!(
        "hash mismatch in the path '{}': expected {}, found {}",
        source.path.display(),
        expected.to_sri_string(),
        found.to_sri_string()
    ))
}

/// Feeds the archive (NAR) of a tree to a hasher. Walks with a stack of its own, so that depth is no danger.
fn hash_nar(
    host: &dyn Host,
    root: &Path,
    hasher: &mut NixHasher,
    only: Option<&BTreeSet<&Path>>,
) -> Result<(), HostError> {
    /// What is still to be written.
    enum Step {
        Node(PathBuf),
        Entry(OsString, PathBuf),
        Close,
        CloseEntry,
    }
    word(hasher, b"nix-archive-1");
    let mut left = vec![Step::Node(root.to_owned())];
    let failed =
        |path: &Path, error: io::Error| HostError::caused(format!("cannot read '{}'", path.display()), error);
    while let Some(step) = left.pop() {
        match step {
            Step::Close | Step::CloseEntry => word(hasher, b")"),
            Step::Entry(name, path) => {
                word(hasher, b"entry");
                word(hasher, b"(");
                word(hasher, b"name");
                word(hasher, name.as_bytes());
                word(hasher, b"node");
                left.push(Step::CloseEntry);
                left.push(Step::Node(path));
            }
            Step::Node(path) => {
                word(hasher, b"(");
                word(hasher, b"type");
                match host.lstat(&path).map_err(|error| failed(&path, error))? {
                    Some(FileKind::Regular { executable }) => {
                        word(hasher, b"regular");
                        if executable {
                            word(hasher, b"executable");
                            word(hasher, b"");
                        }
                        word(hasher, b"contents");
                        word(
                            hasher,
                            &host.read_file(&path).map_err(|error| failed(&path, error))?,
                        );
                        word(hasher, b")");
                    }
                    Some(FileKind::Symlink) => {
                        word(hasher, b"symlink");
                        word(hasher, b"target");
                        let target = host.read_link(&path).map_err(|error| failed(&path, error))?;
                        word(hasher, target.as_os_str().as_bytes());
                        word(hasher, b")");
                    }
                    Some(FileKind::Directory) => {
                        word(hasher, b"directory");
                        left.push(Step::Close);
                        let mut entries = host.read_dir(&path).map_err(|error| failed(&path, error))?;
                        entries.sort_by(|a, b| b.0.as_bytes().cmp(a.0.as_bytes()));
                        for (name, _) in entries {
                            let entry = path.join(&name);
                            let kept = only.is_none_or(|only| {
                                entry
                                    .strip_prefix(root)
                                    .is_ok_and(|relative| only.contains(relative))
                            });
                            if kept {
                                left.push(Step::Entry(name, entry));
                            }
                        }
                    }
                    Some(FileKind::Other) => {
                        return Err(HostError::new(format!(
                            "file '{}' has an unsupported type: only files, directories and links can be added",
                            path.display()
                        )));
                    }
                    None => {
                        return Err(HostError::new(format!(
                            "path '{}' does not exist",
                            path.display()
                        )));
                    }
                }
            }
        }
    }
    Ok(())
}

/// A string of an archive: length, bytes, padding to eight.
fn word(hasher: &mut NixHasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
    hasher.update(&[0; 8][..bytes.len().next_multiple_of(8) - bytes.len()]);
}
