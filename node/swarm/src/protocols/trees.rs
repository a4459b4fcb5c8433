//! Small trees, many in one answer.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::{PACKED_TREE, SMALL_TREE, SMALL_TREE_FILES, TREES_BYTES};
use tvix_node_protocol::messages::{ServeAnswer, TREE_APART, TREE_FOLLOWS, TREES_END, TreesQuestion};
use tvix_node_protocol::packed::Packed;
use tvix_node_protocol::tree::TreeDigest;

use super::serving::{TreeWalk, lend, small_file};
use crate::core::{Core, lock};
use crate::net::wire::{Wire, WireError};
use crate::shelf::{Shelf, ShelfError};

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let question: TreesQuestion = wire.reader.receive().await?;
    let Some(roots) = question.roots().filter(|roots| is_each_once(roots)) else {
        return wire.answer(&ServeAnswer::NotHere).await;
    };
    // It tells of each whether it is here for the peer.
    let amount = u32::try_from(roots.len()).unwrap_or(u32::MAX);
    if !lock(&core.allowance).take(peer, amount, core.team.now()) {
        return wire.answer(&ServeAnswer::Busy).await;
    }
    // The whole answer is in memory.
    let Some(_place) = core.serving.place(peer).await else {
        return wire.answer(&ServeAnswer::Busy).await;
    };
    let answer = core
        .ask_shelf(move |shelf| Ok(Answer::to(shelf, peer, &roots)))
        .await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            tracing::error!(%error, "small trees could not be read for a peer");
            return wire.answer(&ServeAnswer::Broken).await;
        }
    };
    wire.writer.send(&ServeAnswer::Coming).await?;
    for frame in &answer.frames {
        wire.writer
            .send_small_frame(frame, &core.throttles.upload)
            .await?;
    }
    wire.writer.close().await
}

fn is_each_once(roots: &[TreeDigest]) -> bool {
    roots.iter().collect::<HashSet<_>>().len() == roots.len()
}

/// What is sent.
struct Answer {
    frames: Vec<Vec<u8>>,
    /// What has been read for it, sent or not.
    read: usize,
}

/// Ends the reading of one tree.
enum End {
    /// It does not come this way.
    Apart,
    Failed(ShelfError),
}

impl From<ShelfError> for End {
    fn from(error: ShelfError) -> Self {
        Self::Failed(error)
    }
}

impl Answer {
    /// A frame for each tree, until there are too many bytes. Blocks.
    fn to(shelf: &dyn Shelf, peer: NodeKey, roots: &[TreeDigest]) -> Self {
        let mut answer = Self {
            frames: Vec::with_capacity(roots.len()),
            read: 0,
        };
        for root in roots {
            if answer.read > TREES_BYTES {
                answer.frames.push(vec![TREES_END]);
                break;
            }
            let mut frame = vec![TREE_FOLLOWS];
            match answer.pack(shelf, peer, *root) {
                Ok(packed) => packed.append_to(&mut frame),
                Err(End::Apart) => frame = vec![TREE_APART],
                Err(End::Failed(error)) => {
                    tracing::error!(%root, %error, "a small tree could not be read for a peer");
                    frame = vec![TREE_APART];
                }
            }
            answer.frames.push(frame);
        }
        answer
    }

    /// A tree, if this peer may have it, it is here as a whole, and it is small.
    fn pack(&mut self, shelf: &dyn Shelf, peer: NodeKey, root: TreeDigest) -> Result<Packed, End> {
        let _loan = lend(shelf, peer, root)?.ok_or(End::Apart)?;
        let mut walk = TreeWalk::new(root);
        let (mut directories, mut sizes) = (Vec::new(), BTreeMap::new());
        let mut bytes = 0;
        while let Some(digest) = walk.next() {
            // Before it is read.
            let size = shelf.tree_size(digest)?.ok_or(End::Apart)?;
            bytes += size + size_of::<u32>();
            if bytes > PACKED_TREE {
                return Err(End::Apart);
            }
            let tree = shelf.tree(digest)?.ok_or(End::Apart)?;
            self.read += size;
            walk.take(&tree);
            sizes.extend(tree.files());
            directories.push((digest, tree.to_bytes()));
            let size = sizes.values().fold(0_u64, |all, size| all.saturating_add(*size));
            let small = size <= SMALL_TREE && sizes.len() <= SMALL_TREE_FILES;
            if !small || size > (PACKED_TREE - bytes) as u64 {
                return Err(End::Apart);
            }
        }
        let mut files = BTreeMap::new();
        for (blob, size) in sizes {
            // Also where it is not what it should be.
            self.read += usize::try_from(size).unwrap_or(usize::MAX);
            let content = small_file(shelf, blob, size)?.ok_or(End::Apart)?;
            files.insert(blob, content);
        }
        Ok(Packed { directories, files })
    }
}
