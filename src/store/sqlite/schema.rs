//! Tables and migrations.
//!
//! `user_version` counts the migrations that were applied to a file. A released migration is never edited: a change is
//! a new migration at the end of the list.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

/// The columns of `messages` in the order of the schema: a new column is added to the first arm, after `touches`.
///
/// The other arms are what queries return of a message: `listed` leaves out what no list shows and what is large,
/// `counted` is what the summary counts it by ([`super::summary::counted`]), `deleted` is what its deletion needs to
/// know beside that ([`super::delete::Deletion`]), and `waiting` is what a claim looks at ([`super::claim`]).
macro_rules! columns {
    () => {
        concat!(columns!(listed), ", touches")
    };
    (listed) => {
        "message_id, status, message_type, lane_id, position, accepted_at_ms, attempts, next_attempt_at_ms, claim_epoch,
        answer_at_ms, answer_status, answer_text, items, body_bytes, project, method, path, header_set_id, encoding"
    };
    (counted) => {
        "lane_id, status, message_type, answer_status, items, body_bytes"
    };
    (counted $status:literal) => {
        concat!("lane_id, ", $status, ", message_type, NULL, items, body_bytes")
    };
    (deleted) => {
        concat!(columns!(counted), ", touches, message_id")
    };
    (waiting) => {
        "message_id, next_attempt_at_ms, touches, message_type, items, body_bytes, attempts, position"
    };
}
pub(super) use columns;

use crate::store::error::StoreError;

/// Marks the file as ours (`OpOf` in ASCII); the Python SDK and most other programs leave it 0.
pub(crate) const APPLICATION_ID: i32 = 0x4f70_4f66;

/// Bytes of a page in a new store.
pub(super) const PAGE_BYTES: u32 = 4096;

const MIGRATIONS: [&str; 12] = [
    MESSAGES_LANES_AND_LEASE,
    ALL_CHANGES_INDEXED,
    ATTACHMENTS,
    SALVAGED,
    BODY_CODEC,
    CHECKSUMS_AND_RECOVERIES,
    HELD_AT,
    SEALING,
    DESTINATIONS,
    UPDATES_AHEAD_AND_LIMITS,
    HELD_MESSAGES,
    STREAMS,
];

/// Version 1.
///
/// - `messages` starts with the SDK's columns and holds everything that changes, is listed or is counted; `bodies`
///   holds the bytes. A status change rewrites a row, and a list reads many: both should cost a hundred bytes per
///   message, not its body. `position` is the delivery order within a lane: twice the id, or one more than the position
///   of the create behind which an early update was moved.
/// - `message_touches` finds creates, updates and ends by their entity, for the order of early updates. Other effects
///   need no look-up and would cost a page in every commit. Its key starts with the effect, so that one look-up tells
///   whether any update is stored at all, and so that adjacent UUIDv7 share pages.
/// - `summary` counts messages per lane, status, type and (rejected only, else 0) status of the server's answer, in the
///   transactions that change them.
/// - `lanes.credential_id` is 0 for a client that sends none; an empty one is a row of `credentials` like any other.
/// - `counters.deleted_id` is the highest id of a deleted message, so that no id is reused without a write per
///   registration.
const MESSAGES_LANES_AND_LEASE: &str = "
CREATE TABLE messages (
    message_id         INTEGER PRIMARY KEY,
    status             INTEGER NOT NULL,
    message_type       TEXT    NOT NULL,
    lane_id            INTEGER NOT NULL,
    position           INTEGER NOT NULL,
    accepted_at_ms     INTEGER NOT NULL,
    attempts           INTEGER NOT NULL,
    next_attempt_at_ms INTEGER NOT NULL,
    claim_epoch        INTEGER,
    answer_at_ms       INTEGER,
    answer_status      INTEGER,
    answer_text        TEXT,
    items              INTEGER NOT NULL,
    body_bytes         INTEGER NOT NULL,
    project            TEXT,
    method             TEXT    NOT NULL,
    path               TEXT    NOT NULL,
    header_set_id      INTEGER NOT NULL,
    encoding           INTEGER NOT NULL,
    touches            BLOB    NOT NULL
);
CREATE INDEX messages_waiting   ON messages (lane_id, position) WHERE status = 3;
CREATE INDEX messages_in_flight ON messages (lane_id)           WHERE status = 1;
CREATE INDEX messages_rejected  ON messages (status)            WHERE status = 4;

CREATE TABLE bodies (
    message_id INTEGER PRIMARY KEY,
    body       BLOB NOT NULL
);

CREATE TABLE message_touches (
    effect     INTEGER NOT NULL,
    entity     BLOB    NOT NULL,
    message_id INTEGER NOT NULL,
    PRIMARY KEY (effect, entity, message_id)
) WITHOUT ROWID;

