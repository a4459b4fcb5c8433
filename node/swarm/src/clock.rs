//! Where the time comes from.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the time, in seconds since 1970. Tests bring their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// The machine's.
    #[must_use]
    pub fn system() -> Self {
        // A clock before 1970 is as wrong as one at 1970.
        Self::new(|| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs())
        })
    }

    /// Whatever the function says.
    #[must_use]
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> u64 {
        (self.0)()
    }
}

/// A time in seconds since 1970, as people write it.
pub(crate) fn in_words(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    match time.and_then(|time| chrono::DateTime::from_timestamp(time, 0)) {
        Some(time) => time.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
        None => format!("{seconds} s after 1970"),
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Clock({})", self.now())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_written_as_people_write_them() {
        assert_eq!(super::in_words(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(super::in_words(1_709_210_096), "2024-02-29 12:34:56 UTC");
        assert_eq!(super::in_words(u64::MAX), "18446744073709551615 s after 1970");
    }
}
