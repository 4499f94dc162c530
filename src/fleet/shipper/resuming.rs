//! Streams of an earlier process, and those that a replayer has taken over.

use tracing::{info, warn};

use super::{
    DELETE_STEP, Filter, Head, HeadRead, HeadState, MessageId, ObjectName, Page, ShipError, Shipper, Store, StreamHead,
    StreamId, StreamRecord, StreamState, TAKEOVER_AFTER, Turns, depot_name, read_head, since_boot, this_process,
};

impl Shipper {
    /// Finds out whose the streams of the open store are.
    pub(super) fn resume(&self, store: &dyn Store, turns: &mut Turns) -> Result<(), ShipError> {
        for record in store.streams()? {
            if record.state == StreamState::Open && !self.resume_stream(store, turns, record)? {
                return Err(self.beside_another(turns));
            }
        }
        self.ledger.change(|state| state.is_resumed = true);
        Ok(())
    }

    /// Continues with a stream, or hands it over. Returns whether that is decided.
    fn resume_stream(&self, store: &dyn Store, turns: &mut Turns, record: StreamRecord) -> Result<bool, ShipError> {
        let stream = StreamId::new(record.stream);
        let depot = self.ledger.depot.describe();
        if record.depot != depot.url {
            let reason = format!(
                "messages of this store are in the depot {}: an agent with that depot has to deliver them first",
                record.depot
            );
            return Err(ShipError::Hopeless(reason));
        }
        // Marks need to know for whom to seal.
        self.seals()?;
        let Some(read) = read_head(self.ledger.depot.as_ref(), stream)? else {
            self.stream_is_gone(store, &record)?;
            return Ok(true);
        };
        let HeadRead { head, version } = read;
        if head.state == HeadState::Taken || head.epoch > record.epoch {
            self.hand_over(store, record.stream, &head)?;
            return Ok(true);
        }
        if turns.silent.is_some() && !self.is_silent(turns, &head, version.as_str()) {
            return Ok(false);
        }
        let epoch = record.epoch.saturating_add(1);
        store.note_stream(&StreamRecord { epoch, ..record.clone() })?;
        turns.shipped = head.shipped;
        let (owner, missing_keys) = (this_process(&turns.nonce), Vec::new());
        let next = Head { state: HeadState::Open, epoch, owner, missing_keys, ..head };
        turns.head = Some(StreamHead::new(stream, next, Some(version))?);
        (turns.may_be_there, turns.silent) = (true, None);
        self.own(stream, epoch);
        self.renew(store, turns, HeadState::Open)?;
        info!(target: "fleet", "continues with stream {stream} in the depot {depot}");
        Ok(true)
    }

    /// Decides about a stream without a head: a replayer has finished it, and left a record of that; or the depot lost it,
    /// for example because it was emptied.
    fn stream_is_gone(&self, store: &dyn Store, record: &StreamRecord) -> Result<(), ShipError> {
        let (stream, depot) = (record.stream, self.ledger.depot.describe());
        if record.is_outstanding && self.is_finished(stream)? {
            store.hand_over(stream)?;
            return Ok(());
        }
        if record.is_outstanding {
            warn!(target: "fleet", "stream {stream} is no longer in the depot {depot}: its messages are delivered from here");
        }
        store.end_stream(stream)?;
        Ok(())
    }

    /// Returns whether a replayer has finished the stream. Read after its head: that is deleted later.
    fn is_finished(&self, stream: uuid::Uuid) -> Result<bool, ShipError> {
        let name = depot_name(&ObjectName::Finished(StreamId::new(stream)))?;
        Ok(self.ledger.depot.get(&name)?.is_some())
    }

    /// Returns whether the other process of this store that owns the head is silent for long enough.
    fn is_silent(&self, turns: &mut Turns, head: &Head, version: &str) -> bool {
        let now = since_boot();
        match &turns.silent {
            Some((seen, since)) if seen == version => {
                head.state == HeadState::Closed || now.saturating_sub(*since) >= TAKEOVER_AFTER
            }
            _ => {
                turns.silent = Some((version.to_owned(), now));
                head.state == HeadState::Closed
            }
        }
    }

    /// Another process has written the head.
    pub(super) fn lost(&self, store: &dyn Store, turns: &mut Turns) -> Result<(), ShipError> {
        let owned = self.ledger.change(|state| {
            state.is_resumed = false;
            state.owned.take()
        });
        turns.head = None;
        let Some(owned) = owned else { return Ok(()) };
        let record = store.streams()?.into_iter().find(|it| it.stream == owned.stream.uuid());
        if record.is_some_and(|it| it.epoch > owned.epoch) {
            warn!(target: "fleet", "another agent ships the messages of this store; this one leaves it to that");
            return Err(self.beside_another(turns));
        }
        // A head that is gone or closed by another process was taken as well.
        if let Some(read) = read_head(self.ledger.depot.as_ref(), owned.stream)? {
            self.hand_over(store, owned.stream.uuid(), &read.head)?;
        }
        self.resume(store, turns)
    }

    fn hand_over(&self, store: &dyn Store, stream: uuid::Uuid, head: &Head) -> Result<(), ShipError> {
        let messages = store.hand_over(stream)?.len();
        warn!(
            target: "fleet",
            "stream {stream} was taken over by {}: it delivers {messages} messages that were shipped, which are kept here \
             until it has",
            head.owner
        );
        Ok(())
    }

    /// Deletes messages whose stream a replayer has finished.
    pub(super) fn watch_handed_over(&self, store: &dyn Store) -> Result<(), ShipError> {
        let records = store.streams()?;
        let handed_over: Vec<_> = records.iter().filter(|it| it.state == StreamState::HandedOver).collect();
        self.ledger.change(|state| state.standing.handed_over = handed_over.len());
        for record in handed_over {
            if read_head(self.ledger.depot.as_ref(), StreamId::new(record.stream))?.is_some() {
                continue;
            }
            if !self.is_finished(record.stream)? {
                self.stream_is_gone(store, record)?;
                continue;
            }
            let ids = store.hand_over(record.stream)?;
            self.ledger.change(|state| state.clearing = Some(record.stream));
            let mut deleted = 0;
            for step in ids.chunks(DELETE_STEP) {
                deleted += store.purge(&Filter { ids: step.to_vec(), ..Filter::default() }, step.len())?.messages;
            }
            if self.is_all_gone(store, &ids)? {
                store.end_stream(record.stream)?;
            }
            info!(target: "fleet", "stream {} is finished: {deleted} messages were delivered from the depot", record.stream);
        }
        Ok(())
    }

    fn is_all_gone(&self, store: &dyn Store, ids: &[MessageId]) -> Result<bool, ShipError> {
        for step in ids.chunks(DELETE_STEP) {
            let page = Page { after: None, limit: 1, newest_first: false };
            if !store.list(&Filter { ids: step.to_vec(), ..Filter::default() }, &page)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
