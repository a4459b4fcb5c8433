//! Walks the graph of a regular expression along a text.
//!
//! This is the depth-first executor of libstdc++ (`_Executor::_M_dfs`), without its recursion: what it does after a
//! recursive call returns is a [`Job`] on a stack. Its global "has solution" is the result of the exploration that
//! ended last.

use super::bracket::Set;
use super::program::{Node, NodeId, Program};
use super::{Groups, Match, TooComplex};
use crate::pure::limits::{REGEX_JOBS, REGEX_MEMORY_BITS, REGEX_STEPS, REGEX_STEPS_BEFORE_MEMORY};

/// What is to be done when the exploration before it has ended.
enum Job {
    /// Explore the second way of an [`Node::Either`].
    Second { node: NodeId, at: usize },
    /// Both ways are explored; the first had this result.
    Combine { first: bool },
    /// Leave a repetition, if one more round led nowhere.
    Exit { node: NodeId, at: usize },
    /// Leave a run one byte earlier, if leaving it here led nowhere.
    Shorten { node: NodeId, least: usize, at: usize },
    /// Where a group began before.
    Reopen { group: u32, start: usize },
    /// Where a group had ended before.
    Reclose { group: u32, end: Option<usize> },
    /// What a counter had before.
    Recount { counter: u32, before: Rounds },
    /// Note the result of an exploration.
    Remember { exploration: usize },
}

/// How many rounds a repetition began at one place.
#[derive(Clone, Copy, Default)]
struct Rounds {
    at: usize,
    count: u8,
}

/// Where a group is: begin, and end once there is one.
#[derive(Clone, Copy, Default)]
struct Group {
    start: usize,
    end: Option<usize>,
}

/// How an exploration may end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// At the end of the text.
    Whole,
    /// Anywhere.
    Prefix,
    /// Anywhere but where it began.
    NotEmpty,
}

/// One or more searches of an expression in a text.
pub(super) struct Search<'s> {
    program: &'s Program,
    text: &'s [u8],
    groups: Vec<Group>,
    rounds: Vec<Rounds>,
    jobs: Vec<Job>,
    steps: u64,
    max_steps: u64,
    /// At how many steps to begin to remember.
    remember_at: u64,
    memory: Option<Memory>,
    /// The longest match of the exploration.
    best: Option<Match>,
}

