//! What is not built here, said before anything starts.

use std::collections::BTreeSet;

use tvix_node_protocol::nix::derivation::{Derivation, Output};
use tvix_node_protocol::nix::hash::CAHash;

use crate::StorePath;
use crate::channel;
use crate::config::Config;
use crate::error::Refused;
use crate::fetch::Fetch;
use crate::options::DerivationOptions;

/// Checks that a derivation can be built with this configuration, and reads its options.
///
/// # Errors
/// The first reason found against it.
pub(crate) fn check(
    config: &Config,
    derivation: &Derivation,
    drv_path: &StorePath,
    for_another: bool,
) -> Result<DerivationOptions, Refused> {
    for (name, output) in derivation.outputs() {
        check_output(name, output)?;
    }
    if let Some((path, _)) = derivation
        .input_derivations()
        .iter()
        .find(|(_, input)| input.is_dynamic())
    {
        return Err(Refused::DynamicInput(path.clone()));
    }
    let options = DerivationOptions::read(derivation)?;
    if options.no_chroot {
        let name = name_of(drv_path);
        if for_another || !config.no_chroot_in_sandbox.contains(name) {
            return Err(Refused::NoChroot(name.to_owned()));
        }
    }
    if let Some(path) = options
        .host_paths
        .iter()
        .find(|path| !config.sandbox_paths.contains_key(std::path::Path::new(path)))
    {
        return Err(Refused::HostPath { path: path.clone() });
    }
    check_system(config, derivation)?;
    let missing: BTreeSet<_> = options
        .required_system_features
        .difference(&config.features)
        .cloned()
        .collect();
    if !missing.is_empty() {
        return Err(Refused::Features {
            missing: listed(&missing),
            available: listed(&config.features),
        });
    }
    check_strings(derivation)?;
    Ok(options)
}

/// What a derivation is called.
fn name_of(drv_path: &StorePath) -> &str {
    let name = drv_path.name();
    name.strip_suffix(".drv").unwrap_or(name)
}

fn check_output(name: &str, output: &Output) -> Result<(), Refused> {
    let output_name = || name.to_owned();
    match output {
        Output::InputAddressed { .. } => Ok(()),
        Output::Fixed { ca } => match ca {
            CAHash::Flat(_) | CAHash::Nar(_) => Ok(()),
            CAHash::Text(_) => Err(Refused::OutputMethod {
                output: output_name(),
                method: "text",
            }),
            CAHash::Git(_) => Err(Refused::OutputMethod {
                output: output_name(),
                method: "git",
            }),
        },
        Output::Floating { .. } => Err(Refused::FloatingOutput {
            output: output_name(),
        }),
        Output::Deferred => Err(Refused::DeferredOutput {
            output: output_name(),
        }),
        Output::Impure { .. } => Err(Refused::ImpureOutput {
            output: output_name(),
        }),
    }
}

fn check_system(config: &Config, derivation: &Derivation) -> Result<(), Refused> {
    if let Some(builtin) = derivation.builder().strip_prefix("builtin:") {
        return match builtin {
            "fetchurl" if config.network.is_none() => Err(Refused::NoNetwork),
            "fetchurl" => Fetch::read(derivation).map(drop),
            "unpack-channel" => channel::read(derivation, "").map(drop),
            _ => Err(Refused::Builtin(builtin.to_owned())),
        };
    }
    if config.systems.contains(derivation.system()) {
        return Ok(());
    }
    Err(Refused::System {
        wanted: derivation.system().to_owned(),
        available: listed(&config.systems),
    })
}

/// What goes into arguments and environment of a program cannot contain a NUL. Nix cuts it off there
/// without a word.
fn check_strings(derivation: &Derivation) -> Result<(), Refused> {
    let refuse = |name: &str, what: &str| {
        Err(Refused::Attribute {
            name: name.to_owned(),
            reason: format!("{what} contains a NUL byte, which no program can be given"),
        })
    };
    if derivation.builder().contains('\0') {
        return refuse("builder", "it");
    }
    if derivation
        .arguments()
        .iter()
        .any(|argument| argument.contains('\0'))
    {
        return refuse("args", "an argument");
    }
    if derivation.structured_attrs().is_some() {
        return Ok(());
    }
    match derivation
        .environment()
        .iter()
        .find(|(name, value)| name.contains('\0') || value.contains(&0))
    {
        Some((name, _)) => refuse(&name.replace('\0', "\\0"), "it"),
        None => Ok(()),
    }
}

fn listed(items: &BTreeSet<String>) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    let quoted: Vec<_> = items.iter().map(|item| format!("'{item}'")).collect();
    quoted.join(", ")
}

#[cfg(test)]
#[path = "refusal_tests.rs"]
mod tests;
