//! Questions about the store of a node.

use serde::{Deserialize, Serialize};

use crate::nix::store_path::{StorePath, basename};
use crate::path_info::PathInfo;

/// A question about the store, or something to be done with it, on behalf of its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "ask",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum StoreQuestion {
    /// What is known of these paths and of everything they refer to. Answered with
    /// [`StoreAnswer::Paths`].
    Closure {
        /// The paths, which must be valid.
        #[serde(with = "basename")]
        paths: Vec<StorePath>,
    },
    /// What refers to a path. Answered with [`StoreAnswer::Paths`].
    Referrers {
        /// The path, which must be valid.
        #[serde(with = "basename")]
        path: StorePath,
    },
    /// Why one path needs another one. Answered with [`StoreAnswer::Chain`].
    WhyDepends {
        /// Who needs.
        #[serde(with = "basename")]
        path: StorePath,
        /// What is needed.
        #[serde(with = "basename")]
        needed: StorePath,
    },
    /// How the trees of two paths differ. Answered with [`StoreAnswer::Differences`].
    Diff {
        /// The first.
        #[serde(with = "basename")]
        before: StorePath,
        /// The second.
        #[serde(with = "basename")]
        after: StorePath,
    },
    /// What paths take, with everything they refer to. Answered with [`StoreAnswer::Usage`].
    Usage {
        /// The paths, which must be valid; none: the roots of the store and what is pinned.
        #[serde(with = "basename")]
        paths: Vec<StorePath>,
    },
    /// Collect garbage. Answered with [`StoreAnswer::Collected`].
    Collect {
        /// Only say what would go.
        dry_run: bool,
        /// Keep what was added or used in the last so many seconds.
        younger_than: Option<u64>,
        /// Stop when the archives of what is left have so many bytes.
        target: Option<u64>,
        /// Stop when so many bytes of archives are gone.
        most: Option<u64>,
    },
    /// Keep paths and what they refer to until they are unpinned: all of them or none. Answered with
    /// [`StoreAnswer::Pins`].
    Pin {
        /// The paths, which must be valid.
        #[serde(with = "basename")]
        paths: Vec<StorePath>,
    },
    /// Keep paths no longer: all of them or none. Answered with [`StoreAnswer::Pins`].
    Unpin {
        /// The paths, which must be pinned.
        #[serde(with = "basename")]
        paths: Vec<StorePath>,
    },
    /// What is pinned. Answered with [`StoreAnswer::Pins`].
    Pins,
    /// Compare what lies on the disk with what was registered. Answered with
    /// [`StoreAnswer::Verified`].
    Verify {
        /// The paths, which must be valid; none: everything.
        #[serde(with = "basename")]
        paths: Vec<StorePath>,
        /// Put whole trees in the places of damaged ones, as far as they can be had.
        repair: bool,
    },
}

/// The answer to a [`StoreQuestion`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "answer",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum StoreAnswer {
    /// What is known of paths.
    Paths {
        /// Sorted.
        infos: Vec<PathInfo>,
    },
    /// Why a path is needed.
    Chain {
        /// Each refers to the next one; empty: it is not needed.
        links: Vec<ChainLink>,
    },
    /// Where trees differ.
    Differences {
        /// In order.
        differences: Vec<TreeDifference>,
    },
    /// What paths take.
    Usage {
        /// How many paths.
        paths: u64,
        /// Bytes of their archives.
        archives: u64,
        /// Bytes of their different files.
        files: u64,
    },
    /// What was collected, or would be.
    Collected {
        /// The paths.
        #[serde(with = "basename")]
        removed: Vec<StorePath>,
        /// How many trees went that were not the accepted ones of their paths.
        removed_beside: u64,
        /// Bytes of their archives.
        bytes: u64,
        /// Paths that stay.
        kept: u64,
        /// What is pinned.
        #[serde(with = "basename")]
        pins: Vec<StorePath>,
        /// What running programs use, by path.
        programs: Vec<ProgramUseView>,
        /// Links that were roots and are gone.
        stale_roots: Vec<String>,
        /// What could not be removed yet.
        failures: Vec<String>,
        /// Bytes of transfers that broke off and were not gone on with.
        broken_off: u64,
    },
    /// What is pinned now.
    Pins {
        /// By path.
        pins: Vec<PinView>,
    },
    /// What was looked at.
    Verified {
        /// How many trees.
        trees: u64,
        /// Bytes of their archives.
        bytes: u64,
        /// What is not as it was registered.
        damaged: Vec<DamagedPath>,
    },
}

/// A path that is kept until it is unpinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PinView {
    /// The path. What it refers to is kept with it.
    #[serde(with = "basename")]
    pub path: StorePath,
    /// When it was pinned, in seconds since 1970.
    pub since: u64,
}

/// A path that a running program uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProgramUseView {
    /// The path. What it refers to stays with it.
    #[serde(with = "basename")]
    pub path: StorePath,
    /// The number of a process that names it; none: only a program that `run` or `shell` started is known to use it.
    pub process: Option<u32>,
}

/// One step of why a path is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChainLink {
    /// The path.
    #[serde(with = "basename")]
    pub path: StorePath,
    /// Where in its tree the next one is mentioned, some of the places; bytes that are not UTF-8 are
    /// replaced.
    pub places: Vec<String>,
}

/// Where two trees differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TreeDifference {
    /// Below the trees' roots; bytes that are not UTF-8 are replaced.
    pub place: String,
    /// What the first one has there: `directory`, `file of 12 bytes`, `link to x`.
    pub before: Option<String>,
    /// What the second one has.
    pub after: Option<String>,
}

/// A tree that is not as it was registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DamagedPath {
    /// Its path.
    #[serde(with = "basename")]
    pub path: StorePath,
    /// Whether it is the accepted tree of the path.
    pub accepted: bool,
    /// What is wrong.
    pub reason: String,
    /// What became of the repair; none: it was not asked for.
    pub repair: Option<Repair>,
}

/// What became of the repair of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "outcome",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Repair {
    /// The tree is whole again.
    Done {
        /// From whom the content came, in words.
        from: String,
    },
    /// The tree is as it was.
    Failed {
        /// Why.
        reason: String,
    },
}
