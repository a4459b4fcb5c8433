//! One connection: bytes between the build's end, in the [`Stack`], and the socket outside.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::stack::{Flow, Stack};
use crate::limits::{NAT_PIECE, NAT_PIECES};

/// What comes from outside.
enum Outside {
    /// None: the other side has said all.
    Bytes(Vec<u8>),
    /// The connection broke.
    Broken,
}

/// The node's side of a connection that is under way.
pub(super) struct Carried {
    /// Gone when the build has said all it has to say.
    up: Option<mpsc::Sender<Vec<u8>>>,
    down: mpsc::Receiver<Outside>,
    /// Received, and not taken by the build yet.
    pending: Vec<u8>,
}

impl Carried {
    /// Carries bytes until both sides have ended or one is gone. `wake` hears of every step.
    pub(super) fn start(stream: TcpStream, wake: Arc<Notify>, tasks: &mut JoinSet<()>) -> Self {
        let (up, mut from_build) = mpsc::channel::<Vec<u8>>(NAT_PIECES);
        let (to_build, down) = mpsc::channel(NAT_PIECES);
        tasks.spawn(async move {
            let (mut reader, mut writer) = stream.into_split();
            let upwards = async {
                while let Some(bytes) = from_build.recv().await {
                    wake.notify_one();
                    // Whether it takes nothing more or is gone is seen by what comes from there.
                    if writer.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                let _gone = writer.shutdown().await;
            };
            let downwards = async {
                loop {
                    let mut bytes = vec![0; NAT_PIECE];
                    let (outside, last) = match reader.read(&mut bytes).await {
                        Ok(read) => {
                            bytes.truncate(read);
                            (Outside::Bytes(bytes), read == 0)
                        }
                        Err(_) => (Outside::Broken, true),
                    };
                    // Where nobody takes it, the build's side is gone.
                    let taken = to_build.send(outside).await.is_ok();
                    wake.notify_one();
                    if last || !taken {
                        return;
                    }
                }
            };
            tokio::join!(upwards, downwards);
        });
        Self {
            up: Some(up),
            down,
            pending: Vec::new(),
        }
    }

    /// Moves what can be moved. Whether the connection still is one.
    pub(super) fn exchange(&mut self, stack: &mut Stack, flow: Flow) -> bool {
        if let Some(up) = &self.up {
            while let Ok(place) = up.try_reserve() {
                match stack.receive(flow, NAT_PIECE) {
                    Some(bytes) if !bytes.is_empty() => place.send(bytes),
                    _ => break,
                }
            }
            if stack.has_ended(flow) {
                self.up = None;
            }
        }
        loop {
            if !self.pending.is_empty() {
                let taken = stack.send(flow, &self.pending);
                self.pending.drain(..taken);
                if !self.pending.is_empty() {
                    break;
                }
            }
            match self.down.try_recv() {
                Ok(Outside::Bytes(bytes)) if bytes.is_empty() => stack.close(flow),
                Ok(Outside::Bytes(bytes)) => self.pending = bytes,
                Ok(Outside::Broken) => stack.abort(flow),
                Err(_nothing_now) => break,
            }
        }
        let over = stack.is_over(flow);
        if over {
            stack.forget(flow);
        }
        !over
    }
}
