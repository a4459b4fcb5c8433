//! The folder of one build, and its end.
//!
//! `<scratch>/<hash of the derivation>-<number>/` with mode 0700 contains `store` (the build's
//! `/nix/store`), `build` (its build folder), `tmp`, and `lock`, which the sandbox helper holds as long as
//! it lives.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::StorePath;
use crate::cgroup::{self, MemoryGroup};
use crate::error::{Cause, StartError};
use crate::remove::remove_tree;

/// Numbers the builds of this process.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The folder of one build. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    removed: bool,
    /// Goes with the folder, as removing it may take a moment as well.
    memory_group: Option<MemoryGroup>,
}

impl Scratch {
    /// Makes the folder of a build.
    pub(crate) fn create(parent: &Path, drv_path: &StorePath) -> Result<Self, Cause> {
        let base = drv_path.to_basename();
        let hash = base.split('-').next().unwrap_or(&base);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{hash}-{number}"));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Self {
                path,
                removed: false,
                memory_group: None,
            }),
            Err(source) => Err(Cause::Scratch {
                path,
                action: "created",
                source,
            }),
        }
    }

    /// Bounds the memory of the build by a control group, where this machine lets us.
    pub(crate) fn bound_memory(&mut self, bytes: u64, niceness: i32) -> Option<&MemoryGroup> {
        let name = self.path.file_name()?.to_string_lossy();
        self.memory_group = MemoryGroup::create(&name, bytes, niceness);
        self.memory_group.as_ref()
    }

    /// Whether a control group saw the build use more memory than allowed.
    pub(crate) fn exceeded_memory(&self) -> bool {
        self.memory_group
            .as_ref()
            .is_some_and(|group| cgroup::was_exceeded(&group.events()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The folders that a build writes to.
    pub(crate) fn written(&self) -> Vec<PathBuf> {
        ["store", "build", "tmp"]
            .map(|name| self.path.join(name))
            .to_vec()
    }

    /// Where the build left something of the store.
    pub(crate) fn output(&self, path: &StorePath) -> PathBuf {
        self.path.join("store").join(path.to_basename())
    }

    /// Moves the build folder to a place where it stays.
    pub(crate) fn keep(&self, kept: &Path, drv_path: &StorePath) -> Result<PathBuf, Cause> {
        let (from, name) = (self.path.join("build"), drv_path.name());
        let target = new_folder(kept, name)?;
        rename(&from, &target)?;
        Ok(target)
    }

    /// Removes the folder without blocking the caller's thread.
    pub(crate) async fn discard(self) {
        // Where the task does not run to its end, because the runtime ends, the folder is one of
        // those that the next start removes.
        let _runtime_ended = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

/// Moves an output to a place where it stays: into a new folder, as it need not be one itself.
pub(crate) fn keep_output(output: &Path, kept: &Path) -> Result<PathBuf, Cause> {
    let base = output.file_name().unwrap_or_default();
    let target = new_folder(kept, &base.to_string_lossy())?.join(base);
    rename(output, &target)?;
    Ok(target)
}

/// Moves to another folder. One that its owner may not write to cannot be moved by an ordinary user.
fn rename(from: &Path, to: &Path) -> Result<(), Cause> {
    let about = fs::symlink_metadata(from).map_err(failed(from, "looked at"))?;
    if about.is_dir() {
        let mode = about.permissions().mode() | 0o700;
        fs::set_permissions(from, fs::Permissions::from_mode(mode)).map_err(failed(from, "made writable"))?;
    }
    fs::rename(from, to).map_err(failed(from, "moved"))
}

/// Makes a folder for what is kept, private to its owner, under a name that nothing has yet.
pub(crate) fn new_folder(kept: &Path, name: &str) -> Result<PathBuf, Cause> {
    // Builds give their folders any mode: nobody else gets as far as to them.
    fs::create_dir_all(kept)
        .and_then(|()| fs::set_permissions(kept, fs::Permissions::from_mode(0o700)))
        .map_err(failed(kept, "created"))?;
    let mut number = 0u64;
    loop {
        let target = kept.join(format!("{name}-{number}"));
        match fs::DirBuilder::new().mode(0o700).create(&target) {
            Ok(()) => return Ok(target),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(source) => return Err(failed(&target, "created")(source)),
        }
    }
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Cause {
    let path = path.to_path_buf();
    move |source| Cause::Scratch { path, action, source }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.removed {
            self.removed = true;
            if let Err(error) = remove_tree(&self.path) {
                tracing::warn!(path = %self.path.display(), %error, "a build's folder could not be removed; the next start of the node tries again");
            }
        }
    }
}

/// Makes the folder for builds, private to its owner, and removes what is in it.
pub(crate) fn prepare(parent: &Path) -> Result<(), StartError> {
    let failed = |path: &Path, action| {
        let path = path.to_path_buf();
        move |source| StartError::Scratch { path, action, source }
    };
    fs::create_dir_all(parent).map_err(failed(parent, "created"))?;
    fs::set_permissions(parent, fs::Permissions::from_mode(0o700)).map_err(failed(parent, "made private"))?;
    let left: io::Result<Vec<PathBuf>> =
        fs::read_dir(parent).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let left = left.map_err(failed(parent, "read"))?;
    left.iter().for_each(|path| wait_for_helper(path));
    for path in left {
        remove_tree(&path).map_err(failed(&path, "removed"))?;
    }
    Ok(())
}

/// The helper of a killed node sees its end and kills the build. Waits until it has.
fn wait_for_helper(build: &Path) {
    if let Ok(lock) = File::open(build.join("lock")) {
        // Where locks do not work, the removal itself tries for a while.
        let _unsupported = rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive);
    }
}

/// The folder that the builds of one slot use one after another.
pub(crate) fn slot_folder(parent: &Path, slot: u32) -> PathBuf {
    parent.join(format!("slot-{slot}"))
}

#[cfg(test)]
#[path = "scratch_tests.rs"]
mod tests;
