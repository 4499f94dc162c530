//! Messages: their order, what they wait for, and which are dropped.

use crate::store::sqlite::schema::columns;

pub(crate) const ADD_TOUCH: &str = "INSERT OR IGNORE INTO message_touches VALUES (?1, ?2, ?3)";
pub(crate) const DROP_TOUCH: &str = "DELETE FROM message_touches WHERE effect = ?1 AND entity = ?2 AND message_id = ?3";
/// Whether any stored message updates anything.
pub(crate) const ANY_UPDATE: &str = "SELECT 1 FROM message_touches WHERE effect = 2 LIMIT 1";
/// Updates of an entity that wait in a lane.
pub(crate) const WAITING_UPDATES: &str = "
    SELECT messages.message_id, position, touches FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 2 AND entity = ?1 AND lane_id = ?2 AND status = 3";
/// The position of the first create of an entity that a lane still has to deliver, other than this message.
pub(crate) const FIRST_CREATE: &str = "
    SELECT min(position) FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 1 AND entity = ?1 AND lane_id = ?2 AND status IN (1, 3) AND message_id <> ?3";
/// Whether a lane still has to end an entity.
pub(crate) const WAITING_END: &str = "
    SELECT 1 FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 0 AND entity = ?1 AND lane_id = ?2 AND status IN (1, 3) LIMIT 1";
/// Whether a lane still has to deliver anything that creates, changes, adds to or ends an entity.
pub(crate) const WAITING_CHANGE: &str = "
    SELECT 1 FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect IN (0, 1, 2, 3) AND entity = ?1 AND lane_id = ?2 AND status IN (1, 3) LIMIT 1";
/// Whether a lane still has to deliver anything from before all changes were indexed (schema version 2).
pub(crate) const WAITS_UNINDEXED: &str = "
    WITH last AS (SELECT value FROM counters WHERE name = 'annotations_indexed_after')
    SELECT 1 FROM messages WHERE lane_id = ?1 AND status = 3 AND position <= 2 * (SELECT value FROM last) + 1
    UNION ALL
    SELECT 1 FROM messages WHERE lane_id = ?1 AND status = 1 AND message_id <= (SELECT value FROM last) LIMIT 1";
/// The statements that read a backlog without a key: over all lanes of a server (?1), with any credential.
pub(crate) struct BacklogQueries {
    /// Whether messages wait, and how many rows of the summary there are.
    pub(crate) counts: String,
    /// Whether any message waits from before all changes were indexed (schema version 2).
    pub(crate) unindexed: String,
    /// Whether any message waits that ends the entity ?2.
    pub(crate) end: String,
    /// Whether any message waits that creates, changes, adds to or ends the entity ?2.
    pub(crate) change: String,
    /// Whether a create of the entity ?2 was refused.
    pub(crate) refused_create: String,
}

