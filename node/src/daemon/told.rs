//! Derivations that the coordinator is told of.
//!
//! An evaluation names some without having instantiated them: it read them back from the store (`import` of a `.drv`
//! file, `builtins.storePath`). The coordinator is told of them, and of what they need, before they are named.
//!
//! What they make and read tells how these paths get their names, and so whom to believe about them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tvix_node_coordinator::{Derivation, Event, SessionId};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::trust::{PathPattern, TrustPolicy};
use tvix_node_store::Store;

use super::depot::{DepotError, describe, read_from};
use crate::team::evidence::NamedBy;

/// Derivations that the coordinator was told of, by session.
#[derive(Debug, Default)]
pub struct Told(Mutex<HashMap<u64, BySession>>);

#[derive(Debug, Default)]
struct BySession {
    derivations: HashMap<StorePath, usize>,
    /// What is made of what, by the number of the derivation, inputs before what reads them.
    made: Vec<Made>,
    /// The derivation that makes an output whose content its name does not tell.
    makers: HashMap<StorePath, usize>,
    bound: Bound,
    /// What they make and read: all that a path may refer to which one of them makes, but for what sources refer to.
    named: HashMap<StorePath, NamedBy>,
    /// Fixed outputs, with the derivation that says what is in them.
    fixed: HashMap<StorePath, StorePath>,
}

/// What a derivation makes, and of what.
#[derive(Debug)]
struct Made {
    /// Outputs whose content their names do not tell.
    outputs: Vec<StorePath>,
    /// Numbers of the derivations that it reads outputs of.
    inputs: Box<[usize]>,
}

/// What was made of something for which the rules ask for more than somebody's word.
#[derive(Debug, Default)]
struct Bound {
    /// By which rules.
    policy: Arc<TrustPolicy>,
    /// By the number of each derivation that was looked at: the first such path.
    by: Vec<Option<Arc<StorePath>>>,
}

/// Whether two sets of rules ask for more than a word of the same paths. Those of a node differ between its teams only in
/// what its own key is.
fn binds_the_same(one: &TrustPolicy, other: &TrustPolicy) -> bool {
    fn rules(policy: &TrustPolicy) -> impl Iterator<Item = (Option<&PathPattern>, bool)> {
        let rules = policy.rules().iter().filter(|rule| rule.builder.is_none());
        rules.map(|rule| (rule.paths.as_ref(), rule.requirement.takes_a_word()))
    }
    rules(one).eq(rules(other))
}

impl BySession {
    /// Something for which these rules ask for more than a word, and of which a path was made, in as many steps as there
    /// are.
    fn bound_input(&mut self, path: &StorePath, policy: &Arc<TrustPolicy>) -> Option<StorePath> {
        let number = *self.makers.get(path)?;
        if !binds_the_same(&self.bound.policy, policy) {
            self.bound = Bound {
                policy: Arc::clone(policy),
                by: Vec::new(),
            };
        }
        let by = &mut self.bound.by;
        for made in &self.made[by.len()..] {
            let mut inputs = made.inputs.iter();
            let bound = inputs.find_map(|input| {
                let mut outputs = self.made[*input].outputs.iter();
                let own = outputs.find(|output| !policy.for_path(output).takes_a_word());
                own.map(|own| Arc::new(own.clone()))
                    .or_else(|| by[*input].clone())
            });
            by.push(bound);
        }
        by[number].as_deref().cloned()
    }

