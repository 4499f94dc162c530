//! Lanes, their holds and rate limits, credentials and header sets.

use crate::store::sqlite::schema::columns;

/// The row id of a lane: workspace or NULL, credential or NULL, server or NULL.
pub(crate) const LANE_ID: &str = "
    SELECT lane_id FROM lanes
    WHERE workspace IS ?1 AND server IS ?3 AND credential_id = CASE WHEN ?2 IS NULL THEN 0
        ELSE (SELECT credential_id FROM credentials WHERE value = ?2) END";
/// How many messages of a lane still have to reach the server, and how many the server refused, in one look-up.
pub(crate) const WAITING: &str = "
    SELECT coalesce(sum(CASE WHEN status IN (1, 3) THEN messages END), 0), (SELECT generation FROM sealing),
        coalesce(sum(CASE WHEN status IN (4, 5) THEN messages END), 0)
    FROM summary WHERE status IN (1, 3, 4, 5) AND lane_id = (
        SELECT lane_id FROM lanes
        WHERE workspace IS ?1 AND server IS ?3 AND credential_id = CASE WHEN ?2 IS NULL THEN 0
            ELSE (SELECT credential_id FROM credentials WHERE value = ?2) END)";
pub(crate) const KEEP_CREDENTIAL: &str = "INSERT OR IGNORE INTO credentials (value, sealed) VALUES (?1, ?2)";
pub(crate) const ADD_LANE: &str = "
    INSERT INTO lanes (workspace, credential_id, server, server_check) VALUES (?1, CASE WHEN ?2 IS NULL THEN 0
        ELSE (SELECT credential_id FROM credentials WHERE value = ?2) END, ?3, ?4)
    RETURNING lane_id";
/// A lane with its credential.
pub(crate) const LANE: &str = "
    SELECT workspace, value, sealed, server, server_check
    FROM lanes LEFT JOIN credentials USING (credential_id) WHERE lane_id = ?1";
/// Every lane that has a message.
pub(crate) const LANES: &str = "
    SELECT lane_id, coalesce(sum(messages) FILTER (WHERE status IN (1, 3)), 0),
        coalesce(sum(messages) FILTER (WHERE status IN (4, 5)), 0)
    FROM summary GROUP BY lane_id ORDER BY lane_id";
/// Lanes of earlier versions, which recorded no server.
pub(crate) const LANES_WITHOUT_SERVER: &str = "
    SELECT lane_id, (SELECT coalesce(sum(messages), 0) FROM summary WHERE summary.lane_id = lanes.lane_id)
    FROM lanes WHERE server IS NULL";
/// The lane of the same client for server ?2.
pub(crate) const SIBLING: &str = "
    SELECT lane_id FROM lanes WHERE server = ?2
        AND (workspace, credential_id) IS (SELECT workspace, credential_id FROM lanes WHERE lane_id = ?1)";
pub(crate) const MERGE_MESSAGES: &str = "UPDATE messages SET lane_id = ?2 WHERE lane_id = ?1";
pub(crate) const MERGE_SUMMARY: &str = "
    INSERT INTO summary SELECT ?2, status, message_type, answer_status, messages, items, body_bytes
    FROM summary WHERE lane_id = ?1
    ON CONFLICT DO UPDATE SET messages = messages + excluded.messages, items = items + excluded.items,
        body_bytes = body_bytes + excluded.body_bytes";
pub(crate) const DROP_SUMMARY: &str = "DELETE FROM summary WHERE lane_id = ?1";
/// The hold is dropped: it is unknown which server asked for it.
pub(crate) const SET_SERVER: &str = "
    UPDATE lanes SET server = ?2, server_check = ?3, held_until_ms = NULL, hold_reason = NULL, hold_probe = NULL,
        hold_passed = NULL, held_at_ms = NULL, hold_status = NULL
    WHERE lane_id = ?1";
