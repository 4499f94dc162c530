//! The record of one stored message: its row of `messages` and its row of `bodies`.
//!
//! Every message enters the store through an [`Inserter`], whether a client sent it, a server divided it or a
//! recovery found it in a damaged file; every reader that needs the whole message reads the same columns in the same
//! order. So a new column is a field here, a line in `insert_row`, a line in each reader that needs it, and a migration in
//! [`super::schema`]. The test at the end of this file counts: it fails when another file names a column of `messages`
//! without an entry in its list of queries that filter, sort or update by it.
//!
//! # The two halves of a record
//!
//! [`MessageContent`] is what the client sent and what decides where it goes: it never changes while the message is
//! stored, and the checksum covers it. The rest of a [`Record`] changes with every attempt (status, attempts, the last
//! answer) or with the order of delivery (position), and is not covered.
//!
//! # The checksum
//!
//! SQLite finds damage of its own structure, not of the values in it: a flipped bit in a body or a path goes unnoticed.
//! So every message has a CRC-32 of all that reaches the server and of all that decides where it goes and when,
//! computed when it is stored and verified when it is claimed or recovered. It covers the body as sent, not as it is
//! encoded on disk, and the lane and headers themselves, not their row ids: recompressing bodies or copying a store
//! leaves it valid.
//!
//! It detects accidents, not forgery: anyone who can write the file can write the checksum.
//!
//! # Invariants
//!
//! - **Order of writes**: row, then body, then index entries, in one transaction. A reader sees all three or none.
//! - **Sealed fields**: body, last answer, and a path with a query are sealed under the record's own id
//!   ([`super::seal`]). A record that gets another id, such as a part of a divided message, is sealed anew.
//! - **A large body is never whole in memory twice** ([`super::large`]): its row is stored with room for it, which is
//!   filled in place.

use std::borrow::Cow;

use libdeflater::Crc;
use rusqlite::{CachedStatement, Row, Transaction, params};

use super::codec::Packed;
use super::fault::Fault;
use super::schema::columns;
use super::seal::{Destination, KeptBody, SealContext, Sealer};
use super::{large, queries, rows, touch_index};
use crate::message::{Encoding, HeaderSet, Lane, MessageId, MessageStatus, MessageType, Request, Touch};
use crate::sqlite_format::record::ColumnValue;
use crate::store::work::LastAnswer;

/// The columns of `messages` in the order of the schema, in which [`columns!`](super::schema::columns) selects them and
/// a damaged file has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Id,
    Status,
    MessageType,
    Lane,
    Position,
    AcceptedAt,
    Attempts,
    NextAttempt,
    ClaimEpoch,
    AnswerAt,
    AnswerStatus,
    AnswerText,
    Items,
    BodyBytes,
    Project,
    Method,
    Path,
    HeaderSet,
    Encoding,
    Touches,
}

/// How many columns `messages` has; the columns that a query selects beside them follow.
pub(super) const COLUMNS: usize = Column::Touches as usize + 1;

/// How many columns a row in a file has at least: SQLite does not rewrite rows when a migration adds a column, so rows
/// of earlier versions lack the newest ones. Stays as it is when a column is added.
const COLUMNS_MIN: usize = 20;

/// Returns whether a row with this many columns may be one of `messages`.
pub(super) fn may_have_columns(columns: usize) -> bool {
    (COLUMNS_MIN..=COLUMNS).contains(&columns)
}

const INSERT: &str = concat!(
    "INSERT INTO messages (",
    columns!(),
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)"
);
const INSERT_BODY: &str = "INSERT INTO bodies (message_id, body, codec, checksum) VALUES (?1, ?2, ?3, ?4)";
/// A message with its body. A large body comes as NULL: it is read in pieces, straight into its final buffer
/// ([`super::large`]).
pub(super) const SELECT_WITH_BODY: &str = concat!(
    "SELECT ",
    columns!(),
    ", CASE WHEN length(body) <= 262144 THEN body END, codec, CASE codec WHEN 0 THEN length(body)
        ELSE body_bytes - coalesce((SELECT bytes FROM attachments WHERE message_id = ?1), 0) END, checksum
    FROM messages CROSS JOIN bodies USING (message_id) WHERE message_id = ?1"
);
const SELECT: &str = concat!("SELECT ", columns!(), " FROM messages WHERE message_id = ?1");
const SELECT_BODY: &str = concat!(
    "SELECT ",
    columns!(),
    ", body, codec, checksum FROM bodies CROSS JOIN messages USING (message_id) WHERE message_id = ?1"
);
const UPDATE_BODY: &str = "UPDATE bodies SET body = ?2, codec = ?3, checksum = ?4 WHERE message_id = ?1";
const UPDATE_TEXTS: &str = "UPDATE messages SET path = ?2, answer_text = ?3 WHERE message_id = ?1";
const UPDATE_ANSWER: &str =
    "UPDATE messages SET answer_status = ?2, answer_text = ?3, answer_at_ms = ?4 WHERE message_id = ?1";

