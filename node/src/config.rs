//! The node's configuration, `<home>/config.toml`. A home without one is configured with nothing.
//!
//! ```toml
//! substituters = ["https://cache.example.org", "file:///mnt/cache"]
//! trusted-public-keys = ["cache.example.org-1:AAAA…"]
//! private-caches = ["10.1.2.4:443"]
//! allowed-addresses = ["10.1.2.3:8080"]
//! allowed-addresses-for-others = false
//! network-of-fixed-outputs = "own"
//! sandbox-paths = ["/bin/sh=/usr/bin/busybox"]
//! no-chroot-in-sandbox = ["odd-package-1.0"]
//! system-features = ["big-parallel", "kvm"]
//! extra-platforms = ["aarch64-linux"]
//! max-build-memory = "8G"
//! max-build-processes = 4096
//! ```

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tvix_node_builder::{AddressRange, Config, Network, SandboxPath};

use crate::numbers::Limit;

/// Bytes of the file that are read. A hundred caches with their keys have a tenth of that.
const CONFIG_BYTES: u64 = 1 << 20;

/// What the owner of a node configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Binary caches that paths may be taken from, as in Nix: `https:`, `http:` and `file:` URLs.
    pub substituters: Vec<String>,
    /// Keys whose signatures are believed, as in Nix: `name:base64`.
    pub trusted_public_keys: Vec<String>,
    /// Addresses that are not public and at which binary caches are that are called by names, or lead to:
    /// `ADDRESS[/PREFIX][:PORT]`.
    pub private_caches: Vec<AddressRange>,
    /// Addresses that fixed-output builds reach although they are not public: `ADDRESS[/PREFIX][:PORT]`.
    pub allowed_addresses: Vec<AddressRange>,
    /// Whether builds for other members reach these, too.
    pub allowed_addresses_for_others: bool,
    /// How fixed-output builds reach the network.
    pub network_of_fixed_outputs: NetworkWay,
    /// Paths of the machine that every build sees, and cannot change: `INSIDE=OUTSIDE`, or `PATH` where both are the same.
    pub sandbox_paths: Vec<SeenPath>,
    /// Names of derivations that may say `__noChroot`; they are built in the sandbox all the same, and not for others.
    pub no_chroot_in_sandbox: BTreeSet<String>,
    /// Features that derivations may require; none: those that this machine has.
    pub system_features: Option<BTreeSet<String>>,
    /// Platforms that it builds for beside its own, by an emulator of the machine's.
    pub extra_platforms: BTreeSet<String>,
    /// Bytes of memory that a build may use here, for whomever it is.
    pub max_build_memory: Limit,
    /// Processes and threads that a build may have here at once, for whomever it is.
    pub max_build_processes: Limit,
}

/// A path of the machine that builds see.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SeenPath {
    /// Where builds see it.
    pub inside: PathBuf,
    /// Where it is.
    pub outside: PathBuf,
}

impl TryFrom<String> for SeenPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (inside, outside) = text.split_once('=').unwrap_or((&text, &text));
        let plain = |path: &str| {
            let components = || Path::new(path).components();
            path.starts_with('/') && components().all(|part| !matches!(part, std::path::Component::ParentDir))
        };
        if !plain(inside) || inside.trim_end_matches('/').is_empty() || !plain(outside) {
            return Err(format!(
                "'{text}' is no path that builds can see: write '/inside=/outside', or '/path' where it is the same, without '..'"
            ));
        }
        Ok(Self {
            inside: inside.into(),
            outside: outside.into(),
        })
    }
}

/// How fixed-output builds reach the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkWay {
    /// From a network of their own: HTTP and HTTPS through a proxy of the node, everything else through an interface
    /// where the machine offers `/dev/net/tun`.
    #[default]
    Own,
    /// From a network of their own, through the proxy alone.
    Proxy,
    /// Not at all.
    None,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration '{}' cannot be read: {source}", .file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It says something that means nothing.
    #[error("the configuration '{}' cannot be used: {reason}", .file.display())]
    Parse {
        /// Which.
        file: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
}

