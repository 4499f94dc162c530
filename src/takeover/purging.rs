//! Deleting messages of a depot because a person said so.
//!
//! Only streams that nobody owns are touched: they are taken over, the selected messages are marked as deleted, and the
//! rest is released. An order in the depot says who deleted what, and is written before anything is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::browse::{FleetBrowser, FleetSelection};
use super::error::TakeoverError;
use super::holdings::{HeadTiming, Holdings};
use super::keys::FleetKeys;
use super::reading::StreamReader;
use super::sweep::{delete_folder, delete_stream};
use super::watch::{FreeStream, HeadWatch, read_heads};
use crate::depot::Depot;
use crate::fleet::finished::FinishedStream;
use crate::fleet::head::HeadOwner;
use crate::fleet::mark_writer::MarkWriter;
use crate::fleet::marks::{Fate, Mark};
use crate::fleet::names::{self, ObjectName, StreamId};
use crate::fleet::orders::{FleetOrder, Person};
use crate::shutdown::Shutdown;
use crate::store::{BacklogGroup, Filter};

/// A stream that is left alone, and who owns it.
pub(crate) type OwnedElsewhere = (StreamId, String);

/// Marks of one object.
const MARKS_AT_ONCE: usize = 5000;
/// How often the heads are looked at while it is not known which owners are alive.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Which messages are deleted.
#[derive(Clone, Debug, Default)]
pub(crate) struct PurgeSelection {
    /// Only those of these streams; empty: of all.
    pub streams: Vec<StreamId>,
    pub filter: Filter,
}

/// Deleted messages, or a preview of that.
#[derive(Debug, Default)]
pub(crate) struct FleetPurged {
    /// The messages, counted.
    pub groups: Vec<BacklogGroup>,
    /// Streams of which something was selected.
    pub streams: u64,
    /// Streams with an owner that may be alive, which are left alone.
    pub owned: Vec<(StreamId, String)>,
    /// Objects that can't be read, which are left.
    pub unreadable: Vec<super::reading::UnreadableObject>,
}

impl FleetPurged {
    fn add(&mut self, selection: &mut FleetSelection) {
        self.unreadable.append(&mut selection.unreadable);
        if selection.messages.is_empty() {
            return;
        }
        self.streams += 1;
        for group in selection.groups.drain(..) {
            let is_same = |other: &&mut BacklogGroup| {
                (other.status, other.message_type, &other.workspace, &other.server)
                    == (group.status, group.message_type, &group.workspace, &group.server)
            };
            match self.groups.iter_mut().find(is_same) {
                None => self.groups.push(group),
                Some(sum) => {
                    sum.messages += group.messages;
                    sum.items += group.items;
                    sum.body_bytes += group.body_bytes;
                }
            }
        }
    }

    /// Returns how many messages it is about.
    pub(crate) fn messages(&self) -> u64 {
        self.groups.iter().map(|group| group.messages).sum()
    }
}

/// What the order says that is kept in the depot.
#[derive(Serialize)]
struct PurgeOrder {
    filter: String,
    messages: u64,
    streams: Vec<String>,
}

/// Deletes messages of a depot.
pub(crate) struct FleetPurge {
    pub depot: Arc<dyn Depot>,
    pub keys: FleetKeys,
    pub browser: FleetBrowser,
    pub owner: HeadOwner,
    /// At whose command.
    pub person: Person,
    pub takeover_after: Duration,
}

impl FleetPurge {
    /// Returns the streams that nobody owns, and those with an owner that may be alive. Waits until that is known.
    ///
    /// # Errors
    ///
    /// If the depot can't be used.
    pub(crate) fn free(
        &self,
        selection: &PurgeSelection,
        shutdown: &Shutdown,
    ) -> Result<(Vec<StreamId>, Vec<OwnedElsewhere>), TakeoverError> {
        let free = self.look(selection, shutdown)?;
        let streams: Vec<StreamId> = free.iter().map(|free| free.stream).collect();
        let mut others: Vec<StreamId> = super::watch::list_heads(&*self.depot)?.into_iter().map(|(id, _)| id).collect();
        others.retain(|stream| !streams.contains(stream) && selection.is_about(*stream));
        let mut owned = Vec::new();
        for (stream, read) in others.iter().zip(read_heads(&*self.depot, &others)) {
            match read? {
                Some((_, Ok(head))) => owned.push((*stream, head.owner.to_string())),
                Some((_, Err(fault))) => owned.push((*stream, fault.to_string())),
                None => {}
            }
        }
        Ok((streams, owned))
    }

    fn look(&self, selection: &PurgeSelection, shutdown: &Shutdown) -> Result<Vec<FreeStream>, TakeoverError> {
        let mut watch = HeadWatch::new(self.takeover_after);
        loop {
            let look = watch.look(&*self.depot, |stream| !selection.is_about(stream))?;
            if look.undecided == 0 || shutdown.sleep(LOOK_INTERVAL) {
                return Ok(look.free);
            }
        }
    }