/// The content that a client sent: everything that the checksum covers beside the body.
pub(super) struct MessageContent<'a> {
    pub(super) id: i64,
    /// The name as stored, which may be one that this version does not know.
    pub(super) message_type: Cow<'a, str>,
    pub(super) lane: Cow<'a, Lane>,
    pub(super) method: Cow<'a, str>,
    pub(super) path: Cow<'a, str>,
    pub(super) headers: Cow<'a, HeaderSet>,
    pub(super) encoding: Encoding,
    pub(super) touches: Cow<'a, [Touch]>,
    pub(super) items: u32,
    pub(super) project: Option<Cow<'a, str>>,
    pub(super) accepted_at_ms: i64,
}

impl<'a> MessageContent<'a> {
    /// Reads what is covered of a message whose request and lane were read already.
    pub(super) fn read(row: &Row<'_>, request: &'a Request, lane: &'a Lane) -> Result<Self, Fault> {
        Ok(Self {
            id: row.get(Column::Id as usize)?,
            message_type: Cow::Owned(row.get(Column::MessageType as usize)?),
            lane: Cow::Borrowed(lane),
            method: Cow::Borrowed(&request.method),
            path: Cow::Borrowed(&request.path),
            headers: Cow::Borrowed(&request.headers),
            encoding: request.body.encoding,
            touches: Cow::Owned(rows::touches(row, Column::Touches as usize)?),
            items: row.get(Column::Items as usize)?,
            project: row.get::<_, Option<String>>(Column::Project as usize)?.map(Cow::Owned),
            accepted_at_ms: row.get(Column::AcceptedAt as usize)?,
        })
    }

    /// Returns the checksum of the message with this body, as sent.
    pub(super) fn checksum(&self, body: &[u8]) -> i64 {
        self.checksum_with(&self.headers.to_wire(), &Touch::to_bytes(&self.touches), body)
    }

    /// The same, with headers and touches that are encoded already.
    fn checksum_with(&self, headers: &[u8], touches: &[u8], body: &[u8]) -> i64 {
        let mut crc = Crc::new();
        let mut part = |bytes: Option<&[u8]>| {
            // The lengths make it unambiguous where one part ends and the next one begins.
            crc.update(&bytes.map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
            crc.update(bytes.unwrap_or_default());
        };
        part(Some(&self.id.to_le_bytes()));
        part(Some(self.message_type.as_bytes()));
        part(self.lane.workspace.as_deref().map(str::as_bytes));
        part(self.lane.credential.as_ref().map(|credential| credential.reveal()));
        part(Some(self.method.as_bytes()));
        part(Some(self.path.as_bytes()));
        part(Some(headers));
        part(Some(&[rows::encoding_code(self.encoding)]));
        part(Some(touches));
        part(Some(&self.items.to_le_bytes()));
        part(self.project.as_deref().map(str::as_bytes));
        part(Some(&self.accepted_at_ms.to_le_bytes()));
        part(Some(body));
        i64::from(crc.sum())
    }

    /// Returns what the seal of the body covers beside it.
    fn destination(&self) -> Destination<'_> {
        let encoding = i64::from(rows::encoding_code(self.encoding));
        Destination { encoding, method: &self.method, path: &self.path }
    }
}

/// A message as it is stored.
pub(super) struct Record<'a> {
    pub(super) content: MessageContent<'a>,
    pub(super) status: MessageStatus,
    /// Where it comes in the delivery order of its lane.
    pub(super) position: i64,
    pub(super) attempts: i64,
    pub(super) answer: Option<Cow<'a, LastAnswer>>,
    /// Bytes of the body as sent, and of the attachment's file.
    pub(super) body_bytes: i64,
}

/// The rows that a record refers to.
#[derive(Clone, Copy)]
pub(super) struct RowKeys {
    pub(super) lane: i64,
    pub(super) header_set: i64,
}

