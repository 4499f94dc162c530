//! Lanes as rows: which server they are for, moving their messages to another lane, and erasing credentials.

use libdeflater::Crc;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::checksum::Covered;
use super::fault::Fault;
use super::large;
use super::register::Names;
use super::rows::{self, Lanes, Requests};
use super::seal::{Destination, KeptBody, Sealer};
use super::summary::{Changes, Group, counted};
use super::{queries, settle, stranded};
use crate::message::{Lane, MessageId, Server};
use crate::store::{AdoptionRecord, LaneId, LaneListed, now_ms};

/// Returns the checksum of a server's URL as it is kept.
pub(super) fn server_check(base_url: &str) -> i64 {
    let mut crc = Crc::new();
    crc.update(base_url.as_bytes());
    i64::from(crc.sum())
}

/// Reads a server and, in the column behind it, its checksum: a damaged URL names another host.
pub(super) fn server(row: &Row<'_>, column: usize) -> Result<Option<Server>, Fault> {
    let Some(base_url) = row.get::<_, Option<String>>(column)? else { return Ok(None) };
    match row.get::<_, Option<i64>>(column + 1)? == Some(server_check(&base_url)) {
        true => Ok(Some(Server::new(&base_url))),
        false => Err(Fault::Damaged("the server of a lane is not what was stored: its checksum is wrong".into())),
    }
}

/// Returns every lane that has a message.
pub(super) fn list(connection: &Connection, sealer: &Sealer, now_ms: i64) -> Result<Vec<LaneListed>, Fault> {
    let mut statement = connection.prepare_cached(queries::LANES)?;
    let mut found = statement.query([])?;
    let mut names = Lanes::default();
    let mut lanes = Vec::new();
    while let Some(row) = found.next()? {
        let id = row.get(0)?;
        lanes.push(LaneListed {
            id: LaneId(id),
            lane: settle::for_people(connection, sealer, &mut names, id)?,
            waiting: rows::unsigned(row, 1)?,
            rejected: rows::unsigned(row, 2)?,
            hold: settle::hold_of(connection, id, now_ms)?,
        });
    }
    Ok(lanes)
}

/// Returns whether a lane of an earlier version has no server yet.
pub(super) fn any_without_server(connection: &Connection) -> Result<bool, Fault> {
    Ok(connection.prepare_cached(queries::LANES_WITHOUT_SERVER)?.exists([])?)
}

/// Gives the lanes that have no server to this one.
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
            // One client has one lane: a write that comes has to see all that waits.
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

/// Returns which servers were given messages of earlier versions.
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

/// Gives messages of a lane to another one: the checksum covers whose they are, so it is made anew where that changes.
pub(super) fn reassign(
    tx: &Transaction<'_>,
    sealer: &Sealer,
    from: LaneId,
    to: &Lane,
    limit: usize,
) -> Result<u64, Fault> {
    let old = Lanes::default().get(tx, sealer, from.0)?;
    let target = Names::default().lane(tx, sealer, to)?;
    if target == from.0 {
        return Ok(0);
    }
    let is_covered = (&old.workspace, &old.credential) != (&to.workspace, &to.credential);
    let ids: Vec<i64> = {
        let mut statement = tx.prepare_cached(queries::TO_REASSIGN)?;
        let ids = statement.query_map(params![from.0, i64::try_from(limit).unwrap_or(i64::MAX)], |row| row.get(0))?;
        ids.collect::<rusqlite::Result<_>>()?
    };
    let mut requests = Requests::default();
    let mut changes = Changes::default();
    for id in &ids {
        if is_covered {
            cover_anew(tx, sealer, &mut requests, *id, to)?;
        }
        let (group, size) =
            tx.prepare_cached(queries::SET_LANE)?.query_row(params![id, target], |row| Ok(counted(row)))??;
        changes.take(Group { lane: from.0, ..group }, size);
        changes.add(group, size);
    }
    changes.write(tx)?;
    // What waited behind a refused create of the old lane may be free, and the other way round.
    stranded::note_unstranded(tx)?;
    Ok(ids.len() as u64)
}

