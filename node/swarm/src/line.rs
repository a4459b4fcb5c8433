//! Places that go to what is most urgent first, and of equals to who has waited longest.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{oneshot, watch};

use crate::core::lock;

/// Which of several trees goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Nobody is known to need it yet.
    Speculative,
    /// It is wanted here, or is for another member.
    #[default]
    Demanded,
    /// A build waits for it.
    Awaited,
    /// An evaluation waits for it.
    Import,
}

/// A priority that can rise while what has it waits or is under way. Clones are one and the same.
#[derive(Debug, Clone)]
pub struct Rising(Arc<watch::Sender<Priority>>);

impl Rising {
    /// What it is now.
    #[must_use]
    pub fn now(&self) -> Priority {
        *self.0.borrow()
    }

    /// It is at least this from now on.
    pub fn raise(&self, to: Priority) {
        self.0.send_if_modified(|now| {
            let rises = to > *now;
            *now = to.max(*now);
            rises
        });
    }

    /// Whether there is another one that is the same.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Waits until it is more than this.
    pub async fn above(&self, before: Priority) -> Priority {
        let mut told = self.0.subscribe();
        let told = told.wait_for(|now| *now > before).await.map(|now| *now);
        match told {
            Ok(now) => now,
            // Who could raise it is there as long as this is.
            Err(_) => std::future::pending().await,
        }
    }

    /// Does something, and raises another one meanwhile with this one, from the beginning on.
    pub async fn raising<T>(&self, other: &Self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            let now = self.now();
            other.raise(now);
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = self.above(now) => {}
            }
        }
    }
}

impl From<Priority> for Rising {
    fn from(priority: Priority) -> Self {
        Self(Arc::new(watch::Sender::new(priority)))
    }
}

