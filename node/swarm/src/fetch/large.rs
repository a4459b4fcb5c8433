//! Fetching a large file in pieces, from whoever has it, through the iroh-blobs protocol.
//!
//! What has arrived is on the disk together with the hashes that prove it, so after a break only the rest
//! is fetched.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bao_tree::io::BaoContentItem;
use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::valid_ranges;
use bao_tree::{BaoTree, ChunkNum, ChunkRanges};
use iroh_blobs::get::StreamPair;
use iroh_blobs::get::fsm::{AtConnected, BlobContentNext, ConnectedNext, DecodeError, RequestCounters};
use iroh_blobs::protocol::GetRequest;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::BlobQuestion;
use tvix_node_protocol::tree::BlobDigest;

use super::arrival::{Arrival, SpoolError, io_error};
use super::growing::Growing;
use super::plan::{CHUNK, Signs, Turn};
use super::provider::{CUT_SHORT, ProviderError};
use super::{Work, coming};
use crate::call;
use crate::core::{blocking, lock};
use crate::limits::{READ_WHILE_COMING, WRITE_BATCH};
use crate::net::Door;
use crate::protocols::blob::{BlobReader, BlobWriter};
use crate::protocols::outboard::BLOCK;

/// A large file that is arriving.
#[derive(Debug)]
pub(crate) struct LargeFile {
    blob: BlobDigest,
    size: u64,
    data: Arc<File>,
    hashes: File,
    arrival: Arc<Arrival>,
    /// Pieces that have not come yet.
    pieces: AtomicUsize,
    /// For who reads it meanwhile.
    growing: Option<Arc<Growing>>,
    /// From then on it is another's, and nothing is written that would only be the same again.
    complete: RwLock<bool>,
}

impl LargeFile {
    /// Opens the file and its hashes; answers also what is missing, in chunks. Blocks.
    pub(crate) fn open(
        arrival: &Arc<Arrival>,
        blob: BlobDigest,
        size: u64,
    ) -> Result<(Self, Vec<Range<u64>>), SpoolError> {
        arrival.make_folder()?;
        let (part, hashes_path) = arrival.part(blob);
        let open = |path: &std::path::Path, length| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .map_err(io_error("open", path))?;
            let before = file.metadata().map_err(io_error("look at", path))?.len();
            file.set_len(length).map_err(io_error("resize", path))?;
            Ok((file, before))
        };
        let tree = BaoTree::new(size, BLOCK);
        let (data, before) = open(&part, size)?;
        let (hashes, _) = open(&hashes_path, tree.outboard_size())?;
        let mut file = Self {
            blob,
            size,
            data: Arc::new(data),
            hashes,
            arrival: arrival.clone(),
            pieces: AtomicUsize::new(0),
            growing: None,
            complete: RwLock::new(false),
        };
        let there = if before == 0 {
            ChunkRanges::empty()
        } else {
            file.valid(&part)?
        };
        if size > READ_WHILE_COMING {
            let growing = Growing::new((blob, size), &part, file.data.clone(), there.clone());
            arrival.grows(blob, growing.clone());
            file.growing = Some(growing);
        }
        let missing = ChunkRanges::from(ChunkNum(0)..tree.chunks()) - there;
        // A set that ends has an even number of boundaries.
        let (ranges, _) = missing.boundaries().as_chunks::<2>();
        let missing = ranges.iter().map(|[start, end]| start.0..end.0).collect();
        Ok((file, missing))
    }

    fn outboard(&self) -> PreOrderOutboard<&File> {
        PreOrderOutboard {
            root: bao_tree::blake3::Hash::from_bytes(self.blob.0),
            tree: BaoTree::new(self.size, BLOCK),
            data: &self.hashes,
        }
    }

    /// What of the file is proven by its hashes. Reads all that is there.
    fn valid(&self, part: &std::path::Path) -> Result<ChunkRanges, SpoolError> {
        let mut valid = ChunkRanges::empty();
        let all = ChunkRanges::all();
        for range in valid_ranges(self.outboard(), &*self.data, &all) {
            valid |= ChunkRanges::from(range.map_err(io_error("read", part))?);
        }
        Ok(valid)
    }

    /// Bytes in these chunks; the last of a file may be short.
    pub(crate) fn bytes_in(&self, chunks: &Range<u64>) -> u64 {
        let end = (chunks.end * CHUNK).min(self.size);
        end.saturating_sub(chunks.start * CHUNK)
    }

    /// How many pieces are to come.
    pub(crate) fn expect(&self, pieces: usize) {
        self.pieces.store(pieces, Ordering::Release);
    }

    /// Writes what has been verified. Blocks.
    fn write(&self, items: &[BaoContentItem]) -> Result<(), SpoolError> {
        let complete = self.complete.read().unwrap_or_else(PoisonError::into_inner);
        if *complete {
            return Ok(());
        }
        let (part, hashes) = self.arrival.part(self.blob);
        let tree = BaoTree::new(self.size, BLOCK);
        let mut written = ChunkRanges::empty();
        for item in items {
            match item {
                BaoContentItem::Leaf(leaf) => {
                    self.data
                        .write_all_at(&leaf.data, leaf.offset)
                        .map_err(io_error("write", &part))?;
                    let end = (leaf.offset + leaf.data.len() as u64).div_ceil(CHUNK);
                    written |= ChunkRanges::from(ChunkNum(leaf.offset / CHUNK)..ChunkNum(end));
                }
                BaoContentItem::Parent(parent) => {
                    // Pairs inside a group of 16 KiB have no place, and need none.
                    let Some(place) = tree.pre_order_offset(parent.node) else {
                        continue;
                    };
                    let mut pair = [0; 64];
                    pair[..32].copy_from_slice(parent.pair.0.as_bytes());
                    pair[32..].copy_from_slice(parent.pair.1.as_bytes());
                    self.hashes
                        .write_all_at(&pair, place * 64)
                        .map_err(io_error("write", &hashes))?;
                }
            }
        }
        if let Some(growing) = &self.growing {
            growing.came(written);
        }
        Ok(())
    }

    /// A piece became two.
    pub(crate) fn one_more_piece(&self) {
        self.pieces.fetch_add(1, Ordering::AcqRel);
    }

    /// One more piece is complete; with the last one the file is. Blocks.
    fn piece_came(&self) -> Result<(), SpoolError> {
        if self.pieces.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self.complete.write().unwrap_or_else(PoisonError::into_inner) = true;
            self.arrival.complete(self.blob)?;
        }
        Ok(())
    }
}