impl BacklogQueries {
    /// Returns the statements for a schema of this version. Before version 9 no lane records a server: it may be any.
    pub(crate) fn of(version: i64) -> Self {
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

/// A refused message that creates this entity in this lane.
pub(crate) const REFUSED_CREATE: &str = "
    SELECT message_id FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 1 AND entity = ?1 AND lane_id = ?2 AND status IN (4, 5) LIMIT 1";
/// The same, before a point in delivery order: position ?3, id ?4.
pub(crate) const REFUSED_CREATE_BEFORE: &str = "
    SELECT message_id FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 1 AND entity = ?1 AND lane_id = ?2 AND status IN (4, 5)
        AND (position < ?3 OR position = ?3 AND message_id < ?4) LIMIT 1";
/// The types of the refused messages of a lane.
pub(crate) const REFUSED_TYPES: &str =
    "SELECT DISTINCT message_type FROM summary WHERE lane_id = ?1 AND status IN (4, 5) AND messages > 0";
/// Whether a message that waits up to a point in delivery order (position ?3, id ?4) does more to this entity than
/// refer to it.
pub(crate) const CHANGED_UP_TO: &str = "
    SELECT 1 FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect IN (0, 1, 2, 3) AND entity = ?1 AND lane_id = ?2 AND status = 3
        AND (position < ?3 OR position = ?3 AND message_id <= ?4) LIMIT 1";
/// The same, for messages that end the entity.
pub(crate) const ENDED_UP_TO: &str = "
    SELECT 1 FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 0 AND entity = ?1 AND lane_id = ?2 AND status = 3
        AND (position < ?3 OR position = ?3 AND message_id <= ?4) LIMIT 1";
/// The same, for messages that touch the entity at all: references are in no index, so this scans the messages.
pub(crate) const TOUCHED_UP_TO: &str = "
    SELECT 1 FROM messages WHERE lane_id = ?2 AND status = 3
        AND position <= ?3 AND (position < ?3 OR message_id <= ?4) AND instr(touches, ?1) % 18 = 1 LIMIT 1";
/// The first ?4 waiting messages after a point in delivery order.
pub(crate) const WAITING_BEHIND: &str = "
    SELECT message_id, position, touches FROM messages WHERE lane_id = ?1 AND status = 3
        AND position >= ?2 AND (position > ?2 OR message_id > ?3) ORDER BY position, message_id LIMIT ?4";
/// How many messages wait up to a point in delivery order.
pub(crate) const WAITING_UP_TO: &str = "
    SELECT count(*) FROM messages WHERE lane_id = ?1 AND status = 3
        AND position <= ?2 AND (position < ?2 OR message_id <= ?3)";
pub(crate) const STATUS_OF: &str = "SELECT status FROM messages WHERE message_id = ?1";
pub(crate) const MOVE_TO: &str = "UPDATE messages SET position = ?2 WHERE message_id = ?1";
/// Rejected messages, the oldest first, with their size in the file.
pub(crate) const REJECTED: &str = "
    SELECT message_id, lane_id, message_type, length(body) + coalesce(bytes, 0), touches, bytes IS NOT NULL
    FROM messages CROSS JOIN bodies USING (message_id) LEFT JOIN attachments USING (message_id)
    WHERE status = 4 AND message_id > ?1 ORDER BY message_id";
/// The total size of the rejected messages, and their number.
pub(crate) const REJECTED_BYTES: &str = "
    SELECT coalesce(sum(length(body) + coalesce(bytes, 0)), 0), count(*)
    FROM messages CROSS JOIN bodies USING (message_id) LEFT JOIN attachments USING (message_id)
    WHERE status = 4";
/// The same from the summary, which changes whenever they do.
pub(crate) const REJECTED_SUMMARY: &str =
    "SELECT coalesce(sum(messages), 0), coalesce(sum(body_bytes), 0) FROM summary WHERE status = 4";
/// The messages, from one on, whose place in delivery order is that of their id.
pub(crate) const IN_ORDER: &str =
    "SELECT message_id FROM messages WHERE message_id > ?1 AND position = 2 * message_id ORDER BY message_id LIMIT ?2";
/// All others: parts of divided messages, and updates that were moved behind their create.
pub(crate) const OUT_OF_ORDER: &str =
    "SELECT position, message_id FROM messages WHERE position <> 2 * message_id ORDER BY position, message_id";
/// The touches of all messages that a lane still has to deliver.
pub(crate) const TOUCHES_ON_THEIR_WAY: &str = "
    SELECT touches FROM messages WHERE lane_id = ?1 AND status = 3
    UNION ALL SELECT touches FROM messages WHERE lane_id = ?1 AND status = 1";
/// The same for messages accepted after this one, in any lane.
pub(crate) const TOUCHES_SINCE: &str =
    "SELECT lane_id, touches FROM messages WHERE message_id > ?1 AND +status IN (1, 3)";
/// A message to delete, if it is still rejected.
pub(crate) const STILL_REJECTED: &str =
    concat!("SELECT ", columns!(deleted), " FROM messages WHERE message_id = ?1 AND status = 4");
/// The messages to drop from a full store, with their sizes: the oldest waiting ones.
pub(crate) const OLDEST_WAITING: &str = "
    SELECT message_id, length(body) + coalesce(bytes, 0)
    FROM messages CROSS JOIN bodies USING (message_id) LEFT JOIN attachments USING (message_id)
    WHERE status = 3 ORDER BY message_id";

/// The oldest messages, with the time of their acceptance; those in flight return to the queue or are deleted.
pub(crate) const OLDEST: &str =
    "SELECT message_id, accepted_at_ms FROM messages WHERE status <> 1 ORDER BY message_id LIMIT ?1";
/// A message to delete, if it is not in flight.
pub(crate) const NOT_IN_FLIGHT: &str =
    concat!("SELECT ", columns!(deleted), " FROM messages WHERE message_id = ?1 AND status <> 1");

pub(crate) const IS_SALVAGED: &str = "SELECT 1 FROM salvaged WHERE digest = ?1";
pub(crate) const ADD_SALVAGED: &str = "INSERT OR IGNORE INTO salvaged VALUES (?1)";
pub(crate) const REFUSE_SALVAGED: &str = "UPDATE messages SET status = ?2 WHERE message_id = ?1";
/// Marks a message as one that was in flight when its replayer ended: no lease has this epoch.
pub(crate) const SALVAGED_IN_FLIGHT: &str = "UPDATE messages SET claim_epoch = 0 WHERE message_id = ?1";
/// Read for a message that was stored a moment ago.
pub(crate) const LANE_AND_BYTES: &str = "SELECT lane_id, body_bytes FROM messages WHERE message_id = ?1";
