//! A link of its own between two nodes: network namespaces, shaped by the kernel to a rate, and a relay between
//! them that holds every byte or datagram back for half of a round trip.
//!
//! The kernel's own way to delay (netem) is often not there. A relay ends TCP connections, so the windows of the
//! kernel's TCP see the wire alone, those of yamux and of what asks for blobs the whole round trip; for QUIC, whose
//! datagrams are passed on as they are, everything sees it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::{LARGE, Outcome};

/// Where the provider is, and where the relay is for who fetches.
pub const PROVIDER: &str = "10.99.0.1";
pub const RELAY: &str = "10.98.0.2";
pub const PORT: u16 = 4100;
const PLAIN_PORT: u16 = 4200;

/// Bytes or datagrams that a relay holds at most, each way: more than twice what is under way at 1 Gbit/s in
/// a tenth of a second.
const HELD: usize = 4096;

/// Larger than any datagram.
const DATAGRAM: usize = 64 << 10;

/// Runs to the end, and removes the namespaces then.
pub fn measure(transport: &str, round_trip: u64, rate: u64) -> Outcome<()> {
    let link = Link::new(rate)?;
    let half = (round_trip / 2).to_string();
    let seconds = link.plain(&half)?.as_secs_f64();
    let bytes = sent(Some(&link.name("provider")))?;
    println!(
        "{rate} Mbit/s, {round_trip} ms: plain TCP, 1 GiB in {seconds:.2} s: {:.1} % of the link is content, {:.1} % of it is used",
        share(seconds, rate),
        share_of(bytes, seconds, rate)
    );
    let relay_for = [&format!("{RELAY}:{PORT}"), &format!("{PROVIDER}:{PORT}"), &half];
    let _relay = Running(link.start(
        "relay",
        &[&["relay", transport][..], &relay_for.map(String::as_str)].concat(),
    )?);
    let fetcher = link.name("fetcher");
    let mut provider = link.start("provider", &["provide", transport, &fetcher, &rate.to_string()])?;
    match provider.wait()?.success() {
        true => Ok(()),
        false => Err("the provider failed".into()),
    }
}

/// What of the link 1 GiB in so many seconds is, in hundredths.
pub fn share(seconds: f64, rate: u64) -> f64 {
    share_of(LARGE as u64, seconds, rate)
}

/// What of the link so many bytes in so many seconds are, in hundredths.
pub fn share_of(bytes: u64, seconds: f64, rate: u64) -> f64 {
    bytes as f64 * 8.0 / seconds / (rate as f64 * 1e6) * 100.0
}

/// Bytes that the provider has put on the wire: frames with all their headers, as the kernel counts them against the
/// rate. Its namespace is this process's own where none is named.
pub fn sent(namespace: Option<&str>) -> Outcome<u64> {
    let mut command = Command::new("tc");
    command.args(namespace.map(|name| ["-n", name]).into_iter().flatten());
    let output = command.args(["-s", "qdisc", "show", "dev", "wire"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, count) = text
        .split_once("Sent ")
        .ok_or("tc does not count what was sent")?;
    Ok(count.split_whitespace().next().unwrap_or_default().parse()?)
}

struct Link {
    prefix: String,
}

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn run(words: &str) -> Outcome<()> {
    let mut all = words.split_whitespace();
    let output = Command::new(all.next().unwrap_or_default()).args(all).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("'{words}': {}", String::from_utf8_lossy(&output.stderr).trim()).into()),
    }
}

impl Link {
    fn new(rate: u64) -> Outcome<Self> {
        let link = Self {
            prefix: format!("measured-{}-", std::process::id()),
        };
        let (provider, relay, fetcher) = (link.name("provider"), link.name("relay"), link.name("fetcher"));
        for name in [&provider, &relay, &fetcher] {
            run(&format!("ip netns add {name}"))?;
            run(&format!("ip -n {name} link set lo up"))?;
        }
        for (name, end, address) in [(&provider, "wire", PROVIDER), (&fetcher, "near", "10.98.0.1")] {
            run(&format!(
                "ip -n {name} link add {end} type veth peer name {end} netns {relay}"
            ))?;
            let network = address.rsplit_once('.').map_or("", |(network, _)| network);
            for (namespace, number) in [(name, 1), (&relay, 2)] {
                run(&format!(
                    "ip -n {namespace} addr add {network}.{number}/24 dev {end}"
                ))?;
                run(&format!("ip -n {namespace} link set {end} up"))?;
            }
        }
        for namespace in [&provider, &relay] {
            run(&format!(
                "tc -n {namespace} qdisc add dev wire root tbf rate {rate}mbit burst 256k latency 25ms"
            ))?;
        }
        Ok(link)
    }

    fn name(&self, of: &str) -> String {
        format!("{}{of}", self.prefix)
    }

    fn start(&self, of: &str, arguments: &[&str]) -> Outcome<Child> {
        Ok(inside(&self.name(of), arguments)?.spawn()?)
    }

