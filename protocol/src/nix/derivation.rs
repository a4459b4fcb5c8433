//! Derivations: made from their fields, read back, and checked.
//!
//! Parsing is `nix-derivation`'s. Writing and hashing are here, because that crate's hash loses
//! outputs where two inputs have the same hash modulo (they must be merged), and because it cannot
//! hold arguments that are not UTF-8.

use std::collections::{BTreeMap, BTreeSet};

pub use nix_derivation::{
    Derivation, Error as DerivationError, Output, StructuredAttrs, StructuredAttrsFiles,
};
use sha2::{Digest as _, Sha256};

use super::aterm::{self, Shown, Text};
use super::hash::CAHash;
use super::store_path::{
    StorePath, StorePathError, absolute_path, build_ca_path, build_text_path, text_path,
};
use crate::limits::{DERIVATION_BYTES, OUTPUTS};

/// Why a derivation cannot be made, read, or believed.
#[derive(Debug, thiserror::Error)]
pub enum DrvError {
    /// It does not parse, or is not valid in itself.
    #[error("the derivation '{name}' is not valid: {source}")]
    Invalid {
        /// The derivation's name or path.
        name: String,
        /// What is wrong.
        source: DerivationError,
    },
    /// A store path cannot be made of the derivation's name and outputs.
    #[error("no store path can be made for the derivation '{name}': {source}")]
    StorePath {
        /// The derivation's name.
        name: String,
        /// What is wrong.
        source: StorePathError,
    },
    /// The hash of an input derivation is not known.
    #[error("the derivation '{name}' needs {input}, which is not known")]
    UnknownInput {
        /// The derivation's name.
        name: String,
        /// The missing input derivation.
        input: StorePath,
    },
    /// An input is asked for an output that it does not have.
    #[error("the derivation '{name}' wants the output '{output}' of {input}, which has no such output")]
    UnknownOutput {
        /// The derivation's name.
        name: String,
        /// The input derivation.
        input: StorePath,
        /// The missing output.
        output: String,
    },
    /// Outputs whose paths are only known after building, or dynamic derivations.
    #[error(
        "the derivation '{0}' uses floating content-addressed, impure or dynamic outputs, which are not supported yet"
    )]
    Unsupported(String),
    /// A claimed path differs from the computed one.
    #[error(
        "output '{output}' of '{name}' claims the path {claimed}, but {computed} follows from the derivation"
    )]
    Mismatch {
        /// The derivation's name.
        name: String,
        /// The output's name.
        output: String,
        /// What the derivation says.
        claimed: StorePath,
        /// What follows from its content.
        computed: StorePath,
    },
    /// The derivation's text does not have the store path it is offered under.
    #[error("the text offered as {claimed} has the path {computed}")]
    WrongPath {
        /// The path it is offered under.
        claimed: StorePath,
        /// The path of the text.
        computed: StorePath,
    },
    /// More outputs or bytes than allowed.
    #[error("the derivation '{name}' has {size} {what}, more than the {limit} allowed")]
    TooLarge {
        /// The derivation's name.
        name: String,
        /// What there is too much of.
        what: &'static str,
        /// How much.
        size: usize,
        /// How much is allowed.
        limit: usize,
    },
}

/// The identity of a derivation as an input of others: Nix's "hash derivation modulo", 32 bytes.
///
/// Equal for derivations that differ only in how their fixed-output inputs are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuloHash(pub [u8; 32]);

/// What is known of a derivation once its output paths are: its place in the store, its text, and
/// what others need to hash it as an input.
#[derive(Debug, Clone)]
pub struct Instantiated {
    /// Path of the `.drv` file.
    pub drv_path: StorePath,
    /// The `.drv` file's content.
    pub aterm: Vec<u8>,
    /// Output name to path.
    pub outputs: BTreeMap<String, StorePath>,
    /// Its identity as an input.
    pub modulo: ModuloHash,
}

/// How an output gets its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputKind {
    /// From the derivation that makes it.
    InputAddressed,
    /// From its content, which is declared.
    Fixed(CAHash),
}

