//! `up`, `down` and `status`.

use std::time::Duration;

use tvix_node::daemon::{UpOptions, up as run_node};
use tvix_node::gateway::control::{ClientError, ControlClient};
use tvix_node::home::Home;
use tvix_node_protocol::control::{SessionMode, Status};

use super::{Failure, print, print_json};
use crate::arguments::UpArguments;
use crate::progress::{called, count, running};

/// How often it is looked whether a node that was told to end has ended, and how long.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 1500;

/// Runs the node of this home until it is told to end.
pub async fn up(home: &Home, arguments: &UpArguments) -> Result<u8, Failure> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .init();
    let options = UpOptions {
        slots: arguments.slots,
        idle_exit: arguments.idle_exit,
        background: arguments.background,
    };
    run_node(home, options).await?;
    Ok(0)
}

/// Stops the node and waits until it has ended. That none is up is what is wanted.
pub async fn down(home: &Home) -> Result<u8, Failure> {
    match ControlClient::down(home.root()).await {
        Ok(()) => {}
        Err(ClientError::NoNode { .. }) => {
            print(format!("no node is up in '{}'\n", home.root().display()).as_bytes())?;
            return Ok(0);
        }
        Err(error) => return Err(error.into()),
    }
    for _ in 0..LOOKS {
        if let Err(ClientError::NoNode { .. }) = ControlClient::connect(home.root()).await {
            print(format!("the node of '{}' is down\n", home.root().display()).as_bytes())?;
            return Ok(0);
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(Failure::StillUp {
        seconds: (LOOK * LOOKS).as_secs(),
    })
}

/// Prints what the node is doing. Does not start one.
pub async fn status(home: &Home, as_json: bool) -> Result<u8, Failure> {
    let status = match ControlClient::connect(home.root()).await {
        Ok(client) => client.status().await?,
        Err(ClientError::NoNode { .. }) => {
            return Err(Failure::Absent(format!(
                "no node is up in '{}': commands that need one start it, and so does 'tvix-node up'",
                home.root().display()
            )));
        }
        Err(error) => return Err(error.into()),
    };
    if as_json {
        print_json(&status)?;
    } else {
        print(status_text(&status).as_bytes())?;
    }
    Ok(0)
}

fn status_text(status: &Status) -> String {
    let seconds = |age: u64| running(age.saturating_mul(1000));
    let idle = if status.idle_exit { ", ends when idle" } else { "" };
    let mut text = format!(
        "node     {}\nhome     {}\nprogram  tvix-node {}, process {}, up for {}{idle}\nslots    {} of {} in use\nstore    {}\n",
        status.node,
        status.home,
        status.program,
        status.pid,
        seconds(status.uptime),
        status.builds.len(),
        status.slots,
        count(status.paths, "path"),
    );
    for session in &status.sessions {
        let mode = match session.mode {
            SessionMode::Instantiate => "instantiates",
            SessionMode::Build => "builds",
            SessionMode::DryRun => "plans",
        };
        text += &format!(
            "session  {} {mode}, for {}: {}, {} waiting\n",
            session.session,
            seconds(session.age),
            count(session.derivations, "derivation"),
            session.waiting,
        );
    }
    for build in &status.builds {
        let sessions: Vec<String> = build.sessions.iter().map(u64::to_string).collect();
        text += &format!(
            "build    {} on {}, for {}, for session {}\n",
            called(&build.derivation),
            build.node,
            seconds(build.age),
            sessions.join(" and "),
        );
        if !build.last_line.is_empty() {
            text += &format!("         > {}\n", crate::progress::clean(&build.last_line));
        }
    }
    text
}
