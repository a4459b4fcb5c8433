//! Measures what it costs to advertise many paths, to keep what others advertise, and to ask about a whole
//! closure, with all nodes of a team in one process.
//!
//! `cargo run --release -p tvix-node-swarm --example measure_presence -- [PATHS [NODES]]`
//!
//! One node of a team of NODES has PATHS paths. Printed are CPU, memory and bytes of: listing them at the
//! start, telling them to who keeps them, and asking the holder and the records about 10,000 of them. The
//! questions go through a relay that holds every byte back for 5 ms, so that a round trip takes 10 ms: the
//! asker listens nowhere, so that there is no other way between the two. They are asked when the team is quiet,
//! many times, and the round trip as it was measured meanwhile is printed beside the result.

#[path = "measured/mod.rs"]
mod measured;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use measured::{Names, Outcome, cpu_and_memory, paths, quiet, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::roster::{Founder, Roles};
use tvix_node_swarm::events::SwarmEvents;
use tvix_node_swarm::team::{Team, join, new_secret};
use tvix_node_swarm::{Clock, Config, FindScope, PeerTraffic, SwarmHandle, start};

const ASKED: usize = 10_000;
/// How often: a member may ask about so many names in a minute, and a median has a middle.
const RUNS: usize = 5;
const ONE_WAY: Duration = Duration::from_millis(5);

/// What something took.
struct Meter {
    start: Instant,
    cpu: Duration,
    memory: f64,
}

impl Meter {
    fn start() -> Outcome<Self> {
        let (cpu, memory) = cpu_and_memory()?;
        Ok(Self {
            start: Instant::now(),
            cpu,
            memory,
        })
    }

    fn print(&self, what: &str) -> Outcome<()> {
        let elapsed = self.start.elapsed();
        let (cpu, memory) = cpu_and_memory()?;
        println!(
            "{what}: {:.0} ms, {:.0} ms CPU of all nodes, {:+.1} MiB",
            elapsed.as_secs_f64() * 1000.0,
            (cpu - self.cpu).as_secs_f64() * 1000.0,
            memory - self.memory
        );
        Ok(())
    }
}

struct Running {
    handle: SwarmHandle,
    _events: SwarmEvents,
    _home: tempfile::TempDir,
}

fn config(home: &Path, listens: bool) -> Config {
    Config {
        listen: listens
            .then(|| "/ip4/127.0.0.1/tcp/0".to_owned())
            .into_iter()
            .collect(),
        // As many as a node needs; a mesh of all would measure connections.
        keep_peers: 8,
        ..Config::new(home.join("spool"))
    }
}

async fn run(
    home: tempfile::TempDir,
    team: Team,
    secret: tvix_node_protocol::envelope::NodeSecret,
    paths: Vec<StorePath>,
    listens: bool,
) -> Outcome<Running> {
    let config = config(home.path(), listens);
    let (handle, events) = start(config, team, secret, Arc::new(Names(paths))).await?;
    Ok(Running {
        handle,
        _events: events,
        _home: home,
    })
}

async fn member(of: &SwarmHandle, name: &str, paths: Vec<StorePath>, relayed: bool) -> Outcome<Running> {
    let home = tempfile::tempdir()?;
    let secret = new_secret()?;
    let hour = Clock::system().now() + 3600;
    let mut ticket = of.invite(Roles::all(), hour, 3600).await?;
    if relayed {
        ticket.addresses = vec![slowly(&ticket.addresses[0]).await?];
    }
    let team = join(home.path(), &secret, &ticket, name, &Clock::system()).await?;
    run(home, team, secret, paths, !relayed).await
}

/// Listens, and passes on to the address what comes, both ways, each byte after [`ONE_WAY`].
async fn slowly(address: &str) -> Outcome<String> {
    let port: u16 = address
        .rsplit('/')
        .next()
        .ok_or("an address without port")?
        .parse()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let own = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else {
                return;
            };
            if near.set_nodelay(true).and(far.set_nodelay(true)).is_err() {
                return;
            }
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            delayed(near_read, far_write);
            delayed(far_read, near_write);
        }
    });
    Ok(format!("/ip4/127.0.0.1/tcp/{own}"))
}

fn delayed(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if sender
                .send((Instant::now() + ONE_WAY, buffer[..count].to_vec()))
                .is_err()
            {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due.into()).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
}

