//! All messages of a store as they are at one moment, for moving them to another store.
//!
//! One read transaction sees all of it, so that a running agent changes nothing between two messages; it only keeps the
//! write-ahead log from being truncated meanwhile. Messages come in the order of delivery over all lanes: nearly all of
//! them by their id, in pages, and the few that have another place from a list (16 bytes each).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, params};

use super::fault::Fault;
use super::lanes::LaneCache;
use super::record::{Column, position_of};
use super::request_reader::RequestReader;
use super::seal::Sealer;
use super::store::SqliteStore;
use super::{ahead, attachments, browse, connect, queries, reassign, rows};
use crate::message::{Effect, EntityKey, Lane, MessageId, MessageStatus, Touch};
use crate::store::clock::now_ms;
use crate::store::encryption::key::Keys;
use crate::store::error::StoreError;
use crate::store::limits::{Limits, OpenMode};
use crate::store::traits::Browse;
use crate::store::view::{Backlog, Condition, Filter, StoredMessage};

/// Ids read at a time.
const PAGE: i64 = 512;

/// A message of a snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotMessage {
    /// The message whole.
    pub stored: StoredMessage,
    /// Whether it is in flight, or was when its replayer ended ([`crate::store::Replay::interrupted`]).
    pub was_in_flight: bool,
}

/// The next element of a snapshot.
#[derive(Clone, Debug)]
pub enum SnapshotStep {
    /// A message.
    Message(Box<SnapshotMessage>),
    /// A message that is damaged, and how.
    Unreadable(MessageId, String),
    /// Nothing: all were returned.
    End,
}

/// All messages of a store at one moment, in the order of delivery. Changes nothing.
pub struct StoreSnapshot {
    /// In a read transaction until it is dropped.
    connection: Connection,
    store: SqliteStore,
    sealer: Arc<Sealer>,
    requests: RequestReader,
    lanes: LaneCache,
    /// The next ids whose place is that of their id, the first one last.
    page: Vec<i64>,
    /// The last id of the last page, until there is no more.
    after: Option<i64>,
    /// Positions and ids of all others, the first one last.
    others: Vec<(i64, i64)>,
}

impl StoreSnapshot {
    /// Opens a store, and takes its snapshot.
    ///
    /// # Errors
    ///
    /// As [`crate::store::open_with`], and [`StoreError::InDepot`] while any of its messages is outstanding.
    pub fn open(path: &Path, mode: OpenMode, limits: Limits, keys: &Keys) -> Result<Self, StoreError> {
        let store = SqliteStore::open_with(path, mode, limits, keys)?;
        let connection = connect::open_reader(&store.path, store.is_alone)?;
        let begun = (|| -> Result<_, Fault> {
            connection.execute_batch("BEGIN")?;
            // The first read decides which moment it is.
            let sealer = store.sealer(&connection)?;
            // A replayer would deliver the copies beside whoever the messages are moved to.
            store.refuse_outstanding(&connection)?;
            let mut statement = connection.prepare(queries::OUT_OF_ORDER)?;
            let others = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let mut others: Vec<(i64, i64)> = others.collect::<rusqlite::Result<_>>()?;
            others.reverse();
            Ok((sealer, others))
        })();
        let (sealer, others) = begun.map_err(|fault| fault.at(path))?;
        let (requests, lanes) = (RequestReader::default(), LaneCache::default());
        Ok(Self { connection, store, sealer, requests, lanes, page: Vec::new(), after: Some(0), others })
    }

    /// Returns the next message.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] if more than one message is damaged, and as every read.
    pub fn next_step(&mut self) -> Result<SnapshotStep, StoreError> {
        self.step().map_err(|fault| fault.at(&self.store.path))
    }

