//! Who may join the team, for how long, and where it meets.

use std::io::Read;
use std::net::SocketAddr;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use tvix_node_protocol::founding::founding_threshold;
use tvix_node_protocol::limits::{MEMBER_NAME_BYTES, TICKET_BYTES};
use tvix_node_protocol::roster::{Founder, Role, Roles, check_name};
use tvix_node_protocol::ticket::Ticket;

use super::numbers::duration;
use super::parse::UsageError;

/// Which of the node's teams is meant.
#[derive(Debug, Args)]
pub struct InTeam {
    /// In which team, where this node is in several: its name, or its id or the beginning of that
    #[arg(long, value_name = "TEAM")]
    pub team: Option<String>,
}

/// How somebody is invited.
#[derive(Debug, Args)]
pub struct InviteArguments {
    /// What the new member may do; may be given several times [default: request, build and store]
    #[arg(long = "role", value_name = "ROLE", value_parser = role(), value_delimiter = ',', conflicts_with = "founders")]
    roles: Vec<Role>,
    /// How long the ticket is good for, such as 30m, 12h or 7d
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1d")]
    pub expires: u64,
    /// How long the membership lasts before somebody has to renew it
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1y", conflicts_with = "founders")]
    pub lasts: u64,
    /// What this node calls itself, where the invitation founds the team [default: USER@HOST]
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub name: Option<String>,
    #[command(flatten)]
    pub team: InTeam,
    /// Found another team for it, beside those that this node is in. Neither sees the other
    #[arg(long, conflicts_with = "team")]
    pub new_team: bool,
    /// Found the team together with this node, by the key that 'tvix-node founder-key' prints there; may be given several
    /// times. NAME alone, in a team that is there: make a new ticket for that founder, who has not joined yet
    #[arg(long = "founder", value_name = "NAME=KEY", value_parser = founder)]
    founders: Vec<FounderArgument>,
    /// How many founders together put out one of themselves [default: more than half of them, and asked for where there are
    /// two]
    #[arg(long, value_name = "NUMBER", requires = "founders")]
    threshold: Option<u16>,
    /// Print the ticket and what it is good for as JSON
    #[arg(long)]
    pub json: bool,
}

impl InviteArguments {
    /// What the new member may do.
    pub fn roles(&self) -> Roles {
        if self.roles.is_empty() {
            [Role::Request, Role::Build, Role::Store].into_iter().collect()
        } else {
            self.roles.iter().copied().collect()
        }
    }

    /// What this node calls itself where a team is founded.
    pub fn own_name(&self) -> String {
        self.name.clone().unwrap_or_else(own_name)
    }

    /// Whom the tickets are for.
    ///
    /// # Errors
    /// Founders with whom no team can be founded.
    pub fn invitees(&self) -> Result<Invitees, UsageError> {
        let new = self.founders.iter().filter_map(|founder| match founder {
            FounderArgument::New(founder) => Some(founder.clone()),
            FounderArgument::There(_) => None,
        });
        let new: Vec<Founder> = new.collect();
        match self.founders.as_slice() {
            [] => Ok(Invitees::Anybody),
            [FounderArgument::There(name)] => match self.new_team || self.threshold.is_some() {
                false => Ok(Invitees::Founder(name.clone())),
                true => Err(UsageError::new(format!(
                    "to found a team with '{name}' takes a key ('--founder {name}=KEY'): 'tvix-node founder-key' prints one on the \
                     machine of '{name}'"
                ))),
            },
            all if new.len() == all.len() => {
                let threshold = founding_threshold(&self.own_name(), &new, self.threshold);
                let threshold = threshold.map_err(|error| UsageError::new(error.to_string()))?;
                Ok(Invitees::Founders(new, threshold))
            }
            _ => Err(UsageError::new(
                "'--founder NAME=KEY' founds a team, and '--founder NAME' makes a ticket for one founder of a team that is there: \
                 give keys for all or one name alone",
            )),
        }
    }
}

