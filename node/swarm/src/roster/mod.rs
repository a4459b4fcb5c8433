//! The roster: what all signed statements about a team amount to.
//!
//! A pure state. Statements come in any order, from anywhere, as often as they like; two nodes that
//! have seen the same ones hold the same roster. Nothing here has a clock: who is a member *at a given
//! time* is asked with [`Roster::members`].
//!
//! Rules:
//! - Founders, as the genesis names them, have every role.
//! - A statement counts where its issuer is a member that may invite; nobody gives more roles than it
//!   has. Members are found from the founders outward, so those closer to a founder are decided first
//!   and nobody can change who stands between itself and a founder.
//! - A revocation counts where the key itself or a founder signed it; a founder is put out by as many
//!   founders as the genesis says. It counts for ever, whatever comes later and whoever its signer
//!   becomes.
//! - Who was brought in by a key that is put out is out too, until somebody else vouches.
//! - Of several statements of one issuer about one key, the youngest is kept.
//! - There is room for so many of each kind, and nobody but a founder has more than a share of it. Founders put each other out
//!   however full it is.
//! - Statements of a kind or version unknown here are kept and passed on where a known key signed them.

mod file;
mod members;
mod waiting;

pub use file::{RosterFile, RosterFileError};
pub use members::{MemberView, Members};
pub use waiting::Waiting;

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::cbor::CborError;
use tvix_node_protocol::envelope::{Envelope, EnvelopeError, NodeKey, Statement};
use tvix_node_protocol::limits::ROSTER_STATEMENT_BYTES;
use tvix_node_protocol::presence::PresenceSecret;
use tvix_node_protocol::roster::{Genesis, Member, Revoked, RosterError, StatementId};

use crate::limits::{
    KNOWN_STATEMENT_BYTES, MEMBERSHIPS, MEMBERSHIPS_PER_ISSUER, ORPHANED_STATEMENTS, REVOCATIONS,
    REVOCATIONS_OF_ONESELF, UNKNOWN_STATEMENTS, UNKNOWN_STATEMENTS_PER_SIGNER,
};

