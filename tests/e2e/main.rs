//! End-to-end tests: real processes and real HTTP on loopback.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot go on says so by failing")]

#[path = "../support/mod.rs"]
mod support;

mod bodies;
mod fake_opik;
mod messages;
mod mixed;
mod prism;
mod proxy;
mod sdk;
mod sdk_outage;
