//! The memory of a build: bounded by a control group, or watched where there is none.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;

use super::unmapped::Unmapped;
use crate::cgroup;
use crate::held::{Held, Thing};
use crate::limits::MAPPINGS_BYTES;
use crate::processes::{self, Process};
use crate::sys::{self, Shared};
use crate::wire::Order;

/// How it is known that a build uses more memory than it may.
pub(super) enum MemoryWatch<'a> {
    /// The kernel kills a process of the build, and counts that here. Where it does not kill the rest as
    /// well, we do: a build that lost a process that way is of no use.
    Kills(&'a Path),
    /// We add up.
    Sum(Box<Sum>),
}

impl<'a> MemoryWatch<'a> {
    /// Puts the build's first process into its control group. Where that is not allowed after all, or
    /// there is none, the memory is watched.
    pub(super) fn begin(order: &'a Order, pid: i32) -> Option<Self> {
        let limit = order.memory?;
        let joined = order.memory_group.as_ref().filter(|group| {
            let door = fs::OpenOptions::new().write(true).open(group.door.as_path());
            door.and_then(|mut door| door.write_all(pid.to_string().as_bytes()))
                .is_ok()
        });
        Some(match joined {
            Some(group) => Self::Kills(group.events.as_path()),
            None => Self::Sum(Box::new(Sum::new(limit))),
        })
    }

    /// Whether it does now.
    pub(super) fn is_exceeded(&mut self, first: i32) -> bool {
        match self {
            Self::Kills(events) => cgroup::was_exceeded(events),
            Self::Sum(sum) => sum.usage(first) > sum.limit,
        }
    }
}

/// Adds up what the processes of a build have.
pub(super) struct Sum {
    limit: u64,
    /// What lies in files of a kind, mapped by a process or not.
    held: Held<Unmapped>,
}

impl Sum {
    fn new(limit: u64) -> Self {
        Self {
            limit,
            held: Held::new(Unmapped::new(limit)),
        }
    }

    /// Bytes that a process and everything below it have for themselves, in memory or swapped out, their parts of what
    /// they share with each other, and what they hold in files that lie in memory.
    fn usage(&mut self, first: i32) -> u64 {
        let processes = processes::below(first);
        let numbers: Vec<i32> = processes.iter().map(|process| process.id).collect();
        let held = self.held.look(&numbers);
        let mut own = 0u64;
        let mut shared = Vec::new();
        for Process { id, parent } in processes {
            // A process that has been started and does not run its own program yet uses its parent's.
            if id != first && sys::share(Shared::Memory, id, parent) {
                continue;
            }
            let Some(status) = processes::status(id) else {
                continue;
            };
            own = own.saturating_add(kibibytes(&status, "RssAnon:") + kibibytes(&status, "VmSwap:"));
            // Walks through all of the process's memory, so only where there is any.
            if kibibytes(&status, "RssShmem:") > 0 {
                shared.push((id, part_in_shared(id)));
            }
        }
        let with = |shared: &[(i32, u64)]| {
            let shared = shared.iter().map(|(_, bytes)| *bytes);
            shared.fold(own.saturating_add(held), u64::saturating_add)
        };
        if held > 0 && with(&shared) > self.limit {
            // What is mapped of what has been counted already must not count twice. Finding that out takes long.
            let mut left = BTreeMap::new();
            for (process, bytes) in &mut shared {
                *bytes = not_counted(*process, *bytes, &self.held, &mut left);
            }
        }
        with(&shared)
    }
}

/// Bytes of a process's part in shared memory; 0 where it has ended.
fn part_in_shared(process: i32) -> u64 {
    let parts = fs::read_to_string(format!("/proc/{process}/smaps_rollup"));
    parts.map_or(0, |parts| kibibytes(&parts, "Pss_Shmem:"))
}

/// What of it, which was so much a moment ago, has not been found otherwise. Where the process has ended since, it is gone,
/// and what it was part of cannot be seen any more.
fn not_counted(process: i32, before: u64, held: &Held<Unmapped>, left: &mut BTreeMap<u64, u64>) -> u64 {
    let counted = counted(process, held, left);
    before.min(part_in_shared(process)).saturating_sub(counted)
}

/// How what a process has mapped has been found otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Counted {
    ByItself,
    /// As part of what the folders of a file system have, by device.
    InFolders(u64),
}

