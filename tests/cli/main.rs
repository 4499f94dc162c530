//! The command line as a person and a script see it: stdout, stderr and the exit code.
//!
//! Expected output is in the tests as printed; values that vary between runs are masked by [`sandbox::Sandbox`].

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot continue fails")]

#[path = "../support/mod.rs"]
mod support;

mod browsing;
mod formats;
mod health;
mod hostile;
mod purging;
mod reading;
mod replaying;
mod sandbox;
mod schemas;
mod secrets;
mod stores;
mod usage;
mod verifying;
mod wrapping;
