//! Administering lanes: listing them, adopting those without a server, and moving messages to another lane.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::fault::Fault;
use super::lanes::{self, BatchKeys, LaneReader, server_check};
use super::request_reader::RequestReader;
use super::seal::Sealer;
use super::summary::{CountChanges, CountGroup, counted};
use super::{hold, queries, record, rows, stranded};
use crate::message::{Lane, MessageId, Server};
use crate::store::clock::now_ms;
use crate::store::view::{AdoptionRecord, LaneListed};
use crate::store::work::LaneId;

/// Returns every lane that has messages.
pub(super) fn list(connection: &Connection, sealer: &Sealer, now_ms: i64) -> Result<Vec<LaneListed>, Fault> {
    let mut statement = connection.prepare_cached(queries::LANES)?;
    let mut found = statement.query([])?;
    let mut names = LaneReader::default();
    let mut lanes = Vec::new();
    while let Some(row) = found.next()? {
        let id = row.get(0)?;
        lanes.push(LaneListed {
            id: LaneId(id),
            lane: lanes::without_secrets(connection, sealer, &mut names, id)?,
            waiting: rows::unsigned(row, 1)?,
            rejected: rows::unsigned(row, 2)?,
            hold: hold::hold_of(connection, id, now_ms)?,
        });
    }
    Ok(lanes)
}

/// Returns whether a lane of an earlier version has no server yet.
pub(super) fn any_without_server(connection: &Connection) -> Result<bool, Fault> {
    Ok(connection.prepare_cached(queries::LANES_WITHOUT_SERVER)?.exists([])?)
}

/// Assigns this server to the lanes that have none.
pub(super) fn adopt(tx: &Transaction<'_>, server: &Server) -> Result<u64, Fault> {
    let without: Vec<(i64, i64)> = {
        let mut statement = tx.prepare_cached(queries::LANES_WITHOUT_SERVER)?;
        let lanes = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        lanes.collect::<rusqlite::Result<_>>()?
    };
    let mut messages = 0;
    for (lane, count) in without {
        let base_url = server.base_url();
        tx.prepare_cached(queries::DROP_LIMITS)?.execute([lane])?;
        let sibling: Option<i64> =
            tx.prepare_cached(queries::SIBLING)?.query_row(params![lane, base_url], |row| row.get(0)).optional()?;
        match sibling {
            // One client has one lane: a new write has to see everything that waits.
            Some(sibling) => {
                tx.prepare_cached(queries::MERGE_MESSAGES)?.execute([lane, sibling])?;
                tx.prepare_cached(queries::MERGE_SUMMARY)?.execute([lane, sibling])?;
                tx.prepare_cached(queries::DROP_SUMMARY)?.execute([lane])?;
                tx.prepare_cached(queries::DROP_LANE)?.execute([lane])?;
            }
            None => {
                let check = server_check(base_url);
                tx.prepare_cached(queries::SET_SERVER)?.execute(params![lane, base_url, check])?;
            }
        }
        messages += count.unsigned_abs();
    }
    if messages > 0 {
        stranded::note_unstranded(tx)?;
        tx.prepare_cached(queries::NOTE_ADOPTION)?.execute(params![
            now_ms(),
            server.base_url(),
            i64::try_from(messages).unwrap_or(i64::MAX)
        ])?;
    }
    Ok(messages)
}

/// Returns which servers adopted messages of earlier versions.
pub(super) fn adoptions(connection: &Connection) -> Result<Vec<AdoptionRecord>, Fault> {
    let mut statement = connection.prepare_cached(queries::ADOPTIONS)?;
    let mut found = statement.query([])?;
    let mut adoptions = Vec::new();
    while let Some(row) = found.next()? {
        let server = Server::new(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?);
        adoptions.push(AdoptionRecord { at_ms: row.get(0)?, server, messages: rows::unsigned(row, 2)? });
    }
    Ok(adoptions)
}

/// Moves messages of a lane to another one. The checksum covers the lane, so it is replaced if workspace or credential
/// change.
pub(super) fn reassign(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    from: LaneId,
    to: &Lane,
    limit: usize,
) -> Result<u64, Fault> {
    let old = LaneReader::default().get(tx, sealer, from.0)?;
    let target = BatchKeys::default().lane(tx, sealer, to)?;
    if target == from.0 {
        return Ok(0);
    }
    let is_covered = (&old.workspace, &old.credential) != (&to.workspace, &to.credential);
    let ids: Vec<i64> = {
        let mut statement = tx.prepare_cached(queries::TO_REASSIGN)?;
        let ids = statement.query_map(params![from.0, i64::try_from(limit).unwrap_or(i64::MAX)], |row| row.get(0))?;
        ids.collect::<rusqlite::Result<_>>()?
    };
    let mut requests = RequestReader::default();
    let mut changes = CountChanges::default();
    for id in &ids {
        if is_covered {
            replace_checksum(tx, sealer, &mut requests, *id, to)?;
        }
        let (group, size) =
            tx.prepare_cached(queries::SET_LANE)?.query_row(params![id, target], |row| Ok(counted(row)))??;
        changes.take(CountGroup { lane: from.0, ..group }, size);
        changes.add(group, size);
    }
    changes.write(tx)?;
    // Messages that waited behind a refused create of the old lane may be free now, and the reverse.
    stranded::note_unstranded(tx)?;
    Ok(ids.len() as u64)
}

/// Replaces the checksum of a message for another lane. A damaged message stays damaged, and is found when it is
/// claimed; a message of a version without checksums gets none.
fn replace_checksum(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    requests: &mut RequestReader,
    id: i64,
    to: &Lane,
) -> Result<(), Fault> {
    let request = match requests.verified(tx, sealer, MessageId(id)) {
        Ok(Some(request)) => request,
        Ok(None) | Err(Fault::Message(_)) => return Ok(()),
        Err(fault) => return Err(fault),
    };
    record::move_to_lane(tx, sealer, id, &request, to)
}
