//! A body that is too large for memory, parsed in pieces.
//!
//! Each pass reads the payload from its beginning and decodes it as a stream, so only one piece of it is in memory at a
//! time ([`crate::protocol::item_stream`]).

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use uuid::Uuid;

use super::unkept::Unkept;
use crate::intake::body::Sizes;
use crate::intake::shared::STORE_RETRY_AFTER;
use crate::intake::spool::{Payload, Spool, Spools};
use crate::message::{Encoding, Touch};
use crate::protocol::answers::{Reply, error, unavailable};
use crate::protocol::inspection::{Inspection, NeedsAnswer, inspect, item_list, with_ids};
use crate::protocol::item_stream::{Frame, ItemsFault, Piece, Pieces};
use crate::protocol::routes::Protected;

/// Bytes that are read at once of a body.
const READ_BYTES: usize = 64 * 1024;
/// Entities of one write at most; the server takes a thousand items at once.
const TOUCHES_MAX: usize = 200_000;
/// The answer to a client when this program fails.
pub(super) const FAILED: &str = "opik-offline failed to read this body, which was not stored";

/// Returns how many bytes there may be around the items: they are in every piece.
fn frame_bytes_max(piece: usize) -> usize {
    piece / 4
}

/// A large body, and how to decode it.
#[derive(Clone)]
pub(super) struct Content {
    pub(super) payload: Payload,
    pub(super) encoding: Encoding,
    /// The maximum of its decoded size.
    pub(super) bytes_max: u64,
}

/// Why a large body is not accepted.
pub(super) enum LargeBodyError {
    /// The answer to its client.
    Refused(Box<Reply>),
    /// It can't be kept, but may be sent.
    Unkept(Unkept),
}

impl From<Reply> for LargeBodyError {
    fn from(reply: Reply) -> Self {
        Self::Refused(Box::new(reply))
    }
}

impl Content {
    /// Returns a reader of the decoded body from its beginning.
    fn open(&self) -> BufReader<Bounded<Box<dyn Read + Send>>> {
        let decoder = self.encoding.decoder(self.payload.reader());
        BufReader::with_capacity(READ_BYTES, Bounded { inner: decoder, left: self.bytes_max })
    }

    /// Returns how large it is when decoded.
    pub(super) fn bytes(&self) -> Result<u64, LargeBodyError> {
        io::copy(&mut self.open(), &mut io::sink()).map_err(|error| self.read_error(&error))
    }

    /// Reads all of it, undecoded, into memory.
    pub(super) fn read_whole(&self) -> Result<Vec<u8>, LargeBodyError> {
        let mut read = Vec::with_capacity(usize::try_from(self.payload.bytes()).unwrap_or(0));
        self.payload.reader().read_to_end(&mut read).map_err(|error| self.read_error(&error))?;
        Ok(read)
    }

    fn read_error(&self, error: &io::Error) -> LargeBodyError {
        match error.kind() {
            io::ErrorKind::FileTooLarge => LargeBodyError::Unkept(Unkept::Inflated(self.bytes_max)),
            io::ErrorKind::Other => {
                tracing::warn!(target: "intake", "{error}");
                unavailable("opik-offline cannot read this body from its disk", STORE_RETRY_AFTER).into()
            }
            _ => bad_request(&format!("the {} body is damaged or ends too early", self.encoding.name())),
        }
    }

    fn items_error(&self, fault: &ItemsFault) -> LargeBodyError {
        match fault {
            ItemsFault::Read(error) => self.read_error(error),
            ItemsFault::NotJson(_) | ItemsFault::NotListed => bad_request(&format!("the body is {fault}")),
        }
    }
}

fn bad_request(text: &str) -> LargeBodyError {
    error(400, text).into()
}

/// Fails when more bytes are read than allowed.
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
pub(super) struct LargeBatch {
    content: Content,
    frame: Arc<Frame>,
    piece: usize,
}

/// The shape of a large body.
pub(super) enum Surveyed {
    /// A batch that can be divided.
    Listed(LargeBatch),
    /// JSON of another shape, if it is JSON, of this many bytes.
    Other(u64),
}

/// Finds out whether a body can be divided, and where its items are.
pub(super) fn survey(route: &Protected, content: Content, sizes: Sizes) -> Result<Surveyed, LargeBodyError> {
    let Some(list) = item_list(route.message_type) else { return Ok(Surveyed::Other(content.bytes()?)) };
    match Frame::survey(content.open(), list, frame_bytes_max(sizes.piece)) {
        Ok(frame) if frame.item_bytes_max as u64 > sizes.whole => {
            Err(LargeBodyError::Unkept(Unkept::Indivisible(sizes.whole)))
        }
        Ok(frame) => Ok(Surveyed::Listed(LargeBatch { content, frame: Arc::new(frame), piece: sizes.piece })),
        Err(ItemsFault::NotListed) => Ok(Surveyed::Other(content.bytes()?)),
        Err(fault) => Err(content.items_error(&fault)),
    }
}

