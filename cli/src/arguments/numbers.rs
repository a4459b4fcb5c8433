//! Counts, sizes and times as Nix reads them, and durations.

/// Reads a whole number with one of the suffixes `K`, `M`, `G` and `T`, powers of 1024, as Nix does for
/// its numeric flags.
fn number(text: &str) -> Result<u64, String> {
    let expected = || "a whole number is expected, perhaps with the suffix K, M, G or T".to_owned();
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, suffix)) if suffix.is_ascii_alphabetic() => {
            let shift = match suffix.to_ascii_uppercase() {
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                _ => return Err(expected()),
            };
            (&text[..at], shift)
        }
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(expected());
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "the number is too large".to_owned())
}

/// A number of bytes.
pub fn size(text: &str) -> Result<u64, String> {
    number(text)
}

/// A bound: [`number`], where 0 means none, as in Nix.
pub fn limit(text: &str) -> Result<Limit, String> {
    let number = number(text)?;
    Ok(Limit((number > 0).then_some(number)))
}

/// A bound of a build; none: unbounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit(pub Option<u64>);

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
    fn numbers_are_read_as_nix_reads_them() {
        for (text, expected) in [
            ("0", 0),
            ("007", 7),
            ("4K", 4096),
            ("1m", 1 << 20),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(number(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "K",
            "-1",
            "+1",
            "1.5",
            "1KB",
            "4 K",
            "１",
            "9999999999999999999999",
            "18014398509481984K",
        ] {
            assert!(number(text).is_err(), "{text}");
        }
    }

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
