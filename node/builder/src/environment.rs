//! What the builder program is given: arguments, environment, and files in its folder.
//!
//! As Nix 2.34 (`DerivationBuilderImpl::initEnv`, `DesugaredEnv::create`).

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use tvix_node_protocol::nix::derivation::{Derivation, Output};
use tvix_node_protocol::nix::nixbase32;
use tvix_node_protocol::nix::store_path::{STORE_DIR, hash_placeholder};

use crate::StorePath;
use crate::build_spec::BuildSpec;
use crate::error::Cause;
use crate::options::DerivationOptions;
use crate::proxy;
use crate::references_graph;
use crate::sandbox::BUILD_FOLDER;
use crate::structured_attrs;

/// What the builder program is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    /// All arguments, the program's name first.
    pub(crate) arguments: Vec<Vec<u8>>,
    /// `NAME=value`, sorted by name.
    pub(crate) environment: Vec<Vec<u8>>,
    /// Files in the build folder, by name.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

/// The paths of a derivation's outputs.
///
/// # Errors
/// [`Cause::Refused`] where one is not known.
pub(crate) fn output_paths(derivation: &Derivation) -> Result<BTreeMap<String, StorePath>, Cause> {
    derivation
        .outputs()
        .iter()
        .map(|(name, output)| match output.path(derivation.name(), name) {
            Ok(Some(path)) => Ok((name.clone(), path)),
            Ok(None) | Err(_) => Err(crate::Refused::DeferredOutput { output: name.clone() }.into()),
        })
        .collect()
}

/// Puts together what the builder program is given. With `network`, a fixed-output build is told of the
/// proxy.
///
/// # Errors
/// [`Cause::Input`] and [`Cause::Refused`] where the references graph cannot be made.
pub(crate) fn given(
    spec: &BuildSpec,
    options: &DerivationOptions,
    outputs: &BTreeMap<String, StorePath>,
    network: bool,
) -> Result<Given, Cause> {
    let derivation = &spec.derivation;
    let rewrites: Vec<(String, String)> = outputs
        .iter()
        .map(|(name, path)| (hash_placeholder(name), path.to_absolute_path()))
        .collect();
    let graphs = references_graph::closures(spec, options)?;

    let mut variables: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut set = |name: &str, value: &[u8]| {
        variables.insert(name.into(), value.into());
    };
    set("PATH", b"/path-not-set");
    set("HOME", b"/homeless-shelter");
    set("NIX_STORE", STORE_DIR.as_bytes());
    set("NIX_BUILD_CORES", cores(spec.cores).to_string().as_bytes());

    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    match derivation.structured_attrs() {
        Some(attrs) => {
            let written = structured_attrs::write(attrs, outputs, &graphs);
            for (variable, file, content) in [
                ("NIX_ATTRS_SH_FILE", ".attrs.sh", written.shell),
                ("NIX_ATTRS_JSON_FILE", ".attrs.json", written.json),
            ] {
                set(variable, format!("{BUILD_FOLDER}/{file}").as_bytes());
                files.insert(file.to_owned(), content.into_bytes());
            }
        }
        None => {
            for (name, value) in derivation.environment() {
                if options.pass_as_file.contains(name) {
                    let file = format!(".attr-{}", nixbase32::encode(&Sha256::digest(name)));
                    set(
                        &format!("{name}Path"),
                        format!("{BUILD_FOLDER}/{file}").as_bytes(),
                    );
                    files.insert(file, value.clone());
                } else {
                    set(name, value);
                }
            }
            for (file, graph) in &graphs {
                files.insert(file.clone(), references_graph::registration(graph).into_bytes());
            }
        }
    }

    for name in ["NIX_BUILD_TOP", "TMPDIR", "TEMPDIR", "TMP", "TEMP", "PWD"] {
        set(name, BUILD_FOLDER.as_bytes());
    }
    if is_fixed_output(derivation) {
        set("NIX_OUTPUT_CHECKED", b"1");
        for name in &options.impure_environment {
            set(name, spec.impure_environment.get(name).map_or(b"", Vec::as_slice));
        }
        // Whatever the node's own proxies are: a build can only reach this one.
        for (name, value) in proxy::environment().filter(|_| network) {
            set(&name, value.as_bytes());
        }
    }
    set("NIX_LOG_FD", b"2");
    set("TERM", b"xterm-256color");

    let program = derivation.builder();
    let name = program.rsplit('/').next().unwrap_or(program);
    let arguments = std::iter::once(name.as_bytes().to_vec())
        .chain(
            derivation
                .arguments()
                .iter()
                .map(|argument| rewritten(argument.as_bytes(), &rewrites)),
        )
        .collect();
    let environment = variables
        .into_iter()
        .map(|(name, value)| rewritten(&[name.as_slice(), b"=", &value].concat(), &rewrites))
        .collect();
    for content in files.values_mut() {
        *content = rewritten(content, &rewrites);
    }
    Ok(Given {
        arguments,
        environment,
        files,
    })
}

/// Whether the outputs' content is declared.
pub(crate) fn is_fixed_output(derivation: &Derivation) -> bool {
    derivation
        .outputs()
        .values()
        .any(|output| matches!(output, Output::Fixed { .. }))
}

/// Whether the platform is a 32-bit one that a 64-bit machine runs in 32-bit mode, as Nix decides it.
pub(crate) fn is_thirty_two_bit(system: &str) -> bool {
    let i686_on_64 = system == "i686-linux" && std::env::consts::ARCH == "x86_64";
    i686_on_64 || matches!(system, "armv7l-linux" | "armv6l-linux" | "armv5tel-linux")
}

fn cores(asked: u32) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        asked => asked as usize,
    }
}

/// Replaces output placeholders by the outputs' paths.
fn rewritten(text: &[u8], rewrites: &[(String, String)]) -> Vec<u8> {
    rewrites.iter().fold(text.to_vec(), |text, (from, to)| {
        let from = from.as_bytes();
        let mut replaced = Vec::with_capacity(text.len());
        let mut rest = text.as_slice();
        while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
            replaced.extend_from_slice(&rest[..at]);
            replaced.extend_from_slice(to.as_bytes());
            rest = &rest[at + from.len()..];
        }
        replaced.extend_from_slice(rest);
        replaced
    })
}

#[cfg(test)]
#[path = "environment_tests.rs"]
mod tests;