/// Makes the checksum of a message anew for another lane. One that is damaged already stays so, and is found when it is
/// claimed; one of a version that made none gets none.
fn cover_anew(tx: &Transaction<'_>, sealer: &Sealer, requests: &mut Requests, id: i64, to: &Lane) -> Result<(), Fault> {
    let request = match requests.verified(tx, sealer, MessageId(id)) {
        Ok(Some(request)) => request,
        Ok(None) | Err(Fault::Message(_)) => return Ok(()),
        Err(fault) => return Err(fault),
    };
    let (kept, encoding) = {
        let mut statement = tx.prepare_cached(queries::BODY_TO_RESEAL)?;
        let mut found = statement.query([id])?;
        let Some(row) = found.next()? else { return Ok(()) };
        let encoding: i64 = row.get(2)?;
        let to = Destination { encoding, method: &request.method, path: &request.path };
        let bytes = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
        let kept = KeptBody { bytes: bytes.into(), codec: row.get(0)?, checksum: row.get(5)? };
        let opened = sealer.open_body(id, &to, kept)?;
        (KeptBody { bytes: opened.bytes.into_owned().into(), ..opened }, encoding)
    };
    if large::checksum_of(&kept).is_none() {
        return Ok(());
    }
    let checksum = {
        let mut statement = tx.prepare_cached(queries::COVERED)?;
        let mut found = statement.query([id])?;
        let Some(row) = found.next()? else { return Ok(()) };
        let (message_type, project): (String, Option<String>) = (row.get(0)?, row.get(2)?);
        let covered = Covered {
            id,
            message_type: &message_type,
            lane: to,
            method: &request.method,
            path: &request.path,
            headers: &request.headers,
            encoding: request.body.encoding,
            touches: &rows::touches(row, 4)?,
            items: row.get(1)?,
            project: project.as_deref(),
            accepted_at_ms: row.get(3)?,
        };
        covered.with(&request.body.bytes)
    };
    let destination = Destination { encoding, method: &request.method, path: &request.path };
    let kept = sealer.keep_body(id, &destination, KeptBody { checksum: Some(checksum), ..kept })?;
    tx.prepare_cached(queries::SET_BODY)?.execute(params![id, &kept.bytes[..], kept.codec, kept.checksum])?;
    Ok(())
}

/// With more messages than this, header sets are not looked through: no index says which of them are needed.
const MESSAGES_LOOKED_THROUGH_MAX: i64 = 5000;

/// Returns whether something could be erased: a lane without messages, its credential, or a set of headers, which may hold
/// a cookie or the token of a gate.
pub(super) fn any_to_erase(connection: &Connection) -> Result<bool, Fault> {
    let any_lane = connection.prepare_cached(queries::ANY_EMPTY_LANE)?.exists([now_ms()])?;
    Ok(any_lane || any_unused(connection, queries::ANY_UNUSED_CREDENTIAL)? || any_unused_header_set(connection)?)
}

fn any_unused(connection: &Connection, sql: &str) -> Result<bool, Fault> {
    Ok(connection.prepare_cached(sql)?.exists([])?)
}

fn any_unused_header_set(connection: &Connection) -> Result<bool, Fault> {
    let messages: i64 = connection.prepare_cached(queries::MESSAGES_IN_ALL)?.query_row([], |row| row.get(0))?;
    Ok(messages <= MESSAGES_LOOKED_THROUGH_MAX && any_unused(connection, queries::ANY_UNUSED_HEADER_SET)?)
}

/// Forgets lanes that hold nothing, and erases credentials and header sets that nothing needs; returns whether something
/// secret was erased, and may still be in the log. `secure_delete` is on: what SQLite frees, it overwrites with zeros.
pub(super) fn erase(tx: &Transaction<'_>) -> Result<bool, Fault> {
    tx.execute(queries::FORGET_LANES, [now_ms()])?;
    tx.execute(queries::FORGET_LIMITS, [])?;
    let mut is_erased = false;
    if any_unused(tx, queries::ANY_UNUSED_CREDENTIAL)? {
        let (used, put_back) = (queries::USED_CREDENTIALS, queries::PUT_CREDENTIAL_BACK);
        write_anew(tx, used, queries::CLEAR_CREDENTIALS, put_back)?;
        is_erased = true;
    }
    if any_unused_header_set(tx)? {
        let (used, put_back) = (queries::USED_HEADER_SETS, queries::PUT_HEADER_SET_BACK);
        write_anew(tx, used, queries::CLEAR_HEADER_SETS, put_back)?;
        is_erased = true;
    }
    Ok(is_erased)
}

/// Writes what is needed of a table anew, into cleared pages. Deleting single rows would leave copies of them where SQLite
/// has moved rows between pages.
fn write_anew(tx: &Transaction<'_>, used: &str, clear: &str, put_back: &str) -> Result<(), Fault> {
    type Kept = (i64, Vec<u8>, Option<Vec<u8>>);
    let used: Vec<Kept> = {
        let mut statement = tx.prepare_cached(used)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect::<rusqlite::Result<_>>()?
    };
    tx.execute(clear, [])?;
    let mut put_back = tx.prepare_cached(put_back)?;
    for (id, value, sealed) in used {
        put_back.execute(params![id, value, sealed])?;
    }
    Ok(())
}

/// Empties the log, and returns whether that worked: another process that reads keeps it.
pub(super) fn empty_log(connection: &Connection) -> Result<bool, Fault> {
    let busy: Option<bool> = connection.query_row(queries::EMPTY_LOG, [], |row| row.get(0)).optional()?;
    Ok(busy == Some(false))
}
