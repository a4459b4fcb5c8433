//! `invite`, `join`, `teams`, `members`, `peers`, `renew` and `leave`.

use std::collections::BTreeMap;

use tvix_node::background::connect_or_start;
use tvix_node::home::Home;
use tvix_node_protocol::control::{
    InviteRequest, Invited, JoinRequest, Joined, LeaveRequest, MemberView, PeerView, RenewRequest,
    TeamStatus, TeamView, WaitingView,
};
use tvix_node_protocol::envelope::NodeKey;

use super::founders;
use super::node::connect;
use super::table::{about, now, short, size, table};
use super::{Failure, note, print, print_json};
use crate::arguments::{InTeam, InviteArguments, Invitees, JoinArguments, RenewArguments, own_name};
use crate::progress::{clean, count};

/// Prints a ticket, alone on standard output; or one for each founder, a line each.
pub async fn invite(home: &Home, arguments: &InviteArguments) -> Result<u8, Failure> {
    let (founders, threshold, founder) = match arguments.invitees()? {
        Invitees::Anybody => (Vec::new(), None, None),
        Invitees::Founder(name) => (Vec::new(), None, Some(name)),
        Invitees::Founders(founders, threshold) => (founders, Some(threshold), None),
    };
    let client = connect_or_start(home).await?;
    let request = InviteRequest {
        roles: arguments.roles(),
        valid: arguments.expires,
        lasts: arguments.lasts,
        name: Some(arguments.own_name()),
        team: arguments.team.team.clone(),
        new_team: arguments.new_team,
        founders,
        threshold,
        founder,
    };
    let invited = client.invite(&request).await?;
    if arguments.json {
        print_json(&invited)?;
        return Ok(0);
    }
    let of_founders = invited.founders.iter().map(|founder| &founder.ticket);
    let tickets: String = invited
        .ticket
        .iter()
        .chain(of_founders)
        .map(|ticket| format!("{ticket}\n"))
        .collect();
    print(tickets.as_bytes())?;
    let status = client.status().await?;
    for line in about_ticket(&invited, arguments, status.idle_exit) {
        note(&line);
    }
    Ok(0)
}

/// What is worth knowing of a ticket besides itself.
fn about_ticket(invited: &Invited, arguments: &InviteArguments, idle_exit: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if invited.founded && !invited.founders.is_empty() {
        lines.push(founders::about_founding(invited));
    } else if invited.founded {
        lines.push(founders::about_founding_alone(invited));
    } else if arguments.name.is_some() {
        lines.push("--name was not needed: this node has a name in its team already.".to_owned());
    }
    let time = about(arguments.expires);
    lines.push(match invited.founders.as_slice() {
        [] => format!(
            "Whoever has the ticket can join within {time} with 'tvix-node join TICKET', once, and gets the roles: {}.",
            invited.roles,
        ),
        of_founders => founders::about_tickets(of_founders, &time),
    });
    if invited.addresses.is_empty() {
        lines.push(
            "warning: this node listens nowhere, so nobody can redeem the ticket: start it with 'tvix-node up --listen …'"
                .to_owned(),
        );
    } else if idle_exit {
        lines.push(
            "warning: this node ends when nobody uses it; run 'tvix-node up', or the ticket cannot be redeemed"
                .to_owned(),
        );
    }
    lines
}

/// Joins a team.
pub async fn join(home: &Home, arguments: &JoinArguments) -> Result<u8, Failure> {
    let request = JoinRequest {
        ticket: arguments.ticket(std::io::stdin())?,
        name: Some(arguments.name.clone().unwrap_or_else(own_name)),
    };
    let joined = connect_or_start(home).await?.join(&request).await?;
    if arguments.json {
        print_json(&joined)?;
    } else {
        print(joined_text(&joined).as_bytes())?;
    }
    if arguments.name.as_ref().is_some_and(|name| *name != joined.name) {
        note("--name does not count here: the team began with a name for this founder.");
    }
    Ok(0)
}

