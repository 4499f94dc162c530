//! Asks a running agent about itself, its server and its store.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::details::AgentsView;
use super::{AgentOverview, LiveWrites, ServerOverview};
use crate::store::AgentRecord;
use crate::upstream::{Upstream, UpstreamSettings};

/// How long an agent on this machine may take to answer.
const AGENT_TIMEOUT: Duration = Duration::from_secs(2);
/// How many bytes of an answer are read: its lists are bounded, but for the rows of what is stored.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A running agent, as it answers.
pub(crate) struct AskedAgent {
    pub overview: AgentOverview,
    /// The server as the agent knows it.
    pub server: Option<ServerOverview>,
    /// Why it can't use its store; this process may be able to.
    pub store_problem: Option<String>,
    /// Why its store is full, if it is.
    pub store_full: Option<String>,
    /// The word for what it does with live writes: [`LiveWrites::word`].
    pub live_writes: Option<String>,
}

impl AskedAgent {
    /// Asks the agents that are recorded in the store, then the configured address; returns the first that answers.
    pub(crate) fn ask(records: &[AgentRecord], configured: SocketAddr) -> Option<Self> {
        let recorded = records.iter().map(|record| record.listen.clone());
        recorded.chain([configured.to_string()]).find_map(|listen| Self::ask_at(&listen))
    }

    fn ask_at(listen: &str) -> Option<Self> {
        let answer = client(listen).read("-/ready", AGENT_TIMEOUT).ok()?;
        let ready: Value = serde_json::from_str(&answer.text).ok()?;
        let agent = ready.get("agent")?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some(Self {
            overview: AgentOverview {
                pid: agent["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default(),
                version: text(&agent["version"]).unwrap_or_default(),
                listen: listen.to_owned(),
                uptime_seconds: agent["uptime_seconds"].as_u64().unwrap_or_default(),
                files_problem: text(&agent["files_problem"]),
            },
            server: ready.get("server").map(server),
            store_problem: text(&ready["store"]["reason"]),
            store_full: text(&ready["store"]["full"]),
            live_writes: text(&ready["store"]["live_writes"]),
        })
    }

    /// Returns the agent's view; an empty one if its version does not report it.
    pub(crate) fn view(&self) -> AgentsView {
        self.status().unwrap_or_default()
    }

    /// Returns everything that the agent reports.
    pub(crate) fn document(&self) -> Option<Value> {
        self.status()
    }

    fn status<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        let answer = client(&self.overview.listen).read_whole("-/status.json", AGENT_TIMEOUT, ANSWER_BYTES_MAX);
        serde_json::from_str(&answer.ok()?.text).ok()
    }
}

fn client(listen: &str) -> Upstream {
    Upstream::new(&UpstreamSettings::plain(format!("http://{listen}"), AGENT_TIMEOUT))
}

fn server(answer: &Value) -> ServerOverview {
    ServerOverview {
        url: answer["url"].as_str().unwrap_or_default().to_owned(),
        connection: match answer["connection"].as_str() {
            Some("available") => "available",
            Some("unavailable") => "unavailable",
            _ => "unknown",
        },
        since_ms: answer["since_ms"].as_i64(),
        reason: answer["reason"].as_str().map(str::to_owned),
        hub: serde_json::from_value(answer["hub"].clone()).ok(),
    }
}

/// Returns for people what an agent does with live writes that reports this word.
pub(crate) fn live_writes_text(word: Option<&str>) -> &'static str {
    LiveWrites::text_of(word.unwrap_or_default())
}

/// Returns for people that an agent can't use its store, and why; it follows "it".
pub(crate) fn degraded_text(live_writes: Option<&str>, store_problem: Option<&str>) -> Option<String> {
    Some(format!("{}: {}", live_writes_text(live_writes), store_problem?))
}
