//! The SQL, named after what it answers.
//!
//! Statements are constants, or put together from constants and the fixed fragments of [`Selection`]; values are always
//! bound, never written into the text. Where one answer can come from the summary or from the messages, [`Selection`]
//! says which.

use rusqlite::types::Value;
use rusqlite::{Statement, ToSql};

use crate::message::{MessageStatus, workspaces_named};
use crate::store::Filter;

// Lanes and header sets.

/// The number of a lane: workspace or NULL, credential or NULL, server or NULL.
pub(super) const LANE_ID: &str = "
    SELECT lane_id FROM lanes
    WHERE workspace IS ?1 AND server IS ?3 AND credential_id = CASE WHEN ?2 IS NULL THEN 0
        ELSE (SELECT credential_id FROM credentials WHERE value = ?2) END";
/// How many messages of a lane still have to reach the server, and how many the server refused, in one look at the store.
pub(super) const WAITING: &str = "
    SELECT coalesce(sum(CASE WHEN status IN (1, 3) THEN messages END), 0), (SELECT generation FROM sealing),
        coalesce(sum(CASE WHEN status IN (4, 5) THEN messages END), 0)
    FROM summary WHERE status IN (1, 3, 4, 5) AND lane_id = (
        SELECT lane_id FROM lanes
        WHERE workspace IS ?1 AND server IS ?3 AND credential_id = CASE WHEN ?2 IS NULL THEN 0
            ELSE (SELECT credential_id FROM credentials WHERE value = ?2) END)";
pub(super) const KEEP_CREDENTIAL: &str = "INSERT OR IGNORE INTO credentials (value, sealed) VALUES (?1, ?2)";
pub(super) const ADD_LANE: &str = "
    INSERT INTO lanes (workspace, credential_id, server, server_check) VALUES (?1, CASE WHEN ?2 IS NULL THEN 0
        ELSE (SELECT credential_id FROM credentials WHERE value = ?2) END, ?3, ?4)
    RETURNING lane_id";
/// Whose messages a lane has.
pub(super) const LANE: &str = "
    SELECT workspace, value, sealed, server, server_check
    FROM lanes LEFT JOIN credentials USING (credential_id) WHERE lane_id = ?1";
/// Every lane that has a message.
pub(super) const LANES: &str = "
    SELECT lane_id, coalesce(sum(messages) FILTER (WHERE status IN (1, 3)), 0),
        coalesce(sum(messages) FILTER (WHERE status IN (4, 5)), 0)
    FROM summary GROUP BY lane_id ORDER BY lane_id";
/// Lanes of earlier versions, which recorded no server.
pub(super) const LANES_WITHOUT_SERVER: &str = "
    SELECT lane_id, (SELECT coalesce(sum(messages), 0) FROM summary WHERE summary.lane_id = lanes.lane_id)
    FROM lanes WHERE server IS NULL";
/// The lane of the same client for server ?2.
pub(super) const SIBLING: &str = "
    SELECT lane_id FROM lanes WHERE server = ?2
        AND (workspace, credential_id) IS (SELECT workspace, credential_id FROM lanes WHERE lane_id = ?1)";
pub(super) const MERGE_MESSAGES: &str = "UPDATE messages SET lane_id = ?2 WHERE lane_id = ?1";
pub(super) const MERGE_SUMMARY: &str = "
    INSERT INTO summary SELECT ?2, status, message_type, answer_status, messages, items, body_bytes
    FROM summary WHERE lane_id = ?1
    ON CONFLICT DO UPDATE SET messages = messages + excluded.messages, items = items + excluded.items,
        body_bytes = body_bytes + excluded.body_bytes";
pub(super) const DROP_SUMMARY: &str = "DELETE FROM summary WHERE lane_id = ?1";
/// A hold is not taken along: nobody knows which server asked for it.
pub(super) const SET_SERVER: &str = "
    UPDATE lanes SET server = ?2, server_check = ?3, held_until_ms = NULL, hold_reason = NULL, hold_probe = NULL,
        hold_passed = NULL, held_at_ms = NULL, hold_status = NULL
    WHERE lane_id = ?1";
pub(super) const DROP_LIMITS: &str = "DELETE FROM limits WHERE lane_id = ?1";
pub(super) const DROP_LANE: &str = "DELETE FROM lanes WHERE lane_id = ?1";
pub(super) const NOTE_ADOPTION: &str = "INSERT INTO adoption (at_ms, server, messages) VALUES (?1, ?2, ?3)";
pub(super) const ADOPTIONS: &str = "SELECT at_ms, server, messages FROM adoption ORDER BY adoption_id";
/// Messages of a lane to give to another one, in any order; none in flight.
pub(super) const TO_REASSIGN: &str = "
    SELECT message_id FROM messages WHERE lane_id = ?1 AND status <> 1 ORDER BY message_id LIMIT ?2";
pub(super) const SET_LANE: &str = "
    UPDATE messages SET lane_id = ?2, next_attempt_at_ms = 0 WHERE message_id = ?1
    RETURNING lane_id, status, message_type, answer_status, items, body_bytes";
/// What a checksum covers of a message beside its lane, headers and body.
pub(super) const COVERED: &str = "
    SELECT message_type, items, project, accepted_at_ms, touches FROM messages WHERE message_id = ?1";
pub(super) const LANE_PLACE: &str = "SELECT workspace, server, server_check FROM lanes WHERE lane_id = ?1";
pub(super) const HEADER_SET_ID: &str = "SELECT header_set_id FROM header_sets WHERE wire = ?1";
pub(super) const ADD_HEADER_SET: &str =
    "INSERT INTO header_sets (wire, sealed) VALUES (?1, ?2) RETURNING header_set_id";
pub(super) const HEADER_SET: &str = "SELECT wire, sealed FROM header_sets WHERE header_set_id = ?1";
pub(super) const FORGET_HEADER_SETS: &str =
    "DELETE FROM header_sets WHERE header_set_id NOT IN (SELECT header_set_id FROM messages)";
/// The highest number of a header set, and how many there are.
pub(super) const HEADER_SETS: &str = "SELECT coalesce(max(header_set_id), 0), count(*) FROM header_sets";
pub(super) const HIGHEST_HEADER_SET: &str = "SELECT coalesce(max(header_set_id), 0) FROM header_sets";
/// Forgets lanes that hold nothing and whose hold is over at ?1.
pub(super) const FORGET_LANES: &str = "
    DELETE FROM lanes WHERE coalesce(held_until_ms, 0) <= ?1
        AND NOT EXISTS (SELECT 1 FROM summary WHERE summary.lane_id = lanes.lane_id)
        AND NOT EXISTS (SELECT 1 FROM limits WHERE limits.lane_id = lanes.lane_id AND until_ms > ?1)";
pub(super) const ANY_EMPTY_LANE: &str = "
    SELECT 1 FROM lanes WHERE coalesce(held_until_ms, 0) <= ?1
        AND NOT EXISTS (SELECT 1 FROM summary WHERE summary.lane_id = lanes.lane_id)
        AND NOT EXISTS (SELECT 1 FROM limits WHERE limits.lane_id = lanes.lane_id AND until_ms > ?1)";
pub(super) const ANY_UNUSED_CREDENTIAL: &str =
    "SELECT 1 FROM credentials WHERE credential_id NOT IN (SELECT credential_id FROM lanes)";
pub(super) const USED_CREDENTIALS: &str = "
    SELECT credential_id, value, sealed FROM credentials
    WHERE credential_id IN (SELECT credential_id FROM lanes)";
pub(super) const MESSAGES_IN_ALL: &str = "SELECT coalesce(sum(messages), 0) FROM summary";
pub(super) const ANY_UNUSED_HEADER_SET: &str =
    "SELECT 1 FROM header_sets WHERE header_set_id NOT IN (SELECT header_set_id FROM messages)";