    /// Whether it is new.
    fn insert(&mut self, derivation: &Derivation) -> bool {
        if self.derivations.contains_key(&derivation.path) {
            return false;
        }
        let number = self.made.len();
        self.derivations.insert(derivation.path.clone(), number);
        // A hash says what is in a fixed output, whatever it was made of.
        let inputs = derivation.inputs.iter().filter(|_| !derivation.fixed_output);
        let inputs = inputs.filter_map(|input| self.derivations.get(&input.derivation).copied());
        // `builtins.storePath` makes a source of what another one makes.
        let sources = derivation.sources.iter().filter(|_| !derivation.fixed_output);
        let sources = sources.filter_map(|source| self.makers.get(source).copied());
        let inputs = inputs.chain(sources).filter(|input| *input < number).collect();
        let mut outputs = Vec::new();
        if !derivation.fixed_output {
            outputs.extend(derivation.outputs.values().cloned());
            for output in &outputs {
                self.makers.insert(output.clone(), number);
            }
        }
        self.made.push(Made { outputs, inputs });
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
            // It may be what another one makes.
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

    /// Something for which these rules ask for more than somebody's word, and of which a path was made, by what open
    /// sessions have told.
    pub fn bound_input(&self, path: &StorePath, policy: &Arc<TrustPolicy>) -> Option<StorePath> {
        if !policy.may_ask_for_more_than_a_word() {
            return None;
        }
        let mut sessions = self.lock();
        sessions
            .values_mut()
            .find_map(|told| told.bound_input(path, policy))
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
    if told.derivations.contains_key(path) || store.query(path)?.is_none() {
        return Ok(());
    }
    let read = |path: &StorePath| describe(path, &read_from(store, path)?);
    let mut stack = vec![read(path)?];
    while let Some(top) = stack.last() {
        let mut inputs = top.inputs.iter().map(|input| &input.derivation);
        let next = inputs
            .find(|input| !told.derivations.contains_key(*input))
            .cloned();
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

    use tvix_node_coordinator::InputDerivation;
    use tvix_node_protocol::trust::{Requirement, TrustRule};

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
    fn what_was_made_of_something_under_a_stricter_rule_is_known_whatever_lies_between() {
        let reads = |number: u8, inputs: &[u8], fixed_output: bool| {
            let inputs = inputs.iter().map(|input| InputDerivation {
                derivation: path(*input, "a.drv"),
                outputs: vec!["out".to_owned()],
            });
            Derivation {
                inputs: inputs.collect(),
                ..derivation(number, &[], fixed_output)
            }
        };
        let rule = |number: u8| {
            let mut policy = TrustPolicy::default();
            policy
                .set(TrustRule {
                    paths: Some(PathPattern::new(&path(number, "a").to_absolute_path()).unwrap()),
                    builder: None,
                    requirement: Requirement::Own,
                    because: None,
                })
                .unwrap();
            Arc::new(policy)
        };
        let (told, policy) = (Told::default(), rule(1));
        let bound = |number, policy| told.bound_input(&path(number, "a"), policy);
        told.begin(1);
        told.tell(1, &reads(1, &[], false));
        told.tell(1, &reads(2, &[1], false));
        assert_eq!(bound(2, &policy), Some(path(1, "a")));
        assert_eq!(bound(1, &policy), None, "it is judged by its own rule");
        // What comes later, after that was asked, is looked at as well.
        told.tell(1, &reads(3, &[2], false));
        told.tell(1, &reads(4, &[], false));
        told.tell(1, &reads(5, &[4], false));
        told.tell(1, &reads(6, &[3], true));
        told.tell(1, &reads(7, &[6], false));
        assert_eq!(bound(3, &policy), Some(path(1, "a")));
        for free in [4, 5, 9] {
            assert_eq!(bound(free, &policy), None, "{free}");
        }
        assert_eq!(
            bound(7, &policy),
            None,
            "a hash says what is in a fixed output, whoever made it"
        );
        // `builtins.storePath` makes a source of what is made.
        let from_store = path(3, "a");
        told.tell(1, &derivation(10, &[&from_store], false));
        told.tell(1, &derivation(11, &[&path(99, "source")], false));
        assert_eq!(bound(10, &policy), Some(path(1, "a")));
        assert_eq!(bound(11, &policy), None);
        let none = Arc::default();
        assert_eq!(bound(3, &none), None);
        let other = rule(4);
        assert_eq!(bound(5, &other), Some(path(4, "a")), "rules change");
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
