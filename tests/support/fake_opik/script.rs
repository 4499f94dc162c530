//! The script of faults: which requests go wrong, and how.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::State;
use super::log::Received;

type Predicate = Arc<dyn Fn(&Received) -> bool + Send + Sync>;

type Responder = dyn Fn(&Received, &State) -> Option<Answer> + Send + Sync;

/// Answers a request from what the server knows; `None` leaves it to the server.
#[derive(Clone)]
pub(crate) struct Respond(Arc<Responder>);

impl Respond {
    pub(super) fn answer(&self, request: &Received, state: &State) -> Option<Answer> {
        (self.0)(request, state)
    }
}

impl std::fmt::Debug for Respond {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Respond")
    }
}

/// Which requests a fault meets; everything that is not set matches.
#[derive(Clone, Default)]
pub(crate) struct When {
    method: Option<String>,
    path: Option<String>,
    workspace: Option<String>,
    authorization: Option<String>,
    ids: Option<BTreeSet<String>>,
    predicate: Option<Predicate>,
}

impl When {
    pub(crate) fn any() -> Self {
        Self::default()
    }

    /// Matches the path after the prefix, where `*` stands for anything: `/v1/private/traces/*`.
    pub(crate) fn path(glob: &str) -> Self {
        Self { path: Some(glob.to_owned()), ..Self::default() }
    }

    /// Matches requests that write one of these entities.
    pub(crate) fn ids<S: Into<String>>(ids: impl IntoIterator<Item = S>) -> Self {
        Self { ids: Some(ids.into_iter().map(Into::into).collect()), ..Self::default() }
    }

    /// Matches every write to a message endpoint.
    pub(crate) fn write() -> Self {
        Self::any().and(|request| !request.writes.is_empty())
    }

    pub(crate) fn method(self, method: &str) -> Self {
        Self { method: Some(method.to_owned()), ..self }
    }

    pub(crate) fn workspace(self, workspace: &str) -> Self {
        Self { workspace: Some(workspace.to_owned()), ..self }
    }

    pub(crate) fn authorization(self, key: &str) -> Self {
        Self { authorization: Some(key.to_owned()), ..self }
    }

    /// Matches when this holds, too. It is asked last, and once for each request that everything before it matches.
    pub(crate) fn and(self, predicate: impl Fn(&Received) -> bool + Send + Sync + 'static) -> Self {
        match self.predicate.clone() {
            None => Self { predicate: Some(Arc::new(predicate)), ..self },
            Some(earlier) => {
                Self { predicate: Some(Arc::new(move |request| earlier(request) && predicate(request))), ..self }
            }
        }
    }

    /// Matches the requests of these workspaces.
    pub(crate) fn workspaces(self, prefix: &str) -> Self {
        let prefix = prefix.to_owned();
        self.and(move |request| request.workspace.starts_with(&prefix))
    }

    /// Matches bodies of more than this many bytes on the wire.
    pub(crate) fn larger_than(self, bytes: usize) -> Self {
        self.and(move |request| request.body.len() > bytes)
    }

    /// Matches requests beyond this many per second, like a rate-limited workspace.
    pub(crate) fn beyond_rate(self, per_second: usize) -> Self {
        let window = Mutex::new((Instant::now(), 0));
        self.and(move |_| {
            let mut window = window.lock().expect("no thread panicked");
            if window.0.elapsed() >= Duration::from_secs(1) {
                *window = (Instant::now(), 0);
            }
            window.1 += 1;
            window.1 > per_second
        })
    }

    /// Matches in every second period of this length, beginning with the first.
    pub(crate) fn flapping(self, period: Duration) -> Self {
        let begin = Instant::now();
        self.and(move |_| (begin.elapsed().as_millis() / period.as_millis().max(1)).is_multiple_of(2))
    }

    pub(super) fn matches(&self, request: &Received) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        is(&self.method, &request.method)
            && self.path.as_deref().is_none_or(|glob| glob_matches(glob, request.route()))
            && is(&self.workspace, &request.workspace)
            && is(&self.authorization, request.authorization.as_deref().unwrap_or(""))
            && self.ids.as_ref().is_none_or(|ids| request.writes.iter().any(|write| ids.contains(&write.key.id)))
            && self.predicate.as_ref().is_none_or(|predicate| predicate(request))
    }
}

pub(super) fn glob_matches(glob: &str, text: &str) -> bool {
    match glob.split_once('*') {
        None => glob == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|text| {
            (0..=text.len()).any(|at| text.is_char_boundary(at) && glob_matches(rest, &text[at..]))
        }),
    }
}

/// The reaction to a request that matches.
#[derive(Clone, Debug)]
pub(crate) enum Then {
    /// Answered so, and not processed.
    Answer(Answer),
    /// Answered by the test's own function where it has an answer, and processed otherwise.
    Respond(Respond),
    /// Never answered and not processed; the connection stays open until the fault is cleared or the client goes.
    Hang,
    /// Waits until the fault is cleared, and is then processed as if nothing had been.
    Hold,
    /// Waits so long before it is processed.
    Delay(Duration),
    /// The connection is reset after the head was read and before the body is. Entity ids are not known yet, so
    /// [`When::ids`] never matches here.
    ResetUnread,
    /// The connection is reset after the request was read whole; nothing is processed.
    Reset,
    /// These bytes come instead of HTTP, and the connection is closed; nothing is processed.
    Garbage(&'static [u8]),
    /// OTLP only: this many of its traces are created, then the server fails with 500; no span is stored.
    ///
    /// The spans themselves are one insert, so the real server stores all of them or none.
    Halfway { traces: usize },
    /// Processed, and then the connection is reset without an answer.
    ProcessThenReset,
    /// Processed, and then the connection is closed without an answer.
    ProcessThenClose,
    /// Processed and never answered.
    ProcessThenHang,
    /// Processed; the answer breaks off: half of its body where it has one, else the middle of its head.
    Truncate,
}

impl Then {
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer(Answer::error(status, "scripted by the test"))
    }

    /// Adds routes that the server does not have by default.
    pub(crate) fn respond(answer: impl Fn(&Received, &State) -> Option<Answer> + Send + Sync + 'static) -> Self {
        Self::Respond(Respond(Arc::new(answer)))
    }

    /// Bytes from a port on which another program listens.
    pub(crate) fn garbage() -> Self {
        Self::Garbage(b"SSH-2.0-OpenSSH_9.6\r\n\0\x01\xfe no HTTP here\r\n")
    }

    /// A 429 as the server sends it.
    pub(crate) fn rate_limited(reset_seconds: u64) -> Self {
        let answer = Answer::error(429, "Too Many Requests");
        Self::Answer(answer.with("RateLimit-Reset", &reset_seconds.to_string()))
    }
}

/// An answer to a request.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body goes out in these pieces, chunked, instead of `body` at once.
    pub(super) stream: Option<Vec<Vec<u8>>>,
}

impl Answer {
    pub(crate) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), stream: None }
    }

    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self { body: body.to_string().into_bytes(), ..Self::empty(status) }.with("Content-Type", "application/json")
    }

    /// Opik's error shape.
    pub(crate) fn error(status: u16, message: &str) -> Self {
        Self::json(status, &serde_json::json!({ "code": status, "message": message }))
    }

    /// The answer of another program in the server's place.
    pub(crate) fn raw(status: u16, content_type: &str, body: &str) -> Self {
        let answer = Self { body: body.as_bytes().to_vec(), ..Self::empty(status) };
        if content_type.is_empty() { answer } else { answer.with("Content-Type", content_type) }
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}
