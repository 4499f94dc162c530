//! Deleting messages of a depot because a person said so.
//!
//! Streams that nobody owns are taken over, the selected messages are marked as deleted, and the rest is released. The
//! owners of the others are asked ([`super::owner_purge`]). An order in the depot says who deleted what, and is written
//! before anything is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use super::browse::{FleetBrowser, FleetSelection, add_group};
use super::error::TakeoverError;
use super::holdings::{HeadTiming, Holdings};
use super::keys::FleetKeys;
use super::owner_purge::{AskedStream, OwnersAsked};
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
use crate::fleet::selection_flags::flags;
use crate::fleet::takeover::SILENCE_MAX;
use crate::replay::session::ProgressListener;
use crate::shutdown::Shutdown;
use crate::store::{BacklogGroup, Filter};

/// A stream whose owner may be alive.
#[derive(Clone, Debug)]
pub(crate) struct OwnedElsewhere {
    pub stream: StreamId,
    /// Who that is, or why its head can't be read.
    pub owner: String,
    /// How many of its messages wait, selected or not.
    pub waiting: Option<u64>,
    /// How long its owner relies on being left alone.
    pub silence: Duration,
    /// Why something of it was left alone.
    pub why: Option<String>,
}

/// The streams that nobody owns, and the others.
pub(crate) type FreeAndOwned = (Vec<FreeStream>, Vec<OwnedElsewhere>);

/// Marks of one object.
const MARKS_AT_ONCE: usize = 5000;

/// Which messages are deleted.
#[derive(Clone, Debug, Default)]
pub(crate) struct PurgeSelection {
    /// Only those of these streams; empty: of all.
    pub streams: Vec<StreamId>,
    pub filter: Filter,
    /// When it was made, in milliseconds since the Unix epoch: ages in the filter count from then.
    pub asked_ms: i64,
}

/// Deleted messages, or a preview of that.
#[derive(Debug, Default)]
pub(crate) struct FleetPurged {
    /// The messages, counted.
    pub groups: Vec<BacklogGroup>,
    /// Streams of which something was selected.
    pub streams: u64,
    /// Selected messages that owners have settled or kept instead.
    pub fewer: u64,
    /// Messages that owners have deleted unread: these are in no group.
    pub unread: u64,
    /// Streams of which something was left alone, because their owner may be alive.
    pub owned: Vec<OwnedElsewhere>,
    /// Of a preview: the streams whose owners have to delete messages, which are counted above as well.
    pub asked: Vec<AskedStream>,
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
        selection.groups.drain(..).for_each(|group| add_group(&mut self.groups, group));
    }

    /// Adds the messages of a request to an owner, and the number of those that it has deleted.
    pub(super) fn add_answer(&mut self, groups: Vec<BacklogGroup>, deleted: u64) {
        let selected = groups.iter().map(|group| group.messages).sum::<u64>();
        self.fewer += selected.saturating_sub(deleted);
        self.unread = self.unread.saturating_add(deleted.saturating_sub(selected));
        self.streams += u64::from(deleted > 0);
        groups.into_iter().for_each(|group| add_group(&mut self.groups, group));
    }

    /// Returns how many messages it is about.
    pub(crate) fn messages(&self) -> u64 {
        let selected = self.groups.iter().map(|group| group.messages).sum::<u64>();
        selected.saturating_sub(self.fewer).saturating_add(self.unread)
    }
}

/// What the order says that is kept in the depot.
#[derive(Serialize)]
struct PurgeOrder {
    /// The flags of the command line; empty without any.
    filter: String,
    /// The times that these stand for, in milliseconds since the Unix epoch.
    accepted_before_ms: Option<i64>,
    accepted_since_ms: Option<i64>,
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
    /// The id of their order.
    pub order: Uuid,
    pub takeover_after: Duration,
}

impl FleetPurge {
    /// Returns the streams that nobody owns, and those with an owner that may be alive. Waits until that is known; `None` if
    /// it was interrupted before.
    ///
    /// # Errors
    ///
    /// If the depot can't be used.
    pub(crate) fn free(
        &self,
        selection: &PurgeSelection,
        shutdown: &Shutdown,
        listener: &dyn ProgressListener,
    ) -> Result<Option<FreeAndOwned>, TakeoverError> {
        let mut watch = HeadWatch::new(self.takeover_after);
        let is_left_out = |stream| !selection.is_about(stream);
        let Some(look) = watch.look_until_decided(&*self.depot, is_left_out, (listener, shutdown))? else {
            return Ok(None);
        };
        let is_free = |stream: &StreamId| look.free.iter().any(|free| free.stream == *stream);
        let mut others: Vec<StreamId> = super::watch::list_heads(&*self.depot)?.into_iter().map(|(id, _)| id).collect();
        others.retain(|stream| !is_free(stream) && selection.is_about(*stream));
        let owned = self.owned(&others)?;
        Ok(Some((look.free, owned)))
    }

