//! Messages on a stream: a length in four bytes, least significant first, then so many bytes.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use futures::io::{BufReader, BufWriter};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tvix_node_protocol::cbor::{self, CborError};
use tvix_node_protocol::messages::Message;

use super::caps::Throttle;
use super::counters::Counted;
use crate::limits::{ANSWER_TIME, READ_AHEAD, SHARES, STREAM_BUFFER};

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream broke.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// Larger than the message may be.
    #[error("a message of {size} bytes, more than the {limit} allowed")]
    TooLarge {
        /// Its size.
        size: usize,
        /// What is allowed.
        limit: usize,
    },
    /// Not what was expected.
    #[error("not the message expected: {0}")]
    Encoding(#[from] CborError),
    /// Nothing came for too long.
    #[error("no answer for {} s", .0.as_secs())]
    Silent(Duration),
    /// The peer does not answer the question.
    #[error("the question is refused: {0}")]
    Refused(String),
    /// The peer closed the stream where an answer was due.
    #[error("the peer closed the stream instead of answering")]
    Closed,
}

type BoxedRead = Pin<Box<dyn AsyncRead + Send>>;
type BoxedWrite = Pin<Box<dyn AsyncWrite + Send>>;

/// The side one reads from.
pub(crate) struct WireReader(BufReader<BoxedRead>);

/// The side one writes to. Nothing leaves before [`WireWriter::flush`].
pub(crate) struct WireWriter(BufWriter<BoxedWrite>);

/// Both sides of a stream.
pub(crate) struct Wire {
    pub(crate) reader: WireReader,
    pub(crate) writer: WireWriter,
}

impl Wire {
    pub(crate) fn new<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: Counted<S>) -> Self {
        let (reader, writer) = stream.split();
        Self {
            reader: WireReader(BufReader::with_capacity(READ_AHEAD, Box::pin(reader))),
            writer: WireWriter(BufWriter::with_capacity(STREAM_BUFFER, Box::pin(writer))),
        }
    }

    /// Sends a question and waits for the answer.
    pub(crate) async fn ask<Q: Message, A: Message>(&mut self, question: &Q) -> Result<A, WireError> {
        self.writer.send(question).await?;
        self.writer.flush().await?;
        self.reader.receive().await
    }

    /// Sends an answer and ends the stream.
    pub(crate) async fn answer<A: Message>(mut self, answer: &A) -> Result<(), WireError> {
        self.writer.send(answer).await?;
        self.writer.close().await
    }
}

impl WireReader {
    /// The next message; an end of the stream is an error.
    pub(crate) async fn receive<M: Message>(&mut self) -> Result<M, WireError> {
        self.receive_or_end().await?.ok_or(WireError::Closed)
    }

    /// The next message, or none where the stream ends before it.
    pub(crate) async fn receive_or_end<M: Message>(&mut self) -> Result<Option<M>, WireError> {
        self.receive_within(ANSWER_TIME).await
    }

    /// As [`WireReader::receive_or_end`], with another patience.
    pub(crate) async fn receive_within<M: Message>(
        &mut self,
        time: Duration,
    ) -> Result<Option<M>, WireError> {
        match self.size_within(M::LIMIT, time).await? {
            Some(size) => Ok(Some(self.message_within(size, time).await?)),
            None => Ok(None),
        }
    }

    /// The message that a frame of so many bytes is.
    pub(crate) async fn message_within<M: Message>(
        &mut self,
        size: usize,
        time: Duration,
    ) -> Result<M, WireError> {
        let bytes = self.frame_within(size, time).await?;
        Ok(cbor::from_slice(&bytes, M::LIMIT)?)
    }

    /// The next frame of at most `limit` bytes, as bytes, or none where the stream ends before it.
    pub(crate) async fn receive_raw(&mut self, limit: usize) -> Result<Option<Vec<u8>>, WireError> {
        match self.size(limit).await? {
            Some(size) => Ok(Some(self.frame(size).await?)),
            None => Ok(None),
        }
    }

    /// How many bytes the next frame has, at most `limit`; none where the stream ends before it. It has to be taken next.
    pub(crate) async fn size(&mut self, limit: usize) -> Result<Option<usize>, WireError> {
        self.size_within(limit, ANSWER_TIME).await
    }

    /// The bytes of a frame of so many.
    pub(crate) async fn frame(&mut self, size: usize) -> Result<Vec<u8>, WireError> {
        self.frame_within(size, ANSWER_TIME).await
    }

