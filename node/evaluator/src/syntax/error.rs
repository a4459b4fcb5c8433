//! What can be wrong with a source text.

use std::fmt::Write;

use super::limits::MAX_DEPTH;
use super::position::{Pos, SourceMap};

/// A source text that is no Nix expression.
///
/// `Display` gives the message alone; [`SyntaxError::message`] adds what needs the source map, and
/// [`SyntaxError::render`] shows the place with its line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct SyntaxError {
    /// Where.
    pub pos: Pos,
    /// What.
    pub kind: SyntaxErrorKind,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SyntaxErrorKind {
    /// A token stands where the grammar has none such.
    #[error("syntax error, unexpected {found}{}", expecting(.expected))]
    Unexpected {
        /// The name of the token.
        found: &'static str,
        /// What may stand there, in words; empty where it is almost anything.
        expected: &'static str,
    },
    /// An attribute is defined twice, and not both times as a set.
    #[error("attribute '{path}' already defined")]
    DuplicateAttr {
        /// The attribute path.
        path: String,
        /// Where it is defined first.
        previous: Pos,
    },
    /// Two formals of a function have one name.
    #[error("duplicate formal function argument '{0}'")]
    DuplicateFormal(String),
    /// `let ${e} = …`
    #[error("dynamic attributes not allowed in let")]
    DynamicInLet,
    /// `inherit ${e};`
    #[error("dynamic attributes not allowed in inherit")]
    DynamicInInherit,
    /// An integer literal above 2⁶³-1.
    #[error("invalid integer '{0}': integers go from -9223372036854775808 to 9223372036854775807")]
    InvalidInteger(String),
    /// A float literal that a double cannot hold.
    #[error("invalid float '{0}': it is too large or too small for a double")]
    InvalidFloat(String),
    /// `./a/`
    #[error("path has a trailing slash")]
    TrailingSlash,
    /// A NUL byte in a string.
    #[error("a string contains a null byte; Nix strings cannot")]
    NullByte,
    /// `~/a` where home directories may not be asked for.
    #[error(
        "the path '{0}' can not be resolved: there is no home directory (HOME is not set, or evaluation is pure)"
    )]
    NoHome(String),
    /// `|>` and `<|`
    #[error(
        "the pipe operator '{0}' belongs to the experimental Nix feature 'pipe-operators', which is not \
         supported; write a function call"
    )]
    PipeOperator(&'static str),
    /// `/*` without `*/`
    #[error("this comment has no end; expecting '*/'")]
    OpenComment,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("the expression is nested too deeply; the limit is {MAX_DEPTH} levels")]
    TooDeep,
}

fn expecting(expected: &str) -> String {
    if expected.is_empty() {
        String::new()
    } else {
        format!(", expecting {expected}")
    }
}

impl SyntaxError {
    /// The message, with all positions it mentions.
    pub fn message(&self, sources: &SourceMap) -> String {
        let mut message = self.kind.to_string();
        if let SyntaxErrorKind::DuplicateAttr { previous, .. } = self.kind
            && let Some(location) = sources.resolve(previous)
        {
            // Writing to a String cannot fail.
            let _ = write!(message, " at {location}");
        }
        message
    }

    /// The message, the place, and the lines around it with a caret, in the form of stock Nix:
    ///
    /// ```text
    /// error: syntax error, unexpected '}', expecting ';'
    ///        at /etc/nixos/a.nix:1:9:
    ///             1| { a = 1 }
    ///              |         ^
    /// ```
    pub fn render(&self, sources: &SourceMap) -> String {
        let mut text = format!("error: {}", self.message(sources));
        if let Some(excerpt) = sources.excerpt(self.pos) {
            text.push('\n');
            text.push_str(&excerpt);
        }
        text
    }
}
