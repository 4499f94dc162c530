//! Columns read back into the words of the domain.

use std::collections::HashMap;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row};

use super::checksum::Covered;
use super::codec::{Codec, Unpacker};
use super::fault::Fault;
use super::large;
use super::seal::{Destination, KeptBody, Lookup, Place, Sealer};
use super::{attachments, lanes, queries};
use crate::message::{
    Body, Credential, Encoding, HeaderSet, Lane, MessageId, MessageStatus, MessageType, Request, Touch,
};
use crate::store::{LastAnswer, Listed};

/// Returns the number kept for an encoding.
pub(super) fn encoding_code(encoding: Encoding) -> u8 {
    match encoding {
        Encoding::Identity => 0,
        Encoding::Gzip => 1,
        Encoding::Deflate => 2,
    }
}

fn encoding(row: &Row<'_>, column: usize) -> Result<Encoding, Fault> {
    match row.get::<_, i64>(column)? {
        0 => Ok(Encoding::Identity),
        1 => Ok(Encoding::Gzip),
        2 => Ok(Encoding::Deflate),
        code => Err(Fault::Damaged(format!("a message has encoding {code}, which does not exist"))),
    }
}

pub(super) fn status(row: &Row<'_>, column: usize) -> Result<MessageStatus, Fault> {
    let code = row.get(column)?;
    MessageStatus::from_code(code)
        .ok_or_else(|| Fault::Damaged(format!("a message has status {code}, which does not exist")))
}

pub(super) fn message_type(row: &Row<'_>, column: usize) -> Result<MessageType, Fault> {
    let name = row.get_ref(column)?.as_str().map_err(rusqlite::Error::from)?;
    MessageType::from_name(name)
        .ok_or_else(|| Fault::Damaged(format!("a message has the type {name:?}, which does not exist")))
}

pub(super) fn touches(row: &Row<'_>, column: usize) -> Result<Vec<Touch>, Fault> {
    let bytes = row.get_ref(column)?.as_blob().map_err(rusqlite::Error::from)?;
    Touch::from_bytes(bytes).ok_or_else(|| Fault::Damaged("the entities of a message are unreadable".into()))
}

/// Reads a number that is never negative.
pub(super) fn unsigned(row: &Row<'_>, column: usize) -> Result<u64, Fault> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| Fault::Damaged(format!("a count is {number}")))
}

/// Lanes by their number, each read once.
#[derive(Default)]
pub(super) struct Lanes(HashMap<i64, Lane>);

impl Lanes {
    /// Returns whose messages this lane has.
    pub(super) fn get(&mut self, connection: &Connection, sealer: &Sealer, lane: i64) -> Result<Lane, Fault> {
        if let Some(lane) = self.0.get(&lane) {
            return Ok(lane.clone());
        }
        let mut statement = connection.prepare_cached(queries::LANE)?;
        let mut found = statement.query([lane])?;
        let row = found.next()?.ok_or_else(|| Fault::Damaged(format!("lane {lane} of a message does not exist")))?;
        let sealed: Option<Vec<u8>> = row.get(2)?;
        let credential: Option<Vec<u8>> = row.get(1)?;
        let credential = credential.map(|value| sealer.value(Lookup::Credential, value, sealed.as_deref()));
        let credential = credential.transpose()?.map(Credential::new);
        let read = Lane { server: lanes::server(row, 3)?, workspace: row.get(0)?, credential };
        self.0.insert(lane, read.clone());
        Ok(read)
    }
}

/// Reads requests: each header set once, and bodies as they were sent.
#[derive(Default)]
pub(super) struct Requests {
    lanes: Lanes,
    header_sets: HashMap<i64, HeaderSet>,
    unpacker: Unpacker,
}

