//! What a user asks of an evaluation and of builds.

use std::path::PathBuf;

use tvix_node_evaluator::{Argument, Reading};
use tvix_node_protocol::build::BuildLimits;
use tvix_node_protocol::control::Destination;

/// Which expression.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Expression {
    /// `./default.nix`.
    #[default]
    Default,
    /// `-f`: a file or folder, `<name>`, or the URL of a tarball.
    File(String),
    /// `-E`: the text itself.
    Text(String),
}

/// What to evaluate, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evaluation {
    /// Which expression.
    pub expression: Expression,
    /// Attribute paths into it; none: the whole.
    pub attributes: Vec<String>,
    /// `-I`, in order; `NIX_PATH` comes after.
    pub search_path: Vec<String>,
    /// `--arg` and `--argstr`.
    pub arguments: Vec<(String, Argument)>,
    /// `--eval-system`; none: this machine's.
    pub system: Option<String>,
    /// `--restrict-eval`, `--pure-eval`.
    pub reading: Reading,
    /// `--max-call-depth`; none: as Nix has it.
    pub max_call_depth: Option<u32>,
    /// `--show-trace`.
    pub show_trace: bool,
    /// `--no-eval-cache`.
    pub no_eval_cache: bool,
}

/// How to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Building {
    /// `-k`.
    pub keep_going: bool,
    /// `-K`.
    pub keep_failed: bool,
    /// `--private`.
    pub private: bool,
    /// `-j`; none: as many as the node has slots.
    pub jobs: Option<u32>,
    /// `--cores`; 0: all.
    pub cores: u32,
    /// `--timeout`, `--max-silent-time`, `--max-build-log-size`, `--max-build-disk-size`,
    /// `--max-build-memory`, `--max-build-processes`.
    pub limits: BuildLimits,
    /// `--dry-run`.
    pub dry_run: bool,
    /// `--check`: build again what is there, and compare.
    pub check: bool,
    /// `-o`, by default `result`; none: `--no-out-link`.
    pub out_link: Option<PathBuf>,
    /// `--to`.
    pub to: Option<Destination>,
    /// `--extra-substituters`.
    pub substituters: Vec<String>,
    /// `--extra-trusted-public-keys`.
    pub trusted_public_keys: Vec<String>,
}

impl Default for Building {
    fn default() -> Self {
        Self {
            keep_going: false,
            keep_failed: false,
            private: false,
            jobs: None,
            cores: 0,
            limits: BuildLimits::NONE,
            dry_run: false,
            check: false,
            out_link: Some(PathBuf::from("result")),
            to: None,
            substituters: Vec::new(),
            trusted_public_keys: Vec::new(),
        }
    }
}
