//! Candidates for recovery: the rows that are left in a damaged store.
//!
//! The pages are decoded by [`crate::sqlite_format`]; this module classifies their rows. Which table a row is of
//! follows from its *shape*, the types of its columns, and, where the pointer map can be read, from the root of its
//! page's tree.
//!
//! # Invariants
//!
//! - **Every page is visited once**, whether a tree leads to it or not. Only pages that are free are left out.
//! - **Candidates, not messages.** Rows of deleted messages may be among them where the list of free pages is corrupt,
//!   and older versions of rows where newer ones are lost. Whether a message is intact is decided by its checksum
//!   (`recovery/candidates.rs`); whether it was delivered already may then be unknown, and it is delivered again.
//! - **In doubt, more candidates**: a row without a known table counts for each table that it has the shape of. A lane
//!   is the exception: one whose server fails its checksum is dropped, or its messages would go elsewhere.
//! - **Read-only**, and memory grows by 16 bytes per message, not by its body: rows are located now and read later.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;

use rusqlite::types::ValueRef;

use super::lanes::server_check;
use super::record::{FoundRow, may_have_columns};
use super::schema::PAGE_BYTES;
use super::seal::SEAL_BYTES;
use crate::sqlite_format::btree::{PageKind, RecordCell, RowLocation, cell_offsets};
use crate::sqlite_format::pager::{FreeList, Pager};
use crate::sqlite_format::payload;
use crate::sqlite_format::pointer_map::{PageUse, PointerMap, is_map_page};
use crate::sqlite_format::record::{self, ColumnValue, SerialType};
use crate::sqlite_format::wal::Frames;
use crate::store::encryption::key::KeyId;

/// A candidate for a lane: workspace, number of the credential, server.
pub(super) type LaneRow = (Option<String>, i64, Option<String>);

/// Smallest key of a piece of an attachment: file 1, piece 0.
const PIECE_ID_MIN: i64 = 1 << 24;
const SEALED_DIGEST_BYTES: u64 = 32 + SEAL_BYTES as u64;
/// A larger value is neither a credential nor a header set.
const LOOKUP_BYTES_MAX: u64 = 64 * 1024;

impl ColumnValue {
    /// Returns the value as SQLite would return it.
    pub(super) fn as_column(&self) -> ValueRef<'_> {
        match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Text(bytes) => ValueRef::Text(bytes),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
            Self::Real => ValueRef::Real(0.0),
        }
    }
}

/// Returns whether a log has commits, and SQLite would read all of them.
pub(super) fn log_is_intact(log: &File) -> io::Result<bool> {
    Ok(Frames::read(log, PAGE_BYTES)?.is_some_and(|frames| frames.is_intact()))
}

/// The row of an attachment's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileRow {
    pub(super) attachment: i64,
    pub(super) bytes: u64,
    /// As it is stored: encrypted or not.
    pub(super) sha256: Vec<u8>,
}

/// The value by which a credential or a header set is looked up, and, where that is a digest, the encrypted value.
pub(super) type LookupKey = (Vec<u8>, Option<Vec<u8>>);

/// The candidates that are left in a damaged store.
pub(super) struct Damaged {
    pager: Pager<File>,
    /// Rows of messages, by their ids; several where versions compete.
    pub(super) messages: Vec<RowLocation>,
    /// Rows of bodies, by the ids of their messages.
    pub(super) bodies: Vec<RowLocation>,
    /// Rows that may be bodies of the first schema versions.
    uncertain_bodies: Vec<RowLocation>,
    /// Rows that may be pieces of attachments.
    pub(super) pieces: Vec<RowLocation>,
    /// By message.
    pub(super) files: HashMap<i64, Vec<FileRow>>,
    /// By the number of the lane.
    pub(super) lanes: HashMap<i64, HashSet<LaneRow>>,
    pub(super) credentials: HashMap<i64, HashSet<LookupKey>>,
    pub(super) header_sets: HashMap<i64, HashSet<LookupKey>>,
    /// The columns of `sealing` except its id.
    pub(super) sealing: Vec<Vec<ColumnValue>>,
    pub(super) salvaged: HashSet<Vec<u8>>,
    pub(super) counters: HashMap<String, i64>,
    /// How many messages the store's own summary counts; 0 if that is lost.
    pub(super) counted: u64,
    pub(super) recoveries: Vec<Vec<ColumnValue>>,
}

