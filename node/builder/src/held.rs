//! What the processes of a build hold and no look at its folders finds, such as files that have lost their names.
//!
//! A build may have millions of descriptors, so a look goes through a bounded number of them, and the next one goes on
//! where it ended. Until all have been seen once more, what the last round came to counts.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fstat, fstatfs, openat, seek, statat,
};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::closing;
use crate::limits::{DESCRIPTORS_AT_ONCE, SOCKETS_AT_ONCE};
use crate::processes::apart;
use crate::sys::Shared;

/// A thing that counts once, however many hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Thing {
    /// A file that is open and has no name, by device and number.
    File(u64, u64),
    /// A file that is open and lies in a folder.
    Named(u64, u64),
    /// A file that is mapped and need not be open, by device, number and what tells it apart where those do not. Counts where
    /// it is not open, too.
    Mapped(u64, u64, u64),
    /// A file system, by device, with all of its files.
    FileSystem(u64),
    /// What lies in the folders of a file system that does not tell what it has.
    Folders(u64),
    /// The shared memory of an IPC namespace, by its number.
    Segments(u64),
}

/// What has been found, in bytes.
pub(crate) type Found = BTreeMap<Thing, u64>;

/// What is looked for.
pub(crate) trait Wanted {
    /// Looks at what of a process is no descriptor. Gives what that cost, in looks at descriptors.
    fn process(&mut self, process: i32, found: &mut Found) -> usize;

    /// Looks at what is open; `place` is its path in `/proc`. Gives what that cost beside the look at the descriptor.
    fn file(&mut self, stat: &Stat, place: &str, found: &mut Found) -> usize;

    /// All processes have been looked at.
    fn round_is_over(&mut self) {}
}

/// Where the files of a device lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lies {
    /// On a disk, or nowhere.
    Elsewhere,
    /// It has gone meanwhile, or something else is in its place.
    Unknown,
    /// In memory, in a file system that has a bound, and therefore tells what it has.
    InMemory,
    /// In memory, in one that does not tell: there is none, or they are in no file system that could be mounted (`memfd`).
    InMemoryWithoutBound,
}

/// Whether files lie in memory, by device.
#[derive(Debug, Default)]
pub(crate) struct InMemory(BTreeMap<u64, Lies>);

impl InMemory {
    /// Kinds of file systems that do (linux/magic.h), by number and name.
    pub(crate) const KINDS: [(u32, &str); 3] = [
        (0x0102_1994, "tmpfs"),
        (0x8584_58f6, "ramfs"),
        (0x9584_58f6, "hugetlbfs"),
    ];

