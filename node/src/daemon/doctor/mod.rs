//! Whether this node and its team are well: what is wrong, and what to do about it.

mod confinement;
mod standing;

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use tvix_node_builder::Network;
use tvix_node_protocol::control::{Finding, Health};
use tvix_node_swarm::PeerOverview;
use tvix_node_swarm::limits::CLOCK_SKEW;

use super::api::Api;
use super::founders::of_founders;
use crate::team::TeamNode;
use crate::team::roll::short;
pub(super) use standing::ends_soon;

/// Bytes on the disk below which builds are likely to fail: a compiler and its sources unpacked.
const DISK_NEEDED: u64 = 2 << 30;

/// Bytes below which somebody should make room soon: a browser is built in some 20 GB.
const DISK_WANTED: u64 = 20 << 30;

/// How long the sandbox may take to be set up. It takes milliseconds.
const PROBE_TIME: Duration = Duration::from_secs(20);

/// Looks at everything.
pub(super) async fn findings(api: &Api) -> Vec<Finding> {
    let mut findings = vec![sandbox(api).await, disk(api)];
    if api.slots > 0 {
        let builder = api.builder().clone();
        let wanted = builder.config().control_groups;
        let look = {
            let builder = builder.clone();
            tokio::task::spawn_blocking(move || builder.control_groups())
        };
        // Only the end of the node keeps it from an answer.
        if let Ok(groups) = look.await {
            findings.push(confinement::control_groups(groups, wanted));
        }
        findings.push(confinement::landlock(builder.landlock()));
        findings.push(network(
            builder.config().network.as_ref(),
            builder.tunnel_missing(),
            has_route(),
        ));
    }
    if api.slots == 0 {
        findings.push(good(
            "slots",
            "this node builds nothing: it was started with '--slots 0'",
        ));
    }
    let teams = api.team.all();
    let resting = api.team.resting();
    findings.extend(resting.iter().map(|team| {
        let id = short(team.swarm);
        let found = format!("this node does not take part in the team {id}: {}", team.reason);
        let advice = format!(
            "mend that and start the node again ('tvix-node down', 'tvix-node up'); 'tvix-node leave --team {id}' gives the team up \
             for good, with this node's key in it"
        );
        finding("team", Health::Bad, found, Some(advice))
    }));
    if teams.is_empty() && resting.is_empty() {
        findings.push(good(
            "team",
            "this node is in no team, and shares with nobody ('tvix-node invite' founds one, 'tvix-node join' enters one)",
        ));
    }
    for team in &teams {
        let mut about = of_team(api, team);
        if teams.len() > 1 {
            for finding in &mut about {
                finding.about = format!("{} ({})", finding.about, short(team.view.team()));
            }
        }
        findings.extend(about);
    }
    findings
}

/// Whether this node is well in one of its teams.
fn of_team(api: &Api, team: &TeamNode) -> Vec<Finding> {
    let mut findings = Vec::new();
    let swarm = &team.swarm;
    // Somebody's time may have ended since it was last looked at.
    swarm.team().refresh();
    let members = swarm.members();
    let overview = swarm.overview();
    let name = |key| team.name_of(key);
    let connected: Vec<(String, &PeerOverview)> = overview
        .iter()
        .filter(|(_, known)| known.status.is_some())
        .map(|(key, known)| (name(*key), known))
        .collect();
    let tried: Vec<(String, bool)> = swarm
        .reached_by()
        .into_iter()
        .map(|(key, reached)| (name(key), reached))
        .collect();
    findings.push(reachability(&swarm.addresses(), &tried, api.idle_exit));
    findings.push(connections(connected.len(), members.len().saturating_sub(1)));
    let clocks = connected.iter().filter_map(|(name, known)| {
        let ahead = known.status.as_ref()?.clock_ahead;
        Some((name.clone(), ahead))
    });
    findings.push(clock(&clocks.collect::<Vec<_>>()));
    findings.push(standing::of_roster(team));
    findings.extend(of_founders(team));
    for (name, known) in &connected {
        findings.push(peer(name, known));
    }
    findings
}

fn finding(about: &str, state: Health, found: impl Into<String>, advice: Option<String>) -> Finding {
    Finding {
        about: about.to_owned(),
        state,
        found: found.into(),
        advice,
    }
}

fn good(about: &str, found: impl Into<String>) -> Finding {
    finding(about, Health::Good, found, None)
}

