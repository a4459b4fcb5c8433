//! What all teams of one node share: the bounds that keep the machine from doing too much at once.
//!
//! Each team of a node has a network of its own. What is bounded because a machine has so much memory, so many threads or so
//! wide a link is bounded for all of them together, so that a node in many teams does no more than one in a single team. What
//! one team does shows another no more than that the machine is busy.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::limits::{FETCHES, PUSHES_TAKEN, STREAMS};
use crate::protocols::serving::Serving;

/// See the [module](self). Clones are the same machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Content that goes out, and the hashes of what was served lately.
    pub(crate) serving: Arc<Serving>,
    /// Trees that are fetched.
    pub(crate) fetches: Arc<Semaphore>,
    /// Streams that are served.
    pub(crate) streams: Arc<Semaphore>,
    /// Pushes that are taken.
    pub(crate) pushes: Arc<Semaphore>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            serving: Arc::new(Serving::new()),
            fetches: Arc::new(Semaphore::new(FETCHES)),
            streams: Arc::new(Semaphore::new(STREAMS)),
            pushes: Arc::new(Semaphore::new(PUSHES_TAKEN)),
        }
    }
}
