//! Candidates: the copies of each message that are left in a damaged file, and the search for an intact one.

use std::borrow::Cow;
use std::collections::HashSet;

use ring::digest::{Context, SHA256};
use rusqlite::{Transaction, params};

use crate::message::{Credential, Effect, HeaderSet, Lane, MessageStatus, MessageType, Server};
use crate::sqlite_format::record::ColumnValue;
use crate::store::attachment::PIECE_BYTES;
use crate::store::sqlite::attachments;
use crate::store::sqlite::codec::Unpacker;
use crate::store::sqlite::damaged::{Damaged, FileRow, LookupKey};
use crate::store::sqlite::fault::Fault;
use crate::store::sqlite::lanes::BatchKeys;
use crate::store::sqlite::large;
use crate::store::sqlite::queries;
use crate::store::sqlite::record::{Column, FoundRow, Inserter, MessageContent, Record, RowKeys};
use crate::store::sqlite::register::move_early_updates;
use crate::store::sqlite::seal::{Destination, KeptBody, Lookup, SEALED, SealContext, Sealer};
use crate::store::sqlite::summary::{CountChanges, CountGroup, Size};

/// Bytes of the digest that a sealed credential or header set is looked up by.
const DIGEST_BYTES: usize = 32;

/// A message that is exactly what was stored.
pub(super) struct Intact {
    record: Record<'static>,
    message_type: MessageType,
    /// Compressed, not sealed.
    body: KeptBody<'static>,
    file: Option<FileRow>,
}

/// Reads messages of a damaged store, and opens their sealed values.
pub(super) struct CandidateReader<'a> {
    old: &'a Damaged,
    /// Opens values of the old store, and seals them for the new one.
    sealer: &'a Sealer,
    unpacker: Unpacker,
    /// Whether any sealed value could be opened.
    has_opened: bool,
    /// The missing key of a sealed value.
    lacking: Option<Fault>,
}

impl<'a> CandidateReader<'a> {
    pub(super) fn new(old: &'a Damaged, sealer: &'a Sealer) -> Self {
        Self { old, sealer, unpacker: Unpacker::default(), has_opened: false, lacking: None }
    }

    /// Returns the missing key if nothing could be opened: with that key, the store may be recovered completely.
    pub(super) fn into_lacking(self) -> Option<Fault> {
        self.lacking.filter(|_| !self.has_opened)
    }

    /// Returns the message if an intact version of it is left.
    pub(super) fn find_intact(&mut self, id: i64) -> Option<Intact> {
        let old = self.old;
        if id <= 0 || id > i64::MAX / 4 {
            return None;
        }
        let bodies: Vec<Vec<ColumnValue>> = old.bodies_of(id).collect();
        let file = old.files.get(&id).into_iter().flatten().find(|file| self.is_file_intact(id, file));
        old.rows_of(&old.messages, id).find_map(|row| bodies.iter().find_map(|body| self.intact(id, &row, body, file)))
    }

    /// Returns the opened value, or records which key is missing.
    fn opened<T>(&mut self, opened: Result<T, Fault>) -> Option<T> {
        match opened {
            Ok(opened) => Some(opened),
            Err(fault @ (Fault::KeyMissing { .. } | Fault::WrongKey { .. })) => {
                self.lacking = Some(fault);
                None
            }
            Err(_) => None,
        }
    }

