//! Asking for a build and doing one: a request, then frames until the last.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tvix_node_protocol::build::{BuildRecord, BuildRequest, RequestHash};
use tvix_node_protocol::cbor::CborError;
use tvix_node_protocol::envelope::{Envelope, EnvelopeError, NodeKey, seal};
use tvix_node_protocol::limits::ENVELOPE_BYTES;
use tvix_node_protocol::messages::{BuildControl, BuildFailure, BuildFrame, Pushed, Refusal, RefusalReason};

use crate::call::{self, CallError};
use crate::core::{Core, blocking, lock};
use crate::gate::Admitted;
use crate::limits::{BUILD_FRAMES, BUILD_SILENCE, LOG_OF_A_CALL, LOG_PIECE};
use crate::net::Door;
use crate::net::wire::{Wire, WireError, WireReader, WireWriter};

use super::carry::{End, carry};

/// A request that has passed the gate, for the node to take or to refuse. While it or what becomes of it
/// exists heartbeats are sent; dropping it refuses it.
#[derive(Debug)]
pub struct IncomingBuild {
    /// What is asked for.
    pub request: BuildRequest,
    /// The hash the record has to name.
    pub hash: RequestHash,
    frames: mpsc::Sender<BuildFrame>,
    interest: watch::Receiver<Interest>,
}

/// A request that was taken. Dropping it fails the build.
#[derive(Debug)]
pub struct RunningBuild {
    frames: mpsc::Sender<BuildFrame>,
    interest: watch::Receiver<Interest>,
}

/// Whether the requester waits for a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// It does.
    Waits,
    /// It has said that it does not want it any more.
    Cancelled,
    /// The stream has ended without that: it is gone, or the connection broke and it will be back.
    Lost,
}

/// Returns when the requester does not wait for an answer on this stream any more, and says why.
pub async fn until_unwanted(interest: &mut watch::Receiver<Interest>) -> Interest {
    let ended = interest.wait_for(|interest| *interest != Interest::Waits).await;
    // An error says that the stream is gone.
    ended.map_or(Interest::Lost, |interest| *interest)
}

/// The requester is gone, or has cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody waits for this build any more")]
pub struct Unwanted;

impl IncomingBuild {
    /// Takes it.
    ///
    /// # Errors
    /// [`Unwanted`]
    pub async fn accept(self) -> Result<RunningBuild, Unwanted> {
        self.frames
            .send(BuildFrame::Accepted)
            .await
            .map_err(|_| Unwanted)?;
        Ok(RunningBuild {
            frames: self.frames,
            interest: self.interest,
        })
    }

    /// Refuses it; the requester sees why.
    pub async fn refuse(self, reason: RefusalReason, message: impl Into<String>) {
        let message = message.into();
        // Gone: then nobody wants to know.
        self.frames
            .send(BuildFrame::Refused(Refusal { reason, message }))
            .await
            .ok();
    }

    /// Returns when nobody waits for an answer any more.
    pub async fn cancelled(&mut self) {
        until_unwanted(&mut self.interest).await;
    }
}

impl RunningBuild {
    /// Sends a piece of the log. Waits where the requester reads more slowly than the build writes.
    ///
    /// # Errors
    /// [`Unwanted`]
    pub async fn log(&self, bytes: &[u8]) -> Result<(), Unwanted> {
        for piece in bytes.chunks(LOG_PIECE) {
            let frame = BuildFrame::Log {
                bytes: piece.to_vec(),
            };
            self.frames.send(frame).await.map_err(|_| Unwanted)?;
        }
        Ok(())
    }

    /// It is built: the signed record, and whether the outputs are in the desired store.
    ///
    /// # Errors
    /// [`Unwanted`]
    pub async fn finish(self, record: Envelope, pushed: Pushed) -> Result<(), Unwanted> {
        let frame = BuildFrame::Finished { record, pushed };
        self.frames.send(frame).await.map_err(|_| Unwanted)
    }

    /// It is not built.
    ///
    /// # Errors
    /// [`Unwanted`]
    pub async fn fail(self, failure: BuildFailure) -> Result<(), Unwanted> {
        self.frames
            .send(BuildFrame::Failed(failure))
            .await
            .map_err(|_| Unwanted)
    }

    /// Returns when nobody waits for the build any more: stop it.
    pub async fn cancelled(&mut self) {
        until_unwanted(&mut self.interest).await;
    }

