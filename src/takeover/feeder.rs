//! The feeder: takes free streams, imports them into the scratch store bundle by bundle, and deletes what is finished.
//!
//! ```text
//! look ─▶ free ─▶ take (epoch + 1) ─▶ all marks ─▶ bundle, bundle, ... ─▶ all settled ─▶ delete bundles, files, marks, head
//!                                                  (while the stage has room)        └─▶ or give back what can't be delivered
//! ```
//!
//! While one thread imports bundles into the scratch store, others take over the next streams and delete finished ones,
//! several requests at a time: a depot's latency is milliseconds, and it accepts many connections. Nothing is deleted of a stream before all of it is settled and all of it is readable: the marks of
//! rejected messages keep those that depend on them from being delivered.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tracing::{info, warn};

use super::behind::BehindStream;
use super::error::TakeoverError;
use super::holdings::Holdings;
use super::importer::{Imported, ImportedBundle, Importer};
use super::key_folder::KeyFolder;
use super::ledger::{ReplayerLedger, Staged};
use super::reading::{StreamReader, UnreadableObject};
use super::record_sorter::{LeftBehind, WithoutKey};
use super::standing::{OwnStreams, spare};
use super::sweep::delete_stream;
use super::taken_stream::{HELD_BACK_MAX, PreparedStream, TakenStream};
use super::wanted::WantedStreams;
use super::watch::{FreeStream, HeadWatch, Look};
use crate::depot::{Depot, DepotError};
use crate::fleet::head::{HeadFault, MISSING_KEYS_MAX, MissingKey};
use crate::fleet::names::{BundleName, ObjectName, StreamId};
use crate::fleet::parallel::{all_three, in_parallel};
use crate::store::{Store, now_ms, since_boot};

/// Streams that are held at most: the others are left for other replayers until these are delivered.
const STREAMS_MAX: usize = 64;
/// Streams that are taken and prepared at a time.
const TAKEN_AT_ONCE: usize = 16;
/// Streams that are deleted at a time.
const SWEPT_AT_ONCE: usize = 8;
/// Messages of the scratch store at most: the origin of each is in memory.
const MESSAGES_MAX: u64 = 200_000;
/// How long a stream of which something can't be delivered here is left to others, in times to take over.
const SET_ASIDE_TIMES: u32 = 10;
/// Objects that can't be read and are named in a report.
const NAMED_MAX: usize = 100;

/// The progress of the feeder, read by the thread that delivers.
#[derive(Default)]
pub(super) struct FeedState {
    /// Whether nothing is left to take or to import, as far as is known.
    pub is_idle: AtomicBool,
    /// Whether the feeder has given up: nothing more is imported.
    pub has_failed: AtomicBool,
    /// How many messages were imported.
    pub imported: AtomicU64,
    /// How many streams others deliver.
    pub draining: AtomicU64,
    /// Held while messages are delivered: those of a lost stream are dropped between two rounds.
    pub round: Mutex<()>,
}

/// Counts of streams and messages, for the report.
#[derive(Clone, Debug, Default)]
pub(crate) struct FeedTotals {
    /// Streams that were taken.
    pub taken: u64,
    /// Of these, streams whose messages are all settled, and that were deleted.
    pub finished: u64,
    /// Streams that were released with something undelivered.
    pub given_back: u64,
    /// Streams that another replayer took from this one.
    pub lost: u64,
    /// Messages that were too old and were marked as expired.
    pub expired: u64,
    /// Messages for other servers, which stay.
    pub elsewhere: u64,
    /// Messages that were not selected, which stay.
    pub unselected: u64,
    /// Messages behind one that stays.
    pub behind: u64,
    /// Streams behind an earlier one of the same store; their messages are counted above as well.
    pub behind_streams: Vec<BehindStream>,
    /// Messages whose key is not here, which stay: by workspace and the key's fingerprint.
    pub without_key: WithoutKey,
    /// Messages that can't be read, at least.
    pub unreadable_messages: u64,
    /// The first objects that can't be read.
    pub unreadable: Vec<UnreadableObject>,
    /// Messages of streams that were released undelivered.
    pub left_waiting: u64,
    /// Streams that have a living owner, and what these say is waiting.
    pub alive: u64,
    pub waiting_alive: u64,
}

