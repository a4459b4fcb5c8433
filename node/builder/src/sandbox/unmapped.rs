//! Files of a build that lie in memory, whether a process maps them or not: without a name (`memfd`), in file systems
//! (`/dev/shm`, and what a build mounts in a namespace of its own), and System V's shared memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatvfs, makedev, openat2};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::disk;
use crate::held::{Found, InMemory, Thing, Wanted};
use crate::limits::{IPC_NAMESPACES, MAPPINGS_BYTES, MEMORY_ENTRY_BYTES};
use crate::sys::{self, Side};
use crate::wire;

/// What looking at a namespace costs, in looks at descriptors.
const NAMESPACE_COST: usize = 50;

/// Looks for them.
pub(super) struct Unmapped {
    /// Beyond this no more need be counted.
    enough: u64,
    /// Devices that the machine has mounted: what lies there is not the build's, or counts as disk.
    machine: BTreeSet<u64>,
    in_memory: InMemory,
    /// Namespaces that have been looked at in this round.
    seen: BTreeSet<u64>,
    /// Lists of shared memory, by IPC namespace.
    lists: BTreeMap<u64, File>,
}

impl Unmapped {
    pub(super) fn new(enough: u64) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            enough,
            machine: mounts
                .lines()
                .filter_map(Mount::read)
                .map(|mount| mount.device)
                .collect(),
            in_memory: InMemory::default(),
            seen: BTreeSet::new(),
            lists: BTreeMap::new(),
        }
    }

    /// The file systems in memory that a process sees.
    fn mounts(&mut self, process: i32, found: &mut Found) -> usize {
        let mut mounts = Vec::new();
        let read = File::open(format!("/proc/{process}/mountinfo"))
            .and_then(|file| file.take(MAPPINGS_BYTES).read_to_end(&mut mounts));
        if read.is_err() {
            return 1;
        }
        for mount in String::from_utf8_lossy(&mounts).lines().filter_map(Mount::read) {
            let known =
                self.machine.contains(&mount.device) || found.contains_key(&Thing::FileSystem(mount.device));
            if known || !InMemory::KINDS.iter().any(|(_, name)| *name == mount.kind) {
                continue;
            }
            if let Some(bytes) = mount.usage(process, self.enough) {
                // They are part of it.
                found.retain(|thing, _| !matches!(thing, Thing::File(device, _) if *device == mount.device));
                found.insert(Thing::FileSystem(mount.device), bytes);
            }
        }
        mounts.len() / 100
    }

    /// The shared memory of System V that a process can attach to.
    fn segments(&mut self, process: i32, namespace: u64) -> io::Result<u64> {
        if let Some(list) = self.lists.get(&namespace) {
            return segments(list);
        }
        let list = open_list(process)?;
        let bytes = segments(&list)?;
        if self.lists.len() < IPC_NAMESPACES {
            self.lists.insert(namespace, list);
        }
        Ok(bytes)
    }
}

impl Wanted for Unmapped {
    fn process(&mut self, process: i32, found: &mut Found) -> usize {
        let namespace =
            |name: &str| fs::metadata(format!("/proc/{process}/ns/{name}")).map(|about| about.ino());
        let mut cost = 0;
        if let Ok(number) = namespace("mnt")
            && self.seen.insert(number)
        {
            cost += NAMESPACE_COST + self.mounts(process, found);
        }
        if let Ok(number) = namespace("ipc")
            && self.seen.insert(number)
        {
            cost += NAMESPACE_COST;
            // Otherwise the process has ended, or this kernel has none.
            if let Ok(bytes) = self.segments(process, number) {
                found.insert(Thing::Segments(number), bytes);
            }
        }
        cost
    }

    fn file(&mut self, stat: &Stat, place: &str, found: &Found) -> Option<u64> {
        let device = stat.st_dev;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_file || self.machine.contains(&device) || found.contains_key(&Thing::FileSystem(device)) {
            return None;
        }
        let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
        self.in_memory
            .is(device, place)
            .then(|| blocks.saturating_mul(512) + MEMORY_ENTRY_BYTES)
    }

    fn round_is_over(&mut self) {
        self.in_memory.forget();
        // A list keeps its namespace, with all of its memory.
        let seen = std::mem::take(&mut self.seen);
        self.lists.retain(|namespace, _| seen.contains(namespace));
    }
}

/// A line of `mountinfo`.
struct Mount<'a> {
    device: u64,
    /// As the process sees it, with what is no plain character in octal numbers.
    place: &'a str,
    kind: &'a str,
}

