//! Messages of a store whose file was deleted while it was open.
//!
//! The system keeps a deleted file for as long as a process has it open, so every acknowledged message can still be
//! read. Messages are copied to the new store, in order and exactly once: two processes that had the file open may both
//! do this, and an attempt interrupted by a full disk is retried, so the new store deduplicates messages by their
//! digest.
//!
//! This needs the lease of the old store: messages in flight on another thread are settled first.

use std::time::Duration;

use ring::digest::{Context, SHA256};

use super::attachment::PIECE_BYTES;
use super::error::StoreError;
use super::traits::Store;
use super::view::{Filter, Page, StoredMessage};
use super::work::{Owner, SalvagedRow};
use crate::message::Sha256;

const PAGE: usize = 100;
/// Payload bytes per commit, unless a single message is larger.
const BYTES_MAX: usize = 4 << 20;
/// Longer than any commit takes.
const TIME_TO_LIVE: Duration = Duration::from_secs(60);

/// Copies all messages of a store to another one; returns their number.
///
/// # Errors
///
/// [`StoreError::LeaseHeld`] while the old store's messages are in flight, [`StoreError::Full`], and any other error of
/// either store. A retry skips messages that were copied before the error.
pub(super) fn rescue(from: &dyn Store, to: &dyn Store) -> Result<u64, StoreError> {
    let lease = from.acquire(&Owner::this_process("rescue"), TIME_TO_LIVE)?;
    let mut rescued = 0;
    let mut page = Page { after: None, limit: PAGE, newest_first: false };
    loop {
        let listed = from.list(&Filter::default(), &page)?;
        let Some(last) = listed.last() else { break };
        page.after = Some(last.id);
        let mut rows = Vec::new();
        let mut bytes = 0;
        for listed in &listed {
            let Some(message) = from.get(listed.id)? else { continue };
            let row = row(from, to, message)?;
            bytes += row.message.request.body.bytes.len();
            rows.push(row);
            if bytes > BYTES_MAX {
                rescued += store(to, &mut rows)?;
                bytes = 0;
            }
        }
        rescued += store(to, &mut rows)?;
        from.renew(&lease, TIME_TO_LIVE)?;
    }
    from.release(&lease)?;
    Ok(rescued)
}

fn store(to: &dyn Store, rows: &mut Vec<SalvagedRow>) -> Result<u64, StoreError> {
    let stored = to.salvage(rows)?;
    // A file whose row was already stored has no message.
    for (row, id) in rows.drain(..).zip(&stored) {
        if let (Some((attachment, _)), None) = (row.file, id) {
            to.abandon_attachment(attachment)?;
        }
    }
    Ok(stored.iter().flatten().count() as u64)
}

fn row(from: &dyn Store, to: &dyn Store, stored: StoredMessage) -> Result<SalvagedRow, StoreError> {
    let StoredMessage { listed, request, .. } = &stored;
    let row = digest(listed.id.0, listed.accepted_at_ms, &request.path, &request.body.bytes);
    let file = match listed.attachment {
        Some(file) if !to.is_salvaged(&row)? => {
            let attachment = to.begin_attachment(Some(file.bytes))?;
            for number in 0..u32::try_from(file.bytes.div_ceil(PIECE_BYTES as u64)).unwrap_or(u32::MAX) {
                let piece = from.piece(listed.id, number)?.ok_or(StoreError::AttachmentGone)?;
                to.add_piece(attachment, number, &piece)?;
            }
            Some((attachment, file))
        }
        _ => None,
    };
    Ok(SalvagedRow { file, ..stored.into_salvaged(row) })
}

fn digest(id: i64, accepted_at_ms: i64, path: &str, body: &[u8]) -> Sha256 {
    let mut digest = Context::new(&SHA256);
    digest.update(b"rescued from a deleted store\0");
    digest.update(&id.to_le_bytes());
    digest.update(&accepted_at_ms.to_le_bytes());
    digest.update(path.as_bytes());
    digest.update(b"\0");
    digest.update(body);
    let mut bytes = [0; Sha256::LEN];
    bytes.copy_from_slice(digest.finish().as_ref());
    Sha256::new(bytes)
}
