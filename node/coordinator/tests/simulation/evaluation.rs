//! Evaluations: what a command's worker tells, step by step.

use tvix_node_coordinator::{Event, SessionId};
use tvix_node_protocol::control::EventKind;

use crate::scenario::Step;
use crate::world::{Happening, World};

impl World {
    pub fn told(&mut self, session: usize, event: &EventKind) {
        let evaluation = &mut self.evaluations[session];
        match event {
            EventKind::Ended { .. } => evaluation.over = true,
            EventKind::ImportDone { import } if evaluation.waits_for == Some(*import) => {
                evaluation.waits_for = None;
                self.after(1, Happening::Evaluate(session));
            }
            EventKind::ImportFailed { import, .. } if evaluation.waits_for == Some(*import) => {
                evaluation.waits_for = None;
                let failed = Event::TargetFailed {
                    session: SessionId(session as u64),
                    target: 1_000 + import,
                    name: "import".into(),
                    error: "cannot import".into(),
                };
                self.report_after(1, failed);
                self.after(2, Happening::Evaluate(session));
            }
            _ => {}
        }
    }

    pub fn evaluate(&mut self, number: usize) {
        let script = &self.scenario.scripts[number];
        let (pace, options) = (script.pace, script.options.clone());
        let session = SessionId(number as u64);
        if self.evaluations[number].over {
            return;
        }
        let next = self.evaluations[number].next;
        self.evaluations[number].next += 1;
        if next == 0 {
            self.hand_over(Event::SessionOpened { session, options });
            self.after(1, Happening::Evaluate(number));
            return;
        }
        let Some(step) = self.scenario.scripts[number].steps.get(next - 1).cloned() else {
            return;
        };
        let mut waits = false;
        match step {
            Step::Instantiate(jobs) => {
                let derivations: Vec<_> = jobs
                    .iter()
                    .map(|job| self.scenario.jobs[*job].derivation.clone())
                    .collect();
                for source in derivations.iter().flat_map(|derivation| &derivation.sources) {
                    self.own.insert(source.clone());
                    self.added.insert(source.clone());
                }
                self.hand_over(Event::Instantiated { session, derivations });
            }
            Step::Target {
                number: target,
                job,
                outputs,
            } => {
                let derivation = self.scenario.jobs[job].derivation.path.clone();
                let name = format!("target {target}");
                self.hand_over(Event::TargetNamed {
                    session,
                    target,
                    name,
                    derivation,
                    outputs,
                });
            }
            Step::Import {
                number: import,
                job,
                outputs,
            } => {
                let derivation = self.scenario.jobs[job].derivation.path.clone();
                self.evaluations[number].waits_for = Some(import);
                waits = true;
                self.hand_over(Event::ImportRequested {
                    session,
                    import,
                    derivation,
                    outputs,
                });
            }
            Step::Ensure { number: import, path } => {
                self.evaluations[number].waits_for = Some(import);
                waits = true;
                self.hand_over(Event::EnsureRequested {
                    session,
                    import,
                    path,
                });
            }
            Step::Fail { number: target } => {
                let (name, error) = (format!("target {target}"), "it does not evaluate".into());
                self.hand_over(Event::TargetFailed {
                    session,
                    target,
                    name,
                    error,
                });
            }
            Step::End => self.hand_over(Event::EvaluationEnded { session }),
        }
        if !waits {
            let delay = self.rng.between(1, pace);
            self.after(delay, Happening::Evaluate(number));
        }
    }
}
