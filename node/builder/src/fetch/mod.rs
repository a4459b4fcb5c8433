//! `builtin:fetchurl`: the one builder that runs in the node.
//!
//! As Nix 2.34 (`builtins/fetchurl.cc`): the content of `url` becomes the output, with `unpack = "1"` the
//! archive (NAR) that it is, with `executable = "1"` an executable file. Whether it has the declared hash
//! is for whoever registers the output to see.
//!
//! It runs in the node itself, not in a sandbox: there is no program of the derivation that could do
//! harm, and only addresses that builds may reach are connected to ([`crate::proxy`]).

pub(crate) mod http;
mod proxies;
mod unpack;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tvix_node_protocol::nix::derivation::Derivation;

use crate::StorePath;
use crate::error::{Cause, Chance, Refused};
use crate::limits::FETCH_BYTES;
use crate::options::{Source, unusable};
use crate::scratch::Scratch;

/// What is to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetch {
    url: url::Url,
    unpack: bool,
    executable: bool,
}

impl Fetch {
    /// Reads what a derivation wants to have fetched.
    pub(crate) fn read(derivation: &Derivation) -> Result<Self, Refused> {
        if !crate::environment::is_fixed_output(derivation) {
            return Err(unusable(
                "builder",
                "'builtin:fetchurl' must be a fixed-output derivation",
            ));
        }
        let source = Source::of(derivation);
        let url = source
            .string("url")?
            .ok_or_else(|| unusable("url", "'builtin:fetchurl' needs one"))?;
        let url = url::Url::parse(&url).map_err(|error| unusable("url", &format!("'{url}': {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            let reason = format!("'{url}' is not supported, only http and https are");
            return Err(unusable("url", &reason));
        }
        Ok(Self {
            url,
            unpack: source.string("unpack")?.as_deref() == Some("1"),
            executable: source.string("executable")?.as_deref() == Some("1"),
        })
    }

    /// Fetches into the place of the output `out`, with a client of builds. `tell` hears what is being done.
    pub(crate) async fn run<F: Future<Output = ()>>(
        self,
        client: http::Client,
        scratch: &Scratch,
        output: &StorePath,
        most: Option<u64>,
        tell: impl Fn(String) -> F,
    ) -> Result<(), Cause> {
        let target = scratch.output(output);
        let store = target.parent().unwrap_or(&target);
        fs::create_dir(store).map_err(failed(store, "created"))?;
        let most = most.unwrap_or(FETCH_BYTES).min(FETCH_BYTES);
        let downloaded = if self.unpack {
            scratch.path().join("download")
        } else {
            target.clone()
        };
        tell(format!("downloading '{}'", self.url)).await;
        client.download(&self.url, &downloaded, most, None, &tell).await?;
        let Self {
            url,
            unpack,
            executable,
        } = self;
        let finish = move || -> Result<(), Cause> {
            if unpack {
                // As Nix does it: by the address asked for, wherever it led to.
                let is_xz = url.path().ends_with(".xz");
                let archive = File::open(&downloaded).map_err(failed(&downloaded, "opened"))?;
                unpack::unpack(archive, is_xz, &target, most)
                    .map_err(|reason| fetch_impossible(&url, format!("it cannot be unpacked: {reason}")))?;
            }
            if executable {
                let permissions = fs::Permissions::from_mode(0o755);
                fs::set_permissions(&target, permissions).map_err(failed(&target, "made executable"))?;
            }
            Ok(())
        };
        tokio::task::spawn_blocking(finish)
            .await
            .map_err(|_| Cause::Cancelled)?
    }
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Cause {
    let path: PathBuf = path.to_path_buf();
    move |source| Cause::Scratch { path, action, source }
}

/// It cannot be had now.
fn fetch_failed(url: &url::Url, reason: String) -> Cause {
    cannot(url, reason, Chance::Later)
}

/// It cannot be had from here.
fn fetch_denied(url: &url::Url, reason: String) -> Cause {
    cannot(url, reason, Chance::Elsewhere)
}

/// It cannot be had, whoever asks.
fn fetch_impossible(url: &url::Url, reason: String) -> Cause {
    cannot(url, reason, Chance::None)
}

fn cannot(url: &url::Url, reason: String, chance: Chance) -> Cause {
    let url = url.to_string();
    Cause::Fetch { url, reason, chance }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
