use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use super::stack::Wire;
use super::*;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A kernel as builds have one: the other end of the packets.
struct Guest {
    began: Instant,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    packets: tokio::net::UnixDatagram,
    serving: tokio::task::JoinHandle<io::Result<()>>,
    denied: Arc<Mutex<Vec<String>>>,
    /// Everything it has sent.
    sent: Vec<Vec<u8>>,
}

/// The build's address of the kind that another is.
fn inside(other: IpAddress) -> IpAddress {
    match other {
        IpAddress::Ipv4(_) => IpAddress::Ipv4(INSIDE),
        IpAddress::Ipv6(_) => IpAddress::Ipv6(INSIDE_V6),
    }
}

/// Says visibly that something was not tested.
fn skipped(what: &str, why: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {what}, because {why}").unwrap();
}

fn now(began: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(began.elapsed().as_micros()).unwrap())
}

fn interface(wire: &mut Wire) -> Interface {
    let config = Config::new(HardwareAddress::Ip);
    let mut interface = Interface::new(config, wire, smoltcp::time::Instant::ZERO);
    interface.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(IpAddress::Ipv4(INSIDE), 24)).unwrap();
        addresses
            .push(IpCidr::new(IpAddress::Ipv6(INSIDE_V6), PREFIX_V6))
            .unwrap();
    });
    interface.routes_mut().add_default_ipv4_route(NODE).unwrap();
    interface.routes_mut().add_default_ipv6_route(NODE_V6).unwrap();
    interface
}

impl Guest {
    fn new(allowed: &[&str]) -> Self {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let allowed: Vec<AddressRange> = allowed.iter().map(|range| range.parse().unwrap()).collect();
        let denied: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = denied.clone();
        let serving = tokio::spawn(serve(theirs.into(), true, allowed.into(), move |text| {
            heard.lock().unwrap().push(text);
            std::future::ready(())
        }));
        let mut wire = Wire::default();
        Self {
            began: Instant::now(),
            interface: interface(&mut wire),
            wire,
            sockets: SocketSet::new(Vec::new()),
            packets: tokio::net::UnixDatagram::from_std(ours).unwrap(),
            serving,
            denied,
            sent: Vec::new(),
        }
    }

    fn connect(&mut self, port: u16, to: (impl Into<IpAddr>, u16)) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 32 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let to = IpEndpoint::new(to.0.into().into(), to.1);
        let from = IpEndpoint::new(inside(to.addr), port);
        socket.connect(self.interface.context(), to, from).unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn listen_to_datagrams(&mut self, from: impl Into<IpAddr>, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        let from: IpAddress = from.into().into();
        socket.bind((from, port)).unwrap();
        self.sockets.add(socket)
    }

    async fn say(&mut self, handle: SocketHandle, to: SocketAddr, bytes: &[u8]) {
        self.until(|guest| {
            let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
            socket.send_slice(bytes, IpEndpoint::from(to)).ok()
        })
        .await;
    }

    /// What comes back over UDP next.
    async fn hear(&mut self, handle: SocketHandle) -> (Vec<u8>, IpEndpoint) {
        self.until(|guest| {
            let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
            let (bytes, meta) = socket.recv().ok()?;
            Some((bytes.to_vec(), meta.endpoint))
        })
        .await
    }

    /// Goes on until something is so.
    async fn until<T>(&mut self, mut is_so: impl FnMut(&mut Self) -> Option<T>) -> T {
        let since = Instant::now();
        loop {
            let mut packet = [0; PACKET_BYTES];
            while let Ok(length) = self.packets.try_recv(&mut packet) {
                self.wire.incoming.push_back(packet[..length].to_vec());
            }
            self.interface
                .poll(now(self.began), &mut self.wire, &mut self.sockets);
            // It takes packets while its own wait, as a kernel does.
            while let Some(packet) = self.wire.outgoing.front()
                && self.packets.try_send(packet).is_ok()
            {
                self.sent.extend(self.wire.outgoing.pop_front());
            }
            if let Some(found) = is_so(self) {
                return found;
            }
            assert!(since.elapsed() < PATIENCE, "waited in vain");
            assert!(!self.serving.is_finished(), "the network broke");
            let soon = timeout(Duration::from_millis(5), self.packets.readable());
            // In time or not: something may be due here.
            let _in_time = soon.await;
        }
    }

