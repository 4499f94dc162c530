//! Lanes as rows: finding and adding them, and reading them back.
//!
//! A lane's credential is stored once per store and sealed where the store is encrypted; its server is stored with a
//! checksum, because a damaged URL must not send a key to another host.

use std::borrow::Cow;
use std::collections::HashMap;

use libdeflater::Crc;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::fault::Fault;
use super::seal::{Lookup, Sealer};
use super::{header_sets, queries};
use crate::message::{Credential, HeaderSet, Lane, Server};

/// Returns the checksum that is stored beside a server's URL.
pub(super) fn server_check(base_url: &str) -> i64 {
    let mut crc = Crc::new();
    crc.update(base_url.as_bytes());
    i64::from(crc.sum())
}

/// Reads a server and, in the next column, its checksum: a damaged URL would name another host.
pub(super) fn server(row: &Row<'_>, column: usize) -> Result<Option<Server>, Fault> {
    server_like(row, column, None)
}

/// The same, sharing the text of a server that is often the one.
fn server_like(row: &Row<'_>, column: usize, known: Option<&Server>) -> Result<Option<Server>, Fault> {
    let base_url = row.get_ref(column)?.as_str_or_null().map_err(rusqlite::Error::from)?;
    let Some(base_url) = base_url else { return Ok(None) };
    match row.get::<_, Option<i64>>(column + 1)? == Some(server_check(base_url)) {
        true => {
            let known = known.filter(|known| known.base_url() == base_url);
            Ok(Some(known.cloned().unwrap_or_else(|| Server::new(base_url))))
        }
        false => Err(Fault::Damaged("the server of a lane is not what was stored: its checksum is wrong".into())),
    }
}

/// Returns what the credential of a lane is looked up by.
pub(super) fn looked_up_by<'a>(sealer: &Sealer, lane: &'a Lane) -> Result<Option<Cow<'a, [u8]>>, Fault> {
    lane.credential.as_ref().map(|credential| sealer.lookup(Lookup::Credential, credential.reveal())).transpose()
}

/// Returns the row id of a lane, or `None` if it never had a message.
pub(super) fn lane_id(connection: &Connection, sealer: &Sealer, lane: &Lane) -> Result<Option<i64>, Fault> {
    let credential = looked_up_by(sealer, lane)?;
    let mut statement = connection.prepare_cached(queries::LANE_ID)?;
    Ok(statement.query_row(params![lane.workspace, credential, base_url(lane)], |row| row.get(0)).optional()?)
}

/// The row ids of the lanes and header sets of one batch, each looked up once.
#[derive(Default)]
pub(super) struct BatchKeys<'batch> {
    lanes: HashMap<&'batch Lane, i64>,
    header_sets: HashMap<&'batch HeaderSet, i64>,
}

impl<'batch> BatchKeys<'batch> {
    /// Returns the row id of a lane, which is added if it is new.
    pub(super) fn lane(&mut self, tx: &Transaction<'_>, sealer: &Sealer, lane: &'batch Lane) -> Result<i64, Fault> {
        if let Some(id) = self.lanes.get(lane) {
            return Ok(*id);
        }
        let id = match lane_id(tx, sealer, lane)? {
            Some(id) => id,
            None => {
                let keep = |credential: &Credential| sealer.seal_value(Lookup::Credential, credential.reveal());
                let credential = lane.credential.as_ref().map(keep).transpose()?;
                if let Some((by, sealed)) = &credential {
                    tx.prepare_cached(queries::KEEP_CREDENTIAL)?.execute(params![by, sealed])?;
                }
                let by = credential.map(|(by, _)| by);
                tx.prepare_cached(queries::ADD_LANE)?
                    .query_row(params![lane.workspace, by, base_url(lane), base_url(lane).map(server_check)], |row| {
                        row.get(0)
                    })?
            }
        };
        self.lanes.insert(lane, id);
        Ok(id)
    }

    /// Returns the row id of a header set, which is added if it is new.
    pub(super) fn header_set(
        &mut self,
        tx: &Transaction<'_>,
        sealer: &Sealer,
        headers: &'batch HeaderSet,
    ) -> Result<i64, Fault> {
        if let Some(id) = self.header_sets.get(headers) {
            return Ok(*id);
        }
        let id = header_sets::find_or_add(tx, sealer, headers)?;
        self.header_sets.insert(headers, id);
        Ok(id)
    }
}

/// Returns the server of a lane as it is stored.
pub(super) fn base_url(lane: &Lane) -> Option<&str> {
    lane.server.as_ref().map(Server::base_url)
}

/// Lanes by row id, each read once.
#[derive(Default)]
pub(super) struct LaneCache {
    lanes: HashMap<i64, Lane>,
    /// The server of the last one.
    server: Option<Server>,
}

impl LaneCache {
    /// Returns the lane with this row id.
    pub(super) fn get(&mut self, connection: &Connection, sealer: &Sealer, lane: i64) -> Result<Lane, Fault> {
        if let Some(lane) = self.lanes.get(&lane) {
            return Ok(lane.clone());
        }
        let mut statement = connection.prepare_cached(queries::LANE)?;
        let mut found = statement.query([lane])?;
        let row = found.next()?.ok_or_else(|| Fault::Damaged(format!("lane {lane} of a message does not exist")))?;
        let sealed: Option<Vec<u8>> = row.get(2)?;
        let credential: Option<Vec<u8>> = row.get(1)?;
        let credential = credential.map(|value| sealer.value(Lookup::Credential, value, sealed.as_deref()));
        let credential = credential.transpose()?.map(Credential::new);
        let server = server_like(row, 3, self.server.as_ref())?;
        self.server.clone_from(&server);
        let read = Lane { server, workspace: row.get(0)?, credential };
        self.lanes.insert(lane, read.clone());
        Ok(read)
    }
}

/// Returns a lane to show to people: without its credential if the key is missing. The existence of a lane is not a
/// secret.
pub(super) fn without_secrets(
    connection: &Connection,
    sealer: &Sealer,
    names: &mut LaneCache,
    lane: i64,
) -> Result<Lane, Fault> {
    match names.get(connection, sealer, lane) {
        Err(Fault::KeyMissing { .. } | Fault::WrongKey { .. }) => {
            let mut statement = connection.prepare_cached(queries::LANE)?;
            let mut found = statement.query([lane])?;
            let Some(row) = found.next()? else { return Ok(Lane::default()) };
            Ok(Lane { server: server(row, 3)?, workspace: row.get(0)?, credential: None })
        }
        lane => lane,
    }
}
