//! What can be asked of the store.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::numbers::{duration, size};

/// What can be asked of the store.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Add a file, folder or link of this machine, and print the path that follows from its content
    Add {
        /// What to add
        #[arg(value_name = "PLACE")]
        place: PathBuf,
        /// Name of the store path [default: that of the file or folder]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Write paths to standard output, as 'nix-store --export' does
    ///
    /// What they refer to is not written along: 'tvix-node store export $(tvix-node store closure PATH)' does that.
    Export {
        /// Store paths, or links to them
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
        /// Write the archive (NAR) of one path, as 'nix-store --dump' does
        #[arg(long)]
        nar: bool,
    },
    /// Add what 'store export' or 'nix-store --export' wrote from standard input, and print the paths
    ///
    /// An export is not signed: what it says of paths that were built is believed. What a path refers to must be in
    /// the store or come before it.
    Import {
        /// Read one archive (NAR) instead, as 'nix-store --dump' writes it, and add it under the path that follows
        /// from its content and this name
        #[arg(long, value_name = "NAME")]
        nar: Option<String>,
    },
    /// Say what is known of a path
    Info {
        /// A store path, or a link to one
        #[arg(value_name = "PATH")]
        path: String,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// List what paths refer to
    References {
        /// Store paths, or links to them
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
    },
    /// List what refers to paths
    Referrers {
        /// Store paths, or links to them
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
    },
    /// List paths and everything they refer to
    Closure {
        /// Store paths, or links to them
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
    },
    /// List the derivations that made paths
    Deriver {
        /// Store paths, or links to them
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
    },
    /// Say why one path needs another one, and where it mentions it
    WhyDepends {
        /// A store path, or a link to one
        #[arg(value_name = "PATH")]
        path: String,
        /// What it needs
        #[arg(value_name = "NEEDED")]
        needed: String,
    },
    /// List where the trees of two paths differ
    Diff {
        /// The first path, or a link to it
        #[arg(value_name = "BEFORE")]
        before: String,
        /// The second path, or a link to it
        #[arg(value_name = "AFTER")]
        after: String,
    },
    /// Say how much paths take, with everything they refer to
    Du {
        /// Store paths, or links to them [default: what the roots point to, and what is pinned]
        #[arg(value_name = "PATH")]
        paths: Vec<String>,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep paths, and what they refer to, until 'store unpin'
    ///
    /// Where one of them is not in the store, none is pinned.
    Pin {
        /// Store paths, or links to them
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
    },
    /// Keep paths no longer that 'store pin' keeps
    ///
    /// Nothing is removed by that; 'store gc' does it. Where one of them is not pinned, all stay pinned.
    Unpin {
        /// Store paths, or links to them
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
    },
    /// List what 'store pin' keeps
    Pins {
        /// Print it as JSON, with when each was pinned
        #[arg(long)]
        json: bool,
    },
    /// Remove what no root and nothing that runs needs
    ///
    /// Roots are the links that 'build' made (result), as long as they are there, and what 'store pin' keeps. What was
    /// not used for longest goes first where a bound is given.
    Gc {
        #[command(flatten)]
        collect: CollectArguments,
    },
    /// Compare what lies on the disk with what was registered
    ///
    /// The exit status is 1 where something is damaged, with --repair where something still is. Nothing is removed.
    Verify {
        /// Store paths, or links to them [default: everything]
        #[arg(value_name = "PATH")]
        paths: Vec<String>,
        /// Fetch what is damaged from members of the teams or binary caches, and put it in its place once it is verified
        #[arg(long)]
        repair: bool,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
}

/// What a collection of garbage takes.
#[derive(Debug, Args)]
pub struct CollectArguments {
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
    /// Keep what was added or used in this time, such as 7d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub older_than: Option<u64>,
    /// Stop when what is left has at most this size, such as 20G
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub target_size: Option<u64>,
    /// Stop when this much is gone, such as 1G
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_freed: Option<u64>,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}
