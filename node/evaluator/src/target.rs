//! What is evaluated, and what comes out: targets, actions and events.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tvix_node_protocol::nix::store_path::StorePath;

use crate::error::Rendered;

/// Where an expression comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExpressionSource {
    /// A file, or a folder with a `default.nix`; absolute, or relative to [`crate::Options::base`].
    File(PathBuf),
    /// `<name>`, looked up in the search path (the name without its brackets).
    SearchPath(String),
    /// The URL of a tarball that holds a `default.nix`; the host fetches it.
    Tarball(String),
    /// The text of an expression.
    Text(String),
}

/// How a value is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// Nix's own form, without forcing what the expression did not need (`«thunk»`).
    Lazy,
    /// Nix's own form, everything forced.
    Strict,
    /// JSON (derivations as their output path).
    Json,
    /// XML as `nix-instantiate --xml` prints it, everything forced if so asked.
    Xml {
        /// Whether everything is forced; what is not prints as `<unevaluated />`.
        strict: bool,
        /// Whether attributes and functions say where they are defined.
        locations: bool,
    },
    /// A string as it is, without quotes (`--raw`).
    Raw,
}

/// What is done with the value of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Every derivation in it is instantiated: the value itself, or the members of a set or list, and of
    /// inner sets with `recurseForDerivations`.
    Instantiate,
    /// It is printed.
    Print(Format),
}

/// One thing to evaluate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The expression. Targets with equal sources share its evaluation.
    pub source: ExpressionSource,
    /// Attribute path into it, as after `-A` (`a.b.0."x.y"`); empty: the whole value.
    pub attribute: String,
    /// What to do with the value.
    pub action: Action,
}

/// A derivation that a target names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedDerivation {
    /// Index of the target in the list that was given to `run`.
    pub target: usize,
    /// Where in the expression it was found; begins with the target's attribute.
    pub attribute: String,
    /// The `name` attribute.
    pub name: String,
    /// The `system` attribute, or `unknown`.
    pub system: String,
    /// The derivation.
    pub drv_path: StorePath,
    /// The output that the expression selects (`outputName`), if it says so.
    pub output_name: String,
    /// The outputs to install by default: name and path.
    pub outputs: BTreeMap<String, StorePath>,
}

/// What an evaluation says while it runs.
#[derive(Debug)]
pub enum Event {
    /// A target, or a member of one, is this derivation.
    Derivation(NamedDerivation),
    /// The printed value of a target.
    Value {
        /// Index of the target.
        target: usize,
        /// The printed form, without a final newline.
        text: Vec<u8>,
    },
    /// A target, or a member of one, failed; the others go on.
    Failed {
        /// Index of the target.
        target: usize,
        /// Attribute path of what failed.
        attribute: String,
        /// The error, rendered for people.
        error: Rendered,
    },
    /// Nothing more will come of this target.
    Finished {
        /// Index of the target.
        target: usize,
    },
}

/// Counts of a finished evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Derivations that targets named.
    pub derivations: usize,
    /// Failures reported.
    pub failures: usize,
    /// Bytes of the largest heap at its end.
    pub heap_bytes: usize,
    /// How many heaps were used, one after the other.
    pub heaps: usize,
}
