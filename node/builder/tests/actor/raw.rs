//! System calls that no safe wrapper offers.
//!
//! Invariant: every pointer is to a C string or buffer that outlives the call.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Done;

fn result(value: i64) -> io::Result<i64> {
    if value == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// Sends itself a signal.
pub fn die(signal: i32) -> Done {
    // SAFETY: no pointers.
    result(unsafe { libc::kill(libc::getpid(), signal) }.into())?;
    Ok(())
}

/// `fchmodat2`, which the C library does not offer everywhere.
pub fn fchmodat2(path: &str, mode: u32) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: a C string.
    result(unsafe { libc::syscall(452, libc::AT_FDCWD, path.as_ptr(), mode, 0) }).map(drop)
}

/// `chmod` the way a 32-bit program does it; none where the machine has no such way.
#[cfg(target_arch = "x86_64")]
pub fn chmod_32_bit(path: &str, mode: u32) -> Option<i32> {
    let path = CString::new(path).ok()?;
    let bytes = path.as_bytes_with_nul();
    // SAFETY: a new page below 4 GiB, large enough for the path, which is copied into it. `int 0x80` runs
    // chmod of the 32-bit table, and changes rax and the registers named.
    unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        );
        if page == libc::MAP_FAILED || bytes.len() > 4096 {
            return None;
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), page.cast(), bytes.len());
        let mut answer: i64 = 15;
        std::arch::asm!(
            "xchg rbx, {path}",
            "int 0x80",
            "xchg rbx, {path}",
            path = inout(reg) page as i64 => _,
            inout("rax") answer,
            in("rcx") i64::from(mode),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
        libc::munmap(page, 4096);
        let answer = answer as i32;
        (answer != -libc::ENOSYS).then_some(-answer)
    }
}

/// No 32-bit way.
#[cfg(not(target_arch = "x86_64"))]
pub fn chmod_32_bit(_path: &str, _mode: u32) -> Option<i32> {
    None
}

/// Sets an extended attribute.
pub fn set_attribute(path: &str, name: &CStr) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: C strings and one byte of value.
    result(i64::from(unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), b"x".as_ptr().cast(), 1, 0)
    }))
    .map(drop)
}

/// Asks the kernel for a key that is in one of the caller's keyrings.
pub fn request_key(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: C strings, and a null pointer for what a helper of the machine would be told.
    result(unsafe {
        libc::syscall(
            libc::SYS_request_key,
            c"user".as_ptr(),
            name.as_ptr(),
            std::ptr::null::<libc::c_char>(),
            0,
        )
    })
    .map(drop)
}

/// Reads what a key contains.
pub fn read_key(number: i32) -> io::Result<()> {
    let mut content = [0u8; 16];
    // SAFETY: a buffer of the length given.
    result(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_READ,
            number,
            content.as_mut_ptr(),
            content.len(),
        )
    })
    .map(drop)
}

/// Lets everybody do everything with a key.
pub fn allow_key(number: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    result(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_SETPERM, number, 0x3f3f_3f3f) }).map(drop)
}

/// `mknod`.
pub fn make_node(path: &str, mode: u32, device: u64) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: a C string.
    result(unsafe { libc::mknod(path.as_ptr(), mode, device) }.into()).map(drop)
}

/// New namespaces for this process.
pub fn unshare(namespaces: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    result(unsafe { libc::unshare(namespaces) }.into()).map(drop)
}

/// Copies the process; 0 in the copy.
pub fn fork() -> io::Result<i32> {
    // SAFETY: this program has one thread.
    let pid = unsafe { libc::fork() };
    result(pid.into()).map(|_| pid)
}

/// Ends the process at once.
pub fn exit() -> ! {
    // SAFETY: no pointers.
    unsafe { libc::_exit(0) }
}

/// Waits for a child to end.
pub fn wait(child: i32) -> io::Result<()> {
    // SAFETY: a null pointer, where no status is wanted.
    result(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }.into()).map(drop)
}

/// New memory that children share.
pub fn shared_memory(bytes: usize) -> io::Result<&'static mut [u8]> {
    map(bytes, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)
}

/// A file as memory that children share. It has at least as many bytes.
pub fn map_written(file: BorrowedFd<'_>, bytes: usize) -> io::Result<&'static mut [u8]> {
    map(bytes, libc::MAP_SHARED, file.as_raw_fd())
}

fn map(bytes: usize, flags: i32, file: i32) -> io::Result<&'static mut [u8]> {
    // SAFETY: a new mapping of this length, never unmapped and given out once.
    unsafe {
        let place = libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            file,
            0,
        );
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(std::slice::from_raw_parts_mut(place.cast(), bytes))
    }
}

