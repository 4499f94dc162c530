//! Attachment bytes, as durable as their message.
//!
//! A row of `attachments` represents a file; its pieces are in a table of their own. The row says who owns the file:
//!
//! ```text
//!           begin                 register (one commit with the message)
//!   (none) ──────▶ being uploaded ──────▶ a message's
//!                     │ abandon, owner dead   │ the message is deleted (in the same commit)
//!                     ▼                       ▼
//!                  released ◀─────────────────┘
//!                     │ removed, some pieces per commit
//!                     ▼
//!                  (none)
//! ```
//!
//! Removing half a gigabyte takes a while, so it is not part of the commit that releases the file. A crash in between
//! leaves a released row, which the next process removes.
//!
//! The key of a piece is computed, so that it needs no index: the file's number, shifted by 24 bits, plus the piece's
//! own.

use std::borrow::Cow;
use std::sync::OnceLock;

use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::fault::Fault;
use super::lease::{Reading, is_gone, pid_namespace};
use super::seal::{SealContext, Sealer};
use super::{queries, rows};
use crate::message::{Attachment, MessageId, Sha256};
use crate::store::attachment::PIECE_BYTES;
use crate::store::error::StoreError;
use crate::store::work::AttachmentId;

/// An upload that has received nothing for this long is dead, even if its process is alive.
const IDLE_MS_MAX: i64 = 60 * 60 * 1000;
/// Pieces removed in one commit: 16 MiB, some tens of milliseconds.
const PIECES_PER_STEP: u32 = 32;
/// How many pieces one file can have: 8 TiB.
const PIECES_MAX: i64 = 1 << 24;

/// Identifies this process among all that have, or had, its pid.
fn process() -> &'static str {
    static PROCESS: OnceLock<String> = OnceLock::new();
    PROCESS.get_or_init(|| uuid::Uuid::now_v7().simple().to_string())
}

/// Begins an attachment that this process receives.
pub(super) fn begin(tx: &Transaction<'_>) -> Result<AttachmentId, Fault> {
    let now = Reading::now();
    let mut statement = tx.prepare_cached(queries::BEGIN_ATTACHMENT)?;
    let owner = params![process(), std::process::id(), pid_namespace(), now.boot, now.ms];
    Ok(AttachmentId(statement.query_row(owner, |row| row.get(0))?))
}

/// Appends a piece.
pub(super) fn add_piece(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    attachment: AttachmentId,
    number: u32,
    piece: &[u8],
) -> Result<(), Fault> {
    assert!(i64::from(number) < PIECES_MAX && piece.len() <= PIECE_BYTES, "pieces are numbered and bounded");
    let before = i64::from(number) * PIECE_BYTES as i64;
    let mut grow = tx.prepare_cached(queries::GROW_ATTACHMENT)?;
    // Only the next piece matches its row: the bytes so far are those of the pieces before it.
    let grown = grow.execute(params![attachment.0, process(), before, piece.len() as i64, Reading::now().ms])?;
    if grown == 0 {
        return Err(StoreError::AttachmentGone.into());
    }
    let id = piece_id(attachment.0, number);
    let (kept, is_sealed) = sealer.seal(&SealContext::Piece { piece: id }, piece)?;
    tx.prepare_cached(queries::ADD_PIECE)?.execute(params![id, &kept[..], is_sealed])?;
    Ok(())
}

/// Assigns an attachment to its message.
pub(super) fn give(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    attachment: AttachmentId,
    file: &Attachment,
    message: MessageId,
) -> Result<(), Fault> {
    let bytes = i64::try_from(file.bytes).unwrap_or(i64::MAX);
    let place = SealContext::Digest { message: message.0, attachment: attachment.0, bytes };
    let (digest, _) = sealer.seal(&place, file.sha256.as_bytes())?;
    let given = params![attachment.0, process(), bytes, message.0, &digest[..]];
    match tx.prepare_cached(queries::GIVE_ATTACHMENT)?.execute(given)? {
        0 => Err(StoreError::AttachmentGone.into()),
        _ => Ok(()),
    }
}

