//! Reads JSON as `builtins.fromJSON` does: with the rules of nlohmann's parser, straight into the caller's values.
//!
//! No recursion, so deep texts are an error and not a crash.

use super::builder::Builder;
use super::limits::JSON_DEPTH;

/// A text that is not JSON, or not JSON that Nix can hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at line {line}, column {column}: {kind}")]
pub struct JsonError {
    /// The line, counted from 1.
    pub line: usize,
    /// The column in bytes, counted from 1.
    pub column: usize,
    /// What is wrong.
    pub kind: JsonErrorKind,
}

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonErrorKind {
    /// Something else should be here.
    #[error("expected {0}")]
    Expected(&'static str),
    /// An integer between 2⁶³ and 2⁶⁴: nlohmann's parser has it, Nix does not.
    #[error("unsigned json number {0} outside of Nix integer range")]
    IntegerRange(String),
    /// A number that is too large for a double.
    #[error("number overflow parsing '{0}'")]
    FloatRange(String),
    /// A control character in a string.
    #[error("control character U+{0:04X} in a string must be escaped")]
    Control(u8),
    /// Bytes in a string that are no UTF-8.
    #[error("a string contains invalid UTF-8")]
    InvalidUtf8,
    /// `\x`
    #[error("unknown escape in a string")]
    Escape,
    /// `\ud800` without its other half.
    #[error("half a surrogate pair in a string")]
    Surrogate,
    /// `\u0000`
    #[error("a string contains a null byte; Nix strings cannot")]
    NullByte,
    /// Nested deeper than [`JSON_DEPTH`].
    #[error("nested too deeply; the limit is {JSON_DEPTH} levels")]
    TooDeep,
}

/// Reads a text that is one JSON value.
///
/// # Errors
///
/// The first thing that is wrong. Values that were made by then are dropped.
pub fn parse<B: Builder>(text: &[u8], builder: &mut B) -> Result<B::Value, JsonError> {
    let mut parser = Parser {
        text,
        at: 0,
        scratch: String::new(),
    };
    parser.value(builder).map_err(|kind| {
        let before = &text[..parser.at.min(text.len())];
        let line_start = before
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        JsonError {
            line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
            column: 1 + before.len() - line_start,
            kind,
        }
    })
}

/// An array or object whose end was not read yet.
enum Open<K> {
    /// Where its items begin among all items.
    Array(usize),
    /// Where its members begin among all members, and the name whose value is being read.
    Object(usize, K),
}

struct Parser<'t> {
    text: &'t [u8],
    at: usize,
    scratch: String,
}

type Step<T> = Result<T, JsonErrorKind>;

