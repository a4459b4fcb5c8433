//! What the store reads from archives, exports and its own index, with bytes that the fuzzer chooses.
#![no_main]

#[path = "../../../node/store/tests/parsers/mod.rs"]
mod parsers;

libfuzzer_sys::fuzz_target!(|input: &[u8]| parsers::read(input));
