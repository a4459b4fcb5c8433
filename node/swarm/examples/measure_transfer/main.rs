//! Measures what moving a tree from node to node costs: a file of 1 GiB and 20,000 files of 4 KiB, encrypted and
//! verified, each side in a process of its own.
//!
//! `cargo run --release -p tvix-node-swarm --example measure_transfer -- [tcp|quic]` over loopback;
//! `… -- link [tcp|quic] MILLISECONDS [MBIT]`, as root with Debian's iproute2, over a link of this round trip and
//! rate (1000), beside one connection of plain TCP; `… -- failing [tcp|quic]` with two providers, one of which goes away.

mod failing;
mod link;

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::Shown;
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::roster::{Founder, Roles};
use tvix_node_protocol::subtrees::{BlobHasher, ChainingValue};
use tvix_node_protocol::ticket::Ticket;
use tvix_node_protocol::tree::{BlobDigest, Directory, Node, PathComponent, Tree, TreeDigest};
use tvix_node_swarm::team::{Team, join, new_secret};
use tvix_node_swarm::{Clock, Config, Shelf, ShelfError, SwarmHandle, start};

type Outcome<T> = Result<T, Box<dyn Error>>;

const LARGE: usize = 1 << 30;
const FILES: usize = 20_000;
const SMALL: usize = 4096;

/// Serves everything to everyone.
#[derive(Default)]
struct OpenShelf {
    trees: HashMap<TreeDigest, Tree>,
    blobs: HashMap<BlobDigest, PathBuf>,
    subtrees: HashMap<BlobDigest, Vec<ChainingValue>>,
}

impl OpenShelf {
    fn add(&mut self, folder: &Path, files: Vec<(String, Vec<u8>)>) -> Outcome<TreeDigest> {
        let mut directory = Directory::default();
        for (name, bytes) in files {
            let path = folder.join(&name);
            std::fs::write(&path, &bytes)?;
            // As a store does it when a file is added.
            let mut hasher = BlobHasher::default();
            hasher.update(&bytes);
            let (blob, parts) = hasher.finalize();
            self.blobs.insert(blob, path);
            self.subtrees.insert(blob, parts);
            let (size, executable) = (bytes.len() as u64, false);
            directory.insert(
                PathComponent::new(name.as_bytes())?,
                Node::File {
                    blob,
                    size,
                    executable,
                },
            )?;
        }
        let tree = Tree::Directory(directory);
        let digest = tree.digest();
        self.trees.insert(digest, tree);
        Ok(digest)
    }
}

impl Shelf for OpenShelf {
    fn advertised(&self, _: Option<&StorePath>, _: usize) -> Result<Vec<StorePath>, ShelfError> {
        Ok(vec![])
    }
    fn path_info(&self, _: NodeKey, _: &StorePath) -> Result<Option<Shown>, ShelfError> {
        Ok(None)
    }
    fn may_serve(&self, _: NodeKey, root: TreeDigest) -> Result<bool, ShelfError> {
        Ok(self.trees.contains_key(&root))
    }
    fn tree(&self, digest: TreeDigest) -> Result<Option<Tree>, ShelfError> {
        Ok(self.trees.get(&digest).cloned())
    }
    fn has_blobs(&self, blobs: &[BlobDigest]) -> Result<Vec<bool>, ShelfError> {
        Ok(vec![false; blobs.len()])
    }
    fn blob(&self, digest: BlobDigest) -> Result<Option<File>, ShelfError> {
        let file = self.blobs.get(&digest).map(File::open).transpose();
        file.map_err(ShelfError::new)
    }
    fn subtrees(&self, digest: BlobDigest) -> Result<Vec<ChainingValue>, ShelfError> {
        Ok(self.subtrees.get(&digest).cloned().unwrap_or_default())
    }
}

/// CPU time of this process so far, and the most memory it had.
fn cpu_and_memory() -> Outcome<(Duration, u64)> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap_or("VmHWM 0");
    let peak = peak.split_whitespace().nth(1).unwrap_or("0").parse()?;
    Ok((Duration::from_millis(ticks * 10), peak))
}

fn address(transport: &str, host: &str, port: u16) -> String {
    match transport {
        "quic" => format!("/ip4/{host}/udp/{port}/quic-v1"),
        _ => format!("/ip4/{host}/tcp/{port}"),
    }
}

fn config(home: &Path, listen: String) -> Config {
    Config {
        listen: vec![listen],
        ..Config::new(home.join("spool"))
    }
}

/// Something that does not compress, and differs with the seed.
fn noise(seed: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Where the two nodes are.
enum Place {
    Loopback,
    /// On a link; the fetcher's network namespace, and the rate in Mbit/s.
    Link {
        fetcher: String,
        rate: u64,
    },
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] => provide("tcp", Place::Loopback).await,
        [transport @ ("tcp" | "quic")] => provide(transport, Place::Loopback).await,
        ["link", transport @ ("tcp" | "quic"), round_trip] => {
            link::measure(transport, round_trip.parse()?, 1000)
        }
        ["link", transport @ ("tcp" | "quic"), round_trip, rate] => {
            link::measure(transport, round_trip.parse()?, rate.parse()?)
        }
        ["failing", transport @ ("tcp" | "quic")] => failing::measure(transport).await,
        // What it starts of itself.
        ["failing-provider", transport, ticket] => failing::provide(transport, ticket).await,
        ["provide", transport, fetcher, rate] => {
            let (fetcher, rate) = (fetcher.to_owned(), rate.parse()?);
            provide(transport, Place::Link { fetcher, rate }).await
        }
        ["fetch", transport, ticket, large, small] => fetch(transport, ticket, large, small).await,
        ["relay", transport, here, there, half] => {
            let half = Duration::from_millis(half.parse()?);
            link::relay(transport, here.parse()?, there.parse()?, half).await
        }
        ["plain-source", at] => link::plain_source(at),
        ["plain-sink", at] => link::plain_sink(at),
        _ => Err("measure_transfer [link|failing] [tcp|quic] …: its head says what it takes".into()),
    }
}

