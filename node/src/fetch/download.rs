//! Files and archives by URL.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tvix_node_builder::Client;
use tvix_node_evaluator::{Fetched, Ingestion};
use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash, NixHasher};
use url::Url;

use super::cache::{self, Entry};
use super::limits::MOST_BYTES;
use super::{FetchError, Fetcher, Store, adding, archive, check_tree};
use crate::worker::SourceTree;

/// A file.
pub(super) fn file(
    fetcher: &Fetcher,
    store: &dyn Store,
    url: &str,
    name: &str,
    ingestion: Ingestion,
    expected: Option<&NixHash>,
) -> Result<Fetched, FetchError> {
    let key = format!("file\n{url}\n{name}\n{ingestion:?}");
    download(
        fetcher,
        store,
        url,
        &key,
        |entry| {
            // What is remembered has its hash in its name only if that is the hash of an archive.
            expected.is_none_or(|expected| ingestion == Ingestion::Nar && entry.nar_hash == *expected)
        },
        |got, key| {
            if ingestion == Ingestion::Flat {
                check_file(url, &got.file, expected)?;
            }
            let tree = SourceTree::new(got.file.clone(), None);
            let info = store.add(&tree, adding(name, ingestion, Some(key)))?;
            let nar_hash = NixHash::Sha256(info.nar_hash.0);
            if ingestion == Ingestion::Nar {
                check_tree(url, expected, &nar_hash)?;
            }
            Ok(Fetched {
                path: info.path,
                nar_hash,
                last_modified: None,
                git: None,
                mercurial: None,
            })
        },
    )
}

/// What an archive unpacks to.
pub(super) fn unpacked(
    fetcher: &Fetcher,
    store: &dyn Store,
    url: &str,
    name: &str,
    expected: Option<&NixHash>,
) -> Result<Fetched, FetchError> {
    let key = format!("archive\n{url}\n{name}");
    download(
        fetcher,
        store,
        url,
        &key,
        |entry| expected.is_none_or(|expected| entry.nar_hash == *expected),
        |got, key| {
            let target = got.work.path().join("unpacked");
            let open = File::open(&got.file).map_err(FetchError::io(&got.file, "opened"))?;
            let unpacked = archive::unpack(open, &target).map_err(|reason| FetchError::Archive {
                url: url.to_owned(),
                reason,
            })?;
            let info = store.add(
                &SourceTree::new(unpacked.root, None),
                adding(name, Ingestion::Nar, Some(key)),
            )?;
            let nar_hash = NixHash::Sha256(info.nar_hash.0);
            check_tree(url, expected, &nar_hash)?;
            Ok(Fetched {
                path: info.path,
                nar_hash,
                last_modified: Some(unpacked.last_modified),
                git: None,
                mercurial: None,
            })
        },
    )
}

/// A downloaded file.
struct Got {
    file: PathBuf,
    /// Holds it, and what is made of it.
    work: tempfile::TempDir,
}

/// Uses what is remembered where it counts as current and is `good`; else downloads and has it `taken`.
fn download(
    fetcher: &Fetcher,
    store: &dyn Store,
    url: &str,
    key: &str,
    good: impl Fn(&Entry) -> bool,
    take: impl FnOnce(&Got, &str) -> Result<Fetched, FetchError>,
) -> Result<Fetched, FetchError> {
    let parsed = Url::parse(url).map_err(|error| FetchError::Url {
        url: url.to_owned(),
        reason: error.to_string(),
    })?;
    let known = fetcher.known(store, key)?.filter(good);
    let is_local = parsed.scheme() == "file";
    if let Some(known) = &known
        && known.is_current()
        && !is_local
    {
        return Ok(known.fetched());
    }
    let work = fetcher.work_folder()?;
    let file = work.path().join("download");
    let tag = known.as_ref().and_then(|known| known.tag.as_deref());
    let result = if is_local {
        local(&parsed, url, &file).map(|()| None)
    } else {
        remote(fetcher, store, &parsed, url, &file, tag)
    };
    let tag = match (result, known) {
        (Ok(Some(Answer::Current)), Some(mut known)) => {
            known.at = cache::now();
            fetcher.cache.put(key, &known)?;
            return Ok(known.fetched());
        }
        (Ok(Some(Answer::Current)), None) => {
            return Err(FetchError::Download {
                url: url.to_owned(),
                reason: "the server says that a file is current which it was not asked about".to_owned(),
            });
        }
        (Ok(Some(Answer::Fresh(tag))), _) => tag,
        (Ok(None), _) => None,
        // As in Nix: what there is beats nothing, but it is said.
        (Err(error), Some(known)) => {
            store.warn(&format!("{error}; using what was fetched before"));
            return Ok(known.fetched());
        }
        (Err(error), None) => return Err(error),
    };
    let fetched = take(&Got { file, work }, key)?;
    if !is_local {
        let entry = Entry {
            path: fetched.path.clone(),
            nar_hash: fetched.nar_hash.clone(),
            last_modified: fetched.last_modified,
            git: None,
            mercurial: None,
            tag,
            at: cache::now(),
        };
        fetcher.cache.put(key, &entry)?;
    }
    Ok(fetched)
}

