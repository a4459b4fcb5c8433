//! Names as numbers: every identifier and attribute name of an evaluation is stored once.

use std::hash::Hasher;
use std::num::NonZeroU32;

use hashbrown::HashTable;
use rustc_hash::FxHasher;

/// A name. Equal names have equal symbols; the order of symbols is the order in which they were first seen, not
/// the alphabetical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Symbol(NonZeroU32);

impl Symbol {
    /// A number from 1 on, dense, to index tables with.
    #[inline]
    pub const fn index(self) -> usize {
        self.0.get() as usize
    }

    /// The number behind the symbol, from 1 on, to store it elsewhere.
    #[inline]
    pub const fn to_u32(self) -> u32 {
        self.0.get()
    }

    /// Back from [`Symbol::to_u32`]; `None` for 0.
    #[inline]
    pub const fn from_u32(number: u32) -> Option<Symbol> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Symbol(number)),
            None => None,
        }
    }

    /// The symbol of the known name with that index.
    const fn nth_known(index: usize) -> Symbol {
        match NonZeroU32::new(index as u32 + 1) {
            Some(number) => Symbol(number),
            None => panic!("never zero"),
        }
    }
}

macro_rules! known_symbols {
    ($($name:ident = $text:literal,)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Known { $($name,)* }
        const KNOWN: &[&str] = &[$($text,)*];

        /// Names that parser and evaluator know. Every [`SymbolTable`] starts with them.
        pub mod known {
            use super::{Known, Symbol};
            $(
                #[doc = concat!("`", $text, "`")]
                pub const $name: Symbol = Symbol::nth_known(Known::$name as usize);
            )*
        }
    };
}

known_symbols! {
    SUB = "__sub",
    MUL = "__mul",
    DIV = "__div",
    LESS_THAN = "__lessThan",
    FIND_FILE = "__findFile",
    NIX_PATH = "__nixPath",
    BODY = "body",
    OR = "or",
    EMPTY = "",
    ARGS = "args",
    BUILDER = "builder",
    BUILTINS = "builtins",
    COLUMN = "column",
    DERIVATION = "derivation",
    DRV_ATTRS = "drvAttrs",
    DRV_PATH = "drvPath",
    ALL = "all",
    FILE = "file",
    FUNCTOR = "__functor",
    FUNCTOR_ARGS = "__functionArgs",
    IGNORE_NULLS = "__ignoreNulls",
    KEY = "key",
    LINE = "line",
    META = "meta",
    NAME = "name",
    OPERATOR = "operator",
    OUT = "out",
    OUT_PATH = "outPath",
    OUTPUT_HASH = "outputHash",
    OUTPUT_HASH_ALGO = "outputHashAlgo",
    OUTPUT_HASH_MODE = "outputHashMode",
    OUTPUT_NAME = "outputName",
    OUTPUTS = "outputs",
    OVERRIDES = "__overrides",
    CONTENT_ADDRESSED = "__contentAddressed",
    IMPURE = "__impure",
    JSON = "__json",
    STRUCTURED_ATTRS = "__structuredAttrs",
    PATH = "path",
    PREFIX = "prefix",
    RECURSE_FOR_DERIVATIONS = "recurseForDerivations",
    RIGHT = "right",
    START_SET = "startSet",
    SUCCESS = "success",
    SYSTEM = "system",
    TO_STRING = "__toString",
    TYPE = "type",
    VALUE = "value",
    VERSION = "version",
    WRONG = "wrong",
}

/// All names of an evaluation, each stored once. Never forgets one.
///
/// Holds at most 2³²-2 names of 4 GiB together; an evaluation that comes near has exhausted its memory before.
#[derive(Clone, Debug)]
pub struct SymbolTable {
    /// Where each name ends in `bytes`; it begins where the one before ends. Index 0 belongs to no symbol.
    ends: Vec<u32>,
    bytes: Vec<u8>,
    /// Hash and number of each symbol.
    index: HashTable<(u32, u32)>,
}

impl SymbolTable {
    /// A table with the [`known`] names.
    pub fn new() -> SymbolTable {
        let mut table = SymbolTable {
            ends: vec![0],
            bytes: Vec::new(),
            index: HashTable::new(),
        };
        for name in KNOWN {
            table.intern(name.as_bytes());
        }
        table
    }