fn joined_text(joined: &Joined) -> String {
    let founder = founders::as_joined(joined);
    format!(
        "joined the team {} as {}{founder}: {}\n",
        short(joined.swarm),
        clean(&joined.name),
        count(joined.members, "member"),
    )
}

/// Lists the teams of this node.
pub async fn teams(home: &Home, as_json: bool) -> Result<u8, Failure> {
    let status = connect_or_start(home).await?.status().await?;
    let teams = status.teams;
    for resting in &status.resting {
        note(&format!(
            "warning: the team {} is not running: {}",
            short(resting.swarm),
            clean(&resting.reason)
        ));
    }
    if as_json {
        print_json(&teams)?;
    } else if teams.is_empty() && !status.resting.is_empty() {
        return Ok(0);
    } else if teams.is_empty() {
        note(
            "this node is in no team: 'tvix-node join TICKET' makes it a member of one, 'tvix-node invite' founds one",
        );
    } else {
        print(teams_text(&teams).as_bytes())?;
    }
    Ok(0)
}

fn teams_text(teams: &[TeamStatus]) -> String {
    let rows = teams.iter().map(|team| {
        [
            team.team.clone(),
            short(team.swarm),
            team.name.clone(),
            short(team.me),
            team.members.to_string(),
            team.connected.to_string(),
        ]
    });
    let rows = rows.collect();
    table(["TEAM", "ID", "THIS NODE", "KEY", "MEMBERS", "CONNECTED"], rows)
}

/// Lists who is in the team.
pub async fn members(home: &Home, team: &InTeam, as_json: bool) -> Result<u8, Failure> {
    let team = connect_or_start(home).await?.team(team.team.as_deref()).await?;
    if as_json {
        print_json(&team)?;
    } else {
        print(members_text(&team, now()).as_bytes())?;
    }
    Ok(0)
}

fn members_text(team: &TeamView, now: u64) -> String {
    let names: BTreeMap<NodeKey, &str> = team
        .members
        .iter()
        .map(|member| (member.key, member.name.as_str()))
        .collect();
    let rows = team
        .members
        .iter()
        .map(|member| {
            let issuer = member.issued_by.map_or("(founder)".to_owned(), |key| {
                names
                    .get(&key)
                    .map_or_else(|| short(key), |name| (*name).to_owned())
            });
            [
                member.name.clone(),
                short(member.key),
                member.roles.to_string(),
                member.not_after.map_or("".to_owned(), |end| left(end, now)),
                issuer,
                state(member),
            ]
        })
        .chain(team.waiting.iter().map(|waits| {
            [
                waits.name.clone(),
                short(waits.key),
                waits.roles.to_string(),
                left(waits.not_after, now),
                waits.issuer.clone(),
                waiting(waits),
            ]
        }))
        .collect();
    table(["NAME", "KEY", "ROLES", "ENDS", "INVITED BY", "STATE"], rows)
        + &founders::in_team(team)
        + &refused(team)
}

/// Who does not let this node in, so that all of the above may be out of date.
fn refused(team: &TeamView) -> String {
    if team.refused.is_empty() {
        return String::new();
    }
    let each = team
        .refused
        .iter()
        .map(|refused| format!("{}: {}", clean(&refused.by), clean(&refused.why)));
    format!(
        "Members do not let this node in, or cannot speak with it ({}). It may be out without having heard: 'tvix-node doctor' says what to do.\n",
        each.collect::<Vec<_>>().join("; ")
    )
}

fn waiting(waits: &WaitingView) -> String {
    let whose = if waits.me { "this node, " } else { "" };
    format!("{whose}no member any more: to be renewed ({})", waits.reason())
}

/// How long a membership goes on.
fn left(end: u64, now: u64) -> String {
    match end.checked_sub(now) {
        Some(seconds) => format!("in {}", about(seconds)),
        None => "ended".to_owned(),
    }
}

