//! Keys, and what is encrypted or decrypted when one changes.

pub(crate) const HAS_SEALING: &str = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'sealing'";
pub(crate) const SEALING_GENERATION: &str = "SELECT generation FROM sealing";
pub(crate) const SEALING: &str =
    "SELECT generation, key_name, key_check, previous_name, previous_check, is_complete FROM sealing";
pub(crate) const SET_SEALING: &str = "INSERT OR REPLACE INTO sealing VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6)";
/// Whether the store has ever held a message.
pub(crate) const EVER_USED: &str = "
    SELECT 1 FROM counters WHERE name = 'deleted_id' AND value > 0
    UNION ALL SELECT 1 FROM messages UNION ALL SELECT 1 FROM header_sets UNION ALL SELECT 1 FROM sqlite_sequence LIMIT 1";
pub(crate) const CREDENTIALS: &str = "SELECT credential_id, value, sealed FROM credentials";
pub(crate) const CREDENTIAL_ID: &str = "SELECT credential_id FROM credentials WHERE value = ?1";
pub(crate) const SET_CREDENTIAL: &str = "UPDATE credentials SET value = ?2, sealed = ?3 WHERE credential_id = ?1";
pub(crate) const REPLACE_CREDENTIAL: &str = "UPDATE lanes SET credential_id = ?2 WHERE credential_id = ?1";
pub(crate) const DROP_CREDENTIAL: &str = "DELETE FROM credentials WHERE credential_id = ?1";
/// Header sets after ?1 that are not sealed with ?2 (the name of a key, NULL for none), at most ?3.
pub(crate) const HEADER_SETS_TO_RESEAL: &str = "
    SELECT header_set_id, length(wire) FROM header_sets
    WHERE header_set_id > ?1 AND substr(sealed, 1, 8) IS NOT ?2 ORDER BY header_set_id LIMIT ?3";
pub(crate) const HEADER_SET_TO_RESEAL: &str = "SELECT wire, sealed FROM header_sets WHERE header_set_id = ?1";
pub(crate) const SET_HEADER_SET: &str = "UPDATE header_sets SET wire = ?2, sealed = ?3 WHERE header_set_id = ?1";
pub(crate) const REPLACE_HEADER_SET: &str = "UPDATE messages SET header_set_id = ?2 WHERE header_set_id = ?1";
pub(crate) const DROP_HEADER_SET: &str = "DELETE FROM header_sets WHERE header_set_id = ?1";
/// Messages with a text that may have to be sealed with another key.
pub(crate) const TEXTS_TO_RESEAL: &str = "
    SELECT message_id, coalesce(length(answer_text), 0) FROM messages
    WHERE message_id > ?1 AND (instr(path, '?') > 0 OR typeof(path) = 'blob' OR answer_text IS NOT NULL)
        AND ((instr(path, '?') > 0 OR typeof(path) = 'blob')
                AND (CASE typeof(path) WHEN 'blob' THEN substr(path, 1, 8) END) IS NOT ?2
            OR answer_text IS NOT NULL
                AND (CASE typeof(answer_text) WHEN 'blob' THEN substr(answer_text, 1, 8) END) IS NOT ?2)
    ORDER BY message_id LIMIT ?3";
pub(crate) const BODIES_TO_RESEAL: &str = "
    SELECT message_id, length(body) FROM bodies
    WHERE message_id > ?1 AND (CASE WHEN codec >= 16 THEN substr(body, 1, 8) END) IS NOT ?2
    ORDER BY message_id LIMIT ?3";
pub(crate) const PIECES_TO_RESEAL: &str = "
    SELECT piece_id, length(piece) FROM attachment_pieces
    WHERE piece_id > ?1 AND (CASE WHEN is_sealed THEN substr(piece, 1, 8) END) IS NOT ?2
    ORDER BY piece_id LIMIT ?3";
pub(crate) const PIECE_TO_RESEAL: &str = "SELECT piece, is_sealed FROM attachment_pieces WHERE piece_id = ?1";
pub(crate) const SET_PIECE: &str = "UPDATE attachment_pieces SET piece = ?2, is_sealed = ?3 WHERE piece_id = ?1";
pub(crate) const DIGESTS_TO_RESEAL: &str = "
    SELECT attachment_id, length(sha256) FROM attachments
    WHERE attachment_id > ?1 AND sha256 IS NOT NULL
        AND (CASE WHEN length(sha256) > 32 THEN substr(sha256, 1, 8) END) IS NOT ?2
    ORDER BY attachment_id LIMIT ?3";
pub(crate) const DIGEST_TO_RESEAL: &str = "
    SELECT sha256, message_id, bytes FROM attachments WHERE attachment_id = ?1 AND message_id IS NOT NULL";
pub(crate) const SET_DIGEST: &str = "UPDATE attachments SET sha256 = ?2 WHERE attachment_id = ?1";
/// Rewrites the file without the remnants in its unused parts.
pub(crate) const WRITE_ANEW: &str = "VACUUM";
/// Checkpoints the log; the first column is 1 if other connections were in the way.
pub(crate) const WRITE_LOG_BACK: &str = "PRAGMA wal_checkpoint(FULL)";
/// The same, and truncates the log.
pub(crate) const EMPTY_LOG: &str = "PRAGMA wal_checkpoint(TRUNCATE)";
pub(crate) const FORGET_RELEASED_DIGESTS: &str = "UPDATE attachments SET sha256 = NULL WHERE message_id IS NULL";
