//! The agent's own pages: health for process supervisors, metrics for Prometheus, the status page for people and its
//! figures for programs. They show no payloads and no keys.

mod badge;
mod command;
mod html;
mod plot;
mod sections;
mod table;
mod text;
mod tiles;
mod verdict;

use std::time::UNIX_EPOCH;

use http::header::{self, HeaderMap, HeaderValue};
use hyper::Method;
use serde_json::json;

use super::forward::{self, ClientAnswer};
use super::shared::Shared;
use crate::monitor::Availability;
use crate::overview::{HubOverview, LiveWrites, connection_word};
use crate::printable;
use crate::protocol::answers::error;
use crate::protocol::hub::{EDGE_HEADER, Edge, HUB_HEADER};
use crate::store::{Filter, now_ms};

/// The path of the status page: it collides with no path of a server.
pub(super) const PATH: &str = "/-/";

/// One of the agent's own pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnPage {
    Overview,
    Status,
    Healthy,
    Ready,
    Metrics,
    /// See [`super::identity`].
    Instance,
    /// See [`super::flush`].
    Flush,
    MethodNotAllowed,
}

impl OwnPage {
    /// Returns the page at this normalised path, if there is one.
    pub(super) fn of(method: &Method, path: &str) -> Option<Self> {
        let page = match path {
            "/" | "/-" => Self::Overview,
            "/-/status.json" => Self::Status,
            "/-/healthy" => Self::Healthy,
            "/-/ready" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/-/instance" => Self::Instance,
            "/-/flush" => return Some(Self::Flush),
            _ => return None,
        };
        let is_read = method == Method::GET || method == Method::HEAD;
        Some(if is_read { page } else { Self::MethodNotAllowed })
    }

    pub(super) fn render(self, shared: &Shared) -> ClientAnswer {
        match self {
            Self::Healthy => match shared.liveness.check() {
                Ok(()) => plain("text/plain; charset=utf-8", "opik-offline is running\n".to_owned()),
                Err(stalled) => forward::own_answer(error(503, &stalled.to_string())),
            },
            Self::Ready => plain("application/json", format!("{}\n", ready(shared))),
            Self::Metrics => plain("text/plain; version=0.0.4; charset=utf-8", metrics(shared)),
            Self::Overview => {
                html::secured(plain("text/html; charset=utf-8", html::document(&shared.collector.overview())))
            }
            Self::Status => match serde_json::to_string(&*shared.collector.overview()) {
                Ok(text) => plain("application/json", text + "\n"),
                Err(fault) => forward::own_answer(error(
                    500,
                    &format!("internal error: the overview cannot be serialized: {fault}"),
                )),
            },
            Self::Instance | Self::Flush | Self::MethodNotAllowed => {
                forward::own_answer(error(405, "this page of the agent can only be read"))
            }
        }
    }
}

/// Answers `is-alive/ping` for the agent. To an edge, an agent is a hub, and tells how it reaches its own server.
pub(super) fn ping(shared: &Shared, headers: &HeaderMap) -> ClientAnswer {
    if let Some(edge) = headers.get(EDGE_HEADER).and_then(|value| Edge::of_header(value.as_bytes())) {
        shared.collector.met_edge(edge);
    }
    let text = json!({ "message": "opik-offline is running", "healthy": true }).to_string();
    let mut answer = plain("application/json", text);
    if let Ok(hub) = HeaderValue::try_from(shared.collector.hub().to_header()) {
        answer.headers_mut().insert(HUB_HEADER, hub);
    }
    answer
}

