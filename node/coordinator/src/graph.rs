//! Derivations and the store paths they make and read, interned.
//!
//! Edges go through paths: a derivation makes its outputs and reads its inputs, be they outputs of
//! others or sources. One graph serves all sessions; what they want differently is kept as sets of
//! sessions beside each entry. An entry lives as long as a session knows it.

use rustc_hash::FxHashMap;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::DesiredStore;
use tvix_node_protocol::envelope::NodeKey;

use crate::action::Source;
use crate::event::{BuildFailure, Derivation, Quorum};
use crate::id::{BuildId, FetchId, PushId, QuestionId, Time};
use crate::intern::{Interner, key as intern_key};
use crate::limits;
use crate::line::Queued;
use crate::session_set::{SessionSet, Slot};
use crate::slab::{Slab, key};

key!(
    /// A store path of the graph.
    PathId
);
key!(
    /// A derivation of the graph.
    DrvId
);
intern_key!(
    /// What a derivation requires of its builder.
    RequirementId
);
intern_key!(
    /// A source of paths.
    SourceId
);
intern_key!(
    /// A desired store.
    DesiredId
);

/// Number of a goal in its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GoalId(pub(crate) u32);

/// What is known of the own store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Own {
    Unknown,
    Absent,
    Here,
}

/// Whether there is a question about something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    No,
    Queued,
    Open(QuestionId),
}

/// Whether a path is on its way here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fetching {
    No,
    Queued,
    Running(FetchId),
}

/// What is known of a path in a desired store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Desired {
    Unknown(Asked),
    Absent,
    Queued,
    Pushing(PushId),
    There,
    Failed,
}

/// A path's state in one desired store.
#[derive(Debug, Clone)]
pub(crate) struct DesiredEntry {
    pub(crate) store: DesiredId,
    pub(crate) state: Desired,
    pub(crate) tries: u8,
    pub(crate) error: String,
}

/// A store path.
pub(crate) struct Path {
    pub(crate) name: StorePath,
    pub(crate) producer: Option<DrvId>,
    /// Derivations that read it.
    pub(crate) consumers: Vec<DrvId>,
    /// How many derivations, imports and the like name it; none left: it is forgotten.
    pub(crate) users: u32,

    pub(crate) own: Own,
    pub(crate) asked: Asked,
    pub(crate) ask_tries: u8,
    /// Somebody who could have it did not say so in time, at the last question.
    pub(crate) unheard: bool,
    pub(crate) sources: Vec<SourceId>,
    pub(crate) nar_size: Option<u64>,
    pub(crate) fetch: Fetching,
    pub(crate) fetch_tries: u8,
    pub(crate) desired: Vec<DesiredEntry>,

    pub(crate) demanded: SessionSet,
    pub(crate) import: SessionSet,
    /// Rank of the derivation that makes it, at least.
    pub(crate) rank: u32,
    /// Sessions that were told that it would be fetched.
    pub(crate) told_fetch: SessionSet,
    /// Sessions that wanted it and were told that they cannot have it. What else was demanded for it
    /// stays demanded: a command that keeps going builds all it can.
    pub(crate) in_vain: SessionSet,
    /// What sessions want of it.
    pub(crate) goals: Vec<(Slot, GoalId)>,
    /// Builds on this node that wait for it to arrive.
    pub(crate) waiting_builds: Vec<BuildId>,

    /// What neighbours have been told: see [`Path::available`], [`Path::known`].
    pub(crate) was_available: bool,
    pub(crate) was_known: bool,
    pub(crate) dirty: bool,
}

impl Path {
    fn new(name: StorePath) -> Self {
        Self {
            name,
            producer: None,
            consumers: Vec::new(),
            users: 0,
            own: Own::Unknown,
            asked: Asked::No,
            ask_tries: 0,
            unheard: false,
            sources: Vec::new(),
            nar_size: None,
            fetch: Fetching::No,
            fetch_tries: 0,
            desired: Vec::new(),
            demanded: SessionSet::EMPTY,
            import: SessionSet::EMPTY,
            rank: 0,
            told_fetch: SessionSet::EMPTY,
            in_vain: SessionSet::EMPTY,
            goals: Vec::new(),
            waiting_builds: Vec::new(),
            was_available: false,
            was_known: false,
            dirty: false,
        }
    }

    /// It is in the own store or can be had: it need not be built.
    pub(crate) fn available(&self) -> bool {
        self.own == Own::Here || !self.sources.is_empty()
    }

    /// It has been asked for.
    pub(crate) fn known(&self) -> bool {
        self.own != Own::Unknown
    }

    pub(crate) fn desired(&self, store: DesiredId) -> Option<&DesiredEntry> {
        self.desired.iter().find(|entry| entry.store == store)
    }