async fn sandbox(api: &Api) -> Finding {
    match tokio::time::timeout(PROBE_TIME, api.builder().probe()).await {
        Ok(Ok(())) => good("sandbox", "builds can run here"),
        // The error says what forbids it and the way out.
        Ok(Err(error)) => finding(
            "sandbox",
            Health::Bad,
            format!("builds cannot run here: {error}"),
            Some(
                "until then members of the team can build for this node: 'tvix-node up --slots 0'".to_owned(),
            ),
        ),
        Err(_) => finding(
            "sandbox",
            Health::Bad,
            format!("a sandbox could not be set up within {} s", PROBE_TIME.as_secs()),
            Some("look at what keeps the machine busy ('tvix-node status', top), and try again".to_owned()),
        ),
    }
}

/// Whether this machine knows a way to anywhere. Nothing is sent for the question's sake.
fn has_route() -> bool {
    // Addresses of networks that are for documentation: nobody has them, so that only a route to everywhere leads there.
    let ways = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];
    ways.into_iter()
        .any(|(here, there)| UdpSocket::bind(here).is_ok_and(|socket| socket.connect(there).is_ok()))
}

/// What fixed-output builds reach.
fn network(configured: Option<&Network>, missing: Option<std::io::Error>, has_route: bool) -> Finding {
    let Some(network) = configured else {
        return good(
            "network",
            "fixed-output builds reach no network, as is configured",
        );
    };
    if !has_route {
        return finding(
            "network",
            Health::Warning,
            "this machine has no route to public addresses, so fixed-output builds cannot download anything",
            Some("connect it to a network, if builds here are to download what they need".to_owned()),
        );
    }
    let mut allowed = String::new();
    for range in &network.allowed {
        allowed.push_str(&format!(", and {range}"));
    }
    if !network.allowed.is_empty() && network.allowed_for_others {
        allowed.push_str(", those of other members too");
    }
    match missing {
        Some(error) => finding(
            "network",
            Health::Warning,
            format!(
                "fixed-output builds reach public addresses by HTTP and HTTPS alone{allowed}: /dev/net/tun cannot be \
                 opened: {error}"
            ),
            Some("where builds need more (git://, ssh, rsync), let this user open it".to_owned()),
        ),
        None if network.tunnel => good(
            "network",
            format!("fixed-output builds reach public addresses{allowed}"),
        ),
        None => good(
            "network",
            format!(
                "fixed-output builds reach public addresses by HTTP and HTTPS alone{allowed}, as is configured"
            ),
        ),
    }
}

fn disk(api: &Api) -> Finding {
    match rustix::fs::statvfs(&api.home) {
        Ok(disk) => space(
            &api.home,
            disk.f_bavail.saturating_mul(disk.f_frsize),
            // A file system that does not count them says 0 of 0.
            (disk.f_files > 0).then_some(disk.f_favail),
        ),
        Err(error) => finding(
            "disk",
            Health::Bad,
            format!(
                "how full the disk of '{}' is cannot be found out: {error}",
                api.home
            ),
            Some("look at the disk and its mount".to_owned()),
        ),
    }
}

fn space(home: &str, bytes: u64, files: Option<u64>) -> Finding {
    /// Files that one large package unpacks.
    const FILES: u64 = 100_000;
    let gib = |bytes: u64| format!("{}.{} GiB", bytes >> 30, ((bytes % (1 << 30)) * 10) >> 30);
    let found = format!("{} are free on the disk of '{home}'", gib(bytes));
    let advice = || {
        Some(
            "make room ('tvix-node store gc' removes what nothing needs), or set TVIX_NODE_HOME to a folder on another disk"
                .to_owned(),
        )
    };
    if files.is_some_and(|files| files < FILES) {
        let found = format!("{found}, and room for {} more files", files.unwrap_or(0));
        return finding("disk", Health::Bad, found, advice());
    }
    match bytes {
        0..DISK_NEEDED => finding("disk", Health::Bad, found, advice()),
        DISK_NEEDED..DISK_WANTED => finding("disk", Health::Warning, found, advice()),
        _ => good("disk", found),
    }
}

