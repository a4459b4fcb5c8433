//! Derivations that this evaluation has instantiated or read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rustc_hash::FxHashMap;
use tvix_node_protocol::nix::derivation::{ModuloHash, fields_of, read_derivation};
use tvix_node_protocol::nix::store_path::StorePath;

use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::syntax::position::Pos;

/// What is remembered of a derivation. Large evaluations have tens of thousands, so paths are shared.
pub(crate) struct KnownDerivation<'h> {
    /// Its identity as an input.
    pub(crate) modulo: ModuloHash,
    /// Its outputs, sorted by name.
    pub(crate) outputs: Box<[(&'h str, &'h StorePath)]>,
    /// What its `.drv` file refers to.
    pub(crate) references: Box<[&'h StorePath]>,
}

/// The derivations of an evaluation, by the path of their `.drv` file.
#[derive(Default)]
pub(crate) struct Known<'h> {
    derivations: RefCell<FxHashMap<&'h StorePath, Rc<KnownDerivation<'h>>>>,
}

impl<'h> Known<'h> {
    /// A derivation that is known.
    pub(crate) fn get(&self, path: &StorePath) -> Option<Rc<KnownDerivation<'h>>> {
        self.derivations.borrow().get(path).cloned()
    }

    /// Identity of a derivation that is known.
    pub(crate) fn modulo(&self, path: &StorePath) -> Option<ModuloHash> {
        Some(self.derivations.borrow().get(path)?.modulo)
    }
}

impl<'h> Evaluation<'h> {
    /// Remembers a derivation.
    pub(crate) fn remember(
        &self,
        path: &StorePath,
        modulo: ModuloHash,
        outputs: &BTreeMap<String, StorePath>,
        references: &[&StorePath],
    ) {
        let path = self.intern_path(path);
        let known = KnownDerivation {
            modulo,
            outputs: outputs
                .iter()
                .map(|(output, path)| (self.intern_output(output), self.intern_path(path)))
                .collect(),
            references: references.iter().map(|path| self.intern_path(path)).collect(),
        };
        self.derivations
            .derivations
            .borrow_mut()
            .insert(path, Rc::new(known));
    }

    /// A derivation, read from the store (with those it is made from) where it is not known yet.
    pub(crate) fn derivation(&self, path: &StorePath, pos: Pos) -> Result<Rc<KnownDerivation<'h>>> {
        if let Some(known) = self.derivations.get(path) {
            return Ok(known);
        }
        self.deeper(pos, || {
            let text = self.read_file(path.to_absolute_path().as_bytes(), pos)?;
            let failed = |error: &dyn std::fmt::Display| self.error(pos, error.to_string());
            let derivation = read_derivation(path, &text).map_err(|error| failed(&error))?;
            let fields = fields_of(&derivation).map_err(|error| failed(&error))?;
            for input in fields.input_derivations.keys() {
                self.derivation(input, pos)?;
            }
            let view = fields.view();
            let instantiated = view
                .instantiate(|input| self.derivations.modulo(input))
                .map_err(|error| failed(&error))?;
            self.remember(
                path,
                instantiated.modulo,
                &instantiated.outputs,
                &view.references(),
            );
            match self.derivations.get(path) {
                Some(known) => Ok(known),
                None => unreachable!("it was just remembered"),
            }
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
                left.extend(
                    self.derivation(&path, pos)?
                        .references
                        .iter()
                        .map(|path| (*path).clone()),
                );
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