fn plain(content_type: &'static str, text: String) -> ClientAnswer {
    // People read it with curl, too.
    let text = if content_type == "application/json" { printable::json(&text).into_owned() } else { text };
    let mut answer = http::Response::new(forward::full(text.into()));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Answers `/-/ready` for a host name that a web page may have chosen: ready, and no details.
pub(super) fn ready_alone() -> ClientAnswer {
    plain("application/json", format!("{}\n", json!({ "ready": true })))
}

/// Answers `/-/instance`: which agent this is, and whether it stores what it must.
pub(super) fn instance(shared: &Shared, query: Option<&str>) -> ClientAnswer {
    let nonce = query.and_then(|query| query.strip_prefix("nonce="));
    let proven = nonce.zip(shared.identity.as_ref()).and_then(|(nonce, identity)| identity.prove(nonce));
    let Some((proof, is_closing)) = proven else {
        return forward::own_answer(error(404, "this opik-offline agent was not started by `agent --background`"));
    };
    let problem = shared.slot.try_with(|store| store.backlog(&Filter::of_server(&shared.server))).err();
    let document = json!({
        "proof": proof,
        "pid": std::process::id(),
        "is_closing": is_closing || shared.ending.is_requested(),
        "problem": problem.map(|problem| problem.to_string()),
    });
    plain("application/json", format!("{document}\n"))
}

/// Returns the state of the agent. It is ready as long as it can accept requests: an unavailable server is what it is
/// made for.
fn ready(shared: &Shared) -> serde_json::Value {
    let state = shared.connection.state();
    let since = state.since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    // Commands compare it with the store that they read: another one may hold what they don't show.
    let path = shared.slot.path().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    let path = path.map(|path| path.display().to_string());
    let own = Filter::of_server(&shared.server);
    let store = match shared.slot.try_with(|store| Ok((store.backlog(&own)?, store.identity()))) {
        Err(error) => {
            let live_writes = LiveWrites::of(&shared.slot, &shared.server).word();
            json!({ "usable": false, "path": path, "reason": error.to_string(), "live_writes": live_writes })
        }
        Ok((backlog, identity)) => json!({
            "usable": true,
            "path": path,
            "identity": identity.to_string(),
            "waiting": backlog.waiting(),
            "rejected": backlog.rejected(),
            "full": shared.collector.full().episode().map(|episode| episode.fullness.reason),
            "oldest_accepted_at_ms": backlog.oldest_accepted_at_ms,
        }),
    };
    json!({
        "ready": true,
        "agent": {
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": shared.started.elapsed().as_secs(),
            "files_problem": shared.collector.files_problem(),
            "client_problem": shared.collector.client_problem(),
        },
        "server": {
            "url": shared.forwarder.base_url(),
            "connection": connection_word(state.availability),
            "since_ms": u64::try_from(since).unwrap_or(u64::MAX),
            "reason": state.reason,
            "hub": shared.connection.hub().map(HubOverview::from),
        },
        "store": store,
    })
}

fn metrics(shared: &Shared) -> String {
    let available = shared.connection.availability() == Availability::Available;
    shared.metrics.connection_available.set(if available { 1.0 } else { 0.0 });
    let edges = shared.collector.edges();
    shared.metrics.edges.set(edges.recent as f64);
    shared.metrics.edges_waiting_messages.set(edges.waiting_messages as f64);
    let read = shared.slot.try_with(|store| {
        let own = store.backlog(&Filter::of_server(&shared.server))?;
        let waiting_elsewhere = store.backlog(&Filter::default())?.waiting().saturating_sub(own.waiting());
        shared.metrics.backlog_elsewhere_messages.set(waiting_elsewhere as f64);
        Ok((own, store.condition()?))
    });
    shared.metrics.store_io_errors.raise_to(crate::store::io_errors());
    shared.metrics.store_usable.set(if read.is_ok() { 1.0 } else { 0.0 });
    if let Ok((backlog, condition)) = read {
        shared.metrics.backlog_messages.set(backlog.waiting() as f64);
        let waiting = backlog.groups.iter().filter(|group| group.status.is_on_its_way());
        shared.metrics.backlog_body_bytes.set(waiting.map(|group| group.body_bytes).sum::<u64>() as f64);
        let held = condition.held.iter().filter(|(_, hold)| hold.until_ms > now_ms()).map(|(lane, _)| lane);
        shared.metrics.lanes_held.set(held.collect::<std::collections::HashSet<_>>().len() as f64);
        let replay_hold = condition.replay_hold.as_ref().and_then(|hold| hold.left(now_ms()));
        shared.metrics.replay_held.set(if replay_hold.is_some() { 1.0 } else { 0.0 });
        shared.metrics.rejected_messages.set(backlog.rejected() as f64);
        shared.metrics.held_messages.set(backlog.held() as f64);
        let stranded = shared.slot.try_with(|store| store.stranded()).unwrap_or_default();
        shared.metrics.stranded_messages.set(stranded.iter().map(|lane| lane.messages).sum::<u64>() as f64);
        let oldest_age_ms = backlog.oldest_accepted_at_ms.map_or(0, |oldest| now_ms().saturating_sub(oldest).max(0));
        shared.metrics.backlog_oldest_age_seconds.set(oldest_age_ms as f64 / 1000.0);
        shared.metrics.store_size_bytes.set(condition.file_bytes as f64);
        shared.metrics.store_dropped_messages.set(condition.dropped as f64);
        shared.metrics.store_expired_messages.set(condition.expired as f64);
        shared.metrics.store_rejected_dropped_messages.set(condition.rejected_dropped as f64);
        shared.collector.full().measured(&shared.slot, &condition);
        let lost: u64 = condition.recoveries.iter().map(|recovery| recovery.lost).sum();
        shared.metrics.store_lost_messages.set(lost as f64);
    }
    shared.metrics.render()
}
