//! Reading the requests of stored messages back as they were sent.

use std::collections::HashMap;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row};

use super::codec::{Codec, Unpacker};
use super::fault::Fault;
use super::lanes::LaneReader;
use super::record::{self, COLUMNS, Column, MessageContent};
use super::seal::{Destination, KeptBody, Lookup, Sealer};
use super::{large, queries, rows};
use crate::message::{Body, HeaderSet, MessageId, Request};

/// Reads requests: each lane and header set once, and bodies decoded.
#[derive(Default)]
pub(super) struct RequestReader {
    lanes: LaneReader,
    header_sets: HashMap<i64, HeaderSet>,
    unpacker: Unpacker,
}

impl RequestReader {
    fn header_set(&mut self, connection: &Connection, sealer: &Sealer, header_set: i64) -> Result<HeaderSet, Fault> {
        if let Some(headers) = self.header_sets.get(&header_set) {
            return Ok(headers.clone());
        }
        let (wire, sealed): (Vec<u8>, Option<Vec<u8>>) = connection
            .prepare_cached(queries::HEADER_SET)?
            .query_row([header_set], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?
            .ok_or_else(|| Fault::Damaged(format!("header set {header_set} of a message does not exist")))?;
        let wire = sealer.value(Lookup::HeaderSet, wire, sealed.as_deref()).map_err(|fault| match fault {
            // It costs the messages with these headers.
            Fault::Damaged(reason) => Fault::Message(reason),
            fault => fault,
        })?;
        let headers = HeaderSet::from_wire(&wire);
        self.header_sets.insert(header_set, headers.clone());
        Ok(headers)
    }

    /// Returns the request of a message, or `None` if the message does not exist.
    pub(super) fn request(
        &mut self,
        connection: &Connection,
        sealer: &Sealer,
        id: MessageId,
    ) -> Result<Option<Request>, Fault> {
        let mut statement = connection.prepare_cached(record::SELECT_WITH_BODY)?;
        let mut found = statement.query([id.0])?;
        let Some(row) = found.next()? else { return Ok(None) };
        Ok(Some(self.read(connection, sealer, id, row)?.0))
    }

    /// Returns the request of a message for sending, after verifying its checksum; `None` if the message does not
    /// exist.
    ///
    /// # Errors
    ///
    /// [`Fault::Message`] if only this message is damaged.
    pub(super) fn verified(
        &mut self,
        connection: &Connection,
        sealer: &Sealer,
        id: MessageId,
    ) -> Result<Option<Request>, Fault> {
        let mut statement = connection.prepare_cached(record::SELECT_WITH_BODY)?;
        let mut found = statement.query([id.0])?;
        let Some(row) = found.next()? else { return Ok(None) };
        let (request, checksum) = self.read(connection, sealer, id, row)?;
        // Stored by a version without checksums.
        let Some(checksum) = checksum else { return Ok(Some(request)) };
        let lane = self.lanes.get(connection, sealer, row.get(Column::Lane as usize)?)?;
        let content = MessageContent::read(row, &request, &lane)?;
        match content.checksum(&request.body.bytes) == checksum {
            true => Ok(Some(request)),
            false => Err(Fault::Message("it is not what was stored: its checksum is wrong".into())),
        }
    }

    /// Reads a row of [`record::SELECT_WITH_BODY`], with the stored checksum.
    fn read(
        &mut self,
        connection: &Connection,
        sealer: &Sealer,
        id: MessageId,
        row: &Row<'_>,
    ) -> Result<(Request, Option<i64>), Fault> {
        // A value that cannot be opened or decoded costs this message and no other.
        let one_message = |fault| match fault {
            Fault::Damaged(reason) => Fault::Message(reason),
            fault => fault,
        };
        let method: String = row.get(Column::Method as usize)?;
        let path = sealer.path(id.0, row.get_ref(Column::Path as usize)?).map_err(one_message)?;
        let (codec, checksum): (i64, Option<i64>) = (row.get(COLUMNS + 1)?, row.get(COLUMNS + 3)?);
        let bytes_sent = rows::unsigned(row, COLUMNS + 2)?;
        let to = Destination { encoding: row.get(Column::Encoding as usize)?, method: &method, path: &path };
        let (bytes, checksum) = match row.get_ref(COLUMNS)? {
            ValueRef::Null if codec == Codec::Zstd1 as i64 => {
                let (bytes, behind) = large::unpack(connection, id.0, bytes_sent).map_err(one_message)?;
                (bytes, checksum.or(behind))
            }
            value => {
                let bytes = match value {
                    ValueRef::Null => large::read(connection, id.0)?.into(),
                    value => value.as_blob().map_err(rusqlite::Error::from)?.into(),
                };
                let kept = KeptBody { bytes, codec, checksum };
                let packed = sealer.open_body(id.0, &to, kept).map_err(one_message)?;
                let checksum = large::checksum_of(&packed);
                let bytes = self.unpacker.unpack(packed.codec, packed.bytes, bytes_sent).map_err(one_message)?;
                (bytes, checksum)
            }
        };
        let headers = self.header_set(connection, sealer, row.get(Column::HeaderSet as usize)?)?;
        let body = Body { bytes, encoding: rows::encoding(row, Column::Encoding as usize).map_err(one_message)? };
        Ok((Request { method, path, headers, body }, checksum))
    }
}
