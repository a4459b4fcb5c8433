//! System calls that no safe wrapper offers. The only module with `unsafe`.
//!
//! Invariants:
//! - Pointers handed to the kernel come from live Rust values of the layout that the call documents,
//!   and the kernel does not keep them past the call ([`execute`] replaces the program, so nothing
//!   outlives it there).
//! - [`clone_process`] copies the process like `fork`; it refuses to run where a second thread
//!   exists, so the copy has no lock that another thread held.
//! - Descriptors are passed as borrowed ones, except in [`child_signals`], [`owner_of_namespace`] and
//!   [`landlock_scope`], which take ownership of a descriptor that the kernel has just made.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int, c_ulong};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use crate::wire::{Exit, Usage};

fn check(result: impl Into<i64>) -> io::Result<i64> {
    match result.into() {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// Which side of a [`clone_process`] this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The caller, with the new process's id.
    Parent(i32),
    /// The new process.
    Child,
}

/// Copies the calling process into new namespaces, as `fork` with flags.
///
/// # Errors
/// The kernel's, and `EBUSY`-like refusal where the process has other threads.
pub(crate) fn clone_process(namespaces: c_int) -> io::Result<Side> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other(
            "the sandbox helper has more than one thread; call run_if_sandbox first in main",
        ));
    }
    let flags = c_ulong::from((namespaces | libc::SIGCHLD).cast_unsigned());
    // SAFETY: without CLONE_VM and with a null stack this is fork: the child runs on a copy of this
    // stack. Only one thread exists (checked above). On the architectures Rust's std supports for
    // Linux, except s390x, flags come first and the stack second; all other arguments are null.
    #[cfg(not(target_arch = "s390x"))]
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) };
    // SAFETY: as above; s390x takes the stack first.
    #[cfg(target_arch = "s390x")]
    let result = unsafe { libc::syscall(libc::SYS_clone, 0usize, flags, 0usize, 0usize, 0usize) };
    match check(result)? {
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(i32::try_from(pid).map_err(io::Error::other)?)),
    }
}

/// Puts the process into new namespaces.
pub(crate) fn unshare(namespaces: c_int) -> io::Result<()> {
    // SAFETY: takes no pointers. Descriptors and memory stay shared with nobody: there is one thread.
    check(unsafe { libc::unshare(namespaces) }).map(drop)
}

/// What two processes or threads may have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shared {
    /// Their memory.
    Memory,
    /// Their table of descriptors.
    Files,
    /// Where they are, and where paths begin for them.
    Folders,
}

/// Whether two processes or threads have the same. Where the kernel does not tell, they are different.
pub(crate) fn share(what: Shared, one: i32, other: i32) -> bool {
    // KCMP_VM, KCMP_FILES and KCMP_FS (linux/kcmp.h).
    let what: c_int = match what {
        Shared::Memory => 1,
        Shared::Files => 2,
        Shared::Folders => 3,
    };
    // SAFETY: takes no pointers for these.
    let order = check(unsafe { libc::syscall(libc::SYS_kcmp, one, other, what, 0usize, 0usize) });
    order.is_ok_and(|order| order == 0)
}

/// The user namespace that another namespace belongs to.
pub(crate) fn owner_of_namespace(namespace: &File) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701u32 as libc::Ioctl; // linux/nsfs.h
    // SAFETY: takes no pointers; makes a new descriptor.
    let descriptor = check(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) })?;
    let descriptor = c_int::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel just made it, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// What kind of namespace this is, as one asks for it (`CLONE_NEW*`).
pub(crate) fn kind_of_namespace(namespace: &File) -> io::Result<c_int> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703u32 as libc::Ioctl; // linux/nsfs.h
    // SAFETY: takes no pointers.
    let kind = check(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE) })?;
    c_int::try_from(kind).map_err(io::Error::other)
}

/// Leaves the session's keyring for a new, empty one.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: c_int = 1; // KEYCTL_JOIN_SESSION_KEYRING (linux/keyctl.h)
    let name = std::ptr::null::<libc::c_char>();
    // SAFETY: a null pointer asks for a keyring without a name.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name) }).map(drop)
}

