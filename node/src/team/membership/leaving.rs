//! Leaving a team, and what is left of one.

use std::io::ErrorKind;
use std::path::Path;

use tvix_node_protocol::build::SwarmId;
use tvix_node_swarm::Clock;
use tvix_node_swarm::team::Team;

use super::{ID_BEGINNING, Idle, Membership, TeamFailure};

/// How the folder of a team that was left is called until it is gone. Nothing that is called so is a team's.
const LEFT: &str = ".left-";

impl Membership {
    /// Takes part in a team no more, and forgets it. The others stay as they are. One that cannot be taken part in, because
    /// its key or roster is missing or damaged, is only forgotten: there is nothing to tell the others with. One that is not
    /// taken part in for another reason stays, until the others can be told. The last founder leaves the others without a
    /// team, and does so where it is `forced` alone.
    ///
    /// # Errors
    /// See [`TeamFailure`].
    pub async fn leave(&self, named: Option<&str>, forced: bool) -> Result<(), TeamFailure> {
        let _turn = self.changing.lock().await;
        let node = match self.one(named) {
            Ok(node) => node,
            Err(error) => {
                let lost = match named {
                    Some(named) => self.lost(named)?,
                    // What cannot be taken back is done to what was named.
                    None => None,
                };
                let lost = lost.ok_or(error)?;
                if !forced {
                    self.check_orphans(lost)?;
                }
                return self.forget(lost);
            }
        };
        let (swarm, met) = (node.view.team(), node.met());
        if !forced && node.is_last_founder() {
            return Err(TeamFailure::LastFounder {
                team: swarm,
                others: node.swarm.members().len() - 1,
            });
        }
        node.swarm.leave().await?;
        drop(node);
        let active = {
            let mut all = self.active();
            let at = all.iter().position(|active| active.node.view.team() == swarm);
            at.map(|at| all.remove(at))
        };
        if let Some(active) = active {
            self.end(active, met).await;
        }
        self.forget(swarm)
    }

    /// The team that is meant, among those that the node belongs to and cannot take part in any more; none: none of those
    /// that it does not take part in is meant.
    ///
    /// # Errors
    /// [`TeamFailure::NotRunning`]: it could; [`TeamFailure::Which`], [`TeamFailure::Team`]
    fn lost(&self, named: &str) -> Result<Option<SwarmId>, TeamFailure> {
        let active: Vec<SwarmId> = self.all().iter().map(|node| node.view.team()).collect();
        let mut resting = Team::list(&self.parts.teams)?;
        let id = named.to_ascii_lowercase();
        resting.retain(|team| !active.contains(team));
        resting.retain(|team| id.len() >= ID_BEGINNING && team.to_string().starts_with(&id));
        let team = match resting.as_slice() {
            [] => return Ok(None),
            [team] => *team,
            several => {
                let several = several.iter().map(|team| (*team, "not running".to_owned()));
                return Err(TeamFailure::Which(several.collect()));
            }
        };
        match self.idle().get(&team) {
            Some(Idle { lost: true, .. }) => Ok(Some(team)),
            Some(Idle { reason, .. }) => Err(TeamFailure::NotRunning {
                team,
                reason: reason.clone(),
            }),
            None => Err(TeamFailure::NotRunning {
                team,
                reason: "its folder was not there when the node started".to_owned(),
            }),
        }
    }

    /// Whether others are members by this node alone, as the last founder of a team whose key is here though something else of it
    /// is damaged.
    fn check_orphans(&self, team: SwarmId) -> Result<(), TeamFailure> {
        let teams = &self.parts.teams;
        // Without its key it is nobody in the team.
        let Ok(kept) = self.own_secret(team) else {
            return Ok(());
        };
        let me = kept.map_or_else(|| self.parts.jobs.secret.key(), |secret| secret.key());
        let Ok(opened) = Team::open(teams, team) else {
            return Ok(());
        };
        let members = opened.roster().members(Clock::system().now());
        let mut founders = members.iter().filter(|(_, member)| member.issued_by.is_none());
        let alone = founders.next().is_some_and(|(key, _)| key == me) && founders.next().is_none();
        match alone && members.len() > 1 {
            true => Err(TeamFailure::LastFounder {
                team,
                others: members.len() - 1,
            }),
            false => Ok(()),
        }
    }

    /// Removes what the node has of a team, its key among it.
    fn forget(&self, team: SwarmId) -> Result<(), TeamFailure> {
        // At once, for the start after a crash: a folder without its key would be one of a team still.
        let (folder, left) = (self.folder(team), self.parts.teams.join(format!("{LEFT}{team}")));
        remove(&left)?;
        if let Err(source) = std::fs::rename(&folder, &left)
            && source.kind() != ErrorKind::NotFound
        {
            return Err(TeamFailure::Folder { folder, source });
        }
        self.idle().remove(&team);
        remove(&left)?;
        remove(&self.spool(team))
    }

    /// Removes what leaving left behind where it was cut short. `teams`: those that the node belongs to.
    pub(super) fn tidy(&self, teams: &[SwarmId]) {
        let names = |folder: &Path| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect::<Vec<_>>()
        };
        let left = names(&self.parts.teams)
            .into_iter()
            .filter(|name| name.starts_with(LEFT));
        let left = left.map(|name| self.parts.teams.join(name));
        let arriving = names(&self.parts.spool).into_iter().filter(|name| {
            let team = name.parse::<SwarmId>();
            team.is_ok_and(|team| !teams.contains(&team))
        });
        let arriving = arriving.map(|name| self.parts.spool.join(name));
        for folder in left.chain(arriving) {
            if let Err(error) = remove(&folder) {
                tracing::warn!(%error, "what is left of a team that this node has left stays");
            }
        }
    }
}

/// Removes a folder with all that is in it, where there is one.
fn remove(folder: &Path) -> Result<(), TeamFailure> {
    match std::fs::remove_dir_all(folder) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(TeamFailure::Folder {
            folder: folder.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
