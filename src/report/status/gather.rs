//! Gathers the overview of the command `status`: from the store itself, so that it works with and without an agent, and
//! from a running agent.

use std::time::{Duration, Instant};

use crate::agent::wrapped::store_option;
use crate::config::Config;
use crate::delivery::eta::{Eta, EtaState, Situation, eta};
use crate::message::Server;
use crate::overview::asked::{AskedAgent, FoundAgents, OwnStore};
use crate::overview::details::{AgentsStoreView, StoreDetails};
use crate::overview::{FullOverview, HubOverview, Overview, ReplayOverview, ServerOverview, StoreOverview, elsewhere};
use crate::protocol::recognise::Presence;
use crate::store::full_state::remedies;
use crate::store::{Backlog, Condition, FullLimit, StoreError, now_ms};
use crate::telemetry::history::Sample;
use crate::translate;
use crate::upstream::{Pong, Upstream};

/// An overview, and details that only the command shows.
pub(crate) struct Gathered {
    pub overview: Overview,
    /// The agent that uses this store, if one answered.
    pub agent: Option<AskedAgent>,
    /// An agent at the configured address that uses another store, if there is one: nothing here counts what it holds.
    pub other_agent: Option<AskedAgent>,
    /// How long the server took to answer a ping of ours; `None` if the agent was asked instead.
    pub latency_ms: Option<u64>,
    /// The details that this process read from the store, or why it could not.
    pub store: Result<StoreDetails, StoreError>,
    /// Whether the overview's `full` comes from the agent.
    pub is_full_from_agent: bool,
    /// The present sample, for `--watch` without an agent.
    pub sample: Sample,
}

/// Asks store, agent and server. That one of them can't be asked is part of the overview.
pub(crate) fn gather(config: &Config, upstream: &Upstream, started: Instant) -> Gathered {
    let now = now_ms();
    let store = translate::existing_store_without_key(config).and_then(|store| match store {
        None => Ok(StoreDetails::default()),
        Some(store) => StoreDetails::read(store.as_ref(), now),
    });
    let details = store.as_ref().ok();
    let condition = details.and_then(|details| details.condition.as_ref());
    let records = condition.map_or(&[][..], |condition| &condition.agents);
    let own = OwnStore::new(details.and_then(|details| details.identity), &config.db.value);
    let configured = translate::server(config);
    let FoundAgents { serving: agent, other: other_agent } =
        FoundAgents::find(records, config.listen.value, &own, &configured);
    let view = agent.as_ref().map(AskedAgent::view).unwrap_or_default();
    let (server, latency) = match agent.as_ref().and_then(|agent| agent.server.clone()) {
        Some(server) => (server, None),
        None => ping(config, upstream),
    };
    let is_full_from_agent = view.store.full.is_some();
    let fleet = view.fleet;
    let shown = Server::new(&server.url);
    let store_overview = store_overview(config, &store, view.store, &shown);
    // An agent knows nothing of a store that it can't use.
    let is_served = agent.as_ref().is_some_and(|agent| agent.store_problem.is_none());
    let eta = details.map(|details| {
        let situation = details.situation(&shown, translate::pace(config), server.connection, latency, now);
        let others: u64 = store_overview.elsewhere.iter().map(|other| other.waiting).sum();
        let situation = match is_served {
            true => {
                Situation { waiting: details.backlog.waiting().saturating_sub(others), is_replayed: true, ..situation }
            }
            false => situation,
        };
        estimate(view.eta.map(|eta| eta.eta).filter(|_| is_served), &situation).into()
    });
    let sample = Sample {
        at_ms: now,
        uptime_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        waiting: details.map(|details| details.backlog.waiting()),
        ..Sample::default()
    };
    let last_replay = condition.and_then(|condition| condition.last_replay.as_ref());
    let overview = Overview {
        schema_version: 1,
        at_ms: now,
        agent: agent.as_ref().map(|agent| agent.overview.clone()).unwrap_or_default(),
        server,
        store: store_overview,
        fleet,
        rates: view.rates,
        forwarded_refused: view.forwarded_refused,
        eta,
        lanes: Vec::new(),
        lanes_total: 0,
        edges: view.edges,
        replays: last_replay.map(ReplayOverview::of).into_iter().collect(),
        history: view.history,
        page: crate::overview::PageDetails::default(),
    };
    let latency_ms = latency.map(|latency| u64::try_from(latency.as_millis()).unwrap_or(u64::MAX));
    Gathered { overview, agent, other_agent, latency_ms, store, is_full_from_agent, sample }
}