/// Fetches one piece from one provider, as long as it is not brought by another.
pub(crate) async fn fetch(
    work: &Work,
    provider: NodeKey,
    file: &Arc<LargeFile>,
    (turn, signs, chunks): (Turn, Signs, Range<u64>),
) -> Result<(), ProviderError> {
    let (root, blob) = (work.arrival.root(), file.blob);
    let ended = |what: String| ProviderError::Ended(what);
    let mut wire = work.core.open_at_provider(provider, Door::Blob).await?;
    let at = call::at(provider, Door::Blob);
    // The request goes with the question, one round trip earlier than after the answer.
    wire.writer.send(&BlobQuestion { root, blob }).await.map_err(at)?;
    let ranges = ChunkRanges::from(ChunkNum(chunks.start)..ChunkNum(chunks.end));
    let request = GetRequest::blob_ranges(blob.0.into(), ranges);
    let (answered, reader) = BlobReader::after_the_answer();
    let pair = StreamPair::new(0, reader, BlobWriter::new(wire.writer));
    let connected = AtConnected::new(pair.t0, pair.recv, pair.send, request, RequestCounters::default());
    let start = match connected.next().await.map_err(|error| ended(error.to_string()))? {
        ConnectedNext::StartRoot(start) => start,
        ConnectedNext::StartChild(_) | ConnectedNext::Closing(_) => {
            return Err(ended("nothing was asked".to_owned()));
        }
    };
    coming(wire.reader.receive().await.map_err(at)?)?;
    answered.send(wire.reader).ok();
    let (mut content, size) = start
        .next()
        .next()
        .await
        .map_err(|error| ended(error.to_string()))?;
    if size != file.size {
        let wanted = file.size;
        return Err(ProviderError::Lied(format!(
            "the file {blob} has {size} bytes, not {wanted}"
        )));
    }
    let (mut items, mut bytes, mut reached) = (vec![], 0, chunks.start);
    let mut left = chunks;
    // What is written counts, for the plan and for who watches. The end may have come nearer; or another one brings it all by
    // now, and then this is over.
    let reach = |reached: u64, left: &mut Range<u64>| {
        let Some(now) = lock(&work.plan).reached(turn, reached) else {
            return false;
        };
        work.report
            .came(provider, file.bytes_in(&(left.start..now.start)));
        *left = now;
        true
    };
    loop {
        signs.waits();
        let next = content.next().await;
        signs.came();
        let (more, item) = match next {
            BlobContentNext::Done(_) => break,
            BlobContentNext::More((more, item)) => (more, item),
        };
        content = more;
        match item {
            Ok(BaoContentItem::Leaf(leaf)) => {
                work.report.moves(leaf.data.len());
                work.core.throttles.download.pass(leaf.data.len()).await;
                bytes += leaf.data.len();
                reached = (leaf.offset + leaf.data.len() as u64).div_ceil(CHUNK);
                items.push(BaoContentItem::Leaf(leaf));
            }
            Ok(parent) => items.push(parent),
            Err(error) => {
                write(file, std::mem::take(&mut items)).await?;
                if !reach(reached, &mut left) {
                    return Ok(());
                }
                if left.is_empty() {
                    break;
                }
                return Err(decode_error(error));
            }
        }
        if bytes >= WRITE_BATCH {
            bytes = 0;
            write(file, std::mem::take(&mut items)).await?;
            if !reach(reached, &mut left) {
                return Ok(());
            }
            if left.is_empty() {
                break;
            }
        }
    }
    write(file, items).await?;
    if !reach(reached, &mut left) {
        return Ok(());
    }
    if !left.is_empty() {
        return Err(ended("a part is missing".to_owned()));
    }
    let file = file.clone();
    match blocking(move || file.piece_came()).await {
        Ok(came) => Ok(came?),
        Err(lost) => Err(ended(lost.to_string())),
    }
}

async fn write(file: &Arc<LargeFile>, items: Vec<BaoContentItem>) -> Result<(), ProviderError> {
    let file = file.clone();
    match blocking(move || file.write(&items)).await {
        Ok(written) => Ok(written?),
        Err(lost) => Err(ProviderError::Ended(lost.to_string())),
    }
}

/// Whether a break or a lie.
fn decode_error(error: DecodeError) -> ProviderError {
    match error {
        DecodeError::ParentHashMismatch { .. } | DecodeError::LeafHashMismatch { .. } => {
            ProviderError::Lied(error.to_string())
        }
        // The library's words for a stream that is over too early.
        DecodeError::ChunkNotFound { .. }
        | DecodeError::ParentNotFound { .. }
        | DecodeError::LeafNotFound { .. } => ProviderError::Ended(CUT_SHORT.to_owned()),
        error => ProviderError::Ended(error.to_string()),
    }
}