pub(super) const USED_HEADER_SETS: &str = "
    SELECT header_set_id, wire, sealed FROM header_sets
    WHERE header_set_id IN (SELECT header_set_id FROM messages)";
pub(super) const CLEAR_HEADER_SETS: &str = "DELETE FROM header_sets";
pub(super) const PUT_HEADER_SET_BACK: &str =
    "INSERT INTO header_sets (header_set_id, wire, sealed) VALUES (?1, ?2, ?3)";
/// Without a condition, so that SQLite clears whole pages.
pub(super) const CLEAR_CREDENTIALS: &str = "DELETE FROM credentials";
pub(super) const PUT_CREDENTIAL_BACK: &str =
    "INSERT INTO credentials (credential_id, value, sealed) VALUES (?1, ?2, ?3)";
/// Forgets the limits of lanes that were forgotten.
pub(super) const FORGET_LIMITS: &str = "DELETE FROM limits WHERE lane_id NOT IN (SELECT lane_id FROM lanes)";

// Sealing.

pub(super) const HAS_SEALING: &str = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'sealing'";
/// Read from the header of the file: one page that every transaction has in its cache.
pub(super) const SCHEMA_VERSION: &str = "PRAGMA user_version";
pub(super) const SEALING_GENERATION: &str = "SELECT generation FROM sealing";
pub(super) const SEALING: &str =
    "SELECT generation, key_name, key_check, previous_name, previous_check, is_complete FROM sealing";
pub(super) const SET_SEALING: &str = "INSERT OR REPLACE INTO sealing VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6)";
/// Whether anything was ever stored, be it gone by now.
pub(super) const EVER_USED: &str = "
    SELECT 1 FROM counters WHERE name = 'deleted_id' AND value > 0
    UNION ALL SELECT 1 FROM messages UNION ALL SELECT 1 FROM header_sets UNION ALL SELECT 1 FROM sqlite_sequence LIMIT 1";
pub(super) const CREDENTIALS: &str = "SELECT credential_id, value, sealed FROM credentials";
pub(super) const CREDENTIAL_ID: &str = "SELECT credential_id FROM credentials WHERE value = ?1";
pub(super) const SET_CREDENTIAL: &str = "UPDATE credentials SET value = ?2, sealed = ?3 WHERE credential_id = ?1";
pub(super) const REPLACE_CREDENTIAL: &str = "UPDATE lanes SET credential_id = ?2 WHERE credential_id = ?1";
pub(super) const DROP_CREDENTIAL: &str = "DELETE FROM credentials WHERE credential_id = ?1";
/// Header sets from this one on that may not be kept as ?2 (the name of a key, NULL for none) says, at most ?3.
pub(super) const HEADER_SETS_TO_RESEAL: &str = "
    SELECT header_set_id, length(wire) FROM header_sets
    WHERE header_set_id > ?1 AND substr(sealed, 1, 8) IS NOT ?2 ORDER BY header_set_id LIMIT ?3";
pub(super) const HEADER_SET_TO_RESEAL: &str = "SELECT wire, sealed FROM header_sets WHERE header_set_id = ?1";
pub(super) const SET_HEADER_SET: &str = "UPDATE header_sets SET wire = ?2, sealed = ?3 WHERE header_set_id = ?1";
pub(super) const REPLACE_HEADER_SET: &str = "UPDATE messages SET header_set_id = ?2 WHERE header_set_id = ?1";
pub(super) const DROP_HEADER_SET: &str = "DELETE FROM header_sets WHERE header_set_id = ?1";
/// Messages with a text that may have to be kept in another way.
pub(super) const TEXTS_TO_RESEAL: &str = "
    SELECT message_id, coalesce(length(answer_text), 0) FROM messages
    WHERE message_id > ?1 AND (instr(path, '?') > 0 OR typeof(path) = 'blob' OR answer_text IS NOT NULL)
        AND ((instr(path, '?') > 0 OR typeof(path) = 'blob')
                AND (CASE typeof(path) WHEN 'blob' THEN substr(path, 1, 8) END) IS NOT ?2
            OR answer_text IS NOT NULL
                AND (CASE typeof(answer_text) WHEN 'blob' THEN substr(answer_text, 1, 8) END) IS NOT ?2)
    ORDER BY message_id LIMIT ?3";
pub(super) const TEXT_TO_RESEAL: &str = "SELECT path, answer_text FROM messages WHERE message_id = ?1";
pub(super) const SET_TEXTS: &str = "UPDATE messages SET path = ?2, answer_text = ?3 WHERE message_id = ?1";
pub(super) const BODIES_TO_RESEAL: &str = "
    SELECT message_id, length(body) FROM bodies
    WHERE message_id > ?1 AND (CASE WHEN codec >= 16 THEN substr(body, 1, 8) END) IS NOT ?2
    ORDER BY message_id LIMIT ?3";
pub(super) const BODY_TO_RESEAL: &str = "
    SELECT codec, body, encoding, method, path, checksum FROM bodies CROSS JOIN messages USING (message_id) WHERE message_id = ?1";
pub(super) const SET_BODY: &str = "UPDATE bodies SET body = ?2, codec = ?3, checksum = ?4 WHERE message_id = ?1";
pub(super) const PIECES_TO_RESEAL: &str = "
    SELECT piece_id, length(piece) FROM attachment_pieces
    WHERE piece_id > ?1 AND (CASE WHEN is_sealed THEN substr(piece, 1, 8) END) IS NOT ?2
    ORDER BY piece_id LIMIT ?3";
pub(super) const PIECE_TO_RESEAL: &str = "SELECT piece, is_sealed FROM attachment_pieces WHERE piece_id = ?1";
pub(super) const SET_PIECE: &str = "UPDATE attachment_pieces SET piece = ?2, is_sealed = ?3 WHERE piece_id = ?1";
pub(super) const DIGESTS_TO_RESEAL: &str = "
    SELECT attachment_id, length(sha256) FROM attachments
    WHERE attachment_id > ?1 AND sha256 IS NOT NULL
        AND (CASE WHEN length(sha256) > 32 THEN substr(sha256, 1, 8) END) IS NOT ?2
    ORDER BY attachment_id LIMIT ?3";
pub(super) const DIGEST_TO_RESEAL: &str = "
    SELECT sha256, message_id, bytes FROM attachments WHERE attachment_id = ?1 AND message_id IS NOT NULL";
pub(super) const SET_DIGEST: &str = "UPDATE attachments SET sha256 = ?2 WHERE attachment_id = ?1";
/// Writes the file anew, without what is left in its unused parts.
pub(super) const WRITE_ANEW: &str = "VACUUM";
/// Writes the log back into the file; the first column says whether others were in the way.
pub(super) const WRITE_LOG_BACK: &str = "PRAGMA wal_checkpoint(FULL)";
/// The same, and cuts the log to nothing.
pub(super) const EMPTY_LOG: &str = "PRAGMA wal_checkpoint(TRUNCATE)";
pub(super) const FORGET_RELEASED_DIGESTS: &str = "UPDATE attachments SET sha256 = NULL WHERE message_id IS NULL";

// Counters and summary.

pub(super) const COUNTER: &str = "SELECT value FROM counters WHERE name = ?1";
pub(super) const ADD_TO_COUNTER: &str = "UPDATE counters SET value = value + ?2 WHERE name = ?1";
/// The same for a counter that earlier versions do not have.
pub(super) const ADD_TO_ANY_COUNTER: &str =
    "INSERT INTO counters VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = value + excluded.value";
pub(super) const SET_COUNTER: &str = "UPDATE counters SET value = ?2 WHERE name = ?1";
pub(super) const RAISE_COUNTER: &str = "UPDATE counters SET value = ?2 WHERE name = ?1 AND value < ?2";
/// The id of the next message: higher than any that is there or was.
pub(super) const NEXT_ID: &str = "
    SELECT 1 + max((SELECT coalesce(max(message_id), 0) FROM messages),
        (SELECT value FROM counters WHERE name = 'deleted_id'))";
