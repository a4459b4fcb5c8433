//! From bytes to tokens.
//!
//! The rules are those of stock Nix's `lexer.l`: the longest match wins, so `a/b` is a path, `x:x` a URI and `a-b` a
//! name. The lexer never fails; what is no token becomes a token that no rule of the grammar accepts. It gives the
//! *opening* of strings and the first part of paths; what is inside them is the parser's to ask for (see `strings`
//! and `paths`), which makes the lexer free of modes.

use memchr::{memchr, memchr2};

use super::class::{NAME, NAME_START, PATH, SCHEME, SPACE, URI, is};

/// What a [`Token`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    End,
    Name,
    Int,
    Float,
    /// `a/b`, `/a`, `./a/`; goes on with an interpolation if `${` follows.
    Path,
    /// `~/a`; goes on with an interpolation if `${` follows.
    HomePath,
    SearchPath,
    Uri,
    /// The opening `"`.
    Quote,
    /// The opening `''` with the rest of its line, if that is blank.
    IndentedQuote,
    If,
    Then,
    Else,
    Assert,
    With,
    Let,
    In,
    Rec,
    Inherit,
    Or,
    Ellipsis,
    Equal,
    NotEqual,
    LessOrEqual,
    GreaterOrEqual,
    Less,
    Greater,
    And,
    OrOr,
    Implies,
    Update,
    Concat,
    Plus,
    Minus,
    Star,
    Slash,
    Not,
    Question,
    PipeFrom,
    PipeInto,
    Assign,
    Semicolon,
    Colon,
    Comma,
    At,
    Dot,
    DollarBrace,
    BraceOpen,
    BraceClose,
    ParenOpen,
    ParenClose,
    BracketOpen,
    BracketClose,
    /// `/*` without `*/`.
    OpenComment,
    /// A byte that begins no token.
    Invalid,
}

impl Kind {
    /// The token's name in messages, as stock Nix has it.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Kind::End => "end of file",
            Kind::Name => "identifier",
            Kind::Int => "integer",
            Kind::Float => "floating-point literal",
            Kind::Path => "path",
            Kind::HomePath => "'~/…' path",
            Kind::SearchPath => "'<…>' path",
            Kind::Uri => "URI",
            Kind::Quote => "'\"'",
            Kind::IndentedQuote => "start of an indented string",
            Kind::If => "'if'",
            Kind::Then => "'then'",
            Kind::Else => "'else'",
            Kind::Assert => "'assert'",
            Kind::With => "'with'",
            Kind::Let => "'let'",
            Kind::In => "'in'",
            Kind::Rec => "'rec'",
            Kind::Inherit => "'inherit'",
            Kind::Or => "'or'",
            Kind::Ellipsis => "'...'",
            Kind::Equal => "'=='",
            Kind::NotEqual => "'!='",
            Kind::LessOrEqual => "'<='",
            Kind::GreaterOrEqual => "'>='",
            Kind::Less => "'<'",
            Kind::Greater => "'>'",
            Kind::And => "'&&'",
            Kind::OrOr => "'||'",
            Kind::Implies => "'->'",
            Kind::Update => "'//'",
            Kind::Concat => "'++'",
            Kind::Plus => "'+'",
            Kind::Minus => "'-'",
            Kind::Star => "'*'",
            Kind::Slash => "'/'",
            Kind::Not => "'!'",
            Kind::Question => "'?'",
            Kind::PipeFrom => "'<|'",
            Kind::PipeInto => "'|>'",
            Kind::Assign => "'='",
            Kind::Semicolon => "';'",
            Kind::Colon => "':'",
            Kind::Comma => "','",
            Kind::At => "'@'",
            Kind::Dot => "'.'",
            Kind::DollarBrace => "'${'",
            Kind::BraceOpen => "'{'",
            Kind::BraceClose => "'}'",
            Kind::ParenOpen => "'('",
            Kind::ParenClose => "')'",
            Kind::BracketOpen => "'['",
            Kind::BracketClose => "']'",
            Kind::OpenComment => "start of a comment",
            Kind::Invalid => "invalid token",
        }
    }

    /// Whether an `expr_simple` of the grammar can begin with the token: what can be an argument or a list element.
    #[inline]
    pub(super) fn begins_operand(self) -> bool {
        matches!(
            self,
            Kind::Name
                | Kind::Int
                | Kind::Float
                | Kind::Path
                | Kind::HomePath
                | Kind::SearchPath
                | Kind::Uri
                | Kind::Quote
                | Kind::IndentedQuote
                | Kind::Let
                | Kind::Rec
                | Kind::BraceOpen
                | Kind::ParenOpen
                | Kind::BracketOpen
        )
    }
}

/// A token and where it lies in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Offset of its first byte.
    pub(super) start: u32,
    /// Offset behind its last byte.
    pub(super) end: u32,
}