impl Damaged {
    /// Visits every page once. `roots` maps the root pages of an intact store to the names of their tables.
    pub(super) fn read(file: Option<File>, log: Option<File>, roots: &HashMap<u32, String>) -> io::Result<Self> {
        let mut found = Self {
            pager: Pager::with_log(file, log, PAGE_BYTES)?,
            messages: Vec::new(),
            bodies: Vec::new(),
            uncertain_bodies: Vec::new(),
            pieces: Vec::new(),
            files: HashMap::new(),
            lanes: HashMap::new(),
            credentials: HashMap::new(),
            header_sets: HashMap::new(),
            sealing: Vec::new(),
            salvaged: HashSet::new(),
            counters: HashMap::new(),
            counted: 0,
            recoveries: Vec::new(),
        };
        let mut uses = PageUses::read(&found.pager, roots);
        let mut page = found.pager.buffer();
        // Page 1 lists the tables, which are known.
        for number in 2..=found.pager.count() {
            if is_map_page(&found.pager, number) || !found.pager.read(number, &mut page) {
                continue;
            }
            let kind = PageKind::of(&page).filter(|kind| *kind != PageKind::TableInterior);
            if let Some(kind) = kind
                && !uses.is_free(&found.pager, number)
            {
                let table = uses.table_of(&found.pager, number);
                found.note_page(number, &page, kind, table);
            }
        }
        for rows in [&mut found.messages, &mut found.bodies, &mut found.uncertain_bodies, &mut found.pieces] {
            rows.sort_unstable();
        }
        Ok(found)
    }

    /// Returns whether anything in it was written by us.
    pub(super) fn is_ours(&self) -> bool {
        self.counters.contains_key("annotations_indexed_after")
            || self.messages.iter().any(|location| {
                let row = self.row(*location).unwrap_or_default();
                FoundRow::of(&row).and_then(FoundRow::message_type).is_some()
            })
    }

    /// Returns the values of a row; `None` if a part of it is missing.
    pub(super) fn row(&self, location: RowLocation) -> Option<Vec<ColumnValue>> {
        payload::row(&self.pager, location)
    }

