//! Derivations that an evaluation names without having instantiated them: it read them back from the store
//! (`import` of a `.drv` file, `builtins.storePath`). The coordinator is told of them, and of what they need,
//! before they are named.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use tvix_node_coordinator::{Derivation, Event, SessionId};
use tvix_node_protocol::StorePath;
use tvix_node_store::Store;

use super::depot::{DepotError, describe, read_from};

/// Derivations that the coordinator was told of, by session.
#[derive(Debug, Default)]
pub struct Told(Mutex<HashMap<u64, HashSet<StorePath>>>);

impl Told {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, HashSet<StorePath>>> {
        // A path that was added and not told is told again, which is harmless.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins.
    pub fn begin(&self, session: u64) {
        self.lock().insert(session, HashSet::new());
    }

    /// A session has ended.
    pub fn end(&self, session: u64) {
        self.lock().remove(&session);
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
                        told.insert(derivation.path.clone());
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
    told: &mut HashSet<StorePath>,
    found: &mut Vec<Derivation>,
) -> Result<(), DepotError> {
    if told.contains(path) || store.query(path)?.is_none() {
        return Ok(());
    }
    let read = |path: &StorePath| describe(path, &read_from(store, path)?);
    let mut stack = vec![read(path)?];
    while let Some(top) = stack.last() {
        let mut inputs = top.inputs.iter().map(|input| &input.derivation);
        let next = inputs.find(|input| !told.contains(*input)).cloned();
        match next {
            Some(input) => {
                let derivation = read(&input)?;
                stack.push(derivation);
            }
            None => {
                if let Some(derivation) = stack.pop()
                    && told.insert(derivation.path.clone())
                {
                    found.push(derivation);
                }
            }
        }
    }
    Ok(())
}
