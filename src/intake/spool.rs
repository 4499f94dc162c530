//! Bodies that are too large for memory, on disk for as long as their request lasts.
//!
//! A spool is an unnamed file in the folder of the message store, so it disappears with its process, even after a
//! crash. Its bytes are encrypted with a key that never leaves this process: no plain text is written beside an
//! encrypted store, and blocks that are freed later reveal nothing.
//!
//! # Limits
//!
//! All spools together take `max_size` at most, and leave the free-disk reserve alone. A piece that can't be written
//! stays in memory ([`PIECE_BYTES`]), so that the body can still be streamed to the server.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::OFlags;
use tokio::task::JoinHandle;

use super::pace::PacedBody;
use crate::store::room::Disk;
use crate::upstream::forward::{BoxError, ForwardBody};

/// Bytes that are written, read and encrypted at once.
pub(super) const PIECE_BYTES: usize = 256 * 1024;
/// Bytes that encryption adds to a piece.
const TAG_BYTES: usize = 16;

/// Where bodies are spooled, and how much of the disk they may take.
pub struct Spools {
    folder: PathBuf,
    bytes_max: u64,
    disk_reserve: u64,
    taken: AtomicU64,
}

/// Why a body can't be spooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSpool {
    /// It alone is larger than all spools may be.
    TooLarge,
    /// There is no room at the moment; a retry may help.
    Full,
    /// The disk fails.
    Failed,
}

impl Spools {
    /// Returns spools in the folder of this store.
    pub fn beside(store: &Path, bytes_max: u64, disk_reserve: u64) -> Self {
        let folder = store.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self { folder: folder.to_owned(), bytes_max, disk_reserve, taken: AtomicU64::new(0) }
    }

    /// Returns how many bytes a spooled body may have.
    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Reserves space for one more piece of a spool that has this many bytes.
    fn reserve(&self, spooled: u64) -> Result<(), NoSpool> {
        let piece = PIECE_BYTES as u64;
        if spooled.saturating_add(piece) > self.bytes_max {
            return Err(NoSpool::TooLarge);
        }
        let taken = self.taken.fetch_add(piece, Ordering::Relaxed).saturating_add(piece);
        let is_refused = taken > self.bytes_max
            || Disk::of(&self.folder).is_ok_and(|disk| disk.free_bytes < self.disk_reserve.saturating_add(piece));
        if is_refused {
            self.taken.fetch_sub(piece, Ordering::Relaxed);
            return Err(NoSpool::Full);
        }
        Ok(())
    }

    /// Creates an unnamed file that only this process can read.
    fn file(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let unnamed = options.clone().custom_flags(OFlags::TMPFILE.bits().cast_signed()).open(&self.folder);
        // Not every file system supports it.
        unnamed.or_else(|_| {
            let path = self.folder.join(format!(".opik-offline-spool-{}", uuid::Uuid::now_v7().simple()));
            let file = options.create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        })
    }
}

/// A body on disk. Its last part, normally less than a piece, is in memory.
pub(super) struct Spool {
    spools: Arc<Spools>,
    file: Option<(File, LessSafeKey)>,
    pieces: u64,
    end: Vec<u8>,
}

impl Spool {
    /// Returns an empty spool; its file is created with the first piece.
    pub(super) fn new(spools: Arc<Spools>) -> Self {
        Self { spools, file: None, pieces: 0, end: Vec::new() }
    }

