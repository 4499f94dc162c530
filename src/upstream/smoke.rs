//! A smoke test: writes a trace with a span and a small image directly to the real server, bypassing any agent. Trace
//! and span are read back. The image is not: the endpoint that lists attachments requires the server's id of the
//! project.
//!
//! Equivalent to the SDK's `opik healthcheck --smoke-test` (protocol dossier, section h), with a result that a program
//! can rely on. The server is eventually consistent (ClickHouse), so reads are retried with backoff until the deadline.

use std::io::Read;
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use thiserror::Error;
use uuid::Uuid;

use super::Upstream;
use super::upload::UploadFile;
use crate::message::{Body, Encoding, HeaderSet, Lane, MessageType, Request};
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::attachment::Subject;
use crate::protocol::readback::{Kind, one};
use crate::protocol::recognise::{Endpoint, Recognised};
use crate::shutdown::Shutdown;

/// Names of the trace and its span.
const TRACE_NAME: &str = "opik-offline smoke test";
const SPAN_NAME: &str = "opik-offline smoke test span";
/// Name of the image.
const IMAGE_NAME: &str = "smoke-test.png";
/// An image of one pixel.
const IMAGE: &[u8] = include_bytes!("smoke.png");
/// First and longest backoff between reads.
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The result of a successful smoke test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The trace's id.
    pub trace_id: String,
    /// Total time of the writes.
    pub written_in: Duration,
    /// Time from the last write until everything could be read.
    pub visible_after: Duration,
}

/// The failure of a smoke test.
#[derive(Clone, Debug, Error)]
pub enum SmokeFailure {
    /// No response.
    #[error(transparent)]
    Send(#[from] SendFailure),
    /// The server rejected a request.
    #[error("the server answers {} to {what}{}", .answer.status, words(.answer))]
    Refused {
        /// Which request.
        what: &'static str,
        /// Its response.
        answer: Box<Answer>,
    },
    /// Written entities can't be read back.
    #[error("the server took the trace {trace_id}, and does not show its {what} within {} s", .waited.as_secs())]
    NotVisible {
        /// The trace's id.
        trace_id: String,
        /// What is missing.
        what: &'static str,
        /// Time waited.
        waited: Duration,
    },
}

/// Returns the error text of the response, or its origin.
fn words(answer: &Answer) -> String {
    if let Some(foreign) = answer.recognised.foreign() {
        return format!(": {foreign}");
    }
    let said: Option<Value> = serde_json::from_str(&answer.text).ok();
    let said = said.as_ref().and_then(|said| said.get("message")?.as_str());
    said.map_or(String::new(), |said| format!(": {said}"))
}

impl Upstream {
    /// Writes a trace with a span and an image to this project, and reads trace and span back within `patience`.
    ///
    /// # Errors
    ///
    /// [`SmokeFailure`]; entities written before the failure stay.
    pub fn smoke_test(
        &self,
        lane: &Lane,
        project: &str,
        patience: Duration,
        shutdown: &Shutdown,
    ) -> Result<Passed, SmokeFailure> {
        let (trace_id, span_id) = (Uuid::now_v7().to_string(), Uuid::now_v7().to_string());
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let trace = json!({
            "id": trace_id, "project_name": project, "name": TRACE_NAME, "start_time": now, "end_time": now,
            "input": { "question": "does a trace reach the server?" }, "output": { "answer": "yes" }, "tags": ["smoke-test"],
        });
        let span = json!({
            "id": span_id, "trace_id": trace_id, "project_name": project, "name": SPAN_NAME, "type": "llm",
            "start_time": now, "end_time": now, "input": { "prompt": "ping" }, "output": { "text": "pong" },
        });
        let started = Instant::now();
        self.write(lane, MessageType::CreateTrace, &trace, "a trace")?;
        self.write(lane, MessageType::CreateSpan, &span, "a span")?;
        self.attach(lane, project, &span_id)?;
        let written = Instant::now();
        for (kind, id, what) in [(Kind::Trace, &trace_id, "trace"), (Kind::Span, &span_id, "span")] {
            let mut wait = WAIT_FIRST;
            while !self.shows(lane, kind, id, project)? {
                let waited = written.elapsed();
                if waited >= patience || shutdown.sleep(wait.min(patience - waited)) {
                    return Err(SmokeFailure::NotVisible { trace_id: trace_id.clone(), what, waited });
                }
                wait = (wait * 2).min(WAIT_MAX);
            }
        }
        Ok(Passed { trace_id, written_in: written - started, visible_after: written.elapsed() })
    }

    fn write(
        &self,
        lane: &Lane,
        message_type: MessageType,
        body: &Value,
        what: &'static str,
    ) -> Result<(), SmokeFailure> {
        let path = if message_type == MessageType::CreateSpan { "v1/private/spans" } else { "v1/private/traces" };
        let headers = HeaderSet::new(vec![("content-type".to_owned(), b"application/json".to_vec())]);
        let body = Body::new(body.to_string(), Encoding::Identity);
        let request = Request { method: "POST".to_owned(), path: path.to_owned(), headers, body };
        let answer = self.send(lane, Endpoint::Write(message_type), &request)?;
        if answer.is_confirmed() { Ok(()) } else { Err(SmokeFailure::Refused { what, answer: Box::new(answer) }) }
    }

    /// Uploads the image by the server's upload flow, to its own storage or to an object store.
    fn attach(&self, lane: &Lane, project: &str, span_id: &str) -> Result<(), SmokeFailure> {
        let subject = json!({
            "file_name": IMAGE_NAME, "mime_type": "image/png", "project_name": project,
            "entity_type": "span", "entity_id": span_id,
        });
        let what = "an attachment";
        let subject = Subject::from_body(subject.to_string().as_bytes()).map_err(|reason| {
            let url = self.base_url().to_owned();
            SmokeFailure::Send(SendFailure::Broken { url, reason })
        })?;
        let open = |range: Range<u64>| -> Box<dyn Read> {
            let within = |at: u64| usize::try_from(at).map_or(IMAGE.len(), |at| at.min(IMAGE.len()));
            Box::new(&IMAGE[within(range.start)..within(range.end)])
        };
        let headers = HeaderSet::default();
        let (bytes, may_send) = (IMAGE.len() as u64, || true);
        let answer_timeout = self.answer_timeout();
        let file = UploadFile {
            subject: &subject,
            headers: &headers,
            bytes,
            answer_timeout,
            open: &open,
            may_send: &may_send,
        };
        let answer = self.upload(lane, &file)?;
        if answer.is_confirmed() { Ok(()) } else { Err(SmokeFailure::Refused { what, answer: Box::new(answer) }) }
    }

    /// Returns whether the server shows the entity yet.
    fn shows(&self, lane: &Lane, kind: Kind, id: &str, project: &str) -> Result<bool, SmokeFailure> {
        let answer = self.read_back(lane, &one(kind, id, Some(project)), Answer::TEXT_BYTES_MAX)?;
        match (&answer.recognised, answer.status) {
            (Recognised::Confirmed, _) => Ok(answer.text.contains(id)),
            // Not visible yet, rate limited, or a server error: retried until the deadline.
            (Recognised::Refused, 404) | (_, 429 | 500..600) => Ok(false),
            _ => Err(SmokeFailure::Refused { what: "a read of what it took", answer: Box::new(answer) }),
        }
    }
}
