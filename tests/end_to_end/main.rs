//! The program as a user has it: real processes, homes of their own, real sandboxes.

mod building;
mod cache_server;
mod caching;
mod checking;
mod evaluating;
mod exchanging;
mod failing;
mod fetching;
mod harness;
mod importing;
mod keeping;
mod outputs;
mod refusing;
mod sharing;
mod swarm;
#[path = "../trust/mod.rs"]
mod trust;
