//! Descriptors that this process has from whoever started it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::{Errno, FdFlags};

/// Has nothing that is started from now on inherit more than standard input, output and error. A command that runs in
/// a shell of `tvix-node shell` has the lock of that shell's program among its descriptors; a node that it starts would
/// hold what the shell uses as long as it lives.
///
/// # Errors
/// `/proc` cannot be read, or the kernel refuses.
pub(crate) fn keep_to_oneself() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<RawFd>().ok())
        else {
            continue;
        };
        if number > 2 {
            // SAFETY: only a flag of the descriptor is set, whoever owns it; one that is gone is an error.
            let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
            match rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC) {
                Ok(()) | Err(Errno::BADF) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
