//! Counters and gauges, and their Prometheus text.
//!
//! The table below is the only place that names a metric; a new metric is one new line. All accesses are relaxed
//! atomics: a scrape may see one number slightly earlier than another that changes concurrently, which is harmless for
//! metrics.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::refusals::RefusalCounter;

/// A number that only grows while the process lives.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Raises it to a number that is counted elsewhere in this process.
    pub fn raise_to(&self, count: u64) {
        self.0.fetch_max(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A measured number that goes up and down.
///
/// Whole numbers are exact up to 2^53, far beyond any count or size here.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// The static description of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: MetricKind,
}

/// The Prometheus type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
}

impl MetricKind {
    fn as_str(self) -> &'static str {
        match self {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        }
    }
}

macro_rules! metrics {
    ($($field:ident: $kind:ident = $name:literal, $help:literal;)*) => {
        /// Every metric, in the order in which they are rendered.
        pub static DESCRIPTIONS: &[Description] =
            &[$(Description { name: $name, help: $help, kind: MetricKind::$kind }),*];

        /// The metrics of this process; shared by reference.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $(#[doc = $help] pub $field: $kind,)*
            /// The refusals of forwarded writes by status, which no metric has.
            pub refusals: RefusalCounter,
        }

        impl Metrics {
            /// Counts a write whose client gets the server's own answer, with this status.
            pub fn answered_at_once(&self, status: http::StatusCode) {
                self.requests_forwarded.add(1);
                if !status.is_success() {
                    self.requests_forwarded_refused.add(1);
                    self.refusals.add(status.as_u16(), SystemTime::now());
                }
            }

            /// Returns the Prometheus text exposition, version 0.0.4.
            pub fn render(&self) -> String {
                let mut text = String::new();
                $(sample(&mut text, $name, $help, MetricKind::$kind, &self.$field.get().to_string());)*
                let help = "The version that is running; always 1";
                let name = concat!("opik_offline_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
                sample(&mut text, name, help, MetricKind::Gauge, "1");
                text
            }
        }
    };
}

