//! The upload flow of attachments, taken over by the agent: always stored first, and uploaded by replay.
//!
//! ```text
//! upload-start ─▶ answered as a local installation does, with a URL of the agent's own
//! PUT          ─▶ streamed into the store, piece by piece ─▶ entity lock ─▶ registered (committed) ─▶ 204
//! upload-complete of such an upload ─▶ 204, if the file is as the client says
//! ```
//!
//! Online too: a client could not finish or retry an upload that began with the server and lost it halfway, because the
//! server's answer to upload-start is useless after an outage.
//!
//! The steps are stateless. The URL that upload-start returns has everything that the PUT needs, so an agent that was
//! restarted in between accepts the PUT as well. Only for upload-complete, which clients don't send in the local flow,
//! the last uploads are remembered ([`super::recent_uploads`]).
//!
//! While the store is unusable the steps go to the server, as everything else does, unless the entity of the file may
//! still be queued in the store ([`crate::delivery::unprotected`]). Memory: two pieces per upload, counted in the
//! budget for all bodies.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tracing::{debug, warn};

use super::accept::NotStored;
use super::body::{Sizes, broken_body};
use super::exchange::{Exchange, kept_headers, lane_of};
use super::forward::{self, ClientAnswer};
use super::pace::{BodyPace, TooSlow};
use super::pass_through::{OutgoingBody, pass_through};
use super::recent_uploads::RECENT_MAX;
use super::server_answer::judge_answer;
use super::shared::Shared;
use super::uncancelled::Uncancelled;
use crate::delivery::unprotected::{Passage, passage};
use crate::delivery::unread::{Concerns, Locked};
use crate::memory::Use;
use crate::message::{Body, Encoding, HeaderSet, Lane, Message, MessageType, Request, Touch};
use crate::protocol::answers::{Reply, error, unavailable};
use crate::protocol::attachment::{
    Complete, LOCAL_UPLOAD_ID, PART_BYTES_MIN, START_PATH, Start, Step, Subject, local_start, start_through,
};
use crate::protocol::recognise::{Endpoint, Recognised};
use crate::store::attachment::{AttachmentWriter, PIECE_BYTES};
use crate::store::committer::CommitError;
use crate::store::{Filter, FullLimit, Page, Store, StoreError, now_ms};

/// Bytes of an answer to upload-start that are searched for a URL.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Writes a file into the store.
type FileWriter = AttachmentWriter<Arc<dyn Store>>;

/// Handles a step of an upload.
pub(super) async fn upload(exchange: Exchange, step: Step) -> ClientAnswer {
    // Not tied to the connection: a client that hangs up must not leave bytes behind.
    let work = async move {
        exchange.shared.refresh_store().await;
        match exchange.shared.slot.try_get() {
            Err(_) => upload_without_store(exchange, step).await,
            Ok(store) => match step {
                Step::Start => start(exchange, &store).await,
                Step::Put => put(exchange, &store).await,
                Step::Complete => complete(exchange, &store).await,
            },
        }
    };
    Uncancelled::new(work).await.unwrap_or_else(|_| {
        forward::own_answer(error(500, "opik-offline failed to handle this request, and its file was not stored"))
    })
}

/// Handles a step while the store is unusable.
async fn upload_without_store(mut exchange: Exchange, step: Step) -> ClientAnswer {
    if step == Step::Put {
        let query = exchange.head.uri.query().unwrap_or_default();
        let touches = Subject::from_query(query).map(|subject| subject.touches()).unwrap_or_default();
        return match overtakes(&exchange.shared, &touches) {
            Some(why) => {
                let refusal = exchange.shared.refuse_unprotected(why);
                exchange.refuse_with(refusal).await
            }
            None => pass_step(exchange, step, None).await,
        };
    }
    let (bytes, content) = match read_json(&mut exchange).await {
        Ok(read) => read,
        Err(reply) => return exchange.refuse(reply).await,
    };
    let subject = match step {
        Step::Complete => Complete::read(&content).map(|complete| complete.subject),
        Step::Start | Step::Put => Start::read(&content).map(|start| start.subject),
    };
    let touches = subject.map(|subject| subject.touches()).unwrap_or_default();
    match overtakes(&exchange.shared, &touches) {
        Some(why) => exchange.shared.refuse_unprotected(why),
        None => pass_step(exchange, step, Some(bytes)).await,
    }
}