pub(crate) const DROP_LIMITS: &str = "DELETE FROM limits WHERE lane_id = ?1";
pub(crate) const DROP_LANE: &str = "DELETE FROM lanes WHERE lane_id = ?1";
pub(crate) const NOTE_ADOPTION: &str = "INSERT INTO adoption (at_ms, server, messages) VALUES (?1, ?2, ?3)";
pub(crate) const ADOPTIONS: &str = "SELECT at_ms, server, messages FROM adoption ORDER BY adoption_id";
/// Messages of a lane to move to another one, in any order; none in flight.
pub(crate) const TO_REASSIGN: &str = "
    SELECT message_id FROM messages WHERE lane_id = ?1 AND status <> 1 ORDER BY message_id LIMIT ?2";
pub(crate) const SET_LANE: &str = concat!(
    "
    UPDATE messages SET lane_id = ?2, next_attempt_at_ms = 0 WHERE message_id = ?1
    RETURNING ",
    columns!(counted)
);
pub(crate) const LANE_PLACE: &str = "SELECT workspace, server, server_check FROM lanes WHERE lane_id = ?1";
pub(crate) const HEADER_SET_ID: &str = "SELECT header_set_id FROM header_sets WHERE wire = ?1";
pub(crate) const ADD_HEADER_SET: &str =
    "INSERT INTO header_sets (wire, sealed) VALUES (?1, ?2) RETURNING header_set_id";
pub(crate) const HEADER_SET: &str = "SELECT wire, sealed FROM header_sets WHERE header_set_id = ?1";
pub(crate) const FORGET_HEADER_SETS: &str =
    "DELETE FROM header_sets WHERE header_set_id NOT IN (SELECT header_set_id FROM messages)";
/// The highest number of a header set, and how many there are.
pub(crate) const HEADER_SETS: &str = "SELECT coalesce(max(header_set_id), 0), count(*) FROM header_sets";
pub(crate) const HIGHEST_HEADER_SET: &str = "SELECT coalesce(max(header_set_id), 0) FROM header_sets";
/// Removes lanes without messages whose hold has expired at ?1.
pub(crate) const FORGET_LANES: &str = "
    DELETE FROM lanes WHERE coalesce(held_until_ms, 0) <= ?1
        AND NOT EXISTS (SELECT 1 FROM summary WHERE summary.lane_id = lanes.lane_id)
        AND NOT EXISTS (SELECT 1 FROM limits WHERE limits.lane_id = lanes.lane_id AND until_ms > ?1)";
pub(crate) const ANY_EMPTY_LANE: &str = "
    SELECT 1 FROM lanes WHERE coalesce(held_until_ms, 0) <= ?1
        AND NOT EXISTS (SELECT 1 FROM summary WHERE summary.lane_id = lanes.lane_id)
        AND NOT EXISTS (SELECT 1 FROM limits WHERE limits.lane_id = lanes.lane_id AND until_ms > ?1)";
pub(crate) const ANY_UNUSED_CREDENTIAL: &str =
    "SELECT 1 FROM credentials WHERE credential_id NOT IN (SELECT credential_id FROM lanes)";
pub(crate) const USED_CREDENTIALS: &str = "
    SELECT credential_id, value, sealed FROM credentials
    WHERE credential_id IN (SELECT credential_id FROM lanes)";
pub(crate) const MESSAGES_IN_ALL: &str = "SELECT coalesce(sum(messages), 0) FROM summary";
pub(crate) const ANY_UNUSED_HEADER_SET: &str =
    "SELECT 1 FROM header_sets WHERE header_set_id NOT IN (SELECT header_set_id FROM messages)";
pub(crate) const USED_HEADER_SETS: &str = "
    SELECT header_set_id, wire, sealed FROM header_sets
    WHERE header_set_id IN (SELECT header_set_id FROM messages)";
pub(crate) const CLEAR_HEADER_SETS: &str = "DELETE FROM header_sets";
pub(crate) const PUT_HEADER_SET_BACK: &str =
    "INSERT INTO header_sets (header_set_id, wire, sealed) VALUES (?1, ?2, ?3)";
