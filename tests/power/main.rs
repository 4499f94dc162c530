//! The disk under the real binary: power cuts, errors and kills at its n-th operation.
//!
//! `tests/faults/disk.c` stands between the binary and its libc and gives every operation below one folder a number. A
//! run is recorded once; from the record any moment's disk is built as a power cut may have left it ([`disk`]), and it
//! is looked into as the next start would. The same numbers say when an operation fails or the process is killed.
//!
//! `OPIK_OFFLINE_POWER=SEED:COUNT` sets how many power cuts are made of the recorded runs, and a tenth as many kills;
//! errors are injected at every operation in any case. A failure prints how to reproduce it. Needs Linux and a C
//! compiler.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot continue fails")]

mod cuts;
mod dice;
mod disk;
mod failing;
mod journal;
mod killed;
mod layer;
mod outages;
mod promises;
mod scene;
#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code, reason = "each test binary uses another part of it")]
#[path = "../e2e/writes.rs"]
mod writes;

/// Returns seed and count from `OPIK_OFFLINE_POWER`.
fn seed_and_count() -> (u64, u64) {
    let setting = std::env::var("OPIK_OFFLINE_POWER").unwrap_or_else(|_| "1:600".into());
    let numbers = setting.split_once(':').and_then(|(seed, count)| Some((seed.parse().ok()?, count.parse().ok()?)));
    numbers.expect("OPIK_OFFLINE_POWER is SEED:COUNT")
}
