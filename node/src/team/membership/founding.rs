//! Founding a team and joining one.

use std::sync::Arc;

use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::control::InviteRequest;
use tvix_node_protocol::envelope::{NodeKey, NodeSecret};
use tvix_node_protocol::founding::founding_threshold;
use tvix_node_protocol::roster::Founder;
use tvix_node_protocol::ticket::Ticket;
use tvix_node_swarm::Clock;
use tvix_node_swarm::team::{
    JoinError, Team, TeamError, asked_is_kept, asked_secret, founder_key_is_kept, founder_keys,
    founder_secret, join, keep_asked, kept_secret, new_founder_key, new_secret,
};

use super::super::TeamNode;
use super::super::first::FirstTeam;
use super::super::limits::TEAMS;
use super::{Membership, TeamFailure};

impl Membership {
    /// The key that this node has in a team and nowhere else.
    pub(super) fn own_secret(&self, team: SwarmId) -> Result<Option<NodeSecret>, TeamFailure> {
        let teams = &self.parts.teams;
        if let Some(secret) = kept_secret(teams, team)? {
            return Ok(Some(secret));
        }
        let Some(asked) = asked_secret(teams, team)? else {
            return Ok(None);
        };
        // The team has taken it in, and the node ended before it wrote that down.
        let roster = Team::open(teams, team)?;
        let taken = roster
            .roster()
            .members(Clock::system().now())
            .contains(asked.key());
        if taken {
            founder_key_is_kept(teams, asked.key())?;
            asked_is_kept(teams, team)?;
        }
        Ok(taken.then_some(asked))
    }

    /// The team that is meant; where there is none, or a new one is asked for, one is founded. `name`: what this node calls
    /// itself in it.
    ///
    /// # Errors
    /// See [`TeamFailure`].
    pub async fn found(
        &self,
        request: &InviteRequest,
        name: &str,
    ) -> Result<(Arc<TeamNode>, bool), TeamFailure> {
        let _turn = self.changing.lock().await;
        if !request.new_team {
            match self.one(request.team.as_deref()) {
                Err(TeamFailure::None) => {}
                Ok(_) if !request.founders.is_empty() || request.threshold.is_some() => {
                    return Err(TeamFailure::Founded);
                }
                found => return Ok((found?, false)),
            }
        }
        let others = request.founders.clone();
        let threshold = founding_threshold(name, &others, request.threshold)?;
        self.check_others(&others)?;
        self.check_room()?;
        let (teams, title) = (&self.parts.teams, format!("{name}'s team"));
        let known = Team::list(teams)?;
        let first = FirstTeam::new(teams, &known);
        if first.is_unseen()? {
            let secret = Arc::clone(&self.parts.jobs.secret);
            let me = Founder {
                key: secret.key(),
                name: name.to_owned(),
            };
            let team = Team::found(teams, &title, me, others, threshold)?;
            first.note(team.swarm())?;
            return Ok((self.begin(team, secret).await?, true));
        }
        let secret = new_secret().map_err(TeamError::from)?;
        let team = Team::found_apart(teams, &title, (name, &secret), others, threshold)?;
        Ok((self.begin(team, Arc::new(secret)).await?, true))
    }

