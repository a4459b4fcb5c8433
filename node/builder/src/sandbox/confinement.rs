//! What a build may do: user, limits, privileges.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use super::fault::{Fault, Step};
use super::{INSIDE_GID, INSIDE_UID, landlock, system_calls};
use crate::limits::OUT_OF_MEMORY_BADNESS;
use crate::sys;
use crate::wire::Order;

/// The execution domain of 32-bit machines (linux/personality.h).
const PER_LINUX32: std::ffi::c_ulong = 8;

/// The kernel shall take the build rather than the node when memory runs out. Needs the machine's
/// `/proc`.
pub(super) fn prefer_as_victim() {
    // Nothing depends on it, and some containers do not allow it.
    let _not_essential = std::fs::write("/proc/self/oom_score_adj", OUT_OF_MEMORY_BADNESS.to_string());
}

/// Lets what is worth more have the processors first, unless the node gives way to it more than that. Needs the machine's
/// `/proc`, and a session of its own: the kernels of desktops weigh sessions against each other, and processes within them.
pub(super) fn give_way(niceness: i32) -> Result<(), Fault> {
    let own = rustix::process::getpriority_process(None).step(|| "asking for the niceness")?;
    if niceness <= own {
        return Ok(());
    }
    rustix::process::setpriority_process(None, niceness).step(|| "giving way to the owner's work")?;
    // Nobody waits for it: the helper says it again.
    let _later = std::fs::write("/proc/self/autogroup", niceness.to_string());
    Ok(())
}

/// A build's session is told to give way once more, until that is heard: the kernel takes one such word of all sessions in a
/// tenth of a second, and builds of a moment do not wait for it.
pub(super) struct SessionWeight {
    /// None: there is nothing to say, or no more.
    niceness: Option<i32>,
    file: String,
}

impl SessionWeight {
    /// Of the build with this first process.
    pub(super) fn of(pid: i32, niceness: i32) -> Self {
        Self {
            niceness: Some(niceness).filter(|niceness| *niceness > 0),
            file: format!("/proc/{pid}/autogroup"),
        }
    }

    pub(super) fn say_again(&mut self) {
        let Some(niceness) = self.niceness else {
            return;
        };
        let is_told = std::fs::read_to_string(&self.file)
            .is_ok_and(|said| said.trim_end().ends_with(&format!("nice {niceness}")));
        let over = is_told
            || match std::fs::write(&self.file, niceness.to_string()) {
                Ok(()) => true,
                // Where no sessions are weighed, or the build hides itself, there is nobody to tell.
                Err(error) => error.kind() != io::ErrorKind::WouldBlock,
            };
        if over {
            self.niceness = None;
        }
    }
}

/// Shows the control groups that the build is in as `/`, as Nix does where it uses them.
pub(super) fn hide_control_groups() -> Result<(), Fault> {
    match sys::unshare(libc::CLONE_NEWCGROUP) {
        // Before Linux 4.6, and where an administrator allows none. They only show a name.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSPC)) => Ok(()),
        result => result.step(|| "hiding control groups"),
    }
}

/// Becomes the build's user.
pub(super) fn become_build_user() -> Result<(), Fault> {
    let (uid, gid) = (Uid::from_raw(INSIDE_UID), Gid::from_raw(INSIDE_GID));
    rustix::thread::set_thread_res_gid(gid, gid, gid).step(|| "changing the group id")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step(|| "changing the user id")
}

/// Leaves the keys behind that the kernel keeps for the node's session: tickets, and what unlocks disks.
pub(super) fn leave_keys() -> Result<(), Fault> {
    match sys::new_session_keyring() {
        // A kernel without keys, or a container's filter, which then holds for the build as well.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOSYS | libc::EPERM | libc::EACCES)
            ) =>
        {
            Ok(())
        }
        result => result.step(|| "leaving the session's keyring"),
    }
}

/// Dies with the helper. To be repeated after every change of user, which clears it.
pub(super) fn die_with_helper() -> Result<(), Fault> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .step(|| "asking to die with the helper")
}

/// Limits on resources.
pub(super) fn limit(order: &Order) -> Result<(), Fault> {
    // No core files, unless a build asks for them, as in Nix.
    let core = Rlimit {
        current: Some(0),
        maximum: getrlimit(Resource::Core).maximum,
    };
    setrlimit(Resource::Core, core).step(|| "limiting core files")?;
    if let Some(most) = order.file_bytes {
        let allowed = getrlimit(Resource::Fsize)
            .maximum
            .map_or(most, |maximum| maximum.min(most));
        let file = Rlimit {
            current: Some(allowed),
            maximum: Some(allowed),
        };
        setrlimit(Resource::Fsize, file).step(|| "limiting the size of files")?;
    }
    if order.host_id.is_some() || counts_processes_per_namespace() {
        // One more, so that what comes to that has passed the limit and can be told so.
        let most = order.processes.saturating_add(1);
        let allowed = getrlimit(Resource::Nproc)
            .maximum
            .map_or(most, |maximum| maximum.min(most));
        let processes = Rlimit {
            current: Some(allowed),
            maximum: Some(allowed),
        };
        setrlimit(Resource::Nproc, processes).step(|| "limiting processes")?;
    }
    Ok(())
}

/// Since Linux 5.14 the limit on processes counts those of a user namespace; before, all of a user's,
/// which for a node that is not root would be the user's own as well.
fn counts_processes_per_namespace() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(14))
}

/// Execution domain as in Nix: 32-bit where asked for, addresses not randomised.
pub(super) fn set_personality(thirty_two_bit: bool) -> Result<(), Fault> {
    if thirty_two_bit {
        sys::personality(Some(PER_LINUX32)).step(|| "becoming a 32-bit machine")?;
    }
    let fixed_addresses = || {
        let now = sys::personality(None)?;
        sys::personality(Some(
            now | std::ffi::c_ulong::from(libc::ADDR_NO_RANDOMIZE.cast_unsigned()),
        ))
    };
    match fixed_addresses() {
        Ok(_) => Ok(()),
        // Containers forbid it; Nix goes on as well.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        Err(error) => Err(error).step(|| "switching address randomisation off"),
    }
}

/// Gives up all privileges in the namespace, and the way to new ones.
pub(super) fn drop_privileges(thirty_two_bit: bool) -> Result<(), Fault> {
    match rustix::thread::clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error).step(|| "clearing ambient capabilities"),
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).step(|| "dropping capabilities")?;
    rustix::thread::set_no_new_privs(true).step(|| "giving up new privileges")?;
    landlock::confine().step(|| "confining the build with Landlock")?;
    sys::install_filter(&system_calls::filter(thirty_two_bit)).step(|| "filtering system calls")
}

/// Fails where the helper has died already: its end came before [`die_with_helper`].
pub(super) fn check_helper(alive: impl std::os::fd::AsFd) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut pipe = [PollFd::new(&alive, PollFlags::IN)];
    poll(&mut pipe, Some(&rustix::event::Timespec::default()))?;
    if pipe[0].revents().contains(PollFlags::HUP) {
        return Err(io::Error::other("the sandbox helper is gone"));
    }
    Ok(())
}
