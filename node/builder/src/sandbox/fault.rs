//! A step of setting up that failed.

use std::fmt;
use std::io;

use crate::wire::Report;

/// A step of setting up that failed.
#[derive(Debug)]
pub(super) struct Fault {
    step: String,
    source: io::Error,
    input: Option<String>,
}

impl Fault {
    /// A fault that no system call reported.
    pub(super) fn own(step: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            step: step.into(),
            source: io::Error::other(reason.into()),
            input: None,
        }
    }

    /// Names the input (its base name) that the step was about.
    pub(super) fn about_input(mut self, input: &str) -> Self {
        self.input = Some(input.to_owned());
        self
    }

    pub(super) fn into_report(self) -> Report {
        Report::Failed {
            step: self.step,
            errno: self.source.raw_os_error(),
            message: self.source.to_string(),
            input: self.input,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.step, self.source)
    }
}

/// Names the step that an error belongs to.
pub(super) trait Step<T> {
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Fault> {
        self.map_err(|source| Fault {
            step: step().into(),
            source: source.into(),
            input: None,
        })
    }
}
