use std::future::poll_fn;
use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _};
use libp2p::core::muxing::StreamMuxerExt as _;
use yamux::{ConnectionError, FrameDecodeError, Mode};

use super::*;
use crate::limits::STREAM_WINDOW;
use crate::net::tls::pipe::Pipe;
use crate::net::yamux::{Muxer, Yamux};

/// A frame as it comes over the wire.
fn frame(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    let mut header = vec![0, kind];
    header.extend(flags.to_be_bytes());
    header.extend(stream.to_be_bytes());
    header.extend(length.to_be_bytes());
    header
}

/// One with so many bytes in it.
fn data(flags: u16, stream: u32, bytes: u32) -> Vec<u8> {
    let mut frame = frame(DATA, flags, stream, bytes);
    frame.resize(HEADER + bytes as usize, 7);
    frame
}

const WINDOW_UPDATE: u8 = 1;
const PING: u8 = 2;

#[test]
fn frames_are_found_in_whatever_pieces_they_come() {
    let all = [
        data(SYN, 1, 0),
        frame(WINDOW_UPDATE, 0, 1, 1 << 20),
        data(0, 1, 1),
        frame(PING, 2, 0, 77),
        data(RST, 3, 40),
        data(0, 0xffff_ffff, 300),
        frame(GO_AWAY, 0, 0, 0),
    ]
    .concat();
    let is = |stream, first, bytes| Frame { stream, first, bytes };
    let expected = [
        is(1, true, 0),
        is(1, false, 0),
        is(1, false, 1),
        is(0, false, 0),
        is(3, false, 0),
        is(0xffff_ffff, false, 300),
        is(0, false, 0),
    ];
    for piece in (1..40).chain([all.len()]) {
        let (mut parser, mut found) = (Parser::new(), vec![]);
        for come in all.chunks(piece) {
            let taken = parser.take(come, |frame| {
                found.push(frame);
                Ok(())
            });
            assert_eq!(taken, Ok(()));
        }
        assert_eq!(found, expected, "in pieces of {piece}");
        assert!(parser.is_between_frames());
    }
}

