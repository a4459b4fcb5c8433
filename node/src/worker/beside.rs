//! Fetches beside the evaluation: the target that wants something waits for it, and the others go on.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tvix_node_evaluator::{Fetch, Fetched, HostError, Ticket};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::AddSource;
use tvix_node_protocol::path_info::PathInfo;

use super::limits::FETCHES;
use super::link::{Link, LinkError, Reporter, Sources};
use super::source::{SourceTree, send};
use crate::fetch::{Fetcher, Store};

/// What comes of a fetch.
pub(super) enum Beside {
    /// Something for the user to know.
    Warning(String),
    /// It has ended.
    Ended(Box<Ended>),
}

/// How a fetch ended.
pub(super) struct Ended {
    number: u64,
    result: Result<Fetched, String>,
    /// The node could not do something, through no fault of the expression.
    pub(super) node_failed: bool,
}

/// A fetch that somebody waits for.
struct Waiting {
    number: u64,
    wanted: Fetch,
    tickets: Vec<Ticket>,
}

/// Fetches that are wanted, under way, and ended.
pub(super) struct Fetches {
    fetcher: Arc<Fetcher>,
    under_way: Vec<Waiting>,
    /// Not begun yet: as many as are let are under way.
    queue: VecDeque<Waiting>,
    ended: HashMap<Ticket, Fetched>,
    next: u64,
}

impl Fetches {
    pub(super) fn new(fetcher: Fetcher) -> Self {
        Self {
            fetcher: Arc::new(fetcher),
            under_way: Vec::new(),
            queue: VecDeque::new(),
            ended: HashMap::new(),
            next: 0,
        }
    }

    /// The fetcher, for what is fetched at once.
    pub(super) fn fetcher(&self) -> Arc<Fetcher> {
        Arc::clone(&self.fetcher)
    }

    /// Begins a fetch, or joins one of the same.
    pub(super) fn begin(&mut self, link: &Link, wanted: &Fetch, ticket: Ticket) {
        let mut all = self.under_way.iter_mut().chain(&mut self.queue);
        if let Some(same) = all.find(|other| other.wanted == *wanted) {
            same.tickets.push(ticket);
            return;
        }
        let number = self.next;
        self.next += 1;
        self.queue.push_back(Waiting {
            number,
            wanted: wanted.clone(),
            tickets: vec![ticket],
        });
        self.start(link);
    }

    /// Starts what there is room for.
    fn start(&mut self, link: &Link) {
        while self.under_way.len() < FETCHES
            && let Some(next) = self.queue.pop_front()
        {
            let (fetcher, wanted, number) = (self.fetcher(), next.wanted.clone(), next.number);
            let sources = link.sources().clone();
            link.beside(move |reporter| run(&fetcher, sources, reporter, &wanted, number));
            self.under_way.push(next);
        }
    }

    /// Takes note of the end of a fetch: who waited for it, and why it failed.
    pub(super) fn end(&mut self, link: &Link, ended: Ended) -> (Vec<Ticket>, Result<StorePath, String>) {
        let at = self
            .under_way
            .iter()
            .position(|waiting| waiting.number == ended.number);
        let tickets = at.map_or_else(Vec::new, |at| self.under_way.swap_remove(at).tickets);
        self.start(link);
        let result = ended.result.map(|fetched| {
            for ticket in &tickets {
                self.ended.insert(*ticket, fetched.clone());
            }
            fetched.path
        });
        (tickets, result)
    }

    /// The result of a fetch that ended well.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Fetched> {
        self.ended.remove(&ticket)
    }
}

/// Tells of an end whatever happens: where the fetch panics, the evaluation must not wait for ever.
struct Telling {
    reporter: Reporter,
    number: u64,
    end: Option<(Result<Fetched, String>, bool)>,
}

impl Drop for Telling {
    fn drop(&mut self) {
        let unexpected = || (Err("the fetch broke off unexpectedly".to_owned()), true);
        let (result, node_failed) = self.end.take().unwrap_or_else(unexpected);
        self.reporter.tell(Beside::Ended(Box::new(Ended {
            number: self.number,
            result,
            node_failed,
        })));
    }
}

fn run(fetcher: &Fetcher, sources: Sources, reporter: Reporter, wanted: &Fetch, number: u64) {
    let mut telling = Telling {
        reporter,
        number,
        end: None,
    };
    let door = Door {
        sources,
        reporter: &telling.reporter,
        node_failed: AtomicBool::new(false),
    };
    let result = fetcher.fetch(wanted, &door).map_err(|error| error.to_string());
    let node_failed = door.node_failed.load(Ordering::Relaxed);
    telling.end = Some((result, node_failed));
}

/// The store, as a fetch beside the evaluation reaches it.
struct Door<'a> {
    sources: Sources,
    reporter: &'a Reporter,
    node_failed: AtomicBool,
}

impl Door<'_> {
    fn failed(&self, error: &LinkError) -> HostError {
        if !error.is_the_expressions() {
            self.node_failed.store(true, Ordering::Relaxed);
        }
        HostError::new(error.to_string())
    }
}

impl Store for Door<'_> {
    fn find(&self, fingerprint: &str) -> Result<Option<StorePath>, HostError> {
        self.sources
            .find(fingerprint.to_owned())
            .map_err(|error| self.failed(&error))
    }

    fn add(&self, tree: &SourceTree, source: AddSource) -> Result<PathInfo, HostError> {
        let mut upload = self.sources.add(source);
        send(tree, &mut upload)
            .map_err(|error| HostError::caused("what was fetched cannot be put into the store", error))?;
        self.sources.finish(upload).map_err(|error| self.failed(&error))
    }

    /// Only folders of this machine are asked for, which are fetched at once and not here.
    fn physical(&self, logical: &Path) -> PathBuf {
        logical.to_owned()
    }

    fn warn(&self, text: &str) {
        self.reporter.tell(Beside::Warning(text.to_owned()));
    }
}