/// Whom tickets are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invitees {
    /// One new member.
    Anybody,
    /// One of the founders of a team that is there.
    Founder(String),
    /// Those with whom a team is founded, of whom so many put one out.
    Founders(Vec<Founder>, u16),
}

/// Somebody who founds a team, or has founded it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum FounderArgument {
    /// With whom a team is to be founded.
    New(Founder),
    /// Who was named when it was.
    There(String),
}

/// Reads a founder's name, with its key where it is a new one.
fn founder(text: &str) -> Result<FounderArgument, String> {
    let Some((called, key)) = text.rsplit_once('=') else {
        return Ok(FounderArgument::There(name(text)?));
    };
    match key.trim().parse() {
        Ok(key) => Ok(FounderArgument::New(Founder {
            name: name(called)?,
            key,
        })),
        Err(_) => Err(format!(
            "'{}' is not a key: 64 digits in base 16 are expected after the '=', as 'tvix-node founder-key' prints them on that \
             machine",
            key.escape_debug()
        )),
    }
}

/// How a ticket is redeemed.
#[derive(Debug, Args)]
pub struct JoinArguments {
    /// What 'tvix-node invite' printed, on one line or broken into several; '-' reads it from standard input,
    /// where other users of this machine cannot see it
    #[arg(value_name = "TICKET", required = true)]
    ticket: Vec<String>,
    /// What this node calls itself in the team [default: USER@HOST]
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub name: Option<String>,
    /// Print what came of it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Bytes of standard input that are looked at for a ticket: twice what the longest has, for white space.
const INPUT_BYTES: u64 = 2 * TICKET_BYTES as u64;

impl JoinArguments {
    /// The ticket, which is whole; whether it is still good, the inviter knows. `input` is standard input.
    ///
    /// # Errors
    /// What is no ticket, torn, or cannot be read.
    pub fn ticket(&self, input: impl Read) -> Result<String, UsageError> {
        let mut text = self.ticket.concat();
        if text == "-" {
            text.clear();
            let read = input.take(INPUT_BYTES).read_to_string(&mut text);
            read.map_err(|error| {
                UsageError::new(format!("the ticket cannot be read from standard input: {error}"))
            })?;
        }
        // White space inside does not matter; one that was broken on its way may be several arguments.
        let text: String = text.split_whitespace().collect();
        match Ticket::from_text(&text) {
            Ok(_) => Ok(text),
            Err(error) => Err(UsageError::new(error.to_string())),
        }
    }
}

/// How a membership is renewed.
#[derive(Debug, Args)]
pub struct RenewArguments {
    /// The member's name, or its key or the beginning of that
    #[arg(value_name = "MEMBER")]
    pub member: String,
    /// What it may do from now on; may be given several times [default: as before]
    #[arg(long = "role", value_name = "ROLE", value_parser = role(), value_delimiter = ',')]
    roles: Vec<Role>,
    /// How long the membership lasts from now on
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1y")]
    pub lasts: u64,
    #[command(flatten)]
    pub team: InTeam,
}

impl RenewArguments {
    /// What the member may do from now on; none: as before.
    pub fn roles(&self) -> Option<Roles> {
        (!self.roles.is_empty()).then(|| self.roles.iter().copied().collect())
    }
}

/// What each role gives, as `--help` explains it.
fn role() -> impl TypedValueParser<Value = Role> {
    let explained = Role::ALL.map(|role| PossibleValue::new(role.name()).help(gives(role)));
    PossibleValuesParser::new(explained).try_map(|name| name.parse::<Role>())
}

const fn gives(role: Role) -> &'static str {
    match role {
        Role::Request => "may ask the other members to build",
        Role::Build => "builds for the others: they take what it signed as built",
        Role::Store => "others take store paths on its word, and may name it with 'build --to'",
        Role::Invite => "may invite others, with no more roles than its own",
    }
}

