//! The evaluator's host: this machine's files, and the node's store over a session.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tvix_node_evaluator::{
    Fetch, Fetched, Host, HostError, Ingestion, Instantiated, MessageKind, Realised, Source, Ticket, Wanted,
};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{AddSource, AddedAs, WorkerMessage};
use tvix_node_protocol::nix::store_path::STORE_DIR;
use tvix_node_protocol::path_info::PathInfo;

use super::beside::{Beside, Ended, Fetches};
use super::limits::SOURCE_TRIES;
use super::link::{Happened, Link, LinkError};
use super::offer::Offer;
use super::source::{SourceError, SourceTree, send};
use crate::fetch::{FetchError, Fetcher};

/// Opens the session when the evaluation first needs the node.
pub type OpenLink = Box<dyn Fn() -> Result<Link, HostError>>;

/// Where messages of the evaluation go.
pub type Messages = Box<dyn Fn(MessageKind, &str)>;

/// The evaluator's [`Host`].
pub struct NodeHost {
    open: OpenLink,
    link: RefCell<Option<std::rc::Rc<Link>>>,
    /// The home's own `nix/store`, where it is known before a session is open.
    store_folder: PathBuf,
    messages: Messages,
    /// Texts and derivations told to the node by this evaluation, texts with what they refer to. (The evaluator
    /// knows what derivations refer to; large evaluations have millions of such references.)
    told: RefCell<HashMap<StorePath, Option<BTreeSet<StorePath>>>>,
    /// Paths known to be in the home's store.
    present: RefCell<HashSet<StorePath>>,
    /// Sources added already, by what was asked.
    sources: RefCell<HashMap<SourceKey, StorePath>>,
    /// Something was told since the last time the node was known to have taken all of it.
    unsettled: Cell<bool>,
    node_failed: Cell<bool>,
    fetches: RefCell<Fetches>,
    next_ticket: Cell<u64>,
    next_import: Cell<u64>,
    waiting: RefCell<Waiting>,
}

#[derive(PartialEq, Eq, Hash)]
struct SourceKey {
    name: String,
    path: PathBuf,
    flat: bool,
    references: BTreeSet<StorePath>,
    only: Option<Vec<PathBuf>>,
}

/// Imports under way.
#[derive(Default)]
struct Waiting {
    /// Import to its ticket.
    imports: BTreeMap<u64, Ticket>,
    /// Ticket to the number of its imports that have not ended, and the first failure.
    tickets: BTreeMap<Ticket, (usize, Option<String>)>,
}

impl Waiting {
    /// Takes note of the end of an import. Gives the ticket that has ended with it, if one has.
    fn end(&mut self, import: u64, result: Result<(), String>) -> Option<(Ticket, Realised)> {
        let ticket = self.imports.remove(&import)?;
        let (left, failure) = self.tickets.get_mut(&ticket)?;
        *left -= 1;
        if let Err(error) = result {
            failure.get_or_insert(error);
        }
        if *left > 0 {
            return None;
        }
        let (_, failure) = self.tickets.remove(&ticket)?;
        Some((ticket, failure.map_or(Ok(()), |error| Err(HostError::new(error)))))
    }
}

impl NodeHost {
    /// A host whose store paths lie in `store_folder` (`<home>/nix/store`), and that fetches with `fetcher`.
    #[must_use]
    pub fn new(store_folder: PathBuf, fetcher: Fetcher, open: OpenLink, messages: Messages) -> Self {
        Self {
            open,
            link: RefCell::default(),
            store_folder,
            messages,
            told: RefCell::default(),
            present: RefCell::default(),
            sources: RefCell::default(),
            unsettled: Cell::new(false),
            node_failed: Cell::new(false),
            fetches: RefCell::new(Fetches::new(fetcher)),
            next_ticket: Cell::new(0),
            next_import: Cell::new(0),
            waiting: RefCell::default(),
        }
    }

    /// The session; opened where it is not yet.
    ///
    /// # Errors
    /// The node cannot be reached or started.
    pub fn link(&self) -> Result<std::rc::Rc<Link>, HostError> {
        if let Some(link) = &*self.link.borrow() {
            return Ok(std::rc::Rc::clone(link));
        }
        let link = (self.open)().inspect_err(|_| self.node_failed.set(true))?;
        let link = std::rc::Rc::new(link);
        *self.link.borrow_mut() = Some(std::rc::Rc::clone(&link));
        Ok(link)
    }

