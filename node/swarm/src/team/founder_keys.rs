//! Keys that this node has for teams to begin with: made, and told to whoever founds one, before there is the team.
//!
//! Each is good for one team, so that nobody in another one knows the node again. It waits in a folder beside the teams until
//! the node has taken its place there; then it is that team's ([`kept_secret`](super::kept_secret)).

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use tvix_node_protocol::envelope::{NodeKey, NodeSecret};

use super::secret::{failed, read, write};
use super::{TeamError, new_secret};
use crate::limits::FOUNDER_KEYS;

/// The folder, among those of the teams. Nothing that is called so is a team's.
const FOLDER: &str = "founder-keys";

fn file(teams: &Path, key: NodeKey) -> PathBuf {
    teams.join(FOLDER).join(key.to_string())
}

/// Makes a key by which this node can be a founder. Blocks.
///
/// # Errors
/// [`TeamError::FounderKeys`] where too many wait for their team, [`TeamError::Random`], [`TeamError::Folder`]
pub fn new_founder_key(teams: &Path) -> Result<NodeKey, TeamError> {
    if founder_keys(teams)?.len() >= FOUNDER_KEYS {
        return Err(TeamError::FounderKeys(teams.join(FOLDER)));
    }
    let secret = new_secret()?;
    write(&file(teams, secret.key()), &secret)?;
    Ok(secret.key())
}

/// Those that wait for their team. Blocks.
///
/// # Errors
/// [`TeamError::Folder`]
pub fn founder_keys(teams: &Path) -> Result<Vec<NodeKey>, TeamError> {
    let folder = teams.join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed("read", &folder)(source)),
    };
    let mut keys = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed("read", &folder))?.file_name();
        keys.extend(name.to_str().and_then(|name| name.parse::<NodeKey>().ok()));
    }
    Ok(keys)
}

/// The secret of such a key; none: it is not one that waits here. Blocks.
///
/// # Errors
/// [`TeamError::Folder`], [`TeamError::Secret`]
pub fn founder_secret(teams: &Path, key: NodeKey) -> Result<Option<NodeSecret>, TeamError> {
    let secret = read(file(teams, key))?;
    Ok(secret.filter(|secret| secret.key() == key))
}

/// A key has its team, and is kept there: it waits no more. Blocks.
///
/// # Errors
/// [`TeamError::Folder`]
pub fn founder_key_is_kept(teams: &Path, key: NodeKey) -> Result<(), TeamError> {
    let file = file(teams, key);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &file)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::team::Team;

    #[test]
    fn each_key_waits_for_one_team_and_only_its_owner_reads_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let teams = tempfile::tempdir().unwrap();
        assert_eq!(founder_keys(teams.path()).unwrap(), []);
        let keys = [(); 2].map(|()| new_founder_key(teams.path()).unwrap());
        assert_ne!(keys[0], keys[1]);
        let secret = founder_secret(teams.path(), keys[0]).unwrap().unwrap();
        assert_eq!(secret.key(), keys[0]);
        let mode = fs::metadata(file(teams.path(), keys[0]))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Team::list(teams.path()).unwrap(), []);
        founder_key_is_kept(teams.path(), keys[0]).unwrap();
        founder_key_is_kept(teams.path(), keys[0]).unwrap();
        assert!(founder_secret(teams.path(), keys[0]).unwrap().is_none());
        assert_eq!(founder_keys(teams.path()).unwrap(), [keys[1]]);
        // Under another's name it is nobody's.
        fs::rename(file(teams.path(), keys[1]), file(teams.path(), keys[0])).unwrap();
        assert!(founder_secret(teams.path(), keys[0]).unwrap().is_none());
    }

    #[test]
    fn so_many_keys_wait_and_no_more() {
        let teams = tempfile::tempdir().unwrap();
        for seed in 0..FOUNDER_KEYS {
            let secret = NodeSecret::from_bytes(&[u8::try_from(seed).unwrap(); 32]);
            write(&file(teams.path(), secret.key()), &secret).unwrap();
        }
        let error = new_founder_key(teams.path()).unwrap_err().to_string();
        assert!(error.contains("64") && error.contains("founder-keys"), "{error}");
    }
}