    /// Returns whose these streams are; those without a head are left out.
    fn owned(&self, streams: &[StreamId]) -> Result<Vec<OwnedElsewhere>, TakeoverError> {
        let mut owned = Vec::new();
        for (stream, read) in streams.iter().zip(read_heads(&*self.depot, streams)) {
            let Some((_, head)) = read? else { continue };
            let (owner, waiting, silence_ms) = match head {
                Ok(head) => (head.owner.to_string(), Some(head.waiting), head.silence_ms),
                Err(fault) => (fault.to_string(), None, 0),
            };
            let silence = self.takeover_after.max(Duration::from_millis(silence_ms)).min(SILENCE_MAX);
            owned.push(OwnedElsewhere { stream: *stream, owner, waiting, silence, why: None });
        }
        Ok(owned)
    }

    /// Counts the messages of these streams, and the rejected ones, that would be deleted. Keeps the streams with an owner
    /// of which messages are selected, and those whose head can't be read.
    ///
    /// # Errors
    ///
    /// If the depot can't be read.
    pub(crate) fn preview(
        &self,
        (free, owned): (&[FreeStream], Vec<OwnedElsewhere>),
        selection: &PurgeSelection,
    ) -> Result<FleetPurged, TakeoverError> {
        let mut found = FleetPurged::default();
        for owned in owned {
            if owned.waiting.is_none() {
                found.owned.push(owned);
                continue;
            }
            let mut selected = self.browser.select(owned.stream, &selection.filter)?;
            let how = (selection.is_whole_stream(), selected.unreadable.is_empty());
            found.unreadable.append(&mut selected.unreadable);
            let Some(asked) = AskedStream::of(self, owned, &mut selected, how) else { continue };
            found.streams += 1;
            asked.groups.iter().for_each(|group| add_group(&mut found.groups, group.clone()));
            found.asked.push(asked);
        }
        for free in free {
            found.add(&mut self.browser.select(free.stream, &selection.filter)?);
        }
        if selection.streams.is_empty() {
            found.add(&mut self.browser.rejected(&selection.filter)?);
        }
        Ok(found)
    }

    /// Deletes of the streams that the preview was about; of those that were taken by others since, nothing.
    ///
    /// # Errors
    ///
    /// If the depot can't be used: what was deleted until then is gone.
    pub(crate) fn purge(
        &self,
        selection: &PurgeSelection,
        (free, preview): (&[FreeStream], FleetPurged),
        (shutdown, listener): (&Shutdown, &dyn ProgressListener),
    ) -> Result<FleetPurged, TakeoverError> {
        self.leave_order(selection, &preview, free)?;
        let timing = HeadTiming { takeover_after: self.takeover_after };
        let holdings = Holdings::new(self.depot.clone(), self.owner.clone(), timing);
        let ended = Shutdown::new();
        let mut purged = FleetPurged { owned: preview.owned, ..FleetPurged::default() };
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
                done = self.purge_stream(free, &holdings, selection, &mut purged);
            }
            let asked = OwnersAsked { purge: self, selection, holdings: &holdings, shutdown, listener };
            let done = done.and_then(|()| asked.ask(preview.asked, &mut purged));
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
        let of_asked = preview.asked.iter().map(|asked| asked.owned.stream);
        let what = PurgeOrder {
            filter: flags(&selection.streams, &selection.filter, selection.asked_ms),
            accepted_before_ms: selection.filter.accepted_before_ms,
            accepted_since_ms: selection.filter.accepted_since_ms,
            messages: preview.messages(),
            streams: free.iter().map(|free| free.stream).chain(of_asked).map(|stream| stream.to_string()).collect(),
        };
        let order = FleetOrder { id: self.order, order: "purge", by: &self.person, what };
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
        let Some(head) = holdings.take(stream, found)? else {
            purged.owned.extend(self.owned(&[stream])?);
            return Ok(());
        };
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::model::ModelDepot;
    use crate::fleet::bundle::{BundleBuilder, Pushed};
    use crate::fleet::head::{Head, HeadState};
    use crate::fleet::samples::record;
    use crate::store::{Keys, Limits, WhenFull};
    use crate::takeover::objects::name_of;

