//! Writes of a recovery, and its look-ups in a file.

/// The file of a recovered message, whose pieces are stored.
pub(crate) const ADD_RECOVERED_ATTACHMENT: &str =
    "INSERT INTO attachments (attachment_id, message_id, bytes, sha256) VALUES (?1, ?2, ?3, ?4)";
pub(crate) const ADD_RECOVERY: &str =
    "INSERT INTO recoveries (at_ms, set_aside, reason, recovered, lost) VALUES (?1, ?2, ?3, ?4, ?5)";
pub(crate) const RECOVERIES: &str =
    "SELECT at_ms, set_aside, reason, recovered, lost FROM recoveries ORDER BY recovery_id";
/// The root pages of the file's trees.
pub(crate) const ROOTS: &str = "SELECT rootpage, tbl_name FROM sqlite_schema WHERE rootpage > 0";

pub(crate) const TYPES: &str = "SELECT DISTINCT message_type FROM messages";
/// The tables of a file, ours or not.
pub(crate) const TABLES: &str = "SELECT name FROM sqlite_schema WHERE type = 'table' LIMIT 10";
/// The columns of a store of the Python SDK.
pub(crate) const SDK_MESSAGES: &str = "SELECT message_id, status, message_type, message_json FROM messages";