/// Replaces the program. Returns only where that failed.
pub(crate) fn execute(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        let strings = strings.iter().map(|string| string.as_ptr());
        strings.chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with a null pointer and point to strings that live until the call ends.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends the process at once, without running anything that was to run at its end.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: takes no pointers.
    unsafe { libc::_exit(code) }
}

/// Sets and clears attributes (`MOUNT_ATTR_*`) of a mount, or of all mounts below it as well.
///
/// # Errors
/// The kernel's; `ENOSYS` before Linux 5.12.
pub(crate) fn set_mount_attributes(path: &CStr, recursive: bool, set: u64, clear: u64) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: a C string and a mount_attr of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Switches the interface `lo` of the process's network namespace on.
pub(crate) fn bring_up_loopback() -> io::Result<()> {
    let flags = libc::IFF_UP | libc::IFF_LOOPBACK | libc::IFF_RUNNING;
    let flags = libc::__c_anonymous_ifr_ifru {
        ifru_flags: i16::try_from(flags).map_err(io::Error::other)?,
    };
    interface(&network_socket()?, libc::SIOCSIFFLAGS, c"lo", flags)
}

/// Makes the interface `tun0` in the process's network namespace, with a route to everywhere. Its packets
/// are written to and read from the device, which was opened by this process for it.
pub(crate) fn make_tunnel(device: &File, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    const NAME: &CStr = c"tun0";
    let kind = libc::IFF_TUN | libc::IFF_NO_PI;
    let kind = libc::__c_anonymous_ifr_ifru {
        ifru_flags: i16::try_from(kind).map_err(io::Error::other)?,
    };
    interface(device, libc::TUNSETIFF, NAME, kind)?;
    let socket = network_socket()?;
    let at = |address| libc::__c_anonymous_ifr_ifru {
        ifru_addr: socket_address(address),
    };
    interface(&socket, libc::SIOCSIFADDR, NAME, at(address))?;
    interface(&socket, libc::SIOCSIFNETMASK, NAME, at(mask))?;
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    let flags = libc::__c_anonymous_ifr_ifru {
        ifru_flags: i16::try_from(flags).map_err(io::Error::other)?,
    };
    interface(&socket, libc::SIOCSIFFLAGS, NAME, flags)?;
    let everywhere = socket_address(Ipv4Addr::UNSPECIFIED);
    let route = Route {
        padding_1: 0,
        destination: everywhere,
        gateway: everywhere,
        mask: everywhere,
        flags: ROUTE_UP,
        padding_2: 0,
        padding_3: 0,
        padding_4: std::ptr::null(),
        metric: 0,
        device: NAME.as_ptr(),
        mtu: 0,
        window: 0,
        round_trip: 0,
    };
    // SAFETY: SIOCADDRT reads an rtentry, whose device is a C string.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, std::ptr::from_ref(&route)) }).map(drop)
}

/// Gives the interface `tun0` an address of IPv6, and a route for all of that through it.
pub(crate) fn add_ipv6_to_tunnel(address: Ipv6Addr, prefix: u8) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, socket};
    let socket = socket(AddressFamily::INET6, SocketType::DGRAM, None)?;
    // SAFETY: the name is a C string.
    let index = unsafe { libc::if_nametoindex(c"tun0".as_ptr()) };
    let index = i32::try_from(index).map_err(io::Error::other)?;
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let own = AddressV6 {
        address: address.octets(),
        prefix: u32::from(prefix),
        index,
    };
    let everywhere = RouteV6 {
        destination: [0; 16],
        source: [0; 16],
        gateway: [0; 16],
        kind: 0,
        destination_prefix: 0,
        source_prefix: 0,
        metric: 1,
        info: 0,
        flags: u32::from(ROUTE_UP),
        index,
    };
    // SAFETY: SIOCSIFADDR of an IPv6 socket reads an in6_ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR, std::ptr::from_ref(&own)) })?;
    // SAFETY: SIOCADDRT of an IPv6 socket reads an in6_rtmsg.
    check(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCADDRT,
            std::ptr::from_ref(&everywhere),
        )
    })
    .map(drop)
}

