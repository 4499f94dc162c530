//! `POST /-/flush?timeout=30s`: deliver now, and answer once everything that the client had acknowledged is on the
//! server.
//!
//! A client's own `flush()` ends when the agent has acknowledged its writes: they are durable, not yet delivered. A
//! client that needs delivery asks here, with the headers of its writes (`Comet-Workspace`, `Authorization`): then this
//! waits for that lane, and without them for everything that is queued for the agent's server. The queues of other
//! lanes delay nothing. Messages that are accepted while it waits are not waited for.
//!
//! The server is pinged at once, and then every second; lanes that are held for want of a valid key or a healthy server
//! are retried at once, and messages that back off are made due. Only the server's rate limits stay.
//!
//! If the server is a hub, its queue is the second hop: once nothing is queued here, the hub is asked the same for the
//! time that is left, and the answer is about both.
//!
//! | answer | meaning |
//! | --- | --- |
//! | 200 | everything is delivered |
//! | 422 | the queue is empty, and the server rejected some of it meanwhile, here or at the hub |
//! | 504 | the timeout has expired, or a person holds the replay, and the rest is kept as before |
//! | 400, 405, 503 | the timeout can't be parsed; it is not a `POST`; too many flushes wait already, or the store is unusable |

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use serde_json::json;
use tracing::debug;

use super::exchange::lane_of;
use super::flush_slots::{PUSH_INTERVAL, WAITING_MAX};
use super::forward::{self, AnswerStart, ClientAnswer};
use super::shared::Shared;
use crate::message::{Lane, MessageId};
use crate::monitor::Availability;
use crate::overview::dial::held_text;
use crate::protocol::answers::{Reply, error, unavailable};
use crate::store::{Standing, Whose, now_ms};
use crate::upstream::AGENT_HEADER;

/// The timeout of a flush that names none.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// The longest timeout.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// How often the store is queried; less often when a query takes long.
const QUERY_INTERVAL: Duration = Duration::from_millis(50);

/// The reason of a flush of which the server rejected something.
const REJECTED: &str = "the server refused what is counted as rejected, see `opik-offline inspect`";
/// How much longer than its timeout a hub may take to answer a flush.
const HUB_GRACE: Duration = Duration::from_secs(2);
/// Bytes of a hub's answer to a flush that are read.
const HUB_ANSWER_BYTES_MAX: usize = 16 * 1024;

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
                return Err(error(400, &format!("timeout={value} is not a duration, such as 500ms, 30s or 2m")));
            }
            _ => return Err(error(400, &format!("{name} is not a parameter of a flush, which takes timeout=30s"))),
        }
    }
    Ok(timeout)
}

/// Answers once what was accepted from a client is delivered, or the timeout has expired.
pub(super) async fn flush(shared: &Arc<Shared>, head: &Parts) -> ClientAnswer {
    match FlushWait::begin(shared, head).await {
        Ok((flush, _slot)) => flush.run().await,
        Err(refusal) => refusal,
    }
}

/// A client that waits for delivery.
struct FlushWait<'agent> {
    shared: &'agent Arc<Shared>,
    /// The lane, or all lanes of the server.
    whose: Arc<Whose>,
    timeout: Duration,
    started: Instant,
    /// The client's headers, for a hub.
    headers: HeaderMap,
    /// The newest message that is waited for.
    up_to: MessageId,
    /// The counts of queued and rejected messages when it began.
    before: Standing,
    /// A person's hold of the replay, in words: nothing is delivered while it lasts.
    held: Option<String>,
    pushed: Option<Instant>,
    was_hastened: bool,
}

impl<'agent> FlushWait<'agent> {
    /// Reads the request, and notes what is queued now. The slot is held for as long as the client waits.
    async fn begin(
        shared: &'agent Arc<Shared>,
        head: &Parts,
    ) -> Result<(Self, tokio::sync::OwnedSemaphorePermit), ClientAnswer> {
        if head.method != http::Method::POST {
            let mut refusal = forward::own_answer(error(405, "a flush is asked for with POST"));
            refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
            return Err(refusal);
        }
        let timeout = timeout_of(head.uri.query()).map_err(forward::own_answer)?;
        let names_lane =
            head.headers.contains_key("comet-workspace") || head.headers.contains_key(header::AUTHORIZATION);
        let whose = match names_lane {
            true => Whose::Lane(lane_of(&shared.server, &head.headers)),
            false => Whose::Server(shared.server.clone()),
        };
        let whose = Arc::new(whose);
        let Some(slot) = shared.listener.flush_slots.acquire() else {
            let text = format!("{WAITING_MAX} others wait for a flush already");
            return Err(forward::own_answer(unavailable(&text, PUSH_INTERVAL)));
        };
        let unusable = |reason: String| {
            let text = format!("opik-offline can't query its store: {reason}");
            forward::own_answer(unavailable(&text, shared.retry_after()))
        };
        let started = Instant::now();
        let up_to = query(shared, |store| store.newest()).await.map_err(unusable)?;
        let (before, held) = standing(shared, &whose, up_to).await.map_err(unusable)?;
        let headers = head.headers.clone();
        let (pushed, was_hastened) = (None, false);
        let flush = Self { shared, whose, timeout, started, headers, up_to, before, held, pushed, was_hastened };
        Ok((flush, slot))
    }

