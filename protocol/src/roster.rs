//! Who is in the team: the statements a roster is made of.
//!
//! A swarm is named by its [`Genesis`]. Everything after it is a signed statement: [`Member`] brings
//! a key in, [`Revoked`] puts it out for ever. What they amount to together is decided by the swarm,
//! which merges them in any order; here is only what each one says.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::build::SwarmId;
use crate::cbor::{self, CborError};
use crate::digest::digest;
use crate::envelope::{NodeKey, Statement};
use crate::limits::{FOUNDERS, KEY_BEGINNING, MEMBER_NAME_BYTES};

digest! {
    /// Names a roster statement: BLAKE3 of its envelope's encoding.
    StatementId
}

digest! {
    /// Names a ticket without giving its secret away: BLAKE3 of the secret.
    TicketId
}

/// What a member may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// May ask others to build.
    Request,
    /// Builds for others; its build records count.
    Build,
    /// Its path infos count; it may be a desired store.
    Store,
    /// May bring others in, with no more roles than its own.
    Invite,
}

impl Role {
    /// Every role there is.
    pub const ALL: [Self; 4] = [Self::Request, Self::Build, Self::Store, Self::Invite];

    /// Its name, as people write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Build => "build",
            Self::Store => "store",
            Self::Invite => "invite",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| format!("'{text}' is not a role: request, build, store and invite are"))
    }
}

/// A set of roles.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Roles(BTreeSet<Role>);

impl Roles {
    /// Every role.
    #[must_use]
    pub fn all() -> Self {
        Role::ALL.into_iter().collect()
    }

    /// Whether this role is among them.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    /// Whether all of these are among those.
    #[must_use]
    pub fn within(&self, those: &Self) -> bool {
        self.0.is_subset(&those.0)
    }

    /// In the order of [`Role::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = Role> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Self(roles.into_iter().collect())
    }
}

impl std::fmt::Display for Roles {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.iter().map(Role::name).collect();
        formatter.write_str(&names.join(", "))
    }
}

/// Why somebody who was vouched for is no member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lapse {
    /// Its time is over.
    Ended,
    /// Who vouched has left the team, or was put out.
    IssuerOut,
    /// Who vouched is no member, and can become one again.
    IssuerNoMember,
    /// Who vouched may not invite any more.
    IssuerMayNot,
    /// Too many invitations lie between it and a founder, or by this clock it has not begun.
    NotCounted,
}

/// Why a roster statement does not hold together.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum RosterError {
    /// No founder, too many, or one twice.
    #[error("a team has 1 to {FOUNDERS} founders, sorted and each once")]
    Founders,
    /// A threshold that no number of founders can reach, or that needs none.
    #[error("{threshold} of {founders} founders cannot be the threshold")]
    Threshold {
        /// What it says.
        threshold: u16,
        /// How many founders there are.
        founders: usize,
    },
    /// A name that cannot be shown in one line.
    #[error("'{}' cannot be a name: 1 to {MEMBER_NAME_BYTES} bytes without control or invisible characters can, and not the digits of a key alone", .0.escape_debug())]
    Name(String),
    /// Void before it is issued.
    #[error("not-after lies before issued-at")]
    Times,
    /// Signed by another than it says.
    #[error("the statement says it is by {claimed}, but {signer} signed it")]
    Signer {
        /// Whose it claims to be.
        claimed: NodeKey,
        /// Whose it is.
        signer: NodeKey,
    },
    /// Nobody brings itself in.
    #[error("{0} vouches for itself")]
    SelfIssued(NodeKey),
}

/// How a team begins. Its encoding's hash names the swarm.
///
/// The salt is a secret of the members: what they alone can compute is derived from it, so a genesis
/// is given to nobody who has not been let in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// What the team calls itself.
    pub name: String,
    /// Nodes with every role, from which all trust descends. Sorted by key, each once.
    pub founders: Vec<Founder>,
    /// How many founders together put out one of themselves. Everyone else is put out by one.
    pub threshold: u16,
    /// 32 random bytes.
    #[serde(with = "crate::bytes")]
    pub salt: [u8; 32],
}

/// A node that was there from the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founder {
    /// Its key.
    pub key: NodeKey,
    /// What people call it.
    pub name: String,
}

impl std::fmt::Debug for Genesis {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Genesis")
            .field("name", &self.name)
            .field("founders", &self.founders)
            .field("threshold", &self.threshold)
            .finish_non_exhaustive()
    }
}

impl Genesis {
    /// The name of the swarm that begins like this.
    ///
    /// # Errors
    /// [`CborError::Encode`], which a checked genesis does not cause.
    pub fn swarm(&self) -> Result<SwarmId, CborError> {
        let bytes = cbor::to_vec(&("roster-genesis", 1, self))?;
        Ok(SwarmId(*blake3::hash(&bytes).as_bytes()))
    }

