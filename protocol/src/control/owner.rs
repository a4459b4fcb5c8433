//! What the owner of a node decides: whom it believes, what stays private; and whether it is well.

use serde::{Deserialize, Serialize};

use crate::envelope::NodeKey;
use crate::nix::store_path::{StorePath, basename};
use crate::trust::{PathPattern, TrustRule};

/// Something that the owner of a node wants to know or to have from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "ask",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum OwnerQuestion {
    /// The rules of trust. Answered with [`OwnerAnswer::Trust`].
    Trust,
    /// Set a rule of trust; one for the same paths and builder goes. Answered with [`OwnerAnswer::Trust`].
    SetTrust {
        /// For which paths; none: for all.
        paths: Option<PathPattern>,
        /// For whose records, by name or key; none: whoever built.
        builder: Option<String>,
        /// What is required.
        require: NamedRequirement,
    },
    /// Take a rule of trust away. Answered with [`OwnerAnswer::Trust`].
    UnsetTrust {
        /// The paths that it is for; none: for all.
        paths: Option<PathPattern>,
        /// The builder that it is for, by name or key; none: whoever built.
        builder: Option<String>,
    },
    /// Why a path is or is not believed. Answered with [`OwnerAnswer::Explained`].
    ExplainTrust {
        /// The path.
        #[serde(with = "basename")]
        path: StorePath,
    },
    /// What is private. Answered with [`OwnerAnswer::Private`].
    Private,
    /// Keep paths private from now on, with everything that refers to them, or not any more. Answered with
    /// [`OwnerAnswer::Private`].
    SetPrivate {
        /// Whether they are.
        private: bool,
        /// Paths.
        #[serde(with = "basename")]
        paths: Vec<StorePath>,
        /// Patterns for paths.
        patterns: Vec<PathPattern>,
    },
    /// Whether a path is private. Answered with [`OwnerAnswer::IsPrivate`].
    IsPrivate {
        /// The path.
        #[serde(with = "basename")]
        path: StorePath,
    },
    /// Whether this node and its team are well. Answered with [`OwnerAnswer::Health`].
    Health,
}

/// A [`Requirement`](crate::trust::Requirement) whose builders are named as people name them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum NamedRequirement {
    /// Only what this node built itself.
    #[serde(rename = "self")]
    Own,
    /// As the roster says.
    Roster,
    /// Several of these have to agree.
    Quorum {
        /// How many.
        needed: u32,
        /// Names or keys; [`THIS_NODE`] is the node itself.
        of: Vec<String>,
    },
    /// A share is built here again.
    Sample {
        /// Of a hundred builds, how many.
        percent: u8,
    },
}

/// What a quorum calls the node whose rule it is.
pub const THIS_NODE: &str = "self";

/// The answer to an [`OwnerQuestion`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "answer",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum OwnerAnswer {
    /// The rules of trust.
    Trust {
        /// In the order in which they are tried.
        rules: Vec<TrustRule>,
        /// What the nodes that they name are called, as far as they are members.
        names: Vec<(NodeKey, String)>,
        /// This node.
        me: NodeKey,
        /// Builds that this node runs at once; with none, nothing can be sampled.
        slots: u32,
    },
    /// Why a path is or is not believed.
    Explained(Explanation),
    /// What is private.
    Private {
        /// Patterns.
        patterns: Vec<PathPattern>,
        /// Paths, sorted; here or not.
        #[serde(with = "basename")]
        paths: Vec<StorePath>,
    },
    /// Whether a path is private.
    IsPrivate {
        /// Whether it is.
        private: bool,
    },
    /// How this node and its team are.
    Health {
        /// What was looked at.
        findings: Vec<Finding>,
    },
}

/// Something that was looked at to find out whether a node is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Finding {
    /// What it is about, in a word or two, such as `clock`.
    pub about: String,
    /// How it is.
    pub state: Health,
    /// What was found.
    pub found: String,
    /// What to do about it; none: nothing.
    pub advice: Option<String>,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// As it should be.
    Good,
    /// It works, and something should be done or known.
    Warning,
    /// Something does not work.
    Bad,
}

/// Why a path is or is not believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Explanation {
    /// The rule for the path; none: the roster decides.
    pub rule: Option<TrustRule>,
    /// How the path came to be in the store; none: it is not there.
    pub here: Option<String>,
    /// What builders that have to agree have come to.
    pub quorum: Option<String>,
    /// What members show of it, and whether that is believed.
    pub shown: Vec<ShownVerdict>,
    /// What the nodes that are named are called, as far as they are members.
    pub names: Vec<(NodeKey, String)>,
    /// This node.
    pub me: NodeKey,
}

/// What one member shows of a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShownVerdict {
    /// Who.
    pub peer: NodeKey,
    /// Whether it is believed.
    pub accepted: bool,
    /// Why, in words.
    pub why: String,
}