/// Abandons an upload, if it still belongs to this process.
pub(super) fn abandon(tx: &Transaction<'_>, attachment: AttachmentId) -> Result<(), Fault> {
    tx.prepare_cached(queries::ABANDON_ATTACHMENT)?.execute(params![attachment.0, process()])?;
    Ok(())
}

/// Releases the file of a message; part of the commit that deletes the message.
pub(super) fn release(tx: &Transaction<'_>, message: i64) -> Result<(), Fault> {
    tx.prepare_cached(queries::RELEASE_ATTACHMENT)?.execute([message])?;
    Ok(())
}

/// Releases the files of uploads that can no longer finish.
pub(super) fn release_dead(tx: &Transaction<'_>) -> Result<(), Fault> {
    let now = Reading::now();
    let mut dead = Vec::new();
    {
        let mut statement = tx.prepare_cached(queries::UPLOADS)?;
        let mut uploads = statement.query([])?;
        while let Some(row) = uploads.next()? {
            let owner: String = row.get(1)?;
            let pid: u32 = row.get(2)?;
            let namespace: Option<String> = row.get(3)?;
            let boot: String = row.get(4)?;
            let idle_ms = now.ms.saturating_sub(row.get(5)?);
            // A process with our pid that is not this one ran before it.
            let replaced = pid == std::process::id() && namespace.as_deref() == pid_namespace() && owner != process();
            if boot != now.boot
                || replaced
                || is_gone(pid, namespace.as_deref())
                || !(0..=IDLE_MS_MAX).contains(&idle_ms)
            {
                dead.push(row.get::<_, i64>(0)?);
            }
        }
    }
    for attachment in dead {
        tx.prepare_cached(queries::RELEASE_UPLOAD)?.execute([attachment])?;
    }
    Ok(())
}

/// Returns whether there is a released file, or an upload that may be dead.
pub(super) fn any_without_message(connection: &Connection) -> Result<bool, Fault> {
    Ok(connection.prepare_cached(queries::ANY_WITHOUT_MESSAGE)?.exists([])?)
}

/// Returns whether there is a released file.
pub(super) fn any_released(connection: &Connection) -> Result<bool, Fault> {
    Ok(connection.prepare_cached(queries::RELEASED_ATTACHMENT)?.exists([])?)
}

/// Removes some released pieces; returns whether there may be more.
pub(super) fn remove_a_step(tx: &Transaction<'_>) -> Result<bool, Fault> {
    let released: Option<i64> =
        tx.prepare_cached(queries::RELEASED_ATTACHMENT)?.query_row([], |row| row.get(0)).optional()?;
    let Some(attachment) = released else { return Ok(false) };
    let (first, end) = (piece_id(attachment, 0), piece_id(attachment + 1, 0));
    let removed = tx.prepare_cached(queries::REMOVE_PIECES)?.execute(params![first, end, PIECES_PER_STEP])?;
    if removed < PIECES_PER_STEP as usize {
        tx.prepare_cached(queries::REMOVE_ATTACHMENT)?.execute([attachment])?;
    }
    Ok(true)
}

/// Returns the metadata of a message's file.
pub(super) fn of(connection: &Connection, sealer: &Sealer, message: MessageId) -> Result<Option<Attachment>, Fault> {
    let mut statement = connection.prepare_cached(queries::ATTACHMENT)?;
    let mut found = statement.query([message.0])?;
    let Some(row) = found.next()? else { return Ok(None) };
    let kept = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
    let place = SealContext::Digest { message: message.0, attachment: row.get(0)?, bytes: row.get(1)? };
    let sha256 = opened_digest(sealer, &place, kept)?;
    Ok(Some(Attachment { bytes: rows::unsigned(row, 1)?, sha256: Sha256::new(sha256) }))
}