impl NodeConfig {
    /// How fixed-output builds reach the network; none: not at all.
    #[must_use]
    pub fn network(&self) -> Option<Network> {
        let mut network = Network::default();
        network.allowed.clone_from(&self.allowed_addresses);
        network.allowed_for_others = self.allowed_addresses_for_others;
        match self.network_of_fixed_outputs {
            NetworkWay::Own => {}
            NetworkWay::Proxy => network.tunnel = false,
            NetworkWay::None => return None,
        }
        Some(network)
    }

    /// What of it is for the sandbox.
    pub fn apply(&self, config: &mut Config) {
        config.network = self.network();
        config.memory = self.max_build_memory.0;
        config.processes = self.max_build_processes.0;
        config.no_chroot_in_sandbox.clone_from(&self.no_chroot_in_sandbox);
        config.systems.extend(self.extra_platforms.iter().cloned());
        if let Some(features) = &self.system_features {
            config.features.clone_from(features);
        }
        let seen = self.sandbox_paths.iter().map(|seen| {
            let (outside, writable) = (seen.outside.clone(), false);
            (seen.inside.clone(), SandboxPath { outside, writable })
        });
        config.sandbox_paths.extend(seen);
    }

    /// Reads a configuration; one that is not there is empty.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = read_bounded(file).map_err(|source| ConfigError::Read {
            file: file.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|error| ConfigError::Parse {
            file: file.to_owned(),
            reason: error.to_string(),
        })
    }
}

