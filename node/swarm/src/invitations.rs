//! The inviter's side of tickets: which ones it made, and what became of them.
//!
//! A pure state with a file. A ticket is worth one membership, which begins when it is used: it is marked as used, with the
//! time, durably, before the new member is told. Who asks again with it, because the answer was lost, gets what it got then,
//! and nothing that begins later.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::JoinRefusal;
use tvix_node_protocol::roster::{Roles, TicketId};
use tvix_node_protocol::ticket::{Ticket, ticket_id};

use crate::disk::{self, DiskError};
use crate::limits::{TICKET_MEMORY, TICKETS};

const SCHEMA: u64 = 2;
/// When a ticket was used was not noted.
const SCHEMA_WITHOUT_TIMES: u64 = 1;
/// Bytes of the file: some 250 a ticket.
const FILE_BYTES: usize = TICKETS * 512;

/// What was promised with a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invitation {
    /// The roles its holder gets.
    pub roles: Roles,
    /// Seconds since 1970 after which it is void.
    pub not_after: u64,
    /// Seconds the membership lasts.
    pub lasts: u64,
    /// By whom and when it was used.
    pub used: Option<Use>,
}

/// That a ticket was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Use {
    /// Whose it was.
    pub by: NodeKey,
    /// Seconds since 1970: when the membership began that the ticket is worth.
    pub at: u64,
}

/// An [`Invitation`] as it was written before the time of its use was noted.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WithoutTime {
    roles: Roles,
    not_after: u64,
    lasts: u64,
    used_by: Option<NodeKey>,
}

impl From<WithoutTime> for Invitation {
    fn from(old: WithoutTime) -> Self {
        Self {
            roles: old.roles,
            not_after: old.not_after,
            lasts: old.lasts,
            // What it was worth has been given. When is not known, so nothing is given for it again.
            used: old.used_by.map(|by| Use { by, at: 0 }),
        }
    }
}

/// Why a ticket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// Too many that are still good.
    #[error("{TICKETS} tickets are waiting to be used; wait until some expire")]
    TooMany,
    /// The file.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// All tickets this node made for one team.
#[derive(Debug)]
pub struct Invitations {
    path: PathBuf,
    swarm: SwarmId,
    made: BTreeMap<TicketId, Invitation>,
}