/// Returns why a step that can't be stored may not go to the server either: its entity, or what it depends on, is
/// queued.
fn overtakes(shared: &Shared, touches: &[Touch]) -> Option<&'static str> {
    match passage(shared.backlog_known(touches), false) {
        Passage::Pass => None,
        Passage::Refuse(why) => Some(why),
    }
}

/// Passes the step to the server, with `bytes` if its body was read already. A URL in the server's answer is rewritten
/// to lead through the agent. A web page's 200 counts as a failure: the file would be lost.
async fn pass_step(exchange: Exchange, step: Step, bytes: Option<Bytes>) -> ClientAnswer {
    let Exchange { shared, head, client, body, .. } = exchange;
    let body = match bytes {
        Some(bytes) => forward::request_body(bytes).into(),
        None => OutgoingBody::streamed(&shared, body),
    };
    let answer = pass_through(&shared, head, &client, body).await;
    if !answer.status().is_success() || answer.status() == http::StatusCode::NO_CONTENT {
        return answer;
    }
    let (mut head, mut body) = answer.into_parts();
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let data = frame.ok().and_then(|frame| frame.into_data().ok());
        let Some(data) = data.filter(|data| read.len() + data.len() <= ANSWER_BYTES_MAX) else {
            return forward::own_answer(unavailable("the answer of the Opik server broke off", shared.retry_after()));
        };
        read.extend_from_slice(&data);
    }
    let body = read.freeze();
    let endpoint = if step == Step::Start { Endpoint::UploadStart } else { Endpoint::Upload };
    if let Recognised::Foreign(foreign) = judge_answer(endpoint, &head, &body, false).0 {
        shared.connection.met_foreign(&foreign);
        shared.metrics.intake_refused.add(1);
        let text = format!("the answer is {foreign}, and opik-offline cannot store this file");
        return forward::own_answer(unavailable(&text, shared.retry_after()));
    }
    let through = start_through(&body, shared.forwarder.base_url(), &client.base());
    if through.is_some() {
        head.headers.remove(header::CONTENT_LENGTH);
    }
    ClientAnswer::from_parts(head, forward::full(through.map_or(body, Into::into)))
}

/// Reads the JSON of a step: as sent, and decoded.
///
/// # Errors
///
/// The answer to its client.
async fn read_json(exchange: &mut Exchange) -> Result<(Bytes, Bytes), Reply> {
    let (bytes, _memory) = exchange.read_whole().await?;
    let Exchange { shared, head, .. } = exchange;
    let encoding = head.headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("unreadable"));
    let Some(encoding) = Encoding::from_header(encoding) else {
        return Err(error(415, "the Content-Encoding is not supported, use gzip, deflate or none"));
    };
    let bytes_max = shared.limits.inflated_bytes_max.min(Sizes::of(shared.memory.bytes()).whole_inflated);
    match Body::new(bytes.clone(), encoding).decode(bytes_max) {
        Ok(content) => Ok((bytes, content)),
        Err(fault) => Err(error(400, &fault.to_string())),
    }
}

