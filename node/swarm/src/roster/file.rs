//! The roster in the home: one file, replaced as a whole.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::Envelope;
use tvix_node_protocol::limits::ROSTER_BYTES;
use tvix_node_protocol::roster::Genesis;

use super::{GenesisError, Roster};
use crate::disk::{self, DiskError};

const SCHEMA: u64 = 1;

/// Why the roster could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RosterFileError {
    /// The file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What is in it.
    #[error("the roster in {} does not begin a team: {source}", .path.display())]
    Genesis {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: GenesisError,
    },
}

#[derive(Serialize, Deserialize)]
struct Content {
    genesis: Genesis,
    statements: Vec<Envelope>,
}

/// Where a roster is kept.
#[derive(Debug, Clone)]
pub struct RosterFile(PathBuf);

impl RosterFile {
    /// The roster's file in a team's folder.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self(folder.join("roster"))
    }

    /// Whether there is one.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    /// Writes the roster, whole or not at all.
    ///
    /// # Errors
    /// [`RosterFileError::Disk`]
    pub fn save(&self, roster: &Roster) -> Result<(), RosterFileError> {
        let content = Content {
            genesis: roster.genesis().clone(),
            statements: roster
                .statements()
                .map(|(_, envelope)| envelope.clone())
                .collect(),
        };
        Ok(disk::save(&self.0, SCHEMA, &content)?)
    }

    /// Reads it; every signature is checked again. None where there is no file.
    ///
    /// # Errors
    /// See [`RosterFileError`].
    pub fn load(&self, swarm: SwarmId) -> Result<Option<Roster>, RosterFileError> {
        let Some(content) = disk::load::<Content>(&self.0, SCHEMA, ROSTER_BYTES)? else {
            return Ok(None);
        };
        let mut roster = Roster::of(swarm, content.genesis).map_err(|source| RosterFileError::Genesis {
            path: self.0.clone(),
            source,
        })?;
        roster.merge_all(content.statements);
        Ok(Some(roster))
    }
}
