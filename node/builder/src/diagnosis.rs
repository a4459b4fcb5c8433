//! What a failed step of setting up a sandbox means, and what the user can do about it.

use std::io;

/// The sandbox could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("no sandbox: {step} failed: {source}{}", hint.as_deref().map(|hint| format!(". {hint}")).unwrap_or_default())]
pub struct SandboxError {
    /// What was being done, as in "mounting /proc".
    pub step: String,
    /// What the system said.
    pub source: io::Error,
    /// What forbids it and the way out, where that is known.
    pub hint: Option<String>,
}
