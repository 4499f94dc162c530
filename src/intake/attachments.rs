//! The upload flow of attachments, taken over by the agent: stored first, always, and uploaded by replay.
//!
//! ```text
//! upload-start ─▶ answered as a local installation does, with a URL of the agent's own
//! PUT          ─▶ streamed into the store, piece by piece ─▶ its turn ─▶ registered (committed) ─▶ 204
//! upload-complete of such an upload ─▶ 204, if the file is as the client says
//! ```
//!
//! Online too: an upload that began with the server and lost it half-way could not be finished by anybody, because what
//! the server answered to its first step is worth nothing after an outage.
//!
//! The steps need no memory of each other. What upload-start says is in the URL that it answers, so an agent that was
//! restarted in between takes the PUT as well. Only for upload-complete, which clients don't send in the local flow, the
//! last uploads are remembered.
//!
//! While the store can't be used the steps go to the server, as everything else does, unless the entity of the file may
//! still wait in the store ([`crate::delivery::unprotected`]). Memory: two pieces per upload, counted in the memory for
//! all bodies.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use http::header;
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tracing::{debug, warn};

use super::accept::{NotStored, Sizes, judge_answer, kept_headers, lane_of, read_body, refuse, refuse_with};
use super::forward::{self, ClientAnswer};
use super::wire::{Pace, TooSlow};
use super::{ClientUrl, PassedBody, Shared, pass_through, streamed};
use crate::delivery::unprotected::{Passage, passage};
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

/// Uploads that are remembered for their upload-complete.
const RECENT_MAX: usize = 1000;
/// Bytes of an answer to upload-start that are looked through for a URL.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The uploads that ended last, with their sizes.
#[derive(Default)]
pub(super) struct Recent(Mutex<VecDeque<(Lane, Subject, u64)>>);

impl Recent {
    fn add(&self, lane: Lane, subject: Subject, bytes: u64) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back((lane, subject, bytes));
    }

    fn bytes_of(&self, lane: &Lane, subject: &Subject) -> Option<u64> {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |known: &&(Lane, Subject, u64)| known.0 == *lane && known.1.is_same_file(subject);
        recent.iter().rev().find(is_it).map(|(_, _, bytes)| *bytes)
    }
}

/// Takes a step of an upload.
pub(super) async fn upload(
    shared: Arc<Shared>,
    step: Step,
    head: Parts,
    client: ClientUrl,
    body: Incoming,
) -> ClientAnswer {
    // Not tied to the connection: a client that hangs up must not leave bytes behind.
    let work = async move {
        match shared.slot.get() {
            Err(_) => unstored(&shared, step, head, &client, body).await,
            Ok(store) => match step {
                Step::Start => start(&shared, &store, head, &client, body).await,
                Step::Put => put(&shared, &store, head, &client, body).await,
                Step::Complete => complete(&shared, &store, head, &client, body).await,
            },
        }
    };
    tokio::spawn(work).await.unwrap_or_else(|_| {
        forward::own_answer(error(500, "opik-offline failed to handle this request, and its file was not stored"))
    })
}

/// Takes a step while the store can't be used.
async fn unstored(shared: &Shared, step: Step, head: Parts, client: &ClientUrl, body: Incoming) -> ClientAnswer {
    if step == Step::Put {
        let query = head.uri.query().unwrap_or_default();
        let touches = Subject::from_query(query).map(|subject| subject.touches()).unwrap_or_default();
        return match overtakes(shared, &touches) {
            Some(why) => {
                let refusal = shared.refuse_unprotected(why);
                refuse_with(refusal, &head.headers, body).await
            }
            None => plain_proxy(shared, step, head, client, streamed(shared, body)).await,
        };
    }
    let (bytes, content) = match read_json(shared, &head, body).await {
        Ok(read) => read,
        Err(answer) => return answer,
    };
    let subject = match step {
        Step::Complete => Complete::read(&content).map(|complete| complete.subject),
        Step::Start | Step::Put => Start::read(&content).map(|start| start.subject),
    };
    let touches = subject.map(|subject| subject.touches()).unwrap_or_default();
    match overtakes(shared, &touches) {
        Some(why) => shared.refuse_unprotected(why),
        None => plain_proxy(shared, step, head, client, forward::whole(bytes).into()).await,
    }
}