impl<'t> Parser<'t> {
    fn value<B: Builder>(&mut self, builder: &mut B) -> Step<B::Value> {
        if self.text.starts_with(b"\xef\xbb\xbf") {
            self.at = 3;
        }
        let mut items: Vec<B::Value> = Vec::new();
        let mut members: Vec<(B::Key, B::Value)> = Vec::new();
        let mut open: Vec<Open<B::Key>> = Vec::new();
        loop {
            // A value begins here.
            self.skip_space();
            let mut value = match self.peek() {
                Some(b'[') => {
                    self.at += 1;
                    if open.len() >= JSON_DEPTH {
                        return Err(JsonErrorKind::TooDeep);
                    }
                    self.skip_space();
                    if self.peek() != Some(b']') {
                        open.push(Open::Array(items.len()));
                        continue;
                    }
                    self.at += 1;
                    let end = items.len();
                    builder.list(items.drain(end..))
                }
                Some(b'{') => {
                    self.at += 1;
                    if open.len() >= JSON_DEPTH {
                        return Err(JsonErrorKind::TooDeep);
                    }
                    self.skip_space();
                    if self.peek() != Some(b'}') {
                        let key = self.key(builder)?;
                        open.push(Open::Object(members.len(), key));
                        continue;
                    }
                    self.at += 1;
                    let end = members.len();
                    builder.object(members.drain(end..))
                }
                Some(b'"') => {
                    let text = self.string()?;
                    builder.string(text)
                }
                Some(b'-' | b'0'..=b'9') => self.number(builder)?,
                Some(b't') => self.literal(b"true").map(|()| builder.boolean(true))?,
                Some(b'f') => self.literal(b"false").map(|()| builder.boolean(false))?,
                Some(b'n') => self.literal(b"null").map(|()| builder.null())?,
                _ => return Err(JsonErrorKind::Expected("a value")),
            };
            // A value ended here; it may be the last of what holds it, which ends then too.
            loop {
                self.skip_space();
                match open.pop() {
                    None if self.at < self.text.len() => return Err(JsonErrorKind::Expected("end of text")),
                    None => return Ok(value),
                    Some(Open::Array(start)) => {
                        items.push(value);
                        match self.peek() {
                            Some(b',') => {
                                self.at += 1;
                                open.push(Open::Array(start));
                                break;
                            }
                            Some(b']') => value = builder.list(items.drain(start..)),
                            _ => return Err(JsonErrorKind::Expected("',' or ']'")),
                        }
                    }
                    Some(Open::Object(start, key)) => {
                        members.push((key, value));
                        match self.peek() {
                            Some(b',') => {
                                self.at += 1;
                                self.skip_space();
                                let key = self.key(builder)?;
                                open.push(Open::Object(start, key));
                                break;
                            }
                            Some(b'}') => value = builder.object(members.drain(start..)),
                            _ => return Err(JsonErrorKind::Expected("',' or '}'")),
                        }
                    }
                }
                self.at += 1;
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn literal(&mut self, literal: &'static [u8]) -> Step<()> {
        if !self.text[self.at..].starts_with(literal) {
            return Err(JsonErrorKind::Expected("a value"));
        }
        self.at += literal.len();
        Ok(())
    }

    /// A member's name and the colon behind it.
    fn key<B: Builder>(&mut self, builder: &mut B) -> Step<B::Key> {
        if self.peek() != Some(b'"') {
            return Err(JsonErrorKind::Expected("a string as the name of a member"));
        }
        let text = self.string()?;
        let key = builder.key(text);
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(JsonErrorKind::Expected("':'"));
        }
        self.at += 1;
        Ok(key)
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        self.at - start
    }

    fn number<B: Builder>(&mut self, builder: &mut B) -> Step<B::Value> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            _ if self.digits() == 0 => return Err(JsonErrorKind::Expected("a digit")),
            _ => {}
        }
        let mut is_integer = true;
        if self.peek() == Some(b'.') {
            self.at += 1;
            is_integer = false;
            if self.digits() == 0 {
                return Err(JsonErrorKind::Expected("a digit"));
            }
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            is_integer = false;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            if self.digits() == 0 {
                return Err(JsonErrorKind::Expected("a digit"));
            }
        }
        let text = std::str::from_utf8(&self.text[start..self.at]).unwrap_or_default();
        if is_integer {
            if let Ok(integer) = text.parse::<i64>() {
                return Ok(builder.integer(integer));
            }
            if text.parse::<u64>().is_ok() {
                return Err(JsonErrorKind::IntegerRange(text.to_owned()));
            }
        }
        match text.parse::<f64>() {
            Ok(float) if float.is_finite() => Ok(builder.float(float)),
            _ => Err(JsonErrorKind::FloatRange(text.to_owned())),
        }
    }

