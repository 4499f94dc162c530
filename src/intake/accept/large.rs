//! A batch that is too large for memory: read in pieces, forwarded as it came, and stored as several messages.
//!
//! ```text
//! spooled ─▶ surveyed (where the items are) ─▶ inspected, piece by piece ─▶ its turn ─▶ admission ─┬─ forward: streamed
//!                                                                                                  └─ register: piece by piece
//! ```
//!
//! Each pass reads the body from its beginning and decodes it on the way, so one piece of it is in memory at a time
//! ([`crate::protocol::item_stream`]). To the server it goes byte for byte as it came. Into the store it goes in pieces of a
//! few MiB, so that replay, division and the memory budget have nothing larger to do with than ever; the client is answered
//! once the last piece is committed. When that fails half-way, the client is told to come again, and what is stored by then
//! is sent twice at most, under the same ids.

use std::io::{self, BufReader, Read};
use std::sync::Arc;

use bytes::Bytes;
use http::header;
use uuid::Uuid;

use super::receive::Sizes;
use super::unkept::{Asked, Begun, Unkept, stream_through};
use super::{NotStored, Write, encoding_of, kept_headers, lane_of};
use crate::intake::forward::{self, ClientAnswer};
use crate::intake::spool::{Payload, Spool, Spools};
use crate::intake::{ClientUrl, Shared};
use crate::memory::{Grant, Use};
use crate::message::{Body, Encoding, HeaderSet, Message, Request, Touch};
use crate::protocol::answers::{Reply, error, success, unavailable};
use crate::protocol::inspection::{Inspection, NeedsAnswer, inspect, item_list, with_ids};
use crate::protocol::item_stream::{Frame, ItemsFault, Piece, Pieces};
use crate::protocol::routes::Protected;

/// What is read at once of a body.
const READ_BYTES: usize = 64 * 1024;
/// Entities of one write at most; the server takes a thousand items at once.
const TOUCHES_MAX: usize = 200_000;
/// What a client is told when this program fails.
const FAILED: &str = "opik-offline failed to read this body, which was not stored";

/// What may stand around the items: it is in every piece.
fn frame_bytes_max(piece: usize) -> usize {
    piece / 4
}

/// A large body, and how it is read.
#[derive(Clone)]
pub(super) struct Content {
    pub(super) payload: Payload,
    pub(super) encoding: Encoding,
    /// What it may be when it is decoded.
    pub(super) bytes_max: u64,
}

/// Why a large body is not taken.
pub(super) enum Fault {
    /// Its client is told this.
    Refused(Box<Reply>),
    /// It can't be kept, but may be sent.
    Unkept(Unkept),
}

impl From<Reply> for Fault {
    fn from(reply: Reply) -> Self {
        Self::Refused(Box::new(reply))
    }
}

impl Content {
    /// Returns a reader of it from its beginning.
    fn open(&self) -> BufReader<Bounded<Box<dyn Read + Send>>> {
        let decoder = self.encoding.decoder(self.payload.reader());
        BufReader::with_capacity(READ_BYTES, Bounded { inner: decoder, left: self.bytes_max })
    }

    /// Returns how large it is when decoded.
    pub(super) fn bytes(&self) -> Result<u64, Fault> {
        io::copy(&mut self.open(), &mut io::sink()).map_err(|error| self.fault(&error))
    }

    fn fault(&self, error: &io::Error) -> Fault {
        match error.kind() {
            io::ErrorKind::FileTooLarge => Fault::Unkept(Unkept::Inflated(self.bytes_max)),
            io::ErrorKind::Other => {
                tracing::warn!(target: "intake", "{error}");
                unavailable("opik-offline cannot read this body from its disk", super::STORE_RETRY_AFTER).into()
            }
            _ => error400(&format!("the {} body is damaged or ends too early", self.encoding.name())),
        }
    }

