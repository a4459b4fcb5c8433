//! What crosses the control socket about the team: who is in it, who is reachable, who built what.

use serde::{Deserialize, Serialize};

use crate::build::{BuildRecord, SwarmId};
use crate::envelope::{Envelope, EnvelopeError, NodeKey};
use crate::roster::{Founder, Lapse, Roles};

/// Asks for a ticket. Where the node takes part in no team yet, or is told to, it founds one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InviteRequest {
    /// What the new member may do.
    pub roles: Roles,
    /// Seconds the ticket is good for.
    pub valid: u64,
    /// Seconds the membership lasts.
    pub lasts: u64,
    /// What this node calls itself where the invitation founds the team; none: as its machine is called.
    pub name: Option<String>,
    /// Into which of the node's teams, by name or id; none: into the only one.
    #[serde(default)]
    pub team: Option<String>,
    /// Found another team for it, beside those that the node is in.
    #[serde(default)]
    pub new_team: bool,
    /// With whom it is founded; the tickets are for these then.
    #[serde(default)]
    pub founders: Vec<Founder>,
    /// How many of its founders put out one of themselves; none: what is usual.
    #[serde(default)]
    pub threshold: Option<u16>,
    /// Make a ticket for this founder of the team, by its name, or its key or the beginning of that, which has not joined
    /// yet.
    #[serde(default)]
    pub founder: Option<String>,
}

/// A ticket has been made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Invited {
    /// The string to hand over. Whoever has it can join, once. None where there are such for founders.
    pub ticket: Option<String>,
    /// A ticket for each founder that was named.
    #[serde(default)]
    pub founders: Vec<FounderTicket>,
    /// How many founders of the team together put out one of themselves.
    pub threshold: u16,
    /// The team.
    pub swarm: SwarmId,
    /// Seconds since 1970 after which the ticket is void.
    pub expires: u64,
    /// What the new member may do.
    pub roles: Roles,
    /// Whether the invitation founded the team.
    pub founded: bool,
    /// Where this node can be reached to redeem it, as multiaddresses; none: nowhere.
    pub addresses: Vec<String>,
}

/// A ticket with which one founder takes its place, and nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FounderTicket {
    /// What it is called.
    pub name: String,
    /// Its key.
    pub key: NodeKey,
    /// The string to hand over.
    pub ticket: String,
}

/// A key by which this node can be a founder of one team.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FounderKey {
    /// What whoever founds the team is to be told.
    pub key: NodeKey,
}

/// Redeems a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinRequest {
    /// The string that [`Invited`] carried.
    pub ticket: String,
    /// What this node calls itself; none: as its machine is called.
    pub name: Option<String>,
}

/// This node is a member now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Joined {
    /// The team.
    pub swarm: SwarmId,
    /// What this node is called in it.
    pub name: String,
    /// How many members it has, this node included.
    pub members: u64,
    /// Whether this node is one of its founders.
    pub founder: bool,
    /// How many founders it began with.
    pub founders: u64,
    /// How many of those together put out one of themselves.
    pub threshold: u16,
}

/// The team as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TeamView {
    /// The team.
    pub swarm: SwarmId,
    /// What it is called. Two teams may be called the same.
    pub team: String,
    /// This node, which has another key in each team.
    pub me: NodeKey,
    /// What this node is called in it.
    pub name: String,
    /// Where this node listens, as multiaddresses.
    pub listening: Vec<String>,
    /// How many founders it began with.
    pub founders: u64,
    /// How many of those together put out one of themselves.
    pub threshold: u16,
    /// Who is in it, this node included.
    pub members: Vec<MemberView>,
    /// Who was in it, and can be again if somebody renews the membership.
    #[serde(default)]
    pub waiting: Vec<WaitingView>,
    /// Members that do not let this node in, and what each says why: this node may not have heard yet that it is out.
    #[serde(default)]
    pub refused: Vec<RefusedView>,
}

/// A member that does not let this node in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedView {
    /// What it is called.
    pub by: String,
    /// What it says.
    pub why: String,
}