metrics! {
    messages_registered: Counter = "opik_offline_messages_registered_total", "Messages committed to the store";
    messages_delivered: Counter = "opik_offline_messages_delivered_total", "Stored messages that the Opik server confirmed";
    messages_rejected: Counter = "opik_offline_messages_rejected_total", "Messages that the Opik server rejected, kept as dead letters";
    items_already_there: Counter = "opik_offline_items_already_there_total", "Creates, each alone in its request, that the Opik server had already (409)";
    items_rejected_in_success: Counter = "opik_offline_items_rejected_in_success_total", "Items that the Opik server reports as dropped from requests that it accepted";
    intake_refused: Counter = "opik_offline_intake_refused_total", "Writes refused with 503, because they could not be stored";
    intake_connections: Gauge = "opik_offline_intake_connections", "Open connections of clients";
    intake_connections_closed: Counter = "opik_offline_intake_connections_closed_total", "Idle connections closed to make room for new ones (max_connections)";
    intake_connections_refused: Counter = "opik_offline_intake_connections_refused_total", "Connections refused with 503, because all that may be open were busy (max_connections)";
    intake_over_limit: Counter = "opik_offline_intake_over_limit_total", "Requests refused or cut off, because they were larger, slower or framed otherwise than intake allows";
    intake_foreign_hosts: Counter = "opik_offline_intake_foreign_total{by=\"host\"}", "Requests refused because of a Host that is not the agent's (allowed_hosts), or because a web page of another site may have sent them";
    intake_foreign_pages: Counter = "opik_offline_intake_foreign_total{by=\"page\"}", "Requests refused because of a Host that is not the agent's (allowed_hosts), or because a web page of another site may have sent them";
    requests_forwarded: Counter = "opik_offline_requests_forwarded_total", "Protected writes that the Opik server answered at once";
    requests_forwarded_refused: Counter = "opik_offline_requests_forwarded_refused_total", "Those of them that the Opik server refused, as its answer told the client";
    requests_passed_through: Counter = "opik_offline_requests_passed_through_total", "Other requests streamed to the Opik server";
    replay_requests: Counter = "opik_offline_replay_requests_total", "Requests sent to replay stored messages";
    backlog_messages: Gauge = "opik_offline_backlog_messages", "Messages that still have to reach the Opik server";
    backlog_elsewhere_messages: Gauge = "opik_offline_backlog_elsewhere_messages", "Messages in the store that were accepted for other servers";
    backlog_body_bytes: Gauge = "opik_offline_backlog_body_bytes", "Bytes of the bodies and files of these messages";
    lanes_held: Gauge = "opik_offline_lanes_held", "Lanes that are held by a rate limit, or because the server refuses their key";
    replay_held: Gauge = "opik_offline_replay_held", "1 while a person holds the replay of the store (replay --hold)";
    rejected_messages: Gauge = "opik_offline_rejected_messages", "Rejected messages that are kept";
    held_messages: Gauge = "opik_offline_held_messages", "Messages held because the server refuses the time in their ids";
    stranded_messages: Gauge = "opik_offline_stranded_messages", "Messages that wait for a rejected or held create, at least";
    backlog_oldest_age_seconds: Gauge = "opik_offline_backlog_oldest_age_seconds", "Age of the oldest message of the backlog";
    store_size_bytes: Gauge = "opik_offline_store_size_bytes", "Size of the store on disk";
    store_dropped_messages: Gauge = "opik_offline_store_dropped_messages", "Messages evicted because the store was full, since it was created";
    store_expired_messages: Gauge = "opik_offline_store_expired_messages", "Messages that expired (max_age), since the store was created";
    store_full: Gauge = "opik_offline_store_full", "1 while the store has no room for new messages";
    refused_by_max_size: Counter = "opik_offline_store_refused_total{limit=\"max_size\"}", "Writes refused with 503 because the store was full, by the limit that it hit";
    refused_by_disk_reserve: Counter = "opik_offline_store_refused_total{limit=\"disk_reserve\"}", "Writes refused with 503 because the store was full, by the limit that it hit";
    refused_by_disk: Counter = "opik_offline_store_refused_total{limit=\"disk\"}", "Writes refused with 503 because the store was full, by the limit that it hit";
    refused_by_rejected: Counter = "opik_offline_store_refused_total{limit=\"rejected\"}", "Writes refused with 503 because the store was full, by the limit that it hit";
    store_rejected_dropped_messages: Gauge = "opik_offline_store_rejected_dropped_messages", "Rejected messages evicted because they took more than rejected_share and room was needed, since the store was created";
    store_lost_messages: Gauge = "opik_offline_store_lost_messages", "Messages of corrupt store files that could not be recovered";
    store_io_errors: Counter = "opik_offline_store_io_errors_total", "Writes and syncs of the store that failed";
    store_usable: Gauge = "opik_offline_store_usable", "1 while messages can be stored, 0 while writes are only passed on or refused";
    edges: Gauge = "opik_offline_edges", "Agents that send through this one and pinged it within five minutes";
    edges_waiting_messages: Gauge = "opik_offline_edges_waiting_messages", "Messages that waited at these and at agents that fell silent within a day, when they were last heard from";
    fleet_unshipped_messages: Gauge = "opik_offline_fleet_unshipped_messages", "Messages of the backlog that have no copy in the depot (fleet)";
    fleet_unshipped_age_seconds: Gauge = "opik_offline_fleet_unshipped_age_seconds", "Age of the oldest of these messages";
    fleet_shipped_messages: Counter = "opik_offline_fleet_shipped_messages_total", "Messages copied to the depot (fleet)";
    fleet_streams_held: Gauge = "opik_offline_fleet_streams_held", "Streams of agents that are gone that this agent delivers (fleet_replay)";
    fleet_replayed_messages: Counter = "opik_offline_fleet_replayed_messages_total", "Messages of these that the Opik server confirmed; not among the delivered ones of the store";
    fleet_replay_rejected_messages: Counter = "opik_offline_fleet_replay_rejected_messages_total", "Messages of these that the Opik server rejected, kept in the depot";
    fleet_acknowledged_locally: Counter = "opik_offline_fleet_acknowledged_locally_total", "Messages acknowledged without a copy in the depot although acknowledge is fleet, because the depot was away";
    connection_available: Gauge = "opik_offline_connection_available", "1 while the Opik server can be reached";
}

/// Returns the name of a metric without its labels.
fn family(name: &str) -> &str {
    name.split('{').next().unwrap_or(name)
}

fn sample(text: &mut String, sample: &str, help: &str, kind: MetricKind, value: &str) {
    let name = family(sample);
    let kind = kind.as_str();
    let heading = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
    // Samples of one metric follow each other, and have one heading.
    if !text.contains(&heading) {
        text.push_str(&heading);
    }
    // Writing to a String can't fail.
    let _ = writeln!(text, "{sample} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_gauges_are_rendered() {
        let metrics = Metrics::default();
        metrics.messages_registered.add(2);
        metrics.messages_registered.add(1);
        metrics.connection_available.set(1.0);
        metrics.backlog_oldest_age_seconds.set(0.025);
        let text = metrics.render();
        let expected = "# HELP opik_offline_messages_registered_total Messages committed to the store\n\
                        # TYPE opik_offline_messages_registered_total counter\n\
                        opik_offline_messages_registered_total 3\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(
            text.contains("\n# TYPE opik_offline_connection_available gauge\nopik_offline_connection_available 1\n")
        );
        assert!(text.contains("\nopik_offline_backlog_oldest_age_seconds 0.025\n"));
        assert!(text.contains("\nopik_offline_messages_rejected_total 0\n"), "an untouched counter is there, as 0");
        assert!(text.ends_with(concat!("opik_offline_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1\n")));
    }

    #[test]
    fn names_follow_the_prometheus_rules() {
        let mut names = std::collections::BTreeSet::new();
        for Description { name, help, kind } in DESCRIPTIONS {
            assert!(names.insert(name), "{name} is there twice");
            let name = family(name);
            assert!(name.starts_with("opik_offline_"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == MetricKind::Counter, "{name}");
            assert!(!help.contains(['\n', '\\']), "{name}: would need escaping");
        }
    }
}
