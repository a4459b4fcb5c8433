//! Stores: the own one with its garbage collection, desired ones, and everyone's answers.

use tvix_node_coordinator::{Delivery, Event, FetchId, PathPresence, PushId, Source};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::DesiredStore;

use crate::scenario::{CACHE, FOLDER};
use crate::world::{Fetch, World};

impl World {
    pub fn pin(&mut self, path: &StorePath) {
        assert!(self.own.contains(path));
        self.pinned.insert(path.clone());
    }

    /// What the coordinator is told to be in the own store stays there.
    pub fn note_reported(&mut self, event: &Event) {
        match event {
            Event::Presence { paths, .. } => {
                for presence in paths.iter().filter(|presence| presence.own) {
                    self.pin(&presence.path);
                }
            }
            Event::FetchArrived { path, .. } => self.pin(path),
            Event::BuildFinished {
                outputs,
                delivery: Delivery::OwnStore,
                ..
            } => {
                for built in outputs.values() {
                    self.pin(&built.path);
                }
            }
            _ => {}
        }
    }

    pub fn collect_garbage(&mut self) {
        let roots = self.pinned.iter().chain(&self.added);
        self.own = roots.flat_map(|path| self.scenario.closure(path)).collect();
    }

    /// Whether a source has a path, and can be reached.
    pub fn has(&self, source: &Source, path: &StorePath) -> bool {
        match source {
            Source::Peer(node) => self
                .peers
                .iter()
                .any(|peer| peer.machine.key == *node && peer.connected && peer.machine.store.contains(path)),
            Source::Cache(_) => self.scenario.cache.contains(path),
            Source::Folder(_) => self.folder.contains(path),
        }
    }

    pub fn in_desired_store(&self, store: &DesiredStore, path: &StorePath) -> bool {
        match store {
            DesiredStore::Node(node) => self.has(&Source::Peer(*node), path),
            DesiredStore::Folder(folder) => self.has(&Source::Folder(folder.clone()), path),
        }
    }

    /// Everyone who could be asked for a path.
    pub fn sources(&self) -> Vec<Source> {
        let peers = self.peers.iter().filter(|peer| peer.connected);
        let peers = peers.map(|peer| Source::Peer(peer.machine.key));
        peers
            .chain([Source::Cache(CACHE.into()), Source::Folder(FOLDER.into())])
            .collect()
    }

    pub fn answer(
        &mut self,
        question: tvix_node_coordinator::QuestionId,
        desired: Option<&DesiredStore>,
        paths: Vec<StorePath>,
    ) {
        let mut answers = vec![];
        for path in paths {
            let own = self.own.contains(&path);
            let mut sources = vec![];
            if !own {
                for source in self.sources() {
                    // A peer may well say that it has what it has not.
                    let lie = matches!(source, Source::Peer(_)) && self.lost(1);
                    if self.has(&source, &path) || lie {
                        sources.push(source);
                    }
                }
            }
            let desired = desired.is_some_and(|store| self.in_desired_store(store, &path));
            answers.push(PathPresence {
                path,
                own,
                desired,
                sources,
                unheard: false,
                nar_size: Some(10),
            });
        }
        self.hand_over(Event::Presence {
            question,
            paths: answers,
        });
    }

    pub fn fetch_done(&mut self, fetch: FetchId) {
        let Some(Fetch { path, from }) = self.fetches.remove(&fetch) else {
            return;
        };
        let Some(source) = from.iter().find(|source| self.has(source, &path)).cloned() else {
            self.hand_over(Event::FetchFailed {
                fetch,
                error: "nobody had it".into(),
            });
            return;
        };
        let closure = self.scenario.closure(&path);
        for part in closure {
            if self.own.insert(part.clone()) || part == path {
                let from = source.clone();
                self.hand_over(Event::FetchStarted {
                    fetch,
                    path: part.clone(),
                    from: from.clone(),
                });
                self.hand_over(Event::FetchArrived {
                    fetch,
                    path: part,
                    from,
                    bytes: 10,
                });
            }
        }
        self.hand_over(Event::FetchFinished { fetch });
    }

    pub fn push_done(&mut self, push: PushId) {
        let Some((path, to)) = self.pushes.remove(&push) else {
            return;
        };
        let closure = self.scenario.closure(&path);
        let unreachable = match &to {
            DesiredStore::Folder(_) => false,
            DesiredStore::Node(node) => !self
                .peers
                .iter()
                .any(|peer| peer.machine.key == *node && peer.connected),
        };
        if unreachable || self.lost(10) {
            let transient = !self.lost(20);
            self.hand_over(Event::PushFailed {
                push,
                error: "no connection".into(),
                transient,
            });
            return;
        }
        match to {
            DesiredStore::Folder(_) => self.folder.extend(closure),
            DesiredStore::Node(node) => {
                if let Some(peer) = self.peers.iter_mut().find(|peer| peer.machine.key == node) {
                    peer.machine.store.extend(closure);
                }
            }
        }
        self.hand_over(Event::PushFinished { push });
    }
}