    struct Silent;

    impl ProgressListener for Silent {
        fn note(&self, _: &str) {}
        fn progress(&self, _: u64, _: u64) {}
    }

    /// Ships three messages as a stream that is closed.
    fn ship(depot: &ModelDepot) -> StreamId {
        let stream = StreamId::new(uuid::Uuid::now_v7());
        let mut builder = BundleBuilder::new();
        for number in 1..=3 {
            assert_eq!(builder.push(&record(number)), Ok(Pushed::Taken));
        }
        let bundle = builder.finish().expect("it has records");
        let name = ObjectName::Bundle(stream, bundle.manifest.name(0));
        depot.create(&name_of(&name), &bundle.bytes).expect("it answers");
        let head = Head { bundles: 1, waiting: 3, ..Head::first(HeadState::Closed, HeadOwner::default()) };
        depot.create(&name_of(&ObjectName::Head(stream)), &head.encode()).expect("it answers");
        stream
    }

    fn purge(depot: &Arc<ModelDepot>, folder: &tempfile::TempDir) -> FleetPurge {
        let keys = FleetKeys::read(&**depot, &[], None).expect("it answers");
        let limits = Limits { size_max: 1 << 24, disk_reserve: 0, when_full: WhenFull::Refuse };
        let browser = FleetBrowser::new(depot.clone(), &keys, folder.path(), (limits, &Keys::default()));
        FleetPurge {
            depot: depot.clone(),
            keys,
            browser: browser.expect("a scratch store"),
            owner: HeadOwner { nonce: "a person".to_owned(), ..HeadOwner::default() },
            person: Person::default(),
            order: Uuid::now_v7(),
            takeover_after: Duration::from_secs(90),
        }
    }

    #[test]
    fn streams_that_others_take_or_leave_after_the_preview_are_not_purged() {
        let (depot, folder) = (Arc::new(ModelDepot::new()), tempfile::tempdir().expect("a folder"));
        let (kept, taken) = (ship(&depot), ship(&depot));
        let purge = purge(&depot, &folder);
        let (selection, shutdown) = (PurgeSelection::default(), Shutdown::new());
        let (free, owned) = purge.free(&selection, &shutdown, &Silent).expect("it answers").expect("not interrupted");
        let preview = purge.preview((&free, owned), &selection).expect("it answers");
        assert_eq!((free.len(), preview.messages(), preview.owned.len()), (2, 6, 0));
        // Somebody reads the preview; meanwhile a replayer takes one of the streams, and an agent leaves another.
        let owner = HeadOwner { nonce: "a replayer".to_owned(), ..HeadOwner::default() };
        let timing = HeadTiming { takeover_after: purge.takeover_after };
        let replayer = Holdings::new(depot.clone(), owner, timing);
        let of_taken = free.iter().find(|free| free.stream == taken).and_then(|free| free.head.as_ref());
        let head = of_taken.map(|(head, version)| (head, version));
        replayer.take(taken, head).expect("it answers").expect("nobody else takes it");
        let late = ship(&depot);
        let purged = purge.purge(&selection, (&free, preview), (&shutdown, &Silent)).expect("it answers");
        assert_eq!((purged.messages(), purged.streams), (3, 1), "more was deleted than a person has seen");
        assert_eq!(purged.owned.iter().map(|owned| owned.stream).collect::<Vec<_>>(), [taken], "it is not said");
        let has_head = |stream| depot.peek(&name_of(&ObjectName::Head(stream))).is_some();
        assert_eq!([kept, taken, late].map(has_head), [false, true, true]);
        assert!(replayer.may_send().is_ok() && replayer.lost().is_empty(), "the replayer lost its stream to a purge");
    }

    #[test]
    fn an_interrupted_look_is_no_preview() {
        let (depot, folder) = (Arc::new(ModelDepot::new()), tempfile::tempdir().expect("a folder"));
        let stream = ship(&depot);
        depot.delete(&[name_of(&ObjectName::Head(stream))]).expect("it answers");
        let (purge, shutdown) = (purge(&depot, &folder), Shutdown::new());
        shutdown.request();
        let seen = purge.free(&PurgeSelection::default(), &shutdown, &Silent).expect("it answers");
        assert!(seen.is_none(), "a part of the streams looks like all of them");
    }
}