/// A place where members reach this node, or none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Nowhere,
    /// There.
    At(SocketAddr),
}

/// Reads `none` or an address with its port.
pub fn listen(text: &str) -> Result<Listen, String> {
    if text == "none" {
        return Ok(Listen::Nowhere);
    }
    text.parse().map(Listen::At).map_err(|_| {
        "an IP address and a port are expected, such as 192.0.2.7:4001, 0.0.0.0:0 (every address of the machine, a \
         free port) or [::1]:4001; or 'none', to connect to others only"
            .to_owned()
    })
}

/// Where a node listens: none where nothing was said, and an empty list for nowhere.
///
/// # Errors
/// Nowhere and somewhere at once.
pub fn listening(places: &[Listen]) -> Result<Option<Vec<SocketAddr>>, UsageError> {
    if places.is_empty() {
        return Ok(None);
    }
    let addresses: Vec<SocketAddr> = places
        .iter()
        .filter_map(|place| match place {
            Listen::Nowhere => None,
            Listen::At(address) => Some(*address),
        })
        .collect();
    if !addresses.is_empty() && addresses.len() < places.len() {
        return Err(UsageError::new(
            "'--listen none' means to listen nowhere, and another --listen says where: give one of the two",
        ));
    }
    Ok(Some(addresses))
}

/// Reads what a node calls itself.
fn name(text: &str) -> Result<String, String> {
    check_name(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// What a node calls itself that was not told: who runs it, and where.
pub fn own_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let user = std::env::var("USER").unwrap_or_default();
    name_of(&user, &host)
}

fn name_of(user: &str, host: &str) -> String {
    let (user, host) = (user.trim(), host.trim());
    let host = if host.is_empty() { "node" } else { host };
    // Root is not who, and of a service nobody knows.
    let wanted = match user {
        // The host of a container is called like the beginning of a key.
        "" | "root" if check_name(host).is_ok() => host.to_owned(),
        "" => format!("node@{host}"),
        user => format!("{user}@{host}"),
    };
    let mut name = String::new();
    for letter in wanted.chars().filter(|letter| !letter.is_control()) {
        if name.len() + letter.len_utf8() > MEMBER_NAME_BYTES {
            break;
        }
        name.push(letter);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_called_after_its_user_and_machine() {
        assert_eq!(name_of("ann", "tower\n"), "ann@tower");
        assert_eq!(name_of("root", "tower"), "tower");
        assert_eq!(name_of("", ""), "node");
        // As containers are called.
        assert_eq!(name_of("root", "0123456789ab"), "root@0123456789ab");
        assert_eq!(name_of("", "0123456789ab"), "node@0123456789ab");
        assert_eq!(name_of("a\u{7}nn", "tower"), "ann@tower");
        for host in ["x".repeat(300), "ü".repeat(300)] {
            let name = name_of("ann", &host);
            assert!(name.len() > MEMBER_NAME_BYTES - 2);
            check_name(&name).unwrap();
        }
    }

    #[test]
    fn a_node_listens_where_it_is_told_or_nowhere() {
        let place = |text: &str| listen(text).unwrap();
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(listening(&[]), Ok(None));
        assert_eq!(listening(&[place("none")]), Ok(Some(Vec::new())));
        assert_eq!(
            listening(&[place("127.0.0.1:0"), place("[::1]:4001")]),
            Ok(Some(vec![address("127.0.0.1:0"), address("[::1]:4001")]))
        );
        assert!(listening(&[place("none"), place("127.0.0.1:0")]).is_err());
        for text in [
            "",
            "4001",
            "tower:4001",
            "127.0.0.1",
            "127.0.0.1:70000",
            "/ip4/1.2.3.4/tcp/1",
        ] {
            assert!(listen(text).unwrap_err().contains("192.0.2.7:4001"), "{text}");
        }
    }
}
