//! Everything that other nodes, tickets and caches may bring, with bytes that the fuzzer chooses.
#![no_main]

#[path = "../../../protocol/tests/wire/mod.rs"]
mod wire;

libfuzzer_sys::fuzz_target!(|input: &[u8]| wire::read(input));
