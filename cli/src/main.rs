//! The `tvix-node` program.
fn main() {}
