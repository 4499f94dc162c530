//! Clients of this field, as their users run them, with an agent and without: what the server knows in the end, what
//! the client prints and how it ends are the same.
//!
//! They need many packages, so `cargo test` leaves them out: `cargo test --test clients` runs them. Each test installs
//! what its client needs under `target/tools`, in pinned versions, once.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot continue fails")]

#[path = "../support/mod.rs"]
mod support;

mod compare;
mod frameworks;
mod install;
mod links;
mod litellm;
mod mcp;
mod opik_cli;
mod otlp;
mod reads;
mod scenario;