    fn intact(&mut self, id: i64, row: &[ColumnValue], body: &[ColumnValue], file: Option<&FileRow>) -> Option<Intact> {
        let row = FoundRow::of(row)?;
        let message_type = row.message_type()?;
        let body_bytes = u64::try_from(row.column(Column::BodyBytes).integer()?).ok()?;
        // Unreadable columns are damage, even if the key of the path is missing.
        row.destination("")?;
        let path = self.opened(self.sealer.path(id, row.column(Column::Path).as_column()))?;
        let packed = self.open_body(id, &row.destination(&path)?, body)?;
        let file = file.filter(|_| message_type == MessageType::CreateAttachment);
        let bytes_sent = body_bytes.checked_sub(file.map_or(0, |file| file.bytes))?;
        let sent = self.unpacker.unpack(packed.codec, packed.bytes[..].into(), bytes_sent).ok()?;
        if sent.len() as u64 != bytes_sent {
            return None;
        }
        let mut record = row.record(id, self.sealer, path)?;
        let checksum = large::checksum_of(&packed);
        let has_checksum = checksum.is_some();
        let header_sets = self.old.header_sets.get(&row.column(Column::HeaderSet).integer()?)?;
        let header_sets = self.values(Lookup::HeaderSet, header_sets, has_checksum);
        let lanes = self.lanes(row.column(Column::Lane).integer()?, has_checksum);
        let checksum = choose_names(&mut record.content, lanes, &header_sets, &sent, checksum)?;
        let body = KeptBody { bytes: packed.bytes.into_owned().into(), codec: packed.codec, checksum: Some(checksum) };
        Some(Intact { record, message_type, body, file: file.cloned() })
    }

    /// Opens a body, which stays compressed.
    fn open_body(&mut self, id: i64, to: &Destination<'_>, body: &[ColumnValue]) -> Option<KeptBody<'static>> {
        let kept = KeptBody {
            bytes: body.get(1)?.blob()?.into(),
            codec: body.get(2).and_then(ColumnValue::integer).unwrap_or(0),
            checksum: body.get(3).and_then(ColumnValue::integer),
        };
        let is_sealed = kept.codec >= SEALED;
        let opened = self.opened(self.sealer.open_body(id, to, kept))?;
        self.has_opened |= is_sealed;
        Some(KeptBody { bytes: opened.bytes.into_owned().into(), ..opened })
    }

    /// Returns the candidates for a lane.
    fn lanes(&mut self, lane: i64, has_checksum: bool) -> Vec<Lane> {
        let mut lanes = Vec::new();
        for (workspace, credential, server) in self.old.lanes.get(&lane).into_iter().flatten() {
            let (workspace, server) = (workspace.clone(), server.as_deref().map(Server::new));
            if *credential == 0 {
                lanes.push(Lane { server, workspace, credential: None });
                continue;
            }
            let Some(names) = self.old.credentials.get(credential) else { continue };
            for value in self.values(Lookup::Credential, names, has_checksum) {
                let credential = Some(Credential::new(value));
                lanes.push(Lane { server: server.clone(), workspace: workspace.clone(), credential });
            }
        }
        // An old page from before servers were recorded must not make the message adoptable by any server.
        if lanes.iter().any(|lane| lane.server.is_some()) {
            lanes.retain(|lane| lane.server.is_some());
        }
        lanes
    }

    /// Returns the candidates for a credential or header set: values that open, and plain ones.
    fn values(&mut self, of: Lookup, names: &HashSet<LookupKey>, has_checksum: bool) -> Vec<Vec<u8>> {
        let sealer = self.sealer;
        let any_sealed = sealer.is_in_use();
        let mut values = Vec::new();
        for (by, sealed) in names {
            // An index holds the digest alone. Only a checksum tells it from a value of that length.
            if sealed.is_none() && any_sealed && by.len() == DIGEST_BYTES && !has_checksum {
                continue;
            }
            values.extend(self.opened(sealer.value(of, by.clone(), sealed.as_deref())));
        }
        values
    }

    /// Returns the pieces of a file in order, `None` for a missing one.
    fn pieces<'file>(&self, file: &'file FileRow) -> impl Iterator<Item = (i64, Option<Vec<u8>>)> + use<'_, 'file> {
        let (old, sealer) = (self.old, self.sealer);
        let count = file.bytes.div_ceil(PIECE_BYTES as u64);
        (0..count).map(|number| {
            let id = attachments::piece_id(file.attachment, u32::try_from(number).unwrap_or(u32::MAX));
            let left = file.bytes - number * PIECE_BYTES as u64;
            let expected = left.min(PIECE_BYTES as u64) as usize;
            let piece = old.rows_of(&old.pieces, id).find_map(|row| {
                let piece = row.get(1)?.blob()?;
                let piece = match row.get(2).and_then(ColumnValue::integer) {
                    Some(1) => sealer.open(&SealContext::Piece { piece: id }, piece).ok()?,
                    _ => piece.to_vec(),
                };
                (piece.len() == expected).then_some(piece)
            });
            (id, piece)
        })
    }

