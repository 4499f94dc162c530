//! Browsing: the backlog, lists of messages, who uses the store, and whether it is sound.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::attachments;
use super::fault::Fault;
use super::lanes::LaneCache;
use super::queries::{self, SqlFilter, bind};
use super::record::Column;
use super::request_reader::RequestReader;
use super::seal::{SealContext, Sealer};
use super::{rows, summary};
use crate::message::{MessageId, MessageStatus, MessageType, Server, workspace_shown};
use crate::store::view::{
    AgentRecord, Backlog, BacklogGroup, Filter, Listed, Page, RecoveryRecord, ReplayRecord, StoredMessage,
};
use crate::store::work::LastAnswer;

/// The most problems that one check describes.
const PROBLEMS_MAX: u32 = 20;

/// Counts what the filter selects, from the summary if possible.
pub(super) fn backlog(connection: &Connection, filter: &Filter) -> Result<Backlog, Fault> {
    let selection = SqlFilter::of(filter);
    let groups = groups(connection, &selection)?;
    let waiting = groups.iter().any(|group| group.status.is_on_its_way());
    let rejected = groups.iter().any(|group| group.status == MessageStatus::Rejected);
    Ok(Backlog {
        oldest_accepted_at_ms: if waiting { oldest(connection, &selection)? } else { None },
        rejected_by_answer: if rejected { rejected_by_answer(connection, &selection)? } else { Vec::new() },
        groups,
    })
}

fn groups(connection: &Connection, selection: &SqlFilter) -> Result<Vec<BacklogGroup>, Fault> {
    let mut statement = connection.prepare_cached(&queries::counted(selection))?;
    selection.bind(&mut statement)?;
    let mut found = statement.raw_query();
    let mut sums: HashMap<(MessageStatus, MessageType, i64), [u64; 3]> = HashMap::new();
    while let Some(row) = found.next()? {
        let sum = sums.entry((rows::status(row, 0)?, rows::message_type(row, 1)?, row.get(2)?)).or_default();
        for (column, sum) in (3..).zip(sum) {
            *sum += rows::unsigned(row, column)?;
        }
    }
    let mut lane_shown = connection.prepare_cached(queries::LANE_SHOWN)?;
    let mut lanes: HashMap<i64, (String, Option<Server>)> = HashMap::new();
    let mut groups = Vec::with_capacity(sums.len());
    for ((status, message_type, lane), [messages, items, body_bytes]) in sums {
        let (workspace, server) = match lanes.entry(lane) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let (workspace, server): (String, Option<String>) =
                    lane_shown.query_row([lane], |row| Ok((row.get(0)?, row.get(1)?)))?;
                unknown.insert((workspace_shown(&workspace).to_owned(), server.as_deref().map(Server::new)))
            }
        };
        let (workspace, server) = (workspace.clone(), server.clone());
        groups.push(BacklogGroup { status, message_type, workspace, server, messages, items, body_bytes });
    }
    let place = |status| MessageStatus::STORED.iter().position(|stored| *stored == status);
    let order = |a: &BacklogGroup, b: &BacklogGroup| {
        let key = |group: &BacklogGroup| (place(group.status), group.message_type);
        key(a).cmp(&key(b)).then_with(|| (&a.workspace, &a.server).cmp(&(&b.workspace, &b.server)))
    };
    groups.sort_by(order);
    // A workspace has a lane for each of its keys.
    groups.dedup_by(|later, first| {
        let is_same = order(later, first).is_eq();
        if is_same {
            first.messages += later.messages;
            first.items += later.items;
            first.body_bytes += later.body_bytes;
        }
        is_same
    });
    Ok(groups)
}