pub(super) const ADD_TO_SUMMARY: &str = "
    INSERT INTO summary VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT DO UPDATE SET messages = messages + excluded.messages, items = items + excluded.items,
        body_bytes = body_bytes + excluded.body_bytes";
pub(super) const DROP_FROM_SUMMARY: &str = "
    DELETE FROM summary
    WHERE lane_id = ?1 AND status = ?2 AND message_type = ?3 AND answer_status = ?4 AND messages <= 0";
/// Every message as the summary counts it, in the order of the file: sorting a million of them would take memory.
pub(super) const COUNTED: &str = "SELECT lane_id, status, message_type, answer_status, items, body_bytes FROM messages";
pub(super) const SUMMARY: &str =
    "SELECT lane_id, status, message_type, answer_status, items, body_bytes, messages FROM summary";
/// Entries of the entity look-up without a message that does so.
pub(super) const WRONG_TOUCHES: &str = "
    SELECT count(*) FROM message_touches LEFT JOIN messages USING (message_id)
    WHERE instr(coalesce(touches, x''), entity || unhex(printf('%02X', effect))) = 0";
/// Messages without a body, bodies without a message, and bodies kept as sent that have, with their file, another length
/// than their message says.
pub(super) const WRONG_BODIES: &str = "
    SELECT (SELECT count(*) FROM messages LEFT JOIN bodies USING (message_id) LEFT JOIN attachments USING (message_id)
            WHERE body IS NULL OR (codec = 0 AND body_bytes <> length(body) + coalesce(bytes, 0)))
        + (SELECT count(*) FROM bodies LEFT JOIN messages USING (message_id) WHERE status IS NULL)";
pub(super) const IDS: &str = "SELECT message_id FROM messages ORDER BY message_id";
/// Messages whose lane or header set is not there.
pub(super) const WRONG_NAMES: &str = "
    SELECT count(*) FROM messages WHERE lane_id NOT IN (SELECT lane_id FROM lanes)
        OR header_set_id NOT IN (SELECT header_set_id FROM header_sets)";

// Recovery.

/// A message as it lay in a damaged file, under its own number.
pub(super) const ADD_RECOVERED: &str = "
    INSERT INTO messages (message_id, status, message_type, lane_id, position, accepted_at_ms, attempts,
        next_attempt_at_ms, answer_at_ms, answer_status, answer_text, items, body_bytes, project, method, path,
        header_set_id, encoding, touches)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)";
/// The file of a recovered message, whose pieces are there.
pub(super) const ADD_RECOVERED_ATTACHMENT: &str =
    "INSERT INTO attachments (attachment_id, message_id, bytes, sha256) VALUES (?1, ?2, ?3, ?4)";
pub(super) const ADD_RECOVERY: &str =
    "INSERT INTO recoveries (at_ms, set_aside, reason, recovered, lost) VALUES (?1, ?2, ?3, ?4, ?5)";
pub(super) const RECOVERIES: &str =
    "SELECT at_ms, set_aside, reason, recovered, lost FROM recoveries ORDER BY recovery_id";
/// Where the trees of the file stand.
pub(super) const ROOTS: &str = "SELECT rootpage, tbl_name FROM sqlite_schema WHERE rootpage > 0";

pub(super) const TYPES: &str = "SELECT DISTINCT message_type FROM messages";
/// What tables a file has, ours or not.
pub(super) const TABLES: &str = "SELECT name FROM sqlite_schema WHERE type = 'table' LIMIT 10";
/// The columns of a store of the Python SDK.
pub(super) const SDK_MESSAGES: &str = "SELECT message_id, status, message_type, message_json FROM messages";
pub(super) const IS_SALVAGED: &str = "SELECT 1 FROM salvaged WHERE digest = ?1";
pub(super) const ADD_SALVAGED: &str = "INSERT OR IGNORE INTO salvaged VALUES (?1)";
pub(super) const REJECT_SALVAGED: &str = "UPDATE messages SET status = 4 WHERE message_id = ?1";
/// Of a message that was stored a moment ago.
pub(super) const LANE_AND_BYTES: &str = "SELECT lane_id, body_bytes FROM messages WHERE message_id = ?1";

// Registering.