    /// For [`until_unwanted`].
    #[must_use]
    pub fn interest(&self) -> watch::Receiver<Interest> {
        self.interest.clone()
    }
}

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let admitted = match admit(core, peer, &mut wire.reader).await? {
        Ok(admitted) => admitted,
        Err(refusal) => {
            tracing::info!(%peer, reason = ?refusal.reason, message = refusal.message, "a build request is refused");
            return wire.answer(&BuildFrame::Refused(refusal)).await;
        }
    };
    let (frames, receiver) = mpsc::channel(BUILD_FRAMES);
    let (sender, interest) = watch::channel(Interest::Waits);
    let incoming = IncomingBuild {
        request: admitted.request,
        hash: admitted.hash,
        frames,
        interest,
    };
    if core.builds.try_send(incoming).is_err() {
        return wire
            .answer(&BuildFrame::Refused(busy(
                "this builder takes no more requests at the moment",
            )))
            .await;
    }
    let result = carry(wire.reader, wire.writer, receiver).await;
    let why = match result {
        Ok(End::Cancelled) => Interest::Cancelled,
        _ => Interest::Lost,
    };
    // Nobody may be there to hear it.
    sender.send(why).ok();
    result.map(|_| ())
}

pub(super) fn busy(message: &str) -> Refusal {
    Refusal {
        reason: RefusalReason::Busy,
        message: message.to_owned(),
    }
}

/// The gate, and the nonce on the disk.
async fn admit(
    core: &Arc<Core>,
    peer: NodeKey,
    reader: &mut WireReader,
) -> Result<Result<Admitted, Refusal>, WireError> {
    let bytes = match reader.receive_raw(ENVELOPE_BYTES).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(WireError::Closed),
        Err(error @ WireError::TooLarge { .. }) => {
            return Ok(Err(Refusal {
                reason: RefusalReason::TooLarge,
                message: format!("the request is too large: {error}"),
            }));
        }
        Err(error) => return Err(error),
    };
    let core = core.clone();
    let admitted = blocking(move || {
        let members = core.team.members();
        let (admitted, syncer) = {
            let mut gate = lock(&core.gate);
            let admitted = gate.check(&bytes, peer, &members, core.team.now())?;
            (admitted, gate.nonces().syncer())
        };
        syncer.sync().map_err(|error| {
            busy(&format!(
                "this builder cannot record the request, so it does not take it: {error}"
            ))
        })?;
        Ok(admitted)
    });
    Ok(admitted.await.unwrap_or_else(|lost| Err(busy(&lost.to_string()))))
}

/// What comes from a builder.
#[derive(Debug, Clone, PartialEq)]
pub enum BuildEvent {
    /// It has taken the request.
    Accepted,
    /// A piece of the log.
    Log(Vec<u8>),
    /// It is still working, or finding out whether it takes the request.
    Heartbeat,
    /// It does not take the request. The last event.
    Refused(Refusal),
    /// It is built. The last event. The record is signed by the builder, for this request; whether it is
    /// believed is for the policy.
    Finished {
        /// The record, opened.
        record: Box<BuildRecord>,
        /// As it was signed.
        envelope: Box<Envelope>,
        /// Whether the outputs are in the desired store.
        pushed: Pushed,
    },
    /// It failed. The last event.
    Failed(BuildFailure),
}

/// Why a far build's fate is not known.
#[derive(Debug, thiserror::Error)]
pub enum BuildCallError {
    /// The builder cannot be reached, or the connection broke, or nothing came for too long.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The request cannot be signed.
    #[error("the request cannot be signed: {0}")]
    Seal(#[from] EnvelopeError),
    /// The request cannot be named.
    #[error("the request cannot be encoded: {0}")]
    Encoding(#[from] CborError),
    /// The record is not one for this request by this builder.
    #[error("{builder} sent a record that is not for this request: {what}")]
    WrongRecord {
        /// Who.
        builder: NodeKey,
        /// What is wrong with it.
        what: String,
    },
    /// It says more than any builder lets a build say.
    #[error("{builder} sent more than the {LOG_OF_A_CALL} bytes of log that are taken from a builder")]
    LogTooLong {
        /// Who.
        builder: NodeKey,
    },
    /// The last event has come already.
    #[error("the build is over")]
    Over,
}

/// A build at another node. Whoever drops it without [`cancel`](Self::cancel) may come back, for which the builder waits a while.
pub struct BuildCall {
    core: Arc<Core>,
    builder: NodeKey,
    request: BuildRequest,
    hash: RequestHash,
    reader: WireReader,
    writer: WireWriter,
    /// Bytes of log that may still come.
    pub(crate) log_left: u64,
    over: bool,
}

impl std::fmt::Debug for BuildCall {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "BuildCall({} at {})",
            self.request.derivation, self.builder
        )
    }
}

