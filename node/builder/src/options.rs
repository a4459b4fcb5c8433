//! What a derivation asks of its builder, from its environment or its structured attributes.
//!
//! As Nix 2.34 reads them (`derivation-options.cc`; Nix manual, "Advanced attributes").

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tvix_node_protocol::nix::derivation::Derivation;
use tvix_node_protocol::nix::store_path::STORE_DIR;

use crate::StorePath;
use crate::error::Refused;
use crate::output_checks::OutputChecks;

/// What a derivation asks of its builder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DerivationOptions {
    /// Variables passed as files; always empty with structured attributes.
    pub pass_as_file: BTreeSet<String>,
    /// File (or attribute) to the store paths whose closures it describes.
    pub export_references_graph: BTreeMap<String, BTreeSet<StorePath>>,
    /// Variables of the node's environment that a fixed-output build gets.
    pub impure_environment: BTreeSet<String>,
    /// Features that the machine must have.
    pub required_system_features: BTreeSet<String>,
    /// Paths of the machine that the build wants to see.
    pub host_paths: BTreeSet<String>,
    /// Wants to run outside of a sandbox.
    pub no_chroot: bool,
    /// Not worth sending to another machine.
    pub prefer_local_build: bool,
    /// Whether outputs may come from a cache. False for things that are cheaper to build.
    pub allow_substitutes: bool,
    /// Outputs whose references are not to be looked for (`unsafeDiscardReferences`).
    pub discard_references: BTreeSet<String>,
    /// What the outputs must be. Whoever registers them must apply these.
    pub output_checks: OutputChecks,
}

impl DerivationOptions {
    /// Reads the options of a derivation.
    ///
    /// # Errors
    /// [`Refused::Attribute`] for one that does not have the form that Nix wants.
    pub fn read(derivation: &Derivation) -> Result<Self, Refused> {
        let source = Source::of(derivation);
        Ok(Self {
            pass_as_file: match source {
                Source::Environment(_) => source.strings("passAsFile")?,
                Source::Structured(_) => BTreeSet::new(),
            },
            export_references_graph: source.graph()?,
            impure_environment: source.strings("impureEnvVars")?,
            required_system_features: source.strings("requiredSystemFeatures")?,
            host_paths: source.strings("__impureHostDeps")?,
            no_chroot: source.boolean("__noChroot", false)?,
            prefer_local_build: source.boolean("preferLocalBuild", false)?,
            allow_substitutes: source.boolean("allowSubstitutes", true)?,
            discard_references: source.discarded()?,
            output_checks: OutputChecks::read(derivation, source)?,
        })
    }
}

/// Where attributes are.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Environment(&'a Derivation),
    Structured(&'a tvix_node_protocol::nix::derivation::StructuredAttrs),
}

impl<'a> Source<'a> {
    pub(crate) fn of(derivation: &'a Derivation) -> Self {
        match derivation.structured_attrs() {
            Some(attrs) => Self::Structured(attrs),
            None => Self::Environment(derivation),
        }
    }

    pub(crate) fn string(self, name: &str) -> Result<Option<String>, Refused> {
        match self {
            Self::Environment(derivation) => match derivation.environment().get(name) {
                None => Ok(None),
                Some(value) => match std::str::from_utf8(value) {
                    Ok(value) => Ok(Some(value.to_owned())),
                    Err(_) => Err(unusable(name, "it is not UTF-8")),
                },
            },
            Self::Structured(attrs) => match attrs.get(name) {
                None => Ok(None),
                Some(Value::String(value)) => Ok(Some(value.clone())),
                // As they are in an environment.
                Some(Value::Bool(value)) => Ok(Some(if *value { "1" } else { "" }.to_owned())),
                Some(_) => Err(unusable(name, "it is not a string")),
            },
        }
    }

    fn boolean(self, name: &str, default: bool) -> Result<bool, Refused> {
        match self {
            Self::Environment(derivation) => Ok(derivation
                .environment()
                .get(name)
                .map_or(default, |value| value == b"1")),
            Self::Structured(attrs) => match attrs.get(name) {
                None => Ok(default),
                Some(Value::Bool(value)) => Ok(*value),
                Some(_) => Err(unusable(name, "it is not a boolean")),
            },
        }
    }

