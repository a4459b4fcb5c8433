//! The program that the tests of the builder run: as the sandbox helper, and as the builder program,
//! well-behaved or not. Its first argument names the act.

use std::error::Error;
use std::fs;

fn main() -> Result<(), Box<dyn Error>> {
    tvix_node_builder::run_if_sandbox();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        // Which files the dynamic linker has mapped: what a sandbox needs to run this program.
        ["libraries"] => {
            let maps = fs::read_to_string("/proc/self/maps")?;
            let mut files: Vec<&str> = maps
                .lines()
                .filter_map(|line| Some(&line[line.find('/')?..]))
                .collect();
            files.sort_unstable();
            files.dedup();
            println!("{}", files.join("\n"));
        }
        ["write", path, text] => fs::write(path, text)?,
        other => return Err(format!("no act {other:?}").into()),
    }
    Ok(())
}
