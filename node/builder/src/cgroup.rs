//! Control groups, where the machine lets this user make some: they bound the memory of all processes of
//! a build together, file caches and shared memory included.
//!
//! Version 2 where its memory controller can be had, else version 1. Where neither can, the sandbox
//! helper watches instead (see [`crate::sandbox`]), which sees a flood a little later.
//!
//! Groups are made in the node's own group, or beside it where that has been given to this user. As root
//! never beside it: that place belongs to the machine's service manager, which may switch the limits of
//! what it did not make off again.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Attempts to remove a group whose last process is just being buried by the kernel.
const ATTEMPTS: u32 = 50;

/// How the names of groups for builds begin. The node's process id and the build's name follow.
const PREFIX: &str = "tvix-node-build-";

/// What a machine has of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupLayout {
    /// None are mounted.
    Absent,
    /// Version 1.
    One,
    /// Version 1, and version 2 beside it.
    Hybrid,
    /// Version 2.
    Two,
}

impl GroupLayout {
    /// From `/proc/self/mountinfo`.
    fn of(mounts: &str) -> Self {
        let has = |wanted: &str| {
            let kind = |line: &str| line.split_once(" - ")?.1.split(' ').next().map(str::to_owned);
            mounts
                .lines()
                .any(|line| kind(line).is_some_and(|kind| kind == wanted))
        };
        match (has("cgroup"), has("cgroup2")) {
            (false, false) => Self::Absent,
            (true, false) => Self::One,
            (true, true) => Self::Hybrid,
            (false, true) => Self::Two,
        }
    }
}

/// What control groups do for a builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlGroups {
    /// What the machine has.
    pub layout: GroupLayout,
    /// The version with which this user can bound the memory of a build; none: it is watched.
    pub bounds_memory: Option<u32>,
}

impl ControlGroups {
    /// Tries it out, unless none are to be made.
    pub(crate) fn of_machine(may_be_made: bool) -> Self {
        /// Looks may be under way at once.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // More than any machine has: nothing joins this group.
        const BYTES: u64 = 1 << 40;
        let look = || {
            MemoryGroup::create(
                &format!("look-{}", NUMBER.fetch_add(1, Ordering::Relaxed)),
                BYTES,
                0,
            )
        };
        Self {
            layout: GroupLayout::of(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()),
            bounds_memory: may_be_made.then(look).flatten().map(|group| match group.version {
                Version::One => 1,
                Version::Two => 2,
            }),
        }
    }
}

/// A group that bounds memory, for one build. Removed when dropped.
#[derive(Debug)]
pub(crate) struct MemoryGroup {
    folder: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl MemoryGroup {
    /// Makes a group for a build that may use `bytes` of memory; none where this machine does not let us. Where the group has
    /// a share of the processors as well, it is what `niceness` gives a process: that of its processes counts among
    /// themselves only.
    pub(crate) fn create(build: &str, bytes: u64, niceness: i32) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let name = format!("{PREFIX}{}-{build}", std::process::id());
        places(&mounts, &own, rustix::process::geteuid().is_root())
            .into_iter()
            .find_map(|(version, parent)| Self::make(version, parent.join(&name), bytes, niceness).ok())
    }

    fn make(version: Version, folder: PathBuf, bytes: u64, niceness: i32) -> io::Result<Self> {
        fs::create_dir(&folder)?;
        // From here on removed again where anything fails.
        let group = Self { folder, version };
        // Not created: in such a folder that is denied, and not called missing.
        let set = |file: &str, value: &str| {
            let mut file = fs::OpenOptions::new().write(true).open(group.folder.join(file))?;
            file.write_all(value.as_bytes())
        };
        // Without accounting of swap there is no such file, and nothing to bound.
        let set_if_there = |file: &str, value: &str| match set(file, value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        };
        let limit = bytes.to_string();
        match version {
            Version::Two => {
                set("memory.max", &limit)?;
                set_if_there("memory.swap.max", "0")?;
                // A build that lost one process to the limit is of no use.
                set_if_there("memory.oom.group", "1")?;
                set_if_there("cpu.weight.nice", &niceness.to_string())?;
            }
            Version::One => {
                set("memory.limit_in_bytes", &limit)?;
                set_if_there("memory.memsw.limit_in_bytes", &limit)?;
            }
        }
        Ok(group)
    }

    /// Where a process writes its id to join.
    pub(crate) fn door(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// Where the kernel counts the processes that it killed because the limit was reached.
    pub(crate) fn events(&self) -> PathBuf {
        self.folder.join(match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        })
    }
}

/// Whether a process was killed because the limit was reached, by the file that [`MemoryGroup::events`]
/// names.
pub(crate) fn was_exceeded(events: &Path) -> bool {
    fs::read_to_string(events).is_ok_and(|events| kills(&events) > 0)
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        for _ in 0..ATTEMPTS {
            match fs::remove_dir(&self.folder) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => {
                    tracing::warn!(group = %self.folder.display(), %error, "a control group could not be removed");
                    return;
                }
                Ok(()) => return,
            }
        }
        tracing::warn!(group = %self.folder.display(), "a control group is still in use");
    }
}

