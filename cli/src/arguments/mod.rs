//! The command line: what may be said, and what a user of Nix is told who says something else.
//!
//! | file | what it has |
//! |---|---|
//! | `evaluation` | which expression, and with which arguments |
//! | `building` | how to build |
//! | `destination` | where outputs should be in the end |
//! | `store` | what can be asked of the store |
//! | `team` | who may join, for how long, and where members meet |
//! | `share` | on which terms the node builds for others |
//! | `traffic` | how much of the link the node uses |
//! | `trust` | whom the node believes about which paths |
//! | `numbers` | counts, sizes and times |
//! | `flake` | flake references, which are refused with a way out |
//! | `nix_flags` | the flags of Nix's own commands that are refused by name |
//! | `parse` | from the command line to [`Invocation`] |

mod building;
mod destination;
mod evaluation;
mod flake;
mod nix_flags;
mod numbers;
mod parse;
mod share;
mod store;
mod team;
mod traffic;
mod trust;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tvix_node::daemon::AddressRange;

pub use building::{BuildingArguments, words};
pub use evaluation::EvaluationArguments;
pub use parse::{Parsed, UsageError, parse};
pub use share::ShareArguments;
pub use store::{CollectArguments, StoreCommand};
pub use team::{InTeam, InviteArguments, Invitees, JoinArguments, RenewArguments, own_name};
pub use traffic::TrafficArguments;
pub use trust::TrustCommand;
use tvix_node_protocol::control::Destination;

use crate::progress::LogFormat;
use destination::destination;
use numbers::{Limit, limit};
use team::{Listen, listen, listening};

