//! Measures adding to the store against stock Nix, on the same data in the same run.
//!
//! ```text
//! cargo run --release -p tvix-node-store --example adding -- [--rounds N] [--nix nix-store] [--folder DIR]
//! ```
//!
//! Data: a tree of 40,000 files of 50 to 6,000 bytes, and a file of 1 GiB; random, so that nothing is
//! shared. Every round adds both to a new store, with everything synced before success, restores both from an
//! export into another new store, synced as well, and writes the archives of both out of a store; stock Nix
//! (`nix-store --add`, `--import` and `--dump`, which sync only the database) does the same in new roots, in turn.
//! CPU is that of all threads and processes, user and system. The medians are printed.

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use tvix_node_protocol::path_info::Origin;
use tvix_node_store::{ContentName, Naming, Store};

const FILES: u32 = 40_000;
const LARGE: u64 = 1 << 30;

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let [work, home, source] = arguments.as_slice() {
        match work.to_str() {
            Some("add") => return add_one(Path::new(home), Path::new(source)),
            Some("import") => return import_one(Path::new(home), Path::new(source)),
            Some("dump") => return dump_one(Path::new(home)),
            _ => {}
        }
    }
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let rounds = option("--rounds")
        .and_then(|text| text.to_str()?.parse().ok())
        .unwrap_or(3);
    let nix = option("--nix").unwrap_or_else(|| "nix-store".into());
    let parent = option("--folder").map_or_else(std::env::temp_dir, PathBuf::from);
    fs::create_dir_all(&parent)?;
    let folder = tempfile::tempdir_in(parent)?;
    let (tree, file) = make_data(folder.path())?;
    let has_nix = Command::new(&nix)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok();
    if !has_nix {
        println!(
            "SKIPPED: stock Nix, because '{}' cannot be run (--nix PATH)",
            nix.display()
        );
    }
    // Nothing is removed before the end: ext4 is slow to make files where many were removed just before.
    for (what, source) in [("tree of 40,000 files", &tree), ("file of 1 GiB", &file)] {
        let export = folder.path().join(format!("export of {what}"));
        for work in ["add", "import", "dump"] {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for round in 0..rounds {
                // What was added is what is dumped.
                let place = if work == "import" { "imported" } else { "added" };
                let home = folder.path().join(format!("home-{round}-{place}-{what}"));
                let from = if work == "import" { &export } else { source };
                let mut command = Command::new(std::env::current_exe()?);
                command.arg(work).arg(&home).arg(from);
                ours.push(measure(&mut command)?);
                if has_nix {
                    let root = folder.path().join(format!("nix-{round}-{place}-{what}"));
                    theirs.push(measure(&mut stock(&nix, &root, work, from)?)?);
                }
                if work == "add" && round == 0 {
                    export_one(&home, &export)?;
                }
            }
            report(&format!("{work}, {what}"), &mut ours, &mut theirs);
        }
    }
    remove(folder.path())
}

fn report(what: &str, ours: &mut [Cost], theirs: &mut [Cost]) {
    let ours = median(ours);
    println!("{what}: {:.2} s CPU, {:.2} s wall", ours.cpu, ours.wall);
    if !theirs.is_empty() {
        let theirs = median(theirs);
        println!("  stock Nix: {:.2} s CPU, {:.2} s wall", theirs.cpu, theirs.wall);
        println!(
            "  ratio: {:.2} CPU, {:.2} wall",
            ours.cpu / theirs.cpu,
            ours.wall / theirs.wall
        );
    }
}

fn add_one(home: &Path, source: &Path) -> Result<(), Failure> {
    let store = Store::open(home)?;
    let name = source
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("data");
    let info = store.add_source(source, Naming::Content(ContentName::source(name)), &store.lease())?;
    println!("{}", info.path);
    Ok(())
}

fn export_one(home: &Path, export: &Path) -> Result<(), Failure> {
    let store = Store::open(home)?;
    let mut to = BufWriter::with_capacity(1 << 20, fs::File::create(export)?);
    store.export(&store.paths_after(None, 1)?.into_iter().collect(), &mut to)?;
    Ok(())
}