/// Ignores what can be ignored.
pub fn ignore_signals() {
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: no pointers.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Sends a signal.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    result(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// A socket of a family, which is closed at once.
pub fn socket(family: i32) -> io::Result<()> {
    // SAFETY: no pointers, and the descriptor is this function's.
    unsafe {
        let made = result(libc::socket(family, libc::SOCK_STREAM, 0).into())?;
        libc::close(i32::try_from(made).unwrap_or(-1));
    }
    Ok(())
}

/// A way to the kernel that needs no call for each thing that is asked of it.
pub fn io_uring() -> io::Result<()> {
    let mut parameters = [0u8; 120];
    // SAFETY: the kernel writes no more than it is given; the descriptor is this function's.
    unsafe {
        let made = result(libc::syscall(
            libc::SYS_io_uring_setup,
            1,
            parameters.as_mut_ptr(),
        ))?;
        libc::close(i32::try_from(made).unwrap_or(-1));
    }
    Ok(())
}

/// A session of its own.
pub fn setsid() {
    // SAFETY: no pointers.
    unsafe { libc::setsid() };
}

/// Closes standard output and error.
pub fn close_output() {
    // SAFETY: nothing of this program uses them afterwards.
    unsafe {
        libc::close(1);
        libc::close(2);
    }
}

/// Attaches to a process as a debugger does, and lets it go.
pub fn trace(pid: i32) -> io::Result<()> {
    // SAFETY: no pointers are followed for these requests.
    unsafe {
        result(libc::ptrace(libc::PTRACE_ATTACH, pid, 0, 0))?;
        let mut status = 0;
        libc::waitpid(pid, &raw mut status, 0);
        result(libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0))?;
    }
    Ok(())
}

/// A part of a file system with numbers of its own, where it has such (subvolumes of btrfs).
pub fn subvolume(folder: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    const CREATE: libc::Ioctl = 0x5000_940eu32 as libc::Ioctl; // BTRFS_IOC_SUBVOL_CREATE
    let mut arguments = [0u8; 4096];
    arguments[8..8 + name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: arguments of the size that the number names; the name ends with a zero.
    result(unsafe { libc::ioctl(folder.as_raw_fd(), CREATE, arguments.as_ptr()) }.into()).map(drop)
}

/// Maps a file and never lets it go.
pub fn map_shared(file: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    // SAFETY: a new mapping that nothing of this program reads or writes.
    let place = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Denies others of the same user what a debugger may.
pub fn hide_from_debuggers() -> io::Result<()> {
    // SAFETY: no pointers.
    result(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }.into()).map(drop)
}

/// System V's shared memory that nobody has attached any more.
pub fn detached_segment(bytes: usize) -> io::Result<()> {
    // SAFETY: the segment has as many bytes as are written, and is not used once it is detached.
    unsafe {
        let segment = result(libc::shmget(libc::IPC_PRIVATE, bytes, 0o600).into())?;
        let segment = i32::try_from(segment).map_err(io::Error::other)?;
        let place = libc::shmat(segment, std::ptr::null(), 0);
        if place.addr() == usize::MAX {
            return Err(io::Error::last_os_error());
        }
        std::ptr::write_bytes(place.cast::<u8>(), 1, bytes);
        result(libc::shmdt(place).into())?;
    }
    Ok(())
}

/// Ends this thread alone.
pub fn end_thread() -> ! {
    // SAFETY: no pointers. What the thread has on its stack is not used by others.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("the thread has ended")
}

/// Confines itself with Landlock once more.
pub fn landlock_signals() -> io::Result<()> {
    // Files, network, scopes: signals.
    let rules = [0u64, 0, 2];
    // SAFETY: rules of the size given; the descriptor is this function's.
    unsafe {
        let made = result(libc::syscall(
            libc::SYS_landlock_create_ruleset,
            rules.as_ptr(),
            size_of_val(&rules),
            0u32,
        ))?;
        let confined = result(libc::syscall(libc::SYS_landlock_restrict_self, made, 0u32)).map(drop);
        libc::close(i32::try_from(made).unwrap_or(-1));
        confined
    }
}
