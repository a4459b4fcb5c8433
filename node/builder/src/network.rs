//! A build's way to the network: a proxy for all, an interface where the machine offers one.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::build_spec::BuildEvent;
use crate::config::Config;
use crate::diagnosis::SandboxError;
use crate::error::Cause;
use crate::log::Log;
use crate::nat;
use crate::proxy::{self, address::AddressRange};
use crate::watch::{say, tell};

/// The way out for what neither the proxy nor the interface can serve.
const WAY_OUT: &str = "Let this user open it for what needs more";

/// The build's way to the network. Dropping it cuts it off.
pub(crate) struct Proxy {
    allowed: Arc<[AddressRange]>,
    serving: JoinSet<()>,
}

impl Proxy {
    pub(crate) fn new(allowed: Arc<[AddressRange]>) -> Self {
        Self {
            allowed,
            serving: JoinSet::new(),
        }
    }

    pub(crate) fn start(
        &mut self,
        listener: Option<OwnedFd>,
        events: &mpsc::Sender<BuildEvent>,
    ) -> Result<(), Cause> {
        let failed = |source| SandboxError::new("taking over the proxy's listener", source);
        let listener = listener.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        let listener = std::net::TcpListener::from(listener);
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        let serving = proxy::serve(listener, self.allowed.clone(), denied_to(events));
        self.serving.spawn(serving);
        Ok(())
    }

    pub(crate) fn start_tunnel(
        &mut self,
        tun: Option<OwnedFd>,
        ipv6: bool,
        events: &mpsc::Sender<BuildEvent>,
    ) -> Result<(), Cause> {
        let failed = |source| SandboxError::new("taking over the network interface", source);
        let tun = tun.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        let serving = nat::serve(
            tun,
            ipv6 && nat::has_ipv6(&self.allowed),
            self.allowed.clone(),
            denied_to(events),
        );
        self.serving.spawn(async move {
            if let Err(error) = serving.await {
                tracing::warn!(%error, "a build has no network but the proxy");
            }
        });
        Ok(())
    }
}

/// Whether fixed-output builds get an interface of the user-mode network; none where they are not to.
pub(crate) fn tunnel_available(config: &Config) -> Option<std::io::Result<()>> {
    config
        .network
        .as_ref()
        .filter(|network| network.tunnel)
        .map(|_| nat::available())
}

/// Says what a build that has failed could not reach, and why.
pub(crate) async fn explain_network(
    config: &Config,
    no_tunnel: Option<String>,
    log: &mut Log,
    events: &mpsc::Sender<BuildEvent>,
) {
    let unavailable = match tunnel_available(config) {
        Some(Err(error)) => Some(error.to_string()),
        _ => None,
    };
    let Some(reason) = no_tunnel.or(unavailable) else {
        return;
    };
    let text = format!(
        "this build could use HTTP and HTTPS through a proxy alone: {} cannot be used: {reason}. {WAY_OUT}",
        nat::DEVICE
    );
    say(&text, log, events).await;
}

/// Writes what is denied to a build into its log.
fn denied_to(
    events: &mpsc::Sender<BuildEvent>,
) -> impl Fn(String) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Clone + Send + Sync + 'static {
    let events = events.clone();
    move |denied| {
        let events = events.clone();
        Box::pin(async move {
            let line = format!("tvix-node: {denied}").into_bytes();
            tell(&events, BuildEvent::Log(line)).await;
        })
    }
}