    fn step(&mut self) -> Result<SnapshotStep, Fault> {
        if let (true, Some(after)) = (self.page.is_empty(), self.after) {
            let mut statement = self.connection.prepare_cached(queries::IN_ORDER)?;
            let ids = statement.query_map(params![after, PAGE], |row| row.get(0))?;
            self.page = ids.collect::<rusqlite::Result<_>>()?;
            self.after = self.page.last().copied();
            self.page.reverse();
        }
        let id = match (self.page.last(), self.others.last()) {
            (Some(id), Some(other)) if (position_of(*id), *id) > *other => self.others.pop().map(|(_, id)| id),
            (Some(_), _) => self.page.pop(),
            (None, _) => self.others.pop().map(|(_, id)| id),
        };
        let Some(id) = id.map(MessageId) else { return Ok(SnapshotStep::End) };
        match self.message(id) {
            Ok(Some(message)) => Ok(SnapshotStep::Message(Box::new(message))),
            Ok(None) => Ok(SnapshotStep::Unreadable(id, "its body is missing".into())),
            Err(Fault::Message(reason) | Fault::Damaged(reason)) => Ok(SnapshotStep::Unreadable(id, reason)),
            Err(fault) => Err(fault),
        }
    }

    fn message(&mut self, id: MessageId) -> Result<Option<SnapshotMessage>, Fault> {
        let Some(request) = self.requests.verified(&self.connection, &self.sealer, id)? else { return Ok(None) };
        let mut statement = self.connection.prepare_cached(&queries::one_message())?;
        let mut found = statement.query([id.0])?;
        let Some(row) = found.next()? else { return Ok(None) };
        let listed = browse::read_listed(&self.connection, &self.sealer, &mut self.lanes, row)?;
        let was_claimed = row.get::<_, Option<i64>>(Column::ClaimEpoch as usize)?.is_some();
        let was_in_flight = was_claimed && listed.status.is_on_its_way();
        let (touches, position) = (rows::touches(row, Column::Touches as usize)?, row.get(Column::Position as usize)?);
        let stored = StoredMessage { listed, request, touches, position };
        Ok(Some(SnapshotMessage { stored, was_in_flight }))
    }

    /// Returns a piece of a message's file, or `None` past the end.
    ///
    /// # Errors
    ///
    /// As every read.
    pub fn piece(&self, message: MessageId, number: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let piece = attachments::piece(&self.connection, &self.sealer, message, number);
        piece.map_err(|fault| fault.at(&self.store.path))
    }

    /// Returns the updates that reached the server before the create of their entity, or may have, and before which
    /// time this may be true of any ([`crate::store::Intake::note_updates_ahead`]). Updates in flight may have.
    ///
    /// # Errors
    ///
    /// As every read.
    pub fn updates_ahead(&self) -> Result<(Vec<(Lane, EntityKey)>, i64), StoreError> {
        self.read_updates_ahead().map_err(|fault| fault.at(&self.store.path))
    }

    fn read_updates_ahead(&self) -> Result<(Vec<(Lane, EntityKey)>, i64), Fault> {
        let lanes = reassign::list(&self.connection, &self.sealer, now_ms())?;
        let places: HashMap<i64, &Lane> = lanes.iter().map(|listed| (listed.lane.place(), &listed.lane)).collect();
        let mut updates = Vec::new();
        let mut notes = self.connection.prepare(queries::NOTES)?;
        let mut notes = notes.query([])?;
        while let Some(row) = notes.next()? {
            let entity = EntityKey::from_bytes(row.get_ref(0)?.as_blob().unwrap_or_default());
            // A place without messages has no create that could wait here.
            if let (Some(lane), Some(entity)) = (places.get(&row.get(1)?), entity) {
                updates.push(((*lane).clone(), entity));
            }
        }
        let lane_of = |id: i64| lanes.iter().find(|listed| listed.id.0 == id).map(|listed| &listed.lane);
        let mut in_flight = self.connection.prepare(queries::IN_FLIGHT)?;
        let mut in_flight = in_flight.query([MessageStatus::Registered.code()])?;
        while let Some(row) = in_flight.next()? {
            let (lane, message_type) = (lane_of(row.get(0)?), rows::message_type(row, 1)?);
            let is_update = |touch: &Touch| touch.effect == Effect::Update && touch.key.is_trace_or_span();
            if let Some(lane) = lane.filter(|_| message_type.makes_partial_rows()) {
                let touches = rows::touches(row, 2)?;
                updates.extend(touches.iter().filter(|touch| is_update(touch)).map(|touch| (lane.clone(), touch.key)));
            }
        }
        Ok((updates, ahead::unsure_before(&self.connection)?))
    }

    /// Returns the counts of the messages.
    ///
    /// # Errors
    ///
    /// As every read.
    pub fn backlog(&self) -> Result<Backlog, StoreError> {
        browse::backlog(&self.connection, &Filter::default()).map_err(|fault| fault.at(&self.store.path))
    }