/// Why a statement is not taken into the roster.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Too large for a statement.
    #[error("a roster statement of {size} bytes, more than the {limit} allowed")]
    TooLarge {
        /// Its bytes.
        size: usize,
        /// How many it may have.
        limit: usize,
    },
    /// The signature or the encoding does not hold.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The content does not hold together.
    #[error(transparent)]
    Structure(#[from] RosterError),
    /// Not about a roster at all.
    #[error("'{0}' is not a kind of roster statement")]
    Kind(String),
    /// About another team.
    #[error("the statement is about the team {got}, not {wanted}")]
    OtherSwarm {
        /// Its team.
        got: SwarmId,
        /// This roster's.
        wanted: SwarmId,
    },
    /// No room.
    #[error("the roster has no room for more statements {0}")]
    Full(&'static str),
}

/// Why a genesis cannot begin a roster.
#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    /// It does not hold together.
    #[error(transparent)]
    Structure(#[from] RosterError),
    /// It cannot be encoded.
    #[error(transparent)]
    Encoding(#[from] CborError),
    /// It is another team's.
    #[error("the genesis is that of {got}, not of {wanted}, for which the ticket is")]
    OtherSwarm {
        /// Whose it is.
        got: SwarmId,
        /// Whose it should be.
        wanted: SwarmId,
    },
}

/// A statement as it is kept: what it says, and the bytes that say so.
#[derive(Debug, Clone)]
struct Kept<T> {
    says: T,
    id: StatementId,
    envelope: Envelope,
}

/// All that is known of a team. See the [module](self).
#[derive(Debug, Clone)]
pub struct Roster {
    swarm: SwarmId,
    genesis: Genesis,
    /// By issuer and key: the youngest.
    memberships: BTreeMap<(NodeKey, NodeKey), Kept<Member>>,
    /// By key and signer.
    revocations: BTreeMap<(NodeKey, NodeKey), Kept<Revoked>>,
    unknown: BTreeMap<StatementId, Envelope>,
    /// Not part of the roster yet: nobody has vouched for the signer.
    orphans: BTreeMap<StatementId, Envelope>,
    /// Every key somebody has vouched for, up to the founders, revoked or not.
    known_keys: BTreeSet<NodeKey>,
}

impl Roster {
    /// The roster of a team of which nothing but the beginning is known.
    ///
    /// # Errors
    /// See [`GenesisError`].
    pub fn new(genesis: Genesis) -> Result<Self, GenesisError> {
        genesis.check_structure()?;
        Ok(Self {
            swarm: genesis.swarm()?,
            known_keys: genesis.founders.iter().map(|founder| founder.key).collect(),
            genesis,
            memberships: BTreeMap::new(),
            revocations: BTreeMap::new(),
            unknown: BTreeMap::new(),
            orphans: BTreeMap::new(),
        })
    }

    /// As [`Roster::new`], where the team is known by name already.
    ///
    /// # Errors
    /// See [`GenesisError`].
    pub fn of(swarm: SwarmId, genesis: Genesis) -> Result<Self, GenesisError> {
        let roster = Self::new(genesis)?;
        if roster.swarm != swarm {
            let (got, wanted) = (roster.swarm, swarm);
            return Err(GenesisError::OtherSwarm { got, wanted });
        }
        Ok(roster)
    }

    /// The team's name for programs.
    #[must_use]
    pub fn swarm(&self) -> SwarmId {
        self.swarm
    }

    /// How it began.
    #[must_use]
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Whether this key is a founder's.
    #[must_use]
    pub fn is_founder(&self, key: NodeKey) -> bool {
        let founders = &self.genesis.founders;
        founders.binary_search_by_key(&key, |founder| founder.key).is_ok()
    }

    /// Takes a statement in. `Ok(true)`: the roster has changed, others should hear of it.
    ///
    /// # Errors
    /// See [`MergeError`]; the roster is then as it was.
    pub fn merge(&mut self, envelope: Envelope) -> Result<bool, MergeError> {
        let id = statement_id(&envelope)?;
        if self.unknown.contains_key(&id) || self.orphans.contains_key(&id) {
            return Ok(false);
        }
        envelope.verify()?;
        if !self.known_keys.contains(&envelope.signer) {
            self.check(&envelope)?;
            self.keep_orphan(id, envelope);
            return Ok(false);
        }
        let changed = self.take(id, envelope)?;
        if changed {
            self.adopt_orphans();
        }
        Ok(changed)
    }

    /// Takes many statements in, whatever order they come in. True: the roster has changed. What is
    /// refused is left out; one bad statement must not take the others along.
    pub fn merge_all(&mut self, envelopes: Vec<Envelope>) -> bool {
        let mut changed = false;
        let mut rest = envelopes;
        loop {
            let before = rest.len();
            let (now, later): (Vec<_>, Vec<_>) = rest
                .into_iter()
                .partition(|envelope| self.known_keys.contains(&envelope.signer));
            // Without progress the others wait as orphans.
            let (now, later) = if later.len() == before {
                (later, now)
            } else {
                (now, later)
            };
            for envelope in now {
                match self.merge(envelope) {
                    Ok(new) => changed |= new,
                    Err(error) => tracing::debug!(%error, "a roster statement is left out"),
                }
            }
            if later.is_empty() {
                return changed;
            }
            rest = later;
        }
    }

    /// Everything but whether the signer is known. Of unknown versions only what can be seen outside.
    fn check(&self, envelope: &Envelope) -> Result<(), MergeError> {
        match parse(envelope)? {
            Parsed::Member(member) => self.check_swarm(member.swarm),
            Parsed::Revoked(revoked) => self.check_swarm(revoked.swarm),
            Parsed::Unknown => Ok(()),
        }
    }

    fn check_swarm(&self, got: SwarmId) -> Result<(), MergeError> {
        let wanted = self.swarm;
        if got == wanted {
            Ok(())
        } else {
            Err(MergeError::OtherSwarm { got, wanted })
        }
    }

    fn take(&mut self, id: StatementId, envelope: Envelope) -> Result<bool, MergeError> {
        match parse(&envelope)? {
            Parsed::Member(says) => {
                self.check_swarm(says.swarm)?;
                self.take_member(Kept { says, id, envelope })
            }
            Parsed::Revoked(says) => {
                self.check_swarm(says.swarm)?;
                self.take_revoked(Kept { says, id, envelope })
            }
            Parsed::Unknown => {
                let of_signer = self
                    .unknown
                    .values()
                    .filter(|other| other.signer == envelope.signer);
                if self.unknown.len() >= UNKNOWN_STATEMENTS
                    || of_signer.count() >= UNKNOWN_STATEMENTS_PER_SIGNER
                {
                    return Err(MergeError::Full("of unknown kind"));
                }
                self.unknown.insert(id, envelope);
                Ok(true)
            }
        }
    }

    fn take_member(&mut self, new: Kept<Member>) -> Result<bool, MergeError> {
        let (issuer, key) = (new.says.issued_by, new.says.key);
        let age = |kept: &Kept<Member>| (kept.says.issued_at, kept.says.serial, kept.id);
        if let Some(old) = self.memberships.get(&(issuer, key)) {
            if age(old) >= age(&new) {
                return Ok(false);
            }
        } else {
            let mine = (issuer, NodeKey([0; 32]))..=(issuer, NodeKey([0xff; 32]));
            let by_issuer = self.memberships.range(mine).count();
            if self.memberships.len() >= MEMBERSHIPS
                || (by_issuer >= MEMBERSHIPS_PER_ISSUER && !self.is_founder(issuer))
            {
                return Err(MergeError::Full("that bring a key in"));
            }
        }
        self.memberships.insert((issuer, key), new);
        self.known_keys.insert(key);
        Ok(true)
    }

    fn take_revoked(&mut self, new: Kept<Revoked>) -> Result<bool, MergeError> {
        let (key, signer) = (new.says.key, new.says.revoked_by);
        // Who has no say here could only fill the roster.
        if key != signer && !self.is_founder(signer) {
            return Ok(false);
        }
        if let Some(old) = self.revocations.get(&(key, signer)) {
            // All nodes must keep the same one: what it brings with it goes into the presence secret.
            if old.id <= new.id {
                return Ok(false);
            }
        } else if !self.may_be_put_out(key, signer) {
            return Err(MergeError::Full("that put a key out"));
        }
        self.revocations.insert((key, signer), new);
        Ok(true)
    }

    /// Whether there is room for one more statement that puts a key out.
    fn may_be_put_out(&self, key: NodeKey, signer: NodeKey) -> bool {
        let among_founders = |key, signer| self.is_founder(key) && self.is_founder(signer);
        if among_founders(key, signer) {
            return true;
        }
        let (mut all, mut of_oneself) = (0, 0);
        for (key, signer) in self.revocations.keys() {
            all += usize::from(!among_founders(*key, *signer));
            of_oneself += usize::from(!self.is_founder(*signer));
        }
        all < REVOCATIONS && (self.is_founder(signer) || of_oneself < REVOCATIONS_OF_ONESELF)
    }

    fn keep_orphan(&mut self, id: StatementId, envelope: Envelope) {
        if self.orphans.len() >= ORPHANED_STATEMENTS {
            self.orphans.pop_first();
        }
        self.orphans.insert(id, envelope);
    }

    /// Takes in the orphans whose signers have become known, again and again.
    fn adopt_orphans(&mut self) {
        loop {
            let known = &self.known_keys;
            let Some(id) = self
                .orphans
                .iter()
                .find(|(_, envelope)| known.contains(&envelope.signer))
                .map(|(id, _)| *id)
            else {
                return;
            };
            // What there is no room for now is offered again by who has it.
            if let Some(envelope) = self.orphans.remove(&id)
                && let Err(error) = self.take(id, envelope)
            {
                tracing::debug!(%id, %error, "a statement that waited for its issuer is not taken");
            }
        }
    }

    /// Whether somebody has ever vouched for this key, or it is a founder's.
    #[must_use]
    pub fn knows(&self, key: NodeKey) -> bool {
        self.known_keys.contains(&key)
    }

    /// The youngest statement about a key, whoever made it, whether it counts or not.
    #[must_use]
    pub fn latest(&self, key: NodeKey) -> Option<&Member> {
        let about = self.memberships.values().filter(|kept| kept.says.key == key);
        let latest = about.max_by_key(|kept| (kept.says.issued_at, kept.says.serial, kept.id));
        latest.map(|kept| &kept.says)
    }

    /// The statement that one key made about another, whether it counts or not.
    #[must_use]
    pub fn said_by(&self, issuer: NodeKey, key: NodeKey) -> Option<&Member> {
        self.memberships.get(&(issuer, key)).map(|kept| &kept.says)
    }

    /// Ids of all statements, sorted.
    #[must_use]
    pub fn ids(&self) -> BTreeSet<StatementId> {
        let members = self.memberships.values().map(|kept| kept.id);
        let revoked = self.revocations.values().map(|kept| kept.id);
        members
            .chain(revoked)
            .chain(self.unknown.keys().copied())
            .collect()
    }

    /// All statements, those of unknown version included.
    pub fn statements(&self) -> impl Iterator<Item = (StatementId, &Envelope)> {
        let members = self.memberships.values().map(|kept| (kept.id, &kept.envelope));
        let revoked = self.revocations.values().map(|kept| (kept.id, &kept.envelope));
        let unknown = self.unknown.iter().map(|(id, envelope)| (*id, envelope));
        members.chain(revoked).chain(unknown)
    }

    /// Equal for equal sets of statements.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for id in self.ids() {
            hasher.update(&id.0);
        }
        *hasher.finalize().as_bytes()
    }

    /// Keys that are out for ever.
    #[must_use]
    pub fn revoked(&self) -> BTreeSet<NodeKey> {
        self.counting_revocations().map(|kept| kept.says.key).collect()
    }

    /// Whether this key is out for ever.
    #[must_use]
    pub fn is_revoked(&self, key: NodeKey) -> bool {
        let range = (key, NodeKey([0; 32]))..=(key, NodeKey([0xff; 32]));
        let signers: Vec<NodeKey> = self
            .revocations
            .range(range)
            .map(|((_, signer), _)| *signer)
            .collect();
        if !self.is_founder(key) || signers.contains(&key) {
            return !signers.is_empty();
        }
        signers.len() >= usize::from(self.genesis.threshold)
    }

    /// Who else has said that this key is to be out, whether it counts or not.
    #[must_use]
    pub fn put_out_by(&self, key: NodeKey) -> Vec<NodeKey> {
        let range = (key, NodeKey([0; 32]))..=(key, NodeKey([0xff; 32]));
        let signers = self.revocations.range(range).map(|((_, signer), _)| *signer);
        signers.filter(|signer| *signer != key).collect()
    }

    fn counting_revocations(&self) -> impl Iterator<Item = &Kept<Revoked>> {
        self.revocations
            .values()
            .filter(|kept| self.is_revoked(kept.says.key))
    }

    /// What turns store paths into keys that only members can compute.
    #[must_use]
    pub fn presence_secret(&self) -> PresenceSecret {
        let fresh: BTreeSet<&[u8; 32]> = self.counting_revocations().map(|kept| &kept.says.fresh).collect();
        PresenceSecret::derive(&self.genesis, fresh)
    }

    /// The statements that lead from a member up to a founder; what it shows to who has not heard of it.
    #[must_use]
    pub fn introduction(&self, key: NodeKey, now: u64) -> Vec<Envelope> {
        let members = self.members(now);
        let mut chain = Vec::new();
        let mut key = key;
        while let Some(issuer) = members.get(key).and_then(|member| member.issued_by) {
            if let Some(kept) = self.memberships.get(&(issuer, key)) {
                chain.push(kept.envelope.clone());
            }
            key = issuer;
        }
        chain
    }

    /// Keys somebody has vouched for that are neither members at this time nor revoked, and why: their time is
    /// over, or who vouched for them is out. They need a new statement.
    #[must_use]
    pub fn waiting(&self, now: u64) -> BTreeMap<NodeKey, Waiting> {
        waiting::waiting(self, now)
    }

    /// The keys of [`Roster::waiting`].
    #[must_use]
    pub fn to_renew(&self, now: u64) -> BTreeSet<NodeKey> {
        self.waiting(now).into_keys().collect()
    }

    /// What a key was called last, whether it is a member's or not.
    #[must_use]
    pub fn last_name(&self, key: NodeKey) -> Option<&str> {
        let mut founders = self.genesis.founders.iter();
        match founders.find(|founder| founder.key == key) {
            Some(founder) => Some(&founder.name),
            None => self.latest(key).map(|member| member.name.as_str()),
        }
    }

    /// Who is a member at this time, in seconds since 1970, and what each may do.
    #[must_use]
    pub fn members(&self, now: u64) -> Members {
        members::members(self, now)
    }
}