impl FeedTotals {
    /// Adds what could not be read before anything was taken.
    pub(crate) fn add_unreadable_of(&mut self, objects: Vec<UnreadableObject>) {
        objects.into_iter().for_each(|object| self.add_unreadable(object));
    }

    pub(super) fn add_unreadable(&mut self, object: UnreadableObject) {
        warn!(target: "fleet", "left in the depot: {} can't be read: {}", object.object, object.reason);
        self.unreadable_messages += object.messages;
        if self.unreadable.len() < NAMED_MAX {
            self.unreadable.push(object);
        }
    }

    pub(super) fn add_unreadable_head(&mut self, stream: StreamId, fault: &HeadFault) {
        let object = ObjectName::Head(stream).to_string();
        self.add_unreadable(UnreadableObject { object, messages: 0, reason: fault.to_string() });
    }

    pub(super) fn add_behind(&mut self, behind: BehindStream) {
        self.left_waiting += behind.waiting;
        self.behind += behind.waiting;
        self.behind_streams.push(behind);
    }

    pub(super) fn add(&mut self, left: &LeftBehind) {
        self.expired += left.expired;
        self.elsewhere += left.elsewhere;
        self.unselected += left.unselected;
        self.behind += left.behind;
    }
}

/// How the feeder works.
#[derive(Clone, Copy, Debug)]
pub(super) struct FeedSettings {
    /// How much of the scratch store may be in use, in bytes of bodies.
    pub stage_bytes: u64,
    /// How long a head has to be silent.
    pub takeover_after: Duration,
}

impl FeedSettings {
    /// Returns how often heads are listed.
    fn look_interval(self) -> Duration {
        (self.takeover_after / 9).clamp(Duration::from_millis(100), Duration::from_secs(10))
    }
}

/// Feeds the scratch store.
pub(super) struct Feeder<'a> {
    pub depot: &'a dyn Depot,
    pub reader: StreamReader,
    pub holdings: &'a Holdings,
    pub ledger: &'a ReplayerLedger,
    pub importer: Importer<'a>,
    /// The scratch store, without marks.
    pub store: &'a dyn Store,
    pub state: &'a FeedState,
    pub settings: FeedSettings,
    pub keys: &'a KeyFolder,
    /// The streams of this process, which are never taken.
    pub own: Option<&'a OwnStreams>,
    pub progress: FeedProgress,
}

/// The state of a feeder between its steps.
pub(super) struct FeedProgress {
    watch: HeadWatch,
    free: VecDeque<FreeStream>,
    pub(super) streams: Vec<TakenStream>,
    /// The streams that are reserved for purges.
    pub(super) wanted: WantedStreams,
    /// Streams that wait until an earlier one of the same store is settled.
    behind: Vec<BehindStream>,
    /// Streams that are not taken again before then.
    set_aside: HashMap<StreamId, Duration>,
    /// Streams that were released and wait for keys.
    keyless: BTreeMap<StreamId, WithoutKey>,
    looked: Option<Duration>,
    undecided: usize,
    pub(super) totals: FeedTotals,
}

impl FeedProgress {
    pub(super) fn new(takeover_after: Duration) -> Self {
        Self {
            watch: HeadWatch::new(takeover_after),
            free: VecDeque::new(),
            streams: Vec::new(),
            wanted: WantedStreams::new(takeover_after),
            behind: Vec::new(),
            set_aside: HashMap::new(),
            keyless: BTreeMap::new(),
            looked: None,
            undecided: 0,
            totals: FeedTotals::default(),
        }
    }
}