/// A peer-to-peer build network for Nix
#[derive(Debug, Parser)]
#[command(
    name = "tvix-node",
    version,
    disable_help_subcommand = true,
    after_help = "The home (store, identity, control socket) is where TVIX_NODE_HOME says, by default in your data \
                  directory. A node is started in the background where none is up.\n\n\
                  Exit status: 0 success, 1 a build or something else failed, 2 wrong usage, 3 the evaluation failed, \
                  130 interrupted."
)]
pub struct Invocation {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build derivations, print their outputs and link to them
    ///
    /// What is in the store, or in that of a member of the team, is not built again. What has to be built is
    /// built by whichever member of the team can do it soonest, this node included.
    Build {
        #[command(flatten)]
        evaluation: EvaluationArguments,
        #[command(flatten)]
        building: BuildingArguments,
        #[command(flatten)]
        links: LinkArguments,
        /// Say what would be built or fetched, and do only what the evaluation itself needs
        #[arg(long)]
        dry_run: bool,
        /// Build the targets again on this node, where they are built already, and say where the results differ
        #[arg(long, conflicts_with_all = ["dry_run", "to"])]
        check: bool,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Write derivations to the store and print their paths
    Instantiate {
        #[command(flatten)]
        evaluation: EvaluationArguments,
        #[command(flatten)]
        building: BuildingArguments,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Print the value of an expression
    Eval {
        #[command(flatten)]
        evaluation: EvaluationArguments,
        #[command(flatten)]
        format: ValueArguments,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Build one derivation and run a program of it
    Run {
        #[command(flatten)]
        evaluation: EvaluationArguments,
        #[command(flatten)]
        building: BuildingArguments,
        #[command(flatten)]
        output: OutputArguments,
        /// Which program; by default the only one, or the one called like the package
        #[arg(long, value_name = "NAME")]
        program: Option<OsString>,
        /// Arguments of the program, after `--`
        #[arg(last = true, value_name = "ARGUMENT")]
        arguments: Vec<OsString>,
    },
    /// Build derivations and run a shell with their programs in PATH
    Shell {
        #[command(flatten)]
        evaluation: EvaluationArguments,
        #[command(flatten)]
        building: BuildingArguments,
        #[command(flatten)]
        output: OutputArguments,
        /// A command to run instead of $SHELL, after `--`
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Look into the store
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
    /// Print the log of the build that made a path
    Log {
        /// A store path, a derivation, or a link to one
        #[arg(value_name = "PATH")]
        path: String,
    },
    /// Say whether a path was built, fetched or present, where, and why
    Why {
        /// A store path, or a link to one
        #[arg(value_name = "PATH")]
        path: String,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the signed records of the builds that made a path
    ///
    /// A record says what was built from which inputs, by whom and when, and is signed by the node that built.
    Record {
        /// A store path, or a link to one
        #[arg(value_name = "PATH")]
        path: String,
        /// Print them as JSON, with the signed bytes in base 16
        #[arg(long)]
        json: bool,
    },
    /// Make a ticket that lets one more node into the team
    ///
    /// The ticket is printed on standard output. Whoever has it can join with 'tvix-node join TICKET', once, as
    /// long as it is good and this node is up. The first invitation of a node that is in no team founds one.
    ///
    /// A team is founded with others by '--founder NAME=KEY' for each, where KEY is what 'tvix-node founder-key' prints there. A
    /// ticket is printed for each of them, in that order, with which nobody else comes in. The founders can then do without
    /// one of themselves whose key is lost or stolen: as many as the threshold says put it out.
    Invite {
        #[command(flatten)]
        invite: InviteArguments,
    },
    /// Join a team with a ticket
    ///
    /// A node may be in several teams, which do not see each other: it has a key of its own in each, and what came from
    /// one is nothing that another learns of.
    Join {
        #[command(flatten)]
        join: JoinArguments,
    },
    /// Print a key by which this node can be one of the founders of a team
    ///
    /// Give it to whoever founds the team ('tvix-node invite --new-team --founder NAME=KEY'), and redeem the ticket that
    /// comes back here. Each time it is another key, which is good for one team and waits in the home until then.
    FounderKey {
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// List the teams that this node is in
    Teams {
        /// Print them as JSON, with their whole ids
        #[arg(long)]
        json: bool,
    },
    /// List who is in the team
    Members {
        #[command(flatten)]
        team: InTeam,
        /// Print them as JSON, with their whole keys
        #[arg(long)]
        json: bool,
    },
    /// List the members that the node is connected with, and what they offer
    Peers {
        #[command(flatten)]
        team: InTeam,
        /// Print them as JSON, with all their addresses
        #[arg(long)]
        json: bool,
    },
    /// Put a member out of the team for good
    ///
    /// Its key never comes back: who runs that node gives the team up ('leave') and joins anew by another key. Whom it invited is out
    /// too until somebody else invites or renews them. Founders may revoke. To put out a founder it takes as many of the others as
    /// the team's threshold says: each of them runs this, and what is said cannot be taken back. 'members' shows who has.
    Revoke {
        /// The member's name, or its key or the beginning of that
        #[arg(value_name = "MEMBER")]
        member: String,
        #[command(flatten)]
        team: InTeam,
    },
    /// Renew a membership before it ends, and say anew what the member may do
    Renew {
        #[command(flatten)]
        renew: RenewArguments,
    },
    /// Say whom this node believes about which paths
    ///
    /// What names itself by its content needs nobody. For other paths the first rule whose pattern fits counts; a rule
    /// for a builder says besides whether what it signed counts at all.
    #[command(args_conflicts_with_subcommands = true)]
    Trust {
        #[command(subcommand)]
        command: Option<TrustCommand>,
        /// Print the rules as JSON, with whole keys
        #[arg(long)]
        json: bool,
    },
    /// Say what stays on this node
    ///
    /// No member learns of what is private, gets it, or is asked to build it; what is built from it is private, too.
    Private {
        #[command(subcommand)]
        command: Option<PrivateCommand>,
    },
    /// Say on which terms this node builds for others
    ///
    /// The owner's work goes first in any case: others get the slots that it leaves. A build for another member that is under
    /// way when the terms end it is stopped, and its requester is told why and looks for another builder.
    Share {
        #[command(flatten)]
        share: ShareArguments,
    },
    /// Say how much of the machine's link this node uses
    ///
    /// On a metered connection others get nothing from this node but what its own builds need, it builds and keeps nothing for
    /// them, and its own builds are done here where they can be. What is not said stays as it is.
    Traffic {
        #[command(flatten)]
        traffic: TrafficArguments,
    },
    /// Look for what is wrong with this node and its team, and say what to do
    ///
    /// Looks at the sandbox, what fixed-output builds reach, the disk, where the node can be reached, the clocks, the roster, and the way to each
    /// member. The exit status is 1 where something does not work.
    Doctor {
        /// Print what was found as JSON
        #[arg(long)]
        json: bool,
    },
    /// Leave the team for good
    ///
    /// The key that this node has there never comes back into the team. What is in its store stays; what came from the
    /// team is shown to no other. Other teams that the node is in are left alone.
    Leave {
        #[command(flatten)]
        team: InTeam,
        /// Leave also as the last founder of a team with others in it, whose memberships end with that
        #[arg(long)]
        force: bool,
    },
    /// Say what the node is doing
    Status {
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Run the node of this home
    Up {
        #[command(flatten)]
        up: UpArguments,
    },
    /// Stop the node of this home
    Down,
}

/// What is done with what is private.
#[derive(Debug, Subcommand)]
pub enum PrivateCommand {
    /// List the patterns and paths, one a line
    List,
    /// Keep paths private from now on, with everything that refers to them
    ///
    /// Paths need not be there yet. What members have got before, they have.
    Add {
        /// Store paths, links to them, or patterns for their names, such as '*-license-key'
        #[arg(value_name = "PATH|PATTERN", required = true)]
        what: Vec<String>,
    },
    /// Show paths to members again
    Remove {
        /// Store paths, links to them, or patterns, as 'list' shows them
        #[arg(value_name = "PATH|PATTERN", required = true)]
        what: Vec<String>,
    },
}

/// Where results go.
#[derive(Debug, Args)]
pub struct LinkArguments {
    /// Where the outputs should be in the end: a member of the team (its name or key), or a binary cache in a
    /// folder (file:///FOLDER). Builders push there themselves if they can. No link is made
    #[arg(long, value_name = "STORE", value_parser = destination, conflicts_with = "out_link")]
    pub to: Option<Destination>,
    /// Name of the link to the result, which keeps it from being collected
    #[arg(short = 'o', long = "out-link", value_name = "LINK", default_value = "result")]
    pub out_link: PathBuf,
    /// Keep what this brings into the store to this node: no member learns of it, gets it, or is asked to build it
    #[arg(long, conflicts_with = "to")]
    pub private: bool,
    /// Make no link
    #[arg(long = "no-out-link", visible_alias = "no-link", conflicts_with = "out_link")]
    pub no_out_link: bool,
}

/// How progress is shown.
#[derive(Debug, Args)]
pub struct OutputArguments {
    /// How progress is shown on standard error [default: bar on a terminal, else raw]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// How values are printed.
#[derive(Debug, Args)]
pub struct ValueArguments {
    /// Evaluate everything in the value, not only what is needed
    #[arg(long)]
    pub strict: bool,
    /// Print the value as JSON (implies --strict)
    #[arg(long, conflicts_with_all = ["xml", "raw"])]
    pub json: bool,
    /// Print the value as XML
    #[arg(long, conflicts_with = "raw")]
    pub xml: bool,
    /// Print a string as it is, without quotes
    #[arg(long)]
    pub raw: bool,
}

/// How fixed-output builds reach the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NetworkWay {
    /// From a network of their own: HTTP and HTTPS through the node, and everything else where /dev/net/tun can be opened
    Own,
    /// From a network of their own, by HTTP and HTTPS through the node alone
    Proxy,
    /// Not at all
    None,
}

/// How a node runs.
#[derive(Debug, Args)]
pub struct UpArguments {
    /// Builds at once; 0: others build for this node [default: one for each processor]
    #[arg(long, value_name = "N")]
    pub slots: Option<u32>,
    /// Where members of the team reach this node; may be given several times. Port 0 is one that is free; 'none':
    /// nowhere, this node connects to others only [default: a free port of every address]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = listen)]
    listen: Vec<Listen>,
    /// Pass nothing on between members that cannot reach each other
    #[arg(long)]
    pub no_relay: bool,
    /// Bytes of memory after which a build is stopped on this node, for whomever it is; 0: no limit of the node's own
    /// [default: 'max-build-memory' in config.toml of the home]
    #[arg(long, value_name = "BYTES", value_parser = limit)]
    pub max_build_memory: Option<Limit>,
    /// Processes and threads at once after which a build is stopped on this node, for whomever it is; 0: no limit of the
    /// node's own [default: 'max-build-processes' in config.toml of the home]
    #[arg(long, value_name = "N", value_parser = limit)]
    pub max_build_processes: Option<Limit>,
    /// Watch the memory of builds that have a limit, and make no control groups for them
    #[arg(long)]
    pub no_control_groups: bool,
    /// Binary caches to take paths from (https:, http: and file: URLs, separated by spaces), instead of those in
    /// config.toml of the home
    #[arg(long, value_name = "URLS")]
    pub substituters: Option<String>,
    /// Keys whose signatures in binary caches are believed (NAME:BASE64, separated by spaces), instead of those in
    /// config.toml of the home
    #[arg(long, value_name = "KEYS")]
    pub trusted_public_keys: Option<String>,
    /// How fixed-output builds reach the network, instead of 'network-of-fixed-outputs' in config.toml of the home
    /// [default: own]
    #[arg(long, value_name = "WAY")]
    pub network_of_fixed_outputs: Option<NetworkWay>,
    /// Addresses that fixed-output builds reach although they are not public, such as 10.1.2.3:8080 or fd00::/8; may be
    /// given several times. Used instead of 'allowed-addresses' in config.toml of the home
    #[arg(long, value_name = "ADDRESS[/PREFIX][:PORT]")]
    pub allow_address: Vec<AddressRange>,
    /// Let builds for other members reach these addresses, too
    #[arg(long)]
    pub allow_address_for_others: bool,
    /// End when nobody has used it for a while
    #[arg(long)]
    pub idle_exit: bool,
    /// Leave the terminal, and say on standard output when commands can connect
    #[arg(long, hide = true)]
    pub background: bool,
}

impl UpArguments {
    /// How fixed-output builds reach the network; none: nothing was said.
    pub fn network_way(&self) -> Option<tvix_node::config::NetworkWay> {
        use tvix_node::config::NetworkWay as Way;
        self.network_of_fixed_outputs.map(|way| match way {
            NetworkWay::Own => Way::Own,
            NetworkWay::Proxy => Way::Proxy,
            NetworkWay::None => Way::None,
        })
    }

    /// Where to listen; none: nothing was said.
    ///
    /// # Errors
    /// Nowhere and somewhere at once.
    pub fn listening(&self) -> Result<Option<Vec<SocketAddr>>, UsageError> {
        listening(&self.listen)
    }
}
