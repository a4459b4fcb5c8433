//! A team on this node: a folder with the roster, the tickets handed out, the nonces seen and the
//! members' addresses.

mod founder_keys;
mod join;
mod secret;
mod state;

pub use founder_keys::{founder_key_is_kept, founder_keys, founder_secret, new_founder_key};
pub use join::{JoinError, join};
pub use secret::{asked_is_kept, asked_secret, keep_asked, keep_secret, kept_secret};
pub use state::{StateError, TeamState};

use std::path::{Path, PathBuf};

use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::NodeSecret;
use tvix_node_protocol::roster::{Founder, Genesis};

use crate::disk::DiskError;
use crate::limits::FOUNDER_KEYS;
use crate::roster::{GenesisError, Roster, RosterFile, RosterFileError};

/// Why a team cannot be founded, opened or listed.
#[derive(Debug, thiserror::Error)]
pub enum TeamError {
    /// The folder.
    #[error("cannot {action} {}: {source}", .path.display())]
    Folder {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The genesis.
    #[error("this cannot be a team: {0}")]
    Genesis(#[from] GenesisError),
    /// The roster's file.
    #[error(transparent)]
    Roster(#[from] RosterFileError),
    /// Another file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The key that the node has in a team.
    #[error("'{}' should hold a key of 32 bytes, and holds {bytes}: restore it from a backup, or leave the team", .path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// What it holds.
        bytes: usize,
    },
    /// As many keys as are kept for teams that may never be founded.
    #[error(
        "{FOUNDER_KEYS} keys of this node wait for a team to begin with them, which is as many as are kept: remove those from '{}' \
         that nobody will found a team with, or was never told", .0.display()
    )]
    FounderKeys(PathBuf),
    /// This node does not belong to the team.
    #[error("this node does not belong to the team {0}; 'join' with a ticket makes it a member")]
    NotOurs(SwarmId),
    /// No random numbers.
    #[error("the machine gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

/// A team this node belongs to, on the disk.
#[derive(Debug)]
pub struct Team {
    folder: PathBuf,
    roster: Roster,
}

impl Team {
    /// Founds a team with this node as a founder, and perhaps others. `teams` is the folder for all
    /// teams of this node. As many founders as `threshold` says can later put one of them out.
    ///
    /// # Errors
    /// See [`TeamError`].
    pub fn found(
        teams: &Path,
        name: &str,
        me: Founder,
        others: Vec<Founder>,
        threshold: u16,
    ) -> Result<Self, TeamError> {
        let mut founders = others;
        founders.push(me);
        Self::create(teams, new_roster(name, founders, threshold)?)
    }

    /// As [`Team::found`], by a key that this node has nowhere else and that is kept with the team ([`kept_secret`]).
    ///
    /// # Errors
    /// See [`TeamError`].
    pub fn found_apart(
        teams: &Path,
        name: &str,
        (my_name, secret): (&str, &NodeSecret),
        others: Vec<Founder>,
        threshold: u16,
    ) -> Result<Self, TeamError> {
        let mut founders = others;
        founders.push(Founder {
            key: secret.key(),
            name: my_name.to_owned(),
        });
        let roster = new_roster(name, founders, threshold)?;
        // First: a team whose key is lost could not be taken part in.
        keep_secret(teams, roster.swarm(), secret)?;
        Self::create(teams, roster)
    }

    /// Makes the folder of a team whose roster is known.
    fn create(teams: &Path, roster: Roster) -> Result<Self, TeamError> {
        let folder = teams.join(roster.swarm().to_string());
        std::fs::create_dir_all(&folder).map_err(|source| TeamError::Folder {
            action: "create",
            path: folder.clone(),
            source,
        })?;
        RosterFile::in_folder(&folder).save(&roster)?;
        Ok(Self { folder, roster })
    }

    /// Opens a team this node belongs to.
    ///
    /// # Errors
    /// See [`TeamError`].
    pub fn open(teams: &Path, swarm: SwarmId) -> Result<Self, TeamError> {
        let folder = teams.join(swarm.to_string());
        let roster = RosterFile::in_folder(&folder)
            .load(swarm)?
            .ok_or(TeamError::NotOurs(swarm))?;
        Ok(Self { folder, roster })
    }

    /// The teams this node belongs to. None where there is no such folder.
    ///
    /// # Errors
    /// [`TeamError::Folder`]
    pub fn list(teams: &Path) -> Result<Vec<SwarmId>, TeamError> {
        let error = |source| TeamError::Folder {
            action: "read",
            path: teams.to_owned(),
            source,
        };
        let entries = match std::fs::read_dir(teams) {
            Ok(entries) => entries,
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(source) => return Err(error(source)),
        };
        let mut found = vec![];
        for entry in entries {
            let entry = entry.map_err(error)?;
            let name = entry.file_name();
            // A folder without a roster is left by joining that was cut short.
            if RosterFile::in_folder(&entry.path()).exists() {
                found.extend(name.to_str().and_then(|name| name.parse::<SwarmId>().ok()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The team's name for programs.
    #[must_use]
    pub fn swarm(&self) -> SwarmId {
        self.roster.swarm()
    }

    /// What is known of it.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Where its files are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn into_parts(self) -> (PathBuf, Roster) {
        (self.folder, self.roster)
    }
}

fn new_roster(name: &str, mut founders: Vec<Founder>, threshold: u16) -> Result<Roster, TeamError> {
    founders.sort_by_key(|founder| founder.key);
    let mut salt = [0; 32];
    getrandom::fill(&mut salt)?;
    Ok(Roster::new(Genesis {
        name: name.to_owned(),
        founders,
        threshold,
        salt,
    })?)
}

/// Makes a new secret for a node.
///
/// # Errors
/// [`getrandom::Error`] where the machine gives no random numbers.
pub fn new_secret() -> Result<NodeSecret, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(NodeSecret::from_bytes(&bytes))
}

#[cfg(test)]
mod state_tests;
