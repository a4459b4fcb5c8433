//! Work that many tasks want done on a thread that may block, together.
//!
//! A thread for each of a thousand small things costs more than the things do: it is woken, and wakes who waits. Here one
//! thread, or a few, do what has come to wait when they are free, as long as something has. What comes alone is done alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Does what has come together, and answers each in its order, as soon as it can.
type Work<Q, A> = Box<dyn Fn(Vec<Q>, &mut dyn FnMut(A)) + Send + Sync>;

/// See the [module](self).
pub struct Combined<Q, A>(Arc<Inner<Q, A>>);

struct Inner<Q, A> {
    /// Threads.
    most: usize,
    /// How much each of them does together.
    at_once: usize,
    work: Work<Q, A>,
    state: Mutex<State<Q, A>>,
}

struct State<Q, A> {
    waiting: Vec<(Q, oneshot::Sender<A>)>,
    threads: usize,
}

impl<Q: Send + 'static, A: Send + 'static> Combined<Q, A> {
    /// With so many threads, each of which does so much together.
    pub fn new(
        (most, at_once): (usize, usize),
        work: impl Fn(Vec<Q>, &mut dyn FnMut(A)) + Send + Sync + 'static,
    ) -> Self {
        let state = State {
            waiting: Vec::new(),
            threads: 0,
        };
        Self(Arc::new(Inner {
            most,
            at_once,
            work: Box::new(work),
            state: Mutex::new(state),
        }))
    }

    /// Has something done. None: a bug has ended it. What nobody waits for any more is done all the same.
    pub async fn ask(&self, question: Q) -> Option<A> {
        let (reply, told) = oneshot::channel();
        let one_more = {
            let mut state = self.0.lock();
            state.waiting.push((question, reply));
            let one_more = state.threads < self.0.most;
            state.threads += usize::from(one_more);
            one_more
        };
        if one_more {
            let inner = Arc::clone(&self.0);
            drop(tokio::task::spawn_blocking(move || inner.work_on()));
        }
        told.await.ok()
    }
}

impl<Q, A> Inner<Q, A> {
    fn lock(&self) -> MutexGuard<'_, State<Q, A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, as much as is done at once; where nothing does, there is one thread less.
    fn next(&self) -> Option<Vec<(Q, oneshot::Sender<A>)>> {
        let mut state = self.lock();
        let count = state.waiting.len().min(self.at_once);
        state.threads -= usize::from(count == 0);
        let waiting: Vec<_> = state.waiting.drain(..count).collect();
        Some(waiting).filter(|waiting| !waiting.is_empty())
    }

    fn work_on(&self) {
        while let Some(waiting) = self.next() {
            let (questions, replies): (Vec<Q>, Vec<_>) = waiting.into_iter().unzip();
            let mut replies = replies.into_iter();
            let mut answer = |answer: A| {
                if let Some(reply) = replies.next() {
                    drop(reply.send(answer));
                }
            };
            // A bug in it ends this, and not the thread: who is not answered is told.
            let worked = AssertUnwindSafe(|| (self.work)(questions, &mut answer));
            drop(catch_unwind(worked));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn what_comes_while_a_thread_works_is_done_together() {
        let (go, wait) = mpsc::channel();
        let (begins, begun) = mpsc::channel();
        let wait = Mutex::new(wait);
        let combined = Combined::new(
            (1, 3),
            move |numbers: Vec<u32>, answer: &mut dyn FnMut((u32, usize))| {
                begins.send(()).unwrap();
                wait.lock().unwrap().recv().unwrap();
                let together = numbers.len();
                numbers.into_iter().for_each(|number| answer((number, together)));
            },
        );
        let mut asked: Vec<_> = (0..5).map(|number| Box::pin(combined.ask(number))).collect();
        assert!(asked[0].as_mut().now_or_never().is_none());
        begun.recv().unwrap();
        for asked in &mut asked[1..] {
            assert!(asked.as_mut().now_or_never().is_none());
        }
        for _ in 0..3 {
            go.send(()).unwrap();
        }
        let answers = futures::future::join_all(asked).await;
        let answers: Vec<(u32, usize)> = answers.into_iter().map(Option::unwrap).collect();
        assert_eq!(answers, [(0, 1), (1, 3), (2, 3), (3, 3), (4, 1)]);
    }

    #[tokio::test]
    async fn what_ends_by_a_bug_is_not_waited_for_and_the_next_is_done() {
        let combined = Combined::new((1, 10), |numbers: Vec<u32>, answer: &mut dyn FnMut(u32)| {
            assert!(!numbers.contains(&0), "as a bug would end it");
            numbers.into_iter().for_each(answer);
        });
        assert_eq!(combined.ask(0).await, None);
        assert_eq!(combined.ask(1).await, Some(1));
    }
}