/// The first message in delivery order represents its lane: ids and positions grow with acceptance.
fn oldest(connection: &Connection, selection: &SqlFilter) -> Result<Option<i64>, Fault> {
    let mut oldest: Option<i64> = None;
    let mut note = |accepted: Option<i64>| oldest = [oldest, accepted].into_iter().flatten().min();

    let mut in_flight = connection.prepare_cached(&queries::oldest_in_flight(selection))?;
    selection.bind(&mut in_flight)?;
    note(match in_flight.raw_query().next()? {
        Some(row) => row.get(0)?,
        None => None,
    });

    let mut lanes = connection.prepare_cached(queries::LANES_WAITING)?;
    let lanes = lanes.query_map([], |row| row.get::<_, i64>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut first = connection.prepare_cached(&queries::first_waiting(selection))?;
    for lane in lanes {
        bind(&mut first, ":lane", &lane)?;
        selection.bind(&mut first)?;
        note(match first.raw_query().next()? {
            Some(row) => Some(row.get(0)?),
            None => None,
        });
    }
    Ok(oldest)
}

fn rejected_by_answer(connection: &Connection, selection: &SqlFilter) -> Result<Vec<(Option<u16>, u64)>, Fault> {
    let mut statement = connection.prepare_cached(&queries::rejected_by_answer(selection))?;
    selection.bind(&mut statement)?;
    let mut found = statement.raw_query();
    let mut answers = Vec::new();
    while let Some(row) = found.next()? {
        answers.push((row.get(0)?, rows::unsigned(row, 1)?));
    }
    Ok(answers)
}

/// Returns one page of the messages that the filter selects.
pub(super) fn list(
    connection: &Connection,
    sealer: &Sealer,
    filter: &Filter,
    page: &Page,
) -> Result<Vec<Listed>, Fault> {
    let selection = SqlFilter::of(filter);
    let continued = page.after.is_some();
    let mut statement = connection.prepare_cached(&queries::page(&selection, page.newest_first, continued))?;
    selection.bind(&mut statement)?;
    if let Some(after) = page.after {
        bind(&mut statement, ":after", &after.0)?;
    }
    bind(&mut statement, ":limit", &i64::try_from(page.limit).unwrap_or(i64::MAX))?;
    let mut lanes = LaneCache::default();
    let mut found = statement.raw_query();
    let mut listed = Vec::new();
    while let Some(row) = found.next()? {
        listed.push(read_listed(connection, sealer, &mut lanes, row)?);
    }
    Ok(listed)
}

/// Reads a row of [`queries::page`] or [`queries::one_message`].
pub(super) fn read_listed(
    connection: &Connection,
    sealer: &Sealer,
    lanes: &mut LaneCache,
    row: &Row<'_>,
) -> Result<Listed, Fault> {
    let id = MessageId(row.get(Column::Id as usize)?);
    let answer = match row.get::<_, Option<i64>>(Column::AnswerAt as usize)? {
        Some(at_ms) => {
            let text =
                sealer.text(&SealContext::Answer { message: id.0 }, row.get_ref(Column::AnswerText as usize)?)?;
            Some(LastAnswer { at_ms, status: row.get(Column::AnswerStatus as usize)?, text: text.unwrap_or_default() })
        }
        None => None,
    };
    let message_type = rows::message_type(row, Column::MessageType as usize)?;
    let has_file = message_type == MessageType::CreateAttachment;
    Ok(Listed {
        id,
        status: rows::status(row, Column::Status as usize)?,
        message_type,
        lane: lanes.get(connection, sealer, row.get(Column::Lane as usize)?)?,
        project: row.get(Column::Project as usize)?,
        method: row.get(Column::Method as usize)?,
        path: sealer.path(id.0, row.get_ref(Column::Path as usize)?)?,
        items: row.get(Column::Items as usize)?,
        body_bytes: rows::unsigned(row, Column::BodyBytes as usize)?,
        attachment: if has_file { attachments::of(connection, sealer, id)? } else { None },
        accepted_at_ms: row.get(Column::AcceptedAt as usize)?,
        attempts: row.get(Column::Attempts as usize)?,
        next_attempt_at_ms: row.get(Column::NextAttempt as usize)?,
        answer,
    })
}

/// Returns messages with their requests, in this order.
pub(super) fn whole(connection: &Connection, sealer: &Sealer, ids: &[MessageId]) -> Result<Vec<StoredMessage>, Fault> {
    let mut statement = connection.prepare_cached(&queries::one_message())?;
    let (mut requests, mut lanes) = (RequestReader::default(), LaneCache::default());
    let mut messages = Vec::with_capacity(ids.len());
    for id in ids {
        let mut found = statement.query([id.0])?;
        let Some(row) = found.next()? else { continue };
        let Some(request) = requests.request(connection, sealer, *id)? else { continue };
        let listed = read_listed(connection, sealer, &mut lanes, row)?;
        let (touches, position) = (rows::touches(row, Column::Touches as usize)?, row.get(Column::Position as usize)?);
        messages.push(StoredMessage { listed, request, touches, position });
    }
    Ok(messages)
}

/// Records that an agent runs in this process, or that none does.
pub(super) fn announce(tx: &Transaction<'_>, agent: Option<&AgentRecord>) -> Result<(), Fault> {
    let (pid, listen) = agent.map_or((std::process::id(), ""), |agent| (agent.pid, agent.listen.as_str()));
    // An agent that was recorded at this address earlier cannot be listening there any longer.
    tx.prepare_cached(queries::TAKE_BACK_ANNOUNCEMENT)?.execute(params![pid, listen])?;
    if let Some(agent) = agent {
        tx.prepare_cached(queries::ANNOUNCE)?.execute(params![
            agent.pid,
            agent.listen,
            agent.upstream,
            agent.started_at_ms
        ])?;
    }
    Ok(())
}

/// Returns the agents that announced themselves.
pub(super) fn agents(connection: &Connection) -> Result<Vec<AgentRecord>, Fault> {
    let mut statement = connection.prepare_cached(queries::AGENTS)?;
    let agents = statement.query_map([], |row| {
        Ok(AgentRecord { pid: row.get(0)?, listen: row.get(1)?, upstream: row.get(2)?, started_at_ms: row.get(3)? })
    })?;
    Ok(agents.collect::<rusqlite::Result<_>>()?)
}

/// Records the result of a replay.
pub(super) fn note_replay(tx: &Transaction<'_>, record: &ReplayRecord) -> Result<(), Fault> {
    tx.prepare_cached(queries::NOTE_REPLAY)?.execute(params![
        record.role,
        record.started_at_ms,
        record.ended_at_ms,
        record.delivered as i64,
        record.rejected as i64,
        record.remaining as i64
    ])?;
    Ok(())
}

/// Returns the result of the last replay.
pub(super) fn last_replay(connection: &Connection) -> Result<Option<ReplayRecord>, Fault> {
    let record = connection
        .prepare_cached(queries::LAST_REPLAY)?
        .query_row([], |row| {
            Ok(ReplayRecord {
                role: row.get(0)?,
                started_at_ms: row.get(1)?,
                ended_at_ms: row.get(2)?,
                delivered: row.get::<_, i64>(3)?.unsigned_abs(),
                rejected: row.get::<_, i64>(4)?.unsigned_abs(),
                remaining: row.get::<_, i64>(5)?.unsigned_abs(),
            })
        })
        .optional()?;
    Ok(record)
}

/// Checks for corruption, and for counts and index entries that do not match the messages.
pub(super) fn check(connection: &Connection, sealer: &Sealer) -> Result<Vec<String>, Fault> {
    let mut problems = Vec::new();
    let mut quick_check = connection.prepare(&format!("PRAGMA quick_check({PROBLEMS_MAX})"))?;
    let found = quick_check.query_map([], |row| row.get::<_, String>(0))?;
    for problem in found {
        problems.push(problem?);
    }
    problems.retain(|problem| problem != "ok");
    if !problems.is_empty() {
        return Ok(problems);
    }
    let groups = summary::wrong_groups(connection)?;
    if groups > 0 {
        problems.push(format!("{groups} rows of the summary that don't agree with the messages"));
    }
    for (query, wrong) in [
        (queries::WRONG_TOUCHES, "entries of the entity look-up that don't agree with the messages"),
        (queries::WRONG_BODIES, "messages and bodies that don't belong together"),
        (queries::WRONG_NAMES, "messages whose lane or headers are missing"),
    ] {
        let count: i64 = connection.query_row(query, [], |row| row.get(0))?;
        if count > 0 {
            problems.push(format!("{count} {wrong}"));
        }
    }
    let mut requests = RequestReader::default();
    let mut ids = connection.prepare(queries::IDS)?;
    let mut ids = ids.query([])?;
    let mut broken = 0_u64;
    while let Some(row) = ids.next()? {
        let id = MessageId(row.get(0)?);
        match requests.verified(connection, sealer, id) {
            Ok(_) => {}
            Err(Fault::Message(reason)) if problems.len() < PROBLEMS_MAX as usize => {
                problems.push(format!("message {id}: {reason}"));
            }
            Err(Fault::Message(_)) => broken += 1,
            // Without the key, only plain values can be checked.
            Err(Fault::KeyMissing { .. } | Fault::WrongKey { .. }) if sealer.is_locked() => {}
            Err(fault) => return Err(fault),
        }
    }
    if broken > 0 {
        problems.push(format!("{broken} more messages that are not what was stored"));
    }
    problems.extend(attachments::problems(connection, sealer)?);
    let mut types = connection.prepare(queries::TYPES)?;
    for name in types.query_map([], |row| row.get::<_, String>(0))? {
        let name = name?;
        if MessageType::from_name(&name).is_none() {
            problems.push(format!("messages of the type {name:?}, which does not exist"));
        }
    }
    Ok(problems)
}

/// Returns the recoveries that this store went through.
pub(super) fn recoveries(connection: &Connection) -> Result<Vec<RecoveryRecord>, Fault> {
    let mut statement = connection.prepare_cached(queries::RECOVERIES)?;
    let mut found = statement.query([])?;
    let mut recoveries = Vec::new();
    while let Some(row) = found.next()? {
        let set_aside = PathBuf::from(OsString::from_vec(row.get(1)?));
        recoveries.push(RecoveryRecord {
            at_ms: row.get(0)?,
            is_kept: set_aside.exists(),
            set_aside: set_aside.into(),
            reason: row.get(2)?,
            recovered: rows::unsigned(row, 3)?,
            lost: rows::unsigned(row, 4)?,
        });
    }
    Ok(recoveries)
}
