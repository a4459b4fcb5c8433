//! The scheduler: which target runs when.
//!
//! Targets are started in order. A target that waits gives way to those that can go on; only when none can does
//! the scheduler wait for the host. Waits for thunks are edges of a graph between targets (each waits for at most
//! one other), and a wait that would close a cycle in it is an infinite recursion.

use std::cell::RefCell;
use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::coroutine::{Resume, Stack, Task, Wait};
use crate::evaluation::Evaluation;
use crate::host::{HostError, Realised, Ticket};
use crate::limits::MAX_POOLED_STACKS;

/// Jobs that are not started yet. Running jobs may add more.
pub(crate) type Jobs<J> = RefCell<VecDeque<J>>;

struct Running<'e> {
    task: Task<'e>,
    wait: Option<Wait>,
}

/// Runs all jobs to their end, each as a target of its own.
///
/// # Errors
/// No stack could be made for the first job.
pub(crate) fn run<'e, J: 'e>(
    evaluation: &'e Evaluation<'_>,
    jobs: &Jobs<J>,
    perform: &'e dyn Fn(J),
) -> std::io::Result<()> {
    let mut scheduler = Scheduler {
        evaluation,
        running: FxHashMap::default(),
        ready: VecDeque::new(),
        pool: Vec::new(),
        next: 1,
    };
    loop {
        if let Some((number, resume)) = scheduler.ready.pop_front() {
            scheduler.step(number, resume);
            scheduler.poll(false);
            continue;
        }
        if scheduler.running.len() < evaluation.options.max_live_stacks.max(1)
            && let Some(job) = next(jobs)
        {
            match scheduler.stack() {
                Ok(stack) => scheduler.start(stack, move || perform(job)),
                // As long as something runs, its stack will be free for this job.
                Err(_) if !scheduler.running.is_empty() => {
                    jobs.borrow_mut().push_front(job);
                    scheduler.poll(true);
                }
                Err(error) => return Err(error),
            }
            continue;
        }
        if scheduler.running.is_empty() {
            return Ok(());
        }
        scheduler.poll(true);
    }
}

fn next<J>(jobs: &Jobs<J>) -> Option<J> {
    jobs.borrow_mut().pop_front()
}

struct Scheduler<'e, 'h> {
    evaluation: &'e Evaluation<'h>,
    running: FxHashMap<u32, Running<'e>>,
    ready: VecDeque<(u32, Resume)>,
    pool: Vec<Stack>,
    next: u32,
}

impl<'e> Scheduler<'e, '_> {
    fn stack(&mut self) -> std::io::Result<Stack> {
        match self.pool.pop() {
            Some(stack) => Ok(stack),
            None => Stack::new(),
        }
    }

    fn start(&mut self, stack: Stack, job: impl FnOnce() + 'e) {
        let number = self.next;
        self.next += 1;
        let task = Task::new(stack, number, self.evaluation, job);
        self.running.insert(number, Running { task, wait: None });
        self.ready.push_back((number, Resume::Go));
    }

    fn step(&mut self, number: u32, resume: Resume) {
        let Some(running) = self.running.get_mut(&number) else {
            return;
        };
        running.wait = None;
        let wait = running.task.resume(self.evaluation, resume);
        running.wait = wait;
        match wait {
            None => {
                if let Some(ended) = self.running.remove(&number)
                    && let Some(stack) = ended.task.into_stack()
                    && self.pool.len() < MAX_POOLED_STACKS
                {
                    self.pool.push(stack);
                }
            }
            Some(Wait::Thunk { .. }) if self.closes_a_cycle(number) => {
                self.wake(number, Resume::Cycle);
            }
            Some(_) => {}
        }
        for thunk in self.evaluation.switch.take_ended() {
            let waiting: Vec<u32> = self
                .running
                .iter()
                .filter(
                    |(_, running)| matches!(running.wait, Some(Wait::Thunk { thunk: t, .. }) if t == thunk),
                )
                .map(|(number, _)| *number)
                .collect();
            for number in waiting {
                self.wake(number, Resume::Go);
            }
        }
    }

    fn wake(&mut self, number: u32, resume: Resume) {
        if let Some(running) = self.running.get_mut(&number) {
            running.wait = None;
            self.ready.push_back((number, resume));
        }
    }

    /// Whether following the waits for thunks from a target leads back to it.
    fn closes_a_cycle(&self, number: u32) -> bool {
        let mut at = number;
        while let Some(Wait::Thunk { owner, .. }) = self.running.get(&at).and_then(|running| running.wait) {
            if owner == number {
                return true;
            }
            at = owner;
        }
        false
    }

    /// Takes from the host what has ended.
    fn poll(&mut self, wait: bool) {
        let tickets = self
            .running
            .values()
            .filter(|running| matches!(running.wait, Some(Wait::Ticket(_))));
        if tickets.count() == 0 {
            return;
        }
        match self.evaluation.host.finished(wait) {
            Ok(finished) => {
                for (ticket, realised) in finished {
                    self.realised(ticket, realised);
                }
            }
            Err(error) => self.fail_all(&error),
        }
    }

    fn realised(&mut self, ticket: Ticket, realised: Realised) {
        let waits = |running: &Running<'e>| running.wait == Some(Wait::Ticket(ticket));
        let number = self
            .running
            .iter()
            .find(|(_, running)| waits(running))
            .map(|(number, _)| *number);
        if let Some(number) = number {
            self.wake(number, Resume::Realised(realised));
        }
    }

    fn fail_all(&mut self, error: &HostError) {
        let waiting: Vec<u32> = self
            .running
            .iter()
            .filter(|(_, running)| matches!(running.wait, Some(Wait::Ticket(_))))
            .map(|(number, _)| *number)
            .collect();
        for number in waiting {
            self.wake(number, Resume::Realised(Err(HostError::new(error.to_string()))));
        }
    }
}
