//! What has been checked of derivations: their output paths, recomputed from their content and that of
//! everything they need. Nobody is believed for an output path.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::derivation::{Derivation, DrvError, ModuloHash, check_output_paths};

use super::depot::DepotError;
use super::limits::REMEMBERED_DERIVATIONS;

/// A derivation whose output paths follow from its content.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Its identity as an input of others.
    modulo: ModuloHash,
    /// Output name to path.
    pub outputs: Arc<BTreeMap<String, StorePath>>,
}

/// Derivations that have been checked. A `.drv` path names its content and, through it, everything it
/// needs, so what was checked once stays true.
#[derive(Debug, Default)]
pub struct CheckedDerivations(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    derivations: HashMap<StorePath, Checked>,
    /// Outputs of these derivations; for fixed ones their content address in Nix's notation.
    outputs: HashMap<StorePath, Option<String>>,
}

/// What is known of a path by the derivations that were checked here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownAs {
    /// No derivation makes it, as far as known: a source, which its own name must speak for.
    Source,
    /// An output, named by how it is made.
    Output,
    /// A fixed output, with this content address in Nix's notation.
    Fixed(String),
}

impl CheckedDerivations {
    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        // Entries are inserted whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a path is.
    pub fn known_as(&self, path: &StorePath) -> KnownAs {
        match self.lock().outputs.get(path) {
            None => KnownAs::Source,
            Some(None) => KnownAs::Output,
            Some(Some(ca)) => KnownAs::Fixed(ca.clone()),
        }
    }

    /// Of these, those that have not been checked yet.
    pub fn unknown<'p>(&self, paths: impl IntoIterator<Item = &'p StorePath>) -> Vec<StorePath> {
        let known = self.lock();
        paths
            .into_iter()
            .filter(|path| !known.derivations.contains_key(*path))
            .cloned()
            .collect()
    }

    /// Checks a derivation and all it needs, inputs first. `read` gives a derivation whose text has been
    /// checked against its path.
    ///
    /// # Errors
    /// [`DrvError::Mismatch`] where an output path does not follow; whatever `read` says.
    pub fn check(
        &self,
        path: &StorePath,
        derivation: &Derivation,
        mut read: impl FnMut(&StorePath) -> Result<Derivation, DepotError>,
    ) -> Result<Checked, DepotError> {
        let mut known = self.lock();
        if known.derivations.len() > REMEMBERED_DERIVATIONS {
            *known = Known::default();
        }
        let mut stack: Vec<(StorePath, Derivation)> = vec![(path.clone(), derivation.clone())];
        loop {
            let Some((path, derivation)) = stack.last() else {
                return Err(DepotError::Bug(
                    "a derivation vanished while it was checked".to_owned(),
                ));
            };
            let missing = derivation
                .input_derivations()
                .keys()
                .find(|input| !known.derivations.contains_key(*input));
            if let Some(input) = missing {
                let input = input.clone();
                let derivation = read(&input)?;
                stack.push((input, derivation));
                continue;
            }
            let (outputs, modulo) = check_output_paths(derivation, |input| {
                known.derivations.get(input).map(|known| known.modulo)
            })?;
            let made = outputs.iter().map(|(name, path)| {
                let output = derivation.outputs().get(name);
                let ca = output.and_then(|output| output.fixed_content_address());
                (path.clone(), ca.map(|ca| ca.to_nix_string()))
            });
            known.outputs.extend(made.collect::<Vec<_>>());
            let outputs = Arc::new(outputs);
            let checked = Checked { modulo, outputs };
            known.derivations.insert(path.clone(), checked.clone());
            stack.pop();
            if stack.is_empty() {
                return Ok(checked);
            }
        }
    }

    /// What a build of this derivation reads itself: its sources, and the wanted outputs of its input
    /// derivations, which have been checked.
    ///
    /// # Errors
    /// [`DrvError::UnknownOutput`], [`DrvError::UnknownInput`].
    pub fn direct_inputs(&self, derivation: &Derivation) -> Result<BTreeSet<StorePath>, DrvError> {
        let known = self.lock();
        let mut wanted: BTreeSet<StorePath> = derivation.input_sources().clone();
        for (input, inputs) in derivation.input_derivations() {
            let checked = known
                .derivations
                .get(input)
                .ok_or_else(|| DrvError::UnknownInput {
                    name: derivation.name().to_owned(),
                    input: input.clone(),
                })?;
            for output in inputs.outputs() {
                let path = checked
                    .outputs
                    .get(output)
                    .ok_or_else(|| DrvError::UnknownOutput {
                        name: derivation.name().to_owned(),
                        input: input.clone(),
                        output: output.clone(),
                    })?;
                wanted.insert(path.clone());
            }
        }
        Ok(wanted)
    }
}
