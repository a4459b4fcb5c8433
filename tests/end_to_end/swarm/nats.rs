//! Members behind NATs, in network namespaces: two homes with a router each, and a member on the open network.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::nodes::{Node, until};
use crate::harness::{sandbox_works, skipped};

/// The port of every node: each has a namespace of its own.
const PORT: u16 = 4100;

/// How a router names what passes through it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Router {
    /// One port to the outside for each inside, whomever it speaks to, as most homes have it.
    KeepsPorts,
    /// As the first, and what comes to the node's port from outside is let in to it.
    Forwards,
    /// Another port for each connection, as large networks have it: no hole can be punched.
    ChangesPorts,
}

/// Namespaces, removed when dropped.
struct Networks {
    prefix: String,
    names: Vec<&'static str>,
}

fn run(words: &[&str]) -> Result<(), String> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("'{}' cannot be run: {error}", words[0]))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "'{}': {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

impl Networks {
    /// `open` on the public network, `ann` and `bob` behind a router each.
    fn new(tag: &str, router: Router) -> Result<Self, String> {
        let mut networks = Self {
            prefix: format!("tn{}{tag}", std::process::id()),
            names: Vec::new(),
        };
        for name in ["net", "open", "router1", "router2", "ann", "bob"] {
            run(&["ip", "netns", "add", &networks.inside(name)])?;
            networks.names.push(name);
            networks.ip(name, "link set lo up")?;
        }
        networks.ip("net", "link add bridge type bridge")?;
        networks.ip("net", "link set bridge up")?;
        networks.public("open", "203.0.113.1")?;
        networks.public("router1", "203.0.113.2")?;
        networks.public("router2", "203.0.113.3")?;
        networks.home("router1", "ann", "10.77.1", router)?;
        networks.home("router2", "bob", "10.77.2", router)?;
        Ok(networks)
    }

    fn inside(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn ip(&self, name: &str, words: &str) -> Result<(), String> {
        let namespace = self.inside(name);
        let all: Vec<&str> = ["ip", "-n", &namespace]
            .into_iter()
            .chain(words.split(' '))
            .collect();
        run(&all)
    }

    /// Puts a machine onto the public network.
    fn public(&self, name: &str, address: &str) -> Result<(), String> {
        let there = self.inside(name);
        self.ip(
            "net",
            &format!("link add to-{name} type veth peer name outside netns {there}"),
        )?;
        self.ip("net", &format!("link set to-{name} master bridge up"))?;
        self.ip(name, &format!("addr add {address}/24 dev outside"))?;
        self.ip(name, "link set outside up")
    }

    /// A router with a machine behind it.
    fn home(&self, router: &str, name: &str, network: &str, kind: Router) -> Result<(), String> {
        let there = self.inside(name);
        self.ip(
            router,
            &format!("link add inside type veth peer name home netns {there}"),
        )?;
        self.ip(router, &format!("addr add {network}.1/24 dev inside"))?;
        self.ip(router, "link set inside up")?;
        self.ip(name, &format!("addr add {network}.2/24 dev home"))?;
        self.ip(name, "link set home up")?;
        self.ip(name, &format!("route add default via {network}.1"))?;
        let namespace = self.inside(router);
        let inside = ["ip", "netns", "exec", &namespace];
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        run(&[&inside[..], &["sh", "-c", forward]].concat())?;
        let how = match kind {
            Router::KeepsPorts | Router::Forwards => "masquerade",
            Router::ChangesPorts => "masquerade fully-random",
        };
        let new_from_outside = "iifname \"outside\" ct state != { established, related } drop";
        let forwarded = match kind {
            Router::Forwards => format!("iifname \"outside\" tcp dport {PORT} dnat to {network}.2"),
            Router::KeepsPorts | Router::ChangesPorts => String::new(),
        };
        let rules = format!(
            "table ip way {{
               chain arriving {{ type nat hook prerouting priority -100; {forwarded}; }}
               chain leaving {{ type nat hook postrouting priority 100; oifname \"outside\" {how}; }}
               chain passing {{ type filter hook forward priority 0; ct status dnat accept; {new_from_outside}; }}
               chain coming {{ type filter hook input priority 0; {new_from_outside}; }}
             }}"
        );
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &namespace, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut rules_in = nft.stdin.take().ok_or("no pipe")?;
        // Where nft is not there, the end says so.
        drop(rules_in.write_all(rules.as_bytes()));
        drop(rules_in);
        let output = nft.wait_with_output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = run(&["ip", "netns", "del", &self.inside(name)]) {
                eprintln!("{error}");
            }
        }
    }
}