impl<'a> Mount<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(2);
        let (device, place) = (before.next()?, before.nth(1)?);
        let (major, minor) = device.split_once(':')?;
        Some(Self {
            device: makedev(major.parse().ok()?, minor.parse().ok()?),
            place,
            kind: after.split(' ').next()?,
        })
    }

    /// Bytes in it; none where something else lies over it, or this kernel is older than Linux 5.6.
    fn usage(&self, process: i32, enough: u64) -> Option<u64> {
        let root = File::open(format!("/proc/{process}/root")).ok()?;
        let place = plain(self.place);
        // Opened once, and never out of that root: links on the way are the build's, and lead where it likes.
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let open = || {
            openat2(
                &root,
                &*place,
                OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
                within,
            )
        };
        let opened = match open() {
            // Hidden from sight, whatever is in there. Until a process runs its program it may hide altogether.
            Err(Errno::ACCESS) if root.metadata().is_ok() => match open() {
                Err(Errno::ACCESS) => return Some(u64::MAX),
                again => again.ok()?,
            },
            opened => opened.ok()?,
        };
        if fstat(&opened).ok()?.st_dev != self.device {
            return None;
        }
        let about = fstatvfs(&opened).ok()?;
        if about.f_blocks == 0 {
            // Without a bound, and then it does not tell.
            return Some(disk::usage_below(&opened, enough));
        }
        let bytes = about
            .f_blocks
            .saturating_sub(about.f_bfree)
            .saturating_mul(about.f_frsize);
        let files = about.f_files.saturating_sub(about.f_ffree);
        Some(bytes.saturating_add(files.saturating_mul(MEMORY_ENTRY_BYTES)))
    }
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

/// Opens the list of a process's IPC namespace. It shows that of whoever opened it, so a copy of this process enters the
/// namespace, opens it there and hands it out.
fn open_list(process: i32) -> io::Result<File> {
    let namespace = File::open(format!("/proc/{process}/ns/ipc"))?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let copy = match sys::clone_process(0)? {
        Side::Child => {
            let list = enter(&namespace).and_then(|()| File::open("/proc/sysvipc/shm"));
            let sent = list.and_then(|list| wire::write_with(&theirs, &true, list.as_fd()));
            sys::exit_now(i32::from(sent.is_err()));
        }
        Side::Parent(copy) => copy,
    };
    drop(theirs);
    let (mut message, mut with) = (Vec::new(), Vec::new());
    let received = wire::receive(&ours, &mut message, 64, &mut with);
    sys::wait(copy, true)?;
    received?;
    let list = with.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(list.into())
}

/// An ordinary user has the right to once he is in the user namespace that it belongs to, which is his.
fn enter(namespace: &File) -> io::Result<()> {
    let into = |namespace, kind| move_into_link_name_space(namespace, Some(kind)).map_err(io::Error::from);
    if into(namespace.as_fd(), LinkNameSpaceType::InterProcessCommunication).is_ok() {
        return Ok(());
    }
    let owner = sys::owner_of_namespace(namespace)?;
    into(owner.as_fd(), LinkNameSpaceType::User)?;
    into(namespace.as_fd(), LinkNameSpaceType::InterProcessCommunication)
}

/// Bytes of all segments of a list, in memory or swapped out.
fn segments(list: &File) -> io::Result<u64> {
    let mut text = Vec::new();
    let mut chunk = [0; 1 << 16];
    loop {
        match list.read_at(&mut chunk, text.len() as u64)? {
            0 => break,
            read => text.extend(&chunk[..read]),
        }
        if text.len() as u64 > MAPPINGS_BYTES {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .skip(1)
        .filter_map(segment)
        .fold(0, u64::saturating_add))
}

/// Bytes of one, from its line: the last two fields.
fn segment(line: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace().rev();
    let (swapped, resident): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(
        resident
            .saturating_add(swapped)
            .saturating_add(MEMORY_ENTRY_BYTES),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read() {
        let line = r"912 900 0:45 / /dev/shm\040a rw,nosuid shared:1 - tmpfs none rw,size=64k";
        let mount = Mount::read(line).unwrap();
        assert_eq!((mount.device, mount.kind), (makedev(0, 45), "tmpfs"));
        assert_eq!(plain(mount.place), b"/dev/shm a");
        assert_eq!(plain(r"/a\134b\9"), br"/a\b9");
        assert!(Mount::read("nothing of the kind").is_none());
    }

    #[test]
    fn segments_count_what_they_have_in_memory_and_swapped_out() {
        let line = "         0          3  1600             67108864  7931  7931      0  1000   100  1000   100 \
                    1764300000          0 1764300000                   4096                  8192";
        assert_eq!(segment(line), Some(12_288 + MEMORY_ENTRY_BYTES));
        assert_eq!(segment(""), None);
    }
}
