//! What the programs that measure the swarm share: a store that has names alone, and what the process has used.

use std::error::Error;
use std::fs::File;
use std::time::Duration;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::Shown;
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::tree::{BlobDigest, Tree, TreeDigest};
use tvix_node_swarm::{Shelf, ShelfError};

pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// Has paths, and nothing in them.
pub struct Names(pub Vec<StorePath>);

impl Shelf for Names {
    fn advertised(&self, after: Option<&StorePath>, limit: usize) -> Result<Vec<StorePath>, ShelfError> {
        let start = after.map_or(0, |after| self.0.partition_point(|path| path <= after));
        Ok(self.0[start..].iter().take(limit).cloned().collect())
    }
    fn path_info(&self, _: NodeKey, _: &StorePath) -> Result<Option<Shown>, ShelfError> {
        Ok(None)
    }
    fn may_serve(&self, _: NodeKey, _: TreeDigest) -> Result<bool, ShelfError> {
        Ok(false)
    }
    fn tree(&self, _: TreeDigest) -> Result<Option<Tree>, ShelfError> {
        Ok(None)
    }
    fn has_blobs(&self, blobs: &[BlobDigest]) -> Result<Vec<bool>, ShelfError> {
        Ok(vec![false; blobs.len()])
    }
    fn blob(&self, _: BlobDigest) -> Result<Option<File>, ShelfError> {
        Ok(None)
    }
}

/// So many paths, sorted; others for another `first`.
pub fn paths(first: usize, count: usize) -> Outcome<Vec<StorePath>> {
    let path = |number: usize| {
        let mut hash = [0; 20];
        hash.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..20]);
        StorePath::from_parts(hash, &format!("package-{number}"))
    };
    let mut paths = (first..first + count).map(path).collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}

/// CPU time of this process so far, and the memory it has now in MiB.
pub fn cpu_and_memory() -> Outcome<(Duration, f64)> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let pages: f64 = fields[21].parse()?;
    Ok((Duration::from_millis(ticks * 10), pages * 4.0 / 1024.0))
}

/// Waits until all nodes together use less than a twentieth of a core, or no less than the moment before.
pub async fn quiet() -> Outcome<()> {
    let window = Duration::from_secs(2);
    let mut last = Duration::MAX;
    loop {
        let (before, _) = cpu_and_memory()?;
        tokio::time::sleep(window).await;
        let used = cpu_and_memory()?.0 - before;
        // Many nodes are never still: their connections are kept alive. It is quiet where that is all, and no less follows.
        if used < window / 20 || used > last.mul_f64(0.9) {
            return Ok(());
        }
        last = used;
    }
}

pub async fn until(what: impl AsyncFn() -> bool) {
    while !what().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
