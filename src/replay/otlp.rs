//! OTLP whose trace the server has from before: the spans that are missing are delivered, and the trace is not made again.
//!
//! Why that takes more than a repeat, and by what it is done, is told at the head of [`roots`]. What is known afterwards:
//!
//! | the server | what becomes of it |
//! | --- | --- |
//! | shows the trace, and takes spans with `opik.trace_id` | all spans are stored: delivered |
//! | shows the trace, and is too old for the attribute | divided; a root alone is delivered if its own record is shown, else rejected with these words |
//! | does not show the trace (yet) | divided; a root alone waits for another attempt |
//! | lets nobody read | the id that this request would make is tried; refused again, a root alone is already there |
//!
//! The last row is no guess about spans: every server that knows the attribute has the read, too.
//!
//! [`roots`]: crate::protocol::otlp::roots

use std::collections::HashMap;

use tracing::{debug, info, warn};
use uuid::Uuid;

use super::sender::{CONTENT_BYTES_MAX, Sender};
use crate::delivery::verdict::is_begun;
use crate::message::{Body, Encoding, HeaderSet, MessageType, Request};
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::otlp::roots::Roots;
use crate::protocol::otlp::{Format, PROJECT_HEADER};
use crate::protocol::readback::{self, DEFAULT_PROJECT, Kind, shown, shown_in_page};
use crate::protocol::recognise::Endpoint;

/// Pages that are read for the traces of one request. The filter leaves those that begin with its roots.
const PAGES_MAX: usize = 10;
/// Traces of one request that are looked for one by one. What has more is divided.
const SEARCHES_MAX: usize = 16;
/// Bytes of a page that are read: ids, and little else.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of one entity that are read: it is there, or it is not.
const ENTITY_BYTES_MAX: usize = 64 * 1024;

/// What came of it.
pub(super) enum Completed {
    /// The answer to judge by.
    Answer(Result<Answer, SendFailure>),
    /// All of the request is on the server.
    AlreadyThere(Answer),
    /// The server names a trace that it does not show: it may later.
    NotShown(Answer),
}

/// What the server shows of a request's traces.
enum Found {
    /// Opik's id of each, if it shows it.
    Ids(Vec<Option<Uuid>>),
    /// It has no such read.
    NoRead,
    /// This key may not read.
    NotAllowed,
    /// It can't be asked now.
    Failed(Result<Answer, SendFailure>),
}

/// Opik's ids of traces that the server has, as it showed them, by what names them in requests of the lane.
#[derive(Default)]
pub(super) struct KnownTraces(HashMap<Vec<u8>, Uuid>);

impl KnownTraces {
    /// Returns a request with its roots of these traces attached to them; `None` when it has none.
    ///
    /// Pieces of a request whose roots share a trace would otherwise meet the conflict one by one.
    pub fn attach(&self, request: &Request) -> Option<Request> {
        if self.0.is_empty() {
            return None;
        }
        let (content, roots) = read(request)?;
        let ids: Vec<Option<Uuid>> = roots.traces().iter().map(|trace| self.0.get(trace.key()).copied()).collect();
        ids.iter().any(Option::is_some).then(|| with_content(request, roots.attach(&content, &ids)))
    }
}