pub(super) const ADD_MESSAGE: &str = "
    INSERT INTO messages (message_id, status, message_type, lane_id, position, accepted_at_ms, attempts,
        next_attempt_at_ms, items, body_bytes, project, method, path, header_set_id, encoding, touches)
    VALUES (?1, 3, ?2, ?3, ?4, ?5, 0, 0, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";
/// A part of a divided message, in its place; ?1 is the whole.
pub(super) const ADD_PART: &str = "
    INSERT INTO messages (message_id, status, message_type, lane_id, position, accepted_at_ms, attempts,
        next_attempt_at_ms, answer_at_ms, answer_status, answer_text, items, body_bytes, project, method, path,
        header_set_id, encoding, touches)
    SELECT ?2, ?3, message_type, lane_id, position, accepted_at_ms, attempts + ?4, 0, ?5, ?6, ?7, ?8, ?9, project, ?10,
        ?11, ?12, ?13, ?14
    FROM messages WHERE message_id = ?1";
pub(super) const ADD_BODY: &str = "INSERT INTO bodies (message_id, body, codec, checksum) VALUES (?1, ?2, ?3, ?4)";
/// What a part of a divided message takes over from the whole.
pub(super) const WHOLE: &str =
    "SELECT message_type, lane_id, project, accepted_at_ms FROM messages WHERE message_id = ?1";
pub(super) const ADD_TOUCH: &str = "INSERT OR IGNORE INTO message_touches VALUES (?1, ?2, ?3)";
pub(super) const DROP_TOUCH: &str = "DELETE FROM message_touches WHERE effect = ?1 AND entity = ?2 AND message_id = ?3";
/// Whether any stored message updates anything.
pub(super) const ANY_UPDATE: &str = "SELECT 1 FROM message_touches WHERE effect = 2 LIMIT 1";
/// Updates of an entity that wait in a lane.
pub(super) const WAITING_UPDATES: &str = "
    SELECT messages.message_id, position, touches FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 2 AND entity = ?1 AND lane_id = ?2 AND status = 3";
/// Where the first create of an entity stands that a lane still has to deliver, another message than this one.
pub(super) const FIRST_CREATE: &str = "
    SELECT min(position) FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 1 AND entity = ?1 AND lane_id = ?2 AND status IN (1, 3) AND message_id <> ?3";
/// Whether a lane still has to end an entity.
pub(super) const WAITING_END: &str = "
    SELECT 1 FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 0 AND entity = ?1 AND lane_id = ?2 AND status IN (1, 3) LIMIT 1";
/// Whether a lane still has to deliver anything that makes, changes, adds to or ends an entity.
pub(super) const WAITING_CHANGE: &str = "
    SELECT 1 FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect IN (0, 1, 2, 3) AND entity = ?1 AND lane_id = ?2 AND status IN (1, 3) LIMIT 1";
/// Whether a lane still has to deliver anything from before the time when all changes were indexed (schema version 2).
pub(super) const WAITS_UNINDEXED: &str = "
    WITH last AS (SELECT value FROM counters WHERE name = 'annotations_indexed_after')
    SELECT 1 FROM messages WHERE lane_id = ?1 AND status = 3 AND position <= 2 * (SELECT value FROM last) + 1
    UNION ALL
    SELECT 1 FROM messages WHERE lane_id = ?1 AND status = 1 AND message_id <= (SELECT value FROM last) LIMIT 1";
/// What a backlog can be seen by without a key: in all lanes of a server (?1), whatever their credential.
pub(super) struct Seen {
    /// Whether messages wait, and how many rows of the summary there are.
    pub(super) counts: String,
    /// Whether any waits from before the time when all changes were indexed (schema version 2).
    pub(super) unindexed: String,
    /// Whether any that ends the entity ?2 waits.
    pub(super) end: String,
    /// Whether any that makes, changes, adds to or ends the entity ?2 waits.
    pub(super) change: String,
    /// Whether a create of the entity ?2 was refused.
    pub(super) refused_create: String,
}

impl Seen {
    /// Returns the statements for a schema of this version. Before version 9 no lane has a server: it may be any.
    pub(super) fn of(version: i64) -> Self {
        let of_server = |table: &str| match version {
            9.. => format!(
                "EXISTS (SELECT 1 FROM lanes WHERE lanes.lane_id = {table}.lane_id AND (server IS NULL OR server = ?1))"
            ),
            _ => "?1 IS NOT NULL".to_owned(),
        };
        let messages = of_server("messages");
        let touching = |effects: &str, statuses: &str| {
            format!(
                "SELECT 1 FROM message_touches CROSS JOIN messages USING (message_id)
                 WHERE effect IN ({effects}) AND entity = ?2 AND status IN ({statuses}) AND {messages} LIMIT 1"
            )
        };
        Self {
            counts: format!(
                "SELECT coalesce(max(status IN (1, 3)), 0), count(*) FROM summary
                 WHERE status IN (1, 3, 4, 5) AND messages > 0 AND {}",
                of_server("summary")
            ),
            unindexed: format!(
                "SELECT 1 FROM messages WHERE status IN (1, 3) AND {messages} AND message_id <=
                 (SELECT value FROM counters WHERE name = 'annotations_indexed_after') LIMIT 1"
            ),
            end: touching("0", "1, 3"),
            change: touching("0, 1, 2, 3", "1, 3"),
            refused_create: touching("1", "4, 5"),
        }
    }
}

/// A refused message that makes this entity in this lane.
pub(super) const REFUSED_CREATE: &str = "
    SELECT message_id FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 1 AND entity = ?1 AND lane_id = ?2 AND status IN (4, 5) LIMIT 1";
/// The same, before a place in the order of delivery: position ?3, id ?4.
pub(super) const REFUSED_CREATE_BEFORE: &str = "
    SELECT message_id FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 1 AND entity = ?1 AND lane_id = ?2 AND status IN (4, 5)
        AND (position < ?3 OR position = ?3 AND message_id < ?4) LIMIT 1";
/// The types of the refused messages of a lane.
pub(super) const REFUSED_TYPES: &str =
    "SELECT DISTINCT message_type FROM summary WHERE lane_id = ?1 AND status IN (4, 5) AND messages > 0";
/// Whether a message that waits up to a place in the order of delivery (position ?3, id ?4) does more to this entity than
/// refer to it.
pub(super) const CHANGED_UP_TO: &str = "
    SELECT 1 FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect IN (0, 1, 2, 3) AND entity = ?1 AND lane_id = ?2 AND status = 3
        AND (position < ?3 OR position = ?3 AND message_id <= ?4) LIMIT 1";
/// The same, whether it ends the entity.
pub(super) const ENDED_UP_TO: &str = "
    SELECT 1 FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 0 AND entity = ?1 AND lane_id = ?2 AND status = 3
        AND (position < ?3 OR position = ?3 AND message_id <= ?4) LIMIT 1";
/// The same, whether it touches the entity at all: references are in no index, so this looks through the messages.
pub(super) const TOUCHED_UP_TO: &str = "
    SELECT 1 FROM messages WHERE lane_id = ?2 AND status = 3
        AND position <= ?3 AND (position < ?3 OR message_id <= ?4) AND instr(touches, ?1) % 18 = 1 LIMIT 1";
/// The first ?4 waiting messages behind a place in the order of delivery.
pub(super) const WAITING_BEHIND: &str = "
    SELECT message_id, position, touches FROM messages WHERE lane_id = ?1 AND status = 3
        AND position >= ?2 AND (position > ?2 OR message_id > ?3) ORDER BY position, message_id LIMIT ?4";
/// How many messages wait up to a place in the order of delivery.
pub(super) const WAITING_UP_TO: &str = "
    SELECT count(*) FROM messages WHERE lane_id = ?1 AND status = 3
        AND position <= ?2 AND (position < ?2 OR message_id <= ?3)";
pub(super) const STATUS_OF: &str = "SELECT status FROM messages WHERE message_id = ?1";
pub(super) const MOVE_TO: &str = "UPDATE messages SET position = ?2 WHERE message_id = ?1";
/// Rejected messages, the oldest first, with their bytes in the file.
pub(super) const REJECTED: &str = "
    SELECT message_id, lane_id, message_type, length(body) + coalesce(bytes, 0), touches, bytes IS NOT NULL
    FROM messages CROSS JOIN bodies USING (message_id) LEFT JOIN attachments USING (message_id)
    WHERE status = 4 AND message_id > ?1 ORDER BY message_id";
/// The bytes of all of them, and how many there are.
pub(super) const REJECTED_BYTES: &str = "
    SELECT coalesce(sum(length(body) + coalesce(bytes, 0)), 0), count(*)
    FROM messages CROSS JOIN bodies USING (message_id) LEFT JOIN attachments USING (message_id)
    WHERE status = 4";
/// What the summary says of them: changes whenever they do.
pub(super) const REJECTED_SUMMARY: &str =
    "SELECT coalesce(sum(messages), 0), coalesce(sum(body_bytes), 0) FROM summary WHERE status = 4";
/// What messages of a lane that still have to be delivered are about.
pub(super) const TOUCHES_ON_THEIR_WAY: &str = "
    SELECT touches FROM messages WHERE lane_id = ?1 AND status = 3
    UNION ALL SELECT touches FROM messages WHERE lane_id = ?1 AND status = 1";
/// The same of messages that came after this one, in any lane.
pub(super) const TOUCHES_SINCE: &str =
    "SELECT lane_id, touches FROM messages WHERE message_id > ?1 AND +status IN (1, 3)";
/// Deletes a message that is still rejected.
pub(super) const DELETE_REJECTED: &str = "
    DELETE FROM messages WHERE message_id = ?1 AND status = 4
    RETURNING lane_id, status, message_type, answer_status, items, body_bytes, touches, message_id";
/// The messages that make room in a full store, and how much: the oldest that wait.
pub(super) const OLDEST_WAITING: &str = "
    SELECT message_id, length(body) + coalesce(bytes, 0)
    FROM messages CROSS JOIN bodies USING (message_id) LEFT JOIN attachments USING (message_id)
    WHERE status = 3 ORDER BY message_id";

/// The oldest messages, and when they were accepted; those in flight come back to their place or go.
pub(super) const OLDEST: &str =
    "SELECT message_id, accepted_at_ms FROM messages WHERE status <> 1 ORDER BY message_id LIMIT ?1";
/// Deletes a message that is not in flight.
pub(super) const DELETE_EXPIRED: &str = "
    DELETE FROM messages WHERE message_id = ?1 AND status <> 1
    RETURNING lane_id, status, message_type, answer_status, items, body_bytes, touches, message_id";

// Attachments. A row without a message is being uploaded while it has an owner (`process`), and released without one.

pub(super) const BEGIN_ATTACHMENT: &str = "
    INSERT INTO attachments (bytes, process, pid, pid_namespace, boot, grown_at_ms) VALUES (0, ?1, ?2, ?3, ?4, ?5)
    RETURNING attachment_id";
pub(super) const GROW_ATTACHMENT: &str = "
    UPDATE attachments SET bytes = bytes + ?4, grown_at_ms = ?5
    WHERE attachment_id = ?1 AND message_id IS NULL AND process = ?2 AND bytes = ?3";
pub(super) const ADD_PIECE: &str = "INSERT INTO attachment_pieces VALUES (?1, ?2, ?3)";
pub(super) const GIVE_ATTACHMENT: &str = "
    UPDATE attachments SET message_id = ?4, sha256 = ?5, process = NULL, pid = NULL, pid_namespace = NULL, boot = NULL,
        grown_at_ms = NULL
    WHERE attachment_id = ?1 AND message_id IS NULL AND process = ?2 AND bytes = ?3";
pub(super) const ABANDON_ATTACHMENT: &str =
    "UPDATE attachments SET process = NULL WHERE attachment_id = ?1 AND message_id IS NULL AND process = ?2";
pub(super) const RELEASE_ATTACHMENT: &str = "UPDATE attachments SET message_id = NULL WHERE message_id = ?1";
pub(super) const RELEASE_UPLOAD: &str =
    "UPDATE attachments SET process = NULL WHERE attachment_id = ?1 AND message_id IS NULL";
pub(super) const UPLOADS: &str = "
    SELECT attachment_id, process, pid, pid_namespace, boot, grown_at_ms FROM attachments
    WHERE message_id IS NULL AND process IS NOT NULL";
pub(super) const ANY_WITHOUT_MESSAGE: &str = "SELECT 1 FROM attachments WHERE message_id IS NULL LIMIT 1";
pub(super) const RELEASED_ATTACHMENT: &str =
    "SELECT attachment_id FROM attachments WHERE message_id IS NULL AND process IS NULL LIMIT 1";
pub(super) const REMOVE_PIECES: &str = "
    DELETE FROM attachment_pieces WHERE piece_id IN (
        SELECT piece_id FROM attachment_pieces WHERE piece_id >= ?1 AND piece_id < ?2 LIMIT ?3)";
pub(super) const REMOVE_ATTACHMENT: &str = "DELETE FROM attachments WHERE attachment_id = ?1";
pub(super) const ATTACHMENT: &str = "SELECT attachment_id, bytes, sha256 FROM attachments WHERE message_id = ?1";
/// A piece of a message's file; ?2 is how many numbers a file has.
pub(super) const PIECE: &str = "
    SELECT piece, is_sealed, piece_id FROM attachment_pieces
    WHERE piece_id = (SELECT attachment_id FROM attachments WHERE message_id = ?1) * ?2 + ?3";
pub(super) const PIECES: &str =
    "SELECT piece, is_sealed, piece_id FROM attachment_pieces WHERE piece_id >= ?1 AND piece_id < ?2 ORDER BY piece_id";
pub(super) const ATTACHMENTS: &str =
    "SELECT attachment_id, message_id, bytes, sha256 FROM attachments WHERE message_id IS NOT NULL";
/// Files of messages that are not there. A message whose file is not there has too few bytes ([`WRONG_BODIES`]).
pub(super) const WRONG_ATTACHMENTS: &str = "
    SELECT count(*) FROM attachments LEFT JOIN messages USING (message_id)
    WHERE message_id IS NOT NULL AND status IS NULL";
pub(super) const WRONG_PIECES: &str = "
    SELECT count(*) FROM attachment_pieces WHERE piece_id >> 24 NOT IN (SELECT attachment_id FROM attachments)";

// Lease.

pub(super) const LIVING_LEASE: &str = "
    SELECT role, pid, nonce, pid_namespace FROM lease
    WHERE nonce IS NOT NULL AND boot = ?1 AND granted_at_ms <= ?2 AND ?2 < until_ms";
pub(super) const GRANT_LEASE: &str = "
    UPDATE lease SET epoch = epoch + 1, role = ?1, pid = ?2, nonce = ?3, boot = ?4, granted_at_ms = ?5, until_ms = ?6,
        pid_namespace = ?7
    RETURNING epoch";
pub(super) const RENEW_LEASE: &str = "
    UPDATE lease SET boot = ?3, granted_at_ms = ?4, until_ms = ?5 WHERE epoch = ?1 AND nonce = ?2";
pub(super) const RELEASE_LEASE: &str = "
    UPDATE lease SET role = NULL, pid = NULL, nonce = NULL, boot = NULL, granted_at_ms = NULL, until_ms = NULL
    WHERE epoch = ?1 AND nonce = ?2";
pub(super) const LEASE_IS_OURS: &str = "SELECT 1 FROM lease WHERE epoch = ?1 AND nonce = ?2";

// Replay.

pub(super) const TOUCHES: &str = "SELECT touches FROM messages WHERE message_id = ?1";
pub(super) const TOUCHES_IN_FLIGHT: &str = "SELECT touches, position FROM messages WHERE status = 1 AND lane_id = ?1";
/// What the failed messages of a lane are about, in delivery order.
pub(super) const WAITING_TOUCHES: &str = "
    SELECT message_id, touches FROM messages WHERE lane_id = ?1 AND status = 3 ORDER BY position, message_id";
pub(super) const MARK_CLAIMED: &str =
    "UPDATE messages SET status = 1, claim_epoch = ?2 WHERE message_id = ?1 AND status = 3";
/// A large body comes as NULL: it is read in pieces, straight to where it stays ([`super::large`]).
pub(super) const REQUEST: &str = "
    SELECT method, path, encoding, header_set_id, CASE WHEN length(body) <= 262144 THEN body END, codec, CASE codec WHEN 0 THEN length(body)
        ELSE body_bytes - coalesce((SELECT bytes FROM attachments WHERE message_id = ?1), 0) END,
        checksum, message_type, lane_id, touches, items, project, accepted_at_ms
    FROM messages CROSS JOIN bodies USING (message_id) WHERE message_id = ?1";
/// What the summary needs to know of a message before its status changes.
pub(super) const CLAIMED_MESSAGE: &str = "
    SELECT lane_id, message_type, items, body_bytes FROM messages
    WHERE message_id = ?1 AND status = 1 AND claim_epoch = ?2";
pub(super) const DELETE_DELIVERED: &str = "
    DELETE FROM messages WHERE message_id = ?1 AND status = 1 AND claim_epoch = ?2
    RETURNING lane_id, status, message_type, answer_status, items, body_bytes, touches, message_id";
pub(super) const MARK_FAILED: &str = "
    UPDATE messages SET status = 3, claim_epoch = NULL, next_attempt_at_ms = ?2, attempts = attempts + ?3
    WHERE message_id = ?1";
pub(super) const MARK_REJECTED: &str = "
    UPDATE messages SET status = 4, claim_epoch = NULL, next_attempt_at_ms = 0, attempts = attempts + 1
    WHERE message_id = ?1";
pub(super) const MARK_HELD: &str = "
    UPDATE messages SET status = 5, claim_epoch = NULL, next_attempt_at_ms = 0 WHERE message_id = ?1";
/// When the last answer to a held message of a lane came.
pub(super) const HELD_LAST: &str = "
    SELECT max(answer_at_ms) FROM messages INDEXED BY messages_held WHERE status = 5 AND lane_id = ?1";
/// The held message of a lane that was refused longest ago, the newest of several, with its place and entities.
pub(super) const HELD_LONGEST: &str = "
    SELECT message_id FROM messages INDEXED BY messages_held WHERE status = 5 AND lane_id = ?1
    ORDER BY answer_at_ms, message_id DESC LIMIT 1";
pub(super) const LANES_WITH_HELD: &str = "SELECT DISTINCT lane_id FROM summary WHERE status = 5 AND messages > 0";
pub(super) const PLACE: &str = "SELECT position, touches FROM messages WHERE message_id = ?1";
/// Makes one held message *failed*.
pub(super) const RETRY_HELD: &str = "
    UPDATE messages SET status = 3, next_attempt_at_ms = 0 WHERE message_id = ?1 AND status = 5
    RETURNING lane_id, 5, message_type, NULL, items, body_bytes";
/// Makes the first ?2 held messages of a lane *failed*.
pub(super) const RELEASE_HELD: &str = "
    UPDATE messages SET status = 3, attempts = 0, next_attempt_at_ms = 0 WHERE message_id IN (
        SELECT message_id FROM messages WHERE status = 5 AND lane_id = ?1 LIMIT ?2)
    RETURNING lane_id, 5, message_type, NULL, items, body_bytes";
pub(super) const KEEP_ANSWER: &str = "
    UPDATE messages SET answer_status = ?2, answer_text = ?3, answer_at_ms = ?4 WHERE message_id = ?1";
/// Keeps the epoch of the claim, by which [`INTERRUPTED`] knows them until they are settled.
pub(super) const LEFT_IN_FLIGHT: &str = "
    UPDATE messages SET status = 3 WHERE status = 1 AND claim_epoch < ?1
    RETURNING lane_id, 1, message_type, NULL, items, body_bytes";
/// Of the first ?2 failed messages of a lane in delivery order: whether each was in flight when its replayer ended.
pub(super) const INTERRUPTED: &str = "
    SELECT claim_epoch IS NOT NULL FROM messages WHERE lane_id = ?1 AND status = 3 ORDER BY position, message_id LIMIT ?2";
pub(super) const HOLD_LANE: &str = "
    UPDATE lanes SET held_until_ms = ?2, hold_reason = ?3, hold_probe = ?4, hold_passed = 0, held_at_ms = ?5,
        hold_status = ?6
    WHERE lane_id = ?1";
pub(super) const LET_LANE_GO: &str = "
    UPDATE lanes SET held_until_ms = NULL, hold_reason = NULL, hold_probe = NULL, hold_passed = NULL,
        held_at_ms = NULL, hold_status = NULL
    WHERE lane_id = ?1";
/// Notes a success in a lane that has a hold.
pub(super) const NOTE_SUCCESS: &str =
    "UPDATE lanes SET hold_passed = 1 WHERE lane_id = ?1 AND held_until_ms IS NOT NULL AND hold_passed = 0";
pub(super) const HOLD: &str = "
    SELECT held_until_ms, hold_reason, hold_probe, hold_passed, held_at_ms, hold_status FROM lanes
    WHERE lane_id = ?1 AND held_until_ms IS NOT NULL";
pub(super) const MAKE_SPARED_DUE: &str = "
    UPDATE messages SET next_attempt_at_ms = 0
    WHERE attempts = 0 AND next_attempt_at_ms > 0 AND message_id IN (
        SELECT message_id FROM messages WHERE lane_id = ?1 AND status = 3 ORDER BY position LIMIT ?2)";
/// Of the lane's first messages, those that wait for their next attempt.
pub(super) const MAKE_FIRST_DUE: &str = "
    UPDATE messages SET next_attempt_at_ms = 0
    WHERE next_attempt_at_ms > 0 AND message_id IN (
        SELECT message_id FROM messages WHERE lane_id = ?1 AND status = 3 ORDER BY position LIMIT ?2)";
/// Ends the time of a hold that a probe may end; the hold itself stays until something passes.
pub(super) const MAKE_LANE_DUE: &str =
    "UPDATE lanes SET held_until_ms = ?2 WHERE lane_id = ?1 AND hold_probe = 1 AND held_until_ms > ?2";
/// Lanes of server ?2 that have something to replay.
pub(super) const LANES_WITH_WORK: &str = "
    SELECT DISTINCT lane_id FROM summary
    WHERE status IN (1, 3) AND messages > 0 AND lane_id IN (SELECT lane_id FROM lanes WHERE server = ?2) LIMIT ?1";
/// How many messages of a lane still have to reach the server, and how many it refused.
pub(super) const LANE_COUNTS: &str = "
    SELECT coalesce(sum(CASE WHEN status IN (1, 3) THEN messages END), 0),
        coalesce(sum(CASE WHEN status = 4 THEN messages END), 0)
    FROM summary WHERE lane_id = ?1";
/// The same of all lanes of a server.
pub(super) const SERVER_COUNTS: &str = "
    SELECT coalesce(sum(CASE WHEN status IN (1, 3) THEN messages END), 0),
        coalesce(sum(CASE WHEN status = 4 THEN messages END), 0)
    FROM summary WHERE lane_id IN (SELECT lane_id FROM lanes WHERE server = ?1)";
/// Whether a message of a lane is in flight that was accepted up to ?2, or is a part of one.
pub(super) const IN_FLIGHT_UP_TO: &str =
    "SELECT 1 FROM messages WHERE lane_id = ?1 AND status = 1 AND (message_id <= ?2 OR position <= ?3)";
/// The same of those that wait, where they stand in the order of acceptance: parts have the place of the whole.
pub(super) const WAITS_UP_TO: &str = "SELECT 1 FROM messages WHERE lane_id = ?1 AND status = 3 AND position <= ?3";
/// The same of updates that were put behind a later create. Reads the index only, and is asked when nothing else waits.
pub(super) const WAITS_MOVED: &str =
    "SELECT 1 FROM messages WHERE lane_id = ?1 AND status = 3 AND position > ?3 AND message_id <= ?2 LIMIT 1";
pub(super) const MAKE_DUE: &str =
    "UPDATE messages SET next_attempt_at_ms = 0 WHERE message_id = ?1 AND status = 3 AND next_attempt_at_ms > 0";
/// Lanes with a hold: in force, or over and with messages that it held.
pub(super) const HELD_LANES: &str = "
    SELECT lane_id FROM lanes WHERE held_until_ms IS NOT NULL AND (held_until_ms > ?1 OR hold_passed = 0 AND EXISTS (
        SELECT 1 FROM summary WHERE summary.lane_id = lanes.lane_id AND status IN (1, 3)))
    ORDER BY lane_id";

// Rate limits of one bucket.

pub(super) const LIMITS: &str = "SELECT bucket, until_ms, reason, held_at_ms FROM limits WHERE lane_id = ?1";
pub(super) const LIMIT: &str = "INSERT OR REPLACE INTO limits VALUES (?1, ?2, ?3, ?4, ?5)";
/// Lanes with a limit in force.
pub(super) const LIMITED_LANES: &str = "SELECT DISTINCT lane_id FROM limits WHERE until_ms > ?1 AND lane_id IN (SELECT lane_id FROM lanes) ORDER BY lane_id";

// Updates ahead of their create.

pub(super) const ADD_NOTE: &str = "INSERT OR IGNORE INTO updated_ahead VALUES (?1, ?2, ?3)";
pub(super) const DROP_NOTE: &str = "DELETE FROM updated_ahead WHERE entity = ?1 AND place = ?2";
pub(super) const HAS_NOTE: &str = "SELECT 1 FROM updated_ahead WHERE entity = ?1 AND place = ?2";
/// Removes the oldest notes.
pub(super) const EVICT_NOTES: &str = "
    DELETE FROM updated_ahead WHERE (entity, place) IN (
        SELECT entity, place FROM updated_ahead ORDER BY at_ms, entity, place LIMIT ?1)
    RETURNING entity";
/// What an earlier lease left in flight, in the order in which it was sent.
pub(super) const LEFT_WRITES: &str = "
    SELECT lane_id, message_type, touches FROM messages WHERE status = 1 AND claim_epoch < ?1
    ORDER BY lane_id, position, message_id";

// People.

pub(super) const DELETE_MESSAGE: &str = "
    DELETE FROM messages WHERE message_id = ?1
    RETURNING lane_id, status, message_type, answer_status, items, body_bytes, touches, message_id";
pub(super) const DELETE_BODY: &str = "DELETE FROM bodies WHERE message_id = ?1";
pub(super) const ANNOUNCE: &str = "INSERT OR REPLACE INTO agents VALUES (?1, ?2, ?3, ?4)";
pub(super) const TAKE_BACK_ANNOUNCEMENT: &str = "DELETE FROM agents WHERE pid = ?1 OR listen = ?2";
pub(super) const AGENTS: &str = "SELECT pid, listen, upstream, started_at_ms FROM agents ORDER BY started_at_ms, pid";
pub(super) const NOTE_REPLAY: &str = "INSERT OR REPLACE INTO last_replay VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6)";
pub(super) const LAST_REPLAY: &str =
    "SELECT role, started_at_ms, ended_at_ms, delivered, rejected, remaining FROM last_replay";

/// The columns that a [`Listed`](crate::store::Listed) is read from.
const LISTED: &str = "message_id, status, message_type, lane_id, project, method, path, items, body_bytes,
    accepted_at_ms, attempts, next_attempt_at_ms, answer_at_ms, answer_status, answer_text";

/// One message, with what it is about.
pub(super) fn one_message() -> String {
    format!("SELECT {LISTED}, touches FROM messages WHERE message_id = ?1")
}

/// A page of messages in the order of their ids, from `:after` on, at most `:limit`.
pub(super) fn page(selection: &Selection, newest_first: bool, continued: bool) -> String {
    let (after, order) = match (continued, newest_first) {
        (false, false) => ("TRUE", "ASC"),
        (false, true) => ("TRUE", "DESC"),
        (true, false) => ("message_id > :after", "ASC"),
        (true, true) => ("message_id < :after", "DESC"),
    };
    let selected = selection.sql();
    format!("SELECT {LISTED} FROM messages WHERE {after} AND {selected} ORDER BY message_id {order} LIMIT :limit")
}

/// The failed messages of `:lane` in delivery order, behind the one at `:position` with the id `:after`.
pub(super) fn waiting_in_order(selection: &Selection) -> String {
    let (in_lane, selected) = (selection.lane_condition(), selection.sql());
    format!(
        "SELECT message_id, next_attempt_at_ms, touches, message_type, items, body_bytes, attempts, position FROM messages
         WHERE {in_lane} AND status = 3 AND position >= :position AND (position > :position OR message_id > :after)
            AND {selected} ORDER BY position, message_id"
    )
}

/// How many failed messages each lane has.
pub(super) fn failed_by_lane(selection: &Selection) -> String {
    let (source, count, selected) = (selection.source(), selection.count(), selection.sql());
    format!("SELECT lane_id, {count} FROM {source} WHERE status = 3 AND {selected} GROUP BY lane_id")
}

/// Messages, items and bytes per status, type and workspace.
pub(super) fn groups(selection: &Selection) -> String {
    let (source, count, selected) = (selection.source(), selection.count(), selection.sql());
    format!(
        "SELECT status, message_type,
            (SELECT coalesce(workspace, 'default') FROM lanes WHERE lanes.lane_id = {source}.lane_id) AS workspace_name,
            {count}, sum(items), sum(body_bytes),
            (SELECT server FROM lanes WHERE lanes.lane_id = {source}.lane_id) AS server_name
         FROM {source} WHERE {selected} GROUP BY status, message_type, workspace_name, server_name"
    )
}

/// How many rejected messages there are per status of the answer, the commonest first.
pub(super) fn rejected_by_answer(selection: &Selection) -> String {
    let (source, count, selected) = (selection.source(), selection.count(), selection.sql());
    format!(
        "SELECT nullif(answer_status, 0) AS answer, {count} AS found FROM {source}
         WHERE status = 4 AND {selected} GROUP BY answer ORDER BY found DESC, answer"
    )
}

/// When the oldest message in flight was accepted.
pub(super) fn oldest_in_flight(selection: &Selection) -> String {
    format!("SELECT min(accepted_at_ms) FROM messages WHERE status = 1 AND {}", selection.sql())
}

/// When the first message of `:lane` in delivery order was accepted.
pub(super) fn first_waiting(selection: &Selection) -> String {
    let (in_lane, selected) = (selection.lane_condition(), selection.sql());
    format!(
        "SELECT accepted_at_ms FROM messages WHERE {in_lane} AND status = 3 AND {selected}
         ORDER BY position, message_id LIMIT 1"
    )
}

/// Lanes that have failed messages.
pub(super) const LANES_WAITING: &str = "SELECT DISTINCT lane_id FROM summary WHERE status = 3";

/// Up to `:limit` messages to delete, those in flight only on demand.
pub(super) fn to_purge(selection: &Selection, in_flight_too: bool) -> String {
    let (spared, selected) = (if in_flight_too { "TRUE" } else { "status <> 1" }, selection.sql());
    format!("SELECT message_id FROM messages WHERE {spared} AND {selected} ORDER BY message_id LIMIT :limit")
}

/// Makes refused messages of one status *failed*. RETURNING shows a row as the update left it; the status before is known.
pub(super) fn requeue(selection: &Selection, status: MessageStatus) -> String {
    let (status, selected) = (status.code(), selection.sql());
    format!(
        "UPDATE messages SET status = 3, attempts = 0, next_attempt_at_ms = 0
         WHERE status = {status} AND method <> '' AND {selected}
         RETURNING lane_id, {status}, message_type, answer_status, items, body_bytes"
    )
}

/// The conditions of a [`Filter`], as SQL with named parameters.
pub(super) struct Selection {
    conditions: Vec<&'static str>,
    parameters: Vec<(&'static str, Value)>,
    fine: bool,
    by_id: bool,
    divides_lanes: bool,
}

impl Selection {
    /// Returns the conditions of this filter.
    pub(super) fn of(filter: &Filter) -> Self {
        let mut selection = Self {
            conditions: vec![statuses(&filter.statuses)],
            parameters: Vec::new(),
            fine: false,
            by_id: !filter.ids.is_empty(),
            divides_lanes: false,
        };
        // Conditions that the summary can answer too.
        let types = filter.types.iter().map(|t| t.name());
        selection.any_of(":types", types, "message_type IN (SELECT value FROM json_each(:types))");
        let workspaces: Vec<String> = filter.workspaces.iter().flat_map(|name| workspaces_named(name)).collect();
        selection.any_of(
            ":workspaces",
            workspaces.iter().map(String::as_str),
            "lane_id IN (SELECT lane_id FROM lanes
                WHERE coalesce(workspace, 'default') IN (SELECT value FROM json_each(:workspaces)))",
        );
        let servers = filter.servers.iter().map(crate::message::Server::base_url);
        selection.any_of(
            ":servers",
            servers,
            "lane_id IN (SELECT lane_id FROM lanes WHERE server IN (SELECT value FROM json_each(:servers)))",
        );
        // Conditions on single messages.
        let coarse = selection.conditions.len();
        let projects = filter.projects.iter().map(String::as_str);
        selection.any_of(":projects", projects, "project IN (SELECT value FROM json_each(:projects))");
        let ids = filter.ids.iter().map(|id| id.0);
        selection.any_of(":ids", ids, "message_id IN (SELECT value FROM json_each(:ids))");
        // References are in no index, so this looks through the messages.
        let entities = filter.entities.iter().map(|key| hex(key.as_bytes()));
        selection.any_of(
            ":entities",
            entities,
            "EXISTS (SELECT 1 FROM json_each(:entities) WHERE instr(touches, unhex(value)) % 18 = 1)",
        );
        if let Some(before) = filter.accepted_before_ms {
            selection.conditions.push("accepted_at_ms < :accepted_before_ms");
            selection.parameters.push((":accepted_before_ms", Value::Integer(before)));
        }
        if let Some(since) = filter.accepted_since_ms {
            selection.conditions.push("accepted_at_ms >= :accepted_since_ms");
            selection.parameters.push((":accepted_since_ms", Value::Integer(since)));
        }
        selection.fine = selection.conditions.len() > coarse;
        selection.divides_lanes = selection.fine || !filter.types.is_empty();
        selection
    }

    /// Says whether it may select some messages of a lane that have a status and leave out others.
    pub(super) fn divides_lanes(&self) -> bool {
        self.divides_lanes
    }

    /// Where counts come from: the summary, unless a condition needs the messages themselves.
    fn source(&self) -> &'static str {
        if self.fine { "messages" } else { "summary" }
    }

    /// How many messages a group of [`Selection::source`] has.
    fn count(&self) -> &'static str {
        if self.fine { "count(*)" } else { "sum(messages)" }
    }

    /// Returns a condition on `:lane`. Where single messages are named it keeps SQLite from walking the lane for them.
    fn lane_condition(&self) -> &'static str {
        if self.by_id { "+lane_id = :lane" } else { "lane_id = :lane" }
    }

    /// Returns the conditions joined by AND; never empty.
    fn sql(&self) -> String {
        self.conditions.join(" AND ")
    }

    /// Binds the values to a statement that was made with this selection.
    pub(super) fn bind(&self, statement: &mut Statement<'_>) -> rusqlite::Result<()> {
        for (name, value) in &self.parameters {
            bind(statement, name, value)?;
        }
        Ok(())
    }

    fn any_of<T: serde::Serialize>(
        &mut self,
        name: &'static str,
        values: impl ExactSizeIterator<Item = T>,
        condition: &'static str,
    ) {
        if values.len() > 0 {
            let list = serde_json::Value::from_iter(values.map(|value| serde_json::json!(value)));
            self.conditions.push(condition);
            self.parameters.push((name, Value::Text(list.to_string())));
        }
    }
}

