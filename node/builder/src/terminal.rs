//! The pseudoterminal that carries a build's log.
//!
//! Nix gives builds a terminal for standard output and error, so programs write line by line there, and
//! some tests of packages depend on it. A pipe would be simpler and wrong.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// The end that the log is read from.
pub(crate) struct LogReader {
    // Anything that can be polled and read may be a "pipe" here.
    master: Receiver,
}

/// Opens a terminal without any translation. Gives the end to read from, and the build's end.
///
/// # Errors
/// The system's, most often because `/dev/pts` is not there.
pub(crate) fn open() -> io::Result<(LogReader, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let terminal = ioctl_tiocgptpeer(&master, flags)?;
    let mut settings = tcgetattr(&terminal)?;
    settings.make_raw();
    tcsetattr(&terminal, OptionalActions::Now, &settings)?;
    rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK)?;
    let master = Receiver::from_owned_fd_unchecked(master)?;
    Ok((LogReader { master }, terminal))
}

/// Makes a build's end that of the host user and group `owner`, where one is given.
///
/// # Errors
/// The system's.
pub(crate) fn give(terminal: &OwnedFd, owner: Option<u32>) -> io::Result<()> {
    if let Some(id) = owner {
        rustix::fs::fchown(terminal, Some(Uid::from_raw(id)), Some(Gid::ROOT))?;
        rustix::fs::fchmod(terminal, Mode::RUSR | Mode::WUSR)?;
    }
    Ok(())
}

impl LogReader {
    /// Reads what is there, or waits for it. 0 when no process has the other end any more.
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.master.read(buffer).await {
            // What Linux says of a terminal that nobody has open.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
            read => read,
        }
    }
}
