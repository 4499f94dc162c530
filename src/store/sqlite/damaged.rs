//! A damaged store, read page by page (SQLite's "Database File Format", sections 1.5, 1.6, 1.8 and 4).
//!
//! SQLite gives up where its tree of pages is broken, and it drops all of the write-ahead log behind the first frame that
//! is. Here neither decides: the leaves carry the rows whole, so all that are left are read, and a frame is good when
//! its checksum follows from the one before it, whatever stood before that. What a row is of is told by its form and, as
//! far as it can be read, by the map of pages, which names the parent of each.
//!
//! What this returns are candidates. Rows of deleted messages may be among them where the lists of free pages can't be
//! read, and older versions of rows where newer ones are gone: that a message is whole says its checksum, and that it
//! was delivered already may then be known to nobody.
//!
//! Nothing is written, and memory grows by 16 bytes for every message, not by its body.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rusqlite::types::ValueRef;

use super::lanes::server_check;
use super::seal::SEAL_BYTES;
use crate::sqlite_format::{be32, cell_pointers, varint};
use crate::store::key::KeyId;

/// What a lane may be: workspace, number of the credential, server.
pub(super) type LaneRow = (Option<String>, i64, Option<String>);

const LEAF: u8 = 0x0d;
const INDEX_LEAF: u8 = 0x0a;
const INDEX_INTERIOR: u8 = 0x02;
/// The page that holds this byte is never used.
const PENDING_BYTE: u64 = 0x4000_0000;
/// How far up a page's root is looked for; SQLite's trees are at most 20 deep.
const DEPTH_MAX: usize = 20;
const FRAME_HEADER: u64 = 24;
const LOG_HEADER: u64 = 32;
/// Smallest key of a piece of an attachment: file 1, piece 0.
const PIECE_ID_MIN: i64 = 1 << 24;
const SEALED_DIGEST_BYTES: u64 = 32 + SEAL_BYTES as u64;
/// Larger values are no key and no header set.
const NAME_BYTES_MAX: usize = 64 * 1024;

/// The pages of a database as the last commit of its log left them.
struct Pages {
    file: Option<File>,
    log: Option<File>,
    /// Where the newest version of a page stands in the log.
    in_log: HashMap<u32, u64>,
    page_bytes: u32,
    usable_bytes: u32,
    count: u32,
}

impl Pages {
    fn open(file: Option<File>, log: Option<File>) -> io::Result<Self> {
        let mut header = [0; 100];
        let file_bytes = file.as_ref().map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()))?;
        let has_header = file.as_ref().is_some_and(|file| file.read_exact_at(&mut header, 0).is_ok());
        let page_bytes = |raw: u32| (raw.is_power_of_two() && (512..=65_536).contains(&raw)).then_some(raw);
        let in_header = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65_536,
            bytes => u32::from(bytes),
        };
        let frames = log.as_ref().map(Frames::read).transpose()?.flatten();
        let in_frames = frames.as_ref().map(|frames| frames.page_bytes);
        let page_bytes = in_frames
            .or_else(|| page_bytes(in_header).filter(|_| has_header && header.starts_with(b"SQLite format 3\0")))
            .unwrap_or(super::schema::PAGE_BYTES);
        let in_file = u32::try_from(file_bytes.div_ceil(u64::from(page_bytes))).unwrap_or(u32::MAX);
        let (in_log, committed) = frames.map_or_else(Default::default, |frames| (frames.pages, frames.committed_pages));
        let count = if committed > 0 { committed } else { in_file };
        // Ours reserves nothing at the end of its pages.
        Ok(Self { file, log, in_log, page_bytes, usable_bytes: page_bytes, count })
    }

    /// Reads a page; what is missing at the end of a file that was cut off is zero.
    fn read(&self, number: u32, page: &mut [u8]) -> bool {
        if number == 0 || number > self.count {
            return false;
        }
        if let (Some(at), Some(log)) = (self.in_log.get(&number), &self.log) {
            return log.read_exact_at(page, *at).is_ok();
        }
        let Some(file) = &self.file else { return false };
        let start = u64::from(number - 1) * u64::from(self.page_bytes);
        let mut filled = 0;
        while filled < page.len() {
            match file.read_at(&mut page[filled..], start + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A bad sector takes its page and no more.
                Err(_) => return false,
            }
        }
        page[filled..].fill(0);
        filled > 0
    }

    fn buffer(&self) -> Vec<u8> {
        vec![0; self.page_bytes as usize]
    }

    /// Returns the page of the map that tells of this page, and where; `None` for those it does not tell of.
    fn map_entry(&self, number: u32) -> Option<(u32, usize)> {
        let pending = u32::try_from(PENDING_BYTE / u64::from(self.page_bytes)).ok()? + 1;
        if number < 3 || number == pending {
            return None;
        }
        let per_map = self.usable_bytes / 5 + 1;
        let mut map = (number - 2) / per_map * per_map + 2;
        if map == pending {
            map += 1;
        }
        let before = number.checked_sub(map + 1)?;
        Some((map, 5 * before as usize))
    }

    fn is_map(&self, number: u32) -> bool {
        number == 2 || self.map_entry(number + 1).is_some_and(|(map, _)| map == number)
    }
}