    /// Returns the records of the store.
    ///
    /// # Errors
    ///
    /// As every read.
    pub fn condition(&self) -> Result<Condition, StoreError> {
        self.store.condition()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::{Body, Encoding, EntityKind, HeaderSet, Message, MessageType, Request};
    use crate::store::limits::WhenFull;
    use crate::store::traits::{Intake, Replay};
    use crate::store::work::{ClaimLimits, Outcome, Owner, Part};

    const LIMITS: Limits = Limits { size_max: 1 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };

    fn request(path: &str) -> Request {
        let (method, path) = ("POST".into(), path.into());
        Request { method, path, headers: HeaderSet::default(), body: Body::new("{}", Encoding::Identity) }
    }

    fn message(name: &str, id: &str, effect: Effect) -> Message {
        Message {
            lane: Lane::default(),
            message_type: if effect == Effect::Create { MessageType::CreateTrace } else { MessageType::UpdateTrace },
            request: request(name),
            touches: vec![Touch { key: EntityKey::new(EntityKind::Trace, id), effect }],
            items: 1,
            project: None,
            accepted_at_ms: 1,
        }
    }

    fn paths(path: &Path) -> Vec<String> {
        let opened = StoreSnapshot::open(path, OpenMode::Existing, LIMITS, &Keys::default());
        let mut snapshot = opened.expect("a store");
        let mut paths = Vec::new();
        loop {
            match snapshot.next_step().expect("it can be read") {
                SnapshotStep::Message(message) => paths.push(message.stored.request.path),
                SnapshotStep::Unreadable(id, reason) => panic!("message {id} is lost: {reason}"),
                SnapshotStep::End => return paths,
            }
        }
    }

    #[test]
    fn messages_come_in_the_order_of_delivery() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store.db");
        let store = SqliteStore::open(&path, OpenMode::CreateIfMissing, LIMITS).expect("a new store");
        let ids: Vec<String> = (0..4).map(|_| uuid::Uuid::now_v7().to_string()).collect();
        let accepted = [
            message("first", &ids[0], Effect::Create),
            message("early update", &ids[1], Effect::Update),
            message("divided", &ids[2], Effect::Create),
            message("its create", &ids[1], Effect::Create),
            message("last", &ids[3], Effect::Create),
        ];
        for message in &accepted {
            store.register(std::slice::from_ref(message)).expect("there is room");
        }
        assert_eq!(paths(&path), ["first", "divided", "its create", "early update", "last"]);

        let lease = store.acquire(&Owner::this_process("replay"), Duration::from_secs(60)).expect("nobody replays");
        let lane = store.lanes(&Filter::default(), 10).expect("lanes")[0].id;
        let limits = ClaimLimits { messages_max: 2, bytes_max: 1 << 20 };
        let claimed = store.claim(&lease, lane, &Filter::default(), limits, 10).expect("they are due").into_messages();
        assert_eq!(claimed[1].request.path, "divided");
        let part =
            |name: &str| Part { request: request(name), touches: Vec::new(), items: 1, rejected: None, held: None };
        let parts = vec![part("one half"), part("other half")];
        store.settle(&lease, &[(claimed[1].id, Outcome::Divided { parts })]).expect("it was claimed");
        let in_order = ["first", "one half", "other half", "its create", "early update", "last"];
        assert_eq!(paths(&path), in_order, "an older write comes behind a newer one");
    }

    #[test]
    fn a_snapshot_sees_nothing_of_what_comes_later() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store.db");
        let store = SqliteStore::open(&path, OpenMode::CreateIfMissing, LIMITS).expect("a new store");
        let id = uuid::Uuid::now_v7().to_string();
        store.register(&[message("before", &id, Effect::Create)]).expect("there is room");
        let opened = StoreSnapshot::open(&path, OpenMode::Existing, LIMITS, &Keys::default());
        let mut snapshot = opened.expect("a store");
        store.register(&[message("after", &id, Effect::Update)]).expect("a snapshot keeps nobody from writing");
        assert!(matches!(snapshot.next_step(), Ok(SnapshotStep::Message(_))));
        assert!(matches!(snapshot.next_step(), Ok(SnapshotStep::End)), "half of a later state is moved");
        assert_eq!(snapshot.backlog().expect("counts").messages(), 1);
    }
}
