//! The dry run of a replay: a snapshot of the streams that would be taken over now. It writes nothing into the depot.
//!
//! It parses marks and bundles as a replay does, and the same code decides ([`super::record_sorter`]). Retries and rate limits
//! of the server are unknown to it, and it decrypts no files.

use std::sync::Arc;
use std::time::Duration;

use super::behind::BehindStream;
use super::browse::add_group;
use super::error::TakeoverError;
use super::feeder::FeedTotals;
use super::held_back::HeldBack;
use super::keys::FleetKeys;
use super::reading::StreamReader;
use super::record_sorter::{LeftBehind, RecordSorter};
use super::resending::Resending;
use super::selection::FleetReplaySelection;
use super::taken_stream::{HELD_BACK_MAX, TakenStream};
use super::watch::{FreeStream, HeadWatch, Look};
use crate::depot::{Depot, DepotError};
use crate::figures::short_duration;
use crate::fleet::dial_reader::DialReader;
use crate::fleet::head::{Head, HeadOwner, HeadState};
use crate::fleet::names::StreamId;
use crate::fleet::record::{FileContent, FleetRecord, RecordState};
use crate::message::{MessageStatus, Server};
use crate::replay::session::ProgressListener;
use crate::shutdown::Shutdown;
use crate::store::BacklogGroup;

/// A snapshot of the messages that a replay would deliver.
#[derive(Debug, Default)]
pub(crate) struct FleetPreview {
    /// The messages that would be delivered, counted.
    pub groups: Vec<BacklogGroup>,
    /// When the oldest of them was accepted, in milliseconds since the Unix epoch.
    pub oldest_ms: Option<i64>,
    /// Messages that the server has refused for the time in their ids.
    pub held: u64,
    /// That a person holds the fleet, if so.
    pub fleet_held: Option<String>,
    /// The flags that select what was selected, and the earlier streams that some of it waits for.
    pub with_earlier: Option<String>,
    /// The streams that would be taken, and what would stay in them.
    pub totals: FeedTotals,
}

/// Makes the snapshot.
pub(crate) struct FleetDryRun<'a> {
    pub depot: &'a Arc<dyn Depot>,
    pub keys: &'a FleetKeys,
    /// Only messages for this server would be delivered.
    pub server: &'a Server,
    /// Messages that are older would be marked as expired.
    pub max_age: Option<Duration>,
    pub selection: &'a FleetReplaySelection,
    /// How long a head has to be silent before its stream is taken.
    pub takeover_after: Duration,
}

