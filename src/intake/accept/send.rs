//! Forwarding a write: sent at once, and the server's answer turned into a verdict.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{header, response};
use tracing::{debug, info, warn};

use super::write::{Forwarded, WaitFor, Write};
use crate::delivery::admission::forward_patience;
use crate::delivery::verdict::{ForwardVerdict, Trouble, forwarding, is_begun};
use crate::intake::forward::{self, AnswerStart};
use crate::intake::server_answer::judge_answer;
use crate::intake::spool::SendProgress;
use crate::memory::Use;
use crate::monitor::{Availability, Change};
use crate::protocol::answers::{SendFailure, asked_wait};
use crate::protocol::partial::Partial;
use crate::protocol::recognise::{Endpoint, Recognised};
use crate::upstream::forward::ForwardBody;

/// How a server answers that has a trace already (`Trace already exists`).
const ALREADY_EXISTS: &[u8] = b"already exist";
/// The latency of an answer to a write after which the server is pinged.
const SILENCE_DOUBTED_AFTER: Duration = Duration::from_secs(5);
/// How often a write that waits for its answer checks whether waiting still makes sense.
pub(super) const SILENCE_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The server's answer to a write.
type ServerAnswer = Result<(response::Parts, AnswerStart), SendFailure>;

/// The meaning of the server's answer.
struct Judged<'answer> {
    recognised: Result<(u16, Recognised), &'answer SendFailure>,
    /// The items of an accepted write that the server rejected.
    partial: Option<Partial>,
    verdict: ForwardVerdict,
}

impl Write {
    /// Sends the write to the server, and waits for its answer.
    pub(super) async fn forward(&self, wait_for: WaitFor) -> Forwarded {
        let shared = &self.shared;
        let progress = Arc::<SendProgress>::default();
        let request = self.upstream_request(&progress);
        let timeout = match shared.answer_timeout() {
            Some(timeout) if self.needs_answer.is_some() => timeout.min(shared.limits.forward_timeout),
            _ => shared.limits.forward_timeout,
        };
        let started = Instant::now();
        let noting = shared.ahead_notes.begin_noting(&self.message, shared.listener.windows.has_unread());
        let result = self.wait_for_answer(request, &progress, started, timeout, wait_for).await;
        let Judged { recognised, partial, verdict } = self.judge(&result);
        debug!(target: "intake", message_type = %self.route.message_type, ?verdict, elapsed = ?started.elapsed(), "forwarded");
        if let Some(noting) = noting {
            // Whatever the answer was, the update may have reached the server.
            let _ = noting.await;
        }
        if matches!(recognised, Ok((_, Recognised::Confirmed))) {
            shared.ahead_notes.note_confirmed(&self.message);
        }
        match verdict {
            ForwardVerdict::Return => self.record_success(&recognised),
            ForwardVerdict::Keep(trouble) => {
                if let Ok((_, Recognised::Foreign(foreign))) = &recognised {
                    shared.connection.met_foreign(foreign);
                }
                self.record_trouble(trouble, &result).await;
            }
        }
        // A web page's 200 would tell the client that its data is safe, even if it can't be stored either.
        let is_false_success =
            self.needs_answer.is_none() && matches!(&recognised, Ok((200..=299, Recognised::Foreign(_))));
        let (source, client) = (shared.answer_source(), &self.client);
        match (verdict, result) {
            (ForwardVerdict::Return, Ok((head, body))) => {
                shared.metrics.answered_at_once(head.status);
                if let Some(partial) = partial {
                    self.record_partial(head.status, &partial);
                }
                Forwarded::Answered(forward::begun_answer(head, body, source, || client.base()))
            }
            (ForwardVerdict::Keep(_), Ok(_)) if is_false_success => Forwarded::Keep { fallback: None },
            (ForwardVerdict::Keep(_), Ok((head, body))) => {
                Forwarded::Keep { fallback: Some(forward::begun_answer(head, body, source, || client.base())) }
            }
            (_, Err(_)) => Forwarded::Keep { fallback: None },
        }
    }

    /// Returns the request as it goes to the server. Its URL is spelled as the client spelled it; the stored one is
    /// normalised, so that every proxy in front of a server reads it alike.
    fn upstream_request(&self, progress: &Arc<SendProgress>) -> http::Request<ForwardBody> {
        let uri = self.client.uri.clone();
        let mut request = http::Request::new(match &self.large {
            None => forward::request_body(self.message.request.body.bytes.clone()),
            Some(large) => large.payload().body(None, progress.clone()),
        });
        *request.method_mut() = self.head.method.clone();
        *request.headers_mut() = forward::request_headers(self.head.headers.clone(), &uri, &self.shared.agent_mark);
        // hyper sets it from the body that is really sent: it differs when an id was added, and for chunked uploads.
        request.headers_mut().remove(header::CONTENT_LENGTH);
        *request.uri_mut() = uri;
        request
    }

