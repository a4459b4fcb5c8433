//! Nodes of one team, each a real process with a home of its own, on the loopback interface.

mod broken;
mod building;
mod collecting;
mod desired_store;
mod doctor;
mod finding;
mod fixed_outputs;
mod founders;
mod importing;
mod joining;
mod nats;
pub mod nodes;
mod observer;
mod private;
mod refused;
mod renewing;
mod repairing;
mod sharing;
mod sight;
mod teams;
mod together;
mod traffic;
mod trusting;