CREATE TABLE lanes (
    lane_id       INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace     TEXT,
    credential_id INTEGER NOT NULL,
    held_until_ms INTEGER,
    hold_reason   TEXT,
    hold_probe    INTEGER,
    hold_passed   INTEGER
);
CREATE INDEX lanes_by_client ON lanes (credential_id, workspace);

CREATE TABLE credentials (
    credential_id INTEGER PRIMARY KEY,
    value         BLOB NOT NULL UNIQUE
);

CREATE TABLE header_sets (
    header_set_id INTEGER PRIMARY KEY,
    wire          BLOB NOT NULL UNIQUE
);

CREATE TABLE summary (
    lane_id       INTEGER NOT NULL,
    status        INTEGER NOT NULL,
    message_type  TEXT    NOT NULL,
    answer_status INTEGER NOT NULL,
    messages      INTEGER NOT NULL,
    items         INTEGER NOT NULL,
    body_bytes    INTEGER NOT NULL,
    PRIMARY KEY (lane_id, status, message_type, answer_status)
) WITHOUT ROWID;

CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO counters VALUES ('deleted_id', 0), ('dropped', 0), ('header_sets_swept_next', 256);

CREATE TABLE lease (
    lease_id      INTEGER PRIMARY KEY CHECK (lease_id = 1),
    epoch         INTEGER NOT NULL,
    role          TEXT,
    pid           INTEGER,
    nonce         TEXT,
    boot          TEXT,
    pid_namespace TEXT,
    granted_at_ms INTEGER,
    until_ms      INTEGER
);
INSERT INTO lease (lease_id, epoch) VALUES (1, 0);

CREATE TABLE agents (
    pid           INTEGER PRIMARY KEY,
    listen        TEXT    NOT NULL,
    upstream      TEXT    NOT NULL,
    started_at_ms INTEGER NOT NULL
);

CREATE TABLE last_replay (
    replay_id     INTEGER PRIMARY KEY CHECK (replay_id = 1),
    role          TEXT    NOT NULL,
    started_at_ms INTEGER NOT NULL,
    ended_at_ms   INTEGER NOT NULL,
    delivered     INTEGER NOT NULL,
    rejected      INTEGER NOT NULL,
    remaining     INTEGER NOT NULL
);
";

/// Version 2.
///
/// `message_touches` also has the touches that add to an entity (scores, results), so that it shows if a new write
/// would overtake anything. It lacks those of messages up to the id in `counters.annotations_indexed_after`: while one
/// of these waits in a lane, nothing overtakes.
const ALL_CHANGES_INDEXED: &str = "
INSERT INTO counters SELECT 'annotations_indexed_after', coalesce(max(message_id), 0) FROM messages;
";

/// Version 3.
///
/// - `attachments` has a row per file: of a message, being uploaded by a process, or released; see
///   [`super::attachments`]. Its ids are never reused, so that a writer that was presumed dead cannot write into
///   another file. `grown_at_ms` is a reading of the clock that leases expire on.
/// - `attachment_pieces` holds the bytes. They count in the `body_bytes` of their message, beside its body.
const ATTACHMENTS: &str = "
CREATE TABLE attachments (
    attachment_id INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id    INTEGER UNIQUE,
    bytes         INTEGER NOT NULL,
    sha256        BLOB,
    process       TEXT,
    pid           INTEGER,
    pid_namespace TEXT,
    boot          TEXT,
    grown_at_ms   INTEGER
);

CREATE TABLE attachment_pieces (
    piece_id INTEGER PRIMARY KEY,
    piece    BLOB NOT NULL
);
";

/// Version 4.
///
/// - `salvaged` has the digest of every row that was ever taken from an SDK's file: 32 bytes per row, so that it is
///   sent only once.
const SALVAGED: &str = "
CREATE TABLE salvaged (
    digest BLOB PRIMARY KEY
) WITHOUT ROWID;
";

/// Version 5.
///
/// - `bodies.codec` records how the bytes of a body are encoded ([`super::codec`]); those that exist already are stored
///   as sent.
const BODY_CODEC: &str = "ALTER TABLE bodies ADD COLUMN codec INTEGER NOT NULL DEFAULT 0";

/// Version 6.
///
/// - `bodies.checksum` covers the message with its body ([`super::record`]); NULL for those that exist already.
/// - `recoveries` has a row for every damaged file that this store was recovered from, with its path.
/// - `counters.expired` counts messages that were dropped because they expired.
const CHECKSUMS_AND_RECOVERIES: &str = "
ALTER TABLE bodies ADD COLUMN checksum INTEGER;
CREATE TABLE recoveries (
    recovery_id INTEGER PRIMARY KEY,
    at_ms       INTEGER NOT NULL,
    set_aside   BLOB    NOT NULL,
    reason      TEXT    NOT NULL,
    recovered   INTEGER NOT NULL,
    lost        INTEGER NOT NULL
);
INSERT INTO counters VALUES ('expired', 0);
";

