//! Raw SQLite: one table, one blob a row, the same bytes, WAL and `synchronous=FULL`.

use std::path::Path;
use std::time::{Duration, Instant};

/// Writes each body as a row, this many rows per transaction, and returns how long that took.
pub(crate) fn write(folder: &Path, bodies: &[Vec<u8>], rows: usize) -> Duration {
    let connection = rusqlite::Connection::open(folder.join("raw.db")).expect("a new database");
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE rows (id INTEGER PRIMARY KEY, body BLOB)",
        )
        .expect("a table");
    let started = Instant::now();
    for chunk in bodies.chunks(rows) {
        connection.execute_batch("BEGIN IMMEDIATE").expect("a transaction");
        let mut insert = connection.prepare_cached("INSERT INTO rows (body) VALUES (?1)").expect("a statement");
        for body in chunk {
            insert.execute([body]).expect("a row");
        }
        connection.execute_batch("COMMIT").expect("a commit");
    }
    started.elapsed()
}
