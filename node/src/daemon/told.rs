//! Derivations that the coordinator is told of.
//!
//! An evaluation names some without having instantiated them: it read them back from the store (`import` of a `.drv`
//! file, `builtins.storePath`). The coordinator is told of them, and of what they need, before they are named.
//!
//! What they make and read tells how these paths get their names, and so whom to believe about them.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use tvix_node_coordinator::{Derivation, Event, SessionId};
use tvix_node_protocol::StorePath;
use tvix_node_store::Store;

use super::depot::{DepotError, describe, read_from};
use crate::team::evidence::NamedBy;

/// Derivations that the coordinator was told of, by session.
#[derive(Debug, Default)]
pub struct Told(Mutex<HashMap<u64, BySession>>);

#[derive(Debug, Default)]
struct BySession {
    derivations: HashSet<StorePath>,
    /// What they make and read: all that a path may refer to which one of them makes, but for what sources refer to.
    named: HashMap<StorePath, NamedBy>,
    /// Fixed outputs, with the derivation that says what is in them.
    fixed: HashMap<StorePath, StorePath>,
}

impl BySession {
    /// Whether it is new.
    fn insert(&mut self, derivation: &Derivation) -> bool {
        if !self.derivations.insert(derivation.path.clone()) {
            return false;
        }
        let made = if derivation.fixed_output {
            NamedBy::Content
        } else {
            NamedBy::Derivation
        };
        for output in derivation.outputs.values() {
            self.named.insert(output.clone(), made);
            if derivation.fixed_output {
                self.fixed.insert(output.clone(), derivation.path.clone());
            }
        }
        for source in &derivation.sources {
            // `builtins.storePath` makes a source of what another one may make.
            self.named.entry(source.clone()).or_insert(NamedBy::Content);
        }
        true
    }
}

impl Told {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, BySession>> {
        // A path that was added and not told is told again, which is harmless.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins.
    pub fn begin(&self, session: u64) {
        self.lock().insert(session, BySession::default());
    }

    /// A session has ended.
    pub fn end(&self, session: u64) {
        self.lock().remove(&session);
    }

    /// A session tells of a derivation.
    #[cfg(test)]
    pub fn tell(&self, session: u64, derivation: &Derivation) {
        if let Some(told) = self.lock().get_mut(&session) {
            told.insert(derivation);
        }
    }

    /// The derivation that says what is in a fixed output.
    pub fn fixed_by(&self, path: &StorePath) -> Option<StorePath> {
        let sessions = self.lock();
        sessions.values().find_map(|told| told.fixed.get(path).cloned())
    }

    /// How a path gets its name, by what open sessions have told; none: nobody has told of it.
    pub fn named_by(&self, path: &StorePath) -> Option<NamedBy> {
        let sessions = self.lock();
        let mut known = sessions.values().filter_map(|told| told.named.get(path).copied());
        let first = known.next()?;
        let made = first == NamedBy::Derivation || known.any(|other| other == NamedBy::Derivation);
        Some(if made {
            NamedBy::Derivation
        } else {
            NamedBy::Content
        })
    }

    /// Puts in front of each event the derivations that it names and the session has not told of, read from
    /// the store, inputs first. One that is not in the store is left to the coordinator to refuse.
    ///
    /// # Errors
    /// A derivation of the store that cannot be read.
    pub fn complete(
        &self,
        store: &Store,
        session: u64,
        events: Vec<Event>,
    ) -> Result<Vec<Event>, DepotError> {
        let mut sessions = self.lock();
        let Some(told) = sessions.get_mut(&session) else {
            return Ok(events);
        };
        let mut completed = Vec::with_capacity(events.len());
        for event in events {
            let mut missing = Vec::new();
            match &event {
                Event::Instantiated { derivations, .. } => {
                    for derivation in derivations {
                        for input in &derivation.inputs {
                            load(store, &input.derivation, told, &mut missing)?;
                        }
                        told.insert(derivation);
                    }
                }
                Event::TargetNamed { derivation, .. } | Event::ImportRequested { derivation, .. } => {
                    load(store, derivation, told, &mut missing)?;
                }
                _ => {}
            }
            if !missing.is_empty() {
                completed.push(Event::Instantiated {
                    session: SessionId(session),
                    derivations: missing,
                });
            }
            completed.push(event);
        }
        Ok(completed)
    }
}

/// Reads a derivation and everything it needs that has not been told, inputs first.
fn load(
    store: &Store,
    path: &StorePath,
    told: &mut BySession,
    found: &mut Vec<Derivation>,
) -> Result<(), DepotError> {
    if told.derivations.contains(path) || store.query(path)?.is_none() {
        return Ok(());
    }
    let read = |path: &StorePath| describe(path, &read_from(store, path)?);
    let mut stack = vec![read(path)?];
    while let Some(top) = stack.last() {
        let mut inputs = top.inputs.iter().map(|input| &input.derivation);
        let next = inputs.find(|input| !told.derivations.contains(*input)).cloned();
        match next {
            Some(input) => {
                let derivation = read(&input)?;
                stack.push(derivation);
            }
            None => {
                if let Some(derivation) = stack.pop()
                    && told.insert(&derivation)
                {
                    found.push(derivation);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(number: u8, name: &str) -> StorePath {
        StorePath::from_parts([number; 20], name).unwrap()
    }

    fn derivation(number: u8, sources: &[&StorePath], fixed_output: bool) -> Derivation {
        Derivation {
            path: path(number, "a.drv"),
            outputs: [("out".to_owned(), path(number, "a"))].into(),
            inputs: vec![],
            sources: sources.iter().map(|path| (*path).clone()).collect(),
            system: "x86_64-linux".to_owned(),
            required_features: vec![],
            prefer_local: false,
            fixed_output,
            quorum: None,
        }
    }

    #[test]
    fn derivations_tell_what_the_names_of_paths_are_made_of() {
        let told = Told::default();
        let source = path(9, "source");
        told.begin(1);
        told.begin(2);
        // What is made here is read there by its path alone.
        told.tell(1, &derivation(2, &[&source, &path(1, "a")], false));
        told.tell(2, &derivation(1, &[], false));
        told.tell(2, &derivation(3, &[], true));
        assert_eq!(told.named_by(&source), Some(NamedBy::Content));
        assert_eq!(told.named_by(&path(1, "a")), Some(NamedBy::Derivation));
        assert_eq!(told.named_by(&path(2, "a")), Some(NamedBy::Derivation));
        assert_eq!(told.named_by(&path(3, "a")), Some(NamedBy::Content));
        assert_eq!(told.named_by(&path(4, "a")), None);
        assert_eq!(told.fixed_by(&path(3, "a")), Some(path(3, "a.drv")));
        assert_eq!(told.fixed_by(&path(1, "a")), None);
        told.end(1);
        assert_eq!(told.named_by(&source), None);
        assert_eq!(told.named_by(&path(1, "a")), Some(NamedBy::Derivation));
    }
}