    /// The symbol of a name, new if need be.
    ///
    /// # Panics
    ///
    /// When all names together pass 4 GiB.
    #[inline]
    pub fn intern(&mut self, name: &[u8]) -> Symbol {
        let hash = hash_of(name);
        match self.find(hash, name) {
            Some(symbol) => symbol,
            None => self.insert(hash, name),
        }
    }

    /// The symbol of a name, if it was ever interned.
    #[inline]
    pub fn lookup(&self, name: &[u8]) -> Option<Symbol> {
        self.find(hash_of(name), name)
    }

    /// The bytes of a name.
    ///
    /// # Panics
    ///
    /// When the symbol is of another table.
    #[inline]
    pub fn bytes(&self, symbol: Symbol) -> &[u8] {
        let number = symbol.index();
        &self.bytes[self.ends[number - 1] as usize..self.ends[number] as usize]
    }

    /// The name as text for messages; bytes that are not UTF-8 are replaced.
    pub fn display(&self, symbol: Symbol) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.bytes(symbol))
    }

    /// How many names there are. All symbols have a [`Symbol::index`] of at most this.
    pub fn len(&self) -> usize {
        self.ends.len() - 1
    }

    /// Never true: there are the [`known`] names.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn find(&self, hash: u32, name: &[u8]) -> Option<Symbol> {
        let same = |&(other, number): &(u32, u32)| {
            let number = number as usize;
            other == hash && &self.bytes[self.ends[number - 1] as usize..self.ends[number] as usize] == name
        };
        let &(_, number) = self.index.find(spread(hash), same)?;
        Symbol::from_u32(number)
    }

    #[cold]
    fn insert(&mut self, hash: u32, name: &[u8]) -> Symbol {
        self.bytes.extend_from_slice(name);
        let end = u32::try_from(self.bytes.len());
        let number = u32::try_from(self.ends.len()).ok().and_then(Symbol::from_u32);
        let (Ok(end), Some(symbol)) = (end, number) else {
            panic!("the names of one evaluation pass 4 GiB");
        };
        self.ends.push(end);
        self.index
            .insert_unique(spread(hash), (hash, symbol.to_u32()), |&(hash, _)| spread(hash));
        symbol
    }
}

impl Default for SymbolTable {
    fn default() -> SymbolTable {
        SymbolTable::new()
    }
}

#[inline]
fn hash_of(name: &[u8]) -> u32 {
    let mut hasher = FxHasher::default();
    hasher.write(name);
    let hash = hasher.finish();
    (hash ^ (hash >> 32)) as u32
}

/// The table takes seven bits of a hash from the top and the bucket from the bottom of a 64-bit number.
#[inline]
fn spread(hash: u32) -> u64 {
    (hash as u64) << 32 | hash as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_have_equal_symbols() {
        let mut table = SymbolTable::new();
        let a = table.intern(b"hello");
        let b = table.intern(b"world");
        assert_ne!(a, b);
        assert_eq!(table.intern(b"hello"), a);
        assert_eq!(table.lookup(b"world"), Some(b));
        assert_eq!(table.lookup(b"nobody"), None);
        assert_eq!(table.bytes(a), b"hello");
        assert_eq!(table.bytes(b), b"world");
    }

    #[test]
    fn known_names_are_there_from_the_start() {
        let mut table = SymbolTable::new();
        assert_eq!(table.len(), KNOWN.len(), "a name is listed twice");
        assert_eq!(table.bytes(known::SUB), b"__sub");
        assert_eq!(table.bytes(known::WRONG), b"wrong");
        assert_eq!(table.bytes(known::EMPTY), b"");
        assert_eq!(table.intern(b"outPath"), known::OUT_PATH);
    }

    #[test]
    fn names_need_not_be_text() {
        let mut table = SymbolTable::new();
        let symbol = table.intern(b"\xff\xfe");
        assert_eq!(table.bytes(symbol), b"\xff\xfe");
        assert_eq!(table.display(symbol), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn many_names_survive_growth() {
        let mut table = SymbolTable::new();
        let symbols: Vec<_> = (0..10_000)
            .map(|n| table.intern(format!("name{n}").as_bytes()))
            .collect();
        for (n, symbol) in symbols.iter().enumerate() {
            assert_eq!(table.bytes(*symbol), format!("name{n}").as_bytes());
            assert_eq!(table.intern(format!("name{n}").as_bytes()), *symbol);
        }
    }
}
