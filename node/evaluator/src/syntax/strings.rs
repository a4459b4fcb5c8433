//! String literals: `"…"` and `''…''`.
//!
//! Both are read in one pass from the source. A string without escapes is a slice of the source; only what needs
//! decoding is copied. The rules, down to which `$` pairs with which character, are those of stock Nix's `lexer.l`.

use memchr::memrchr;

use super::ast::Expr;
use super::class::{INDENTED_SPECIAL, QUOTED_SPECIAL, is};
use super::error::SyntaxErrorKind;
use super::lexer::Kind;
use super::parser::{Parser, Result};
use super::position::Pos;

/// A piece of an indented string, before its indentation is stripped.
#[derive(Clone, Copy)]
pub(super) enum Piece<'a> {
    /// Text as it stands in the source; its spaces count as indentation.
    Text(Pos, &'a [u8]),
    /// Text that an escape stands for; it ends the indentation of its line, whatever it is.
    Escaped(Pos, &'a [u8]),
    /// An interpolation.
    Expr(Expr<'a>),
}

impl<'a> Parser<'a, '_> {
    #[inline]
    fn byte(&self, at: u32) -> u8 {
        self.text.get(at as usize).copied().unwrap_or(0)
    }

    fn is_end(&self, at: u32) -> bool {
        at as usize >= self.text.len()
    }

    fn unexpected_end(&self, expected: &'static str) -> Box<super::error::SyntaxError> {
        let end = self.text.len() as u32;
        self.error(
            self.pos_at(end),
            SyntaxErrorKind::Unexpected {
                found: Kind::End.describe(),
                expected,
            },
        )
    }

    /// An expression between `${` (at the offset) and `}`, and the offset behind it.
    pub(super) fn interpolation(&mut self, at: u32) -> Result<(Expr<'a>, u32)> {
        self.continue_at(at + 2);
        let expr = self.expr()?;
        if self.token.kind != Kind::BraceClose {
            return Err(self.unexpected("'}'"));
        }
        Ok((expr, self.token.end))
    }

    /// `"…"`. The current token is the opening quote.
    pub(super) fn quoted_string(&mut self) -> Result<Expr<'a>> {
        let pos = self.pos();
        let mark = self.exprs.len();
        let mut at = self.token.end;
        loop {
            let (text, end) = self.quoted_text(at)?;
            let is_closed = self.byte(end) == b'"';
            if is_closed && self.exprs.len() == mark {
                self.continue_at(end + 1);
                return Ok(Expr::Str { pos, text });
            }
            if !text.is_empty() {
                self.exprs.push(Expr::Str {
                    pos: self.pos_at(at),
                    text,
                });
            }
            if is_closed {
                self.continue_at(end + 1);
                let parts = self.exprs_since(mark);
                return Ok(Expr::Interpolated { pos, parts });
            }
            let (expr, end) = self.interpolation(end)?;
            self.exprs.push(expr);
            at = end;
        }
    }

    /// The literal text at an offset inside `"…"`, decoded, and the offset of the `"` or `${` that ends it.
    #[inline]
    fn quoted_text(&mut self, start: u32) -> Result<(&'a [u8], u32)> {
        let text = self.text;
        let mut at = start as usize;
        while let Some(&byte) = text.get(at)
            && !is(byte, QUOTED_SPECIAL)
        {
            at += 1;
        }
        if self.byte(at as u32) == b'"' {
            return Ok((&text[start as usize..at], at as u32));
        }
        self.quoted_text_with_escapes(start, at as u32)
    }

    /// As [`quoted_text`](Self::quoted_text), given how far there is nothing special.
    fn quoted_text_with_escapes(&mut self, start: u32, mut at: u32) -> Result<(&'a [u8], u32)> {
        let text = self.text;
        // What was decoded of start..copied; nothing as long as nothing differs from the source.
        let mut decoded = std::mem::take(&mut self.bytes);
        decoded.clear();
        let mut copied = start;
        let mut replace = |from: u32, to: u32, byte: u8| {
            decoded.extend_from_slice(&text[copied as usize..from as usize]);
            decoded.push(byte);
            copied = to;
        };
        loop {
            match self.byte(at) {
                b'"' => break,
                b'$' => match self.byte(at + 1) {
                    b'{' => break,
                    b'"' | b'\\' => at += 1,
                    // `$` takes the next character with it, so the second of `$${` begins no interpolation.
                    _ => at += 1 + u32::from(self.byte(at + 1) == b'$'),
                },
                b'\\' => {
                    let byte = match self.byte(at + 1) {
                        _ if self.is_end(at + 1) => return Err(self.unexpected_end("'\"'")),
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        0 => return Err(self.error(self.pos_at(at + 1), SyntaxErrorKind::NullByte)),
                        other => other,
                    };
                    replace(at, at + 2, byte);
                    at += 2;
                }
                b'\r' => {
                    let end = at + 1 + u32::from(self.byte(at + 1) == b'\n');
                    replace(at, end, b'\n');
                    at = end;
                }
                0 if self.is_end(at) => return Err(self.unexpected_end("'\"'")),
                0 => return Err(self.error(self.pos_at(at), SyntaxErrorKind::NullByte)),
                _ => at += 1,
            }
        }
        let result = if copied == start {
            &text[start as usize..at as usize]
        } else {
            decoded.extend_from_slice(&text[copied as usize..at as usize]);
            self.arena.alloc_slice_copy(&decoded)
        };
        self.bytes = decoded;
        Ok((result, at))
    }

    /// `''…''`. The current token is the opening quote.
    pub(super) fn indented_string(&mut self) -> Result<Expr<'a>> {
        let pos = self.pos();
        let mark = self.pieces.len();
        let mut at = self.token.end;
        loop {
            let end = self.indented_text_end(at)?;
            if end > at {
                let text = &self.text[at as usize..end as usize];
                self.pieces.push(Piece::Text(self.pos_at(at), text));
                at = end;
            }
            let here = self.pos_at(at);
            let (text, length): (&'a [u8], u32) = match (self.byte(at), self.byte(at + 1), self.byte(at + 2))
            {
                (b'$', b'{', _) => {
                    let (expr, end) = self.interpolation(at)?;
                    self.pieces.push(Piece::Expr(expr));
                    at = end;
                    continue;
                }
                (b'$', ..) => (b"$", 1),
                (b'\'', b'\'', b'$') => (b"$", 3),
                (b'\'', b'\'', b'\'') => (b"''", 3),
                (b'\'', b'\'', b'\\') => match self.byte(at + 3) {
                    _ if self.is_end(at + 3) => return Err(self.unexpected_end("end of an indented string")),
                    b'n' => (b"\n", 4),
                    b'r' => (b"\r", 4),
                    b't' => (b"\t", 4),
                    0 => return Err(self.error(self.pos_at(at + 3), SyntaxErrorKind::NullByte)),
                    _ => (&self.text[at as usize + 3..at as usize + 4], 4),
                },
                (b'\'', b'\'', _) => break,
                (b'\'', ..) => (b"'", 1),
                _ if self.is_end(at) => return Err(self.unexpected_end("end of an indented string")),
                _ => return Err(self.error(here, SyntaxErrorKind::NullByte)),
            };
            self.pieces.push(Piece::Escaped(here, text));
            at += length;
        }
        self.continue_at(at + 2);
        let result = self.strip_indentation(pos, mark);
        self.pieces.truncate(mark);
        Ok(result)
    }

    /// The end of the plain text at an offset inside `''…''`: `([^\$\']|\$[^\{\']|\'[^\'\$])*`. Stops at a NUL
    /// byte that nothing swallows, and fails at one that something does.
    fn indented_text_end(&self, start: u32) -> Result<u32> {
        let mut at = start;
        loop {
            while let Some(&byte) = self.text.get(at as usize)
                && !is(byte, INDENTED_SPECIAL)
            {
                at += 1;
            }
            let next = self.byte(at + 1);
            let pairs = match self.byte(at) {
                b'$' => !matches!(next, b'{' | b'\''),
                b'\'' => !matches!(next, b'\'' | b'$'),
                _ => return Ok(at),
            };
            if !pairs || self.is_end(at + 1) {
                return Ok(at);
            }
            if next == 0 {
                return Err(self.error(self.pos_at(at + 1), SyntaxErrorKind::NullByte));
            }
            at += 2;
        }
    }

    /// Removes from every line the indentation that all lines have, as stock Nix's `stripIndentation` does.
    fn strip_indentation(&mut self, pos: Pos, mark: usize) -> Expr<'a> {
        if self.pieces.len() == mark {
            return Expr::Str { pos, text: b"" };
        }
        let indentation = common_indentation(&self.pieces[mark..]);
        let expr_mark = self.exprs.len();
        let mut out = std::mem::take(&mut self.bytes);
        out.clear();
        let mut out_pos = pos;
        let mut at_line_start = true;
        let mut dropped = 0;
        for index in mark..self.pieces.len() {
            let (piece_pos, text) = match self.pieces[index] {
                Piece::Expr(expr) => {
                    self.push_literal(out_pos, &out);
                    out.clear();
                    self.exprs.push(expr);
                    at_line_start = false;
                    dropped = 0;
                    continue;
                }
                Piece::Text(piece_pos, text) | Piece::Escaped(piece_pos, text) => (piece_pos, text),
            };
            if out.is_empty() {
                out_pos = piece_pos;
            }
            let start = out.len();
            let mut rest = text;
            while !rest.is_empty() {
                if at_line_start {
                    let spaces = rest.iter().take_while(|&&byte| byte == b' ').count();
                    let skip = spaces.min(indentation.saturating_sub(dropped));
                    dropped += spaces;
                    rest = &rest[skip..];
                    if rest.len() == spaces - skip {
                        // The piece ends within the indentation.
                        out.extend_from_slice(rest);
                        break;
                    }
                    dropped = 0;
                }
                let line = match memchr::memchr(b'\n', rest) {
                    Some(end) => {
                        at_line_start = true;
                        end + 1
                    }
                    None => {
                        at_line_start = false;
                        rest.len()
                    }
                };
                out.extend_from_slice(&rest[..line]);
                rest = &rest[line..];
            }
            // The last line goes if it has nothing but spaces.
            if index + 1 == self.pieces.len()
                && let Some(newline) = memrchr(b'\n', &out[start..])
                && out[start + newline + 1..].iter().all(|&byte| byte == b' ')
            {
                out.truncate(start + newline + 1);
            }
        }
        self.push_literal(out_pos, &out);
        self.bytes = out;
        match self.exprs[expr_mark..] {
            [] => Expr::Str { pos, text: b"" },
            [Expr::Str { text, .. }] => {
                self.exprs.truncate(expr_mark);
                Expr::Str { pos, text }
            }
            _ => Expr::Interpolated {
                pos,
                parts: self.exprs_since(expr_mark),
            },
        }
    }

    fn push_literal(&mut self, pos: Pos, text: &[u8]) {
        if !text.is_empty() {
            let text = self.arena.alloc_slice_copy(text);
            self.exprs.push(Expr::Str { pos, text });
        }
    }
}

/// The number of spaces that every line begins with. Lines of spaces alone do not count, except where an escape or
/// an interpolation ends them.
fn common_indentation(pieces: &[Piece<'_>]) -> usize {
    let mut common = usize::MAX;
    let mut at_line_start = true;
    let mut current = 0;
    for piece in pieces {
        let Piece::Text(_, text) = piece else {
            if at_line_start {
                at_line_start = false;
                common = common.min(current);
            }
            continue;
        };
        let mut rest = *text;
        loop {
            if at_line_start {
                let spaces = rest.iter().take_while(|&&byte| byte == b' ').count();
                current += spaces;
                rest = &rest[spaces..];
                match rest.first() {
                    None => break,
                    Some(b'\n') => {}
                    Some(_) => common = common.min(current),
                }
            }
            match memchr::memchr(b'\n', rest) {
                Some(end) => {
                    at_line_start = true;
                    current = 0;
                    rest = &rest[end + 1..];
                }
                None => {
                    at_line_start = false;
                    break;
                }
            }
        }
    }
    common
}