/// Answers upload-start as a local installation does, when the store has room for the file.
async fn start(mut exchange: Exchange, store: &Arc<dyn Store>) -> ClientAnswer {
    let (bytes, content) = match read_json(&mut exchange).await {
        Ok(read) => read,
        Err(reply) => return exchange.refuse(reply).await,
    };
    let start = match Start::read(&content) {
        Ok(start) => start,
        Err(refusal) => return forward::own_answer(error(400, &refusal)),
    };
    // All parts but the last are full, so this is the minimum size of the file.
    let expected = start.parts.saturating_sub(1).saturating_mul(PART_BYTES_MIN);
    let probed = store.clone();
    let probe = move || AttachmentWriter::begin(probed, Some(expected)).map(drop);
    if let Err(failure) = blocking(probe).await {
        let shared = exchange.shared.clone();
        let full = record(&shared, store, &failure);
        if full.is_some() {
            if let Some(reply) = overtaking(&shared, &exchange.lane(), &start.subject, &failure) {
                return forward::own_answer(reply);
            }
        } else if let Some(why) = overtakes(&shared, &start.subject.touches()) {
            return shared.refuse_unprotected(why);
        }
        let answer = pass_step(exchange, Step::Start, Some(bytes)).await;
        return counted(&shared, full, answer);
    }
    let base = exchange.client.base_or_claimed(start.client_url.as_deref());
    let body = local_start(&base, &start.subject);
    forward::own_answer(Reply { content_type: Some("application/json"), body, ..Reply::empty(200) })
}

/// Stores the bytes of a file, and acknowledges them once they are committed.
async fn put(mut exchange: Exchange, store: &Arc<dyn Store>) -> ClientAnswer {
    let subject = match check_put(&exchange) {
        Ok(subject) => subject,
        Err(reply) => return exchange.refuse(reply).await,
    };
    let shared = exchange.shared.clone();
    let Some(_memory) = shared.memory.try_take(Use::Intake, 2 * PIECE_BYTES as u64) else {
        return exchange.refuse(shared.refuse_busy()).await;
    };
    let (begun, announced) = (store.clone(), exchange.body.size_hint().exact());
    let writer = match blocking(move || AttachmentWriter::begin(begun, announced)).await {
        Ok(writer) => writer,
        Err(failure) => return put_without_room(exchange, store, &subject, &failure).await,
    };
    let writer = match receive(&mut exchange, store, writer).await {
        Ok(writer) => writer,
        Err(reply) => {
            shared.metrics.intake_refused.add(u64::from(reply.status == 503));
            return exchange.refuse(reply).await;
        }
    };
    let lane = exchange.lane();
    let message = message_of(&exchange, &subject, lane.clone());
    match register(&shared, writer, message).await {
        Ok(bytes) => {
            shared.metrics.messages_registered.add(1);
            shared.listener.recent_uploads.add(lane, subject, bytes);
            forward::own_answer(Reply::empty(204))
        }
        Err(failure) => {
            shared.metrics.intake_refused.add(1);
            forward::own_answer(refusal(&shared, store, failure))
        }
    }
}

/// Checks the head of a PUT, and returns the file that it is about.
///
/// # Errors
///
/// The answer to its client.
fn check_put(exchange: &Exchange) -> Result<Subject, Reply> {
    let Exchange { shared, head, body, .. } = exchange;
    let subject = Subject::from_query(head.uri.query().unwrap_or_default()).map_err(|refusal| error(400, &refusal))?;
    if head.headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(error(415, "the Content-Encoding of a file is not supported, send it as it is"));
    }
    if body.size_hint().exact().is_some_and(|bytes| bytes > shared.limits.attachment_bytes_max) {
        return Err(refuse_too_large(shared));
    }
    Ok(subject)
}

/// Handles a PUT whose file the store can't take. None of its body was read yet: a local server may take it.
async fn put_without_room(
    exchange: Exchange,
    store: &Arc<dyn Store>,
    subject: &Subject,
    failure: &Arc<StoreError>,
) -> ClientAnswer {
    let shared = exchange.shared.clone();
    let full = record(&shared, store, failure);
    if let Some(reply) = full.and_then(|_| overtaking(&shared, &exchange.lane(), subject, failure)) {
        return exchange.refuse(reply).await;
    }
    if full.is_none()
        && let Some(why) = overtakes(&shared, &subject.touches())
    {
        let refusal = shared.refuse_unprotected(why);
        return exchange.refuse_with(refusal).await;
    }
    let answer = pass_step(exchange, Step::Put, None).await;
    counted(&shared, full, answer)
}