fn read_bounded(file: &Path) -> io::Result<String> {
    let opened = match std::fs::File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    let read = io::Read::read_to_string(&mut io::Read::take(opened, CONFIG_BYTES + 1), &mut text)?;
    if read as u64 > CONFIG_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {CONFIG_BYTES} bytes"),
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_of_builds_is_as_narrow_as_it_is_not_said_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        let network = |text: &str| {
            std::fs::write(&file, text).unwrap();
            NodeConfig::read(&file).unwrap().network()
        };
        let narrow = network("").unwrap();
        assert_eq!(narrow, Network::default());
        assert!(narrow.tunnel && narrow.allowed.is_empty() && !narrow.allowed_for_others);
        let mirror = network("allowed-addresses = [\"10.1.2.3:8080\"]").unwrap();
        assert_eq!(mirror.allowed, ["10.1.2.3:8080".parse().unwrap()]);
        assert!(!mirror.allowed_for_others);
        let others = network("allowed-addresses = [\"fd00::/8\"]\nallowed-addresses-for-others = true");
        assert!(others.unwrap().allowed_for_others);
        assert!(!network("network-of-fixed-outputs = \"proxy\"").unwrap().tunnel);
        assert_eq!(network("network-of-fixed-outputs = \"none\""), None);
    }

    #[test]
    fn paths_that_builds_see_lie_in_the_machine_and_are_not_its_root() {
        let seen = |text: &str| SeenPath::try_from(text.to_owned());
        let sh = seen("/bin/sh=/usr/bin/busybox").unwrap();
        assert_eq!(
            (sh.inside.as_path(), sh.outside.as_path()),
            ("/bin/sh".as_ref(), "/usr/bin/busybox".as_ref())
        );
        assert_eq!(seen("/opt").unwrap().outside, Path::new("/opt"));
        for wrong in ["", "bin/sh", "/", "/=/usr", "/a/../b", "/bin/sh=sh", "/a=/b/../c"] {
            assert!(
                seen(wrong).unwrap_err().contains("no path that builds can see"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_builds_find_here_is_what_is_said_beside_or_in_place_of_what_the_machine_has() {
        let read = |text: &str| {
            let mut config = Config::new("/scratch", tvix_node_builder::Helper::this_program());
            toml::from_str::<NodeConfig>(text).unwrap().apply(&mut config);
            config
        };
        let (plain, said) = (
            read(""),
            read(
                "extra-platforms = [\"m68k-linux\"]\nsystem-features = [\"ours\"]\nsandbox-paths = [\"/bin/sh=/opt/sh\"]",
            ),
        );
        assert!(!plain.systems.contains("m68k-linux") && plain.sandbox_paths.is_empty());
        assert!(said.systems.contains("m68k-linux") && said.systems.is_superset(&plain.systems));
        assert_eq!(said.features, BTreeSet::from(["ours".to_owned()]));
        let seen = &said.sandbox_paths[Path::new("/bin/sh")];
        assert_eq!(
            (seen.outside.as_path(), seen.writable),
            (Path::new("/opt/sh"), false)
        );
    }

    #[test]
    fn limits_of_builds_are_numbers_as_in_flags() {
        let limits = |text: &str| {
            let mut config = Config::new("/scratch", tvix_node_builder::Helper::this_program());
            toml::from_str::<NodeConfig>(text).map(|read| {
                read.apply(&mut config);
                (config.memory, config.processes)
            })
        };
        let both = |memory: &str, processes: &str| {
            limits(&format!(
                "max-build-memory = {memory}\nmax-build-processes = {processes}"
            ))
        };
        assert_eq!(limits("").unwrap(), (None, None));
        assert_eq!(both("\"2G\"", "4096").unwrap(), (Some(2 << 30), Some(4096)));
        assert_eq!(both("3", "\"1K\"").unwrap(), (Some(3), Some(1024)));
        assert_eq!(both("0", "\"0\"").unwrap(), (None, None), "as in Nix");
        for wrong in ["-1", "\"many\"", "1.5", "true", "[]"] {
            let error = both("1", wrong).unwrap_err().to_string();
            for part in ["line 2", "whole number", "suffix K, M, G or T"] {
                assert!(error.contains(part), "no '{part}' in: {error}");
            }
        }
    }

    #[test]
    fn a_configuration_has_so_many_bytes_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        let of = |bytes: u64| {
            std::fs::write(&file, "#".repeat(usize::try_from(bytes).unwrap())).unwrap();
            NodeConfig::read(&file)
        };
        assert_eq!(of(CONFIG_BYTES).unwrap(), NodeConfig::default());
        let error = of(CONFIG_BYTES + 1).unwrap_err();
        let error = format!("{error}: {:?}", std::error::Error::source(&error));
        assert!(
            error.contains(&format!("more than {CONFIG_BYTES} bytes")),
            "{error}"
        );
    }

    #[test]
    fn a_configuration_is_read_and_what_it_does_not_know_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        assert_eq!(NodeConfig::read(&file).unwrap(), NodeConfig::default());
        std::fs::write(&file, "substituters = [\"file:///a\"]\n").unwrap();
        assert_eq!(NodeConfig::read(&file).unwrap().substituters, ["file:///a"]);
        std::fs::write(&file, "private-caches = [\"10.1.0.0/16:80\"]\n").unwrap();
        let private = NodeConfig::read(&file).unwrap().private_caches;
        assert_eq!(private, ["10.1.0.0/16:80".parse().unwrap()]);
        std::fs::write(&file, "substituter = [\"file:///a\"]\n").unwrap();
        let error = NodeConfig::read(&file).unwrap_err().to_string();
        assert!(
            error.contains("config.toml") && error.contains("`substituter`"),
            "{error}"
        );
        for (wrong, named) in [
            (
                "allowed-addresses = [\"10.0.0.0/99\"]",
                "'10.0.0.0/99' is not an address",
            ),
            (
                "allowed-addresses = [\"10.0.0.1/8\"]",
                "10.0.0.0/8 is that network",
            ),
            ("network-of-fixed-outputs = \"host\"", "`host`"),
            ("allowed-addresses-for-others = \"yes\"", "\"yes\""),
        ] {
            std::fs::write(&file, wrong).unwrap();
            let error = NodeConfig::read(&file).unwrap_err().to_string();
            let place = "line 1";
            for part in ["config.toml", named, place] {
                assert!(error.contains(part), "no '{part}' in: {error}");
            }
        }
        std::fs::write(&file, vec![b'\n'; 2 << 20]).unwrap();
        assert!(matches!(NodeConfig::read(&file), Err(ConfigError::Read { .. })));
    }
}
