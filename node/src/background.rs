//! The node of a home, for commands: connect to it, or start it in the background first.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tvix_node_gateway::control::{ClientError, ControlClient};

use crate::home::{Home, HomeError};

/// What a node prints on its standard output, alone on a line, when commands can connect.
pub const READY: &str = "ready";

/// Longest time a node may take to be ready. It opens an index and makes a socket; minutes would
/// mean a disk that no longer answers.
const START_TIME: Duration = Duration::from_secs(60);

/// Bytes of a log to which nothing is added any more: some ten thousand builds.
const LOG_BYTES: u64 = 4 << 20;

/// How often a node that goes down at this very moment is followed by another attempt.
const TRIES: usize = 5;

/// Why there is no node to talk to.
#[derive(Debug, thiserror::Error)]
pub enum BackgroundError {
    /// The home cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// A node is up, but it cannot be talked to.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The program could not be started again as a node.
    #[error("a node could not be started in the background: {0}")]
    Spawn(io::Error),
    /// The node ended before it was ready.
    #[error("the node started in the background ended at once. It said:\n{said}")]
    Ended {
        /// The last lines of its log.
        said: String,
    },
    /// The node said nothing for too long.
    #[error("the node started in the background was not ready after {} seconds; its log is '{log}'", START_TIME.as_secs())]
    Slow {
        /// Where its log is.
        log: String,
    },
}

/// Connects to the node of a home; where none is up, starts one that ends by itself when nobody
/// uses it any more. Must be called within a tokio runtime.
///
/// # Errors
/// See [`BackgroundError`].
pub async fn connect_or_start(home: &Home) -> Result<ControlClient, BackgroundError> {
    let mut tries = 0;
    loop {
        match ControlClient::connect(home.root()).await {
            Ok(client) => return Ok(client),
            Err(ClientError::NoNode { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        tries += 1;
        match start(home).await {
            // Another command may have started one at the same time, and this one found the home taken.
            Err(BackgroundError::Ended { .. }) if tries < TRIES => {
                if let Ok(client) = ControlClient::connect(home.root()).await {
                    return Ok(client);
                }
                tokio::time::sleep(Duration::from_millis(20 << tries)).await;
            }
            Err(error) => return Err(error),
            Ok(()) if tries < TRIES => {}
            Ok(()) => return Ok(ControlClient::connect(home.root()).await?),
        }
    }
}

/// Starts `up --idle-exit` in a session of its own and waits until it is ready.
async fn start(home: &Home) -> Result<(), BackgroundError> {
    let home = home.prepare()?;
    let log = home.background_log();
    keep_short(&log).map_err(BackgroundError::Spawn)?;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log)
        .map_err(BackgroundError::Spawn)?;
    let begin = file.metadata().map_err(BackgroundError::Spawn)?.len();
    let program = std::env::current_exe().map_err(BackgroundError::Spawn)?;
    crate::descriptors::keep_to_oneself().map_err(BackgroundError::Spawn)?;
    // `setsid` is what a daemon needs; the node makes its session itself (`--background`), because
    // nothing may run between fork and exec here.
    let mut child = tokio::process::Command::new(program)
        .args(["up", "--idle-exit", "--background"])
        .env(crate::home::HOME_VARIABLE, home.root())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(file)
        .spawn()
        .map_err(BackgroundError::Spawn)?;
    let Some(stdout) = child.stdout.take() else {
        return Err(BackgroundError::Spawn(io::Error::other("no standard output")));
    };
    let ready = async {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line == READY {
                return true;
            }
        }
        false
    };
    match tokio::time::timeout(START_TIME, ready).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(BackgroundError::Ended {
            said: last_words(&log, begin),
        }),
        Err(_) => Err(BackgroundError::Slow {
            log: log.display().to_string(),
        }),
    }
}

/// Puts a log that has become long aside, in the place of the one before.
fn keep_short(log: &std::path::Path) -> io::Result<()> {
    match std::fs::metadata(log) {
        Ok(metadata) if metadata.len() > LOG_BYTES => std::fs::rename(log, log.with_extension("log.before")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// What the node wrote to its log since `begin`, at most the last ten lines.
fn last_words(log: &std::path::Path, begin: u64) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let from = usize::try_from(begin).unwrap_or(usize::MAX).min(text.len());
    let text = String::from_utf8_lossy(&text[from..]);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_put_aside_and_a_short_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("up.log");
        keep_short(&log).unwrap();
        std::fs::write(&log, "short").unwrap();
        keep_short(&log).unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), b"short");
        for _ in 0..2 {
            std::fs::File::create(&log)
                .unwrap()
                .set_len(LOG_BYTES + 1)
                .unwrap();
            keep_short(&log).unwrap();
            assert!(!log.exists() && folder.path().join("up.log.before").exists());
        }
    }
}
