//! How the agent, its server and its store are: gathered once, then rendered by the status page, by
//! `/-/status.json` and by the command `status`.
//!
//! # Invariants
//!
//! - An overview holds counts and never a payload or a key: a lane shows its workspace and, as everywhere, at most the
//!   beginning of its key.
//! - The agent caches an overview for a second ([`collector`]), so that the store is read once for any number of
//!   viewers.
//! - [`Overview`] serializes to `/-/status.json`. Fields are only ever added within one schema version; what only the
//!   command shows is skipped, or is in [`details`].

pub(crate) mod asked;
pub(crate) mod collector;
pub(crate) mod details;
pub(crate) mod dial;
pub(crate) mod edges;
mod facts;
pub(crate) mod full_watch;
pub(crate) mod lanes;
pub(crate) mod page;
pub(crate) mod projects;
pub(crate) mod rejections;
pub(crate) mod store;

use serde::{Deserialize, Serialize};

pub(crate) use self::collector::OverviewCollector;
use self::dial::DialOverview;
pub(crate) use self::edges::{EdgesOverview, HubOverview};
pub(crate) use self::lanes::LaneOverview;
pub(crate) use self::page::PageDetails;
pub(crate) use self::store::{ElsewhereOverview, FullOverview, LiveWrites, RecoveryOverview, StoreOverview, elsewhere};
use crate::delivery::eta::Eta;
use crate::monitor::Availability;
use crate::store::ReplayRecord;
use crate::telemetry::history::{Rates, Sample};
use crate::telemetry::refusals::ForwardedRefused;

/// A snapshot of everything that is known about an agent, its server and its store.
#[derive(Clone, Debug, Serialize)]
pub struct Overview {
    /// 1.
    pub schema_version: u32,
    /// When it was gathered, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    pub agent: AgentOverview,
    pub server: ServerOverview,
    pub store: StoreOverview,
    /// Only with a depot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetOverview>,
    /// `null` for the first seconds.
    pub rates: Option<Rates>,
    /// Writes of applications that the server refused, as they were told; `None` where no agent tells.
    pub forwarded_refused: Option<ForwardedRefused>,
    /// `null` while the store can't be read.
    pub eta: Option<EtaOverview>,
    /// Lanes with messages to deliver, those with the oldest messages first; 200 at most.
    pub lanes: Vec<LaneOverview>,
    /// How many there are.
    pub lanes_total: u64,
    /// Agents that send through this one.
    pub edges: EdgesOverview,
    /// Replays that this agent saw, the newest first.
    pub replays: Vec<ReplayOverview>,
    /// A sample every 5 seconds of the last quarter of an hour, the oldest first.
    pub history: Vec<Sample>,
    /// Only for the page: JSON for programs stays small.
    #[serde(skip)]
    pub page: PageDetails,
}

/// The agent's process. All fields are empty where no agent runs, which only the command shows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AgentOverview {
    pub pid: u32,
    pub version: String,
    pub listen: String,
    pub uptime_seconds: u64,
    /// The limits that follow from too few file descriptors, and what to do.
    pub files_problem: Option<String>,
    /// The protocol of a client that nobody understands, with the remedy.
    pub client_problem: Option<String>,
}

/// The connection to the server.
#[derive(Clone, Debug, Serialize)]
pub struct ServerOverview {
    pub url: String,
    /// `available`, `unavailable` or `unknown`.
    pub connection: &'static str,
    /// In milliseconds since the Unix epoch; always known to an agent.
    pub since_ms: Option<i64>,
    /// Why it is unavailable.
    pub reason: Option<String>,
    /// The hub that this server is, if it is one, and that hub's own server.
    pub hub: Option<HubOverview>,
}

/// The copies of stored messages in the fleet's depot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetOverview {
    /// Its URL, without secrets.
    pub depot: String,
    /// Why nothing can be copied to it now.
    pub problem: Option<String>,
    /// The stream that is copied to.
    pub stream: Option<String>,
    /// Streams that a replayer has taken over and not finished.
    pub handed_over: u64,
    /// Messages that wait and have no copy there.
    pub unshipped_messages: u64,
    /// When the oldest of them was accepted, in milliseconds since the Unix epoch.
    pub unshipped_oldest_ms: Option<i64>,
    /// The decisions of people about the pace of the fleet, as the agent knows it.
    #[serde(default)]
    pub dial: DialOverview,
    /// The replay of streams of agents that are gone; `null` if the agent does not replay.
    #[serde(default)]
    pub replay: Option<FleetReplayOverview>,
}

/// The replay of streams of agents that are gone, by an agent (`fleet_replay`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetReplayOverview {
    /// Why no more streams can be taken over now.
    pub problem: Option<String>,
    /// Streams that are held and being delivered.
    pub streams: u64,
    /// Their messages that the server confirmed, since the agent's start. The agent's own are not counted here.
    pub delivered: u64,
    /// Their messages that the server rejected, since the agent's start.
    pub rejected: u64,
}

/// An [`Eta`] with its words.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EtaOverview {
    #[serde(flatten)]
    pub eta: Eta,
    pub text: String,
}

impl From<Eta> for EtaOverview {
    fn from(eta: Eta) -> Self {
        Self { eta, text: eta.to_string() }
    }
}

/// How a replay ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReplayOverview {
    /// `agent` or `replay`.
    pub by: String,
    pub started_at_ms: i64,
    pub ended_at_ms: i64,
    pub delivered: u64,
    pub rejected: u64,
    pub remaining: u64,
}

impl ReplayOverview {
    pub(crate) fn of(record: &ReplayRecord) -> Self {
        Self {
            by: record.role.clone(),
            started_at_ms: record.started_at_ms,
            ended_at_ms: record.ended_at_ms,
            delivered: record.delivered,
            rejected: record.rejected,
            remaining: record.remaining,
        }
    }
}

/// Returns the messages per second of a replay; `None` if it finished before it was up to speed.
fn pace_of(record: &ReplayRecord) -> Option<f64> {
    const DELIVERED_MIN: u64 = 500;
    let milliseconds = (record.ended_at_ms - record.started_at_ms).max(1) as f64;
    (record.delivered >= DELIVERED_MIN).then(|| record.delivered as f64 * 1000.0 / milliseconds)
}

/// Returns the word for the state of the connection.
pub(crate) fn connection_word(availability: Availability) -> &'static str {
    match availability {
        Availability::Unknown => "unknown",
        Availability::Available => "available",
        Availability::Unavailable => "unavailable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_messages_give_no_pace() {
        let record = |delivered| ReplayRecord {
            role: "agent".into(),
            started_at_ms: 1000,
            ended_at_ms: 3000,
            delivered,
            rejected: 0,
            remaining: 0,
        };
        assert_eq!([499, 500].map(|delivered| pace_of(&record(delivered))), [None, Some(250.0)]);
    }
}