    /// Counts what would be deleted of these streams, and of the rejected messages.
    ///
    /// # Errors
    ///
    /// If the depot can't be read.
    pub(crate) fn preview(
        &self,
        streams: &[StreamId],
        selection: &PurgeSelection,
    ) -> Result<FleetPurged, TakeoverError> {
        let mut found = FleetPurged::default();
        for stream in streams {
            found.add(&mut self.browser.select(*stream, &selection.filter)?);
        }
        if selection.streams.is_empty() {
            found.add(&mut self.browser.rejected(&selection.filter)?);
        }
        Ok(found)
    }

    /// Deletes them.
    ///
    /// # Errors
    ///
    /// If the depot can't be used: what was deleted until then is gone.
    pub(crate) fn purge(
        &self,
        selection: &PurgeSelection,
        preview: &FleetPurged,
        shutdown: &Shutdown,
    ) -> Result<FleetPurged, TakeoverError> {
        let free = self.look(selection, shutdown)?;
        self.leave_order(selection, preview, &free)?;
        let timing = HeadTiming { takeover_after: self.takeover_after };
        let holdings = Holdings::new(self.depot.clone(), self.owner.clone(), timing);
        let ended = Shutdown::new();
        let mut purged = FleetPurged::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.sleep((self.takeover_after / 20).min(Duration::from_secs(1))) {
                    holdings.renew_due();
                }
            });
            let mut done = Ok(());
            for free in free {
                if shutdown.is_requested() || done.is_err() {
                    break;
                }
                done = self.purge_stream(&free, &holdings, selection, &mut purged);
            }
            ended.request();
            done
        })?;
        if selection.streams.is_empty() && !shutdown.is_requested() {
            self.purge_rejected(selection, &mut purged)?;
        }
        Ok(purged)
    }

    fn leave_order(
        &self,
        selection: &PurgeSelection,
        preview: &FleetPurged,
        free: &[FreeStream],
    ) -> Result<(), TakeoverError> {
        let what = PurgeOrder {
            filter: selection.text(),
            messages: preview.messages(),
            streams: free.iter().map(|free| free.stream.to_string()).collect(),
        };
        let order = FleetOrder { id: uuid::Uuid::now_v7(), order: "purge", by: &self.person, what };
        Ok(order.leave(&*self.depot)?)
    }

    pub(super) fn purge_stream(
        &self,
        free: &FreeStream,
        holdings: &Holdings,
        selection: &PurgeSelection,
        purged: &mut FleetPurged,
    ) -> Result<(), TakeoverError> {
        let stream = free.stream;
        let found = free.head.as_ref().map(|(head, version)| (head, version));
        let Some(head) = holdings.take(stream, found)? else { return Ok(()) };
        let mut selected = self.browser.select(stream, &selection.filter)?;
        let marks: Vec<Mark> = (selected.messages.iter())
            .map(|message| Mark { reference: message.reference, fate: Fate::Deleted })
            .collect();
        let writer = MarkWriter::new(self.depot.clone());
        for marks in marks.chunks(MARKS_AT_ONCE) {
            writer.mark(&self.keys.seals, stream, head.epoch, marks.to_vec())?;
        }
        let reader = StreamReader::new(self.depot.clone(), self.keys.identities.clone());
        if !selection.is_whole_stream() {
            selected.unreadable.extend(reader.all_bundles(stream, head.bundles)?.1);
        }
        let is_all = selected.others == 0 && selected.unreadable.is_empty();
        let others = selected.others;
        purged.add(&mut selected);
        if is_all || selection.is_whole_stream() {
            // What its agent does not know to be in the depot, it delivers.
            let finished = FinishedStream::default();
            delete_stream(&*self.depot, stream, (&reader.bundles(stream)?, &finished), |_| false)?;
            holdings.forget(stream);
        } else {
            holdings.give_back(stream, others)?;
        }
        Ok(())
    }

    fn purge_rejected(&self, selection: &PurgeSelection, purged: &mut FleetPurged) -> Result<(), TakeoverError> {
        let mut selected = self.browser.rejected(&selection.filter)?;
        let mut files: BTreeMap<StreamId, Vec<u64>> = BTreeMap::new();
        let mut copies = Vec::new();
        for message in &selected.messages {
            files.entry(message.stream).or_default().push(message.reference.message);
            copies.extend(message.rejected_copy.clone());
        }
        super::objects::delete_all(&*self.depot, &copies)?;
        for (stream, messages) in files {
            for message in messages {
                delete_folder(&*self.depot, &names::files_of(&stream, message), |name| {
                    matches!(name, ObjectName::File { .. })
                })?;
            }
        }
        purged.add(&mut selected);
        Ok(())
    }
}

impl PurgeSelection {
    fn is_about(&self, stream: StreamId) -> bool {
        self.streams.is_empty() || self.streams.contains(&stream)
    }

    /// Returns whether streams are named and nothing narrows what is deleted of them: then what can't be read goes too.
    fn is_whole_stream(&self) -> bool {
        !self.streams.is_empty() && self.filter == Filter::default()
    }

    fn text(&self) -> String {
        let streams: Vec<String> = self.streams.iter().map(StreamId::to_string).collect();
        match streams.is_empty() {
            true => format!("{:?}", self.filter),
            false => format!("streams {}; {:?}", streams.join(", "), self.filter),
        }
    }
}