impl FleetDryRun<'_> {
    /// Returns the snapshot; `None` if it was interrupted. Waits until each owner has renewed its lease, or that has expired.
    ///
    /// # Errors
    ///
    /// If the depot can't be read.
    pub(crate) fn run(
        &self,
        shutdown: &Shutdown,
        listener: &dyn ProgressListener,
    ) -> Result<Option<FleetPreview>, TakeoverError> {
        let mut watch = HeadWatch::new(self.takeover_after);
        let is_left_out = |stream| !self.selection.takes(stream);
        let Some(look) = watch.look_until_decided(&**self.depot, is_left_out, (listener, shutdown))? else {
            return Ok(None);
        };
        let Look { free, alive, waiting_alive, unreadable, .. } = look;
        let mut preview = FleetPreview::default();
        preview.totals.alive = alive as u64;
        preview.totals.waiting_alive = waiting_alive;
        for (stream, fault) in unreadable {
            preview.totals.add_unreadable_head(stream, &fault);
        }
        let reader = StreamReader::new(self.depot.clone(), self.keys.identities.clone());
        let is_next = |earlier| free.iter().any(|free| free.stream == earlier);
        for free in &free {
            if shutdown.is_requested() {
                return Ok(None);
            }
            if let Some(behind) = BehindStream::of(free, (&**self.depot, &watch), self.selection, is_next)? {
                preview.totals.add_behind(behind);
                continue;
            }
            self.add_stream(&reader, free, &mut preview)?;
        }
        preview.with_earlier = self.selection.with_earlier(&preview.totals.behind_streams);
        self.add_copies(&mut preview)?;
        let dial = DialReader::new(self.depot.clone(), self.takeover_after);
        dial.look(0);
        preview.fleet_held = dial.standing().held_for.map(|left| {
            let left = short_duration(left);
            format!("the fleet is held for {left}: nothing is delivered; --resume ends that")
        });
        Ok(Some(preview))
    }

    fn sorter(&self) -> RecordSorter<'_> {
        RecordSorter { server: self.server, max_age: self.max_age, selection: self.selection, keys: &self.keys.folder }
    }

    fn add_stream(
        &self,
        reader: &StreamReader,
        free: &FreeStream,
        preview: &mut FleetPreview,
    ) -> Result<(), DepotError> {
        let headless = Head { epoch: 0, ..Head::first(HeadState::Closed, HeadOwner::default()) };
        let head = free.head.as_ref().map_or(&headless, |(head, _)| head);
        let (mut taken, unreadable) = TakenStream::read(reader, free.stream, head)?;
        preview.totals.taken += 1;
        unreadable.into_iter().for_each(|object| preview.totals.add_unreadable(object));
        while !taken.is_imported() {
            let (records, unreadable) = taken.read_next(reader)?;
            unreadable.into_iter().for_each(|object| preview.totals.add_unreadable(object));
            taken.pending.pop_front();
            self.add_records(free.stream, &records, &mut taken.back, preview);
        }
        Ok(())
    }

    fn add_records(&self, stream: StreamId, records: &[FleetRecord], back: &mut HeldBack, preview: &mut FleetPreview) {
        let mut left = LeftBehind::default();
        for record in records {
            match self.sorter().sort(stream, record, (back, HELD_BACK_MAX)) {
                Ok(record) => preview.add(&record),
                Err(reason) => left.add(record, &reason),
            }
        }
        preview.totals.add(&left);
        for (key, messages) in left.without_key {
            *preview.totals.without_key.entry(key).or_default() += messages;
        }
    }

    /// Adds the copies of rejected messages that would be moved into a stream of their own.
    fn add_copies(&self, preview: &mut FleetPreview) -> Result<(), TakeoverError> {
        let resending = Resending {
            depot: self.depot,
            keys: self.keys,
            owner: HeadOwner::default(),
            server: self.server,
            single_replayer: true,
        };
        let (records, unreadable) = resending.records(self.selection)?;
        unreadable.into_iter().for_each(|object| preview.totals.add_unreadable(object));
        let moved = records.iter().map(|(stream, _)| *stream).collect();
        let selection = FleetReplaySelection { moved, ..self.selection.clone() };
        let dry_run = FleetDryRun { selection: &selection, ..*self };
        for (stream, record) in records {
            dry_run.add_records(stream, &[record], &mut HeldBack::default(), preview);
        }
        Ok(())
    }
}

impl FleetPreview {
    /// Counts a message that would be delivered.
    fn add(&mut self, record: &FleetRecord) {
        let message = &record.message;
        match record.state {
            // It stays rejected.
            RecordState::Rejected(_) => return,
            RecordState::Held(_) => {
                self.held += 1;
                return;
            }
            RecordState::Waiting => {}
        }
        let at_ms = message.accepted_at_ms;
        self.oldest_ms = Some(self.oldest_ms.map_or(at_ms, |oldest| oldest.min(at_ms)));
        let group = BacklogGroup {
            status: MessageStatus::Failed,
            message_type: message.message_type,
            workspace: message.lane.workspace_name().to_owned(),
            server: message.lane.server.clone(),
            messages: 1,
            items: u64::from(message.items),
            body_bytes: match &record.file {
                Some(file) if file.content == FileContent::Body => file.attachment.bytes,
                _ => message.request.body.bytes.len() as u64,
            },
        };
        add_group(&mut self.groups, group);
    }
}