    fn is_file_intact(&self, message: i64, file: &FileRow) -> bool {
        let Some(expected) = self.digest(message, file) else { return false };
        let mut digest = Context::new(&SHA256);
        for (_, piece) in self.pieces(file) {
            let Some(piece) = piece else { return false };
            digest.update(&piece);
        }
        digest.finish().as_ref() == expected
    }

    fn digest(&self, message: i64, file: &FileRow) -> Option<[u8; 32]> {
        attachments::opened_digest(self.sealer, &digest_place(message, file), &file.sha256).ok()
    }

    /// Stores a message under its own id; returns whether that was possible.
    pub(super) fn insert(
        &self,
        tx: &Transaction<'_>,
        message: &Intact,
        changes: &mut CountChanges,
    ) -> Result<bool, Fault> {
        let (sealer, content) = (self.sealer, &message.record.content);
        if let Some(file) = &message.file {
            let Some(digest) = self.digest(content.id, file) else { return Ok(false) };
            let (digest, _) = sealer.seal(&digest_place(content.id, file), &digest)?;
            for (id, piece) in self.pieces(file) {
                // It was readable a moment ago; a disk that loses it now costs this message.
                let Some(piece) = piece else { return Ok(false) };
                let (piece, is_sealed) = sealer.seal(&SealContext::Piece { piece: id }, &piece)?;
                tx.prepare_cached(queries::ADD_PIECE)?.execute(params![id, &piece[..], is_sealed])?;
            }
            let bytes = i64::try_from(file.bytes).unwrap_or(i64::MAX);
            tx.prepare_cached(queries::ADD_RECOVERED_ATTACHMENT)?.execute(params![
                file.attachment,
                content.id,
                bytes,
                &digest[..]
            ])?;
        }
        let mut batch = BatchKeys::default();
        let lane = batch.lane(tx, sealer, &content.lane)?;
        let header_set = batch.header_set(tx, sealer, &content.headers)?;
        let keys = RowKeys { lane, header_set };
        Inserter::new(tx, sealer)?.insert_kept(&message.record, keys, message.body.borrowed())?;
        if message.record.status == MessageStatus::Failed {
            for touch in content.touches.iter().filter(|touch| touch.effect == Effect::Create) {
                move_early_updates(tx, lane, content.id, &touch.key)?;
            }
        }
        let answer_status = match message.record.status {
            MessageStatus::Rejected => message.record.answer.as_ref().and_then(|answer| answer.status).unwrap_or(0),
            _ => 0,
        };
        let group = CountGroup { answer_status, ..CountGroup::new(lane, message.record.status, message.message_type) };
        changes.add(group, Size { items: content.items.into(), body_bytes: message.record.body_bytes });
        Ok(true)
    }
}

fn digest_place(message: i64, file: &FileRow) -> SealContext<'static> {
    SealContext::Digest { message, attachment: file.attachment, bytes: i64::try_from(file.bytes).unwrap_or(i64::MAX) }
}

/// Sets the first lane and header set that the checksum confirms, and returns the checksum. A message that was stored
/// without one gets the first of each.
fn choose_names(
    content: &mut MessageContent<'_>,
    lanes: Vec<Lane>,
    header_sets: &[Vec<u8>],
    sent: &[u8],
    checksum: Option<i64>,
) -> Option<i64> {
    for lane in lanes {
        content.lane = Cow::Owned(lane);
        for wire in header_sets {
            content.headers = Cow::Owned(HeaderSet::from_wire(wire));
            let found = content.checksum(sent);
            if checksum.is_none_or(|checksum| checksum == found) {
                return Some(found);
            }
        }
    }
    None
}