fn import_one(home: &Path, export: &Path) -> Result<(), Failure> {
    let store = Store::open(home)?;
    let mut from = BufReader::with_capacity(256 << 10, fs::File::open(export)?);
    for info in store.import(&mut from, &Origin::Imported, &store.lease())? {
        println!("{}", info.path);
    }
    Ok(())
}

fn dump_one(home: &Path) -> Result<(), Failure> {
    let store = Store::open(home)?;
    let paths = store.paths_after(None, 1)?;
    let path = paths.first().ok_or("the store is empty")?;
    let mut to = BufWriter::with_capacity(256 << 10, std::io::stdout().lock());
    store.dump_nar(path, &mut to)?;
    Ok(to.flush()?)
}

fn stock(nix: &OsString, root: &Path, work: &str, from: &Path) -> Result<Command, Failure> {
    fs::create_dir_all(root.join("etc"))?;
    let mut command = Command::new(nix);
    match work {
        "add" => command.arg("--add").arg(from),
        "import" => command.arg("--import").stdin(fs::File::open(from)?),
        _ => {
            // The path that was added, by its physical place.
            let added = fs::read_dir(root.join("nix/store"))?
                .filter_map(Result::ok)
                .map(|entry| entry.file_name())
                .find(|name| !name.to_string_lossy().starts_with('.'))
                .ok_or("nothing was added")?;
            command.arg("--dump").arg(root.join("nix/store").join(added))
        }
    };
    command.env("NIX_REMOTE", format!("local?root={}", root.display()));
    command
        .env("NIX_CONF_DIR", root.join("etc"))
        .env("NIX_CONFIG", "build-users-group =");
    Ok(command)
}

#[derive(Clone, Copy)]
struct Cost {
    cpu: f64,
    wall: f64,
}

fn median(costs: &mut [Cost]) -> Cost {
    let mut middle = |key: fn(&Cost) -> f64| {
        costs.sort_by(|a, b| key(a).total_cmp(&key(b)));
        key(&costs[costs.len() / 2])
    };
    Cost {
        cpu: middle(|cost| cost.cpu),
        wall: middle(|cost| cost.wall),
    }
}

fn measure(command: &mut Command) -> Result<Cost, Failure> {
    if !Command::new("sync").status()?.success() {
        return Err("sync failed".into());
    }
    let (before, start) = (children_cpu()?, Instant::now());
    let status = command.stdout(Stdio::null()).stderr(Stdio::inherit()).status()?;
    let wall = start.elapsed().as_secs_f64();
    if !status.success() {
        return Err(format!("{command:?}: {status}").into());
    }
    Ok(Cost {
        cpu: children_cpu()? - before,
        wall,
    })
}

/// CPU seconds of all ended children: fields 16 and 17 of proc_pid_stat(5), in hundredths.
fn children_cpu() -> Result<f64, Failure> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: Vec<f64> = fields
        .skip(13)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// Read-only directories included.
fn remove(folder: &Path) -> Result<(), Failure> {
    if Command::new("chmod")
        .args(["-R", "u+w"])
        .arg(folder)
        .status()?
        .success()
    {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

fn make_data(folder: &Path) -> Result<(PathBuf, PathBuf), Failure> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let tree = folder.join("tree");
    let mut bytes = Vec::new();
    for number in 0..FILES {
        let depth = ["", "lib", "lib/deeper"][number as usize % 3];
        let directory = tree.join(format!("part-{:03}", number / 200)).join(depth);
        fs::create_dir_all(&directory)?;
        bytes.resize(50 + random.next() as usize % 5950, 0);
        random.fill(&mut bytes);
        fs::write(directory.join(format!("file-{number}.txt")), &bytes)?;
    }
    let file = folder.join("file");
    let mut large = fs::File::create(&file)?;
    bytes.resize(1 << 20, 0);
    for _ in 0..LARGE >> 20 {
        random.fill(&mut bytes);
        large.write_all(&bytes)?;
    }
    Ok((tree, file))
}

/// Xorshift: fast, and the same data in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}
