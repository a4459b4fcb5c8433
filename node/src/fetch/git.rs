//! Trees of Git repositories: of a commit, or of a work tree as it is.
//!
//! Source of the behaviour: `git.cc` of Nix 2.34.

use std::fs;
use std::path::Path;

use tvix_node_evaluator::{Fetched, GitFetch, GitRevision, Ingestion};
use tvix_node_protocol::nix::hash::NixHash;

use super::cache::{self, Entry, Reference};
use super::export::{export, inside};
use super::limits::SUBMODULE_DEPTH;
use super::repository::Repository;
use super::{FetchError, Fetcher, Store, adding, check_tree, local_path, work_tree};
use crate::worker::SourceTree;

/// Fetches a tree.
pub(super) fn fetch(fetcher: &Fetcher, store: &dyn Store, wanted: &GitFetch) -> Result<Fetched, FetchError> {
    let place = Place::of(&wanted.url, fetcher)?;
    let fetched = match &place {
        Place::WorkTree(repository) if wanted.reference.is_none() && wanted.revision.is_none() => {
            work_tree::fetch(store, repository, wanted)?
        }
        Place::WorkTree(repository) => {
            let name = wanted
                .revision
                .as_deref()
                .or(wanted.reference.as_deref())
                .unwrap_or("HEAD");
            let commit = repository.commit(name)?.ok_or_else(|| match &wanted.revision {
                Some(revision) => missing(repository, revision, wanted),
                None => repository.error(format!("it has no '{name}'")),
            })?;
            tree(fetcher, store, repository, &commit, wanted)?
        }
        Place::Elsewhere { copy, is_local } => {
            let commit = updated(fetcher, store, copy, wanted, *is_local)?;
            tree(fetcher, store, copy, &commit, wanted)?
        }
    };
    check_tree(&wanted.url, wanted.expected.as_ref(), &fetched.nar_hash)?;
    Ok(fetched)
}

/// Where a repository is.
enum Place {
    /// On this machine, with a work tree.
    WorkTree(Repository),
    /// Elsewhere, or bare; this is the home's copy of it.
    Elsewhere { copy: Repository, is_local: bool },
}

impl Place {
    fn of(url: &str, fetcher: &Fetcher) -> Result<Self, FetchError> {
        let local = local_path(url)?;
        if let Some(folder) = &local
            && folder.join(".git").exists()
        {
            return Ok(Self::WorkTree(Repository {
                folder: folder.clone(),
                url: url.to_owned(),
            }));
        }
        let name = cache::fingerprint(&format!("git\n{url}"));
        Ok(Self::Elsewhere {
            copy: Repository {
                folder: fetcher.folder.join("git").join(name),
                url: url.to_owned(),
            },
            is_local: local.is_some(),
        })
    }
}

fn missing(repository: &Repository, revision: &str, wanted: &GitFetch) -> FetchError {
    let reference = wanted.reference.as_deref().unwrap_or("HEAD");
    repository.error(format!(
        "cannot find the commit '{revision}' in '{reference}'; make sure that the `rev` exists on the `ref` you have \
         specified, or add `allRefs = true;`"
    ))
}

/// The full name of a reference.
fn full_name(reference: &str) -> String {
    match reference {
        "HEAD" => "HEAD".to_owned(),
        name if name.starts_with("refs/") => name.to_owned(),
        name => format!("refs/heads/{name}"),
    }
}