/// `tried`: members that were asked to dial this node, and whether they reached it.
fn reachability(addresses: &[String], tried: &[(String, bool)], idle_exit: bool) -> Finding {
    let listen = "'tvix-node up --listen ADDRESS:PORT' listens where members can reach it, with TCP and UDP let through";
    let (relayed, direct): (Vec<&String>, Vec<&String>) = addresses
        .iter()
        .partition(|address| address.contains("/p2p-circuit"));
    let names = |wanted: bool| -> Vec<&str> {
        let those = tried.iter().filter(|(_, reached)| *reached == wanted);
        those.map(|(name, _)| name.as_str()).collect()
    };
    let (able, unable) = (names(true), names(false));
    if !unable.is_empty() && !direct.is_empty() {
        let others = if able.is_empty() {
            String::new()
        } else {
            format!(", while {} could", able.join(", "))
        };
        let way = if relayed.is_empty() {
            "no member passes connections on to it"
        } else {
            "they reach it through another member, and directly after that where their routers let them"
        };
        return finding(
            "reachability",
            Health::Warning,
            format!(
                "{} tried to dial this node and could not{others}: {way}; nobody there can redeem a ticket of this node",
                unable.join(", ")
            ),
            Some(format!(
                "have the router forward a port, and {listen}; or invite from a node that is reached directly"
            )),
        );
    }
    if !relayed.is_empty() && able.is_empty() {
        return finding(
            "reachability",
            Health::Warning,
            "nobody has reached this node directly yet: members reach it through another one, and directly after that \
             where their routers let them, but nobody can redeem a ticket of this node from outside its network",
            Some(format!(
                "have the router forward a port, and {listen}; or invite from a node that is reached directly"
            )),
        );
    }
    let hosts: Vec<IpAddr> = direct.iter().filter_map(|address| host(address)).collect();
    let mut list = direct
        .iter()
        .map(|address| address.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    if !able.is_empty() {
        list += &format!(" (tried by {})", able.join(", "));
    }
    if hosts.is_empty() {
        return finding(
            "reachability",
            Health::Warning,
            "this node listens nowhere: it connects to others, and nobody connects to it or redeems its tickets",
            Some(listen.to_owned()),
        );
    }
    if hosts.iter().all(IpAddr::is_loopback) {
        return finding(
            "reachability",
            Health::Warning,
            format!("only nodes on this machine reach this one, at {list}"),
            Some(listen.to_owned()),
        );
    }
    if idle_exit {
        return finding(
            "reachability",
            Health::Warning,
            format!("this node is reached at {list}, and ends a little after its last command"),
            Some("run 'tvix-node up' to be there for others".to_owned()),
        );
    }
    if !hosts.iter().any(is_public) && able.is_empty() {
        return finding(
            "reachability",
            Health::Good,
            format!(
                "this node is reached at {list}: addresses of local networks, so members elsewhere reach it only if it \
                 connects to them"
            ),
            None,
        );
    }
    good("reachability", format!("this node is reached at {list}"))
}

/// The machine in a multiaddress.
fn host(address: &str) -> Option<IpAddr> {
    let mut parts = address.split('/');
    parts.find(|part| matches!(*part, "ip4" | "ip6"))?;
    parts.next()?.parse().ok()
}

/// Whether an address means the same everywhere.
fn is_public(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let shared = address.octets()[0] == 100 && address.octets()[1] & 0xc0 == 64;
            !(address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || shared)
        }
        IpAddr::V6(address) => address.segments()[0] & 0xe000 == 0x2000,
    }
}

fn connections(connected: usize, others: usize) -> Finding {
    let found = format!("connected with {connected} of {others} other members");
    if others > 0 && connected == 0 {
        return finding(
            "team",
            Health::Bad,
            format!("{found}: nothing is found in the team or built by it"),
            Some(
                "see whether another member is up and where it listens ('tvix-node members' there), and whether a firewall \
                 or a NAT lies between"
                    .to_owned(),
            ),
        );
    }
    good("team", found)
}

