//! Attachments. A row without a message is being uploaded while it has an owner (`process`), and is released without
//! one.

pub(crate) const BEGIN_ATTACHMENT: &str = "
    INSERT INTO attachments (bytes, process, pid, pid_namespace, boot, grown_at_ms) VALUES (0, ?1, ?2, ?3, ?4, ?5)
    RETURNING attachment_id";
pub(crate) const GROW_ATTACHMENT: &str = "
    UPDATE attachments SET bytes = bytes + ?4, grown_at_ms = ?5
    WHERE attachment_id = ?1 AND message_id IS NULL AND process = ?2 AND bytes = ?3";
pub(crate) const ADD_PIECE: &str = "INSERT INTO attachment_pieces VALUES (?1, ?2, ?3)";
pub(crate) const GIVE_ATTACHMENT: &str = "
    UPDATE attachments SET message_id = ?4, sha256 = ?5, process = NULL, pid = NULL, pid_namespace = NULL, boot = NULL,
        grown_at_ms = NULL
    WHERE attachment_id = ?1 AND message_id IS NULL AND process = ?2 AND bytes = ?3";
pub(crate) const ABANDON_ATTACHMENT: &str =
    "UPDATE attachments SET process = NULL WHERE attachment_id = ?1 AND message_id IS NULL AND process = ?2";
pub(crate) const RELEASE_ATTACHMENT: &str = "UPDATE attachments SET message_id = NULL WHERE message_id = ?1";
pub(crate) const RELEASE_UPLOAD: &str =
    "UPDATE attachments SET process = NULL WHERE attachment_id = ?1 AND message_id IS NULL";
pub(crate) const UPLOADS: &str = "
    SELECT attachment_id, process, pid, pid_namespace, boot, grown_at_ms FROM attachments
    WHERE message_id IS NULL AND process IS NOT NULL";
pub(crate) const ANY_WITHOUT_MESSAGE: &str = "SELECT 1 FROM attachments WHERE message_id IS NULL LIMIT 1";
pub(crate) const RELEASED_ATTACHMENT: &str =
    "SELECT attachment_id FROM attachments WHERE message_id IS NULL AND process IS NULL LIMIT 1";
pub(crate) const REMOVE_PIECES: &str = "
    DELETE FROM attachment_pieces WHERE piece_id IN (
        SELECT piece_id FROM attachment_pieces WHERE piece_id >= ?1 AND piece_id < ?2 LIMIT ?3)";
pub(crate) const REMOVE_ATTACHMENT: &str = "DELETE FROM attachments WHERE attachment_id = ?1";
pub(crate) const ATTACHMENT: &str = "SELECT attachment_id, bytes, sha256 FROM attachments WHERE message_id = ?1";
/// A piece of a message's file; ?2 is how many pieces a file can have.
pub(crate) const PIECE: &str = "
    SELECT piece, is_sealed, piece_id FROM attachment_pieces
    WHERE piece_id = (SELECT attachment_id FROM attachments WHERE message_id = ?1) * ?2 + ?3";
pub(crate) const PIECES: &str =
    "SELECT piece, is_sealed, piece_id FROM attachment_pieces WHERE piece_id >= ?1 AND piece_id < ?2 ORDER BY piece_id";
pub(crate) const ATTACHMENTS: &str =
    "SELECT attachment_id, message_id, bytes, sha256 FROM attachments WHERE message_id IS NOT NULL";
/// Files of messages that do not exist. A message whose file is missing has too few bytes ([`super::WRONG_BODIES`]).
pub(crate) const WRONG_ATTACHMENTS: &str = "
    SELECT count(*) FROM attachments LEFT JOIN messages USING (message_id)
    WHERE message_id IS NOT NULL AND status IS NULL";
pub(crate) const WRONG_PIECES: &str = "
    SELECT count(*) FROM attachment_pieces WHERE piece_id >> 24 NOT IN (SELECT attachment_id FROM attachments)";