    pub(crate) fn strings(self, name: &str) -> Result<BTreeSet<String>, Refused> {
        match self {
            Self::Environment(derivation) => match derivation.environment().get(name) {
                None => Ok(BTreeSet::new()),
                Some(value) => Ok(words(name, value)?.into_iter().map(str::to_owned).collect()),
            },
            Self::Structured(attrs) => match attrs.get(name) {
                None => Ok(BTreeSet::new()),
                Some(Value::Array(values)) => values
                    .iter()
                    .map(|value| value.as_str().map(str::to_owned))
                    .collect::<Option<_>>()
                    .ok_or_else(|| unusable(name, "it is not a list of strings")),
                Some(_) => Err(unusable(name, "it is not a list of strings")),
            },
        }
    }

    fn discarded(self) -> Result<BTreeSet<String>, Refused> {
        const NAME: &str = "unsafeDiscardReferences";
        let Self::Structured(attrs) = self else {
            return Ok(BTreeSet::new());
        };
        let wrong = || unusable(NAME, "it is not an object of booleans");
        match attrs.get(NAME) {
            None => Ok(BTreeSet::new()),
            Some(value) => {
                let outputs = value.as_object().ok_or_else(wrong)?;
                let discarded = outputs.iter().filter_map(|(output, discard)| match discard {
                    Value::Bool(true) => Some(Ok(output.clone())),
                    Value::Bool(false) => None,
                    _ => Some(Err(wrong())),
                });
                discarded.collect()
            }
        }
    }

    fn graph(self) -> Result<BTreeMap<String, BTreeSet<StorePath>>, Refused> {
        const NAME: &str = "exportReferencesGraph";
        match self {
            Self::Environment(derivation) => {
                let Some(value) = derivation.environment().get(NAME) else {
                    return Ok(BTreeMap::new());
                };
                let words = words(NAME, value)?;
                if !words.len().is_multiple_of(2) {
                    return Err(unusable(NAME, "it has an odd number of words"));
                }
                words
                    .chunks_exact(2)
                    .map(|pair| {
                        if !is_graph_file_name(pair[0]) {
                            return Err(unusable(NAME, &format!("'{}' cannot be a file's name", pair[0])));
                        }
                        Ok((
                            pair[0].to_owned(),
                            BTreeSet::from([store_path_of(NAME, pair[1])?]),
                        ))
                    })
                    .collect()
            }
            // Nix ignores one that is not an object.
            Self::Structured(attrs) => match attrs.get(NAME) {
                Some(Value::Object(entries)) => entries
                    .iter()
                    .map(|(key, value)| {
                        let mut paths = BTreeSet::new();
                        flatten(NAME, value, &mut paths)?;
                        Ok((key.clone(), paths))
                    })
                    .collect(),
                _ => Ok(BTreeMap::new()),
            },
        }
    }
}

/// Collects the strings in lists of lists. The depth is that of the derivation's JSON, which its
/// parser bounds.
fn flatten(name: &str, value: &Value, paths: &mut BTreeSet<StorePath>) -> Result<(), Refused> {
    match value {
        Value::String(path) => {
            paths.insert(store_path_of(name, path)?);
            Ok(())
        }
        Value::Array(values) => values.iter().try_for_each(|value| flatten(name, value, paths)),
        _ => Err(unusable(name, "a value is neither a string nor a list")),
    }
}

/// Whether a word is meant as a path of the store.
pub(crate) fn is_in_store(word: &str) -> bool {
    word.strip_prefix(STORE_DIR)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// The store path that a path lies in.
pub(crate) fn store_path_of(attribute: &str, path: &str) -> Result<StorePath, Refused> {
    let bad = |reason: String| unusable(attribute, &format!("'{path}' is not in the store{reason}"));
    let inside = path
        .strip_prefix(STORE_DIR)
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(|| bad(String::new()))?;
    let base = inside.split('/').next().unwrap_or(inside);
    StorePath::from_basename(base.as_bytes()).map_err(|error| bad(format!(": {error}")))
}

/// Nix's `tokenizeString`.
fn words<'a>(name: &str, value: &'a [u8]) -> Result<Vec<&'a str>, Refused> {
    let value = std::str::from_utf8(value).map_err(|_| unusable(name, "it is not UTF-8"))?;
    Ok(value
        .split([' ', '\t', '\n', '\r'])
        .filter(|word| !word.is_empty())
        .collect())
}

/// `[A-Za-z_][A-Za-z0-9_.-]*`
fn is_graph_file_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

pub(crate) fn unusable(name: &str, reason: &str) -> Refused {
    Refused::Attribute {
        name: name.to_owned(),
        reason: reason.to_owned(),
    }
}
