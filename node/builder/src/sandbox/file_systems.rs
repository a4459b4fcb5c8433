//! How much a file system has that lies in memory.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, StatVfs, fstat, fstatvfs, makedev, openat, openat2};
use rustix::io::Errno;

use super::namespaces::View;
use crate::disk;
use crate::limits::{DISK_DEPTH, MEMORY_ENTRY_BYTES};

/// A line of `mountinfo`. Names in it are whatever bytes the build likes.
pub(super) struct Mount<'a> {
    pub(super) device: u64,
    /// What of the file system is to be seen; of a namespace, which one it is.
    pub(super) part: &'a [u8],
    /// With what separates fields in octal numbers.
    place: &'a [u8],
    pub(super) kind: &'a [u8],
}

impl<'a> Mount<'a> {
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.trim_ascii_end().split(|&byte| byte == b' ').skip(2);
        let device = str::from_utf8(fields.next()?).ok()?;
        let (major, minor) = device.split_once(':')?;
        let (part, place) = (fields.next()?, fields.next()?);
        // After the options, of which there are different numbers.
        let kind = fields.skip_while(|&field| field != b"-").nth(1)?;
        Some(Self {
            device: makedev(major.parse().ok()?, minor.parse().ok()?),
            part,
            place,
            kind,
        })
    }

    /// Leads to it without opening it. None where something else lies over it, or this kernel is older than Linux 5.6.
    ///
    /// # Errors
    /// `EACCES` where it is hidden from sight.
    pub(super) fn open(&self, view: &View) -> Result<Option<OwnedFd>, Errno> {
        let opened = match below(&view.root, &plain(self.place)) {
            Err(Errno::ACCESS) => return Err(Errno::ACCESS),
            opened => opened.ok(),
        };
        Ok(opened.filter(|opened| fstat(opened).is_ok_and(|stat| stat.st_dev == self.device)))
    }
}

/// Leads to what is below a folder of the build. The kernel tells paths without links, so where there is one, the build has
/// just put it there, and it may lead anywhere.
fn below(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let open = |at: &OwnedFd, path: &[u8]| openat2(at, path, flags, Mode::empty(), within);
    let mut at = open(root, b".")?;
    let mut rest = path.strip_prefix(b"/").unwrap_or(path);
    // In pieces, because the whole may be longer than a path that can be opened.
    while !rest.is_empty() {
        let end = match rest.len() > PIECE_BYTES {
            true => rest[..PIECE_BYTES].iter().rposition(|&byte| byte == b'/'),
            false => None,
        };
        let (piece, further) = end.map_or((rest, &b""[..]), |end| (&rest[..end], &rest[end + 1..]));
        at = open(&at, piece)?;
        rest = further;
    }
    Ok(at)
}

/// Bytes of a path that are opened at once: what the kernel takes (`PATH_MAX`).
const PIECE_BYTES: usize = 4095;

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
fn plain(escaped: &[u8]) -> Vec<u8> {
    let mut parts = escaped.split(|&byte| byte == b'\\');
    let mut path = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        let octal = part.get(..3).and_then(|octal| str::from_utf8(octal).ok());
        match octal.map(|octal| u8::from_str_radix(octal, 8)) {
            Some(Ok(byte)) => {
                path.push(byte);
                path.extend(&part[3..]);
            }
            _ => path.extend(part),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn no_link_is_followed_to_a_mount() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(place.path().join("a/b")).unwrap();
        for (name, target) in [
            ("absolute", "/"),
            ("up", ".."),
            ("beside", "a"),
            ("magic", "/proc/self/root"),
        ] {
            std::os::unix::fs::symlink(target, place.path().join(name)).unwrap();
        }
        let root: OwnedFd = File::open(place.path()).unwrap().into();
        for path in ["/absolute", "/up", "/beside", "/beside/b", "/magic", "/a/../../b"] {
            assert!(below(&root, path.as_bytes()).is_err(), "{path}");
        }
        for path in ["/", "/a", "/a/b"] {
            assert!(below(&root, path.as_bytes()).is_ok(), "{path}");
        }
    }

    #[test]
    fn a_path_may_be_longer_than_one_that_can_be_opened() {
        let place = tempfile::tempdir().unwrap();
        let root: OwnedFd = File::open(place.path()).unwrap().into();
        let name = "d".repeat(250);
        let (mut deep, mut path) = (root.try_clone().unwrap(), String::new());
        while path.len() <= 2 * PIECE_BYTES {
            mkdirat(&deep, &*name, Mode::RWXU).unwrap();
            deep = openat(&deep, &*name, OFlags::DIRECTORY, Mode::empty()).unwrap();
            path = format!("{path}/{name}");
            let found = fstat(below(&root, path.as_bytes()).unwrap()).unwrap();
            assert_eq!(found.st_ino, fstat(&deep).unwrap().st_ino);
        }
        crate::remove::remove_tree(&place.path().join(name)).unwrap();
    }

    #[test]
    fn mounts_are_read() {
        let line =
            b"912 900 0:45 /part /dev/shm\\040\xff rw,nosuid shared:1 master:2 - tmpfs none rw,size=64k\n";
        let mount = Mount::read(line).unwrap();
        assert_eq!(
            (mount.device, mount.kind, mount.part),
            (makedev(0, 45), &b"tmpfs"[..], &b"/part"[..])
        );
        assert_eq!(plain(mount.place), b"/dev/shm \xff");
        assert_eq!(plain(br"/a\134b\9"), br"/a\b9");
        assert_eq!(Mount::read(b"912 900 0:45 / / rw - ext4").unwrap().kind, b"ext4");
        assert!(Mount::read(b"nothing of the kind").is_none());
    }
}
