//! Names of what the coordinator and its caller talk about.

use std::fmt;
use std::time::Duration;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $word:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!($word, " {}"), self.0)
            }
        }
    };
}

number!(
    /// One command. The caller chooses the number and never uses one twice.
    SessionId,
    "session"
);
number!(
    /// One try to build one derivation in one place. Chosen by the coordinator, never used twice.
    BuildId,
    "build"
);
number!(
    /// One fetch of a path with its closure. Chosen by the coordinator, never used twice.
    FetchId,
    "fetch"
);
number!(
    /// One push of a path with its closure. Chosen by the coordinator, never used twice.
    PushId,
    "push"
);
number!(
    /// One batched question about presence. Chosen by the coordinator, never used twice.
    QuestionId,
    "question"
);

/// Milliseconds since an origin that the caller chooses and keeps. It never goes back; a time that
/// lies before an earlier one is taken as that earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Time {
    /// So much later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// How long ago `earlier` was; zero if it was not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}