    /// Sends all of it, ends, and gives all that comes back.
    async fn talk(&mut self, handle: SocketHandle, bytes: &[u8]) -> Vec<u8> {
        let (mut sent, mut received) = (0, Vec::new());
        self.until(|guest| {
            let socket = guest.socket(handle);
            if socket.can_send() && sent < bytes.len() {
                sent += socket.send_slice(&bytes[sent..]).unwrap();
                if sent == bytes.len() {
                    socket.close();
                }
            }
            while socket.can_recv() {
                socket
                    .recv(|bytes| {
                        received.extend_from_slice(bytes);
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            (sent == bytes.len() && !socket.may_recv()).then_some(())
        })
        .await;
        received
    }
}

/// A server that gives everything back once it has all of it.
fn echo() -> u16 {
    echo_at(TcpListener::bind("127.0.0.1:0").unwrap())
}

fn echo_at(listener: TcpListener) -> u16 {
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                stream.write_all(&bytes).unwrap();
            });
        }
    });
    port
}

#[tokio::test]
async fn a_connection_carries_both_ways() {
    let port = echo();
    let mut guest = Guest::new(&["127.0.0.1"]);
    let handle = guest.connect(5000, (Ipv4Addr::LOCALHOST, port));
    // More than all buffers together.
    let bytes: Vec<u8> = (0..600_000u32).map(|number| (number % 251) as u8).collect();
    assert!(guest.talk(handle, &bytes).await == bytes);
    // And another one to the same place.
    let handle = guest.connect(5001, (Ipv4Addr::LOCALHOST, port));
    assert_eq!(guest.talk(handle, b"again").await, b"again");
    assert!(guest.denied.lock().unwrap().is_empty());
}

#[tokio::test]
async fn many_connections_do_not_disturb_each_other() {
    let port = echo();
    let mut guest = Guest::new(&["127.0.0.1"]);
    let handles: Vec<_> = (0..20)
        .map(|number| guest.connect(5000 + number, (Ipv4Addr::LOCALHOST, port)))
        .collect();
    for (number, handle) in handles.into_iter().enumerate() {
        let bytes = vec![u8::try_from(number).unwrap(); 10_000];
        assert!(guest.talk(handle, &bytes).await == bytes, "{number}");
    }
}

/// A server that gives back each datagram, at an address of loopback; none where there is no such.
fn echo_datagrams(address: impl Into<IpAddr>) -> Option<SocketAddr> {
    let socket = UdpSocket::bind((address.into(), 0)).ok()?;
    let place = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            socket.send_to(&bytes[..length], from).unwrap();
        }
    });
    Some(place)
}

#[tokio::test]
async fn a_connection_over_ipv6_carries_both_ways() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        return skipped("connections over IPv6", "this machine has no ::1");
    };
    let port = echo_at(listener);
    let mut guest = Guest::new(&["::1"]);
    let handle = guest.connect(5000, (Ipv6Addr::LOCALHOST, port));
    let bytes: Vec<u8> = (0..200_000u32).map(|number| (number % 251) as u8).collect();
    assert!(guest.talk(handle, &bytes).await == bytes);
    assert!(guest.denied.lock().unwrap().is_empty());
}