/// Version 7.
///
/// - `lanes.held_at_ms` is the wall-clock time at which the hold was made: an earlier clock was set back.
const HELD_AT: &str = "ALTER TABLE lanes ADD COLUMN held_at_ms INTEGER";

/// Version 8.
///
/// - `sealing` records which key values are sealed with, and which previous key some may still be sealed with; see
///   [`super::seal`].
/// - `credentials` and `header_sets` of a sealed store are looked up by a digest, which replaces the value; the value
///   itself is in `sealed`.
/// - Rows that a recovery cannot do without are stored a second time in an index, in another page.
/// - A sealed body has a codec of its own, a sealed text is a blob, and a sealed digest is longer than a digest.
const SEALING: &str = "
CREATE TABLE sealing (
    sealing_id     INTEGER PRIMARY KEY CHECK (sealing_id = 1),
    generation     INTEGER NOT NULL,
    key_name       BLOB,
    key_check      BLOB,
    previous_name  BLOB,
    previous_check BLOB,
    is_complete    INTEGER NOT NULL
);
INSERT INTO sealing VALUES (1, 0, NULL, NULL, NULL, NULL, 1);
ALTER TABLE credentials ADD COLUMN sealed BLOB;
ALTER TABLE header_sets ADD COLUMN sealed BLOB;
CREATE INDEX credentials_again ON credentials (value, sealed) WHERE sealed IS NOT NULL;
CREATE INDEX header_sets_again ON header_sets (wire, sealed) WHERE sealed IS NOT NULL;
CREATE INDEX sealing_again ON sealing
    (generation, key_name, key_check, previous_name, previous_check, is_complete);
ALTER TABLE attachment_pieces ADD COLUMN is_sealed INTEGER NOT NULL DEFAULT 0;
";

/// Version 9.
///
/// - `lanes.server` is the base URL of the server that the lane's messages were accepted for; NULL for those of an
///   earlier version. `lanes.server_check` is its CRC-32: a damaged URL must not send a key to another host
///   ([`super::lanes`]). The look-up index has both, so that a recovery finds them in two places.
/// - `lanes.hold_status` is the status of the answer that caused the hold; NULL if there was none.
/// - `adoption` has a row for every server that adopted messages of earlier versions.
const DESTINATIONS: &str = "
ALTER TABLE lanes ADD COLUMN server TEXT;
ALTER TABLE lanes ADD COLUMN server_check INTEGER;
ALTER TABLE lanes ADD COLUMN hold_status INTEGER;
DROP INDEX lanes_by_client;
CREATE INDEX lanes_by_client ON lanes (credential_id, workspace, server, server_check);
CREATE TABLE adoption (
    adoption_id INTEGER PRIMARY KEY,
    at_ms       INTEGER NOT NULL,
    server      TEXT    NOT NULL,
    messages    INTEGER NOT NULL
);
";

/// Version 10.
///
/// Updates that reached the server before their create, and limits per bucket.
///
/// - `updated_ahead` has the traces and spans of which an update reached the server, or may have, before any known
///   create; see [`super::ahead`]. `place` identifies the workspace ([`crate::message::Lane::place`]).
/// - `counters.updated_ahead` is the number of notes, and an entity whose id was made before
///   `updated_ahead_unsure_before` may have lost its note.
/// - `limits` has the rate limit of a lane's bucket ([`crate::message::Bucket`]).
const UPDATES_AHEAD_AND_LIMITS: &str = "
CREATE TABLE updated_ahead (
    entity BLOB    NOT NULL,
    place  INTEGER NOT NULL,
    at_ms  INTEGER NOT NULL,
    PRIMARY KEY (entity, place)
) WITHOUT ROWID;
CREATE INDEX updated_ahead_by_time ON updated_ahead (at_ms);
INSERT INTO counters VALUES ('updated_ahead', 0), ('updated_ahead_unsure_before', 0);

CREATE TABLE limits (
    lane_id    INTEGER NOT NULL,
    bucket     INTEGER NOT NULL,
    until_ms   INTEGER NOT NULL,
    reason     TEXT    NOT NULL,
    held_at_ms INTEGER NOT NULL,
    PRIMARY KEY (lane_id, bucket)
) WITHOUT ROWID;
";

/// Version 11.
///
/// - Status 5 is *held*; `messages_held` finds which of a lane was refused longest ago.
/// - `counters.unstranded` changes whenever a waiting message may have become free that was stranded behind a refused
///   create, so that a process can remember where the stranded messages at the head of a lane end
///   ([`super::stranded`]).
const HELD_MESSAGES: &str = "
INSERT INTO counters VALUES ('unstranded', 0);
CREATE INDEX messages_held ON messages (lane_id, answer_at_ms) WHERE status = 5;
";