/// Returns why a step that can't be stored may not go to the server either: its entity, or what it depends on, waits.
fn overtakes(shared: &Shared, touches: &[Touch]) -> Option<&'static str> {
    match passage(shared.backlog_known(touches), false) {
        Passage::Pass => None,
        Passage::Refuse(why) => Some(why),
    }
}

/// Lets the server take the step. A URL of its own that it answers is made to lead through the agent, and a page's 200 is
/// no success: the file would be nowhere.
async fn plain_proxy(shared: &Shared, step: Step, head: Parts, client: &ClientUrl, body: PassedBody) -> ClientAnswer {
    let answer = pass_through(shared, head, client, body).await;
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

/// Reads the JSON of a step; `Err` is the answer to its client.
async fn read_json(
    shared: &Shared,
    head: &Parts,
    body: Incoming,
) -> Result<(bytes::Bytes, bytes::Bytes), ClientAnswer> {
    let mut body = body;
    let (bytes, _memory) = match read_body(shared, &head.headers, &mut body).await {
        Ok(read) => read,
        Err(reply) => return Err(refuse(reply, &head.headers, body).await),
    };
    let encoding = head.headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("unreadable"));
    let Some(encoding) = Encoding::from_header(encoding) else {
        return Err(forward::own_answer(error(
            415,
            "the Content-Encoding is not supported, use gzip, deflate or none",
        )));
    };
    let bytes_max = shared.limits.inflated_bytes_max.min(Sizes::of(shared.memory.bytes()).whole_inflated);
    match Body::new(bytes.clone(), encoding).decode(bytes_max) {
        Ok(content) => Ok((bytes, content)),
        Err(fault) => Err(forward::own_answer(error(400, &fault.to_string()))),
    }
}

/// Answers upload-start as a local installation does, when the store has room for the file.
async fn start(
    shared: &Shared,
    store: &Arc<dyn Store>,
    head: Parts,
    client: &ClientUrl,
    body: Incoming,
) -> ClientAnswer {
    let (bytes, content) = match read_json(shared, &head, body).await {
        Ok(read) => read,
        Err(answer) => return answer,
    };
    let start = match Start::read(&content) {
        Ok(start) => start,
        Err(refusal) => return forward::own_answer(error(400, &refusal)),
    };
    // All parts but the last are full, so this is the least that will come.
    let expected = start.parts.saturating_sub(1).saturating_mul(PART_BYTES_MIN);
    let probed = store.clone();
    let probe = move || AttachmentWriter::begin(probed, Some(expected)).map(drop);
    if let Err(failure) = blocking(probe).await {
        let full = report(shared, store, &failure);
        if full.is_some() {
            let lane = lane_of(&shared.server, &head.headers);
            if let Some(reply) = overtaking(shared, &lane, &start.subject, &failure) {
                return forward::own_answer(reply);
            }
        } else if let Some(why) = overtakes(shared, &start.subject.touches()) {
            return shared.refuse_unprotected(why);
        }
        let body = forward::whole(bytes).into();
        let answer = plain_proxy(shared, Step::Start, head, client, body).await;
        return counted(shared, full, answer);
    }
    let base = client.seen_as(start.client_url.as_deref());
    let body = local_start(&base, &start.subject);
    forward::own_answer(Reply { content_type: Some("application/json"), body, ..Reply::empty(200) })
}