#[tokio::test]
async fn datagrams_go_both_ways_and_come_from_where_they_were_sent_to() {
    let addresses: [(IpAddr, IpAddr, &str); 2] = [
        (INSIDE.into(), Ipv4Addr::LOCALHOST.into(), "127.0.0.1"),
        (INSIDE_V6.into(), Ipv6Addr::LOCALHOST.into(), "::1"),
    ];
    for (inside, address, allowed) in addresses {
        let (Some(one), Some(other)) = (echo_datagrams(address), echo_datagrams(address)) else {
            skipped("datagrams over IPv6", "this machine has no ::1");
            continue;
        };
        let mut guest = Guest::new(&[allowed]);
        let handle = guest.listen_to_datagrams(inside, 6000);
        for (to, bytes) in [
            (one, &b"first"[..]),
            (other, b"second"),
            (one, b""),
            (one, &[7; 1400]),
        ] {
            guest.say(handle, to, bytes).await;
            let (heard, from) = guest.hear(handle).await;
            assert_eq!((heard.as_slice(), from), (bytes, IpEndpoint::from(to)));
        }
        assert!(guest.denied.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn datagrams_go_nowhere_where_builds_may_not_reach_and_it_is_said_once() {
    let heard = UdpSocket::bind("127.0.0.1:0").unwrap();
    heard.set_nonblocking(true).unwrap();
    let place = heard.local_addr().unwrap();
    let mut guest = Guest::new(&[]);
    let handle = guest.listen_to_datagrams(INSIDE, 6000);
    let six = guest.listen_to_datagrams(INSIDE_V6, 6000);
    for _ in 0..3 {
        guest.say(handle, place, b"secret").await;
        guest
            .say(handle, "169.254.169.254:123".parse().unwrap(), b"secret")
            .await;
        guest
            .say(six, "[fd00:ec2::254]:123".parse().unwrap(), b"secret")
            .await;
        guest
            .say(
                six,
                format!("[::ffff:127.0.0.1]:{}", place.port()).parse().unwrap(),
                b"secret",
            )
            .await;
    }
    guest
        .until(|guest| (guest.denied.lock().unwrap().len() >= 4).then_some(()))
        .await;
    // Something that comes back shows that all before it was looked at.
    let asking = guest.listen_to_datagrams(INSIDE, 6001);
    guest
        .say(asking, SocketAddr::new(NODE.into(), 53), &question())
        .await;
    guest.hear(asking).await;
    let denied = guest.denied.lock().unwrap().clone();
    for (class, count) in [("loopback", 3), ("link-local", 1), ("private", 1)] {
        // One of those of loopback is for the name that was asked for.
        let said = denied.iter().filter(|said| said.contains(class)).count();
        assert_eq!(said, count, "{class} in {denied:?}");
    }
    assert!(heard.recv(&mut [0; 16]).is_err(), "something came through");
}

#[tokio::test]
async fn what_builds_may_not_reach_refuses_them() {
    let port = echo();
    let own = Ipv4Addr::LOCALHOST;
    let six = |text: &str| IpAddr::V6(text.parse().unwrap());
    for (to, port, class) in [
        (IpAddr::V4(own), port, "loopback"),
        (Ipv4Addr::new(192, 168, 1, 1).into(), 22, "private"),
        (Ipv4Addr::new(169, 254, 169, 254).into(), 80, "link-local"),
        (NODE.into(), 22, "private"),
        (six("::1"), port, "loopback"),
        (six("::ffff:127.0.0.1"), port, "loopback"),
        (six("::ffff:169.254.169.254"), 80, "link-local"),
        (six("64:ff9b::10.0.0.1"), 80, "private"),
        (six("fd00:ec2::254"), 80, "private"),
        (six("fe80::1"), 80, "link-local"),
        (NODE_V6.into(), 22, "private"),
    ] {
        let mut guest = Guest::new(&[]);
        let handle = guest.connect(5000, (to, port));
        guest
            .until(|guest| (!guest.socket(handle).is_active()).then_some(()))
            .await;
        let denied = guest.denied.lock().unwrap().join("\n");
        assert!(
            denied.contains("denied to builds") && denied.contains(class),
            "{denied}"
        );
    }
}

#[tokio::test]
async fn a_port_where_nobody_listens_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut guest = Guest::new(&["127.0.0.1"]);
    let handle = guest.connect(5000, (Ipv4Addr::LOCALHOST, port));
    guest
        .until(|guest| (!guest.socket(handle).is_active()).then_some(()))
        .await;
    assert!(guest.denied.lock().unwrap().is_empty());
}

fn question() -> Vec<u8> {
    b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x09localhost\0\0\x01\0\x01".to_vec()
}

#[tokio::test]
async fn names_are_answered_by_whatever_name_server_is_asked() {
    let mut guest = Guest::new(&["127.0.0.0/8"]);
    let public = Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888);
    let servers: [(IpAddr, IpAddr); 4] = [
        (INSIDE.into(), NODE.into()),
        (INSIDE.into(), Ipv4Addr::new(8, 8, 8, 8).into()),
        (INSIDE_V6.into(), NODE_V6.into()),
        (INSIDE_V6.into(), public.into()),
    ];
    for (port, (inside, server)) in (6000..).zip(servers) {
        let handle = guest.listen_to_datagrams(inside, port);
        let to = SocketAddr::new(server, 53);
        guest.say(handle, to, &question()).await;
        let (answer, from) = guest.hear(handle).await;
        assert_eq!(from, IpEndpoint::from(to));
        assert!(answer.ends_with(&[127, 0, 0, 1]), "{answer:?}");
    }
}

/// Who asks for more asks again.
#[test]
fn questions_that_wait_have_a_bound() {
    let mut stack = Stack::new(Instant::now(), true);
    let to = SocketAddr::new(NODE.into(), 53);
    for from in 2000..2000 + 2 * u16::try_from(NAT_QUESTIONS).unwrap() {
        stack.packet(packet::tests::sent(Flow { from, to }, &question()));
    }
    stack.poll(Instant::now());
    let taken = std::iter::from_fn(|| stack.take_question()).count();
    assert_eq!(taken, NAT_QUESTIONS);
}

/// Whatever a build sends: packets of a real exchange with bytes changed, cut and repeated.
#[tokio::test]
async fn hostile_packets_end_nothing() {
    let port = echo();
    let mut guest = Guest::new(&["127.0.0.1"]);
    let handle = guest.connect(5000, (Ipv4Addr::LOCALHOST, port));
    guest.talk(handle, &[7; 3000]).await;
    let asked = guest.sent.len() + 5;
    // Denied, which is as good here.
    guest.connect(5001, (NODE_V6, 22));
    let (four, six) = (
        guest.listen_to_datagrams(INSIDE, 6000),
        guest.listen_to_datagrams(INSIDE_V6, 6000),
    );
    for port in [53, 123] {
        guest
            .say(four, SocketAddr::new(NODE.into(), port), &question())
            .await;
        guest
            .say(six, SocketAddr::new(NODE_V6.into(), port), &question())
            .await;
    }
    guest
        .until(|guest| (guest.sent.len() >= asked).then_some(()))
        .await;
    let packets = std::mem::take(&mut guest.sent);
    // A fixed row of numbers, so that a failure can be had again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut number = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % (below as u64)).unwrap()
    };
    let began = Instant::now();
    let mut stack = Stack::new(began, true);
    let (mut taken, mut exchanged) = (0, 0);
    for round in 0..20_000u32 {
        let mut packet = packets[number(packets.len())].clone();
        for _ in 0..number(4) {
            let at = number(packet.len().min(60));
            packet[at] = u8::try_from(number(256)).unwrap();
        }
        if number(8) == 0 {
            packet.truncate(number(packet.len() + 1));
        }
        // Half of them with sums that are right, so that more than the sums is tried.
        if number(2) == 0 {
            mend(&mut packet);
        }
        stack.packet(packet);
        stack.poll(began + Duration::from_millis(u64::from(round)));
        for flow in stack.take_new() {
            taken += 1;
            if number(2) == 0 {
                stack.accept(flow);
                let _some = stack.send(flow, b"answer");
            } else {
                stack.refuse(flow);
            }
            if number(3) == 0 {
                stack.forget(flow);
            }
        }
        while let Some(question) = stack.take_question() {
            stack.answer(&question, &question.bytes);
        }
        while let Some(datagram) = stack.take_datagram() {
            exchanged += 1;
            stack.give_datagram(datagram.flow, &datagram.bytes);
            stack.refuse_datagram(datagram);
        }
        while stack.take_outgoing().is_some() {}
    }
    assert!(taken > 100, "only {taken} connections were tried");
    assert!(exchanged > 100, "only {exchanged} datagrams came through");
}