fn state(member: &MemberView) -> String {
    let place = if member.me {
        "this node"
    } else if member.connected {
        "connected"
    } else {
        "not connected"
    };
    if member.to_renew {
        format!("{place}, to be renewed")
    } else {
        place.to_owned()
    }
}

/// Lists the members there is a connection to. Does not start a node, which would have none.
pub async fn peers(home: &Home, team: &InTeam, as_json: bool) -> Result<u8, Failure> {
    let peers = connect(home).await?.peers(team.team.as_deref()).await?;
    if as_json {
        print_json(&peers)?;
    } else if peers.is_empty() {
        note("this node is connected with no other member; 'tvix-node members' lists who there is");
    } else {
        print(peers_text(&peers).as_bytes())?;
        for (peer, why) in peers
            .iter()
            .filter_map(|peer| Some((peer, peer.withheld.as_ref()?)))
        {
            note(&format!(
                "{} builds nothing for others now: {}",
                clean(&peer_name(peer, &peers)),
                clean(why)
            ));
        }
    }
    Ok(0)
}

/// What a peer is called, with its team where they are of several.
pub fn peer_name(peer: &PeerView, among: &[PeerView]) -> String {
    match among.iter().all(|other| other.team == peer.team) {
        true => peer.name.clone(),
        false => format!("{} (team {})", peer.name, short(peer.team)),
    }
}

fn peers_text(peers: &[PeerView]) -> String {
    let rows = peers
        .iter()
        .map(|peer| {
            let more = match peer.addresses.len() {
                0 | 1 => String::new(),
                several => format!(" and {} more", several - 1),
            };
            [
                peer_name(peer, peers),
                short(peer.key),
                match &peer.withheld {
                    Some(_) => "none now".to_owned(),
                    None => format!("{} of {}", peer.free, peer.slots),
                },
                format!("{}.{:02}", peer.load / 100, peer.load % 100),
                peer.round_trip_ms
                    .map_or("".to_owned(), |time| format!("{time:.1} ms")),
                size(peer.traffic.sent),
                size(peer.traffic.received),
                peer.systems.join(" "),
                peer.addresses.first().cloned().unwrap_or_default() + &more,
            ]
        })
        .collect();
    table(
        [
            "NAME", "KEY", "FREE", "LOAD", "AWAY", "SENT", "RECEIVED", "SYSTEMS", "ADDRESS",
        ],
        rows,
    )
}

/// Vouches for a member anew.
pub async fn renew(home: &Home, arguments: &RenewArguments) -> Result<u8, Failure> {
    let request = RenewRequest {
        member: arguments.member.clone(),
        roles: arguments.roles(),
        lasts: arguments.lasts,
        team: arguments.team.team.clone(),
    };
    connect_or_start(home).await?.renew(&request).await?;
    let text = format!(
        "{} is a member for another {}\n",
        clean(&arguments.member),
        about(arguments.lasts)
    );
    print(text.as_bytes())?;
    Ok(0)
}

/// Leaves the team.
pub async fn leave(home: &Home, team: InTeam, force: bool) -> Result<u8, Failure> {
    let client = connect_or_start(home).await?;
    // Where the team is not known, leaving it says why.
    let untold = client
        .team(team.team.as_deref())
        .await
        .ok()
        .and_then(|team| untold(&team));
    let request = LeaveRequest {
        team: team.team,
        force,
    };
    client.leave(&request).await?;
    let text = match client.status().await?.teams.len() {
        0 => "this node is in no team any more\n".to_owned(),
        left => {
            let left = u64::try_from(left).unwrap_or(u64::MAX);
            format!(
                "this node has left the team, and is in {}\n",
                count(left, "other")
            )
        }
    };
    print(text.as_bytes())?;
    if let Some(untold) = untold {
        note(&untold);
    }
    Ok(0)
}

