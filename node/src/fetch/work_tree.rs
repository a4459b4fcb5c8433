//! Work trees of Git repositories as they are: the files that `git` knows of, with their present contents.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tvix_node_evaluator::{Fetched, GitFetch, GitRevision, Ingestion};
use tvix_node_protocol::nix::hash::NixHash;

use super::export::inside;
use super::limits::SUBMODULE_DEPTH;
use super::repository::{Kind, Repository};
use super::{FetchError, Store, adding};
use crate::worker::SourceTree;

/// The commit of a repository that has none.
const NO_COMMIT: &str = "0000000000000000000000000000000000000000";

/// A work tree as it is: the files that `git` knows of, with their present contents.
pub(super) fn fetch(
    store: &dyn Store,
    repository: &Repository,
    wanted: &GitFetch,
) -> Result<Fetched, FetchError> {
    if !repository.is_there()? {
        return Err(repository.error("it is not a Git repository"));
    }
    let head = repository.commit("HEAD")?;
    let status = repository.run([
        "status",
        "--porcelain",
        "-z",
        "--untracked-files=no",
        "--ignore-submodules=all",
    ])?;
    let clean = status.is_empty();
    if clean && let Some(head) = &head {
        // Its contents are the commit's, except for what filters make of them on the way into the work tree.
        let fetched = present(store, repository, wanted)?;
        let count = match wanted.shallow {
            true => None,
            false => Some(repository.count(head)?),
        };
        return Ok(Fetched {
            last_modified: Some(repository.date(head)?),
            git: Some(GitRevision {
                revision: Some(head.clone()),
                changed: None,
                count,
            }),
            ..fetched
        });
    }
    let fetched = present(store, repository, wanted)?;
    if !clean {
        store.warn(&format!("Git tree '{}' is dirty", repository.url));
    }
    let git = match (clean, &head) {
        (true, _) => GitRevision {
            revision: Some(NO_COMMIT.to_owned()),
            changed: None,
            count: (!wanted.shallow).then_some(0),
        },
        (false, changed) => GitRevision {
            revision: None,
            changed: changed.clone(),
            count: None,
        },
    };
    let last_modified = match &head {
        Some(head) => repository.date(head)?,
        None => 0,
    };
    Ok(Fetched {
        last_modified: Some(last_modified),
        git: Some(git),
        ..fetched
    })
}

/// Adds the present contents of a work tree to the store.
fn present(store: &dyn Store, repository: &Repository, wanted: &GitFetch) -> Result<Fetched, FetchError> {
    let mut paths = BTreeSet::new();
    listed_files(repository, wanted, Path::new(""), &mut paths, 0)?;
    let mut only: Vec<PathBuf> = paths.into_iter().collect();
    only.sort();
    let tree = SourceTree::new(repository.folder.clone(), Some(&only));
    let info = store.add(&tree, adding(&wanted.name, Ingestion::Nar, None))?;
    Ok(Fetched {
        nar_hash: NixHash::Sha256(info.nar_hash.0),
        path: info.path,
        last_modified: None,
        git: None,
        mercurial: None,
    })
}

/// Collects the files of a work tree that `git` knows of and that are there, with the folders above them.
fn listed_files(
    repository: &Repository,
    wanted: &GitFetch,
    below: &Path,
    paths: &mut BTreeSet<PathBuf>,
    depth: usize,
) -> Result<(), FetchError> {
    if depth > SUBMODULE_DEPTH {
        return Err(repository.error(format!("its submodules are nested deeper than {SUBMODULE_DEPTH}")));
    }
    let output = repository.run(["ls-files", "-z", "--stage"])?;
    let mut files = Vec::new();
    for line in output.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
        let Some(tab) = line.iter().position(|byte| *byte == b'\t') else {
            return Err(repository.error("'git ls-files' says something unexpected"));
        };
        let kind = match line.starts_with(b"160000 ") {
            true => Kind::Submodule,
            false => Kind::File,
        };
        files.push((kind, line[tab + 1..].to_vec()));
    }
    let ignored = match wanted.export_ignore {
        true => ignored(repository, &files)?,
        false => BTreeSet::new(),
    };
    for (kind, path) in files {
        let relative =
            inside(&path).ok_or_else(|| repository.error("a path of its index leads out of it"))?;
        // Folders stay where everything in them is left out. What was deleted and not yet committed is not there.
        let there =
            |part: &[u8]| !is_covered(&ignored, part) && fs::symlink_metadata(repository.place(part)).is_ok();
        let depth_of_path = prefixes(&path).count();
        for part in prefixes(&path).take(depth_of_path - 1).filter(|part| there(part)) {
            paths.extend(inside(part).map(|part| below.join(part)));
        }
        if !there(&path) {
            continue;
        }
        let place = repository.place(&path);
        let relative = below.join(relative);
        match kind {
            Kind::Submodule if wanted.submodules => {
                let module = Repository {
                    url: place.display().to_string(),
                    folder: place,
                };
                listed_files(&module, wanted, &relative, paths, depth + 1)?;
                paths.insert(relative);
            }
            Kind::Submodule => {}
            _ => drop(paths.insert(relative)),
        }
    }
    Ok(())
}

/// A path's folders, outermost first, and the path.
fn prefixes(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| &path[..at]).chain([path])
}

/// Whether a path, or a folder that it is in, is in a set.
fn is_covered(set: &BTreeSet<Vec<u8>>, path: &[u8]) -> bool {
    prefixes(path).any(|part| set.contains(part))
}

/// Files and folders of a work tree that are `export-ignore` themselves.
fn ignored(repository: &Repository, files: &[(Kind, Vec<u8>)]) -> Result<BTreeSet<Vec<u8>>, FetchError> {
    let asked: BTreeSet<&[u8]> = files.iter().flat_map(|(_, path)| prefixes(path)).collect();
    let mut input = Vec::new();
    for path in asked {
        input.extend_from_slice(path);
        input.push(0);
    }
    let mut output = Vec::new();
    let mut command = repository.git(["check-attr", "-z", "--stdin", "export-ignore"]);
    repository.feed(&mut command, input, &mut |from| {
        from.read_to_end(&mut output).map_err(|error| error.to_string())?;
        Ok(())
    })?;
    // Triples: path, attribute, value.
    let fields: Vec<&[u8]> = output.split(|byte| *byte == 0).collect();
    let set = fields.chunks_exact(3).filter(|triple| triple[2] == b"set");
    Ok(set.map(|triple| triple[0].to_vec()).collect())
}
