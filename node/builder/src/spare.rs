//! A sandbox helper that has been started before a build wants it.
//!
//! Starting a program takes milliseconds, most of them the dynamic linker's: a sixth of what a trivial build
//! takes. So while a build's outputs are registered the next helper starts, and waits for its order. It ends
//! with the builder, and with the node, whose end of its socket it sees close.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Config;
use crate::helper_process::WaitingHelper;

/// At most one helper that waits. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Spare(Arc<Mutex<Option<WaitingHelper>>>);

impl fmt::Debug for Spare {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("Spare")
    }
}

impl Spare {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<WaitingHelper>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The helper that waits, or a new one where there is none, or where somebody has ended it.
    ///
    /// # Errors
    /// The step, and what the system said.
    pub(crate) fn take(&self, config: &Config) -> Result<WaitingHelper, (&'static str, io::Error)> {
        let waiting = self.lock().take();
        if let Some(mut waiting) = waiting
            && waiting.is_alive()
        {
            return Ok(waiting);
        }
        WaitingHelper::start(config)
    }

    /// Sees to it that one waits, and does not wait for that itself.
    pub(crate) fn refill(&self, config: Arc<Config>) {
        let spare = self.clone();
        tokio::spawn(async move {
            if spare.lock().is_some() {
                return;
            }
            match WaitingHelper::start(&config) {
                Ok(waiting) => *spare.lock() = Some(waiting),
                // The next build tries itself, and tells.
                Err((step, error)) => tracing::debug!(step, %error, "no helper waits"),
            }
        });
    }
}