impl Requests {
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
            // The messages with these headers are what it costs.
            Fault::Damaged(reason) => Fault::Message(reason),
            fault => fault,
        })?;
        let headers = HeaderSet::from_wire(&wire);
        self.header_sets.insert(header_set, headers.clone());
        Ok(headers)
    }

    /// Returns the request of a message, or `None` when the message is gone.
    pub(super) fn request(
        &mut self,
        connection: &Connection,
        sealer: &Sealer,
        id: MessageId,
    ) -> Result<Option<Request>, Fault> {
        let mut statement = connection.prepare_cached(queries::REQUEST)?;
        let mut found = statement.query([id.0])?;
        let Some(row) = found.next()? else { return Ok(None) };
        Ok(Some(self.read(connection, sealer, id, row)?.0))
    }

    /// Returns the request of a message that is to be sent, if it is still what was stored; `None` when it is gone.
    ///
    /// # Errors
    ///
    /// [`Fault::Message`] when only this message is damaged.
    pub(super) fn verified(
        &mut self,
        connection: &Connection,
        sealer: &Sealer,
        id: MessageId,
    ) -> Result<Option<Request>, Fault> {
        let mut statement = connection.prepare_cached(queries::REQUEST)?;
        let mut found = statement.query([id.0])?;
        let Some(row) = found.next()? else { return Ok(None) };
        let (request, checksum) = self.read(connection, sealer, id, row)?;
        // Stored by a version that made none.
        let Some(checksum) = checksum else { return Ok(Some(request)) };
        let lane = self.lanes.get(connection, sealer, row.get(9)?)?;
        let message_type: String = row.get(8)?;
        let project: Option<String> = row.get(12)?;
        let covered = Covered {
            id: id.0,
            message_type: &message_type,
            lane: &lane,
            method: &request.method,
            path: &request.path,
            headers: &request.headers,
            encoding: request.body.encoding,
            touches: &touches(row, 10)?,
            items: row.get(11)?,
            project: project.as_deref(),
            accepted_at_ms: row.get(13)?,
        };
        match covered.with(&request.body.bytes) == checksum {
            true => Ok(Some(request)),
            false => Err(Fault::Message("it is not what was stored: its checksum is wrong".into())),
        }
    }

    /// Reads a row of [`queries::REQUEST`], with the checksum that the message was stored with.
    fn read(
        &mut self,
        connection: &Connection,
        sealer: &Sealer,
        id: MessageId,
        row: &Row<'_>,
    ) -> Result<(Request, Option<i64>), Fault> {
        // What does not open or can't be unpacked costs this message and no other.
        let one_message = |fault| match fault {
            Fault::Damaged(reason) => Fault::Message(reason),
            fault => fault,
        };
        let method: String = row.get(0)?;
        let path = sealer.path(id.0, row.get_ref(1)?).map_err(one_message)?;
        let (codec, checksum): (i64, Option<i64>) = (row.get(5)?, row.get(7)?);
        let bytes_sent = unsigned(row, 6)?;
        let to = Destination { encoding: row.get(2)?, method: &method, path: &path };
        let (bytes, checksum) = match row.get_ref(4)? {
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
        let headers = self.header_set(connection, sealer, row.get(3)?)?;
        let body = Body { bytes, encoding: encoding(row, 2).map_err(one_message)? };
        Ok((Request { method, path, headers, body }, checksum))
    }
}

/// Reads a row of [`queries::page`] or [`queries::one_message`].
pub(super) fn listed(
    connection: &Connection,
    sealer: &Sealer,
    lanes: &mut Lanes,
    row: &Row<'_>,
) -> Result<Listed, Fault> {
    let id = MessageId(row.get(0)?);
    let answer = match row.get::<_, Option<i64>>(12)? {
        Some(at_ms) => {
            let text = sealer.text(&Place::Answer { message: id.0 }, row.get_ref(14)?)?;
            Some(LastAnswer { at_ms, status: row.get(13)?, text: text.unwrap_or_default() })
        }
        None => None,
    };
    let message_type = message_type(row, 2)?;
    let has_file = message_type == MessageType::CreateAttachment;
    Ok(Listed {
        id,
        status: status(row, 1)?,
        message_type,
        lane: lanes.get(connection, sealer, row.get(3)?)?,
        project: row.get(4)?,
        method: row.get(5)?,
        path: sealer.path(id.0, row.get_ref(6)?)?,
        items: row.get(7)?,
        body_bytes: unsigned(row, 8)?,
        attachment: if has_file { attachments::of(connection, sealer, id)? } else { None },
        accepted_at_ms: row.get(9)?,
        attempts: row.get(10)?,
        next_attempt_at_ms: row.get(11)?,
        answer,
    })
}
