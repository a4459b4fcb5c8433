//! What of a build lies in memory, whether a process maps it or not: files without a name (`memfd`), file systems that are
//! mounted (`/dev/shm`, and what a build mounts in a namespace of its own) or held by something that a process has, and
//! System V's shared memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat, stat};
use rustix::io::Errno;

use super::file_systems::{Mount, Walk, readable, told};
use super::namespaces::{self, View};
use crate::held::{Found, InMemory, Lies, Thing, Wanted};
use crate::limits::{BOUND_NAMESPACES, IPC_NAMESPACES, MAPPINGS_BYTES, MEMORY_ENTRY_BYTES};
use crate::processes;
use crate::sys::{self, Shared};

/// What looking into a namespace costs, in looks at descriptors: a process is copied for it.
const NAMESPACE_COST: usize = 100;

/// Looks for it.
pub(super) struct Unmapped {
    /// Beyond this no more need be counted.
    enough: u64,
    /// Devices that the machine has mounted: what lies there is not the build's, or counts as disk.
    machine: BTreeSet<u64>,
    /// Namespaces that the machine has bound to files, as `mountinfo` names them.
    of_machine: BTreeSet<Vec<u8>>,
    /// The device of namespaces.
    namespaces: Option<u64>,
    in_memory: InMemory,
    /// Namespaces that have been looked into in this round.
    seen: BTreeSet<u64>,
    /// Folders, by device and number, below which everything has been counted in this round.
    walked: BTreeSet<(u64, u64)>,
    /// Lists of shared memory, by IPC namespace.
    lists: BTreeMap<u64, File>,
}

impl Unmapped {
    pub(super) fn new(enough: u64) -> Self {
        let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let mounts = || mounts.split(|&byte| byte == b'\n').filter_map(Mount::read);
        Self {
            enough,
            machine: mounts().map(|mount| mount.device).collect(),
            of_machine: mounts()
                .filter(|mount| mount.kind == b"nsfs")
                .map(|mount| mount.part.to_owned())
                .collect(),
            namespaces: fs::metadata("/proc/self/ns/mnt").ok().map(|about| about.dev()),
            in_memory: InMemory::default(),
            seen: BTreeSet::new(),
            walked: BTreeSet::new(),
            lists: BTreeMap::new(),
        }
    }

    /// Looks into a namespace, and into those that are bound to files in there. Gives what it cost.
    fn namespace(&mut self, place: &str, mut process: Option<i32>, found: &mut Found) -> usize {
        let Ok(opened) = leading_to(place) else { return 1 };
        let mut waiting = vec![opened];
        // What it costs says nothing of what is hidden: a build has a mount for each of its inputs.
        let (mut cost, mut looked_into) = (0, 0);
        while let Some(namespace) = waiting.pop() {
            cost += 1;
            let Some((number, namespace, kind)) = self.unseen(&namespace) else {
                continue;
            };
            cost += NAMESPACE_COST;
            looked_into += 1;
            match kind {
                Kind::Mounts => {
                    let shown = |error| process.map_or(Err(error), View::of_process);
                    if let Ok(view) = View::within(&namespace).or_else(shown) {
                        cost += self.mounts(&view, &mut waiting, found);
                    }
                }
                Kind::SharedMemory => {
                    // Otherwise it is gone, or this kernel has none.
                    if let Ok(bytes) = self.segments(&namespace, number) {
                        found.insert(Thing::Segments(number), bytes);
                    }
                }
            }
            if looked_into > BOUND_NAMESPACES || waiting.len() > BOUND_NAMESPACES {
                // Hidden from sight, whatever is in there.
                found.extend(
                    self.namespaces
                        .map(|device| (Thing::FileSystem(device), u64::MAX)),
                );
                break;
            }
            // The others are not its own.
            process = None;
        }
        cost
    }

