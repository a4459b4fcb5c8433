//! Times and counts in words.

/// A time under way, in whole seconds: `7s`, `1m07s`, `2h01m`.
pub fn running(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

/// A time that is over: as [`running`], with tenths below ten seconds.
pub fn took(milliseconds: u64) -> String {
    if milliseconds < 9_950 {
        let tenths = (milliseconds + 50) / 100;
        format!("{}.{}s", tenths / 10, tenths % 10)
    } else {
        running(milliseconds + 500)
    }
}

/// `1 path`, `2 paths`, `1 derivation`.
pub fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        assert_eq!(
            [0, 999, 7_000, 67_000, 7_260_000].map(running),
            ["0s", "0s", "7s", "1m07s", "2h01m"]
        );
        assert_eq!(
            [0, 49, 50, 1_234, 9_949, 9_951, 67_600].map(took),
            ["0.0s", "0.0s", "0.1s", "1.2s", "9.9s", "10s", "1m08s"]
        );
        assert_eq!([count(1, "path"), count(2, "path")], ["1 path", "2 paths"]);
    }
}