/// Somebody whose membership does not count any more, and can be renewed: whose key is not out for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitingView {
    /// Its key.
    pub key: NodeKey,
    /// What it was called last.
    pub name: String,
    /// What it was to be allowed.
    pub roles: Roles,
    /// Who vouched for it last.
    pub issued_by: NodeKey,
    /// What that one is called, or was.
    pub issuer: String,
    /// Until when that was to count, in seconds since 1970.
    pub not_after: u64,
    /// Whether it is this node.
    pub me: bool,
    /// Why it does not count.
    pub why: Lapse,
}

impl WaitingView {
    /// Why the membership does not count, in words that say of somebody what it is.
    #[must_use]
    pub fn reason(&self) -> String {
        let issuer = &self.issuer;
        match self.why {
            Lapse::Ended => "ended".to_owned(),
            Lapse::IssuerOut => format!("invited by {issuer}, who is out"),
            Lapse::IssuerNoMember => format!("invited by {issuer}, who is no member any more"),
            Lapse::IssuerMayNot => format!("invited by {issuer}, who may not invite any more"),
            Lapse::NotCounted => format!("invited by {issuer}, whose word on it does not count"),
        }
    }
}

/// A member of the team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberView {
    /// Its key, which is who it is.
    pub key: NodeKey,
    /// What it is called. Two members may be called the same.
    pub name: String,
    /// What it may do.
    pub roles: Roles,
    /// Who vouches for it; none: a founder, for whom nobody has to.
    pub issued_by: Option<NodeKey>,
    /// Whether the team began with it.
    pub founder: bool,
    /// Seconds since 1970 after which it is no member any more; none: it stays.
    pub not_after: Option<u64>,
    /// Whether it is this node.
    pub me: bool,
    /// Whether there is a connection to it.
    pub connected: bool,
    /// Whether somebody should renew its membership, which ends soon.
    pub to_renew: bool,
    /// Where it is a founder: those who have said that it is to be out, who are too few.
    #[serde(default)]
    pub against: Vec<Founder>,
}

/// A member there is a connection to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerView {
    /// The team that it is met in.
    pub team: SwarmId,
    /// Its key.
    pub key: NodeKey,
    /// What it is called.
    pub name: String,
    /// Where it is reached, as multiaddresses.
    pub addresses: Vec<String>,
    /// Version of its program.
    pub version: String,
    /// Systems it builds for, such as `x86_64-linux`.
    pub systems: Vec<String>,
    /// Features such as `kvm` and `big-parallel`.
    pub features: Vec<String>,
    /// Builds it runs at once for others.
    pub slots: u32,
    /// How many of them are free.
    pub free: u32,
    /// Load of its machine: hundredths of one busy core.
    pub load: u32,
    /// Why it builds nothing for others at the moment; none: it does, where a slot is free.
    pub withheld: Option<String>,
    /// Whether it builds fixed outputs for others.
    pub fixed_outputs: bool,
    /// Milliseconds there and back; none: not measured yet.
    pub round_trip_ms: Option<f64>,
    /// Bytes a second at which content came from it of late; none: nothing large has come.
    pub speed: Option<u64>,
    /// Whether it can dial this node, as it tried lately when it was asked to; none: it was not asked, or could not say.
    pub reaches_this_node: Option<bool>,
    /// What has been exchanged with it.
    pub traffic: TrafficView,
}

/// Bytes exchanged with one peer since the node started, without encryption and transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficView {
    /// All that was sent.
    pub sent: u64,
    /// All that was received.
    pub received: u64,
    /// Of what was sent, content of store paths.
    pub content_sent: u64,
    /// Of what was received, content of store paths.
    pub content_received: u64,
}

/// Names a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemberName {
    /// Its name, or its key or the beginning of that.
    pub member: String,
    /// In which team, by name or id; none: whichever has it.
    #[serde(default)]
    pub team: Option<String>,
}

/// What came of putting somebody out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PutOut {
    /// Its key.
    pub key: NodeKey,
    /// What it is called.
    pub name: String,
    /// Whether it is out. A founder is where enough others have said so.
    pub out: bool,
    /// Founders who have said so.
    pub by: Vec<Founder>,
    /// How many of them it takes.
    pub needed: u16,
}

