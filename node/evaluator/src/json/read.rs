//! JSON texts as values.

use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::heap::{AttrsBuilder, List, Value};
use crate::syntax::position::Pos;

impl<'h> Evaluation<'h> {
    /// The value of a JSON text, as `builtins.fromJSON` makes it.
    ///
    /// # Errors
    /// It is not JSON, holds a number out of range or a NUL character, or nests too deep.
    pub(crate) fn parse_json(&self, text: &[u8], pos: Pos) -> Result<Value<'h>> {
        let mut reader = Reader {
            evaluation: self,
            text,
            at: 0,
            pos,
        };
        reader.blanks();
        let value = reader.value()?;
        reader.blanks();
        match reader.peek() {
            None => Ok(value),
            Some(_) => Err(reader.wrong("unexpected text after the value")),
        }
    }
}

struct Reader<'r, 'h> {
    evaluation: &'r Evaluation<'h>,
    text: &'r [u8],
    at: usize,
    pos: Pos,
}

impl<'h> Reader<'_, 'h> {
    fn wrong(&self, what: &str) -> crate::error::Error {
        let (before, _) = self.text.split_at(self.at.min(self.text.len()));
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        self.evaluation.error(
            self.pos,
            format!("failed to parse JSON: {what} at line {line}, column {column}"),
        )
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &[u8], value: Value<'h>) -> Result<Value<'h>> {
        if !self.text[self.at..].starts_with(word) {
            return Err(self.wrong("invalid literal"));
        }
        self.at += word.len();
        Ok(value)
    }

    fn value(&mut self) -> Result<Value<'h>> {
        match self.peek() {
            Some(b'n') => self.word(b"null", Value::NULL),
            Some(b't') => self.word(b"true", Value::TRUE),
            Some(b'f') => self.word(b"false", Value::FALSE),
            Some(b'"') => {
                let text = self.string()?;
                Ok(self.evaluation.text(&text))
            }
            Some(b'[') => self.evaluation.deeper(self.pos, || self.list()),
            Some(b'{') => self.evaluation.deeper(self.pos, || self.object()),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(_) => Err(self.wrong("unexpected character")),
            None => Err(self.wrong("unexpected end of input")),
        }
    }

    fn list(&mut self) -> Result<Value<'h>> {
        self.at += 1;
        let mut items = Vec::new();
        self.blanks();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(self.evaluation.empty_list);
        }
        loop {
            self.blanks();
            items.push(self.value()?);
            self.blanks();
            match self.next() {
                Some(b',') => {}
                Some(b']') => break,
                _ => return Err(self.wrong("expected ',' or ']'")),
            }
        }
        Ok(Value::list(List::from_slice(self.evaluation.heap, &items)))
    }

    fn object(&mut self) -> Result<Value<'h>> {
        self.at += 1;
        let mut members = Vec::new();
        self.blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(self.evaluation.empty_attrs);
        }
        loop {
            self.blanks();
            if self.peek() != Some(b'"') {
                return Err(self.wrong("expected a name"));
            }
            let name = self.string()?;
            let name = self.evaluation.symbol(&name);
            self.blanks();
            if self.next() != Some(b':') {
                return Err(self.wrong("expected ':'"));
            }
            self.blanks();
            members.push((name, self.value()?));
            self.blanks();
            match self.next() {
                Some(b',') => {}
                Some(b'}') => break,
                _ => return Err(self.wrong("expected ',' or '}'")),
            }
        }
        // Of equal names the last one counts; the builder keeps the first.
        let mut attrs = AttrsBuilder::with_capacity(members.len());
        for (name, value) in members.into_iter().rev() {
            attrs.insert(name, value);
        }
        Ok(Value::attrs(attrs.finish(self.evaluation.heap)))
    }

    fn digits(&mut self) -> Result<()> {
        if !self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            return Err(self.wrong("expected a digit"));
        }
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Value<'h>> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        let mut whole = true;
        if self.peek() == Some(b'.') {
            whole = false;
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            whole = false;
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = String::from_utf8_lossy(&self.text[start..self.at]).into_owned();
        let heap = self.evaluation.heap;
        if whole {
            if let Ok(int) = text.parse::<i64>() {
                return Ok(Value::int(heap, int));
            }
            if text.parse::<u64>().is_ok() {
                return Err(self.wrong(&format!(
                    "unsigned json number {text} outside of Nix integer range"
                )));
            }
        }
        match text.parse::<f64>() {
            Ok(float) if float.is_finite() => Ok(Value::float(heap, float)),
            _ => Err(self.wrong(&format!("the number {text} is out of range"))),
        }
    }

    fn string(&mut self) -> Result<Vec<u8>> {
        self.at += 1;
        let mut text = Vec::new();
        loop {
            match self.next() {
                None => return Err(self.wrong("unexpected end of a string")),
                Some(b'"') => break,
                Some(b'\\') => self.escape(&mut text)?,
                Some(0..0x20) => return Err(self.wrong("a control character in a string must be escaped")),
                Some(byte) => text.push(byte),
            }
        }
        if std::str::from_utf8(&text).is_err() {
            return Err(self.wrong("a string is not valid UTF-8"));
        }
        if text.contains(&0) {
            let shown = String::from_utf8_lossy(&text).replace('\0', "␀");
            return Err(self.evaluation.error(
                self.pos,
                format!(
                    "input string '{shown}' cannot be represented as Nix string because it contains null bytes"
                ),
            ));
        }
        Ok(text)
    }

    fn escape(&mut self, text: &mut Vec<u8>) -> Result<()> {
        let byte = match self.next() {
            Some(byte @ (b'"' | b'\\' | b'/')) => byte,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                let mut code = self.hexadecimal()?;
                if (0xd800..0xdc00).contains(&code) {
                    if self.next() != Some(b'\\') || self.next() != Some(b'u') {
                        return Err(self.wrong("a surrogate stands alone"));
                    }
                    let low = self.hexadecimal()?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return Err(self.wrong("a surrogate stands alone"));
                    }
                    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                }
                let Some(char) = char::from_u32(code) else {
                    return Err(self.wrong("a surrogate stands alone"));
                };
                text.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.wrong("invalid escape")),
        };
        text.push(byte);
        Ok(())
    }

    fn hexadecimal(&mut self) -> Result<u32> {
        let mut code = 0;
        for _ in 0..4 {
            match self.next().and_then(|byte| char::from(byte).to_digit(16)) {
                Some(digit) => code = code * 16 + digit,
                None => return Err(self.wrong("expected four hexadecimal digits")),
            }
        }
        Ok(code)
    }
}
