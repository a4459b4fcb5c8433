//! What a provider costs that goes away in the middle of a transfer: how much longer the rest takes than the other provider
//! needs for it.
//!
//! Both send with a cap, so that how long the other one needs does not depend on the machine.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::roster::{Founder, Roles};
use tvix_node_protocol::ticket::Ticket;
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_swarm::team::{Team, join, new_secret};
use tvix_node_swarm::{Caps, Clock, FetchOrder, FetchProgress, SwarmHandle, start};

use super::{OpenShelf, Outcome, address, config, noise};

/// Bytes of the file.
const SIZE: usize = 256 << 20;

/// Bytes a second that each provider sends.
const CAP: u64 = 64 << 20;

const RUNS: usize = 3;

/// A provider, and the process it is.
struct Provider {
    key: NodeKey,
    root: TreeDigest,
    process: Child,
}

impl Provider {
    async fn start(fetcher: &SwarmHandle, transport: &str) -> Outcome<Self> {
        let hour = Clock::system().now() + 3600;
        let ticket = fetcher.invite(Roles::all(), hour, 3600).await?;
        let mut process = Command::new(std::env::current_exe()?)
            .args(["failing-provider", transport, &ticket.to_text()?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(process.stdout.take().ok_or("no output")?).lines();
        let line = tokio::task::spawn_blocking(move || lines.next()).await?;
        let line = line.transpose()?.ok_or("a provider did not start")?;
        let (key, root) = line.split_once(' ').ok_or("a provider says something else")?;
        Ok(Self {
            key: key.parse()?,
            root: root.parse()?,
            process,
        })
    }

    fn signal(&self, signal: Signal) -> Outcome<()> {
        let pid = Pid::from_raw(i32::try_from(self.process.id())?).ok_or("no process")?;
        Ok(kill_process(pid, signal)?)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Fetches from these; calls `act` when so many hundredths have come, and answers how long it took in all, and after that, for how many
/// bytes.
async fn fetch(
    fetcher: &SwarmHandle,
    root: TreeDigest,
    providers: Vec<NodeKey>,
    hundredths: u64,
    act: impl FnOnce() -> Outcome<()>,
) -> Outcome<(Duration, Duration, u64)> {
    let (progress, mut watched) = watch::channel(FetchProgress::default());
    let order = FetchOrder {
        progress: Some(progress),
        ..FetchOrder::new(root, providers)
    };
    let begun = Instant::now();
    let fetching = fetcher.fetch(order);
    tokio::pin!(fetching);
    let some = async {
        let is_there = |progress: &FetchProgress| progress.received >= SIZE as u64 / 100 * hundredths;
        watched.wait_for(is_there).await.map(|progress| progress.received)
    };
    let received = tokio::select! {
        ended = &mut fetching => {
            ended?;
            return Err("the transfer was over before so much had come".into());
        }
        received = some => received?,
    };
    act()?;
    let acted = Instant::now();
    let arrival = fetching.await?;
    let times = (begun.elapsed(), acted.elapsed(), SIZE as u64 - received);
    arrival.remove()?;
    Ok(times)
}

/// Measures, with two providers in processes of their own.
pub async fn measure(transport: &str) -> Outcome<()> {
    let home = tempfile::tempdir()?;
    let secret = new_secret()?;
    let me = Founder {
        key: secret.key(),
        name: "fetcher".to_owned(),
    };
    let team = Team::found(home.path(), "measured", me, vec![], 1)?;
    let listen = address(transport, "127.0.0.1", 0);
    let shelf = Arc::new(OpenShelf::default());
    let (fetcher, _events) = start(config(home.path(), listen), team, secret, shelf).await?;
    let stays = Provider::start(&fetcher, transport).await?;
    let alone = || fetch(&fetcher, stays.root, vec![stays.key], 25, || Ok(()));
    alone().await?;
    let (_, rest, bytes) = alone().await?;
    let speed = bytes as f64 / rest.as_secs_f64();
    println!(
        "{transport}, {} MiB, each provider sends {:.1} MiB/s; of two, one goes away",
        SIZE >> 20,
        speed / f64::from(1 << 20)
    );
    for (what, signal) in [
        ("its process is killed", Signal::KILL),
        ("it says nothing any more", Signal::STOP),
    ] {
        for (hundredths, run) in [25, 90]
            .iter()
            .flat_map(|of| (1..=RUNS).map(move |run| (*of, run)))
        {
            let goes = Provider::start(&fetcher, transport).await?;
            let from = vec![goes.key, stays.key];
            let act = || goes.signal(signal);
            let (all, rest, bytes) = fetch(&fetcher, stays.root, from, hundredths, act).await?;
            let needed = bytes as f64 / speed;
            println!(
                "{what} when {hundredths} % have come, run {run}: {:.2} s in all, the rest {:.2} s where {needed:.2} s are \
                 needed: {:+.0} ms",
                all.as_secs_f64(),
                rest.as_secs_f64(),
                (rest.as_secs_f64() - needed) * 1000.0
            );
        }
    }
    fetcher.shutdown().await;
    Ok(())
}

/// One of the providers, until its input ends.
pub async fn provide(transport: &str, ticket: &str) -> Outcome<()> {
    let home = tempfile::tempdir()?;
    let secret = new_secret()?;
    let ticket = Ticket::from_text(ticket)?;
    let team = join(home.path(), &secret, &ticket, "provider", &Clock::system()).await?;
    let mut shelf = OpenShelf::default();
    let root = shelf.add(home.path(), vec![("large".to_owned(), noise(0, SIZE))])?;
    let key = secret.key();
    let listen = address(transport, "127.0.0.1", 0);
    let (handle, _events) = start(config(home.path(), listen), team, secret, Arc::new(shelf)).await?;
    handle.set_caps(Caps {
        upload: Some(CAP),
        download: None,
    });
    handle.connect(ticket.inviter).await?;
    println!("{key} {root}");
    std::io::stdout().flush()?;
    let until = || std::io::stdin().lock().read_line(&mut String::new());
    tokio::task::spawn_blocking(until).await??;
    handle.shutdown().await;
    Ok(())
}
