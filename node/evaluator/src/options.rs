//! What an evaluation is told before it begins.

use std::path::PathBuf;

use crate::limits;

/// One entry of the search path behind `<name>`, from `-I` or `NIX_PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchPathEntry {
    /// First components of the name that this entry answers; empty: any name.
    pub prefix: String,
    /// A path, or a URL of a tarball that the host is asked to fetch.
    pub location: String,
}

impl SearchPathEntry {
    /// Reads one `-I` argument or one element of `NIX_PATH`: `prefix=location` or `location`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.split_once('=') {
            Some((prefix, location)) => Self {
                prefix: prefix.to_owned(),
                location: location.to_owned(),
            },
            None => Self {
                prefix: String::new(),
                location: text.to_owned(),
            },
        }
    }

    /// Reads a whole `NIX_PATH` (elements separated by `:`, where the `:` of a URL separates nothing).
    #[must_use]
    pub fn parse_list(text: &str) -> Vec<Self> {
        let mut entries = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let mut end = rest.find(':').unwrap_or(rest.len());
            // "prefix=https://…" and "https://…": the first colon belongs to the URL.
            if rest[end..].starts_with("://") {
                end = rest[end + 1..]
                    .find(':')
                    .map_or(rest.len(), |next| end + 1 + next);
            }
            if end > 0 {
                entries.push(Self::parse(&rest[..end]));
            }
            rest = rest.get(end + 1..).unwrap_or("");
        }
        entries
    }
}

/// An argument for functions that are called automatically.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// `--arg NAME EXPRESSION`.
    Expression(String),
    /// `--argstr NAME TEXT`.
    Text(String),
}

/// What an evaluation may see of the machine it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reading {
    /// Everything, as Nix's commands with `-f` do.
    #[default]
    Impure,
    /// Only the search path's folders and the store (`restrict-eval`).
    Restricted,
    /// As restricted, and neither environment, clock nor current system (`pure-eval`).
    Pure,
}

/// Options of one evaluation.
#[derive(Debug, Clone)]
pub struct Options {
    /// Entries behind `<name>`, first match wins: `-I` arguments first, then `NIX_PATH`.
    pub search_path: Vec<SearchPathEntry>,
    /// `builtins.currentSystem`.
    pub system: String,
    /// Arguments for automatically called functions.
    pub arguments: Vec<(String, Argument)>,
    /// What may be read.
    pub reading: Reading,
    /// Folder that relative paths in `-E` expressions and arguments start from; absolute.
    pub base: PathBuf,
    /// Deepest nesting of function calls.
    pub max_call_depth: u32,
    /// Whether errors carry the whole trace.
    pub show_trace: bool,
    /// Folder of the cache of compiled files; none: every file is parsed and compiled.
    pub code_cache: Option<PathBuf>,
    /// Bytes of the heap beyond which no further targets, or members of them, are begun on it: they go on with a fresh
    /// one.
    pub heap_limit: usize,
    /// How many targets may be under way at once, each with a stack of its own.
    pub max_live_stacks: usize,
}

impl Default for Options {
    /// As Nix behaves without any flag, for this machine's system and folder `/`.
    fn default() -> Self {
        Self {
            search_path: Vec::new(),
            system: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            arguments: Vec::new(),
            reading: Reading::default(),
            base: PathBuf::from("/"),
            max_call_depth: limits::MAX_CALL_DEPTH,
            show_trace: false,
            code_cache: None,
            heap_limit: limits::HEAP_LIMIT,
            max_live_stacks: limits::MAX_LIVE_STACKS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_of_urls_do_not_separate_entries() {
        let entry = |prefix: &str, location: &str| SearchPathEntry {
            prefix: prefix.to_owned(),
            location: location.to_owned(),
        };
        assert_eq!(
            SearchPathEntry::parse_list("/a:nixpkgs=https://x.org/p.tar.gz:https://y.org/q::b=/c"),
            [
                entry("", "/a"),
                entry("nixpkgs", "https://x.org/p.tar.gz"),
                entry("", "https://y.org/q"),
                entry("b", "/c"),
            ]
        );
    }
}
