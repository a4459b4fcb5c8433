//! How to build.

use clap::Args;
use tvix_node::command::Building;
use tvix_node_protocol::build::BuildLimits;

use super::numbers::{Jobs, Limit, cores, jobs, limit};

/// How to build.
#[derive(Debug, Args)]
#[command(next_help_heading = "Building")]
pub struct BuildingArguments {
    /// Go on after a failure with everything that does not depend on it
    #[arg(short = 'k', long)]
    keep_going: bool,
    /// Keep the folder of a build that fails, from another member of the team too, and say where it is
    #[arg(short = 'K', long)]
    keep_failed: bool,
    /// Builds at once on this node, or 'auto' for as many as it has slots; 0: others build
    #[arg(short = 'j', long = "max-jobs", value_name = "N", value_parser = jobs, default_value = "auto", hide_default_value = true)]
    jobs: Jobs,
    /// Value of NIX_BUILD_CORES in each build; 0 for all cores
    #[arg(long, value_name = "N", value_parser = cores, default_value_t = 0, hide_default_value = true)]
    cores: u32,
    /// Seconds after which a build is stopped; 0 for none
    #[arg(long, value_name = "SECONDS", value_parser = limit)]
    timeout: Option<Limit>,
    /// Seconds without a line of log after which a build is stopped; 0 for none
    #[arg(long, value_name = "SECONDS", value_parser = limit)]
    max_silent_time: Option<Limit>,
    /// Bytes of log after which a build is stopped; 0 for none
    #[arg(long, value_name = "BYTES", value_parser = limit)]
    max_build_log_size: Option<Limit>,
    /// Bytes of memory after which a build is stopped, all of its processes together; 0 for none
    #[arg(long, value_name = "BYTES", value_parser = limit)]
    max_build_memory: Option<Limit>,
    /// Processes and threads at once after which a build is stopped; 0 for as many as without this option, which is 8192
    #[arg(long, value_name = "N", value_parser = limit)]
    max_build_processes: Option<Limit>,
    /// Bytes of disk after which a build is stopped; 0 for none
    #[arg(long, value_name = "BYTES", value_parser = limit)]
    max_build_disk_size: Option<Limit>,
    /// Further binary caches to take paths from while this command runs (https:, http: and file: URLs, separated by
    /// spaces)
    #[arg(long, value_name = "URLS", default_value = "", hide_default_value = true)]
    extra_substituters: String,
    /// Further keys whose signatures in binary caches are believed meanwhile (NAME:BASE64, separated by spaces)
    #[arg(long, value_name = "KEYS", default_value = "", hide_default_value = true)]
    extra_trusted_public_keys: String,
}

/// What stands in a list that is separated by spaces, as in Nix.
pub fn words(list: &str) -> Vec<String> {
    list.split_whitespace().map(str::to_owned).collect()
}

impl BuildingArguments {
    /// What the node is asked for. Links and dry runs are a matter of `build` alone.
    pub fn to_building(&self) -> Building {
        let bound = |limit: Option<Limit>| limit.unwrap_or_default().0;
        Building {
            keep_going: self.keep_going,
            keep_failed: self.keep_failed,
            private: false,
            jobs: match self.jobs {
                Jobs::Auto => None,
                Jobs::Most(most) => Some(most),
            },
            cores: self.cores,
            limits: BuildLimits {
                time: bound(self.timeout),
                silence: bound(self.max_silent_time),
                log: bound(self.max_build_log_size),
                disk: bound(self.max_build_disk_size),
                memory: bound(self.max_build_memory),
                processes: bound(self.max_build_processes),
            },
            dry_run: false,
            check: false,
            out_link: None,
            to: None,
            substituters: words(&self.extra_substituters),
            trusted_public_keys: words(&self.extra_trusted_public_keys),
        }
    }
}