    pub(crate) fn desired_mut(&mut self, store: DesiredId) -> &mut DesiredEntry {
        let found = self.desired.iter().position(|entry| entry.store == store);
        let at = found.unwrap_or_else(|| {
            let state = Desired::Unknown(Asked::No);
            self.desired.push(DesiredEntry {
                store,
                state,
                tries: 0,
                error: String::new(),
            });
            self.desired.len() - 1
        });
        &mut self.desired[at]
    }
}

/// What a builder must offer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Requirement {
    pub(crate) system: String,
    /// Sorted.
    pub(crate) features: Vec<String>,
    pub(crate) prefer_local: bool,
    pub(crate) fixed_output: bool,
    /// Builders that have to agree; nobody else is asked.
    pub(crate) quorum: Option<Quorum>,
}

/// Which node has how much of a derivation's inputs.
#[derive(Debug, Clone)]
pub(crate) struct Weights {
    pub(crate) total: u64,
    pub(crate) there: Vec<(Option<NodeKey>, u64)>,
    /// Who is building it already; none: this node, for another.
    pub(crate) makers: Vec<Option<NodeKey>>,
    /// This node is to build it for another, and has not begun.
    pub(crate) promised: bool,
    /// When this was heard.
    pub(crate) heard: Time,
}

/// Whether it is known who has a derivation's inputs.
#[derive(Debug, Clone)]
pub(crate) enum Weighing {
    No,
    Asked(Time),
    /// None where no answer came in time.
    Done(Option<Weights>),
}

/// What went wrong with a derivation so far, other than by its own fault.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trouble {
    /// Peers that do not get it again.
    pub(crate) excluded: Vec<NodeKey>,
    /// Peers that were lost over it and get it again only where nobody else has room.
    pub(crate) gone: Vec<NodeKey>,
    /// When the last of them was lost.
    pub(crate) last_gone: Option<Time>,
    /// Builders lost over it.
    pub(crate) lost: u8,
    /// Tries on this node that came to nothing.
    pub(crate) tries_here: u8,
    /// This node will not build it.
    pub(crate) refused_here: bool,
    /// What happened, in words.
    pub(crate) story: Vec<String>,
}

/// A failure that is remembered.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    pub(crate) node: String,
    pub(crate) failure: BuildFailure,
}

/// A derivation.
pub(crate) struct Drv {
    pub(crate) name: StorePath,
    /// Order of arrival, inputs before what reads them.
    pub(crate) seq: u64,
    pub(crate) outputs: Box<[(String, PathId)]>,
    /// Distinct paths it reads.
    pub(crate) inputs: Box<[PathId]>,
    pub(crate) requirement: RequirementId,

    pub(crate) known: SessionSet,
    pub(crate) demanded: SessionSet,
    pub(crate) import: SessionSet,
    /// Its own failure, for the sessions that took part.
    pub(crate) failed: SessionSet,
    /// Something it needs failed.
    pub(crate) blocked: SessionSet,
    /// Sessions that wait for it before they can end.
    pub(crate) pending: SessionSet,
    /// Sessions that were told how it came to be present, or that it was built.
    pub(crate) told_present: SessionSet,
    pub(crate) causes: Vec<(Slot, DrvId)>,
    pub(crate) failure: Option<Box<Failed>>,

    /// Inputs that are not available.
    pub(crate) missing_inputs: u32,
    /// Edges to derivations that read an output of it.
    pub(crate) consumer_edges: u32,
    /// Those of them whose reader is not settled.
    pub(crate) live_edges: u32,
    /// All its outputs that decide are available; see where it is settled.
    pub(crate) present: bool,
    /// All its outputs that anybody reads are available: nothing speculative remains to be done.
    pub(crate) read_present: bool,
    /// Present, or only read by what is: speculation has nothing to do here.
    pub(crate) settled: bool,
    /// Derivations on the longest way up to what is wanted.
    pub(crate) rank: u32,
    pub(crate) queued: Option<Queued>,
    pub(crate) attempts: Vec<BuildId>,
    /// Builders of its quorum that have built it; none: this node.
    pub(crate) votes: Vec<Option<NodeKey>>,
    pub(crate) weighing: Weighing,
    /// Its outputs were asked for anew, because somebody said that he has them by now.
    pub(crate) asked_anew: bool,
    /// Somebody else is at it: it is no guess for this node any more.
    pub(crate) left_to_others: bool,
    /// What this node builds for another could not be joined: it is something else.
    pub(crate) not_joined_here: bool,
    pub(crate) stranded_since: Option<Time>,
    /// Builds of it so far that were not cancelled.
    pub(crate) tries: u8,
    /// The peer that said last that it had built it. Where its outputs must be built again, they
    /// could not be had from there.
    pub(crate) built_by: Option<NodeKey>,
    pub(crate) trouble: Option<Box<Trouble>>,
    /// How often a builder did not get inputs that this node has.
    pub(crate) untaken: u8,
    /// Why a builder put it off last.
    pub(crate) put_off: Option<String>,
    pub(crate) dirty: bool,
}