    fn items_fault(&self, fault: &ItemsFault) -> Fault {
        match fault {
            ItemsFault::Read(error) => self.fault(error),
            ItemsFault::NotJson(_) | ItemsFault::NotListed => error400(&format!("the body is {fault}")),
        }
    }
}

fn error400(text: &str) -> Fault {
    error(400, text).into()
}

/// Fails when more comes than is allowed.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.left = self.left.checked_sub(read as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(read)
    }
}

/// A batch that is read in pieces.
pub(super) struct Large {
    content: Content,
    frame: Arc<Frame>,
    piece: usize,
}

impl Large {
    /// Returns what goes to the server.
    pub(super) fn payload(&self) -> &Payload {
        &self.content.payload
    }

    /// Returns what one piece takes in memory.
    fn memory(&self) -> u64 {
        self.frame.piece_bytes_max(self.piece) as u64
    }
}

/// What the pieces of a batch are about.
#[derive(Default)]
struct Seen {
    touches: Vec<Touch>,
    items: u32,
    project: Option<String>,
    needs_answer: Option<NeedsAnswer>,
}

impl Seen {
    fn add(&mut self, inspection: Inspection) -> Result<(), Fault> {
        self.items = self.items.saturating_add(inspection.items);
        self.project = self.project.take().or(inspection.project);
        self.needs_answer = self.needs_answer.or(inspection.needs_answer);
        self.touches.extend(inspection.touches);
        if self.touches.len() > 2 * TOUCHES_MAX {
            self.settle()?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Fault> {
        self.touches = Touch::distinct(std::mem::take(&mut self.touches));
        match self.touches.len() > TOUCHES_MAX {
            true => Err(Fault::Unkept(Unkept::Indivisible(TOUCHES_MAX as u64))),
            false => Ok(()),
        }
    }
}

/// Takes a write whose body is not read as a whole. `memory` is for its payload.
pub(super) async fn take(shared: &Arc<Shared>, asked: Asked, payload: Payload, memory: Option<Grant>) -> ClientAnswer {
    let encoding = match encoding_of(&asked.head.headers) {
        Ok(encoding) => encoding,
        Err(reply) => return forward::own_answer(reply),
    };
    let content = Content { payload: payload.clone(), encoding, bytes_max: shared.limits.inflated_bytes_max };
    let prepared = match survey(shared, &asked.write, content.clone()).await {
        Ok(Surveyed::Listed(large)) => prepare(shared, &asked, large).await,
        Ok(Surveyed::Other(bytes)) => return whole(shared, asked, content, bytes, memory).await,
        Err(fault) => Err(fault),
    };
    match prepared {
        Ok(write) => {
            let answer = write.deliver(shared, &asked.client).await;
            drop(memory);
            answer
        }
        Err(Fault::Refused(reply)) => forward::own_answer(*reply),
        Err(Fault::Unkept(why)) => stream_through(shared, asked, Begun { payload, memory }, None, why).await,
    }
}

enum Surveyed {
    /// A batch that can be divided.
    Listed(Large),
    /// JSON of another shape, if any, of this many bytes.
    Other(u64),
}

async fn survey(shared: &Shared, write: &Protected, content: Content) -> Result<Surveyed, Fault> {
    let sizes = Sizes::of(shared.memory.bytes());
    let list = item_list(write.message_type);
    blocking(move || {
        let Some(list) = list else { return Ok(Surveyed::Other(content.bytes()?)) };
        match Frame::survey(content.open(), list, frame_bytes_max(sizes.piece)) {
            Ok(frame) if frame.item_bytes_max as u64 > sizes.whole => {
                Err(Fault::Unkept(Unkept::Indivisible(sizes.whole)))
            }
            Ok(frame) => Ok(Surveyed::Listed(Large { content, frame: Arc::new(frame), piece: sizes.piece })),
            Err(ItemsFault::NotListed) => Ok(Surveyed::Other(content.bytes()?)),
            Err(fault) => Err(content.items_fault(&fault)),
        }
    })
    .await
}

/// Takes a large body that is no list of items as any other: whole, if it may be held.
async fn whole(
    shared: &Arc<Shared>,
    asked: Asked,
    content: Content,
    bytes: u64,
    memory: Option<Grant>,
) -> ClientAnswer {
    let sizes = Sizes::of(shared.memory.bytes());
    let payload = content.payload.clone();
    let sent = payload.bytes();
    if bytes > sizes.whole_inflated || sent > sizes.whole {
        let why = Unkept::Indivisible(sizes.whole);
        return stream_through(shared, asked, Begun { payload, memory }, None, why).await;
    }
    let memory = match memory {
        Some(memory) => memory,
        None => match shared.wait_for_memory(Use::Intake, sent).await {
            Ok(memory) => memory,
            Err(reply) => return forward::own_answer(reply),
        },
    };
    let read = blocking(move || {
        let mut read = Vec::with_capacity(usize::try_from(sent).unwrap_or(0));
        payload.reader().read_to_end(&mut read).map_err(|error| content.fault(&error))?;
        Ok(Bytes::from(read))
    });
    match read.await {
        Ok(body) => super::take_whole(shared, asked, body, Some(bytes), memory).await,
        Err(Fault::Refused(reply)) => forward::own_answer(*reply),
        Err(Fault::Unkept(_)) => forward::own_answer(error(500, FAILED)),
    }
}

/// Reads what a batch is about, and gives ids to its creates that have none.
async fn prepare(shared: &Shared, asked: &Asked, large: Large) -> Result<Write, Fault> {
    let lane = lane_of(&shared.server, &asked.head.headers);
    let memory = shared.wait_for_memory(Use::Inspection, large.memory()).await?;
    let (route, spools) = (asked.write.clone(), shared.spools.clone());
    let (large, seen) = blocking(move || {
        let read = read(&large, &route, None)?;
        match read {
            Some(seen) => Ok((large, seen)),
            None => fill(large, &route, spools),
        }
    })
    .await?;
    drop(memory);
    let mut head = asked.head.clone();
    if large.content.encoding == Encoding::Identity {
        head.headers.remove(header::CONTENT_ENCODING);
    }
    let request = Request {
        method: head.method.as_str().to_owned(),
        path: asked.below.clone(),
        headers: kept_headers(&head.headers),
        // It is not here.
        body: Body::new(Bytes::new(), Encoding::Identity),
    };
    if let Some(needs) = seen.needs_answer {
        tracing::debug!(target: "intake", message_type = %asked.write.message_type, "never kept, because {}", needs.why);
    }
    let message = Message {
        lane,
        message_type: asked.write.message_type,
        request,
        touches: seen.touches,
        items: seen.items,
        project: seen.project,
        accepted_at_ms: 0,
    };
    Ok(Write {
        route: asked.write.clone(),
        head,
        id: None,
        message,
        needs_answer: seen.needs_answer,
        acknowledged_as: None,
        large: Some(Arc::new(large)),
    })
}

/// Reads all pieces; `None` when ids are missing and there is no spool for a body that has them.
fn read(large: &Large, route: &Protected, mut filled: Option<&mut Spool>) -> Result<Option<Seen>, Fault> {
    let look = |content: &[u8], at: u64| {
        inspect(route, content).map_err(|_| error400(&format!("the body is not JSON at byte {at} or behind it")))
    };
    let beside = look(&large.frame.empty(), 0)?;
    let mut seen = Seen::default();
    let (head, tail) = large.frame.around();
    let (mut is_first, fills) = (true, filled.is_some());
    let mut write = |bytes: &[u8]| match filled.as_mut() {
        None => Ok(()),
        Some(spool) => spool.write(bytes).map_err(|why| Fault::Unkept(Unkept::of(why, large.content.bytes_max))),
    };
    let mut pieces = Pieces::new(large.content.open(), large.frame.clone(), large.piece);
    write(head)?;
    write(b"[")?;
    while let Some(Piece { mut content, at }) =
        pieces.next_piece().map_err(|fault| large.content.items_fault(&fault))?
    {
        let mut inspection = look(&content, at)?;
        if !inspection.missing_ids.is_empty() {
            if !fills {
                return Ok(None);
            }
            content = with_ids(&content, &inspection.missing_ids, || Uuid::now_v7().to_string());
            inspection = look(&content, at)?;
        }
        if !std::mem::replace(&mut is_first, false) {
            write(b",")?;
        }
        write(large.frame.items_of(&content))?;
        seen.add(inspection)?;
    }
    write(b"]")?;
    write(tail)?;
    if is_first {
        seen.add(beside)?;
    }
    seen.settle()?;
    Ok(Some(seen))
}

/// Writes the body anew with the ids that are missing in it, as it is then forwarded and stored.
fn fill(large: Large, route: &Protected, spools: Arc<Spools>) -> Result<(Large, Seen), Fault> {
    let mut spool = Spool::new(spools);
    // Nothing is missing now, so there is an end.
    let seen = read(&large, route, Some(&mut spool))?.ok_or_else(|| Fault::from(error(500, FAILED)))?;
    let piece = large.piece;
    let payload = Payload::Spooled(Arc::new(spool));
    let filled = Content { bytes_max: payload.bytes(), payload, encoding: Encoding::Identity };
    let list = item_list(route.message_type).ok_or_else(|| Fault::from(error(500, FAILED)))?;
    let frame = Frame::survey(filled.open(), list, frame_bytes_max(piece));
    let frame = frame.map_err(|fault| filled.items_fault(&fault))?;
    Ok((Large { content: filled, frame: Arc::new(frame), piece }, seen))
}

impl Write {
    /// Stores a large batch piece by piece, and acknowledges it once the last piece is committed.
    pub(super) async fn register_pieces(
        &self,
        shared: &Arc<Shared>,
        client: &ClientUrl,
        large: &Arc<Large>,
    ) -> Result<ClientAnswer, NotStored> {
        let Ok(_memory) = shared.wait_for_memory(Use::Inspection, large.memory()).await else {
            return Err(NotStored::busy());
        };
        let headers = self.message.request.headers.iter();
        let headers = headers.filter(|(name, _)| !name.eq_ignore_ascii_case("content-encoding"));
        let headers = HeaderSet::new(headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect());
        let mut pieces = Pieces::new(large.content.open(), large.frame.clone(), large.piece);
        let mut stored = 0;
        loop {
            let route = self.route.clone();
            let next = tokio::task::spawn_blocking(move || {
                let next = pieces.next_piece().ok()?;
                let next = match next {
                    None => None,
                    Some(Piece { content, .. }) => Some((inspect(&route, &content).ok()?, content)),
                };
                Some((pieces, next))
            });
            // It was read before, so what fails is our disk.
            let Ok(Some((rest, next))) = next.await else { return Err(NotStored::unreadable()) };
            pieces = rest;
            let content_and_inspection = match next {
                Some(next) => next,
                // A batch of no item is stored as one, as any other write that does nothing.
                None if stored == 0 => (Inspection::default(), large.frame.empty()),
                None => break,
            };
            let (inspection, content) = content_and_inspection;
            let body = Body::new(content, Encoding::Identity);
            let request = Request { headers: headers.clone(), body, ..self.message.request.clone() };
            self.commit(
                shared,
                Message {
                    request,
                    touches: inspection.touches,
                    items: inspection.items,
                    project: inspection.project,
                    ..self.message.clone()
                },
            )
            .await?;
            stored += 1;
        }
        tracing::debug!(target: "intake", pieces = stored, "a large batch is stored in pieces");
        Ok(forward::own_answer(success(&self.route, &client.base(), None)))
    }
}

/// Does work that waits for the disk, on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(error(500, FAILED).into()))
}