    /// Pushes and queries until nothing is queued any longer, or the timeout has expired.
    async fn run(mut self) -> ClientAnswer {
        let mut now = self.before;
        while now.waits && self.may_wait() {
            if self.pushed.is_none_or(|pushed| pushed.elapsed() >= PUSH_INTERVAL) {
                self.push().await;
            }
            let queried = Instant::now();
            match standing(self.shared, &self.whose, self.up_to).await {
                Ok(standing) => (now, self.held) = standing,
                // Another process holds the write lock for long; there is time.
                Err(reason) => debug!(target: "intake", "a flush can't query the store: {reason}"),
            }
            let left = self.timeout.saturating_sub(self.started.elapsed());
            let pause = QUERY_INTERVAL.max(queried.elapsed() * 4).min(left);
            if now.waits && self.held.is_none() {
                tokio::time::sleep(pause).await;
            }
        }
        let mut end = self.end_here(now).await;
        if !now.waits && self.shared.connection.is_hub() {
            end.add_hub(self.flush_hub().await);
        }
        self.answer(end)
    }

    /// Returns whether what is queued may be delivered in time.
    fn may_wait(&self) -> bool {
        self.held.is_none() && self.started.elapsed() < self.timeout && !self.shared.hurry.is_requested()
    }

    /// Has an unavailable server pinged, and makes lanes due.
    async fn push(&mut self) {
        self.pushed = Some(Instant::now());
        if self.shared.connection.availability() != Availability::Available {
            self.shared.connection.doubted();
        }
        // Once: a message whose delivery fails then has been retried, and backs off as it would without a flush.
        if !self.was_hastened && self.shared.listener.flush_slots.try_hasten() {
            self.was_hastened = true;
            let whose = self.whose.clone();
            if let Err(reason) = query(self.shared, move |store| store.hasten(&whose)).await {
                debug!(target: "intake", "a flush can't make its lanes due: {reason}");
            }
        }
    }

    /// Returns how this agent's queue ended.
    async fn end_here(&self, now: Standing) -> QueueEnd {
        let rejected = now.rejected.saturating_sub(self.before.rejected);
        let reason = match now.waits {
            true => Some(self.why_queued().await),
            false => (rejected > 0).then(|| REJECTED.to_owned()),
        };
        QueueEnd { is_empty: !now.waits, remaining: if now.waits { now.waiting } else { 0 }, rejected, reason }
    }

    /// Asks the hub to deliver what it has of the same lane, in the time that is left.
    async fn flush_hub(&self) -> QueueEnd {
        let shared = self.shared;
        let left = self.timeout.saturating_sub(self.started.elapsed());
        let asked = async {
            let uri = shared.address.flush_url(left).parse::<http::Uri>().ok()?;
            let mut request = http::Request::new(forward::request_body(Bytes::new()));
            *request.method_mut() = http::Method::POST;
            let named = [HeaderName::from_static("comet-workspace"), header::AUTHORIZATION, AGENT_HEADER];
            let kept = self.headers.iter().filter(|(name, _)| named.contains(name));
            let kept: HeaderMap = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
            *request.headers_mut() = forward::request_headers(kept, &uri, &shared.agent_mark);
            *request.uri_mut() = uri;
            let (_, body) = shared.forwarder.send(request).await.ok()?.into_parts();
            let answer = AnswerStart::read(body, HUB_ANSWER_BYTES_MAX).await.ok()?;
            QueueEnd::of_hub(&answer.beginning)
        };
        let answered = tokio::time::timeout(left + HUB_GRACE, asked).await.ok().flatten();
        answered.unwrap_or_else(|| QueueEnd {
            reason: Some("the hub has everything, and does not answer whether its server has".to_owned()),
            ..QueueEnd::default()
        })
    }

