//! Folders of builds that failed (`--keep-failed`), from the builder to who asked for the build.
//!
//! The builder makes a tree of the folder, lets the requester have it for a while, and keeps nothing else. The
//! requester fetches it like any tree, checked against its digests, and copies it to where its own failed
//! builds lie. It is no path of either store.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::FailedFolder;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_store::{ContentName, Naming};
use tvix_node_swarm::Priority;

use super::TeamNode;
use super::limits::{FAILED_FOLDER_BYTES, FAILED_FOLDER_ENTRIES};
use super::purpose::Purpose;
use crate::daemon::clock::now;
use crate::daemon::depot::DepotError;

/// What such a tree is called beside the store's paths.
const NAME: &str = "failed-build";

impl TeamNode {
    /// Lets a member have the folder of its build that failed, which is gone from here then.
    pub(super) async fn show_folder(&self, requester: NodeKey, folder: PathBuf) -> FailedFolder {
        let (lease, taken, audience) = (self.depot.lease(), folder.clone(), self.view.audience());
        let shown = self.depot.blocking(move |store| {
            tidy(&taken, FAILED_FOLDER_BYTES, FAILED_FOLDER_ENTRIES)
                .map_err(file(&taken, "shown to who asked for it"))?;
            let prepared = store.prepare_source(&taken, Naming::Content(ContentName::source(NAME)))?;
            Ok(store.register_unaccepted(vec![prepared.within(&audience)], &lease)?)
        });
        let shown = match shown.await {
            Ok(infos) => infos
                .into_iter()
                .next()
                .ok_or_else(|| "it was not stored".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let jobs = Arc::clone(&self.jobs);
        let removing = self.depot.blocking(move |_| {
            jobs.builder
                .remove_kept(&folder)
                .map_err(file(&folder, "removed"))
        });
        if let Err(error) = removing.await {
            tracing::warn!(%error, "the folder of a failed build is left over");
        }
        match shown {
            Ok(info) => {
                self.grants.give(requester, info.tree, now());
                FailedFolder::Shown {
                    tree: info.tree,
                    nar_hash: info.nar_hash,
                    nar_size: info.nar_size,
                }
            }
            Err(reason) => FailedFolder::NotShown { reason },
        }
    }

    /// Brings the folder of a build that failed at a builder to where those of this node's builds lie.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) async fn bring_folder(
        &self,
        builder: NodeKey,
        derivation: &StorePath,
        folder: FailedFolder,
    ) -> Result<PathBuf, String> {
        let info = described(builder, folder)?;
        let (path, tree) = (info.path.clone(), info.tree);
        let prepared = self
            .bring(info, vec![builder], Purpose::own(Priority::Demanded))
            .await
            .map_err(|error| error.to_string())?;
        let (jobs, name) = (Arc::clone(&self.jobs), derivation.name().to_owned());
        let prepared = prepared.within(&self.view.audience());
        let copying = self.depot.blocking(move |store| {
            // Not held for longer than it takes to copy it.
            let lease = store.lease();
            store.register_unaccepted(vec![prepared], &lease)?;
            let from = store.physical_unaccepted(&path, &tree);
            let failed = |cause: tvix_node_builder::Cause| io::Error::other(cause);
            let to = jobs.builder.kept_folder(&name);
            let to = to.map_err(failed).map_err(file(&from, "copied"))?;
            copy(&from, &to, FAILED_FOLDER_ENTRIES).map_err(file(&to, "written"))?;
            Ok(to)
        });
        copying.await.map_err(|error| error.to_string())
    }
}

/// A folder as a builder shows it, where it may be brought.
fn described(builder: NodeKey, folder: FailedFolder) -> Result<PathInfo, String> {
    let (tree, nar_hash, nar_size) = match folder {
        FailedFolder::Shown {
            tree,
            nar_hash,
            nar_size,
        } => (tree, nar_hash, nar_size),
        FailedFolder::NotShown { reason } => return Err(reason),
    };
    if nar_size > FAILED_FOLDER_BYTES {
        return Err(too_large(FAILED_FOLDER_BYTES));
    }
    Ok(PathInfo {
        path: name_of(tree)?,
        tree,
        nar_hash,
        nar_size,
        references: std::collections::BTreeSet::new(),
        deriver: None,
        ca: None,
        origin: Origin::Peer { peer: builder },
        registered: 0,
        signatures: Vec::new(),
    })
}

fn file(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> DepotError {
    let file = path.to_path_buf();
    move |source| DepotError::File { file, action, source }
}

fn too_large(most: u64) -> String {
    format!("it has more than the {most} bytes that are brought home")
}

fn too_many(most: usize) -> String {
    format!("it has more than the {most} entries that are brought home")
}

/// It has no name of its own, and must not get in the way of anything that has.
fn name_of(tree: TreeDigest) -> Result<StorePath, String> {
    let mut hash = [0; 20];
    hash.copy_from_slice(&tree.0[..20]);
    StorePath::from_parts(hash, NAME).map_err(|error| error.to_string())
}

/// Makes of a folder that a build left what can become a tree: what nobody may read is made readable,
/// sockets, FIFOs and devices go. No process of the build is alive, so nothing changes meanwhile.
///
/// # Errors
/// The system's, or that there is more than `most` bytes, or more than `most_entries`.
fn tidy(folder: &Path, most: u64, most_entries: usize) -> io::Result<()> {
    let (mut bytes, mut entries) = (0u64, 0usize);
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let mode = fs::symlink_metadata(&folder)?.permissions().mode();
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode | 0o700))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let about = fs::symlink_metadata(entry.path())?;
            entries += 1;
            bytes = bytes.saturating_add(about.len());
            if bytes > most {
                return Err(io::Error::other(too_large(most)));
            }
            if entries > most_entries {
                return Err(io::Error::other(too_many(most_entries)));
            }
            if about.is_dir() {
                folders.push(entry.path());
            } else if about.is_file() {
                let mode = about.permissions().mode();
                if mode & 0o400 == 0 {
                    fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode | 0o400))?;
                }
            } else if !about.is_symlink() {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

/// Copies a tree of the store to where its owner may change it; who sent it may not have counted. What was copied of one that
/// cannot be copied is gone.
fn copy(from: &Path, to: &Path, most_entries: usize) -> io::Result<()> {
    let copied = copy_entries(from, to, most_entries);
    if copied.is_err() {
        fs::remove_dir_all(to)?;
    }
    copied
}

fn copy_entries(from: &Path, to: &Path, most_entries: usize) -> io::Result<()> {
    let mut entries = 0;
    if !fs::symlink_metadata(from)?.is_dir() {
        return Err(io::Error::other("what came is not a folder"));
    }
    let mut folders = vec![(from.to_path_buf(), to.to_path_buf())];
    while let Some((from, to)) = folders.pop() {
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            entries += 1;
            if entries > most_entries {
                return Err(io::Error::other(too_many(most_entries)));
            }
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            let about = fs::symlink_metadata(&from)?;
            if about.is_symlink() {
                std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
            } else if about.is_dir() {
                fs::create_dir(&to)?;
                folders.push((from, to));
            } else {
                fs::copy(&from, &to)?;
                let mode = about.permissions().mode() | 0o200;
                fs::set_permissions(&to, fs::Permissions::from_mode(mode & 0o755))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("left/deep");
        fs::create_dir_all(&inside).unwrap();
        fs::write(inside.join("program"), "text").unwrap();
        fs::set_permissions(inside.join("program"), fs::Permissions::from_mode(0o100)).unwrap();
        symlink("/etc/passwd", inside.join("link")).unwrap();
        std::os::unix::net::UnixListener::bind(inside.join("socket")).unwrap();
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o0)).unwrap();
        folder
    }

    #[test]
    fn a_folder_is_made_fit_to_travel() {
        let folder = folder();
        tidy(&folder.path().join("left"), 1 << 20, 9).unwrap();
        let inside = folder.path().join("left/deep");
        assert_eq!(fs::read_to_string(inside.join("program")).unwrap(), "text");
        assert!(!inside.join("socket").exists());
        assert!(inside.join("link").is_symlink());
    }

    #[test]
    fn one_that_is_too_large_is_not() {
        let folder = folder();
        fs::write(folder.path().join("left/large"), vec![0; 1000]).unwrap();
        let error = tidy(&folder.path().join("left"), 999, 9).unwrap_err();
        assert!(error.to_string().contains("999 bytes"), "{error}");
        // So that the test can remove it.
        tidy(&folder.path().join("left"), 1 << 20, 9).unwrap();
    }

    #[test]
    fn one_of_too_many_entries_is_neither_shown_nor_copied() {
        let folder = folder();
        let (from, to) = (folder.path().join("left"), folder.path().join("right"));
        // Itself not counted: a folder, and three things in it.
        let error = tidy(&from, 1 << 20, 3).unwrap_err();
        assert!(error.to_string().contains("3 entries"), "{error}");
        tidy(&from, 1 << 20, 4).unwrap();
        fs::create_dir(&to).unwrap();
        // The socket is gone.
        let error = copy(&from, &to, 2).unwrap_err();
        assert!(error.to_string().contains("2 entries"), "{error}");
        assert!(!to.exists(), "nothing is left of it");
        fs::create_dir(&to).unwrap();
        copy(&from, &to, 3).unwrap();
    }

    #[test]
    fn one_that_a_builder_says_is_too_large_is_not_asked_for() {
        let shown = |nar_size| FailedFolder::Shown {
            tree: TreeDigest([1; 32]),
            nar_hash: tvix_node_protocol::path_info::NarHash([1; 32]),
            nar_size,
        };
        let builder = NodeKey([1; 32]);
        assert_eq!(
            described(builder, shown(FAILED_FOLDER_BYTES)).unwrap().nar_size,
            FAILED_FOLDER_BYTES
        );
        assert!(described(builder, shown(FAILED_FOLDER_BYTES + 1)).is_err());
    }

    #[test]
    fn a_copy_belongs_to_who_made_it() {
        let folder = folder();
        let (from, to) = (folder.path().join("left"), folder.path().join("right"));
        tidy(&from, 1 << 20, 9).unwrap();
        fs::create_dir(&to).unwrap();
        copy(&from, &to, 9).unwrap();
        let program = to.join("deep/program");
        assert_eq!(fs::read_to_string(&program).unwrap(), "text");
        assert_eq!(
            fs::metadata(&program).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert_eq!(
            fs::read_link(to.join("deep/link")).unwrap(),
            Path::new("/etc/passwd")
        );
        assert!(copy(&program, &to, 9).is_err());
    }
}
