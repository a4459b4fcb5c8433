//! Carries what a builder says of a build to its requester.
//!
//! A line of the log goes at once, unless another one went just before: then it waits a moment for more, and goes with that. A log
//! that is written line by line would else be as many pieces, each of which costs the requester some memory of its own until it
//! is read.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tvix_node_protocol::messages::{BuildControl, BuildFailure, BuildFrame, FailureKind};

use super::build::busy;
use crate::limits::{HEARTBEAT, LOG_PAUSE};
use crate::net::wire::{WireError, WireReader, WireWriter};

/// How long it is looked whether who reads no more has said why.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Longer than any build.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Why no more frames are carried.
pub(super) enum End {
    /// The last one was.
    Last,
    /// The requester has said that it does not want them.
    Cancelled,
    /// It has closed the stream.
    Closed,
}

impl End {
    /// After what came from the requester.
    fn after(said: &Result<Option<BuildControl>, WireError>) -> Self {
        match said {
            Ok(Some(BuildControl::Cancel)) => Self::Cancelled,
            Ok(None) | Err(_) => Self::Closed,
        }
    }
}

/// Carries frames to the requester, with heartbeats in between, until the last one, or until it does not
/// want them any more.
pub(super) async fn carry(
    mut reader: WireReader,
    mut writer: WireWriter,
    mut frames: mpsc::Receiver<BuildFrame>,
) -> Result<End, WireError> {
    // Whatever comes from the requester now, an end included, means that it does not want the build.
    let control = reader.receive_within::<BuildControl>(FOR_EVER);
    tokio::pin!(control);
    // From the beginning: finding out whether a request can be taken may take a while too.
    let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
    let mut accepted = false;
    // From when on more of the log may go by itself, and whether some of it waits for that.
    let (mut log_from, mut log_waits) = (Instant::now(), false);
    loop {
        let frame = tokio::select! {
            said = &mut control => return Ok(End::after(&said)),
            frame = frames.recv() => Some(frame.unwrap_or_else(|| dropped(accepted))),
            _ = heartbeat.tick() => Some(BuildFrame::Heartbeat),
            () = sleep_until(log_from), if log_waits => None,
        };
        accepted |= frame == Some(BuildFrame::Accepted);
        let last = matches!(
            frame,
            Some(BuildFrame::Refused(_) | BuildFrame::Finished { .. } | BuildFrame::Failed(_))
        );
        let (is_log, now) = (matches!(frame, Some(BuildFrame::Log { .. })), Instant::now());
        log_waits |= is_log;
        let is_due = frame.is_none();
        // What is at hand goes with it.
        let goes = is_due || frames.is_empty() && !(is_log && now < log_from);
        if goes && std::mem::take(&mut log_waits) {
            log_from = now + LOG_PAUSE;
        }
        let written = async {
            if let Some(frame) = &frame {
                writer.send(frame).await?;
            }
            match last {
                true => writer.close().await,
                false if goes => writer.flush().await,
                false => Ok(()),
            }
        };
        let written = tokio::select! {
            // Who reads slowly, or not at all, may still say something.
            said = &mut control => return Ok(End::after(&said)),
            written = written => written,
        };
        if let Err(error) = written {
            // Who has cancelled and left reads no more, and what it said may be here.
            return match timeout(LAST_WORD, &mut control).await {
                Ok(Ok(Some(BuildControl::Cancel))) => Ok(End::Cancelled),
                _ => Err(error),
            };
        }
        if last {
            return Ok(End::Last);
        }
    }
}

/// The node let go of a build without a word.
fn dropped(accepted: bool) -> BuildFrame {
    if accepted {
        BuildFrame::Failed(BuildFailure {
            kind: FailureKind::Machine,
            message: "the builder gave the build up".to_owned(),
            tail: vec![],
            folder: None,
        })
    } else {
        BuildFrame::Refused(busy("the builder let the request go; it may be shutting down"))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll};

    use futures::{AsyncRead, AsyncWrite};
    use tokio::time::sleep;
    use tvix_node_protocol::cbor;
    use tvix_node_protocol::envelope::NodeKey;

    use super::*;
    use crate::core::lock;
    use crate::limits::{BUILD_FRAMES, LOG_PIECE};
    use crate::net::wire::Wire;
    use crate::net::{Door, Traffic};

    /// What is written to a stream at once, and when.
    type Piece = (Instant, Vec<u8>);

    /// A stream on which nothing comes, and that remembers what goes.
    #[derive(Clone, Default)]
    struct Pieces(Arc<Mutex<Vec<Piece>>>);

    impl AsyncRead for Pieces {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Pieces {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            lock(&self.0).push((Instant::now(), bytes.to_vec()));
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn frames_in(mut bytes: &[u8]) -> Vec<BuildFrame> {
        let mut frames = vec![];
        while let Some((length, rest)) = bytes.split_first_chunk() {
            let (frame, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
            frames.push(cbor::from_slice(frame, LOG_PIECE).unwrap());
            bytes = rest;
        }
        frames
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_goes_at_once_and_what_follows_it_closely_goes_together() {
        const MOMENT: Duration = Duration::from_millis(1);
        let pieces = Pieces::default();
        let stream = Traffic::default().counted_serving(pieces.clone(), NodeKey([1; 32]), Door::Build);
        let wire = Wire::new(stream);
        let (sender, receiver) = mpsc::channel(BUILD_FRAMES);
        let carrying = tokio::spawn(carry(wire.reader, wire.writer, receiver));
        let say = async |frame: &BuildFrame| {
            let now = Instant::now();
            sender.send(frame.clone()).await.unwrap();
            sleep(MOMENT).await;
            now
        };
        let lines: Vec<BuildFrame> = (0..20u8)
            .map(|line| BuildFrame::Log { bytes: vec![line] })
            .collect();
        let failed = dropped(true);
        let accepted = say(&BuildFrame::Accepted).await;
        let first = say(&lines[0]).await;
        for line in &lines[1..18] {
            say(line).await;
        }
        sleep(3 * LOG_PAUSE).await;
        let alone = say(&lines[18]).await;
        say(&lines[19]).await;
        let last = say(&failed).await;
        assert!(matches!(carrying.await.unwrap(), Ok(End::Last)));
        let expected = [
            (accepted, vec![BuildFrame::Accepted]),
            (first, vec![lines[0].clone()]),
            (first + LOG_PAUSE, lines[1..18].to_vec()),
            (alone, vec![lines[18].clone()]),
            (last, vec![lines[19].clone(), failed]),
        ];
        let came: Vec<_> = lock(&pieces.0)
            .iter()
            .map(|(at, bytes)| (*at, frames_in(bytes)))
            .collect();
        let frames = |all: &[(Instant, Vec<BuildFrame>)]| -> Vec<Vec<BuildFrame>> {
            all.iter().map(|(_, frames)| frames.clone()).collect()
        };
        assert_eq!(frames(&came), frames(&expected));
        for ((at, _), (due, _)) in came.iter().zip(&expected) {
            // A clock that goes by moments.
            assert!(
                *due <= *at && *at <= *due + MOMENT,
                "{:?}",
                at.duration_since(*due)
            );
        }
    }
}
