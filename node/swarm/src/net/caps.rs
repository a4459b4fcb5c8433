//! How fast content may go out and come in.
//!
//! Bytes are let through in the order in which they are asked for, each after as long as those before it
//! take at the rate allowed. So the streams of all peers share what there is, and what is not used in one
//! moment is not saved up for another.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::core::lock;
use crate::limits::LEAST_CAP;

/// Bytes of content a second, of all peers together; none: as fast as the link is. What is less than
/// [`LEAST_CAP`] counts as that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps {
    /// To others.
    pub upload: Option<u64>,
    /// From others.
    pub download: Option<u64>,
}

/// The caps in force.
#[derive(Debug, Default)]
pub(crate) struct Throttles {
    pub(crate) upload: Throttle,
    pub(crate) download: Throttle,
}

impl Throttles {
    pub(crate) fn set(&self, caps: Caps) {
        self.upload.set(caps.upload);
        self.download.set(caps.download);
    }
}

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// Bytes a second; 0: no limit.
    rate: AtomicU64,
    /// When what has been let through so far has gone, at the rate of the moment.
    free_at: Mutex<Option<Instant>>,
    /// The same of what is passed on alone.
    passed_on_at: Mutex<Option<Instant>>,
}

impl Throttle {
    fn set(&self, rate: Option<u64>) {
        let rate = rate.map_or(0, |rate| rate.max(LEAST_CAP));
        self.rate.store(rate, Ordering::Relaxed);
        // What was let through at the old rate is not waited for.
        *lock(&self.free_at) = None;
        *lock(&self.passed_on_at) = None;
    }

    /// Returns when so many bytes may go.
    pub(crate) async fn pass(&self, bytes: usize) {
        if let Some(start) = self.reserve(bytes, Instant::now()) {
            tokio::time::sleep_until(start.into()).await;
        }
    }

    /// Returns when so many bytes may go that are passed on between others. They do not wait behind content, which may wait
    /// for long where much of it is asked for: those they are for would take each other for gone. Content waits
    /// for them.
    pub(crate) async fn pass_on(&self, bytes: usize) {
        if let Some(start) = self.reserve_first(bytes, Instant::now()) {
            tokio::time::sleep_until(start.into()).await;
        }
    }

    fn reserve_first(&self, bytes: usize, now: Instant) -> Option<Instant> {
        self.reserve(bytes, now)?;
        let mut free_at = lock(&self.passed_on_at);
        let start = free_at.map_or(now, |free_at| free_at.max(now));
        *free_at = Some(start + self.time_of(bytes));
        Some(start)
    }

    /// How long so many bytes take; nothing where there is no limit.
    fn time_of(&self, bytes: usize) -> Duration {
        let rate = self.rate.load(Ordering::Relaxed);
        let micros = (bytes as u64).saturating_mul(1_000_000).checked_div(rate);
        Duration::from_micros(micros.unwrap_or_default())
    }

    /// From when on so many bytes may go; none: at once.
    fn reserve(&self, bytes: usize, now: Instant) -> Option<Instant> {
        if self.rate.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut free_at = lock(&self.free_at);
        let start = free_at.map_or(now, |free_at| free_at.max(now));
        *free_at = Some(start + self.time_of(bytes));
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn bytes_go_at_the_rate_and_nothing_is_saved_up() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.reserve(usize::MAX, now), None, "there is no limit");
        throttle.set(Some(2 * LEAST_CAP));
        let half = usize::try_from(LEAST_CAP).unwrap();
        for number in 0..10 {
            assert_eq!(throttle.reserve(half, now), Some(now + number * SECOND / 2));
        }
        let later = now + 100 * SECOND;
        assert_eq!(throttle.reserve(2 * half, later), Some(later));
        assert_eq!(throttle.reserve(1, later), Some(later + SECOND));
    }

    #[test]
    fn what_is_passed_on_does_not_wait_behind_content_and_content_waits_for_it() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        throttle.set(Some(2 * LEAST_CAP));
        let second = usize::try_from(2 * LEAST_CAP).unwrap();
        assert_eq!(throttle.reserve(10 * second, now), Some(now));
        assert_eq!(throttle.reserve_first(second, now), Some(now));
        assert_eq!(throttle.reserve_first(second, now), Some(now + SECOND));
        assert_eq!(throttle.reserve(1, now), Some(now + 12 * SECOND));
        throttle.set(None);
        assert_eq!(throttle.reserve_first(second, now), None);
    }

    #[test]
    fn a_rate_that_would_look_like_silence_is_raised_and_can_be_lifted() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        throttle.set(Some(0));
        let second = usize::try_from(LEAST_CAP).unwrap();
        assert_eq!(throttle.reserve(10 * second, now), Some(now));
        assert_eq!(throttle.reserve(1, now), Some(now + 10 * SECOND));
        throttle.set(None);
        assert_eq!(throttle.reserve(usize::MAX, now), None);
        throttle.set(Some(LEAST_CAP));
        assert_eq!(
            throttle.reserve(1, now),
            Some(now),
            "what went at the old rate is not waited for"
        );
    }
}
