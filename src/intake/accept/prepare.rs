//! Preparing a write: its body is decoded, parsed and inspected, and creates without an id get one.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::request::Parts;
use tracing::debug;
use uuid::Uuid;

use super::write::Write;
use crate::intake::evidence::CreateEvidence;
use crate::intake::exchange::{ClientUrl, Exchange, encoding_of, kept_headers, lane_of};
use crate::intake::forward::{self, ClientAnswer};
use crate::intake::shared::{BUSY_RETRY_AFTER, BUSY_TEXT, Shared};
use crate::memory::{Grant, Use};
use crate::message::{Body, BodyFault, Encoding, Message, MessageType, Request};
use crate::protocol::answers::{Reply, error, unavailable};
use crate::protocol::inspection::{Inspection, inspect, with_ids};
use crate::protocol::otlp;
use crate::protocol::routes::Protected;

/// Bodies up to this size are inspected on the connection's thread; larger ones on a thread that may take its time.
pub(super) const PREPARE_INLINE_BYTES_MAX: usize = 16 * 1024;
/// The same for their decoded size.
const PREPARE_INLINE_CONTENT_BYTES_MAX: u64 = 256 * 1024;
/// Bytes that an id takes that is added to a body, with its key.
const ID_BYTES: u64 = 64;

/// A request for a protected write.
pub(super) struct WriteRequest {
    pub(super) exchange: Exchange,
    pub(super) route: Protected,
    /// Its path and query below the API's base.
    pub(super) below: String,
}

/// A request for a protected write whose body was received whole.
pub(super) struct ReceivedWrite {
    pub(super) shared: Arc<Shared>,
    pub(super) head: Parts,
    pub(super) client: ClientUrl,
    pub(super) evidence: Arc<CreateEvidence>,
    pub(super) route: Protected,
    /// Its path and query below the API's base.
    pub(super) below: String,
}

impl From<WriteRequest> for ReceivedWrite {
    fn from(request: WriteRequest) -> Self {
        let WriteRequest { exchange: Exchange { shared, head, client, evidence, .. }, route, below } = request;
        Self { shared, head, client, evidence, route, below }
    }
}

/// Accepts a write whose body is decoded in memory, to this many bytes if that is known.
pub(super) async fn accept_whole(
    request: WriteRequest,
    bytes: Bytes,
    content_bytes: Option<u64>,
    memory: Grant,
) -> ClientAnswer {
    let mut memory = Some(memory);
    match prepare(request.into(), bytes, content_bytes, &mut memory).await {
        Ok(write) => write.deliver(Arc::new(memory)).await,
        Err(reply) => forward::own_answer(reply),
    }
}

/// Parses the body, finds out what it is about, and gives an id to creates that have none.
///
/// Without `memory` for the body, none is waited for to decode it: the caller has that, or the body is small.
///
/// # Errors
///
/// The answer to a client whose write no Opik server could ever accept.
pub(super) async fn prepare(
    request: ReceivedWrite,
    bytes: Bytes,
    content_bytes: Option<u64>,
    memory: &mut Option<Grant>,
) -> Result<Write, Reply> {
    let ReceivedWrite { shared, mut head, client, evidence, route, below } = request;
    let encoding = encoding_of(&head.headers)?;
    let lane = lane_of(&shared.server, &head.headers);
    let body = Body::new(bytes, encoding);
    let inflated_max = shared.limits.inflated_bytes_max;
    let content_max = content_bytes.unwrap_or_else(|| body.content_bytes_max()).min(inflated_max);
    let is_small = body.bytes.len() <= PREPARE_INLINE_BYTES_MAX && content_max <= PREPARE_INLINE_CONTENT_BYTES_MAX;
    // The decoded body is in memory beside the encoded one until it is inspected.
    let inflated = match body.is_encoded() && !is_small {
        true if memory.is_some() => Some(shared.wait_for_memory(Use::Inspection, content_max).await?),
        _ => None,
    };
    let otlp = otlp_of(&route, &head.headers)?;
    let acknowledged_as = otlp.as_ref().map(|otlp| otlp.format);
    let inspected = match is_small {
        true => inspect_body(&route, otlp, body, inflated_max, memory.as_mut()),
        false => inspect_on_thread(route.clone(), otlp, body, inflated_max, memory).await,
    };
    drop(inflated);
    if let (Ok(inspected), Some(memory)) = (&inspected, memory.as_mut()) {
        memory.shrink_to(inspected.body.bytes.len() as u64);
    }
    let Inspected { inspection, body, id, had_ids } = inspected.inspect_err(|reply| match reply.status {
        413 => shared.count_over_limit("bytes of an inflated body"),
        503 => shared.count_over_limit("bytes of all bodies"),
        _ => {}
    })?;
    evidence.read(route.message_type, inspection.items, had_ids);
    if body.encoding == Encoding::Identity && encoding != Encoding::Identity {
        head.headers.remove(header::CONTENT_ENCODING);
    }
    let request =
        Request { method: head.method.as_str().to_owned(), path: below, headers: kept_headers(&head.headers), body };
    if let Some(needs) = inspection.needs_answer {
        debug!(target: "intake", message_type = %route.message_type, "never stored, because {}", needs.why);
    }
    let message = Message {
        lane,
        message_type: route.message_type,
        request,
        touches: inspection.touches,
        items: inspection.items,
        project: inspection.project,
        accepted_at_ms: 0,
    };
    let needs_answer = inspection.needs_answer;
    Ok(Write { shared, client, route, head, id, message, needs_answer, acknowledged_as, large: None })
}