/// Stores records in one transaction: what their rows have in common is prepared once.
pub(super) struct Inserter<'tx> {
    tx: &'tx Transaction<'tx>,
    sealer: &'tx Sealer,
    row: CachedStatement<'tx>,
    body: CachedStatement<'tx>,
    touch: CachedStatement<'tx>,
    /// The headers of the last record, which most others share, as the checksum covers them.
    headers: (HeaderSet, Vec<u8>),
}

impl<'tx> Inserter<'tx> {
    pub(super) fn new(tx: &'tx Transaction<'tx>, sealer: &'tx Sealer) -> Result<Self, Fault> {
        let (row, body) = (tx.prepare_cached(INSERT)?, tx.prepare_cached(INSERT_BODY)?);
        let (touch, headers) = (tx.prepare_cached(queries::ADD_TOUCH)?, Default::default());
        Ok(Self { tx, sealer, row, body, touch, headers })
    }

    /// Stores a message with a body that was packed from `sent`.
    pub(super) fn insert(
        &mut self,
        record: &Record<'_>,
        keys: RowKeys,
        packed: &Packed,
        sent: &[u8],
    ) -> Result<(), Fault> {
        let content = &record.content;
        let touches = Touch::to_bytes(&content.touches);
        if self.headers.0 != *content.headers {
            self.headers = (HeaderSet::clone(&content.headers), content.headers.to_wire());
        }
        let checksum = content.checksum_with(&self.headers.1, &touches, sent);
        self.insert_row(record, keys, &touches)?;
        self.insert_body(content, packed, checksum)?;
        self.insert_touches(content)
    }

    /// Stores a message with a body that is compressed already, with its checksum.
    pub(super) fn insert_kept(&mut self, record: &Record<'_>, keys: RowKeys, body: KeptBody<'_>) -> Result<(), Fault> {
        let content = &record.content;
        self.insert_row(record, keys, &Touch::to_bytes(&content.touches))?;
        let kept = self.sealer.seal_body(content.id, &content.destination(), body)?;
        self.body.execute(params![content.id, &kept.bytes[..], kept.codec, kept.checksum])?;
        self.insert_touches(content)
    }

    /// Stores the row of the message. Its body and its index entries follow in the same transaction.
    fn insert_row(&mut self, record: &Record<'_>, keys: RowKeys, touches: &[u8]) -> Result<(), Fault> {
        let (sealer, Record { content, status, position, attempts, answer, body_bytes }) = (self.sealer, record);
        let answer = answer.as_deref();
        let context = SealContext::Answer { message: content.id };
        let (next_attempt_at_ms, claim_epoch): (i64, Option<i64>) = (0, None);
        self.row.execute(params![
            content.id,
            status.code(),
            content.message_type,
            keys.lane,
            position,
            content.accepted_at_ms,
            attempts,
            next_attempt_at_ms,
            claim_epoch,
            answer.map(|answer| answer.at_ms),
            answer.and_then(|answer| answer.status),
            answer.map(|answer| sealer.seal_text(&context, answer.text_kept())).transpose()?,
            content.items,
            body_bytes,
            content.project,
            content.method,
            sealer.seal_path(content.id, &content.path)?,
            keys.header_set,
            rows::encoding_code(content.encoding),
            touches,
        ])?;
        Ok(())
    }

    /// Seals the body where the store is encrypted, and stores it.
    fn insert_body(&mut self, content: &MessageContent<'_>, packed: &Packed, checksum: i64) -> Result<(), Fault> {
        let (id, to) = (content.id, content.destination());
        let kept = match packed.is_streamed() {
            true => match self.sealer.seal_streamed(id, &to, packed, checksum)? {
                Some(kept) => kept,
                None => {
                    let none: Option<i64> = None;
                    self.body.execute(params![id, large::room_of_stream(packed), packed.codec as i64, none])?;
                    return large::stream(self.tx, id, packed, checksum);
                }
            },
            false => {
                let bytes = packed.bytes.as_ref().into();
                let plain = KeptBody { bytes, codec: packed.codec as i64, checksum: Some(checksum) };
                self.sealer.seal_body(id, &to, plain)?
            }
        };
        match large::is_large(&kept.bytes) {
            true => {
                let room = large::room_of(kept.bytes.len());
                self.body.execute(params![id, room, kept.codec, kept.checksum])?;
                large::write(self.tx, id, &kept.bytes)
            }
            false => {
                self.body.execute(params![id, &kept.bytes[..], kept.codec, kept.checksum])?;
                Ok(())
            }
        }
    }

