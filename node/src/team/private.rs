//! What stays on this node: no member learns of it, gets it, or is asked to build it.
//!
//! Paths are marked one by one or by patterns. What is built from something private is private: a derivation that
//! reads it is marked with its outputs as soon as it is instantiated, before anything of it exists.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tvix_node_coordinator::Derivation;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::trust::PathPattern;

use super::owner_file::{read_versioned, write_whole};

/// Version of the file. A newer one is refused, and so is one that cannot be read: a node that went on without it
/// would show what its owner has hidden.
const VERSION: u32 = 1;

/// Paths that are marked. The whole list is written anew with every change; a private NixOS system has some
/// ten thousand with their derivations.
pub const PRIVATE_PATHS: usize = 65_536;

/// Patterns. Each is a line that a person has written, and all are tried for every path that is asked for.
pub const PRIVATE_PATTERNS: usize = 256;

/// Why the list cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// The file system.
    #[error("the list of what is private, '{}', cannot be {action}: {source}", .file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// What is in it.
    #[error(
        "the list of what is private, '{}', cannot be understood: {reason}. Repair the file; without it everything would \
         be shown to the team", .file.display()
    )]
    Damaged {
        /// Which.
        file: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Too many.
    #[error(
        "more than {limit} {what} cannot be kept private one by one: use a pattern, or take some away ('tvix-node private')"
    )]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
}

/// What is marked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Marked {
    patterns: Vec<PathPattern>,
    paths: BTreeSet<StorePath>,
}

impl Marked {
    pub(crate) fn is_private(&self, path: &StorePath) -> bool {
        self.paths.contains(path) || self.patterns.iter().any(|pattern| pattern.fits(path))
    }

    /// What becomes private with `new`: that, and every derivation that reads something private, or makes it, with all its
    /// outputs. Derivations come after those whose outputs they read. Without what is private already.
    pub(crate) fn reached<'a>(
        &self,
        derivations: impl IntoIterator<Item = &'a Derivation>,
        mut new: BTreeSet<StorePath>,
    ) -> BTreeSet<StorePath> {
        for derivation in derivations {
            let hidden = |path: &StorePath| new.contains(path) || self.is_private(path);
            let reads = derivation.sources.iter().any(hidden)
                || derivation.inputs.iter().any(|input| hidden(&input.derivation));
            if reads || hidden(&derivation.path) || derivation.outputs.values().any(hidden) {
                new.extend(derivation.outputs.values().cloned());
                new.insert(derivation.path.clone());
            }
        }
        new.retain(|path| !self.is_private(path));
        new
    }

    /// From now on these are private.
    pub(crate) fn mark(&mut self, paths: impl IntoIterator<Item = StorePath>) {
        self.paths.extend(paths);
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    patterns: Vec<PathPattern>,
    #[serde(with = "tvix_node_protocol::nix::store_path::basename")]
    paths: Vec<StorePath>,
}

