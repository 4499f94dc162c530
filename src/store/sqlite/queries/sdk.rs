//! Files of the Python SDK.

/// The columns of a store of the Python SDK.
pub(in crate::store::sqlite) const SDK_MESSAGES: &str =
    "SELECT message_id, status, message_type, message_json FROM messages";
pub(in crate::store::sqlite) const SDK_FIRST: &str =
    "SELECT message_id, status, message_type, message_json FROM messages ORDER BY message_id LIMIT 1";
pub(in crate::store::sqlite) const SDK_NEXT: &str = "SELECT message_id, status, message_type, message_json FROM messages WHERE message_id > ?1 ORDER BY message_id LIMIT 1";
pub(in crate::store::sqlite) const SDK_ONE: &str =
    "SELECT message_id, status, message_type, message_json FROM messages WHERE message_id = ?1";
pub(in crate::store::sqlite) const SDK_ROWS: &str = "SELECT count(*) FROM messages";
/// Finds what computes in a schema that another program wrote. (A virtual table has no page of its own.)
pub(in crate::store::sqlite) const COMPUTES: &str = "SELECT 1 FROM sqlite_schema
    WHERE type NOT IN ('table', 'index') OR rootpage IS NULL OR rootpage < 1 LIMIT 1";
