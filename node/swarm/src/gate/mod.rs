//! What a build request must pass before anything is done for it.
//!
//! Checked in this order: size, signature, structure, addressee, time, role, nonce. Each refusal has
//! its own reason, which the requester sees. The nonce comes last, so that only a request that would
//! have been taken uses up room in the store of nonces, and it is recorded before the request is taken.
//! What needs the derivation (output paths, inputs by content) is checked after the gate.

mod nonces;

pub use nonces::{NonceBook, NonceError, NonceStore, Nonces};

use tvix_node_protocol::build::{BuildRequest, RequestHash, SwarmId};
use tvix_node_protocol::cbor::CborError;
use tvix_node_protocol::envelope::{Envelope, EnvelopeError, NodeKey};
use tvix_node_protocol::limits::ENVELOPE_BYTES;
use tvix_node_protocol::messages::{Refusal, RefusalReason};
use tvix_node_protocol::roster::Role;

use crate::clock::in_words;
use crate::limits::{CLOCK_SKEW, REQUEST_LIFETIME};
use crate::roster::Members;

/// A request that has passed the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// What is asked for.
    pub request: BuildRequest,
    /// The hash a record of the build names.
    pub hash: RequestHash,
}

/// The gate of one builder in one team.
#[derive(Debug)]
pub struct RequestGate<N = NonceStore> {
    swarm: SwarmId,
    builder: NodeKey,
    nonces: N,
}

impl<N: Nonces> RequestGate<N> {
    /// The gate of this builder.
    #[must_use]
    pub fn new(swarm: SwarmId, builder: NodeKey, nonces: N) -> Self {
        Self {
            swarm,
            builder,
            nonces,
        }
    }

    /// Checks a request that came from the peer `sender` as `bytes`, at the time `now` in seconds since
    /// 1970. On success its nonce has been recorded, which the caller must see durable
    /// ([`NonceStore::syncer`]) before it acts on the request.
    ///
    /// # Errors
    /// The refusal to send back.
    pub fn check(
        &mut self,
        bytes: &[u8],
        sender: NodeKey,
        members: &Members,
        now: u64,
    ) -> Result<Admitted, Refusal> {
        let envelope = read_envelope(bytes)?;
        let request = open(&envelope)?;
        self.check_structure(&request, &envelope, sender)?;
        self.check_addressee(&request)?;
        check_time(&request, now)?;
        self.check_role(&request, members)?;
        self.check_nonce(&request, now)?;
        let hash = RequestHash(envelope.payload_hash());
        Ok(Admitted { request, hash })
    }

    /// The store of nonces.
    #[must_use]
    pub fn nonces(&self) -> &N {
        &self.nonces
    }

    fn check_structure(
        &self,
        request: &BuildRequest,
        envelope: &Envelope,
        sender: NodeKey,
    ) -> Result<(), Refusal> {
        request.check_structure().map_err(|error| {
            refusal(
                RefusalReason::Structure,
                format!("the request does not hold together: {error}"),
            )
        })?;
        let signer = envelope.signer;
        if request.requester != signer || sender != signer {
            let requester = request.requester;
            return Err(refusal(
                RefusalReason::Structure,
                format!(
                    "the request of {requester} was signed by {signer} and sent by {sender}: these must be one"
                ),
            ));
        }
        Ok(())
    }

    fn check_addressee(&self, request: &BuildRequest) -> Result<(), Refusal> {
        if request.swarm != self.swarm {
            let (got, mine) = (request.swarm, self.swarm);
            return Err(refusal(
                RefusalReason::Addressee,
                format!("the request is made in the team {got}; this builder is here for {mine}"),
            ));
        }
        if request.builder != self.builder {
            let (got, mine) = (request.builder, self.builder);
            return Err(refusal(
                RefusalReason::Addressee,
                format!("the request is for the builder {got}, not for {mine}"),
            ));
        }
        Ok(())
    }