/// Everything that a derivation says, except the output paths, which follow from it.
///
/// Bytes where Nix allows bytes. `environment` must not contain the outputs' own variables: they
/// are added with their paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerivationFields {
    /// Without `.drv`.
    pub name: String,
    /// Output name to how it is addressed. Not empty; a fixed output is called `out` and is alone.
    pub outputs: BTreeMap<String, OutputKind>,
    /// Input derivation to the outputs wanted of it.
    pub input_derivations: BTreeMap<StorePath, BTreeSet<String>>,
    /// Store paths wanted as they are.
    pub input_sources: BTreeSet<StorePath>,
    /// Platform, such as `x86_64-linux`.
    pub system: Vec<u8>,
    /// Program that builds.
    pub builder: Vec<u8>,
    /// Its arguments.
    pub arguments: Vec<Vec<u8>>,
    /// Its environment, `__json` included where attributes are structured.
    pub environment: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// [`DerivationFields`] by reference: what an evaluation has in its heap need not be copied to be hashed.
#[derive(Debug, Clone)]
pub struct FieldsView<'a> {
    /// Without `.drv`.
    pub name: &'a str,
    /// Output name to how it is addressed. Not empty; a fixed output is called `out` and is alone.
    pub outputs: &'a BTreeMap<String, OutputKind>,
    /// Input derivations and the outputs wanted of them, one by one, sorted, each once.
    pub input_derivations: Vec<(&'a StorePath, &'a str)>,
    /// Store paths wanted as they are, sorted, each once.
    pub input_sources: Vec<&'a StorePath>,
    /// Platform, such as `x86_64-linux`.
    pub system: &'a [u8],
    /// Program that builds.
    pub builder: &'a [u8],
    /// Its arguments.
    pub arguments: Vec<&'a [u8]>,
    /// Its environment, sorted by name, each once, without the outputs' own variables.
    pub environment: Vec<(&'a [u8], &'a [u8])>,
}

impl DerivationFields {
    /// The fields by reference.
    #[must_use]
    pub fn view(&self) -> FieldsView<'_> {
        let inputs = self.input_derivations.iter();
        let own = |name: &[u8]| self.outputs.keys().any(|output| output.as_bytes() == name);
        FieldsView {
            name: &self.name,
            outputs: &self.outputs,
            input_derivations: inputs
                .flat_map(|(path, outputs)| outputs.iter().map(move |output| (path, output.as_str())))
                .collect(),
            input_sources: self.input_sources.iter().collect(),
            system: &self.system,
            builder: &self.builder,
            arguments: self.arguments.iter().map(Vec::as_slice).collect(),
            environment: self
                .environment
                .iter()
                .map(|(name, value)| (name.as_slice(), value.as_slice()))
                .filter(|(name, _)| !own(name))
                .collect(),
        }
    }

    /// Computes output paths, text and path of the derivation. `modulo` answers for every input
    /// derivation.
    ///
    /// # Errors
    /// See [`DrvError`]. Source: Nix manual, "Derivation outputs and types"; `hashDerivationModulo`.
    pub fn instantiate(
        &self,
        modulo: impl FnMut(&StorePath) -> Option<ModuloHash>,
    ) -> Result<Instantiated, DrvError> {
        self.view().instantiate(modulo)
    }
}

