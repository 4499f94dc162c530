//! `POST /-/flush?timeout=30s`: an attempt to deliver at once, and an answer when what its client was acknowledged is on
//! the server.
//!
//! A client's own `flush()` ends when the agent has acknowledged its writes: they are safe, not yet delivered. Whoever wants
//! to know of that asks here, with the headers that its writes have (`Comet-Workspace`, `Authorization`): then it waits for
//! that lane, and without them for all of the agent's server. What other lanes have waiting delays nobody. Everything that is accepted while it
//! waits is not waited for.
//!
//! The server is asked at once whether it is there, and then every second; lanes that are held for want of a key or a
//! healthy server are tried at once, and what waits for its next attempt is due. Only a rate limit of the server's stays.
//!
//! | answer | meaning |
//! | --- | --- |
//! | 200 | all is delivered |
//! | 422 | nothing waits any more, and the server refused some of it while this waited |
//! | 504 | the time is over, and the rest is kept as before |
//! | 400, 405, 503 | the timeout can't be read; it is no `POST`; too many wait already, or the store can't be used |

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::request::Parts;
use serde_json::json;
use tokio::sync::Semaphore;
use tracing::debug;

use super::Shared;
use super::accept::lane_of;
use super::forward::{self, ClientAnswer};
use crate::message::{Lane, MessageId};
use crate::monitor::Availability;
use crate::protocol::answers::{Reply, error, unavailable};
use crate::store::{Standing, Whose};

/// How long it waits when nothing is said.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// How long it waits at most.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// How many may wait at once.
const WAITING_MAX: usize = 64;
/// How often it looks, and how often at most while a look takes long.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How often a server that is away is asked whether it is back, and lanes are made due.
const PUSH_INTERVAL: Duration = Duration::from_secs(1);

/// Who waits.
pub(super) struct Flushes {
    places: Arc<Semaphore>,
    /// When lanes were last made due.
    hastened: Mutex<Option<Instant>>,
}

impl Default for Flushes {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(WAITING_MAX)), hastened: Mutex::default() }
    }
}

impl Flushes {
    /// Returns whether lanes may be made due now. Clients that flush all the time must not undo every backoff.
    fn may_hasten(&self) -> bool {
        let mut hastened = self.hastened.lock().unwrap_or_else(PoisonError::into_inner);
        let may = hastened.is_none_or(|hastened| hastened.elapsed() >= PUSH_INTERVAL);
        if may {
            *hastened = Some(Instant::now());
        }
        may
    }
}

/// Returns the timeout that a query asks for.
fn timeout_of(query: Option<&str>) -> Result<Duration, Reply> {
    let mut timeout = TIMEOUT_DEFAULT;
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let read = match value.parse::<f64>() {
            Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
            Err(_) => humantime::parse_duration(value).ok(),
        };
        match (name, read) {
            ("timeout", Some(read)) => timeout = read.min(TIMEOUT_MAX),
            ("timeout", None) => {
                return Err(error(400, &format!("timeout={value} is no duration, such as 500ms, 30s or 2m")));
            }
            _ => return Err(error(400, &format!("{name} is no parameter of a flush, which has timeout=30s"))),
        }
    }
    Ok(timeout)
}

/// Answers when what was accepted of a client is delivered, or the time is over.
pub(super) async fn flush(shared: &Arc<Shared>, head: &Parts) -> ClientAnswer {
    match wait(shared, head).await {
        Ok(answer) | Err(answer) => answer,
    }
}

