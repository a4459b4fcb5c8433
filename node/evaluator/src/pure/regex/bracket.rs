//! Bracket expressions: `[a-z]`, `[^[:space:]]`, `[]a-]`.

use super::Fault;

/// A set of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set([u64; 4]);

impl Set {
    pub(super) fn empty() -> Set {
        Set([0; 4])
    }

    /// `.`: everything, line ends included (texts have no null bytes).
    pub(super) fn all() -> Set {
        Set([!1, !0, !0, !0])
    }

    pub(super) fn insert(&mut self, byte: u8) {
        self.0[byte as usize / 64] |= 1 << (byte % 64);
    }

    #[inline]
    pub(super) fn contains(&self, byte: u8) -> bool {
        self.0[byte as usize / 64] & (1 << (byte % 64)) != 0
    }

    pub(super) fn union(&mut self, other: &Set) {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word |= other;
        }
    }

    fn insert_where(&mut self, predicate: impl Fn(u8) -> bool) {
        for byte in (0..=u8::MAX).filter(|&byte| predicate(byte)) {
            self.insert(byte);
        }
    }

    fn complement(&mut self) {
        for word in &mut self.0 {
            *word = !*word;
        }
    }
}

/// What was read last: only a single character can begin a range.
enum Last {
    Nothing,
    Byte(u8),
    Class,
}

