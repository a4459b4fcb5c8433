//! Measures a store with 100,000 paths: start-up, look-ups, memory.
//!
//! ```text
//! cargo run --release -p tvix-node-store --example index -- [--paths N] [--folder DIR]
//! ```
//!
//! The paths are small texts, each of which refers to the two before it. They are added in groups of 2,000, as
//! an evaluation sends derivations. Start-up and look-ups are those of a process that begins with this.

use std::collections::BTreeSet;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::store_path::build_text_path;
use tvix_node_store::{Store, Text};

/// Added together.
const GROUP: usize = 2000;

/// Look-ups that are timed.
const LOOKUPS: usize = 50_000;

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let [look, home] = arguments.as_slice()
        && look == "look"
    {
        return look_up(Path::new(home));
    }
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let paths: usize = option("--paths")
        .and_then(|text| text.to_str()?.parse().ok())
        .unwrap_or(100_000);
    let parent = option("--folder").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(parent)?;
    let home = folder.path().join("home");
    let store = Store::open(&home)?;
    let start = Instant::now();
    let mut last: Vec<StorePath> = Vec::new();
    let mut number = 0;
    while number < paths {
        let mut group = Vec::with_capacity(GROUP);
        while group.len() < GROUP && number < paths {
            let references: BTreeSet<StorePath> = last.iter().rev().take(2).cloned().collect();
            let content = format!("text {number}");
            let path = build_text_path("text", content.as_bytes(), &references)?;
            last.push(path.clone());
            group.push(Text {
                path,
                references,
                content: content.into_bytes(),
            });
            number += 1;
        }
        store.add_texts(&group, &store.lease())?;
        last.drain(..last.len().saturating_sub(2));
    }
    println!(
        "{paths} texts added in {:.1} s, synced; {:.0} MiB of memory at most",
        start.elapsed().as_secs_f64(),
        memory("VmHWM")?
    );
    drop(store);
    // With nothing of this process in memory, and then once more.
    for _ in 0..2 {
        let status = Command::new(std::env::current_exe()?)
            .arg("look")
            .arg(&home)
            .status()?;
        if !status.success() {
            return Err(format!("looking up failed: {status}").into());
        }
    }
    let index = std::fs::read_dir(home.join("store"))?
        .map(|entry| entry?.metadata().map(|metadata| metadata.len()))
        .sum::<Result<u64, _>>()?;
    println!("{:.0} MiB of index", index as f64 / f64::from(1 << 20));
    Ok(())
}

fn look_up(home: &Path) -> Result<(), Failure> {
    let start = Instant::now();
    let store = Store::open(home)?;
    let opened = start.elapsed();
    let first = store.paths_after(None, 1)?;
    let begun = start.elapsed();
    let mut paths = Vec::new();
    let mut after = None;
    loop {
        let page = store.paths_after(after.as_ref(), 4096)?;
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        paths.extend(page);
    }
    let mut state = 1_u64;
    let mut random = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).map_or(0, |number| number % bound)
    };
    let wanted: Vec<&StorePath> = (0..LOOKUPS).map(|_| &paths[random(paths.len())]).collect();
    let start = Instant::now();
    for path in &wanted {
        if store.query(path)?.is_none() {
            return Err(format!("{path} is gone").into());
        }
    }
    let one = start.elapsed().as_secs_f64() / LOOKUPS as f64;
    let start = Instant::now();
    let found = store.query_many(wanted.iter().copied())?;
    let many = start.elapsed().as_secs_f64() / LOOKUPS as f64;
    if found.iter().any(Option::is_none) || first.is_empty() {
        return Err("a path is gone".into());
    }
    println!(
        "open after {:.1} ms, first answer after {:.1} ms; a look-up takes {:.1} µs, of many at once {:.1} µs; {:.0} MiB \
         of memory",
        opened.as_secs_f64() * 1e3,
        begun.as_secs_f64() * 1e3,
        one * 1e6,
        many * 1e6,
        memory("VmRSS")?
    );
    Ok(())
}

/// MiB, from proc_pid_status(5).
fn memory(field: &str) -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kilobytes = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
    Ok(kilobytes.ok_or("no such field")?.parse::<f64>()? / 1024.0)
}
