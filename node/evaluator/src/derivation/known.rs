//! Derivations that this evaluation has instantiated or read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rustc_hash::FxHashMap;
use tvix_node_protocol::nix::derivation::{DerivationFields, ModuloHash, fields_of, read_derivation};
use tvix_node_protocol::nix::store_path::StorePath;

use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::syntax::position::Pos;

/// What is remembered of a derivation.
pub(crate) struct KnownDerivation {
    /// Its identity as an input.
    pub(crate) modulo: ModuloHash,
    /// Its outputs.
    pub(crate) outputs: BTreeMap<String, StorePath>,
    /// What its `.drv` file refers to.
    pub(crate) references: BTreeSet<StorePath>,
}

/// The derivations of an evaluation, by the path of their `.drv` file.
#[derive(Default)]
pub(crate) struct Known {
    derivations: RefCell<FxHashMap<StorePath, Rc<KnownDerivation>>>,
}

impl Known {
    /// Remembers a derivation; whether it was not known before.
    pub(crate) fn insert(&self, path: StorePath, derivation: KnownDerivation) -> bool {
        self.derivations
            .borrow_mut()
            .insert(path, Rc::new(derivation))
            .is_none()
    }

    /// A derivation that is known.
    pub(crate) fn get(&self, path: &StorePath) -> Option<Rc<KnownDerivation>> {
        self.derivations.borrow().get(path).cloned()
    }
}

/// What a derivation with these fields refers to.
pub(super) fn references(fields: &DerivationFields) -> BTreeSet<StorePath> {
    fields
        .input_derivations
        .keys()
        .chain(&fields.input_sources)
        .cloned()
        .collect()
}

impl<'h> Evaluation<'h> {
    /// A derivation, read from the store (with those it is made from) where it is not known yet.
    pub(crate) fn derivation(&self, path: &StorePath, pos: Pos) -> Result<Rc<KnownDerivation>> {
        if let Some(known) = self.derivations.get(path) {
            return Ok(known);
        }
        self.deeper(pos, || {
            let text = self.read_file(path.to_absolute_path().as_bytes(), pos)?;
            let failed = |error: &dyn std::fmt::Display| self.error(pos, error.to_string());
            let derivation = read_derivation(path, &text).map_err(|error| failed(&error))?;
            let fields = fields_of(&derivation).map_err(|error| failed(&error))?;
            let mut inputs = FxHashMap::default();
            for input in fields.input_derivations.keys() {
                inputs.insert(input.clone(), self.derivation(input, pos)?.modulo);
            }
            let instantiated = fields
                .instantiate(|input| inputs.get(input).copied())
                .map_err(|error| failed(&error))?;
            let known = Rc::new(KnownDerivation {
                modulo: instantiated.modulo,
                outputs: instantiated.outputs,
                references: references(&fields),
            });
            self.derivations
                .derivations
                .borrow_mut()
                .insert(path.clone(), known.clone());
            Ok(known)
        })
    }

    /// A derivation and everything it is made from, sources included: all `.drv` files and store paths that it
    /// refers to, directly or not.
    pub(crate) fn derivation_closure(&self, path: &StorePath, pos: Pos) -> Result<BTreeSet<StorePath>> {
        let mut closure = BTreeSet::new();
        let mut left = vec![path.clone()];
        while let Some(path) = left.pop() {
            if !closure.insert(path.clone()) {
                continue;
            }
            if path.name().ends_with(".drv") {
                left.extend(self.derivation(&path, pos)?.references.iter().cloned());
            } else {
                let references = self
                    .host
                    .references(&path)
                    .map_err(|error| self.host_error(pos, &error))?;
                left.extend(references);
            }
        }
        Ok(closure)
    }
}