/// Removes the groups of nodes that are not alive any more.
pub(crate) fn remove_leftovers() {
    let (Ok(mounts), Ok(own)) = (
        fs::read_to_string("/proc/self/mountinfo"),
        fs::read_to_string("/proc/self/cgroup"),
    ) else {
        return;
    };
    for (_, parent) in places(&mounts, &own, rustix::process::geteuid().is_root()) {
        let Ok(entries) = fs::read_dir(parent) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let owner = name
                .to_str()
                .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
            if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
                // Fails where somebody is in it, whose node will come back to it.
                let _in_use = fs::remove_dir(entry.path());
            }
        }
    }
}

/// Folders in which a group that bounds memory might be made, the best first.
fn places(mounts: &str, own: &str, root: bool) -> Vec<(Version, PathBuf)> {
    let mut places = Vec::new();
    for (version, controller) in [(Version::Two, ""), (Version::One, "memory")] {
        let Some(own) = own_group(own, controller) else {
            continue;
        };
        let Some(folder) = mounted(mounts, version, Path::new(own)) else {
            continue;
        };
        places.push((version, folder.clone()));
        // A group that has processes cannot hand its controllers on (version 2); the one above can, and
        // belongs to the user in a session of systemd's.
        if version == Version::Two
            && !root
            && let Some(above) = folder.parent()
            && own != "/"
        {
            places.push((version, above.to_path_buf()));
        }
    }
    places
}

/// The group of this process in a hierarchy, from `/proc/self/cgroup`; version 2 has no controller there.
fn own_group<'a>(own: &'a str, controller: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let found = match controller {
            "" => id == "0" && controllers.is_empty(),
            controller => controllers.split(',').any(|one| one == controller),
        };
        found.then_some(path)
    })
}

/// Where a group's folder is, from `/proc/self/mountinfo`.
fn mounted(mounts: &str, version: Version, group: &Path) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, place) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let kind = after.next()?;
        let options = after.nth(1)?;
        let found = match version {
            Version::Two => kind == "cgroup2",
            Version::One => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
        };
        let below = group.strip_prefix(root).ok().filter(|_| found)?;
        // Joining nothing would leave a slash at the end.
        Some(Path::new(place).join(below).components().collect())
    })
}

/// The number of kills in a file of events.
fn kills(events: &str) -> u64 {
    events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                       35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";
    const TWO: &str = "41 31 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                          41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw\n";

    fn found(mounts: &str, own: &str) -> Vec<(Version, String)> {
        let places = places(mounts, own, false).into_iter();
        places
            .map(|(version, place)| (version, place.display().to_string()))
            .collect()
    }

    #[test]
    fn groups_are_found_in_every_layout() {
        assert_eq!(
            found(ONE, "4:memory:/a/b\n1:cpu:/\n"),
            [(Version::One, "/sys/fs/cgroup/memory/a/b".to_owned())]
        );
        assert_eq!(
            found(TWO, "0::/user.slice/app.slice/x.scope\n"),
            [
                (
                    Version::Two,
                    "/sys/fs/cgroup/user.slice/app.slice/x.scope".to_owned()
                ),
                (Version::Two, "/sys/fs/cgroup/user.slice/app.slice".to_owned()),
            ]
        );
        assert_eq!(
            found(HYBRID, "4:memory:/a\n0::/\n"),
            [
                (Version::Two, "/sys/fs/cgroup/unified".to_owned()),
                (Version::One, "/sys/fs/cgroup/memory/a".to_owned()),
            ]
        );
    }

    #[test]
    fn every_layout_is_told_apart() {
        let layouts = [ONE, TWO, HYBRID, ""].map(GroupLayout::of);
        let expected = [
            GroupLayout::One,
            GroupLayout::Two,
            GroupLayout::Hybrid,
            GroupLayout::Absent,
        ];
        assert_eq!(layouts, expected);
    }

    #[test]
    fn a_look_leaves_no_group_and_none_is_made_where_none_is_to_be() {
        let found = ControlGroups::of_machine(true);
        assert_eq!(
            ControlGroups::of_machine(false),
            ControlGroups {
                bounds_memory: None,
                ..found
            }
        );
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let left = format!("{PREFIX}{}-look-", std::process::id());
        for (_, place) in places(&mounts, &own, rustix::process::geteuid().is_root()) {
            for entry in fs::read_dir(place).into_iter().flatten().flatten() {
                assert!(
                    !entry.file_name().to_string_lossy().starts_with(&left),
                    "{entry:?}"
                );
            }
        }
    }

    #[test]
    fn root_does_not_take_the_place_of_the_service_manager() {
        let places = places(TWO, "0::/system.slice/x.service\n", true);
        let own = Path::new("/sys/fs/cgroup/system.slice/x.service");
        assert_eq!(places, [(Version::Two, own.to_path_buf())]);
    }

    #[test]
    fn nothing_is_found_where_nothing_is_mounted_or_reachable() {
        assert!(found("", "4:memory:/a\n0::/\n").is_empty());
        assert!(found(ONE, "0::/\n").is_empty());
        // A container sees only a part, and is outside of it.
        let part = "35 31 0:32 /docker/1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        assert!(found(part, "4:memory:/other\n").is_empty());
        assert_eq!(
            found(part, "4:memory:/docker/1/x\n")[0].1,
            "/sys/fs/cgroup/memory/x"
        );
    }

    #[test]
    fn kills_are_counted() {
        assert_eq!(
            kills("low 0\nhigh 0\nmax 7\noom 1\noom_kill 2\noom_group_kill 1\n"),
            2
        );
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(kills("oom_kill_disable 0\n"), 0);
    }
}
