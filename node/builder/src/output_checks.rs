//! What a derivation says its outputs must be: sizes, and what they may refer to.
//!
//! As Nix 2.34 (`derivation-check.cc`; Nix manual, "Advanced attributes": `allowedReferences`,
//! `allowedRequisites`, `disallowedReferences`, `disallowedRequisites`, `outputChecks`). To be applied
//! before outputs are registered, when their references are known.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tvix_node_protocol::nix::derivation::Derivation;

use crate::StorePath;
use crate::error::Refused;
use crate::options::{Source, is_in_store, store_path_of, unusable};

/// What a derivation says its outputs must be. The default says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutputChecks {
    /// By output; with attributes in the environment the same for all of them.
    checks: BTreeMap<String, Checks>,
}

/// What one output must be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Checks {
    ignore_self: bool,
    max_size: Option<u64>,
    max_closure_size: Option<u64>,
    allowed_references: Option<BTreeSet<Named>>,
    allowed_requisites: Option<BTreeSet<Named>>,
    disallowed_references: BTreeSet<Named>,
    disallowed_requisites: BTreeSet<Named>,
}

/// A path in a list of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    Path(StorePath),
    /// An output of the derivation itself.
    Output(String),
}

/// What is known of a path, an output or one that was there before.
#[derive(Debug, Clone, Copy)]
pub struct PathFacts<'a> {
    /// Bytes of its archive.
    pub nar_size: u64,
    /// What it refers to, itself included where it does.
    pub references: &'a BTreeSet<StorePath>,
}

/// An output that is not what its derivation says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OutputCheckError {
    /// Too large.
    #[error("path '{path}' is too large at {size} bytes; limit is {limit} bytes")]
    TooLarge {
        /// The output.
        path: StorePath,
        /// Bytes of its archive.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// Too large with all that it refers to.
    #[error("closure of path '{path}' is too large at {size} bytes; limit is {limit} bytes")]
    ClosureTooLarge {
        /// The output.
        path: StorePath,
        /// Bytes of all archives.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// Refers to what it must not refer to.
    #[error(
        "output '{path}' is not allowed to refer to the following paths:{}",
        listed(paths)
    )]
    Forbidden {
        /// The output.
        path: StorePath,
        /// What it must not refer to.
        paths: Vec<StorePath>,
    },
    /// A list names an output that the derivation does not have.
    #[error(
        "the output check for '{output}' names the output '{named}', but the derivation has only {}",
        outputs.join(", ")
    )]
    NoSuchOutput {
        /// The output checked.
        output: String,
        /// What is named.
        named: String,
        /// What there is.
        outputs: Vec<String>,
    },
    /// Nothing is known of a path in the closure.
    #[error("the closure of the outputs has {0}, of which nothing is known")]
    Unknown(StorePath),
}

fn listed(paths: &[StorePath]) -> String {
    paths.iter().map(|path| format!("\n  {path}")).collect()
}

impl OutputChecks {
    /// Reads the checks of a derivation.
    pub(crate) fn read(derivation: &Derivation, source: Source<'_>) -> Result<Self, Refused> {
        let mut checks = BTreeMap::new();
        match source {
            Source::Environment(_) => {
                let list = |name: &str| -> Result<Option<BTreeSet<Named>>, Refused> {
                    match derivation.environment().contains_key(name) {
                        true => Ok(Some(named(name, source.strings(name)?)?)),
                        false => Ok(None),
                    }
                };
                let same = Checks {
                    ignore_self: true,
                    max_size: None,
                    max_closure_size: None,
                    allowed_references: list("allowedReferences")?,
                    allowed_requisites: list("allowedRequisites")?,
                    disallowed_references: list("disallowedReferences")?.unwrap_or_default(),
                    disallowed_requisites: list("disallowedRequisites")?.unwrap_or_default(),
                };
                for output in derivation.outputs().keys() {
                    checks.insert(output.clone(), same.clone());
                }
            }
            Source::Structured(attrs) => match attrs.get("outputChecks") {
                None => {}
                Some(Value::Object(outputs)) => {
                    for (output, wanted) in outputs {
                        checks.insert(output.clone(), Checks::of_json(output, wanted)?);
                    }
                }
                Some(_) => return Err(unusable("outputChecks", "it is not an object")),
            },
        }
        checks.retain(|_, checks| !checks.is_empty());
        Ok(Self { checks })
    }

    /// Whether there is nothing to check.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty()
    }

    /// Applies the checks. `outputs` are the derivation's, by name; `known` answers for every path that
    /// they refer to, and what these refer to.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn apply<'a>(
        &self,
        outputs: &BTreeMap<String, (StorePath, PathFacts<'a>)>,
        known: impl Fn(&StorePath) -> Option<PathFacts<'a>>,
    ) -> Result<(), OutputCheckError> {
        let checked = self
            .checks
            .iter()
            .filter_map(|(name, checks)| Some((name, checks, outputs.get(name)?)));
        for (name, checks, (path, facts)) in checked {
            let output = Checked {
                name,
                path,
                facts: *facts,
                outputs,
                known: &known,
            };
            output.apply(checks)?;
        }
        Ok(())
    }
}

impl Checks {
    fn is_empty(&self) -> bool {
        let ignore_self = self.ignore_self;
        *self
            == Self {
                ignore_self,
                ..Self::default()
            }
    }

