//! The parser: recursive descent over the tokens, one method per rule of stock Nix's `parser.y`.
//!
//! This file has the state and the expressions that reach to the end; `operators` has what combines operands,
//! `operands` the operands, `bindings` and `attributes` the insides of sets, `functions` the lambdas, `strings` and
//! `paths` those literals.

use bumpalo::Bump;

use super::ast::{Assert, AttrName, Bindings, ChainLink, Expr, Formal, If, Let, Select, With};
use super::attributes::Builder;
use super::error::{SyntaxError, SyntaxErrorKind};
use super::lexer::{Kind, Lexer, Token};
use super::limits::MAX_DEPTH;
use super::position::Pos;
use super::strings::Piece;
use super::symbol::{Symbol, SymbolTable, known};

/// Errors are boxed: they are rare, and the result travels through every level of the recursion.
pub(super) type Result<T> = std::result::Result<T, Box<SyntaxError>>;

/// A text to parse and what its path literals refer to.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The text, less than 4 GiB.
    pub text: &'a [u8],
    /// The position of its first byte, see [`SourceMap::start`](super::position::SourceMap::start).
    pub start: Pos,
    /// What relative paths are relative to: the folder of the file, absolute.
    pub base_dir: &'a [u8],
    /// What `~` means, absolute; `None` where that may not be asked for (pure evaluation) or is not known.
    pub home: Option<&'a [u8]>,
}

/// Parses a whole text as one expression.
///
/// The tree lives in `arena`; its literals may point into the text. Names are added to `symbols`.
///
/// # Errors
///
/// The first thing that is wrong with the text. `arena` and `symbols` then hold remains of the attempt.
///
/// # Example
///
/// ```
/// use std::sync::Arc;
/// use tvix_node_evaluator::syntax::{Source, SymbolTable, SourceMap, Origin, ast::Expr, parse};
///
/// let mut sources = SourceMap::new();
/// let id = sources.add(Origin::String, Arc::from(&b"[ 1 2 3 ]"[..])).expect("is small");
/// let mut symbols = SymbolTable::new();
/// let arena = bumpalo::Bump::new();
/// let source = Source {
///     text: sources.file(id).text(),
///     start: sources.start(id),
///     base_dir: b"/",
///     home: None,
/// };
/// let expr = parse(&arena, &source, &mut symbols).expect("is valid Nix");
/// assert!(matches!(expr, Expr::List { items: [_, _, _], .. }));
/// ```
pub fn parse<'a>(
    arena: &'a Bump,
    source: &Source<'a>,
    symbols: &mut SymbolTable,
) -> std::result::Result<Expr<'a>, Box<SyntaxError>> {
    let mut parser = Parser {
        arena,
        text: source.text,
        start: source.start,
        base_dir: source.base_dir,
        home: source.home,
        symbols,
        lexer: Lexer::new(source.text),
        token: Token {
            kind: Kind::End,
            start: 0,
            end: 0,
        },
        depth: 0,
        deepest: 0,
        exprs: Vec::new(),
        names: Vec::new(),
        links: Vec::new(),
        formals: Vec::new(),
        pieces: Vec::new(),
        bytes: Vec::new(),
        builders: Vec::new(),
    };
    parser.continue_at(0);
    let expr = parser.expr()?;
    match parser.token.kind {
        Kind::End => Ok(expr),
        _ => Err(parser.unexpected("end of file")),
    }
}

/// The state of a parse.
///
/// The vectors are scratch stacks: a rule notes the length, pushes, takes everything above the note into the arena
/// and cuts the stack back. So there is no allocation for each list, call or set.
pub(super) struct Parser<'a, 's> {
    pub(super) arena: &'a Bump,
    pub(super) text: &'a [u8],
    pub(super) start: Pos,
    pub(super) base_dir: &'a [u8],
    pub(super) home: Option<&'a [u8]>,
    pub(super) symbols: &'s mut SymbolTable,
    pub(super) lexer: Lexer<'a>,
    /// The current token: the first that no rule has consumed.
    pub(super) token: Token,
    /// How many levels of recursion enclose the current token.
    pub(super) depth: u32,
    /// How deep the tree of the expression at hand reaches, see [`deepen`](Self::deepen).
    pub(super) deepest: u32,
    pub(super) exprs: Vec<Expr<'a>>,
    pub(super) names: Vec<AttrName<'a>>,
    pub(super) links: Vec<ChainLink<'a>>,
    pub(super) formals: Vec<Formal<'a>>,
    pub(super) pieces: Vec<Piece<'a>>,
    pub(super) bytes: Vec<u8>,
    /// Builders that are not in use, kept for their capacity.
    #[allow(clippy::vec_box)] // they move between here and the sets under construction
    pub(super) builders: Vec<Box<Builder<'a>>>,
}