    fn check_role(&self, request: &BuildRequest, members: &Members) -> Result<(), Refusal> {
        let requester = request.requester;
        if !members.contains(requester) {
            return Err(refusal(
                RefusalReason::Stranger,
                format!("{requester} is not a member of the team, as far as this builder knows"),
            ));
        }
        if !members.may(requester, Role::Request) {
            return Err(refusal(
                RefusalReason::Role,
                format!("{requester} does not have the role 'request' here"),
            ));
        }
        if !members.may(self.builder, Role::Build) {
            return Err(refusal(
                RefusalReason::Role,
                format!("this builder, {}, does not have the role 'build'", self.builder),
            ));
        }
        Ok(())
    }

    fn check_nonce(&mut self, request: &BuildRequest, now: u64) -> Result<(), Refusal> {
        // After this time the request is refused as expired, so its nonce may be forgotten.
        let forget_after = request.not_after.saturating_add(CLOCK_SKEW);
        self.nonces
            .record(request.requester, request.nonce, forget_after, now)
            .map_err(|error| match error {
                NonceError::Used => refusal(
                    RefusalReason::Replayed,
                    "this very request was sent before; a new one needs a new nonce".to_owned(),
                ),
                NonceError::Forgotten => refusal(
                    RefusalReason::Expired,
                    "the request is older than what this builder remembers; send a new one, and look at both clocks"
                        .to_owned(),
                ),
                NonceError::Full => refusal(
                    RefusalReason::Busy,
                    "this builder has taken as many requests as it can remember; try again in an hour".to_owned(),
                ),
                NonceError::Io { .. } | NonceError::Damaged { .. } | NonceError::Newer { .. } => refusal(
                    RefusalReason::Busy,
                    format!("this builder cannot record the request, so it does not take it: {error}"),
                ),
            })
    }
}

impl RequestGate {
    /// Forgets nonces that are not needed any more.
    ///
    /// # Errors
    /// See [`NonceError`].
    pub fn forget(&mut self, now: u64) -> Result<(), NonceError> {
        self.nonces.forget(now)
    }
}

fn refusal(reason: RefusalReason, message: String) -> Refusal {
    Refusal { reason, message }
}

fn read_envelope(bytes: &[u8]) -> Result<Envelope, Refusal> {
    Envelope::from_bytes(bytes, ENVELOPE_BYTES).map_err(|error| match error {
        EnvelopeError::Encoding(CborError::TooLarge { .. }) => refusal(
            RefusalReason::TooLarge,
            format!("the request is too large: {error}"),
        ),
        _ => refusal(
            RefusalReason::Malformed,
            format!("this is not a signed request: {error}"),
        ),
    })
}

fn open(envelope: &Envelope) -> Result<BuildRequest, Refusal> {
    envelope.open().map_err(|error| {
        let reason = match &error {
            EnvelopeError::Encoding(CborError::TooLarge { .. }) => RefusalReason::TooLarge,
            EnvelopeError::Encoding(CborError::Structure(_)) => RefusalReason::Structure,
            EnvelopeError::Encoding(_) => RefusalReason::Malformed,
            EnvelopeError::Signature(_) => RefusalReason::Signature,
            EnvelopeError::Domain { .. } => RefusalReason::Domain,
            EnvelopeError::Version { .. } => RefusalReason::Version,
        };
        refusal(reason, format!("the request is refused: {error}"))
    })
}

/// Clocks may be [`CLOCK_SKEW`] apart.
fn check_time(request: &BuildRequest, now: u64) -> Result<(), Refusal> {
    let clocks = format!(
        "it is {} by this builder's clock, and clocks may be {CLOCK_SKEW} s apart: 'tvix-node doctor' says which one is wrong",
        in_words(now)
    );
    if now > request.not_after.saturating_add(CLOCK_SKEW) {
        let end = in_words(request.not_after);
        return Err(refusal(
            RefusalReason::Expired,
            format!("the request was good until {end}; {clocks}"),
        ));
    }
    if request.issued_at > now.saturating_add(CLOCK_SKEW) {
        let begin = in_words(request.issued_at);
        return Err(refusal(
            RefusalReason::FromTheFuture,
            format!("the request was made at {begin}; {clocks}"),
        ));
    }
    let lifetime = request.not_after - request.issued_at;
    if lifetime > REQUEST_LIFETIME {
        return Err(refusal(
            RefusalReason::FromTheFuture,
            format!("the request is valid for {lifetime} s, longer than the {REQUEST_LIFETIME} s allowed"),
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
