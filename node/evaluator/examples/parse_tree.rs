//! Parses every `.nix` file below a folder, and says how many there were, which failed, and how fast it went.
//!
//! ```text
//! cargo run --release -p tvix-node-evaluator --example parse_tree -- path/to/nixpkgs [rounds]
//! ```
//!
//! The files are read before the clock starts, so that the figure is the parser's.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tvix_node_evaluator::syntax::{Origin, Source, SourceMap, SymbolTable, parse};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(folder) = arguments.next() else {
        eprintln!("usage: parse_tree FOLDER [ROUNDS]");
        return ExitCode::from(2);
    };
    let rounds = match arguments
        .next()
        .map(|rounds| rounds.to_string_lossy().parse::<u32>())
    {
        None => 1,
        Some(Ok(rounds)) if rounds > 0 => rounds,
        Some(_) => {
            eprintln!("ROUNDS is a number from 1 on");
            return ExitCode::from(2);
        }
    };
    let mut sources = SourceMap::new();
    let mut files = Vec::new();
    if let Err(error) = collect(Path::new(&folder), &mut sources, &mut files) {
        eprintln!("{}: {error}", folder.display());
        return ExitCode::FAILURE;
    }
    let bytes: usize = files.iter().map(|&(id, _)| sources.file(id).text().len()).sum();

    let mut best = Duration::MAX;
    let mut failures = 0;
    let mut tree_bytes = 0;
    let mut names = 0;
    for round in 0..rounds {
        failures = 0;
        tree_bytes = 0;
        let mut symbols = SymbolTable::new();
        let mut arena = bumpalo::Bump::new();
        let begin = Instant::now();
        for (id, base_dir) in &files {
            let source = Source {
                text: sources.file(*id).text(),
                start: sources.start(*id),
                base_dir: base_dir.as_os_str().as_bytes(),
                home: Some(b"/home"),
            };
            if let Err(error) = parse(&arena, &source, &mut symbols) {
                failures += 1;
                if round == 0 {
                    println!("{}", error.render(&sources));
                }
            }
            tree_bytes += arena.iter_allocated_chunks().map(<[_]>::len).sum::<usize>();
            arena.reset();
        }
        best = best.min(begin.elapsed());
        names = symbols.len();
    }
    println!(
        "{} files, {bytes} bytes, {failures} failures, {names} names",
        files.len()
    );
    println!(
        "{:.1} ms, {:.1} MB/s, {:.1} bytes of tree a byte of text",
        best.as_secs_f64() * 1e3,
        bytes as f64 / 1e6 / best.as_secs_f64(),
        tree_bytes as f64 / bytes as f64,
    );
    if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Reads all `.nix` files below a folder, in a stable order, without following links.
fn collect(
    folder: &Path,
    sources: &mut SourceMap,
    files: &mut Vec<(tvix_node_evaluator::syntax::SourceId, PathBuf)>,
) -> io::Result<()> {
    let mut entries = std::fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let path = entry.path();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&path, sources, files)?;
        } else if kind.is_file() && path.extension() == Some(OsStr::new("nix")) {
            let text: Arc<[u8]> = std::fs::read(&path)?.into();
            let origin = Origin::File(path.as_os_str().as_bytes().to_vec());
            let id = sources.add(origin, text).map_err(io::Error::other)?;
            files.push((id, folder.to_owned()));
        }
    }
    Ok(())
}
