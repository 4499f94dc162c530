//! The command line as a person and a script meet it: what stands on stdout and stderr, and how it ends.
//!
//! Expected output stands in the tests as it is printed; what differs from run to run is masked by [`sandbox::Sandbox`].

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot go on says so by failing")]

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
