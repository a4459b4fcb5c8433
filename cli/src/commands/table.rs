//! Rows in columns, and short forms of what is long, for people.

use std::time::{SystemTime, UNIX_EPOCH};

use unicode_width::UnicodeWidthStr as _;

use crate::progress::{clean, count};

/// Letters of a key or digest that are shown where it is long enough to tell it from others; commands
/// take a beginning of a key, too.
const SHORT: usize = 12;

/// The beginning of a key or digest.
pub fn short(digest: impl std::fmt::Display) -> String {
    digest.to_string().chars().take(SHORT).collect()
}

/// Rows under headings, each column as wide as its widest cell. What cells hold cannot command the
/// terminal.
pub fn table<const COLUMNS: usize>(headings: [&str; COLUMNS], rows: Vec<[String; COLUMNS]>) -> String {
    let mut lines = vec![headings.map(str::to_owned)];
    lines.extend(rows.into_iter().map(|row| row.map(|cell| clean(&cell))));
    let mut widths = [0; COLUMNS];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.width().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let mut shown = String::new();
        for (cell, width) in line.iter().zip(widths) {
            shown += cell;
            shown += &" ".repeat(width - cell.width() + 2);
        }
        text += shown.trim_end();
        text.push('\n');
    }
    text
}

/// A number of bytes: `12 B`, `1.5 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths, rounded down, so that nothing is shown as more than it is.
    let (mut tenths, mut unit) = (u128::from(bytes) * 10 / 1024, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A length of time in one unit, rounded down: `3 days`.
pub fn about(seconds: u64) -> String {
    let (number, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7200 => (seconds / 60, "minute"),
        7200..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    count(number, unit)
}

#[cfg(test)]
pub mod testing {
    use tvix_node_protocol::build::SwarmId;
    use tvix_node_protocol::control::{PeerView, TrafficView};
    use tvix_node_protocol::envelope::NodeKey;

    pub fn peer(name: &str) -> PeerView {
        PeerView {
            team: SwarmId([1; 32]),
            key: NodeKey([0xbb; 32]),
            name: name.to_owned(),
            addresses: vec![
                "/ip4/192.0.2.2/tcp/4001".to_owned(),
                "/ip4/10.0.0.2/tcp/1".to_owned(),
            ],
            version: "0.1.0".to_owned(),
            systems: vec!["x86_64-linux".to_owned(), "i686-linux".to_owned()],
            features: Vec::new(),
            slots: 4,
            free: 3,
            load: 125,
            round_trip_ms: Some(1.25),
            speed: Some(12_500_000),
            withheld: None,
            fixed_outputs: false,
            reaches_this_node: None,
            traffic: TrafficView {
                sent: 3 << 19,
                received: 12,
                content_sent: 1 << 20,
                content_received: 0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            ["日本".to_owned(), "x".to_owned(), "last".to_owned()],
            ["a\u{1b}[31mb".to_owned(), "longer".to_owned(), String::new()],
        ];
        assert_eq!(
            table(["NAME", "B", "C"], rows),
            "NAME  B       C\n日本  x       last\nab    longer\n"
        );
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(
            [0, 1023, 1024, 1536, (1 << 20) - 1, 1 << 20, u64::MAX].map(size),
            [
                "0 B",
                "1023 B",
                "1.0 KiB",
                "1.5 KiB",
                "1023.9 KiB",
                "1.0 MiB",
                "16383.9 PiB"
            ]
        );
        assert_eq!(
            [1, 119, 120, 7199, 7200, 172_800, 31_536_000].map(about),
            [
                "1 second",
                "119 seconds",
                "2 minutes",
                "119 minutes",
                "2 hours",
                "2 days",
                "365 days"
            ]
        );
        assert_eq!(short("0123456789abcdef"), "0123456789ab");
    }
}
