//! Versions and package names, as `builtins.compareVersions`, `splitVersion` and `parseDrvName` see them
//! (`src/libstore/names.cc`).

use std::cmp::Ordering;

/// Splits off the first component of a version: a run of digits, or a run of anything else but digits, dots and
/// dashes. Dots and dashes in front are skipped. Empty when nothing is left.
fn next_component(version: &[u8]) -> (&[u8], &[u8]) {
    let is_separator = |byte: &u8| matches!(byte, b'.' | b'-');
    let start = version
        .iter()
        .position(|byte| !is_separator(byte))
        .unwrap_or(version.len());
    let version = &version[start..];
    let length = match version.first() {
        Some(first) if first.is_ascii_digit() => {
            version.iter().take_while(|byte| byte.is_ascii_digit()).count()
        }
        _ => version
            .iter()
            .take_while(|byte| !byte.is_ascii_digit() && !is_separator(byte))
            .count(),
    };
    version.split_at(length)
}

/// The components of a version.
///
/// ```
/// use tvix_node_evaluator::pure::version::components;
///
/// let components: Vec<_> = components(b"1.2pre-3").collect();
/// assert_eq!(components, [&b"1"[..], b"2", b"pre", b"3"]);
/// ```
pub fn components(version: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = version;
    std::iter::from_fn(move || {
        let (component, behind) = next_component(rest);
        rest = behind;
        (!component.is_empty()).then_some(component)
    })
}

/// The number that a component is. What does not fit 32 bits is text, as in stock Nix.
fn number(component: &[u8]) -> Option<i32> {
    std::str::from_utf8(component).ok()?.parse().ok()
}

/// Orders components: `pre` < nothing < text < number; numbers by value, text by bytes.
fn compare_components(a: &[u8], b: &[u8]) -> Ordering {
    if a == b {
        return Ordering::Equal;
    }
    match (number(a), number(b)) {
        (Some(a), Some(b)) => return a.cmp(&b),
        _ if a == b"pre" => return Ordering::Less,
        _ if b == b"pre" => return Ordering::Greater,
        // `2.3a` < `2.3.1`
        (None, Some(_)) => return Ordering::Less,
        (Some(_), None) => return Ordering::Greater,
        (None, None) => {}
    }
    a.cmp(b)
}

/// Orders versions by their components, from left to right.
///
/// ```
/// use std::cmp::Ordering;
/// use tvix_node_evaluator::pure::version::compare;
///
/// assert_eq!(compare(b"2.3.1", b"2.3a"), Ordering::Greater);
/// ```
pub fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let (mut a, mut b) = (a, b);
    while !a.is_empty() || !b.is_empty() {
        let (component_a, rest_a) = next_component(a);
        let (component_b, rest_b) = next_component(b);
        match compare_components(component_a, component_b) {
            Ordering::Equal => (a, b) = (rest_a, rest_b),
            different => return different,
        }
    }
    Ordering::Equal
}

/// Splits the name of a derivation into package name and version, at the first dash that is followed by something
/// that is no letter. The version is empty if there is no such dash.
///
/// ```
/// use tvix_node_evaluator::pure::version::split_name;
///
/// assert_eq!(split_name(b"apache-httpd-2.0.48"), (&b"apache-httpd"[..], &b"2.0.48"[..]));
/// ```
pub fn split_name(name: &[u8]) -> (&[u8], &[u8]) {
    let dash = name
        .windows(2)
        .position(|pair| pair[0] == b'-' && !pair[1].is_ascii_alphabetic());
    match dash {
        Some(dash) => (&name[..dash], &name[dash + 1..]),
        None => (name, b""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_components() {
        let order = [
            // Each group is equal within and less than the next.
            &["pre", "pre1"][..1],
            &["", ".", "-", ".-"],
            &["a"],
            &["b"],
            &["1pre", "1.pre", "1-pre"],
            &["1", "1.", "01"],
            &["1a"],
            &["1.0", "1.00"],
            &["1.1"],
            &["1.2"],
            &["1.10", "1-10", "1..10"],
            &["2"],
            &["2147483647"],
        ];
        for (i, group) in order.iter().enumerate() {
            for (j, other) in order.iter().enumerate() {
                for a in *group {
                    for b in *other {
                        assert_eq!(compare(a.as_bytes(), b.as_bytes()), i.cmp(&j), "{a:?} and {b:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn examples_of_the_manual() {
        for (a, b, expected) in [
            ("1.0", "2.3", Ordering::Less),
            ("2.1", "2.3", Ordering::Less),
            ("2.3", "2.3", Ordering::Equal),
            ("2.5", "2.3", Ordering::Greater),
            ("3.1", "2.3", Ordering::Greater),
            ("2.3.1", "2.3", Ordering::Greater),
            ("2.3.1", "2.3a", Ordering::Greater),
            ("2.3pre1", "2.3", Ordering::Less),
            ("2.3pre3", "2.3pre12", Ordering::Less),
            ("2.3a", "2.3c", Ordering::Less),
            ("2.3pre1", "2.3c", Ordering::Less),
            ("2.3pre1", "2.3q", Ordering::Less),
        ] {
            assert_eq!(compare(a.as_bytes(), b.as_bytes()), expected, "{a} and {b}");
        }
    }

    #[test]
    fn numbers_past_32_bits_are_text() {
        assert_eq!(compare(b"2147483648", b"1"), Ordering::Less);
        assert_eq!(compare(b"20200101120000", b"3000000000"), Ordering::Less);
    }

    #[test]
    fn components_are_runs_of_digits_or_of_others() {
        let split = |version: &str| {
            components(version.as_bytes())
                .map(|part| String::from_utf8_lossy(part).into_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(split("1.2.3"), ["1", "2", "3"]);
        assert_eq!(split("-1--a_b2."), ["1", "a_b", "2"]);
        assert_eq!(split(""), Vec::<String>::new());
        assert_eq!(split(".-."), Vec::<String>::new());
    }

    #[test]
    fn names_are_split_at_the_first_dash_before_no_letter() {
        for (name, package, version) in [
            ("hello-1.2", "hello", "1.2"),
            ("hello", "hello", ""),
            ("a-b-1-c", "a-b", "1-c"),
            ("a--b", "a", "-b"),
            ("a-", "a-", ""),
            ("-1", "", "1"),
            ("a-_b", "a", "_b"),
            ("", "", ""),
        ] {
            assert_eq!(
                split_name(name.as_bytes()),
                (package.as_bytes(), version.as_bytes()),
                "{name}"
            );
        }
    }
}
