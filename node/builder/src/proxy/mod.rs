//! The way to the network for fixed-output builds.
//!
//! A build has a network of its own with nothing in it but a listener on its loopback interface, which
//! the sandbox helper opened there and passed out as a descriptor. Behind it is this HTTP proxy: what a
//! build sends there the node connects to, if the address is allowed. So no build ever is in the
//! machine's network, and no privilege is needed.
//!
//! What cannot speak to an HTTP proxy (git over ssh, FTP, rsync, name servers) has the other way, [`nat`](crate::nat),
//! where the machine offers it.

pub(crate) mod address;
pub(crate) mod dial;
mod own;
mod request;

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::limits::PROXY_CONNECTIONS;
use address::AddressRange;
use dial::{DialError, dial};
use request::{Request, Unserved, head_end, parse};

/// Port of the listener inside: always the same, so that the environment of a build is, too.
pub(crate) const PORT: u16 = 3128;

/// The variables that tell programs of the proxy.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    let proxies = ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy"]
        .map(|name| (name, format!("http://127.0.0.1:{PORT}")));
    let direct = ("no_proxy", "localhost,127.0.0.1,::1".to_owned());
    proxies.into_iter().chain([direct]).flat_map(|(name, value)| {
        let lower = (name.to_owned(), value.clone());
        [lower, (name.to_uppercase(), value)]
    })
}

/// Serves a build until dropped; then all of its connections are gone. `tell` hears of what is denied
/// before the build does.
pub(crate) async fn serve<T, F>(listener: TcpListener, allowed: Arc<[AddressRange]>, tell: T)
where
    T: Fn(String) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let slots = Arc::new(Semaphore::new(PROXY_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = async {
                // Further connections wait in the listener's queue. The semaphore is never closed.
                let slot = slots.clone().acquire_owned().await;
                (slot, listener.accept().await)
            } => {
                if let (Ok(slot), Ok((client, _))) = accepted {
                    let (allowed, tell) = (allowed.clone(), tell.clone());
                    connections.spawn(async move {
                        connection(client, &allowed, tell).await;
                        drop(slot);
                    });
                }
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

/// Serves one connection.
async fn connection<F: Future<Output = ()>>(
    mut client: TcpStream,
    allowed: &[AddressRange],
    tell: impl Fn(String) -> F,
) {
    let mut read = Vec::new();
    let asked = loop {
        match head_end(&read) {
            Ok(Some(end)) => {
                let body = read.split_off(end);
                break parse(&read).map(|request| (request, body));
            }
            Ok(None) => {}
            Err(unserved) => break Err(unserved),
        }
        match client.read_buf(&mut read).await {
            // It went away again.
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    };
    let (request, body) = match asked {
        Ok(asked) => asked,
        Err(unserved) => return refuse(client, &unserved).await,
    };
    let (Request::Tunnel { host, port } | Request::Forward { host, port, .. }) = &request;
    let mut server = match dial(host, *port, allowed).await {
        Ok(server) => server,
        Err(error) => {
            let denied = matches!(error, DialError::Denied { .. });
            let status = if denied {
                "403 Forbidden"
            } else {
                "502 Bad Gateway"
            };
            let reason = error.to_string();
            if denied {
                tell(reason.clone()).await;
            }
            return refuse(client, &Unserved { status, reason }).await;
        }
    };
    let relay = async {
        match &request {
            Request::Tunnel { .. } => {
                client
                    .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    .await?
            }
            Request::Forward { head, .. } => server.write_all(head).await?,
        }
        server.write_all(&body).await?;
        copy_bidirectional(&mut client, &mut server).await
    };
    // However it ended: both sides have seen as much of it as there was.
    let _ended = relay.await;
}

async fn refuse(mut client: TcpStream, unserved: &Unserved) {
    let Unserved { status, reason } = unserved;
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{reason}\n",
        reason.len() + 1
    );
    if client.write_all(answer.as_bytes()).await.is_ok() {
        // A close with something unread would take the answer back.
        let _ended = client.shutdown().await;
        let mut rest = [0; 1024];
        while matches!(client.read(&mut rest).await, Ok(1..)) {}
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
