//! The string that lets someone join.
//!
//! `tvix-node-ticket-1-`, or 2 for one that is for a founder, followed by base 32 in lower case: a deterministic encoding and a checksum,
//! so that a ticket that was cut or mistyped on its way is told from one that is not valid. It can be
//! copied with one double click, and white space that a mail program put in does not matter.

use serde::{Deserialize, Serialize};

use crate::build::SwarmId;
use crate::cbor::{self, CborError};
use crate::envelope::NodeKey;
use crate::limits::{ADDRESS_BYTES, TICKET_ADDRESSES, TICKET_BYTES};
use crate::roster::TicketId;

const PREFIX: &str = "tvix-node-ticket-";
const VERSION: &str = "1";
/// Of a ticket for a founder.
const FOUNDERS_VERSION: &str = "2";
const CHECKSUM: usize = 6;

/// An invitation. Whoever holds it can become a member, once; with one for a founder, who has that founder's key takes its
/// place, and it is worth nothing to anybody else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// The team.
    pub swarm: SwarmId,
    /// Where it is redeemed.
    pub inviter: NodeKey,
    /// Where the inviter was reachable when it made the ticket, as multiaddresses.
    pub addresses: Vec<String>,
    /// Seconds since 1970 after which it is void.
    pub not_after: u64,
    /// Proves that one holds the ticket. Used once.
    #[serde(with = "crate::bytes")]
    pub secret: [u8; 16],
    /// The founder that it is for, by the key that the team began with. None: for whoever holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founder: Option<NodeKey>,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Ticket")
            .field("swarm", &self.swarm)
            .field("inviter", &self.inviter)
            .field("addresses", &self.addresses)
            .field("not_after", &self.not_after)
            .field("founder", &self.founder)
            .finish_non_exhaustive()
    }
}

/// Why a string is not a ticket.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// Something else altogether.
    #[error("this is not a ticket: one starts with '{PREFIX}{VERSION}-' and is printed by 'invite'")]
    NotATicket,
    /// Of a version this program does not know.
    #[error(
        "this ticket has version {got}; this node understands versions {VERSION} and {FOUNDERS_VERSION}: the older of the two needs an update"
    )]
    Version {
        /// The version it names.
        got: String,
    },
    /// Cut or changed on its way.
    #[error("this ticket is torn: a part is missing or was changed on the way; copy all of it")]
    Torn,
    /// The checksum holds, but not what is under it.
    #[error("this ticket does not hold what one should: {0}")]
    Content(#[from] CborError),
    /// More or longer addresses than allowed.
    #[error("this ticket names more than {TICKET_ADDRESSES} addresses, or one of over {ADDRESS_BYTES} bytes")]
    Addresses,
}

impl Ticket {
    /// What the ticket is known by where it was made.
    #[must_use]
    pub fn id(&self) -> TicketId {
        ticket_id(&self.secret)
    }

    /// The string to hand over.
    ///
    /// # Errors
    /// [`TicketError::Addresses`], [`TicketError::Content`]
    pub fn to_text(&self) -> Result<String, TicketError> {
        self.check_addresses()?;
        let mut bytes = cbor::to_vec(self)?;
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        Ok(format!("{PREFIX}{}-{}", self.version(), base32(&bytes)))
    }

    const fn version(&self) -> &'static str {
        match self.founder {
            None => VERSION,
            Some(_) => FOUNDERS_VERSION,
        }
    }

    /// Reads the string.
    ///
    /// # Errors
    /// See [`TicketError`].
    pub fn from_text(text: &str) -> Result<Self, TicketError> {
        let text: String = text
            .chars()
            .filter(|letter| !letter.is_whitespace())
            .take(TICKET_BYTES + 1)
            .collect();
        let rest = text.strip_prefix(PREFIX).ok_or(TicketError::NotATicket)?;
        if text.len() > TICKET_BYTES {
            return Err(TicketError::Torn);
        }
        let (version, letters) = rest.split_once('-').ok_or(TicketError::NotATicket)?;
        if version != VERSION && version != FOUNDERS_VERSION {
            let got = version.to_owned();
            return Err(TicketError::Version { got });
        }
        let bytes = from_base32(letters).ok_or(TicketError::Torn)?;
        let (content, sum) = bytes
            .len()
            .checked_sub(CHECKSUM)
            .and_then(|middle| bytes.split_at_checked(middle))
            .ok_or(TicketError::Torn)?;
        if checksum(content) != sum {
            return Err(TicketError::Torn);
        }
        let ticket: Self = cbor::from_slice(content, TICKET_BYTES)?;
        if ticket.version() != version {
            return Err(TicketError::Torn);
        }
        ticket.check_addresses()?;
        Ok(ticket)
    }

    fn check_addresses(&self) -> Result<(), TicketError> {
        let too_long = |address: &String| address.len() > ADDRESS_BYTES;
        if self.addresses.len() > TICKET_ADDRESSES || self.addresses.iter().any(too_long) {
            return Err(TicketError::Addresses);
        }
        Ok(())
    }
}

/// The name of the ticket with this secret.
#[must_use]
pub fn ticket_id(secret: &[u8; 16]) -> TicketId {
    TicketId(*blake3::hash(secret).as_bytes())
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let hash = blake3::hash(bytes);
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&hash.as_bytes()[..CHECKSUM]);
    sum
}

