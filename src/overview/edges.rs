//! The edges of a hub: agents that send through this one, as they describe themselves in their pings.
//!
//! # Invariants
//!
//! - The fields of an edge were validated when it was parsed ([`crate::protocol::hub`]), and are shown, never acted on: an
//!   edge that lies changes no delivery.
//! - At most [`EDGES_MAX`] are kept, however many are sent: the one that was silent longest makes room.
//! - They are only in memory. After a restart of the hub each edge is known again with its next ping.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::protocol::hub::{Edge, Hub};

/// How many edges are remembered.
const EDGES_MAX: usize = 1000;
/// How many of them an overview lists, those heard from last first.
const LISTED_MAX: usize = 200;
/// How long an edge counts as recent: many times the interval of its pings.
const RECENT: Duration = Duration::from_secs(5 * 60);
/// How long a silent edge is remembered.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The server of an agent, if that is a hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubOverview {
    pub version: Option<String>,
    /// The base URL of the hub's own server.
    pub server_url: Option<String>,
    /// Whether the hub reaches it: `available`, `unavailable` or `unknown`.
    pub connection: String,
    /// In milliseconds since the Unix epoch, by the hub's clock.
    pub since_ms: Option<u64>,
    /// Messages that wait in the hub's store.
    pub waiting: Option<u64>,
}

impl From<Hub> for HubOverview {
    fn from(hub: Hub) -> Self {
        let Hub { version, server_url, server, since_ms, waiting } = hub;
        Self { version, server_url, connection: server.word().to_owned(), since_ms, waiting }
    }
}

/// The edges of this agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EdgesOverview {
    /// Edges that were heard from within a day, 1,000 at most.
    pub known: u64,
    /// Those of them that were heard from within five minutes.
    pub recent: u64,
    /// Messages that waited at all known ones when they were last heard from.
    pub waiting_messages: u64,
    /// Those that were heard from last, 200 at most.
    pub list: Vec<EdgeOverview>,
}

/// One edge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EdgeOverview {
    pub host: Option<String>,
    pub version: Option<String>,
    /// How long ago it was heard from.
    pub silent_seconds: u64,
    /// Messages that waited there.
    pub waiting: Option<u64>,
}

/// Remembers edges by their ids.
#[derive(Debug, Default)]
pub(crate) struct EdgeRegistry(Mutex<HashMap<String, HeardEdge>>);

#[derive(Debug)]
struct HeardEdge {
    edge: Edge,
    at: Instant,
}

impl EdgeRegistry {
    /// Notes that an edge was heard from.
    pub(crate) fn note(&self, edge: Edge, now: Instant) {
        let mut edges = self.lock();
        if edges.len() >= EDGES_MAX && !edges.contains_key(&edge.id) {
            let oldest = edges.iter().min_by_key(|(_, heard)| heard.at).map(|(id, _)| id.clone());
            oldest.and_then(|oldest| edges.remove(&oldest));
        }
        edges.insert(edge.id.clone(), HeardEdge { edge, at: now });
    }

    /// Returns what is known of them.
    pub(crate) fn overview(&self, now: Instant) -> EdgesOverview {
        let silence = |heard: &HeardEdge| now.saturating_duration_since(heard.at);
        let mut edges = self.lock();
        edges.retain(|_, heard| silence(heard) < FORGOTTEN_AFTER);
        let mut heard: Vec<&HeardEdge> = edges.values().collect();
        heard.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| a.edge.host.cmp(&b.edge.host)));
        EdgesOverview {
            known: heard.len() as u64,
            recent: heard.iter().filter(|heard| silence(heard) < RECENT).count() as u64,
            waiting_messages: heard.iter().filter_map(|heard| heard.edge.waiting).fold(0, u64::saturating_add),
            list: heard
                .into_iter()
                .take(LISTED_MAX)
                .map(|heard| EdgeOverview {
                    host: heard.edge.host.clone(),
                    version: heard.edge.version.clone(),
                    silent_seconds: silence(heard).as_secs(),
                    waiting: heard.edge.waiting,
                })
                .collect(),
        }
    }

    /// A panic elsewhere leaves a valid map: every change is one call.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, HeardEdge>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(id: &str, waiting: u64) -> Edge {
        Edge { id: id.to_owned(), host: Some(format!("host-{id}")), version: None, waiting: Some(waiting) }
    }

    #[test]
    fn any_number_of_edges_takes_bounded_memory_and_the_longest_silent_one_goes() {
        let (registry, start) = (EdgeRegistry::default(), Instant::now());
        for n in 0..3000_u64 {
            registry.note(edge(&n.to_string(), 1), start + Duration::from_millis(n));
            // One that stays is not pushed out.
            registry.note(edge("steady", 5), start + Duration::from_millis(n));
        }
        let now = start + Duration::from_secs(3);
        let overview = registry.overview(now);
        assert_eq!((overview.known, overview.recent, overview.list.len()), (1000, 1000, 200));
        assert_eq!(overview.waiting_messages, 999 + 5, "an edge counts once, however often it pings");
        assert!(overview.list.iter().any(|edge| edge.host.as_deref() == Some("host-steady")));
        assert!(!registry.lock().contains_key("0"), "the first of them were silent longest");
    }

    #[test]
    fn a_silent_edge_stays_visible_for_a_day_with_what_it_held() {
        let (registry, start) = (EdgeRegistry::default(), Instant::now());
        registry.note(edge("gone", u64::MAX), start);
        registry.note(edge("there", 3), start + Duration::from_secs(3600));
        let overview = registry.overview(start + Duration::from_secs(3600));
        assert_eq!((overview.known, overview.recent, overview.waiting_messages), (2, 1, u64::MAX));
        let silent: Vec<u64> = overview.list.iter().map(|edge| edge.silent_seconds).collect();
        assert_eq!(silent, [0, 3600], "who was heard from last comes first");
        assert_eq!(registry.overview(start + FORGOTTEN_AFTER).known, 1);
    }
}