/// Takes the bytes of a file.
async fn put(
    shared: &Shared,
    store: &Arc<dyn Store>,
    head: Parts,
    client: &ClientUrl,
    mut body: Incoming,
) -> ClientAnswer {
    let query = head.uri.query().unwrap_or_default();
    let subject = match Subject::from_query(query) {
        Ok(subject) => subject,
        Err(refusal) => return refuse(error(400, &refusal), &head.headers, body).await,
    };
    let lane = lane_of(&shared.server, &head.headers);
    if head.headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        let reply = error(415, "the Content-Encoding of a file is not supported, send it as it is");
        return refuse(reply, &head.headers, body).await;
    }
    let announced = body.size_hint().exact();
    if announced.is_some_and(|bytes| bytes > shared.limits.attachment_bytes_max) {
        return refuse(too_large(shared), &head.headers, body).await;
    }
    let Some(_memory) = shared.memory.try_take(Use::Intake, 2 * PIECE_BYTES as u64) else {
        return refuse(shared.busy(), &head.headers, body).await;
    };
    let begun = store.clone();
    let writer = match blocking(move || AttachmentWriter::begin(begun, announced)).await {
        Ok(writer) => writer,
        // Nothing of it was read yet: the server may take it, if it is a local one.
        Err(failure) => {
            let full = report(shared, store, &failure);
            if let Some(reply) = full.and_then(|_| overtaking(shared, &lane, &subject, &failure)) {
                return refuse(reply, &head.headers, body).await;
            }
            if full.is_none()
                && let Some(why) = overtakes(shared, &subject.touches())
            {
                let refusal = shared.refuse_unprotected(why);
                return refuse_with(refusal, &head.headers, body).await;
            }
            let answer = plain_proxy(shared, Step::Put, head, client, streamed(shared, body)).await;
            return counted(shared, full, answer);
        }
    };
    let writer = match receive(shared, store, writer, &mut body).await {
        Ok(writer) => writer,
        Err(reply) => {
            shared.metrics.intake_refused.add(u64::from(reply.status == 503));
            return refuse(reply, &head.headers, body).await;
        }
    };
    let touches = subject.touches();
    let bytes = writer.bytes();
    let message = Message {
        message_type: MessageType::CreateAttachment,
        request: Request {
            method: "POST".to_owned(),
            path: START_PATH.to_owned(),
            headers: without_content_headers(&kept_headers(&head.headers)),
            body: Body::new(subject.to_body(), Encoding::Identity),
        },
        touches,
        items: 1,
        project: subject.project().map(str::to_owned),
        accepted_at_ms: now_ms(),
        lane: lane.clone(),
    };
    // Behind whatever about its entity is on its way to the server: what is stored goes after it, not beside it.
    let turn = shared.lanes.turn(&lane, &message.touches, None).await;
    let registered = blocking(move || writer.register(&message)).await;
    drop(turn);
    match registered {
        Ok(id) => {
            debug!(target: "intake", %id, bytes, "an attachment is stored");
            shared.metrics.messages_registered.add(1);
            shared.uploads.add(lane, subject, bytes);
            forward::own_answer(Reply::empty(204))
        }
        Err(failure) => {
            shared.metrics.intake_refused.add(1);
            forward::own_answer(refusal(shared, store, failure))
        }
    }
}