/// Without a condition, so that SQLite clears whole pages.
pub(crate) const CLEAR_CREDENTIALS: &str = "DELETE FROM credentials";
pub(crate) const PUT_CREDENTIAL_BACK: &str =
    "INSERT INTO credentials (credential_id, value, sealed) VALUES (?1, ?2, ?3)";
/// Removes the limits of lanes that were removed.
pub(crate) const FORGET_LIMITS: &str = "DELETE FROM limits WHERE lane_id NOT IN (SELECT lane_id FROM lanes)";

pub(crate) const HOLD_LANE: &str = "
    UPDATE lanes SET held_until_ms = ?2, hold_reason = ?3, hold_probe = ?4, hold_passed = 0, held_at_ms = ?5,
        hold_status = ?6
    WHERE lane_id = ?1";
pub(crate) const LET_LANE_GO: &str = "
    UPDATE lanes SET held_until_ms = NULL, hold_reason = NULL, hold_probe = NULL, hold_passed = NULL,
        held_at_ms = NULL, hold_status = NULL
    WHERE lane_id = ?1";
/// Records a success in a lane that has a hold.
pub(crate) const NOTE_SUCCESS: &str =
    "UPDATE lanes SET hold_passed = 1 WHERE lane_id = ?1 AND held_until_ms IS NOT NULL AND hold_passed = 0";
pub(crate) const HOLD: &str = "
    SELECT held_until_ms, hold_reason, hold_probe, hold_passed, held_at_ms, hold_status FROM lanes
    WHERE lane_id = ?1 AND held_until_ms IS NOT NULL";
/// Expires a hold that a probe may end; the hold itself stays until a request succeeds.
pub(crate) const MAKE_LANE_DUE: &str =
    "UPDATE lanes SET held_until_ms = ?2 WHERE lane_id = ?1 AND hold_probe = 1 AND held_until_ms > ?2";
/// Lanes of server ?2 that have something to replay.
pub(crate) const LANES_WITH_WORK: &str = "
    SELECT DISTINCT lane_id FROM summary
    WHERE status IN (1, 3) AND messages > 0 AND lane_id IN (SELECT lane_id FROM lanes WHERE server = ?2) LIMIT ?1";
/// How many messages of a lane still have to reach the server, and how many it refused.
pub(crate) const LANE_COUNTS: &str = "
    SELECT coalesce(sum(CASE WHEN status IN (1, 3) THEN messages END), 0),
        coalesce(sum(CASE WHEN status = 4 THEN messages END), 0)
    FROM summary WHERE lane_id = ?1";
/// The same of all lanes of a server.
pub(crate) const SERVER_COUNTS: &str = "
    SELECT coalesce(sum(CASE WHEN status IN (1, 3) THEN messages END), 0),
        coalesce(sum(CASE WHEN status = 4 THEN messages END), 0)
    FROM summary WHERE lane_id IN (SELECT lane_id FROM lanes WHERE server = ?1)";
/// Lanes with a hold: in force, or expired and with messages that it still affects.
pub(crate) const HELD_LANES: &str = "
    SELECT lane_id FROM lanes WHERE held_until_ms IS NOT NULL AND (held_until_ms > ?1 OR hold_passed = 0) AND EXISTS (
        SELECT 1 FROM summary WHERE summary.lane_id = lanes.lane_id AND status IN (1, 3))
    ORDER BY lane_id";
pub(crate) const LIMITS: &str = "SELECT bucket, until_ms, reason, held_at_ms FROM limits WHERE lane_id = ?1";
pub(crate) const ANY_LIMIT: &str = "SELECT 1 FROM limits";
pub(crate) const LIMIT: &str = "INSERT OR REPLACE INTO limits VALUES (?1, ?2, ?3, ?4, ?5)";
/// Lanes with a limit in force.
pub(crate) const LIMITED_LANES: &str = "
    SELECT DISTINCT lane_id FROM limits WHERE until_ms > ?1 AND lane_id IN (SELECT lane_id FROM lanes) AND EXISTS (
        SELECT 1 FROM summary WHERE summary.lane_id = limits.lane_id AND status IN (1, 3))
    ORDER BY lane_id";
