//! Messages with a copy in a depot.

pub(crate) const STREAMS: &str = "
    SELECT name, depot, state, epoch, next_bundle, shipped_through, began_at_ms,
        EXISTS (SELECT 1 FROM shipped WHERE shipped.stream_id = streams.stream_id)
    FROM streams ORDER BY stream_id";
pub(crate) const NOTE_STREAM: &str = "
    INSERT INTO streams (name, depot, state, epoch, next_bundle, shipped_through, began_at_ms)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT (name) DO UPDATE SET depot = ?2, state = ?3, epoch = ?4, next_bundle = ?5, shipped_through = ?6";
pub(crate) const STREAM: &str = "SELECT stream_id, next_bundle, shipped_through FROM streams WHERE name = ?1";
pub(crate) const FORGET_STREAM: &str = "DELETE FROM streams WHERE stream_id = ?1";
pub(crate) const FORGET_MESSAGES_OF_STREAM: &str = "DELETE FROM shipped WHERE stream_id = ?1";
pub(crate) const ANY_STREAM: &str = "SELECT 1 FROM streams";
/// The depot of a stream with an outstanding message.
pub(crate) const OUTSTANDING_DEPOT: &str = "
    SELECT depot FROM streams WHERE stream_id IN (SELECT stream_id FROM shipped) ORDER BY stream_id LIMIT 1";
/// The rest of a choice that was neither confirmed nor withdrawn, in delivery order.
pub(crate) const OPEN_BUNDLE: &str = "
    SELECT message_id FROM shipped JOIN messages USING (message_id) WHERE stream_id = ?1 AND bundle >= ?2
    ORDER BY position, message_id";
/// Messages that still have to reach the server, behind ?1, and have no copy.
pub(crate) const UNSHIPPED: &str = "
    SELECT message_id, body_bytes FROM messages
    WHERE message_id > ?1 AND status IN (1, 3, 5)
        AND NOT EXISTS (SELECT 1 FROM shipped WHERE shipped.message_id = messages.message_id)
    ORDER BY message_id";
/// The last position of a part among the first ?2 of these: its place is that of the whole.
pub(crate) const LAST_PART_UNSHIPPED: &str = "
    SELECT max(position) FROM (
        SELECT position, message_id FROM messages
        WHERE message_id > ?1 AND status IN (1, 3, 5)
            AND NOT EXISTS (SELECT 1 FROM shipped WHERE shipped.message_id = messages.message_id)
        ORDER BY message_id LIMIT ?2)
    WHERE position < 2 * message_id";
/// Those up to a position, in delivery order.
pub(crate) const UNSHIPPED_UP_TO: &str = "
    SELECT message_id FROM messages
    WHERE message_id > ?1 AND status IN (1, 3, 5) AND position <= ?2
        AND NOT EXISTS (SELECT 1 FROM shipped WHERE shipped.message_id = messages.message_id)
    ORDER BY position, message_id";
/// The same, counted; those of a bundle that may not be in the depot count as well.
pub(crate) const COUNT_UNSHIPPED: &str = "
    SELECT count(*), coalesce(sum(body_bytes), 0), min(accepted_at_ms) FROM messages
    WHERE message_id > ?1 AND status IN (1, 3, 5)
        AND NOT EXISTS (SELECT 1 FROM shipped JOIN streams USING (stream_id)
            WHERE shipped.message_id = messages.message_id AND (bundle IS NULL OR bundle < next_bundle))";
pub(crate) const ANY_ON_ITS_WAY: &str = "SELECT 1 FROM summary WHERE status IN (1, 3, 5) AND messages > 0";
/// How far all that waited was copied by the stream that is copied to now.
pub(crate) const SHIPPED_THROUGH: &str = "SELECT coalesce(max(shipped_through), 0) FROM streams WHERE state = 1";
pub(crate) const ADD_SHIPPED: &str = "INSERT OR IGNORE INTO shipped VALUES (?1, ?2, ?1, 0, ?3)";
/// A part ?1 of ?2 has its copy where the whole has it.
pub(crate) const ADD_SHIPPED_PART: &str = "
    INSERT OR IGNORE INTO shipped SELECT ?1, stream_id, origin, 1, NULL FROM shipped WHERE message_id = ?2";
/// A part has a higher id than messages that were accepted behind its whole.
pub(crate) const CONFIRM_BUNDLE: &str = "
    UPDATE streams SET next_bundle = ?2, shipped_through = max(shipped_through, coalesce((
        SELECT max(min(message_id, position / 2)) FROM shipped JOIN messages USING (message_id)
        WHERE shipped.stream_id = streams.stream_id AND bundle >= streams.next_bundle), 0))
    WHERE stream_id = ?1";
pub(crate) const WITHDRAW_BUNDLE: &str = "DELETE FROM shipped WHERE stream_id = ?1 AND bundle >= ?2";
pub(crate) const OUTSTANDING: &str = "
    SELECT message_id, name, origin, is_part FROM shipped JOIN streams USING (stream_id) WHERE message_id = ?1";
/// Outstanding messages that are no longer stored; a part of a message only once no other part of it is.
pub(crate) const OUTSTANDING_AND_GONE: &str = "
    SELECT gone.message_id, name, gone.origin, gone.is_part FROM shipped AS gone JOIN streams USING (stream_id)
    LEFT JOIN messages USING (message_id)
    WHERE messages.message_id IS NULL AND NOT (gone.is_part AND EXISTS (
        SELECT 1 FROM shipped AS other JOIN messages USING (message_id)
        WHERE other.stream_id = gone.stream_id AND other.origin = gone.origin))
    LIMIT ?1";
pub(crate) const FORGET_SHIPPED: &str = "DELETE FROM shipped WHERE message_id = ?1";
pub(crate) const HAND_OVER: &str = "UPDATE streams SET state = 2 WHERE stream_id = ?1";
pub(crate) const MESSAGES_OF_STREAM: &str = "SELECT message_id FROM shipped WHERE stream_id = ?1 ORDER BY message_id";
/// The messages of streams that a replayer delivers.
pub(crate) const HANDED_OVER: &str = "
    SELECT message_id FROM shipped WHERE stream_id IN (SELECT stream_id FROM streams WHERE state = 2)";