/// Makes the sums of a packet right, where it still is one.
fn mend(packet: &mut [u8]) {
    use smoltcp::wire::{Ipv4Packet, Ipv6Packet};
    if let Ok(mut ip) = Ipv6Packet::new_checked(&mut packet[..])
        && ip.version() == 6
    {
        let (from, to) = (IpAddress::Ipv6(ip.src_addr()), IpAddress::Ipv6(ip.dst_addr()));
        return mend_payload(ip.next_header(), (&from, &to), ip.payload_mut());
    }
    let Ok(mut ip) = Ipv4Packet::new_checked(packet) else {
        return;
    };
    if ip.header_len() < 20 {
        return;
    }
    ip.fill_checksum();
    let (from, to) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
    mend_payload(ip.next_header(), (&from, &to), ip.payload_mut());
}

fn mend_payload(
    protocol: smoltcp::wire::IpProtocol,
    (from, to): (&IpAddress, &IpAddress),
    payload: &mut [u8],
) {
    use smoltcp::wire::{IpProtocol, TcpPacket, UdpPacket};
    match protocol {
        IpProtocol::Tcp => {
            if let Ok(mut tcp) = TcpPacket::new_checked(payload) {
                tcp.fill_checksum(from, to);
            }
        }
        IpProtocol::Udp => {
            if let Ok(mut udp) = UdpPacket::new_checked(payload) {
                udp.fill_checksum(from, to);
            }
        }
        _ => {}
    }
}

#[test]
fn connections_have_a_bound() {
    let began = Instant::now();
    let mut wire = Wire::default();
    let mut interface = interface(&mut wire);
    let mut sockets = SocketSet::new(Vec::new());
    let most = crate::limits::NAT_CONNECTIONS;
    for number in 0..most + 10 {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1024]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let to = IpEndpoint::new(IpAddress::Ipv4(Ipv4Addr::new(1, 1, 1, 1)), 80);
        let port = 1000 + u16::try_from(number).unwrap();
        socket.connect(interface.context(), to, port).unwrap();
        sockets.add(socket);
    }
    let mut stack = Stack::new(began, true);
    while interface.poll(now(began), &mut wire, &mut sockets)
        == smoltcp::iface::PollResult::SocketStateChanged
        || !wire.outgoing.is_empty()
    {
        while let Some(packet) = wire.outgoing.pop_front() {
            stack.packet(packet);
        }
    }
    assert_eq!(stack.take_new().len(), most);
}