/// What is private on a node.
#[derive(Debug)]
pub struct PrivateBook {
    file: PathBuf,
    kept: Mutex<Arc<Marked>>,
    /// Commands whose work is private.
    sessions: Mutex<HashSet<u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is replaced in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PrivateBook {
    /// The list of a home; nothing is private where it has none.
    ///
    /// # Errors
    /// See [`PrivateError`].
    pub fn open(file: PathBuf) -> Result<Self, PrivateError> {
        let kept = match fs::read(&file) {
            Ok(bytes) => read(&file, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Marked::default(),
            Err(source) => {
                let action = "read";
                return Err(PrivateError::File { file, action, source });
            }
        };
        Ok(Self {
            file,
            kept: Mutex::new(Arc::new(kept)),
            sessions: Mutex::default(),
        })
    }

    /// Whether a path is private.
    pub fn is_private(&self, path: &StorePath) -> bool {
        let kept = Arc::clone(&lock(&self.kept));
        kept.is_private(path)
    }

    /// See [`Marked::reached`].
    pub(crate) fn reached<'a>(
        &self,
        derivations: impl IntoIterator<Item = &'a Derivation>,
        new: BTreeSet<StorePath>,
    ) -> BTreeSet<StorePath> {
        let kept = Arc::clone(&lock(&self.kept));
        kept.reached(derivations, new)
    }

    /// The patterns and the paths.
    pub fn list(&self) -> (Vec<PathPattern>, Vec<StorePath>) {
        let kept = Arc::clone(&lock(&self.kept));
        (kept.patterns.clone(), kept.paths.iter().cloned().collect())
    }

    /// Has those of these paths told of that are not private. None of them becomes private before that is done, so that who
    /// marks it and then takes back what was told comes last.
    pub fn tell_public(&self, paths: &[StorePath], tell: impl FnOnce(&[StorePath])) {
        let kept = lock(&self.kept);
        let public: Vec<StorePath> = paths
            .iter()
            .filter(|path| !kept.is_private(path))
            .cloned()
            .collect();
        if !public.is_empty() {
            tell(&public);
        }
    }

    /// From now on these are private. Blocks.
    ///
    /// # Errors
    /// See [`PrivateError`]; nothing has changed then.
    pub fn add(
        &self,
        paths: impl IntoIterator<Item = StorePath>,
        patterns: impl IntoIterator<Item = PathPattern>,
    ) -> Result<(), PrivateError> {
        self.change(|kept| {
            kept.mark(paths);
            for pattern in patterns {
                if !kept.patterns.contains(&pattern) {
                    kept.patterns.push(pattern);
                }
            }
        })
    }

    /// From now on these are not, as far as they are named so themselves. Blocks. Whether any was.
    ///
    /// # Errors
    /// See [`PrivateError`]; nothing has changed then.
    pub fn remove(&self, paths: &[StorePath], patterns: &[PathPattern]) -> Result<bool, PrivateError> {
        let mut any = false;
        self.change(|kept| {
            for path in paths {
                any |= kept.paths.remove(path);
            }
            let before = kept.patterns.len();
            kept.patterns.retain(|pattern| !patterns.contains(pattern));
            any |= kept.patterns.len() < before;
        })?;
        Ok(any)
    }

    fn change(&self, change: impl FnOnce(&mut Marked)) -> Result<(), PrivateError> {
        let mut current = lock(&self.kept);
        let mut kept = (**current).clone();
        change(&mut kept);
        if kept == **current {
            return Ok(());
        }
        let too_many = |what, limit| PrivateError::TooMany { what, limit };
        if kept.paths.len() > PRIVATE_PATHS.max(current.paths.len()) {
            return Err(too_many("paths", PRIVATE_PATHS));
        }
        if kept.patterns.len() > PRIVATE_PATTERNS.max(current.patterns.len()) {
            return Err(too_many("patterns", PRIVATE_PATTERNS));
        }
        write(&self.file, &kept).map_err(|source| PrivateError::File {
            file: self.file.clone(),
            action: "written",
            source,
        })?;
        *current = Arc::new(kept);
        Ok(())
    }

    /// A command begins whose work is private.
    pub fn begin_session(&self, session: u64) {
        lock(&self.sessions).insert(session);
    }

    /// Whether a command's work is private.
    pub fn is_private_session(&self, session: u64) -> bool {
        lock(&self.sessions).contains(&session)
    }

    /// A command is over. What it made stays private.
    pub fn end_session(&self, session: u64) {
        lock(&self.sessions).remove(&session);
    }
}

fn read(file: &Path, bytes: &[u8]) -> Result<Marked, PrivateError> {
    let damaged = |reason: String| PrivateError::Damaged {
        file: file.to_owned(),
        reason,
    };
    let written: Written = read_versioned(bytes, VERSION).map_err(|error| damaged(error.to_string()))?;
    Ok(Marked {
        patterns: written.patterns,
        paths: written.paths.into_iter().collect(),
    })
}

fn write(file: &Path, kept: &Marked) -> io::Result<()> {
    let written = Written {
        version: VERSION,
        patterns: kept.patterns.clone(),
        paths: kept.paths.iter().cloned().collect(),
    };
    write_whole(file, &serde_json::to_vec_pretty(&written)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::from_parts([3; 20], name).unwrap()
    }

    fn pattern(text: &str) -> PathPattern {
        PathPattern::new(text).unwrap()
    }

    #[test]
    fn what_is_private_stays_so_over_a_restart_until_it_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("private.json");
        let book = PrivateBook::open(file.clone()).unwrap();
        assert!(!book.is_private(&path("secret")));
        book.add([path("secret")], [pattern("*-key*")]).unwrap();
        let again = PrivateBook::open(file).unwrap();
        for name in ["secret", "my-key", "my-key-2"] {
            assert!(again.is_private(&path(name)), "{name}");
        }
        assert!(!again.is_private(&path("other")));
        assert!(again.remove(&[path("secret")], &[pattern("*-key*")]).unwrap());
        assert!(!again.remove(&[path("secret")], &[]).unwrap());
        assert!(!again.is_private(&path("secret")) && !again.is_private(&path("my-key")));
    }

