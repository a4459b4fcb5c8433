//! Versions and package names.

use std::cmp::Ordering;

use super::PrimOp;
use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::heap::{AttrsBuilder, List, Value};
use crate::syntax::position::Pos;
use crate::syntax::symbol::known;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("parseDrvName", 1, parse_drv_name),
    PrimOp::new("compareVersions", 2, compare_versions),
    PrimOp::new("splitVersion", 1, split_version),
];

fn parse_drv_name<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let trace = "while evaluating the first argument passed to builtins.parseDrvName";
    let text = evaluation.string_no_context(arguments[0], pos, trace)?;
    let (name, version) = split_name(text.bytes());
    let mut attrs = AttrsBuilder::with_capacity(2);
    attrs.insert(known::NAME, evaluation.text(name));
    attrs.insert(known::VERSION, evaluation.text(version));
    Ok(Value::attrs(attrs.finish(evaluation.heap)))
}

fn compare_versions<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let first = "while evaluating the first argument passed to builtins.compareVersions";
    let second = "while evaluating the second argument passed to builtins.compareVersions";
    let left = evaluation.string_no_context(arguments[0], pos, first)?;
    let right = evaluation.string_no_context(arguments[1], pos, second)?;
    Ok(Value::small_int(compare(left.bytes(), right.bytes()) as i32))
}

fn split_version<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let trace = "while evaluating the first argument passed to builtins.splitVersion";
    let text = evaluation.string_no_context(arguments[0], pos, trace)?;
    let components: Vec<Value<'h>> = components(text.bytes())
        .map(|component| evaluation.text(component))
        .collect();
    Ok(Value::list(List::from_slice(evaluation.heap, &components)))
}

/// Splits `name-version` at the first dash that no letter follows.
fn split_name(text: &[u8]) -> (&[u8], &[u8]) {
    let dash = text
        .windows(2)
        .position(|pair| pair[0] == b'-' && !pair[1].is_ascii_alphabetic());
    match dash {
        Some(dash) => (&text[..dash], &text[dash + 1..]),
        None => (text, b""),
    }
}

/// The components of a version: runs of digits, and runs of anything else but dots and dashes.
fn components(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let start = rest.iter().position(|byte| !matches!(byte, b'.' | b'-'))?;
        rest = &rest[start..];
        let digits = rest[0].is_ascii_digit();
        let same = |byte: &u8| match digits {
            true => byte.is_ascii_digit(),
            false => !byte.is_ascii_digit() && !matches!(byte, b'.' | b'-'),
        };
        let end = rest.iter().position(|byte| !same(byte)).unwrap_or(rest.len());
        let (component, after) = rest.split_at(end);
        rest = after;
        Some(component)
    })
}

/// Whether a component is older than another: numbers by value, nothing before numbers, `pre` before all else, and
/// words before numbers.
fn is_older(a: &[u8], b: &[u8]) -> bool {
    let number = |text: &[u8]| {
        std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse::<i32>().ok())
    };
    match (number(a), number(b)) {
        (Some(a), Some(b)) => a < b,
        (None, Some(_)) if a.is_empty() => true,
        _ if a == b"pre" && b != b"pre" => true,
        _ if b == b"pre" => false,
        (_, Some(_)) => true,
        (Some(_), _) => false,
        (None, None) => a < b,
    }
}

/// The order of two versions. Source: Nix manual, `nix-env --upgrade`, "Versions".
fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let (mut a, mut b) = (components(a), components(b));
    loop {
        let (left, right) = (a.next(), b.next());
        if left.is_none() && right.is_none() {
            return Ordering::Equal;
        }
        let (left, right) = (left.unwrap_or_default(), right.unwrap_or_default());
        if is_older(left, right) {
            return Ordering::Less;
        }
        if is_older(right, left) {
            return Ordering::Greater;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_the_manual_says() {
        for (older, newer) in [
            ("1.0", "2.3"),
            ("2.1", "2.3"),
            ("2.3pre1", "2.3"),
            ("2.3pre3", "2.3pre12"),
            ("2.3a", "2.3c"),
            ("2.3pre1", "2.3c"),
            ("2.3pre1", "2.3q"),
            ("2.3a", "2.3.1"),
        ] {
            assert_eq!(
                compare(older.as_bytes(), newer.as_bytes()),
                Ordering::Less,
                "{older} {newer}"
            );
            assert_eq!(
                compare(newer.as_bytes(), older.as_bytes()),
                Ordering::Greater,
                "{older} {newer}"
            );
        }
        assert_eq!(compare(b"2.3", b"2.3."), Ordering::Equal);
    }

    #[test]
    fn names_end_where_a_version_begins() {
        let split = |text: &'static str| split_name(text.as_bytes());
        assert_eq!(
            split("nix-js-0.12pre12876"),
            (&b"nix-js"[..], &b"0.12pre12876"[..])
        );
        assert_eq!(split("a-b-"), (&b"a-b-"[..], &b""[..]));
        assert_eq!(split("a--b"), (&b"a"[..], &b"-b"[..]));
    }
}
