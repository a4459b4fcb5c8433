//! A whole team in one process, with simulated time: every machine runs the real coordinator, the real policy and the
//! real gate over real signed records and requests, keeps and answers presence with the real tables, and shares builds
//! as the daemon does. Simulated are the network, the disks, what a build makes of its inputs, and the clocks.
//!
//! A seed decides everything: who is in the team, what is wanted, what is lost, slow, torn apart, and what crashes;
//! and what liars do: false content, false paths, false records, replayed requests, silence. The [`ledger`] writes
//! down what truly happens and checks every step of it; `docs/simulation.md` says what is real, what is checked, and how
//! to replay a seed.

mod asking;
mod building;
mod dice;
mod executor;
mod fetching;
mod ledger;
mod liar;
mod node;
mod own;
mod plan;
mod rules;
mod serving;
mod session;
mod store;
mod weighing;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use plan::Plan;
use world::{Came, World, lock};

/// Seeds of an ordinary run.
const SEEDS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

fn run(seed: u64, nodes: Option<usize>, trace: bool) -> Came {
    World::new(Plan::new(seed, nodes), trace).run()
}

fn reason(error: &(dyn std::any::Any + Send)) -> String {
    let text = error.downcast_ref::<String>().cloned();
    text.or_else(|| error.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic".to_owned())
}

/// Runs these seeds on all processors; gives the sum of what came of them.
fn run_all(first: u64, seeds: u64, nodes: Option<usize>) -> Came {
    let next = AtomicU64::new(first);
    let failed: Mutex<BTreeMap<u64, String>> = Mutex::default();
    let sum: Mutex<Came> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        break;
                    }
                    match catch_unwind(AssertUnwindSafe(|| run(seed, nodes, false))) {
                        Ok(came) => {
                            let mut sum = lock(&sum);
                            sum.steps += came.steps;
                            sum.millis += came.millis;
                            for (what, count) in came.counts {
                                *sum.counts.entry(what).or_default() += count;
                            }
                        }
                        Err(error) => drop(lock(&failed).insert(seed, reason(&*error))),
                    }
                }
            });
        }
    });
    let failed = lock(&failed);
    let size = nodes
        .map(|nodes| format!("TVIX_NODE_NODES={nodes} "))
        .unwrap_or_default();
    for (seed, why) in failed.iter().take(20) {
        eprintln!("seed {seed}: {why}");
    }
    if let Some(seed) = failed.keys().next() {
        panic!(
            "{} of {seeds} seeds failed. Replay: TVIX_NODE_SEED={seed} {size}cargo test -p tvix-node --lib team::simulation::every -- \
             --nocapture",
            failed.len()
        );
    }
    std::mem::take(&mut *lock(&sum))
}

#[test]
fn every_rule_holds_in_every_team() {
    let nodes = number("TVIX_NODE_NODES").map(|nodes| usize::try_from(nodes).unwrap());
    if let Some(seed) = number("TVIX_NODE_SEED") {
        let came = run(seed, nodes, true);
        println!("{came:#?}");
        return;
    }
    let first = number("TVIX_NODE_FIRST_SEED").unwrap_or(0);
    let seeds = number("TVIX_NODE_SEEDS").unwrap_or(SEEDS);
    let came = run_all(first, seeds, nodes);
    println!(
        "{seeds} seeds from {first}: {} steps, {} simulated hours",
        came.steps,
        came.millis / 3_600_000
    );
    for (what, count) in &came.counts {
        println!("{count:>12} {what}");
    }
    // The worlds are no desert: seen over the seeds of an ordinary run, since the rarest of this is not in every range.
    let count = |what: &str| came.counts.get(what).copied().unwrap_or(0);
    if first == 0 && seeds >= SEEDS && nodes.is_none() {
        assert!(count("successes") > count("failures") * 2, "{came:?}");
        for what in [
            "builds joined",
            "own builds joined",
            "own builds followed for others",
            "own builds found done",
            "turned away from another's build",
            "builders given up",
            "taken on a word",
            "accepted by a stricter rule for some paths",
            "accepted of what a stricter rule reaches",
            "answered from an earlier build",
            "requests refused at the gate",
            "false records found out",
            "false derivations refused",
            "builds of false inputs",
            "wrong content cut",
            "trees given to one alone",
            "trees not given",
            "crashes",
            "again: Hedge",
            "again: Race",
        ] {
            assert!(count(what) > 0, "{what} never happens: {came:?}");
        }
    }
}

#[test]
fn the_same_seed_leads_to_the_same_world() {
    for seed in 0..10 {
        let (one, other) = (run(seed, None, false), run(seed, None, false));
        assert_eq!(
            (one.steps, one.millis, &one.counts),
            (other.steps, other.millis, &other.counts),
            "seed {seed}"
        );
    }
}