impl LargeBatch {
    /// Returns the payload as it goes to the server.
    pub(super) fn payload(&self) -> &Payload {
        &self.content.payload
    }

    pub(super) fn encoding(&self) -> Encoding {
        self.content.encoding
    }

    /// Returns the memory that one piece takes.
    pub(super) fn memory(&self) -> u64 {
        self.frame.piece_bytes_max(self.piece) as u64
    }

    /// Returns the pieces, from the first on.
    pub(super) fn pieces(&self) -> Pieces<impl BufRead + Send + use<>> {
        Pieces::new(self.content.open(), self.frame.clone(), self.piece)
    }

    /// Returns a batch without items, in the same frame.
    pub(super) fn empty(&self) -> Vec<u8> {
        self.frame.empty()
    }

    /// Inspects all pieces. If creates have no id, returns another batch, in which they have.
    pub(super) fn inspect(
        self,
        route: &Protected,
        spools: Arc<Spools>,
    ) -> Result<(Self, BatchSummary), LargeBodyError> {
        match self.read(route, None)? {
            Some(summary) => Ok((self, summary)),
            None => self.fill(route, spools),
        }
    }

    /// Reads all pieces; `None` when ids are missing and there is no spool for a body with ids.
    fn read(&self, route: &Protected, mut filled: Option<&mut Spool>) -> Result<Option<BatchSummary>, LargeBodyError> {
        let inspect = |content: &[u8], at: u64| {
            inspect(route, content).map_err(|_| bad_request(&format!("the body is not JSON at or after byte {at}")))
        };
        let beside = inspect(&self.frame.empty(), 0)?;
        let mut summary = BatchSummary::default();
        let (head, tail) = self.frame.around();
        let (mut is_first, fills) = (true, filled.is_some());
        let mut write = |bytes: &[u8]| match filled.as_mut() {
            None => Ok(()),
            Some(spool) => {
                spool.write(bytes).map_err(|why| LargeBodyError::Unkept(Unkept::of(why, self.content.bytes_max)))
            }
        };
        let mut pieces = self.pieces();
        write(head)?;
        write(b"[")?;
        while let Some(Piece { mut content, at }) =
            pieces.next_piece().map_err(|fault| self.content.items_error(&fault))?
        {
            let mut inspection = inspect(&content, at)?;
            if !inspection.missing_ids.is_empty() {
                if !fills {
                    return Ok(None);
                }
                content = with_ids(&content, &inspection.missing_ids, || Uuid::now_v7().to_string());
                inspection = inspect(&content, at)?;
            }
            if !std::mem::replace(&mut is_first, false) {
                write(b",")?;
            }
            write(self.frame.items_of(&content))?;
            summary.add(inspection)?;
        }
        write(b"]")?;
        write(tail)?;
        if is_first {
            summary.add(beside)?;
        }
        summary.deduplicate()?;
        Ok(Some(summary))
    }

    /// Writes the body again with the missing ids, as it is then forwarded and stored.
    fn fill(self, route: &Protected, spools: Arc<Spools>) -> Result<(Self, BatchSummary), LargeBodyError> {
        let failed = || LargeBodyError::from(error(500, FAILED));
        let mut spool = Spool::new(spools);
        // There is a spool, so missing ids are filled in.
        let summary = self.read(route, Some(&mut spool))?.ok_or_else(failed)?;
        let piece = self.piece;
        let payload = Payload::Spooled(Arc::new(spool));
        let filled = Content { bytes_max: payload.bytes(), payload, encoding: Encoding::Identity };
        let list = item_list(route.message_type).ok_or_else(failed)?;
        let frame = Frame::survey(filled.open(), list, frame_bytes_max(piece));
        let frame = frame.map_err(|fault| filled.items_error(&fault))?;
        Ok((Self { content: filled, frame: Arc::new(frame), piece }, summary))
    }
}

/// The entities and counts of a batch, gathered from its pieces.
#[derive(Default)]
pub(super) struct BatchSummary {
    pub(super) touches: Vec<Touch>,
    pub(super) items: u32,
    pub(super) project: Option<String>,
    pub(super) needs_answer: Option<NeedsAnswer>,
}

impl BatchSummary {
    fn add(&mut self, inspection: Inspection) -> Result<(), LargeBodyError> {
        self.items = self.items.saturating_add(inspection.items);
        self.project = self.project.take().or(inspection.project);
        self.needs_answer = self.needs_answer.or(inspection.needs_answer);
        self.touches.extend(inspection.touches);
        if self.touches.len() > 2 * TOUCHES_MAX {
            self.deduplicate()?;
        }
        Ok(())
    }

    /// Keeps each touch once, and fails if there are too many.
    fn deduplicate(&mut self) -> Result<(), LargeBodyError> {
        self.touches = Touch::distinct(std::mem::take(&mut self.touches));
        match self.touches.len() > TOUCHES_MAX {
            true => Err(LargeBodyError::Unkept(Unkept::Indivisible(TOUCHES_MAX as u64))),
            false => Ok(()),
        }
    }
}
