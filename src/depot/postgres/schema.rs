//! The tables of a depot, and how they are made and migrated.
//!
//! Migrations only add, so a program of an earlier release works in a database of a later one: the format of what is
//! kept is that of the bundles, and this table has one shape for years. A released migration is never edited.

use std::time::Instant;

use super::session::{PostgresFault, PostgresReply, PostgresSession};

/// The version of the schema that this program makes.
const VERSION: usize = MIGRATIONS.len();

/// Privileges of an agent's role, for hints.
pub(super) const GRANTS: &str = "GRANT SELECT, INSERT, UPDATE, DELETE ON depot_object TO the role, and SELECT ON \
                                 depot_schema";

/// One after the other, each once: the number of its last one is the version of the schema.
const MIGRATIONS: &[&str] = &[
    // Bundles are compressed and sealed: compressing them again would be for nothing. Rows are written once and deleted
    // soon, so vacuum has to come by the share of the dead ones before they are a fifth of the table.
    "CREATE TABLE depot_object (
         fleet uuid NOT NULL,
         name text COLLATE \"C\" NOT NULL,
         version bigint NOT NULL,
         bytes bytea NOT NULL,
         made_at timestamptz NOT NULL DEFAULT now(),
         PRIMARY KEY (fleet, name)
     );
     ALTER TABLE depot_object ALTER bytes SET STORAGE EXTERNAL;
     ALTER TABLE depot_object SET (
         autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
         toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_threshold = 5000
     );
     COMMENT ON TABLE depot_object IS 'Sealed bundles of opik-offline, until the Opik server has them';",
];

/// Whether the server is read-only, and whether it has the tables.
const GREETING: &str = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean, \
                               to_regclass('depot_schema') IS NOT NULL";
/// The version of the schema, and the lowest version of a program that may use it.
const VERSIONS: &str = "SELECT max(version), max(reader) FROM depot_schema";

/// Opens the transaction of a migration. The lock is the transaction's, so that it survives no pooler's swap of the
/// connection; a program that dies in here must not keep it.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
     SET LOCAL idle_in_transaction_session_timeout = '30s'; \
     SET LOCAL lock_timeout = '15s'; \
     SELECT pg_advisory_xact_lock(7310583924460111461); \
     CREATE TABLE IF NOT EXISTS depot_schema (
         version integer PRIMARY KEY, reader integer NOT NULL, made_at timestamptz NOT NULL DEFAULT now()
     )";

/// Why a server cannot be used.
pub(super) enum SchemaFault {
    /// The server or the connection.
    Session(PostgresFault),
    /// A program with this version of the schema is needed.
    TooNew(usize),
}

impl From<PostgresFault> for SchemaFault {
    fn from(fault: PostgresFault) -> Self {
        Self::Session(fault)
    }
}

/// Checks that the server accepts writes, and makes or migrates the tables.
pub(super) fn prepare(session: &mut PostgresSession, deadline: Instant) -> Result<(), SchemaFault> {
    let greeting = session.run_plain(GREETING, deadline)?;
    if cell(&greeting, 0) == Some("t") {
        return Err(PostgresFault::ReadOnly.into());
    }
    if cell(&greeting, 1) == Some("t") && version(session, deadline)? >= VERSION {
        return Ok(());
    }
    session.run_plain(BEGIN, deadline)?;
    // Another process may have migrated while this one waited for the lock.
    let done = version(session, deadline)?;
    for (number, migration) in MIGRATIONS.iter().enumerate().skip(done) {
        session.run_plain(migration, deadline)?;
        let note = format!("INSERT INTO depot_schema (version, reader) VALUES ({0}, 1)", number + 1);
        session.run_plain(&note, deadline)?;
    }
    session.run_plain("COMMIT", deadline)?;
    Ok(())
}

fn version(session: &mut PostgresSession, deadline: Instant) -> Result<usize, SchemaFault> {
    let versions = session.run_plain(VERSIONS, deadline)?;
    let number = |column| cell(&versions, column).and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    match number(1) {
        reader if reader > VERSION => Err(SchemaFault::TooNew(reader)),
        _ => Ok(number(0)),
    }
}

/// Returns a column of the first row as text.
pub(super) fn cell(reply: &PostgresReply, column: usize) -> Option<&str> {
    reply.rows.first()?.get(column)?.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok())
}
