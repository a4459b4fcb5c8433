//! Landlock, a second wall where the kernel offers it: a build reaches neither abstract sockets nor processes outside of
//! its own, whatever should be wrong with its namespaces.
//!
//! Not used for files, though it could be: whoever is confined so may mount nothing at all any more, also in
//! namespaces of its own, which builds may have, as in Nix.
//!
//! See the kernel's `Documentation/userspace-api/landlock.rst`.

use std::io;

use crate::sys;

/// The version of Landlock that can do this: of Linux 6.12.
const VERSION: u32 = 6;

/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `LANDLOCK_SCOPE_SIGNAL` (linux/landlock.h).
const SCOPES: u64 = 1 | 2;

/// What a machine has of Landlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landlock {
    /// Its version; none where the kernel has none, or it is switched off.
    pub version: Option<u32>,
    /// Whether builds are confined by it as well.
    pub is_used: bool,
}

impl Landlock {
    /// Asks the kernel, and tries it in a thread of its own.
    pub(crate) fn of_machine() -> Self {
        let try_it = || rustix::thread::set_no_new_privs(true).is_ok() && sys::landlock_scope(SCOPES).is_ok();
        Self {
            version: sys::landlock_version().ok(),
            is_used: is_enough() && std::thread::spawn(try_it).join().unwrap_or(false),
        }
    }
}

/// Whether the kernel has what is used.
fn is_enough() -> bool {
    sys::landlock_version().is_ok_and(|version| version >= VERSION)
}

/// Confines this thread and what it starts. Does nothing where the kernel cannot. No new privileges must be set.
pub(super) fn confine() -> io::Result<()> {
    if !is_enough() {
        return Ok(());
    }
    match sys::landlock_scope(SCOPES) {
        // A container's filter that lets through the question alone, and a node that is as deep in it as can be.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOSYS | libc::EPERM | libc::E2BIG)
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    use super::*;

    /// In a thread alone: the kernel confines those one by one.
    #[test]
    fn sockets_and_processes_from_before_are_out_of_reach() {
        if !Landlock::of_machine().is_used {
            use std::io::Write as _;
            writeln!(
                io::stderr(),
                "SKIPPED: Landlock, because this kernel does not offer version {VERSION}"
            )
            .unwrap();
            return;
        }
        let name = format!("tvix-node-landlock-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let mut other = Command::new("/proc/self/exe")
            .arg("--list")
            .stdout(Stdio::piped())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = rustix::process::Pid::from_raw(other.id().cast_signed()).unwrap();
        let tried = move || {
            let signal = rustix::process::test_kill_process(pid).map_err(io::Error::from);
            [UnixStream::connect_addr(&address).map(drop), signal]
                .map(|result| result.map_err(|error| error.kind()))
        };
        assert_eq!(tried.clone()(), [Ok(()), Ok(())]);
        let confined = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            confine().unwrap();
            tried()
        });
        let denied = Err(io::ErrorKind::PermissionDenied);
        assert_eq!(confined.join().unwrap(), [denied, denied]);
        drop(listener);
        other.wait().unwrap();
    }
}
