//! Where a node listens: at the same ports as before, where the machine chose them, so that members who were away find it
//! again.

use std::collections::{BTreeMap, HashMap};
use std::error::Error as _;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::Path;

use futures::StreamExt;
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, Swarm};

use super::transport::{Behaviour, TransportError};
use crate::disk;
use crate::limits::{LISTEN_FILE_BYTES, LISTEN_TIME};

const SCHEMA: u64 = 1;

/// Listens everywhere, and waits until the machine has said where that really is. In `folder` is remembered which ports
/// the machine chose.
///
/// # Errors
/// [`TransportError::Listen`]
pub(crate) async fn listen(
    swarm: &mut Swarm<Behaviour>,
    wanted: &[String],
    folder: &Path,
) -> Result<Vec<Multiaddr>, TransportError> {
    let file = folder.join("ports");
    let before: BTreeMap<String, u16> = disk::load(&file, SCHEMA, LISTEN_FILE_BYTES)
        .inspect_err(|error| tracing::warn!(%error, "the ports that were listened at before are not known"))
        .ok()
        .flatten()
        .unwrap_or_default();
    let mut pending: HashMap<ListenerId, &String> = HashMap::new();
    for address in wanted {
        let failed = |reason: String| TransportError::Listen {
            address: address.clone(),
            reason,
        };
        let parsed: Multiaddr = address.parse().map_err(|error| failed(format!("{error}")))?;
        let again = before.get(address).and_then(|port| with_port(&parsed, *port));
        let again = again.filter(|again| is_free(again).is_ok());
        let listener = match again.and_then(|again| swarm.listen_on(again).ok()) {
            Some(listener) => listener,
            None => {
                is_free(&parsed).map_err(|error| failed(error.to_string()))?;
                swarm
                    .listen_on(parsed)
                    // The library's own words leave the cause to whoever asks for it.
                    .map_err(|error| {
                        failed(
                            error
                                .source()
                                .map_or_else(|| error.to_string(), ToString::to_string),
                        )
                    })?
            }
        };
        pending.insert(listener, address);
    }
    let (mut addresses, mut chosen) = (vec![], BTreeMap::new());
    let waiting = async {
        while !pending.is_empty() {
            if let SwarmEvent::NewListenAddr { listener_id, address } = swarm.select_next_some().await {
                if let Some(wanted) = pending.remove(&listener_id)
                    && is_left_open(wanted)
                    && let Some(port) = port_of(&address)
                {
                    chosen.insert(wanted.clone(), port);
                }
                addresses.push(address);
            }
        }
    };
    let in_time = tokio::time::timeout(LISTEN_TIME, waiting).await.is_ok();
    if let Some(address) = pending.into_values().next().filter(|_| !in_time) {
        return Err(TransportError::Listen {
            address: address.clone(),
            reason: "the machine has no such address".to_owned(),
        });
    }
    if chosen != before
        && let Err(error) = disk::save(&file, SCHEMA, &chosen)
    {
        tracing::warn!(%error, "other ports will be listened at next time");
    }
    Ok(addresses)
}

fn port_of(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| match part {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    })
}

/// Whether the port is left to the machine.
fn is_left_open(address: &str) -> bool {
    let parsed: Option<Multiaddr> = address.parse().ok();
    parsed.as_ref().and_then(port_of) == Some(0)
}

/// The address with this port, where it is left open.
fn with_port(address: &Multiaddr, port: u16) -> Option<Multiaddr> {
    let is_open = port_of(address) == Some(0);
    let with = address.iter().map(|part| match part {
        Protocol::Tcp(_) => Protocol::Tcp(port),
        Protocol::Udp(_) => Protocol::Udp(port),
        other => other,
    });
    is_open.then(|| with.collect())
}

/// Whether nobody listens at a port of one's choice. The transport lets several programs share one, and
/// each would get some of the connections that are meant for the other.
fn is_free(address: &Multiaddr) -> io::Result<()> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => TcpListener::bind((ip, port)).map(drop),
        Some(Protocol::Udp(port)) if port != 0 => UdpSocket::bind((ip, port)).map(drop),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> Multiaddr {
        address.parse().unwrap()
    }

    #[test]
    fn only_a_port_that_is_left_open_is_chosen_again() {
        let again = |address: &str| with_port(&at(address), 4001);
        assert_eq!(again("/ip4/0.0.0.0/tcp/0"), Some(at("/ip4/0.0.0.0/tcp/4001")));
        assert_eq!(
            again("/ip6/::/udp/0/quic-v1"),
            Some(at("/ip6/::/udp/4001/quic-v1"))
        );
        assert_eq!(again("/ip4/0.0.0.0/tcp/7"), None);
        assert!(is_left_open("/ip4/127.0.0.1/udp/0/quic-v1") && !is_left_open("/ip4/127.0.0.1/tcp/7"));
    }

    #[test]
    fn a_port_at_which_somebody_listens_is_not_free() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(is_free(&at(&format!("/ip4/127.0.0.1/tcp/{port}"))).is_err());
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(is_free(&at(&format!("/ip4/127.0.0.1/udp/{port}/quic-v1"))).is_err());
    }
}