    /// Returns its size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.pieces * PIECE_BYTES as u64 + self.end.len() as u64
    }

    /// Appends bytes. The spool has them even if this fails, so that they can be streamed to the server.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), NoSpool> {
        let mut left = bytes;
        // After a failure there is more than a piece in memory.
        while self.end.len() < PIECE_BYTES && left.len() >= PIECE_BYTES - self.end.len() {
            let (now, later) = left.split_at(PIECE_BYTES - self.end.len());
            self.end.extend_from_slice(now);
            left = later;
            if let Err(why) = self.write_piece() {
                self.end.extend_from_slice(left);
                return Err(why);
            }
        }
        self.end.extend_from_slice(left);
        Ok(())
    }

    /// Writes the piece in memory to the disk.
    fn write_piece(&mut self) -> Result<(), NoSpool> {
        self.spools.reserve(self.pieces * PIECE_BYTES as u64)?;
        if let Err(error) = self.try_write() {
            self.spools.taken.fetch_sub(PIECE_BYTES as u64, Ordering::Relaxed);
            tracing::debug!(target: "intake", "cannot spool a body: {error}");
            return Err(if error.kind() == io::ErrorKind::StorageFull { NoSpool::Full } else { NoSpool::Failed });
        }
        self.pieces += 1;
        self.end.clear();
        Ok(())
    }

    fn try_write(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some((self.spools.file()?, fresh_key()?));
        }
        let Some((file, key)) = &self.file else { return Ok(()) };
        let mut piece = Vec::with_capacity(PIECE_BYTES + TAG_BYTES);
        piece.extend_from_slice(&self.end);
        key.seal_in_place_append_tag(nonce(self.pieces), Aad::empty(), &mut piece).map_err(|_| unreadable())?;
        file.write_all_at(&piece, self.pieces * (PIECE_BYTES + TAG_BYTES) as u64)
    }

    fn piece(&self, number: u64) -> io::Result<Bytes> {
        if number >= self.pieces {
            return Ok(if number == self.pieces { self.end.clone().into() } else { Bytes::new() });
        }
        let Some((file, key)) = &self.file else { return Err(unreadable()) };
        let mut piece = vec![0; PIECE_BYTES + TAG_BYTES];
        file.read_exact_at(&mut piece, number * (PIECE_BYTES + TAG_BYTES) as u64).map_err(|_| unreadable())?;
        let length = key.open_in_place(nonce(number), Aad::empty(), &mut piece).map_err(|_| unreadable())?.len();
        piece.truncate(length);
        Ok(piece.into())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.spools.taken.fetch_sub(self.pieces * PIECE_BYTES as u64, Ordering::Relaxed);
    }
}

fn fresh_key() -> io::Result<LessSafeKey> {
    let mut bytes = [0; 32];
    let no_key = |_| io::Error::other("the operating system provides no random numbers");
    SystemRandom::new().fill(&mut bytes).map_err(no_key)?;
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).map_err(no_key)?))
}

/// Returns the nonce of a piece. It is unique: a key is used for one spool, and each piece is written once.
fn nonce(piece: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&piece.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Returns the failure to read a spool. It is an internal error, not the client's fault; no decoder fails with this
/// kind.
fn unreadable() -> io::Error {
    io::Error::other("a spooled body cannot be read")
}

/// A large body as its client sent it.
#[derive(Clone)]
pub(super) enum Payload {
    /// In memory, because it is small as sent (and large when decoded).
    InMemory(Bytes),
    /// On disk.
    Spooled(Arc<Spool>),
}

impl Payload {
    /// Returns its size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::InMemory(bytes) => bytes.len() as u64,
            Self::Spooled(spool) => spool.bytes(),
        }
    }

    /// Returns a reader of it from its beginning.
    pub(super) fn reader(&self) -> Box<dyn Read + Send> {
        match self {
            Self::InMemory(bytes) => Box::new(bytes.clone().reader()),
            Self::Spooled(spool) => Box::new(SpoolReader { spool: spool.clone(), next: 0, piece: Bytes::new() }),
        }
    }

    /// Returns it as the body of a request, followed by `rest`, which the client still sends.
    pub(super) fn body(&self, rest: Option<PacedBody<Incoming>>, progress: Arc<SendProgress>) -> ForwardBody {
        let (payload, number, reading) = (self.clone(), 0, None);
        http_body_util::Either::Right(PayloadBody { payload, number, reading, sent: 0, rest, progress }.boxed())
    }

    fn piece(&self, number: u64) -> io::Result<Bytes> {
        match self {
            Self::InMemory(bytes) => Ok(if number == 0 { bytes.clone() } else { Bytes::new() }),
            Self::Spooled(spool) => spool.piece(number),
        }
    }
}

struct SpoolReader {
    spool: Arc<Spool>,
    next: u64,
    piece: Bytes,
}

impl Read for SpoolReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            self.piece = self.spool.piece(self.next)?;
            self.next += 1;
        }
        let bytes = self.piece.len().min(into.len());
        self.piece.copy_to_slice(&mut into[..bytes]);
        Ok(bytes)
    }
}

/// When the server last read more of a body.
#[derive(Default)]
pub(super) struct SendProgress(Mutex<Option<Instant>>);

impl SendProgress {
    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns for how long the server has read no more of it.
    pub(super) fn idle(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }
}

/// A payload on its way to the server, read piece by piece on threads that may block on the disk.
struct PayloadBody {
    payload: Payload,
    number: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    sent: u64,
    rest: Option<PacedBody<Incoming>>,
    progress: Arc<SendProgress>,
}

