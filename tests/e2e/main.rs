//! End-to-end tests: real processes and real HTTP on loopback.

#[path = "../support/mod.rs"]
mod support;

mod fake_opik;
mod prism;
mod sdk;
mod sdk_outage;
