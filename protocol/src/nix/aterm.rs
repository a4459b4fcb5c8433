//! The text of a derivation, and the hashes over its variants.
//!
//! A derivation is written three times with little difference: for its output paths (inputs replaced by their
//! hashes, own outputs empty), for its identity as an input (own outputs filled in), and as the `.drv` file (inputs
//! by path). Most of the text is its environment and the same in all three, so it is quoted once, with the places
//! noted where output paths go.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::derivation::{FieldsView, ModuloHash, OutputKind};
use super::hash::CAHash;
use super::store_path::{STORE_DIR, StorePath};

/// Bytes looked at together when text is quoted: what compilers turn into vector instructions.
const BLOCK: usize = 32;

/// A derivation's text in the parts that its variants share.
pub(super) struct Text<'a> {
    fields: &'a FieldsView<'a>,
    /// Everything behind the list of input derivations, with output paths left out.
    rest: Vec<u8>,
    /// Where in `rest` the path of which output goes, in ascending order.
    places: Vec<(usize, &'a str)>,
}

/// Paths of outputs, as text.
pub(super) type Shown = BTreeMap<String, Vec<u8>>;

impl<'a> Text<'a> {
    /// Quotes what all variants share.
    pub(super) fn new(fields: &'a FieldsView<'a>) -> Self {
        let size: usize = fields
            .environment
            .iter()
            .map(|(name, value)| name.len() + value.len() + 8)
            .sum();
        let mut rest = Vec::with_capacity(size + size / 8 + 128 * (fields.input_sources.len() + 4));
        rest.extend_from_slice(b"],[");
        list(&mut rest, &fields.input_sources, |text, path| {
            text.push(b'"');
            push_path(text, path);
            text.push(b'"');
        });
        rest.extend_from_slice(b"],");
        quote(&mut rest, fields.system);
        rest.push(b',');
        quote(&mut rest, fields.builder);
        rest.extend_from_slice(b",[");
        list(&mut rest, &fields.arguments, |text, argument| {
            quote(text, argument)
        });
        rest.extend_from_slice(b"],[");
        let mut places = Vec::with_capacity(fields.outputs.len());
        let mut outputs = fields.outputs.keys().peekable();
        let mut plain = fields.environment.iter().peekable();
        let mut separator = "";
        loop {
            let (name, value): (&[u8], Option<&[u8]>) = match (outputs.peek(), plain.peek()) {
                (Some(output), other) if other.is_none_or(|(name, _)| output.as_bytes() < *name) => {
                    let Some(output) = outputs.next() else { break };
                    (output.as_bytes(), None)
                }
                _ => {
                    let Some((name, value)) = plain.next() else { break };
                    (name, Some(value))
                }
            };
            rest.extend_from_slice(separator.as_bytes());
            separator = ",";
            rest.push(b'(');
            quote(&mut rest, name);
            rest.push(b',');
            match value {
                Some(value) => quote(&mut rest, value),
                None => {
                    rest.extend_from_slice(b"\"\"");
                    places.push((rest.len() - 1, std::str::from_utf8(name).unwrap_or_default()));
                }
            }
            rest.push(b')');
        }
        rest.extend_from_slice(b"])");
        Self { fields, rest, places }
    }

    /// The hash of a variant: inputs as given, outputs as given or masked.
    pub(super) fn digest(&self, inputs: &[u8], outputs: Option<&Shown>) -> [u8; 32] {
        let mut hash = Sha256::new();
        self.pieces(inputs, outputs, |piece| hash.update(piece));
        hash.finalize().into()
    }

    /// A variant as a whole.
    pub(super) fn whole(&self, inputs: &[u8], outputs: Option<&Shown>) -> Vec<u8> {
        let mut size = 0;
        self.pieces(inputs, outputs, |piece| size += piece.len());
        let mut text = Vec::with_capacity(size);
        self.pieces(inputs, outputs, |piece| text.extend_from_slice(piece));
        text
    }

    fn pieces(&self, inputs: &[u8], outputs: Option<&Shown>, mut piece: impl FnMut(&[u8])) {
        let shown = |output: &str| -> &[u8] {
            outputs
                .and_then(|paths| paths.get(output))
                .map_or(b"", Vec::as_slice)
        };
        let mut head = Vec::with_capacity(128 * self.fields.outputs.len() + 16);
        head.extend_from_slice(b"Derive([");
        list(&mut head, self.fields.outputs, |text, (output, kind)| {
            text.push(b'(');
            quote(text, output.as_bytes());
            text.extend_from_slice(b",\"");
            text.extend_from_slice(shown(output));
            match kind {
                OutputKind::InputAddressed => text.extend_from_slice(b"\",\"\",\"\")"),
                OutputKind::Fixed(ca) => {
                    text.extend_from_slice(b"\",\"");
                    text.extend_from_slice(method(ca).as_bytes());
                    text.extend_from_slice(b"\",\"");
                    push_base16(text, ca.hash().digest_as_bytes());
                    text.extend_from_slice(b"\")");
                }
            }
        });
        head.extend_from_slice(b"],[");
        piece(&head);
        piece(inputs);
        let mut done = 0;
        if outputs.is_some() {
            for (place, output) in &self.places {
                piece(&self.rest[done..*place]);
                piece(shown(output));
                done = *place;
            }
        }
        piece(&self.rest[done..]);
    }
}