/// Leaves a team for good.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LeaveRequest {
    /// Which one, by name or id; none: the only one.
    #[serde(default)]
    pub team: Option<String>,
    /// Also where the team ends with it for the others, because this node is its last founder.
    #[serde(default)]
    pub force: bool,
}

/// Vouches for a member anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RenewRequest {
    /// Its name, or its key or the beginning of that.
    pub member: String,
    /// In which team, by name or id; none: whichever has it.
    #[serde(default)]
    pub team: Option<String>,
    /// What it may do from now on; none: what it might do before.
    pub roles: Option<Roles>,
    /// Seconds the membership lasts from now on.
    pub lasts: u64,
}

/// The team of a node, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TeamStatus {
    /// The team.
    pub swarm: SwarmId,
    /// What it is called.
    pub team: String,
    /// This node, as it is known there.
    pub me: NodeKey,
    /// What this node is called in it.
    pub name: String,
    /// How many members it has, this node included.
    pub members: u64,
    /// How many of them there is a connection to.
    pub connected: u64,
    /// Where this node listens, and where members reached it, as multiaddresses.
    pub listening: Vec<String>,
    /// Whether members can dial this node.
    pub reached: ReachedBy,
}

/// Whether members can dial a node, as those found who were asked to try it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReachedBy {
    /// Nobody could say yet.
    Unknown,
    /// All of them can.
    All,
    /// Some can, others cannot.
    Some,
    /// None can.
    None,
}

/// A signed statement that somebody built a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordView {
    /// What it says.
    pub record: BuildRecord,
    /// Who signed it.
    pub signer: NodeKey,
    /// What the signer is called in the team; none: it is not in it.
    pub signer_name: Option<String>,
    /// Whether the path lies in this store because of it.
    pub accepted: bool,
    /// The signed bytes, an [`Envelope`] in base 16.
    pub envelope: String,
}

impl RecordView {
    /// Shows the record that an envelope carries. Its signature is checked.
    ///
    /// # Errors
    /// See [`EnvelopeError`].
    pub fn of(
        envelope: &Envelope,
        signer_name: Option<String>,
        accepted: bool,
    ) -> Result<Self, EnvelopeError> {
        Ok(Self {
            record: envelope.open()?,
            signer: envelope.signer,
            signer_name,
            accepted,
            envelope: base16(&envelope.to_bytes()?),
        })
    }
}

/// Writes bytes in base 16, in lower case.
fn base16(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::{BuildKey, RequestHash};
    use crate::envelope::{NodeSecret, seal};
    use crate::limits::ENVELOPE_BYTES;
    use crate::nix::store_path::StorePath;

    fn record() -> (Envelope, BuildRecord) {
        let secret = NodeSecret::from_bytes(&[7; 32]);
        let record = BuildRecord {
            build_key: BuildKey([1; 32]),
            request: Some(RequestHash([2; 32])),
            derivation: StorePath::from_parts([3; 20], "hello.drv").unwrap(),
            inputs: Vec::new(),
            outputs: std::collections::BTreeMap::new(),
            builder: secret.key(),
            started: 10,
            finished: 20,
            sandbox: "namespaces".to_owned(),
        };
        (seal(&record, &secret).unwrap(), record)
    }

    #[test]
    fn a_shown_record_still_verifies() {
        let (envelope, record) = record();
        let view = RecordView::of(&envelope, Some("tower".to_owned()), true).unwrap();
        assert_eq!(
            (view.record.clone(), view.signer),
            (record.clone(), record.builder)
        );
        let bytes: Vec<u8> = (0..view.envelope.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&view.envelope[at..at + 2], 16).unwrap())
            .collect();
        let read = Envelope::from_bytes(&bytes, ENVELOPE_BYTES).unwrap();
        assert_eq!(read.open::<BuildRecord>().unwrap(), record);
    }

    #[test]
    fn a_record_that_was_tampered_with_is_not_shown() {
        let (mut envelope, _) = record();
        envelope.signature[0] ^= 1;
        let error = RecordView::of(&envelope, None, false).unwrap_err();
        assert!(matches!(error, EnvelopeError::Signature(_)), "{error}");
    }
}
