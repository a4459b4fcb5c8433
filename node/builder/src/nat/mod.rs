//! The second way to the network for fixed-output builds: everything over TCP and UDP, where the machine offers
//! `/dev/net/tun`.
//!
//! The build's own network has an interface `tun0` and a route through it to everywhere. What goes out
//! there comes to the node as packets, over a descriptor that the sandbox helper passed out, and ends in a
//! TCP of the node's own ([`stack`]): each connection of the build is one of the node, with an ordinary
//! socket, if the address is allowed by the same rule as for the [proxy](crate::proxy). So no packet of a
//! build ever is on the machine's network, and no privilege is needed there. What goes over UDP is carried by such
//! sockets, too ([`exchange`]). Names are resolved by the node, which answers at UDP port 53 of every address
//! ([`dns`]). There is IPv6 where the machine has it.
//!
//! It is no router: there is no ICMP but for what is refused, and nobody can connect to a build.

mod dns;
mod exchange;
mod flow;
mod packet;
mod stack;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::limits::{CONNECT_TIME, NAT_QUESTIONS, NAT_TASKS, PACKET_BYTES, PACKETS_AT_ONCE};
use crate::proxy::address::{AddressRange, denied};
use crate::sys;
use exchange::Exchanges;
use flow::Carried;
use stack::{Flow, Stack};

/// The device that makes it possible.
pub(crate) const DEVICE: &str = "/dev/net/tun";

/// The build's address, in a network that leads nowhere else.
pub(crate) const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);

/// The network's mask.
pub(crate) const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// The node's address there.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// The build's address of IPv6, in a network that leads nowhere else (RFC 4193), and how many bits are the network's.
pub(crate) const INSIDE_V6: Ipv6Addr = Ipv6Addr::new(0xfd74, 0x7678, 0x6e6f, 0, 0, 0, 0, 0x100);
/// See [`INSIDE_V6`].
pub(crate) const PREFIX_V6: u8 = 64;

/// The node's address there.
pub(crate) const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd74, 0x7678, 0x6e6f, 0, 0, 0, 0, 2);

/// Content of the build's `/etc/resolv.conf`.
pub(crate) fn resolv_conf() -> String {
    format!("nameserver {NODE}\n")
}

/// Whether this user may make such interfaces here.
pub(crate) fn available() -> Result<(), io::Error> {
    File::options().read(true).write(true).open(DEVICE).map(drop)
}

/// Whether builds get IPv6 beside IPv4: where this machine has a way to the public part of it, or the owner allows
/// some of it. No packet is sent for that.
pub(crate) fn has_ipv6(allowed: &[AddressRange]) -> bool {
    // Some address of the range that public ones are from (RFC 3587).
    const PUBLIC: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1);
    let way = || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?.connect((PUBLIC, 9));
    allowed.iter().any(AddressRange::is_ipv6) || way().is_ok()
}

/// What a task of the network tells the one that has the packets.
enum Told {
    /// A connection stands, or not.
    Dialled(Flow, Result<TcpStream, ()>),
    /// The answer to a question for a name.
    Answer(stack::Question, Vec<u8>),
    /// Something came back over UDP.
    Datagram(Flow, Vec<u8>),
    /// An exchange over UDP is over.
    Silent(Flow),
}

