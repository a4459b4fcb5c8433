//! How much a file system has that lies in memory.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, StatVfs, fstat, fstatvfs, makedev, openat, openat2};
use rustix::io::Errno;

use super::namespaces::View;
use crate::disk;
use crate::limits::{DISK_DEPTH, MEMORY_ENTRY_BYTES};

/// A line of `mountinfo`.
pub(super) struct Mount<'a> {
    pub(super) device: u64,
    /// What of the file system is to be seen; of a namespace, which one it is.
    pub(super) part: &'a str,
    /// With what is no plain character in octal numbers.
    place: &'a str,
    pub(super) kind: &'a str,
}

impl<'a> Mount<'a> {
    pub(super) fn read(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(2);
        let (device, part, place) = (before.next()?, before.next()?, before.next()?);
        let (major, minor) = device.split_once(':')?;
        Some(Self {
            device: makedev(major.parse().ok()?, minor.parse().ok()?),
            part,
            place,
            kind: after.split(' ').next()?,
        })
    }

    /// Leads to it without opening it. None where something else lies over it, or this kernel is older than Linux 5.6.
    ///
    /// # Errors
    /// `EACCES` where it is hidden from sight.
    pub(super) fn open(&self, view: &View) -> Result<Option<OwnedFd>, Errno> {
        let place = plain(self.place);
        // Opened once, and never out of that root: links on the way are the build's, and lead where it likes.
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let open = || {
            openat2(
                &view.root,
                &*place,
                OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
                within,
            )
        };
        let opened = match open() {
            Err(Errno::ACCESS) => return Err(Errno::ACCESS),
            opened => opened.ok(),
        };
        Ok(opened.filter(|opened| fstat(opened).is_ok_and(|stat| stat.st_dev == self.device)))
    }
}

/// Bytes of a file system that has a bound, and tells for that reason.
pub(super) fn told(opened: impl AsFd) -> Option<u64> {
    let about = fstatvfs(opened)
        .ok()
        .filter(|about: &StatVfs| about.f_blocks > 0)?;
    let bytes = about
        .f_blocks
        .saturating_sub(about.f_bfree)
        .saturating_mul(about.f_frsize);
    let files = about.f_files.saturating_sub(about.f_ffree);
    Some(bytes.saturating_add(files.saturating_mul(MEMORY_ENTRY_BYTES)))
}

/// What lies in a file system that does not tell, as far as one comes from a folder of it.
pub(super) struct Walk {
    top: OwnedFd,
    /// Number of the folder that it begins with.
    pub(super) number: u64,
}

impl Walk {
    /// Climbs to the highest folder.
    ///
    /// # Errors
    /// `EACCES` where that is hidden from sight, or too deep to see it.
    pub(super) fn from(folder: OwnedFd) -> Result<Self, Errno> {
        let about = fstat(&folder)?;
        let (mut top, mut number) = (folder, about.st_ino);
        for _ in 0..DISK_DEPTH {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let above = match openat(&top, c"..", flags, Mode::empty()) {
                Err(Errno::ACCESS) => return Err(Errno::ACCESS),
                Err(_) => return Ok(Self { top, number }),
                Ok(above) => above,
            };
            let there = fstat(&above)?;
            if there.st_dev != about.st_dev || there.st_ino == number {
                return Ok(Self { top, number });
            }
            (top, number) = (above, there.st_ino);
        }
        Err(Errno::ACCESS)
    }

    /// Bytes, and how many entries that took. Stops counting beyond `enough`.
    pub(super) fn usage(&self, enough: u64) -> (u64, usize) {
        disk::usage_below(&self.top, MEMORY_ENTRY_BYTES, enough)
    }
}

/// Opens what a descriptor leads to for reading. It must be known to be nothing that waits or acts when it is opened.
pub(super) fn readable(opened: &OwnedFd) -> std::io::Result<File> {
    use std::os::fd::AsRawFd as _;
    File::open(format!("/proc/self/fd/{}", opened.as_raw_fd()))
}

/// A path of `mountinfo` as it is.
fn plain(escaped: &str) -> Vec<u8> {
    let mut parts = escaped.split('\\');
    let mut path = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..3).map(|octal| u8::from_str_radix(octal, 8)) {
            Some(Ok(byte)) => {
                path.push(byte);
                path.extend(&part.as_bytes()[3..]);
            }
            _ => path.extend(part.as_bytes()),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read() {
        let line = r"912 900 0:45 /part /dev/shm\040a rw,nosuid shared:1 - tmpfs none rw,size=64k";
        let mount = Mount::read(line).unwrap();
        assert_eq!(
            (mount.device, mount.kind, mount.part),
            (makedev(0, 45), "tmpfs", "/part")
        );
        assert_eq!(plain(mount.place), b"/dev/shm a");
        assert_eq!(plain(r"/a\134b\9"), br"/a\b9");
        assert!(Mount::read("nothing of the kind").is_none());
    }
}
