//! Where the control socket lies and who may use it.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};

use crate::limits::SOCKET_PATH_BYTES;

/// Name of the socket in the home.
pub const SOCKET_NAME: &str = "control.sock";

/// Name under which the socket is made before it has its permissions. Not longer than [`SOCKET_NAME`].
const UNFINISHED_NAME: &str = "control.new";

/// Why the socket cannot be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The home cannot be opened.
    #[error("the folder '{}' cannot be opened", .folder.display())]
    Folder {
        /// The home.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something that is no socket has its name.
    #[error("'{}' is not a socket: move it away", .0.display())]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("the control socket '{}' cannot be made", .socket.display())]
    Bind {
        /// Where.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// How to name the socket of a home to the kernel.
///
/// A socket's path has at most [`SOCKET_PATH_BYTES`] bytes. In a home with a longer one the socket is
/// reached through a descriptor of the folder, as `/proc/self/fd/N/control.sock`.
#[derive(Debug)]
pub struct SocketAddress {
    path: PathBuf,
    /// The home, or its name through the descriptor.
    folder: PathBuf,
    /// Keeps the name through the descriptor valid.
    _descriptor: Option<OwnedFd>,
}

impl SocketAddress {
    /// The socket of a home.
    ///
    /// # Errors
    /// [`SocketError::Folder`], only where the path is too long to be used as it is.
    pub fn of(home: &Path) -> Result<Self, SocketError> {
        let path = home.join(SOCKET_NAME);
        if path.as_os_str().len() <= SOCKET_PATH_BYTES {
            return Ok(Self {
                path,
                folder: home.to_owned(),
                _descriptor: None,
            });
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor =
            rustix::fs::open(home, flags, Mode::empty()).map_err(|source| SocketError::Folder {
                folder: home.to_owned(),
                source: source.into(),
            })?;
        Ok(Self {
            path,
            folder: PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd())),
            _descriptor: Some(descriptor),
        })
    }

    /// The socket's path, for people; too long for the kernel perhaps.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.folder.join(SOCKET_NAME)).await
    }
}

/// The socket of a node that is up. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    address: SocketAddress,
    pub(super) listener: UnixListener,
}

impl ControlSocket {
    /// Makes the socket, for the owner alone, in place of one that an earlier node left. The caller
    /// holds the home's lock, so no other node is up here. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(home: &Path) -> Result<Self, SocketError> {
        let address = SocketAddress::of(home)?;
        match fs::symlink_metadata(&address.path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(SocketError::NotASocket(address.path));
            }
            _ => {}
        }
        // Nobody can connect before the permissions are set: the name comes last.
        let unfinished = address.folder.join(UNFINISHED_NAME);
        let make = || {
            match fs::remove_file(&unfinished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&unfinished)?;
            fs::set_permissions(&unfinished, Permissions::from_mode(0o600))?;
            fs::rename(&unfinished, address.folder.join(SOCKET_NAME))?;
            Ok(listener)
        };
        match make() {
            Ok(listener) => Ok(Self { address, listener }),
            Err(source) => Err(SocketError::Bind {
                socket: address.path,
                source,
            }),
        }
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.address.path()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(self.address.folder.join(SOCKET_NAME))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(socket = %self.path().display(), %error, "the control socket cannot be removed");
        }
    }
}

/// Whether a process of user `peer` may command a node of user `owner`: the user itself and root,
/// who could read the home anyway.
pub(super) const fn may_command(peer: u32, owner: u32) -> bool {
    peer == owner || peer == 0
}

/// Whether a command of user `own` believes a node of user `peer`: its own, root's, and for root
/// anybody's, since root chose the home.
pub(super) const fn may_believe(peer: u32, own: u32) -> bool {
    may_command(peer, own) || own == 0
}

/// The user this process acts as.
pub(super) fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_and_root_command_a_node() {
        assert!(may_command(1000, 1000));
        assert!(may_command(0, 1000));
        assert!(!may_command(1001, 1000));
        assert!(!may_command(1000, 0), "a user does not command root's node");
    }

    #[test]
    fn a_strangers_node_is_not_believed() {
        assert!(may_believe(1000, 1000));
        assert!(may_believe(0, 1000));
        assert!(may_believe(1000, 0));
        assert!(!may_believe(1001, 1000));
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_and_replaces_a_stale_one() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(SOCKET_NAME);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a killed node leaves its socket");
        let socket = ControlSocket::bind(home.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        SocketAddress::of(home.path()).unwrap().connect().await.unwrap();
        drop(socket);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_long_home_is_reached_through_a_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("x".repeat(200));
        fs::create_dir(&home).unwrap();
        let socket = ControlSocket::bind(&home).unwrap();
        assert_eq!(socket.path(), home.join(SOCKET_NAME));
        assert!(home.join(SOCKET_NAME).exists());
        SocketAddress::of(&home).unwrap().connect().await.unwrap();
        drop(socket);
        assert!(!home.join(SOCKET_NAME).exists());
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_named_and_kept() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(SOCKET_NAME), "notes").unwrap();
        let error = ControlSocket::bind(home.path()).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket(_)));
        assert_eq!(fs::read(home.path().join(SOCKET_NAME)).unwrap(), b"notes");
    }
}