enum Token<'p> {
    Byte(u8),
    Dash,
    /// `]`
    Close,
    /// `[.name.]`
    Collating(&'p [u8]),
    /// `[=name=]`
    Equivalence(&'p [u8]),
    /// `[:name:]`
    Class(&'p [u8]),
}

/// Reads a bracket expression behind its opening bracket, and gives the rest of the pattern too.
///
/// A backslash is an ordinary character here. Where POSIX leaves a `-` undefined, it is an error.
pub(super) fn bracket(pattern: &[u8]) -> Result<(Set, &[u8]), Fault> {
    let (negated, rest) = match pattern {
        [b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut tokens = Tokens { rest, at_start: true };
    let mut set = Set::empty();
    let mut last = Last::Nothing;
    let mut token = tokens.next()?;
    if let Token::Dash = token {
        // First, a dash stands for itself.
        last = Last::Byte(b'-');
        token = tokens.next()?;
    }
    loop {
        let keep = |last: &mut Last, set: &mut Set, new: Last| {
            if let Last::Byte(byte) = std::mem::replace(last, new) {
                set.insert(byte);
            }
        };
        match token {
            Token::Close => break,
            Token::Byte(byte) => keep(&mut last, &mut set, Last::Byte(byte)),
            Token::Collating(name) => {
                let byte = collating_element(name)?;
                keep(&mut last, &mut set, Last::Byte(byte));
                set.insert(byte);
            }
            Token::Equivalence(name) => {
                keep(&mut last, &mut set, Last::Class);
                let byte = collating_element(name)?;
                set.insert_where(|other| other.eq_ignore_ascii_case(&byte));
            }
            Token::Class(name) => {
                keep(&mut last, &mut set, Last::Class);
                let class = class(name).ok_or(Fault::Invalid)?;
                set.insert_where(class);
            }
            Token::Dash => {
                token = tokens.next()?;
                let end = match (&last, &token) {
                    (_, Token::Close) => {
                        // Last, a dash stands for itself.
                        set.insert(b'-');
                        continue;
                    }
                    (Last::Byte(_), Token::Byte(end)) => *end,
                    (Last::Byte(_), Token::Dash) => b'-',
                    _ => return Err(Fault::Invalid),
                };
                if let Last::Byte(start) = std::mem::replace(&mut last, Last::Nothing) {
                    // Characters are signed on the machines that matter, and so are the ends of ranges.
                    let (start, end) = (start as i8, end as i8);
                    if start > end {
                        return Err(Fault::Invalid);
                    }
                    set.insert_where(|byte| (start..=end).contains(&(byte as i8)));
                }
            }
        }
        token = tokens.next()?;
    }
    if let Last::Byte(byte) = last {
        set.insert(byte);
    }
    if negated {
        set.complement();
    }
    Ok((set, tokens.rest))
}

struct Tokens<'p> {
    rest: &'p [u8],
    at_start: bool,
}

impl<'p> Tokens<'p> {
    fn next(&mut self) -> Result<Token<'p>, Fault> {
        let [first, rest @ ..] = self.rest else {
            return Err(Fault::Invalid);
        };
        self.rest = rest;
        let at_start = std::mem::replace(&mut self.at_start, false);
        Ok(match first {
            b'-' => Token::Dash,
            b']' if !at_start => Token::Close,
            b'[' => match rest.first() {
                None => return Err(Fault::Invalid),
                Some(b'.') => Token::Collating(self.name()?),
                Some(b'=') => Token::Equivalence(self.name()?),
                Some(b':') => Token::Class(self.name()?),
                Some(_) => Token::Byte(b'['),
            },
            byte => Token::Byte(*byte),
        })
    }

    /// The name in `:name:]`.
    fn name(&mut self) -> Result<&'p [u8], Fault> {
        let [delimiter, rest @ ..] = self.rest else {
            return Err(Fault::Invalid);
        };
        let length = rest
            .iter()
            .position(|byte| byte == delimiter)
            .ok_or(Fault::Invalid)?;
        match &rest[length + 1..] {
            [b']', behind @ ..] => self.rest = behind,
            _ => return Err(Fault::Invalid),
        }
        Ok(&rest[..length])
    }
}

/// A class by its name, in any case. Classes are those of the C locale.
fn class(name: &[u8]) -> Option<fn(u8) -> bool> {
    Some(match name.to_ascii_lowercase().as_slice() {
        b"alnum" => |byte| byte.is_ascii_alphanumeric(),
        b"alpha" => |byte| byte.is_ascii_alphabetic(),
        b"blank" => |byte| matches!(byte, b' ' | b'\t'),
        b"cntrl" => |byte| byte.is_ascii_control(),
        b"digit" | b"d" => |byte| byte.is_ascii_digit(),
        b"graph" => |byte| byte.is_ascii_graphic(),
        b"lower" => |byte| byte.is_ascii_lowercase(),
        b"print" => |byte| byte.is_ascii_graphic() || byte == b' ',
        b"punct" => |byte| byte.is_ascii_punctuation(),
        b"space" | b"s" => |byte| matches!(byte, b' ' | b'\t'..=b'\r'),
        b"upper" => |byte| byte.is_ascii_uppercase(),
        b"w" => |byte| byte.is_ascii_alphanumeric() || byte == b'_',
        b"xdigit" => |byte| byte.is_ascii_hexdigit(),
        _ => return None,
    })
}

/// The character of a collating element, by the names of POSIX's portable character set. Letters are their own names.
fn collating_element(name: &[u8]) -> Result<u8, Fault> {
    if let [letter] = name
        && letter.is_ascii_alphabetic()
    {
        return Ok(*letter);
    }
    let byte = COLLATING_ELEMENTS
        .iter()
        .find(|(other, _)| other.as_bytes() == name);
    byte.map(|&(_, byte)| byte).ok_or(Fault::Invalid)
}

const COLLATING_ELEMENTS: &[(&str, u8)] = &[
    ("NUL", 0),
    ("SOH", 1),
    ("STX", 2),
    ("ETX", 3),
    ("EOT", 4),
    ("ENQ", 5),
    ("ACK", 6),
    ("alert", 7),
    ("backspace", 8),
    ("tab", 9),
    ("newline", 10),
    ("vertical-tab", 11),
    ("form-feed", 12),
    ("carriage-return", 13),
    ("SO", 14),
    ("SI", 15),
    ("DLE", 16),
    ("DC1", 17),
    ("DC2", 18),
    ("DC3", 19),
    ("DC4", 20),
    ("NAK", 21),
    ("SYN", 22),
    ("ETB", 23),
    ("CAN", 24),
    ("EM", 25),
    ("SUB", 26),
    ("ESC", 27),
    ("IS4", 28),
    ("IS3", 29),
    ("IS2", 30),
    ("IS1", 31),
    ("space", b' '),
    ("exclamation-mark", b'!'),
    ("quotation-mark", b'"'),
    ("number-sign", b'#'),
    ("dollar-sign", b'$'),
    ("percent-sign", b'%'),
    ("ampersand", b'&'),
    ("apostrophe", b'\''),
    ("left-parenthesis", b'('),
    ("right-parenthesis", b')'),
    ("asterisk", b'*'),
    ("plus-sign", b'+'),
    ("comma", b','),
    ("hyphen", b'-'),
    ("period", b'.'),
    ("slash", b'/'),
    ("zero", b'0'),
    ("one", b'1'),
    ("two", b'2'),
    ("three", b'3'),
    ("four", b'4'),
    ("five", b'5'),
    ("six", b'6'),
    ("seven", b'7'),
    ("eight", b'8'),
    ("nine", b'9'),
    ("colon", b':'),
    ("semicolon", b';'),
    ("less-than-sign", b'<'),
    ("equals-sign", b'='),
    ("greater-than-sign", b'>'),
    ("question-mark", b'?'),
    ("commercial-at", b'@'),
    ("left-square-bracket", b'['),
    ("backslash", b'\\'),
    ("right-square-bracket", b']'),
    ("circumflex", b'^'),
    ("underscore", b'_'),
    ("grave-accent", b'`'),
    ("left-curly-bracket", b'{'),
    ("vertical-line", b'|'),
    ("right-curly-bracket", b'}'),
    ("tilde", b'~'),
    ("DEL", 127),
];
