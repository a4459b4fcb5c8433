//! In which team a node has the key of its home.
//!
//! It is the first that the node ever was in, or asked to be taken into, other than as a founder by a key made for that. In
//! each other one it has a key of its own, so that nobody knows it again. Which one it is stands in two files of the folder of all teams: [`NOTED`], once the node is in it,
//! and [`ASKED`], written before the key is shown to anybody there. A join that is cut short, or refused, leaves the second
//! one alone: whoever was asked has seen the key, so no other team gets to see it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use tvix_node_protocol::build::SwarmId;
use tvix_node_swarm::team::{TeamError, asked_secret, kept_secret};

use super::membership::TeamFailure;
use super::owner_file::write_whole;

/// The file that says in which team this node has the key of its home.
const NOTED: &str = "first";

/// The file that says which team was asked to take the node in by that key.
const ASKED: &str = "first-asked";

/// See the [module](self). Methods block.
pub struct FirstTeam<'a> {
    /// The folder of all teams of this node.
    teams: &'a Path,
    /// The teams that the node has folders of.
    known: &'a [SwarmId],
}

impl<'a> FirstTeam<'a> {
    /// Of a node that has these teams in this folder.
    pub fn new(teams: &'a Path, known: &'a [SwarmId]) -> Self {
        Self { teams, known }
    }

    /// The team in which the node has, or had, the key of its home; none: it was in none yet by that key.
    ///
    /// # Errors
    /// [`TeamFailure::First`], [`TeamFailure::File`], [`TeamFailure::Team`]
    pub fn team(&self) -> Result<Option<SwarmId>, TeamFailure> {
        if let Some(team) = self.read(NOTED)? {
            return Ok(Some(team));
        }
        let asked = self.read(ASKED)?;
        // From before this was noted, when there was one; or the node ended before it was.
        for team in self.known {
            // The key of another one is lost.
            let may_be = asked.is_none_or(|asked| asked == *team);
            let lacks = |secret| match secret {
                // It has a key of its own, though that cannot be used.
                Err(TeamError::Secret { .. }) => Ok(false),
                kept => kept.map(|kept: Option<_>| kept.is_none()),
            };
            if may_be && lacks(kept_secret(self.teams, *team))? && lacks(asked_secret(self.teams, *team))? {
                self.note(*team)?;
                return Ok(Some(*team));
            }
        }
        Ok(None)
    }

    /// Whether nobody has seen the key of the home in any team.
    ///
    /// # Errors
    /// See [`FirstTeam::team`].
    pub fn is_unseen(&self) -> Result<bool, TeamFailure> {
        Ok(self.team()?.is_none() && self.read(ASKED)?.is_none())
    }

    /// Whether the node may come to a team by the key of its home. Where it may, that is noted durably: from now on it comes
    /// to no other by it.
    ///
    /// # Errors
    /// See [`FirstTeam::team`].
    pub fn ask(&self, team: SwarmId) -> Result<bool, TeamFailure> {
        if let Some(first) = self.team()? {
            // It belongs to it, though not as a member at the moment. One that it has left knows that key as put out.
            return Ok(first == team && self.known.contains(&first));
        }
        match self.read(ASKED)? {
            Some(asked) => Ok(asked == team),
            None => {
                self.write(ASKED, team)?;
                Ok(true)
            }
        }
    }

