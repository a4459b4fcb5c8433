//! The memory of a build: bounded by a control group, or watched where there is none.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use crate::cgroup;
use crate::wire::Order;

/// How it is known that a build uses more memory than it may.
pub(super) enum MemoryWatch<'a> {
    /// The kernel kills a process of the build, and counts that here. Where it does not kill the rest as
    /// well, we do: a build that lost a process that way is of no use.
    Kills(&'a Path),
    /// We add up.
    Sum(u64),
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
            None => Self::Sum(limit),
        })
    }

    /// Whether it does now.
    pub(super) fn is_exceeded(&self, first: i32) -> bool {
        match self {
            Self::Kills(events) => cgroup::was_exceeded(events),
            Self::Sum(limit) => usage(first) > *limit,
        }
    }
}

/// Bytes that a process and everything below it have for themselves, in memory or swapped out, and their
/// parts of what they share with each other. Not files, and not shared memory that no process maps:
/// `/dev/shm` is bounded by its own size.
fn usage(first: i32) -> u64 {
    let processes: BTreeMap<i32, i32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((
                pid,
                parent_of(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?,
            ))
        })
        .collect();
    processes
        .keys()
        .filter(|&&pid| descends(pid, first, &processes))
        .filter_map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let shared = match kibibytes(&status, "RssShmem:") {
                0 => 0,
                // Walks through all of the process's memory, so only where there is any.
                _ => fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
                    .map_or(0, |parts| kibibytes(&parts, "Pss_Shmem:")),
            };
            Some(kibibytes(&status, "RssAnon:") + kibibytes(&status, "VmSwap:") + shared)
        })
        .sum::<u64>()
        * 1024
}

/// Orphans of a build belong to its first process, so all of it hangs together.
fn descends(mut pid: i32, first: i32, parents: &BTreeMap<i32, i32>) -> bool {
    for _ in 0..parents.len() {
        match parents.get(&pid) {
            _ if pid == first => return true,
            Some(&parent) => pid = parent,
            None => return false,
        }
    }
    false
}

/// The fourth field of `stat`. The second, a name in parentheses, may contain anything.
fn parent_of(stat: &str) -> Option<i32> {
    stat[stat.rfind(')')? + 1..]
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// A line of `status` or `smaps_rollup`; 0 where there is none, as for a process that is ending.
fn kibibytes(text: &str, field: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_however_deep() {
        let parents = BTreeMap::from([(1, 0), (10, 1), (11, 10), (12, 11), (20, 1), (30, 30)]);
        let below: Vec<i32> = parents
            .keys()
            .copied()
            .filter(|&pid| descends(pid, 10, &parents))
            .collect();
        assert_eq!(below, [10, 11, 12]);
    }

    #[test]
    fn fields_are_read_past_odd_names() {
        assert_eq!(parent_of("7 (a) b) c) S 5 7 7 0"), Some(5));
        assert_eq!(parent_of("7 (a"), None);
        let status = "VmRSS:\t    12 kB\nRssAnon:\t   340 kB\nRssShmem:\t       0 kB\n";
        assert_eq!(kibibytes(status, "RssAnon:"), 340);
        assert_eq!(kibibytes(status, "VmSwap:"), 0);
    }

    #[test]
    fn this_process_has_some() {
        let own = std::process::id().cast_signed();
        assert!(usage(own) > 0);
        assert_eq!(usage(i32::MAX), 0);
    }
}