impl<'a> Feeder<'a> {
    /// Does what can be done now; returns whether anything was.
    ///
    /// # Errors
    ///
    /// If the depot or the scratch store can't be used. Nothing is lost: the next call continues.
    pub(super) fn step(&mut self, may_take: bool) -> Result<bool, TakeoverError> {
        self.let_go()?;
        let is_due = |looked| since_boot().saturating_sub(looked) >= self.settings.look_interval();
        if self.progress.looked.is_none_or(is_due) {
            self.look()?;
        }
        let has_worked = self.work(may_take)?;
        let is_idle = self.progress.free.is_empty()
            && self.progress.undecided == 0
            && self.progress.streams.iter().all(TakenStream::is_imported);
        self.state.is_idle.store(is_idle, Ordering::Release);
        Ok(has_worked)
    }

    fn look(&mut self) -> Result<(), TakeoverError> {
        let now = since_boot();
        let has_new_keys = self.keys.refresh();
        let progress = &mut self.progress;
        progress.wanted.look(self.depot)?;
        let keyless = &progress.keyless;
        progress.set_aside.retain(|stream, until| *until > now && !(has_new_keys && keyless.contains_key(stream)));
        let (holdings, selection) = (self.holdings, self.importer.sorter.selection);
        let (set_aside, wanted) = (&progress.set_aside, &progress.wanted);
        let is_ours = |stream| {
            holdings.epoch(stream).is_some()
                || set_aside.contains_key(&stream)
                || wanted.has(stream)
                || !selection.takes(stream)
        };
        let Look { mut free, undecided, alive, waiting_alive, draining, unreadable } =
            progress.watch.look(self.depot, is_ours)?;
        self.state.draining.store(draining, Ordering::Release);
        // Two replayers that look at the same time begin at different places.
        let turn = uuid::Uuid::new_v7(uuid::Timestamp::now(uuid::NoContext)).as_bytes()[15];
        spare(self.own, &mut free)?;
        let behind = self.leave_later(&mut free)?;
        let is_next = |stream: &StreamId| free.iter().any(|free| free.stream == *stream);
        let (soon, later): (Vec<_>, Vec<_>) = behind.into_iter().partition(|behind| behind.earlier.iter().any(is_next));
        let progress = &mut self.progress;
        progress.behind = later;
        let middle = free.len() * usize::from(turn) / 256;
        free.rotate_left(middle);
        progress.free = free.into();
        // Reserved streams are free again soon.
        progress.undecided = undecided + soon.len() + progress.wanted.count();
        progress.totals.alive = alive as u64;
        progress.totals.waiting_alive = waiting_alive;
        for (stream, fault) in unreadable {
            progress.set_aside.insert(stream, now + self.settings.takeover_after * SET_ASIDE_TIMES);
            progress.totals.add_unreadable_head(stream, &fault);
        }
        progress.looked = Some(now);
        Ok(())
    }

    fn has_room(&self, share: u64) -> bool {
        let Staged { messages, bytes } = self.ledger.staged();
        messages < MESSAGES_MAX / share && bytes < self.settings.stage_bytes / share
    }

    /// Takes the next streams, imports what was taken and deletes what is finished, concurrently; returns whether
    /// there was anything to do.
    fn work(&mut self, may_take: bool) -> Result<bool, TakeoverError> {
        let next = if may_take { self.next_free()? } else { Vec::new() };
        let done = self.take_done();
        let access = self.access();
        let (prepared, swept, imported) = all_three(
            || in_parallel(&next, TAKEN_AT_ONCE, |free| access.prepare(free)),
            || in_parallel(&done, SWEPT_AT_ONCE, |taken| access.sweep(taken)),
            || self.import_some(),
        );
        let has_worked = !next.is_empty() || !done.is_empty();
        // All of it is noted, whatever failed: what is forgotten would stay until its head is silent.
        let prepared = self.note_prepared(&next, prepared);
        let swept = self.note_swept(done, swept);
        let imported = imported?;
        prepared.and(swept)?;
        Ok(imported || has_worked)
    }