    /// Sends the request and waits for its answer, until the wait is over ([`WaitFor`]).
    async fn wait_for_answer(
        &self,
        request: http::Request<ForwardBody>,
        progress: &SendProgress,
        started: Instant,
        timeout: Duration,
        wait_for: WaitFor,
    ) -> ServerAnswer {
        let shared = &self.shared;
        let mut answer = std::pin::pin!(shared.send_write(request));
        let storable = wait_for == WaitFor::AnswerOrOutage;
        let mut is_doubted = false;
        // A large body takes its time: the server counts as silent once it reads no more of it.
        let silence = || progress.idle().unwrap_or_else(|| started.elapsed());
        loop {
            let pause = SILENCE_CHECK_INTERVAL.min(timeout.saturating_sub(silence()));
            tokio::select! {
                biased;
                result = answer.as_mut() => return result,
                () = shared.hurry.requested() => return Err(shared.timed_out(started.elapsed())),
                () = tokio::time::sleep(pause) => {}
            }
            let elapsed = silence();
            let is_gone = storable && shared.connection.availability() == Availability::Unavailable;
            let (free, max) = shared.memory.free(Use::Intake);
            let is_over = elapsed >= if storable { forward_patience(timeout, free, max) } else { timeout };
            if is_over || is_gone {
                return Err(shared.timed_out(elapsed));
            }
            if elapsed >= SILENCE_DOUBTED_AFTER && !std::mem::replace(&mut is_doubted, true) {
                shared.connection.doubted();
            }
        }
    }

    fn judge<'answer>(&self, result: &'answer ServerAnswer) -> Judged<'answer> {
        let mut rejected = None;
        let recognised = result.as_ref().map(|(head, body)| {
            let endpoint = Endpoint::Write(self.route.message_type);
            let (recognised, partial) = judge_answer(endpoint, head, &body.beginning, !body.is_whole());
            rejected = partial;
            (head.status.as_u16(), recognised)
        });
        let verdict = match result {
            Ok((head, body)) if matches!(&recognised, Ok((_, said)) if self.is_begun(said, head.status, &body.beginning)) => {
                ForwardVerdict::Keep(Trouble::Begun)
            }
            _ => forwarding(recognised.as_ref().map(|(status, recognised)| (*status, recognised)).map_err(|e| *e)),
        };
        Judged { recognised, partial: rejected, verdict }
    }

    /// Returns whether the server has a part of this write from an earlier attempt.
    fn is_begun(&self, recognised: &Recognised, status: http::StatusCode, body: &[u8]) -> bool {
        // Nothing is inferred here: without these words the client gets the answer.
        status == http::StatusCode::CONFLICT
            && is_begun(self.route.message_type, recognised, status.as_u16(), &String::from_utf8_lossy(body))
            && body.windows(ALREADY_EXISTS.len()).any(|words| words.eq_ignore_ascii_case(ALREADY_EXISTS))
    }

    /// Counts the items that the server rejected of a write that it accepted; its client has the answer.
    fn record_partial(&self, status: http::StatusCode, partial: &Partial) {
        self.shared.metrics.items_rejected_in_success.add(partial.rejected.unwrap_or(1));
        warn!(
            target: "intake", message_type = %self.route.message_type, status = status.as_u16(),
            "the Opik server accepted only a part of a write, and its client was told: {partial}"
        );
    }

    fn record_success(&self, recognised: &Result<(u16, Recognised), &SendFailure>) {
        self.shared.connection.lanes().passed(&self.message.lane);
        if matches!(recognised, Ok((_, Recognised::Confirmed))) {
            self.shared.connection.confirmed();
        }
    }

    /// Tells replay and the connection monitor why this write was not accepted.
    async fn record_trouble(&self, trouble: Trouble, result: &ServerAnswer) {
        let (shared, lane) = (&self.shared, &self.message.lane);
        match (trouble, result) {
            (Trouble::Limited, Ok((head, _))) => {
                let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
                let (reset, after, date) = (header("ratelimit-reset"), header("retry-after"), header("date"));
                let asked = asked_wait(reset, after, date, SystemTime::now());
                shared.hold_limited(lane.clone(), self.message.message_type.bucket(), asked).await;
            }
            (Trouble::Begun, _) => {
                shared.connection.confirmed();
                shared.connection.lanes().passed(lane);
                info!(target: "intake", "the Opik server has a trace from an earlier attempt: replay sends the missing spans");
            }
            (Trouble::Limited | Trouble::Failed, _) => shared.connection.lanes().failed(lane),
            (Trouble::Unanswered, _) => {
                shared.connection.lanes().failed(lane);
                shared.connection.doubted();
            }
            (Trouble::Gone, result) => {
                let reason = result.as_ref().err().map_or_else(String::new, SendFailure::to_string);
                if shared.connection.send_failed(&reason) == Change::Lost {
                    warn!(target: "connection_monitor", "the Opik server is unavailable: {reason}");
                }
            }
        }
    }
}
