//! How long builds took, written down so that the first placements after a restart know it, too.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tvix_node_coordinator::BuildDuration;
use tvix_node_protocol::envelope::NodeKey;

use crate::team::owner_file::{read_versioned, write_whole};

const VERSION: u32 = 1;

/// Longest such file that is read. All that the coordinator remembers are some 2 MB.
const FILE_BYTES: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    builds: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    package: String,
    /// None: this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<NodeKey>,
    milliseconds: u64,
}

/// The file that the coordinator's memory of durations outlives a restart in.
#[derive(Debug, Clone)]
pub struct DurationsFile(pub PathBuf);

impl DurationsFile {
    /// What it has. A file that cannot be read is told of and costs no more than worse guesses: it is written
    /// anew.
    pub fn read(&self) -> Vec<BuildDuration> {
        let read = || -> Result<Option<Written>, String> {
            let size = match fs::metadata(&self.0) {
                Ok(metadata) => metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.to_string()),
            };
            if size > FILE_BYTES {
                return Err(format!(
                    "it has {size} bytes, more than the {FILE_BYTES} expected"
                ));
            }
            let bytes = fs::read(&self.0).map_err(|error| error.to_string())?;
            read_versioned(&bytes, VERSION)
                .map(Some)
                .map_err(|error| error.to_string())
        };
        match read() {
            Ok(written) => {
                let builds = written.map(|written| written.builds).unwrap_or_default();
                let builds = builds.into_iter().map(|line| BuildDuration {
                    package: line.package,
                    node: line.node,
                    took: line.milliseconds,
                });
                builds.collect()
            }
            Err(reason) => {
                let file = self.0.display();
                tracing::warn!(%file, %reason, "how long builds took before is forgotten");
                Vec::new()
            }
        }
    }

    /// Replaces it, durably.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, durations: Vec<BuildDuration>) -> io::Result<()> {
        let builds = durations.into_iter().map(|duration| Line {
            package: duration.package,
            node: duration.node,
            milliseconds: duration.took,
        });
        let written = Written {
            version: VERSION,
            builds: builds.collect(),
        };
        write_whole(&self.0, &serde_json::to_vec(&written)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = DurationsFile(folder.path().join("durations.json"));
        assert_eq!(file.read(), []);
        let duration = |node, took| BuildDuration {
            package: "hello".to_owned(),
            node,
            took,
        };
        let durations = vec![duration(None, 20), duration(Some(NodeKey([7; 32])), u64::MAX)];
        file.write(durations.clone()).expect("a file");
        assert_eq!(file.read(), durations);
        for damaged in ["", "{", r#"{"version":2,"builds":[]}"#, r#"{"version":1}"#] {
            fs::write(&file.0, damaged).expect("a file");
            assert_eq!(file.read(), [], "{damaged}");
        }
        file.write(durations.clone()).expect("a file");
        assert_eq!(file.read(), durations);
        // Longer than any that this node writes, and otherwise in order.
        let mut text = fs::read(&file.0).expect("a file");
        text.resize(usize::try_from(FILE_BYTES).expect("it fits"), b' ');
        fs::write(&file.0, &text).expect("a file");
        assert_eq!(file.read(), durations);
        text.push(b' ');
        fs::write(&file.0, &text).expect("a file");
        assert_eq!(file.read(), []);
    }
}
