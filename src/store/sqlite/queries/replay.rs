//! The lease, claims, outcomes, and notes about updates ahead of their create.

use crate::store::sqlite::schema::columns;

pub(crate) const LIVING_LEASE: &str = "
    SELECT role, pid, nonce, pid_namespace FROM lease
    WHERE nonce IS NOT NULL AND boot = ?1 AND granted_at_ms <= ?2 AND ?2 < until_ms";
pub(crate) const GRANT_LEASE: &str = "
    UPDATE lease SET epoch = epoch + 1, role = ?1, pid = ?2, nonce = ?3, boot = ?4, granted_at_ms = ?5, until_ms = ?6,
        pid_namespace = ?7
    RETURNING epoch";
pub(crate) const RENEW_LEASE: &str = "
    UPDATE lease SET boot = ?3, granted_at_ms = ?4, until_ms = ?5 WHERE epoch = ?1 AND nonce = ?2";
pub(crate) const RELEASE_LEASE: &str = "
    UPDATE lease SET role = NULL, pid = NULL, nonce = NULL, boot = NULL, granted_at_ms = NULL, until_ms = NULL
    WHERE epoch = ?1 AND nonce = ?2";
pub(crate) const LEASE_IS_OURS: &str = "SELECT 1 FROM lease WHERE epoch = ?1 AND nonce = ?2";

pub(crate) const TOUCHES: &str = "SELECT touches FROM messages WHERE message_id = ?1";
pub(crate) const TOUCHES_IN_FLIGHT: &str = "SELECT touches, position FROM messages WHERE status = 1 AND lane_id = ?1";
/// The touches of the failed messages of a lane, in delivery order.
pub(crate) const WAITING_TOUCHES: &str = "
    SELECT message_id, touches FROM messages WHERE lane_id = ?1 AND status = 3 ORDER BY position, message_id";
pub(crate) const MARK_CLAIMED: &str =
    "UPDATE messages SET status = 1, claim_epoch = ?2 WHERE message_id = ?1 AND status = 3";
/// The columns that the summary needs before a message changes its status.
pub(crate) const CLAIMED_MESSAGE: &str = "
    SELECT lane_id, message_type, items, body_bytes FROM messages
    WHERE message_id = ?1 AND status = 1 AND claim_epoch = ?2";
/// A message to delete, because it is delivered.
pub(crate) const DELIVERED: &str =
    concat!("SELECT ", columns!(deleted), " FROM messages WHERE message_id = ?1 AND status = 1 AND claim_epoch = ?2");
pub(crate) const MARK_FAILED: &str = "
    UPDATE messages SET status = 3, claim_epoch = NULL, next_attempt_at_ms = ?2, attempts = attempts + ?3
    WHERE message_id = ?1";
pub(crate) const MARK_REJECTED: &str = "
    UPDATE messages SET status = 4, claim_epoch = NULL, next_attempt_at_ms = 0, attempts = attempts + 1
    WHERE message_id = ?1";
pub(crate) const MARK_HELD: &str = "
    UPDATE messages SET status = 5, claim_epoch = NULL, next_attempt_at_ms = 0 WHERE message_id = ?1";
/// When the last answer to a held message of a lane arrived.
pub(crate) const HELD_LAST: &str = "
    SELECT max(answer_at_ms) FROM messages INDEXED BY messages_held WHERE status = 5 AND lane_id = ?1";
/// The held message of a lane that was refused longest ago, the newest of several.
pub(crate) const HELD_LONGEST: &str = "
    SELECT message_id FROM messages INDEXED BY messages_held WHERE status = 5 AND lane_id = ?1
    ORDER BY answer_at_ms, message_id DESC LIMIT 1";
pub(crate) const LANES_WITH_HELD: &str = "SELECT DISTINCT lane_id FROM summary WHERE status = 5 AND messages > 0";
pub(crate) const PLACE: &str = "SELECT position, touches FROM messages WHERE message_id = ?1";
/// Makes one held message *failed*.
pub(crate) const RETRY_HELD: &str = concat!(
    "
    UPDATE messages SET status = 3, next_attempt_at_ms = 0 WHERE message_id = ?1 AND status = 5
    RETURNING ",
    columns!(counted "5")
);
/// Makes the first ?2 held messages of a lane *failed*.
pub(crate) const RELEASE_HELD: &str = concat!(
    "
    UPDATE messages SET status = 3, attempts = 0, next_attempt_at_ms = 0 WHERE message_id IN (
        SELECT message_id FROM messages WHERE status = 5 AND lane_id = ?1 LIMIT ?2)
    RETURNING ",
    columns!(counted "5")
);
/// Keeps the epoch of the claim, by which [`INTERRUPTED`] recognizes the messages until they are settled.
pub(crate) const LEFT_IN_FLIGHT: &str = concat!(
    "
    UPDATE messages SET status = 3 WHERE status = 1 AND claim_epoch < ?1
    RETURNING ",
    columns!(counted "1")
);
/// For each of the first ?2 failed messages of a lane in delivery order, whether it was in flight when its replayer
/// ended.
pub(crate) const INTERRUPTED: &str = "
    SELECT claim_epoch IS NOT NULL FROM messages WHERE lane_id = ?1 AND status = 3 ORDER BY position, message_id LIMIT ?2";