    /// How long 1 GiB takes over one connection of nothing but TCP.
    fn plain(&self, half: &str) -> Outcome<Duration> {
        let (there, here) = (
            format!("{PROVIDER}:{PLAIN_PORT}"),
            format!("{RELAY}:{PLAIN_PORT}"),
        );
        let _source = Running(self.start("provider", &["plain-source", &there])?);
        let _relay = Running(self.start("relay", &["relay", "tcp", &here, &there, half])?);
        let output = inside(&self.name("fetcher"), &["plain-sink", &here])?
            .stderr(Stdio::inherit())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(Duration::from_secs_f64(text.parse()?))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for of in ["provider", "relay", "fetcher"] {
            drop(run(&format!("ip netns del {}", self.name(of))));
        }
    }
}

/// This program inside a namespace.
pub fn inside(namespace: &str, arguments: &[&str]) -> Outcome<Command> {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace])
        .arg(std::env::current_exe()?)
        .args(arguments);
    Ok(command)
}

/// Sends 1 GiB to whoever comes first.
pub fn plain_source(at: &str) -> Outcome<()> {
    let (mut stream, _) = TcpListener::bind(at)?.accept()?;
    let block = vec![7; 1 << 20];
    for _ in 0..LARGE >> 20 {
        stream.write_all(&block)?;
    }
    Ok(())
}

/// Prints the seconds that everything took to come.
pub fn plain_sink(at: &str) -> Outcome<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut stream = loop {
        match TcpStream::connect(at) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let (mut buffer, mut come, start) = (vec![0; 1 << 20], 0, Instant::now());
    while come < LARGE {
        match stream.read(&mut buffer)? {
            0 => return Err("the connection ended".into()),
            count => come += count,
        }
    }
    println!("{}", start.elapsed().as_secs_f64());
    Ok(())
}

/// Passes on what comes to `here` and what comes back, each time after `half` of a round trip. For ever.
pub async fn relay(transport: &str, here: SocketAddr, there: SocketAddr, half: Duration) -> Outcome<()> {
    if transport == "quic" {
        return datagrams(here, there, half).await;
    }
    let listener = tokio::net::TcpListener::bind(here).await?;
    loop {
        let (near, _) = listener.accept().await?;
        tokio::spawn(async move {
            let deadline = Instant::now() + Duration::from_secs(10);
            let far = loop {
                match tokio::net::TcpStream::connect(there).await {
                    Ok(far) => break far,
                    Err(_) if Instant::now() > deadline => return,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            };
            if near.set_nodelay(true).and(far.set_nodelay(true)).is_err() {
                return;
            }
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            bytes(near_read, far_write, half);
            bytes(far_read, near_write, half);
        });
    }
}

fn bytes(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, half: Duration) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(HELD);
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if sender
                .send((Instant::now() + half, buffer[..count].to_vec()))
                .await
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

type Late = mpsc::Sender<(Instant, Vec<u8>)>;

async fn datagrams(here: SocketAddr, there: SocketAddr, half: Duration) -> Outcome<()> {
    let near = Arc::new(UdpSocket::bind(here).await?);
    let mut ways: HashMap<SocketAddr, Late> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let (count, from) = near.recv_from(&mut buffer).await?;
        let way = match ways.entry(from) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(way(&near, from, there, half).await?),
        };
        // A full queue loses datagrams, as a router does.
        drop(way.try_send((Instant::now() + half, buffer[..count].to_vec())));
    }
}

/// Takes what is to go on from one fetcher's socket, and brings back what is answered.
async fn way(near: &Arc<UdpSocket>, from: SocketAddr, there: SocketAddr, half: Duration) -> Outcome<Late> {
    let far = Arc::new(UdpSocket::bind((PROVIDER_SIDE, 0)).await?);
    far.connect(there).await?;
    let (there_sender, there_receiver) = mpsc::channel(HELD);
    let (back_sender, back_receiver) = mpsc::channel(HELD);
    let (out, back) = (far.clone(), near.clone());
    tokio::spawn(late(there_receiver, async move |datagram: &[u8]| {
        drop(out.send(datagram).await);
    }));
    tokio::spawn(late(back_receiver, async move |datagram: &[u8]| {
        drop(back.send_to(datagram, from).await);
    }));
    tokio::spawn(async move {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            // A port that is not there yet answers with an error, which says nothing of the next datagram.
            if let Ok(count) = far.recv(&mut buffer).await {
                drop(back_sender.try_send((Instant::now() + half, buffer[..count].to_vec())));
            }
        }
    });
    Ok(there_sender)
}

/// The relay's own address on the wire.
const PROVIDER_SIDE: &str = "10.99.0.2";

async fn late(mut receiver: mpsc::Receiver<(Instant, Vec<u8>)>, send: impl AsyncFn(&[u8])) {
    while let Some((due, datagram)) = receiver.recv().await {
        tokio::time::sleep_until(due.into()).await;
        send(&datagram).await;
    }
}
