//! Real nodes in one process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tvix_node_protocol::envelope::NodeSecret;
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::roster::{Founder, Roles};
use tvix_node_swarm::events::SwarmEvents;
use tvix_node_swarm::limits::PRESENCE_RENEWAL;
use tvix_node_swarm::team::{Team, join, new_secret};
use tvix_node_swarm::{Clock, Config, FindScope, SwarmHandle, start};

use crate::measured::{Names, Outcome, cpu_and_memory, paths, quiet, until};
use crate::{FEW, MANY};

/// How long the team is watched while nothing happens.
const WATCHED: Duration = Duration::from_secs(60);
/// The name of the threads of the node with many paths.
const HOLDER: &str = "holder";
/// Look-ups of one path each.
const LOOK_UPS: usize = 50;

struct Running {
    handle: SwarmHandle,
    _events: SwarmEvents,
    _home: tempfile::TempDir,
}

/// What all nodes have in common: the connections that each keeps, and a clock that can be put forward.
#[derive(Clone)]
struct Common {
    kept: usize,
    ahead: Arc<AtomicU64>,
}

impl Common {
    fn clock(&self) -> Clock {
        let (system, ahead) = (Clock::system(), self.ahead.clone());
        Clock::new(move || system.now() + ahead.load(Ordering::Relaxed))
    }
}

/// What has been used so far.
#[derive(Clone, Copy)]
struct Used {
    cpu: Duration,
    bytes: u64,
    packets: u64,
}

impl Used {
    fn now() -> Outcome<Self> {
        let devices = std::fs::read_to_string("/proc/self/net/dev")?;
        let loopback = devices
            .lines()
            .find_map(|line| line.trim().strip_prefix("lo:"))
            .ok_or("no loopback device")?;
        let counts: Vec<u64> = loopback
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            cpu: cpu_and_memory()?.0,
            bytes: counts[0],
            packets: counts[1],
        })
    }

    /// Prints what has been used since, and gives it.
    fn print(self, what: &str, nodes: usize) -> Outcome<Self> {
        let now = Self::now()?;
        let since = Self {
            cpu: now.cpu - self.cpu,
            bytes: now.bytes - self.bytes,
            packets: now.packets - self.packets,
        };
        println!("{what}: of each node {}", since.of_each(1.0 / nodes as f64));
        Ok(since)
    }

    fn of_each(self, share: f64) -> String {
        format!(
            "{:.0} ms CPU, {:.1} KiB, {:.0} packets",
            self.cpu.as_secs_f64() * 1000.0 * share,
            self.bytes as f64 / 1024.0 * share,
            self.packets as f64 * share
        )
    }
}

/// CPU time of the threads of this name.
fn cpu_of_threads(name: &str) -> Outcome<Duration> {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        // A thread may end meanwhile.
        let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else {
            continue;
        };
        let Some((head, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        if head.ends_with(&format!("({name}")) {
            let fields: Vec<&str> = rest.split_whitespace().collect();
            ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        }
    }
    Ok(Duration::from_millis(ticks * 10))
}

fn config(home: &tempfile::TempDir, common: &Common) -> Config {
    Config {
        listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
        keep_peers: common.kept,
        clock: common.clock(),
        ..Config::new(home.path().join("spool"))
    }
}

async fn run(
    home: tempfile::TempDir,
    team: Team,
    secret: NodeSecret,
    paths: Vec<StorePath>,
    common: &Common,
) -> Outcome<Running> {
    let (handle, events) = start(config(&home, common), team, secret, Arc::new(Names(paths))).await?;
    Ok(Running {
        handle,
        _events: events,
        _home: home,
    })
}

pub fn measure(count: usize, kept: usize) -> Outcome<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(measured(count, kept))
}

async fn all_published(nodes: &[Running]) {
    for (number, node) in nodes.iter().enumerate() {
        until(async || node.handle.is_published().await).await;
        if number % 20 == 0 {
            eprintln!("… node {number} is advertised");
        }
    }
}

