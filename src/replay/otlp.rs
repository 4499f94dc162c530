//! OTLP whose trace the server has from an earlier attempt: the missing spans are delivered, and the trace is not
//! created again.
//!
//! The head of [`roots`] explains why a retry is not enough, and how it is done. The result depends on what the server
//! shows:
//!
//! | the server | the result |
//! | --- | --- |
//! | shows the trace, and accepts spans with `opik.trace_id` | all spans are stored: delivered |
//! | shows the trace, and is too old for the attribute | divided; a root alone is delivered if its own record is shown, else rejected with these words |
//! | does not show the trace (yet) | divided; a root alone waits for another attempt |
//! | has no such read | the id that this request would create is tried; if that is refused, a root alone is already there |
//!
//! The last row does not guess about spans: every server that knows the attribute has the read, too.
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
use crate::protocol::readback::{self, DEFAULT_PROJECT, ReadableKind, shown, shown_in_page};
use crate::protocol::recognise::Endpoint;

/// Pages that are read for the traces of one request. The filter selects traces that begin with its roots.
const PAGES_MAX: usize = 10;
/// Traces of one request that are searched one by one. A request with more is divided.
const SEARCHES_MAX: usize = 16;
/// Bytes of a page that are read: mostly ids.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of one entity that are read: only its existence matters.
const ENTITY_BYTES_MAX: usize = 64 * 1024;

/// The result for one request.
pub(super) enum Completed {
    /// The answer by which the request is judged.
    Answer(Result<Answer, SendFailure>),
    /// The server has all of the request.
    AlreadyThere(Answer),
    /// The server refers to a trace that it does not show yet.
    NotShown(Answer),
}

/// The traces of a request, as the server shows them.
enum TraceIds {
    /// Opik's id of each trace that it shows.
    Ids(Vec<Option<Uuid>>),
    /// It has no such read.
    NoRead,
    /// This key may not read.
    NotAllowed,
    /// It can't be read now.
    Failed(Result<Answer, SendFailure>),
}

/// Opik's ids of traces that the server has shown, by the key that names them in the lane's requests.
#[derive(Default)]
pub(super) struct KnownTraces(HashMap<Vec<u8>, Uuid>);

impl KnownTraces {
    /// Returns a request with its roots of these traces attached to them; `None` when it has none.
    ///
    /// Otherwise, pieces of a request whose roots share a trace would get the conflict one by one.
    pub(super) fn attach(&self, request: &Request) -> Option<Request> {
        if self.0.is_empty() {
            return None;
        }
        let (content, roots) = read(request)?;
        let ids: Vec<Option<Uuid>> = roots.traces().iter().map(|trace| self.0.get(trace.key()).copied()).collect();
        ids.iter().any(Option::is_some).then(|| with_content(request, roots.attach(&content, &ids)))
    }
}

/// Delivers the missing spans of a request that was answered with `conflict`.
pub(super) fn complete(sender: &Sender<'_>, request: &Request, conflict: Answer, known: &mut KnownTraces) -> Completed {
    let Some((content, roots)) = read(request) else { return Completed::Answer(Ok(conflict)) };
    if roots.traces().is_empty() {
        return Completed::Answer(Ok(conflict));
    }
    let is_alone = roots.span_count() == 1;
    let (ids, are_shown) = match find_traces(sender, request, &roots) {
        TraceIds::Ids(ids) => (ids, true),
        TraceIds::NoRead => (roots.traces().iter().map(|trace| trace.likely_id()).collect(), false),
        TraceIds::NotAllowed => {
            let text =
                format!("{}; opik-offline: the key may not read the trace to see what is missing", conflict.text);
            return Completed::Answer(Ok(Answer { text, ..conflict }));
        }
        TraceIds::Failed(result) => return Completed::Answer(result),
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
                    "the Opik server had a trace from an earlier attempt, its spans were delivered without creating it again"
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
                "the Opik server already has the trace of a root span; it does not show whether it has the span's own record"
            );
            Completed::AlreadyThere(answer)
        }
        _ => Completed::Answer(Ok(answer)),
    }
}

