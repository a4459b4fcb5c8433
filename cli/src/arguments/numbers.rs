//! Counts, sizes and times as Nix reads them.

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
}
