//! How much programs other than this node keep the machine busy.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// How much other programs than this node and its builds keep the processors busy, from one look to the next.
pub struct Gauge {
    proc: PathBuf,
    last: Option<Times>,
}

/// Clock ticks since the machine started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    /// Of all cores together, idle or not.
    all: u64,
    /// Those in which something ran.
    busy: u64,
    /// Those in which this node or something that it started ran.
    own: u64,
    cores: u64,
}

impl Gauge {
    /// `proc`: the kernel's folder of processes.
    pub fn new(proc: &Path) -> Self {
        Self {
            proc: proc.to_owned(),
            last: None,
        }
    }

    /// Hundredths of one core since the last look; none: it cannot be found out. 0 at the first.
    pub fn read(&mut self) -> Option<u32> {
        let now = times(&self.proc, std::process::id())?;
        let load = self.last.map_or(0, |last| load_between(last, now));
        self.last = Some(now);
        Some(load)
    }
}

fn load_between(last: Times, now: Times) -> u32 {
    let all = now.all.saturating_sub(last.all);
    let busy = now.busy.saturating_sub(last.busy);
    // What a process that has ended used is counted at its parent.
    let own = now.own.saturating_sub(last.own);
    let others = busy.saturating_sub(own);
    let load = (others * now.cores * 100).checked_div(all).unwrap_or(0);
    u32::try_from(load).unwrap_or(u32::MAX)
}

fn times(proc: &Path, me: u32) -> Option<Times> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let mut lines = stat.lines();
    // cpu user nice system idle iowait irq softirq steal …
    let numbers: Vec<u64> = lines
        .next()?
        .split_whitespace()
        .skip(1)
        .filter_map(|text| text.parse().ok())
        .collect();
    let of = |at: usize| numbers.get(at).copied().unwrap_or(0);
    let busy = of(0) + of(1) + of(2) + of(5) + of(6);
    let cores = lines.filter(|line| line.starts_with("cpu")).count() as u64;
    Some(Times {
        all: busy + of(3) + of(4) + of(7),
        busy,
        own: own_ticks(proc, me),
        cores: cores.max(1),
    })
}

/// Ticks of a process and of all that it started, as far as they can be read.
fn own_ticks(proc: &Path, me: u32) -> u64 {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut ticks: BTreeMap<u32, u64> = BTreeMap::new();
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // A process that has just ended has no file any more.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        if let Some((parent, used)) = parent_and_ticks(&stat) {
            children.entry(parent).or_default().push(pid);
            ticks.insert(pid, used);
        }
    }
    let (mut sum, mut frontier) = (0, vec![me]);
    while let Some(pid) = frontier.pop() {
        sum += ticks.remove(&pid).unwrap_or(0);
        frontier.extend(children.remove(&pid).unwrap_or_default());
    }
    sum
}

/// The parent of a process, and its ticks with those of its children that have ended.
fn parent_and_ticks(stat: &str) -> Option<(u32, u64)> {
    // The name in brackets may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let parent = u32::try_from(number(1)?).ok()?;
    Some((parent, number(11)? + number(12)? + number(13)? + number(14)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_node_and_its_builds_use_is_not_the_owner_s_work() {
        let folder = tempfile::tempdir().unwrap();
        let process = |pid: u32, parent: u32, used: u64| {
            let place = folder.path().join(pid.to_string());
            fs::create_dir_all(&place).unwrap();
            let zeros = "0 ".repeat(9);
            fs::write(
                place.join("stat"),
                format!("{pid} (a) b) S {parent} {zeros}{used} 0 0 0 0"),
            )
            .unwrap();
        };
        fs::write(
            folder.path().join("stat"),
            "cpu  100 0 0 300 0 0 0 0 0 0\ncpu0 1\ncpu1 1\nintr 1\n",
        )
        .unwrap();
        process(10, 1, 20);
        process(11, 10, 30);
        process(12, 11, 5);
        process(50, 1, 1000);
        let first = times(folder.path(), 10).unwrap();
        assert_eq!(
            first,
            Times {
                all: 400,
                busy: 100,
                own: 55,
                cores: 2
            }
        );
        let after = Times {
            all: 600,
            busy: 250,
            own: 105,
            cores: 2,
        };
        // Of 100 ticks of each core others had 50.
        assert_eq!(load_between(first, after), 100);
        assert_eq!(load_between(first, first), 0);
        assert!(times(Path::new("/proc"), std::process::id()).is_some());
    }
}