/// Returns the message of a file: the upload that replay makes of it.
fn message_of(exchange: &Exchange, subject: &Subject, lane: Lane) -> Message {
    Message {
        message_type: MessageType::CreateAttachment,
        request: Request {
            method: "POST".to_owned(),
            path: START_PATH.to_owned(),
            headers: without_content_headers(&kept_headers(&exchange.head.headers)),
            body: Body::new(subject.to_body(), Encoding::Identity),
        },
        touches: subject.touches(),
        items: 1,
        project: subject.project().map(str::to_owned),
        accepted_at_ms: now_ms(),
        lane,
    }
}

/// Commits a file with its message; returns its size.
async fn register(shared: &Shared, writer: FileWriter, message: Message) -> Result<u64, Arc<StoreError>> {
    let bytes = writer.bytes();
    // After every write about its entity that is on its way to the server: what is stored is sent after those.
    let ticket = shared.listener.entity_locks.lock(&message.lane, &message.touches, None).await;
    let concerns = Concerns::Entities(message.touches.as_slice().into());
    let flight =
        shared.listener.windows.of(&message.lane).arrive(Locked { concerns, bars: true, is_final: true }).await;
    let registered = blocking(move || writer.register(&message)).await;
    drop(flight);
    drop(ticket);
    registered.map(|id| {
        debug!(target: "intake", %id, bytes, "an attachment is stored");
        bytes
    })
}

/// Reads the bytes of a file into the store. If that fails, what was written is removed.
///
/// # Errors
///
/// The answer to the client.
async fn receive(exchange: &mut Exchange, store: &Arc<dyn Store>, mut writer: FileWriter) -> Result<FileWriter, Reply> {
    let Exchange { shared, body, .. } = exchange;
    let mut gathered = BytesMut::new();
    let mut received = 0;
    let mut pace = BodyPace::new(shared.limits.client_timeout);
    loop {
        let frame = match pace.next(body).await {
            Err(TooSlow) => break remove(writer, shared.refuse_slow()).await,
            Ok(Some(Err(_))) => break remove(writer, broken_body()).await,
            Ok(Some(Ok(frame))) => Some(frame),
            Ok(None) => None,
        };
        let is_last = frame.is_none();
        if let Some(data) = frame.and_then(|frame| frame.into_data().ok()) {
            received += data.len() as u64;
            gathered.extend_from_slice(&data);
        }
        if received > shared.limits.attachment_bytes_max {
            break remove(writer, refuse_too_large(shared)).await;
        }
        if gathered.len() >= PIECE_BYTES || is_last {
            let now = gathered.split().freeze();
            writer = match blocking(move || writer.write(&now).map(|()| writer)).await {
                Ok(writer) => writer,
                Err(failure) => break Err(refusal(shared, store, failure)),
            };
        }
        if is_last {
            break Ok(writer);
        }
    }
}

/// Removes what was written, on a thread that may wait for the disk, and fails with this reply.
async fn remove<T>(writer: FileWriter, reply: Reply) -> Result<T, Reply> {
    if tokio::task::spawn_blocking(move || drop(writer)).await.is_err() {
        warn!(target: "intake", "internal error while removing an unfinished upload");
    }
    Err(reply)
}

/// Ends an upload that the agent took, or passes the step on if the server knows the upload.
async fn complete(mut exchange: Exchange, store: &Arc<dyn Store>) -> ClientAnswer {
    let (bytes, content) = match read_json(&mut exchange).await {
        Ok(read) => read,
        Err(reply) => return exchange.refuse(reply).await,
    };
    let complete = match Complete::read(&content) {
        Ok(complete) if complete.upload_id == LOCAL_UPLOAD_ID => complete,
        Ok(_) => return pass_step(exchange, Step::Complete, Some(bytes)).await,
        Err(refusal) => return forward::own_answer(error(400, &refusal)),
    };
    let shared = &exchange.shared;
    let lane = lane_of(&shared.server, &exchange.head.headers);
    let known = match shared.listener.recent_uploads.bytes_of(&lane, &complete.subject) {
        Some(bytes) => Ok(Some(bytes)),
        None => {
            let (queried, subject) = (store.clone(), complete.subject.clone());
            blocking(move || stored_bytes(queried.as_ref(), &lane, &subject)).await
        }
    };
    let reply = match known {
        Err(failure) => refusal(shared, store, failure),
        Ok(None) => error(400, "no file of this upload has been received"),
        Ok(Some(bytes)) if bytes != complete.file_bytes => {
            let text = format!("file_size is {}, and {bytes} bytes have been received", complete.file_bytes);
            error(400, &text)
        }
        Ok(Some(_)) if !complete.has_all_parts => error(400, "uploaded_file_parts must have every part once"),
        Ok(Some(_)) => Reply::empty(204),
    };
    forward::own_answer(reply)
}