impl<'a> Parser<'a, '_> {
    /// Makes the token behind the current one the current one.
    #[inline]
    pub(super) fn advance(&mut self) {
        self.token = self.lexer.token(self.token.end as usize);
    }

    /// Makes the first token at or behind an offset the current one.
    #[inline]
    pub(super) fn continue_at(&mut self, offset: u32) {
        self.token = self.lexer.token(offset as usize);
    }

    /// The position of the current token.
    #[inline]
    pub(super) fn pos(&self) -> Pos {
        self.pos_at(self.token.start)
    }

    #[inline]
    pub(super) fn pos_at(&self, offset: u32) -> Pos {
        self.start.plus(offset)
    }

    #[inline]
    pub(super) fn text_of(&self, token: Token) -> &'a [u8] {
        &self.text[token.start as usize..token.end as usize]
    }

    #[inline]
    pub(super) fn symbol_of(&mut self, token: Token) -> Symbol {
        let text = self.text_of(token);
        self.symbols.intern(text)
    }

    #[cold]
    pub(super) fn error(&self, pos: Pos, kind: SyntaxErrorKind) -> Box<SyntaxError> {
        Box::new(SyntaxError { pos, kind })
    }

    /// The error that the current token should not be there. `expected` says in words what may.
    #[cold]
    pub(super) fn unexpected(&self, expected: &'static str) -> Box<SyntaxError> {
        let kind = match self.token.kind {
            Kind::OpenComment => SyntaxErrorKind::OpenComment,
            Kind::PipeFrom => SyntaxErrorKind::PipeOperator("<|"),
            Kind::PipeInto => SyntaxErrorKind::PipeOperator("|>"),
            kind => SyntaxErrorKind::Unexpected {
                found: kind.describe(),
                expected,
            },
        };
        self.error(self.pos(), kind)
    }

    /// Consumes a token of one kind.
    #[inline]
    pub(super) fn expect(&mut self, kind: Kind, expected: &'static str) -> Result<()> {
        if self.token.kind != kind {
            return Err(self.unexpected(expected));
        }
        self.advance();
        Ok(())
    }

    /// Goes one level down; whoever calls it takes the level back from `depth` when done.
    #[inline]
    pub(super) fn enter(&mut self) -> Result<()> {
        self.depth += 1;
        self.reach(self.depth)
    }

    /// Notes that the tree reaches to a depth.
    #[inline]
    pub(super) fn reach(&mut self, depth: u32) -> Result<()> {
        if depth > self.deepest {
            self.deepest = depth;
            if depth > MAX_DEPTH {
                return Err(self.error(self.pos(), SyntaxErrorKind::TooDeep));
            }
        }
        Ok(())
    }

    /// Begins to measure an expression on its own. Give what it returns to [`measured`](Self::measured).
    #[inline]
    pub(super) fn measure(&mut self) -> u32 {
        std::mem::replace(&mut self.deepest, self.depth)
    }

    /// Notes that what was parsed since [`measure`](Self::measure) becomes a child of a node that the recursion did
    /// not count: `a` turned out to be the left operand in `a + b`.
    #[inline]
    pub(super) fn deepen(&mut self) -> Result<()> {
        self.reach(self.deepest + 1)
    }

    #[inline]
    pub(super) fn measured(&mut self, outer: u32) {
        self.deepest = self.deepest.max(outer);
    }

    /// Takes everything above a mark from the stack of expressions into the arena.
    #[inline]
    pub(super) fn exprs_since(&mut self, mark: usize) -> &'a [Expr<'a>] {
        let exprs = self.arena.alloc_slice_copy(&self.exprs[mark..]);
        self.exprs.truncate(mark);
        exprs
    }

    #[inline]
    pub(super) fn names_since(&mut self, mark: usize) -> &'a [AttrName<'a>] {
        let names = self.arena.alloc_slice_copy(&self.names[mark..]);
        self.names.truncate(mark);
        names
    }

    /// `expr` of the grammar: anything.
    pub(super) fn expr(&mut self) -> Result<Expr<'a>> {
        self.enter()?;
        let expr = match self.token.kind {
            Kind::Name => {
                let name = self.token;
                self.advance();
                match self.token.kind {
                    Kind::Colon | Kind::At => self.function_of_name(name),
                    _ => {
                        let head = self.variable(name);
                        self.operation(Some(head), 1)
                    }
                }
            }
            Kind::BraceOpen => self.set_or_function(),
            Kind::Let => self.let_in(),
            Kind::If => self.if_else(),
            Kind::With => {
                let pos = self.pos();
                self.advance();
                let scope = self.expr()?;
                self.expect(Kind::Semicolon, "';'")?;
                let body = self.expr()?;
                Ok(Expr::With {
                    pos,
                    inner: self.arena.alloc(With { scope, body }),
                })
            }
            Kind::Assert => {
                let pos = self.pos();
                self.advance();
                let condition = self.expr()?;
                self.expect(Kind::Semicolon, "';'")?;
                let body = self.expr()?;
                Ok(Expr::Assert {
                    pos,
                    inner: self.arena.alloc(Assert { condition, body }),
                })
            }
            _ => self.operation(None, 1),
        }?;
        self.depth -= 1;
        Ok(expr)
    }

    fn if_else(&mut self) -> Result<Expr<'a>> {
        let pos = self.pos();
        self.advance();
        let condition = self.expr()?;
        self.expect(Kind::Then, "'then'")?;
        let consequence = self.expr()?;
        self.expect(Kind::Else, "'else'")?;
        let alternative = self.expr()?;
        Ok(Expr::If {
            pos,
            inner: self.arena.alloc(If {
                condition,
                consequence,
                alternative,
            }),
        })
    }

    /// `let … in …`, or an operation that begins with the old form `let { … }`.
    fn let_in(&mut self) -> Result<Expr<'a>> {
        let pos = self.pos();
        self.advance();
        if self.token.kind == Kind::BraceOpen {
            let head = self.old_let(pos)?;
            return self.operation(Some(head), 1);
        }
        let bindings = self.bindings(Kind::In, None, Pos::NONE, false)?;
        if !bindings.dynamic.is_empty() {
            return Err(self.error(pos, SyntaxErrorKind::DynamicInLet));
        }
        self.advance();
        let body = self.expr()?;
        Ok(Expr::Let {
            pos,
            inner: self.arena.alloc(Let { bindings, body }),
        })
    }

    /// `let { …, body = …; }`, from its brace on: a selection from a `rec` set.
    pub(super) fn old_let(&mut self, pos: Pos) -> Result<Expr<'a>> {
        self.advance();
        let subject = self.set(pos, true)?;
        let path = self.arena.alloc_slice_copy(&[AttrName::Static(known::BODY)]);
        Ok(Expr::Select {
            pos,
            inner: self.arena.alloc(Select {
                subject,
                path,
                default: None,
            }),
        })
    }

    /// The rest of a set behind its opening brace.
    pub(super) fn set(&mut self, pos: Pos, recursive: bool) -> Result<Expr<'a>> {
        let bindings = self.bindings(Kind::BraceClose, None, pos, recursive)?;
        self.advance();
        Ok(Expr::Attrs(self.arena.alloc(bindings)))
    }

    /// An empty set.
    pub(super) fn empty_set(&mut self, pos: Pos) -> Expr<'a> {
        let empty = Bindings {
            pos,
            recursive: false,
            attrs: &[],
            dynamic: &[],
            inherit_from: &[],
        };
        Expr::Attrs(self.arena.alloc(empty))
    }
}
