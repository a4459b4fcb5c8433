//! Changing names among the trees and the index together.

use std::sync::{MutexGuard, PoisonError};

use crate::disk::FileError;
use crate::index::IndexError;
use crate::intent::{Intended, Intent};
use crate::store::Inner;

/// Held by whoever changes names and index.
#[derive(Debug)]
pub(crate) struct Gate {
    intent: Intent,
    /// Names that the index does not know any more and that could not be moved away yet.
    orphans: Vec<String>,
}

impl Gate {
    pub(crate) fn new(intent: Intent) -> Self {
        let orphans = Vec::new();
        Self { intent, orphans }
    }
}

/// While this lives, names among the trees and the index are changed together, by nobody else.
pub(crate) struct Registration<'a> {
    inner: &'a Inner,
    gate: MutexGuard<'a, Gate>,
    /// Trees that have been moved out of the way.
    trash: Vec<String>,
    failures: Vec<FileError>,
}

impl<'a> Registration<'a> {
    /// Notes the names that may be left over if the process ends here.
    pub(crate) fn begin(inner: &'a Inner, names: &[Intended]) -> Result<Self, FileError> {
        let registration = Self {
            inner,
            gate: inner.gate.lock().unwrap_or_else(PoisonError::into_inner),
            trash: Vec::new(),
            failures: Vec::new(),
        };
        registration.intend(names)?;
        Ok(registration)
    }

    pub(crate) fn intend(&self, names: &[Intended]) -> Result<(), FileError> {
        let orphans = self.gate.orphans.iter().cloned().map(Intended::from);
        let all: Vec<Intended> = orphans.chain(names.iter().cloned()).collect();
        self.gate.intent.write(&self.inner.trees.disk, &all)
    }

    /// Gives a tree its name; a leftover of that name goes.
    pub(crate) fn name_tree(&mut self, from: &str, to: &str) -> Result<(), FileError> {
        self.trash.extend(self.inner.trees.name_tree(from, to)?);
        Ok(())
    }

    /// Takes a tree that the index does not know (any more) out of the way.
    pub(crate) fn discard(&mut self, name: &str) {
        match self.inner.trees.discard(name) {
            Ok(trash) => self.trash.extend(trash),
            Err(error) => {
                self.gate.orphans.push(name.to_owned());
                self.failures.push(error);
            }
        }
    }

    /// Lets others go on, then removes what has been moved out of the way. Returns what could not be
    /// removed; the next change of the store, or its next start, tries again.
    pub(crate) fn end(mut self) -> Vec<FileError> {
        for name in std::mem::take(&mut self.gate.orphans) {
            match self.is_known(&name) {
                // Added again meanwhile.
                Ok(true) => {}
                Ok(false) => self.discard(&name),
                Err(error) => {
                    tracing::warn!(%error, "a leftover cannot be looked up");
                    self.gate.orphans.push(name);
                }
            }
        }
        if let Err(error) = self.intend(&[]) {
            // What is in the index stays and what is not may go: an old note does no harm.
            tracing::warn!(%error, "the note of intended names could not be emptied");
        }
        let Self {
            inner,
            gate,
            trash,
            mut failures,
        } = self;
        drop(gate);
        failures.extend(trash.iter().filter_map(|name| inner.trees.remove(name).err()));
        for error in &failures {
            tracing::warn!(%error, "a tree that is not part of the store any more could not be removed");
        }
        failures
    }

    fn is_known(&self, name: &str) -> Result<bool, IndexError> {
        self.inner.index.knows_name(name)
    }
}
