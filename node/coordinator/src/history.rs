//! How long builds of a package took where: what was seen before is the best guess for the next time.

use std::collections::BTreeMap;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::NodeKey;

use crate::id::Time;
use crate::limits;

/// How long builds of a package took at a node, as it is written down to outlive a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildDuration {
    /// The package: a derivation's name without what differs from version to version.
    pub package: String,
    /// The node; none: this one.
    pub node: Option<NodeKey>,
    /// Milliseconds, the last builds counting more than those before.
    pub took: u64,
}

/// Durations by package and builder. None: this node.
#[derive(Default)]
pub(crate) struct History {
    packages: FxHashMap<String, BTreeMap<Option<NodeKey>, u64>>,
    count: usize,
    changes: u64,
}

/// What a package is called from version to version: the name up to the first part that begins with a digit.
fn package(derivation: &StorePath) -> String {
    let name = derivation.name().trim_end_matches(".drv");
    let parts = name.split('-');
    let parts: Vec<&str> = parts
        .take_while(|part| !part.starts_with(|letter: char| letter.is_ascii_digit()))
        .collect();
    if parts.is_empty() {
        name.to_owned()
    } else {
        parts.join("-")
    }
}

impl History {
    /// A build took so many milliseconds. The last times count more than those before.
    pub(crate) fn note(&mut self, derivation: &StorePath, node: Option<NodeKey>, took: u64) {
        self.changes += 1;
        self.add(package(derivation), node, took);
    }

    /// What was written down in an earlier life.
    pub(crate) fn remember(&mut self, durations: Vec<BuildDuration>) {
        for BuildDuration { package, node, took } in durations.into_iter().take(limits::HISTORY) {
            self.add(package, node, took);
        }
    }

    /// Everything, and a number that is another one whenever that has changed.
    pub(crate) fn all(&self) -> (u64, impl Iterator<Item = BuildDuration> + '_) {
        let all = self.packages.iter().flat_map(|(package, seen)| {
            seen.iter().map(|(node, took)| BuildDuration {
                package: package.clone(),
                node: *node,
                took: *took,
            })
        });
        (self.changes, all)
    }

    fn add(&mut self, package: String, node: Option<NodeKey>, took: u64) {
        if self.count >= limits::HISTORY {
            // Rare, and what is lost is a guess.
            self.packages.clear();
            self.count = 0;
        }
        let seen = self.packages.entry(package).or_default();
        match seen.get_mut(&node) {
            Some(known) => *known = known.saturating_add(took) / 2,
            None => {
                seen.insert(node, took);
                self.count += 1;
            }
        }
    }

    /// How long it takes at a node, in milliseconds; none: it was not seen there.
    pub(crate) fn took(&self, derivation: &StorePath, node: Option<NodeKey>) -> Option<u64> {
        self.packages.get(&package(derivation))?.get(&node).copied()
    }

    /// How long it takes on average; none: it was seen nowhere.
    pub(crate) fn usual(&self, derivation: &StorePath) -> Option<u64> {
        let seen = self.packages.get(&package(derivation))?;
        let sum = seen.values().fold(0, |sum: u64, took| sum.saturating_add(*took));
        sum.checked_div(seen.len() as u64)
    }

    /// When a build that a peer begins now, and that is known to be short, should be over; none: it is not known to be.
    pub(crate) fn late(&self, derivation: &StorePath, now: Time) -> Option<Time> {
        let usual = self.usual(derivation).filter(|usual| *usual <= limits::RACED)?;
        Some(now.after(Duration::from_millis(usual * 2).max(limits::RACE_PATIENCE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derivation(name: &str) -> StorePath {
        StorePath::from_parts([0; 20], &format!("{name}.drv")).expect("a name")
    }

    #[test]
    fn a_package_is_the_same_from_version_to_version() {
        for (name, expected) in [
            ("hello-2.10", "hello"),
            ("python3-numpy-1.2", "python3-numpy"),
            ("openssl", "openssl"),
            ("7zip-23", "7zip-23"),
        ] {
            assert_eq!(package(&derivation(name)), expected);
        }
    }

    #[test]
    fn the_last_times_count_more() {
        let mut history = History::default();
        let bob = Some(NodeKey([1; 32]));
        assert_eq!(history.usual(&derivation("hello-1")), None);
        history.note(&derivation("hello-1"), bob, 1000);
        history.note(&derivation("hello-2"), bob, 3000);
        history.note(&derivation("hello-2"), None, 4000);
        assert_eq!(history.took(&derivation("hello-3"), bob), Some(2000));
        assert_eq!(history.took(&derivation("hello-3"), None), Some(4000));
        assert_eq!(history.usual(&derivation("hello-3")), Some(3000));
        assert_eq!(history.took(&derivation("other"), bob), None);
    }

    #[test]
    fn what_is_written_down_is_known_again() {
        let mut history = History::default();
        let bob = Some(NodeKey([1; 32]));
        history.note(&derivation("hello-1"), bob, 1000);
        history.note(&derivation("hello-1"), None, 500);
        let (changes, all) = history.all();
        let all: Vec<BuildDuration> = all.collect();
        let mut later = History::default();
        later.remember(all);
        assert_eq!(later.took(&derivation("hello-2"), bob), Some(1000));
        assert_eq!(later.took(&derivation("hello-2"), None), Some(500));
        assert_eq!(later.all().0, 0, "nothing that is not written down");
        history.note(&derivation("hello-1"), None, 500);
        assert_ne!(history.all().0, changes);
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut history = History::default();
        for number in 0..limits::HISTORY + 10 {
            history.note(&derivation(&format!("p{number}")), None, 1);
        }
        assert!(history.count <= limits::HISTORY && history.packages.len() <= limits::HISTORY);
        assert!(
            history
                .took(&derivation(&format!("p{}", limits::HISTORY + 9)), None)
                .is_some()
        );
    }
}