/// The text and what the lexer remembers about it.
pub(super) struct Lexer<'a> {
    text: &'a [u8],
    /// The text is known to have no path and no URI that begins before this offset, as far as the run of path
    /// characters that ends here goes. Without it `a.b.c.d` would be searched for a slash at every name.
    plain_until: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8]) -> Lexer<'a> {
        Lexer { text, plain_until: 0 }
    }

    /// The byte at an offset; 0 behind the end.
    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        match self.text.get(at) {
            Some(&byte) => byte,
            None => 0,
        }
    }

    /// The end of the run of bytes of some classes that begins at an offset.
    #[inline(always)]
    fn run(&self, mut at: usize, classes: u8) -> usize {
        while let Some(&byte) = self.text.get(at)
            && is(byte, classes)
        {
            at += 1;
        }
        at
    }

    /// The first token at or behind an offset.
    #[inline]
    pub(super) fn token(&mut self, mut at: usize) -> Token {
        loop {
            at = self.run(at, SPACE);
            match self.byte(at) {
                b'#' => {
                    at = match memchr2(b'\n', b'\r', &self.text[at..]) {
                        Some(length) => at + length,
                        None => self.text.len(),
                    }
                }
                b'/' if self.byte(at + 1) == b'*' => match self.comment_end(at) {
                    Some(end) => at = end,
                    None => return token(Kind::OpenComment, at, self.text.len()),
                },
                _ => break,
            }
        }
        let Some(&first) = self.text.get(at) else {
            return token(Kind::End, at, at);
        };
        if is(first, PATH) {
            self.word(first, at)
        } else {
            self.punctuation(first, at)
        }
    }

    /// The offset behind the comment that begins at an offset.
    fn comment_end(&self, start: usize) -> Option<usize> {
        let mut at = start + 2;
        loop {
            at += memchr(b'*', self.text.get(at..)?)? + 1;
            if self.byte(at) == b'/' {
                return Some(at + 1);
            }
        }
    }

    /// A token that begins with a character that may stand in a path.
    #[inline]
    fn word(&mut self, first: u8, at: usize) -> Token {
        if is(first, NAME_START) {
            // Most words are names, and what follows says so: nothing that a path or a URI could go on with.
            let end = self.run(at + 1, NAME);
            let next = self.byte(end);
            if at < self.plain_until || !(is(next, PATH) || next == b'/' || next == b':') {
                return token(keyword(&self.text[at..end]), at, end);
            }
        }
        if at >= self.plain_until {
            let end = self.run(at, PATH);
            match self.byte(end) {
                b'/' => {
                    if let Some(end) = self.path_from_slash(end) {
                        return token(Kind::Path, at, end);
                    }
                }
                b':' if is(self.byte(end + 1), URI)
                    && first.is_ascii_alphabetic()
                    && self.run(at, SCHEME) == end =>
                {
                    return token(Kind::Uri, at, self.run(end + 1, URI));
                }
                _ => {}
            }
            if !matches!(self.byte(end), b'/' | b':') {
                self.plain_until = end;
            }
        }
        if is(first, NAME_START) {
            let end = self.run(at + 1, NAME);
            return token(keyword(&self.text[at..end]), at, end);
        }
        match first {
            b'.' => match (self.byte(at + 1), self.byte(at + 2)) {
                (b'.', b'.') => token(Kind::Ellipsis, at, at + 3),
                (b'0'..=b'9', _) => token(Kind::Float, at, self.exponent(self.digits(at + 1))),
                _ => token(Kind::Dot, at, at + 1),
            },
            b'-' if self.byte(at + 1) == b'>' => token(Kind::Implies, at, at + 2),
            b'-' => token(Kind::Minus, at, at + 1),
            b'+' if self.byte(at + 1) == b'+' => token(Kind::Concat, at, at + 2),
            b'+' => token(Kind::Plus, at, at + 1),
            _ => self.number(at),
        }
    }

    /// An integer or a float that begins with a digit. `1.` is a float, `0.` and `01.5` are not.
    fn number(&self, at: usize) -> Token {
        let end = self.digits(at);
        if self.byte(end) == b'.' {
            let fraction_end = self.digits(end + 1);
            let is_float = match self.byte(at) {
                b'0' => end == at + 1 && fraction_end > end + 1,
                _ => true,
            };
            if is_float {
                return token(Kind::Float, at, self.exponent(fraction_end));
            }
        }
        token(Kind::Int, at, end)
    }

    fn digits(&self, mut at: usize) -> usize {
        while self.byte(at).is_ascii_digit() {
            at += 1;
        }
        at
    }

    /// The end of the exponent at an offset, or the offset if there is none.
    fn exponent(&self, at: usize) -> usize {
        if !matches!(self.byte(at), b'e' | b'E') {
            return at;
        }
        let digits = match self.byte(at + 1) {
            b'+' | b'-' => at + 2,
            _ => at + 1,
        };
        match self.digits(digits) {
            end if end > digits => end,
            _ => at,
        }
    }

    /// The end of the path whose first slash is at an offset; `None` if that slash is not part of a path.
    fn path_from_slash(&self, slash: usize) -> Option<usize> {
        if is(self.byte(slash + 1), PATH) {
            Some(self.path_end(slash))
        } else if self.byte(slash + 1) == b'$' && self.byte(slash + 2) == b'{' {
            Some(slash + 1)
        } else {
            None
        }
    }

    /// The end of `(\/{PATH_CHAR}+)+\/?` at an offset where it matches.
    fn path_end(&self, mut at: usize) -> usize {
        while self.byte(at) == b'/' && is(self.byte(at + 1), PATH) {
            at = self.run(at + 1, PATH);
        }
        if self.byte(at) == b'/' { at + 1 } else { at }
    }

    /// Inside a path, behind its first part or an interpolation: the end of the literal part at an offset. The
    /// offset itself if there is none.
    pub(super) fn path_part_end(&self, at: usize) -> usize {
        let end = self.run(at, PATH);
        match self.byte(end) {
            b'/' if is(self.byte(end + 1), PATH) => self.path_end(end),
            b'/' => end + 1,
            _ => end,
        }
    }

    fn search_path_end(&self, at: usize) -> Option<usize> {
        let mut end = at;
        loop {
            let start = end + 1;
            end = self.run(start, PATH);
            if end == start {
                return None;
            }
            match self.byte(end) {
                b'/' => {}
                b'>' => return Some(end + 1),
                _ => return None,
            }
        }
    }

    fn punctuation(&self, first: u8, at: usize) -> Token {
        let second = self.byte(at + 1);
        let (kind, length) = match (first, second) {
            (b'"', _) => (Kind::Quote, 1),
            (b'\'', b'\'') => {
                let mut end = at + 2;
                while self.byte(end) == b' ' {
                    end += 1;
                }
                let end = if self.byte(end) == b'\n' { end + 1 } else { at + 2 };
                return token(Kind::IndentedQuote, at, end);
            }
            (b'{', _) => (Kind::BraceOpen, 1),
            (b'}', _) => (Kind::BraceClose, 1),
            (b'(', _) => (Kind::ParenOpen, 1),
            (b')', _) => (Kind::ParenClose, 1),
            (b'[', _) => (Kind::BracketOpen, 1),
            (b']', _) => (Kind::BracketClose, 1),
            (b';', _) => (Kind::Semicolon, 1),
            (b':', _) => (Kind::Colon, 1),
            (b',', _) => (Kind::Comma, 1),
            (b'@', _) => (Kind::At, 1),
            (b'?', _) => (Kind::Question, 1),
            (b'*', _) => (Kind::Star, 1),
            (b'=', b'=') => (Kind::Equal, 2),
            (b'=', _) => (Kind::Assign, 1),
            (b'!', b'=') => (Kind::NotEqual, 2),
            (b'!', _) => (Kind::Not, 1),
            (b'$', b'{') => (Kind::DollarBrace, 2),
            (b'&', b'&') => (Kind::And, 2),
            (b'|', b'|') => (Kind::OrOr, 2),
            (b'|', b'>') => (Kind::PipeInto, 2),
            (b'>', b'=') => (Kind::GreaterOrEqual, 2),
            (b'>', _) => (Kind::Greater, 1),
            (b'<', b'=') => (Kind::LessOrEqual, 2),
            (b'<', b'|') => (Kind::PipeFrom, 2),
            (b'<', _) => match self.search_path_end(at) {
                Some(end) => return token(Kind::SearchPath, at, end),
                None => (Kind::Less, 1),
            },
            (b'/', _) => match self.path_from_slash(at) {
                Some(end) => return token(Kind::Path, at, end),
                None if second == b'/' => (Kind::Update, 2),
                None => (Kind::Slash, 1),
            },
            (b'~', b'/') => match self.path_from_slash(at + 1) {
                Some(end) => return token(Kind::HomePath, at, end),
                None => (Kind::Invalid, 1),
            },
            _ => (Kind::Invalid, 1),
        };
        token(kind, at, at + length)
    }
}

/// A token. Texts have less than 4 GiB (`SourceMap::add` sees to it), so offsets fit.
#[inline(always)]
fn token(kind: Kind, start: usize, end: usize) -> Token {
    Token {
        kind,
        start: start as u32,
        end: end as u32,
    }
}

#[inline]
fn keyword(name: &[u8]) -> Kind {
    match name {
        b"if" => Kind::If,
        b"then" => Kind::Then,
        b"else" => Kind::Else,
        b"assert" => Kind::Assert,
        b"with" => Kind::With,
        b"let" => Kind::Let,
        b"in" => Kind::In,
        b"rec" => Kind::Rec,
        b"inherit" => Kind::Inherit,
        b"or" => Kind::Or,
        _ => Kind::Name,
    }
}
