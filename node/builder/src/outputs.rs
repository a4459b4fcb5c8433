//! What a build must leave to have succeeded.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::StorePath;
use crate::error::Cause;
use crate::scratch::Scratch;

/// Bytes free on a disk that is called full, as Nix has it.
const FULL_DISK_BYTES: u64 = 8 << 20;

/// Finds every output, and refuses what Nix refuses: other kinds of files, what others could have
/// written to, and what `owner` does not own.
pub(crate) fn check(
    scratch: &Scratch,
    outputs: &BTreeMap<String, StorePath>,
    owner: u32,
) -> Result<BTreeMap<String, PathBuf>, Cause> {
    outputs
        .iter()
        .map(|(name, path)| {
            let physical = scratch.output(path);
            let rejected = |reason: String| Cause::OutputRejected {
                output: name.clone(),
                path: path.clone(),
                reason,
            };
            let found = match fs::symlink_metadata(&physical) {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(Cause::OutputMissing {
                        output: name.clone(),
                        path: path.clone(),
                    });
                }
                Err(error) => return Err(rejected(error.to_string())),
            };
            let kind = found.file_type();
            if !(kind.is_dir() || kind.is_file() || kind.is_symlink()) {
                return Err(rejected(
                    "it is neither a file, a folder nor a symbolic link".to_owned(),
                ));
            }
            if !kind.is_symlink() && found.mode() & 0o022 != 0 {
                return Err(rejected(format!(
                    "others may write to it (mode {:04o}), so that others may have made it",
                    found.mode() & 0o7777
                )));
            }
            if found.uid() != owner {
                return Err(rejected(format!(
                    "it belongs to user {} and not to the build",
                    found.uid()
                )));
            }
            Ok((name.clone(), physical))
        })
        .collect()
}

/// Whether a failure may be the disk's.
pub(crate) fn is_disk_full(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) < FULL_DISK_BYTES)
}