impl Invitations {
    /// Reads them from the team's folder.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(folder: &Path, swarm: SwarmId) -> Result<Self, DiskError> {
        let path = folder.join("tickets");
        let stored = disk::load_stored(&path, SCHEMA_WITHOUT_TIMES..=SCHEMA, FILE_BYTES)?;
        let made: Vec<(TicketId, Invitation)> = match stored {
            None => vec![],
            Some(stored) if stored.schema == SCHEMA_WITHOUT_TIMES => {
                let made: Vec<(TicketId, WithoutTime)> = stored.content(&path)?;
                made.into_iter().map(|(id, old)| (id, old.into())).collect()
            }
            Some(stored) => stored.content(&path)?,
        };
        Ok(Self {
            path,
            swarm,
            made: made.into_iter().collect(),
        })
    }

    fn save(&self) -> Result<(), DiskError> {
        let made: Vec<_> = self.made.iter().collect();
        disk::save(&self.path, SCHEMA, &made)
    }

    /// Remembers a ticket that is about to be handed out.
    ///
    /// # Errors
    /// See [`InviteError`]; the ticket is then worth nothing.
    pub fn add(&mut self, ticket: &Ticket, roles: Roles, lasts: u64, now: u64) -> Result<(), InviteError> {
        self.made
            .retain(|_, invitation| now <= invitation.not_after.saturating_add(TICKET_MEMORY));
        if self.made.len() >= TICKETS {
            let void = |invitation: &Invitation| invitation.used.is_some() || now > invitation.not_after;
            let oldest = self
                .made
                .iter()
                .filter(|(_, invitation)| void(invitation))
                .min_by_key(|(_, invitation)| invitation.not_after)
                .map(|(id, _)| *id)
                .ok_or(InviteError::TooMany)?;
            self.made.remove(&oldest);
        }
        let invitation = Invitation {
            roles,
            not_after: ticket.not_after,
            lasts,
            used: None,
        };
        self.made.insert(ticket.id(), invitation);
        Ok(self.save()?)
    }

    /// Uses a ticket up for this key; what was promised with it comes back, and when it was used, which is now or
    /// before: the same key may come again, since the answer may have been lost on the way.
    ///
    /// # Errors
    /// Why the ticket is not good; [`JoinRefusal::Busy`] where it could not be marked as used.
    pub fn redeem(
        &mut self,
        swarm: SwarmId,
        secret: &[u8; 16],
        key: NodeKey,
        now: u64,
    ) -> Result<(TicketId, Invitation, Use), JoinRefusal> {
        if swarm != self.swarm {
            return Err(JoinRefusal::OtherSwarm);
        }
        let id = ticket_id(secret);
        let invitation = self.made.get_mut(&id).ok_or(JoinRefusal::UnknownTicket)?;
        match invitation.used {
            Some(used) if used.by != key => return Err(JoinRefusal::Used),
            _ if now > invitation.not_after => return Err(JoinRefusal::Expired),
            Some(used) => return Ok((id, invitation.clone(), used)),
            None => {}
        }
        let used = Use { by: key, at: now };
        invitation.used = Some(used);
        let promised = invitation.clone();
        if let Err(error) = self.save() {
            tracing::error!(%error, "a ticket could not be marked as used and is not honoured");
            if let Some(invitation) = self.made.get_mut(&id) {
                invitation.used = None;
            }
            return Err(JoinRefusal::Busy);
        }
        Ok((id, promised, used))
    }

    /// All of them, for people.
    pub fn iter(&self) -> impl Iterator<Item = (TicketId, &Invitation)> {
        self.made.iter().map(|(id, invitation)| (*id, invitation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWARM: SwarmId = SwarmId([1; 32]);
    const ANN: NodeKey = NodeKey([2; 32]);
    const BOB: NodeKey = NodeKey([3; 32]);

    fn ticket(seed: u16) -> Ticket {
        let mut secret = [0; 16];
        secret[..2].copy_from_slice(&seed.to_le_bytes());
        Ticket {
            swarm: SWARM,
            inviter: NodeKey([9; 32]),
            addresses: vec![],
            not_after: 200,
            secret,
            founder: None,
        }
    }

    fn with_one() -> (tempfile::TempDir, Invitations) {
        let home = tempfile::tempdir().unwrap();
        let mut invitations = Invitations::open(home.path(), SWARM).unwrap();
        invitations.add(&ticket(1), Roles::all(), 1000, 100).unwrap();
        (home, invitations)
    }

    #[test]
    fn a_ticket_is_worth_one_membership() {
        let (_home, mut invitations) = with_one();
        let secret = ticket(1).secret;
        let (id, invitation, used) = invitations.redeem(SWARM, &secret, ANN, 150).unwrap();
        assert_eq!((id, invitation.lasts), (ticket(1).id(), 1000));
        assert_eq!(used, Use { by: ANN, at: 150 });
        assert_eq!(
            invitations.redeem(SWARM, &secret, BOB, 150),
            Err(JoinRefusal::Used)
        );
        let (.., again) = invitations.redeem(SWARM, &secret, ANN, 170).unwrap();
        assert_eq!(
            again, used,
            "the answer was lost; what is given does not begin anew"
        );
    }

    #[test]
    fn each_bad_ticket_has_its_reason() {
        let (_home, mut invitations) = with_one();
        let secret = ticket(1).secret;
        let unknown = invitations.redeem(SWARM, &ticket(2).secret, ANN, 150);
        assert_eq!(unknown, Err(JoinRefusal::UnknownTicket));
        let foreign = invitations.redeem(SwarmId([7; 32]), &secret, ANN, 150);
        assert_eq!(foreign, Err(JoinRefusal::OtherSwarm));
        assert_eq!(
            invitations.redeem(SWARM, &secret, ANN, 201),
            Err(JoinRefusal::Expired)
        );
        assert!(invitations.redeem(SWARM, &secret, ANN, 200).is_ok());
    }

    #[test]
    fn a_used_ticket_stays_used_after_a_restart() {
        let (home, mut invitations) = with_one();
        let secret = ticket(1).secret;
        invitations.redeem(SWARM, &secret, ANN, 150).unwrap();
        let mut again = Invitations::open(home.path(), SWARM).unwrap();
        assert_eq!(again.redeem(SWARM, &secret, BOB, 150), Err(JoinRefusal::Used));
        let (.., used) = again.redeem(SWARM, &secret, ANN, 170).unwrap();
        assert_eq!(used.at, 150);
    }

    #[test]
    fn tickets_of_a_version_that_noted_no_times_are_known_and_give_nothing_twice() {
        let home = tempfile::tempdir().unwrap();
        let old = |used_by| WithoutTime {
            roles: Roles::all(),
            not_after: 200,
            lasts: 1000,
            used_by,
        };
        let made = [(ticket(1).id(), old(Some(ANN))), (ticket(2).id(), old(None))];
        disk::save(&home.path().join("tickets"), SCHEMA_WITHOUT_TIMES, &made).unwrap();
        let mut invitations = Invitations::open(home.path(), SWARM).unwrap();
        let mut used = |seed, key| {
            let redeemed = invitations.redeem(SWARM, &ticket(seed).secret, key, 150);
            redeemed.map(|(.., used)| used.at)
        };
        assert_eq!(used(1, BOB), Err(JoinRefusal::Used));
        assert_eq!(used(1, ANN), Ok(0));
        assert_eq!(used(2, BOB), Ok(150));
        let mut again = Invitations::open(home.path(), SWARM).unwrap();
        let (.., used) = again.redeem(SWARM, &ticket(2).secret, BOB, 170).unwrap();
        assert_eq!(used.at, 150);
    }

    #[test]
    fn a_ticket_that_cannot_be_marked_as_used_is_not_honoured() {
        let (home, mut invitations) = with_one();
        drop(home);
        let secret = ticket(1).secret;
        assert_eq!(
            invitations.redeem(SWARM, &secret, ANN, 150),
            Err(JoinRefusal::Busy)
        );
    }

    #[test]
    fn tickets_are_bounded_and_void_ones_go_first() {
        let (_home, mut invitations) = with_one();
        for seed in 2..=TICKETS as u16 {
            invitations
                .made
                .insert(ticket(seed).id(), invitations.made[&ticket(1).id()].clone());
        }
        let one_more = ticket(u16::MAX);
        assert!(matches!(
            invitations.add(&one_more, Roles::all(), 1, 150),
            Err(InviteError::TooMany)
        ));
        invitations.redeem(SWARM, &ticket(1).secret, ANN, 150).unwrap();
        invitations.add(&one_more, Roles::all(), 1, 150).unwrap();
        assert_eq!(invitations.iter().count(), TICKETS);
        invitations
            .add(&ticket(1), Roles::all(), 1, 201 + TICKET_MEMORY)
            .unwrap();
        assert_eq!(invitations.iter().count(), 1);
    }
}
