//! Which bytes may stand where, as the character classes of stock Nix's lexer.

/// May begin an identifier: `[a-zA-Z_]`.
pub(super) const NAME_START: u8 = 1;
/// May continue an identifier: `[a-zA-Z0-9_'-]`.
pub(super) const NAME: u8 = 2;
/// May stand in a component of a path literal: `[a-zA-Z0-9._+-]`.
pub(super) const PATH: u8 = 4;
/// May stand behind the colon of a URI literal.
pub(super) const URI: u8 = 8;
/// White space between tokens.
pub(super) const SPACE: u8 = 16;
/// Needs a closer look inside `"…"`.
pub(super) const QUOTED_SPECIAL: u8 = 32;
/// Needs a closer look inside `''…''`.
pub(super) const INDENTED_SPECIAL: u8 = 64;
/// May continue the scheme of a URI literal: `[a-zA-Z0-9+.-]`.
pub(super) const SCHEME: u8 = 128;

static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        let mut class = 0;
        if byte.is_ascii_alphabetic() || byte == b'_' {
            class |= NAME_START;
        }
        if byte.is_ascii_alphanumeric() || contains(b"_'-", byte) {
            class |= NAME;
        }
        if byte.is_ascii_alphanumeric() || contains(b"._-+", byte) {
            class |= PATH;
        }
        if byte.is_ascii_alphanumeric() || contains(b"%/?:@&=+$,-_.!~*'", byte) {
            class |= URI;
        }
        if contains(b" \t\r\n", byte) {
            class |= SPACE;
        }
        if contains(b"\"\\$\r\0", byte) {
            class |= QUOTED_SPECIAL;
        }
        if contains(b"'$\0", byte) {
            class |= INDENTED_SPECIAL;
        }
        if byte.is_ascii_alphanumeric() || contains(b"+-.", byte) {
            class |= SCHEME;
        }
        classes[at] = class;
        at += 1;
    }
    classes
};

const fn contains(set: &[u8], byte: u8) -> bool {
    let mut at = 0;
    while at < set.len() {
        if set[at] == byte {
            return true;
        }
        at += 1;
    }
    false
}

/// Whether the byte is of one of the classes.
#[inline(always)]
pub(super) fn is(byte: u8, classes: u8) -> bool {
    CLASSES[byte as usize] & classes != 0
}
