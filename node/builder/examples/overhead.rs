//! What a build costs beside the work of its builder program, with few inputs and with many.
//!
//! ```text
//! cargo run --release -p tvix-node-builder --example overhead -- [RUNS]
//! ```
//!
//! The builder program is this one; it writes one line. Builds with few and with many inputs take turns.
//! `before` is from the call to the start of the program, `program` from there to the end of all processes,
//! `after` the removal of what is left. Medians, and the least and the most of the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tvix_node_builder::{
    BuildInput, BuildSpec, Builder, Config, Helper, SandboxPath, StorePath, run_if_sandbox,
};
use tvix_node_protocol::nix::derivation::{DerivationFields, OutputKind, read_derivation};
use tvix_node_protocol::nix::store_path::hash_placeholder;

/// What the issue of many inputs is measured with.
const MANY: usize = 500;

fn main() -> Result<(), Box<dyn Error>> {
    run_if_sandbox();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [act, path] if act == "write" => Ok(std::fs::write(path, "one line\n")?),
        rest => measure(rest.first().map_or(Ok(30), |runs| runs.parse())?),
    }
}

fn measure(runs: usize) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut config = Config::new(folder.path().join("builds"), Helper::this_program());
    config.sandbox_paths = libraries()?;
    let builder = Builder::new(config)?;
    let inputs = inputs(folder.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut few = Vec::new();
    let mut many = Vec::new();
    for _ in 0..=runs {
        few.push(runtime.block_on(build(&builder, &[]))?);
        many.push(runtime.block_on(build(&builder, &inputs))?);
    }
    println!("inputs  before  program  after  whole (least to most), ms, {runs} runs");
    for (count, mut figures) in [(1, few), (1 + MANY, many)] {
        // The first build of a slot makes what the others use again.
        figures.remove(0);
        let median = |part: fn(&Figures) -> Duration| {
            let mut values: Vec<Duration> = figures.iter().map(part).collect();
            values.sort();
            (values[0], values[values.len() / 2], values[values.len() - 1])
        };
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let (least, whole, most) = median(|figures| figures.before + figures.program + figures.after);
        println!(
            "{count:6}  {:6.1}  {:7.1}  {:5.1}  {:5.1} ({:.1} to {:.1})",
            ms(median(|figures| figures.before).1),
            ms(median(|figures| figures.program).1),
            ms(median(|figures| figures.after).1),
            ms(whole),
            ms(least),
            ms(most),
        );
    }
    Ok(())
}

struct Figures {
    before: Duration,
    program: Duration,
    after: Duration,
}

async fn build(builder: &Builder, inputs: &[BuildInput]) -> Result<Figures, Box<dyn Error>> {
    let program = StorePath::from_parts([7; 20], "program")?;
    let fields = DerivationFields {
        name: "line".to_owned(),
        outputs: BTreeMap::from([("out".to_owned(), OutputKind::InputAddressed)]),
        input_derivations: BTreeMap::new(),
        input_sources: BTreeSet::from([program.clone()]),
        system: format!("{}-linux", std::env::consts::ARCH).into_bytes(),
        builder: program.to_absolute_path().into_bytes(),
        arguments: vec![b"write".to_vec(), hash_placeholder("out").into_bytes()],
        environment: BTreeMap::new(),
    };
    let made = fields.instantiate(|_| None)?;
    let derivation = read_derivation(&made.drv_path, &made.aterm)?;
    let program = BuildInput {
        path: program,
        physical: std::env::current_exe()?,
    };
    let inputs = inputs.iter().cloned().chain([program]).collect();
    let spec = BuildSpec::new(derivation, made.drv_path, inputs);
    let (events, mut heard) = mpsc::channel(16);
    let build = builder.build(spec, events, CancellationToken::new());
    let listen = async { while heard.recv().await.is_some() {} };
    let (built, ()) = tokio::join!(build, listen);
    let built = built?;
    let (before, program) = (built.timings.setup, built.timings.run);
    let began = Instant::now();
    built.discard().await;
    Ok(Figures {
        before,
        program,
        after: began.elapsed(),
    })
}

/// As store paths mostly are: folders, and some files.
fn inputs(folder: &Path) -> Result<Vec<BuildInput>, Box<dyn Error>> {
    let store = folder.join("store");
    std::fs::create_dir(&store)?;
    (0..MANY)
        .map(|number| {
            let mut hash = [1; 20];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            let path = StorePath::from_parts(hash, "input")?;
            let physical = store.join(path.to_basename());
            if number % 10 == 0 {
                std::fs::write(&physical, "content")?;
            } else {
                std::fs::create_dir(&physical)?;
            }
            Ok(BuildInput { path, physical })
        })
        .collect()
}

/// What the dynamic linker loaded for this program, and the linker by the name that stands in it.
fn libraries() -> Result<BTreeMap<PathBuf, SandboxPath>, Box<dyn Error>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let program = std::env::current_exe()?;
    let mapped = maps.lines().filter_map(|line| Some(&line[line.find('/')?..]));
    let linkers = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let folders = ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64"];
    let links = folders.into_iter().flat_map(|folder| {
        ["libc.so.6", "libgcc_s.so.1", "libm.so.6"].map(|name| format!("{folder}/{name}"))
    });
    Ok(mapped
        .map(str::to_owned)
        .chain(linkers.map(str::to_owned))
        .chain(links)
        .map(PathBuf::from)
        .filter(|path| *path != program && path.exists())
        .map(|path| {
            let outside = path.clone();
            let writable = false;
            (path, SandboxPath { outside, writable })
        })
        .collect())
}