    fn access(&self) -> StreamAccess<'a> {
        StreamAccess { depot: self.depot, reader: self.reader.clone(), holdings: self.holdings, ledger: self.ledger }
    }

    /// Returns the free streams to take next, if there is room for more.
    fn next_free(&mut self) -> Result<Vec<FreeStream>, TakeoverError> {
        if self.progress.free.is_empty() || self.progress.streams.len() >= STREAMS_MAX || !self.has_room(2) {
            return Ok(Vec::new());
        }
        let room = (STREAMS_MAX - self.progress.streams.len()).min(TAKEN_AT_ONCE).min(self.progress.free.len());
        let mut next: Vec<FreeStream> = self.progress.free.drain(..room).collect();
        // An agent that stops may have closed its head since.
        spare(self.own, &mut next)?;
        self.leave_later(&mut next)?;
        // Their agents are gone, and their applications may go on behind other agents, whose updates are in no stream: of
        // all that is older than this it is unknown whether an update reached the server before its create.
        self.store.note_updates_ahead(&[], now_ms())?;
        Ok(next)
    }

    /// Removes and returns the streams that have to wait for an earlier one of the same store, which another process owns or
    /// nobody. Where the earlier one is held here, the later one is imported after it.
    fn leave_later(&self, free: &mut Vec<FreeStream>) -> Result<Vec<BehindStream>, TakeoverError> {
        let access = (self.depot, &self.progress.watch);
        let is_here = |earlier| self.holdings.epoch(earlier).is_some();
        let mut behind = Vec::new();
        let mut result = Ok(());
        free.retain(|free| match BehindStream::of(free, access, self.importer.sorter.selection, is_here) {
            Ok(None) => true,
            Ok(Some(found)) => {
                behind.push(found);
                false
            }
            Err(error) => {
                result = Err(error.into());
                false
            }
        });
        result.map(|()| behind)
    }

    /// Returns whether an earlier stream of the same store has to be imported before this one.
    fn is_behind(&self, at: usize) -> bool {
        let streams = &self.progress.streams;
        streams.iter().any(|earlier| !earlier.is_imported() && streams[at].after.contains(&earlier.stream))
    }

    /// Lets messages stay that are newer than one that stays in an earlier stream of the same store.
    fn inherit(&mut self, at: usize) {
        if self.progress.streams[at].after.is_empty() {
            return;
        }
        let mut back = std::mem::take(&mut self.progress.streams[at].back);
        let streams = &self.progress.streams;
        let earlier = streams.iter().filter(|earlier| streams[at].after.contains(&earlier.stream));
        earlier.for_each(|earlier| back.inherit(&earlier.back));
        self.progress.streams[at].back = back;
    }

    fn note_prepared(
        &mut self,
        next: &[FreeStream],
        prepared: Vec<Result<Option<PreparedStream>, DepotError>>,
    ) -> Result<(), TakeoverError> {
        let mut result = Ok(());
        for (free, prepared) in next.iter().zip(prepared) {
            self.progress.watch.forget(free.stream);
            match prepared {
                Ok(Some((stream, unreadable))) => {
                    self.progress.totals.taken += 1;
                    self.progress.keyless.remove(&stream.stream);
                    if let Some(unreadable) = unreadable {
                        self.progress.totals.add_unreadable(unreadable);
                    }
                    self.progress.streams.push(stream);
                }
                Ok(None) => {}
                Err(error) => result = result.and(Err(error.into())),
            }
        }
        result
    }

    /// Imports the next bundles while there is room.
    fn import_some(&mut self) -> Result<bool, TakeoverError> {
        let mut has_worked = false;
        for at in 0..self.progress.streams.len() {
            while self.has_room(1) && !self.progress.streams[at].is_imported() && !self.is_behind(at) {
                self.import_next(at)?;
                has_worked = true;
            }
        }
        Ok(has_worked)
    }

    fn import_next(&mut self, at: usize) -> Result<(), TakeoverError> {
        self.inherit(at);
        let FeedProgress { streams, totals, .. } = &mut self.progress;
        let others = streams.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, other)| other.back.len());
        let room = HELD_BACK_MAX.saturating_sub(others.sum());
        let taken = &mut streams[at];
        let Some(group) = taken.pending.front().cloned() else { return Ok(()) };
        if taken.planned.is_none() {
            let (records, unreadable) = taken.read_next(&self.reader)?;
            for unreadable in unreadable {
                taken.left += unreadable.messages;
                totals.add_unreadable(unreadable);
            }
            taken.planned = Some(records);
        }
        let records = taken.planned.as_deref().unwrap_or_default();
        let bundle = ImportedBundle {
            stream: taken.stream,
            epoch: taken.epoch,
            number: group.first().map_or(0, |bundle| bundle.number),
            bytes: group.iter().map(|bundle| bundle.bytes).sum(),
            settled: taken.plan.settled(),
        };
        // A retry after an error may find more: messages that stay are only ever added.
        let Imported { messages, left } = self.importer.import(bundle, records, (&mut taken.back, room))?;
        taken.planned = None;
        taken.pending.pop_front();
        taken.imported.extend(group);
        taken.left += left.messages();
        for (key, messages) in &left.without_key {
            *taken.without_key.entry(key.clone()).or_default() += messages;
        }
        totals.add(&left);
        for unreadable in left.unreadable {
            totals.add_unreadable(unreadable);
        }
        self.state.imported.fetch_add(messages, Ordering::Release);
        Ok(())
    }

    /// Removes and returns the streams that are settled, as far as they can be here.
    fn take_done(&mut self) -> Vec<TakenStream> {
        let is_done = |taken: &TakenStream| taken.is_imported() && self.ledger.outstanding(taken.stream) == 0;
        let (done, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.progress.streams).into_iter().partition(is_done);
        self.progress.streams = rest;
        for taken in &mut self.progress.streams {
            done.iter()
                .filter(|done| taken.after.contains(&done.stream))
                .for_each(|done| taken.back.inherit(&done.back));
        }
        done
    }

    /// Takes note of what became of streams that are settled.
    fn note_swept(
        &mut self,
        done: Vec<TakenStream>,
        swept: Vec<Result<Swept, DepotError>>,
    ) -> Result<(), TakeoverError> {
        let mut result = Ok(());
        for (mut taken, swept) in done.into_iter().zip(swept) {
            match swept {
                Ok(Swept::Finished) => self.progress.totals.finished += 1,
                Ok(Swept::GivenBack) => {
                    self.progress.totals.given_back += 1;
                    self.progress.totals.left_waiting += taken.left;
                    if !taken.without_key.is_empty() {
                        self.progress.keyless.insert(taken.stream, std::mem::take(&mut taken.without_key));
                    }
                    let until = since_boot() + self.settings.takeover_after * SET_ASIDE_TIMES;
                    self.progress.set_aside.insert(taken.stream, until);
                }
                Ok(Swept::More(bundles)) => {
                    taken.take_new(bundles);
                    self.progress.streams.push(taken);
                }
                Err(error) => {
                    result = result.and(Err(error.into()));
                    self.progress.streams.push(taken);
                }
            }
        }
        result
    }

    fn sweep_done(&mut self) -> Result<(), TakeoverError> {
        let (done, access) = (self.take_done(), self.access());
        let swept = in_parallel(&done, SWEPT_AT_ONCE, |taken| access.sweep(taken));
        self.note_swept(done, swept)
    }

    /// Deletes what is finished and gives everything else back; returns what became of the streams.
    ///
    /// # Errors
    ///
    /// The first error of the depot: streams that could not be released become silent.
    pub(super) fn close(mut self) -> (FeedTotals, Result<(), TakeoverError>) {
        let mut result = self.let_go().and_then(|()| self.sweep_done());
        let rest = std::mem::take(&mut self.progress.streams);
        let given = in_parallel(&rest, SWEPT_AT_ONCE, |taken| {
            let waiting = self.waiting_of(taken);
            (waiting, self.holdings.release(taken.stream, waiting, Some(missing_keys(&taken.without_key))))
        });
        let keyless = rest.into_iter().map(|taken| (taken.stream, taken.without_key));
        self.progress.keyless.extend(keyless);
        for (key, messages) in std::mem::take(&mut self.progress.keyless).into_values().flatten() {
            *self.progress.totals.without_key.entry(key).or_default() += messages;
        }
        for behind in std::mem::take(&mut self.progress.behind) {
            self.progress.totals.add_behind(behind);
        }
        for (waiting, given) in given {
            self.progress.totals.given_back += 1;
            self.progress.totals.left_waiting += waiting;
            if let Err(error) = given {
                result = result.and(Err(error.into()));
            }
        }
        (self.progress.totals, result)
    }
}

