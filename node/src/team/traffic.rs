//! How much of the machine's link the node may use, and what it does for others where every byte costs.
//!
//! On a metered connection the node serves content only to builders that work for it at that moment, takes no pushes,
//! builds nothing for others, and places its own builds here where they can be built here.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tvix_node_coordinator::Event;
use tvix_node_protocol::control::TrafficTerms;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_swarm::Caps;

use super::owner_file::{read_versioned, write_whole};
use crate::daemon::engine::Message;

/// Version of the file.
const VERSION: u32 = 1;

/// Why the terms cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    /// The file system.
    #[error("the limits of traffic in '{}' cannot be {action}: {source}", .file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// What is in it. A node that went on without it would spend what its owner does not want spent.
    #[error(
        "the limits of traffic in '{}' cannot be understood: {reason}. Repair the file, or remove it to use the whole link",
        .file.display()
    )]
    Damaged {
        /// Which.
        file: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A limit at which others would take the node for gone.
    #[error(
        "a limit of {0} bytes a second is too low: with less than {least}, others take this node for gone",
        least = TrafficTerms::LEAST_RATE
    )]
    TooLow(u64),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    terms: TrafficTerms,
}

/// The terms, and who works for this node.
#[derive(Debug)]
pub struct TrafficBook {
    file: PathBuf,
    changing: Mutex<()>,
    terms: watch::Sender<TrafficTerms>,
    /// Builders at work for this node, and on how many builds each.
    workers: Mutex<HashMap<NodeKey, usize>>,
}

/// A builder that works for this node until this is dropped.
#[derive(Debug)]
pub struct Working {
    book: Arc<TrafficBook>,
    node: NodeKey,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is changed in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TrafficBook {
    /// The terms of a home; the whole link where it has none.
    ///
    /// # Errors
    /// See [`TrafficError`].
    pub fn open(file: PathBuf) -> Result<Self, TrafficError> {
        let terms = match fs::read(&file) {
            Ok(bytes) => read(&file, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => TrafficTerms::default(),
            Err(source) => {
                let action = "read";
                return Err(TrafficError::File { file, action, source });
            }
        };
        Ok(Self {
            file,
            changing: Mutex::default(),
            terms: watch::channel(terms).0,
            workers: Mutex::default(),
        })
    }

    /// The terms.
    pub fn terms(&self) -> TrafficTerms {
        *self.terms.borrow()
    }

    /// The terms, to be waited on.
    pub fn watch(&self) -> watch::Receiver<TrafficTerms> {
        self.terms.subscribe()
    }

    /// Uses so much from now on. Blocks.
    ///
    /// # Errors
    /// See [`TrafficError`]; nothing has changed then.
    pub fn set(&self, terms: TrafficTerms) -> Result<(), TrafficError> {
        let too_low = [terms.upload, terms.download].into_iter().flatten();
        if let Some(limit) = too_low.min().filter(|limit| *limit < TrafficTerms::LEAST_RATE) {
            return Err(TrafficError::TooLow(limit));
        }
        let _turn = lock(&self.changing);
        let written = Written {
            version: VERSION,
            terms,
        };
        let failed = |source| TrafficError::File {
            file: self.file.clone(),
            action: "written",
            source,
        };
        let bytes = serde_json::to_vec_pretty(&written).map_err(|error| failed(error.into()))?;
        write_whole(&self.file, &bytes).map_err(failed)?;
        self.terms.send_replace(terms);
        Ok(())
    }

    /// A builder works for this node, which sends it what it needs for that.
    pub fn works(self: &Arc<Self>, node: NodeKey) -> Working {
        *lock(&self.workers).entry(node).or_default() += 1;
        Working {
            book: Arc::clone(self),
            node,
        }
    }

    /// Whether content is sent to a member at all.
    pub fn serves(&self, node: NodeKey) -> bool {
        !self.terms.borrow().metered || lock(&self.workers).contains_key(&node)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut workers = lock(&self.book.workers);
        if let Some(count) = workers.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                workers.remove(&self.node);
            }
        }
    }
}

/// Tells the coordinator whether every byte costs, now and whenever that changes.
pub async fn tell(mut terms: watch::Receiver<TrafficTerms>, engine: mpsc::Sender<Message>) {
    loop {
        let metered = terms.borrow_and_update().metered;
        let message = Message::Happened(Event::Metered(metered));
        if engine.send(message).await.is_err() || terms.changed().await.is_err() {
            return;
        }
    }
}

/// What the swarm of one of so many teams may use: its part, and no less than it needs to be taken for alive.
pub fn caps(terms: TrafficTerms, teams: u64) -> Caps {
    let part = |rate: u64| (rate / teams.max(1)).max(TrafficTerms::LEAST_RATE);
    Caps {
        upload: terms.upload.map(part),
        download: terms.download.map(part),
    }
}

fn read(file: &Path, bytes: &[u8]) -> Result<TrafficTerms, TrafficError> {
    let written: Written = read_versioned(bytes, VERSION).map_err(|error| TrafficError::Damaged {
        file: file.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(written.terms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const METERED: TrafficTerms = TrafficTerms {
        upload: Some(1 << 20),
        download: None,
        metered: true,
    };

    #[test]
    fn terms_outlive_the_node_and_what_cannot_be_read_is_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("traffic.json");
        let book = TrafficBook::open(file.clone()).unwrap();
        assert_eq!(book.terms(), TrafficTerms::default());
        book.set(METERED).unwrap();
        assert_eq!(TrafficBook::open(file.clone()).unwrap().terms(), METERED);
        for damaged in [
            "",
            "{}",
            r#"{"version":2,"terms":{}}"#,
            r#"{"version":1,"terms":{"metered":true,"more":1}}"#,
        ] {
            fs::write(&file, damaged).unwrap();
            assert!(TrafficBook::open(file.clone()).is_err(), "{damaged}");
        }
    }

    #[test]
    fn a_limit_that_would_look_like_silence_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let book = TrafficBook::open(folder.path().join("traffic.json")).unwrap();
        for terms in [
            TrafficTerms {
                upload: Some(TrafficTerms::LEAST_RATE - 1),
                ..METERED
            },
            TrafficTerms {
                download: Some(0),
                ..METERED
            },
        ] {
            assert!(matches!(book.set(terms), Err(TrafficError::TooLow(_))));
        }
        assert_eq!(book.terms(), TrafficTerms::default());
    }

    #[test]
    fn a_metered_node_sends_only_to_who_works_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let book = Arc::new(TrafficBook::open(folder.path().join("traffic.json")).unwrap());
        let (bob, carol) = (NodeKey([1; 32]), NodeKey([2; 32]));
        assert!(book.serves(bob) && book.serves(carol));
        book.set(METERED).unwrap();
        let (one, two) = (book.works(bob), book.works(bob));
        assert!(book.serves(bob) && !book.serves(carol));
        drop(one);
        assert!(book.serves(bob), "it has another one");
        drop(two);
        assert!(!book.serves(bob));
    }
}
