//! `founder-key` and `revoke`, and what `invite`, `join` and `members` say of founders.

use tvix_node::background::connect_or_start;
use tvix_node::home::Home;
use tvix_node_protocol::control::{FounderTicket, Invited, Joined, MemberName, PutOut, TeamView};
use tvix_node_protocol::roster::Founder;

use super::table::short;
use super::{Failure, note, print, print_json};
use crate::arguments::InTeam;
use crate::progress::{clean, count};

/// Makes a key by which this node can be a founder, and prints it, alone on standard output.
pub async fn founder_key(home: &Home, as_json: bool) -> Result<u8, Failure> {
    let made = connect_or_start(home).await?.founder_key().await?;
    if as_json {
        print_json(&made)?;
        return Ok(0);
    }
    print(format!("{}\n", made.key).as_bytes())?;
    note(
        "Whoever founds the team runs 'tvix-node invite --new-team --founder NAME=KEY' with it; the ticket that this prints is \
         redeemed here. The key is good for one team.",
    );
    Ok(0)
}

/// Puts a member out of the team, or says so of a founder.
pub async fn revoke(home: &Home, member: String, team: InTeam) -> Result<u8, Failure> {
    let named = MemberName {
        member,
        team: team.team,
    };
    let put_out = connect_or_start(home).await?.revoke(&named).await?;
    print(format!("{}\n", put_out_text(&named.member, &put_out)).as_bytes())?;
    Ok(0)
}

fn put_out_text(member: &str, put_out: &PutOut) -> String {
    let member = clean(member);
    match put_out.out {
        true => format!("{member} is out of the team"),
        false => to_be_out(&member, &put_out.by, put_out.needed),
    }
}

/// A founder that some have put out, who are too few, and what makes them enough.
fn to_be_out(name: &str, by: &[Founder], needed: u16) -> String {
    let names: Vec<String> = by.iter().map(|founder| clean(&founder.name)).collect();
    let others = match usize::from(needed).saturating_sub(by.len()) {
        0 | 1 => "another founder runs".to_owned(),
        several => format!("{several} other founders run"),
    };
    format!(
        "{} of {needed} founders ({}) said that {name} is to be out: it stays until {others} 'tvix-node revoke {name}', too",
        by.len(),
        names.join(", ")
    )
}

/// What is said below the members of a team that has several founders; nothing for one that has one.
pub fn in_team(team: &TeamView) -> String {
    if team.founders < 2 {
        return String::new();
    }
    let left = team.members.iter().filter(|member| member.founder).count() as u64;
    let which = match left == team.founders {
        true => format!("{left} founders"),
        false => format!("{left} of {} founders are left", team.founders),
    };
    let mut text = format!("\n{which}; it takes {} to put one of them out\n", team.threshold);
    for member in team.members.iter().filter(|member| !member.against.is_empty()) {
        text += &to_be_out(&clean(&member.name), &member.against, team.threshold);
        text.push('\n');
    }
    text
}

/// How many founders a team was founded with, and what their threshold gives and takes.
pub fn about_founding(invited: &Invited) -> String {
    let founders = invited.founders.len() + 1;
    let means = match usize::from(invited.threshold) {
        1 => "Each of them alone can put out the others, and so can who steals the key of one".to_owned(),
        all if all == founders => {
            "It takes all of them to put one out, itself included: whose key is lost or stolen stays in"
                .to_owned()
        }
        some => format!("It takes {some} of them to put one out, as when its key is lost or stolen"),
    };
    format!(
        "This founded the team {}, which has {founders} founders. {means}.",
        short(invited.swarm)
    )
}

/// What it means that a team was founded with one founder, while others can still be founders of another one.
pub fn about_founding_alone(invited: &Invited) -> String {
    format!(
        "This founded the team {}, whose only founder is this node: nobody else becomes one later. If its key is lost, nobody can \
         invite for it or renew any more, and the team ends with its memberships; who steals the key can put out everybody.\n\
         Keep a backup of 'identity' and 'teams' in its home. A team that outlives a founder's key begins with several, best before \
         others join this one: they run 'tvix-node founder-key', and this node 'tvix-node invite --new-team --founder NAME=KEY'.",
        short(invited.swarm)
    )
}

/// Whose the tickets are.
pub fn about_tickets(founders: &[FounderTicket], time: &str) -> String {
    let names: Vec<String> = founders.iter().map(|founder| clean(&founder.name)).collect();
    let whose = match names.as_slice() {
        [one] => format!("The ticket is for {one}, who"),
        _ => format!(
            "The tickets are, in this order, for {}, each of whom",
            names.join(", ")
        ),
    };
    format!(
        "{whose} takes a founder's place with 'tvix-node join TICKET' within {time}; nobody else can use it. 'tvix-node invite \
         --founder NAME' makes a new one."
    )
}