    /// Adds the index entries of a message.
    fn insert_touches(&mut self, content: &MessageContent<'_>) -> Result<(), Fault> {
        for touch in content.touches.iter().filter(|touch| touch_index::is_indexed(touch)) {
            self.touch.execute(params![touch.effect as u8, &touch.key.as_bytes()[..], content.id])?;
        }
        Ok(())
    }
}

/// Returns the position of a message in its lane unless it is an early update. One position stays free after every
/// message.
pub(super) fn position_of(id: i64) -> i64 {
    2 * id
}

/// The columns that a part of a divided message inherits from the whole.
pub(super) struct Inherited {
    pub(super) message_type: String,
    pub(super) lane: i64,
    pub(super) position: i64,
    pub(super) accepted_at_ms: i64,
    pub(super) attempts: i64,
    pub(super) project: Option<String>,
}

impl Inherited {
    /// Reads what the parts of this message inherit.
    pub(super) fn read(tx: &Transaction<'_>, whole: MessageId) -> Result<Self, Fault> {
        Ok(tx.prepare_cached(SELECT)?.query_row([whole.0], |row| {
            Ok(Self {
                message_type: row.get(Column::MessageType as usize)?,
                lane: row.get(Column::Lane as usize)?,
                position: row.get(Column::Position as usize)?,
                accepted_at_ms: row.get(Column::AcceptedAt as usize)?,
                attempts: row.get(Column::Attempts as usize)?,
                project: row.get(Column::Project as usize)?,
            })
        })?)
    }
}

/// Keeps the last answer to a message.
pub(super) fn keep_answer(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    id: MessageId,
    answer: &LastAnswer,
) -> Result<(), Fault> {
    let text = sealer.seal_text(&SealContext::Answer { message: id.0 }, answer.text_kept())?;
    tx.prepare_cached(UPDATE_ANSWER)?.execute(params![id.0, answer.status, text, answer.at_ms])?;
    Ok(())
}

/// Re-encrypts or decrypts the texts of a message to match the sealer.
pub(super) fn reseal_texts(tx: &Transaction<'_>, sealer: &Sealer, id: i64) -> Result<(), Fault> {
    let context = SealContext::Answer { message: id };
    let (path, answer) = {
        let mut statement = tx.prepare_cached(SELECT)?;
        let mut found = statement.query([id])?;
        let Some(row) = found.next()? else { return Ok(()) };
        let answer = sealer.text(&context, row.get_ref(Column::AnswerText as usize)?)?;
        (sealer.path(id, row.get_ref(Column::Path as usize)?)?, answer)
    };
    let answer = answer.as_ref().map(|answer| sealer.seal_text(&context, answer)).transpose()?;
    tx.prepare_cached(UPDATE_TEXTS)?.execute(params![id, sealer.seal_path(id, &path)?, answer])?;
    Ok(())
}

/// Re-encrypts or decrypts the body of a message to match the sealer.
pub(super) fn reseal_body(tx: &Transaction<'_>, sealer: &Sealer, id: i64) -> Result<(), Fault> {
    let (bytes, codec, checksum) = {
        let mut statement = tx.prepare_cached(SELECT_BODY)?;
        let mut found = statement.query([id])?;
        let Some(row) = found.next()? else { return Ok(()) };
        let method: String = row.get(Column::Method as usize)?;
        let path = sealer.path(id, row.get_ref(Column::Path as usize)?)?;
        let to = Destination { encoding: row.get(Column::Encoding as usize)?, method: &method, path: &path };
        let kept = sealer.seal_body(id, &to, sealer.open_body(id, &to, kept_body(row)?)?)?;
        (kept.bytes.into_owned(), kept.codec, kept.checksum)
    };
    tx.prepare_cached(UPDATE_BODY)?.execute(params![id, bytes, codec, checksum])?;
    Ok(())
}

