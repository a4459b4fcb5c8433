//! The node's directory: where it is, whose it is, and which version its files have.
//!
//! ```text
//! <home>/version         format of everything below
//! <home>/config.toml     what its owner configured, where there is something
//! <home>/identity        the node's secret key, readable by its owner alone
//! <home>/control.sock    the control socket, while a node is up
//! <home>/up.log          what a node in the background says; up.log.before what it said before that
//! <home>/nix/store/      the store's trees
//! <home>/store/          the store's index
//! <home>/log/            what builds said; of those under way in log/running/
//! <home>/scratch/        builds under way
//! <home>/teams/SWARM/    a team this node belongs to: its roster, tickets, nonces, the ports it listens at, and the
//!                        key that the node has there
//! <home>/teams/first     the team in which it has the key of the home (identity); all others have one of their own
//! <home>/teams/first-asked   the team that was asked to take it in by that key, written down before
//! <home>/teams/founder-keys/  keys by which it can be a founder, until their teams are there
//! <home>/spool/SWARM/    what is arriving from that team; deleting it loses nothing
//! <home>/trust.json      whom its owner believes, what stays private (private.json), on which terms it builds for
//!                        others (share.json), and how much of the link it uses (traffic.json)
//! <home>/durations.json  how long builds took; may be deleted at any time
//! <home>/code/           compiled Nix files, to be deleted at any time
//! <home>/running/        what programs use that 'run' and 'shell' started, while they run
//! <home>/scratch-kept/   folders of failed builds, where asked for; never removed
//! <home>/cache/fetch/    what expressions fetched; may be deleted at any time
//! ```

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tvix_node_protocol::envelope::NodeSecret;

/// Format of the home that this program writes.
pub const HOME_VERSION: u32 = 1;

/// The variable that says where the home is.
pub const HOME_VARIABLE: &str = "TVIX_NODE_HOME";