/// The name of a statement.
///
/// # Errors
/// [`MergeError::TooLarge`], [`MergeError::Envelope`]
pub fn statement_id(envelope: &Envelope) -> Result<StatementId, MergeError> {
    let bytes = envelope.to_bytes()?;
    let is_known = matches!(
        (envelope.domain.as_str(), envelope.version),
        (Member::DOMAIN, Member::VERSION) | (Revoked::DOMAIN, Revoked::VERSION)
    );
    let limit = match is_known {
        true => KNOWN_STATEMENT_BYTES,
        false => ROSTER_STATEMENT_BYTES,
    };
    if bytes.len() > limit {
        let size = bytes.len();
        return Err(MergeError::TooLarge { size, limit });
    }
    Ok(StatementId(*blake3::hash(&bytes).as_bytes()))
}

enum Parsed {
    Member(Member),
    Revoked(Revoked),
    Unknown,
}

fn parse(envelope: &Envelope) -> Result<Parsed, MergeError> {
    match (envelope.domain.as_str(), envelope.version) {
        (Member::DOMAIN, Member::VERSION) => {
            let member: Member = envelope.open()?;
            member.check_structure(envelope.signer)?;
            Ok(Parsed::Member(member))
        }
        (Revoked::DOMAIN, Revoked::VERSION) => {
            let revoked: Revoked = envelope.open()?;
            revoked.check_structure(envelope.signer)?;
            Ok(Parsed::Revoked(revoked))
        }
        (domain, _) if domain.starts_with("roster-") => Ok(Parsed::Unknown),
        (domain, _) => Err(MergeError::Kind(domain.to_owned())),
    }
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
