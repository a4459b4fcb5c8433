//! From the notation of a regular expression to a tree.

use super::Fault;
use super::bracket::{Set, bracket};
use crate::pure::limits::{REGEX_DEPTH, REGEX_REPETITIONS, REGEX_STATES};

/// A regular expression as a tree.
#[derive(Debug)]
pub(super) enum Tree {
    /// Nothing.
    Empty,
    /// One byte.
    Byte(u8),
    /// Any byte of a set.
    Set(Box<Set>),
    /// `^`
    Begin,
    /// `$`
    End,
    /// `(…)`, with its number from 0.
    Group(u32, Box<Tree>),
    /// One behind the other.
    Concat(Vec<Tree>),
    /// `a|b|c`
    Alternatives(Vec<Tree>),
    /// `*`, `+`, `?`, `{…}`: at least so many times; at most so many, or without bound.
    Repeat(Box<Tree>, u32, Option<u32>),
}

/// A parsed expression and how many groups it has.
pub(super) struct Parsed {
    pub(super) tree: Tree,
    pub(super) groups: u32,
}

pub(super) fn parse(pattern: &[u8]) -> Result<Parsed, Fault> {
    // The C++ parser refuses a null byte too.
    if pattern.contains(&0) {
        return Err(Fault::Invalid);
    }
    let mut parser = Parser {
        rest: pattern,
        groups: 0,
        depth: 0,
    };
    let tree = parser.alternatives()?;
    // What is left is a `)` or a repetition of nothing.
    if !parser.rest.is_empty() {
        return Err(Fault::Invalid);
    }
    Ok(Parsed {
        tree,
        groups: parser.groups,
    })
}

struct Parser<'p> {
    rest: &'p [u8],
    groups: u32,
    depth: u32,
}

impl Parser<'_> {
    fn eat(&mut self, byte: u8) -> bool {
        match self.rest {
            [first, rest @ ..] if *first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn alternatives(&mut self) -> Result<Tree, Fault> {
        let first = self.concat()?;
        if self.rest.first() != Some(&b'|') {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.eat(b'|') {
            all.push(self.concat()?);
        }
        Ok(Tree::Alternatives(all))
    }

    fn concat(&mut self) -> Result<Tree, Fault> {
        let mut all = Vec::new();
        while let Some(term) = self.term()? {
            all.push(term);
        }
        Ok(match all.len() {
            0 => Tree::Empty,
            1 => all.remove(0),
            _ => Tree::Concat(all),
        })
    }

    /// An atom with its repetitions. `None` where none begins; the caller knows whether that is in order.
    fn term(&mut self) -> Result<Option<Tree>, Fault> {
        let [first, rest @ ..] = self.rest else {
            return Ok(None);
        };
        let mut term = match *first {
            // Assertions take no repetition: `^*` is an error.
            b'^' | b'$' => {
                self.rest = rest;
                return Ok(Some(if *first == b'^' { Tree::Begin } else { Tree::End }));
            }
            b'|' | b')' | b'*' | b'+' | b'?' | b'{' => return Ok(None),
            b'(' => {
                self.rest = rest;
                self.group()?
            }
            b'[' => {
                let (set, rest) = bracket(rest)?;
                self.rest = rest;
                Tree::Set(Box::new(set))
            }
            b'.' => {
                self.rest = rest;
                Tree::Set(Box::new(Set::all()))
            }
            b'\\' => match rest {
                [escaped, rest @ ..] if b".[\\()*+?{|^$".contains(escaped) => {
                    self.rest = rest;
                    Tree::Byte(*escaped)
                }
                // Escaping what needs no escape is undefined in POSIX, and an error here. So is `\` at the end.
                _ => return Err(Fault::Invalid),
            },
            byte => {
                self.rest = rest;
                Tree::Byte(byte)
            }
        };
        let mut repetitions = 0;
        while let Some((least, most)) = self.repetition()? {
            term = Tree::Repeat(Box::new(term), least, most);
            // Each is a level of the tree: `a****…`.
            repetitions += 1;
            if repetitions > REGEX_REPETITIONS {
                return Err(Fault::TooLarge);
            }
        }
        Ok(Some(term))
    }

    fn group(&mut self) -> Result<Tree, Fault> {
        let number = self.groups;
        self.groups += 1;
        self.depth += 1;
        if self.depth > REGEX_DEPTH {
            return Err(Fault::TooLarge);
        }
        let outside = self.depth;
        let inner = self.alternatives()?;
        if !self.eat(b')') {
            return Err(Fault::Invalid);
        }
        self.depth = outside - 1;
        Ok(Tree::Group(number, Box::new(inner)))
    }

    fn repetition(&mut self) -> Result<Option<(u32, Option<u32>)>, Fault> {
        let [first, rest @ ..] = self.rest else {
            return Ok(None);
        };
        let bounds = match first {
            b'*' => (0, None),
            b'+' => (1, None),
            b'?' => (0, Some(1)),
            b'{' => {
                self.rest = rest;
                return self.interval().map(Some);
            }
            _ => return Ok(None),
        };
        self.rest = rest;
        Ok(Some(bounds))
    }

    /// `{n}`, `{n,}`, `{n,m}` behind the brace.
    fn interval(&mut self) -> Result<(u32, Option<u32>), Fault> {
        let least = self.number()?.ok_or(Fault::Invalid)?;
        let most = if self.eat(b',') {
            self.number()?
        } else {
            Some(least)
        };
        if !self.eat(b'}') || most.is_some_and(|most| most < least) {
            return Err(Fault::Invalid);
        }
        Ok((least, most))
    }

    fn number(&mut self) -> Result<Option<u32>, Fault> {
        let digits = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = self.rest.split_at(digits);
        self.rest = rest;
        let mut value = None;
        for digit in number {
            let next = value.unwrap_or(0) * 10 + u32::from(digit - b'0');
            if next as usize > REGEX_STATES {
                return Err(Fault::TooLarge);
            }
            value = Some(next);
        }
        Ok(value)
    }
}