/// Why a home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Neither the variable nor the user's own directories say where it is.
    #[error(
        "there is no place for the node's home: set {HOME_VARIABLE} to a folder (or HOME, under which one is chosen)"
    )]
    Nowhere,
    /// The variable must name an absolute path.
    #[error("{HOME_VARIABLE} is '{}', which is not an absolute path", .0.display())]
    Relative(PathBuf),
    /// Written by a newer program.
    #[error("the home '{}' has the format {found}, and this program knows {HOME_VERSION}: update tvix-node, or set {HOME_VARIABLE} to another folder. Nothing was changed", .home.display())]
    Newer {
        /// The home.
        home: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A file of the home is not what it should be.
    #[error("'{}' is damaged: {reason}", .file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another user's.
    #[error(
        "the home '{}' belongs to user {owner}, and this is user {me}: what this user writes there the other could not use any \
         more. Run tvix-node as user {owner}, or set {HOME_VARIABLE} to a folder of this user's (with sudo, 'sudo -H' does)",
        .home.display()
    )]
    NotOurs {
        /// The home.
        home: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who wants to use it.
        me: u32,
    },
    /// The file system refuses.
    #[error("the home's '{}' cannot be {action}: {source}", .file.display())]
    Io {
        /// What.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// A node's directory. Holding one says nothing about whether it exists yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The home that the environment names: `TVIX_NODE_HOME`, else the user's data directory.
    ///
    /// # Errors
    /// [`HomeError::Nowhere`], [`HomeError::Relative`].
    pub fn locate() -> Result<Self, HomeError> {
        match std::env::var_os(HOME_VARIABLE).filter(|value| !value.is_empty()) {
            Some(value) => Self::at(PathBuf::from(value)),
            None => match directories::ProjectDirs::from("", "", "tvix-node") {
                Some(directories) => Self::at(directories.data_local_dir().to_owned()),
                None => Err(HomeError::Nowhere),
            },
        }
    }

    /// A home at an absolute path. Where it exists, links in the path are resolved: store paths are
    /// shown to builds by their physical place.
    ///
    /// # Errors
    /// [`HomeError::Relative`]
    pub fn at(root: PathBuf) -> Result<Self, HomeError> {
        if !root.is_absolute() {
            return Err(HomeError::Relative(root));
        }
        Ok(Self {
            root: fs::canonicalize(&root).unwrap_or(root),
        })
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where store paths lie: `<home>/nix/store`.
    #[must_use]
    pub fn store_folder(&self) -> PathBuf {
        self.root.join("nix/store")
    }

    /// Where builds under way lie; on the store's file system.
    #[must_use]
    pub fn scratch_folder(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// Where the files of teams lie.
    #[must_use]
    pub fn teams_folder(&self) -> PathBuf {
        self.root.join("teams")
    }

    /// What its owner configured.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The owner's rules of trust.
    #[must_use]
    pub fn trust_file(&self) -> PathBuf {
        self.root.join("trust.json")
    }

    /// On which terms this node builds for others.
    #[must_use]
    pub fn share_file(&self) -> PathBuf {
        self.root.join("share.json")
    }

    /// How much of the link this node uses.
    #[must_use]
    pub fn traffic_file(&self) -> PathBuf {
        self.root.join("traffic.json")
    }

    /// What is private.
    #[must_use]
    pub fn private_file(&self) -> PathBuf {
        self.root.join("private.json")
    }

    /// How long builds took.
    #[must_use]
    pub fn durations_file(&self) -> PathBuf {
        self.root.join("durations.json")
    }

    /// Where files from other nodes arrive; on the store's file system.
    #[must_use]
    pub fn spool_folder(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// Where compiled Nix files are kept; none where the home is another version's.
    #[must_use]
    pub fn code_folder(&self) -> Option<PathBuf> {
        let ours = match fs::read_to_string(self.root.join("version")) {
            Ok(text) => text.trim().parse() == Ok(HOME_VERSION),
            // Nobody has used it yet.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        ours.then(|| self.root.join("code"))
    }

    /// What is remembered of what expressions fetched.
    #[must_use]
    pub fn fetch_folder(&self) -> PathBuf {
        self.root.join("cache/fetch")
    }

    /// What a node in the background says.
    #[must_use]
    pub fn background_log(&self) -> PathBuf {
        self.root.join("up.log")
    }

    /// Makes the folder where there is none and checks its version.
    ///
    /// # Errors
    /// See [`HomeError`]. A newer home is left untouched.
    pub fn prepare(&self) -> Result<Self, HomeError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .map_err(|source| self.io(&self.root, "created", source))?;
        let home = Self::at(self.root.clone())?;
        home.check_owner()?;
        home.check_version()?;
        Ok(home)
    }

    /// Whoever may write in a folder may put links there that lead elsewhere: only its owner works in it.
    fn check_owner(&self) -> Result<(), HomeError> {
        let about = fs::metadata(&self.root).map_err(|source| self.io(&self.root, "looked at", source))?;
        let (owner, me) = (about.uid(), rustix::process::geteuid().as_raw());
        if owner == me {
            return Ok(());
        }
        Err(HomeError::NotOurs {
            home: self.root.clone(),
            owner,
            me,
        })
    }

    fn check_version(&self) -> Result<(), HomeError> {
        let file = self.root.join("version");
        let found = match fs::read_to_string(&file) {
            Ok(text) => text.trim().parse::<u32>().map_err(|_| HomeError::Damaged {
                file: file.clone(),
                reason: format!(
                    "it should hold a number, and holds '{}'",
                    text.trim().escape_debug()
                ),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.write_new(&file, format!("{HOME_VERSION}\n").as_bytes(), 0o644);
            }
            Err(source) => return Err(self.io(&file, "read", source)),
        };
        if found > HOME_VERSION {
            return Err(HomeError::Newer {
                home: self.root.clone(),
                found,
            });
        }
        Ok(())
    }

    /// The node's secret key; made at first use.
    ///
    /// # Errors
    /// See [`HomeError`].
    pub fn identity(&self) -> Result<NodeSecret, HomeError> {
        let file = self.root.join("identity");
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut secret = [0; 32];
                fill_random(&mut secret).map_err(|source| self.io(&file, "created", source))?;
                self.write_new(&file, &secret, 0o600)?;
                secret.to_vec()
            }
            Err(source) => return Err(self.io(&file, "read", source)),
        };
        let secret: [u8; 32] = bytes.as_slice().try_into().map_err(|_| HomeError::Damaged {
            file: file.clone(),
            reason: format!("it should hold a key of 32 bytes, and holds {}", bytes.len()),
        })?;
        Ok(NodeSecret::from_bytes(&secret))
    }

    /// Writes a file that is there completely or not at all.
    fn write_new(&self, file: &Path, content: &[u8], mode: u32) -> Result<(), HomeError> {
        let aside = file.with_extension(format!("new-{}", std::process::id()));
        let write = || -> io::Result<()> {
            let mut handle = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(mode)
                .open(&aside)?;
            handle.write_all(content)?;
            handle.sync_all()?;
            fs::rename(&aside, file)
        };
        write().map_err(|source| {
            // The message about the first failure is the useful one; a leftover does no harm.
            drop(fs::remove_file(&aside));
            self.io(file, "written", source)
        })
    }

    fn io(&self, file: &Path, action: &'static str, source: io::Error) -> HomeError {
        HomeError::Io {
            file: file.to_owned(),
            action,
            source,
        }
    }
}

fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().join("home")).unwrap().prepare().unwrap();
        let first = home.identity().unwrap().key();
        assert_eq!(home.identity().unwrap().key(), first);
        let mode = fs::metadata(home.root().join("identity"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_home_of_another_user_is_refused_untouched() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: a_home_of_another_user_is_refused_untouched, because only root can make one");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(folder.path(), Some(4321), Some(4321)).unwrap();
        let error = Home::at(folder.path().to_owned()).unwrap().prepare().unwrap_err();
        assert!(matches!(error, HomeError::NotOurs { owner: 4321, .. }), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_newer_home_is_refused_untouched() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("version"), "7\n").unwrap();
        let error = Home::at(folder.path().to_owned()).unwrap().prepare().unwrap_err();
        assert!(matches!(error, HomeError::Newer { found: 7, .. }), "{error}");
        let names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["version"]);
    }

    #[test]
    fn a_damaged_version_or_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().to_owned()).unwrap();
        fs::write(folder.path().join("version"), "x").unwrap();
        assert!(matches!(home.prepare(), Err(HomeError::Damaged { .. })));
        fs::write(folder.path().join("version"), "1").unwrap();
        fs::write(folder.path().join("identity"), "short").unwrap();
        assert!(matches!(
            home.prepare().unwrap().identity(),
            Err(HomeError::Damaged { .. })
        ));
    }

    #[test]
    fn a_relative_home_is_refused() {
        assert!(matches!(Home::at("here".into()), Err(HomeError::Relative(_))));
    }
}