    fn answer(&self, end: QueueEnd) -> ClientAnswer {
        let status = match (end.is_empty, end.rejected) {
            (true, 0) => 200,
            (true, _) => 422,
            (false, _) => 504,
        };
        let document = json!({
            "schema_version": 1,
            "delivered": status == 200,
            "remaining": end.remaining,
            "rejected": end.rejected,
            "waited_ms": u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "reason": end.reason,
        });
        let body = format!("{document}\n");
        let reply = Reply { content_type: Some("application/json"), body, ..Reply::empty(status) };
        let mut answer = forward::own_answer(reply);
        answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    }

    /// Returns why something is queued still.
    async fn why_queued(&self) -> String {
        if let Some(held) = &self.held {
            return format!("{held}: `opik-offline replay --resume`");
        }
        let state = self.shared.connection.state();
        if state.availability != Availability::Available {
            let why = state.reason.map_or(String::new(), |reason| format!(": {reason}"));
            return format!("the time is over, and the Opik server is unavailable{why}");
        }
        let whose = self.whose.clone();
        let held = query(self.shared, move |store| {
            let is_meant = |held: &Lane| match &*whose {
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
}

/// How a queue ended, or two of them.
#[derive(Debug, Default, PartialEq, Eq)]
struct QueueEnd {
    /// Whether nothing is left.
    is_empty: bool,
    remaining: u64,
    rejected: u64,
    reason: Option<String>,
}

impl QueueEnd {
    /// Parses a hub's answer to a flush; `None` for another answer.
    fn of_hub(body: &[u8]) -> Option<Self> {
        let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
        let count = |name: &str| answer.get(name)?.as_u64();
        let (delivered, rejected) = (answer.get("delivered")?.as_bool()?, count("rejected")?);
        let reason = answer.get("reason").and_then(serde_json::Value::as_str);
        Some(Self {
            is_empty: delivered || (rejected > 0 && count("remaining")? == 0),
            remaining: count("remaining")?,
            rejected,
            reason: reason.map(|reason| format!("at the hub: {reason}")),
        })
    }

    /// Adds the second hop.
    fn add_hub(&mut self, hub: Self) {
        self.is_empty &= hub.is_empty;
        self.remaining = self.remaining.saturating_add(hub.remaining);
        self.rejected = self.rejected.saturating_add(hub.rejected);
        self.reason = hub.reason.or(self.reason.take());
    }
}

/// Returns the progress of a lane, and the hold of the replay in words.
async fn standing(
    shared: &Arc<Shared>,
    whose: &Arc<Whose>,
    up_to: MessageId,
) -> Result<(Standing, Option<String>), String> {
    let whose = whose.clone();
    query(shared, move |store| Ok((store.standing(&whose, up_to)?, held_text(store.replay_hold()?.as_ref(), now_ms()))))
        .await
}

/// Queries the store on a thread that may wait for its disk.
async fn query<T: Send + 'static>(
    shared: &Arc<Shared>,
    question: impl FnOnce(&dyn crate::store::Store) -> Result<T, crate::store::StoreError> + Send + 'static,
) -> Result<T, String> {
    let slot = shared.slot.clone();
    match tokio::task::spawn_blocking(move || slot.with(question)).await {
        Ok(answered) => answered.map_err(|error| error.to_string()),
        Err(_) => Err("an internal error of opik-offline".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hubs_answer_counts_only_whole() {
        let read = |body: &str| QueueEnd::of_hub(body.as_bytes());
        let end = |is_empty, remaining, rejected| QueueEnd { is_empty, remaining, rejected, reason: None };
        for (body, expected) in [
            (r#"{"delivered":true,"remaining":0,"rejected":0,"reason":null}"#, Some(end(true, 0, 0))),
            (r#"{"delivered":false,"remaining":7,"rejected":0}"#, Some(end(false, 7, 0))),
            (r#"{"delivered":false,"remaining":0,"rejected":2}"#, Some(end(true, 0, 2))),
            (r#"{"delivered":false,"remaining":0,"rejected":0}"#, Some(end(false, 0, 0))),
            (r#"{"code":401,"message":"this opik-offline agent asks for its intake token"}"#, None),
            (r#"{"delivered":true}"#, None),
            ("<html>", None),
            ("", None),
        ] {
            assert_eq!(read(body), expected, "{body}");
        }
        let mut both = end(true, 0, 1);
        both.add_hub(QueueEnd { reason: Some("at the hub: it is slow".into()), ..end(false, 7, 0) });
        assert_eq!(
            (both.is_empty, both.remaining, both.rejected),
            (false, 7, 1),
            "a client would lose what waits there"
        );
    }

    #[test]
    fn timeouts_are_parsed_as_people_write_them() {
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