async fn measured(count: usize, kept: usize) -> Outcome<()> {
    let common = Common {
        kept,
        ahead: Arc::default(),
    };
    let day = 24 * 3600;
    let home = tempfile::tempdir()?;
    let secret = new_secret()?;
    let me = Founder {
        key: secret.key(),
        name: "founder".to_owned(),
    };
    let team = Team::found(home.path(), "measured", me, vec![], 1)?;
    let founder = run(home, team, secret, vec![], &common).await?;
    // All join before any of them starts, so that the team forms once.
    let mut joined = vec![];
    for number in 1..count {
        let (home, secret) = (tempfile::tempdir()?, new_secret()?);
        let clock = common.clock();
        let ticket = founder
            .handle
            .invite(Roles::all(), clock.now() + day, 365 * day)
            .await?;
        let team = join(home.path(), &secret, &ticket, &format!("node {number}"), &clock).await?;
        joined.push((home, team, secret));
    }
    let (home, team, secret) = joined.pop().ok_or("a team of one")?;
    let mut nodes = vec![founder];
    let mut first = FEW;
    for (home, team, secret) in joined {
        let paths = paths(MANY + first, FEW)?;
        let node = run(home, team, secret, paths, &common).await?;
        // One after the other, so that there are never too many connections under way.
        until(async || node.handle.peers().len() >= kept.min(nodes.len())).await;
        nodes.push(node);
        if nodes.len() % 20 == 0 {
            eprintln!("… {} nodes are up", nodes.len());
        }
        first += FEW;
    }
    let others = nodes.len();
    until(async || nodes.iter().all(|node| node.handle.members().len() == count)).await;
    eprintln!("… all know each other");
    all_published(&nodes).await;
    quiet().await?;
    println!("{others} nodes with {FEW} paths each are up");

    let (before, begun) = (Used::now()?, Instant::now());
    let all = paths(0, MANY)?;
    // On threads of its own, which tell what it uses.
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(HOLDER)
        .enable_all()
        .build()?;
    let (its_paths, its_common) = (all.clone(), common.clone());
    let starting = threads.spawn(async move {
        let started = run(home, team, secret, its_paths, &its_common).await;
        started.map_err(|error| error.to_string())
    });
    nodes.push(starting.await??);
    let holder = &nodes[others].handle;
    until(async || holder.is_published().await && !holder.peers().is_empty()).await;
    let (took, its_cpu, used) = (begun.elapsed(), cpu_of_threads(HOLDER)?, Used::now()?);
    println!(
        "a node with {MANY} paths starts: fully advertised after {:.1} s, with {:.0} ms CPU, {:.0} % of a core; all \
         nodes together, which greet it: {:.0} ms CPU, {:.1} MiB",
        took.as_secs_f64(),
        its_cpu.as_secs_f64() * 1000.0,
        its_cpu.as_secs_f64() / took.as_secs_f64() * 100.0,
        (used.cpu - before.cpu).as_secs_f64() * 1000.0,
        (used.bytes - before.bytes) as f64 / 1048576.0,
    );
    let kept: Vec<(usize, usize)> = nodes.iter().map(|node| node.handle.kept_presence()).collect();
    let most = kept.iter().map(|(_, keys)| *keys).max().unwrap_or(0);
    println!(
        "kept by the one that has most: {most} keys, {} KiB of them; by all: {} keys in {} cells",
        most * 16 / 1024,
        kept.iter().map(|(_, keys)| keys).sum::<usize>(),
        kept.iter().map(|(cells, _)| cells).sum::<usize>()
    );
    println!("memory of all nodes: {:.0} MiB", cpu_and_memory()?.1);

    quiet().await?;
    let before = Used::now()?;
    tokio::time::sleep(WATCHED).await;
    let idle = before.print("a quiet minute", count)?;

    let before = Used::now()?;
    common
        .ahead
        .fetch_add(PRESENCE_RENEWAL.as_secs() + 60, Ordering::Relaxed);
    for node in &nodes {
        // Says that there may be something to tell.
        node.handle.announce(&[]);
    }
    all_published(&nodes).await;
    let renewal = before.print("everything is renewed", count)?;
    let renewals = 3600.0 / PRESENCE_RENEWAL.as_secs_f64();
    let hour = |idle: f64, renewal: f64| (idle * 60.0 + renewal * renewals) / count as f64;
    println!(
        "for each node and hour: {:.1} s CPU, {:.0} KiB, {:.0} packets; of that the renewals {}",
        hour(idle.cpu.as_secs_f64(), renewal.cpu.as_secs_f64()),
        hour(idle.bytes as f64, renewal.bytes as f64) / 1024.0,
        hour(idle.packets as f64, renewal.packets as f64),
        renewal.of_each(renewals / count as f64)
    );

    let mut times = vec![];
    let mut found = 0;
    for number in 0..LOOK_UPS {
        let asker = &nodes[number * 7 % others].handle;
        let wanted = [all[number * (MANY / LOOK_UPS)].clone()];
        let begun = Instant::now();
        found += asker.find(&wanted, FindScope::Records).await.len();
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{LOOK_UPS} look-ups of a path in the records: {found} found, {:.1} ms ({:.1} to {:.1})",
        times[LOOK_UPS / 2],
        times[0],
        times[LOOK_UPS - 1]
    );
    // A runtime may not be waited for within another.
    threads.shutdown_background();
    Ok(())
}
