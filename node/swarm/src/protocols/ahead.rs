//! What is read ahead for one stream that carries directories or texts out.
//!
//! A thread that may block reads, and the stream is written as fast as its peer takes it. What waits in between has room
//! for its bytes, so that peers that read slowly do not fill the memory.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tvix_node_protocol::envelope::NodeKey;

use crate::limits::CONTENT_QUEUE;
use crate::room::{Held, Room};

/// Where what has been read is taken from, each with its room, which is given back when it has been written.
pub(crate) type Ready = mpsc::Receiver<(Vec<u8>, Held)>;

/// The side that reads.
pub(crate) struct Ahead {
    room: Arc<Room>,
    peer: NodeKey,
    sender: mpsc::Sender<(Vec<u8>, Held)>,
    runtime: Handle,
}

impl Ahead {
    /// For a stream to this peer.
    pub(crate) fn new(room: Arc<Room>, peer: NodeKey) -> (Self, Ready) {
        let (sender, ready) = mpsc::channel(CONTENT_QUEUE);
        let runtime = Handle::current();
        let ahead = Self {
            room,
            peer,
            sender,
            runtime,
        };
        (ahead, ready)
    }

    /// Waits for room for what is going to be read; none where nobody writes any more. What the stream has waiting itself is
    /// written, or goes with the stream. Blocks.
    pub(crate) fn room(&self, bytes: usize) -> Option<Held> {
        self.runtime.block_on(async {
            tokio::select! {
                held = self.room.take(self.peer, bytes) => held,
                () = self.sender.closed() => None,
            }
        })
    }

    /// Hands on what was read; false where nobody writes any more. Blocks.
    pub(crate) fn send(&self, bytes: Vec<u8>, held: Held) -> bool {
        self.sender.blocking_send((bytes, held)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    /// Reads so many pieces of so many bytes on a thread; how many it has read.
    fn reads(ahead: Ahead, pieces: usize, bytes: usize) -> Arc<AtomicUsize> {
        let read = Arc::new(AtomicUsize::new(0));
        let count = read.clone();
        tokio::task::spawn_blocking(move || {
            for _ in 0..pieces {
                let Some(held) = ahead.room(bytes) else { return };
                count.fetch_add(1, Ordering::SeqCst);
                if !ahead.send(vec![0; bytes], held) {
                    return;
                }
            }
        });
        read
    }

    async fn eventually(holds: impl Fn() -> bool) {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting)
            .await
            .expect("it does not happen");
    }

    #[tokio::test]
    async fn no_more_is_read_than_has_room_whoever_does_not_take_it() {
        let room = Arc::new(Room::new(400, 200));
        let mut streams = Vec::new();
        for peer in [1, 1, 1, 2, 2, 3] {
            let (ahead, ready) = Ahead::new(room.clone(), NodeKey([peer; 32]));
            streams.push((reads(ahead, 3, 100), ready));
        }
        let all = || -> usize { streams.iter().map(|(read, _)| read.load(Ordering::SeqCst)).sum() };
        eventually(|| all() == 4).await;
        // Those who wait would have gone on long ago.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!((all(), room.free()), (4, 0));
        // Each goes on as the others are written.
        let written = streams.into_iter().map(async |(_, mut ready)| {
            let mut pieces = 0;
            while ready.recv().await.is_some() {
                pieces += 1;
            }
            pieces
        });
        let written = tokio::time::timeout(Duration::from_secs(60), futures::future::join_all(written)).await;
        assert_eq!(written.expect("they wait for ever"), [3; 6]);
        eventually(|| room.free() == 400).await;
    }

    #[tokio::test]
    async fn who_waits_for_room_ends_when_nobody_writes_any_more() {
        let room = Arc::new(Room::new(100, 100));
        let _elsewhere = room.take(NodeKey([2; 32]), 100).await.unwrap();
        let (ahead, ready) = Ahead::new(room, NodeKey([1; 32]));
        let reading = tokio::task::spawn_blocking(move || ahead.room(1).is_none());
        drop(ready);
        let ended = tokio::time::timeout(Duration::from_secs(60), reading).await;
        assert!(ended.expect("it waits for ever").unwrap());
    }
}
