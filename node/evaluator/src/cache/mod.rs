//! Compiled files, kept from one evaluation to the next.
//!
//! Parsing and compiling is half of a small evaluation's time, and most files are the same as last time. What the
//! compile pass makes of a file is kept under a [`Key`] that covers everything it depends on: the text, the folder
//! (paths are absolute in code), what `~` means, how the evaluation may read, and the sources of this program. So an
//! entry is never out of date; one that nobody asks for any more is pushed out by younger ones.
//!
//! | file | what it has |
//! |---|---|
//! | `bytes` | numbers and texts as bytes |
//! | `encode` | code to bytes |
//! | `decode` | bytes to code, piece by piece as it is evaluated |
//! | `store` | entries in files: found, checked, bounded |
//!
//! What is wrong with the files is never the evaluation's problem: an entry that does not check is as good as none,
//! and a folder that cannot be written makes the next evaluation slower, not this one wrong. Deleting the folder
//! loses time only.

mod bytes;
mod decode;
mod encode;
mod store;

pub(crate) use decode::{Loaded, Loader};
pub(crate) use encode::encode;
pub(crate) use store::CodeStore;

use crate::options::Reading;

/// What an entry is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key(pub(crate) [u8; Key::LEN]);

impl Key {
    /// As many bytes as the digest of a store path: more than anybody can find two texts for.
    pub(crate) const LEN: usize = 20;

    /// The key of a text in a folder.
    pub(crate) fn new(text: &[u8], folder: &[u8], home: Option<&[u8]>, reading: Reading) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(env!("EVALUATOR_SOURCES").as_bytes());
        let pure = [u8::from(reading == Reading::Pure), u8::from(home.is_some())];
        hasher.update(&pure);
        for part in [folder, home.unwrap_or_default()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(text);
        let mut key = [0; Self::LEN];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..Self::LEN]);
        Self(key)
    }
}

/// How deep code may nest to be kept. What is deeper comes from generated chains of operators, and decoding it
/// would need more stack than a force has left for certain.
const MAX_DEPTH: u32 = 2 * crate::syntax::limits::MAX_DEPTH;

// What each byte in front of an expression means.
const NULL: u8 = 0;
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const INT: u8 = 3;
const FLOAT: u8 = 4;
const STRING: u8 = 5;
const PATH: u8 = 6;
const EMPTY_LIST: u8 = 7;
const EMPTY_ATTRS: u8 = 8;
const CONSTANT: u8 = 9;
const LOCAL: u8 = 10;
const OUTER: u8 = 11;
const DYNAMIC: u8 = 12;
const FIELD: u8 = 13;
const SELECT: u8 = 14;
const SELECT_OR: u8 = 15;
const HAS_ATTR: u8 = 16;
const LAMBDA: u8 = 17;
const CALL: u8 = 18;
const LIST: u8 = 19;
const ATTRS: u8 = 20;
const REC: u8 = 21;
const LET: u8 = 22;
const WITH: u8 = 23;
const IF: u8 = 24;
const ASSERT: u8 = 25;
const NOT: u8 = 26;
const BINARY: u8 = 27;
const LOGIC: u8 = 28;
const UPDATE: u8 = 29;
const CONCAT_LISTS: u8 = 30;
const SUM: u8 = 31;
const INTERPOLATE: u8 = 32;
const CURRENT_POSITION: u8 = 33;
const LATER: u8 = 34;

/// Operators by the number they are written as.
const OPERATORS: [crate::code::Operator; 10] = {
    use crate::code::Operator::*;
    [
        Equal,
        NotEqual,
        Less,
        LessOrEqual,
        Greater,
        GreaterOrEqual,
        Add,
        Subtract,
        Multiply,
        Divide,
    ]
};

/// As [`OPERATORS`].
const LOGIC_OPERATORS: [crate::code::LogicOperator; 3] = {
    use crate::code::LogicOperator::*;
    [And, Or, Implies]
};

/// As [`OPERATORS`].
const SCOPES: [crate::code::Scope; 3] = {
    use crate::code::Scope::*;
    [Inner, Around, Shared]
};
