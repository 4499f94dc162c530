//! Streams of an earlier process, and those that a replayer has taken over.

use tracing::{info, warn};

use super::super::finished::FinishedStream;
use super::{
    CHOICE, DELETE_STEP, DepotError, Filter, Head, HeadRead, HeadState, LoadError, Loader, MessageId, ObjectName, Page,
    ShipError, Shipper, Store, StreamHead, StreamId, StreamRecord, StreamState, TAKEOVER_AFTER, Turns, bundles_of,
    depot_name, folder_name, read_head, since_boot, this_process,
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
        let read = match self.head_of(stream) {
            // All that was shipped is settled: whatever the depot still has, nobody needs it.
            Err(DepotError::NotAuthorised { .. }) if !record.is_outstanding => None,
            read => read?,
        };
        let Some(read) = read else {
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

    /// Reads the head of a stream; `None` if it has none.
    ///
    /// Where we may not list, object storage answers a read of what is not there with a refusal. Then the record that a
    /// replayer made before it deleted the head tells that it is gone. Without that record nothing is proved: the head
    /// may be there, and its new owner at work.
    fn head_of(&self, stream: StreamId) -> Result<Option<HeadRead>, DepotError> {
        match read_head(self.ledger.depot.as_ref(), stream) {
            Err(DepotError::NotAuthorised { .. }) if self.is_known_finished(stream) => Ok(None),
            Err(DepotError::NotAuthorised { at, action, reason }) => {
                let reason = format!(
                    "{reason}; without a right to list, an object that is missing is refused as well: if stream {stream} \
                     was deleted by hand, allow this agent to list until it has delivered its messages"
                );
                Err(DepotError::NotAuthorised { at, action, reason })
            }
            read => read,
        }
    }

    /// Returns whether a replayer has certainly finished the stream.
    pub(super) fn is_known_finished(&self, stream: StreamId) -> bool {
        self.finished(stream.uuid()).is_ok_and(|finished| finished.is_some())
    }

    /// Decides about a stream without a head: a replayer has finished it, and left a record of that; or the depot lost it,
    /// for example because it was emptied.
    fn stream_is_gone(&self, store: &dyn Store, record: &StreamRecord) -> Result<(), ShipError> {
        let (stream, depot) = (record.stream, self.ledger.depot.describe());
        if record.is_outstanding
            && let Some(finished) = self.finished(stream)?
        {
            self.decide_choice(store, stream, Some(&finished))?;
            store.hand_over(stream)?;
            return Ok(());
        }
        if record.is_outstanding {
            warn!(target: "fleet", "stream {stream} is no longer in the depot {depot}: its messages are delivered from here");
        }
        store.end_stream(stream)?;
        Ok(())
    }

    /// Returns the record of a stream that a replayer has finished. Read after its head: that is deleted later.
    fn finished(&self, stream: uuid::Uuid) -> Result<Option<FinishedStream>, ShipError> {
        let name = depot_name(&ObjectName::Finished(StreamId::new(stream)))?;
        Ok(self.ledger.depot.get(&name)?.map(|(bytes, _)| FinishedStream::decode(&bytes)))
    }

    /// Decides whether messages that were chosen for a bundle, and may be in the depot, are there: then the new owner of
    /// the stream delivers them. If not, nobody else has them.
    ///
    /// A process that was ended between the write of a bundle and its commit leaves that open. It does not know, so it
    /// looks into the record of the finished stream, or for the bundle itself while there is none.
    fn decide_choice(
        &self,
        store: &dyn Store,
        stream: uuid::Uuid,
        finished: Option<&FinishedStream>,
    ) -> Result<(), ShipError> {
        let Some(record) = store.streams()?.into_iter().find(|it| it.stream == stream) else { return Ok(()) };
        let chosen = {
            let _choosing = self.ledger.choosing();
            // Where nothing is chosen, this chooses what is withdrawn at once.
            store.begin_bundle(stream, CHOICE)?
        };
        let all_had = |finished: &FinishedStream| {
            let has_all = chosen.iter().all(|id| finished.had(id.0.unsigned_abs()));
            has_all.then(|| record.next_bundle.saturating_add(1))
        };
        let next_bundle = match finished {
            Some(finished) => match all_had(finished) {
                Some(next_bundle) => Some(next_bundle),
                // It may have arrived after the stream was finished, and nobody has read it.
                None => {
                    let late = self.look_for(store, &record, &chosen)?.filter(|_| !chosen.is_empty());
                    late.map(|next_bundle| self.offer(&record, next_bundle).map(|()| next_bundle)).transpose()?
                }
            },
            None => match self.look_for(store, &record, &chosen)? {
                Some(next_bundle) => Some(next_bundle),
                // The new owner may just have deleted it, and has made the record before.
                None => self.finished(stream)?.as_ref().and_then(all_had),
            },
        };
        match next_bundle {
            Some(next_bundle) if !chosen.is_empty() => store.confirm_bundle(stream, next_bundle)?,
            _ => store.withdraw_bundle(stream)?,
        }
        Ok(())
    }

    /// Leaves bundles that arrived after their stream was finished to the next replayer, with a head that is closed. Until
    /// that has delivered them, their messages wait here, and newer ones behind them.
    fn offer(&self, record: &StreamRecord, bundles: u32) -> Result<(), ShipError> {
        let (stream, owner) = (StreamId::new(record.stream), this_process(&uuid::Uuid::now_v7().simple().to_string()));
        let epoch = record.epoch.saturating_add(1);
        let head = Head { epoch, bundles, ..Head::first(HeadState::Closed, owner) };
        // If it is lost, a replayer has found the bundles itself.
        StreamHead::new(stream, head, None)?.write(self.ledger.depot.as_ref(), |_| {})?;
        warn!(target: "fleet", "a bundle of stream {stream} arrived after the stream was finished: a replayer delivers it");
        Ok(())
    }

    /// Returns whether the depot has bundles of a stream; no, if we may not ask.
    fn has_bundles(&self, stream: StreamId) -> Result<bool, DepotError> {
        match self.ledger.depot.list(&folder_name(&bundles_of(&stream))?, None, 1) {
            Ok(found) => Ok(!found.is_empty()),
            Err(DepotError::NotAuthorised { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the number of the bundle behind those of this choice, if all of them are in the depot.
    fn look_for(
        &self,
        store: &dyn Store,
        record: &StreamRecord,
        chosen: &[MessageId],
    ) -> Result<Option<u32>, ShipError> {
        let (seals, stream) = (self.seals()?, StreamId::new(record.stream));
        let names_secrets_in = self.ledger.lock().names_secrets_in;
        let depot = self.ledger.depot.as_ref();
        let loader = Loader { store, depot, seals: &seals, stream, only_looks: true, names_secrets_in };
        match loader.load(chosen, record.next_bundle) {
            Ok(loaded) => Ok(Some(loaded.next_bundle)),
            Err(LoadError::NotThere) => Ok(None),
            Err(LoadError::Store(error)) => Err(error.into()),
            Err(LoadError::Depot { error, .. }) => Err(error.into()),
        }
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
        if let Some(read) = self.head_of(owned.stream)? {
            self.hand_over(store, owned.stream.uuid(), &read.head)?;
        }
        self.resume(store, turns)
    }

    fn hand_over(&self, store: &dyn Store, stream: uuid::Uuid, head: &Head) -> Result<(), ShipError> {
        self.decide_choice(store, stream, None)?;
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
            if self.head_of(StreamId::new(record.stream))?.is_some() {
                continue;
            }
            let Some(finished) = self.finished(record.stream)? else {
                self.stream_is_gone(store, record)?;
                continue;
            };
            let ids = store.hand_over(record.stream)?;
            let has_all = ids.iter().all(|id| finished.had(id.0.unsigned_abs()));
            if !has_all && self.has_bundles(StreamId::new(record.stream))? {
                self.offer(record, record.next_bundle)?;
                continue;
            }
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
