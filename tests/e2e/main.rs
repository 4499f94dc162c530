//! End-to-end tests: real processes and real HTTP on loopback.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot continue fails")]

#[path = "../support/mod.rs"]
mod support;

mod attachments;
mod bad_input;
mod blocking;
mod bodies;
#[cfg(target_os = "linux")]
mod bounds;
mod buckets;
mod chaos;
mod clock;
mod conflicts;
mod credentials;
mod damage;
mod degraded;
mod delivery;
mod destination;
mod early_answers;
mod edges;
mod encryption;
mod fake_opik;
#[cfg(target_os = "linux")]
mod files;
mod flushing;
mod foreign;
mod forwarding;
#[cfg(target_os = "linux")]
mod full_disk;
mod full_store;
mod http2;
mod isolation;
mod kills;
mod large;
mod limits;
mod links;
#[cfg(target_os = "linux")]
mod load;
mod logs;
mod memory;
mod messages;
mod mixed;
#[path = "../support/model_store.rs"]
mod model_store;
mod network_settings;
mod networks;
mod origin;
mod other_users;
mod otlp;
mod otlp_repeats;
mod outage;
mod overtaking;
mod own_faults;
mod peak;
#[cfg(target_os = "linux")]
mod people;
mod planted;
mod prism;
mod proxy;
mod rotations;
mod salvage;
mod sdk;
mod sdk_outage;
mod security;
mod service_manager;
mod singles;
mod splitting;
mod startup;
mod status_page;
mod stopping;
mod storm;
mod stranded;
mod tls;
mod two_processes;
mod verify;
mod versions;
#[cfg(target_os = "linux")]
mod volumes;
mod weather;
mod web_pages;
mod wrapped;
mod wrapped_beside;
mod wrapped_nested;
mod wrapped_signals;
mod writes;
