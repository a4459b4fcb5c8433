//! Percent-encoding of what stands in an address.

/// Writes a value so that it is one query value: everything but unreserved characters (RFC 3986,
/// section 2.3) is percent-encoded.
pub(super) fn encode(value: &str, into: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            let digit = |nibble: u8| char::from(b"0123456789ABCDEF"[usize::from(nibble)]);
            into.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
}

/// Reads a query value. A `+` is a `+`: store path names have them, and these are no forms.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
        } else if let [high, low, tail @ ..] = tail {
            bytes.push(nibble(*high)? << 4 | nibble(*low)?);
            rest = tail;
        } else {
            return None;
        }
    }
    String::from_utf8(bytes).ok()
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_comes_back() {
        for text in ["", "gtk+-3.24", "a b&c=d/%?#", "ünïcode", "\u{0}\n"] {
            let mut encoded = String::new();
            encode(text, &mut encoded);
            assert!(
                encoded
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte))
            );
            assert_eq!(decode(&encoded).as_deref(), Some(text));
        }
    }

    #[test]
    fn torn_escapes_and_broken_utf8_are_refused() {
        for text in ["%", "%4", "%zz", "%ff", "a%2"] {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_eq!(decode("gtk+"), Some("gtk+".to_owned()));
    }
}
