//! The team while the node runs: one place that knows who is a member now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::watch;
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::{Envelope, EnvelopeError, NodeKey, NodeSecret, seal};
use tvix_node_protocol::messages::JoinRefusal;
use tvix_node_protocol::presence::PresenceSecret;
use tvix_node_protocol::roster::{Founder, Genesis, Member, Revoked, Role, Roles, RosterError, check_name};
use tvix_node_protocol::ticket::Ticket;

use super::Team;
use crate::clock::{Clock, in_words};
use crate::disk::DiskError;
use crate::invitations::{Invitations, InviteError};
use crate::limits::{CHAIN, ROSTER_ROUND};
use crate::net::gatekeeper::Gatekeeper;
use crate::roster::{Members, MergeError, Roster, RosterFile, RosterFileError, Waiting};

/// Why the team could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// This node may not do that.
    #[error("this node does not have the role '{0}' in the team")]
    RoleMissing(Role),
    /// More than this node has.
    #[error("this node has the roles {mine} and cannot give {wanted}")]
    TooMuch {
        /// Its roles.
        mine: Roles,
        /// What should be given.
        wanted: Roles,
    },
    /// Only founders put others out.
    #[error("only a founder of the team can put {0} out, and a node itself can leave")]
    NotAFounder(NodeKey),
    /// Only founders take their place with a ticket of their own.
    #[error(
        "{0} is no founder of the team: it has those that it was founded with, as long as they are not out"
    )]
    NoFounder(String),
    /// A ticket for oneself.
    #[error("{0} is this node, which is in the team already: a ticket is for another founder")]
    HereAlready(String),
    /// Not somebody the roster knows.
    #[error("{0} is not in the roster")]
    Unknown(NodeKey),
    /// Nobody has to vouch for a founder.
    #[error("{0} is a founder of the team, whose membership does not end: there is nothing to renew")]
    Founder(String),
    /// Nobody vouches for itself.
    #[error("no node renews its own membership: ask {0}, who invited this one")]
    Oneself(String),
    /// Put out, which is for ever.
    #[error(
        "{0} has left the team or was put out, and a key that is out does not come back: with a new ticket the node comes back \
         by another key"
    )]
    Out(String),
    /// Somebody else's word counts before this node's.
    #[error(
        "this node cannot renew {name}: {issuer} invited {name} and stands closer to a founder, so that word counts until it \
         ends ({}), and this node's would not: ask {issuer}",
        in_words(*.not_after)
    )]
    OthersWord {
        /// Whom it is about.
        name: String,
        /// Whose word counts.
        issuer: String,
        /// Until when.
        not_after: u64,
    },
    /// This node's last word is younger than its clock.
    #[error(
        "this node said something of {0} that is younger than its clock, so what it says now would not count: set the clock"
    )]
    Younger(String),
    /// The statement would not make its subject a member.
    #[error(
        "{0} would not be a member by this node's word: no more than {CHAIN} invitations may lie between a member and a founder; ask \
         somebody closer to a founder"
    )]
    TooFar(String),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] RosterError),
    /// The ticket could not be remembered.
    #[error(transparent)]
    Invite(#[from] InviteError),
    /// The statement could not be signed.
    #[error(transparent)]
    Seal(#[from] EnvelopeError),
    /// The roster does not take the statement.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The roster could not be saved.
    #[error(transparent)]
    Save(#[from] RosterFileError),
    /// No random numbers.
    #[error("the machine gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
    /// The node is shutting down.
    #[error(transparent)]
    Lost(#[from] crate::core::Lost),
}

/// Who is a member at the moment, and what follows from it.
#[derive(Debug)]
struct View {
    members: Arc<Members>,
    presence: PresenceSecret,
    digest: [u8; 32],
}

/// A team this node belongs to, while it runs. Methods that change it write files and block.
#[derive(Debug)]
pub struct TeamState {
    me: NodeKey,
    secret: Arc<NodeSecretBox>,
    clock: Clock,
    swarm: SwarmId,
    genesis: Genesis,
    file: RosterFile,
    roster: Mutex<Roster>,
    invitations: Mutex<Invitations>,
    distrusted: BTreeMap<NodeKey, Roles>,
    view: RwLock<View>,
    gatekeeper: Gatekeeper,
    /// Counts changes of the roster.
    changes: watch::Sender<u64>,
    /// This node is telling the others that it leaves: until they know, nothing changes here.
    leaving: AtomicBool,
}

/// A secret that is not printed.
struct NodeSecretBox(NodeSecret);

impl std::fmt::Debug for NodeSecretBox {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "NodeSecret({})", self.0.key())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TeamState {
    /// `distrusted`: roles this node does not grant, whatever the roster says.
    ///
    /// # Errors
    /// [`DiskError`] where the tickets cannot be read.
    pub fn new(
        team: Team,
        secret: NodeSecret,
        clock: Clock,
        distrusted: BTreeMap<NodeKey, Roles>,
    ) -> Result<Self, DiskError> {
        let (folder, roster) = team.into_parts();
        let invitations = Invitations::open(&folder, roster.swarm())?;
        let view = view_of(&roster, &clock, &distrusted);
        let gatekeeper = Gatekeeper::default();
        gatekeeper.set(&view.members);
        Ok(Self {
            me: secret.key(),
            secret: Arc::new(NodeSecretBox(secret)),
            swarm: roster.swarm(),
            genesis: roster.genesis().clone(),
            file: RosterFile::in_folder(&folder),
            roster: Mutex::new(roster),
            invitations: Mutex::new(invitations),
            distrusted,
            view: RwLock::new(view),
            gatekeeper,
            clock,
            changes: watch::channel(0).0,
            leaving: AtomicBool::new(false),
        })
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> NodeKey {
        self.me
    }

    /// The team.
    #[must_use]
    pub fn swarm(&self) -> SwarmId {
        self.swarm
    }

    /// How the team began.
    #[must_use]
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// The node's secret.
    #[must_use]
    pub fn secret(&self) -> &NodeSecret {
        &self.secret.0
    }

    pub(crate) fn gatekeeper(&self) -> Gatekeeper {
        self.gatekeeper.clone()
    }

    /// Who is a member, and may do what.
    #[must_use]
    pub fn members(&self) -> Arc<Members> {
        self.view
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .members
            .clone()
    }

    /// The secret that presence keys are made with.
    #[must_use]
    pub fn presence_secret(&self) -> PresenceSecret {
        self.view
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .presence
            .clone()
    }

    /// Equal for equal rosters.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.view.read().unwrap_or_else(PoisonError::into_inner).digest
    }

    /// A look at the roster itself.
    pub fn with_roster<T>(&self, look: impl FnOnce(&Roster) -> T) -> T {
        look(&lock(&self.roster))
    }

    /// Changes with every change of the roster, and when somebody's time is over.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Decides anew who is a member: time has passed. True where something has changed.
    pub fn refresh(&self) -> bool {
        // Held to the end: of two that decide at once, the one who has seen more comes last everywhere.
        let roster = lock(&self.roster);
        if self.leaving.load(Ordering::Acquire) {
            return false;
        }
        let view = view_of(&roster, &self.clock, &self.distrusted);
        let changed = {
            let mut current = self.view.write().unwrap_or_else(PoisonError::into_inner);
            let changed = current.members != view.members || current.digest != view.digest;
            *current = view;
            changed
        };
        if changed {
            self.gatekeeper.set(&self.members());
            self.changes.send_modify(|count| *count += 1);
        }
        drop(roster);
        changed
    }

    /// Takes statements in that came from somebody. True where the roster has changed. Blocks.
    ///
    /// # Errors
    /// [`StateError::Save`]; what came is known until the node ends.
    pub fn merge(&self, statements: Vec<Envelope>) -> Result<bool, StateError> {
        let mut roster = lock(&self.roster);
        let changed = roster.merge_all(statements);
        if !changed {
            return Ok(false);
        }
        let saved = self.file.save(&roster);
        drop(roster);
        self.refresh();
        saved?;
        Ok(true)
    }

    /// Signs a statement of this node and takes it in.
    fn say<T: tvix_node_protocol::envelope::Statement>(&self, statement: &T) -> Result<(), StateError> {
        let envelope = seal(statement, self.secret())?;
        let mut roster = lock(&self.roster);
        roster.merge(envelope)?;
        let saved = self.file.save(&roster);
        drop(roster);
        self.refresh();
        Ok(saved?)
    }

    /// Makes a ticket for one new member with these roles; it is good until `not_after`, and the
    /// membership lasts for `lasts` seconds from when it is redeemed. Blocks.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn invite(
        &self,
        roles: Roles,
        not_after: u64,
        lasts: u64,
        addresses: Vec<String>,
    ) -> Result<Ticket, StateError> {
        self.may_give(&roles)?;
        let ticket = self.ticket(None, not_after, addresses)?;
        lock(&self.invitations).add(&ticket, roles, lasts, self.now())?;
        Ok(ticket)
    }

    /// Makes a ticket with which a founder takes its place. It gives nothing: the key that the team began with does, and this
    /// node, or any other member that the founder reaches, tells it the rest.
    ///
    /// # Errors
    /// [`StateError::NoFounder`], [`StateError::Random`]
    pub fn invite_founder(
        &self,
        key: NodeKey,
        not_after: u64,
        addresses: Vec<String>,
    ) -> Result<Ticket, StateError> {
        match self.with_roster(|roster| roster.is_founder(key) && !roster.is_revoked(key)) {
            true => self.ticket(Some(key), not_after, addresses),
            false => Err(StateError::NoFounder(self.called(key))),
        }
    }

    fn ticket(
        &self,
        founder: Option<NodeKey>,
        not_after: u64,
        addresses: Vec<String>,
    ) -> Result<Ticket, StateError> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret)?;
        Ok(Ticket {
            swarm: self.swarm,
            inviter: self.me,
            addresses,
            not_after,
            secret,
            founder,
        })
    }

    fn may_give(&self, roles: &Roles) -> Result<(), StateError> {
        let members = self.members();
        let mine = members
            .get(self.me)
            .map(|member| member.roles.clone())
            .unwrap_or_default();
        if !mine.has(Role::Invite) {
            return Err(StateError::RoleMissing(Role::Invite));
        }
        if !roles.within(&mine) {
            let wanted = roles.clone();
            return Err(StateError::TooMuch { mine, wanted });
        }
        Ok(())
    }

    /// Makes the holder of a ticket a member. Blocks.
    ///
    /// # Errors
    /// Why not; the message is for the holder.
    pub fn redeem(
        &self,
        swarm: SwarmId,
        secret: &[u8; 16],
        key: NodeKey,
        name: &str,
    ) -> Result<(), (JoinRefusal, String)> {
        let now = self.now();
        check_name(name).map_err(|error| (JoinRefusal::Name, error.to_string()))?;
        if self.with_roster(|roster| roster.is_revoked(key)) {
            let message = "this node's key was put out of the team: 'tvix-node leave' there, and then the ticket makes it a \
                           member by another key";
            return Err((JoinRefusal::NotAMember, message.to_owned()));
        }
        // The team began with it, so nobody has to let it in, and its ticket is none that was written down.
        if swarm == self.swarm && self.with_roster(|roster| roster.is_founder(key)) {
            return Ok(());
        }
        if !self.members().may(self.me, Role::Invite) {
            let message = "the inviter does not have the role 'invite' any more";
            return Err((JoinRefusal::MayNotInvite, message.to_owned()));
        }
        let (ticket, invitation, used) = lock(&self.invitations)
            .redeem(swarm, secret, key, now)
            .map_err(|reason| (reason, refusal_message(reason, now)))?;
        if self.members().contains(key) {
            return Ok(());
        }
        // One ticket, one statement: what was given for it, or after it, is not given anew.
        let last = self.with_roster(|roster| roster.said_by(self.me, key).cloned());
        let is_given = used.at < now && last.as_ref().is_some_and(|last| last.issued_at >= used.at);
        let not_after = used.at.saturating_add(invitation.lasts);
        if is_given || now > not_after {
            return Err((JoinRefusal::Used, USED_UP.to_owned()));
        }
        let member = Member {
            swarm: self.swarm,
            key,
            name: name.to_owned(),
            roles: invitation.roles,
            issued_by: self.me,
            serial: last.map_or(0, |last| last.serial.saturating_add(1)),
            issued_at: used.at,
            not_after,
            ticket: Some(ticket),
        };
        self.say(&member).map_err(|error| {
            tracing::error!(%error, "a ticket was redeemed, but the roster does not take the new member");
            (
                JoinRefusal::Busy,
                format!("the inviter cannot write this down: {error}"),
            )
        })
    }

    /// Vouches for a member anew, from now on, with these roles. Blocks.
    ///
    /// # Errors
    /// See [`StateError`]. Where the statement would not count, it is not made.
    pub fn renew(&self, key: NodeKey, roles: Roles, lasts: u64) -> Result<(), StateError> {
        let name = self.last_name(key).ok_or(StateError::Unknown(key))?;
        let (revoked, founder) = self.with_roster(|roster| (roster.is_revoked(key), roster.is_founder(key)));
        if revoked {
            return Err(StateError::Out(name));
        }
        if founder {
            return Err(StateError::Founder(name));
        }
        let old = self.with_roster(|roster| roster.latest(key).cloned());
        let old = old.ok_or(StateError::Unknown(key))?;
        if key == self.me {
            let issuer = self.members().get(key).and_then(|member| member.issued_by);
            return Err(StateError::Oneself(self.called(issuer.unwrap_or(old.issued_by))));
        }
        self.may_give(&roles)?;
        let now = self.now();
        let member = Member {
            swarm: self.swarm,
            key,
            name: name.clone(),
            roles,
            issued_by: self.me,
            serial: old.serial.saturating_add(1),
            issued_at: now,
            not_after: now.saturating_add(lasts),
            ticket: None,
        };
        let envelope = seal(&member, self.secret())?;
        let mut roster = lock(&self.roster);
        let mut trial = roster.clone();
        if !trial.merge(envelope)? {
            return Err(StateError::Younger(name));
        }
        let members = trial.members(now);
        let counts = members.get(key).ok_or(StateError::TooFar(name.clone()))?;
        if let (Some(issuer), Some(not_after)) = (counts.issued_by, counts.not_after)
            && issuer != self.me
        {
            let issuer = roster
                .last_name(issuer)
                .map_or_else(|| issuer.to_string(), str::to_owned);
            return Err(StateError::OthersWord {
                name,
                issuer,
                not_after,
            });
        }
        *roster = trial;
        let saved = self.file.save(&roster);
        drop(roster);
        self.refresh();
        Ok(saved?)
    }

    /// What a key was called last, whether it is a member's or not.
    #[must_use]
    pub fn last_name(&self, key: NodeKey) -> Option<String> {
        self.with_roster(|roster| roster.last_name(key).map(str::to_owned))
    }

    /// As [`TeamState::last_name`]; the key itself where it has no name.
    #[must_use]
    pub fn called(&self, key: NodeKey) -> String {
        self.last_name(key).unwrap_or_else(|| key.to_string())
    }

    /// Puts a key out of the team for ever; or leaves it, with its own key. A founder is out once as many founders as the
    /// genesis says have said so. What this node has said before it does not say again. Blocks.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn revoke(&self, key: NodeKey) -> Result<(), StateError> {
        match self.with_roster(|roster| roster.put_out_by(key).contains(&self.me)) {
            true => Ok(()),
            false => self.say(&self.revocation_of(key)?),
        }
    }

    /// Founders who have said that this key is to be out, whether they are enough or not.
    #[must_use]
    pub fn put_out_by(&self, key: NodeKey) -> Vec<Founder> {
        let by = self.with_roster(|roster| roster.put_out_by(key));
        let founder = |key: NodeKey| Founder {
            key,
            name: self.called(key),
        };
        by.into_iter().map(founder).collect()
    }

    /// Writes down that this node's key is out, and goes on as if it were not until [`TeamState::depart`]: who is no member
    /// any more, and by whose word others are, speaks to nobody. Blocks.
    ///
    /// # Errors
    /// See [`StateError`]; this node is then the member that it was.
    pub(crate) fn bid_farewell(&self) -> Result<(), StateError> {
        let envelope = seal(&self.revocation_of(self.me)?, self.secret())?;
        let mut roster = lock(&self.roster);
        let mut without = roster.clone();
        without.merge(envelope)?;
        self.file.save(&without)?;
        self.leaving.store(true, Ordering::Release);
        *roster = without;
        Ok(())
    }

    /// The others have been told: from here on this node is out for itself, too.
    pub(crate) fn depart(&self) {
        self.leaving.store(false, Ordering::Release);
        self.refresh();
    }

    fn revocation_of(&self, key: NodeKey) -> Result<Revoked, StateError> {
        let (founder, known) = self.with_roster(|roster| (roster.is_founder(self.me), roster.knows(key)));
        if !founder && key != self.me {
            return Err(StateError::NotAFounder(key));
        }
        if !known {
            return Err(StateError::Unknown(key));
        }
        let mut fresh = [0; 32];
        getrandom::fill(&mut fresh)?;
        Ok(Revoked {
            swarm: self.swarm,
            key,
            revoked_by: self.me,
            serial: 0,
            issued_at: self.now(),
            fresh,
        })
    }

    /// Statements for a new member: all, or in a large team those that make it one. The rest it gets
    /// like every other member.
    #[must_use]
    pub fn welcome(&self, key: NodeKey) -> Vec<Envelope> {
        self.with_roster(|roster| {
            if roster.ids().len() > ROSTER_ROUND {
                return roster.introduction(key, self.now());
            }
            roster
                .statements()
                .map(|(_, envelope)| envelope.clone())
                .collect()
        })
    }

    /// What shows that this node is a member.
    #[must_use]
    pub fn introduction(&self) -> Vec<Envelope> {
        self.with_roster(|roster| roster.introduction(self.me, self.now()))
    }

    /// A stranger shows statements that should make it a member. They are taken in only if they do, and
    /// alone. Blocks.
    ///
    /// # Errors
    /// Why it stays a stranger.
    pub fn introduced(&self, key: NodeKey, statements: Vec<Envelope>) -> Result<(), (JoinRefusal, String)> {
        if statements.len() > CHAIN {
            let message = format!(
                "{} statements are shown to prove a membership, and no chain of invitations has more than {CHAIN}",
                statements.len()
            );
            return Err((JoinRefusal::NotAMember, message));
        }
        let now = self.now();
        let convincing = self.with_roster(|roster| {
            let mut trial = roster.clone();
            trial.merge_all(statements.clone());
            trial.members(now).contains(key)
        });
        if !convincing {
            return Err((JoinRefusal::NotAMember, self.why_not(key)));
        }
        self.merge(statements).map_err(|error| {
            tracing::error!(%error, "a member introduced itself, but the roster cannot be saved");
            (JoinRefusal::Busy, "the roster cannot be saved here".to_owned())
        })?;
        Ok(())
    }

    /// Why a key is not a member, and what to do, in words for who has it. No more than that: a statement
    /// that puts somebody out is for members alone, since the presence secret is made with it.
    fn why_not(&self, key: NodeKey) -> String {
        let (revoked, latest) =
            self.with_roster(|roster| (roster.is_revoked(key), roster.latest(key).cloned()));
        let ask = "somebody who may invite has to renew it";
        match latest {
            _ if revoked => "this key was put out of the team; 'tvix-node leave' there, and a new \
                             ticket, make the node a member by another key"
                .to_owned(),
            Some(member) if !self.members().contains(member.issued_by) => {
                format!("who vouched for this key is not in the team any more; {ask}")
            }
            Some(member) => format!(
                "the membership of this key was from {} to {}, and it is {} here; if no clock is wrong, {ask}",
                in_words(member.issued_at),
                in_words(member.not_after),
                in_words(self.now())
            ),
            None => "nobody in the team has vouched for this key".to_owned(),
        }
    }

    /// Who needs a new statement, and why.
    #[must_use]
    pub fn waiting(&self) -> BTreeMap<NodeKey, Waiting> {
        self.with_roster(|roster| roster.waiting(self.now()))
    }

    /// Whether this node's key is out of the team for ever.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.with_roster(|roster| roster.is_revoked(self.me))
    }

    /// Keys somebody has vouched for that need a new statement.
    #[must_use]
    pub fn to_renew(&self) -> BTreeSet<NodeKey> {
        self.with_roster(|roster| roster.to_renew(self.now()))
    }
}

