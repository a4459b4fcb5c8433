//! Counts, sizes and times as Nix reads them, and durations.

use tvix_node::numbers;
pub use tvix_node::numbers::Limit;

/// See [`numbers::number`].
fn number(text: &str) -> Result<u64, String> {
    numbers::number(text).map_err(ToOwned::to_owned)
}

/// A number of bytes.
pub fn size(text: &str) -> Result<u64, String> {
    number(text)
}

/// A bound; 0 means none, as in Nix.
pub fn limit(text: &str) -> Result<Limit, String> {
    number(text).map(Limit::from)
}

/// A number of cores; 0: all of them.
pub fn cores(text: &str) -> Result<u32, String> {
    u32::try_from(number(text)?).map_err(|_| "the number is too large".to_owned())
}

/// A number of builds at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jobs {
    /// As many as the node has slots.
    Auto,
    /// So many; 0: none here, others build.
    Most(u32),
}

/// Reads `auto` or a number of jobs.
pub fn jobs(text: &str) -> Result<Jobs, String> {
    if text == "auto" {
        return Ok(Jobs::Auto);
    }
    cores(text).map(Jobs::Most)
}

/// Seconds of the units in which a duration is written.
const UNITS: [(char, u64); 6] = [
    ('s', 1),
    ('m', 60),
    ('h', 3600),
    ('d', 24 * 3600),
    ('w', 7 * 24 * 3600),
    ('y', 365 * 24 * 3600),
];

/// Reads a duration such as `30m`, `7d` or `1h30m`, in seconds. It is more than nothing.
pub fn duration(text: &str) -> Result<u64, String> {
    let expected = || {
        "a duration is a number with a unit: s, m (minutes), h, d, w or y, as in 30m, 7d or 1h30m".to_owned()
    };
    let (mut seconds, mut number) = (0_u64, None::<u64>);
    for letter in text.chars() {
        let too_long = || "the duration is too long".to_owned();
        if let Some(digit) = letter.to_digit(10) {
            let begun = number.unwrap_or(0).checked_mul(10);
            let longer = begun.and_then(|begun| begun.checked_add(u64::from(digit)));
            number = Some(longer.ok_or_else(too_long)?);
            continue;
        }
        let unit = UNITS.iter().find(|(name, _)| *name == letter);
        let (Some((_, unit)), Some(count)) = (unit, number.take()) else {
            return Err(expected());
        };
        let added = count
            .checked_mul(*unit)
            .and_then(|part| seconds.checked_add(part));
        seconds = added.filter(|sum| *sum <= LONGEST).ok_or_else(too_long)?;
    }
    if number.is_some() || text.is_empty() {
        return Err(expected());
    }
    if seconds == 0 {
        return Err("the duration must be longer than nothing".to_owned());
    }
    Ok(seconds)
}

/// The longest duration, in seconds: a thousand years, so that adding it to the time of day does not
/// overflow anywhere.
const LONGEST: u64 = 1000 * 365 * 24 * 3600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_means_no_limit_all_cores_and_no_jobs_here() {
        assert_eq!(limit("0"), Ok(Limit(None)));
        assert_eq!(limit("90"), Ok(Limit(Some(90))));
        assert_eq!(cores("0"), Ok(0));
        assert_eq!(jobs("0"), Ok(Jobs::Most(0)));
        assert_eq!(jobs("auto"), Ok(Jobs::Auto));
        assert_eq!(jobs("3"), Ok(Jobs::Most(3)));
    }
    #[test]
    fn durations_have_units() {
        for (text, expected) in [
            ("90s", 90),
            ("30m", 1800),
            ("1h30m", 5400),
            ("7d", 604_800),
            ("2w", 1_209_600),
            ("1y", 31_536_000),
        ] {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        for text in ["", "7", "d", "7 d", "-1d", "1.5h", "7days", "1h30", "soon", "７d"] {
            let error = duration(text).expect_err(text);
            assert!(error.contains("7d"), "{text}: {error}");
        }
        for text in ["0s", "0d0h"] {
            assert!(duration(text).unwrap_err().contains("longer"), "{text}");
        }
        for text in ["9999999999999999999999s", "999999999999y", "1001y"] {
            assert!(duration(text).unwrap_err().contains("too long"), "{text}");
        }
    }
}