    /// Number and kind of a namespace that has not been looked into yet.
    fn unseen(&mut self, opened: &OwnedFd) -> Option<(u64, File, Kind)> {
        let about = fstat(opened).ok()?;
        if Some(about.st_dev) != self.namespaces || self.seen.contains(&about.st_ino) {
            return None;
        }
        // Its name is no way to know: where it is bound to a file, it has that file's.
        let namespace = readable(opened).ok()?;
        let kind = match sys::kind_of_namespace(&namespace).ok()? {
            libc::CLONE_NEWNS => Kind::Mounts,
            libc::CLONE_NEWIPC => Kind::SharedMemory,
            _ => return None,
        };
        self.seen.insert(about.st_ino);
        Some((about.st_ino, namespace, kind))
    }

    /// The file systems in memory that are mounted in a namespace. Namespaces that are bound to files there are added to
    /// those that wait.
    fn mounts(&mut self, view: &View, waiting: &mut Vec<OwnedFd>, found: &mut Found) -> usize {
        let mut cost = 1;
        // Often bound to many files.
        let mut bound = BTreeSet::new();
        // All of them, however long their paths: the kernel has a bound on how many there are.
        let mut list = BufReader::new(&view.list);
        let mut line = Vec::new();
        while next_line(&mut list, &mut line) {
            cost += 1;
            let Some(mount) = Mount::read(&line) else {
                continue;
            };
            let is_namespace = Some(mount.device) == self.namespaces;
            let wanted = match is_namespace {
                true => {
                    !self.of_machine.contains(mount.part)
                        && bound_namespace(mount.part).is_some_and(|number| !self.seen.contains(&number))
                        && bound.insert(mount.part.to_owned())
                }
                false => {
                    !self.machine.contains(&mount.device)
                        && InMemory::KINDS
                            .iter()
                            .any(|(_, name)| name.as_bytes() == mount.kind)
                }
            };
            if !wanted || found.contains_key(&Thing::FileSystem(mount.device)) {
                continue;
            }
            match mount.open(view) {
                // Hidden from sight, whatever is in there.
                Err(_) => drop(found.insert(Thing::FileSystem(mount.device), u64::MAX)),
                Ok(Some(opened)) if !is_namespace => cost += self.file_system(opened, found),
                Ok(Some(opened)) if waiting.len() <= BOUND_NAMESPACES => waiting.push(opened),
                Ok(_) => {}
            }
        }
        cost
    }

    /// A file system in memory, by something in it.
    fn file_system(&mut self, opened: OwnedFd, found: &mut Found) -> usize {
        let Ok(about) = fstat(&opened) else { return 1 };
        let device = about.st_dev;
        if let Some(bytes) = told(&opened) {
            found.insert(Thing::FileSystem(device), bytes);
            return 1;
        }
        if FileType::from_raw_mode(about.st_mode) != FileType::Directory {
            return 1;
        }
        let (bytes, cost) = match Walk::from(opened) {
            Ok(walk) if self.walked.insert((device, walk.number)) => walk.usage(self.enough),
            Ok(_) => return 1,
            // Hidden from sight, whatever is in there.
            Err(Errno::ACCESS) => (u64::MAX, 1),
            Err(_) => return 1,
        };
        // What is to be seen from two places that do not lead to each other are two parts of it.
        let before = found.entry(Thing::Folders(device)).or_insert(0);
        *before = before.saturating_add(bytes);
        cost
    }

    /// The shared memory of System V in a namespace.
    fn segments(&mut self, namespace: &File, number: u64) -> io::Result<u64> {
        if let Some(list) = self.lists.get(&number) {
            return segments(list);
        }
        let list = namespaces::shared_memory(namespace)?;
        let bytes = segments(&list)?;
        if self.lists.len() < IPC_NAMESPACES {
            self.lists.insert(number, list);
        }
        Ok(bytes)
    }
}

