//! The node's configuration, `<home>/config.toml`. A home without one is configured with nothing.
//!
//! ```toml
//! substituters = ["https://cache.example.org", "file:///mnt/cache"]
//! trusted-public-keys = ["cache.example.org-1:AAAA…"]
//! ```

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

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
    fn a_configuration_is_read_and_what_it_does_not_know_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        assert_eq!(NodeConfig::read(&file).unwrap(), NodeConfig::default());
        std::fs::write(&file, "substituters = [\"file:///a\"]\n").unwrap();
        assert_eq!(NodeConfig::read(&file).unwrap().substituters, ["file:///a"]);
        std::fs::write(&file, "substituter = [\"file:///a\"]\n").unwrap();
        let error = NodeConfig::read(&file).unwrap_err().to_string();
        assert!(
            error.contains("config.toml") && error.contains("`substituter`"),
            "{error}"
        );
        std::fs::write(&file, vec![b'\n'; 2 << 20]).unwrap();
        assert!(matches!(NodeConfig::read(&file), Err(ConfigError::Read { .. })));
    }
}
