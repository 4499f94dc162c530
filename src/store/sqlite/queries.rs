//! The SQL, named after what it answers.
//!
//! Statements are constants, or constants put together from the fixed fragments of [`Selection`]; values are always
//! bound, never written into the text.

use rusqlite::types::Value;
use rusqlite::{Statement, ToSql};

use crate::message::MessageStatus;
use crate::store::Filter;

// Lanes and header sets.

/// The number of a lane: workspace or NULL, credential or NULL.
pub(super) const LANE_ID: &str = "
    SELECT lane_id FROM lanes
    WHERE workspace IS ?1 AND credential_id = CASE WHEN ?2 IS NULL THEN 0
        ELSE (SELECT credential_id FROM credentials WHERE value = ?2) END";
pub(super) const KEEP_CREDENTIAL: &str = "INSERT OR IGNORE INTO credentials (value) VALUES (?1)";
pub(super) const ADD_LANE: &str = "
    INSERT INTO lanes (workspace, credential_id) VALUES (?1, CASE WHEN ?2 IS NULL THEN 0
        ELSE (SELECT credential_id FROM credentials WHERE value = ?2) END)
    RETURNING lane_id";
/// Whose messages a lane has.
pub(super) const LANE: &str = "
    SELECT workspace, value FROM lanes LEFT JOIN credentials USING (credential_id) WHERE lane_id = ?1";
pub(super) const HEADER_SET_ID: &str = "SELECT header_set_id FROM header_sets WHERE wire = ?1";
pub(super) const ADD_HEADER_SET: &str =
    "INSERT INTO header_sets (wire, messages) VALUES (?1, 0) RETURNING header_set_id";
pub(super) const HEADER_SET: &str = "SELECT wire FROM header_sets WHERE header_set_id = ?1";
pub(super) const COUNT_HEADER_SET: &str =
    "UPDATE header_sets SET messages = messages + ?2 WHERE header_set_id = ?1 RETURNING messages";
pub(super) const DROP_HEADER_SET: &str = "DELETE FROM header_sets WHERE header_set_id = ?1 AND messages <= 0";
/// Forgets lanes that hold nothing and whose hold is over, and keys that no lane uses.
pub(super) const FORGET_LANES: &str = "
    DELETE FROM lanes WHERE held_until_ms IS NULL
        AND NOT EXISTS (SELECT 1 FROM summary WHERE summary.lane_id = lanes.lane_id)";
pub(super) const FORGET_CREDENTIALS: &str =
    "DELETE FROM credentials WHERE credential_id NOT IN (SELECT credential_id FROM lanes)";

// Counters and summary.

pub(super) const COUNTER: &str = "SELECT value FROM counters WHERE name = ?1";
pub(super) const ADD_TO_COUNTER: &str = "UPDATE counters SET value = value + ?2 WHERE name = ?1";
pub(super) const ADD_TO_SUMMARY: &str = "
    INSERT INTO summary VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT DO UPDATE SET messages = messages + excluded.messages, items = items + excluded.items,
        body_bytes = body_bytes + excluded.body_bytes";
pub(super) const DROP_FROM_SUMMARY: &str = "
    DELETE FROM summary
    WHERE lane_id = ?1 AND status = ?2 AND message_type = ?3 AND answer_status = ?4 AND messages <= 0";
/// How many messages of a lane still have to reach the server.
pub(super) const WAITING_IN_LANE: &str = "
    SELECT coalesce(sum(messages), 0) FROM summary WHERE lane_id = ?1 AND status IN (1, 3)";
/// Groups of the summary that a recount of the messages does not confirm.
pub(super) const WRONG_SUMMARY: &str = "
    WITH recount AS (
        SELECT lane_id, status, message_type, iif(status = 4, coalesce(answer_status, 0), 0) AS answer,
            count(*), sum(items), sum(body_bytes)
        FROM messages GROUP BY 1, 2, 3, 4)
    SELECT count(*) FROM (
        SELECT * FROM (SELECT * FROM recount EXCEPT SELECT * FROM summary)
        UNION ALL SELECT * FROM (SELECT * FROM summary EXCEPT SELECT * FROM recount))";
