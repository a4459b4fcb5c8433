//! `exportReferencesGraph`: closures of inputs, told to the build.
//!
//! As Nix 2.34 (`Store::exportReferences`, `makeValidityRegistration`, `pathInfoToJSON`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tvix_node_protocol::nix::derivation::Derivation;

use crate::StorePath;
use crate::build_spec::{BuildSpec, GraphPath};
use crate::error::Cause;
use crate::options::DerivationOptions;

/// A closure, sorted by path.
pub(crate) type Closure<'a> = Vec<Member<'a>>;

/// A path of a closure.
pub(crate) struct Member<'a> {
    facts: &'a GraphPath,
    /// Bytes of the archives of the path's own closure.
    closure_size: u64,
}

/// The closures that a derivation asks for, by the name that it gives them.
///
/// # Errors
/// [`Cause::Input`] for a path that is not among the inputs, or of which nothing is known.
pub(crate) fn closures<'a>(
    spec: &'a BuildSpec,
    options: &DerivationOptions,
) -> Result<BTreeMap<String, Closure<'a>>, Cause> {
    if options.export_references_graph.is_empty() {
        return Ok(BTreeMap::new());
    }
    let graph = Graph {
        spec,
        facts: spec.graph.iter().map(|facts| (&facts.path, facts)).collect(),
    };
    options
        .export_references_graph
        .iter()
        .map(|(name, roots)| Ok((name.clone(), graph.exported(roots)?)))
        .collect()
}

/// The form that builds without structured attributes get: a block of lines per path (path, empty
/// deriver, number of references, references).
pub(crate) fn registration(closure: &Closure<'_>) -> String {
    let mut text = String::new();
    for member in closure {
        let facts = member.facts;
        text.push_str(&format!("{}\n\n{}\n", facts.path, facts.references.len()));
        for reference in &facts.references {
            text.push_str(&format!("{reference}\n"));
        }
    }
    text
}

/// The form that builds with structured attributes get.
pub(crate) fn to_json(closure: &Closure<'_>) -> Value {
    closure
        .iter()
        .map(|member| {
            let facts = member.facts;
            let references: Vec<String> = facts.references.iter().map(ToString::to_string).collect();
            let mut object = json!({
                "closureSize": member.closure_size,
                "narHash": facts.nar_hash.to_nix(),
                "narSize": facts.nar_size,
                "path": facts.path.to_string(),
                "references": references,
                "valid": true,
            });
            if let Some(ca) = &facts.ca {
                object["ca"] = json!(ca);
            }
            object
        })
        .collect()
}

struct Graph<'a> {
    spec: &'a BuildSpec,
    facts: BTreeMap<&'a StorePath, &'a GraphPath>,
}

impl<'a> Graph<'a> {
    /// The closure of `roots`, and of the outputs of all derivations in it.
    fn exported(&self, roots: &BTreeSet<StorePath>) -> Result<Closure<'a>, Cause> {
        for root in roots {
            if !self.spec.inputs.iter().any(|input| input.path == *root) {
                return Err(Cause::Input {
                    path: root.clone(),
                    reason:
                        "exportReferencesGraph names it, but it is not in the input closure of the derivation"
                            .to_owned(),
                });
            }
        }
        let mut closure = self.closure(roots)?;
        let mut outputs = BTreeSet::new();
        for derivation in closure.keys().filter(|path| path.is_derivation()) {
            outputs.extend(self.outputs_of(derivation)?);
        }
        closure.extend(self.closure(&outputs)?);
        closure
            .into_iter()
            .map(|(path, facts)| {
                let own = self.closure(&BTreeSet::from([path.clone()]))?;
                Ok(Member {
                    facts,
                    closure_size: own.values().map(|facts| facts.nar_size).sum(),
                })
            })
            .collect()
    }

    fn closure(&self, roots: &BTreeSet<StorePath>) -> Result<BTreeMap<&'a StorePath, &'a GraphPath>, Cause> {
        let mut closure = BTreeMap::new();
        let mut open: Vec<&StorePath> = roots.iter().collect();
        while let Some(path) = open.pop() {
            let (&path, &facts) = self.facts.get_key_value(path).ok_or_else(|| Cause::Input {
                path: path.clone(),
                reason: "exportReferencesGraph needs its references, which the builder was not told"
                    .to_owned(),
            })?;
            if closure.insert(path, facts).is_none() {
                open.extend(&facts.references);
            }
        }
        Ok(closure)
    }

    /// Reads the outputs of a derivation from its file, which is among the inputs.
    fn outputs_of(&self, path: &StorePath) -> Result<Vec<StorePath>, Cause> {
        let unusable = |reason: String| Cause::Input {
            path: path.clone(),
            reason,
        };
        let input = self.spec.inputs.iter().find(|input| input.path == *path);
        let input =
            input.ok_or_else(|| unusable("it is not in the input closure of the derivation".to_owned()))?;
        let aterm = std::fs::read(&input.physical).map_err(|error| unusable(error.to_string()))?;
        let name = path.name().strip_suffix(".drv").unwrap_or(path.name());
        let derivation =
            Derivation::from_aterm_bytes(&aterm, name).map_err(|error| unusable(error.to_string()))?;
        Ok(crate::environment::output_paths(&derivation)?
            .into_values()
            .collect())
    }
}

#[cfg(test)]
#[path = "references_graph_tests.rs"]
mod tests;