/// Reads the bytes of a file into the store. Dropping the writer on the way removes what was written.
async fn receive(
    shared: &Shared,
    store: &Arc<dyn Store>,
    mut writer: AttachmentWriter<Arc<dyn Store>>,
    body: &mut Incoming,
) -> Result<AttachmentWriter<Arc<dyn Store>>, Reply> {
    let mut gathered = BytesMut::new();
    let mut received = 0;
    let mut pace = Pace::new(shared.limits.client_timeout);
    loop {
        let frame = match pace.next(body).await {
            Err(TooSlow) => break dropped(writer, shared.too_slow()).await,
            Ok(Some(Err(_))) => {
                break dropped(writer, error(400, "the body ended too early or is framed wrongly")).await;
            }
            Ok(Some(Ok(frame))) => Some(frame),
            Ok(None) => None,
        };
        let is_last = frame.is_none();
        if let Some(data) = frame.and_then(|frame| frame.into_data().ok()) {
            received += data.len() as u64;
            gathered.extend_from_slice(&data);
        }
        if received > shared.limits.attachment_bytes_max {
            break dropped(writer, too_large(shared)).await;
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

/// Removes what was written, off the threads that serve requests.
async fn dropped<T>(writer: AttachmentWriter<Arc<dyn Store>>, reply: Reply) -> Result<T, Reply> {
    if tokio::task::spawn_blocking(move || drop(writer)).await.is_err() {
        warn!(target: "intake", "removing an unfinished upload failed by a fault of opik-offline's own");
    }
    Err(reply)
}

/// Ends an upload that the agent took, or passes the step on: then the server knows the upload.
async fn complete(
    shared: &Shared,
    store: &Arc<dyn Store>,
    head: Parts,
    client: &ClientUrl,
    body: Incoming,
) -> ClientAnswer {
    let (bytes, content) = match read_json(shared, &head, body).await {
        Ok(read) => read,
        Err(answer) => return answer,
    };
    let complete = match Complete::read(&content) {
        Ok(complete) if complete.upload_id == LOCAL_UPLOAD_ID => complete,
        Ok(_) => return plain_proxy(shared, Step::Complete, head, client, forward::whole(bytes).into()).await,
        Err(refusal) => return forward::own_answer(error(400, &refusal)),
    };
    let lane = lane_of(&shared.server, &head.headers);
    let known = match shared.uploads.bytes_of(&lane, &complete.subject) {
        Some(bytes) => Ok(Some(bytes)),
        None => {
            let (looked, subject) = (store.clone(), complete.subject.clone());
            blocking(move || stored_bytes(looked.as_ref(), &lane, &subject)).await
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

/// Returns the size of a file that waits in the store.
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

/// Does this on a thread that may wait for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Arc<StoreError>> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Arc::new),
        // A panic, or the end of the runtime: in either case nothing was registered that anyone was told of.
        Err(_) => Err(Arc::new(StoreError::AttachmentGone)),
    }
}

/// Tells those who watch the store why a file can't be kept; returns the limit that was met, if it is full.
fn report(shared: &Shared, store: &Arc<dyn Store>, failure: &Arc<StoreError>) -> Option<FullLimit> {
    shared.slot.report(store, failure);
    let full = shared.collector.full().found_no_room(failure);
    if full.is_none() {
        warn!(target: "db_manager", "cannot store an attachment: {failure}");
    }
    full
}

fn refusal(shared: &Shared, store: &Arc<dyn Store>, failure: Arc<StoreError>) -> Reply {
    if let Some(limit) = report(shared, store, &failure) {
        shared.collector.full().refused(limit);
    }
    NotStored::of(shared, &CommitError::Store(failure)).reply()
}

/// Returns the refusal of a file that the store has no room for, when the server would have it before its entity.
fn overtaking(shared: &Shared, lane: &Lane, subject: &Subject, failure: &Arc<StoreError>) -> Option<Reply> {
    let bucket = MessageType::CreateAttachment.bucket();
    shared.must_not_overtake(lane, &subject.touches(), bucket)?;
    let not_stored = NotStored::of(shared, &CommitError::Store(failure.clone()));
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

fn too_large(shared: &Shared) -> Reply {
    let limit = shared.limits.attachment_bytes_max;
    shared.over_limit("bytes of a file");
    error(413, &format!("the file is larger than {limit} bytes, opik-offline's limit (max_attachment_size)"))
}

/// What described the bytes of the PUT does not describe the message's own body.
fn without_content_headers(headers: &HeaderSet) -> HeaderSet {
    let kept = headers.iter().filter(|(name, _)| !name.to_ascii_lowercase().starts_with("content-"));
    HeaderSet::new(kept.map(|(name, value)| (name.to_owned(), value.to_vec())).collect())
}
