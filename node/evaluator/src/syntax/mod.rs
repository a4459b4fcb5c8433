//! From source text to syntax tree: lexer, parser, names and positions.
//!
//! The tree is what stock Nix's parser makes of the text (current Nix, `src/libexpr/{lexer.l,parser.y}`), see
//! [`ast`] for the few differences. Sources are bytes; they need not be UTF-8.
//!
//! Not for tools that need comments and white space back: nothing of them is kept.
//!
//! A text goes into a [`SourceMap`], which gives it a range of positions; [`parse`] makes a tree of it in an arena
//! and adds its names to a [`SymbolTable`].

pub mod ast;
mod attributes;
mod bindings;
mod class;
mod error;
mod functions;
mod lexer;
pub mod limits;
mod operands;
mod operators;
mod parser;
mod paths;
pub mod position;
pub mod print;
mod strings;
pub mod symbol;

#[cfg(test)]
mod tests;

pub use error::{SyntaxError, SyntaxErrorKind};
pub use parser::{Source, parse};
pub use position::{Location, Origin, Pos, SourceFile, SourceId, SourceMap, TooMuchSource};
pub use symbol::{Symbol, SymbolTable, known};
