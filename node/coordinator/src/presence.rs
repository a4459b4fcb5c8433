//! Asks where paths are, in batches: what is waited for first.

use std::collections::{BTreeMap, VecDeque};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::EventKind;
use tvix_node_protocol::envelope::NodeKey;

use crate::action::{Action, Source};
use crate::coordinator::Coordinator;
use crate::event::PathPresence;
use crate::graph::{Asked, Desired, DesiredId, Own, Path, PathId};
use crate::id::{BuildId, QuestionId, Time};
use crate::limits;
use crate::session_set::{SessionSet, Slot};
use crate::timing::Due;

/// Questions to be put, and those that are open.
#[derive(Default)]
pub(crate) struct Asking {
    queues: BTreeMap<Option<DesiredId>, Queue>,
    open: BTreeMap<QuestionId, Question>,
    /// Who waits for it to be known where a path is.
    pub(crate) due: Due,
}

/// Paths to ask for. One that has become demanded stands in both lines; the first one counts.
#[derive(Default)]
struct Queue {
    demanded: VecDeque<PathId>,
    speculative: VecDeque<PathId>,
}

/// A question that is open.
struct Question {
    desired: Option<DesiredId>,
    paths: Vec<PathId>,
    asked: Time,
}

/// Whether a path still waits for this question's answer.
fn waits(path: &Path, question: QuestionId, desired: Option<DesiredId>) -> bool {
    let asked = Asked::Open(question);
    let store = desired.and_then(|store| path.desired(store));
    path.asked == asked || store.is_some_and(|entry| entry.state == Desired::Unknown(asked))
}

impl Coordinator {
    /// Has a path asked for, with a desired store or without.
    pub(crate) fn ask(&mut self, id: PathId, store: Option<DesiredId>) {
        let path = &mut self.graph.paths[id];
        let demanded = !path.demanded.is_empty() || !path.goals.is_empty();
        let mut wanted = false;
        if !path.known() {
            match path.asked {
                Asked::No => wanted = true,
                Asked::Queued => wanted = demanded,
                Asked::Open(_) => {}
            }
        }
        if let Some(store) = store {
            let entry = path.desired_mut(store);
            match entry.state {
                Desired::Unknown(Asked::No) => {
                    entry.state = Desired::Unknown(Asked::Queued);
                    wanted = true;
                }
                Desired::Unknown(Asked::Queued) => wanted |= demanded,
                _ => {}
            }
        }
        if !wanted {
            return;
        }
        if path.asked == Asked::No {
            path.asked = Asked::Queued;
        }
        let queue = self.asking.queues.entry(store).or_default();
        if demanded {
            queue.demanded.push_back(id);
        } else {
            queue.speculative.push_back(id);
        }
    }

    /// Puts the questions that may be put now.
    pub(crate) fn flush_questions(&mut self) {
        for store in self.asking.queues.keys().copied().collect::<Vec<_>>() {
            while let Some(queue) = self.asking.queues.get(&store) {
                let open = self.asking.open.len();
                // Half of the questions are kept for what is demanded.
                let urgent = open < limits::QUESTIONS && !queue.demanded.is_empty();
                if !urgent && (open >= limits::QUESTIONS / 2 || queue.speculative.is_empty()) {
                    break;
                }
                self.put_question(store);
            }
        }
        self.asking
            .queues
            .retain(|_, queue| !queue.demanded.is_empty() || !queue.speculative.is_empty());
    }

    fn put_question(&mut self, store: Option<DesiredId>) {
        let question = QuestionId(self.next_number());
        let mut paths = Vec::new();
        while paths.len() < limits::PRESENCE_BATCH
            && let Some(queue) = self.asking.queues.get_mut(&store)
            && let Some(id) = queue
                .demanded
                .pop_front()
                .or_else(|| queue.speculative.pop_front())
        {
            let Some(path) = self.graph.paths.get_mut(id) else {
                continue;
            };
            let mut wanted = false;
            if path.asked == Asked::Queued {
                path.asked = Asked::Open(question);
                wanted = true;
            }
            if let Some(store) = store {
                let entry = path.desired_mut(store);
                if entry.state == Desired::Unknown(Asked::Queued) {
                    entry.state = Desired::Unknown(Asked::Open(question));
                    wanted = true;
                }
            }
            if wanted {
                paths.push(id);
            }
        }
        if paths.is_empty() {
            return;
        }
        let names = paths
            .iter()
            .map(|id| self.graph.paths[*id].name.clone())
            .collect();
        let desired_store = store.map(|store| self.graph.desired.get(store).clone());
        self.actions.push(Action::AskPresence {
            question,
            desired_store,
            paths: names,
        });
        self.asking.open.insert(
            question,
            Question {
                desired: store,
                paths,
                asked: self.now,
            },
        );
    }

    pub(crate) fn presence(&mut self, question: QuestionId, answers: Vec<PathPresence>) {
        let desired = self.asking.open.get(&question).and_then(|open| open.desired);
        for answer in answers {
            let Some(id) = self.graph.path(&answer.path) else {
                if answer.own {
                    self.released.push(answer.path);
                }
                continue;
            };
            self.answered(id, question, desired, &answer);
        }
        let Some(mut open) = self.asking.open.remove(&question) else {
            return;
        };
        open.paths.retain(|id| {
            self.graph
                .paths
                .get(*id)
                .is_some_and(|path| waits(path, question, open.desired))
        });
        if !open.paths.is_empty() {
            self.asking.open.insert(question, open);
        }
    }