impl Body for PayloadBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.progress.note();
        if self.sent < self.payload.bytes() {
            let (payload, number) = (self.payload.clone(), self.number);
            let reading =
                self.reading.get_or_insert_with(|| tokio::task::spawn_blocking(move || payload.piece(number)));
            let read = ready!(Pin::new(reading).poll(cx));
            self.reading = None;
            self.number += 1;
            return Poll::Ready(Some(match read {
                Ok(Ok(piece)) if !piece.is_empty() => {
                    self.sent += piece.len() as u64;
                    Ok(Frame::data(piece))
                }
                Ok(Ok(_)) | Err(_) => Err(unreadable().into()),
                Ok(Err(error)) => Err(error.into()),
            }));
        }
        match &mut self.rest {
            None => Poll::Ready(None),
            Some(rest) => Pin::new(rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.sent >= self.payload.bytes() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.payload.bytes() - self.sent;
        let rest = self.rest.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(left.saturating_add(rest.lower()));
        if let Some(upper) = rest.upper() {
            hint.set_upper(left.saturating_add(upper));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spools(folder: &Path, bytes_max: u64) -> Arc<Spools> {
        Arc::new(Spools::beside(&folder.join("store.db"), bytes_max, 0))
    }

    fn read(spool: Spool) -> Vec<u8> {
        let mut read = Vec::new();
        Payload::Spooled(Arc::new(spool)).reader().read_to_end(&mut read).expect("it is there");
        read
    }

    #[test]
    fn a_spool_is_unnamed_encrypted_and_complete() {
        let folder = tempfile::tempdir().expect("a folder");
        let spools = spools(folder.path(), 1 << 30);
        let text: Vec<u8> = b"a secret trace, ".iter().copied().cycle().take(PIECE_BYTES * 2 + 77).collect();
        let mut spool = Spool::new(spools.clone());
        for piece in text.chunks(100_000) {
            spool.write(piece).expect("there is room");
        }
        assert_eq!(spools.taken.load(Ordering::Relaxed), 2 * PIECE_BYTES as u64);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
        let mut kept = vec![0; PIECE_BYTES];
        let (file, _) = spool.file.as_ref().expect("two pieces are written");
        file.read_exact_at(&mut kept, 0).expect("it is there");
        assert_eq!(memchr::memmem::find(&kept, b"secret"), None);
        assert_eq!(spool.bytes(), text.len() as u64);
        assert!(read(spool) == text);
        assert_eq!(spools.taken.load(Ordering::Relaxed), 0, "its space is not freed");
    }

    #[test]
    fn a_body_that_exceeds_a_limit_reports_it_and_loses_no_byte() {
        let folder = tempfile::tempdir().expect("a folder");
        let room = 3 * PIECE_BYTES as u64;
        let spools = spools(folder.path(), room);
        let text = vec![b'x'; PIECE_BYTES * 2];
        let mut first = Spool::new(spools.clone());
        assert_eq!(first.write(&text), Ok(()));
        let mut second = Spool::new(spools.clone());
        assert_eq!(second.write(&text), Err(NoSpool::Full));
        assert_eq!(read(second).len(), text.len());
        assert_eq!(first.write(&text), Err(NoSpool::TooLarge), "it alone takes more than all spools may");
        assert_eq!((first.bytes(), read(first).len()), (text.len() as u64 * 2, text.len() * 2));
        assert_eq!(spools.taken.load(Ordering::Relaxed), 0);
        let reserved = Spools::beside(&folder.path().join("store.db"), u64::MAX, u64::MAX / 2);
        assert_eq!(Spool::new(Arc::new(reserved)).write(&text), Err(NoSpool::Full), "the reserve is used up");
        std::fs::write(folder.path().join("file"), "").expect("it can be written");
        let nowhere = Spools::beside(&folder.path().join("file/store.db"), u64::MAX, 0);
        assert_eq!(Spool::new(Arc::new(nowhere)).write(&text), Err(NoSpool::Failed));
    }

    #[test]
    fn a_tampered_spool_is_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut spool = Spool::new(spools(folder.path(), 1 << 30));
        spool.write(&vec![b'x'; PIECE_BYTES]).expect("there is room");
        let (file, _) = spool.file.as_ref().expect("a piece is written");
        file.write_all_at(b"!", 1000).expect("it can be written");
        let mut read = Vec::new();
        let error = Payload::Spooled(Arc::new(spool)).reader().read_to_end(&mut read).expect_err("it was changed");
        assert_eq!((error.kind(), read.len()), (io::ErrorKind::Other, 0));
    }
}