/// Does something [`RUNS`] times, and prints how long it took and what one of them cost all nodes.
async fn repeated(what: &str, action: impl AsyncFn() -> Outcome<()>) -> Outcome<()> {
    let (before, _) = cpu_and_memory()?;
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let start = Instant::now();
        action().await?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    let cpu = (cpu_and_memory()?.0 - before).as_secs_f64() * 1000.0 / RUNS as f64;
    times.sort_by(f64::total_cmp);
    println!(
        "{what}, {RUNS} times: {:.1} ms ({:.1} to {:.1}), {cpu:.1} ms CPU of all nodes each",
        times[RUNS / 2],
        times[0],
        times[RUNS - 1]
    );
    Ok(())
}

fn bytes(handle: &SwarmHandle) -> (u64, u64) {
    let sum = |of: fn(&PeerTraffic) -> u64| handle.traffic().values().map(of).sum();
    (
        sum(|traffic| traffic.other_sent),
        sum(|traffic| traffic.other_received),
    )
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let count: usize = arguments.next().map_or(Ok(100_000), |text| text.parse())?;
    let nodes: usize = arguments.next().map_or(Ok(20), |text| text.parse())?;
    let all = paths(0, count)?;
    println!("{count} paths at one of {nodes} nodes");
    let home = tempfile::tempdir()?;
    let secret = new_secret()?;
    let me = Founder {
        key: secret.key(),
        name: "founder".to_owned(),
    };
    let team = Team::found(home.path(), "measured", me, vec![], 1)?;
    let founder = run(home, team, secret, vec![], true).await?;
    let meter = Meter::start()?;
    let mut others = VecDeque::new();
    for number in 3..nodes {
        others.push_back(member(&founder.handle, &format!("node {number}"), vec![], false).await?);
    }
    until(async || {
        let known = others.iter().map(|node| node.handle.members().len());
        known.min().unwrap_or(nodes - 2) >= nodes - 2
    })
    .await;
    meter.print("the others join")?;

    let holder = member(&founder.handle, "holder", vec![], false).await?;
    until(async || holder.handle.peers().len() >= 8.min(nodes - 2)).await;
    let before = bytes(&holder.handle);
    let meter = Meter::start()?;
    holder.handle.announce(&all);
    meter.print("listing the paths, and who asks the node itself is answered")?;
    until(async || holder.handle.is_published().await).await;
    meter.print("telling who keeps them")?;
    let after = bytes(&holder.handle);
    println!(
        "  {} bytes sent, {} received",
        after.0 - before.0,
        after.1 - before.1
    );
    for node in others.iter().chain([&founder]) {
        let (cells, keys) = node.handle.kept_presence();
        if cells > 0 {
            println!(
                "  a keeper has {cells} cells with {keys} keys, in {} KiB",
                keys * 16 / 1024
            );
        }
    }

    let asker = member(&holder.handle, "asker", vec![], true).await?;
    asker.handle.connect(holder.handle.key()).await?;
    let way = || asker.handle.overview()[&holder.handle.key()].clone();
    until(async || way().round_trip.is_some()).await;
    if way().connections.len() != 1 {
        return Err(format!(
            "there is another way than through the relay: {way:?}",
            way = way()
        )
        .into());
    }
    quiet().await?;
    let step = (all.len() / ASKED).max(1);
    let wanted: Vec<StorePath> = all.iter().step_by(step).take(ASKED).cloned().collect();
    let count = wanted.len();
    repeated(&format!("asking the holder about {count}"), async || {
        let held = asker.handle.have(holder.handle.key(), &wanted).await?;
        if held.iter().any(|held| !held) {
            return Err("the holder has them all".into());
        }
        Ok(())
    })
    .await?;
    for (what, scope) in [
        ("all connected members", FindScope::Connected),
        ("the records", FindScope::Records),
    ] {
        repeated(&format!("asking {what} about {count}"), async || {
            let found = asker.handle.find(&wanted, scope).await;
            if found.len() != count {
                return Err(format!("{} are found", found.len()).into());
            }
            Ok(())
        })
        .await?;
    }
    // The last one was measured before the team was quiet.
    let old = way().round_trip;
    until(async || way().round_trip != old).await;
    println!("  a round trip took {:?}", way().round_trip);

    let minute = Meter::start()?;
    let before = bytes(&holder.handle);
    tokio::time::sleep(Duration::from_secs(60)).await;
    minute.print("a quiet minute")?;
    let after = bytes(&holder.handle);
    println!(
        "  {} bytes sent by the holder, {} received",
        after.0 - before.0,
        after.1 - before.1
    );
    Ok(())
}
