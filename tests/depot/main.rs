//! The promises of depots, on every engine: a folder, the model, and object storage as others run it (SeaweedFS and
//! Azurite, installed under `target/tools`); and what faults of storage and network do to them.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot continue fails")]

mod azure;
mod contract;
mod credentials;
mod failover;
mod faults;
mod folder;
mod health;
mod model;
mod postgres;
mod s3;
mod scripted;
#[path = "../support/mod.rs"]
mod support;