/// Returns the size of a file that is queued in the store.
fn stored_bytes(store: &dyn Store, lane: &Lane, subject: &Subject) -> Result<Option<u64>, StoreError> {
    let filter = Filter {
        types: vec![MessageType::CreateAttachment],
        entities: subject.touches().iter().map(|touch| touch.key).collect(),
        ..Filter::default()
    };
    let page = Page { after: None, limit: RECENT_MAX, newest_first: true };
    for listed in store.list(&filter, &page)?.into_iter().filter(|listed| listed.lane == *lane) {
        let Some(message) = store.get(listed.id)? else { continue };
        let stored = Subject::from_body(&message.request.body.bytes);
        if stored.is_ok_and(|stored| stored.is_same_file(subject)) {
            return Ok(listed.attachment.map(|file| file.bytes));
        }
    }
    Ok(None)
}

/// Runs this on a thread that may wait for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Arc<StoreError>> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Arc::new),
        // A panic, or the end of the runtime: either way nothing was acknowledged.
        Err(_) => Err(Arc::new(StoreError::AttachmentGone)),
    }
}

/// Records why the store can't keep a file; returns the limit that was reached, if the store is full.
fn record(shared: &Shared, store: &Arc<dyn Store>, failure: &Arc<StoreError>) -> Option<FullLimit> {
    shared.slot.try_report(store, failure);
    let full = shared.collector.full().found_no_room(failure);
    if full.is_none() {
        warn!(target: "db_manager", "cannot store an attachment: {failure}");
    }
    full
}

/// Records why the store can't keep a file, and returns the answer to its client.
fn refusal(shared: &Shared, store: &Arc<dyn Store>, failure: Arc<StoreError>) -> Reply {
    if let Some(limit) = record(shared, store, &failure) {
        shared.collector.full().refused(limit);
    }
    NotStored::record(shared, &CommitError::Store(failure)).reply()
}

/// Returns the refusal of a file that the store has no room for, if it would reach the server before its entity.
fn overtaking(shared: &Shared, lane: &Lane, subject: &Subject, failure: &Arc<StoreError>) -> Option<Reply> {
    let bucket = MessageType::CreateAttachment.bucket();
    shared.must_not_overtake(lane, &subject.touches(), bucket)?;
    let not_stored = NotStored::record(shared, &CommitError::Store(failure.clone()));
    not_stored.count(shared);
    Some(not_stored.reply())
}

/// Counts what became of a file that the store had no room for.
fn counted(shared: &Shared, full: Option<FullLimit>, answer: ClientAnswer) -> ClientAnswer {
    if let Some(limit) = full {
        match answer.status().is_success() {
            true => shared.collector.full().passed_on(),
            false => shared.collector.full().refused(limit),
        }
    }
    answer
}

fn refuse_too_large(shared: &Shared) -> Reply {
    let limit = shared.limits.attachment_bytes_max;
    shared.count_over_limit("bytes of a file");
    error(413, &format!("the file is larger than {limit} bytes, opik-offline's limit (max_attachment_size)"))
}

/// Removes the headers that described the body of the PUT: the message's own body is another.
fn without_content_headers(headers: &HeaderSet) -> HeaderSet {
    let kept = headers.iter().filter(|(name, _)| !name.to_ascii_lowercase().starts_with("content-"));
    HeaderSet::new(kept.map(|(name, value)| (name.to_owned(), value.to_vec())).collect())
}