/// The frames of a write-ahead log that belong to its last generation, up to its last commit.
struct Frames {
    page_bytes: u32,
    /// Where the newest good version of each page stands.
    pages: HashMap<u32, u64>,
    /// How many pages the database has after the last commit; 0 when nothing was committed.
    committed_pages: u32,
    /// Whether SQLite would read all of it.
    is_whole: bool,
}

/// Says whether a log has commits, and no frame of them is damaged.
pub(super) fn log_is_whole(log: &File) -> io::Result<bool> {
    Ok(Frames::read(log)?.is_some_and(|frames| frames.is_whole))
}

impl Frames {
    /// Reads a log; `None` when there is none in the file.
    fn read(log: &File) -> io::Result<Option<Self>> {
        let mut header = [0; LOG_HEADER as usize];
        if log.read_exact_at(&mut header, 0).is_err() {
            return Ok(None);
        }
        let word = |at: usize| be32(&header, at).unwrap_or(0);
        let big_endian = word(0) == 0x377f_0683;
        let mut stored = (word(24), word(28));
        let is_whole = matches!(word(0), 0x377f_0682 | 0x377f_0683)
            && checksum((0, 0), &header[..24], big_endian) == stored
            && word(8).is_power_of_two();
        let page_bytes = if is_whole { word(8) } else { super::schema::PAGE_BYTES };
        if !(512..=65_536).contains(&page_bytes) {
            return Ok(None);
        }
        let mut salts = is_whole.then(|| (word(16), word(20)));
        let frame_bytes = FRAME_HEADER + u64::from(page_bytes);
        let frames = log.metadata()?.len().saturating_sub(LOG_HEADER) / frame_bytes;
        let mut frame = vec![0; frame_bytes as usize];
        // Versions since the last commit: they count when the next one comes.
        let mut open: Vec<(u32, u64)> = Vec::new();
        let mut found = Self { page_bytes, pages: HashMap::new(), committed_pages: 0, is_whole };
        let mut is_broken = false;
        for number in 0..frames {
            let at = LOG_HEADER + number * frame_bytes;
            let is_read = log.read_exact_at(&mut frame, at).is_ok();
            let word = |at: usize| be32(&frame, at).unwrap_or(0);
            let (page, pages_after, frame_salts) = (word(0), word(4), (word(8), word(12)));
            let sum = checksum(stored, &frame[..8], big_endian);
            let is_good = is_read && checksum(sum, &frame[FRAME_HEADER as usize..], big_endian) == (word(16), word(20));
            stored = (word(16), word(20));
            if salts.is_none() && is_good {
                salts = Some(frame_salts);
            }
            if salts != Some(frame_salts) {
                continue;
            }
            match is_good {
                true => open.push((page, at + FRAME_HEADER)),
                false => is_broken = true,
            }
            // The frame that ends a commit may be the one that is damaged. A number that no file has is none.
            if pages_after > 0 && (is_good || pages_after <= found.committed_pages.max(page).saturating_add(1 << 16)) {
                found.pages.extend(open.drain(..));
                found.committed_pages = pages_after;
                found.is_whole &= !is_broken;
            }
        }
        Ok((!found.pages.is_empty()).then_some(found))
    }
}

