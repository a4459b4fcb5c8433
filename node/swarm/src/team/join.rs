//! Becoming a member: a network of its own, for one question to the inviter.

use std::path::Path;

use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::{NodeKey, NodeSecret};
use tvix_node_protocol::messages::{JoinAnswer, JoinRefusal, JoinRequest, Welcome};
use tvix_node_protocol::roster::{RosterError, check_name};
use tvix_node_protocol::ticket::Ticket;

use super::{Team, TeamError};
use crate::call::{self, CallError};
use crate::clock::{Clock, in_words};
use crate::disk::DiskError;
use crate::limits::CLOCK_SKEW;
use crate::machine::Machine;
use crate::net::contacts::{Contacts, SharedContacts};
use crate::net::door::Names;
use crate::net::driver::Driver;
use crate::net::gatekeeper::Gatekeeper;
use crate::net::network::Command;
use crate::net::transport::{Setup, build};
use crate::net::{Door, OpenError, Traffic, TransportError};
use crate::roster::{GenesisError, Roster};

/// Why joining failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The ticket's time is over, by this node's clock.
    #[error(
        "the ticket was good until {}, and this clock says {}: ask for a new ticket, or set the clock if it is wrong",
        in_words(*.not_after), in_words(*.now)
    )]
    Expired {
        /// The ticket's end.
        not_after: u64,
        /// This node's time.
        now: u64,
    },
    /// The node belongs to the team already.
    #[error(
        "this node belongs to the team {0} already; where it was put out, 'tvix-node leave --team {0}' comes first"
    )]
    AlreadyIn(SwarmId),
    /// The name cannot be one.
    #[error(transparent)]
    Name(#[from] RosterError),
    /// The network.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// No address of the inviter works.
    #[error(
        "cannot redeem the ticket at {inviter}: {source}; is it running ('up'), and reachable at {}?",
        .addresses.join(", ")
    )]
    Unreachable {
        /// Who made the ticket.
        inviter: NodeKey,
        /// Where it should be.
        addresses: Vec<String>,
        /// Why not.
        source: CallError,
    },
    /// The inviter does not know this way of joining.
    #[error("the ticket cannot be redeemed at {inviter}: {source}")]
    Version {
        /// Who made the ticket.
        inviter: NodeKey,
        /// The versions, and what to do.
        source: OpenError,
    },
    /// The inviter says no.
    #[error("the inviter does not take the ticket: {message}")]
    Refused {
        /// Why, for the program.
        reason: JoinRefusal,
        /// Why, for a person.
        message: String,
    },
    /// What the inviter sent is not the team the ticket is for.
    #[error("the inviter does not speak for the team the ticket names: {0}")]
    Genesis(#[from] GenesisError),
    /// After all this the node is not a member.
    #[error(
        "the inviter's roster does not make this node a member; clocks that are more than {CLOCK_SKEW} s apart are \
         one reason (this one says {})",
        in_words(*.now)
    )]
    NotAMember {
        /// This node's time.
        now: u64,
    },
    /// The team did not begin with the key that the ticket is for.
    #[error(
        "the ticket is for a founder of the team, and the team that {inviter} leads to did not begin with this node's key {key}: \
         ask whoever founded it, and do not join it by another ticket if it should have"
    )]
    NotAFounder {
        /// Who made the ticket.
        inviter: NodeKey,
        /// Whom it is for.
        key: NodeKey,
    },
    /// The answer was another one than there is.
    #[error("the inviter {0} answered something else than was asked")]
    Confused(NodeKey),
    /// The folder.
    #[error(transparent)]
    Team(#[from] TeamError),
    /// A file.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl JoinError {
    /// Whether it was found out before anybody was asked, so that nobody has seen this node's key.
    #[must_use]
    pub fn is_before_anybody_was_asked(&self) -> bool {
        match self {
            Self::Expired { .. } | Self::AlreadyIn(_) | Self::Name(_) | Self::Transport(_) => true,
            // Where it was tried, somebody may have answered at last.
            Self::Unreachable { .. }
            | Self::Version { .. }
            | Self::Refused { .. }
            | Self::Genesis(_)
            | Self::NotAMember { .. }
            | Self::NotAFounder { .. }
            | Self::Confused(_)
            | Self::Team(_)
            | Self::Disk(_) => false,
        }
    }
}

