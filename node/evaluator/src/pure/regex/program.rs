//! From the tree of a regular expression to a graph that can be walked.

use super::Fault;
use super::bracket::Set;
use super::parse::{Parsed, Tree};
use crate::pure::limits::REGEX_STATES;

/// The number of a [`Node`].
pub(super) type NodeId = u32;

/// A step of a match.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// The whole expression is matched.
    Accept,
    /// One byte of the text.
    Byte(u8, NodeId),
    /// One byte of a set.
    Set(Box<Set>, NodeId),
    /// Only at the begin of the text.
    Begin(NodeId),
    /// Only at the end of the text.
    End(NodeId),
    /// A group begins.
    Open(u32, NodeId),
    /// A group ends.
    Close(u32, NodeId),
    /// Both ways; the longer match counts, the first of equal length.
    Either(NodeId, NodeId),
    /// Once more through the body, or else on to the exit. The body ends here again, or is an option and ends at
    /// the exit.
    Repeat {
        /// The way of one more round.
        body: NodeId,
        /// The way out.
        exit: NodeId,
        /// Whether a round can consume nothing, so that rounds must be counted: the number of the counter.
        counter: Option<u32>,
    },
    /// As [`Node::Repeat`] without a bound, where the body is one byte of a set.
    Run {
        /// What a round consumes.
        set: Box<Set>,
        /// The way out.
        exit: NodeId,
    },
}

/// A graph of nodes.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) nodes: Vec<Node>,
    pub(super) start: NodeId,
    pub(super) groups: usize,
    /// How many repetitions must count their rounds.
    pub(super) counters: usize,
    /// The bytes a match can begin with; `None` if it can be empty or depends on where it is.
    pub(super) first: Option<Set>,
}

impl Program {
    pub(super) fn new(parsed: &Parsed) -> Result<Program, Fault> {
        let groups = parsed.groups as usize;
        let mut program = Program {
            nodes: Vec::new(),
            start: 0,
            groups,
            counters: 0,
            first: None,
        };
        let accept = program.push(Node::Accept)?;
        program.start = program.compile(&parsed.tree, accept)?;
        let mut first = Set::empty();
        if !can_be_empty(&parsed.tree) && collect_first(&parsed.tree, &mut first) {
            program.first = Some(first);
        }
        Ok(program)
    }

    fn push(&mut self, node: Node) -> Result<NodeId, Fault> {
        if self.nodes.len() >= REGEX_STATES {
            return Err(Fault::TooLarge);
        }
        self.nodes.push(node);
        Ok(self.nodes.len() as NodeId - 1)
    }

    /// Adds nodes that match a tree and then go on at `next`; gives the first.
    fn compile(&mut self, tree: &Tree, next: NodeId) -> Result<NodeId, Fault> {
        match tree {
            Tree::Empty => Ok(next),
            Tree::Byte(byte) => self.push(Node::Byte(*byte, next)),
            Tree::Set(set) => self.push(Node::Set(set.clone(), next)),
            Tree::Begin => self.push(Node::Begin(next)),
            Tree::End => self.push(Node::End(next)),
            Tree::Group(number, inner) => {
                let close = self.push(Node::Close(*number, next))?;
                let inner = self.compile(inner, close)?;
                self.push(Node::Open(*number, inner))
            }
            Tree::Concat(all) => all
                .iter()
                .rev()
                .try_fold(next, |next, tree| self.compile(tree, next)),
            Tree::Alternatives(all) => {
                let mut ways = all.iter().rev();
                let Some(last) = ways.next() else { return Ok(next) };
                let last = self.compile(last, next)?;
                ways.try_fold(last, |others, tree| {
                    let way = self.compile(tree, next)?;
                    self.push(Node::Either(way, others))
                })
            }
            Tree::Repeat(inner, least, most) => {
                let mut next = match most {
                    None => self.endless(inner, next)?,
                    Some(most) => {
                        let exit = next;
                        let mut start = next;
                        for _ in *least..*most {
                            let body = self.compile(inner, start)?;
                            let counter = self.counter(inner);
                            start = self.push(Node::Repeat { body, exit, counter })?;
                        }
                        start
                    }
                };
                // `a+` is `a` and then `a*`, without a copy: the loop begins in its body.
                let copies = match (most, least) {
                    (None, 1..) => {
                        next = match self.nodes[next as usize] {
                            Node::Repeat { body, .. } => body,
                            _ => self.compile(inner, next)?,
                        };
                        least - 1
                    }
                    _ => *least,
                };
                for _ in 0..copies {
                    next = self.compile(inner, next)?;
                }
                Ok(next)
            }
        }
    }

    /// `inner*`
    fn endless(&mut self, inner: &Tree, exit: NodeId) -> Result<NodeId, Fault> {
        let set = match inner {
            Tree::Set(set) => Some(set.clone()),
            Tree::Byte(byte) => {
                let mut set = Set::empty();
                set.insert(*byte);
                Some(Box::new(set))
            }
            _ => None,
        };
        if let Some(set) = set {
            return self.push(Node::Run { set, exit });
        }
        let counter = self.counter(inner);
        let repeat = self.push(Node::Repeat {
            body: 0,
            exit,
            counter,
        })?;
        let start = self.compile(inner, repeat)?;
        if let Node::Repeat { body, .. } = &mut self.nodes[repeat as usize] {
            *body = start;
        }
        Ok(repeat)
    }

    fn counter(&mut self, inner: &Tree) -> Option<u32> {
        if !can_be_empty(inner) {
            return None;
        }
        self.counters += 1;
        Some(self.counters as u32 - 1)
    }
}

/// Whether a tree can match nothing.
fn can_be_empty(tree: &Tree) -> bool {
    match tree {
        Tree::Empty | Tree::Begin | Tree::End => true,
        Tree::Byte(_) | Tree::Set(_) => false,
        Tree::Group(_, inner) => can_be_empty(inner),
        Tree::Concat(all) => all.iter().all(can_be_empty),
        Tree::Alternatives(all) => all.iter().any(can_be_empty),
        Tree::Repeat(inner, least, _) => *least == 0 || can_be_empty(inner),
    }
}

/// Adds the bytes that a match of the tree can begin with. `false` if it has an assertion in front, and the set is
/// no use.
fn collect_first(tree: &Tree, set: &mut Set) -> bool {
    match tree {
        Tree::Empty => true,
        Tree::Begin | Tree::End => false,
        Tree::Byte(byte) => {
            set.insert(*byte);
            true
        }
        Tree::Set(other) => {
            set.union(other);
            true
        }
        Tree::Group(_, inner) | Tree::Repeat(inner, ..) => collect_first(inner, set),
        Tree::Concat(all) => {
            for tree in all {
                if !collect_first(tree, set) {
                    return false;
                }
                if !can_be_empty(tree) {
                    break;
                }
            }
            true
        }
        Tree::Alternatives(all) => all.iter().all(|tree| collect_first(tree, set)),
    }
}
