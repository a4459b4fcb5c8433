//! Connecting to a host by name, where that is allowed.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::address::{AddressRange, denied};
use crate::limits::{CONNECT_TIME, CONNECT_TRIES};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Its addresses are not for builds.
    #[error("{host} ({address}) is denied to builds: the address is {class}")]
    Denied {
        host: String,
        address: std::net::IpAddr,
        class: &'static str,
    },
    /// It has no address.
    #[error("the name {host} cannot be resolved: {source}")]
    Resolve { host: String, source: io::Error },
    /// It does not answer.
    #[error("{host} (port {port}) cannot be reached: {source}")]
    Connect {
        host: String,
        port: u16,
        source: io::Error,
    },
}

/// Resolves a name once, and connects to the first of its allowed addresses that answers.
pub(crate) async fn dial(host: &str, port: u16, allowed: &[AddressRange]) -> Result<TcpStream, DialError> {
    connect(host, port, resolve(host, port).await?, allowed).await
}

async fn connect(
    host: &str,
    port: u16,
    addresses: Vec<SocketAddr>,
    allowed: &[AddressRange],
) -> Result<TcpStream, DialError> {
    let host_name = || host.to_owned();
    let mut last = None;
    let mut refusal = None;
    for address in addresses.into_iter().take(CONNECT_TRIES) {
        if let Some(class) = denied(address, allowed) {
            refusal = Some(DialError::Denied {
                host: host_name(),
                address: address.ip(),
                class,
            });
            continue;
        }
        match timeout(CONNECT_TIME, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(io::ErrorKind::TimedOut.into()),
        }
    }
    match (last, refusal) {
        (None, Some(refusal)) => Err(refusal),
        (last, _) => Err(DialError::Connect {
            host: host_name(),
            port,
            source: last.unwrap_or_else(|| io::Error::other("it has no address")),
        }),
    }
}

/// Whether somebody else may be asked to connect to a host.
///
/// # Errors
/// [`DialError::Denied`]: one of its addresses is. [`DialError::Resolve`]: it is theirs to judge, if anybody's.
pub(crate) async fn judge(host: &str, port: u16, allowed: &[AddressRange]) -> Result<(), DialError> {
    let addresses = resolve(host, port).await?;
    let refusal = addresses.into_iter().find_map(|address| {
        let class = denied(address, allowed)?;
        let (host, address) = (host.to_owned(), address.ip());
        Some(DialError::Denied { host, address, class })
    });
    refusal.map_or(Ok(()), Err)
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
    let failed = |source| DialError::Resolve {
        host: host.to_owned(),
        source,
    };
    match timeout(CONNECT_TIME, lookup_host((host, port))).await {
        Ok(addresses) => Ok(addresses.map_err(failed)?.collect()),
        Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn so_many_addresses_of_a_name_are_tried() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        // Nobody listens at port 0, and the other addresses are denied.
        for nobody in ["127.0.0.2:0", "10.0.0.1:1"] {
            let nobody: SocketAddr = nobody.parse().unwrap();
            let after = |count| [vec![nobody; count], vec![there]].concat();
            let allowed = ["127.0.0.0/8".parse().unwrap()];
            let connected = connect("host", 1, after(CONNECT_TRIES - 1), &allowed).await;
            assert_eq!(connected.unwrap().peer_addr().unwrap(), there);
            assert!(connect("host", 1, after(CONNECT_TRIES), &allowed).await.is_err());
        }
    }
}
