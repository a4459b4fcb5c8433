//! Files of a build that have no name any more, and take disk as long as a process has them.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FileType, Stat, makedev};

use crate::held::{Found, InMemory, Lies, Thing, Wanted};
use crate::limits::{DISK_ENTRY_BYTES, MAPPINGS_BYTES};

/// Looks for them.
#[derive(Debug)]
pub(crate) struct Unlinked {
    /// Of the build's folders. Files in them may be on another one, which the file system has below it (overlayfs).
    device: u64,
    in_memory: InMemory,
}

impl Unlinked {
    /// Where a folder is.
    pub(crate) fn beside(folder: &Path) -> std::io::Result<Self> {
        let device = folder.metadata()?.dev();
        Ok(Self {
            device,
            in_memory: InMemory::default(),
        })
    }
}

impl Wanted for Unlinked {
    /// What it executes and what it maps need not be open.
    fn process(&mut self, process: i32, found: &mut Found) -> usize {
        if let Ok(program) = Path::new(&format!("/proc/{process}/exe")).metadata()
            && program.nlink() == 0
            && program.dev() == self.device
        {
            let bytes = program.blocks().saturating_mul(512);
            found.insert(Thing::File(program.dev(), program.ino()), bytes);
        }
        let mut mappings = Vec::new();
        let read = File::open(format!("/proc/{process}/maps"))
            .and_then(|file| file.take(MAPPINGS_BYTES).read_to_end(&mut mappings));
        if read.is_err() {
            return 1;
        }
        let lines = mappings.split(|&byte| byte == b'\n').filter_map(nameless);
        for (device, number, bytes) in lines.filter(|(device, ..)| *device == self.device) {
            let mapped = found.entry(Thing::Mapped(device, number)).or_insert(0);
            *mapped = (*mapped).max(bytes);
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