impl FieldsView<'_> {
    /// As [`DerivationFields::instantiate`].
    ///
    /// # Errors
    /// See [`DrvError`].
    pub fn instantiate(
        &self,
        modulo: impl FnMut(&StorePath) -> Option<ModuloHash>,
    ) -> Result<Instantiated, DrvError> {
        let text = Text::new(self);
        let replaced = self.replaced_inputs(modulo)?;
        let outputs = self.output_paths(&text, &replaced)?;
        let shown = shown(&outputs);
        let modulo = self.modulo_hash(&text, &replaced, &shown);
        let aterm = text.whole(&aterm::inputs_by_path(&self.input_derivations), Some(&shown));
        self.bounded("bytes", aterm.len(), DERIVATION_BYTES)?;
        let drv_path = text_path(&format!("{}.drv", self.name), &aterm, &self.references())
            .map_err(|source| self.no_path(source))?;
        Ok(Instantiated {
            drv_path,
            aterm,
            outputs,
            modulo,
        })
    }

    /// What the `.drv` file refers to, sorted, each once.
    #[must_use]
    pub fn references(&self) -> Vec<&StorePath> {
        let inputs = self.input_derivations.iter().map(|(path, _)| *path);
        let mut references: Vec<&StorePath> = inputs.chain(self.input_sources.iter().copied()).collect();
        references.sort_unstable();
        references.dedup();
        references
    }

    fn output_paths(
        &self,
        text: &Text<'_>,
        replaced: &[u8],
    ) -> Result<BTreeMap<String, StorePath>, DrvError> {
        self.bounded("outputs", self.outputs.len(), OUTPUTS)?;
        let masked = nix_derivation::DerivationModuloHash::new(text.digest(replaced, None));
        self.outputs
            .iter()
            .map(|(output, kind)| {
                let path = match kind {
                    OutputKind::InputAddressed => {
                        nix_derivation::store_path::build_output_path(masked, output, self.name)
                    }
                    OutputKind::Fixed(ca) => super::store_path::output_path_name(self.name, output)
                        .and_then(|name| build_ca_path(&name, ca, std::iter::empty(), false)),
                };
                Ok((output.clone(), path.map_err(|source| self.no_path(source))?))
            })
            .collect()
    }

    fn modulo_hash(&self, text: &Text<'_>, replaced: &[u8], outputs: &Shown) -> ModuloHash {
        if let (1, Some(OutputKind::Fixed(ca)), Some(path)) =
            (self.outputs.len(), self.outputs.get("out"), outputs.get("out"))
        {
            let mut text = format!("fixed:out:{}:", aterm::method(ca)).into_bytes();
            aterm::push_base16(&mut text, ca.hash().digest_as_bytes());
            text.push(b':');
            text.extend_from_slice(path);
            return ModuloHash(Sha256::digest(text).into());
        }
        ModuloHash(text.digest(replaced, Some(outputs)))
    }

    /// The list of inputs by their hashes. Inputs with the same hash are one, with the outputs of all.
    fn replaced_inputs(
        &self,
        mut modulo: impl FnMut(&StorePath) -> Option<ModuloHash>,
    ) -> Result<Vec<u8>, DrvError> {
        let mut replaced = Vec::with_capacity(self.input_derivations.len());
        for (path, output) in &self.input_derivations {
            let hash = modulo(path).ok_or_else(|| DrvError::UnknownInput {
                name: self.name.to_owned(),
                input: (*path).clone(),
            })?;
            replaced.push((hash, *output));
        }
        replaced.sort_unstable();
        replaced.dedup();
        Ok(aterm::inputs_by_hash(&replaced))
    }

    fn no_path(&self, source: StorePathError) -> DrvError {
        DrvError::StorePath {
            name: self.name.to_owned(),
            source,
        }
    }

    fn bounded(&self, what: &'static str, size: usize, limit: usize) -> Result<(), DrvError> {
        if size > limit {
            return Err(DrvError::TooLarge {
                name: self.name.to_owned(),
                what,
                size,
                limit,
            });
        }
        Ok(())
    }
}