    /// Nobody was asked after all: the key was shown to nobody.
    ///
    /// # Errors
    /// [`TeamFailure::File`]
    pub fn take_back(&self) -> Result<(), TeamFailure> {
        let file = self.file(ASKED);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(TeamFailure::File {
                file,
                action: "removed",
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// The node is in this team by the key of its home.
    ///
    /// # Errors
    /// [`TeamFailure::File`]
    pub fn note(&self, team: SwarmId) -> Result<(), TeamFailure> {
        self.write(NOTED, team)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.teams.join(name)
    }

    fn read(&self, name: &str) -> Result<Option<SwarmId>, TeamFailure> {
        let file = self.file(name);
        match std::fs::read_to_string(&file) {
            Ok(text) => match text.trim().parse() {
                Ok(team) => Ok(Some(team)),
                Err(reason) => Err(TeamFailure::First { file, reason }),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(TeamFailure::File {
                file,
                action: "read",
                source,
            }),
        }
    }

    fn write(&self, name: &str, team: SwarmId) -> Result<(), TeamFailure> {
        let file = self.file(name);
        let write = || {
            std::fs::create_dir_all(self.teams)?;
            write_whole(&file, format!("{team}\n").as_bytes())
        };
        write().map_err(|source| TeamFailure::File {
            file: file.clone(),
            action: "written",
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::envelope::NodeSecret;
    use tvix_node_swarm::team::{keep_asked, keep_secret};

    use super::*;

    const ANNS: SwarmId = SwarmId([1; 32]);
    const BOBS: SwarmId = SwarmId([2; 32]);

    #[test]
    fn a_join_that_is_cut_short_shows_the_key_to_no_second_team() {
        let folder = tempfile::tempdir().unwrap();
        let teams = folder.path().join("teams");
        let none = FirstTeam::new(&teams, &[]);
        assert!(none.is_unseen().unwrap());
        assert!(none.ask(ANNS).unwrap());
        // The node ends here. Ann has perhaps written the key down.
        assert!(!none.is_unseen().unwrap());
        assert!(!none.ask(BOBS).unwrap());
        assert!(none.ask(ANNS).unwrap(), "it comes again by the same key");
        assert_eq!(none.team().unwrap(), None);
        // Or it ends after the roster was written, before the note.
        let known = [ANNS];
        let joined = FirstTeam::new(&teams, &known);
        assert_eq!(joined.team().unwrap(), Some(ANNS));
        assert_eq!(
            std::fs::read_to_string(teams.join(NOTED)).unwrap(),
            format!("{ANNS}\n")
        );
        // It has left; the key is put out there.
        assert!(!none.ask(ANNS).unwrap());
        assert!(!none.ask(BOBS).unwrap());
    }

    #[test]
    fn a_team_whose_own_key_is_lost_is_not_taken_for_the_first_one() {
        let folder = tempfile::tempdir().unwrap();
        let teams = folder.path();
        assert!(FirstTeam::new(teams, &[]).ask(ANNS).unwrap());
        // Ann refused; bob's team has another key, whose file is gone.
        let known = [BOBS];
        assert_eq!(FirstTeam::new(teams, &known).team().unwrap(), None);
        keep_secret(teams, BOBS, &NodeSecret::from_bytes(&[7; 32])).unwrap();
        assert_eq!(FirstTeam::new(teams, &known).team().unwrap(), None);
    }

    #[test]
    fn what_nobody_was_asked_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let none = FirstTeam::new(folder.path(), &[]);
        assert!(none.ask(ANNS).unwrap());
        none.take_back().unwrap();
        none.take_back().unwrap();
        assert!(none.is_unseen().unwrap());
        assert!(none.ask(BOBS).unwrap());
    }

    #[test]
    fn a_node_from_before_there_were_several_has_the_key_of_its_home_in_the_one_without_another() {
        let folder = tempfile::tempdir().unwrap();
        let teams = folder.path();
        keep_secret(teams, ANNS, &NodeSecret::from_bytes(&[7; 32])).unwrap();
        let known = [ANNS, BOBS];
        assert_eq!(FirstTeam::new(teams, &known).team().unwrap(), Some(BOBS));
        std::fs::remove_file(teams.join(NOTED)).unwrap();
        // It has asked bob's by another one.
        keep_asked(teams, BOBS, &NodeSecret::from_bytes(&[7; 32])).unwrap();
        assert_eq!(FirstTeam::new(teams, &known).team().unwrap(), None);
        std::fs::write(teams.join(NOTED), "nonsense").unwrap();
        let error = FirstTeam::new(teams, &known).team().err().unwrap().to_string();
        assert!(error.contains("first"), "{error}");
    }
}
