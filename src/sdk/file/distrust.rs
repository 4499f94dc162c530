//! A restricted connection to a database that another program wrote: it can only read the SDK's table, within limits.
//!
//! This follows SQLite's advice for untrusted files (<https://sqlite.org/security.html>). The schema of a file is a
//! program: a view or a generated column that poses as the SDK's table can call functions, and compute without end.

use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, OptionalExtension};

use super::queries;
use crate::store::sqlite::APPLICATION_ID;

/// The largest row that is read. The agent accepts bodies of half that size.
pub(super) const ROW_BYTES_MAX: u32 = 256 * 1024 * 1024;
/// How many instructions SQLite's virtual machine executes between two checks for a stop.
const INSTRUCTIONS: i32 = 10_000;
/// The columns of the SDK's table, in their order.
const COLUMNS: [&str; 4] = ["message_id", "status", "message_type", "message_json"];

/// The schema of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Schema {
    /// It has no tables.
    Empty,
    /// The SDK's table, and nothing that computes.
    Sdk,
    /// A message store of ours.
    Ours,
    /// Another schema, and how it differs.
    Other(&'static str),
}

/// Takes from a new connection every capability that reading the SDK's table does not need. A statement is interrupted
/// once `is_over` returns true.
pub(super) fn distrust(
    connection: &mut Connection,
    is_over: impl FnMut() -> bool + Send + 'static,
) -> rusqlite::Result<()> {
    for (limit, most) in [
        (Limit::SQLITE_LIMIT_LENGTH, i32::try_from(ROW_BYTES_MAX).unwrap_or(i32::MAX)),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, 100_000),
        (Limit::SQLITE_LIMIT_COLUMN, 100),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 20),
        (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 3),
        (Limit::SQLITE_LIMIT_VDBE_OP, 25_000),
        (Limit::SQLITE_LIMIT_FUNCTION_ARG, 8),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 50),
        (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 10),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        connection.set_limit(limit, most)?;
    }
    for off in [
        DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA,
        DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER,
        DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW,
        DbConfig::SQLITE_DBCONFIG_DQS_DDL,
        DbConfig::SQLITE_DBCONFIG_DQS_DML,
    ] {
        connection.set_db_config(off, false)?;
    }
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update_and_check(None, "mmap_size", 0, |_| Ok(())).optional()?;
    connection.authorizer(Some(allowed))?;
    connection.progress_handler(INSTRUCTIONS, Some(is_over))
}

/// Returns a function that returns true once this time has passed.
pub(super) fn after(time: Duration) -> impl FnMut() -> bool + Send + 'static {
    let until = Instant::now().checked_add(time);
    move || until.is_none_or(|until| Instant::now() >= until)
}

fn allowed(context: AuthContext<'_>) -> Authorization {
    const PRAGMAS: [&str; 4] = ["application_id", "page_size", "table_list", "table_xinfo"];
    let is_allowed = match context.action {
        AuthAction::Select => true,
        AuthAction::Read { table_name, column_name } => match table_name {
            "sqlite_master" | "sqlite_schema" => true,
            // Without a column, its rows are counted.
            "messages" => column_name.is_empty() || COLUMNS.contains(&column_name),
            _ => false,
        },
        AuthAction::Function { function_name } => function_name == "count",
        AuthAction::Pragma { pragma_name, .. } => PRAGMAS.contains(&pragma_name),
        _ => false,
    };
    // None of our statements runs inside a view or a trigger.
    if is_allowed && context.accessor.is_none() { Authorization::Allow } else { Authorization::Deny }
}

/// Reads the schema of a file.
pub(super) fn schema_of(connection: &Connection) -> rusqlite::Result<Schema> {
    let names: rusqlite::Result<Vec<String>> =
        connection.prepare(queries::TABLES)?.query_map([], |row| row.get(0))?.collect();
    let tables = names?;
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0)).unwrap_or(0);
    if application == APPLICATION_ID {
        return Ok(Schema::Ours);
    }
    const COMPUTES: &str = "it has a view, a trigger or a virtual table, which the SDK never makes";
    // Both the schema table and SQLite's parsed schema are checked: they need not agree.
    if connection.prepare(queries::COMPUTES)?.exists([])? {
        return Ok(Schema::Other(COMPUTES));
    }
    if tables.is_empty() {
        return Ok(Schema::Empty);
    }
    if !tables.iter().any(|table| table == "messages") {
        return Ok(Schema::Other("it is the database of another program"));
    }
    let mut kinds: Vec<String> = Vec::new();
    connection.pragma(None, "table_list", "messages", |row| {
        kinds.push(row.get("type")?);
        Ok(())
    })?;
    if kinds != ["table"] {
        return Ok(Schema::Other(COMPUTES));
    }
    let mut columns: Vec<(String, i64, i64)> = Vec::new();
    connection.pragma(None, "table_xinfo", "messages", |row| {
        columns.push((row.get("name")?, row.get("hidden")?, row.get("pk")?));
        Ok(())
    })?;
    let is_sdks = COLUMNS.iter().all(|name| {
        let is_key = i64::from(*name == COLUMNS[0]);
        columns.iter().any(|(column, hidden, key)| column == name && *hidden == 0 && *key == is_key)
    });
    // For computed columns this number is above 1; no SDK has any.
    if columns.iter().any(|(_, hidden, _)| *hidden != 0) {
        return Ok(Schema::Other("its table has computed columns, which the SDK never makes"));
    }
    Ok(if is_sdks { Schema::Sdk } else { Schema::Other("it is the database of another program") })
}
