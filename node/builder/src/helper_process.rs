//! The sandbox helper as the node sees it: a child process, its socket, its log.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::time::timeout;

use crate::config::{Config, SANDBOX_ARGUMENT};
use crate::limits::KILL_GRACE;
use crate::terminal::{self, LogReader};
use crate::wire::{self, Order, Report};

/// A running helper. Dropping it kills it, and the kernel then kills the build.
pub(crate) struct HelperProcess {
    child: Child,
    pub(crate) control: Control,
    pub(crate) log: LogReader,
}

/// The node's end of the socket.
pub(crate) struct Control {
    stream: UnixStream,
    /// Received, but not a whole report yet.
    read: Vec<u8>,
    with: Vec<OwnedFd>,
}

/// Bytes received at once: more than most reports have.
const REPORT_BYTES: usize = 4096;

/// A helper that has started and waits for its order.
pub(crate) struct WaitingHelper {
    process: HelperProcess,
    /// The build's end of its log. Whoever has it open keeps the log from ending.
    terminal: OwnedFd,
}

impl WaitingHelper {
    /// Starts one. The error names the step.
    pub(crate) fn start(config: &Config) -> Result<Self, (&'static str, io::Error)> {
        let at = |step| move |error: io::Error| (step, error);
        let (log, terminal) = terminal::open().map_err(at("opening a terminal for the log"))?;
        let copy = || terminal.try_clone().map_err(at("opening a terminal for the log"));
        let (output, error) = (copy()?, copy()?);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(at("making a socket"))?;
        ours.set_nonblocking(true).map_err(at("making a socket"))?;
        let mut command = Command::new(&config.helper.program);
        command
            .arg0("tvix-node-sandbox")
            .args(&config.helper.arguments)
            .arg(SANDBOX_ARGUMENT)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(output))
            .stderr(Stdio::from(error));
        // The command owns the other ends until it is dropped, and the log would not end before that.
        let child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .map_err(at("starting the sandbox helper"))?;
        let control = Control {
            stream: UnixStream::from_std(ours).map_err(at("making a socket"))?,
            read: Vec::new(),
            with: Vec::new(),
        };
        let process = HelperProcess { child, control, log };
        Ok(Self { process, terminal })
    }

    /// Whether it still waits.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.process.child.try_wait(), Ok(None))
    }

    /// Gives it its order. The error names the step.
    pub(crate) async fn begin(self, order: &Order) -> Result<HelperProcess, (&'static str, io::Error)> {
        let at = |step| move |error: io::Error| (step, error);
        let Self {
            mut process,
            terminal,
        } = self;
        terminal::give(&terminal, order.host_id).map_err(at("opening a terminal for the log"))?;
        drop(terminal);
        let order = wire::frame(order).map_err(at("writing the order"))?;
        // Where the helper is gone already, its end of the socket says so better than this error.
        if let Err(error) = process.control.stream.write_all(&order).await
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(("instructing the sandbox helper", error));
        }
        Ok(process)
    }
}

impl HelperProcess {
    /// Its number; none where it has ended.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills the build and the helper, and waits until both are gone.
    pub(crate) async fn kill(mut self) {
        self.control.hang_up(&mut self.child).await;
    }

    /// Waits for the end of a helper that has reported its last. Gives its status in words.
    pub(crate) async fn wait(mut self) -> String {
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }
}

impl Control {
    /// The next report, and the descriptor that came with it; none when the helper has closed its end,
    /// which it does by ending.
    pub(crate) async fn report(&mut self) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
        loop {
            if let Some((header, rest)) = self.read.split_first_chunk()
                && let Some(body) = rest.get(..wire::body_length(*header)?)
            {
                let report: Report = wire::parse(body)?;
                let length = header.len() + body.len();
                self.read.drain(..length);
                // They come in the order of what they come with.
                let with = matches!(report, Report::Listening | Report::Tunnel { .. })
                    .then(|| (!self.with.is_empty()).then(|| self.with.remove(0)))
                    .flatten();
                return Ok(Some((report, with)));
            }
            let (stream, read, with) = (&self.stream, &mut self.read, &mut self.with);
            let received = stream
                .async_io(Interest::READABLE, || {
                    wire::receive(stream, read, REPORT_BYTES, with)
                })
                .await;
            match received {
                Ok(0) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                other => other?,
            };
        }
    }

    /// Tells the helper to kill, and waits until it has.
    async fn hang_up(&mut self, child: &mut Child) {
        // Fails only where the helper is gone already.
        let _gone = self.stream.shutdown().await;
        if timeout(KILL_GRACE, child.wait()).await.is_err() {
            tracing::warn!("a sandbox helper did not end in time and is killed");
            if let Err(error) = child.kill().await {
                tracing::warn!(%error, "a sandbox helper could not be killed");
            }
        }
    }
}
