//! The coordinator in a simulated world: stores, builders, evaluations, failures, lost and late
//! messages, dead and lying peers, all decided by a seed and checked at every step.
//!
//! `SEEDS=10000 cargo test -p tvix-node-coordinator --test simulation` tries so many seeds;
//! `SEED=123 …` replays one and prints everything that happens.

mod checker;
mod evaluation;
mod own_builder;
mod peers;
mod rng;
mod scenario;
mod stores;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::World;

/// Seeds of an ordinary run.
const SEEDS: u64 = 300;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

fn run(seed: u64, trace: bool) -> u64 {
    let mut world = World::new(seed, trace);
    world.run();
    world.digest
}

#[test]
fn every_rule_holds_in_every_world() {
    if let Some(seed) = number("SEED") {
        run(seed, true);
        return;
    }
    let (next, failed) = (AtomicU64::new(0), Mutex::new(vec![]));
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    if catch_unwind(AssertUnwindSafe(|| run(seed, false))).is_err()
                        && let Ok(mut failed) = failed.lock()
                    {
                        failed.push(seed);
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap_or_default();
    failed.sort_unstable();
    assert!(
        failed.is_empty(),
        "{} of {seeds} seeds failed; replay with SEED={}: {failed:?}",
        failed.len(),
        failed[0]
    );
}

#[test]
fn the_same_seed_leads_to_the_same_actions() {
    for seed in 0..20 {
        assert_eq!(run(seed, false), run(seed, false), "seed {seed}");
    }
}
