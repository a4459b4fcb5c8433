//! Keys that the kernel keeps for this process and what it starts.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;

/// `KEY_SPEC_SESSION_KEYRING` (linux/keyctl.h).
const SESSION_KEYRING: i32 = -3;

/// Adds a key to the session's keyring, which every process started from here on inherits, and gives its
/// number.
pub fn add_session_key(name: &str) -> io::Result<i64> {
    let name = CString::new(name)?;
    // SAFETY: C strings and one byte of content, which live until the call ends.
    let key = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            name.as_ptr(),
            b"x".as_ptr(),
            1,
            SESSION_KEYRING,
        )
    };
    match key {
        -1 => Err(io::Error::last_os_error()),
        number => Ok(number),
    }
}