    /// As [`WireReader::size`], with another patience.
    pub(crate) async fn size_within(
        &mut self,
        limit: usize,
        time: Duration,
    ) -> Result<Option<usize>, WireError> {
        let silent = |_| WireError::Silent(time);
        let mut length = [0; 4];
        // The first byte decides between an end and a message cut short.
        if tokio::time::timeout(time, self.0.read(&mut length[..1]))
            .await
            .map_err(silent)??
            == 0
        {
            return Ok(None);
        }
        tokio::time::timeout(time, self.0.read_exact(&mut length[1..]))
            .await
            .map_err(silent)??;
        let size = u32::from_le_bytes(length) as usize;
        if size > limit {
            return Err(WireError::TooLarge { size, limit });
        }
        Ok(Some(size))
    }

    async fn frame_within(&mut self, size: usize, time: Duration) -> Result<Vec<u8>, WireError> {
        let silent = |_| WireError::Silent(time);
        // As much memory as has really come, whatever was announced.
        let mut bytes = Vec::with_capacity(size.min(STREAM_BUFFER));
        while bytes.len() < size {
            let start = bytes.len();
            let part = (size - start).min(STREAM_BUFFER.max(start));
            bytes.resize(start + part, 0);
            tokio::time::timeout(time, self.0.read_exact(&mut bytes[start..]))
                .await
                .map_err(silent)??;
        }
        Ok(bytes)
    }

    /// What follows the messages, as bytes.
    pub(crate) fn bytes(&mut self) -> &mut BufReader<BoxedRead> {
        &mut self.0
    }
}

impl WireWriter {
    pub(crate) async fn send<M: Message>(&mut self, message: &M) -> Result<(), WireError> {
        self.send_raw(&encode(message)?).await
    }

    /// As [`WireWriter::send`]; says how many bytes the message has.
    pub(crate) async fn send_counted<M: Message>(&mut self, message: &M) -> Result<usize, WireError> {
        let bytes = encode(message)?;
        self.send_raw(&bytes).await?;
        Ok(bytes.len())
    }

    /// Sends bytes as one frame.
    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.send_length(bytes.len()).await?;
        self.send_bytes(bytes).await
    }

    /// Sends bytes as they are.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        patiently(self.0.write_all(bytes)).await
    }

    /// Sends bytes as they are, no faster than is allowed; the other side may take its time for each part.
    pub(crate) async fn send_content(&mut self, bytes: &[u8], throttle: &Throttle) -> Result<(), WireError> {
        for part in bytes.chunks(STREAM_BUFFER) {
            throttle.pass(part.len()).await;
            self.send_bytes(part).await?;
        }
        Ok(())
    }

    /// The same of a small answer, of which many are under way at once: in parts so small that none of them waits long for its
    /// first one, however little is allowed.
    pub(crate) async fn send_small_content(
        &mut self,
        bytes: &[u8],
        throttle: &Throttle,
    ) -> Result<(), WireError> {
        if throttle.rate().is_none() {
            return self.send_content(bytes, throttle).await;
        }
        for part in bytes.chunks(STREAM_BUFFER / SHARES as usize) {
            throttle.pass(part.len()).await;
            self.send_bytes(part).await?;
            self.flush().await?;
        }
        Ok(())
    }

    /// As [`WireWriter::send_raw`], a small one as [`WireWriter::send_small_content`].
    pub(crate) async fn send_small_frame(
        &mut self,
        bytes: &[u8],
        throttle: &Throttle,
    ) -> Result<(), WireError> {
        self.send_length(bytes.len()).await?;
        self.send_small_content(bytes, throttle).await
    }

    async fn send_length(&mut self, size: usize) -> Result<(), WireError> {
        let length = u32::try_from(size).map_err(|_| WireError::TooLarge {
            size,
            limit: u32::MAX as usize,
        })?;
        patiently(self.0.write_all(&length.to_le_bytes())).await
    }

    pub(crate) async fn flush(&mut self) -> Result<(), WireError> {
        patiently(self.0.flush()).await
    }

    /// Says that nothing more comes.
    pub(crate) async fn close(&mut self) -> Result<(), WireError> {
        patiently(self.0.close()).await
    }
}

fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
    let bytes = cbor::to_vec(message)?;
    if bytes.len() > M::LIMIT {
        let (size, limit) = (bytes.len(), M::LIMIT);
        return Err(WireError::TooLarge { size, limit });
    }
    Ok(bytes)
}