    /// Whether a session was opened.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.link.borrow().is_some()
    }

    /// Tells the node something, in order with everything else.
    ///
    /// # Errors
    /// The node refused this or something told before.
    pub fn tell(&self, message: WorkerMessage) -> Result<(), HostError> {
        self.unsettled.set(true);
        self.link()?
            .tell(message)
            .map_err(|error| self.node_error(&error))
    }

    /// Waits until the node has taken everything that was told.
    ///
    /// # Errors
    /// The node refused some of it.
    pub fn settle(&self) -> Result<(), HostError> {
        if self.unsettled.get() {
            self.link()?.settle().map_err(|error| self.node_error(&error))?;
            self.unsettled.set(false);
        }
        Ok(())
    }

    fn ticket(&self) -> Ticket {
        let ticket = Ticket(self.next_ticket.get());
        self.next_ticket.set(ticket.0 + 1);
        ticket
    }

    /// Who waited for a fetch that has ended, and what came of it.
    fn fetch_ended(&self, link: &Link, ended: Ended) -> Vec<(Ticket, Realised)> {
        if ended.node_failed {
            self.node_failed.set(true);
        }
        let (tickets, result) = self.fetches.borrow_mut().end(link, ended);
        if let Ok(path) = &result {
            self.present.borrow_mut().insert(path.clone());
        }
        let realised = |ticket| {
            let realised = result.as_ref().map(drop);
            (ticket, realised.map_err(|error| HostError::new(error.clone())))
        };
        tickets.into_iter().map(realised).collect()
    }

    fn node_error(&self, error: &LinkError) -> HostError {
        if !error.is_the_expressions() {
            self.node_failed.set(true);
        }
        HostError::new(error.to_string())
    }

    /// Whether the node could not do something that the evaluation needed, through no fault of the
    /// expression.
    #[must_use]
    pub fn node_failed(&self) -> bool {
        self.node_failed.get()
    }

    /// Remembers that a path was told; whether it was not before.
    fn remember(&self, path: &StorePath, references: Option<&BTreeSet<StorePath>>) -> bool {
        let mut told = self.told.borrow_mut();
        if told.contains_key(path) {
            return false;
        }
        told.insert(path.clone(), references.cloned());
        true
    }

    /// Sends a source that was read while the evaluation goes on.
    fn offer(&self, offer: Offer) -> Result<StorePath, HostError> {
        let path = offer.path.clone();
        if self.remember(&path, Some(&BTreeSet::new())) {
            self.unsettled.set(true);
            self.link()?
                .offer(offer)
                .map_err(|error| self.node_error(&error))?;
        }
        Ok(path)
    }

    fn upload(&self, source: &Source<'_>, physical: PathBuf) -> Result<StorePath, HostError> {
        let failed = |error: SourceError| {
            HostError::caused(
                format!("'{}' cannot be put into the store", source.path.display()),
                error,
            )
        };
        let link = self.link()?;
        let sources = link.sources();
        let tree = SourceTree::new(physical, source.only);
        let tree = match source.ingestion {
            Ingestion::Nar => tree,
            Ingestion::Flat => tree.bytes_alone(),
        };
        let tag = tag(source);
        for _ in 0..SOURCE_TRIES {
            let fingerprint = tree.fingerprint(&tag).map_err(failed)?;
            if let Some(fingerprint) = &fingerprint
                && let Some(path) = sources
                    .find(fingerprint.clone())
                    .map_err(|error| self.node_error(&error))?
            {
                return Ok(path);
            }
            let mut upload = sources.add(AddSource {
                name: source.name.to_owned(),
                method: match source.ingestion {
                    Ingestion::Nar => AddedAs::Nar,
                    Ingestion::Flat => AddedAs::Flat,
                },
                fingerprint,
                expected: source.expected.map(|hash| hash.to_sri_string()),
                references: source.references.clone(),
            });
            match send(&tree, &mut upload) {
                Ok(()) => {}
                // Dropping the upload gives it up.
                Err(SourceError::Changed(_)) => continue,
                Err(error) => return Err(failed(error)),
            }
            let info = sources.finish(upload).map_err(|error| self.node_error(&error))?;
            return Ok(info.path);
        }
        Err(failed(SourceError::Changed(source.path.to_owned())))
    }
}

