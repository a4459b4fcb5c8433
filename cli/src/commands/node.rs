//! `up`, `down` and `status`.

use std::time::Duration;

use tvix_node::daemon::{UpOptions, up as run_node};
use tvix_node::gateway::control::{ClientError, ControlClient};
use tvix_node::home::Home;
use tvix_node_protocol::control::{SessionMode, Status};

use super::{Failure, print, print_json};
use crate::arguments::UpArguments;
use crate::progress::{called, count, running};

/// How long a node that was told to end may take. It kills its builds, removes their folders, which
/// may be large, and closes the store.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the node of this home until it is told to end.
pub async fn up(home: &Home, arguments: &UpArguments) -> Result<u8, Failure> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .init();
    let options = UpOptions {
        slots: arguments.slots,
        listen: None,
        idle_exit: arguments.idle_exit,
        background: arguments.background,
    };
    run_node(home, options).await?;
    Ok(0)
}

/// Stops the node and waits until it has ended. That none is up is what is wanted.
pub async fn down(home: &Home) -> Result<u8, Failure> {
    let place = home.root().display();
    let ending = match ControlClient::down(home.root()).await {
        Ok(ending) => ending,
        Err(ClientError::NoNode { .. }) => {
            print(format!("no node is up in '{place}'\n").as_bytes())?;
            return Ok(0);
        }
        Err(error) => return Err(error.into()),
    };
    match ending.ended(PATIENCE).await {
        Ok(true) => print(format!("the node of '{place}' is down\n").as_bytes())?,
        Ok(false) => {
            return Err(Failure::StillUp {
                seconds: PATIENCE.as_secs(),
            });
        }
        Err(error) => print(
            format!("the node of '{place}' is going down; whether it has ended cannot be told: {error}\n")
                .as_bytes(),
        )?,
    }
    Ok(0)
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
