//! Waiting for a node that was told to end.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::task::spawn_blocking;

/// A node that was told to end. Its socket goes first; the home is free when its process is gone.
#[derive(Debug)]
pub struct Ending(Process);

#[derive(Debug)]
enum Process {
    Running(OwnedFd),
    Gone,
    /// The kernel does not tell which process it is, or has no descriptors of processes (Linux 5.3).
    Unknown(io::Error),
}

impl Ending {
    /// Of a process, by its number. Must be called before the process is told to end: later the number
    /// may be another one's.
    pub(super) fn of(process: Option<i32>) -> Self {
        let unknown = || io::Error::other("it is in another PID namespace");
        let Some(process) = process.and_then(Pid::from_raw) else {
            return Self(Process::Unknown(unknown()));
        };
        Self(match pidfd_open(process, PidfdFlags::empty()) {
            Ok(descriptor) => Process::Running(descriptor),
            Err(Errno::SRCH) => Process::Gone,
            Err(error) => Process::Unknown(error.into()),
        })
    }

    /// Waits until the process has ended. `false`: it has not within `patience`.
    ///
    /// # Errors
    /// It cannot be told whether it has.
    pub async fn ended(self, patience: Duration) -> io::Result<bool> {
        match self.0 {
            Process::Gone => Ok(true),
            Process::Unknown(error) => Err(error),
            Process::Running(descriptor) => spawn_blocking(move || wait(&descriptor, patience))
                .await
                .map_err(io::Error::other)?,
        }
    }
}

/// Waits until a process's descriptor is readable, which it is when the process has ended.
fn wait(descriptor: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    loop {
        match poll(&mut polled, Some(&patience)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[tokio::test]
    async fn a_process_is_waited_for() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let number = i32::try_from(child.id()).unwrap();
        assert!(!Ending::of(Some(number)).ended(Duration::ZERO).await.unwrap());
        let ending = Ending::of(Some(number));
        // `cat` ends with its input.
        drop(child.stdin.take());
        assert!(ending.ended(Duration::from_secs(3600)).await.unwrap());
        child.wait().unwrap();
        assert!(Ending::of(Some(number)).ended(Duration::ZERO).await.unwrap());
    }

    #[tokio::test]
    async fn a_process_without_a_number_is_not_guessed() {
        for number in [None, Some(0)] {
            assert!(Ending::of(number).ended(Duration::ZERO).await.is_err());
        }
    }
}