/// What whoever leaves should know where nobody hears of it now.
fn untold(team: &TeamView) -> Option<String> {
    let mut others = team.members.iter().filter(|member| !member.me).peekable();
    others.peek()?;
    let me = team.members.iter().find(|member| member.me)?;
    others.all(|member| !member.connected).then(|| {
        format!(
            "no other member was connected: they go on counting this node until a founder of theirs runs 'tvix-node revoke {}'",
            clean(&me.name)
        )
    })
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::build::SwarmId;
    use tvix_node_protocol::control::{ReachedBy, RefusedView};
    use tvix_node_protocol::roster::{Lapse, Role, Roles};

    use super::super::table::testing::peer;
    use super::*;
    use crate::arguments::{Command, Parsed, parse};

    fn waiting_for(key: u8, name: &str, why: Lapse, not_after: u64) -> WaitingView {
        WaitingView {
            key: NodeKey([key; 32]),
            name: name.to_owned(),
            roles: [Role::Request].into_iter().collect(),
            issued_by: NodeKey([0xdd; 32]),
            issuer: "dave".to_owned(),
            not_after,
            me: false,
            why,
        }
    }

    fn team() -> TeamView {
        let member = |key: u8, name: &str| MemberView {
            key: NodeKey([key; 32]),
            name: name.to_owned(),
            roles: [Role::Request, Role::Build].into_iter().collect(),
            issued_by: Some(NodeKey([0xaa; 32])),
            founder: false,
            not_after: Some(1_000_000),
            me: false,
            connected: true,
            to_renew: false,
            against: Vec::new(),
        };
        TeamView {
            swarm: SwarmId([1; 32]),
            team: "ann's team".to_owned(),
            me: NodeKey([0xaa; 32]),
            name: "ann".to_owned(),
            listening: Vec::new(),
            founders: 1,
            threshold: 1,
            members: vec![
                MemberView {
                    roles: Roles::all(),
                    issued_by: None,
                    founder: true,
                    not_after: None,
                    me: true,
                    connected: false,
                    ..member(0xaa, "ann")
                },
                member(0xbb, "bob@tower"),
                MemberView {
                    connected: false,
                    to_renew: true,
                    not_after: Some(7300),
                    ..member(0xcc, "carol")
                },
            ],
            waiting: vec![
                waiting_for(0xee, "fay", Lapse::Ended, 99),
                waiting_for(0xef, "gus", Lapse::IssuerOut, 1_000_000),
            ],
            refused: Vec::new(),
        }
    }

    #[test]
    fn whom_others_do_not_let_in_is_told_so_beside_what_it_knows() {
        let mut team = team();
        assert!(!members_text(&team, 100).contains("do not let this node in"));
        team.refused = vec![RefusedView {
            by: "bob@tower".to_owned(),
            why: "this key was put out".to_owned(),
        }];
        let text = members_text(&team, 100);
        assert!(text.contains("(bob@tower: this key was put out)"), "{text}");
        assert!(text.contains("'tvix-node doctor'"), "{text}");
    }

    #[test]
    fn whoever_leaves_untold_is_told_what_that_means() {
        let mut team = team();
        assert_eq!(untold(&team), None, "bob hears of it");
        for member in &mut team.members {
            member.connected = false;
        }
        let text = untold(&team).expect("nobody hears of it");
        assert!(text.contains("'tvix-node revoke ann'"), "{text}");
        team.members.retain(|member| member.me);
        assert_eq!(untold(&team), None, "there is nobody to tell");
    }

    #[test]
    fn what_a_ticket_is_good_for_and_what_hinders_it_is_said() {
        let parsed = |line: &[&str]| {
            let line: Vec<_> = ["tvix-node", "invite"]
                .iter()
                .chain(line)
                .map(Into::into)
                .collect();
            match parse(&line) {
                Ok(Parsed::Invocation(invocation, _)) => match invocation.command {
                    Command::Invite { invite } => invite,
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            }
        };
        let invited = |founded, addresses: &[&str]| Invited {
            ticket: Some("ticket".to_owned()),
            founders: Vec::new(),
            threshold: 1,
            swarm: SwarmId([0xcd; 32]),
            expires: 1,
            roles: Roles::all(),
            founded,
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
        };
        let address: &[&str] = &["/ip4/192.0.2.1/tcp/4001"];
        let told = |invited: &Invited, line: &[&str], idle_exit| {
            about_ticket(invited, &parsed(line), idle_exit).join("\n")
        };
        let text = told(
            &invited(true, address),
            &["--expires", "12h", "--name", "x"],
            false,
        );
        assert!(
            text.starts_with("This founded the team cdcdcdcdcdcd, whose only founder is this node: nobody else becomes one later."),
            "{text}"
        );
        assert!(text.contains("within 12 hours"), "{text}");
        assert!(text.contains("request, build, store, invite"), "{text}");
        assert!(!text.contains("warning"), "{text}");
        for part in [
            "backup",
            "'tvix-node founder-key'",
            "'tvix-node invite --new-team --founder NAME=KEY'",
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        let text = told(&invited(false, address), &["--name", "x"], true);
        assert!(text.contains("--name was not needed"), "{text}");
        assert!(
            text.contains("warning") && text.contains("tvix-node up"),
            "{text}"
        );
        let text = told(&invited(false, &[]), &[], false);
        assert!(
            text.contains("listens nowhere") && !text.contains("founder"),
            "{text}"
        );
    }

    #[test]
    fn teams_are_listed_with_the_key_that_this_node_has_in_each() {
        let team = |swarm: u8, team: &str, me: u8| TeamStatus {
            swarm: SwarmId([swarm; 32]),
            team: team.to_owned(),
            me: NodeKey([me; 32]),
            name: "ann".to_owned(),
            members: 3,
            connected: 1,
            listening: Vec::new(),
            reached: ReachedBy::Unknown,
        };
        let expected = "\
TEAM         ID            THIS NODE  KEY           MEMBERS  CONNECTED
ann's team   010101010101  ann        aaaaaaaaaaaa  3        1
dave's team  020202020202  ann        abababababab  3        1
";
        let teams = [team(1, "ann's team", 0xaa), team(2, "dave's team", 0xab)];
        assert_eq!(teams_text(&teams), expected);
    }

    #[test]
    fn members_are_listed_with_what_they_may_do_and_until_when() {
        let expected = "\
NAME       KEY           ROLES                          ENDS        INVITED BY  STATE
ann        aaaaaaaaaaaa  request, build, store, invite              (founder)   this node
bob@tower  bbbbbbbbbbbb  request, build                 in 11 days  ann         connected
carol      cccccccccccc  request, build                 in 2 hours  ann         not connected, to be renewed
fay        eeeeeeeeeeee  request                        ended       dave        no member any more: to be renewed (ended)
gus        efefefefefef  request                        in 11 days  dave        no member any more: to be renewed (invited by dave, who is out)
";
        assert_eq!(members_text(&team(), 100), expected);
    }

    #[test]
    fn peers_are_listed_with_what_they_offer() {
        let expected = "\
NAME  KEY           FREE    LOAD  AWAY    SENT     RECEIVED  SYSTEMS                  ADDRESS
bob   bbbbbbbbbbbb  3 of 4  1.25  1.2 ms  1.5 MiB  12 B      x86_64-linux i686-linux  /ip4/192.0.2.2/tcp/4001 and 1 more
";
        assert_eq!(peers_text(&[peer("bob")]), expected);
        let elsewhere = PeerView {
            team: SwarmId([2; 32]),
            ..peer("bob")
        };
        let text = peers_text(&[peer("bob"), elsewhere]);
        for name in ["bob (team 010101010101) ", "bob (team 020202020202) "] {
            assert!(text.contains(name), "{text}");
        }
    }
}