/// Has the copy hold what is wanted, and gives the commit.
fn updated(
    fetcher: &Fetcher,
    store: &dyn Store,
    copy: &Repository,
    wanted: &GitFetch,
    is_local: bool,
) -> Result<String, FetchError> {
    if !copy.folder.exists() {
        fs::create_dir_all(&copy.folder).map_err(FetchError::io(&copy.folder, "created"))?;
    }
    if !copy.folder.join("HEAD").exists() {
        copy.run(["init", "--quiet", "--bare", "."])?;
    }
    if let Some(revision) = &wanted.revision {
        if let Some(commit) = copy.commit(revision)? {
            return Ok(commit);
        }
        let direct = download(copy, wanted, revision)?;
        if direct.is_err() || copy.commit(revision)?.is_none() {
            // Servers of older protocols give commits only by the names of references.
            let reference = full_name(wanted.reference.as_deref().unwrap_or("HEAD"));
            download(copy, wanted, &kept(&reference, wanted))?.map_err(|said| copy.error(said))?;
        }
        return copy
            .commit(revision)?
            .ok_or_else(|| missing(copy, revision, wanted));
    }
    let reference = full_name(wanted.reference.as_deref().unwrap_or("HEAD"));
    let key = format!("git reference\n{}\n{reference}\n{}", copy.url, wanted.shallow);
    let known = fetcher.cache.reference(&key).filter(|_| !is_local);
    let known = match known {
        Some(known) => copy
            .commit(&known.commit)?
            .map(|commit| (commit, known.is_current())),
        None => None,
    };
    if let Some((commit, true)) = &known {
        return Ok(commit.clone());
    }
    match (download(copy, wanted, &kept(&reference, wanted))?, known) {
        (Ok(()), _) => {}
        (Err(said), Some((commit, _))) => {
            let error = copy.error(said);
            store.warn(&format!("{error}; continuing with the version fetched before"));
            return Ok(commit);
        }
        (Err(said), None) => return Err(copy.error(said)),
    }
    let name = if reference == "HEAD" {
        KEPT_HEAD
    } else {
        &reference
    };
    let commit = copy
        .commit(name)?
        .ok_or_else(|| copy.error(format!("it has no '{reference}'")))?;
    let reference = Reference {
        commit: commit.clone(),
        at: cache::now(),
    };
    fetcher.cache.put_reference(&key, reference)?;
    Ok(commit)
}

/// Where the copy keeps what another repository calls `HEAD`.
const KEPT_HEAD: &str = "refs/tvix-node/head";

/// What to tell `git fetch` about a reference.
fn kept(reference: &str, wanted: &GitFetch) -> String {
    if wanted.all_references {
        return "+refs/*:refs/*".to_owned();
    }
    match reference {
        "HEAD" => format!("+HEAD:{KEPT_HEAD}"),
        name => format!("+{name}:{name}"),
    }
}

/// Runs `git fetch`; what it says where it fails.
fn download(copy: &Repository, wanted: &GitFetch, what: &str) -> Result<Result<(), String>, FetchError> {
    let mut arguments = vec![
        "fetch",
        "--quiet",
        "--force",
        "--no-tags",
        "--no-write-fetch-head",
    ];
    if wanted.shallow {
        arguments.extend(["--depth", "1"]);
    } else if copy.folder.join("shallow").exists() {
        arguments.push("--unshallow");
    }
    arguments.extend(["--", copy.url.as_str(), what]);
    Ok(copy.try_run(arguments)?.map(drop))
}

/// The tree of a commit.
fn tree(
    fetcher: &Fetcher,
    store: &dyn Store,
    repository: &Repository,
    commit: &str,
    wanted: &GitFetch,
) -> Result<Fetched, FetchError> {
    let key = format!(
        "git\n{commit}\n{}\nignore {}\nsubmodules {}\nshallow {}",
        wanted.name, wanted.export_ignore, wanted.submodules, wanted.shallow
    );
    if let Some(known) = fetcher.known(store, &key)? {
        return Ok(known.fetched());
    }
    let count = match wanted.shallow {
        true => None,
        false => Some(repository.count(commit)?),
    };
    let last_modified = repository.date(commit)?;
    let work = fetcher.work_folder()?;
    let target = work.path().join("tree");
    write_tree(fetcher, store, repository, commit, wanted, &target, 0)?;
    let info = store.add(
        &SourceTree::new(target, None),
        adding(&wanted.name, Ingestion::Nar, Some(&key)),
    )?;
    let entry = Entry {
        path: info.path,
        nar_hash: NixHash::Sha256(info.nar_hash.0),
        last_modified: Some(last_modified),
        git: Some(GitRevision {
            revision: Some(commit.to_owned()),
            changed: None,
            count,
        }),
        mercurial: None,
        tag: None,
        at: cache::now(),
    };
    fetcher.cache.put(&key, &entry)?;
    Ok(entry.fetched())
}