/// `struct in6_ifreq` of linux/ipv6.h.
#[repr(C)]
struct AddressV6 {
    address: [u8; 16],
    prefix: u32,
    index: libc::c_int,
}

/// `struct in6_rtmsg` of linux/ipv6_route.h.
#[repr(C)]
struct RouteV6 {
    destination: [u8; 16],
    source: [u8; 16],
    gateway: [u8; 16],
    kind: u32,
    destination_prefix: u16,
    source_prefix: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    index: libc::c_int,
}

/// `struct rtentry` of linux/route.h, which libc does not have everywhere.
#[repr(C)]
struct Route {
    padding_1: libc::c_ulong,
    destination: libc::sockaddr,
    gateway: libc::sockaddr,
    mask: libc::sockaddr,
    flags: libc::c_ushort,
    padding_2: libc::c_short,
    padding_3: libc::c_ulong,
    padding_4: *const libc::c_void,
    metric: libc::c_short,
    device: *const libc::c_char,
    mtu: libc::c_ulong,
    window: libc::c_ulong,
    round_trip: libc::c_ushort,
}

/// `RTF_UP` of linux/route.h.
const ROUTE_UP: libc::c_ushort = 1;

/// Lets tasks wait until a file can be read or written.
pub(crate) fn watched(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File owns its descriptor, which stays the same until it is dropped.
    Ok(unsafe { AsyncFd::register(file) }?)
}

fn network_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketType, socket};
    Ok(socket(AddressFamily::INET, SocketType::DGRAM, None)?)
}

/// As the ioctls of interfaces take addresses.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    // A sockaddr_in: port, address.
    for (to, from) in data[2..].iter_mut().zip(address.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}

/// A request about an interface by its name.
fn interface(
    to: &impl AsRawFd,
    request: libc::Ioctl,
    name: &CStr,
    value: libc::__c_anonymous_ifr_ifru,
) -> io::Result<()> {
    let mut about = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: value,
    };
    for (to, from) in about.ifr_name.iter_mut().zip(name.to_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: the requests that this is used for read an ifreq, and TUNSETIFF writes its name.
    check(unsafe { libc::ioctl(to.as_raw_fd(), request, std::ptr::from_mut(&mut about)) }).map(drop)
}

/// Sets the execution domain; `None` only asks. Gives what it was.
pub(crate) fn personality(persona: Option<c_ulong>) -> io::Result<c_ulong> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::personality(persona.unwrap_or(0xffff_ffff)) })
        .map(|previous| c_ulong::from(u32::try_from(previous).unwrap_or_default()))
}

/// One instruction of a classic BPF program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) if_true: u8,
    pub(crate) if_false: u8,
    pub(crate) value: u32,
}

/// Filters all further system calls of this process and its children. No new privileges must be set.
pub(crate) fn install_filter(program: &[Instruction]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: Instruction has the layout of sock_filter, and `len` of them are there. The kernel
    // copies them and does not write.
    check(unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            std::ptr::from_ref(&program),
        )
    })
    .map(drop)
}

/// Which version of Landlock the kernel has.
///
/// # Errors
/// `ENOSYS` and `EOPNOTSUPP` where there is none.
pub(crate) fn landlock_version() -> io::Result<u32> {
    const ASK_FOR_VERSION: u32 = 1; // LANDLOCK_CREATE_RULESET_VERSION (linux/landlock.h)
    let nothing = std::ptr::null::<LandlockRules>();
    // SAFETY: with this flag the kernel wants a null pointer and no size, and gives a number.
    let version = check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            nothing,
            0usize,
            ASK_FOR_VERSION,
        )
    });
    u32::try_from(version?).map_err(io::Error::other)
}