/// Binds one named value.
pub(super) fn bind(statement: &mut Statement<'_>, name: &str, value: &dyn ToSql) -> rusqlite::Result<()> {
    let index = statement.parameter_index(name)?.ok_or_else(|| rusqlite::Error::InvalidParameterName(name.into()))?;
    statement.raw_bind_parameter(index, value)
}

/// Literals, because SQLite uses a partial index only where the text itself implies its condition.
fn statuses(statuses: &[MessageStatus]) -> &'static str {
    let bit = |status, bit| u8::from(statuses.is_empty() || statuses.contains(&status)) * bit;
    let wanted = bit(MessageStatus::Registered, 1)
        + bit(MessageStatus::Failed, 2)
        + bit(MessageStatus::Rejected, 4)
        + bit(MessageStatus::Held, 8);
    match wanted {
        0 => "FALSE",
        1 => "status = 1",
        2 => "status = 3",
        3 => "status IN (1, 3)",
        4 => "status = 4",
        5 => "status IN (1, 4)",
        6 => "status IN (3, 4)",
        7 => "status IN (1, 3, 4)",
        8 => "status = 5",
        9 => "status IN (1, 5)",
        10 => "status IN (3, 5)",
        11 => "status IN (1, 3, 5)",
        12 => "status IN (4, 5)",
        13 => "status IN (1, 4, 5)",
        14 => "status IN (3, 4, 5)",
        _ => "TRUE",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::store::sqlite::schema;

    /// How SQLite goes about a statement, in its words.
    fn plan(connection: &Connection, sql: &str) -> String {
        let mut statement =
            connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("the statement fits the schema");
        let steps = statement.raw_query().mapped(|row| row.get::<_, String>(3));
        steps.collect::<rusqlite::Result<Vec<_>>>().expect("a plan").join("; ")
    }

    #[test]
    fn what_has_to_be_fast_walks_an_index() {
        let mut connection = Connection::open_in_memory().expect("memory");
        schema::migrate(&mut connection).expect("a schema");
        let all = Selection::of(&Filter::default());
        let rejected = Selection::of(&Filter { statuses: vec![MessageStatus::Rejected], ..Filter::default() });
        let of_type =
            Selection::of(&Filter { types: vec![crate::message::MessageType::UpdateTrace], ..Filter::default() });
        let by_id = Selection::of(&Filter { ids: vec![crate::message::MessageId(1)], ..Filter::default() });
        for (sql, expected) in [
            (WAITING.to_owned(), "SEARCH summary USING PRIMARY KEY (lane_id=? AND status=?)"),
            (Seen::of(11).change, "SEARCH message_touches USING PRIMARY KEY (effect=? AND entity=?)"),
            (Seen::of(11).unindexed, "SEARCH messages USING INTEGER PRIMARY KEY (rowid<?)"),
            (waiting_in_order(&all), "SEARCH messages USING INDEX messages_waiting (lane_id=? AND position>?)"),
            (waiting_in_order(&of_type), "SEARCH messages USING INDEX messages_waiting (lane_id=? AND position>?)"),
            (waiting_in_order(&by_id), "SEARCH messages USING INTEGER PRIMARY KEY (rowid=?)"),
            (first_waiting(&all), "SEARCH messages USING INDEX messages_waiting (lane_id=?)"),
            (oldest_in_flight(&all), "messages_in_flight"),
            (WAITING_TOUCHES.to_owned(), "SEARCH messages USING INDEX messages_waiting (lane_id=?)"),
            (TOUCHES_IN_FLIGHT.to_owned(), "SEARCH messages USING INDEX messages_in_flight (lane_id=?)"),
            (LEFT_IN_FLIGHT.to_owned(), "messages_in_flight"),
            (IN_FLIGHT_UP_TO.to_owned(), "SEARCH messages USING INDEX messages_in_flight (lane_id=?)"),
            (
                WAITS_UP_TO.to_owned(),
                "SEARCH messages USING COVERING INDEX messages_waiting (lane_id=? AND position<?)",
            ),
            (
                WAITS_MOVED.to_owned(),
                "SEARCH messages USING COVERING INDEX messages_waiting (lane_id=? AND position>?)",
            ),
            (INTERRUPTED.to_owned(), "SEARCH messages USING INDEX messages_waiting (lane_id=?)"),
            (page(&all, false, true), "SEARCH messages USING INTEGER PRIMARY KEY (rowid>?)"),
            (page(&rejected, true, false), "SEARCH messages USING INDEX messages_rejected (status=?)"),
            (to_purge(&rejected, false), "messages_rejected (status=?)"),
            (requeue(&all, MessageStatus::Rejected), "messages_rejected (status=?)"),
            (requeue(&all, MessageStatus::Held), "messages_held"),
            (HELD_LAST.to_owned(), "messages_held (lane_id=?)"),
            (HELD_LONGEST.to_owned(), "messages_held (lane_id=?)"),
            (RELEASE_HELD.to_owned(), "messages_held (lane_id=?)"),
            (REFUSED_CREATE.to_owned(), "SEARCH message_touches USING PRIMARY KEY (effect=? AND entity=?)"),
            (CHANGED_UP_TO.to_owned(), "SEARCH message_touches USING PRIMARY KEY (effect=? AND entity=?)"),
            (WAITING_UP_TO.to_owned(), "messages_waiting (lane_id=? AND position<?)"),
            (ANY_UPDATE.to_owned(), "SEARCH message_touches USING PRIMARY KEY (effect=?)"),
            (WAITING_UPDATES.to_owned(), "SEARCH message_touches USING PRIMARY KEY (effect=? AND entity=?)"),
            (PIECE.to_owned(), "SEARCH attachment_pieces USING INTEGER PRIMARY KEY (rowid=?)"),
            (PIECE.to_owned(), "SEARCH attachments USING"),
            (RELEASED_ATTACHMENT.to_owned(), "SEARCH attachments USING INDEX"),
            (UPLOADS.to_owned(), "SEARCH attachments USING INDEX"),
            (RELEASE_ATTACHMENT.to_owned(), "SEARCH attachments USING"),
            (REMOVE_PIECES.to_owned(), "SEARCH attachment_pieces USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
            (FIRST_CREATE.to_owned(), "SEARCH message_touches USING PRIMARY KEY (effect=? AND entity=?)"),
        ] {
            let plan = plan(&connection, &sql);
            assert!(plan.contains(expected), "{sql}\n{plan}");
            assert!(!plan.contains("SCAN messages;") && !plan.ends_with("SCAN messages"), "{sql}\n{plan}");
        }
        for sql in [
            INTERRUPTED.to_owned(),
            WAITING_TOUCHES.to_owned(),
            waiting_in_order(&all),
            waiting_in_order(&of_type),
            page(&rejected, true, false),
        ] {
            assert!(!plan(&connection, &sql).contains("TEMP B-TREE"), "{sql} sorts");
        }
        for sql in [groups(&of_type), failed_by_lane(&of_type), rejected_by_answer(&all)] {
            assert!(!plan(&connection, &sql).contains("messages"), "{sql} does not count by the summary");
        }
    }
}