/// Writes a tree with its submodules.
fn write_tree(
    fetcher: &Fetcher,
    store: &dyn Store,
    repository: &Repository,
    commit: &str,
    wanted: &GitFetch,
    target: &Path,
    depth: usize,
) -> Result<(), FetchError> {
    let modules = export(repository, commit, wanted.export_ignore, target)?;
    if !wanted.submodules || modules.is_empty() {
        return Ok(());
    }
    if depth >= SUBMODULE_DEPTH {
        return Err(repository.error(format!("its submodules are nested deeper than {SUBMODULE_DEPTH}")));
    }
    for module in modules {
        let path = String::from_utf8_lossy(&module.path).into_owned();
        let url = module_url(repository, commit, &path)?;
        let part = GitFetch {
            url,
            reference: None,
            revision: Some(module.object.clone()),
            all_references: true,
            ..wanted.clone()
        };
        let place = inside(&module.path).map(|path| target.join(path));
        let place =
            place.ok_or_else(|| repository.error(format!("the submodule '{path}' leads out of it")))?;
        let (source, revision) = match Place::of(&part.url, fetcher)? {
            Place::WorkTree(source) => (source, module.object),
            Place::Elsewhere { copy, is_local } => {
                let revision = updated(fetcher, store, &copy, &part, is_local)?;
                (copy, revision)
            }
        };
        if source.commit(&revision)?.is_none() {
            return Err(missing(&source, &revision, &part));
        }
        // Made anew with its content.
        fs::remove_dir(&place).map_err(FetchError::io(&place, "removed"))?;
        write_tree(fetcher, store, &source, &revision, &part, &place, depth + 1)?;
    }
    Ok(())
}

/// Where a submodule comes from, as the commit's `.gitmodules` says.
fn module_url(repository: &Repository, commit: &str, path: &str) -> Result<String, FetchError> {
    let blob = format!("{commit}:.gitmodules");
    let output = repository.run([
        "config",
        "--blob",
        &blob,
        "-z",
        "--get-regexp",
        r"^submodule\..*\.(path|url)$",
    ])?;
    let text = String::from_utf8_lossy(&output).into_owned();
    let entries: Vec<(&str, &str)> = text
        .split('\0')
        .filter_map(|entry| entry.split_once('\n'))
        .collect();
    let name = entries
        .iter()
        .find(|(key, value)| key.ends_with(".path") && *value == path)
        .and_then(|(key, _)| key.strip_suffix(".path"));
    let url = name.and_then(|name| {
        let key = format!("{name}.url");
        entries
            .iter()
            .find(|(found, _)| *found == key)
            .map(|(_, url)| *url)
    });
    let url =
        url.ok_or_else(|| repository.error(format!("nothing says where its submodule '{path}' comes from")))?;
    if !url.starts_with("./") && !url.starts_with("../") {
        return Ok(url.to_owned());
    }
    // Relative to where the repository itself comes from.
    let origin = repository.try_run(["config", "--get", "remote.origin.url"])?;
    let base = match origin {
        Ok(origin) if !origin.is_empty() => String::from_utf8_lossy(&origin).trim().to_owned(),
        _ => repository.url.clone(),
    };
    Ok(relative(&base, url))
}

/// A URL relative to another one, as `git submodule` reads it.
fn relative(base: &str, url: &str) -> String {
    let mut base = base.trim_end_matches('/').to_owned();
    let mut rest = url;
    loop {
        if let Some(next) = rest.strip_prefix("./") {
            rest = next;
        } else if let Some(next) = rest.strip_prefix("../") {
            rest = next;
            let cut = base.rfind(['/', ':']).unwrap_or(0);
            base.truncate(cut);
        } else {
            return format!("{base}/{rest}");
        }
    }
}

#[cfg(test)]
#[path = "git_tests.rs"]
mod tests;
