//! How strings and names are written in Nix notation (`src/libexpr/print.cc`).

/// Appends a string as a literal with quotes: `"`, `\`, line feed, carriage return, tab and `${` are escaped,
/// everything else (other control characters, bytes that are not UTF-8) goes as it is.
pub fn push_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'$' if text.get(at + 1) == Some(&b'{') => out.extend_from_slice(b"\\$"),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// A string as a literal, see [`push_string`].
pub fn string(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    push_string(&mut out, text);
    out
}

/// Whether a name is a keyword that cannot be an attribute name without quotes. `or` can.
pub fn is_reserved(name: &[u8]) -> bool {
    matches!(
        name,
        b"if" | b"then" | b"else" | b"assert" | b"with" | b"let" | b"in" | b"rec" | b"inherit"
    )
}

/// Whether a name can stand without quotes as an identifier.
pub fn is_identifier(name: &[u8]) -> bool {
    let Some(&first) = name.first() else { return false };
    (first.is_ascii_alphabetic() || first == b'_')
        && name
            .iter()
            .all(|&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'\'' | b'-'))
        && !is_reserved(name)
}

/// Appends a name, with quotes if it needs them: as attribute names of printed values, and as the names in a
/// printed expression.
///
/// ```
/// use tvix_node_evaluator::pure::escape::push_name;
///
/// let mut out = Vec::new();
/// for name in ["a'", "or", "if", "1", ""] {
///     push_name(&mut out, name.as_bytes());
///     out.push(b' ');
/// }
/// assert_eq!(out, br#"a' or "if" "1" "" "#);
/// ```
pub fn push_name(out: &mut Vec<u8>, name: &[u8]) {
    if is_identifier(name) {
        out.extend_from_slice(name);
    } else {
        push_string(out, name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_literals() {
        assert_eq!(string(b"a\"b\\c\n\r\t"), br#""a\"b\\c\n\r\t""#);
        assert_eq!(string(b"$a ${b} $${c} $"), br#""$a \${b} $\${c} $""#);
        assert_eq!(string(b"\x01\xff\xc3\xa9"), b"\"\x01\xff\xc3\xa9\"");
        assert_eq!(string(b""), b"\"\"");
    }

    #[test]
    fn names_get_quotes_where_they_need_them() {
        for plain in ["a", "_", "A-b'9", "or", "null"] {
            assert!(is_identifier(plain.as_bytes()), "{plain}");
        }
        for quoted in ["", "if", "inherit", "9a", "'a", "-a", "a b", "a.b", "é"] {
            assert!(!is_identifier(quoted.as_bytes()), "{quoted}");
            let mut out = Vec::new();
            push_name(&mut out, quoted.as_bytes());
            assert_eq!(out, format!("\"{quoted}\"").into_bytes());
        }
    }
}
