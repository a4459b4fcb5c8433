//! One end of TLS between its buffers: records come in, what they say goes to who reads, what is said goes out as
//! records. It knows no socket.

use rustls::CommonState;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus, WriteTraffic,
};

/// What a record costs beyond what it says, at most: header, type and tag, rounded up.
const RECORD_MARGIN: usize = 64;

/// A buffer grows by so many bytes, or more.
const STEP: usize = 4 << 10;

/// Bytes of which some are used up and some are to be filled.
#[derive(Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn filled(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// So many from the front are not needed any more.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start.saturating_add(count));
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// What can be filled: all that is left behind what is filled already, and no fewer bytes than these.
    pub(super) fn room(&mut self, least: usize) -> &mut [u8] {
        if self.bytes.len() - self.end < least {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.len());
            if self.bytes.len() - self.end < least {
                // Little more than is asked for: a vector that grows by itself doubles.
                let length = (self.end + least).next_multiple_of(STEP);
                self.bytes.reserve_exact(length - self.bytes.len());
                self.bytes.resize(length, 0);
            }
        }
        &mut self.bytes[self.end..]
    }

    /// So many of [`Buffer::room`] were filled.
    pub(super) fn fill(&mut self, count: usize) {
        self.end = self.bytes.len().min(self.end.saturating_add(count));
    }

    /// Bytes of memory that it has.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.bytes.capacity()
    }
}

/// What is wanted of a session.
#[derive(Clone, Copy)]
pub(super) enum Task<'a> {
    /// To look at what came.
    Read,
    /// To say this.
    Say(&'a [u8]),
    /// To say that nothing more will be said.
    End,
    /// To change the key.
    #[cfg(test)]
    ChangeKey,
}

/// How far it came.
#[derive(Debug, PartialEq)]
pub(super) enum Progress {
    /// There is more to do before the task.
    Again,
    /// Something was received.
    Received,
    /// The handshake needs more from the other end.
    Hungry,
    /// The task is done; there is nothing more in what came.
    Done,
    /// The other end says nothing more.
    Ended,
    /// Neither end does.
    Closed,
}

/// One end of TLS.
pub(super) trait Session: Send {
    /// Takes one step. Returns how many bytes of `incoming` are used up, also where it fails.
    fn step(
        &mut self,
        incoming: &mut [u8],
        received: &mut Vec<u8>,
        outgoing: &mut Buffer,
        task: Task<'_>,
    ) -> (usize, Result<Progress, rustls::Error>);

    /// What is known of the connection.
    fn state(&self) -> &CommonState;
}

impl Session for UnbufferedClientConnection {
    fn step(
        &mut self,
        incoming: &mut [u8],
        received: &mut Vec<u8>,
        outgoing: &mut Buffer,
        task: Task<'_>,
    ) -> (usize, Result<Progress, rustls::Error>) {
        handle(self.process_tls_records(incoming), received, outgoing, task)
    }

    fn state(&self) -> &CommonState {
        self
    }
}

impl Session for UnbufferedServerConnection {
    fn step(
        &mut self,
        incoming: &mut [u8],
        received: &mut Vec<u8>,
        outgoing: &mut Buffer,
        task: Task<'_>,
    ) -> (usize, Result<Progress, rustls::Error>) {
        handle(self.process_tls_records(incoming), received, outgoing, task)
    }

    fn state(&self) -> &CommonState {
        self
    }
}

fn handle<D>(
    status: UnbufferedStatus<'_, '_, D>,
    received: &mut Vec<u8>,
    outgoing: &mut Buffer,
    task: Task<'_>,
) -> (usize, Result<Progress, rustls::Error>) {
    let mut used = status.discard;
    let state = match status.state {
        Ok(state) => state,
        Err(error) => return (used, Err(error)),
    };
    let progress = match state {
        ConnectionState::ReadTraffic(mut traffic) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    used += record.discard;
                    received.extend_from_slice(record.payload);
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(Progress::Received),
            }
        },
        ConnectionState::EncodeTlsData(mut data) => {
            let written = write(outgoing, RECORD_MARGIN, |room| match data.encode(room) {
                Err(EncodeError::InsufficientSize(size)) => Err(Written::Needs(size)),
                Err(EncodeError::AlreadyEncoded) => Ok(0),
                Ok(written) => Ok(written),
            });
            written.map(|()| Progress::Again)
        }
        ConnectionState::TransmitTlsData(data) => {
            // It lies in `outgoing`, from where it goes before all that follows.
            data.done();
            Ok(Progress::Again)
        }
        ConnectionState::WriteTraffic(traffic) => do_task(traffic, outgoing, task),
        ConnectionState::BlockedHandshake => Ok(Progress::Hungry),
        ConnectionState::PeerClosed => Ok(Progress::Ended),
        ConnectionState::Closed => Ok(Progress::Closed),
        // Nothing is taken before the handshake, and there is no other state yet.
        other => Err(rustls::Error::General(format!(
            "unexpected state of TLS: {other:?}"
        ))),
    };
    (used, progress)
}

fn do_task<D>(
    mut traffic: WriteTraffic<'_, D>,
    outgoing: &mut Buffer,
    task: Task<'_>,
) -> Result<Progress, rustls::Error> {
    match task {
        Task::Read => {}
        Task::Say(plain) => write(outgoing, plain.len() + RECORD_MARGIN, |room| {
            traffic.encrypt(plain, room).map_err(Written::from)
        })?,
        Task::End => write(outgoing, RECORD_MARGIN, |room| {
            traffic.queue_close_notify(room).map_err(Written::from)
        })?,
        #[cfg(test)]
        Task::ChangeKey => traffic.refresh_traffic_keys()?,
    }
    Ok(Progress::Done)
}

/// Why nothing was written.
enum Written {
    Needs(InsufficientSizeError),
    /// The key was used as often as it may be.
    Exhausted,
}

impl From<EncryptError> for Written {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(size) => Self::Needs(size),
            EncryptError::EncryptExhausted => Self::Exhausted,
        }
    }
}

/// Has something written to `outgoing`, once more where this is too small for it.
fn write(
    outgoing: &mut Buffer,
    least: usize,
    mut into: impl FnMut(&mut [u8]) -> Result<usize, Written>,
) -> Result<(), rustls::Error> {
    let written = match into(outgoing.room(least)) {
        Err(Written::Needs(size)) => into(outgoing.room(size.required_size)),
        other => other,
    };
    match written {
        Ok(count) => outgoing.fill(count),
        Err(Written::Exhausted) => return Err(rustls::Error::EncryptError),
        Err(Written::Needs(size)) => {
            let needed = format!("TLS needs {} bytes more than it said", size.required_size);
            return Err(rustls::Error::General(needed));
        }
    }
    Ok(())
}