/// Version 12.
///
/// Messages with a copy in a depot; see [`super::shipped`].
///
/// - `streams` has the streams that are not finished. `name` is the stream's UUID, `state` is 1 while this store delivers
///   it, and 2 once a replayer does.
/// - `shipped` has the messages of their bundles whose fate the depot does not know yet. `origin` is the id under which
///   the depot knows the message, and `is_part` whether this is a part of it. A bundle from `streams.next_bundle` on may
///   be in the depot or not. `NULL`: the copy is not in a bundle, but in the mark of the whole.
const STREAMS: &str = "
CREATE TABLE streams (
    stream_id       INTEGER PRIMARY KEY,
    name            BLOB    NOT NULL UNIQUE,
    depot           TEXT    NOT NULL,
    state           INTEGER NOT NULL,
    epoch           INTEGER NOT NULL,
    next_bundle     INTEGER NOT NULL,
    shipped_through INTEGER NOT NULL,
    began_at_ms     INTEGER NOT NULL
);
CREATE TABLE shipped (
    message_id INTEGER PRIMARY KEY,
    stream_id  INTEGER NOT NULL,
    origin     INTEGER NOT NULL,
    is_part    INTEGER NOT NULL,
    bundle     INTEGER
);
CREATE INDEX shipped_by_bundle ON shipped (stream_id, bundle);
";

/// Returns the newest version that we know.
pub(super) fn known_version() -> i64 {
    MIGRATIONS.len() as i64
}

/// Returns the version of this file, 0 for a new one.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Returns the version that this transaction sees, as [`version`] does; the statement is prepared once.
pub(super) fn version_seen(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("PRAGMA user_version")?.query_row([], |row| row.get(0))
}

/// Migrates the file to the newest version, one transaction per step: after a crash it has one version or the next.
///
/// Other processes may migrate at the same time; every step checks the version again under the write lock.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    while version(connection)? < known_version() {
        let step = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = version(&step)?;
        if done < 0 {
            // No version writes that, and no step would change it.
            return Err(rusqlite::Error::IntegralValueOutOfRange(0, done));
        }
        if let Some(migration) = usize::try_from(done).ok().and_then(|done| MIGRATIONS.get(done)) {
            step.execute_batch(migration)?;
            step.pragma_update(None, "application_id", APPLICATION_ID)?;
            step.pragma_update(None, "user_version", done + 1)?;
        }
        step.commit()?;
    }
    Ok(())
}

pub(super) fn refuse_newer(path: &Path, found: i64) -> Result<(), StoreError> {
    let known = known_version();
    if found > known { Err(StoreError::NewerSchema { at: path.into(), found, known }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_version_is_damage() {
        let mut connection = Connection::open_in_memory().expect("a database");
        connection.pragma_update(None, "user_version", -1_i64).expect("a flipped bit");
        assert!(migrate(&mut connection).is_err());
    }

    #[test]
    fn bodies_from_before_compression_are_read_as_sent() {
        let mut connection = Connection::open_in_memory().expect("memory");
        connection.execute_batch(MESSAGES_LANES_AND_LEASE).expect("the first schema");
        connection.execute_batch("INSERT INTO bodies VALUES (1, x'7b7d'); PRAGMA user_version = 1").expect("a body");
        migrate(&mut connection).expect("the newest schema");
        let kept: (Vec<u8>, i64) = connection
            .query_row("SELECT body, codec FROM bodies", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .expect("the body is still there");
        assert_eq!(kept, (b"{}".to_vec(), super::super::codec::Codec::Plain as i64));
        assert_eq!(version(&connection).expect("a version"), known_version());
    }

    #[test]
    fn a_store_from_before_encryption_stays_plain() {
        let mut connection = Connection::open_in_memory().expect("memory");
        for step in &MIGRATIONS[..5] {
            connection.execute_batch(step).expect("an earlier schema");
        }
        let filled = "INSERT INTO credentials VALUES (1, 'key'); INSERT INTO header_sets VALUES (1, 'a: b');
            INSERT INTO attachment_pieces VALUES (1, 'piece'); PRAGMA user_version = 5";
        connection.execute_batch(filled).expect("rows");
        migrate(&mut connection).expect("the newest schema");
        let sealed: (i64, i64, i64, i64) = connection
            .query_row(
                "SELECT (SELECT count(*) FROM credentials WHERE value = 'key' AND sealed IS NULL),
                    (SELECT count(*) FROM header_sets WHERE wire = 'a: b' AND sealed IS NULL),
                    (SELECT count(*) FROM attachment_pieces WHERE NOT is_sealed),
                    (SELECT count(*) FROM sealing WHERE key_name IS NULL AND is_complete)",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
            )
            .expect("the rows are still there");
        assert_eq!(sealed, (1, 1, 1, 1));
    }
}