/// Returns when everything will be delivered. The agent has measured the throughput, but its overview is cached: a
/// snapshot that contradicts the counts of this process is discarded, as messages arrived or left since.
fn estimate(told: Option<Eta>, situation: &Situation) -> Eta {
    let is_current = |told: &Eta| (told.state == EtaState::Nothing) == (situation.waiting == 0);
    told.filter(is_current).unwrap_or_else(|| eta(situation))
}

/// Returns the store as this process read it, completed with the agent's view.
fn store_overview(
    config: &Config,
    store: &Result<StoreDetails, StoreError>,
    view: AgentsStoreView,
    own: &Server,
) -> StoreOverview {
    let moved_stores = view.moved_stores;
    let (details, condition) = match store {
        Ok(details) => match &details.condition {
            Some(condition) => (details, condition),
            None => {
                let refused_writes = view.refused_writes.unwrap_or_default();
                return StoreOverview { moved_stores, refused_writes, ..StoreOverview::default() };
            }
        },
        Err(error) => {
            let refused_writes = view.refused_writes.unwrap_or_default();
            let reason = Some(error.to_string());
            return StoreOverview { reason, moved_stores, refused_writes, ..StoreOverview::default() };
        }
    };
    let usable = StoreOverview::usable(&details.backlog, condition);
    StoreOverview {
        full: full(&store_option(config), view.full, &details.backlog, condition),
        refused_writes: view.refused_writes.unwrap_or(usable.refused_writes),
        elsewhere: elsewhere(&details.backlog, own),
        moved_stores,
        ..usable
    }
}

/// Returns why the store is full: as the running agent has found it, or as the store measures itself.
fn full(
    store_option: &str,
    seen: Option<FullOverview>,
    backlog: &Backlog,
    condition: &Condition,
) -> Option<FullOverview> {
    let full = match (seen, &condition.full) {
        (Some(seen), _) => seen,
        (None, Some(full)) => FullOverview {
            since_ms: condition.full_record.since_ms,
            limit: full.limit.name().to_owned(),
            reason: full.reason.clone(),
            refused_writes: 0,
            passed_on_writes: 0,
            remedies: Vec::new(),
        },
        (None, None) => return None,
    };
    let limit = FullLimit::ALL.into_iter().find(|known| known.name() == full.limit);
    let remedies = limit.map(|limit| remedies(limit, backlog.waiting(), backlog.rejected(), store_option));
    Some(FullOverview { remedies: remedies.unwrap_or_default(), ..full })
}

/// Pings the server, if no agent knows its state.
fn ping(config: &Config, upstream: &Upstream) -> (ServerOverview, Option<Duration>) {
    let (connection, reason, latency, hub) = match upstream.ping(config.connection_monitor_check_timeout.value) {
        Ok(Pong { presence, latency, hub, .. }) => {
            let word = match presence {
                Presence::There | Presence::Unauthorised(_) => "available",
                Presence::Unhealthy(..) | Presence::Foreign(_) => "unavailable",
            };
            (word, presence.reason(), Some(latency), hub.map(|hub| HubOverview::from(*hub)))
        }
        Err(failure) => ("unavailable", Some(failure.to_string()), None, None),
    };
    let server = ServerOverview { url: upstream.base_url().to_owned(), connection, since_ms: None, reason, hub };
    (server, latency)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_estimate_does_not_contradict_the_counts() {
        let away = Situation { waiting: 8, available: Some(false), is_replayed: true, ..Situation::default() };
        let nothing = Some(Eta::silent(EtaState::Nothing));
        assert_eq!(estimate(nothing, &away).state, EtaState::ServerAway, "eight messages have arrived since");
        let moving = Some(Eta::silent(EtaState::Moving));
        assert_eq!(estimate(moving, &Situation { waiting: 0, ..away }).state, EtaState::Nothing);
        assert_eq!(estimate(moving, &away).state, EtaState::Moving, "the agent has seen more");
        assert_eq!(estimate(None, &away).state, EtaState::ServerAway);
    }
}