/// Returns a digest that is stored as plain text, in 32 bytes, or sealed, in more.
pub(super) fn opened_digest(sealer: &Sealer, place: &SealContext<'_>, kept: &[u8]) -> Result<[u8; 32], Fault> {
    let opened = if kept.len() > 32 { sealer.open(place, kept)? } else { kept.to_vec() };
    opened.try_into().map_err(|_| Fault::Damaged("the digest of an attachment is unreadable".into()))
}

/// Returns a piece of a message's file.
pub(super) fn piece(
    connection: &Connection,
    sealer: &Sealer,
    message: MessageId,
    number: u32,
) -> Result<Option<Vec<u8>>, Fault> {
    let mut statement = connection.prepare_cached(queries::PIECE)?;
    let mut found = statement.query(params![message.0, PIECES_MAX, number])?;
    let Some(row) = found.next()? else { return Ok(None) };
    Ok(Some(opened_piece(sealer, row)?.into_owned()))
}

/// Reads a piece from columns piece, is_sealed, piece_id.
fn opened_piece<'row>(sealer: &Sealer, row: &'row Row<'_>) -> Result<Cow<'row, [u8]>, Fault> {
    let kept = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
    match row.get(1)? {
        true => Ok(sealer.open(&SealContext::Piece { piece: row.get(2)? }, kept)?.into()),
        false => Ok(kept.into()),
    }
}

/// Describes every file that does not match its row.
pub(super) fn problems(connection: &Connection, sealer: &Sealer) -> Result<Vec<String>, Fault> {
    let mut problems = Vec::new();
    for (query, wrong) in [
        (queries::WRONG_ATTACHMENTS, "attachments of messages that don't exist"),
        (queries::WRONG_PIECES, "pieces of attachments that don't exist"),
    ] {
        let count: i64 = connection.query_row(query, [], |row| row.get(0))?;
        if count > 0 {
            problems.push(format!("{count} {wrong}"));
        }
    }
    if sealer.is_locked() {
        return Ok(problems);
    }
    let mut statement = connection.prepare(queries::ATTACHMENTS)?;
    let mut attachments = statement.query([])?;
    while let Some(row) = attachments.next()? {
        let (attachment, message): (i64, i64) = (row.get(0)?, row.get(1)?);
        let place = SealContext::Digest { message, attachment, bytes: row.get(2)? };
        let received = row.get_ref(3)?.as_blob().map_err(|_| Fault::Damaged("no digest".into()));
        let received = received.and_then(|kept| opened_digest(sealer, &place, kept));
        let stored = digest(connection, sealer, attachment);
        let is_sound = match (received, stored) {
            (Ok(received), Ok((bytes, digest))) => rows::unsigned(row, 2)? == bytes && digest.as_ref() == received,
            (Err(Fault::Engine(error)), _) | (_, Err(Fault::Engine(error))) => return Err(error.into()),
            (Err(_), _) | (_, Err(_)) => false,
        };
        if !is_sound {
            problems.push(format!("the attachment of message {message} is not the file that was received"));
        }
    }
    Ok(problems)
}

fn digest(connection: &Connection, sealer: &Sealer, attachment: i64) -> Result<(u64, ring::digest::Digest), Fault> {
    let mut digest = Context::new(&SHA256);
    let mut bytes = 0;
    let mut statement = connection.prepare_cached(queries::PIECES)?;
    let mut pieces = statement.query([piece_id(attachment, 0), piece_id(attachment + 1, 0)])?;
    while let Some(row) = pieces.next()? {
        let piece = opened_piece(sealer, row)?;
        bytes += piece.len() as u64;
        digest.update(&piece);
    }
    Ok((bytes, digest.finish()))
}

pub(super) fn piece_id(attachment: i64, number: u32) -> i64 {
    attachment * PIECES_MAX + i64::from(number)
}