/// Signs and sends a request.
pub(crate) async fn request(core: &Arc<Core>, request: BuildRequest) -> Result<BuildCall, BuildCallError> {
    let envelope = seal(&request, core.team.secret())?;
    let builder = request.builder;
    let wire = send(core, builder, &envelope).await?;
    Ok(BuildCall {
        core: core.clone(),
        builder,
        hash: RequestHash(envelope.payload_hash()),
        request,
        reader: wire.reader,
        writer: wire.writer,
        log_left: LOG_OF_A_CALL,
        over: false,
    })
}

pub(crate) async fn send(core: &Core, builder: NodeKey, envelope: &Envelope) -> Result<Wire, CallError> {
    let at = call::at(builder, Door::Build);
    let mut wire = core.open(builder, Door::Build).await?;
    wire.writer.send(envelope).await.map_err(at)?;
    wire.writer.flush().await.map_err(at)?;
    Ok(wire)
}

impl BuildCall {
    /// Who builds.
    #[must_use]
    pub fn builder(&self) -> NodeKey {
        self.builder
    }

    /// This goes on with what another call began: the bound on the log is that of both together.
    pub fn goes_on_with(&mut self, before: &Self) {
        self.log_left = before.log_left;
    }

    /// The next event. Heartbeats come every second; nothing for [`BUILD_SILENCE`] is an error.
    ///
    /// # Errors
    /// See [`BuildCallError`].
    pub async fn next(&mut self) -> Result<BuildEvent, BuildCallError> {
        if self.over {
            return Err(BuildCallError::Over);
        }
        let at = call::at(self.builder, Door::Build);
        let frame = self.reader.receive_within(BUILD_SILENCE).await;
        let frame = frame.and_then(|frame: Option<BuildFrame>| frame.ok_or(WireError::Closed));
        self.over = frame.is_err();
        match frame.map_err(at)? {
            BuildFrame::Accepted => Ok(BuildEvent::Accepted),
            BuildFrame::Heartbeat => Ok(BuildEvent::Heartbeat),
            BuildFrame::Log { bytes } => {
                let Some(left) = self.log_left.checked_sub(bytes.len() as u64) else {
                    self.over = true;
                    let builder = self.builder;
                    lock(&self.core.standing).failed(builder, self.core.team.now());
                    return Err(BuildCallError::LogTooLong { builder });
                };
                self.log_left = left;
                Ok(BuildEvent::Log(bytes))
            }
            BuildFrame::Refused(refusal) => {
                self.over = true;
                Ok(BuildEvent::Refused(refusal))
            }
            BuildFrame::Failed(failure) => {
                self.over = true;
                Ok(BuildEvent::Failed(failure))
            }
            BuildFrame::Finished { record, pushed } => {
                self.over = true;
                let opened = self.check(&record)?;
                Ok(BuildEvent::Finished {
                    record: Box::new(opened),
                    envelope: Box::new(record),
                    pushed,
                })
            }
        }
    }

    /// Cancels the build and says so.
    ///
    /// # Errors
    /// [`BuildCallError::Call`] where the builder is gone already.
    pub async fn cancel(mut self) -> Result<(), BuildCallError> {
        let at = call::at(self.builder, Door::Build);
        self.writer.send(&BuildControl::Cancel).await.map_err(at)?;
        Ok(self.writer.close().await.map_err(at)?)
    }

    /// That the record is the builder's, for this request, and speaks of the same work.
    fn check(&self, envelope: &Envelope) -> Result<BuildRecord, BuildCallError> {
        let checked = self.request.answered_by(self.hash, envelope);
        checked.map_err(|what| {
            lock(&self.core.standing).lied(self.builder, self.core.team.now());
            let builder = self.builder;
            BuildCallError::WrongRecord { builder, what }
        })
    }
}