    /// Returns the rows with this key. `rows` are sorted.
    pub(super) fn rows_of<'a>(
        &'a self,
        rows: &'a [RowLocation],
        key: i64,
    ) -> impl Iterator<Item = Vec<ColumnValue>> + 'a {
        let first = rows.partition_point(|row| row.key < key);
        rows[first..].iter().take_while(move |row| row.key == key).filter_map(|row| self.row(*row))
    }

    /// Returns the rows that may be the body of this message.
    pub(super) fn bodies_of(&self, message: i64) -> impl Iterator<Item = Vec<ColumnValue>> + '_ {
        self.rows_of(&self.bodies, message).chain(self.rows_of(&self.uncertain_bodies, message))
    }

    fn note_page(&mut self, number: u32, page: &[u8], kind: PageKind, table: Option<&str>) {
        let usable_bytes = self.pager.usable_bytes();
        for offset in cell_offsets(page, kind, usable_bytes) {
            let Some(cell) = RecordCell::read(page, kind, offset, usable_bytes) else { continue };
            let local = payload::local(page, &cell);
            let Some(types) = local.and_then(|local| record::types(local, cell.payload_bytes)) else { continue };
            let location = RowLocation { key: cell.key, page: number, cell: offset };
            let candidate = CandidateRow { page, cell, location, table, types };
            match kind {
                PageKind::TableLeaf => self.note_row(&candidate),
                _ => self.note_entry(&candidate),
            }
        }
    }

    /// Notes a row of a table with row ids. Its first column is the row id, for which null is stored.
    fn note_row(&mut self, row: &CandidateRow<'_>) {
        let Some((id, columns)) = row.types.split_first() else { return };
        if !id.is_null() {
            return;
        }
        match columns {
            _ if may_have_columns(row.types.len()) => self.messages.push(row.location),
            // A body without a checksum has the shape of a piece with its flag for encryption.
            [piece, is_sealed] if piece.is_blob() && is_sealed.is_integer() && row.may_be_piece() => {
                self.pieces.push(row.location);
                if row.table.is_none() {
                    self.uncertain_bodies.push(row.location);
                }
            }
            [body, codec, ..] if body.is_blob() && codec.is_integer() && columns.len() <= 3 => {
                self.bodies.push(row.location);
            }
            [by, sealed] if by.is_blob() && (sealed.is_null() || sealed.is_blob()) => {
                self.note_sealed_lookup(row, by.value_bytes() + sealed.value_bytes());
            }
            [blob] if blob.is_blob() => self.note_single_blob(row, *blob),
            // Versions before 7 wrote seven columns, those before 9 eight; the row id is one of them.
            [workspace, credential, ..]
                if matches!(columns.len(), 6 | 7 | 10)
                    && row.may_be_of("lanes")
                    && workspace.is_text_or_null()
                    && credential.is_integer() =>
            {
                let Some(values) = row.values(&self.pager) else { return };
                let lane = LaneColumns {
                    workspace: &values[1],
                    credential: &values[2],
                    server: values.get(8),
                    check: values.get(9),
                };
                self.note_lane(row.location.key, &lane);
            }
            [message, bytes, digest, ..]
                if columns.len() == 8 && message.is_integer() && bytes.is_integer() && is_digest(*digest) =>
            {
                self.note_file(row);
            }
            _ if row.may_be_of("sealing") && is_sealing(columns) => {
                self.sealing.extend(row.values(&self.pager).map(|values| values[1..].to_vec()));
            }
            [_, set_aside, ..] if columns.len() == 5 && row.may_be_of("recoveries") && set_aside.is_blob() => {
                self.recoveries.extend(row.values(&self.pager));
            }
            _ => {}
        }
    }

    /// Notes a row of one blob: bodies of the first versions, pieces, credentials and header sets look alike.
    fn note_single_blob(&mut self, row: &CandidateRow<'_>, blob: SerialType) {
        match row.table {
            Some("bodies") => self.bodies.push(row.location),
            None => self.uncertain_bodies.push(row.location),
            Some(_) => {}
        }
        if row.may_be_piece() {
            self.pieces.push(row.location);
        }
        let may_be_lookup = row.may_be_of("credentials") || row.may_be_of("header_sets");
        if may_be_lookup && blob.value_bytes() <= LOOKUP_BYTES_MAX {
            let values = row.values(&self.pager);
            if let Some(ColumnValue::Blob(value)) = values.and_then(|mut values| values.pop()) {
                self.note_lookup(row.table, row.location.key, (value, None));
            }
        }
    }

    fn note_sealed_lookup(&mut self, row: &CandidateRow<'_>, bytes: u64) {
        if bytes > LOOKUP_BYTES_MAX {
            return;
        }
        let Some(values) = row.values(&self.pager) else { return };
        if let [_, ColumnValue::Blob(by), sealed] = &values[..] {
            let key = (by.clone(), sealed.blob().map(<[u8]>::to_vec));
            self.note_lookup(row.table, row.location.key, key);
        }
    }

    fn note_file(&mut self, row: &CandidateRow<'_>) {
        let Some(values) = row.values(&self.pager) else { return };
        if let (Some(message), Some(bytes), Some(digest)) = (values[1].integer(), values[2].integer(), values[3].blob())
        {
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            let file = FileRow { attachment: row.location.key, bytes, sha256: digest.to_vec() };
            self.files.entry(message).or_default().push(file);
        }
    }

    /// Notes an entry of an index, or a row of a table without row ids.
    fn note_entry(&mut self, entry: &CandidateRow<'_>) {
        if !entry.is_wanted_entry() || entry.cell.payload_bytes > LOOKUP_BYTES_MAX {
            return;
        }
        let Some(values) = entry.values(&self.pager) else { return };
        match &values[..] {
            [ColumnValue::Blob(digest)] if entry.may_be_of("salvaged") => {
                self.salvaged.insert(digest.clone());
            }
            [name @ ColumnValue::Text(_), ColumnValue::Integer(value)] if entry.may_be_of("counters") => {
                if let Some(name) = name.text() {
                    let counter = self.counters.entry(name.to_owned()).or_default();
                    *counter = (*counter).max(*value);
                }
            }
            [ColumnValue::Blob(value), ColumnValue::Integer(id)] => {
                self.note_lookup(entry.table, *id, (value.clone(), None));
            }
            [ColumnValue::Blob(by), ColumnValue::Blob(sealed), ColumnValue::Integer(id)] => {
                self.note_lookup(entry.table, *id, (by.clone(), Some(sealed.clone())));
            }
            [credential, workspace, ColumnValue::Integer(lane)] if entry.may_be_of("lanes") => {
                self.note_lane(*lane, &LaneColumns { workspace, credential, server: None, check: None });
            }
            [credential, workspace, server, check, ColumnValue::Integer(lane)] if entry.may_be_of("lanes") => {
                let (server, check) = (Some(server), Some(check));
                self.note_lane(*lane, &LaneColumns { workspace, credential, server, check });
            }
            [columns @ .., _] if is_sealing(&entry.types[..columns.len()]) => self.sealing.push(columns.to_vec()),
            [_, _, _, _, ColumnValue::Integer(messages), ..] => {
                self.counted = self.counted.saturating_add(u64::try_from(*messages).unwrap_or(0));
            }
            _ => {}
        }
    }

    fn note_lookup(&mut self, table: Option<&str>, id: i64, key: LookupKey) {
        for (name, keys) in [("credentials", &mut self.credentials), ("header_sets", &mut self.header_sets)] {
            if table.is_none_or(|table| table == name) {
                keys.entry(id).or_default().insert(key.clone());
            }
        }
    }

    /// Notes a candidate for a lane. A lane whose server fails its checksum is dropped: its messages would go
    /// elsewhere.
    fn note_lane(&mut self, lane: i64, columns: &LaneColumns<'_>) {
        let server = match columns.server {
            None | Some(ColumnValue::Null) => None,
            Some(server) => match (server.text(), columns.check.and_then(ColumnValue::integer)) {
                (Some(server), Some(check)) if check == server_check(server) => Some(server.to_owned()),
                _ => return,
            },
        };
        let workspace = match columns.workspace {
            ColumnValue::Null => None,
            value => match value.text() {
                Some(text) => Some(text.to_owned()),
                None => return,
            },
        };
        if let Some(credential) = columns.credential.integer() {
            self.lanes.entry(lane).or_default().insert((workspace, credential, server));
        }
    }
}