/// A peer that takes nothing must not hold on to what serves it.
async fn patiently<T>(action: impl Future<Output = io::Result<T>>) -> Result<T, WireError> {
    let result = tokio::time::timeout(ANSWER_TIME, action).await;
    Ok(result.map_err(|_| WireError::Silent(ANSWER_TIME))??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Door, Traffic};
    use futures::io::Cursor;
    use tvix_node_protocol::envelope::NodeKey;
    use tvix_node_protocol::messages::{BuildFrame, RosterDone};

    fn reader(bytes: Vec<u8>) -> WireReader {
        let stream = Traffic::default().counted(Cursor::new(bytes), NodeKey([1; 32]), Door::Hello);
        Wire::new(stream).reader
    }

    fn framed(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat()
    }

    #[tokio::test]
    async fn a_message_comes_back_and_then_the_end() {
        let message = RosterDone { roster: [7; 32] };
        let mut reader = reader(framed(&cbor::to_vec(&message).unwrap()));
        assert_eq!(reader.receive::<RosterDone>().await.unwrap(), message);
        assert_eq!(reader.receive_or_end::<RosterDone>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_message_too_large_is_refused_before_it_is_read() {
        let mut reader = reader(u32::MAX.to_le_bytes().to_vec());
        let error = reader.receive::<BuildFrame>().await.unwrap_err();
        assert!(matches!(error, WireError::TooLarge { .. }), "{error}");
    }

    /// A message that is one byte larger than it may be is not read, and one that is just as large is.
    async fn is_bounded<M: Message>(most: usize) {
        let announced = |size: usize| reader(u32::try_from(size).unwrap().to_le_bytes().to_vec());
        let error = announced(most + 1).receive::<M>().await.err().unwrap();
        assert!(
            matches!(error, WireError::TooLarge { size, limit } if size == most + 1 && limit == most),
            "{most}: {error}"
        );
        let error = announced(most).receive::<M>().await.err().unwrap();
        assert!(matches!(error, WireError::Io(_)), "nothing follows: {error}");
    }

    #[tokio::test]
    async fn each_kind_of_message_has_its_bound() {
        use tvix_node_protocol::envelope::Envelope;
        use tvix_node_protocol::limits::*;
        use tvix_node_protocol::messages::*;
        is_bounded::<Envelope>(ENVELOPE_BYTES).await;
        is_bounded::<JoinRequest>(INTRODUCTION_BYTES).await;
        is_bounded::<JoinAnswer>(ROSTER_BYTES).await;
        is_bounded::<Hello>(HELLO_BYTES).await;
        is_bounded::<RosterAnswer>(ROSTER_BYTES).await;
        is_bounded::<RosterStatements>(ROSTER_BYTES).await;
        is_bounded::<PresenceQuestion>(PRESENCE_BYTES).await;
        is_bounded::<PresenceCells>(PRESENCE_BYTES).await;
        is_bounded::<PresenceAnswer>(PRESENCE_BYTES).await;
        is_bounded::<PathsQuestion>(PATHS_BYTES).await;
        is_bounded::<PathAnswer>(SHOWN_BYTES).await;
        is_bounded::<TextsQuestion>(TEXTS_QUESTION_BYTES).await;
        is_bounded::<PushOffer>(PUSH_BYTES).await;
        // What is asked for with numbers and digests alone.
        is_bounded::<ReachabilityQuestion>(128).await;
        is_bounded::<TreeQuestion>(256).await;
        is_bounded::<TreesQuestion>(TREES_BATCH * 32 + 64).await;
        is_bounded::<BlobQuestion>(256).await;
        is_bounded::<BlobsQuestion>(BLOBS_BATCH * 32 + 256).await;
        is_bounded::<BuildControl>(64).await;
    }

    #[tokio::test]
    async fn a_message_cut_short_is_no_end() {
        let whole = framed(&cbor::to_vec(&RosterDone { roster: [7; 32] }).unwrap());
        for length in 1..whole.len() {
            let mut reader = reader(whole[..length].to_vec());
            let error = reader.receive_or_end::<RosterDone>().await.unwrap_err();
            assert!(matches!(error, WireError::Io(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn what_is_not_deterministic_is_refused() {
        // The array [1] with a length in a needlessly long form.
        let mut reader = reader(framed(&[0x98, 0x01, 0x01]));
        let error = reader.receive::<RosterDone>().await.unwrap_err();
        assert!(
            matches!(error, WireError::Encoding(CborError::NotDeterministic)),
            "{error}"
        );
    }
}
