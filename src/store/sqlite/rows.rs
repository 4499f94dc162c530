//! Columns read back into the words of the domain.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row};

use super::checksum::Covered;
use super::codec::Unpacker;
use super::fault::Fault;
use super::{attachments, queries};
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
    pub(super) fn get(&mut self, connection: &Connection, lane: i64) -> Result<Lane, Fault> {
        if let Some(lane) = self.0.get(&lane) {
            return Ok(lane.clone());
        }
        let read = connection
            .prepare_cached(queries::LANE)?
            .query_row([lane], |row| {
                let credential: Option<Vec<u8>> = row.get(1)?;
                Ok(Lane { workspace: row.get(0)?, credential: credential.map(Credential::new) })
            })
            .optional()?
            .ok_or_else(|| Fault::Damaged(format!("lane {lane} of a message does not exist")))?;
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
    fn header_set(&mut self, connection: &Connection, header_set: i64) -> Result<HeaderSet, Fault> {
        if let Some(headers) = self.header_sets.get(&header_set) {
            return Ok(headers.clone());
        }
        let wire: Vec<u8> = connection
            .prepare_cached(queries::HEADER_SET)?
            .query_row([header_set], |row| row.get(0))
            .optional()?
            .ok_or_else(|| Fault::Damaged(format!("header set {header_set} of a message does not exist")))?;
        let headers = HeaderSet::from_wire(&wire);
        self.header_sets.insert(header_set, headers.clone());
        Ok(headers)
    }

    /// Returns the request of a message, or `None` when the message is gone.
    pub(super) fn request(&mut self, connection: &Connection, id: MessageId) -> Result<Option<Request>, Fault> {
        let mut statement = connection.prepare_cached(queries::REQUEST)?;
        let mut found = statement.query([id.0])?;
        let Some(row) = found.next()? else { return Ok(None) };
        self.read(connection, row).map(Some)
    }

    /// Returns the request of a message that is to be sent, if it is still what was stored; `None` when it is gone.
    ///
    /// # Errors
    ///
    /// [`Fault::Message`] when only this message is damaged.
    pub(super) fn verified(&mut self, connection: &Connection, id: MessageId) -> Result<Option<Request>, Fault> {
        let mut statement = connection.prepare_cached(queries::REQUEST)?;
        let mut found = statement.query([id.0])?;
        let Some(row) = found.next()? else { return Ok(None) };
        let request = self.read(connection, row)?;
        // Stored by a version that made none.
        let Some(checksum) = row.get::<_, Option<i64>>(7)? else { return Ok(Some(request)) };
        let lane = self.lanes.get(connection, row.get(9)?)?;
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

    fn read(&mut self, connection: &Connection, row: &Row<'_>) -> Result<Request, Fault> {
        let kept = row.get_ref(4)?.as_blob().map_err(rusqlite::Error::from)?;
        let one_message = |fault| match fault {
            Fault::Damaged(reason) => Fault::Message(reason),
            fault => fault,
        };
        let bytes = self.unpacker.unpack(row.get(5)?, kept, unsigned(row, 6)?).map_err(one_message)?;
        Ok(Request {
            method: row.get(0)?,
            path: row.get(1)?,
            headers: self.header_set(connection, row.get(3)?)?,
            body: Body { bytes, encoding: encoding(row, 2).map_err(one_message)? },
        })
    }
}

/// Reads a row of [`queries::page`] or [`queries::one_message`].
pub(super) fn listed(connection: &Connection, lanes: &mut Lanes, row: &Row<'_>) -> Result<Listed, Fault> {
    let answer = match row.get::<_, Option<i64>>(12)? {
        Some(at_ms) => {
            Some(LastAnswer { at_ms, status: row.get(13)?, text: row.get::<_, Option<_>>(14)?.unwrap_or_default() })
        }
        None => None,
    };
    let id = MessageId(row.get(0)?);
    let message_type = message_type(row, 2)?;
    let has_file = message_type == MessageType::CreateAttachment;
    Ok(Listed {
        id,
        status: status(row, 1)?,
        message_type,
        lane: lanes.get(connection, row.get(3)?)?,
        project: row.get(4)?,
        method: row.get(5)?,
        path: row.get(6)?,
        items: row.get(7)?,
        body_bytes: unsigned(row, 8)?,
        attachment: if has_file { attachments::of(connection, id)? } else { None },
        accepted_at_ms: row.get(9)?,
        attempts: row.get(10)?,
        next_attempt_at_ms: row.get(11)?,
        answer,
    })
}