/// Asks an older server for a root's own record, which it stores only together with its trace.
fn own_record(sender: &Sender<'_>, roots: &Roots, trace: Uuid, conflict: Answer) -> Completed {
    for span in roots.span_ids(trace) {
        let result = get(sender, ReadableKind::Span, span);
        match &result {
            Ok(answer) if is_foreign(answer) => return Completed::Answer(result),
            Ok(answer) if answer.status == 200 && is_shown(answer, span) => return Completed::AlreadyThere(conflict),
            // An answer about another entity confirms nothing.
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

/// Searches for Opik's ids of the traces whose roots are in this request.
fn find_traces(sender: &Sender<'_>, request: &Request, roots: &Roots) -> TraceIds {
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
            Ok(answer) if is_foreign(&answer) => return TraceIds::Failed(Ok(answer)),
            Ok(answer) if answer.status == 200 => answer,
            Ok(Answer { status: 401..=403, .. }) => return TraceIds::NotAllowed,
            Ok(answer) if matches!(answer.status, 400..=499 | 501) && !matches!(answer.status, 408 | 425 | 429) => {
                debug!(target: "replay_manager", status = answer.status, "the Opik server does not support searching traces");
                return by_likely_id(sender, roots);
            }
            // A read must never count as a confirmation of the write.
            Ok(answer) if answer.status < 300 => return by_likely_id(sender, roots),
            result => return TraceIds::Failed(result),
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
    // A trace's start is that of the root that created it, which may be another one.
    let missing: Vec<usize> = (0..ids.len()).filter(|at| ids[*at].is_none()).take(SEARCHES_MAX).collect();
    for read in missing.into_iter().flat_map(|at| roots.traces()[at].search(project)) {
        if !sender.keeper.may_send() {
            break;
        }
        match ask(read) {
            Ok(answer) if is_foreign(&answer) => return TraceIds::Failed(Ok(answer)),
            Ok(answer) if answer.status == 200 => note(roots, &shown_in_page(answer.text.as_bytes()), &mut ids),
            // It has searched by time, so it is this filter that it does not support.
            Ok(answer) if answer.status < 500 && !matches!(answer.status, 408 | 425 | 429) => break,
            result => return TraceIds::Failed(result),
        }
    }
    // The search index may lag where a read by id does not.
    for (trace, known) in roots.traces().iter().zip(&mut ids).filter(|(_, known)| known.is_none()).take(SEARCHES_MAX) {
        let Some(id) = trace.likely_id().filter(|_| sender.keeper.may_send()) else { continue };
        match get(sender, ReadableKind::Trace, id) {
            Ok(answer) if is_foreign(&answer) => return TraceIds::Failed(Ok(answer)),
            Ok(answer) if answer.status == 200 && is_shown(&answer, id) => *known = Some(id),
            Ok(answer) if answer.status < 500 && !matches!(answer.status, 408 | 425 | 429) => {}
            result => return TraceIds::Failed(result),
        }
    }
    TraceIds::Ids(ids)
}

/// Notes the traces that a page shows.
fn note(roots: &Roots, page: &[readback::ReadEntity], ids: &mut [Option<Uuid>]) {
    for id in page.iter().filter_map(|shown| Uuid::try_parse(&shown.id).ok()) {
        // If there are two, one was created after the server had forgotten the other: the id that this request creates
        // is the current one.
        for (trace, known) in roots.traces().iter().zip(ids.iter_mut()) {
            if trace.is(id) && (known.is_none() || trace.likely_id() == Some(id)) {
                *known = Some(id);
            }
        }
    }
}

/// Reads the ids that this request would create, where there is no search.
fn by_likely_id(sender: &Sender<'_>, roots: &Roots) -> TraceIds {
    let mut ids = Vec::new();
    for trace in roots.traces() {
        let Some(id) = trace.likely_id().filter(|_| sender.keeper.may_send()) else {
            ids.push(None);
            continue;
        };
        match get(sender, ReadableKind::Trace, id) {
            Ok(answer) if is_foreign(&answer) => return TraceIds::Failed(Ok(answer)),
            Ok(answer) if answer.status == 200 && is_shown(&answer, id) => ids.push(Some(id)),
            Ok(Answer { status: 400..=407 | 409..=424 | 426..=428 | 430..=499 | 501, .. }) => return TraceIds::NoRead,
            Ok(answer) if answer.status == 200 => return TraceIds::NoRead,
            result => return TraceIds::Failed(result),
        }
    }
    TraceIds::Ids(ids)
}

fn get(sender: &Sender<'_>, kind: ReadableKind, id: Uuid) -> Result<Answer, SendFailure> {
    let read = readback::one(kind, &id.to_string(), None);
    sender.replay.upstream.read_back(&sender.work.lane, &read, ENTITY_BYTES_MAX)
}

/// Returns whether a front answered: its answer to a read does not tell what the server has.
fn is_foreign(answer: &Answer) -> bool {
    answer.recognised.foreign().is_some()
}

/// Returns whether an answer shows this entity. A long answer is truncated.
fn is_shown(answer: &Answer, id: Uuid) -> bool {
    let id = id.to_string();
    match shown(answer.text.as_bytes()) {
        Some(shown) => shown.id.eq_ignore_ascii_case(&id),
        None => answer.text.trim_start().starts_with('{') && answer.text.contains(&id),
    }
}

/// Returns the same request with another body.
fn with_content(request: &Request, content: Vec<u8>) -> Request {
    let headers = request.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("content-encoding"));
    Request {
        method: request.method.clone(),
        path: request.path.clone(),
        headers: HeaderSet::new(headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect()),
        body: Body::new(content, Encoding::Identity),
    }
}