/// What becomes of a source, for its fingerprint.
fn tag(source: &Source<'_>) -> String {
    format!(
        "{}\0{:?}\0{:?}\0{:?}",
        source.name, source.ingestion, source.expected, source.references
    )
}

/// The store path that a logical path lies in, and the rest of it.
fn in_store(logical: &Path) -> Option<(StorePath, &Path)> {
    let rest = logical.strip_prefix(STORE_DIR).ok()?;
    let mut components = rest.components();
    let name = components.next()?.as_os_str();
    let path = StorePath::from_basename(std::os::unix::ffi::OsStrExt::as_bytes(name)).ok()?;
    Some((path, components.as_path()))
}

impl Host for NodeHost {
    fn physical(&self, logical: &Path) -> PathBuf {
        let Some((path, rest)) = in_store(logical) else {
            return logical.to_owned();
        };
        if self.told.borrow().contains_key(&path) {
            // It must be there to be read. Where the node refused it, it is not, and the error
            // comes with the next thing told.
            drop(self.settle());
        }
        let place = self.store_folder.join(path.to_basename());
        let mut present = self.present.borrow_mut();
        if !present.contains(&path) {
            if fs::symlink_metadata(&place).is_err() {
                return logical.to_owned();
            }
            // What the evaluation reads must stay. Where the node cannot be asked, what it is told next fails.
            let held = self.link().map(|link| link.path_info(&path));
            if matches!(held, Ok(Ok(None))) {
                return logical.to_owned();
            }
            present.insert(path);
        }
        if rest.as_os_str().is_empty() {
            place
        } else {
            place.join(rest)
        }
    }

    fn add_source(&self, source: &Source<'_>) -> Result<StorePath, HostError> {
        let key = SourceKey {
            name: source.name.to_owned(),
            path: source.path.to_owned(),
            flat: source.ingestion == Ingestion::Flat,
            references: source.references.clone(),
            only: source.only.map(<[PathBuf]>::to_vec),
        };
        if source.expected.is_none()
            && let Some(path) = self.sources.borrow().get(&key)
        {
            return Ok(path.clone());
        }
        let physical = self.physical(source.path);
        let path = match Offer::read(source, physical.clone(), &tag(source))? {
            Some(offer) => self.offer(offer)?,
            None => {
                let path = self.upload(source, physical)?;
                self.present.borrow_mut().insert(path.clone());
                path
            }
        };
        self.sources.borrow_mut().insert(key, path.clone());
        Ok(path)
    }

    fn add_text(
        &self,
        path: &StorePath,
        contents: &[u8],
        references: &BTreeSet<StorePath>,
    ) -> Result<(), HostError> {
        if !self.remember(path, Some(references)) {
            return Ok(());
        }
        self.tell(WorkerMessage::Text {
            path: path.clone(),
            references: references.iter().cloned().collect(),
            text: contents.to_vec(),
        })
    }

    fn instantiate(&self, derivation: &Instantiated<'_>) -> Result<(), HostError> {
        if !self.remember(derivation.drv_path, None) {
            return Ok(());
        }
        let (path, aterm) = (derivation.drv_path.clone(), derivation.aterm.to_vec());
        self.tell(WorkerMessage::Derivation { path, aterm })
    }

    fn realise(&self, wanted: &[Wanted]) -> Result<Ticket, HostError> {
        let ticket = self.ticket();
        for wanted in wanted {
            let import = self.next_import.get();
            self.next_import.set(import + 1);
            let mut waiting = self.waiting.borrow_mut();
            waiting.imports.insert(import, ticket);
            waiting.tickets.entry(ticket).or_default().0 += 1;
            drop(waiting);
            self.tell(match wanted {
                Wanted::Outputs { drv_path, outputs } => WorkerMessage::Import {
                    import,
                    derivation: drv_path.clone(),
                    outputs: outputs.iter().cloned().collect(),
                },
                Wanted::Path(path) => WorkerMessage::Ensure {
                    import,
                    path: path.clone(),
                },
            })?;
        }
        Ok(ticket)
    }