impl Drv {
    pub(crate) fn trouble_mut(&mut self) -> &mut Trouble {
        self.trouble.get_or_insert_default()
    }

    /// Whether a peer was lost over it, and may be lost again.
    pub(crate) fn has_lost(&self, node: &NodeKey) -> bool {
        let trouble = self.trouble.as_ref();
        trouble.is_some_and(|trouble| trouble.gone.contains(node))
    }

    /// Only read by what is present or needless itself.
    pub(crate) fn pointless(&self) -> bool {
        self.consumer_edges > 0 && self.live_edges == 0 && self.demanded.is_empty()
    }
}

/// What derivations there are.
#[derive(Default)]
pub(crate) struct Graph {
    pub(crate) paths: Slab<PathId, Path>,
    pub(crate) drvs: Slab<DrvId, Drv>,
    paths_by_name: FxHashMap<StorePath, PathId>,
    drvs_by_name: FxHashMap<StorePath, DrvId>,
    /// Other derivations of the same outputs, by the one that stands for all of them.
    aliases: FxHashMap<DrvId, Vec<StorePath>>,
    pub(crate) requirements: Interner<RequirementId, Requirement>,
    pub(crate) sources: Interner<SourceId, Source>,
    pub(crate) desired: Interner<DesiredId, DesiredStore>,
    next_seq: u64,
    pub(crate) dirty_paths: Vec<PathId>,
    pub(crate) dirty_drvs: Vec<DrvId>,
}

impl Graph {
    pub(crate) fn path(&self, name: &StorePath) -> Option<PathId> {
        self.paths_by_name.get(name).copied()
    }

    pub(crate) fn drv(&self, name: &StorePath) -> Option<DrvId> {
        self.drvs_by_name.get(name).copied()
    }

    /// The derivation that makes the same outputs, if there is one. Two recipes for one content (another
    /// mirror, another fetcher) are one piece of work, and so is everything that is made from one or the
    /// other: the paths of outputs do not depend on how a fixed output is come by.
    pub(crate) fn same_outputs(&self, derivation: &Derivation) -> Option<DrvId> {
        let path = self.path(derivation.outputs.values().next()?)?;
        let producer = self.paths[path].producer?;
        let outputs = self.drvs[producer].outputs.iter();
        let outputs = outputs.map(|(name, path)| (name, &self.paths[*path].name));
        outputs.eq(derivation.outputs.iter()).then_some(producer)
    }

    /// From now on this derivation stands for another one of the same outputs, too.
    pub(crate) fn alias(&mut self, id: DrvId, name: &StorePath) {
        if self.drvs_by_name.insert(name.clone(), id).is_none() {
            self.aliases.entry(id).or_default().push(name.clone());
        }
    }

    /// The path's number, one user more.
    pub(crate) fn use_path(&mut self, name: &StorePath) -> PathId {
        let id = match self.paths_by_name.get(name) {
            Some(id) => *id,
            None => {
                let id = self.paths.insert(Path::new(name.clone()));
                self.paths_by_name.insert(name.clone(), id);
                id
            }
        };
        self.paths[id].users += 1;
        id
    }

    /// One user less; the path itself if that was the last.
    pub(crate) fn drop_path(&mut self, id: PathId) -> Option<Path> {
        let path = &mut self.paths[id];
        path.users -= 1;
        if path.users > 0 {
            return None;
        }
        let path = self.paths.remove(id)?;
        self.paths_by_name.remove(&path.name);
        Some(path)
    }

    /// Notes that something about the path changed.
    pub(crate) fn touch_path(&mut self, id: PathId) {
        if let Some(path) = self.paths.get_mut(id)
            && !path.dirty
        {
            path.dirty = true;
            self.dirty_paths.push(id);
        }
    }

    /// Notes that something about the derivation changed.
    pub(crate) fn touch_drv(&mut self, id: DrvId) {
        if let Some(drv) = self.drvs.get_mut(id)
            && !drv.dirty
        {
            drv.dirty = true;
            self.dirty_drvs.push(id);
        }
    }