/// What a server answers.
enum Answer {
    /// The file was written; what the server calls this version of it.
    Fresh(Option<String>),
    /// What was fetched before is current.
    Current,
}

fn remote(
    fetcher: &Fetcher,
    store: &dyn Store,
    parsed: &Url,
    url: &str,
    target: &Path,
    tag: Option<&str>,
) -> Result<Option<Answer>, FetchError> {
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
        return Err(FetchError::Url {
            url: url.to_owned(),
            reason: "only http, https and file are supported".to_owned(),
        });
    }
    let failed = |cause: tvix_node_builder::Cause| FetchError::Download {
        url: url.to_owned(),
        reason: match cause {
            tvix_node_builder::Cause::Fetch { reason, .. } => reason,
            tvix_node_builder::Cause::DiskTooLarge(most) => format!("it has more than {most} bytes"),
            other => other.to_string(),
        },
    };
    let tell = |text: String| {
        // The first try is nothing to talk about.
        store.warn(&text);
        std::future::ready(())
    };
    let client = Client::unrestricted().map_err(failed)?;
    let download = client.download(parsed, target, MOST_BYTES, tag, &tell);
    let downloaded = fetcher.runtime.block_on(download).map_err(failed)?;
    Ok(Some(match downloaded.fresh {
        true => Answer::Fresh(downloaded.tag),
        false => Answer::Current,
    }))
}

/// A file of this machine is read anew each time.
fn local(parsed: &Url, url: &str, target: &Path) -> Result<(), FetchError> {
    let wrong = |reason: &str| FetchError::Url {
        url: url.to_owned(),
        reason: reason.to_owned(),
    };
    let path = parsed
        .to_file_path()
        .map_err(|()| wrong("a 'file' URL needs an absolute path and no host"))?;
    let metadata = fs::metadata(&path).map_err(FetchError::io(&path, "read"))?;
    if metadata.is_dir() && path.join(".git").exists() {
        return Err(wrong("it is a Git repository, not a file; use fetchGit"));
    }
    if !metadata.is_file() {
        return Err(wrong("it is not a regular file"));
    }
    fs::copy(&path, target).map_err(FetchError::io(&path, "copied"))?;
    Ok(())
}

fn check_file(url: &str, file: &Path, expected: Option<&NixHash>) -> Result<(), FetchError> {
    let Some(expected) = expected else { return Ok(()) };
    let mut hasher = NixHasher::new(HashAlgorithm::Sha256);
    let mut open = File::open(file).map_err(FetchError::io(file, "opened"))?;
    let mut block = vec![0; 256 << 10];
    loop {
        let read = std::io::Read::read(&mut open, &mut block).map_err(FetchError::io(file, "read"))?;
        if read == 0 {
            break;
        }
        hasher.update(&block[..read]);
    }
    let found = hasher.finalize();
    if found == *expected {
        return Ok(());
    }
    Err(FetchError::Mismatch {
        what: "the file downloaded from",
        url: url.to_owned(),
        specified: expected.to_sri_string(),
        got: found.to_sri_string(),
    })
}