/// Replaces the checksum of a message that goes to another lane: the checksum covers whose message it is. A message of
/// a version that stored no checksum gets none.
pub(super) fn move_to_lane(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    id: i64,
    request: &Request,
    lane: &Lane,
) -> Result<(), Fault> {
    let (kept, checksum, encoding) = {
        let mut statement = tx.prepare_cached(SELECT_BODY)?;
        let mut found = statement.query([id])?;
        let Some(row) = found.next()? else { return Ok(()) };
        let encoding = row.get(Column::Encoding as usize)?;
        let to = Destination { encoding, method: &request.method, path: &request.path };
        let opened = sealer.open_body(id, &to, kept_body(row)?)?;
        if large::checksum_of(&opened).is_none() {
            return Ok(());
        }
        let checksum = MessageContent::read(row, request, lane)?.checksum(&request.body.bytes);
        (KeptBody { bytes: opened.bytes.into_owned().into(), ..opened }, checksum, encoding)
    };
    let to = Destination { encoding, method: &request.method, path: &request.path };
    let kept = sealer.seal_body(id, &to, KeptBody { checksum: Some(checksum), ..kept })?;
    tx.prepare_cached(UPDATE_BODY)?.execute(params![id, &kept.bytes[..], kept.codec, kept.checksum])?;
    Ok(())
}

/// Reads the body of a row of [`SELECT_BODY`].
fn kept_body<'row>(row: &'row Row<'_>) -> Result<KeptBody<'row>, Fault> {
    let bytes = row.get_ref(COLUMNS)?.as_blob().map_err(rusqlite::Error::from)?;
    Ok(KeptBody { bytes: bytes.into(), codec: row.get(COLUMNS + 1)?, checksum: row.get(COLUMNS + 2)? })
}

/// A row of `messages` that a recovery found. Nothing in it is trusted before the checksum is verified.
#[derive(Clone, Copy)]
pub(super) struct FoundRow<'v>(&'v [ColumnValue]);

impl<'v> FoundRow<'v> {
    /// Returns the row, or `None` when it has other columns than a row of `messages`.
    pub(super) fn of(row: &'v [ColumnValue]) -> Option<Self> {
        may_have_columns(row.len()).then_some(Self(row))
    }

