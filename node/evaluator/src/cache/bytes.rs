//! Numbers and texts as bytes.

use std::cell::Cell;

/// Appends a number, seven bits a byte, low ones first.
pub(super) fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Appends a text with its length.
pub(super) fn push_text(bytes: &mut Vec<u8>, text: &[u8]) {
    push_number(bytes, text.len() as u64);
    bytes.extend_from_slice(text);
}

/// Reads what was appended. Where there is nothing left to read everything is zero and empty, and the reader
/// remembers that it [`failed`](Self::failed): who reads asks once at the end.
pub(super) struct Reader<'a> {
    bytes: Cell<&'a [u8]>,
    failed: Cell<bool>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes: Cell::new(bytes),
            failed: Cell::new(false),
        }
    }

    /// Whether something could not be read, or was found wrong.
    pub(super) fn failed(&self) -> bool {
        self.failed.get()
    }

    /// Notes that what was read is wrong.
    #[cold]
    pub(super) fn fail(&self) {
        self.failed.set(true);
        self.bytes.set(&[]);
    }

    #[inline]
    pub(super) fn byte(&self) -> u8 {
        match self.bytes.get() {
            [byte, rest @ ..] => {
                self.bytes.set(rest);
                *byte
            }
            [] => {
                self.fail();
                0
            }
        }
    }

    #[inline]
    pub(super) fn number(&self) -> u64 {
        let first = self.byte();
        if first < 0x80 {
            return u64::from(first);
        }
        let mut number = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte();
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return number;
            }
        }
        self.fail();
        0
    }

    #[inline]
    pub(super) fn small(&self) -> u32 {
        let number = self.number();
        u32::try_from(number).unwrap_or_else(|_| {
            self.fail();
            0
        })
    }

    /// How many things follow, each of at least one byte.
    #[inline]
    pub(super) fn count(&self) -> usize {
        let count = self.small() as usize;
        if count > self.bytes.get().len() {
            self.fail();
            return 0;
        }
        count
    }

    #[inline]
    pub(super) fn text(&self) -> &'a [u8] {
        let length = self.count();
        match self.bytes.get().split_at_checked(length) {
            Some((text, rest)) => {
                self.bytes.set(rest);
                text
            }
            None => {
                self.fail();
                &[]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_come_back() {
        let numbers = [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX];
        let mut bytes = Vec::new();
        for number in numbers {
            push_number(&mut bytes, number);
        }
        push_text(&mut bytes, b"text");
        let reader = Reader::new(&bytes);
        assert_eq!(numbers.map(|_| reader.number()), numbers);
        assert_eq!(reader.text(), b"text");
        assert!(!reader.failed());
    }

    #[test]
    fn reading_past_the_end_fails_once_and_for_all() {
        let reader = Reader::new(&[5, 1, 2]);
        assert_eq!(reader.text(), b"");
        assert!(reader.failed());
        assert_eq!((reader.number(), reader.byte()), (0, 0));
        let endless = [0xff; 12];
        let reader = Reader::new(&endless);
        assert_eq!(reader.number(), 0);
        assert!(reader.failed());
    }
}
