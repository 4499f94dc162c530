//! Counters, the summary, and what `check` compares with it.

use crate::store::sqlite::schema::columns;

pub(crate) const COUNTER: &str = "SELECT value FROM counters WHERE name = ?1";
pub(crate) const ADD_TO_COUNTER: &str = "UPDATE counters SET value = value + ?2 WHERE name = ?1";
/// The same for a counter that stores of earlier versions do not have.
pub(crate) const ADD_TO_ANY_COUNTER: &str =
    "INSERT INTO counters VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = value + excluded.value";
pub(crate) const SET_COUNTER: &str = "UPDATE counters SET value = ?2 WHERE name = ?1";
pub(crate) const REPLACE_COUNTER: &str = "INSERT OR REPLACE INTO counters VALUES (?1, ?2)";
pub(crate) const DROP_COUNTER: &str = "DELETE FROM counters WHERE name = ?1";
pub(crate) const RAISE_COUNTER: &str = "UPDATE counters SET value = ?2 WHERE name = ?1 AND value < ?2";
/// The id of the next message: higher than any that exists or existed.
pub(crate) const NEXT_ID: &str = "
    SELECT 1 + max((SELECT coalesce(max(message_id), 0) FROM messages),
        (SELECT value FROM counters WHERE name = 'deleted_id'))";
pub(crate) const ADD_TO_SUMMARY: &str = "
    INSERT INTO summary VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT DO UPDATE SET messages = messages + excluded.messages, items = items + excluded.items,
        body_bytes = body_bytes + excluded.body_bytes";
pub(crate) const DROP_FROM_SUMMARY: &str = "
    DELETE FROM summary
    WHERE lane_id = ?1 AND status = ?2 AND message_type = ?3 AND answer_status = ?4 AND messages <= ?5";
/// Every message as the summary counts it, in file order: sorting a million of them would take memory.
pub(crate) const COUNTED: &str = concat!("SELECT ", columns!(counted), " FROM messages");
pub(crate) const SUMMARY: &str =
    "SELECT lane_id, status, message_type, answer_status, items, body_bytes, messages FROM summary";
/// Index entries whose message does not have that touch.
pub(crate) const WRONG_TOUCHES: &str = "
    SELECT count(*) FROM message_touches LEFT JOIN messages USING (message_id)
    WHERE instr(coalesce(touches, x''), entity || unhex(printf('%02X', effect))) = 0";
/// Messages without a body, bodies without a message, and plain bodies whose length, with their file, differs from what
/// their message records.
pub(crate) const WRONG_BODIES: &str = "
    SELECT (SELECT count(*) FROM messages LEFT JOIN bodies USING (message_id) LEFT JOIN attachments USING (message_id)
            WHERE body IS NULL OR (codec = 0 AND body_bytes <> length(body) + coalesce(bytes, 0)))
        + (SELECT count(*) FROM bodies LEFT JOIN messages USING (message_id) WHERE status IS NULL)";
pub(crate) const IDS: &str = "SELECT message_id FROM messages ORDER BY message_id";
/// Messages whose lane or header set does not exist.
pub(crate) const WRONG_NAMES: &str = "
    SELECT count(*) FROM messages WHERE lane_id NOT IN (SELECT lane_id FROM lanes)
        OR header_set_id NOT IN (SELECT header_set_id FROM header_sets)";
