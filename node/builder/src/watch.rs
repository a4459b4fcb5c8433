//! What a build says and does while it runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tvix_node_protocol::build::BuildLimits;

use crate::build_spec::BuildEvent;
use crate::diagnosis::SandboxError;
use crate::error::Cause;
use crate::helper_process::Control;
use crate::limits::LOG_READ_BYTES;
use crate::log::Log;
use crate::network::Proxy;
use crate::terminal::LogReader;
use crate::wire::{Exit, Report, Usage};

/// What the helper reported, all in all.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) started: Option<Instant>,
    pub(crate) failure: Option<Report>,
    pub(crate) ended: Option<(Exit, Usage)>,
    /// Why there is no way to the network but the proxy.
    pub(crate) no_tunnel: Option<String>,
}

/// Watches a build that runs.
pub(crate) struct Watch {
    began: Instant,
    /// Milliseconds after `began`.
    last_output: AtomicU64,
    limits: BuildLimits,
}

impl Watch {
    pub(crate) fn new(began: Instant, limits: BuildLimits) -> Self {
        Self {
            began,
            last_output: AtomicU64::new(0),
            limits,
        }
    }

    /// Takes the helper's reports to their end.
    pub(crate) async fn reports(
        &self,
        control: &mut Control,
        events: &mpsc::Sender<BuildEvent>,
        proxy: &mut Proxy,
    ) -> Result<Outcome, Cause> {
        let mut outcome = Outcome::default();
        loop {
            match control.report().await {
                Ok(Some((Report::Started, _))) => {
                    outcome.started = Some(Instant::now());
                    tell(events, BuildEvent::Started).await;
                }
                Ok(Some((Report::Listening, listener))) => proxy.start(listener, events)?,
                Ok(Some((Report::Tunnel { no_ipv6 }, tun))) => {
                    if let Some(reason) = &no_ipv6 {
                        tracing::debug!(reason, "a build has IPv4 alone");
                    }
                    proxy.start_tunnel(tun, no_ipv6.is_none(), events)?;
                }
                Ok(Some((Report::NoTunnel { reason }, _))) => outcome.no_tunnel = Some(reason),
                Ok(Some((Report::Ended { exit, usage }, _))) => outcome.ended = Some((exit, usage)),
                Ok(Some((failure, _))) => {
                    outcome.failure.get_or_insert(failure);
                }
                Ok(None) => return Ok(outcome),
                Err(error) => return Err(Cause::HelperDied(error.to_string())),
            }
        }
    }

    /// Takes the log to its end.
    pub(crate) async fn log(
        &self,
        reader: &mut LogReader,
        log: &mut Log,
        events: &mpsc::Sender<BuildEvent>,
    ) -> Result<(), Cause> {
        let mut buffer = vec![0; LOG_READ_BYTES];
        loop {
            let read = reader
                .read(&mut buffer)
                .await
                .map_err(|source| SandboxError::new("reading the log", source))?;
            if read == 0 {
                break;
            }
            let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.last_output.store(now, Ordering::Relaxed);
            for line in log.push(&buffer[..read]) {
                tell(events, BuildEvent::Log(line)).await;
            }
            if let Some(limit) = self.limits.log
                && log.bytes() > limit
            {
                return Err(Cause::LogTooLarge(limit));
            }
        }
        if let Some(line) = log.finish() {
            tell(events, BuildEvent::Log(line)).await;
        }
        Ok(())
    }

    /// Ends when a limit on time or silence is passed.
    pub(crate) async fn limits(&self) -> Cause {
        loop {
            let last_output = Duration::from_millis(self.last_output.load(Ordering::Relaxed));
            let end = self.limits.time.map(Duration::from_secs);
            let silence = self
                .limits
                .silence
                .map(|limit| last_output.saturating_add(Duration::from_secs(limit)));
            let Some(next) = end.into_iter().chain(silence).min() else {
                return std::future::pending().await;
            };
            let passed = self.began.elapsed();
            if let (Some(limit), Some(end)) = (self.limits.time, end)
                && passed >= end
            {
                return Cause::TimedOut(limit);
            }
            if let (Some(limit), Some(silence)) = (self.limits.silence, silence)
                && passed >= silence
            {
                return Cause::Silent(limit);
            }
            tokio::time::sleep(next - passed.min(next)).await;
        }
    }
}

/// Writes a line of the node's own into the log of a build.
pub(crate) async fn say(text: &str, log: &mut Log, events: &mpsc::Sender<BuildEvent>) {
    for line in log.push(format!("tvix-node: {text}\n").as_bytes()) {
        tell(events, BuildEvent::Log(line)).await;
    }
}

/// A build goes on where nobody listens any more.
pub(crate) async fn tell(events: &mpsc::Sender<BuildEvent>, event: BuildEvent) {
    let _nobody_listens = events.send(event).await;
}
