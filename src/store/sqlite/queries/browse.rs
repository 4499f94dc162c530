//! Lists, counts and bulk changes that a filter selects.

use super::selection::SqlFilter;
use crate::message::MessageStatus;
use crate::store::sqlite::schema::columns;

pub(crate) const TO_DELETE: &str = concat!("SELECT ", columns!(deleted), " FROM messages WHERE message_id = ?1");
pub(crate) const DELETE_MESSAGE: &str = "DELETE FROM messages WHERE message_id = ?1";
pub(crate) const DELETE_BODY: &str = "DELETE FROM bodies WHERE message_id = ?1";
pub(crate) const ANNOUNCE: &str = "INSERT OR REPLACE INTO agents VALUES (?1, ?2, ?3, ?4)";
pub(crate) const TAKE_BACK_ANNOUNCEMENT: &str = "DELETE FROM agents WHERE pid = ?1 OR listen = ?2";
pub(crate) const AGENTS: &str = "SELECT pid, listen, upstream, started_at_ms FROM agents ORDER BY started_at_ms, pid";
pub(crate) const NOTE_REPLAY: &str = "INSERT OR REPLACE INTO last_replay VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6)";
pub(crate) const LAST_REPLAY: &str =
    "SELECT role, started_at_ms, ended_at_ms, delivered, rejected, remaining FROM last_replay";

/// One message with its touches.
pub(crate) fn one_message() -> String {
    concat!("SELECT ", columns!(), " FROM messages WHERE message_id = ?1").to_owned()
}

/// A page of messages ordered by id, from `:after` on, at most `:limit`.
pub(crate) fn page(selection: &SqlFilter, newest_first: bool, continued: bool) -> String {
    let (after, order) = match (continued, newest_first) {
        (false, false) => ("TRUE", "ASC"),
        (false, true) => ("TRUE", "DESC"),
        (true, false) => ("message_id > :after", "ASC"),
        (true, true) => ("message_id < :after", "DESC"),
    };
    let selected = selection.sql();
    let columns = columns!(listed);
    format!("SELECT {columns} FROM messages WHERE {after} AND {selected} ORDER BY message_id {order} LIMIT :limit")
}

/// The failed messages of `:lane` in delivery order, after the one at `:position` with the id `:after`.
pub(crate) fn waiting_in_order(selection: &SqlFilter) -> String {
    let columns = columns!(waiting);
    let (in_lane, selected) = (selection.lane_condition(), selection.sql_in_lane());
    format!(
        "SELECT {columns} FROM messages
         WHERE {in_lane} AND status = 3 AND position >= :position AND (position > :position OR message_id > :after)
            AND {selected} ORDER BY position, message_id"
    )
}

/// How many failed messages each lane behind `:after` has, and the bytes of their bodies; of `:most` lanes at most.
///
/// Reads the rows of these lanes only, which are together in either source.
pub(crate) fn failed_by_lane(selection: &SqlFilter) -> String {
    let (source, count) = (selection.source(), selection.count());
    let selected = selection.sql_of(&format!("{source}.lane_id"));
    format!(
        "SELECT lane_id, {count}, sum(body_bytes) FROM {source}
         WHERE status = 3 AND lane_id > :after AND {selected} GROUP BY lane_id ORDER BY lane_id LIMIT :most"
    )
}

/// Status, type, lane, messages, items and bytes of what is selected, to be summed: grouping a million messages here
/// would take a hundred megabytes.
pub(crate) fn counted(selection: &SqlFilter) -> String {
    let (source, messages, selected) = (selection.source(), selection.messages(), selection.sql());
    format!("SELECT status, message_type, lane_id, {messages}, items, body_bytes FROM {source} WHERE {selected}")
}

/// The workspace and the server of a lane.
pub(crate) const LANE_SHOWN: &str = "SELECT coalesce(workspace, 'default'), server FROM lanes WHERE lane_id = ?1";

/// How many rejected messages there are per status of the answer, the most frequent first.
pub(crate) fn rejected_by_answer(selection: &SqlFilter) -> String {
    let (source, count, selected) = (selection.source(), selection.count(), selection.sql());
    format!(
        "SELECT nullif(answer_status, 0) AS answer, {count} AS found FROM {source}
         WHERE status = 4 AND {selected} GROUP BY answer ORDER BY found DESC, answer"
    )
}

/// When the oldest message in flight was accepted.
pub(crate) fn oldest_in_flight(selection: &SqlFilter) -> String {
    format!("SELECT min(accepted_at_ms) FROM messages WHERE status = 1 AND {}", selection.sql())
}

/// When the first message of `:lane` in delivery order was accepted.
pub(crate) fn first_waiting(selection: &SqlFilter) -> String {
    let (in_lane, selected) = (selection.lane_condition(), selection.sql_in_lane());
    format!(
        "SELECT accepted_at_ms FROM messages WHERE {in_lane} AND status = 3 AND {selected}
         ORDER BY position, message_id LIMIT 1"
    )
}

/// Lanes that have failed messages.
pub(crate) const LANES_WAITING: &str = "SELECT DISTINCT lane_id FROM summary WHERE status = 3";

/// Up to `:limit` messages to delete; those in flight only on demand.
pub(crate) fn to_purge(selection: &SqlFilter, in_flight_too: bool) -> String {
    let (spared, selected) = (if in_flight_too { "TRUE" } else { "status <> 1" }, selection.sql());
    format!("SELECT message_id FROM messages WHERE {spared} AND {selected} ORDER BY message_id LIMIT :limit")
}

/// Makes refused messages of one status *failed*. RETURNING shows a row after the update; the status before it is
/// known.
pub(crate) fn requeue(selection: &SqlFilter, status: MessageStatus) -> String {
    let (status, selected) = (status.code(), selection.sql());
    format!(
        "UPDATE messages SET status = 3, attempts = 0, next_attempt_at_ms = 0
         WHERE status = {status} AND method <> '' AND {selected}
         RETURNING lane_id, {status}, message_type, answer_status, items, body_bytes"
    )
}