/// Serves a build until it has ended or this is dropped; then all of its connections are gone. `ipv6`: whether its
/// interface has that, too. `tell` hears of what is denied.
///
/// # Errors
/// The interface cannot be waited for.
pub(crate) async fn serve<T, F>(
    tun: OwnedFd,
    ipv6: bool,
    allowed: Arc<[AddressRange]>,
    tell: T,
) -> io::Result<()>
where
    T: Fn(String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send,
{
    rustix::io::ioctl_fionbio(&tun, true)?;
    let tun = sys::watched(File::from(tun))?;
    let (told, mut inbox) = mpsc::channel(NAT_QUESTIONS);
    let wake = Arc::new(Notify::new());
    let mut stack = Stack::new(Instant::now(), ipv6);
    let mut carried: HashMap<Flow, Carried> = HashMap::new();
    let mut exchanges = Exchanges::default();
    let mut outgoing: VecDeque<Vec<u8>> = VecDeque::new();
    // Everything that is under way ends with this.
    let mut tasks = JoinSet::new();
    let mut questions = 0;
    loop {
        let wait = stack.poll(Instant::now());
        for flow in stack.take_new() {
            // A connection that the build has left may still be sending what was said.
            if tasks.len() >= NAT_TASKS {
                stack.refuse(flow);
                continue;
            }
            let (allowed, tell, told) = (allowed.clone(), tell.clone(), told.clone());
            tasks.spawn(async move {
                let dialled = dial(flow.to, &allowed, tell).await;
                // Where nobody listens, the build has ended.
                drop(told.send(Told::Dialled(flow, dialled)).await);
            });
        }
        while let Some(datagram) = stack.take_datagram() {
            exchanges.send(datagram, &mut stack, &allowed, (&told, &tell), &mut tasks);
        }
        while let Some(question) = stack.take_question() {
            if questions >= NAT_QUESTIONS {
                // Who asks asks again.
                continue;
            }
            questions += 1;
            let (allowed, tell, told) = (allowed.clone(), tell.clone(), told.clone());
            tasks.spawn(async move {
                let answer = dns::answer(&question.bytes, ipv6, &allowed, tell).await;
                drop(told.send(Told::Answer(question, answer)).await);
            });
        }
        carried.retain(|flow, carried| carried.exchange(&mut stack, *flow));
        let wait = match stack.poll(Instant::now()) {
            Some(later) => Some(wait.map_or(later, |wait| wait.min(later))),
            None => wait,
        };
        while outgoing.len() < PACKETS_AT_ONCE
            && let Some(packet) = stack.take_outgoing()
        {
            outgoing.push_back(packet);
        }
        tokio::select! {
            ready = tun.readable(), if stack.has_room() => {
                let mut ready = ready?;
                for _ in 0..PACKETS_AT_ONCE {
                    let mut packet = vec![0; PACKET_BYTES];
                    match ready.try_io(|tun| tun.get_ref().read(&mut packet)) {
                        Ok(Ok(length)) => {
                            packet.truncate(length);
                            stack.packet(packet);
                        }
                        // The build's network is gone, and so is the build.
                        Ok(Err(_)) => return Ok(()),
                        Err(_would_block) => break,
                    }
                }
            }
            ready = tun.writable(), if !outgoing.is_empty() => {
                let mut ready = ready?;
                while let Some(packet) = outgoing.front() {
                    match ready.try_io(|tun| tun.get_ref().write(packet)) {
                        Ok(_sent_or_lost) => drop(outgoing.pop_front()),
                        Err(_would_block) => break,
                    }
                }
            }
            Some(told) = inbox.recv() => match told {
                Told::Dialled(flow, Ok(stream)) => {
                    if stack.accept(flow) {
                        let carrying = Carried::start(stream, wake.clone(), &mut tasks);
                        carried.insert(flow, carrying);
                    }
                }
                Told::Dialled(flow, Err(())) => stack.refuse(flow),
                Told::Answer(question, answer) => {
                    questions -= 1;
                    stack.answer(&question, &answer);
                }
                Told::Datagram(flow, bytes) => stack.give_datagram(flow, &bytes),
                Told::Silent(flow) => exchanges.forget(flow),
            },
            () = wake.notified() => {}
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {}
            Some(_ended) = tasks.join_next() => {}
        }
    }
}

/// Connects to where a build wants to go, if it may.
async fn dial<F: Future<Output = ()>>(
    to: SocketAddr,
    allowed: &[AddressRange],
    tell: impl Fn(String) -> F,
) -> Result<TcpStream, ()> {
    if let Some(class) = denied(to, allowed) {
        tell(format!("{to} is denied to builds: the address is {class}")).await;
        return Err(());
    }
    match timeout(CONNECT_TIME, TcpStream::connect(to)).await {
        Ok(Ok(stream)) => Ok(stream),
        // The build sees that nobody listens there, which is what there is to say.
        Ok(Err(_)) | Err(_) => Err(()),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
