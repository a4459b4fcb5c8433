//! Regular expressions as stock Nix has them: `std::regex` with the grammar `extended`, in GNU libstdc++.
//!
//! That is POSIX extended syntax on bytes, with the matching rule of libstdc++, which is neither POSIX's
//! leftmost-longest nor Perl's leftmost-first: all sides of a `|` are tried and the longest wins (the first of equal
//! length), but a repetition keeps the first way that succeeds. Results of `builtins.match` and `builtins.split`
//! depend on that, so this is an engine of its own and not one of the usual crates:
//!
//! * `parse` and `bracket` read the notation, with its errors,
//! * `program` makes a graph of it,
//! * `search` walks the graph with back-tracking, without recursion, and remembers dead ends so that the usual
//!   catastrophes are linear (stock Nix overflows its stack on them).

mod bracket;
mod parse;
mod program;
mod search;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::limits::REGEX_CACHE;
use program::Program;
use search::Search;

/// A compiled regular expression.
#[derive(Debug)]
pub struct Regex {
    program: Program,
}

/// Where the groups of an expression matched, the first group first; `None` for a group that had no part in it.
pub type Groups = Vec<Option<Range<usize>>>;

/// One match of several in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Where it matched.
    pub range: Range<usize>,
    /// Where its groups matched.
    pub groups: Groups,
}

/// A regular expression that cannot be used. The messages are stock Nix's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegexError {
    /// The expression is not well-formed.
    #[error("invalid regular expression '{0}'")]
    Invalid(String),
    /// The expression has too many states or nests too deeply.
    #[error("memory limit exceeded by regular expression '{0}'")]
    TooLarge(String),
}

/// A match was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the regular expression needs too many steps on this text; make it more specific")]
pub struct TooComplex;

/// Why an expression does not compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Invalid,
    TooLarge,
}

impl Regex {
    /// Compiles an expression.
    ///
    /// # Errors
    ///
    /// When it is malformed or too large.
    ///
    /// # Example
    ///
    /// ```
    /// use tvix_node_evaluator::pure::regex::Regex;
    ///
    /// let regex = Regex::new(b"a(b)?(c)").expect("well-formed");
    /// let groups = regex.match_whole(b"ac").expect("simple").expect("matches");
    /// assert_eq!(groups, [None, Some(1..2)]);
    /// ```
    pub fn new(pattern: &[u8]) -> Result<Regex, RegexError> {
        let compiled = parse::parse(pattern).and_then(|tree| Program::new(&tree));
        match compiled {
            Ok(program) => Ok(Regex { program }),
            Err(fault) => {
                let pattern = String::from_utf8_lossy(pattern).into_owned();
                Err(match fault {
                    Fault::Invalid => RegexError::Invalid(pattern),
                    Fault::TooLarge => RegexError::TooLarge(pattern),
                })
            }
        }
    }

    /// Matches a whole text (`builtins.match`): the groups, or `None` if it does not match.
    ///
    /// # Errors
    ///
    /// When it takes too many steps.
    pub fn match_whole(&self, text: &[u8]) -> Result<Option<Groups>, TooComplex> {
        let found = Search::new(&self.program, text).whole()?;
        Ok(found.map(|found| found.groups))
    }

    /// All matches in a text from left to right, as `std::regex_iterator` finds them (`builtins.split`). After an
    /// empty match it tries for one that is not empty at the same place.
    ///
    /// # Errors
    ///
    /// When it takes too many steps.
    pub fn matches(&self, text: &[u8]) -> Result<Vec<Match>, TooComplex> {
        let mut search = Search::new(&self.program, text);
        let mut matches = Vec::new();
        // Whether `^` matches no more.
        let mut inside = false;
        let mut next = search.first(0, inside)?;
        while let Some(found) = next {
            let Range { start, end } = found.range;
            matches.push(found);
            let mut from = end;
            if start == end {
                if end == text.len() {
                    break;
                }
                next = search.not_empty_at(end, inside)?;
                if next.is_some() {
                    continue;
                }
                from += 1;
            }
            inside = true;
            next = search.first(from, inside)?;
        }
        Ok(matches)
    }
}

/// Compiled expressions, so that each is compiled once. Expressions are few and come again and again; when there
/// are too many all are forgotten, which costs no more than compiling them once more.
#[derive(Debug, Default)]
pub struct RegexCache {
    compiled: FxHashMap<Box<[u8]>, Rc<Regex>>,
}

impl RegexCache {
    /// An empty cache.
    pub fn new() -> RegexCache {
        RegexCache::default()
    }

    /// The compiled form of an expression.
    ///
    /// # Errors
    ///
    /// As [`Regex::new`]. Failures are not kept.
    pub fn get(&mut self, pattern: &[u8]) -> Result<Rc<Regex>, RegexError> {
        if let Some(regex) = self.compiled.get(pattern) {
            return Ok(Rc::clone(regex));
        }
        let regex = Rc::new(Regex::new(pattern)?);
        if self.compiled.len() >= REGEX_CACHE {
            self.compiled.clear();
        }
        self.compiled.insert(pattern.into(), Rc::clone(&regex));
        Ok(regex)
    }
}