/// Delivers what is missing of a request that was answered with `conflict`.
pub(super) fn complete(sender: &Sender<'_>, request: &Request, conflict: Answer, known: &mut KnownTraces) -> Completed {
    let Some((content, roots)) = read(request) else { return Completed::Answer(Ok(conflict)) };
    if roots.traces().is_empty() {
        return Completed::Answer(Ok(conflict));
    }
    let is_alone = roots.span_count() == 1;
    let (ids, are_shown) = match find_traces(sender, request, &roots) {
        Found::Ids(ids) => (ids, true),
        Found::NoRead => (roots.traces().iter().map(|trace| trace.likely_id()).collect(), false),
        Found::NotAllowed => {
            let text =
                format!("{}; opik-offline: the key may not read the trace to see what is missing", conflict.text);
            return Completed::Answer(Ok(Answer { text, ..conflict }));
        }
        Found::Failed(result) => return Completed::Answer(result),
    };
    if ids.iter().all(Option::is_none) || !sender.keeper.may_send() {
        let text = format!("{}; opik-offline: the server does not show this trace", conflict.text);
        let conflict = Answer { text, ..conflict };
        return if is_alone { Completed::NotShown(conflict) } else { Completed::Answer(Ok(conflict)) };
    }
    if are_shown {
        let shown = roots.traces().iter().zip(&ids).filter_map(|(trace, id)| Some((trace.key().to_vec(), (*id)?)));
        known.0.extend(shown);
    }
    sender.replay.metrics.replay_requests.add(1);
    let attached = with_content(request, roots.attach(&content, &ids));
    let result = sender.replay.upstream.send(&sender.work.lane, Endpoint::Write(MessageType::OtlpTraces), &attached);
    let answer = match result {
        Ok(answer) if is_begun(MessageType::OtlpTraces, &answer.recognised, answer.status, &answer.text) => answer,
        result => {
            if result.as_ref().is_ok_and(|answer| (200..300).contains(&answer.status)) {
                info!(
                    target: "replay_manager", spans = roots.span_count(),
                    "the Opik server had a trace from an earlier attempt, its spans were delivered without making it again"
                );
            }
            return Completed::Answer(result);
        }
    };
    match ids[0] {
        Some(trace) if is_alone && are_shown => own_record(sender, &roots, trace, answer),
        Some(_) if is_alone => {
            warn!(
                target: "replay_manager",
                "the Opik server has the trace of a root span already; whether it has the span's own record it does not show"
            );
            Completed::AlreadyThere(answer)
        }
        _ => Completed::Answer(Ok(answer)),
    }
}

/// Asks an older server for a root's own record, which it does not take apart from its trace.
fn own_record(sender: &Sender<'_>, roots: &Roots, trace: Uuid, conflict: Answer) -> Completed {
    for span in roots.span_ids(trace) {
        let result = get(sender, Kind::Span, span);
        match &result {
            Ok(answer) if is_foreign(answer) => return Completed::Answer(result),
            Ok(answer) if answer.status == 200 && is_shown(answer, span) => return Completed::AlreadyThere(conflict),
            // An answer about something else confirms nothing.
            Ok(answer) if answer.status < 300 => return Completed::NotShown(conflict),
            Ok(answer) if answer.status == 404 => {}
            _ => return Completed::Answer(result),
        }
    }
    let text = format!(
        "{}; opik-offline: the trace {trace} is there, the root span's own record is not, and this server takes it only \
         together with its trace",
        conflict.text
    );
    Completed::Answer(Ok(Answer { text, ..conflict }))
}

fn read(request: &Request) -> Option<(bytes::Bytes, Roots)> {
    let content_type = std::str::from_utf8(request.headers.get("content-type")?).ok()?;
    let format = Format::from_content_type(content_type)?;
    let content = request.body.decode(CONTENT_BYTES_MAX).ok()?;
    let roots = Roots::read(format, &content).ok()?;
    Some((content, roots))
}