/// Runs [`inspect_body`] on a thread that may take its time. `memory` goes there and comes back.
async fn inspect_on_thread(
    route: Protected,
    otlp: Option<OtlpHead>,
    body: Body,
    inflated_bytes_max: u64,
    memory: &mut Option<Grant>,
) -> Result<Inspected, Reply> {
    let mut held = memory.take();
    let work = move || (inspect_body(&route, otlp, body, inflated_bytes_max, held.as_mut()), held);
    match tokio::task::spawn_blocking(work).await {
        Ok((inspected, held)) => {
            *memory = held;
            inspected
        }
        Err(_) => Err(error(500, "opik-offline failed to read this body, which was not stored")),
    }
}

struct Inspected {
    inspection: Inspection,
    /// As sent, unless an id had to be added.
    body: Body,
    id: Option<String>,
    /// Whether no item lacked an id that it needs.
    had_ids: bool,
}

/// Decodes, parses and inspects a body: the part of preparing that takes CPU time.
fn inspect_body(
    route: &Protected,
    otlp: Option<OtlpHead>,
    body: Body,
    inflated_bytes_max: u64,
    memory: Option<&mut Grant>,
) -> Result<Inspected, Reply> {
    let content = body.decode(inflated_bytes_max).map_err(|fault| match fault {
        BodyFault::Damaged(_) => error(400, &format!("{fault}")),
        BodyFault::TooLarge(_) => error(413, &format!("{fault}, opik-offline's limit (max_inflated_size)")),
    })?;
    if let Some(OtlpHead { format, project }) = otlp {
        let traces =
            otlp::Traces::read(format, &content).map_err(|fault| error(400, &format!("the body is {fault}")))?;
        return Ok(Inspected { inspection: traces.inspection(project), body, id: None, had_ids: true });
    }
    let read = |content: &[u8]| inspect(route, content).map_err(|fault| error(400, &format!("the body is {fault}")));
    let inspection = read(&content)?;
    if inspection.missing_ids.is_empty() {
        let id = inspection.id.clone();
        return Ok(Inspected { inspection, body, id, had_ids: true });
    }
    // A body to which ids are added is kept decoded, which may be a thousand times the memory of the encoded one.
    let more = content.len() as u64 + inspection.missing_ids.len() as u64 * ID_BYTES;
    if memory.is_some_and(|memory| !memory.try_grow(more)) {
        return Err(unavailable(BUSY_TEXT, BUSY_RETRY_AFTER));
    }
    let filled = with_ids(&content, &inspection.missing_ids, || Uuid::now_v7().to_string());
    let inspection = read(&filled)?;
    let id = inspection.id.clone();
    Ok(Inspected { inspection, body: Body::new(filled, Encoding::Identity), id, had_ids: false })
}

/// The format and project of an OTLP request, from its head.
struct OtlpHead {
    format: otlp::Format,
    project: Option<String>,
}

/// Parses the head of an OTLP request; `None` for all other writes.
///
/// # Errors
///
/// The answer to a client that sends another content type.
fn otlp_of(route: &Protected, headers: &HeaderMap) -> Result<Option<OtlpHead>, Reply> {
    if route.message_type != MessageType::OtlpTraces {
        return Ok(None);
    }
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("unreadable"));
    let Some(format) = otlp::Format::from_content_type(content_type.unwrap_or("")) else {
        let text = format!(
            "Content-Type {} is not supported for OTLP traces, use application/x-protobuf or application/json",
            content_type.unwrap_or("(none)")
        );
        return Err(error(415, &text));
    };
    let project = headers.get(otlp::PROJECT_HEADER).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let project = project.map(str::trim).filter(|project| !project.is_empty());
    Ok(Some(OtlpHead { format, project: project.map(str::to_owned) }))
}