/// The list of input derivations by path, without its brackets.
pub(super) fn inputs_by_path(inputs: &[(&StorePath, &str)]) -> Vec<u8> {
    let mut text = Vec::with_capacity(inputs.len() * 128);
    let by_path = inputs.chunk_by(|(a, _), (b, _)| a == b);
    list(&mut text, by_path, |text, inputs| {
        input(text, inputs, |text, path| push_path(text, path))
    });
    text
}

/// The list of input derivations by hash, without its brackets.
pub(super) fn inputs_by_hash(inputs: &[(ModuloHash, &str)]) -> Vec<u8> {
    let mut text = Vec::with_capacity(inputs.len() * 96);
    let by_hash = inputs.chunk_by(|(a, _), (b, _)| a == b);
    list(&mut text, by_hash, |text, inputs| {
        input(text, inputs, |text, ModuloHash(hash)| push_base16(text, hash))
    });
    text
}

/// An input and the outputs wanted of it.
fn input<T>(text: &mut Vec<u8>, outputs: &[(T, &str)], name: impl Fn(&mut Vec<u8>, &T)) {
    text.extend_from_slice(b"(\"");
    if let [(first, _), ..] = outputs {
        name(text, first);
    }
    text.extend_from_slice(b"\",[");
    list(text, outputs, |text, (_, output)| quote(text, output.as_bytes()));
    text.extend_from_slice(b"])");
}

/// How a content address is made, as `.drv` files say it.
pub(super) fn method(ca: &CAHash) -> String {
    let prefix = match ca {
        CAHash::Flat(_) => "",
        CAHash::Nar(_) => "r:",
        CAHash::Text(_) => "text:",
        CAHash::Git(_) => "git:",
    };
    format!("{prefix}{}", ca.hash().algorithm())
}

/// Bytes in base 16.
pub(super) fn push_base16(text: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.extend(
        bytes
            .iter()
            .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]),
    );
}

/// A store path with its folder. The same as its `Display`, which takes several allocations.
pub(super) fn push_path(text: &mut Vec<u8>, path: &StorePath) {
    const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    text.extend_from_slice(STORE_DIR.as_bytes());
    text.push(b'/');
    // Five bytes are eight digits; digits are written from the last to the first.
    for group in path.digest().rchunks_exact(5) {
        let word = group
            .iter()
            .rev()
            .fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let digits: [u8; 8] = std::array::from_fn(|digit| ALPHABET[(word >> (35 - 5 * digit)) as usize & 31]);
        text.extend_from_slice(&digits);
    }
    text.push(b'-');
    text.extend_from_slice(path.name().as_bytes());
}

fn list<T>(text: &mut Vec<u8>, items: impl IntoIterator<Item = T>, mut one: impl FnMut(&mut Vec<u8>, T)) {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        one(text, item);
    }
}

/// A quoted string.
fn quote(text: &mut Vec<u8>, bytes: &[u8]) {
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | b'\n' | b'\r' | b'\t');
    text.push(b'"');
    let mut rest = bytes;
    'parts: loop {
        let mut clean = 0;
        for block in rest.chunks(BLOCK) {
            // No early end within a block, so that all of it is compared at once.
            if block.iter().fold(false, |any, byte| any | special(byte)) {
                let at = clean + block.iter().position(special).unwrap_or_default();
                text.extend_from_slice(&rest[..at]);
                text.push(b'\\');
                text.push(match rest[at] {
                    b'\n' => b'n',
                    b'\r' => b'r',
                    b'\t' => b't',
                    other => other,
                });
                rest = &rest[at + 1..];
                continue 'parts;
            }
            clean += block.len();
        }
        break;
    }
    text.extend_from_slice(rest);
    text.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(text: &[u8]) -> Vec<u8> {
        let mut quoted = Vec::new();
        quote(&mut quoted, text);
        quoted
    }

    #[test]
    fn what_is_special_is_escaped_wherever_it_stands() {
        assert_eq!(quoted(b""), b"\"\"");
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK] {
            let plain = vec![b'x'; length];
            let text = [&plain[..], b"\"\\\n\r\t", &plain[..], b"\n"].concat();
            let expected = [b"\"", &plain[..], b"\\\"\\\\\\n\\r\\t", &plain[..], b"\\n\""].concat();
            assert_eq!(quoted(&text), expected);
        }
    }

    #[test]
    fn paths_are_written_as_they_are_displayed() {
        for seed in 0..64u8 {
            let digest = std::array::from_fn(|index| {
                seed.wrapping_mul(31).wrapping_add((index as u8).wrapping_mul(57))
            });
            let path = StorePath::from_parts(digest, "some-name-1.0").unwrap();
            let mut text = Vec::new();
            push_path(&mut text, &path);
            assert_eq!(text, path.to_string().as_bytes());
        }
    }
}