    /// Adds a derivation that has been checked and reads these outputs of others.
    pub(crate) fn insert(&mut self, derivation: &Derivation, made: Vec<PathId>) -> DrvId {
        let mut features = derivation.required_features.clone();
        features.sort_unstable();
        features.dedup();
        let requirement = self.requirements.intern(&Requirement {
            system: derivation.system.clone(),
            features,
            prefer_local: derivation.prefer_local,
            fixed_output: derivation.fixed_output,
            quorum: derivation.quorum.clone(),
        });
        let outputs: Box<[_]> = derivation
            .outputs
            .iter()
            .map(|(name, path)| (name.clone(), self.use_path(path)))
            .collect();
        let inputs = self.use_inputs(derivation, made);
        let missing = inputs
            .iter()
            .filter(|input| !self.paths[**input].was_available)
            .count();
        let readers = outputs
            .iter()
            .map(|(_, output)| self.paths[*output].consumers.len())
            .sum::<usize>();
        let seq = self.next_seq;
        self.next_seq += 1;
        let id = self.drvs.insert(Drv {
            name: derivation.path.clone(),
            seq,
            outputs: outputs.clone(),
            inputs: inputs.clone(),
            requirement,
            known: SessionSet::EMPTY,
            demanded: SessionSet::EMPTY,
            import: SessionSet::EMPTY,
            failed: SessionSet::EMPTY,
            blocked: SessionSet::EMPTY,
            pending: SessionSet::EMPTY,
            told_present: SessionSet::EMPTY,
            causes: Vec::new(),
            failure: None,
            missing_inputs: missing as u32,
            consumer_edges: readers as u32,
            live_edges: 0,
            present: false,
            read_present: false,
            settled: false,
            rank: 0,
            queued: None,
            attempts: Vec::new(),
            votes: Vec::new(),
            weighing: Weighing::No,
            asked_anew: false,
            left_to_others: false,
            not_joined_here: false,
            stranded_since: None,
            tries: 0,
            built_by: None,
            trouble: None,
            untaken: 0,
            put_off: None,
            dirty: false,
        });
        self.drvs_by_name.insert(derivation.path.clone(), id);
        for (_, output) in &outputs {
            self.paths[*output].producer = Some(id);
            let readers = self.paths[*output].consumers.clone();
            let live = readers
                .iter()
                .filter(|reader| !self.drvs[**reader].settled)
                .count();
            self.drvs[id].live_edges += live as u32;
            self.touch_path(*output);
        }
        for input in &inputs {
            self.paths[*input].consumers.push(id);
            if let Some(producer) = self.paths[*input].producer {
                self.drvs[producer].consumer_edges += 1;
                self.drvs[producer].live_edges += 1;
                self.touch_drv(producer);
            }
        }
        self.touch_drv(id);
        id
    }

    /// The distinct paths that a derivation reads, each with one user more.
    fn use_inputs(&mut self, derivation: &Derivation, made: Vec<PathId>) -> Box<[PathId]> {
        let mut inputs = made;
        for input in &inputs {
            self.paths[*input].users += 1;
        }
        inputs.extend(derivation.sources.iter().map(|source| self.use_path(source)));
        inputs.sort_unstable();
        let paths = &mut self.paths;
        inputs.dedup_by(|one, other| {
            let same = one == other;
            paths[*one].users -= u32::from(same);
            same
        });
        inputs.into_boxed_slice()
    }

    /// Forgets derivations that nobody knows; answers with the paths that went with them.
    ///
    /// All at once, because a path that thousands read is looked through once then.
    pub(crate) fn remove(&mut self, gone: &[DrvId]) -> Vec<Path> {
        let mut read = Vec::new();
        let mut made = Vec::new();
        for id in gone {
            let Some(drv) = self.drvs.remove(*id) else {
                continue;
            };
            self.drvs_by_name.remove(&drv.name);
            for alias in self.aliases.remove(id).into_iter().flatten() {
                self.drvs_by_name.remove(&alias);
            }
            for input in &drv.inputs {
                if let Some(producer) = self.paths[*input].producer
                    && let Some(producer_drv) = self.drvs.get_mut(producer)
                {
                    producer_drv.consumer_edges -= 1;
                    producer_drv.live_edges -= u32::from(!drv.settled);
                    self.touch_drv(producer);
                }
                read.push(*input);
            }
            for (_, output) in &drv.outputs {
                self.paths[*output].producer = None;
                made.push(*output);
            }
        }
        let mut distinct = read.clone();
        distinct.sort_unstable();
        distinct.dedup();
        for id in distinct {
            let drvs = &self.drvs;
            self.paths[id]
                .consumers
                .retain(|reader| drvs.get(*reader).is_some());
        }
        let users = read.into_iter().chain(made);
        users.filter_map(|id| self.drop_path(id)).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.drvs.is_empty()
    }

    /// Forgets requirements, sources and desired stores, when nothing is left that refers to one.
    pub(crate) fn forget_names(&mut self) {
        self.requirements = Interner::default();
        self.sources = Interner::default();
        self.desired = Interner::default();
    }

    /// Keeps the best few sources.
    pub(crate) fn add_source(&mut self, path: PathId, source: &Source) {
        let source = self.sources.intern(source);
        let sources = &mut self.paths[path].sources;
        if sources.len() < limits::SOURCES && !sources.contains(&source) {
            sources.push(source);
        }
    }
}
