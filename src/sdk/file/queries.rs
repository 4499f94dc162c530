//! The statements that read a file of the Python SDK.

/// The tables of a file of any program.
pub(super) const TABLES: &str = "SELECT name FROM sqlite_schema WHERE type = 'table' LIMIT 10";
pub(super) const SDK_FIRST: &str =
    "SELECT message_id, status, message_type, message_json FROM messages ORDER BY message_id LIMIT 1";
pub(super) const SDK_NEXT: &str = "SELECT message_id, status, message_type, message_json FROM messages WHERE message_id > ?1 ORDER BY message_id LIMIT 1";
pub(super) const SDK_ONE: &str =
    "SELECT message_id, status, message_type, message_json FROM messages WHERE message_id = ?1";
pub(super) const SDK_ROWS: &str = "SELECT count(*) FROM messages";
/// Finds schema entries that compute. (A virtual table has no page of its own.)
pub(super) const COMPUTES: &str = "SELECT 1 FROM sqlite_schema
    WHERE type NOT IN ('table', 'index') OR rootpage IS NULL OR rootpage < 1 LIMIT 1";