impl Default for Rising {
    fn default() -> Self {
        Priority::default().into()
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Line {
    places: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Who waits, by urgency and number: what they want, and how they are told.
    waiting: BTreeMap<Turn, (usize, oneshot::Sender<Held>)>,
    numbers: u64,
}

type Turn = (Reverse<Priority>, u64);

/// Places that are held. They go back when it is dropped.
#[derive(Debug)]
pub struct Held {
    line: Arc<Line>,
    count: usize,
}

/// Leaves the line when it is dropped.
struct Waiting<'l> {
    line: &'l Arc<Line>,
    turn: Turn,
}

impl Line {
    /// With so many places.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self {
            places,
            state: Mutex::new(State {
                free: places,
                waiting: BTreeMap::new(),
                numbers: 0,
            }),
        }
    }

    /// Waits for so many places at once, or for all that there are. Where the priority rises meanwhile, it is behind all that
    /// had the new one before.
    pub async fn enter_rising(self: &Arc<Self>, priority: &Rising, count: u32) -> Held {
        loop {
            let now = priority.now();
            tokio::select! {
                biased;
                held = self.enter(now, count) => return held,
                _ = priority.above(now) => {}
            }
        }
    }

    /// The same, with a priority that stays.
    pub(crate) async fn enter(self: &Arc<Self>, priority: Priority, count: u32) -> Held {
        let count = self.places.min(count as usize);
        let (reply, told) = oneshot::channel();
        let turn = {
            let mut state = lock(&self.state);
            state.numbers += 1;
            let turn = (Reverse(priority), state.numbers);
            state.waiting.insert(turn, (count, reply));
            turn
        };
        let _waiting = Waiting { line: self, turn };
        serve(self);
        match told.await {
            Ok(held) => held,
            // Who waits is told, or has left the line.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
impl Line {
    /// Places that nobody holds.
    pub(crate) fn free(&self) -> usize {
        lock(&self.state).free
    }

    /// How many wait that are so urgent, or more.
    pub(crate) fn most_urgent(&self, least: Priority) -> usize {
        let state = lock(&self.state);
        state.waiting.keys().filter(|turn| turn.0.0 >= least).count()
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.state).waiting.len()
    }
}

/// Gives free places to those whose turn it is. Who wants more than there are keeps what is free from those behind.
fn serve(line: &Arc<Line>) {
    loop {
        let (reply, held) = {
            let mut state = lock(&line.state);
            let Some(first) = state.waiting.first_entry() else {
                return;
            };
            let count = first.get().0;
            if count > state.free {
                return;
            }
            let Some((_, (_, reply))) = state.waiting.pop_first() else {
                return;
            };
            state.free -= count;
            let line = line.clone();
            (reply, Held { line, count })
        };
        // Who has left meanwhile gives them back here.
        drop(reply.send(held));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.line.state).free += self.count;
        serve(&self.line);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if lock(&self.line.state).waiting.remove(&self.turn).is_some() {
            // What it was waiting for may be enough for those behind.
            serve(self.line);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn what_is_most_urgent_goes_first_and_of_equals_who_waits_longest() {
        let line = Arc::new(Line::new(1));
        let mut held = line.enter(Priority::Demanded, 1).await;
        let enter = |priority| Box::pin(line.enter(priority, 1));
        let mut waiting = vec![
            ("guess", enter(Priority::Speculative)),
            ("result", enter(Priority::Demanded)),
            ("input", enter(Priority::Awaited)),
            ("import", enter(Priority::Import)),
            ("second input", enter(Priority::Awaited)),
        ];
        for (_, waiting) in &mut waiting {
            assert!(waiting.now_or_never().is_none());
        }
        let mut order = vec![];
        while !waiting.is_empty() {
            drop(held);
            let ready = waiting
                .iter_mut()
                .enumerate()
                .find_map(|(at, (_, waiting))| Some((at, waiting.now_or_never()?)));
            let (at, next) = ready.expect("somebody's turn");
            held = next;
            order.push(waiting.remove(at).0);
        }
        assert_eq!(order, ["import", "input", "second input", "result", "guess"]);
        drop(held);
        assert_eq!(line.free(), 1);
    }

    #[tokio::test]
    async fn what_rises_goes_before_what_it_was_behind() {
        let line = Arc::new(Line::new(1));
        let held = line.enter(Priority::Demanded, 1).await;
        let rising = Rising::from(Priority::Speculative);
        let mut risen = Box::pin(line.enter_rising(&rising, 1));
        let mut other = Box::pin(line.enter(Priority::Demanded, 1));
        let mut last = Box::pin(line.enter(Priority::Import, 1));
        assert!(risen.as_mut().now_or_never().is_none() && other.as_mut().now_or_never().is_none());
        assert!(last.as_mut().now_or_never().is_none());
        rising.raise(Priority::Import);
        // It does not fall.
        rising.raise(Priority::Demanded);
        assert_eq!(rising.now(), Priority::Import);
        assert!(risen.as_mut().now_or_never().is_none());
        assert_eq!(line.waiting(), 3);
        drop(held);
        assert!(risen.as_mut().now_or_never().is_none(), "others had it before");
        drop(last.now_or_never().expect("it is first"));
        let risen = risen.now_or_never().expect("it is next");
        assert!(other.as_mut().now_or_never().is_none());
        drop(risen);
        drop(other.await);
        assert_eq!(line.free(), 1);
    }

    #[tokio::test]
    async fn one_raises_another_while_something_is_done() {
        let [one, other] = [Priority::Awaited, Priority::Speculative].map(Rising::from);
        let (done, wait) = oneshot::channel::<()>();
        let mut raising = Box::pin(one.raising(&other, wait));
        assert!(raising.as_mut().now_or_never().is_none());
        assert_eq!(other.now(), Priority::Awaited);
        one.raise(Priority::Import);
        assert!(raising.as_mut().now_or_never().is_none());
        assert_eq!(other.now(), Priority::Import);
        done.send(()).unwrap();
        raising.await.unwrap();
    }

    #[tokio::test]
    async fn who_wants_many_is_not_passed_by_those_behind_and_is_by_what_is_more_urgent() {
        let line = Arc::new(Line::new(8));
        let first = line.enter(Priority::Demanded, 6).await;
        let mut many = Box::pin(line.enter(Priority::Demanded, 8));
        let mut few = Box::pin(line.enter(Priority::Demanded, 1));
        assert!(many.as_mut().now_or_never().is_none() && few.as_mut().now_or_never().is_none());
        let urgent = line.enter(Priority::Import, 2).now_or_never().expect("free");
        drop((first, urgent));
        let many = many.await;
        assert!(few.as_mut().now_or_never().is_none());
        drop(many);
        drop(few.await);
        let all = line.enter(Priority::Demanded, 9).now_or_never();
        assert!(all.is_some() && line.free() == 0, "more than there are");
        drop(all);
        assert_eq!(line.free(), 8);
    }

    #[tokio::test]
    async fn who_leaves_holds_up_nobody_and_takes_nothing_along() {
        let line = Arc::new(Line::new(2));
        let one = line.enter(Priority::Demanded, 1).await;
        let mut many = Box::pin(line.enter(Priority::Demanded, 2));
        let mut few = Box::pin(line.enter(Priority::Demanded, 1));
        assert!(many.as_mut().now_or_never().is_none() && few.as_mut().now_or_never().is_none());
        drop(many);
        let few = few.now_or_never().expect("nobody is before it");
        // One that has been given places and was not asked any more.
        let mut third = Box::pin(line.enter(Priority::Demanded, 2));
        assert!(third.as_mut().now_or_never().is_none());
        drop((one, few));
        drop(third);
        assert_eq!(line.free(), 2);
    }
}