impl<'s> Search<'s> {
    pub(super) fn new(program: &'s Program, text: &'s [u8]) -> Search<'s> {
        Search {
            program,
            text,
            groups: vec![Group::default(); program.groups],
            rounds: vec![Rounds::default(); program.counters],
            jobs: Vec::new(),
            steps: 0,
            max_steps: REGEX_STEPS,
            remember_at: REGEX_STEPS_BEFORE_MEMORY,
            memory: None,
            best: None,
        }
    }

    /// The match of the whole text.
    pub(super) fn whole(&mut self) -> Result<Option<Match>, TooComplex> {
        self.explore(0, Mode::Whole, false)
    }

    /// The first match at or behind a place. `inside` says that this is not the begin of the text for `^`.
    pub(super) fn first(&mut self, from: usize, inside: bool) -> Result<Option<Match>, TooComplex> {
        self.forget();
        for start in from..=self.text.len() {
            if let Some(first) = &self.program.first
                && !self.text.get(start).is_some_and(|&byte| first.contains(byte))
            {
                continue;
            }
            if let Some(found) = self.explore(start, Mode::Prefix, inside || start > from)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The match at a place, if it is not empty.
    pub(super) fn not_empty_at(&mut self, start: usize, inside: bool) -> Result<Option<Match>, TooComplex> {
        self.forget();
        self.explore(start, Mode::NotEmpty, inside)
    }

    /// What is remembered holds for one search: a later one may have other rules for where it begins.
    fn forget(&mut self) {
        self.memory = None;
        self.remember_at = self.steps + REGEX_STEPS_BEFORE_MEMORY;
    }

    fn push(&mut self, job: Job) -> Result<(), TooComplex> {
        if self.jobs.len() >= REGEX_JOBS {
            return Err(TooComplex);
        }
        self.jobs.push(job);
        Ok(())
    }

    fn explore(&mut self, start: usize, mode: Mode, inside: bool) -> Result<Option<Match>, TooComplex> {
        self.best = None;
        self.jobs.clear();
        self.groups.fill(Group::default());
        self.rounds.fill(Rounds::default());
        let mut found = self.walk(self.program.start, start, start, mode, inside)?;
        while let Some(job) = self.jobs.pop() {
            if found && mode == Mode::Whole {
                break;
            }
            let (node, at) = match job {
                Job::Second { node, at } => {
                    self.push(Job::Combine { first: found })?;
                    (node, at)
                }
                Job::Combine { first } => {
                    found |= first;
                    continue;
                }
                Job::Exit { node, at } if !found => (node, at),
                Job::Shorten { node, least, at } if !found => {
                    if at > least + 1 {
                        self.push(Job::Shorten {
                            node,
                            least,
                            at: at - 1,
                        })?;
                    }
                    (node, at - 1)
                }
                Job::Exit { .. } | Job::Shorten { .. } => continue,
                Job::Reopen { group, start } => {
                    self.groups[group as usize].start = start;
                    continue;
                }
                Job::Reclose { group, end } => {
                    self.groups[group as usize].end = end;
                    continue;
                }
                Job::Recount { counter, before } => {
                    self.rounds[counter as usize] = before;
                    continue;
                }
                Job::Remember { exploration } => {
                    if let Some(memory) = &mut self.memory {
                        memory.insert(exploration, found);
                    }
                    continue;
                }
            };
            found = self.walk(node, at, start, mode, inside)?;
        }
        Ok(self.best.take())
    }

    /// Goes on from a node until the way ends, leaving jobs for what remains to be tried. Whether it ended in a
    /// match.
    fn walk(
        &mut self,
        mut id: NodeId,
        mut at: usize,
        start: usize,
        mode: Mode,
        inside: bool,
    ) -> Result<bool, TooComplex> {
        let program = self.program;
        let text = self.text;
        loop {
            self.steps += 1;
            if self.steps >= self.remember_at {
                if self.steps > self.max_steps {
                    return Err(TooComplex);
                }
                self.remember_at = self.max_steps;
                if self.memory.is_none() {
                    self.memory = Memory::new(program, start, text.len());
                }
            }
            match &program.nodes[id as usize] {
                Node::Accept => return Ok(self.accept(start, at, mode)),
                Node::Byte(byte, next) => {
                    if text.get(at) != Some(byte) {
                        return Ok(false);
                    }
                    at += 1;
                    id = *next;
                }
                Node::Set(set, next) => {
                    if !text.get(at).is_some_and(|&byte| set.contains(byte)) {
                        return Ok(false);
                    }
                    at += 1;
                    id = *next;
                }
                Node::Begin(next) => {
                    if at != start || inside {
                        return Ok(false);
                    }
                    id = *next;
                }
                Node::End(next) => {
                    if at != text.len() {
                        return Ok(false);
                    }
                    id = *next;
                }
                Node::Open(group, next) => {
                    let before = self.groups[*group as usize].start;
                    self.push(Job::Reopen {
                        group: *group,
                        start: before,
                    })?;
                    self.groups[*group as usize].start = at;
                    id = *next;
                }
                Node::Close(group, next) => {
                    let before = self.groups[*group as usize].end;
                    self.push(Job::Reclose {
                        group: *group,
                        end: before,
                    })?;
                    self.groups[*group as usize].end = Some(at);
                    id = *next;
                }
                Node::Either(first, second) => {
                    if let Some(known) = self.known(id, at)? {
                        return Ok(known);
                    }
                    self.push(Job::Second { node: *second, at })?;
                    id = *first;
                }
                Node::Repeat { body, exit, counter } => {
                    if let Some(known) = self.known(id, at)? {
                        return Ok(known);
                    }
                    match counter {
                        None => {
                            self.push(Job::Exit { node: *exit, at })?;
                            id = *body;
                        }
                        Some(counter) => {
                            let before = self.rounds[*counter as usize];
                            let count = if before.at == at { before.count } else { 0 };
                            // Two rounds at one place are allowed, the second for the sake of groups in it.
                            if count < 2 {
                                self.push(Job::Exit { node: *exit, at })?;
                                self.push(Job::Recount {
                                    counter: *counter,
                                    before,
                                })?;
                                self.rounds[*counter as usize] = Rounds { at, count: count + 1 };
                                id = *body;
                            } else {
                                id = *exit;
                            }
                        }
                    }
                }
                Node::Run { set, exit } => {
                    let (end, known) = self.run(id, set, at);
                    if let Some(true) = known {
                        return Ok(true);
                    }
                    if let (Some(false), true) = (known, end == at) {
                        return Ok(false);
                    }
                    if let Some(memory) = &self.memory {
                        let exploration = memory.exploration(id, at, &self.rounds);
                        self.push(Job::Remember { exploration })?;
                    }
                    // Where the rest of the run is known to fail, leaving it later does too.
                    let last = if known == Some(false) { end - 1 } else { end };
                    if last > at {
                        self.push(Job::Shorten {
                            node: *exit,
                            least: at,
                            at: last,
                        })?;
                    }
                    at = last;
                    id = *exit;
                }
            }
        }
    }

    /// Runs over bytes of a set: how far, and what is known of the run from there, in which case it stopped there.
    fn run(&mut self, id: NodeId, set: &Set, from: usize) -> (usize, Option<bool>) {
        let mut at = from;
        loop {
            if let Some(memory) = &self.memory
                && let Some(known) = memory.get(memory.exploration(id, at, &self.rounds))
            {
                return (at, Some(known));
            }
            if !self.text.get(at).is_some_and(|&byte| set.contains(byte)) {
                self.steps += (at - from) as u64 / 16;
                return (at, None);
            }
            at += 1;
        }
    }

    /// The result of exploring a node at a place, if it was explored before; else makes sure it will be known.
    fn known(&mut self, id: NodeId, at: usize) -> Result<Option<bool>, TooComplex> {
        let Some(memory) = &self.memory else {
            return Ok(None);
        };
        let exploration = memory.exploration(id, at, &self.rounds);
        if let Some(known) = memory.get(exploration) {
            return Ok(Some(known));
        }
        self.push(Job::Remember { exploration })?;
        Ok(None)
    }

    fn accept(&mut self, start: usize, at: usize, mode: Mode) -> bool {
        let allowed = match mode {
            Mode::Whole => at == self.text.len(),
            Mode::Prefix => true,
            Mode::NotEmpty => at != start,
        };
        if allowed && self.best.as_ref().is_none_or(|best| best.range.end < at) {
            let groups: Groups = self
                .groups
                .iter()
                .map(|group| group.end.map(|end| group.start..end))
                .collect();
            self.best = Some(Match {
                range: start..at,
                groups,
            });
        }
        allowed
    }
}

/// Which nodes were explored at which places, and whether a match followed.
///
/// What follows from a node depends on the text from there on and on how many rounds of each repetition that can be
/// empty began at this very place (none, one, two), and on nothing else.
struct Memory {
    /// The first place.
    from: usize,
    /// How many explorations of a node there can be.
    per_node: usize,
    explored: Vec<u64>,
    found: Vec<u64>,
}

/// How many rounds can have begun at one place: 0, 1, 2.
const ROUNDS: usize = 3;

impl Memory {
    fn new(program: &Program, from: usize, to: usize) -> Option<Memory> {
        let states = ROUNDS.checked_pow(u32::try_from(program.counters).ok()?)?;
        let per_node = (to - from + 1).checked_mul(states)?;
        let bits = program.nodes.len().checked_mul(per_node)?;
        if bits > REGEX_MEMORY_BITS {
            return None;
        }
        let words = bits.div_ceil(64);
        Some(Memory {
            from,
            per_node,
            explored: vec![0; words],
            found: vec![0; words],
        })
    }

    /// The number of an exploration.
    fn exploration(&self, node: NodeId, at: usize, rounds: &[Rounds]) -> usize {
        let mut number = at - self.from;
        for round in rounds {
            let count = if round.at == at {
                usize::from(round.count)
            } else {
                0
            };
            number = number * ROUNDS + count;
        }
        node as usize * self.per_node + number
    }

    fn get(&self, exploration: usize) -> Option<bool> {
        let (word, mask) = (exploration / 64, 1 << (exploration % 64));
        (self.explored[word] & mask != 0).then(|| self.found[word] & mask != 0)
    }

    fn insert(&mut self, exploration: usize, found: bool) {
        let (word, mask) = (exploration / 64, 1 << (exploration % 64));
        self.explored[word] |= mask;
        if found {
            self.found[word] |= mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::regex::Regex;

    #[test]
    fn too_many_steps_are_given_up() {
        let regex = Regex::new(b"(a|b|c)*d").unwrap();
        let text = b"abc".repeat(100_000);
        let mut search = Search::new(&regex.program, &text);
        search.max_steps = 20_000;
        assert_eq!(search.whole(), Err(TooComplex));
        assert_eq!(Search::new(&regex.program, &text).whole(), Ok(None));
    }
}
