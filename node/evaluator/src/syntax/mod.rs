//! From source text to syntax tree: lexer, parser, names and positions.
//!
//! The tree is what stock Nix's parser makes of the text (current Nix, `src/libexpr/{lexer.l,parser.y}`), see
//! [`ast`] for the few differences. Sources are bytes; they need not be UTF-8.
//!
//! Not for tools that need comments and white space back: nothing of them is kept.

pub mod ast;
pub mod limits;
pub mod position;
pub mod symbol;