async fn wait(shared: &Arc<Shared>, head: &Parts) -> Result<ClientAnswer, ClientAnswer> {
    if head.method != http::Method::POST {
        let mut refusal = forward::own_answer(error(405, "a flush is asked for with POST"));
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return Err(refusal);
    }
    let timeout = timeout_of(head.uri.query()).map_err(forward::own_answer)?;
    let names_lane = head.headers.contains_key("comet-workspace") || head.headers.contains_key(header::AUTHORIZATION);
    let whose = match names_lane {
        true => Whose::Lane(lane_of(&shared.server, &head.headers)),
        false => Whose::Server(shared.server.clone()),
    };
    let whose = Arc::new(whose);
    let Ok(_place) = shared.flushes.places.clone().try_acquire_owned() else {
        let text = format!("{WAITING_MAX} others wait for a flush already");
        return Err(forward::own_answer(unavailable(&text, PUSH_INTERVAL)));
    };
    let unusable = |reason: String| {
        let text = format!("opik-offline can't ask its store: {reason}");
        forward::own_answer(unavailable(&text, shared.retry_after()))
    };

    let started = Instant::now();
    let up_to = ask(shared, |store| store.newest()).await.map_err(unusable)?;
    let before = standing(shared, &whose, up_to).await.map_err(unusable)?;
    let mut now = before;
    let mut pushed: Option<Instant> = None;
    let mut was_hastened = false;
    while now.waits && started.elapsed() < timeout && !shared.hurry.is_requested() {
        if pushed.is_none_or(|pushed| pushed.elapsed() >= PUSH_INTERVAL) {
            pushed = Some(Instant::now());
            if shared.connection.availability() != Availability::Available {
                shared.connection.doubted();
            }
            // Once: what fails then has been tried, and waits as it would without anybody who waits for it.
            if !was_hastened && shared.flushes.may_hasten() {
                was_hastened = true;
                let of = whose.clone();
                if let Err(reason) = ask(shared, move |store| store.hasten(&of)).await {
                    debug!(target: "intake", "a flush can't make its lane due: {reason}");
                }
            }
        }
        let looked = Instant::now();
        match standing(shared, &whose, up_to).await {
            Ok(standing) => now = standing,
            // Somebody writes for long; there is time.
            Err(reason) => debug!(target: "intake", "a flush can't look into the store: {reason}"),
        }
        let pause = LOOK_INTERVAL.max(looked.elapsed() * 4).min(timeout.saturating_sub(started.elapsed()));
        if now.waits {
            tokio::time::sleep(pause).await;
        }
    }
    let rejected = now.rejected.saturating_sub(before.rejected);
    let (status, reason) = match (now.waits, rejected) {
        (false, 0) => (200, None),
        (false, _) => {
            (422, Some("the server refused what is counted as rejected, see `opik-offline inspect`".to_owned()))
        }
        (true, _) => (504, Some(reason(shared, &whose).await)),
    };
    let document = json!({
        "schema_version": 1,
        "delivered": status == 200,
        "remaining": if now.waits { now.waiting } else { 0 },
        "rejected": rejected,
        "waited_ms": u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "reason": reason,
    });
    let reply = Reply { content_type: Some("application/json"), body: format!("{document}\n"), ..Reply::empty(status) };
    let mut answer = forward::own_answer(reply);
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// Says why something waits still.
async fn reason(shared: &Arc<Shared>, whose: &Arc<Whose>) -> String {
    let state = shared.connection.state();
    if state.availability != Availability::Available {
        let why = state.reason.map_or(String::new(), |reason| format!(": {reason}"));
        return format!("the time is over, and the Opik server is unavailable{why}");
    }
    let of = whose.clone();
    let held = ask(shared, move |store| {
        let is_meant = |held: &Lane| match &*of {
            Whose::Lane(lane) => lane == held,
            Whose::Server(server) => held.server.as_ref() == Some(server),
        };
        let held = store.condition()?.held.into_iter();
        Ok(held.filter(|(held, _)| is_meant(held)).map(|(_, hold)| hold.reason).next())
    });
    match held.await {
        Ok(Some(reason)) => format!("the time is over, and the messages are held: {reason}"),
        _ => "the time is over, and the messages are still being delivered".to_owned(),
    }
}

async fn standing(shared: &Arc<Shared>, whose: &Arc<Whose>, up_to: MessageId) -> Result<Standing, String> {
    let of = whose.clone();
    ask(shared, move |store| store.standing(&of, up_to)).await
}

/// Asks the store on a thread that may wait for its disk.
async fn ask<T: Send + 'static>(
    shared: &Arc<Shared>,
    question: impl FnOnce(&dyn crate::store::Store) -> Result<T, crate::store::StoreError> + Send + 'static,
) -> Result<T, String> {
    let slot = shared.slot.clone();
    match tokio::task::spawn_blocking(move || slot.with(question)).await {
        Ok(answered) => answered.map_err(|error| error.to_string()),
        Err(_) => Err("a fault of opik-offline's own".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_people_write_them() {
        let seconds = |s: f64| Some(Duration::from_secs_f64(s));
        for (query, expected) in [
            (None, seconds(30.0)),
            (Some(""), seconds(30.0)),
            (Some("timeout=500ms"), seconds(0.5)),
            (Some("timeout=2m"), seconds(120.0)),
            (Some("timeout=2.5"), seconds(2.5)),
            (Some("timeout=0"), seconds(0.0)),
            (Some("timeout=9999h"), seconds(3600.0)),
            (Some("timeout="), None),
            (Some("timeout=-1"), None),
            (Some("timeout=NaN"), None),
            (Some("timeout=soon"), None),
            (Some("wait=1s"), None),
        ] {
            assert_eq!(timeout_of(query).ok(), expected, "{query:?}");
        }
    }
}