    /// Checks what can be checked without knowing anything else.
    ///
    /// # Errors
    /// See [`RosterError`].
    pub fn check_structure(&self) -> Result<(), RosterError> {
        check_said_name(&self.name)?;
        for founder in &self.founders {
            check_said_name(&founder.name)?;
        }
        let founders = self.founders.len();
        let sorted = self.founders.windows(2).all(|pair| pair[0].key < pair[1].key);
        if founders == 0 || founders > FOUNDERS || !sorted {
            return Err(RosterError::Founders);
        }
        if self.threshold == 0 || usize::from(self.threshold) > founders {
            let threshold = self.threshold;
            return Err(RosterError::Threshold { threshold, founders });
        }
        Ok(())
    }
}

/// Brings a key into the team, or says anew what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The team.
    pub swarm: SwarmId,
    /// Who is brought in.
    pub key: NodeKey,
    /// What people call this node.
    pub name: String,
    /// What it may do.
    pub roles: Roles,
    /// Who vouches. Must be the envelope's signer.
    pub issued_by: NodeKey,
    /// Orders the statements of one issuer about one key that were made in the same second.
    pub serial: u64,
    /// Seconds since 1970. Of several statements about a key the youngest counts.
    pub issued_at: u64,
    /// Seconds since 1970 after which it is void.
    pub not_after: u64,
    /// The ticket that was redeemed; none where the issuer acted by itself.
    pub ticket: Option<TicketId>,
}

impl Statement for Member {
    const DOMAIN: &'static str = "roster-member";
    const VERSION: u16 = 1;
}

impl Member {
    /// Checks what can be checked without knowing anything else. `signer` is the envelope's.
    ///
    /// # Errors
    /// See [`RosterError`].
    pub fn check_structure(&self, signer: NodeKey) -> Result<(), RosterError> {
        check_said_name(&self.name)?;
        if self.issued_by != signer {
            let claimed = self.issued_by;
            return Err(RosterError::Signer { claimed, signer });
        }
        if self.issued_by == self.key {
            return Err(RosterError::SelfIssued(self.key));
        }
        if self.not_after < self.issued_at {
            return Err(RosterError::Times);
        }
        Ok(())
    }
}

/// Puts a key out of the team. It never returns.
///
/// Counts where the signer is the key itself or a founder; for a founder it takes as many founders
/// as the genesis says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// The team.
    pub swarm: SwarmId,
    /// Who is put out.
    pub key: NodeKey,
    /// Who says so. Must be the envelope's signer.
    pub revoked_by: NodeKey,
    /// Keeps two statements of one signer about one key apart.
    pub serial: u64,
    /// Seconds since 1970; for people, it decides nothing.
    pub issued_at: u64,
    /// 32 fresh random bytes. They change what members alone can compute, so that who has been put
    /// out can no longer compute it.
    #[serde(with = "crate::bytes")]
    pub fresh: [u8; 32],
}

impl std::fmt::Debug for Revoked {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Revoked")
            .field("key", &self.key)
            .field("revoked_by", &self.revoked_by)
            .field("serial", &self.serial)
            .field("issued_at", &self.issued_at)
            .finish_non_exhaustive()
    }
}

impl Statement for Revoked {
    const DOMAIN: &'static str = "roster-revoked";
    const VERSION: u16 = 1;
}

impl Revoked {
    /// Checks what can be checked without knowing anything else. `signer` is the envelope's.
    ///
    /// # Errors
    /// [`RosterError::Signer`]
    pub fn check_structure(&self, signer: NodeKey) -> Result<(), RosterError> {
        if self.revoked_by == signer {
            return Ok(());
        }
        let claimed = self.revoked_by;
        Err(RosterError::Signer { claimed, signer })
    }
}

/// Characters that are not seen, or have what follows read in another direction: with them two names look alike.
const fn is_invisible(letter: char) -> bool {
    matches!(
        letter,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

/// Checks what people want to call a team or a node, before it is called so.
///
/// # Errors
/// [`RosterError::Name`]
pub fn check_name(name: &str) -> Result<(), RosterError> {
    // Who is called like another's key would be taken for the other.
    let is_key = name.len() >= KEY_BEGINNING && name.chars().all(|letter| letter.is_ascii_hexdigit());
    if is_key || name.chars().any(is_invisible) {
        return Err(RosterError::Name(name.to_owned()));
    }
    check_said_name(name)
}

/// Checks a name that was given: what a roster has is not refused for what was found out about names since.
fn check_said_name(name: &str) -> Result<(), RosterError> {
    if name.is_empty() || name.len() > MEMBER_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(RosterError::Name(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