/// The alphabet of RFC 4648, section 6, in lower case; without padding.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    for group in bytes.chunks(5) {
        let mut block = [0; 8];
        block[..group.len()].copy_from_slice(group);
        let bits = u64::from_be_bytes(block) >> 24;
        for index in 0..(group.len() * 8).div_ceil(5) {
            let letter = (bits >> (35 - 5 * index)) & 31;
            text.push(char::from(ALPHABET[letter as usize]));
        }
    }
    text
}

/// None for a letter outside the alphabet, a length that does not occur, and spare bits that are set.
fn from_base32(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    for group in text.as_bytes().chunks(8) {
        let mut bits = 0_u64;
        for (index, letter) in group.iter().enumerate() {
            let value = ALPHABET.iter().position(|known| known == letter)? as u64;
            bits |= value << (35 - 5 * index);
        }
        let count = group.len() * 5 / 8;
        if (count * 8).div_ceil(5) != group.len() {
            return None;
        }
        let block = (bits << 24).to_be_bytes();
        if block[count..5].iter().any(|spare| *spare != 0) {
            return None;
        }
        bytes.extend_from_slice(&block[..count]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            swarm: SwarmId([1; 32]),
            inviter: NodeKey([2; 32]),
            addresses: vec![
                "/ip4/192.0.2.1/tcp/4001".into(),
                "/ip4/192.0.2.1/udp/4001/quic-v1".into(),
            ],
            not_after: 1_700_000_000,
            secret: [3; 16],
            founder: None,
        }
    }

    #[test]
    fn a_ticket_survives_copying() {
        let text = ticket().to_text().unwrap();
        assert!(
            text.bytes()
                .all(|letter| letter.is_ascii_alphanumeric() || letter == b'-')
        );
        assert_eq!(Ticket::from_text(&text).unwrap(), ticket());
        let (head, tail) = text.split_at(60);
        let wrapped = format!("  {head}\r\n  {tail}\n");
        assert_eq!(Ticket::from_text(&wrapped).unwrap(), ticket());
    }

    #[test]
    fn a_ticket_for_a_founder_is_none_for_programs_that_know_of_no_such() {
        let founders = Ticket {
            founder: Some(NodeKey([4; 32])),
            ..ticket()
        };
        let text = founders.to_text().unwrap();
        assert!(text.starts_with("tvix-node-ticket-2-"), "{text}");
        assert_eq!(Ticket::from_text(&text).unwrap(), founders);
        // Neither passes as the other.
        for (ticket, other) in [(founders, "-1-"), (ticket(), "-2-")] {
            let text = ticket.to_text().unwrap();
            let changed = text.replacen(&format!("-{}-", ticket.version()), other, 1);
            assert!(matches!(Ticket::from_text(&changed), Err(TicketError::Torn)));
        }
    }

    #[test]
    fn a_torn_ticket_is_told_from_something_else() {
        let text = ticket().to_text().unwrap();
        for length in (PREFIX.len() + 2)..text.len() {
            assert!(
                matches!(Ticket::from_text(&text[..length]), Err(TicketError::Torn)),
                "cut at {length}"
            );
        }
        for position in (PREFIX.len() + 2)..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[position] = if changed[position] == b'a' { b'b' } else { b'a' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(
                matches!(Ticket::from_text(&changed), Err(TicketError::Torn)),
                "changed at {position}"
            );
        }
        for text in ["", "hello", "tvix-node-ticket-", "/ip4/192.0.2.1/tcp/4001"] {
            assert!(matches!(Ticket::from_text(text), Err(TicketError::NotATicket)));
        }
    }

    #[test]
    fn another_version_is_named() {
        let text = ticket().to_text().unwrap().replacen("-1-", "-3-", 1);
        let error = Ticket::from_text(&text).unwrap_err().to_string();
        assert!(
            error.contains("version 3") && error.contains("versions 1 and 2"),
            "{error}"
        );
    }

    #[test]
    fn the_size_is_bounded() {
        let mut large = ticket();
        large.addresses = vec!["/ip4/192.0.2.1/tcp/1".into(); TICKET_ADDRESSES + 1];
        assert!(matches!(large.to_text(), Err(TicketError::Addresses)));
        large.addresses = vec!["x".repeat(ADDRESS_BYTES)];
        assert!(large.to_text().is_ok());
        large.addresses = vec!["x".repeat(ADDRESS_BYTES + 1)];
        assert!(matches!(large.to_text(), Err(TicketError::Addresses)));
        let endless = format!("{PREFIX}{VERSION}-{}", "a".repeat(10 * TICKET_BYTES));
        assert!(matches!(Ticket::from_text(&endless), Err(TicketError::Torn)));
    }

    #[test]
    fn base_32_has_one_form() {
        for length in 0..40 {
            let bytes: Vec<u8> = (0..length).map(|index: u8| index.wrapping_mul(37)).collect();
            assert_eq!(from_base32(&base32(&bytes)).unwrap(), bytes);
        }
        assert_eq!(base32(b"foobar"), "mzxw6ytboi");
        assert_eq!(from_base32("mzxw6ytbo"), None, "a length that does not occur");
        assert_eq!(from_base32("mz1w"), None, "a letter outside the alphabet");
        assert_eq!(from_base32("mb"), None, "a spare bit that is set");
    }

    #[test]
    fn the_secret_is_not_printed() {
        assert!(!format!("{:?}", ticket()).contains("3, 3"));
    }
}