    /// Returns a column; `Null` if the row is older than the column.
    pub(super) fn column(self, column: Column) -> &'v ColumnValue {
        const MISSING: &ColumnValue = &ColumnValue::Null;
        self.0.get(column as usize).unwrap_or(MISSING)
    }

    pub(super) fn message_type(self) -> Option<MessageType> {
        MessageType::from_name(self.column(Column::MessageType).text()?)
    }

    /// Returns what the seal of the body covers beside it. The path may be sealed itself, and is opened by the caller.
    pub(super) fn destination<'a>(self, path: &'a str) -> Option<Destination<'a>>
    where
        'v: 'a,
    {
        let encoding = self.column(Column::Encoding).integer()?;
        rows::encoding_of(encoding)?;
        Some(Destination { encoding, method: self.column(Column::Method).text()?, path })
    }

    /// Returns the record, without its lane and headers: a damaged file may have several candidates for them.
    pub(super) fn record(self, id: i64, sealer: &Sealer, path: String) -> Option<Record<'static>> {
        let project = match self.column(Column::Project) {
            ColumnValue::Null => None,
            project => Some(Cow::Owned(project.text()?.to_owned())),
        };
        let content = MessageContent {
            id,
            message_type: Cow::Borrowed(self.message_type()?.name()),
            lane: Cow::Owned(Lane::default()),
            method: Cow::Owned(self.column(Column::Method).text()?.to_owned()),
            path: Cow::Owned(path),
            headers: Cow::Owned(HeaderSet::default()),
            encoding: rows::encoding_of(self.column(Column::Encoding).integer()?)?,
            touches: Cow::Owned(Touch::from_bytes(self.column(Column::Touches).blob()?)?),
            items: u32::try_from(self.column(Column::Items).integer()?).ok()?,
            project,
            accepted_at_ms: self.column(Column::AcceptedAt).integer()?,
        };
        // Not covered: each falls back to a harmless value.
        let status = match self.column(Column::Status).integer().and_then(MessageStatus::from_code) {
            Some(refused @ (MessageStatus::Rejected | MessageStatus::Held)) => refused,
            _ => MessageStatus::Failed,
        };
        let attempts = self.column(Column::Attempts).integer().and_then(|attempts| u32::try_from(attempts).ok());
        let body_bytes = u64::try_from(self.column(Column::BodyBytes).integer()?).ok()?;
        Some(Record {
            content,
            status,
            position: position_of(id),
            attempts: attempts.unwrap_or(0).into(),
            answer: self.answer(id, sealer).map(Cow::Owned),
            body_bytes: i64::try_from(body_bytes).unwrap_or(i64::MAX),
        })
    }

    fn answer(self, id: i64, sealer: &Sealer) -> Option<LastAnswer> {
        let at_ms = self.column(Column::AnswerAt).integer()?;
        let status = self.column(Column::AnswerStatus).integer().and_then(|status| u16::try_from(status).ok());
        let text = sealer.text(&SealContext::Answer { message: id }, self.column(Column::AnswerText).as_column());
        Some(LastAnswer { at_ms, status, text: text.ok().flatten().unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use rusqlite::Connection;

    use super::*;
    use crate::store::sqlite::schema;

    /// The columns that queries filter, sort or update messages by, and so name beside this file and the schema. A
    /// column that is only stored and read belongs to neither: adding one changes two files.
    const QUERIED: &[(&str, &str)] = &[
        ("accepted_at_ms", "filters by age, and the age of the oldest message"),
        ("answer_at_ms", "the held message that was refused longest ago is retried first"),
        ("answer_status", "rejected messages are counted by the server's answer"),
        ("answer_text", "texts that are not sealed as the settings ask are found"),
        ("attempts", "counted up when a message fails, reset when it is requeued"),
        ("body_bytes", "compared with the body by `check`"),
        ("claim_epoch", "an outcome settles a claim of its own lease only"),
        ("header_set_id", "header sets that no message uses are removed"),
        ("items", "summed over the messages that a filter selects"),
        ("lane_id", "messages are claimed, listed and moved by lane"),
        ("message_type", "filters by type"),
        ("method", "a message that cannot be sent is not requeued"),
        ("next_attempt_at_ms", "set when a message fails, reset when it becomes due"),
        ("path", "paths that are not sealed as the settings ask are found"),
        ("position", "the delivery order"),
        ("project", "filters by project"),
        ("status", "the state of a message"),
        ("touches", "filters by entity, and what waits for what"),
    ];

    fn columns_of_the_schema() -> Vec<String> {
        let mut connection = Connection::open_in_memory().expect("memory");
        schema::migrate(&mut connection).expect("a schema");
        let mut statement = connection.prepare("PRAGMA table_info(messages)").expect("a table");
        let names = statement.query_map([], |row| row.get(1)).expect("its columns");
        names.collect::<rusqlite::Result<_>>().expect("names")
    }

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }

    /// Returns the string literals that read or write `messages`, without those of tests. Every condition of a filter
    /// is one.
    fn statements_about_messages<'source>(file: &str, source: &'source str) -> Vec<&'source str> {
        let code = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let literals = code.split('"').skip(1).step_by(2);
        let tables = ["FROM messages", "INTO messages", "UPDATE messages", "JOIN messages", "FROM {source}"];
        let is_condition = file == "queries/selection.rs";
        literals.filter(|literal| is_condition || tables.iter().any(|table| literal.contains(table))).collect()
    }

    fn names(statement: &str, column: &str) -> bool {
        statement.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == column)
    }

    #[test]
    fn a_column_is_a_change_in_this_file_and_its_migration() {
        let columns = columns_of_the_schema();
        let listed: Vec<&str> = columns!().split(',').map(str::trim).collect();
        assert_eq!(listed, columns, "the schema has other columns than `columns!` selects");
        assert_eq!(columns.len(), COLUMNS, "a column is missing in `Column`");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/sqlite");
        let mut inserts = Vec::new();
        let mut queried = Vec::new();
        for path in sources(&folder).into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs")) {
            let source = fs::read_to_string(&path).expect("it can be read");
            let file = path.strip_prefix(&folder).expect("it is inside").to_string_lossy().into_owned();
            for statement in statements_about_messages(&file, &source) {
                if statement.contains("INTO messages") {
                    inserts.push(file.clone());
                }
                if file != "record.rs" && file != "schema.rs" {
                    let named = columns.iter().filter(|column| *column != "message_id" && names(statement, column));
                    queried.extend(named.map(|column| (column.clone(), file.clone())));
                }
            }
        }
        assert_eq!(inserts, ["record.rs"], "messages are inserted in more than one place");
        for (column, file) in &queried {
            assert!(
                QUERIED.iter().any(|(known, _)| known == column) && file.starts_with("queries/"),
                "{file} names the column {column}: read it through `Record`, or add it to the queries with a reason"
            );
        }
        for (column, _) in QUERIED {
            assert!(queried.iter().any(|(named, _)| named == column), "no query names {column}: remove its entry");
        }
    }
}
