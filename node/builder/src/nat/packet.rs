//! Packets of a build: which connection or exchange one belongs to. Nothing in them is believed.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpPacket, UdpPacket, UdpRepr,
};

use super::stack::Flow;
use super::{INSIDE, INSIDE_V6};
use crate::limits::PACKET_BYTES;

/// Hops that a packet for a build may still make; it makes one.
const HOPS: u8 = 64;

/// What a packet is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Carried<'a> {
    /// The first of a connection.
    Opening(Flow),
    /// One of an exchange over UDP, whole and undamaged.
    Datagram(Flow, &'a [u8]),
    /// A later one of a connection, or a part of something.
    Other,
}

/// Reads a packet; none where it is neither TCP nor UDP, or does not come from the build's own address.
pub(super) fn read(packet: &[u8]) -> Option<Carried<'_>> {
    let (from, to, protocol, payload) = match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            if ip.src_addr() != INSIDE {
                return None;
            }
            if ip.more_frags() || ip.frag_offset() != 0 {
                return Some(Carried::Other);
            }
            let (from, to) = (IpAddr::V4(ip.src_addr()), IpAddr::V4(ip.dst_addr()));
            (from, to, ip.next_header(), ip.payload())
        }
        6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            if ip.src_addr() != INSIDE_V6 {
                return None;
            }
            let (from, to) = (IpAddr::V6(ip.src_addr()), IpAddr::V6(ip.dst_addr()));
            // Where other headers come first nothing is taken: kernels send none with TCP and UDP.
            (from, to, ip.next_header(), ip.payload())
        }
        _ => return None,
    };
    match protocol {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(payload).ok()?;
            let opens = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
            let flow = Flow {
                from: tcp.src_port(),
                to: SocketAddr::new(to, tcp.dst_port()),
            };
            Some(if opens {
                Carried::Opening(flow)
            } else {
                Carried::Other
            })
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(payload).ok()?;
            let whole = udp.verify_checksum(&IpAddress::from(from), &IpAddress::from(to));
            let possible = udp.src_port() != 0 && udp.dst_port() != 0;
            let flow = Flow {
                from: udp.src_port(),
                to: SocketAddr::new(to, udp.dst_port()),
            };
            (whole && possible).then(|| Carried::Datagram(flow, udp.payload()))
        }
        _ => None,
    }
}

/// A packet that brings something of an exchange to the build; none where it does not fit into one.
pub(super) fn write(flow: Flow, bytes: &[u8]) -> Option<Vec<u8>> {
    let sums = ChecksumCapabilities::default();
    let udp = UdpRepr {
        src_port: flow.to.port(),
        dst_port: flow.from,
    };
    let payload_len = udp.header_len() + bytes.len();
    let (mut packet, header, from, to) = match flow.to.ip() {
        IpAddr::V4(from) => {
            let ip = Ipv4Repr {
                src_addr: from,
                dst_addr: INSIDE,
                next_header: IpProtocol::Udp,
                payload_len,
                hop_limit: HOPS,
            };
            let mut packet = room(ip.buffer_len() + payload_len)?;
            ip.emit(&mut Ipv4Packet::new_unchecked(&mut packet), &sums);
            (packet, ip.buffer_len(), IpAddr::V4(from), IpAddr::V4(INSIDE))
        }
        IpAddr::V6(from) => {
            let ip = Ipv6Repr {
                src_addr: from,
                dst_addr: INSIDE_V6,
                next_header: IpProtocol::Udp,
                payload_len,
                hop_limit: HOPS,
            };
            let mut packet = room(ip.buffer_len() + payload_len)?;
            ip.emit(&mut Ipv6Packet::new_unchecked(&mut packet));
            (packet, ip.buffer_len(), IpAddr::V6(from), IpAddr::V6(INSIDE_V6))
        }
    };
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut packet[header..]),
        &IpAddress::from(from),
        &IpAddress::from(to),
        bytes.len(),
        |payload| payload.copy_from_slice(bytes),
        &sums,
    );
    Some(packet)
}

fn room(length: usize) -> Option<Vec<u8>> {
    (length <= PACKET_BYTES).then(|| vec![0; length])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A packet from the build, as one to it with the ends exchanged.
    pub(in super::super) fn sent(flow: Flow, bytes: &[u8]) -> Vec<u8> {
        let mut packet = write(flow, bytes).unwrap();
        // The addresses stand beside each other, and so do the ports; sums do not depend on the order.
        let (addresses, length, ports) = match flow.to {
            SocketAddr::V4(_) => (12, 4, 20),
            SocketAddr::V6(_) => (8, 16, 40),
        };
        packet[addresses..addresses + 2 * length].rotate_left(length);
        packet[ports..ports + 4].rotate_left(2);
        packet
    }

    fn flow(to: &str) -> Flow {
        let to = to.parse().unwrap();
        Flow { from: 4000, to }
    }

    #[test]
    fn datagrams_are_read_as_they_were_written() {
        for to in ["192.0.2.1:9000", "[2001:db8::1]:9000"] {
            let flow = flow(to);
            let packet = sent(flow, b"hello");
            assert_eq!(read(&packet), Some(Carried::Datagram(flow, b"hello")), "{to}");
            let most = PACKET_BYTES - packet.len() + 5;
            assert_eq!(write(flow, &vec![1; most]).unwrap().len(), PACKET_BYTES);
            assert_eq!(write(flow, &vec![1; most + 1]), None);
            for at in 0..packet.len() {
                let mut damaged = packet.clone();
                damaged[at] ^= 0x10;
                // What is changed but for what a hop may change is not taken for what was sent.
                if let Some(Carried::Datagram(other, bytes)) = read(&damaged) {
                    assert_eq!((other, bytes), (flow, &b"hello"[..]), "{to}, byte {at}");
                }
                assert!(read(&packet[..at]).is_none_or(|carried| carried == Carried::Other));
            }
        }
    }

    #[test]
    fn what_another_address_sends_is_not_the_build_s() {
        for to in ["192.0.2.1:9000", "[2001:db8::1]:9000"] {
            assert_eq!(read(&write(flow(to), b"hello").unwrap()), None, "{to}");
        }
    }
}
