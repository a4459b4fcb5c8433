use std::net::TcpListener;
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

fn now(began: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(began.elapsed().as_micros()).unwrap())
}

fn interface(wire: &mut Wire) -> Interface {
    let config = Config::new(HardwareAddress::Ip);
    let mut interface = Interface::new(config, wire, smoltcp::time::Instant::ZERO);
    interface.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(IpAddress::Ipv4(INSIDE), 24)).unwrap();
    });
    interface.routes_mut().add_default_ipv4_route(NODE).unwrap();
    interface
}

impl Guest {
    fn new(allowed: &[&str]) -> Self {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let allowed: Vec<AddressRange> = allowed.iter().map(|range| range.parse().unwrap()).collect();
        let denied: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = denied.clone();
        let serving = tokio::spawn(serve(theirs.into(), allowed.into(), move |text| {
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

    fn connect(&mut self, port: u16, to: (Ipv4Addr, u16)) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 32 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let to = IpEndpoint::new(IpAddress::Ipv4(to.0), to.1);
        socket.connect(self.interface.context(), to, port).unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
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
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
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

#[tokio::test]
async fn what_builds_may_not_reach_refuses_them() {
    let port = echo();
    let own = Ipv4Addr::LOCALHOST;
    for (to, class) in [
        ((own, port), "loopback"),
        ((Ipv4Addr::new(192, 168, 1, 1), 22), "private"),
        ((Ipv4Addr::new(169, 254, 169, 254), 80), "link-local"),
        ((NODE, 22), "private"),
    ] {
        let mut guest = Guest::new(&[]);
        let handle = guest.connect(5000, to);
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
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(6000).unwrap();
    let handle = guest.sockets.add(socket);
    for server in [NODE, Ipv4Addr::new(8, 8, 8, 8)] {
        let to = IpEndpoint::new(IpAddress::Ipv4(server), 53);
        let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.send_slice(&question(), to).unwrap();
        let (answer, from) = guest
            .until(|guest| {
                let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
                let (bytes, meta) = socket.recv().ok()?;
                Some((bytes.to_vec(), meta.endpoint))
            })
            .await;
        assert_eq!(from, to);
        assert!(answer.ends_with(&[127, 0, 0, 1]), "{answer:?}");
    }
}

/// Whatever a build sends: packets of a real exchange with bytes changed, cut and repeated.
#[tokio::test]
async fn hostile_packets_end_nothing() {
    let port = echo();
    let mut guest = Guest::new(&["127.0.0.1"]);
    let handle = guest.connect(5000, (Ipv4Addr::LOCALHOST, port));
    guest.talk(handle, &[7; 3000]).await;
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(6000).unwrap();
    let to = IpEndpoint::new(IpAddress::Ipv4(NODE), 53);
    socket.send_slice(&question(), to).unwrap();
    guest.sockets.add(socket);
    let asked = guest.sent.len() + 1;
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
    let mut stack = Stack::new(began);
    let mut taken = 0;
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
        while stack.take_outgoing().is_some() {}
    }
    assert!(taken > 100, "only {taken} connections were tried");
}

/// Makes the sums of a packet right, where it still is one.
fn mend(packet: &mut [u8]) {
    use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpPacket, UdpPacket};
    let Ok(mut ip) = Ipv4Packet::new_checked(packet) else {
        return;
    };
    if ip.header_len() < 20 {
        return;
    }
    ip.fill_checksum();
    let (from, to, protocol) = (
        IpAddress::Ipv4(ip.src_addr()),
        IpAddress::Ipv4(ip.dst_addr()),
        ip.next_header(),
    );
    match protocol {
        IpProtocol::Tcp => {
            if let Ok(mut tcp) = TcpPacket::new_checked(ip.payload_mut()) {
                tcp.fill_checksum(&from, &to);
            }
        }
        IpProtocol::Udp => {
            if let Ok(mut udp) = UdpPacket::new_checked(ip.payload_mut()) {
                udp.fill_checksum(&from, &to);
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
    let mut stack = Stack::new(began);
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
