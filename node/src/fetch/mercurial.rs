//! Trees of Mercurial repositories, through the program `hg`: of a changeset, or of a work tree with changes.
//!
//! Source of the behaviour: `mercurial.cc` of Nix 2.34.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tvix_node_evaluator::{Fetched, Ingestion, MercurialFetch, MercurialRevision};
use tvix_node_protocol::nix::hash::NixHash;

use super::cache::{self, Entry, Reference};
use super::export::inside;
use super::{FetchError, Fetcher, Store, adding, check_tree, local_path};
use crate::worker::SourceTree;

/// The branch that is meant where nothing else is said.
const DEFAULT: &str = "default";

/// What `hg archive` says of itself, in a file of the tree; it is no part of it.
const METADATA: &str = ".hg_archival.txt";

/// Fetches a tree.
pub(super) fn fetch(
    fetcher: &Fetcher,
    store: &dyn Store,
    wanted: &MercurialFetch,
) -> Result<Fetched, FetchError> {
    let local = local_path(&wanted.url)?;
    let any = wanted.reference.is_none() && wanted.revision.is_none();
    let work_tree = local
        .as_deref()
        .filter(|folder| any && folder.join(".hg").exists());
    let changed = match work_tree {
        Some(folder) => changed_tree(store, wanted, folder)?,
        None => None,
    };
    let fetched = match changed {
        Some(fetched) => fetched,
        None => committed(fetcher, store, wanted, local.is_some())?,
    };
    check_tree(&wanted.url, wanted.expected.as_ref(), &fetched.nar_hash)?;
    Ok(fetched)
}

/// A work tree as it is, where it has changes: the files that `hg` knows of, with their present contents.
fn changed_tree(
    store: &dyn Store,
    wanted: &MercurialFetch,
    folder: &Path,
) -> Result<Option<Fetched>, FetchError> {
    let hg = Hg { wanted, folder };
    if hg
        .run(["status", "--modified", "--added", "--removed"])?
        .is_empty()
    {
        return Ok(None);
    }
    store.warn(&format!(
        "Mercurial tree '{}' has changes that are not committed",
        wanted.url
    ));
    let listed = hg.run([
        "status",
        "--clean",
        "--modified",
        "--added",
        "--no-status",
        "--print0",
    ])?;
    let mut paths = BTreeSet::new();
    for name in listed.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let path = inside(name).ok_or_else(|| hg.error("the name of a file leads out of it"))?;
        let folders = path
            .ancestors()
            .skip(1)
            .filter(|folder| !folder.as_os_str().is_empty());
        paths.extend(folders.map(Path::to_path_buf));
        paths.insert(path);
    }
    let only: Vec<PathBuf> = paths.into_iter().collect();
    let branch = hg.line(["branch"])?;
    let tree = SourceTree::new(folder.to_owned(), Some(&only));
    let info = store.add(&tree, adding(&wanted.name, Ingestion::Nar, None))?;
    Ok(Some(Fetched {
        path: info.path,
        nar_hash: NixHash::Sha256(info.nar_hash.0),
        last_modified: None,
        git: None,
        mercurial: Some(MercurialRevision {
            branch,
            changeset: None,
        }),
    }))
}

/// The tree of a changeset.
fn committed(
    fetcher: &Fetcher,
    store: &dyn Store,
    wanted: &MercurialFetch,
    is_local: bool,
) -> Result<Fetched, FetchError> {
    let copies = fetcher.folder.join("hg");
    let copy = copies.join(cache::fingerprint(&format!("hg\n{}", wanted.url)));
    let hg = Hg {
        wanted,
        folder: &copy,
    };
    let revision = match &wanted.revision {
        Some(revision) => {
            if !copy.exists() || hg.changeset(revision).is_err() {
                hg.update(fetcher, &copies)?;
            }
            revision.clone()
        }
        None => hg.current(fetcher, store, &copies, is_local)?,
    };
    let changeset = hg.changeset(&revision)?;
    let key = format!("hg\n{}\n{}", changeset.revision, wanted.name);
    if let Some(known) = fetcher.known(store, &key)? {
        return Ok(known.fetched());
    }
    let work = fetcher.work_folder()?;
    let target = work.path().join("tree");
    let by_revision = format!("--rev={}", changeset.revision);
    hg.run([
        OsStr::new("archive"),
        OsStr::new(&by_revision),
        OsStr::new("--type=files"),
        OsStr::new("--"),
        target.as_os_str(),
    ])?;
    match fs::remove_file(target.join(METADATA)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(FetchError::io(&target, "written to")(error));
        }
        _ => {}
    }
    let info = store.add(
        &SourceTree::new(target, None),
        adding(&wanted.name, Ingestion::Nar, Some(&key)),
    )?;
    let entry = Entry {
        path: info.path,
        nar_hash: NixHash::Sha256(info.nar_hash.0),
        last_modified: None,
        git: None,
        mercurial: Some(MercurialRevision {
            branch: changeset.branch,
            changeset: Some((changeset.revision, changeset.count)),
        }),
        tag: None,
        at: cache::now(),
    };
    fetcher.cache.put(&key, &entry)?;
    Ok(entry.fetched())
}