/// Bytes of a process's part in shared memory that have been found otherwise. `left` are those found in folders that are not
/// yet taken for some that another process has mapped: what is mapped beyond them lies in folders that nobody saw.
fn counted(process: i32, held: &Held<Unmapped>, left: &mut BTreeMap<u64, u64>) -> u64 {
    let mut mappings = Vec::new();
    let read = File::open(format!("/proc/{process}/smaps"))
        .and_then(|file| file.take(2 * MAPPINGS_BYTES).read_to_end(&mut mappings));
    if read.is_err() {
        return 0;
    }
    let mut sums: BTreeMap<Counted, u64> = BTreeMap::new();
    let mut counts = None;
    for line in String::from_utf8_lossy(&mappings).lines() {
        if let Some((device, number, name)) = mapping(line) {
            let known = [
                Thing::File(device, number),
                Thing::Named(device, number),
                Thing::FileSystem(device),
            ];
            let by_itself = known.iter().any(|thing| held.has_counted(thing)) || name.starts_with("/SYSV");
            // What has no name any more is in no folder.
            let in_folders = !name.ends_with(" (deleted)") && held.has_counted(&Thing::Folders(device));
            counts = match by_itself {
                true => Some(Counted::ByItself),
                false => in_folders.then_some(Counted::InFolders(device)),
            };
        } else if let Some(counts) = counts {
            let bytes = sums.entry(counts).or_insert(0);
            *bytes = bytes.saturating_add(kibibytes(line, "Pss:"));
            // Changed in a copy, which is the process's own.
            *bytes = bytes.saturating_sub(kibibytes(line, "Anonymous:"));
        }
    }
    let found = sums.into_iter().map(|(counts, bytes)| match counts {
        Counted::ByItself => bytes,
        Counted::InFolders(device) => {
            let in_folders = || held.bytes_of(&Thing::Folders(device));
            let left = left.entry(device).or_insert_with(in_folders);
            let bytes = bytes.min(*left);
            *left -= bytes;
            bytes
        }
    });
    found.fold(0, u64::saturating_add)
}

/// Device, number and name of the file of a mapping, from the line of `maps` or `smaps` that it begins with.
fn mapping(line: &str) -> Option<(u64, u64, &str)> {
    let mut fields = line.splitn(6, ' ');
    let (range, _, _, device, number) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    range.split_once('-')?;
    let (major, minor) = device.split_once(':')?;
    let hexadecimal = |text: &str| u32::from_str_radix(text, 16).ok();
    let device = rustix::fs::makedev(hexadecimal(major)?, hexadecimal(minor)?);
    Some((
        device,
        number.parse().ok()?,
        fields.next().unwrap_or("").trim_start(),
    ))
}

/// Bytes that a line of `status` or `smaps` tells; 0 where there is none, as for a process that is ending.
fn kibibytes(text: &str, field: &str) -> u64 {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(field)?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        })
        .unwrap_or(0)
        .saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read() {
        let status = "VmRSS:\t    12 kB\nRssAnon:\t   340 kB\nRssShmem:\t       0 kB\n";
        assert_eq!(kibibytes(status, "RssAnon:"), 340 << 10);
        assert_eq!(kibibytes(status, "VmSwap:"), 0);
    }

    #[test]
    fn mappings_are_told_from_their_fields() {
        let line = "7f10-7f30 rw-s 00000000 00:01 1027                       /memfd:a b (deleted)";
        assert_eq!(mapping(line), Some((1, 1027, "/memfd:a b (deleted)")));
        for field in [
            "Pss:                 128 kB",
            "VmFlags: rd wr sh mr mw me ms sd",
            "",
        ] {
            assert_eq!(mapping(field), None);
        }
    }

    /// It must not count beside the file that it had mapped.
    #[test]
    fn what_a_process_had_that_has_ended_counts_no_more() {
        let held = Held::new(Unmapped::new(u64::MAX));
        assert_eq!(not_counted(i32::MAX, 40 << 20, &held, &mut BTreeMap::new()), 0);
    }

    #[test]
    fn this_process_has_some() {
        let own = std::process::id().cast_signed();
        assert!(Sum::new(u64::MAX).usage(own) > 0);
        assert_eq!(Sum::new(u64::MAX).usage(i32::MAX), 0);
    }
}