/// Takes streams over and ends them, concurrently with the thread that imports.
struct StreamAccess<'a> {
    depot: &'a dyn Depot,
    reader: StreamReader,
    holdings: &'a Holdings,
    ledger: &'a ReplayerLedger,
}

impl StreamAccess<'_> {
    /// Takes a stream and reads its marks; `None` if another process was faster.
    fn prepare(&self, free: &FreeStream) -> Result<Option<PreparedStream>, DepotError> {
        let stream = free.stream;
        let found = free.head.as_ref().map(|(head, version)| (head, version));
        let Some(head) = self.holdings.take(stream, found)? else { return Ok(None) };
        info!(target: "fleet", %stream, epoch = head.epoch, "took a stream over");
        let read = TakenStream::read(&self.reader, stream, &head);
        if read.is_err() {
            // So that it need not become silent first.
            let _ = self.holdings.give_back(stream, head.waiting);
        }
        read.map(Some)
    }

    /// Deletes a stream that is settled, or gives it back if it can't be.
    fn sweep(&self, taken: &TakenStream) -> Result<Swept, DepotError> {
        let stream = taken.stream;
        if self.holdings.epoch(stream).is_none() {
            // Lost in this instant: what remains is its new owner's.
            self.ledger.forget(stream);
            return Ok(Swept::GivenBack);
        }
        if taken.left > 0 {
            self.holdings.release(stream, taken.left, Some(missing_keys(&taken.without_key)))?;
            self.ledger.forget(stream);
            return Ok(Swept::GivenBack);
        }
        // A request of its agent may have been on its way.
        let listed = self.reader.bundles(stream)?;
        if listed.iter().any(|bundle| !taken.imported.contains(bundle)) {
            return Ok(Swept::More(listed));
        }
        // Also those that this listing does not show: nobody could tell later that they are settled.
        let all: Vec<BundleName> = taken.imported.iter().copied().collect();
        let finished = taken.plan.finished();
        delete_stream(self.depot, stream, (&all, &finished), |message| self.ledger.keeps_file(stream, message))?;
        self.holdings.forget(stream);
        self.ledger.forget(stream);
        info!(target: "fleet", %stream, "delivered and deleted a stream");
        Ok(Swept::Finished)
    }
}

/// Returns the keys that messages wait for as a head names them.
pub(super) fn missing_keys(without: &WithoutKey) -> Vec<MissingKey> {
    let mut keys: Vec<MissingKey> = without
        .iter()
        .map(|((workspace, key), messages)| MissingKey {
            workspace: workspace.clone(),
            key: key.to_string(),
            messages: *messages,
        })
        .collect();
    keys.sort_by_key(|key| std::cmp::Reverse(key.messages));
    keys.truncate(MISSING_KEYS_MAX);
    keys
}

/// The outcome of a sweep.
enum Swept {
    /// It is deleted.
    Finished,
    /// Something of it can't be delivered here.
    GivenBack,
    /// Its agent had shipped more.
    More(Vec<BundleName>),
}