/// What `hg` says of a changeset.
struct Changeset {
    revision: String,
    count: u64,
    branch: String,
}

/// A repository on this machine: the one that is wanted, or the home's copy of it.
struct Hg<'a> {
    wanted: &'a MercurialFetch,
    folder: &'a Path,
}

impl Hg<'_> {
    fn error(&self, reason: impl Into<String>) -> FetchError {
        FetchError::Mercurial {
            url: self.wanted.url.clone(),
            reason: reason.into(),
        }
    }

    /// Output of a command that must succeed, in words of its own where it does not.
    fn run_in<S: AsRef<OsStr>>(
        &self,
        folder: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Vec<u8>, FetchError> {
        let mut command = Command::new("hg");
        // No aliases, colours, translations or questions.
        command
            .env("HGPLAIN", "1")
            .arg("--noninteractive")
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null());
        let output = command.output().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                self.error("the program 'hg' is needed for that and is not there; install Mercurial")
            }
            _ => self.error(format!("'hg' cannot be started: {error}")),
        })?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(self.error(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    }

    fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Vec<u8>, FetchError> {
        self.run_in(self.folder, arguments)
    }

    fn line<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String, FetchError> {
        let output = self.run(arguments)?;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    /// What a name or a number means.
    fn changeset(&self, name: &str) -> Result<Changeset, FetchError> {
        let by_name = format!("--rev={name}");
        let said = self.line(["log", &by_name, "--template", "{node} {rev} {branch}"])?;
        let mut words = said.splitn(3, ' ');
        let parts = (
            words.next(),
            words.next().and_then(|word| word.parse().ok()),
            words.next(),
        );
        match parts {
            (Some(revision), Some(count), Some(branch)) => Ok(Changeset {
                revision: revision.to_owned(),
                count,
                branch: branch.to_owned(),
            }),
            _ => Err(self.error(format!("it has no changeset '{name}'"))),
        }
    }

    /// The changeset that is wanted by name, as of now; where it cannot be asked for, as it was known before.
    fn current(
        &self,
        fetcher: &Fetcher,
        store: &dyn Store,
        copies: &Path,
        is_local: bool,
    ) -> Result<String, FetchError> {
        let name = self.wanted.reference.as_deref().unwrap_or(DEFAULT);
        let key = format!("hg reference\n{}\n{name}", self.wanted.url);
        let known = fetcher.cache.reference(&key).filter(|_| self.folder.exists());
        if let Some(known) = &known
            && known.is_current()
            && !is_local
        {
            return Ok(known.commit.clone());
        }
        match (self.update(fetcher, copies), known) {
            (Ok(()), _) => {}
            (Err(error), Some(known)) => {
                store.warn(&format!("{error}; continuing with the version fetched before"));
                return Ok(known.commit);
            }
            (Err(error), None) => return Err(error),
        }
        let commit = self.changeset(name)?.revision;
        let reference = Reference {
            commit: commit.clone(),
            at: cache::now(),
        };
        fetcher.cache.put_reference(&key, reference)?;
        Ok(commit)
    }

    /// Has the copy hold what the repository holds now.
    fn update(&self, fetcher: &Fetcher, copies: &Path) -> Result<(), FetchError> {
        let url = OsString::from(&self.wanted.url);
        if self.folder.exists() {
            let pull = [OsStr::new("pull"), OsStr::new("--quiet"), OsStr::new("--"), &url];
            let pulled = self.run(pull);
            if pulled.is_err() && self.run(["recover"]).is_ok() {
                // What another command left half done when it was killed is undone.
                return self.run(pull).map(drop);
            }
            return pulled.map(drop);
        }
        fs::create_dir_all(copies).map_err(FetchError::io(copies, "created"))?;
        // Renamed into place, so that no other command finds half of it.
        let work = fetcher.work_folder()?;
        let aside = work.path().join("copy");
        self.run_in(
            work.path(),
            [
                OsStr::new("clone"),
                OsStr::new("--quiet"),
                OsStr::new("--noupdate"),
                OsStr::new("--"),
                &url,
                aside.as_os_str(),
            ],
        )?;
        match fs::rename(&aside, self.folder) {
            Err(_) if self.folder.exists() => Ok(()),
            renamed => renamed.map_err(FetchError::io(self.folder, "created")),
        }
    }
}

#[cfg(test)]
#[path = "mercurial_tests.rs"]
mod tests;