    /// The string that begins here, decoded.
    fn string(&mut self) -> Step<&str> {
        self.at += 1;
        let start = self.at;
        let plain = self.plain()?;
        if self.peek() == Some(b'"') {
            self.at += 1;
            return Ok(plain);
        }
        self.scratch.clear();
        self.at = start;
        loop {
            let plain = self.plain()?;
            self.scratch.push_str(plain);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(&self.scratch);
                }
                Some(b'\\') => {
                    let character = self.escape()?;
                    self.scratch.push(character);
                }
                Some(control) => return Err(JsonErrorKind::Control(control)),
                None => return Err(JsonErrorKind::Expected("'\"' at the end of a string")),
            }
        }
    }

    /// The text from here up to a quote, backslash, control character or the end.
    fn plain(&mut self) -> Step<&'t str> {
        let start = self.at;
        let rest = &self.text[start..];
        let length = rest
            .iter()
            .position(|&byte| matches!(byte, b'"' | b'\\' | 0..=0x1f))
            .unwrap_or(rest.len());
        match std::str::from_utf8(&rest[..length]) {
            Ok(plain) => {
                self.at += length;
                Ok(plain)
            }
            Err(error) => {
                self.at += error.valid_up_to();
                Err(JsonErrorKind::InvalidUtf8)
            }
        }
    }

    fn escape(&mut self) -> Step<char> {
        self.at += 1;
        let escape = self.peek().ok_or(JsonErrorKind::Escape)?;
        let character = match escape {
            b'"' | b'\\' | b'/' => char::from(escape),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                self.at += 1;
                return self.unicode_escape();
            }
            _ => return Err(JsonErrorKind::Escape),
        };
        self.at += 1;
        Ok(character)
    }

    /// The character of `\uXXXX`, or of two of them, from behind the first `u`.
    fn unicode_escape(&mut self) -> Step<char> {
        let mut code = self.four_digits()?;
        if (0xd800..0xdc00).contains(&code) {
            if !self.text[self.at..].starts_with(b"\\u") {
                return Err(JsonErrorKind::Surrogate);
            }
            self.at += 2;
            let low = self.four_digits()?;
            if !(0xdc00..0xe000).contains(&low) {
                return Err(JsonErrorKind::Surrogate);
            }
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        match char::from_u32(code) {
            Some('\0') => Err(JsonErrorKind::NullByte),
            Some(character) => Ok(character),
            None => Err(JsonErrorKind::Surrogate),
        }
    }

    fn four_digits(&mut self) -> Step<u32> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            code =
                code * 16 + digit.ok_or(JsonErrorKind::Expected("four hexadecimal digits behind '\\u'"))?;
            self.at += 1;
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::builder::tests::Writer;

    fn read(text: &[u8]) -> Result<String, String> {
        parse(text, &mut Writer).map_err(|error| error.to_string())
    }

    #[test]
    fn values() {
        for (text, value) in [
            ("null", "null"),
            (" true\n", "true"),
            ("false", "false"),
            ("\"a\"", "\"a\""),
            ("[]", "[]"),
            ("[ ]", "[]"),
            ("{}", "{}"),
            ("[1,[2,[]],{}]", "[i1 [i2 []] {}]"),
            ("{\"a\":1,\"b\":{\"c\":[true]}}", "{a=i1 b={c=[true]}}"),
            ("[{\"a\":[1,2]},[3]]", "[{a=[i1 i2]} [i3]]"),
            // Whoever makes the object sees both.
            ("{\"a\":1,\"a\":2}", "{a=i1 a=i2}"),
            ("\u{feff}1", "i1"),
        ] {
            assert_eq!(read(text.as_bytes()).as_deref(), Ok(value), "{text}");
        }
    }

    #[test]
    fn numbers() {
        for (text, value) in [
            ("0", "i0"),
            ("-0", "i0"),
            ("-0.0", "f-0.0"),
            ("9223372036854775807", "i9223372036854775807"),
            ("-9223372036854775808", "i-9223372036854775808"),
            ("-9223372036854775809", "f-9.223372036854776e18"),
            ("18446744073709551616", "f1.8446744073709552e19"),
            ("1.5", "f1.5"),
            ("1e2", "f100.0"),
            ("1.25E-2", "f0.0125"),
            ("1e-400", "f0.0"),
        ] {
            assert_eq!(read(text.as_bytes()).as_deref(), Ok(value), "{text}");
        }
        for (text, error) in [
            (
                "9223372036854775808",
                "unsigned json number 9223372036854775808 outside of Nix integer range",
            ),
            (
                "18446744073709551615",
                "unsigned json number 18446744073709551615 outside of Nix integer range",
            ),
            ("1e400", "number overflow parsing '1e400'"),
            ("-", "expected a digit"),
            ("1.", "expected a digit"),
            (".5", "expected a value"),
            ("+1", "expected a value"),
            ("01", "expected end of text"),
            ("1e", "expected a digit"),
            ("1e+", "expected a digit"),
            ("NaN", "expected a value"),
            ("0x1", "expected end of text"),
        ] {
            let message = read(text.as_bytes()).unwrap_err();
            assert!(message.ends_with(error), "{text}: {message}");
        }
    }

    #[test]
    fn strings() {
        for (text, value) in [
            (r#""\"\\\/\b\f\n\r\t""#, "\"\\\"\\\\/\\u{8}\\u{c}\\n\\r\\t\""),
            (r#""aéb""#, "\"aéb\""),
            (r#""a\u00e9b""#, "\"aéb\""),
            (r#""\ud83d\ude00""#, "\"😀\""),
            (r#"{"\u0061b":1}"#, "{ab=i1}"),
            ("\"\u{7f}\"", "\"\\u{7f}\""),
        ] {
            assert_eq!(read(text.as_bytes()).as_deref(), Ok(value), "{text}");
        }
        for (text, error) in [
            (
                &b"\"a"[..],
                "at line 1, column 3: expected '\"' at the end of a string",
            ),
            (
                b"\"a\nb\"",
                "at line 1, column 3: control character U+000A in a string must be escaped",
            ),
            (b"\"\\x\"", "at line 1, column 3: unknown escape in a string"),
            (
                b"\"\\u12\"",
                "at line 1, column 6: expected four hexadecimal digits behind '\\u'",
            ),
            (
                b"\"\\ud800\"",
                "at line 1, column 8: half a surrogate pair in a string",
            ),
            (
                b"\"\\ud800\\u0041\"",
                "at line 1, column 14: half a surrogate pair in a string",
            ),
            (
                b"\"\\udc00\"",
                "at line 1, column 8: half a surrogate pair in a string",
            ),
            (
                b"\"\\u0000\"",
                "at line 1, column 8: a string contains a null byte; Nix strings cannot",
            ),
            (
                b"\"a\xffb\"",
                "at line 1, column 3: a string contains invalid UTF-8",
            ),
            (
                b"\"\xed\xa0\x80\"",
                "at line 1, column 2: a string contains invalid UTF-8",
            ),
        ] {
            assert_eq!(
                read(text),
                Err(error.to_owned()),
                "{}",
                String::from_utf8_lossy(text)
            );
        }
    }

    #[test]
    fn structure() {
        for (text, error) in [
            ("", "at line 1, column 1: expected a value"),
            ("[1,]", "at line 1, column 4: expected a value"),
            ("[1 2]", "at line 1, column 4: expected ',' or ']'"),
            ("[1", "at line 1, column 3: expected ',' or ']'"),
            (
                "{\"a\":1,}",
                "at line 1, column 8: expected a string as the name of a member",
            ),
            (
                "{a:1}",
                "at line 1, column 2: expected a string as the name of a member",
            ),
            ("{\"a\" 1}", "at line 1, column 6: expected ':'"),
            ("{\"a\":1\n\"b\"", "at line 2, column 1: expected ',' or '}'"),
            ("1 2", "at line 1, column 3: expected end of text"),
            ("tru", "at line 1, column 1: expected a value"),
            ("// a\n1", "at line 1, column 1: expected a value"),
            ("[1}", "at line 1, column 3: expected ',' or ']'"),
        ] {
            assert_eq!(read(text.as_bytes()), Err(error.to_owned()), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(read(nested(JSON_DEPTH).as_bytes()).is_ok());
        for text in [
            nested(JSON_DEPTH + 2),
            "[".repeat(1_000_000),
            "{\"a\":".repeat(1_000_000),
        ] {
            assert!(read(text.as_bytes()).unwrap_err().contains("nested too deeply"));
        }
    }
}