/// `peers`: names, and by how many seconds each clock is ahead of this one.
fn clock(peers: &[(String, i64)]) -> Finding {
    let allowed = i64::try_from(CLOCK_SKEW).unwrap_or(i64::MAX);
    // A clock that is wrong shows long before nothing works any more.
    let is_off = |ahead: i64| ahead.saturating_abs() > allowed / 4;
    if peers.is_empty() {
        return good("clock", "there is no connected member to compare the clock with");
    }
    let off: Vec<&(String, i64)> = peers.iter().filter(|(_, ahead)| is_off(*ahead)).collect();
    let Some((name, ahead)) = off.first().map(|(name, ahead)| (name, *ahead)) else {
        return good("clock", "agrees with those of all connected members");
    };
    let by = |ahead: i64| match ahead {
        0.. => format!("{ahead} s behind"),
        _ => format!("{} s ahead of", ahead.unsigned_abs()),
    };
    let state = match off.iter().any(|(_, ahead)| ahead.saturating_abs() > allowed) {
        true => Health::Bad,
        false => Health::Warning,
    };
    let ours = off.len() > 1 || peers.len() == 1;
    if ours && off.len() == peers.len() {
        let advice = format!(
            "set this machine's clock (a time service such as systemd-timesyncd keeps it right), or that of {name}; beyond \
             {allowed} s requests and memberships are refused"
        );
        return finding(
            "clock",
            state,
            format!("this machine's clock is {} that of {name}", by(ahead)),
            Some(advice),
        );
    }
    let names: Vec<&str> = off.iter().map(|(name, _)| name.as_str()).collect();
    finding(
        "clock",
        state,
        format!(
            "the clock here is {} that of {name}, and agrees with those of others",
            by(ahead)
        ),
        Some(format!("have the clock set at {}", names.join(", "))),
    )
}

