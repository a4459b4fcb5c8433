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
    promised: Mutex<Promised>,
}

/// What has been let through, or will be.
#[derive(Debug, Default)]
struct Promised {
    /// When all of it has gone, at the rate of the moment.
    free_at: Option<Instant>,
    /// When what is passed on may go on.
    passed_on_at: Option<Instant>,
    /// Until when content waits that was asked for last.
    content_waits: Option<Instant>,
}

impl Throttle {
    fn set(&self, rate: Option<u64>) {
        let rate = rate.map_or(0, |rate| rate.max(LEAST_CAP));
        self.rate.store(rate, Ordering::Relaxed);
        // What was let through at the old rate is not waited for.
        *lock(&self.promised) = Promised::default();
    }

    /// Bytes a second, of all together; none where there is no limit.
    pub(crate) fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// Returns when so many bytes may go.
    pub(crate) async fn pass(&self, bytes: usize) {
        if let Some(start) = self.reserve(bytes, Instant::now()) {
            tokio::time::sleep_until(start.into()).await;
        }
    }

    /// Returns when so many bytes may go that are passed on between others. They do not wait behind content, which may wait
    /// for long where much of it is asked for: those they are for would take each other for gone. Content waits
    /// for them; so that it is not held up for good, no more than half of the rate is theirs while any waits.
    pub(crate) async fn pass_on(&self, bytes: usize) {
        if let Some(start) = self.reserve_first(bytes, Instant::now()) {
            tokio::time::sleep_until(start.into()).await;
        }
    }

    /// From when on so many bytes of what is passed on may go; none: at once.
    fn reserve_first(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let time = self.time_of(bytes)?;
        let mut promised = lock(&self.promised);
        let start = later(promised.passed_on_at, now);
        let pause = match promised.content_waits.is_some_and(|until| until > now) {
            true => time * 2,
            false => time,
        };
        promised.passed_on_at = Some(start + pause);
        promised.free_at = Some(later(promised.free_at, now) + time);
        Some(start)
    }

    /// How long so many bytes take; none where there is no limit.
    fn time_of(&self, bytes: usize) -> Option<Duration> {
        let rate = self.rate.load(Ordering::Relaxed);
        let micros = (bytes as u64).saturating_mul(1_000_000).checked_div(rate);
        micros.map(Duration::from_micros)
    }

    /// From when on so many bytes may go; none: at once.
    fn reserve(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let time = self.time_of(bytes)?;
        let mut promised = lock(&self.promised);
        let start = later(promised.free_at, now);
        promised.free_at = Some(start + time);
        promised.content_waits = Some(start);
        Some(start)
    }
}

/// A moment that may be over.
fn later(moment: Option<Instant>, now: Instant) -> Instant {
    moment.map_or(now, |moment| moment.max(now))
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

    /// Bytes of content and of what is passed on that go in ten seconds, in pieces of a hundredth of a second, where each
    /// stream asks for the next piece as soon as the last one may go.
    fn in_ten_seconds(content: usize, passed_on: usize) -> (usize, usize) {
        let (throttle, begin) = (Throttle::default(), Instant::now());
        throttle.set(Some(100 * LEAST_CAP));
        let piece = usize::try_from(LEAST_CAP).unwrap();
        let mut went = (0, 0);
        let mut next: Vec<(Instant, bool)> = (0..content + passed_on)
            .map(|number| (begin, number < content))
            .collect();
        loop {
            let (now, is_content) = *next.iter().min_by_key(|(at, _)| *at).unwrap();
            if now >= begin + 10 * SECOND {
                return went;
            }
            let at = next.iter().position(|waits| *waits == (now, is_content)).unwrap();
            let start = match is_content {
                true => throttle.reserve(piece, now),
                false => throttle.reserve_first(piece, now),
            };
            // The stream is busy with the piece for a moment.
            next[at].0 = start.unwrap() + Duration::from_micros(10);
            if is_content {
                went.0 += 1;
            } else {
                went.1 += 1;
            }
        }
    }

    #[test]
    fn content_has_half_of_the_rate_beside_as_much_as_is_passed_on_and_each_has_all_of_it_alone() {
        for streams in [1, 8, 64] {
            let (content, passed_on) = in_ten_seconds(8, streams);
            assert!(content >= 450 && passed_on >= 450, "{content} beside {passed_on}");
            let both = content + passed_on;
            // What each stream waits for at the end has been counted, and half of that wait is for the others.
            assert!(both <= 1000 + 2 * (8 + streams), "{content} beside {passed_on}");
            let alone = [in_ten_seconds(streams, 0).0, in_ten_seconds(0, streams).1];
            for pieces in alone {
                assert!((990..=1000 + streams).contains(&pieces), "{pieces}");
            }
        }
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
