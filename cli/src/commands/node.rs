//! `up`, `down` and `status`.

use std::time::Duration;

use tvix_node::daemon::{UpOptions, up as run_node};
use tvix_node::gateway::control::{ClientError, ControlClient};
use tvix_node::home::Home;
use tvix_node_protocol::control::{ReachedBy, SessionMode, Status};

use super::table::{short, size};
use super::team::peer_name;
use super::{Failure, print, print_json};
use crate::arguments::{UpArguments, words};
use crate::progress::{called, clean, count, running};

/// How long a node that was told to end may take. It kills its builds, removes their folders, which
/// may be large, and closes the store.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the node of this home until it is told to end.
pub async fn up(home: &Home, arguments: &UpArguments) -> Result<u8, Failure> {
    let listen = arguments.listening()?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .init();
    let options = UpOptions {
        slots: arguments.slots,
        substituters: arguments.substituters.as_deref().map(words),
        trusted_public_keys: arguments.trusted_public_keys.as_deref().map(words),
        allowed_addresses: (!arguments.allow_address.is_empty()).then(|| arguments.allow_address.clone()),
        allowed_addresses_for_others: arguments.allow_address_for_others,
        network_of_fixed_outputs: arguments.network_way(),
        listen,
        relay: !arguments.no_relay,
        build_memory: arguments.max_build_memory,
        build_processes: arguments.max_build_processes,
        control_groups: !arguments.no_control_groups,
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
    let status = connect(home).await?.status().await?;
    if as_json {
        print_json(&status)?;
    } else {
        print(status_text(&status).as_bytes())?;
    }
    Ok(0)
}

/// Talks to the node of the home, and does not start one.
pub async fn connect(home: &Home) -> Result<ControlClient, Failure> {
    match ControlClient::connect(home.root()).await {
        Err(ClientError::NoNode { .. }) => Err(Failure::Absent(format!(
            "no node is up in '{}': commands that need one start it, and so does 'tvix-node up'",
            home.root().display()
        ))),
        connected => Ok(connected?),
    }
}

fn status_text(status: &Status) -> String {
    let seconds = |age: u64| running(age.saturating_mul(1000));
    let idle = if status.idle_exit { ", ends when idle" } else { "" };
    let used = status.builds.iter().filter(|build| build.slot.is_some()).count();
    let beside = match used.saturating_sub(status.slots as usize) {
        0 => String::new(),
        1 => ", and 1 build beside them gives way".to_owned(),
        more => format!(", and {more} builds beside them give way"),
    };
    let used = used.min(status.slots as usize);
    let mut text = format!(
        "node     {}\nhome     {}\nprogram  tvix-node {}, process {}, up for {}{idle}\nslots    {used} of {} in use{beside}\nstore    {}\n",
        status.node,
        status.home,
        status.program,
        status.pid,
        seconds(status.uptime),
        status.slots,
        count(status.paths, "path"),
    );
    for team in &status.teams {
        text += &format!(
            "team     {} as {}: {}, {} connected\n",
            short(team.swarm),
            clean(&team.name),
            count(team.members, "member"),
            team.connected,
        );
        for address in &team.listening {
            text += &format!("         reached at {address}\n");
        }
        text += match team.reached {
            ReachedBy::Some => "         some members cannot dial it: see 'tvix-node doctor'\n",
            ReachedBy::None => "         no member can dial it: see 'tvix-node doctor'\n",
            ReachedBy::All | ReachedBy::Unknown => "",
        };
    }
    for team in &status.resting {
        text += &format!(
            "team     {} is not running: {}\n",
            short(team.swarm),
            clean(&team.reason)
        );
    }
    for peer in &status.peers {
        text += &format!(
            "peer     {}: {} of {} slots free, sent {}, received {}\n",
            clean(&peer_name(peer, &status.peers)),
            peer.free,
            peer.slots,
            size(peer.traffic.sent),
            size(peer.traffic.received),
        );
    }
    for cache in &status.caches {
        let state = match (cache.skipped, &cache.reason) {
            (Some(seconds), reason) => {
                let reason = reason.as_deref().unwrap_or("it failed");
                format!("skipped for {}: {reason}", running(seconds * 1000))
            }
            (None, _) => format!("{}, {}", count(cache.paths, "path"), size(cache.bytes)),
        };
        text += &format!("cache    {}: {}\n", clean(&cache.url), clean(&state));
    }
    for session in &status.sessions {
        let mode = match session.mode {
            SessionMode::Instantiate => "instantiates",
            SessionMode::Build => "builds",
            SessionMode::DryRun => "plans",
            SessionMode::Check => "checks",
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
        let whom = match &build.requester {
            Some(member) => clean(member),
            None => format!("session {}", sessions.join(" and ")),
        };
        text += &format!(
            "build    {} on {}, for {}, for {whom}\n",
            called(&build.derivation),
            clean(&build.node),
            seconds(build.age),
        );
        if !build.last_line.is_empty() {
            text += &format!("         > {}\n", clean(&build.last_line));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::build::SwarmId;
    use tvix_node_protocol::control::{CONTROL_VERSION, CacheStatus, TeamStatus};
    use tvix_node_protocol::envelope::NodeKey;

    use tvix_node_protocol::StorePath;
    use tvix_node_protocol::control::BuildStatus;

    use super::super::table::testing::peer;
    use super::*;

    fn alone() -> Status {
        Status {
            version: CONTROL_VERSION,
            program: "0.1.0".to_owned(),
            node: NodeKey([1; 32]),
            pid: 7,
            home: "/home".to_owned(),
            uptime: 67,
            slots: 0,
            idle_exit: false,
            sessions: Vec::new(),
            builds: Vec::new(),
            paths: 3,
            teams: Vec::new(),
            resting: Vec::new(),
            peers: Vec::new(),
            caches: Vec::new(),
        }
    }

    #[test]
    fn the_team_has_its_lines_in_the_status() {
        let mut status = alone();
        let alone = status_text(&status);
        assert!(!alone.contains("team") && !alone.contains("peer"), "{alone}");
        status.teams.push(TeamStatus {
            swarm: SwarmId([0xab; 32]),
            team: "ann's team".to_owned(),
            me: NodeKey([1; 32]),
            name: "ann\u{7}".to_owned(),
            members: 2,
            connected: 1,
            listening: vec!["/ip4/192.0.2.1/tcp/4001".to_owned()],
            reached: ReachedBy::Some,
        });
        status.peers = vec![peer("bob")];
        let expected = "\
team     abababababab as ann: 2 members, 1 connected
         reached at /ip4/192.0.2.1/tcp/4001
         some members cannot dial it: see 'tvix-node doctor'
peer     bob: 3 of 4 slots free, sent 1.5 MiB, received 12 B
";
        assert_eq!(status_text(&status).strip_prefix(alone.as_str()), Some(expected));
    }

    #[test]
    fn caches_have_their_lines_in_the_status() {
        let cache = |url: &str, skipped| CacheStatus {
            url: url.to_owned(),
            paths: 2,
            bytes: 2048,
            skipped,
            reason: skipped.map(|_| "it did not answer".to_owned()),
        };
        let status = Status {
            caches: vec![cache("https://a", None), cache("file:///b", Some(31))],
            ..alone()
        };
        let expected = "\
cache    https://a: 2 paths, 2.0 KiB
cache    file:///b: skipped for 31s: it did not answer
";
        assert!(
            status_text(&status).ends_with(expected),
            "{}",
            status_text(&status)
        );
    }

    #[test]
    fn builds_here_and_elsewhere_are_told_apart() {
        let build = |name: &str, node: &str, slot, requester: Option<&str>| BuildStatus {
            derivation: StorePath::from_parts([0; 20], name).unwrap(),
            node: node.to_owned(),
            age: 5,
            last_line: String::new(),
            sessions: if requester.is_some() {
                Vec::new()
            } else {
                vec![1, 2]
            },
            slot,
            requester: requester.map(str::to_owned),
        };
        let text = status_text(&Status {
            slots: 2,
            builds: vec![
                build("own.drv", "this node", Some(0), None),
                build("far.drv", "tower", None, None),
                build("lent.drv", "this node", Some(1), Some("ann")),
            ],
            ..alone()
        });
        let expected = "\
build    own on this node, for 5s, for session 1 and 2
build    far on tower, for 5s, for session 1 and 2
build    lent on this node, for 5s, for ann
";
        assert!(text.contains("slots    2 of 2 in use\n"), "{text}");
        assert!(text.ends_with(expected), "{text}");
        let beside = status_text(&Status {
            slots: 1,
            builds: vec![
                build("own.drv", "this node", Some(0), None),
                build("lent.drv", "this node", Some(1), Some("ann")),
            ],
            ..alone()
        });
        assert!(
            beside.contains("slots    1 of 1 in use, and 1 build beside them gives way\n"),
            "{beside}"
        );
    }
}