async fn provide(transport: &str, place: Place) -> Outcome<()> {
    let home = tempfile::tempdir()?;
    let secret = new_secret()?;
    let me = Founder {
        key: secret.key(),
        name: "provider".to_owned(),
    };
    let team = Team::found(home.path(), "measured", me, vec![], 1)?;
    let mut shelf = OpenShelf::default();
    let large = shelf.add(home.path(), vec![("large".to_owned(), noise(0, LARGE))])?;
    let files = (1..=FILES).map(|seed| (format!("f{seed}"), noise(seed, SMALL)));
    let small = shelf.add(home.path(), files.collect())?;
    let listen = match &place {
        Place::Loopback => address(transport, "127.0.0.1", 0),
        Place::Link { .. } => address(transport, link::PROVIDER, link::PORT),
    };
    let (handle, _events) = start(config(home.path(), listen), team, secret, Arc::new(shelf)).await?;
    let hour = Clock::system().now() + 3600;
    let mut ticket = handle.invite(Roles::all(), hour, 3600).await?;
    let (large, small) = (large.to_string(), small.to_string());
    let mut command = match &place {
        Place::Loopback => {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["fetch", transport, &ticket.to_text()?, &large, &small]);
            command
        }
        Place::Link { fetcher, .. } => {
            ticket.addresses = vec![address(transport, link::RELAY, link::PORT)];
            link::inside(fetcher, &["fetch", transport, &ticket.to_text()?, &large, &small])?
        }
    };
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let mut stdin = child.stdin.take().ok_or("no input")?;
    let sent = || match place {
        Place::Loopback => Ok(0),
        Place::Link { .. } => link::sent(None),
    };
    let (mut before, mut sent_before) = (cpu_and_memory()?.0, sent()?);
    println!("{transport}: seconds, then CPU seconds and peak memory of each side");
    loop {
        let line = tokio::task::spawn_blocking(move || (lines.next(), lines));
        let (line, rest) = line.await?;
        lines = rest;
        let Some(line) = line.transpose()? else { break };
        let (cpu, peak) = cpu_and_memory()?;
        println!(
            "{line}; provider {:.2} s CPU, {} MiB",
            (cpu - before).as_secs_f64(),
            peak >> 10
        );
        let sent_after = sent()?;
        if let (Place::Link { rate, .. }, Some(seconds)) = (&place, seconds_of_large(&line)) {
            println!(
                "  {:.1} % of the link is content, {:.1} % of it is used",
                link::share(seconds, *rate),
                link::share_of(sent_after - sent_before, seconds, *rate)
            );
        }
        (before, sent_before) = (cpu, sent_after);
        stdin.write_all(b"\n")?;
    }
    let ended = child.wait()?;
    handle.shutdown().await;
    match ended.success() {
        true => Ok(()),
        false => Err("who fetches failed".into()),
    }
}

/// How long the large file took, in a line of who fetches about that.
fn seconds_of_large(line: &str) -> Option<f64> {
    let (_, rest) = line.strip_prefix("1 GiB, ")?.split_once(": ")?;
    rest.split_once(" s;")?.0.parse().ok()
}

async fn fetch(transport: &str, ticket: &str, large: &str, small: &str) -> Outcome<()> {
    let home = tempfile::tempdir()?;
    let secret = new_secret()?;
    let ticket = Ticket::from_text(ticket)?;
    let team = join(home.path(), &secret, &ticket, "fetcher", &Clock::system()).await?;
    let shelf = Arc::new(OpenShelf::default());
    // What is sent over QUIC goes out where it listens.
    let listen = address(transport, "0.0.0.0", 0);
    let (handle, _events) = start(config(home.path(), listen), team, secret, shelf).await?;
    handle.connect(ticket.inviter).await?;
    for (name, root) in [("1 GiB", large), ("20,000 files", small)] {
        let root = root.parse()?;
        for run in 1..=2 {
            let (seconds, cpu, peak) = timed(&handle, root, ticket.inviter).await?;
            let cpu = cpu.as_secs_f64();
            println!(
                "{name}, run {run}: {seconds:.2} s; fetcher {cpu:.2} s CPU, {} MiB",
                peak >> 10
            );
            std::io::stdin().lock().read_line(&mut String::new())?;
        }
    }
    let connections = handle.overview()[&ticket.inviter].connections.len();
    if connections != 1 {
        return Err(format!("there were {connections} ways to the provider").into());
    }
    handle.shutdown().await;
    Ok(())
}

async fn timed(handle: &SwarmHandle, root: TreeDigest, from: NodeKey) -> Outcome<(f64, Duration, u64)> {
    let (before, start) = (cpu_and_memory()?.0, Instant::now());
    let arrival = handle.fetch_tree(root, vec![from], None).await?;
    let seconds = start.elapsed().as_secs_f64();
    let (after, peak) = cpu_and_memory()?;
    arrival.remove()?;
    Ok((seconds, after - before, peak))
}
