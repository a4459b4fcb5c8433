//! What broken transfers left in the spool.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tvix_node_protocol::tree::TreeDigest;

use super::Fetching;
use super::arrival::{SpoolError, io_error};

impl Fetching {
    /// Removes the folders of trees that nobody fetches and of which nothing has come for so long. Gives the
    /// bytes of what was in them. Blocks.
    pub(crate) fn tidy(&self, idle: Duration) -> Result<u64, SpoolError> {
        let mut bytes = 0;
        for entry in fs::read_dir(&self.spool).map_err(io_error("list", &self.spool))? {
            let entry = entry.map_err(io_error("list", &self.spool))?;
            let name = entry.file_name();
            // Nothing else is ours.
            let Some(root) = name.to_str().and_then(|name| name.parse::<TreeDigest>().ok()) else {
                continue;
            };
            // Whoever begins to fetch it waits meanwhile.
            let Ok(_alone) = self.turn(root).try_lock_owned() else {
                continue;
            };
            let folder = entry.path();
            let (size, touched) = match contents(&folder) {
                Ok(contents) => contents,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io_error("look at", &folder)(error)),
            };
            if touched.elapsed().is_ok_and(|since| since >= idle) {
                fs::remove_dir_all(&folder).map_err(io_error("remove", &folder))?;
                bytes += size;
            }
        }
        Ok(bytes)
    }
}

/// Bytes of the files in a folder, and when the last of them was written to.
fn contents(folder: &Path) -> io::Result<(u64, SystemTime)> {
    let (mut size, mut touched) = (0, fs::metadata(folder)?.modified()?);
    for entry in fs::read_dir(folder)? {
        let metadata = entry?.metadata()?;
        size += metadata.len();
        touched = touched.max(metadata.modified()?);
    }
    Ok((size, touched))
}
