//! `exportReferencesGraph`: closures of inputs, told to the build.
//!
//! As Nix 2.34 (`Store::exportReferences`, `makeValidityRegistration`, `pathInfoToJSON`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};
use tvix_node_protocol::nix::derivation::Derivation;

use crate::StorePath;
use crate::build_spec::{BuildSpec, GraphPath};
use crate::error::Cause;
use crate::options::DerivationOptions;

/// A closure, sorted by path.
pub(crate) type Closure<'a> = Vec<Member<'a>>;

/// A path of a closure. What it refers to is in the closure, too.
pub(crate) struct Member<'a> {
    facts: &'a GraphPath,
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
        .zip(closure_sizes::<SET_WORDS>(closure))
        .map(|(member, closure_size)| {
            let facts = member.facts;
            let references: Vec<String> = facts.references.iter().map(ToString::to_string).collect();
            let mut object = json!({
                "closureSize": closure_size,
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

/// Words of one set of paths, a path a bit. With 512 bytes a set, those of 100,000 paths take 50 MB.
const SET_WORDS: usize = 64;

/// Bytes of the archives of each path's own closure, in the order of the closure.
///
/// A path that several others refer to counts once, so sizes cannot be added up along references: the sets of
/// what is reached can, as many paths at a time as a set has.
fn closure_sizes<const WORDS: usize>(closure: &Closure<'_>) -> Vec<u64> {
    let numbers: HashMap<&StorePath, usize> = closure
        .iter()
        .enumerate()
        .map(|(number, member)| (&member.facts.path, number))
        .collect();
    let references: Vec<Vec<usize>> = closure
        .iter()
        .map(|member| {
            let references = member.facts.references.iter();
            references
                .filter_map(|reference| numbers.get(reference).copied())
                .collect()
        })
        .collect();
    let Order { order, in_circles } = references_first(&references);
    let mut sizes = vec![0u64; closure.len()];
    for part in order.chunks(WORDS * 64) {
        let mut reached = vec![[0u64; WORDS]; closure.len()];
        let mut weights = vec![0u64; WORDS * 64];
        for (place, &number) in part.iter().enumerate() {
            reached[number][place / 64] |= 1 << (place % 64);
            weights[place] = closure[number].facts.nar_size;
        }
        let mut grows = true;
        while grows {
            grows = false;
            for &number in &order {
                let mut all = reached[number];
                for &reference in &references[number] {
                    let more = &reached[reference];
                    all.iter_mut().zip(more).for_each(|(word, more)| *word |= more);
                }
                // Where nothing refers to itself through others, once is enough.
                grows |= in_circles && all != reached[number];
                reached[number] = all;
            }
        }
        let totals: Vec<u64> = weights
            .chunks(64)
            .map(|weights| weights.iter().fold(0, |sum: u64, size| sum.saturating_add(*size)))
            .collect();
        for (size, reached) in sizes.iter_mut().zip(&reached) {
            for (index, &word) in reached.iter().enumerate() {
                let mut left = word;
                if word == u64::MAX {
                    *size = size.saturating_add(totals[index]);
                    left = 0;
                }
                while left != 0 {
                    let place = index * 64 + left.trailing_zeros() as usize;
                    *size = size.saturating_add(weights[place]);
                    left &= left - 1;
                }
            }
        }
    }
    sizes
}

/// Numbers in an order in which each comes after those that it refers to.
struct Order {
    order: Vec<usize>,
    /// Whether there is none, because some refer to themselves through others; the order is as good as may be.
    in_circles: bool,
}

fn references_first(references: &[Vec<usize>]) -> Order {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Open,
        Done,
    }
    let mut states = vec![State::New; references.len()];
    let (mut order, mut in_circles) = (Vec::with_capacity(references.len()), false);
    for start in 0..references.len() {
        // Each with how many of its references have been looked at.
        let mut path = Vec::new();
        if states[start] == State::New {
            states[start] = State::Open;
            path.push((start, 0));
        }
        while let Some((number, looked_at)) = path.last_mut() {
            let number = *number;
            let Some(&reference) = references[number].get(*looked_at) else {
                states[number] = State::Done;
                order.push(number);
                path.pop();
                continue;
            };
            *looked_at += 1;
            match states[reference] {
                State::New => {
                    states[reference] = State::Open;
                    path.push((reference, 0));
                }
                State::Open => in_circles |= reference != number,
                State::Done => {}
            }
        }
    }
    Order { order, in_circles }
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
        Ok(closure.into_values().map(|facts| Member { facts }).collect())
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