    fn finished(&self, wait: bool) -> Result<Vec<(Ticket, Realised)>, HostError> {
        if !self.is_linked() {
            return Ok(Vec::new());
        }
        let link = self.link()?;
        let mut finished = Vec::new();
        loop {
            let happened = link
                .happened(wait && finished.is_empty())
                .map_err(|error| self.node_error(&error))?;
            let none = happened.is_empty();
            for one in happened {
                match one {
                    Happened::Import(import, result) => {
                        finished.extend(self.waiting.borrow_mut().end(import, result));
                    }
                    Happened::Beside(Beside::Warning(text)) => {
                        (self.messages)(MessageKind::Warning, &text);
                    }
                    Happened::Beside(Beside::Ended(ended)) => {
                        finished.extend(self.fetch_ended(&link, *ended))
                    }
                    Happened::Over => {}
                }
            }
            if !wait || !finished.is_empty() || none {
                return Ok(finished);
            }
        }
    }

    /// What comes from elsewhere takes long; what is on this machine is taken at once.
    fn begin_fetch(&self, wanted: &Fetch) -> Result<Option<Ticket>, HostError> {
        if matches!(wanted, Fetch::Path { .. }) {
            return Ok(None);
        }
        let link = self.link()?;
        let ticket = self.ticket();
        self.fetches.borrow_mut().begin(&link, wanted, ticket);
        Ok(Some(ticket))
    }

    fn fetched(&self, ticket: Ticket) -> Result<Fetched, HostError> {
        let Ticket(number) = ticket;
        let fetched = self.fetches.borrow_mut().take(ticket);
        fetched.ok_or_else(|| HostError::new(format!("no fetch with the number {number} has ended")))
    }

    fn fetch(&self, wanted: &Fetch) -> Result<Fetched, HostError> {
        let fetcher = self.fetches.borrow().fetcher();
        let fetched = fetcher.fetch(wanted, self).map_err(|error| match error {
            FetchError::Store(error) => error,
            error => HostError::new(error.to_string()),
        })?;
        self.present.borrow_mut().insert(fetched.path.clone());
        Ok(fetched)
    }

    fn is_valid(&self, path: &StorePath) -> Result<bool, HostError> {
        if self.told.borrow().contains_key(path) || self.present.borrow().contains(path) {
            return Ok(true);
        }
        let info = self
            .link()?
            .path_info(path)
            .map_err(|error| self.node_error(&error))?;
        if info.is_some() {
            self.present.borrow_mut().insert(path.clone());
        }
        Ok(info.is_some() || Path::new(&path.to_absolute_path()).exists())
    }

    fn references(&self, path: &StorePath) -> Result<BTreeSet<StorePath>, HostError> {
        if let Some(Some(references)) = self.told.borrow().get(path) {
            return Ok(references.clone());
        }
        match self
            .link()?
            .path_info(path)
            .map_err(|error| self.node_error(&error))?
        {
            Some(info) => Ok(info.references),
            None => Err(HostError::new(format!("{path} is not in the store"))),
        }
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    fn now(&self) -> i64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
    }

    fn message(&self, kind: MessageKind, text: &str) {
        (self.messages)(kind, text);
    }
}

impl crate::fetch::Store for NodeHost {
    fn find(&self, fingerprint: &str) -> Result<Option<StorePath>, HostError> {
        self.link()?
            .sources()
            .find(fingerprint.to_owned())
            .map_err(|error| self.node_error(&error))
    }

    fn add(&self, tree: &SourceTree, source: AddSource) -> Result<PathInfo, HostError> {
        let link = self.link()?;
        let mut upload = link.sources().add(source);
        send(tree, &mut upload)
            .map_err(|error| HostError::caused("what was fetched cannot be put into the store", error))?;
        link.sources()
            .finish(upload)
            .map_err(|error| self.node_error(&error))
    }

    fn physical(&self, logical: &Path) -> PathBuf {
        Host::physical(self, logical)
    }

    fn warn(&self, text: &str) {
        (self.messages)(MessageKind::Warning, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logical_path_is_split_into_store_path_and_rest() {
        let base = "00000000000000000000000000000000-x";
        let logical = format!("/nix/store/{base}/a/b");
        let (path, rest) = in_store(Path::new(&logical)).unwrap();
        assert_eq!((path.to_basename().as_str(), rest), (base, Path::new("a/b")));
        assert!(in_store(Path::new("/nix/store")).is_none());
        assert!(in_store(Path::new("/nix/store/x")).is_none());
        assert!(in_store(Path::new("/etc")).is_none());
    }
}