    fn of_json(output: &str, wanted: &Value) -> Result<Self, Refused> {
        let Value::Object(wanted) = wanted else {
            return Err(unusable(
                "outputChecks",
                &format!("that of '{output}' is not an object"),
            ));
        };
        let wrong =
            |name: &str, what: &str| unusable("outputChecks", &format!("'{output}.{name}' is not {what}"));
        let number = |name: &str| match wanted.get(name) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| wrong(name, "a size")),
        };
        let list = |name: &str| match wanted.get(name) {
            None => Ok(None),
            Some(value) => {
                let strings: Option<BTreeSet<String>> = value.as_array().and_then(|items| {
                    items
                        .iter()
                        .map(|item| item.as_str().map(str::to_owned))
                        .collect()
                });
                let strings = strings.ok_or_else(|| wrong(name, "a list of strings"))?;
                named("outputChecks", strings).map(Some)
            }
        };
        Ok(Self {
            ignore_self: false,
            max_size: number("maxSize")?,
            max_closure_size: number("maxClosureSize")?,
            allowed_references: list("allowedReferences")?,
            allowed_requisites: list("allowedRequisites")?,
            disallowed_references: list("disallowedReferences")?.unwrap_or_default(),
            disallowed_requisites: list("disallowedRequisites")?.unwrap_or_default(),
        })
    }
}

/// Store paths, or names of outputs.
fn named(attribute: &str, words: BTreeSet<String>) -> Result<BTreeSet<Named>, Refused> {
    words
        .into_iter()
        .map(|word| {
            if is_in_store(&word) {
                store_path_of(attribute, &word).map(Named::Path)
            } else {
                Ok(Named::Output(word))
            }
        })
        .collect()
}

/// One output that is checked.
struct Checked<'a, 'o, K> {
    name: &'o str,
    path: &'o StorePath,
    facts: PathFacts<'a>,
    outputs: &'o BTreeMap<String, (StorePath, PathFacts<'a>)>,
    known: &'o K,
}

impl<'a, K: Fn(&StorePath) -> Option<PathFacts<'a>>> Checked<'a, '_, K> {
    fn apply(&self, checks: &Checks) -> Result<(), OutputCheckError> {
        let path = || self.path.clone();
        if let Some(limit) = checks.max_size
            && self.facts.nar_size > limit
        {
            let size = self.facts.nar_size;
            return Err(OutputCheckError::TooLarge {
                path: path(),
                size,
                limit,
            });
        }
        if let Some(limit) = checks.max_closure_size {
            let size = self.closure()?.1;
            if size > limit {
                return Err(OutputCheckError::ClosureTooLarge {
                    path: path(),
                    size,
                    limit,
                });
            }
        }
        let references = self.facts.references;
        if let Some(allowed) = &checks.allowed_references {
            self.check(references, allowed, true)?;
        }
        if !checks.disallowed_references.is_empty() {
            self.check(references, &checks.disallowed_references, false)?;
        }
        if checks.allowed_requisites.is_none() && checks.disallowed_requisites.is_empty() {
            return Ok(());
        }
        let (mut requisites, _) = self.closure()?;
        if checks.ignore_self {
            requisites.remove(self.path);
        }
        if let Some(allowed) = &checks.allowed_requisites {
            self.check(&requisites, allowed, true)?;
        }
        self.check(&requisites, &checks.disallowed_requisites, false)
    }

    /// Everything that the output refers to, itself included, and its size.
    fn closure(&self) -> Result<(BTreeSet<StorePath>, u64), OutputCheckError> {
        let mut closure = BTreeSet::new();
        let mut size = 0;
        let mut open = vec![self.path.clone()];
        while let Some(path) = open.pop() {
            if closure.contains(&path) {
                continue;
            }
            let own = self.outputs.values().find(|(output, _)| *output == path);
            let facts = match own {
                Some((_, facts)) => *facts,
                None => (self.known)(&path).ok_or_else(|| OutputCheckError::Unknown(path.clone()))?,
            };
            size += facts.nar_size;
            open.extend(facts.references.iter().cloned());
            closure.insert(path);
        }
        Ok((closure, size))
    }

    fn check(
        &self,
        used: &BTreeSet<StorePath>,
        list: &BTreeSet<Named>,
        is_allowed: bool,
    ) -> Result<(), OutputCheckError> {
        let list: BTreeSet<&StorePath> = list
            .iter()
            .map(|named| match named {
                Named::Path(path) => Ok(path),
                Named::Output(output) => match self.outputs.get(output) {
                    Some((path, _)) => Ok(path),
                    None => Err(OutputCheckError::NoSuchOutput {
                        output: self.name.to_owned(),
                        named: output.clone(),
                        outputs: self.outputs.keys().cloned().collect(),
                    }),
                },
            })
            .collect::<Result<_, _>>()?;
        let bad: Vec<StorePath> = used
            .iter()
            .filter(|path| list.contains(path) != is_allowed)
            .cloned()
            .collect();
        if bad.is_empty() {
            return Ok(());
        }
        let path = self.path.clone();
        Err(OutputCheckError::Forbidden { path, paths: bad })
    }
}

#[cfg(test)]
#[path = "output_checks_tests.rs"]
mod tests;