/// Parses the text of a `.drv` file and checks that it belongs under `path`: derivations are
/// text-addressed, so nobody has to be believed for them.
///
/// # Errors
/// See [`DrvError`].
pub fn read_derivation(path: &StorePath, aterm: &[u8]) -> Result<Derivation, DrvError> {
    let name = path.name().strip_suffix(".drv").unwrap_or(path.name());
    if aterm.len() > DERIVATION_BYTES {
        let (what, size, limit) = ("bytes", aterm.len(), DERIVATION_BYTES);
        return Err(DrvError::TooLarge {
            name: path.to_string(),
            what,
            size,
            limit,
        });
    }
    let derivation = Derivation::from_aterm_bytes(aterm, name).map_err(|source| DrvError::Invalid {
        name: path.to_string(),
        source,
    })?;
    let outputs = derivation.outputs().len();
    if outputs > OUTPUTS {
        return Err(DrvError::TooLarge {
            name: path.to_string(),
            what: "outputs",
            size: outputs,
            limit: OUTPUTS,
        });
    }
    let references = derivation
        .input_derivations()
        .keys()
        .chain(derivation.input_sources());
    let computed = build_text_path(path.name(), aterm, references).map_err(|source| DrvError::StorePath {
        name: path.to_string(),
        source,
    })?;
    if computed != *path {
        return Err(DrvError::WrongPath {
            claimed: path.clone(),
            computed,
        });
    }
    Ok(derivation)
}

/// Recomputes the output paths of a derivation from its content and refuses it where it claims
/// others. Gives the paths and the identity as an input of others.
///
/// # Errors
/// [`DrvError::Mismatch`] for the first output that differs; see [`DrvError`].
pub fn check_output_paths(
    derivation: &Derivation,
    modulo: impl FnMut(&StorePath) -> Option<ModuloHash>,
) -> Result<(BTreeMap<String, StorePath>, ModuloHash), DrvError> {
    let fields = fields_of(derivation)?;
    let fields = fields.view();
    let text = Text::new(&fields);
    let replaced = fields.replaced_inputs(modulo)?;
    let computed = fields.output_paths(&text, &replaced)?;
    for (output, path) in &computed {
        let claimed = match &derivation.outputs()[output] {
            Output::InputAddressed { path } => path,
            _ => path,
        };
        if claimed != path {
            return Err(DrvError::Mismatch {
                name: derivation.name().to_owned(),
                output: output.clone(),
                claimed: claimed.clone(),
                computed: path.clone(),
            });
        }
    }
    let hash = fields.modulo_hash(&text, &replaced, &shown(&computed));
    Ok((computed, hash))
}

/// The fields of a parsed derivation.
///
/// # Errors
/// [`DrvError::Unsupported`] where an output's path is not known before building.
pub fn fields_of(derivation: &Derivation) -> Result<DerivationFields, DrvError> {
    let unsupported = || DrvError::Unsupported(derivation.name().to_owned());
    let mut outputs = BTreeMap::new();
    for (name, output) in derivation.outputs() {
        let kind = match output {
            Output::InputAddressed { .. } => OutputKind::InputAddressed,
            Output::Fixed { ca } => OutputKind::Fixed(ca.clone()),
            Output::Floating { .. } | Output::Deferred | Output::Impure { .. } => return Err(unsupported()),
        };
        outputs.insert(name.clone(), kind);
    }
    let mut input_derivations = BTreeMap::new();
    for (path, input) in derivation.input_derivations() {
        if input.is_dynamic() {
            return Err(unsupported());
        }
        input_derivations.insert(path.clone(), input.outputs().clone());
    }
    let mut environment: BTreeMap<Vec<u8>, Vec<u8>> = derivation
        .environment()
        .iter()
        .map(|(name, value)| (name.clone().into_bytes(), value.clone()))
        .collect();
    if let Some(attrs) = derivation.structured_attrs() {
        environment.insert(b"__json".to_vec(), attrs.raw_json().to_vec());
    }
    Ok(DerivationFields {
        name: derivation.name().to_owned(),
        outputs,
        input_derivations,
        input_sources: derivation.input_sources().clone(),
        system: derivation.system().as_bytes().to_vec(),
        builder: derivation.builder().as_bytes().to_vec(),
        arguments: derivation
            .arguments()
            .iter()
            .map(|argument| argument.clone().into_bytes())
            .collect(),
        environment,
    })
}

/// The paths of outputs as text.
fn shown(outputs: &BTreeMap<String, StorePath>) -> Shown {
    outputs
        .iter()
        .map(|(output, path)| (output.clone(), absolute_path(path)))
        .collect()
}

#[cfg(test)]
#[path = "derivation_tests.rs"]
mod tests;
