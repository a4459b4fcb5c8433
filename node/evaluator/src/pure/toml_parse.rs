//! Reads TOML as `builtins.fromTOML` does, into the caller's values.
//!
//! Dates and times are refused, as stock Nix does without the experimental feature `parse-toml-timestamps`. Stock
//! Nix reads TOML 1.0; what TOML 1.1 allows beside it (line ends in inline tables, `\e` and `\x` in strings) is
//! accepted here.

use toml::de::{DeFloat, DeInteger, DeTable, DeValue};

use super::builder::Builder;

/// A text that is not TOML, or not TOML that Nix can hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TomlError {
    /// The text is not TOML.
    #[error("at line {line}, column {column}: {message}")]
    Syntax {
        /// The line, counted from 1.
        line: usize,
        /// The column in bytes, counted from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// The text is not UTF-8.
    #[error("the text is not UTF-8 at byte {0}")]
    InvalidUtf8(usize),
    /// A date or time.
    #[error("Dates and times are not supported")]
    Timestamp,
    /// An integer outside of 64 bits.
    #[error("integer '{0}' does not fit 64 bits")]
    IntegerRange(String),
    /// A float outside of what a double holds.
    #[error("number '{0}' is too large for a double")]
    FloatRange(String),
    /// A null byte in a string or name.
    #[error("a string contains a null byte; Nix strings cannot")]
    NullByte,
}

/// Reads a text that is a TOML document.
///
/// # Errors
///
/// The first thing that is wrong. Tables that nest too deeply are wrong too.
pub fn parse<B: Builder>(text: &[u8], builder: &mut B) -> Result<B::Value, TomlError> {
    let text = std::str::from_utf8(text).map_err(|error| TomlError::InvalidUtf8(error.valid_up_to()))?;
    let document = DeTable::parse(text).map_err(|error| {
        let before = &text.as_bytes()[..error.span().map_or(0, |span| span.start).min(text.len())];
        let line_start = before
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        TomlError::Syntax {
            line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
            column: 1 + before.len() - line_start,
            message: error.message().to_owned(),
        }
    })?;
    table(document.get_ref(), builder)
}

// The recursion here is no deeper than that of the crate, which has its limit (80 levels).

fn table<B: Builder>(table: &DeTable<'_>, builder: &mut B) -> Result<B::Value, TomlError> {
    let mut members = Vec::with_capacity(table.len());
    for (name, member) in table.iter() {
        let key = builder.key(without_null(name.get_ref())?);
        members.push((key, value(member.get_ref(), builder)?));
    }
    Ok(builder.object(members.drain(..)))
}

fn value<B: Builder>(value_: &DeValue<'_>, builder: &mut B) -> Result<B::Value, TomlError> {
    Ok(match value_ {
        DeValue::String(text) => builder.string(without_null(text)?),
        DeValue::Integer(number) => builder.integer(integer(number)?),
        DeValue::Float(number) => builder.float(float(number)?),
        DeValue::Boolean(boolean) => builder.boolean(*boolean),
        DeValue::Datetime(_) => return Err(TomlError::Timestamp),
        DeValue::Array(array) => {
            let items: Result<Vec<_>, _> = array.iter().map(|item| value(item.get_ref(), builder)).collect();
            builder.list(items?.drain(..))
        }
        DeValue::Table(nested) => table(nested, builder)?,
    })
}

fn without_null(text: &str) -> Result<&str, TomlError> {
    if text.contains('\0') {
        Err(TomlError::NullByte)
    } else {
        Ok(text)
    }
}

fn integer(number: &DeInteger<'_>) -> Result<i64, TomlError> {
    i64::from_str_radix(number.as_str(), number.radix())
        .map_err(|_| TomlError::IntegerRange(number.as_str().to_owned()))
}

fn float(number: &DeFloat<'_>) -> Result<f64, TomlError> {
    let text = number.as_str();
    match text.parse::<f64>() {
        Ok(float) if float.is_finite() || !text.contains(|character: char| character.is_ascii_digit()) => {
            Ok(float)
        }
        _ => Err(TomlError::FloatRange(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::builder::tests::Writer;

    fn read(text: &str) -> Result<String, String> {
        parse(text.as_bytes(), &mut Writer).map_err(|error| error.to_string())
    }

    #[test]
    fn values() {
        for (text, value) in [
            ("", "{}"),
            ("x=1\ns=\"a\"\n[table]\ny=2\n", "{s=\"a\" table={y=i2} x=i1}"),
            ("a = [1, 2.5, \"x\", [true]]", "{a=[i1 f2.5 \"x\" [true]]}"),
            (
                "a = 0x1F_f\nb = 0o17\nc = 0b11\nd = -1_000\ne = +5",
                "{a=i511 b=i15 c=i3 d=i-1000 e=i5}",
            ),
            (
                "a = 1e5\nb = -inf\nc = +1.5_0\nd = -0.0",
                "{a=f100000.0 b=f-inf c=f1.5 d=f-0.0}",
            ),
            ("a = nan", "{a=fNaN}"),
            ("[[a]]\nb = 1\n[[a]]\nb = 2", "{a=[{b=i1} {b=i2}]}"),
            ("a.b.c = 1\na.d = { e = 'f' }", "{a={b={c=i1} d={e=\"f\"}}}"),
            ("\"a b\" = '''\nx\\y'''", "{a b=\"x\\\\y\"}"),
            (
                "a = 9223372036854775807\nb = -9223372036854775808",
                "{a=i9223372036854775807 b=i-9223372036854775808}",
            ),
        ] {
            assert_eq!(read(text).as_deref(), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (text, error) in [
            ("a = 1979-05-27", "Dates and times are not supported"),
            ("a = [07:32:00]", "Dates and times are not supported"),
            (
                "a = 9223372036854775808",
                "integer '9223372036854775808' does not fit 64 bits",
            ),
            ("a = 1e999", "number '1e999' is too large for a double"),
            (
                "a = \"\\u0000\"",
                "a string contains a null byte; Nix strings cannot",
            ),
            (
                "\"\\u0000\" = 1",
                "a string contains a null byte; Nix strings cannot",
            ),
        ] {
            assert_eq!(read(text), Err(error.to_owned()), "{text}");
        }
        for text in [
            "a",
            "a = ",
            "a = 1\na = 2",
            "[a]\n[a]",
            "a = \"x",
            "= 1",
            "a = 01",
        ] {
            let message = read(text).expect_err(text);
            assert!(message.starts_with("at line "), "{text}: {message}");
        }
        assert_eq!(parse(b"a = '\xff'", &mut Writer), Err(TomlError::InvalidUtf8(5)));
    }

    #[test]
    fn depth_is_bounded() {
        for text in [
            format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000)),
            format!("a = {}{}", "{a=".repeat(100_000), "}".repeat(100_000)),
            format!("{}x = 1", "a.".repeat(100_000)),
            format!("[{}x]", "a.".repeat(100_000)),
        ] {
            assert!(read(&text).is_err());
        }
    }
}
