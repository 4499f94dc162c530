//! Waiting until messages are delivered: how many of those accepted up to a moment still wait, and making them due.

use rusqlite::{Connection, Row, Transaction, params};

use super::fault::Fault;
use super::lanes::lane_id;
use super::queries;
use super::record::position_of;
use super::seal::Sealer;
use crate::message::MessageId;
use crate::store::clock::now_ms;
use crate::store::view::{Standing, Whose};

/// The most lanes that are examined or made due together.
const LANES_MAX: i64 = 10_000;
/// How many messages of a lane are made due.
const MADE_DUE_MAX: i64 = 4096;

pub(super) fn newest(connection: &Connection) -> Result<MessageId, Fault> {
    let next: i64 = connection.prepare_cached(queries::NEXT_ID)?.query_row([], |row| row.get(0))?;
    Ok(MessageId(next - 1))
}

pub(super) fn standing(
    connection: &Connection,
    sealer: &Sealer,
    whose: &Whose,
    up_to: MessageId,
) -> Result<Standing, Fault> {
    let lanes = lanes(connection, sealer, whose)?;
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let (waiting, rejected): (i64, i64) = match (whose, lanes.first()) {
        (Whose::Lane(_), None) => return Ok(Standing::default()),
        (Whose::Lane(_), Some(lane)) => connection.prepare_cached(queries::LANE_COUNTS)?.query_row([lane], read)?,
        (Whose::Server(server), _) => {
            connection.prepare_cached(queries::SERVER_COUNTS)?.query_row([server.base_url()], read)?
        }
    };
    let count = |messages: i64| u64::try_from(messages).unwrap_or(0);
    let mut standing = Standing { waits: false, waiting: count(waiting), rejected: count(rejected) };
    for lane in lanes {
        // A part of a divided message has the position of the whole, an update that waited for its create a later one.
        let last = position_of(up_to.0).saturating_add(1);
        for sql in [queries::WAITS_UP_TO, queries::IN_FLIGHT_UP_TO, queries::WAITS_MOVED] {
            if standing.waiting > 0 && connection.prepare_cached(sql)?.exists(params![lane, up_to.0, last])? {
                standing.waits = true;
                return Ok(standing);
            }
        }
    }
    Ok(standing)
}

pub(super) fn hasten(tx: &Transaction<'_>, sealer: &Sealer, whose: &Whose) -> Result<(), Fault> {
    for lane in lanes(tx, sealer, whose)? {
        tx.prepare_cached(queries::MAKE_LANE_DUE)?.execute(params![lane, now_ms()])?;
        tx.prepare_cached(queries::MAKE_FIRST_DUE)?.execute(params![lane, MADE_DUE_MAX])?;
    }
    Ok(())
}

/// Returns the row id of a lane, or those of all lanes of a server with messages to replay.
fn lanes(connection: &Connection, sealer: &Sealer, whose: &Whose) -> Result<Vec<i64>, Fault> {
    match whose {
        Whose::Lane(lane) => Ok(lane_id(connection, sealer, lane)?.into_iter().collect()),
        Whose::Server(server) => {
            let mut statement = connection.prepare_cached(queries::LANES_WITH_WORK)?;
            let lanes = statement.query_map(params![LANES_MAX, server.base_url()], |row| row.get(0))?;
            Ok(lanes.collect::<rusqlite::Result<_>>()?)
        }
    }
}