/// What this node is in a team that it has joined, where it is a founder.
pub fn as_joined(joined: &Joined) -> String {
    match joined.founder {
        true => format!(
            ", one of {} ({} of them put one out)",
            count(joined.founders, "founder"),
            joined.threshold
        ),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::build::SwarmId;
    use tvix_node_protocol::control::MemberView;
    use tvix_node_protocol::envelope::NodeKey;
    use tvix_node_protocol::roster::Roles;

    use super::*;

    fn founder(key: u8, name: &str) -> Founder {
        Founder {
            key: NodeKey([key; 32]),
            name: name.to_owned(),
        }
    }

    fn put_out(out: bool, by: &[&str], needed: u16) -> PutOut {
        PutOut {
            key: NodeKey([1; 32]),
            name: "ann".to_owned(),
            out,
            by: by.iter().map(|name| founder(2, name)).collect(),
            needed,
        }
    }

    #[test]
    fn what_is_not_enough_is_said_with_what_would_be() {
        let told = |put_out: &PutOut| put_out_text("ann", put_out);
        assert_eq!(told(&put_out(true, &["bob"], 1)), "ann is out of the team");
        assert_eq!(
            told(&put_out(false, &["bob"], 2)),
            "1 of 2 founders (bob) said that ann is to be out: it stays until another founder runs 'tvix-node revoke ann', too"
        );
        let text = told(&put_out(false, &["bob"], 3));
        assert!(text.contains("until 2 other founders run 'tvix-node"), "{text}");
    }

    #[test]
    fn members_of_a_team_of_several_founders_are_told_what_those_can_do() {
        let member = |key: u8, against: &[&str]| MemberView {
            key: NodeKey([key; 32]),
            name: format!("founder {key}"),
            roles: Roles::all(),
            issued_by: None,
            founder: true,
            not_after: None,
            me: false,
            connected: true,
            to_renew: false,
            against: against.iter().map(|name| founder(9, name)).collect(),
        };
        let mut team = TeamView {
            swarm: SwarmId([1; 32]),
            team: "team".to_owned(),
            me: NodeKey([1; 32]),
            name: "ann".to_owned(),
            listening: Vec::new(),
            founders: 3,
            threshold: 2,
            members: vec![member(1, &[]), member(2, &[]), member(3, &["ann"])],
            waiting: Vec::new(),
            refused: Vec::new(),
        };
        assert_eq!(
            in_team(&team),
            "\n3 founders; it takes 2 to put one of them out\n1 of 2 founders (ann) said that founder 3 is to be out: it stays \
             until another founder runs 'tvix-node revoke founder 3', too\n"
        );
        team.members.pop();
        assert_eq!(
            in_team(&team),
            "\n2 of 3 founders are left; it takes 2 to put one of them out\n"
        );
        team.founders = 1;
        assert_eq!(in_team(&team), "");
    }

    #[test]
    fn what_a_threshold_gives_and_whose_the_tickets_are_is_said() {
        let ticket = |name: &str| FounderTicket {
            name: name.to_owned(),
            key: NodeKey([2; 32]),
            ticket: "ticket".to_owned(),
        };
        let founded = |threshold, names: &[&str]| Invited {
            ticket: None,
            founders: names.iter().map(|name| ticket(name)).collect(),
            threshold,
            swarm: SwarmId([0xcd; 32]),
            expires: 1,
            roles: Roles::all(),
            founded: true,
            addresses: Vec::new(),
        };
        let three = founded(2, &["bob", "cat"]);
        assert_eq!(
            about_founding(&three),
            "This founded the team cdcdcdcdcdcd, which has 3 founders. It takes 2 of them to put one out, as when its key is lost \
             or stolen."
        );
        assert!(about_founding(&founded(1, &["bob"])).contains("who steals"));
        assert!(about_founding(&founded(2, &["bob"])).contains("stays in"));
        let text = about_tickets(&three.founders, "24 hours");
        assert!(
            text.starts_with("The tickets are, in this order, for bob, cat, each"),
            "{text}"
        );
        let text = about_tickets(&three.founders[..1], "24 hours");
        assert!(
            text.starts_with("The ticket is for bob, who takes a founder's place"),
            "{text}"
        );
    }

    #[test]
    fn a_founder_hears_that_it_is_one() {
        let joined = |founder| Joined {
            swarm: SwarmId([1; 32]),
            name: "bob".to_owned(),
            members: 3,
            founder,
            founders: 3,
            threshold: 2,
        };
        assert_eq!(
            as_joined(&joined(true)),
            ", one of 3 founders (2 of them put one out)"
        );
        assert_eq!(as_joined(&joined(false)), "");
    }
}