    /// Other founders are other nodes.
    fn check_others(&self, others: &[Founder]) -> Result<(), TeamFailure> {
        let mut own = self.own_keys();
        own.extend(founder_keys(&self.parts.teams)?);
        match others.iter().find(|other| own.contains(&other.key)) {
            Some(Founder { key, name }) => Err(TeamFailure::OwnFounder {
                key: *key,
                name: name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Makes a key by which this node can be a founder of one team.
    ///
    /// # Errors
    /// [`TeamFailure::Team`]
    pub async fn founder_key(&self) -> Result<NodeKey, TeamFailure> {
        let _turn = self.changing.lock().await;
        Ok(new_founder_key(&self.parts.teams)?)
    }

    /// The key that a founder's ticket is for, and whether it waited for its team until now.
    fn founders_secret(&self, team: SwarmId, key: NodeKey) -> Result<(NodeSecret, bool), TeamFailure> {
        let teams = &self.parts.teams;
        let is_it = |secret: &NodeSecret| secret.key() == key;
        if let Some(secret) = kept_secret(teams, team)?.filter(is_it) {
            return Ok((secret, false));
        }
        if let Some(secret) = asked_secret(teams, team)?.filter(is_it) {
            return Ok((secret, true));
        }
        let secret = founder_secret(teams, key)?.ok_or(TeamFailure::NotTheFounder(key))?;
        keep_asked(teams, team, &secret)?;
        Ok((secret, true))
    }

    fn check_room(&self) -> Result<(), TeamFailure> {
        room_beside(self.active().len())
    }

    /// Becomes a member of the team that a ticket is for, beside those that this node is in.
    ///
    /// # Errors
    /// See [`TeamFailure`].
    pub async fn join(&self, ticket: &Ticket, name: &str) -> Result<Arc<TeamNode>, TeamFailure> {
        let _turn = self.changing.lock().await;
        let all = self.all();
        if let Some(node) = all.iter().find(|node| node.view.team() == ticket.swarm) {
            return Err(match node.swarm.members().contains(node.view.me()) {
                true => JoinError::AlreadyIn(ticket.swarm).into(),
                false => TeamFailure::Over(ticket.swarm),
            });
        }
        self.check_room()?;
        let teams = &self.parts.teams;
        let known = Team::list(teams)?;
        let first = FirstTeam::new(teams, &known);
        let unseen = first.is_unseen()?;
        let (mut by_home, mut anew) = (false, false);
        let kept = match ticket.founder {
            Some(_) => None,
            None => kept_secret(teams, ticket.swarm)?,
        };
        let secret = match (ticket.founder, kept) {
            // Who was told the key that 'status' shows has not seen it in another team, either.
            (Some(key), _) if key == self.parts.jobs.secret.key() && first.ask(ticket.swarm)? => {
                by_home = true;
                Arc::clone(&self.parts.jobs.secret)
            }
            (Some(key), _) => {
                let (secret, waited) = self.founders_secret(ticket.swarm, key)?;
                anew = waited;
                Arc::new(secret)
            }
            (None, Some(secret)) => Arc::new(secret),
            (None, None) => match asked_secret(teams, ticket.swarm)? {
                // The ticket was perhaps redeemed with it already, and the answer did not come; or it is a founder's key, by
                // which the node is in that team whatever the ticket.
                Some(secret) => {
                    anew = true;
                    Arc::new(secret)
                }
                None if first.ask(ticket.swarm)? => {
                    by_home = true;
                    Arc::clone(&self.parts.jobs.secret)
                }
                None => {
                    anew = true;
                    let secret = new_secret().map_err(TeamError::from)?;
                    keep_asked(teams, ticket.swarm, &secret)?;
                    Arc::new(secret)
                }
            },
        };
        let team = match join(teams, &secret, ticket, name, &Clock::system()).await {
            Ok(team) => team,
            Err(error) => {
                if by_home && unseen && error.is_before_anybody_was_asked() {
                    first.take_back()?;
                }
                return Err(error.into());
            }
        };
        if by_home {
            first.note(ticket.swarm)?;
        }
        if anew {
            founder_key_is_kept(teams, secret.key())?;
            asked_is_kept(teams, ticket.swarm)?;
        }
        self.begin(team, secret).await
    }
}

/// Whether there is room for one more team beside so many.
fn room_beside(teams: usize) -> Result<(), TeamFailure> {
    match teams < TEAMS {
        true => Ok(()),
        false => Err(TeamFailure::TooMany),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_takes_part_in_so_many_teams() {
        assert!(room_beside(TEAMS - 1).is_ok());
        assert!(matches!(room_beside(TEAMS), Err(TeamFailure::TooMany)));
    }
}
