//! Depots.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot continue fails")]

mod postgres;
#[path = "../support/mod.rs"]
mod support;
