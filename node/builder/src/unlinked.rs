//! Files of a build that have no name any more, and take disk as long as a process has them.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FileType, Stat, makedev, stat};

use crate::held::{Found, InMemory, Lies, Thing, Wanted};
use crate::limits::{DISK_ENTRY_BYTES, MAPPINGS_BYTES};

/// Looks for them.
#[derive(Debug)]
pub(crate) struct Unlinked {
    /// Of the build's folders. Files in them may be on another one, which the file system has below it (overlayfs).
    device: u64,
    /// What mappings and mounts call it: where each part of a file system has a device of its own (subvolumes of btrfs),
    /// the file system's.
    mapped: u64,
    in_memory: InMemory,
}

impl Unlinked {
    /// Where a folder is.
    pub(crate) fn beside(folder: &Path) -> std::io::Result<Self> {
        let folder = File::open(folder)?;
        let device = folder.metadata()?.dev();
        let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", folder.as_raw_fd()))?;
        let mounts = fs::read("/proc/self/mountinfo")?;
        Ok(Self {
            device,
            mapped: mounted(&about, &mounts).unwrap_or(device),
            in_memory: InMemory::default(),
        })
    }
}

impl Unlinked {
    /// Tells mapped files apart that have the same number, as they may in different parts of a file system: by their
    /// names.
    fn part(&self, line: &[u8]) -> u64 {
        if self.mapped == self.device {
            return 0;
        }
        let name = line.iter().position(|&byte| byte == b'/').map(|at| &line[at..]);
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        hasher.finish()
    }
}

impl Wanted for Unlinked {
    /// What it executes and what it maps need not be open.
    fn process(&mut self, process: i32, found: &mut Found) -> usize {
        let program = format!("/proc/{process}/exe");
        if let Ok(about) = stat(&*program) {
            self.file(&about, &program, found);
        }
        let mut mappings = Vec::new();
        let read = File::open(format!("/proc/{process}/maps"))
            .and_then(|file| file.take(MAPPINGS_BYTES).read_to_end(&mut mappings));
        if read.is_err() {
            return 1;
        }
        for line in mappings.split(|&byte| byte == b'\n') {
            let Some((device, number, bytes)) = nameless(line) else {
                continue;
            };
            if device == self.mapped {
                let mapped = found.entry(Thing::Mapped(self.device, number, self.part(line)));
                let mapped = mapped.or_insert(0);
                *mapped = (*mapped).max(bytes);
            }
        }
        // A line takes about as long as a descriptor.
        mappings.len() / 100
    }

    fn file(&mut self, stat: &Stat, place: &str, found: &mut Found) -> usize {
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let on_disk = |in_memory: &mut InMemory| {
            stat.st_dev == self.device || in_memory.lies(stat.st_dev, place) == Lies::Elsewhere
        };
        if is_file && stat.st_nlink == 0 && on_disk(&mut self.in_memory) {
            let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
            let bytes = blocks.saturating_mul(512) + DISK_ENTRY_BYTES;
            found.insert(Thing::File(stat.st_dev, stat.st_ino), bytes);
        }
        0
    }

    fn round_is_over(&mut self) {
        self.in_memory.forget();
    }
}

/// The device that `mountinfo` names for the mount that something open is in, from its `fdinfo`.
fn mounted(about: &str, mounts: &[u8]) -> Option<u64> {
    let mount = about
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))?
        .trim();
    let mut lines = mounts.split(|&byte| byte == b'\n').map(String::from_utf8_lossy);
    let line = lines.find(|line| line.split(' ').next() == Some(mount))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Device and number of a file that has no name any more and is mapped, and how far into it, from a line of `maps`. How
/// much of that is on the disk cannot be seen there.
fn nameless(line: &[u8]) -> Option<(u64, u64, u64)> {
    let line = line.strip_suffix(b" (deleted)")?;
    // All of the numbers, and none of the rest is of interest.
    let line = String::from_utf8_lossy(&line[..line.len().min(100)]);
    let mut fields = line.split_ascii_whitespace();
    let (begin, end) = fields.next()?.split_once('-')?;
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let (_, offset, device) = (fields.next()?, hexadecimal(fields.next()?)?, fields.next()?);
    let (major, minor) = device.split_once(':')?;
    let device = makedev(
        hexadecimal(major)?.try_into().ok()?,
        hexadecimal(minor)?.try_into().ok()?,
    );
    let number = fields.next()?.parse().ok().filter(|&number| number != 0)?;
    let length = hexadecimal(end)?.checked_sub(hexadecimal(begin)?)?;
    Some((device, number, offset.saturating_add(length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_s_device_is_what_its_mount_says() {
        let mounts =
            b"27 1 254:0 / / rw - ext4 /dev/vda rw\n45 27 0:39 / /a\\040b rw - btrfs /dev/loop0 rw\n";
        let about = |mount: u32| format!("pos:\t0\nflags:\t0100000\nmnt_id:\t{mount}\nino:\t256\n");
        assert_eq!(mounted(&about(45), mounts), Some(makedev(0, 39)));
        assert_eq!(mounted(&about(4), mounts), None);
        assert_eq!(mounted("pos:\t0\n", mounts), None);
    }

    /// In parts of a file system, numbers are used again.
    #[test]
    fn mapped_files_are_told_apart_by_names_where_numbers_do_not() {
        let line =
            |name: &str| format!("7f1000-7f3000 rw-s 00001000 00:27 257 {name} (deleted)").into_bytes();
        let unlinked = |mapped| Unlinked {
            device: 41,
            mapped,
            in_memory: InMemory::default(),
        };
        let parts = unlinked(39);
        assert_eq!(parts.part(&line("/build/a/x")), parts.part(&line("/build/a/x")));
        assert_ne!(parts.part(&line("/build/a/x")), parts.part(&line("/build/b/x")));
        let whole = unlinked(41);
        assert_eq!(whole.part(&line("/build/a/x")), whole.part(&line("/build/b/x")));
    }

    #[test]
    fn mappings_of_files_without_a_name_are_told() {
        let line = b"7f1000-7f3000 rw-s 00001000 fe:01 77 /build/a b (deleted)";
        assert_eq!(nameless(line), Some((makedev(0xfe, 1), 77, 0x3000)));
        for other in [
            &b"7f1000-7f3000 rw-s 00001000 fe:01 77 /build/a b"[..],
            b"7f1000-7f3000 rw-p 00000000 00:00 0 (deleted)",
            b" (deleted)",
            b"",
        ] {
            assert_eq!(nameless(other), None);
        }
        let mut odd = b"7f1000-7f3000 r--p 00000000 fe:01 9 /".to_vec();
        odd.extend([0xff; 300]);
        odd.extend(b" (deleted)");
        assert_eq!(nameless(&odd), Some((makedev(0xfe, 1), 9, 0x2000)));
    }
}
