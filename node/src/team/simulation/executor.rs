//! Tasks in one thread with a clock that jumps to the next thing that happens. Nothing here depends on anything
//! but the order in which tasks were begun and woken, so a run can be repeated.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tasks that end together: those of one life of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group(pub u64);

/// What belongs to the world and not to a node.
pub const WORLD: Group = Group(0);

#[derive(Default)]
struct State {
    now: u64,
    last: u64,
    /// None while it runs.
    tasks: HashMap<u64, (Group, Option<Task>)>,
    timers: BTreeMap<(u64, u64), Waker>,
}

#[derive(Default)]
pub struct Executor {
    state: Mutex<State>,
    ready: Arc<Mutex<VecDeque<u64>>>,
}

struct Awake {
    task: u64,
    ready: Arc<Mutex<VecDeque<u64>>>,
}

impl Wake for Awake {
    fn wake(self: Arc<Self>) {
        self.ready.lock().unwrap().push_back(self.task);
    }
}

impl Executor {
    /// Milliseconds since the world began.
    pub fn now(&self) -> u64 {
        self.state.lock().unwrap().now
    }

    pub fn spawn(&self, group: Group, task: impl Future<Output = ()> + Send + 'static) {
        let mut state = self.state.lock().unwrap();
        state.last += 1;
        let id = state.last;
        state.tasks.insert(id, (group, Some(Box::pin(task))));
        self.ready.lock().unwrap().push_back(id);
    }

    /// Ends all tasks of a group where they are, as a crash does.
    pub fn kill(&self, group: Group) {
        let mut state = self.state.lock().unwrap();
        let mut ids: Vec<u64> = state
            .tasks
            .iter()
            .filter(|(_, task)| task.0 == group)
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        let killed: Vec<_> = ids.iter().map(|id| state.tasks.remove(id)).collect();
        drop(state);
        // What is dropped with them may wake others.
        drop(killed);
    }

    pub fn sleep(self: &Arc<Self>, millis: u64) -> Sleep {
        let executor = Arc::clone(self);
        let at = executor.now() + millis;
        Sleep {
            executor,
            at,
            timer: None,
        }
    }

    /// What comes of a future in this time; none: nothing.
    pub async fn within<T>(self: &Arc<Self>, millis: u64, future: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(future);
        tokio::select! {
            biased;
            value = &mut future => Some(value),
            () = self.sleep(millis) => None,
        }
    }

    /// Runs until nothing is left that could happen. Gives the number of steps.
    pub fn run(&self, most: u64) -> u64 {
        let mut steps = 0;
        loop {
            let (next, before) = {
                let mut ready = self.ready.lock().unwrap();
                (ready.pop_front(), ready.len())
            };
            if let Some(id) = next {
                steps += 1;
                assert!(
                    steps < most,
                    "it does not end: {} tasks after {steps} steps",
                    self.state.lock().unwrap().tasks.len()
                );
                self.step(id);
                // Several who wait for one thing are woken in an order that is not always the same.
                self.ready.lock().unwrap().make_contiguous()[before..].sort_unstable();
                continue;
            }
            let mut state = self.state.lock().unwrap();
            let Some(((at, _), waker)) = state.timers.pop_first() else {
                return steps;
            };
            state.now = state.now.max(at);
            drop(state);
            waker.wake();
        }
    }

    fn step(&self, id: u64) {
        let task = match self.state.lock().unwrap().tasks.get_mut(&id) {
            Some((_, task)) => task.take(),
            None => return,
        };
        let Some(mut task) = task else { return };
        let ready = Arc::clone(&self.ready);
        let waker = Waker::from(Arc::new(Awake { task: id, ready }));
        let over = task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let mut state = self.state.lock().unwrap();
        let left = if over {
            state.tasks.remove(&id);
            Some(task)
        } else {
            match state.tasks.get_mut(&id) {
                Some(place) => {
                    place.1 = Some(task);
                    None
                }
                // It was killed while it ran.
                None => Some(task),
            }
        };
        drop(state);
        drop(left);
    }

    /// Lets go of everything, which otherwise holds itself.
    pub fn clear(&self) {
        let (tasks, timers) = {
            let mut state = self.state.lock().unwrap();
            (
                std::mem::take(&mut state.tasks),
                std::mem::take(&mut state.timers),
            )
        };
        drop((tasks, timers));
    }
}

pub struct Sleep {
    executor: Arc<Executor>,
    at: u64,
    timer: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let executor = Arc::clone(&self.executor);
        let mut state = executor.state.lock().unwrap();
        if let Some(timer) = self.timer.take() {
            state.timers.remove(&timer);
        }
        if state.now >= self.at {
            return Poll::Ready(());
        }
        state.last += 1;
        let timer = (self.at, state.last);
        state.timers.insert(timer, context.waker().clone());
        self.timer = Some(timer);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take() {
            let waker = self.executor.state.lock().unwrap().timers.remove(&timer);
            drop(waker);
        }
    }
}
