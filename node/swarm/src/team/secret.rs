//! The key that a node has in one team and nowhere else, so that nobody in another one knows it again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::NodeSecret;

use super::TeamError;

/// The key that the node has in the team.
const KEPT: &str = "identity";

/// The key that it has asked to be taken in by, until it has been.
const ASKED: &str = "identity.asked";

fn file(teams: &Path, team: SwarmId, name: &str) -> PathBuf {
    teams.join(team.to_string()).join(name)
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TeamError {
    let path = path.to_owned();
    move |source| TeamError::Folder { action, path, source }
}

/// The key kept for a team; none where there is no such file.
///
/// # Errors
/// [`TeamError::Folder`], [`TeamError::Secret`]
pub fn kept_secret(teams: &Path, team: SwarmId) -> Result<Option<NodeSecret>, TeamError> {
    read(file(teams, team, KEPT))
}

/// The key by which this node has asked to be taken into a team; none where it has not, or has been taken in.
///
/// # Errors
/// [`TeamError::Folder`], [`TeamError::Secret`]
pub fn asked_secret(teams: &Path, team: SwarmId) -> Result<Option<NodeSecret>, TeamError> {
    read(file(teams, team, ASKED))
}

pub(super) fn read(file: PathBuf) -> Result<Option<NodeSecret>, TeamError> {
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("read", &file)(source)),
    };
    match <[u8; 32]>::try_from(bytes.as_slice()) {
        Ok(secret) => Ok(Some(NodeSecret::from_bytes(&secret))),
        Err(_) => Err(TeamError::Secret {
            path: file,
            bytes: bytes.len(),
        }),
    }
}

/// Keeps the key of a team. Its owner alone can read it.
///
/// # Errors
/// [`TeamError::Folder`]
pub fn keep_secret(teams: &Path, team: SwarmId, secret: &NodeSecret) -> Result<(), TeamError> {
    write(&file(teams, team, KEPT), secret)
}

/// Keeps the key by which a team is asked to take this node in: whoever is cut short comes with the same key again. A key
/// that the node had there before, and has lost, stays missing until then.
///
/// # Errors
/// [`TeamError::Folder`]
pub fn keep_asked(teams: &Path, team: SwarmId, secret: &NodeSecret) -> Result<(), TeamError> {
    write(&file(teams, team, ASKED), secret)
}

/// The node was taken in by the key that it asked by, which is its key there from now on.
///
/// # Errors
/// [`TeamError::Folder`]
pub fn asked_is_kept(teams: &Path, team: SwarmId) -> Result<(), TeamError> {
    let (asked, kept) = (file(teams, team, ASKED), file(teams, team, KEPT));
    let folder = kept.parent().unwrap_or(teams);
    let renamed = fs::rename(&asked, &kept).and_then(|()| File::open(folder)?.sync_all());
    renamed.map_err(failed("rename", &asked))
}

pub(super) fn write(file: &Path, secret: &NodeSecret) -> Result<(), TeamError> {
    let folder = file.parent().unwrap_or(file);
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(folder);
    made.map_err(failed("create", folder))?;
    let beside = file.with_extension("new");
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut handle = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        handle.write_all(&secret.to_bytes())?;
        handle.sync_all()?;
        fs::rename(&beside, file)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(failed("write", file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_for_one_team_and_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let teams = tempfile::tempdir().unwrap();
        let (one, other) = (SwarmId([1; 32]), SwarmId([2; 32]));
        let secret = NodeSecret::from_bytes(&[7; 32]);
        assert!(kept_secret(teams.path(), one).unwrap().is_none());
        keep_secret(teams.path(), one, &secret).unwrap();
        let kept = kept_secret(teams.path(), one).unwrap().unwrap();
        assert_eq!(kept.to_bytes(), secret.to_bytes());
        assert!(kept_secret(teams.path(), other).unwrap().is_none());
        let file = file(teams.path(), one, KEPT);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&file, "short").unwrap();
        let error = kept_secret(teams.path(), one).err().unwrap().to_string();
        assert!(error.contains("holds 5"), "{error}");
    }

    #[test]
    fn a_key_that_was_only_asked_by_is_none_that_the_node_has() {
        let teams = tempfile::tempdir().unwrap();
        let (team, secret) = (SwarmId([1; 32]), NodeSecret::from_bytes(&[7; 32]));
        let of = |secret: Option<NodeSecret>| secret.map(|secret| secret.to_bytes());
        keep_asked(teams.path(), team, &secret).unwrap();
        assert_eq!(of(kept_secret(teams.path(), team).unwrap()), None);
        assert_eq!(
            of(asked_secret(teams.path(), team).unwrap()),
            Some(secret.to_bytes())
        );
        asked_is_kept(teams.path(), team).unwrap();
        assert_eq!(
            of(kept_secret(teams.path(), team).unwrap()),
            Some(secret.to_bytes())
        );
        assert_eq!(of(asked_secret(teams.path(), team).unwrap()), None);
        assert!(asked_is_kept(teams.path(), team).is_err());
    }

    #[test]
    fn a_folder_that_has_only_a_key_is_no_team_yet() {
        let teams = tempfile::tempdir().unwrap();
        keep_asked(teams.path(), SwarmId([1; 32]), &NodeSecret::from_bytes(&[7; 32])).unwrap();
        assert_eq!(super::super::Team::list(teams.path()).unwrap(), []);
    }
}