/// SQLite's checksum of the log over words of four bytes.
fn checksum(seed: (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
    let (mut first, mut second) = seed;
    for pair in bytes.chunks_exact(8) {
        let word = |at: usize| {
            let bytes = [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
            if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        first = first.wrapping_add(word(0)).wrapping_add(second);
        second = second.wrapping_add(word(4)).wrapping_add(first);
    }
    (first, second)
}

/// A value of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
    /// No column of ours holds one.
    Real,
}

impl Value {
    pub(super) fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    pub(super) fn blob(&self) -> Option<&[u8]> {
        match self {
            Self::Blob(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Returns the value as SQLite would give it.
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

/// Where a row stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) key: i64,
    page: u32,
    cell: u16,
}

/// A file as it was put down for a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileRow {
    pub(super) attachment: i64,
    pub(super) bytes: u64,
    /// As it is kept: sealed or not.
    pub(super) sha256: Vec<u8>,
}

/// What a key or header set is looked up by, and, where that is a digest, the sealed value.
pub(super) type Name = (Vec<u8>, Option<Vec<u8>>);

/// What is left in a damaged store.
pub(super) struct Damaged {
    pages: Pages,
    /// Rows of messages, by their ids; several where versions compete.
    pub(super) messages: Vec<Place>,
    /// Rows of bodies, by the ids of their messages.
    pub(super) bodies: Vec<Place>,
    /// Rows that may be bodies of the first versions.
    unsure_bodies: Vec<Place>,
    /// Rows that may be pieces of attachments.
    pub(super) pieces: Vec<Place>,
    /// By message.
    pub(super) files: HashMap<i64, Vec<FileRow>>,
    /// Workspace and number of the key, by number of the lane.
    pub(super) lanes: HashMap<i64, HashSet<LaneRow>>,
    pub(super) credentials: HashMap<i64, HashSet<Name>>,
    pub(super) header_sets: HashMap<i64, HashSet<Name>>,
    /// The columns of `sealing` but its number.
    pub(super) sealing: Vec<Vec<Value>>,
    pub(super) salvaged: HashSet<Vec<u8>>,
    pub(super) counters: HashMap<String, i64>,
    /// How many messages the store counted itself; 0 when that can't be read.
    pub(super) counted: u64,
    pub(super) recoveries: Vec<Vec<Value>>,
}

impl Damaged {
    /// Looks through every page once. `roots` says where a sound store's trees stand.
    pub(super) fn read(file: Option<File>, log: Option<File>, roots: &HashMap<u32, String>) -> io::Result<Self> {
        let mut found = Self {
            pages: Pages::open(file, log)?,
            messages: Vec::new(),
            bodies: Vec::new(),
            unsure_bodies: Vec::new(),
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
        let mut map = Map::new(&found.pages, roots);
        let mut page = found.pages.buffer();
        for number in 1..=found.pages.count {
            if found.pages.is_map(number) || !found.pages.read(number, &mut page) {
                continue;
            }
            // Page 1 lists the tables, which are known.
            let is_tree = number > 1 && matches!(page[0], LEAF | INDEX_LEAF | INDEX_INTERIOR);
            if is_tree && !map.is_free(&found.pages, number) {
                let owner = map.owner(&found.pages, number);
                found.note(number, &page, owner.as_deref());
            }
        }
        for places in [&mut found.messages, &mut found.bodies, &mut found.unsure_bodies, &mut found.pieces] {
            places.sort_unstable();
        }
        Ok(found)
    }

    /// Says whether anything in it is ours.
    pub(super) fn is_ours(&self) -> bool {
        self.counters.contains_key("annotations_indexed_after")
            || self.messages.iter().any(|place| {
                let row = self.row(*place).unwrap_or_default();
                row.get(2).and_then(Value::text).and_then(crate::message::MessageType::from_name).is_some()
            })
    }

    /// Returns the values of a row, or `None` when a part of it is missing.
    pub(super) fn row(&self, place: Place) -> Option<Vec<Value>> {
        let mut page = self.pages.buffer();
        if !self.pages.read(place.page, &mut page) {
            return None;
        }
        values(&self.payload(&page, &Cell::read(&page, place.cell, self.pages.usable_bytes)?)?)
    }

    /// Returns the rows with this key among the places.
    pub(super) fn rows_of<'a>(&'a self, places: &'a [Place], key: i64) -> impl Iterator<Item = Vec<Value>> + 'a {
        let first = places.partition_point(|place| place.key < key);
        places[first..].iter().take_while(move |place| place.key == key).filter_map(|place| self.row(*place))
    }

    /// Returns the rows that may be the body of this message.
    pub(super) fn bodies_of(&self, message: i64) -> impl Iterator<Item = Vec<Value>> + '_ {
        self.rows_of(&self.bodies, message).chain(self.rows_of(&self.unsure_bodies, message))
    }

    fn note(&mut self, number: u32, page: &[u8], owner: Option<&str>) {
        let header = if page[0] == INDEX_INTERIOR { 12 } else { 8 };
        for at in cell_pointers(page, header, self.pages.usable_bytes) {
            let Some(cell) = Cell::read(page, at, self.pages.usable_bytes) else { continue };
            let Some(local) = page.get(cell.payload_at..cell.payload_at + cell.local_bytes) else { continue };
            let Some(types) = types(local, cell.payload_bytes) else { continue };
            let place = Place { key: cell.key, page: number, cell: at };
            if page[0] == LEAF {
                self.note_row(place, &types, owner, page, &cell);
            } else {
                self.note_entry(&types, owner, page, &cell);
            }
        }
    }

    fn note_row(&mut self, place: Place, types: &[u64], owner: Option<&str>, page: &[u8], cell: &Cell) {
        let is = |table: &str| owner.is_none_or(|owner| owner == table);
        let key = place.key;
        match types {
            [0, ..] if types.len() == 20 => self.messages.push(place),
            // A body without a checksum looks like a piece that says whether it is sealed.
            [0, piece, is_sealed]
                if is_blob(*piece) && is_integer(*is_sealed) && is("attachment_pieces") && key >= PIECE_ID_MIN =>
            {
                self.pieces.push(place);
                if owner.is_none() {
                    self.unsure_bodies.push(place);
                }
            }
            [0, body, codec, ..] if is_blob(*body) && is_integer(*codec) && types.len() <= 4 => self.bodies.push(place),
            [0, by, sealed] if is_blob(*by) && (*sealed == 0 || is_blob(*sealed)) => {
                if bytes_of(*by) + bytes_of(*sealed) > NAME_BYTES_MAX as u64 {
                    return;
                }
                let Some(row) = self.payload(page, cell).as_deref().and_then(values) else { return };
                if let [_, Value::Blob(by), sealed] = &row[..] {
                    self.note_name(key, by, sealed.blob(), owner);
                }
            }
            // Bodies of the first versions, pieces, keys and header sets look alike.
            [0, blob] if is_blob(*blob) => {
                match owner {
                    Some("bodies") => self.bodies.push(place),
                    None => self.unsure_bodies.push(place),
                    Some(_) => {}
                }
                if is("attachment_pieces") && key >= PIECE_ID_MIN {
                    self.pieces.push(place);
                }
                if (is("credentials") || is("header_sets")) && bytes_of(*blob) <= NAME_BYTES_MAX as u64 {
                    let row = self.payload(page, cell).as_deref().and_then(values);
                    if let Some(Value::Blob(value)) = row.and_then(|mut row| row.pop()) {
                        self.note_name(key, &value, None, owner);
                    }
                }
            }
            [0, workspace, credential, ..]
                // Seven columns as versions before 7 wrote it, eight as those before 9 did.
                if matches!(types.len(), 7 | 8 | 11)
                    && is("lanes")
                    && is_text_or_null(*workspace) && is_integer(*credential) =>
            {
                let Some(row) = self.payload(page, cell).as_deref().and_then(values) else { return };
                self.note_lane(key, &row[1], &row[2], row.get(8), row.get(9));
            }
            [0, message, bytes, digest, ..]
                if types.len() == 9 && is_integer(*message) && is_integer(*bytes) && is_digest(*digest) =>
            {
                let Some(row) = self.payload(page, cell).as_deref().and_then(values) else { return };
                if let (Some(message), Some(bytes), Some(digest)) = (row[1].integer(), row[2].integer(), row[3].blob())
                {
                    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
                    let file = FileRow { attachment: key, bytes, sha256: digest.to_vec() };
                    self.files.entry(message).or_default().push(file);
                }
            }
            [0, columns @ ..] if is("sealing") && is_sealing(columns) => {
                let row = self.payload(page, cell).as_deref().and_then(values);
                self.sealing.extend(row.map(|row| row[1..].to_vec()));
            }
            [0, _, set_aside, ..] if types.len() == 6 && is("recoveries") && is_blob(*set_aside) => {
                self.recoveries.extend(self.payload(page, cell).as_deref().and_then(values));
            }
            _ => {}
        }
    }

    fn note_entry(&mut self, types: &[u64], owner: Option<&str>, page: &[u8], cell: &Cell) {
        let is = |table: &str| owner.is_none_or(|owner| owner == table);
        let wanted = match types {
            [digest] => *digest == 12 + 2 * 32,
            [first, second] => (is_text_or_null(*first) || is_blob(*first)) && is_integer(*second),
            [first, second, _] => is("lanes") && is_text_or_null(*second) || is_blob(*first) && is_blob(*second),
            [_, workspace, server, _, _] if is("lanes") && is_text_or_null(*workspace) && is_text_or_null(*server) => {
                true
            }
            [columns @ .., _] if is("sealing") && is_sealing(columns) => true,
            [lane, status, name, rest @ ..] if rest.len() == 4 => {
                is("summary")
                    && is_text_or_null(*name)
                    && *name > 0
                    && [lane, status].into_iter().chain(rest).all(|number| is_integer(*number))
            }
            _ => false,
        };
        if !wanted || cell.payload_bytes > NAME_BYTES_MAX as u64 {
            return;
        }
        let Some(row) = self.payload(page, cell).as_deref().and_then(values) else { return };
        match &row[..] {
            [Value::Blob(digest)] if is("salvaged") => {
                self.salvaged.insert(digest.clone());
            }
            [name @ Value::Text(_), Value::Integer(value)] if is("counters") => {
                if let Some(name) = name.text() {
                    let counter = self.counters.entry(name.to_owned()).or_default();
                    *counter = (*counter).max(*value);
                }
            }
            [Value::Blob(value), Value::Integer(id)] => self.note_name(*id, value, None, owner),
            [Value::Blob(by), Value::Blob(sealed), Value::Integer(id)] => self.note_name(*id, by, Some(sealed), owner),
            [credential, workspace, Value::Integer(lane)] if is("lanes") => {
                self.note_lane(*lane, workspace, credential, None, None)
            }
            [credential, workspace, server, check, Value::Integer(lane)] if is("lanes") => {
                self.note_lane(*lane, workspace, credential, Some(server), Some(check))
            }
            [columns @ .., _] if is_sealing(&types[..columns.len()]) => self.sealing.push(columns.to_vec()),
            [_, _, _, _, Value::Integer(messages), ..] => {
                self.counted = self.counted.saturating_add(u64::try_from(*messages).unwrap_or(0));
            }
            _ => {}
        }
    }

    fn note_name(&mut self, id: i64, by: &[u8], sealed: Option<&[u8]>, owner: Option<&str>) {
        for (table, into) in [("credentials", &mut self.credentials), ("header_sets", &mut self.header_sets)] {
            if owner.is_none_or(|owner| owner == table) {
                into.entry(id).or_default().insert((by.to_vec(), sealed.map(<[u8]>::to_vec)));
            }
        }
    }

    /// Notes what a lane may be. One whose server is not what was stored is none: its messages would go elsewhere.
    fn note_lane(
        &mut self,
        lane: i64,
        workspace: &Value,
        credential: &Value,
        server: Option<&Value>,
        check: Option<&Value>,
    ) {
        let server = match server {
            None | Some(Value::Null) => None,
            Some(server) => match (server.text(), check.and_then(Value::integer)) {
                (Some(server), Some(check)) if check == server_check(server) => Some(server.to_owned()),
                _ => return,
            },
        };
        let workspace = match workspace {
            Value::Null => None,
            value => match value.text() {
                Some(text) => Some(text.to_owned()),
                None => return,
            },
        };
        if let Some(credential) = credential.integer() {
            self.lanes.entry(lane).or_default().insert((workspace, credential, server));
        }
    }

    fn payload(&self, page: &[u8], cell: &Cell) -> Option<Vec<u8>> {
        read_payload(&self.pages, page, cell)
    }
}

/// Reads the bytes of a row, which may go on in other pages.
fn read_payload(pages: &Pages, page: &[u8], cell: &Cell) -> Option<Vec<u8>> {
    let mut payload = page.get(cell.payload_at..cell.payload_at + cell.local_bytes)?.to_vec();
    if payload.len() as u64 == cell.payload_bytes {
        return Some(payload);
    }
    // More than all pages together hold is no length.
    if cell.payload_bytes > u64::from(pages.count) * u64::from(pages.page_bytes) {
        return None;
    }
    let mut next = be32(page, cell.payload_at + cell.local_bytes)?;
    let mut buffer = pages.buffer();
    while (payload.len() as u64) < cell.payload_bytes {
        if next < 2 || !pages.read(next, &mut buffer) {
            return None;
        }
        next = be32(&buffer, 0)?;
        let missing = cell.payload_bytes - payload.len() as u64;
        let taken = missing.min(u64::from(pages.usable_bytes) - 4) as usize;
        payload.extend_from_slice(&buffer[4..4 + taken]);
    }
    Some(payload)
}

/// Which pages are free, and which tree the others belong to.
struct Map {
    roots: HashMap<u32, String>,
    maps: HashMap<u32, Option<Vec<u8>>>,
    free: HashSet<u32>,
    /// Whether the list of free pages could be followed to its end.
    is_free_list_whole: bool,
}

impl Map {
    fn new(pages: &Pages, roots: &HashMap<u32, String>) -> Self {
        let mut map =
            Self { roots: roots.clone(), maps: HashMap::new(), free: HashSet::new(), is_free_list_whole: false };
        let mut page = pages.buffer();
        if !pages.read(1, &mut page) || !page.starts_with(b"SQLite format 3\0") {
            return map;
        }
        let (mut trunk, expected) = (be32(&page, 32).unwrap_or(0), be32(&page, 36).unwrap_or(0));
        while trunk != 0 && pages.read(trunk, &mut page) && map.free.insert(trunk) {
            let entries = be32(&page, 4).unwrap_or(0);
            if entries > pages.usable_bytes / 4 - 2 {
                break;
            }
            map.free.extend((0..entries as usize).filter_map(|entry| be32(&page, 8 + 4 * entry)));
            trunk = be32(&page, 0).unwrap_or(0);
        }
        map.is_free_list_whole = map.free.len() == expected as usize && trunk == 0;
        map
    }

    fn entry(&mut self, pages: &Pages, number: u32) -> Option<(u8, u32)> {
        let (map, at) = pages.map_entry(number)?;
        let entries = self.maps.entry(map).or_insert_with(|| {
            let mut page = pages.buffer();
            pages.read(map, &mut page).then_some(page)
        });
        let entries = entries.as_ref()?;
        Some((*entries.get(at)?, be32(entries, at + 1)?))
    }

    /// Says whether a page holds nothing. Both the list and the map know; where they differ, one of them is damaged, and
    /// a message that may be delivered twice is better than one that is not delivered.
    fn is_free(&mut self, pages: &Pages, number: u32) -> bool {
        let listed = self.free.contains(&number);
        match self.entry(pages, number) {
            Some((2, 0)) => listed || !self.is_free_list_whole,
            Some((1 | 3 | 4 | 5, _)) => false,
            _ => listed,
        }
    }

    /// Returns the table that a page belongs to, as far as that can be known.
    fn owner(&mut self, pages: &Pages, number: u32) -> Option<String> {
        let mut at = number;
        for _ in 0..DEPTH_MAX {
            match self.entry(pages, at)? {
                (1, _) => return self.roots.get(&at).cloned(),
                (5, parent) => at = parent,
                _ => return None,
            }
        }
        None
    }
}

/// A row's cell in a page.
struct Cell {
    key: i64,
    payload_at: usize,
    payload_bytes: u64,
    local_bytes: usize,
}

impl Cell {
    fn read(page: &[u8], at: u16, usable_bytes: u32) -> Option<Self> {
        let at = usize::from(at) + if page[0] == INDEX_INTERIOR { 4 } else { 0 };
        let (payload_bytes, at) = varint(page, at)?;
        let (key, payload_at) = if page[0] == LEAF { varint(page, at)? } else { (0, at) };
        let usable = u64::from(usable_bytes);
        let local_max = if page[0] == LEAF { usable - 35 } else { (usable - 12) * 64 / 255 - 23 };
        let local_bytes = if payload_bytes <= local_max {
            payload_bytes
        } else {
            let least = (usable - 12) * 32 / 255 - 23;
            let rest = least + (payload_bytes - least) % (usable - 4);
            if rest <= local_max { rest } else { least }
        };
        Some(Self { key: key as i64, payload_at, payload_bytes, local_bytes: usize::try_from(local_bytes).ok()? })
    }
}

fn is_blob(serial: u64) -> bool {
    serial >= 12 && serial.is_multiple_of(2)
}

/// A SHA-256, kept as it is or sealed.
fn is_digest(serial: u64) -> bool {
    is_blob(serial) && matches!(bytes_of(serial), 32 | SEALED_DIGEST_BYTES)
}

/// The columns of `sealing` but its number: a generation, two keys or none, and whether it is complete.
fn is_sealing(types: &[u64]) -> bool {
    let [generation, key, key_check, previous, previous_check, is_complete] = types else { return false };
    let is_key = |name: u64, check: u64| {
        name == 0 && check == 0 || is_blob(name) && bytes_of(name) == KeyId::LEN as u64 && is_blob(check)
    };
    is_integer(*generation)
        && is_key(*key, *key_check)
        && is_key(*previous, *previous_check)
        && matches!(is_complete, 8 | 9)
}

fn is_text_or_null(serial: u64) -> bool {
    serial == 0 || serial >= 13 && !serial.is_multiple_of(2)
}

fn is_integer(serial: u64) -> bool {
    matches!(serial, 1..=6 | 8 | 9)
}

fn bytes_of(serial: u64) -> u64 {
    match serial {
        1..=4 => serial,
        5 => 6,
        6 | 7 => 8,
        12.. => (serial - 12) / 2,
        _ => 0,
    }
}

/// Reads the types of a row's values from its beginning, or `None` when it can't be a row of this length.
fn types(local: &[u8], payload_bytes: u64) -> Option<Vec<u64>> {
    const COLUMNS_MAX: usize = 32;
    let (header_bytes, mut next) = varint(local, 0)?;
    let mut types = Vec::new();
    let mut bytes = header_bytes;
    while (next as u64) < header_bytes {
        let (serial, after) = varint(local, next)?;
        if matches!(serial, 10 | 11) || types.len() == COLUMNS_MAX {
            return None;
        }
        bytes = bytes.checked_add(bytes_of(serial))?;
        types.push(serial);
        next = after;
    }
    (next as u64 == header_bytes && bytes == payload_bytes).then_some(types)
}

/// Reads all values of a row.
fn values(payload: &[u8]) -> Option<Vec<Value>> {
    let types = types(payload, payload.len() as u64)?;
    let mut at = usize::try_from(varint(payload, 0)?.0).ok()?;
    let mut values = Vec::with_capacity(types.len());
    for serial in types {
        let bytes = payload.get(at..at + usize::try_from(bytes_of(serial)).ok()?)?;
        at += bytes.len();
        values.push(match serial {
            0 => Value::Null,
            8 => Value::Integer(0),
            9 => Value::Integer(1),
            1..=6 => {
                let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
                let start = if negative { -1_i64 } else { 0 };
                Value::Integer(bytes.iter().fold(start, |number, byte| number << 8 | i64::from(*byte)))
            }
            7 => Value::Real,
            blob if is_blob(blob) => Value::Blob(bytes.to_vec()),
            _ => Value::Text(bytes.to_vec()),
        });
    }
    Some(values)
}