    /// Takes note of where a path is.
    fn answered(
        &mut self,
        id: PathId,
        question: QuestionId,
        desired: Option<DesiredId>,
        answer: &PathPresence,
    ) {
        let path = &mut self.graph.paths[id];
        if path.asked == Asked::Open(question) {
            path.asked = Asked::No;
        }
        path.nar_size = answer.nar_size.or(path.nar_size);
        path.unheard = answer.unheard;
        if answer.own {
            path.own = Own::Here;
        } else if path.own == Own::Unknown {
            path.own = Own::Absent;
        }
        if let Some(store) = desired {
            let entry = path.desired_mut(store);
            match entry.state {
                _ if answer.desired => entry.state = Desired::There,
                Desired::Unknown(_) => entry.state = Desired::Absent,
                _ => {}
            }
        }
        if path.fetch_tries < limits::FETCH_TRIES {
            for source in &answer.sources {
                self.graph.add_source(id, source);
            }
        }
        self.graph.touch_path(id);
    }

    /// A path is in the own store.
    pub(crate) fn path_arrived(&mut self, id: PathId) {
        self.graph.paths[id].own = Own::Here;
        self.graph.touch_path(id);
    }

    /// Forgets sources that do not have a path after all. If none is left, it is asked for again.
    pub(crate) fn remove_sources(&mut self, id: PathId, gone: &dyn Fn(&Source) -> bool) {
        let sources = &self.graph.sources;
        let path = &mut self.graph.paths[id];
        let before = path.sources.len();
        path.sources.retain(|source| !gone(sources.get(*source)));
        if path.sources.len() == before {
            return;
        }
        if path.sources.is_empty() && path.own == Own::Absent && path.fetch_tries < limits::FETCH_TRIES {
            path.own = Own::Unknown;
            path.ask_tries = 0;
            if path.asked == Asked::No {
                self.ask(id, None);
            }
        }
        self.graph.touch_path(id);
    }

    /// A builder did not find inputs of a build where they were said to be. As with a fetch that
    /// fails, this is believed a bounded number of times.
    pub(crate) fn inputs_missing(&mut self, build: BuildId, paths: &[StorePath]) {
        let Some(attempt) = self.attempts.get(&build) else {
            return;
        };
        let mut any = false;
        for id in self.graph.drvs[attempt.drv].inputs.clone() {
            let path = &mut self.graph.paths[id];
            if paths.contains(&path.name) && path.own != Own::Here {
                any = true;
                path.fetch_tries = path.fetch_tries.saturating_add(1);
                self.remove_sources(id, &|_| true);
            }
        }
        if let Some(attempt) = self.attempts.get_mut(&build) {
            attempt.inputs_missing |= any;
            attempt.inputs_untaken |= !any;
        }
    }

    /// Forgets everything that a peer's store had.
    pub(crate) fn forget_store(&mut self, node: NodeKey) {
        let peer = Source::Peer(node);
        let Some(number) = self.graph.sources.find(&peer) else {
            return;
        };
        let has = |id: &PathId| self.graph.paths[*id].sources.contains(&number);
        let paths: Vec<PathId> = self.graph.paths.keys().filter(has).collect();
        for id in paths {
            self.remove_sources(id, &|source| *source == peer);
        }
    }

    /// Whether a session's desired store is known to have a path.
    pub(crate) fn is_desired(&self, slot: Slot, id: PathId) -> bool {
        let store = self.sessions.get(slot).and_then(|session| session.to);
        let entry = store.and_then(|store| self.graph.paths[id].desired(store));
        entry.is_some_and(|entry| entry.state == Desired::There)
    }

    /// Puts questions again that nobody answered, or does without.
    pub(crate) fn expire_questions(&mut self) {
        let due = |open: &Question| open.asked.after(limits::PRESENCE_PATIENCE) <= self.now;
        let late: Vec<QuestionId> = self
            .asking
            .open
            .iter()
            .filter(|(_, open)| due(open))
            .map(|(question, _)| *question)
            .collect();
        for question in late {
            let Some(open) = self.asking.open.remove(&question) else {
                continue;
            };
            let mut unanswered = SessionSet::EMPTY;
            for id in open.paths {
                let Some(path) = self.graph.paths.get_mut(id) else {
                    continue;
                };
                if !waits(path, question, open.desired) {
                    continue;
                }
                path.ask_tries = path.ask_tries.saturating_add(1);
                let again = path.ask_tries < limits::PRESENCE_TRIES;
                if path.asked == Asked::Open(question) {
                    path.asked = Asked::No;
                    if !again && path.own == Own::Unknown {
                        path.own = Own::Absent;
                        path.unheard = true;
                    }
                }
                if let Some(store) = open.desired {
                    let entry = path.desired_mut(store);
                    if entry.state == Desired::Unknown(Asked::Open(question)) {
                        entry.state = if again {
                            Desired::Unknown(Asked::No)
                        } else {
                            Desired::Absent
                        };
                    }
                }
                if again {
                    self.ask(id, open.desired);
                } else {
                    unanswered = unanswered.or(path.demanded);
                }
                self.graph.touch_path(id);
            }
            for slot in unanswered.iter() {
                let text = "nobody answered where some paths are: they count as being nowhere".to_owned();
                self.tell(
                    slot,
                    EventKind::Message {
                        level: "warning".to_owned(),
                        text,
                    },
                );
            }
        }
    }

    pub(crate) fn questions_due(&self) -> Option<Time> {
        self.asking
            .open
            .values()
            .map(|open| open.asked.after(limits::PRESENCE_PATIENCE))
            .min()
    }

    /// Forgets all questions, when there is nobody left to ask for.
    pub(crate) fn forget_questions(&mut self) {
        self.asking = Asking::default();
    }
}