fn view_of(roster: &Roster, clock: &Clock, distrusted: &BTreeMap<NodeKey, Roles>) -> View {
    View {
        members: Arc::new(roster.members(clock.now()).without(distrusted)),
        presence: roster.presence_secret(),
        digest: roster.digest(),
    }
}

/// For who has used a ticket before and is no member any more.
const USED_UP: &str = "this node has used this ticket already, and the membership that it gave is over: ask for a new one, or to \
                       be renewed ('tvix-node renew')";

fn refusal_message(reason: JoinRefusal, now: u64) -> String {
    match reason {
        JoinRefusal::UnknownTicket => {
            "the inviter did not make this ticket, or has lost it; ask for a new one".to_owned()
        }
        JoinRefusal::Expired => {
            let now = in_words(now);
            format!("the ticket has expired (the inviter's clock says {now}); ask for a new one")
        }
        JoinRefusal::Used => "somebody else has used this ticket; ask for a new one".to_owned(),
        JoinRefusal::OtherSwarm => "the ticket is for another team than the inviter's".to_owned(),
        JoinRefusal::Name => "the name cannot be one".to_owned(),
        JoinRefusal::NotAMember => "this key is not a member's".to_owned(),
        JoinRefusal::MayNotInvite => "the inviter may not invite any more".to_owned(),
        JoinRefusal::Busy => "the inviter cannot write this down at the moment; try again".to_owned(),
    }
}