/// The three machines with their nodes in one team, or why not.
fn team(test: &str, router: Router) -> Option<(Networks, [Node; 3])> {
    if !sandbox_works(test) {
        return None;
    }
    let tag = match router {
        Router::KeepsPorts => "k",
        Router::Forwards => "f",
        Router::ChangesPorts => "c",
    };
    let networks = match Networks::new(tag, router) {
        Ok(networks) => networks,
        Err(reason) => {
            skipped(
                test,
                &format!("networks behind NATs cannot be made here: {reason}"),
            );
            return None;
        }
    };
    let open = Node::up_in(&networks.inside("open"), "open", PORT, 0);
    let ann = Node::up_in(&networks.inside("ann"), "ann", PORT, 0);
    let bob = Node::up_in(&networks.inside("bob"), "bob", PORT, 1);
    ann.join(&open.ticket(&[])).ok();
    bob.join(&open.ticket(&[])).ok();
    ann.meet("bob");
    Some((networks, [open, ann, bob]))
}

/// Whether the way that ann's node uses to bob's leads through another member.
fn is_through_another(ann: &Node) -> bool {
    let peer = ann.peer("bob").expect("they are connected");
    let first = peer["addresses"][0].as_str().expect("an address");
    first.contains("/p2p-circuit")
}

/// Waits until a node knows whether members can dial it.
fn finds_out(node: &Node, reached: &str) {
    until(&format!("it finds out that it is reached by {reached}"), || {
        (node.json(&["status"])["teams"][0]["reached"] == reached).then_some(())
    });
}

fn builds(ann: &Node) {
    ann.machine
        .expression(r#"{ one = build "one" { } "write $out 1"; }"#);
    let build = ann.build("one", &[]);
    assert_eq!(build.count("built"), 1, "{}", build.messages());
    assert!(ann.content_received("bob") > 0);
}

#[test]
fn two_behind_routers_meet_through_a_third_and_then_directly() {
    let test = "two_behind_routers_meet_through_a_third_and_then_directly";
    let Some((_networks, [mut open, ann, _bob])) = team(test, Router::KeepsPorts) else {
        return;
    };
    until("a direct way is found", || {
        (!is_through_another(&ann)).then_some(())
    });
    // That they found each other is no proof that others can dial them.
    finds_out(&open, "all");
    finds_out(&ann, "none");
    let peer = ann.peer("open").expect("they are connected");
    assert_eq!(peer["reachesThisNode"], false, "{peer}");
    // Who brought them together is not needed any more.
    open.kill();
    builds(&ann);
}

#[test]
fn where_there_is_no_direct_way_a_third_passes_everything_on() {
    let test = "where_there_is_no_direct_way_a_third_passes_everything_on";
    let Some((_networks, [_open, ann, _bob])) = team(test, Router::ChangesPorts) else {
        return;
    };
    builds(&ann);
    assert!(is_through_another(&ann));
}

#[test]
fn who_has_a_port_forwarded_finds_out_and_is_reached_there() {
    let test = "who_has_a_port_forwarded_finds_out_and_is_reached_there";
    let Some((_networks, [open, ann, bob])) = team(test, Router::Forwards) else {
        return;
    };
    for (node, outside) in [(&ann, "203.0.113.2"), (&bob, "203.0.113.3")] {
        finds_out(node, "all");
        // What no interface of the machine says: the router's address.
        let way = format!("/ip4/{outside}/tcp/{PORT}");
        until("it says where it is reached", || {
            let listening = node.json(&["status"])["teams"][0]["listening"].clone();
            let ways = listening.as_array().expect("a list").clone();
            ways.iter().any(|known| *known == way.as_str()).then_some(())
        });
    }
    assert_eq!(open.peer("ann").expect("they are connected")["name"], "ann");
    builds(&ann);
}