    #[test]
    fn what_becomes_private_meanwhile_is_told_of_before_that_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let book = PrivateBook::open(folder.path().join("private.json")).unwrap();
        book.add([path("secret")], []).unwrap();
        let told = Mutex::new(Vec::new());
        let both = [path("secret"), path("open")];
        std::thread::scope(|scope| {
            book.tell_public(&both, |public| {
                scope.spawn(|| book.add([path("open")], []).unwrap());
                std::thread::sleep(std::time::Duration::from_millis(50));
                lock(&told).extend_from_slice(public);
                // It waits for this to end.
                assert!(book.kept.try_lock().is_err());
            });
        });
        assert_eq!(*lock(&told), [path("open")]);
        book.tell_public(&both, |_| panic!("none is public"));
    }

    #[test]
    fn what_reads_or_makes_something_private_becomes_private() {
        let derivation = |name: &str, sources: &[&str], inputs: &[&str]| Derivation {
            path: path(&format!("{name}.drv")),
            outputs: [("out".to_owned(), path(name))].into(),
            inputs: inputs
                .iter()
                .map(|input| tvix_node_coordinator::InputDerivation {
                    derivation: path(&format!("{input}.drv")),
                    outputs: vec!["out".to_owned()],
                })
                .collect(),
            sources: sources.iter().map(|source| path(source)).collect(),
            system: "x86_64-linux".to_owned(),
            required_features: vec![],
            prefer_local: false,
            fixed_output: false,
            quorum: None,
        };
        let all = [
            derivation("reader", &["secret"], &[]),
            derivation("beside", &["plain"], &[]),
            derivation("above", &["plain"], &["reader", "beside"]),
            derivation("named", &["plain"], &[]),
        ];
        let mut marked = Marked::default();
        assert_eq!(marked.reached(&all, BTreeSet::new()), BTreeSet::new());
        marked.mark([path("secret"), path("named")]);
        let expected = ["reader", "reader.drv", "above", "above.drv", "named.drv"];
        assert_eq!(
            marked.reached(&all, BTreeSet::new()),
            expected.map(path).into(),
            "what is private already is not named again"
        );
        let new = [path("plain")].into();
        assert!(marked.reached(&all, new).contains(&path("beside")));
    }

    #[test]
    fn a_list_that_cannot_be_read_is_never_taken_for_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("private.json");
        for text in [
            "",
            "{}",
            r#"{"version":9}"#,
            r#"{"version":1,"patterns":[],"paths":["x"]}"#,
            r#"{"version":1,"patterns":["a b"],"paths":[]}"#,
        ] {
            fs::write(&file, text).unwrap();
            assert!(PrivateBook::open(file.clone()).is_err(), "{text}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text, "it is left as it is");
        }
    }

    #[test]
    fn there_are_bounds_and_what_goes_past_them_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let book = PrivateBook::open(folder.path().join("private.json")).unwrap();
        let paths = |from: usize, to: usize| (from..to).map(|number| path(&format!("p{number}")));
        book.add(paths(0, PRIVATE_PATHS), []).unwrap();
        let error = book.add([path("one-more")], []).unwrap_err();
        assert!(matches!(error, PrivateError::TooMany { .. }), "{error}");
        assert!(!book.is_private(&path("one-more")) && book.is_private(&path("p0")));
        let patterns = (0..=PRIVATE_PATTERNS).map(|number| pattern(&format!("x{number}")));
        assert!(book.add([], patterns).is_err());
        assert!(!book.is_private(&path("x0")));
    }
}
