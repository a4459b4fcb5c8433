//! Measures what it costs to keep the records of who has what, in teams of different sizes.
//!
//! `cargo run --release -p tvix-node-swarm --example measure_dht -- --nodes 20` (or 200): real nodes in one process, on
//! loopback. One of them has 100,000 paths, each other one 1,000. Printed are, of the node that starts with so many: how
//! long it takes until all of it is advertised, and its share of a core; of all: bytes, packets and CPU for a node and
//! hour, with the renewals, for which the nodes' clock is put forward; memory; and how long looking something up takes.
//! Bytes and packets are what the loopback device counted, so let nothing else use it: `unshare -n sh -c 'ip link set
//! lo up; ...'`. Many nodes need many descriptors: `ulimit -n 65536`. `--kept` says how many connections each keeps
//! although nothing is said; with few of them, most of what many nodes do at first is to connect.
//!
//! `-- --simulated 2000`: members without sockets, with simulated time. Records are signed, checked and kept by the
//! code that the node uses; who is close to what is found by walks as Kademlia makes them, over routing tables of
//! buckets of twenty. Every tenth member has 1,000 paths, one has 100,000; what keepers do is counted ten times, as if
//! every member had paths.

#[path = "../measured/mod.rs"]
mod measured;
mod real;
mod simulated;

use measured::Outcome;

/// Paths of the node that has many.
const MANY: usize = 100_000;
/// Paths of every other one.
const FEW: usize = 1_000;
/// Connections that each node keeps, where nothing else is said: as many as it needs; a mesh of all would measure
/// connections.
const KEPT: usize = 8;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--nodes", count] => real::measure(count.parse()?, KEPT),
        ["--nodes", count, "--kept", kept] => real::measure(count.parse()?, kept.parse()?),
        ["--simulated", count] => simulated::measure(count.parse()?),
        _ => Err("usage: --nodes NUMBER [--kept NUMBER], or --simulated NUMBER".into()),
    }
}