/// Looks for Opik's ids of the traces that have roots here.
fn find_traces(sender: &Sender<'_>, request: &Request, roots: &Roots) -> Found {
    let project = request.headers.get(PROJECT_HEADER).and_then(|value| std::str::from_utf8(value).ok());
    let project = project.map(str::trim).filter(|project| !project.is_empty()).unwrap_or(DEFAULT_PROJECT);
    let mut ids: Vec<Option<Uuid>> = vec![None; roots.traces().len()];
    let ask = |read| sender.replay.upstream.read_back(&sender.work.lane, &read, PAGE_BYTES_MAX);
    let mut after: Option<String> = None;
    for _ in 0..PAGES_MAX {
        if !sender.keeper.may_send() {
            break;
        }
        let answer = match ask(roots.search(project, after.as_deref())) {
            Ok(answer) if is_foreign(&answer) => return Found::Failed(Ok(answer)),
            Ok(answer) if answer.status == 200 => answer,
            Ok(Answer { status: 401..=403, .. }) => return Found::NotAllowed,
            Ok(answer) if matches!(answer.status, 400..=499 | 501) && !matches!(answer.status, 408 | 425 | 429) => {
                debug!(target: "replay_manager", status = answer.status, "the Opik server has no search for traces");
                return by_likely_id(sender, roots);
            }
            // Nothing that is read may pass for what was sent.
            Ok(answer) if answer.status < 300 => return by_likely_id(sender, roots),
            result => return Found::Failed(result),
        };
        let page = shown_in_page(answer.text.as_bytes());
        note(roots, &page, &mut ids);
        let last = page.iter().map(|shown| shown.id.as_str()).min();
        match last {
            Some(last) if ids.contains(&None) && after.as_deref().is_none_or(|after| last < after) => {
                after = Some(last.to_owned());
            }
            _ => break,
        }
    }
    // A trace begins with the root that made it, which may be another one.
    let missing: Vec<usize> = (0..ids.len()).filter(|at| ids[*at].is_none()).take(SEARCHES_MAX).collect();
    for read in missing.into_iter().flat_map(|at| roots.traces()[at].search(project)) {
        if !sender.keeper.may_send() {
            break;
        }
        match ask(read) {
            Ok(answer) if is_foreign(&answer) => return Found::Failed(Ok(answer)),
            Ok(answer) if answer.status == 200 => note(roots, &shown_in_page(answer.text.as_bytes()), &mut ids),
            // It has searched by time, so what it does not know is this filter.
            Ok(answer) if answer.status < 500 && !matches!(answer.status, 408 | 425 | 429) => break,
            result => return Found::Failed(result),
        }
    }
    // A search may be late where a read by id is not.
    for (trace, known) in roots.traces().iter().zip(&mut ids).filter(|(_, known)| known.is_none()).take(SEARCHES_MAX) {
        let Some(id) = trace.likely_id().filter(|_| sender.keeper.may_send()) else { continue };
        match get(sender, Kind::Trace, id) {
            Ok(answer) if is_foreign(&answer) => return Found::Failed(Ok(answer)),
            Ok(answer) if answer.status == 200 && is_shown(&answer, id) => *known = Some(id),
            Ok(answer) if answer.status < 500 && !matches!(answer.status, 408 | 425 | 429) => {}
            result => return Found::Failed(result),
        }
    }
    Found::Ids(ids)
}

/// Notes which traces a page shows.
fn note(roots: &Roots, page: &[readback::Shown], ids: &mut [Option<Uuid>]) {
    for id in page.iter().filter_map(|shown| Uuid::try_parse(&shown.id).ok()) {
        // Of two, one was made after the server had forgotten the other: the id that this request makes is current.
        for (trace, known) in roots.traces().iter().zip(ids.iter_mut()) {
            if trace.is(id) && (known.is_none() || trace.likely_id() == Some(id)) {
                *known = Some(id);
            }
        }
    }
}

/// Asks for the ids that this request would make, where there is no search.
fn by_likely_id(sender: &Sender<'_>, roots: &Roots) -> Found {
    let mut ids = Vec::new();
    for trace in roots.traces() {
        let Some(id) = trace.likely_id().filter(|_| sender.keeper.may_send()) else {
            ids.push(None);
            continue;
        };
        match get(sender, Kind::Trace, id) {
            Ok(answer) if is_foreign(&answer) => return Found::Failed(Ok(answer)),
            Ok(answer) if answer.status == 200 && is_shown(&answer, id) => ids.push(Some(id)),
            Ok(Answer { status: 400..=407 | 409..=424 | 426..=428 | 430..=499 | 501, .. }) => return Found::NoRead,
            Ok(answer) if answer.status == 200 => return Found::NoRead,
            result => return Found::Failed(result),
        }
    }
    Found::Ids(ids)
}

fn get(sender: &Sender<'_>, kind: Kind, id: Uuid) -> Result<Answer, SendFailure> {
    let read = readback::one(kind, &id.to_string(), None);
    sender.replay.upstream.read_back(&sender.work.lane, &read, ENTITY_BYTES_MAX)
}

/// Says whether a front answered: what it says of a read is no word about what the server has.
fn is_foreign(answer: &Answer) -> bool {
    answer.recognised.foreign().is_some()
}

/// Says whether an answer shows this entity. Of a long one the end is cut off.
fn is_shown(answer: &Answer, id: Uuid) -> bool {
    let id = id.to_string();
    match shown(answer.text.as_bytes()) {
        Some(shown) => shown.id.eq_ignore_ascii_case(&id),
        None => answer.text.trim_start().starts_with('{') && answer.text.contains(&id),
    }
}

/// Returns a request that says something else in the same place.
fn with_content(request: &Request, content: Vec<u8>) -> Request {
    let headers = request.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("content-encoding"));
    Request {
        method: request.method.clone(),
        path: request.path.clone(),
        headers: HeaderSet::new(headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect()),
        body: Body::new(content, Encoding::Identity),
    }
}