/// Confines this thread, and what it starts, to what is named with each other. No new privileges must be set.
pub(crate) fn landlock_scope(scopes: u64) -> io::Result<()> {
    let rules = LandlockRules {
        files: 0,
        network: 0,
        scopes,
    };
    let size = size_of::<LandlockRules>();
    // SAFETY: reads a landlock_ruleset_attr of the size given; makes a new descriptor.
    let made =
        check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rules, size, 0u32) })?;
    let made = c_int::try_from(made).map_err(io::Error::other)?;
    // SAFETY: the kernel just made it, so nobody else owns it.
    let rules = unsafe { OwnedFd::from_raw_fd(made) };
    // SAFETY: takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0u32) }).map(drop)
}

/// `struct landlock_ruleset_attr` of linux/landlock.h, as of version 6.
#[repr(C)]
struct LandlockRules {
    files: u64,
    network: u64,
    scopes: u64,
}

/// Every signal to its default, none blocked, as a program expects to start.
pub(crate) fn reset_signals() -> io::Result<()> {
    // The kernel's own sigaction structure, which is smaller than this on every architecture: all
    // zeroes are SIG_DFL without flags. Not through the C library, which keeps two signals to itself,
    // and these may have been inherited as ignored.
    let default = [0u64; 8];
    for signal in 1..=64 {
        // SAFETY: reads one structure; a signal set has 8 bytes. Fails for KILL and STOP, which cannot
        // be anything but default.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                8usize,
            )
        };
    }
    set_signal_mask(|_| {})
}

/// A descriptor that is readable when a child has ended. Blocks `SIGCHLD` for this process.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    let mut set = set_of_signals(|set| {
        // SAFETY: an initialised set and a valid signal.
        unsafe { libc::sigaddset(set, libc::SIGCHLD) };
    });
    // SAFETY: reads the set.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) })?;
    // SAFETY: reads the set; makes a new descriptor.
    let descriptor = check(unsafe { libc::signalfd(-1, &raw mut set, libc::SFD_CLOEXEC) })?;
    let descriptor = c_int::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel just made it, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn set_signal_mask(fill: impl FnOnce(&mut libc::sigset_t)) -> io::Result<()> {
    let set = set_of_signals(fill);
    // SAFETY: reads the set.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) }).map(drop)
}

fn set_of_signals(fill: impl FnOnce(&mut libc::sigset_t)) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data and sigemptyset initialises it.
    let mut set = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        set
    };
    fill(&mut set);
    set
}

/// Waits for a child to end; `None` if it has not, where `block` is false.
pub(crate) fn wait(pid: i32, block: bool) -> io::Result<Option<(Exit, Usage)>> {
    let mut status = 0;
    // SAFETY: rusage is plain data.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let flags = if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: writes one status and one rusage.
        match check(unsafe { libc::wait4(pid, &raw mut status, flags, &raw mut usage) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(0) => return Ok(None),
            Ok(_) => break,
        }
    }
    let exit = if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Code(libc::WEXITSTATUS(status))
    };
    let microseconds = |time: libc::timeval| {
        let seconds = Duration::from_secs(time.tv_sec.try_into().unwrap_or_default());
        let all = seconds + Duration::from_micros(time.tv_usec.try_into().unwrap_or_default());
        u64::try_from(all.as_micros()).unwrap_or(u64::MAX)
    };
    let usage = Usage {
        user_microseconds: microseconds(usage.ru_utime),
        system_microseconds: microseconds(usage.ru_stime),
        // The kernel counts in KiB.
        peak_memory: u64::try_from(usage.ru_maxrss).unwrap_or_default() * 1024,
    };
    Ok(Some((exit, usage)))
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: takes no pointers. Callers own nothing from `first` on that they use afterwards.
    let closed = check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) });
    match closed {
        Ok(_) => Ok(()),
        // Before Linux 5.9, or where a container's filter does not know the call.
        Err(_) => {
            let open: Vec<u32> = std::fs::read_dir("/proc/self/fd")?
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .collect();
            for descriptor in open.into_iter().filter(|&open| open >= first) {
                // SAFETY: as above. Closing one that is not open (the listing's own) does nothing.
                unsafe { libc::close(descriptor.cast_signed()) };
            }
            Ok(())
        }
    }
}
