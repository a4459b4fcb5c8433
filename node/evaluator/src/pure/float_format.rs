//! How Nix writes floating-point numbers: differently in printed values, strings and JSON.

/// As a printed value (`nix-instantiate --eval`, XML, `--parse`): `%g` of C, six significant digits.
///
/// ```
/// use tvix_node_evaluator::pure::float_format::general;
///
/// assert_eq!(general(0.1), "0.1");
/// assert_eq!(general(1.0), "1");
/// assert_eq!(general(1234567.0), "1.23457e+06");
/// assert_eq!(general(0.00001), "1e-05");
/// ```
pub fn general(number: f64) -> String {
    const DIGITS: i32 = 6;
    if let Some(text) = not_finite(number) {
        return text.to_owned();
    }
    // Rounded to six digits first: the exponent decides the notation only then (999999.5 is 1e+06).
    let scientific = format!("{number:.*e}", DIGITS as usize - 1);
    let (mantissa, exponent) = split_exponent(&scientific);
    if (-4..DIGITS).contains(&exponent) {
        let decimals = (DIGITS - 1 - exponent) as usize;
        without_trailing_zeros(&format!("{number:.decimals$}")).to_owned()
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", without_trailing_zeros(mantissa), exponent.abs())
    }
}

/// As a string (`toString`, interpolation where it is allowed): `%f` of C, six decimals.
///
/// ```
/// use tvix_node_evaluator::pure::float_format::fixed;
///
/// assert_eq!(fixed(1.5), "1.500000");
/// ```
pub fn fixed(number: f64) -> String {
    match not_finite(number) {
        Some(text) => text.to_owned(),
        None => format!("{number:.6}"),
    }
}

fn not_finite(number: f64) -> Option<&'static str> {
    Some(
        match (number.is_nan(), number.is_infinite(), number.is_sign_negative()) {
            (true, _, false) => "nan",
            (true, _, true) => "-nan",
            (_, true, false) => "inf",
            (_, true, true) => "-inf",
            _ => return None,
        },
    )
}

/// Mantissa and exponent of a number in Rust's scientific notation.
fn split_exponent(scientific: &str) -> (&str, i32) {
    match scientific.split_once('e') {
        Some((mantissa, exponent)) => (mantissa, exponent.parse().unwrap_or(0)),
        None => (scientific, 0),
    }
}

fn without_trailing_zeros(number: &str) -> &str {
    if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn general_is_percent_g() {
        for (number, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1, "0.1"),
            (2.34567890, "2.34568"),
            (100000.0, "100000"),
            (999999.4, "999999"),
            (999999.5, "1e+06"),
            (1e6, "1e+06"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.000099999951, "0.0001"),
            (0.00001234567, "1.23457e-05"),
            (-2.5, "-2.5"),
            (1e100, "1e+100"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(general(number), text);
        }
    }

    #[test]
    fn fixed_is_percent_f() {
        assert_eq!(fixed(0.0), "0.000000");
        assert_eq!(fixed(-0.0), "-0.000000");
        assert_eq!(fixed(0.1234565), "0.123456");
        assert_eq!(fixed(1e21), "1000000000000000000000.000000");
        assert_eq!(fixed(f64::INFINITY), "inf");
    }
}