/// Redeems a ticket and makes the team's folder. `teams` is the folder for all teams of this node;
/// `name` is what this node wants to be called.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(
    teams: &Path,
    secret: &NodeSecret,
    ticket: &Ticket,
    name: &str,
    clock: &Clock,
) -> Result<Team, JoinError> {
    check_name(name)?;
    let now = clock.now();
    if now > ticket.not_after.saturating_add(CLOCK_SKEW) {
        let not_after = ticket.not_after;
        return Err(JoinError::Expired { not_after, now });
    }
    if Team::list(teams)?.contains(&ticket.swarm) && is_member(teams, ticket.swarm, secret.key(), now)? {
        return Err(JoinError::AlreadyIn(ticket.swarm));
    }
    let welcome = redeem(secret, ticket, name).await?;
    let mut roster = Roster::of(ticket.swarm, welcome.genesis)?;
    roster.merge_all(welcome.statements);
    let members = roster.members(now);
    if !members.contains(secret.key()) {
        return Err(JoinError::NotAMember { now });
    }
    if let Some(key) = ticket.founder
        && !roster.is_founder(key)
    {
        let inviter = ticket.inviter;
        return Err(JoinError::NotAFounder { inviter, key });
    }
    let team = Team::create(teams, roster)?;
    let contacts = SharedContacts::open(team.folder())?;
    contacts.with(|contacts| {
        contacts.add_wire(welcome.contacts);
        contacts.retain(|key| members.contains(key) && key != secret.key());
        for address in ticket.addresses.iter().rev() {
            if let Ok(address) = address.parse() {
                contacts.add(ticket.inviter, address);
            }
        }
    });
    contacts.save()?;
    Ok(team)
}

fn is_member(teams: &Path, swarm: SwarmId, key: NodeKey, now: u64) -> Result<bool, TeamError> {
    let team = Team::open(teams, swarm)?;
    Ok(team.roster().members(now).contains(key))
}

async fn redeem(secret: &NodeSecret, ticket: &Ticket, name: &str) -> Result<Welcome, JoinError> {
    let mut known = Contacts::default();
    for address in &ticket.addresses {
        if let Ok(address) = address.parse() {
            known.add_last(ticket.inviter, address);
        }
    }
    let contacts = SharedContacts::in_memory(known);
    let gatekeeper = Gatekeeper::default();
    let (swarm, inbound) = build(Setup {
        secret,
        names: Names::join_only(),
        gatekeeper: gatekeeper.clone(),
        contacts: contacts.clone(),
        mdns: false,
        streams: Machine::default().streams,
        kept: 0,
    })?;
    // Nobody is served here: streams that come in are dropped.
    drop(inbound);
    let (driver, network, _events) = Driver::new(swarm, gatekeeper, contacts, 0, vec![]);
    let driver = tokio::spawn(driver.run());
    let request = JoinRequest::Redeem {
        swarm: ticket.swarm,
        secret: ticket.secret,
        name: name.to_owned(),
    };
    let inviter = ticket.inviter;
    let answer = async {
        let mut wire = call::open(&network, &Traffic::default(), inviter, Door::Join).await?;
        wire.ask::<_, JoinAnswer>(&request)
            .await
            .map_err(call::at(inviter, Door::Join))
    };
    let answer = answer.await;
    network.send(Command::Shutdown).await;
    // It ends by itself; how does not matter any more.
    driver.await.ok();
    match answer {
        Ok(JoinAnswer::Welcome(welcome)) => Ok(welcome),
        Ok(JoinAnswer::Refused { reason, message }) => Err(JoinError::Refused { reason, message }),
        Ok(JoinAnswer::Known) => Err(JoinError::Confused(inviter)),
        Err(CallError::Open {
            source: source @ (OpenError::NotOffered(_) | OpenError::OtherVersion { .. }),
            ..
        }) => Err(JoinError::Version { inviter, source }),
        Err(source) => Err(JoinError::Unreachable {
            inviter,
            addresses: ticket.addresses.clone(),
            source,
        }),
    }
}
