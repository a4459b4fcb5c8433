//! Measures adding to the store against stock Nix, on the same data in the same run.
//!
//! ```text
//! cargo run --release -p tvix-node-store --example adding -- [--rounds N] [--nix nix-store] [--folder DIR]
//! ```
//!
//! Data: a tree of 40,000 files of 50 to 6,000 bytes, and a file of 1 GiB; random, so that nothing is
//! shared. Every round adds both to a new store, with everything synced before success; stock Nix
//! (`nix-store --add`, which syncs only its database) does the same in a new root. CPU is that of all
//! threads and processes, user and system. The medians are printed.

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use tvix_node_store::{ContentName, Naming, Store};

const FILES: u32 = 40_000;
const LARGE: u64 = 1 << 30;

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let [add, home, source] = arguments.as_slice()
        && add == "add"
    {
        return add_one(Path::new(home), Path::new(source));
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
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let home = folder.path().join(format!("home-{round}-{what}"));
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("add").arg(&home).arg(source);
            ours.push(measure(&mut command)?);
            if has_nix {
                let root = folder.path().join(format!("nix-{round}-{what}"));
                theirs.push(measure(&mut stock(&nix, &root, source)?)?);
            }
        }
        let ours = median(&mut ours);
        println!("{what}: {:.2} s CPU, {:.2} s wall, synced", ours.cpu, ours.wall);
        if has_nix {
            let theirs = median(&mut theirs);
            println!(
                "  stock Nix: {:.2} s CPU, {:.2} s wall, not synced",
                theirs.cpu, theirs.wall
            );
            println!(
                "  ratio: {:.2} CPU, {:.2} wall",
                ours.cpu / theirs.cpu,
                ours.wall / theirs.wall
            );
        }
    }
    remove(folder.path())
}

fn add_one(home: &Path, source: &Path) -> Result<(), Failure> {
    let store = Store::open(home)?;
    let info = store.add_source(
        source,
        Naming::Content(ContentName::source("data")),
        &store.lease(),
    )?;
    println!("{}", info.path);
    Ok(())
}

fn stock(nix: &OsString, root: &Path, source: &Path) -> Result<Command, Failure> {
    fs::create_dir_all(root.join("etc"))?;
    let mut command = Command::new(nix);
    command.arg("--add").arg(source);
    command.env("NIX_REMOTE", format!("local?root={}", root.display()));
    command
        .env("NIX_CONF_DIR", root.join("etc"))
        .env("NIX_CONFIG", "build-users-group =");
    command
        .env("NIX_STATE_DIR", root.join("var"))
        .env("NIX_LOG_DIR", root.join("log"));
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
    let output = command.stderr(Stdio::inherit()).output()?;
    let wall = start.elapsed().as_secs_f64();
    if !output.status.success() {
        return Err(format!("{command:?}: {}", output.status).into());
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