    /// Where the files of a device do, one of which is at `place`.
    pub(crate) fn lies(&mut self, device: u64, place: &str) -> Lies {
        if let Some(lies) = self.0.get(&device) {
            return *lies;
        }
        // Only led to: opening it could wait, or act. By now it may be something else, of which nothing is to be kept.
        let opened = openat(CWD, place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let about = opened.and_then(|opened| Ok((fstat(&opened)?.st_dev, fstatfs(&opened)?)));
        let Ok((_, about)) = about.and_then(|about| (about.0 == device).then_some(about).ok_or(Errno::STALE))
        else {
            return Lies::Unknown;
        };
        // Some machines have it as a number with a sign.
        let is_in_memory = Self::KINDS.iter().any(|(kind, _)| about.f_type as u32 == *kind);
        let lies = match is_in_memory {
            true if about.f_blocks > 0 => Lies::InMemory,
            true => Lies::InMemoryWithoutBound,
            false => Lies::Elsewhere,
        };
        self.0.insert(device, lies);
        lies
    }

    /// Numbers of devices are used again.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

/// What processes hold, see the module.
#[derive(Debug)]
pub(crate) struct Held<W> {
    wanted: W,
    /// In this round, as far as it has come.
    found: Found,
    /// In the last one.
    last: Found,
    /// Bytes of that.
    before: u64,
    /// Where the next look begins: process, thread, and how far its descriptors were read.
    next: Option<(i32, i32, u64)>,
    at_once: usize,
    /// Copies of a build's sockets. It may have let go of them meanwhile and have asked for a long wait at their end
    /// (`SO_LINGER`), which must not be ours.
    sockets: Vec<OwnedFd>,
}

impl<W: Wanted> Held<W> {
    pub(crate) fn new(wanted: W) -> Self {
        Self {
            wanted,
            found: Found::new(),
            last: Found::new(),
            before: 0,
            next: None,
            at_once: DESCRIPTORS_AT_ONCE,
            sockets: Vec::new(),
        }
    }

    /// Whether something may be part of what the look before counted.
    pub(crate) fn has_counted(&self, thing: &Thing) -> bool {
        self.found.contains_key(thing) || self.last.contains_key(thing)
    }

    /// Bytes of something that the looks before counted.
    pub(crate) fn bytes_of(&self, thing: &Thing) -> u64 {
        let of = |found: &Found| found.get(thing).copied().unwrap_or(0);
        of(&self.found).max(of(&self.last))
    }

    /// Looks once more. `processes` are in order. Gives bytes.
    pub(crate) fn look(&mut self, processes: &[i32]) -> u64 {
        let bytes = self.look_once(processes);
        self.close_sockets();
        bytes
    }

    fn look_once(&mut self, processes: &[i32]) -> u64 {
        let mut left = self.at_once;
        let begin = match self.next.take() {
            Some(begin) => begin,
            None => {
                self.last = std::mem::take(&mut self.found);
                (0, 0, 0)
            }
        };
        for &process in processes.iter().filter(|&&process| process >= begin.0) {
            let resumes = process == begin.0;
            if !resumes && left == 0 {
                self.next = Some((process, 0, 0));
                return self.before.max(total(&self.found));
            }
            if !resumes || begin.1 == 0 {
                let cost = self.wanted.process(process, &mut self.found);
                left = left.saturating_sub(cost + 1);
            }
            for thread in apart(process, Shared::Files) {
                if resumes && thread < begin.1 {
                    continue;
                }
                let offset = if resumes && thread == begin.1 { begin.2 } else { 0 };
                if let Some(offset) = self.table(process, thread, offset, &mut left) {
                    self.next = Some((process, thread, offset));
                    return self.before.max(total(&self.found));
                }
            }
        }
        self.wanted.round_is_over();
        self.before = total(&self.found);
        self.before
    }

    /// The descriptors of one table. Gives how far they were read, if not to their end.
    fn table(&mut self, process: i32, thread: i32, offset: u64, left: &mut usize) -> Option<u64> {
        let folder = format!("/proc/{process}/task/{thread}/fd");
        let mut entries = match entries(&folder, offset) {
            Ok(entries) => entries,
            Err(Errno::ACCESS) => return self.hidden_table(process, thread, offset, left),
            Err(_) => return None,
        };
        while let Some(Ok(entry)) = entries.read() {
            // `.`, `..` and what is no number.
            let Some(number) = entry
                .file_name()
                .to_str()
                .ok()
                .and_then(|name| name.parse::<u64>().ok())
            else {
                continue;
            };
            if *left == 0 {
                // As the kernel numbers them: after the two folders.
                return Some(number + 2);
            }
            *left -= 1;
            if let Ok(stat) = entries.fd().and_then(|folder| about(folder, entry.file_name())) {
                let cost = self
                    .wanted
                    .file(&stat, &format!("{folder}/{number}"), &mut self.found);
                *left = left.saturating_sub(cost);
            }
        }
        None
    }

    /// The same for a process that does not want to be looked at (`PR_SET_DUMPABLE`, or a program that nobody may read).
    /// Its descriptors are not listed for an ordinary user, and can be copied one by one.
    fn hidden_table(&mut self, process: i32, thread: i32, offset: u64, left: &mut usize) -> Option<u64> {
        // PIDFD_THREAD, since Linux 6.9; before, other threads' own tables are not seen.
        let flags = match thread == process {
            true => PidfdFlags::empty(),
            false => PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned()),
        };
        let handle = pidfd_open(Pid::from_raw(thread)?, flags).ok()?;
        let status = std::fs::read_to_string(format!("/proc/{process}/task/{thread}/status")).ok()?;
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"))?;
        let size: u64 = size.trim().parse().ok()?;
        for number in offset.saturating_sub(2)..size {
            if self.sockets.len() >= SOCKETS_AT_ONCE && !self.close_sockets() {
                return None;
            }
            if *left == 0 {
                return Some(number + 2);
            }
            *left -= 1;
            let copy = pidfd_getfd(&handle, i32::try_from(number).ok()?, PidfdGetfdFlags::empty());
            if let Ok(copy) = copy
                && let Ok(stat) = fstat(&copy)
            {
                if FileType::from_raw_mode(stat.st_mode) == FileType::Socket {
                    self.sockets.push(copy);
                    continue;
                }
                let place = format!("/proc/self/fd/{}", copy.as_raw_fd());
                let cost = self.wanted.file(&stat, &place, &mut self.found);
                *left = left.saturating_sub(cost);
            }
        }
        None
    }

    /// Whether that was possible.
    fn close_sockets(&mut self) -> bool {
        let sockets = std::mem::take(&mut self.sockets);
        match sockets.is_empty() {
            true => true,
            false => closing::close_without_waiting(sockets)
                .map_err(|sockets| self.sockets = sockets)
                .is_ok(),
        }
    }
}

/// Bytes of everything.
fn total(found: &Found) -> u64 {
    let all_of_it = |device| found.contains_key(&Thing::FileSystem(device));
    let mut bytes = 0u64;
    // By device: what its folders have, and what of it is open. That may lie where nobody sees a folder.
    let mut in_folders: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (thing, &counts) in found {
        match *thing {
            Thing::File(device, _) | Thing::Folders(device) | Thing::Named(device, _)
                if all_of_it(device) => {}
            Thing::Mapped(device, number, _) if found.contains_key(&Thing::File(device, number)) => {}
            Thing::Folders(device) => in_folders.entry(device).or_default().0 = counts,
            Thing::Named(device, _) => {
                let open = &mut in_folders.entry(device).or_default().1;
                *open = open.saturating_add(counts);
            }
            Thing::File(..) | Thing::Mapped(..) | Thing::FileSystem(_) | Thing::Segments(_) => {
                bytes = bytes.saturating_add(counts);
            }
        }
    }
    let in_folders = in_folders.into_values().map(|(folders, open)| folders.max(open));
    in_folders.fold(bytes, u64::saturating_add)
}

fn entries(folder: &str, offset: u64) -> Result<Dir, Errno> {
    let folder: OwnedFd = openat(
        CWD,
        folder,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    seek(&folder, SeekFrom::Start(offset))?;
    Dir::new(folder)
}

/// What a descriptor leads to. What is known of it is enough: the server of a network file system need not be asked.
fn about(folder: impl AsFd, name: &std::ffi::CStr) -> Result<Stat, Errno> {
    match statat(&folder, name, AtFlags::STATX_DONT_SYNC) {
        // Older kernels do not know that this can be asked for here.
        Err(Errno::INVAL) => statat(folder, name, AtFlags::empty()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::TcpStream;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::closing::tests::{ends, lingering};

    /// Counts the files of a device.
    struct OfDevice(u64);

    impl Wanted for OfDevice {
        fn process(&mut self, _process: i32, _found: &mut Found) -> usize {
            0
        }

        fn file(&mut self, stat: &Stat, _place: &str, found: &mut Found) -> usize {
            if stat.st_dev == self.0 && stat.st_nlink == 0 {
                found.insert(Thing::File(stat.st_dev, stat.st_ino), 1);
            }
            0
        }
    }

    #[test]
    fn everything_is_seen_in_the_end_however_little_at_once() {
        let own = std::process::id().cast_signed();
        let files: Vec<File> = (0..100).map(|_| tempfile::tempfile().unwrap()).collect();
        let device = files[0].metadata().unwrap().dev();
        let again: Vec<File> = files.iter().map(|file| file.try_clone().unwrap()).collect();
        let mut held = Held::new(OfDevice(device));
        held.at_once = 7;
        // Other tests have files as well.
        let mut most = 0;
        for _ in 0..1000 {
            most = most.max(held.look(&[own]));
            if most >= 100 {
                break;
            }
        }
        assert!(most >= 100, "{most}");
        // The first looks saw no more than they may.
        let mut held = Held::new(OfDevice(device));
        held.at_once = 7;
        assert!(held.look(&[own]) <= 7);
        assert!(held.next.is_some());
        drop((files, again));
    }

    /// What a build closes while it is looked at, the look closes last.
    #[test]
    fn a_look_does_not_wait_for_sockets_that_a_build_lets_go_of() {
        struct LetsGo(Option<TcpStream>);
        impl Wanted for LetsGo {
            fn process(&mut self, _process: i32, _found: &mut Found) -> usize {
                0
            }
            fn file(&mut self, stat: &Stat, _place: &str, _found: &mut Found) -> usize {
                assert!(FileType::from_raw_mode(stat.st_mode) != FileType::Socket);
                // Anything beyond it.
                self.0.take();
                0
            }
        }
        let (socket, peer) = lingering();
        let number = u64::try_from(socket.as_raw_fd()).unwrap();
        let beyond: Vec<File> = (0..10).map(|_| tempfile::tempfile().unwrap()).collect();
        let last = beyond.iter().map(AsRawFd::as_raw_fd).max().unwrap();
        let mut left = usize::try_from(last).unwrap() + 1 - usize::try_from(number).unwrap();
        let own = std::process::id().cast_signed();
        let held = ends(move || {
            let mut held = Held::new(LetsGo(Some(socket)));
            held.hidden_table(own, own, number + 2, &mut left);
            assert!(held.close_sockets());
            held
        });
        assert!(held.wanted.0.is_none() && held.sockets.is_empty());
        drop((beyond, peer));
    }

    #[test]
    fn copies_of_sockets_wait_to_be_closed_in_a_bounded_number() {
        struct Anything;
        impl Wanted for Anything {
            fn process(&mut self, _process: i32, _found: &mut Found) -> usize {
                0
            }
            fn file(&mut self, _stat: &Stat, _place: &str, _found: &mut Found) -> usize {
                0
            }
        }
        let (one, other) = UnixStream::pair().unwrap();
        let many: Vec<OwnedFd> = (0..2 * SOCKETS_AT_ONCE + 5)
            .map(|_| one.as_fd().try_clone_to_owned().unwrap())
            .collect();
        let numbers = || many.iter().map(AsRawFd::as_raw_fd);
        let (first, last) = (numbers().min().unwrap(), numbers().max().unwrap());
        let own = std::process::id().cast_signed();
        let mut held = Held::new(Anything);
        // One at a time, so that each number of them is seen.
        for number in first..=last {
            held.hidden_table(own, own, u64::try_from(number).unwrap() + 2, &mut 1);
            assert!(held.sockets.len() <= SOCKETS_AT_ONCE);
        }
        assert!(held.close_sockets() && held.sockets.is_empty());
        drop((other, many));
    }

    /// Its bytes count as long as the round lasts; what else shows them must not count beside it.
    #[test]
    fn what_the_last_round_counted_is_known_until_the_next_one_is_over() {
        let own = std::process::id().cast_signed();
        let files: Vec<File> = (0..50).map(|_| tempfile::tempfile().unwrap()).collect();
        let device = files[0].metadata().unwrap().dev();
        let mut held = Held::new(OfDevice(device));
        held.at_once = 7;
        held.look(&[own]);
        while held.next.is_some() {
            held.look(&[own]);
        }
        held.look(&[own]);
        assert!(held.next.is_some(), "a round has begun");
        for file in &files {
            let about = file.metadata().unwrap();
            assert!(held.has_counted(&Thing::File(about.dev(), about.ino())));
        }
    }

    /// Whose descriptors are none costs something, too.
    #[test]
    fn a_look_ends_between_processes_as_well() {
        struct Costly;
        impl Wanted for Costly {
            fn process(&mut self, _process: i32, found: &mut Found) -> usize {
                found.insert(Thing::Segments(found.len() as u64), 1);
                10
            }
            fn file(&mut self, _stat: &Stat, _place: &str, _found: &mut Found) -> usize {
                0
            }
        }
        let mut held = Held::new(Costly);
        held.at_once = 25;
        // None of them is there, so none has descriptors.
        let processes: Vec<i32> = (i32::MAX - 9..=i32::MAX).collect();
        assert_eq!(held.look(&processes), 3);
        let mut looks = 1;
        while held.next.is_some() {
            held.look(&processes);
            looks += 1;
        }
        assert_eq!((looks, held.found.len()), (4, 10));
    }

    #[test]
    fn what_is_mapped_and_open_counts_once() {
        let found = Found::from([
            (Thing::File(1, 2), 5),
            (Thing::Mapped(1, 2, 0), 9),
            (Thing::Mapped(1, 3, 0), 10),
            (Thing::FileSystem(4), u64::MAX),
        ]);
        assert_eq!(total(&found), u64::MAX);
        let found: Found = found.into_iter().take(3).collect();
        assert_eq!(total(&found), 15);
    }

    #[test]
    fn what_is_part_of_a_file_system_counts_once() {
        let mut found = Found::from([
            (Thing::File(1, 2), 1),
            (Thing::Named(1, 3), 20),
            (Thing::File(9, 2), 300),
        ]);
        assert_eq!(total(&found), 321);
        // In no folder is what has no name.
        found.insert(Thing::Folders(1), 4000);
        assert_eq!(total(&found), 4301);
        // More than what is to be seen in folders is elsewhere.
        found.insert(Thing::Named(1, 4), 5000);
        assert_eq!(total(&found), 5321);
        found.insert(Thing::FileSystem(1), 50_000);
        assert_eq!(total(&found), 50_300);
    }
}
