#![no_main]

#[path = "../../tests/corpus/oracles/mod.rs"]
mod oracles;

libfuzzer_sys::fuzz_target!(|input: &[u8]| oracles::fleet_objects(input));