impl Wanted for Unmapped {
    /// What holds a file system and is no descriptor. Each thread may have its own.
    fn process(&mut self, process: i32, found: &mut Found) -> usize {
        let mut cost = 0;
        for thread in processes::threads(process) {
            for kind in ["mnt", "ipc"] {
                cost += 1;
                let place = format!("/proc/{process}/task/{thread}/ns/{kind}");
                if fs::metadata(&place).is_ok_and(|about| !self.seen.contains(&about.ino())) {
                    cost += self.namespace(&place, Some(process), found);
                }
            }
        }
        let folders = processes::apart(process, Shared::Folders)
            .into_iter()
            .flat_map(|thread| ["cwd", "root"].map(|name| format!("/proc/{process}/task/{thread}/{name}")));
        for place in folders.chain([format!("/proc/{process}/exe")]) {
            cost += 1;
            if let Ok(about) = stat(&*place) {
                cost += self.file(&about, &place, found);
            }
        }
        cost
    }

    fn file(&mut self, stat: &Stat, place: &str, found: &mut Found) -> usize {
        let device = stat.st_dev;
        if Some(device) == self.namespaces {
            return match self.seen.contains(&stat.st_ino) {
                true => 0,
                false => self.namespace(place, None, found),
            };
        }
        if self.machine.contains(&device) || found.contains_key(&Thing::FileSystem(device)) {
            return 0;
        }
        let is = |kind| FileType::from_raw_mode(stat.st_mode) == kind;
        match self.in_memory.lies(device, place) {
            Lies::InMemoryWithoutBound if is(FileType::RegularFile) => {
                let thing = match stat.st_nlink {
                    0 => Thing::File(device, stat.st_ino),
                    _ => Thing::Named(device, stat.st_ino),
                };
                let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
                found.insert(thing, blocks.saturating_mul(512) + MEMORY_ENTRY_BYTES);
                0
            }
            Lies::InMemoryWithoutBound if !is(FileType::Directory) => 0,
            Lies::InMemoryWithoutBound | Lies::InMemory => match leading_to(place) {
                // By now it may be something else.
                Ok(opened) if fstat(&opened).is_ok_and(|now| now.st_dev == device) => {
                    self.file_system(opened, found)
                }
                _ => 0,
            },
            Lies::Elsewhere | Lies::Unknown => 0,
        }
    }

    fn round_is_over(&mut self) {
        self.in_memory.forget();
        self.walked.clear();
        // A list keeps its namespace, with all of its memory.
        let seen = std::mem::take(&mut self.seen);
        self.lists.retain(|namespace, _| seen.contains(namespace));
    }
}

/// Kinds of namespaces that keep something in memory.
enum Kind {
    Mounts,
    SharedMemory,
}

/// Reads a line in place of the last one. False where there is none.
fn next_line(list: &mut impl BufRead, line: &mut Vec<u8>) -> bool {
    line.clear();
    list.read_until(b'\n', line).is_ok_and(|read| read > 0)
}

/// The number of a namespace that keeps something in memory, from what `mountinfo` calls it.
fn bound_namespace(part: &[u8]) -> Option<u64> {
    let part = str::from_utf8(part).ok()?;
    let (kind, number) = part.strip_suffix(']')?.split_once(":[")?;
    matches!(kind, "mnt" | "ipc").then(|| number.parse().ok())?
}

/// Leads to something without opening it: that could wait, or act.
fn leading_to(place: &str) -> Result<OwnedFd, Errno> {
    openat(CWD, place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
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
    fn bound_namespaces_are_told_by_their_names() {
        assert_eq!(bound_namespace(b"mnt:[4026531832]"), Some(4_026_531_832));
        assert_eq!(bound_namespace(b"ipc:[4026531839]"), Some(4_026_531_839));
        for other in ["net:[4026531840]", "/mnt:[1]", "mnt:[a]", "mnt", ""] {
            assert_eq!(bound_namespace(other.as_bytes()), None);
        }
    }

    #[test]
    fn segments_count_what_they_have_in_memory_and_swapped_out() {
        let line = "         0          3  1600             67108864  7931  7931      0  1000   100  1000   100 \
                    1764300000          0 1764300000                   4096                  8192";
        assert_eq!(segment(line), Some(12_288 + MEMORY_ENTRY_BYTES));
        assert_eq!(segment(""), None);
    }
}
