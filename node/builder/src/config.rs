//! What a builder is told once.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::proxy::address::AddressRange;

/// The first argument that makes a program that calls [`crate::run_if_sandbox`] a sandbox helper.
pub const SANDBOX_ARGUMENT: &str = "__tvix-node-sandbox";

/// First host uid and gid used for builds when the node runs as root; slot `n` uses this plus `n`.
///
/// Right after the range from which Nix allocates build users (`start-id` 872415232, 8,388,608
/// ids), because stock Nix kills every process of a build user that it is about to use.
pub const FIRST_BUILD_USER: u32 = 0x3480_0000;

/// How the node starts itself again to set up a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    /// A program whose `main` calls [`crate::run_if_sandbox`] first.
    pub program: PathBuf,
    /// Arguments before [`SANDBOX_ARGUMENT`]; usually none.
    pub arguments: Vec<OsString>,
}

impl Helper {
    /// The running program itself, even if its file has been replaced since.
    #[must_use]
    pub fn this_program() -> Self {
        Self::program("/proc/self/exe")
    }

    /// Another program.
    #[must_use]
    pub fn program(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
        }
    }
}

/// A path of the machine that every build sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPath {
    /// Where it is on the machine. Must exist when a build starts.
    pub outside: PathBuf,
    /// Whether builds may change it.
    pub writable: bool,
}

/// How fixed-output builds reach the network.
///
/// They are in a network of their own, with an HTTP proxy of the node in it, which connects to public
/// addresses only. So they reach HTTP and HTTPS, through the variables `http_proxy` and so on. Where this
/// user may open `/dev/net/tun`, they reach everything else over TCP and UDP as well, by IPv4 and, where the
/// machine has it, IPv6.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Network {
    /// Whether they get more than the proxy where that is possible.
    pub tunnel: bool,
    /// Addresses that are reachable although they are not public, such as a mirror in the local network.
    pub allowed: Vec<AddressRange>,
    /// Whether these are reachable for builds for others, too ([`BuildSpec::for_another`](crate::BuildSpec)).
    pub allowed_for_others: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            tunnel: true,
            allowed: Vec::new(),
            allowed_for_others: false,
        }
    }
}

impl Config {
    /// Addresses that a build reaches although they are not public.
    pub(crate) fn allowed(&self, for_another: bool) -> Arc<[AddressRange]> {
        let network = self.network.iter();
        let network = network.filter(|network| !for_another || network.allowed_for_others);
        network
            .flat_map(|network| network.allowed.iter().copied())
            .collect()
    }
}

/// What a builder is told once.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Where builds happen: an own folder, on the file system of the store, so that outputs need not
    /// be copied across. Everything in it is removed by [`crate::Builder::new`].
    pub scratch: PathBuf,
    /// Where the build folders of failed builds go when asked for. On the same file system as
    /// `scratch`; nothing in it is ever removed.
    pub kept: PathBuf,
    /// How to start the sandbox helper.
    pub helper: Helper,
    /// Platforms that are built for, such as `x86_64-linux`.
    pub systems: BTreeSet<String>,
    /// System features that derivations may require. With `kvm`, builds see `/dev/kvm`.
    pub features: BTreeSet<String>,
    /// First host uid and gid of builds when the node runs as root, see [`FIRST_BUILD_USER`].
    pub first_build_user: u32,
    /// Paths of the machine that builds see, by their path inside; none unless configured. This is
    /// where `/bin/sh` would go.
    pub sandbox_paths: BTreeMap<PathBuf, SandboxPath>,
    /// How fixed-output builds reach the network; none: not at all.
    pub network: Option<Network>,
    /// Bytes of memory that all processes of a build may use together, whatever the build's own limit
    /// says; none: only that counts.
    pub memory: Option<u64>,
    /// Processes and threads that a build may have at once, whatever the build's own limit says; none: only that counts.
    pub processes: Option<u64>,
    /// Whether a bound on memory is set with a control group where this user may make one; else it is
    /// always watched. Switch it off where somebody looks after the node's own group and takes every
    /// process that the kernel ends for lack of memory in it, or below it, for a fault of the node:
    /// service managers and machines that test software may do that.
    pub control_groups: bool,
    /// Names of derivations that may ask to be built outside of a sandbox (`__noChroot`), where they are not for
    /// another: they are built, in the sandbox all the same. Others that ask for it are refused.
    pub no_chroot_in_sandbox: BTreeSet<String>,
    /// Certificates shown to fixed-output builds as `/etc/ssl/certs/ca-certificates.crt`.
    pub ca_certificates: Option<PathBuf>,
}

impl Config {
    /// Defaults for this machine. `scratch` must be a folder of the builder's own.
    #[must_use]
    pub fn new(scratch: impl Into<PathBuf>, helper: Helper) -> Self {
        let scratch = scratch.into();
        let mut kept = scratch.clone().into_os_string();
        kept.push("-kept");
        Self {
            scratch,
            kept: kept.into(),
            helper,
            systems: default_systems(),
            features: default_features(),
            first_build_user: FIRST_BUILD_USER,
            sandbox_paths: BTreeMap::new(),
            network: Some(Network::default()),
            memory: None,
            processes: None,
            control_groups: true,
            no_chroot_in_sandbox: BTreeSet::new(),
            ca_certificates: default_certificates(),
        }
    }
}

/// What this machine can run without emulation, as Nix's `system` and `extra-platforms` have it.
fn default_systems() -> BTreeSet<String> {
    let systems: &[&str] = match std::env::consts::ARCH {
        "x86_64" => &["x86_64-linux", "i686-linux"],
        "x86" => &["i686-linux"],
        "aarch64" => &["aarch64-linux"],
        "arm" => &["armv7l-linux"],
        "riscv64" => &["riscv64-linux"],
        _ => &[],
    };
    systems.iter().map(|&system| system.to_owned()).collect()
}

/// As Nix's `system-features` has it.
fn default_features() -> BTreeSet<String> {
    let mut features = vec!["benchmark", "big-parallel", "nixos-test"];
    if can_use_kvm() {
        features.push("kvm");
    }
    features.into_iter().map(str::to_owned).collect()
}

/// Whether builds can. They have no groups, and are somebody else where the node is root.
fn can_use_kvm() -> bool {
    use rustix::fs::{Access, Mode, access, stat};
    let others = Mode::ROTH | Mode::WOTH;
    if rustix::process::geteuid().is_root() {
        return stat("/dev/kvm").is_ok_and(|device| Mode::from_raw_mode(device.st_mode).contains(others));
    }
    access("/dev/kvm", Access::READ_OK | Access::WRITE_OK).is_ok()
}

/// Where distributions keep the certificates that they trust.
pub(crate) fn default_certificates() -> Option<PathBuf> {
    [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
    ]
    .iter()
    .map(Path::new)
    .find(|path| path.exists())
    .map(Path::to_path_buf)
}