#[test]
fn where_there_are_no_frames_none_are_looked_for() {
    for header in [
        [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        [0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        [255; HEADER],
    ] {
        let mut parser = Parser::new();
        let come = [&header[..], &data(0, 1, 1)].concat();
        parser.take(&come, |frame| panic!("{frame:?}")).unwrap();
        assert!(!parser.is_between_frames());
    }
}

/// Books of a connection that may cost so much, with these streams.
fn books(most: usize, streams: &[u32]) -> (Ledger, Vec<u64>) {
    let ledger = Ledger::new(most);
    let open = |stream: &u32| ledger.with(|books| books.open(*stream, 0));
    let serials = streams.iter().map(open).collect();
    (ledger, serials)
}

fn comes(ledger: &Ledger, stream: u32, bytes: u32) -> Result<(), TooManyFrames> {
    let first = false;
    let frame = Frame { stream, first, bytes };
    ledger.with(|books| books.comes(frame))
}

fn cost(ledger: &Ledger) -> usize {
    ledger.with(|books| {
        let each: usize = books.streams.values().map(Kept::cost).sum();
        assert_eq!(each, books.cost);
        books.cost
    })
}

#[test]
fn what_has_not_been_read_costs_and_the_queue_it_was_in_as_long_as_its_stream_is_there() {
    const EACH: usize = FRAME_ALLOCATION + FRAME_SLOT;
    let (ledger, serials) = books(3 * EACH, &[1, 3]);
    let read = |bytes| ledger.with(|books| books.change(1, Some(serials[0]), |kept| kept.is_read(bytes)));
    comes(&ledger, 1, 10).unwrap();
    comes(&ledger, 1, 0).unwrap();
    comes(&ledger, 1, 10).unwrap();
    // Of a stream that there is not.
    comes(&ledger, 5, 10).unwrap();
    assert_eq!(cost(&ledger), 2 * EACH);
    read(9);
    assert_eq!(cost(&ledger), 2 * EACH, "none of them to its end");
    read(2);
    assert_eq!(cost(&ledger), 2 * FRAME_SLOT + FRAME_ALLOCATION);
    read(9);
    assert_eq!(cost(&ledger), 2 * FRAME_SLOT);
    for _ in 0..100 {
        comes(&ledger, 1, 1).unwrap();
        read(1);
    }
    assert_eq!(cost(&ledger), 2 * FRAME_SLOT);
    comes(&ledger, 3, 1).unwrap();
    comes(&ledger, 1, 1).unwrap();
    comes(&ledger, 1, 1).unwrap();
    assert_eq!(cost(&ledger), 3 * EACH);
    let error = comes(&ledger, 3, 1).unwrap_err();
    assert!(error.to_string().contains("small pieces"), "{error}");
}

#[test]
fn a_stream_that_nobody_has_costs_until_yamux_has_taken_note() {
    let (ledger, serials) = books(1 << 20, &[1]);
    comes(&ledger, 1, 1).unwrap();
    let full = cost(&ledger);
    ledger.with(|books| books.drop_stream(1, serials[0]));
    let next_frame = |stuck| ledger.with(|books| books.next_frame(stuck));
    // It may have been dropped after Yamux looked.
    next_frame(false);
    assert_eq!(cost(&ledger), full);
    next_frame(true);
    next_frame(true);
    assert_eq!(cost(&ledger), full, "Yamux has something else to do first");
    next_frame(false);
    assert_eq!(cost(&ledger), 0);
}

/// Yamux goes through its streams as it writes, though there is always more to write.
#[test]
fn a_stream_that_nobody_has_costs_no_longer_than_it_takes_to_come_to_its_turn() {
    let (ledger, serials) = books(1 << 20, &[1, 3]);
    comes(&ledger, 1, 1).unwrap();
    let full = cost(&ledger);
    ledger.with(|books| books.drop_stream(1, serials[0]));
    let sends = |frames| {
        ledger.with(|books| {
            books.sent += frames;
            books.next_frame(true);
        });
    };
    sends(3 * FRAME_TURNS - 1);
    sends(0);
    assert_eq!(cost(&ledger), full);
    sends(1);
    assert_eq!(cost(&ledger), 0);
}

#[test]
fn who_has_the_number_of_a_stream_next_has_nothing_to_do_with_it() {
    let (ledger, serials) = books(1 << 20, &[1]);
    comes(&ledger, 1, 1).unwrap();
    let opening = Frame {
        stream: 1,
        first: true,
        bytes: 5,
    };
    ledger.with(|books| books.comes(opening)).unwrap();
    let next = ledger.with(|books| books.open(1, 5));
    comes(&ledger, 1, 5).unwrap();
    let both = cost(&ledger);
    ledger.with(|books| {
        books.change(1, Some(serials[0]), |kept| kept.is_read(5));
        books.drop_stream(1, serials[0]);
        books.next_frame(false);
        books.next_frame(false);
    });
    assert_eq!(cost(&ledger), both);
    ledger.with(|books| books.change(1, Some(next), |kept| kept.is_read(5)));
    assert_eq!(cost(&ledger), both - FRAME_ALLOCATION);
}

/// One end of a connection that keeps so much apart, and the other end's wire.
fn raw(most: usize) -> (Pipe, Muxer<Pipe>) {
    let (here, there) = Pipe::pair(1 << 20, 1 << 16);
    let yamux = Yamux {
        frames: most,
        ..Yamux::new()
    };
    (here, yamux.over(there, Mode::Server))
}

/// Keeps a connection going, until it ends.
async fn go_on(muxer: &mut Muxer<Pipe>) -> ConnectionError {
    loop {
        if let Err(error) = poll_fn(|context| muxer.poll_unpin(context)).await {
            return error;
        }
    }
}

/// Why a connection ended: its frames are too many.
fn is_about_frames(error: &ConnectionError) -> bool {
    let ConnectionError::Decode(FrameDecodeError::Io(error)) = error else {
        return false;
    };
    let inner = error.get_ref();
    inner.is_some_and(|inner| inner.downcast_ref::<TooManyFrames>().is_some())
}

#[tokio::test]
async fn a_connection_with_too_many_small_frames_that_nobody_reads_ends() {
    const FRAMES: usize = 1000;
    let (mut wire, mut muxer) = raw(FRAMES * (FRAME_ALLOCATION + FRAME_SLOT));
    wire.write_all(&data(SYN, 1, 1)).await.unwrap();
    for _ in 1..FRAMES {
        wire.write_all(&data(0, 1, 1)).await.unwrap();
    }
    assert!(go_on(&mut muxer).now_or_never().is_none(), "it may have so many");
    wire.write_all(&data(0, 1, 1)).await.unwrap();
    let error = tokio::time::timeout(Duration::from_secs(30), go_on(&mut muxer)).await;
    let error = error.expect("it goes on");
    assert!(is_about_frames(&error), "{error}");
}

/// A window may be full of what comes in frames as Yamux makes them, on each stream.
#[tokio::test]
async fn full_windows_of_large_frames_cost_little() {
    const STREAMS: u32 = 20;
    let pieces = STREAM_WINDOW >> 14;
    let (mut wire, mut muxer) = raw(STREAMS as usize * pieces * (FRAME_ALLOCATION + FRAME_SLOT));
    for stream in 0..STREAMS {
        for piece in 0..pieces {
            let flags = if piece == 0 { SYN } else { 0 };
            let sent = data(flags, 2 * stream + 1, 1 << 14);
            wire.write_all(&sent).await.unwrap();
            assert!(go_on(&mut muxer).now_or_never().is_none());
        }
    }
}

#[tokio::test]
async fn who_is_read_may_send_as_many_small_frames_as_it_likes() {
    const FRAMES: usize = 100_000;
    let (one, other) = Pipe::pair(1 << 14, 1 << 12);
    let mut one = Yamux::new().over(one, Mode::Client);
    // Far less than so many frames would cost.
    let bounded = Yamux {
        frames: FRAMES * FRAME_ALLOCATION / 10,
        ..Yamux::new()
    };
    let mut other = bounded.over(other, Mode::Server);
    let mut writer = poll_fn(|context| one.poll_outbound_unpin(context)).await.unwrap();
    let passing = async {
        let write = async {
            for _ in 0..FRAMES {
                writer.write_all(b"ab").await.unwrap();
            }
            writer.flush().await.unwrap();
        };
        let read = async {
            let mut reader = poll_fn(|context| other.poll_inbound_unpin(context))
                .await
                .unwrap();
            let (mut come, mut buffer) = (0, [0; 1000]);
            while come < 2 * FRAMES {
                tokio::select! {
                    error = go_on(&mut other) => panic!("{error}"),
                    count = reader.read(&mut buffer) => come += count.unwrap(),
                }
            }
        };
        futures::join!(write, read);
    };
    tokio::select! {
        error = go_on(&mut one) => panic!("{error}"),
        () = passing => {}
    }
}

/// What is dropped unread is not counted any more, once it is gone.
#[tokio::test]
async fn streams_that_are_dropped_unread_leave_room_for_others() {
    const FRAMES: usize = 100;
    let (mut wire, mut muxer) = raw(FRAMES * (FRAME_ALLOCATION + FRAME_SLOT));
    for stream in 0..10 {
        wire.write_all(&data(SYN, 2 * stream + 1, 1)).await.unwrap();
        for _ in 1..FRAMES {
            wire.write_all(&data(0, 2 * stream + 1, 1)).await.unwrap();
        }
        assert!(go_on(&mut muxer).now_or_never().is_none());
        let come = poll_fn(|context| muxer.poll_inbound_unpin(context)).now_or_never();
        drop(come.unwrap().unwrap());
        assert!(go_on(&mut muxer).now_or_never().is_none());
    }
}

/// Yamux says what is wrong with it.
#[tokio::test]
async fn what_is_no_frame_ends_a_connection_as_without_us() {
    let (mut wire, mut muxer) = raw(1 << 20);
    wire.write_all(&[9; 64]).await.unwrap();
    let error = go_on(&mut muxer).now_or_never().unwrap();
    assert!(
        matches!(error, ConnectionError::Decode(FrameDecodeError::Header(_))),
        "{error}"
    );
}

/// A connection on which so many small frames may be unread, and which always has more to write than goes.
struct Busy {
    wire: Pipe,
    muxer: Muxer<Pipe>,
    writer: Counted,
}

impl Busy {
    const FRAMES: u32 = 100;
    /// Yamux's largest frames: a few fill what is put together before it goes.
    const WRITTEN: usize = 1 << 14;

    /// The wire holds so many bytes.
    async fn over(holds: usize) -> Self {
        let (wire, there) = Pipe::pair(holds, holds);
        let yamux = Yamux {
            frames: Self::FRAMES as usize * (FRAME_ALLOCATION + FRAME_SLOT),
            ..Yamux::new()
        };
        let mut muxer = yamux.over(there, Mode::Server);
        let writer = poll_fn(|context| muxer.poll_outbound_unpin(context))
            .await
            .unwrap();
        Self { wire, muxer, writer }
    }

    fn go_on(&mut self) -> Option<ConnectionError> {
        go_on(&mut self.muxer).now_or_never()
    }

    /// Writes as much as is taken.
    fn write(&mut self) {
        while let Some(written) = self.writer.write(&[7; Self::WRITTEN]).now_or_never() {
            written.unwrap();
        }
        assert!(self.go_on().is_none());
    }

    /// The small frame of this number comes. Ten are for each stream, which is dropped then. Why the connection ended, if it did.
    async fn comes(&mut self, number: u32) -> Option<ConnectionError> {
        let stream = 2 * (number / 10) + 1;
        let flags = if number.is_multiple_of(10) { SYN } else { 0 };
        self.wire.write_all(&data(flags, stream, 1)).await.unwrap();
        let ended = self.go_on();
        if ended.is_none() && number % 10 == 9 {
            let come = poll_fn(|context| self.muxer.poll_inbound_unpin(context)).now_or_never();
            drop(come.unwrap().unwrap());
            return self.go_on();
        }
        ended
    }
}

/// Yamux keeps what is dropped until it can take note, and that is after what it has to write.
#[tokio::test]
async fn streams_that_are_dropped_unread_count_as_long_as_the_peer_reads_nothing() {
    let mut busy = Busy::over(64).await;
    for _ in 0..20 {
        busy.write();
    }
    // What opens a stream is counted when that is there, which the next frame finds.
    let last = Busy::FRAMES + 1;
    for number in 0..last {
        assert!(busy.comes(number).await.is_none(), "{number}");
    }
    let error = busy.comes(last).await.expect("it goes on");
    assert!(is_about_frames(&error), "{error}");
}

/// A peer that reads, and is always sent more than it has read.
#[tokio::test]
async fn streams_that_are_dropped_unread_leave_room_for_others_though_there_is_always_more_to_write() {
    const READ: u32 = 1 << 16;
    let mut busy = Busy::over(READ as usize).await;
    let mut buffer = vec![0; READ as usize];
    for number in 0..10 * Busy::FRAMES {
        busy.write();
        let ended = busy.comes(number).await;
        assert!(ended.is_none(), "{number}: {ended:?}");
        let read = busy.wire.read(&mut buffer).now_or_never();
        assert_eq!(read.unwrap().unwrap(), buffer.len(), "there is always more");
        // So that the window does not end it.
        let more = frame(WINDOW_UPDATE, 0, busy.writer.held.stream, READ);
        busy.wire.write_all(&more).await.unwrap();
    }
}