fn peer(name: &str, known: &PeerOverview) -> Finding {
    let about = format!("peer {name}");
    let mut facts = Vec::new();
    match known.round_trip {
        Some(time) => facts.push(format!("{:.1} ms away", time.as_secs_f64() * 1000.0)),
        None => facts.push("distance not measured yet".to_owned()),
    }
    // The first connection is the one that is used.
    facts.push(match known.connections.first() {
        Some(address) if address.contains("/p2p-circuit") => "reached through another member".to_owned(),
        _ => "reached directly".to_owned(),
    });
    facts.push(match known.speed {
        Some(speed) => format!(
            "{:.1} MB/s when something large last came from it",
            speed as f64 / 1e6
        ),
        None => "speed not measured yet, for nothing large has come from it".to_owned(),
    });
    if known.lied {
        return finding(
            &about,
            Health::Bad,
            format!(
                "it sent something else than it said within the last day; {}",
                facts.join(", ")
            ),
            Some(format!(
                "ask who runs {name} to run 'tvix-node store verify' there; it is asked last until then"
            )),
        );
    }
    good(&about, facts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[&str]) -> Vec<String> {
        list.iter().map(|address| (*address).to_owned()).collect()
    }

    #[test]
    fn what_fixed_output_builds_reach_is_said() {
        let mut with = Network::default();
        let missing = || Some(std::io::Error::from(std::io::ErrorKind::PermissionDenied));
        let found = network(Some(&with), None, true);
        assert_eq!(found.state, Health::Good);
        let found = network(Some(&with), missing(), true);
        assert_eq!(found.state, Health::Warning);
        assert!(found.found.contains("HTTP and HTTPS alone"), "{found:?}");
        assert!(found.advice.unwrap().contains("let this user open it"));
        with.allowed = vec!["10.1.2.3:80".parse().unwrap()];
        with.allowed_for_others = true;
        let found = network(Some(&with), None, true).found;
        assert!(
            found.contains("10.1.2.3/32:80, those of other members too"),
            "{found}"
        );
        assert!(network(None, None, false).found.contains("no network"));
        let found = network(Some(&with), missing(), false);
        assert_eq!(found.state, Health::Warning);
        assert!(found.found.contains("no route"), "{found:?}");
    }

    #[test]
    fn who_can_be_reached_by_whom_is_said() {
        let cases = [
            (addresses(&[]), false, Health::Warning, "listens nowhere"),
            (
                addresses(&["/ip4/127.0.0.1/tcp/4001"]),
                false,
                Health::Warning,
                "only nodes on this machine",
            ),
            (
                addresses(&["/ip4/192.168.1.2/tcp/4001"]),
                false,
                Health::Good,
                "local networks",
            ),
            (
                addresses(&["/ip4/198.51.100.7/tcp/4001"]),
                false,
                Health::Good,
                "is reached at",
            ),
            (
                addresses(&["/ip6/2001:db8::1/udp/4001/quic-v1"]),
                false,
                Health::Good,
                "is reached at",
            ),
            (
                addresses(&["/ip4/198.51.100.7/tcp/4001"]),
                true,
                Health::Warning,
                "ends a little after",
            ),
            (
                addresses(&[
                    "/ip4/192.168.1.2/tcp/4001",
                    "/ip4/198.51.100.7/tcp/4001/p2p/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5/p2p-circuit",
                ]),
                false,
                Health::Warning,
                "through another one",
            ),
        ];
        for (addresses, idle, state, part) in cases {
            let found = reachability(&addresses, &[], idle);
            assert_eq!(found.state, state, "{found:?}");
            assert!(found.found.contains(part), "{found:?}");
            assert_eq!(found.advice.is_some(), state != Health::Good, "{found:?}");
        }
        let tried = |list: &[(&str, bool)]| -> Vec<(String, bool)> {
            list.iter()
                .map(|(name, reached)| ((*name).to_owned(), *reached))
                .collect()
        };
        let listening = addresses(&["/ip4/192.168.1.2/tcp/4001"]);
        let found = reachability(&listening, &tried(&[("bob", true), ("carol", false)]), false);
        assert_eq!(found.state, Health::Warning);
        let text = "carol tried to dial this node and could not, while bob could: no member passes";
        assert!(found.found.starts_with(text), "{found:?}");
        let found = reachability(&listening, &tried(&[("bob", true)]), false);
        assert_eq!(found.state, Health::Good);
        assert_eq!(
            found.found,
            "this node is reached at /ip4/192.168.1.2/tcp/4001 (tried by bob)"
        );
        assert!(!is_public(&"100.64.0.1".parse().unwrap()) && !is_public(&"fe80::1".parse().unwrap()));
    }

    #[test]
    fn the_clock_that_is_wrong_is_the_one_that_differs_from_the_others() {
        let peers = |list: &[(&str, i64)]| -> Vec<(String, i64)> {
            list.iter()
                .map(|(name, ahead)| ((*name).to_owned(), *ahead))
                .collect()
        };
        assert_eq!(clock(&peers(&[])).state, Health::Good);
        assert_eq!(clock(&peers(&[("bob", 3), ("carol", -2)])).state, Health::Good);
        let ours = clock(&peers(&[("bob", 60), ("carol", 61)]));
        assert_eq!(ours.state, Health::Warning);
        assert!(
            ours.found.contains("this machine's clock is 60 s behind"),
            "{ours:?}"
        );
        let ours = clock(&peers(&[("bob", -3600), ("carol", -3601)]));
        assert_eq!(ours.state, Health::Bad);
        assert!(ours.found.contains("3600 s ahead of"), "{ours:?}");
        let theirs = clock(&peers(&[("bob", 0), ("carol", 500)]));
        assert_eq!(theirs.state, Health::Bad);
        assert!(
            theirs
                .advice
                .as_deref()
                .is_some_and(|advice| advice.contains("carol")),
            "{theirs:?}"
        );
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_named_with_the_way_out() {
        let full = space("/home", 1 << 30, Some(1 << 30));
        assert_eq!(full.state, Health::Bad);
        assert!(
            full.found.contains("1.0 GiB") && full.advice.is_some(),
            "{full:?}"
        );
        assert_eq!(space("/home", 10 << 30, None).state, Health::Warning);
        assert_eq!(space("/home", 100 << 30, Some(1 << 30)).state, Health::Good);
        assert_eq!(space("/home", 100 << 30, Some(5)).state, Health::Bad);
    }

    #[test]
    fn how_far_how_fast_and_on_which_way_each_member_is_is_said() {
        let at = |address: &str, round_trip, speed| PeerOverview {
            connections: addresses(&[address, "/ip4/192.0.2.9/tcp/1"]),
            addresses: Vec::new(),
            round_trip,
            status: None,
            traffic: Default::default(),
            speed,
            lied: false,
        };
        let direct = "/ip4/192.0.2.7/tcp/4001";
        let fast = peer(
            "bob",
            &at(direct, Some(Duration::from_micros(420)), Some(96_240_000)),
        );
        assert_eq!(
            (fast.about.as_str(), fast.found.as_str()),
            (
                "peer bob",
                "0.4 ms away, reached directly, 96.2 MB/s when something large last came from it"
            )
        );
        let relayed =
            "/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5/p2p-circuit";
        let new = peer("bob", &at(relayed, None, None));
        assert_eq!(new.state, Health::Good);
        assert_eq!(
            new.found,
            "distance not measured yet, reached through another member, speed not measured yet, for nothing large has come from it"
        );
        let liar = PeerOverview {
            lied: true,
            ..at(direct, None, None)
        };
        assert_eq!(peer("bob", &liar).state, Health::Bad);
    }

    #[test]
    fn a_team_of_which_nobody_is_there_is_no_good() {
        assert_eq!(connections(0, 0).state, Health::Good);
        assert_eq!(connections(1, 3).state, Health::Good);
        assert_eq!(connections(0, 3).state, Health::Bad);
    }
}
