//! End-to-end tests: real processes and real HTTP on loopback.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot continue fails")]

#[path = "../support/mod.rs"]
mod support;

mod acknowledgement;
mod attachments;
mod background;
mod bad_input;
mod bodies;
#[cfg(target_os = "linux")]
mod bounded_commands;
mod carrying;
mod clock;
mod completeness;
mod conflicts;
mod consistency;
mod corrections;
mod credentials;
mod damage;
mod delivery;
mod destination;
mod durability;
mod early_answers;
mod encryption;
mod fake_opik;
mod fleet_ahead;
mod fleet_dial;
mod fleet_engines;
mod fleet_faults;
mod fleet_garage;
mod fleet_keys;
mod fleet_kills;
mod fleet_member;
mod fleet_owner_purges;
mod fleet_people;
mod fleet_replay;
mod fleet_selection;
mod fleet_shipping;
mod fleet_streams;
mod fleet_testament;
mod fleet_versions;
mod flushing;
mod foreign_answers;
mod forwarding;
#[cfg(target_os = "linux")]
mod full_disk;
mod full_store;
mod http2;
mod http_compatibility;
mod hub;
mod isolation;
mod key_rotation;
mod large_batches;
mod limits;
mod links;
#[cfg(target_os = "linux")]
mod load;
mod logs;
mod memory;
#[cfg(target_os = "linux")]
mod memory_budget;
mod memory_copies;
mod messages;
#[path = "../support/model_store.rs"]
mod model_store;
mod moving;
mod network_settings;
mod networks;
mod node_module;
mod non_blocking;
#[cfg(target_os = "linux")]
mod open_files;
mod origin;
mod other_users;
mod otlp;
mod otlp_repeats;
mod outage;
mod overtaking;
mod panics;
mod parallel_batches;
#[path = "../depot/postgres/servers.rs"]
#[allow(dead_code, reason = "tests/depot uses all of it")]
mod postgres_servers;
mod prism;
mod proxy;
mod python_module;
mod rate_limits;
mod recovery;
mod replay_hold;
mod replay_order;
mod rolling_upgrade;
mod salvage;
mod salvage_trust;
mod sdk;
mod sdk_outage;
mod security;
mod service_manager;
#[path = "../support/shipped_book.rs"]
mod shipped_book;

mod splitting;
mod startup;
mod status_page;
mod stopping;
mod stranded;
mod support_bundle;
mod tls;
mod two_processes;
mod unread;
mod unusable_store;
mod updates_before_creates;
mod verify;
#[cfg(target_os = "linux")]
mod volumes;
mod web_pages;
mod wrapped;
mod wrapped_beside;
mod wrapped_nested;
mod wrapped_signals;
mod writes;