pub(crate) const ANY_REJECTED: &str = "SELECT 1 FROM messages WHERE status = 4";
pub(crate) const ANY_HELD: &str = "SELECT 1 FROM messages WHERE status = 5";
pub(crate) const MAKE_DEFERRED_DUE: &str = "
    UPDATE messages SET next_attempt_at_ms = 0
    WHERE attempts = 0 AND next_attempt_at_ms > 0 AND message_id IN (
        SELECT message_id FROM messages WHERE lane_id = ?1 AND status = 3 ORDER BY position LIMIT ?2)";
/// The same without those to which the server itself answered: see `LastAnswer::is_unanswered`.
pub(crate) const MAKE_UNANSWERED_DUE: &str = "
    UPDATE messages SET next_attempt_at_ms = 0
    WHERE attempts = 0 AND next_attempt_at_ms > 0
        AND (answer_status IS NULL OR answer_status IN (502, 504) OR answer_status >= 520) AND message_id IN (
        SELECT message_id FROM messages WHERE lane_id = ?1 AND status = 3 ORDER BY position LIMIT ?2)";
/// Makes the lane's first messages due that wait for their next attempt.
pub(crate) const MAKE_FIRST_DUE: &str = "
    UPDATE messages SET next_attempt_at_ms = 0
    WHERE next_attempt_at_ms > 0 AND message_id IN (
        SELECT message_id FROM messages WHERE lane_id = ?1 AND status = 3 ORDER BY position LIMIT ?2)";
/// Whether a message of a lane is in flight that was accepted up to ?2, or is a part of one.
pub(crate) const IN_FLIGHT_UP_TO: &str =
    "SELECT 1 FROM messages WHERE lane_id = ?1 AND status = 1 AND (message_id <= ?2 OR position <= ?3)";
/// The same for waiting messages by position: parts have the position of the whole.
pub(crate) const WAITS_UP_TO: &str = "SELECT 1 FROM messages WHERE lane_id = ?1 AND status = 3 AND position <= ?3";
/// The same for updates that were moved behind a later create. Reads only the index, and runs only if nothing else
/// waits.
pub(crate) const WAITS_MOVED: &str =
    "SELECT 1 FROM messages WHERE lane_id = ?1 AND status = 3 AND position > ?3 AND message_id <= ?2 LIMIT 1";
pub(crate) const MAKE_DUE: &str =
    "UPDATE messages SET next_attempt_at_ms = 0 WHERE message_id = ?1 AND status = 3 AND next_attempt_at_ms > 0";

pub(crate) const ADD_NOTE: &str = "INSERT OR IGNORE INTO updated_ahead VALUES (?1, ?2, ?3)";
pub(crate) const DROP_NOTE: &str = "DELETE FROM updated_ahead WHERE entity = ?1 AND place = ?2";
pub(crate) const HAS_NOTE: &str = "SELECT 1 FROM updated_ahead WHERE entity = ?1 AND place = ?2";
pub(crate) const NOTES: &str = "SELECT entity, place FROM updated_ahead";
/// The messages of a status, with what they touch.
pub(crate) const IN_FLIGHT: &str =
    "SELECT lane_id, message_type, touches FROM messages WHERE status = ?1 ORDER BY message_id";
/// Evicts the oldest notes.
pub(crate) const EVICT_NOTES: &str = "
    DELETE FROM updated_ahead WHERE (entity, place) IN (
        SELECT entity, place FROM updated_ahead ORDER BY at_ms, entity, place LIMIT ?1)
    RETURNING entity";
/// The messages that an earlier lease left in flight, in the order in which they were sent.
pub(crate) const LEFT_WRITES: &str = "
    SELECT lane_id, message_type, touches FROM messages WHERE status = 1 AND claim_epoch < ?1
    ORDER BY lane_id, position, message_id";