/// The columns that say what a lane is. Older versions had no server.
struct LaneColumns<'a> {
    workspace: &'a ColumnValue,
    credential: &'a ColumnValue,
    server: Option<&'a ColumnValue>,
    /// The checksum of the server.
    check: Option<&'a ColumnValue>,
}

/// A record that is about to be classified.
struct CandidateRow<'page> {
    page: &'page [u8],
    cell: RecordCell,
    location: RowLocation,
    /// The table that its page belongs to; `None` where that is lost.
    table: Option<&'page str>,
    types: Vec<SerialType>,
}

impl CandidateRow<'_> {
    fn may_be_of(&self, table: &str) -> bool {
        self.table.is_none_or(|known| known == table)
    }

    fn may_be_piece(&self) -> bool {
        self.may_be_of("attachment_pieces") && self.location.key >= PIECE_ID_MIN
    }

    fn values(&self, pager: &Pager<File>) -> Option<Vec<ColumnValue>> {
        payload::read(pager, self.page, &self.cell).as_deref().and_then(record::values)
    }

    /// Returns whether an entry has the shape of one that [`Damaged::note_entry`] takes.
    fn is_wanted_entry(&self) -> bool {
        match &self.types[..] {
            [digest] => digest.is_blob() && digest.value_bytes() == 32,
            [first, second] => (first.is_text_or_null() || first.is_blob()) && second.is_integer(),
            [first, second, _] => {
                self.may_be_of("lanes") && second.is_text_or_null() || first.is_blob() && second.is_blob()
            }
            [_, workspace, server, _, _]
                if self.may_be_of("lanes") && workspace.is_text_or_null() && server.is_text_or_null() =>
            {
                true
            }
            [columns @ .., _] if self.may_be_of("sealing") && is_sealing(columns) => true,
            [lane, status, name, rest @ ..] if rest.len() == 4 => {
                self.may_be_of("summary")
                    && name.is_text()
                    && [lane, status].into_iter().chain(rest).all(|number| number.is_integer())
            }
            _ => false,
        }
    }
}

/// Which pages are free, and which tables the others belong to.
struct PageUses<'roots> {
    roots: &'roots HashMap<u32, String>,
    map: PointerMap,
    free: FreeList,
}

impl<'roots> PageUses<'roots> {
    fn read(pager: &Pager<File>, roots: &'roots HashMap<u32, String>) -> Self {
        Self { roots, map: PointerMap::default(), free: FreeList::read(pager) }
    }

    /// Returns whether a page holds nothing. Both the list and the map know; where they differ, one of them is corrupt,
    /// and to deliver a message twice is better than not to deliver one.
    fn is_free(&mut self, pager: &Pager<File>, number: u32) -> bool {
        let is_listed = self.free.contains(number);
        match self.map.page_use(pager, number) {
            Some(PageUse::Free) => is_listed || !self.free.is_complete(),
            Some(PageUse::Root | PageUse::Overflow | PageUse::Child(_)) => false,
            None => is_listed,
        }
    }

    /// Returns the table that a page belongs to, if that is known.
    fn table_of(&mut self, pager: &Pager<File>, number: u32) -> Option<&'roots str> {
        let root = self.map.root_of(pager, number)?;
        self.roots.get(&root).map(String::as_str)
    }
}

/// Returns whether a column may hold a SHA-256, encrypted or not.
fn is_digest(column: SerialType) -> bool {
    column.is_blob() && matches!(column.value_bytes(), 32 | SEALED_DIGEST_BYTES)
}

/// Returns whether these are the columns of `sealing` except its id: a generation, two keys or none, and whether it is
/// complete.
fn is_sealing(columns: &[SerialType]) -> bool {
    let [generation, key, key_check, previous, previous_check, is_complete] = columns else { return false };
    let is_key = |name: &SerialType, check: &SerialType| {
        name.is_null() && check.is_null()
            || name.is_blob() && name.value_bytes() == KeyId::LEN as u64 && check.is_blob()
    };
    generation.is_integer() && is_key(key, key_check) && is_key(previous, previous_check) && is_complete.is_boolean()
}