/// Messages whose entities are not all in the index, and entries of the index without a message.
pub(super) const WRONG_TOUCHES: &str = "
    SELECT abs((SELECT count(*) FROM message_touches) - (SELECT coalesce(sum(length(touches) / 18), 0) FROM messages))
        + (SELECT count(*) FROM message_touches WHERE message_id NOT IN (SELECT message_id FROM messages))";
pub(super) const WRONG_HEADER_SETS: &str = "
    SELECT count(*) FROM header_sets WHERE messages <>
        (SELECT count(*) FROM messages WHERE messages.header_set_id = header_sets.header_set_id)";

// Registering.

pub(super) const ADD_MESSAGE: &str = "
    INSERT INTO messages (message_id, status, message_type, lane_id, position, accepted_at_ms, attempts,
        next_attempt_at_ms, items, body_bytes, project, method, path, header_set_id, encoding, touches, body)
    VALUES (?1, 3, ?2, ?3, ?4, ?5, 0, 0, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
pub(super) const ADD_TOUCH: &str = "INSERT OR IGNORE INTO message_touches VALUES (?1, ?2, ?3)";
pub(super) const DROP_TOUCH: &str = "DELETE FROM message_touches WHERE effect = ?1 AND entity = ?2 AND message_id = ?3";
/// Whether any stored message updates anything.
pub(super) const ANY_UPDATE: &str = "SELECT 1 FROM message_touches WHERE effect = 2 LIMIT 1";
/// Updates of an entity that wait in a lane.
pub(super) const WAITING_UPDATES: &str = "
    SELECT messages.message_id, position, touches FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 2 AND entity = ?1 AND lane_id = ?2 AND status = 3";
/// Where the first create of an entity stands that a lane still has to deliver, another message than this one.
pub(super) const FIRST_CREATE: &str = "
    SELECT min(position) FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 1 AND entity = ?1 AND lane_id = ?2 AND status IN (1, 3) AND message_id <> ?3";
/// Whether a lane still has to end an entity.
pub(super) const WAITING_END: &str = "
    SELECT 1 FROM message_touches CROSS JOIN messages USING (message_id)
    WHERE effect = 0 AND entity = ?1 AND lane_id = ?2 AND status IN (1, 3) LIMIT 1";
pub(super) const MOVE_TO: &str = "UPDATE messages SET position = ?2 WHERE message_id = ?1";
/// The messages that make room in a full store: the oldest that wait.
pub(super) const OLDEST_WAITING: &str = "
    SELECT message_id, length(body) + length(touches) FROM messages WHERE status = 3 ORDER BY message_id";

// Lease.

pub(super) const LIVING_LEASE: &str = "
    SELECT role, pid, nonce FROM lease
    WHERE nonce IS NOT NULL AND boot = ?1 AND granted_at_ms <= ?2 AND ?2 < until_ms";
pub(super) const GRANT_LEASE: &str = "
    UPDATE lease SET epoch = epoch + 1, role = ?1, pid = ?2, nonce = ?3, boot = ?4, granted_at_ms = ?5, until_ms = ?6
    RETURNING epoch";
pub(super) const RENEW_LEASE: &str = "
    UPDATE lease SET boot = ?3, granted_at_ms = ?4, until_ms = ?5 WHERE epoch = ?1 AND nonce = ?2";
pub(super) const RELEASE_LEASE: &str = "
    UPDATE lease SET role = NULL, pid = NULL, nonce = NULL, boot = NULL, granted_at_ms = NULL, until_ms = NULL
    WHERE epoch = ?1 AND nonce = ?2";
pub(super) const LEASE_IS_OURS: &str = "SELECT 1 FROM lease WHERE epoch = ?1 AND nonce = ?2";

// Replay.

pub(super) const TOUCHES_IN_FLIGHT: &str = "SELECT touches FROM messages WHERE status = 1 AND lane_id = ?1";
pub(super) const MARK_CLAIMED: &str =
    "UPDATE messages SET status = 1, claim_epoch = ?2 WHERE message_id = ?1 AND status = 3";
pub(super) const REQUEST: &str = "
    SELECT method, path, encoding, header_set_id, body FROM messages WHERE message_id = ?1";
/// What the summary needs to know of a message before its status changes.
pub(super) const CLAIMED_MESSAGE: &str = "
    SELECT lane_id, message_type, items, body_bytes FROM messages
    WHERE message_id = ?1 AND status = 1 AND claim_epoch = ?2";
pub(super) const DELETE_DELIVERED: &str = "
    DELETE FROM messages WHERE message_id = ?1 AND status = 1 AND claim_epoch = ?2
    RETURNING lane_id, status, message_type, answer_status, items, body_bytes, header_set_id, touches, message_id";
pub(super) const MARK_FAILED: &str = "
    UPDATE messages SET status = 3, claim_epoch = NULL, next_attempt_at_ms = ?2, attempts = attempts + ?3
    WHERE message_id = ?1";
pub(super) const MARK_REJECTED: &str = "
    UPDATE messages SET status = 4, claim_epoch = NULL, next_attempt_at_ms = 0, attempts = attempts + 1
    WHERE message_id = ?1";
pub(super) const KEEP_ANSWER: &str = "
    UPDATE messages SET answer_status = ?2, answer_text = ?3, answer_at_ms = ?4 WHERE message_id = ?1";
pub(super) const LEFT_IN_FLIGHT: &str = "
    UPDATE messages SET status = 3, claim_epoch = NULL WHERE status = 1 AND claim_epoch < ?1
    RETURNING lane_id, 1, message_type, NULL, items, body_bytes";
pub(super) const HOLD_LANE: &str = "
    UPDATE lanes SET held_until_ms = ?2, hold_reason = ?3, hold_probe = ?4, hold_passed = 0 WHERE lane_id = ?1";
pub(super) const LET_LANE_GO: &str = "
    UPDATE lanes SET held_until_ms = NULL, hold_reason = NULL, hold_probe = NULL, hold_passed = NULL
    WHERE lane_id = ?1";
/// Notes a success in a lane that has a hold.
pub(super) const NOTE_SUCCESS: &str =
    "UPDATE lanes SET hold_passed = 1 WHERE lane_id = ?1 AND held_until_ms IS NOT NULL AND hold_passed = 0";
pub(super) const HOLD: &str = "
    SELECT held_until_ms, hold_reason, hold_probe, hold_passed FROM lanes
    WHERE lane_id = ?1 AND held_until_ms IS NOT NULL";
pub(super) const HELD_LANES: &str = "
    SELECT lane_id FROM lanes WHERE held_until_ms > ?1 AND held_until_ms <= ?2 ORDER BY lane_id";

// People.

pub(super) const DELETE_MESSAGE: &str = "
    DELETE FROM messages WHERE message_id = ?1
    RETURNING lane_id, status, message_type, answer_status, items, body_bytes, header_set_id, touches, message_id";
pub(super) const ANNOUNCE: &str = "INSERT OR REPLACE INTO agents VALUES (?1, ?2, ?3, ?4)";
pub(super) const TAKE_BACK_ANNOUNCEMENT: &str = "DELETE FROM agents WHERE pid = ?1 OR listen = ?2";
pub(super) const AGENTS: &str = "SELECT pid, listen, upstream, started_at_ms FROM agents ORDER BY started_at_ms, pid";
pub(super) const NOTE_REPLAY: &str = "INSERT OR REPLACE INTO last_replay VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6)";
pub(super) const LAST_REPLAY: &str =
    "SELECT role, started_at_ms, ended_at_ms, delivered, rejected, remaining FROM last_replay";

/// The conditions of a [`Filter`], as SQL with named parameters.
pub(super) struct Selection {
    conditions: Vec<&'static str>,
    parameters: Vec<(&'static str, Value)>,
    fine: bool,
    by_id: bool,
}

impl Selection {
    /// Returns the conditions of this filter.
    pub(super) fn of(filter: &Filter) -> Self {
        let mut selection = Self {
            conditions: vec![statuses(&filter.statuses)],
            parameters: Vec::new(),
            fine: false,
            by_id: !(filter.ids.is_empty() && filter.entities.is_empty()),
        };
        // Conditions that the summary can answer too.
        let types = filter.types.iter().map(|t| t.name());
        selection.any_of(":types", types, "message_type IN (SELECT value FROM json_each(:types))");
        let workspaces = filter.workspaces.iter().map(String::as_str);
        selection.any_of(
            ":workspaces",
            workspaces,
            "lane_id IN (SELECT lane_id FROM lanes
                WHERE coalesce(workspace, 'default') IN (SELECT value FROM json_each(:workspaces)))",
        );
        // Conditions on single messages.
        let coarse = selection.conditions.len();
        let projects = filter.projects.iter().map(String::as_str);
        selection.any_of(":projects", projects, "project IN (SELECT value FROM json_each(:projects))");
        let ids = filter.ids.iter().map(|id| id.0);
        selection.any_of(":ids", ids, "message_id IN (SELECT value FROM json_each(:ids))");
        let entities = filter.entities.iter().map(|key| hex(key.as_bytes()));
        selection.any_of(
            ":entities",
            entities,
            "message_id IN (SELECT message_id FROM message_touches
                WHERE effect IN (0, 1, 2, 3, 4) AND entity IN (SELECT unhex(value) FROM json_each(:entities)))",
        );
        if let Some(before) = filter.accepted_before_ms {
            selection.conditions.push("accepted_at_ms < :accepted_before_ms");
            selection.parameters.push((":accepted_before_ms", Value::Integer(before)));
        }
        selection.fine = selection.conditions.len() > coarse;
        selection
    }

    /// Whether a condition needs the messages themselves; without one the summary can answer.
    pub(super) fn is_fine(&self) -> bool {
        self.fine
    }

    /// Returns a condition on one lane, for the statement's first parameter. Where single messages are named it keeps
    /// SQLite from walking the lane to find them.
    pub(super) fn lane_condition(&self) -> &'static str {
        if self.by_id { "+lane_id = :lane" } else { "lane_id = :lane" }
    }

    /// Returns the conditions joined by AND; never empty.
    pub(super) fn sql(&self) -> String {
        self.conditions.join(" AND ")
    }

    /// Binds the values to a statement that contains [`Selection::sql`].
    pub(super) fn bind(&self, statement: &mut Statement<'_>) -> rusqlite::Result<()> {
        for (name, value) in &self.parameters {
            bind(statement, name, value)?;
        }
        Ok(())
    }

    fn any_of<T: serde::Serialize>(
        &mut self,
        name: &'static str,
        values: impl ExactSizeIterator<Item = T>,
        condition: &'static str,
    ) {
        if values.len() > 0 {
            let list = serde_json::Value::from_iter(values.map(|value| serde_json::json!(value)));
            self.conditions.push(condition);
            self.parameters.push((name, Value::Text(list.to_string())));
        }
    }
}

/// Binds one named value.
pub(super) fn bind(statement: &mut Statement<'_>, name: &str, value: &dyn ToSql) -> rusqlite::Result<()> {
    let index = statement.parameter_index(name)?.ok_or_else(|| rusqlite::Error::InvalidParameterName(name.into()))?;
    statement.raw_bind_parameter(index, value)
}

/// Literals, because SQLite uses a partial index only where the text itself implies its condition.
fn statuses(statuses: &[MessageStatus]) -> &'static str {
    let has = |status| statuses.is_empty() || statuses.contains(&status);
    match (has(MessageStatus::Registered), has(MessageStatus::Failed), has(MessageStatus::Rejected)) {
        (true, true, true) => "TRUE",
        (true, true, false) => "status IN (1, 3)",
        (true, false, true) => "status IN (1, 4)",
        (false, true, true) => "status IN (3, 4)",
        (true, false, false) => "status = 1",
        (false, true, false) => "status = 3",
        (false, false, true) => "status = 4",
        (false, false, false) => "FALSE",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}
