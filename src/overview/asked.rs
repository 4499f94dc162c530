//! Asks a running agent about itself, its server and its store.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::details::AgentsView;
use super::{AgentOverview, LiveWrites, ServerOverview};
use crate::figures::count;
use crate::hint;
use crate::message::Server;
use crate::printable::shell_word;
use crate::store::{AgentRecord, StoreIdentity};
use crate::upstream::{Upstream, UpstreamSettings};

/// How long an agent on this machine may take to answer.
const AGENT_TIMEOUT: Duration = Duration::from_secs(2);
/// How many bytes of an answer are read: its lists are bounded, but for the rows of what is stored.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The store that a command reads.
pub(crate) struct OwnStore<'a> {
    /// `None` if it is not there, or can't be read.
    identity: Option<String>,
    path: &'a Path,
}

impl<'a> OwnStore<'a> {
    /// Returns the store at a path. `identity` is `None` if it is not there, or can't be read.
    pub(crate) fn new(identity: Option<StoreIdentity>, path: &'a Path) -> Self {
        Self { identity: identity.map(|identity| identity.to_string()), path }
    }
}

/// The agents that answer.
#[derive(Default)]
pub(crate) struct FoundAgents {
    /// The one that uses the command's store.
    pub serving: Option<AskedAgent>,
    /// One that uses another store: what waits there is not in the command's figures.
    pub other: Option<AskedAgent>,
}

impl FoundAgents {
    /// Asks the agents that are recorded in the store, then the configured address, until one uses the store and
    /// delivers to `server`. If none delivers there, it is the first that uses the store.
    pub(crate) fn find(records: &[AgentRecord], configured: SocketAddr, own: &OwnStore<'_>, server: &Server) -> Self {
        let mut addresses: Vec<String> = records.iter().map(|record| record.listen.clone()).collect();
        if !addresses.contains(&configured.to_string()) {
            addresses.push(configured.to_string());
        }
        let mut found = Self::default();
        for agent in addresses.iter().filter_map(|listen| AskedAgent::ask_at(listen)) {
            let delivers_there = agent.delivers_to(server);
            match (agent.store.is(own), &found.serving) {
                (true, _) if delivers_there => {
                    found.serving = Some(agent);
                    break;
                }
                (true, None) => found.serving = Some(agent),
                (false, None) => _ = found.other.get_or_insert(agent),
                (_, Some(_)) => {}
            }
        }
        found
    }
}

/// The store of a running agent, as it answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct AgentsStore {
    /// `None` if it can't be used, or the agent's version does not report it.
    identity: Option<String>,
    /// `None` if the agent's version does not report it.
    pub path: Option<String>,
    /// Messages that wait for the agent's server; `None` if the store can't be used.
    pub waiting: Option<u64>,
    /// Messages that it rejected.
    pub rejected: Option<u64>,
    /// When the oldest of them was accepted, in milliseconds since the Unix epoch.
    pub oldest_accepted_at_ms: Option<i64>,
}

impl AgentsStore {
    /// Returns whether it is the store that a command reads. One that is not known to be another counts as the same.
    fn is(&self, own: &OwnStore<'_>) -> bool {
        match (&self.identity, &own.identity, &self.path) {
            (Some(agents), Some(own), _) => agents == own,
            (_, _, Some(path)) => real(Path::new(path)) == real(own.path),
            (_, _, None) => true,
        }
    }
}

/// Returns a path without links and in full, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let folder = || Some(absolute.parent()?.canonicalize().ok()?.join(absolute.file_name()?));
    absolute.canonicalize().ok().or_else(folder).unwrap_or(absolute)
}

/// A running agent, as it answers.
pub(crate) struct AskedAgent {
    pub overview: AgentOverview,
    /// The server as the agent knows it.
    pub server: Option<ServerOverview>,
    pub store: AgentsStore,
    /// Why it can't use its store; this process may be able to.
    pub store_problem: Option<String>,
    /// Why its store is full, if it is.
    pub store_full: Option<String>,
    /// The word for what it does with live writes: [`LiveWrites::word`].
    pub live_writes: Option<String>,
}

impl AskedAgent {
    /// Asks the agent that listens at an address; `None` if none answers.
    pub(crate) fn ask_at(listen: &str) -> Option<Self> {
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
                // Its second half is shown as a remedy.
                files_problem: text(&agent["files_problem"]).map(|problem| hint::foreign(&problem)),
                client_problem: text(&agent["client_problem"]),
            },
            server: ready.get("server").map(server),
            store: AgentsStore::deserialize(&ready["store"]).unwrap_or_default(),
            store_problem: text(&ready["store"]["reason"]),
            store_full: text(&ready["store"]["full"]),
            live_writes: text(&ready["store"]["live_writes"]),
        })
    }

    /// Returns whether it delivers to this server.
    pub(crate) fn delivers_to(&self, server: &Server) -> bool {
        self.server.as_ref().is_some_and(|own| Server::new(&own.url) == *server)
    }

    /// Returns for people that it uses another store than the command, and what waits there.
    pub(crate) fn other_store_text(&self) -> String {
        let AskedAgent { overview, server, store, .. } = self;
        let path = store.path.as_deref().unwrap_or_default();
        let server = server.as_ref().map_or("its server", |server| &server.url);
        let waiting = match store.waiting {
            None => "it can't use it".to_owned(),
            Some(1) => format!("1 message waits there for {server}"),
            Some(waiting) => format!("{} wait there for {server}", count(waiting, "message")),
        };
        let rejected = store.rejected.filter(|rejected| *rejected > 0);
        let rejected = rejected.map_or(String::new(), |rejected| format!(", {rejected} rejected"));
        let (listen, pid, db) = (&overview.listen, overview.pid, shell_word(path.as_ref()));
        format!(
            "the agent on {listen} (pid {pid}) uses another store: {waiting}{rejected}, see `opik-offline status --db {db}`"
        )
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
fn live_writes_text(word: Option<&str>) -> &'static str {
    LiveWrites::text_of(word.unwrap_or_default())
}

/// Returns for people that an agent can't use its store, and why; it follows "it".
pub(crate) fn degraded_text(live_writes: Option<&str>, store_problem: Option<&str>) -> Option<String> {
    Some(format!("{}: {}", live_writes_text(live_writes), store_problem?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_with_another_store_is_told_from_one_with_the_same() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (one, two) = (StoreIdentity::of(b"one"), StoreIdentity::of(b"two"));
        let agents = |identity: Option<StoreIdentity>, path: Option<String>| AgentsStore {
            identity: identity.map(|identity| identity.to_string()),
            path,
            ..AgentsStore::default()
        };
        let own = folder.path().join("./own.db");
        for (store, identity, expected) in [
            (agents(Some(one), Some(path("own.db"))), Some(one), true),
            (agents(Some(one), Some(path("link.db"))), Some(one), true),
            (agents(Some(one), Some(path("own.db"))), Some(two), false),
            // It is not there, or can't be read.
            (agents(Some(one), Some(path("own.db"))), None, true),
            (agents(Some(one), Some(path("other.db"))), None, false),
            // The agent can't use its store.
            (agents(None, Some(path("own.db"))), Some(one), true),
            (agents(None, Some(path("other.db"))), Some(one), false),
            // An earlier version.
            (agents(None, None), Some(one), true),
        ] {
            let found = store.is(&OwnStore::new(identity, &own));
            assert_eq!(found, expected, "{store:?} {identity:?}");
        }
    }
}
