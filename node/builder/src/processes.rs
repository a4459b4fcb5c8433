//! The processes of a build, as this machine's `/proc` shows them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::sys::{self, Shared};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) id: i32,
    pub(crate) parent: i32,
}

/// A process and everything below it, by number. Orphans of a build belong to its first process, so all of it hangs
/// together.
pub(crate) fn below(first: i32) -> Vec<Process> {
    let parents: BTreeMap<i32, i32> = numbers("/proc")
        .filter_map(|id| {
            Some((
                id,
                parent_of(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)?,
            ))
        })
        .collect();
    parents
        .iter()
        .filter(|&(&id, _)| descends(id, first, &parents))
        .map(|(&id, &parent)| Process { id, parent })
        .collect()
}

/// Processes and threads of a process and everything below it. Stops counting beyond `enough`.
pub(crate) fn threads_below(first: i32, enough: u64) -> u64 {
    let mut count = 0u64;
    for process in below(first) {
        // Beside itself and the folder above, one name for each.
        let tasks = fs::metadata(format!("/proc/{}/task", process.id));
        let threads = tasks.ok().and_then(|tasks| tasks.nlink().checked_sub(2));
        count = count.saturating_add(threads.unwrap_or(1));
        if count > enough {
            break;
        }
    }
    count
}

/// The threads of a process, by number.
pub(crate) fn threads(process: i32) -> Vec<i32> {
    let mut threads: Vec<i32> = numbers(&format!("/proc/{process}/task")).collect();
    threads.sort_unstable();
    threads
}

/// Threads of a process that have something of their own, such as a table of descriptors, by number: nearly always the first
/// one alone. One that has ended has none any more, and others may go on.
pub(crate) fn apart(process: i32, what: Shared) -> Vec<i32> {
    let mut own: Vec<i32> = Vec::new();
    for thread in threads(process) {
        let shared = |other: Option<&i32>| other.is_some_and(|&other| sys::share(what, other, thread));
        if !shared(own.first()) && !shared(own.last()) {
            own.push(thread);
        }
    }
    own
}

/// What `status` says of a process: of a thread that goes on, where the first one has ended and has no memory any more.
pub(crate) fn status(process: i32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    if status.contains("\nRssAnon:") {
        return Some(status);
    }
    let mut others = numbers(&format!("/proc/{process}/task"))
        .filter_map(|thread| fs::read_to_string(format!("/proc/{process}/task/{thread}/status")).ok());
    others
        .find(|status| status.contains("\nRssAnon:"))
        .or(Some(status))
}

/// Names of a folder that are numbers.
fn numbers(folder: &str) -> impl Iterator<Item = i32> + use<> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn descends(mut id: i32, first: i32, parents: &BTreeMap<i32, i32>) -> bool {
    for _ in 0..parents.len() {
        match parents.get(&id) {
            _ if id == first => return true,
            Some(&parent) => id = parent,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_however_deep() {
        let parents = BTreeMap::from([(1, 0), (10, 1), (11, 10), (12, 11), (20, 1), (30, 30)]);
        let below: Vec<i32> = parents
            .keys()
            .copied()
            .filter(|&id| descends(id, 10, &parents))
            .collect();
        assert_eq!(below, [10, 11, 12]);
    }

    #[test]
    fn parents_are_read_past_odd_names() {
        assert_eq!(parent_of("7 (a) b) c) S 5 7 7 0"), Some(5));
        assert_eq!(parent_of("7 (a"), None);
    }

    #[test]
    fn threads_count_as_processes_do() {
        let own = std::process::id().cast_signed();
        let (end, waits) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || waits.recv());
        assert!(threads_below(own, u64::MAX) >= 2);
        drop(end);
        drop(other.join());
        assert_eq!(threads_below(i32::MAX, u64::MAX), 0);
    }

    #[test]
    fn this_process_is_there_with_one_table_for_all_of_its_threads() {
        let own = std::process::id().cast_signed();
        assert!(below(own).iter().any(|process| process.id == own));
        assert!(below(i32::MAX).is_empty());
        let (end, waits) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || waits.recv());
        if sys::share(Shared::Files, own, own) {
            assert_eq!(apart(own, Shared::Files), [own]);
        }
        drop(end);
        assert!(other.join().unwrap().is_err());
    }
}
