//! The statements of the engine.
//!
//! `SETTINGS`: what a commit promises must not depend on the settings of a role or database. A commit waits for disk
//! and standby even where `synchronous_commit` was lowered, and the warning that it gave that up is sent even where
//! `client_min_messages` hides warnings. Both hold for the one transaction only, so a pooler does not see them.

use super::session::{BYTEA, INT8, PostgresStatement, TEXT, TEXT_ARRAY, UUID};

/// Rows of functions are read even if nobody asks for their columns: that is how they run.
macro_rules! settings {
    () => {
        "set_config('synchronous_commit', CASE current_setting('synchronous_commit') \
             WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true) AS durable, \
         set_config('client_min_messages', 'notice', true) AS told"
    };
}

/// Creates an object, or locks the row that is there. The lock is what makes `AlreadyThere` an answer: it gives the
/// transaction something to commit, and that commit waits for the standby. `DO NOTHING` would answer at once for a row
/// that an earlier, cancelled commit left on this server alone.
pub(super) const CREATE: PostgresStatement = PostgresStatement {
    sql: concat!(
        "INSERT INTO depot_object (fleet, name, version, bytes) SELECT $1, $2, $3, $4 FROM ",
        settings!(),
        " ON CONFLICT (fleet, name) DO UPDATE SET version = depot_object.version WHERE false"
    ),
    types: &[UUID, TEXT, INT8, BYTEA],
    first_is_bytes: false,
};

/// Replaces a version.
pub(super) const SWAP: PostgresStatement = PostgresStatement {
    sql: concat!(
        "UPDATE depot_object SET version = $3, bytes = $4, made_at = now() FROM ",
        settings!(),
        " WHERE fleet = $1 AND name = $2 AND version = $5"
    ),
    types: &[UUID, TEXT, INT8, BYTEA, INT8],
    first_is_bytes: false,
};

pub(super) const GET: PostgresStatement = PostgresStatement {
    sql: "SELECT bytes, version FROM depot_object WHERE fleet = $1 AND name = $2",
    types: &[UUID, TEXT],
    first_is_bytes: true,
};

/// The same, of a row that the standby has, too: locking it makes the commit wait, as in [`CREATE`].
pub(super) const GET_REPLICATED: PostgresStatement = PostgresStatement {
    sql: concat!(
        "SELECT bytes, version FROM depot_object, ",
        settings!(),
        " WHERE fleet = $1 AND name = $2 FOR UPDATE OF depot_object"
    ),
    types: &[UUID, TEXT],
    first_is_bytes: true,
};

/// Objects between two names, by the primary key. The length of a stored value is known without reading it.
pub(super) const LIST: PostgresStatement = PostgresStatement {
    sql: "SELECT name, octet_length(bytes), version FROM depot_object \
          WHERE fleet = $1 AND name > $2 AND name < $3 ORDER BY name LIMIT $4",
    types: &[UUID, TEXT, TEXT, INT8],
    first_is_bytes: false,
};

pub(super) const DELETE: PostgresStatement = PostgresStatement {
    sql: concat!("DELETE FROM depot_object USING ", settings!(), " WHERE fleet = $1 AND name = ANY ($2)"),
    types: &[UUID, TEXT_ARRAY],
    first_is_bytes: false,
};

/// How many statements of earlier connections of this process still run, and whether one waits for the standby.
pub(super) const STUCK: PostgresStatement = PostgresStatement {
    sql: "SELECT count(*), bool_or(wait_event = 'SyncRep') FROM pg_stat_activity \
          WHERE application_name = $1 AND pid <> pg_backend_pid() AND state <> 'idle'",
    types: &[TEXT],
    first_is_bytes: false,
};

/// The server's settings and standbys that durability depends on, in the order of [`super::durability::read`].
pub(super) const DURABILITY: PostgresStatement = PostgresStatement {
    sql: "SELECT current_setting('synchronous_standby_names'), current_setting('fsync'), \
                 current_setting('full_page_writes'), \
                 (SELECT count(*) FROM pg_stat_replication), \
                 (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')), \
                 (SELECT count(*) FROM pg_stat_replication WHERE sync_state IS NULL), \
                 (SELECT extract(epoch FROM max(now() - xact_start))::bigint FROM pg_stat_activity \
                  WHERE backend_xmin IS NOT NULL)",
    types: &[],
    first_is_bytes: false,
};
