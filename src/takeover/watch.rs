//! Watching the heads of a depot: which streams are free, and which may still be.
//!
//! A listing tells the version of every head with one request for a thousand of them; a head is read only when its
//! version is new. A stream without a head has lost its agent before, or its head was deleted while a bundle was on its
//! way: it is free once it was seen like this for the time to take over.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tracing::debug;

use super::objects::{folder, list_all, name_of};
use crate::depot::{Depot, DepotError, Version};
use crate::figures::{count, short_duration};
use crate::fleet::head::{Head, HeadFault};
use crate::fleet::names::{self, ObjectName, StreamId};
use crate::fleet::parallel::in_parallel;
use crate::fleet::takeover::{Asked, HeadSeen, SILENCE_MAX, SilenceWatch, Takeover};
use crate::replay::session::ProgressListener;
use crate::shutdown::Shutdown;
use crate::store::since_boot;

/// Heads that are read at a time: object storage answers in tens of milliseconds.
const READS_AT_ONCE: usize = 64;
/// Names that are listed at a time where most are skipped.
const SKIP_PAGE: usize = 1000;

/// How often the heads are looked at while it is not known which owners are alive.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Looks that may fail in a row, after the first: the wait lasts for up to a minute and a half, and connections break.
const LOOKS_FAILED_MAX: u32 = 5;

/// A head as it was read, or why it can't be.
pub(crate) type ReadHead = Result<Head, HeadFault>;

/// A stream that may be taken.
#[derive(Clone, Debug)]
pub(crate) struct FreeStream {
    pub stream: StreamId,
    /// Its head; `None` if it has none.
    pub head: Option<(Head, Version)>,
}

/// The result of one look at the heads.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub free: Vec<FreeStream>,
    /// Streams whose owner was neither seen alive nor silent for long enough.
    pub undecided: usize,
    /// Streams that have a living owner.
    pub alive: usize,
    /// Messages that their owners say are waiting.
    pub waiting_alive: u64,
    /// Streams that their owners deliver, as far as known: not those that are free, and not those that are held here.
    pub draining: u64,
    /// Heads that can't be read, with the reason.
    pub unreadable: Vec<(StreamId, HeadFault)>,
}

/// Remembers what the heads of a depot looked like.
pub(super) struct HeadWatch {
    takeover_after: Duration,
    silence: SilenceWatch,
    read: HashMap<StreamId, (Version, ReadHead)>,
    /// The version in which a head was first seen.
    first: HashMap<StreamId, Version>,
    /// Since when streams without a head are known.
    headless: HashMap<StreamId, Duration>,
    headless_looked: Option<Duration>,
}

impl HeadWatch {
    pub(super) fn new(takeover_after: Duration) -> Self {
        Self {
            takeover_after,
            silence: SilenceWatch::new(takeover_after),
            read: HashMap::new(),
            first: HashMap::new(),
            headless: HashMap::new(),
            headless_looked: None,
        }
    }

    /// Looks at all heads but those that are held here.
    pub(super) fn look(&mut self, depot: &dyn Depot, is_held: impl Fn(StreamId) -> bool) -> Result<Look, DepotError> {
        let began = since_boot();
        let listed = list_heads(depot)?;
        let asked = Asked { began, ended: since_boot() };
        let exists: HashSet<StreamId> = listed.iter().map(|(stream, _)| *stream).collect();
        self.silence.retain(|stream| exists.contains(stream));
        self.read.retain(|stream, _| exists.contains(stream));
        self.first.retain(|stream, _| exists.contains(stream));
        let is_new = |(stream, version): &&(StreamId, Version)| {
            !is_held(*stream) && self.read.get(stream).is_none_or(|(read, _)| read != version)
        };
        let new: Vec<StreamId> = listed.iter().filter(is_new).map(|(stream, _)| *stream).collect();
        for (stream, read) in new.iter().zip(read_heads(depot, &new)) {
            match read? {
                Some((version, head)) => drop(self.read.insert(*stream, (version, head))),
                None => drop(self.read.remove(stream)),
            }
        }
        let mut look = Look::default();
        for (stream, _) in listed.iter().filter(|(stream, _)| !is_held(*stream)) {
            self.judge(*stream, asked, &mut look);
        }
        self.look_for_headless(depot, &exists, &is_held, &mut look)?;
        Ok(look)
    }

    fn judge(&mut self, stream: StreamId, asked: Asked, look: &mut Look) {
        let Some((version, head)) = self.read.get(&stream) else { return };
        let head = match head {
            Ok(head) => head,
            Err(fault) => return look.unreadable.push((stream, fault.clone())),
        };
        let first = self.first.entry(stream).or_insert_with(|| version.clone());
        let seen = HeadSeen { version: version.as_str(), state: head.state, silence_ms: head.silence_ms };
        let takeover = self.silence.observe(stream, seen, asked);
        look.draining += u64::from(matches!(takeover, Takeover::NotYet(_)) && head.waiting > 0);
        match takeover {
            Takeover::Closed | Takeover::Silent => {
                look.free.push(FreeStream { stream, head: Some((head.clone(), version.clone())) });
            }
            Takeover::NotYet(_) if first == version => look.undecided += 1,
            Takeover::NotYet(_) => {
                look.alive += 1;
                look.waiting_alive += head.waiting;
            }
        }
    }

    /// Looks for streams without a head, now and then: it takes a request for each stream with many bundles.
    fn look_for_headless(
        &mut self,
        depot: &dyn Depot,
        with_head: &HashSet<StreamId>,
        is_held: &dyn Fn(StreamId) -> bool,
        look: &mut Look,
    ) -> Result<(), DepotError> {
        let now = since_boot();
        let is_due = |at: &Duration| now.saturating_sub(*at) >= self.takeover_after / 3;
        if self.headless_looked.as_ref().is_none_or(is_due) {
            let mut found = streams_with_bundles(depot)?;
            found.retain(|stream| !with_head.contains(stream) && !is_held(*stream));
            self.headless.retain(|stream, _| found.contains(stream));
            for stream in found {
                self.headless.entry(stream).or_insert(now);
            }
            self.headless_looked = Some(now);
        }
        for (stream, since) in &self.headless {
            if is_held(*stream) || with_head.contains(stream) {
                continue;
            }
            match now.saturating_sub(*since) >= self.takeover_after {
                true => look.free.push(FreeStream { stream: *stream, head: None }),
                false => look.undecided += 1,
            }
        }
        Ok(())
    }

    /// Returns whether a stream was last seen without a head, with bundles.
    pub(super) fn is_headless(&self, stream: StreamId) -> bool {
        self.headless.contains_key(&stream)
    }

    /// Looks until each owner has renewed its lease, or that has expired; `None` if it was interrupted.
    ///
    /// # Errors
    ///
    /// If the depot can't be read.
    pub(super) fn look_until_decided(
        &mut self,
        depot: &dyn Depot,
        is_left_out: impl Fn(StreamId) -> bool,
        (listener, shutdown): (&dyn ProgressListener, &Shutdown),
    ) -> Result<Option<Look>, DepotError> {
        let (mut is_said, mut failed) = (false, 0);
        loop {
            let look = match self.look(depot, &is_left_out) {
                Err(error) if is_said && failed < LOOKS_FAILED_MAX && error.is_passing() => {
                    debug!(target: "fleet", %error, "the heads are read again");
                    failed += 1;
                    if shutdown.sleep(LOOK_INTERVAL) {
                        return Ok(None);
                    }
                    continue;
                }
                looked => looked?,
            };
            failed = 0;
            if look.undecided == 0 {
                return Ok(Some(look));
            }
            if !std::mem::replace(&mut is_said, true) {
                let streams = count(look.undecided as u64, "stream");
                let longest = short_duration(self.longest_silence());
                listener
                    .note(&format!("waiting for up to {longest}, to learn which owners of {streams} are still alive"));
            }
            if shutdown.sleep(LOOK_INTERVAL) {
                return Ok(None);
            }
        }
    }

    /// Returns how long an owner may be silent at most before its stream is free.
    fn longest_silence(&self) -> Duration {
        let heads = self.read.values().filter_map(|(_, head)| head.as_ref().ok());
        let asked = Duration::from_millis(heads.map(|head| head.silence_ms).max().unwrap_or(0));
        self.takeover_after.max(asked.min(SILENCE_MAX))
    }

    /// Forgets a stream that was just taken, released or deleted.
    pub(super) fn forget(&mut self, stream: StreamId) {
        self.silence.forget(&stream);
        self.read.remove(&stream);
        self.first.remove(&stream);
        self.headless.remove(&stream);
    }
}

/// Returns the streams that have a head, each with the version of its head.
pub(crate) fn list_heads(depot: &dyn Depot) -> Result<Vec<(StreamId, Version)>, DepotError> {
    let listed = list_all(depot, &folder(&names::heads()))?.into_iter();
    let head = |entry: crate::depot::Entry| match ObjectName::parse(entry.name.as_str()) {
        Some(ObjectName::Head(stream)) => Some((stream, entry.version)),
        _ => None,
    };
    Ok(listed.filter_map(head).collect())
}

/// Reads these heads; `None` for one that is gone.
pub(crate) fn read_heads(
    depot: &dyn Depot,
    streams: &[StreamId],
) -> Vec<Result<Option<(Version, ReadHead)>, DepotError>> {
    in_parallel(streams, READS_AT_ONCE, |stream| {
        let found = depot.get(&name_of(&ObjectName::Head(*stream)))?;
        Ok(found.map(|(bytes, version)| (version, Head::decode(&bytes))))
    })
}

/// Returns the streams that have bundles. Skips the bundles of a stream that has more than one page of them.
pub(crate) fn streams_with_bundles(depot: &dyn Depot) -> Result<HashSet<StreamId>, DepotError> {
    let under = folder(&names::bundles());
    let mut found = HashSet::new();
    let mut after = None;
    loop {
        let page = depot.list(&under, after.as_ref(), SKIP_PAGE)?;
        let Some(last) = page.last() else { return Ok(found) };
        let streams = page.iter().filter_map(|entry| ObjectName::parse(entry.name.as_str())?.stream());
        found.extend(streams);
        if page.len() < SKIP_PAGE {
            return Ok(found);
        }
        after = match ObjectName::parse(last.name.as_str()).and_then(|name| name.stream()) {
            // Behind every number.
            Some(stream) => Some(folder(&format!("{}/z", names::bundles_of(&stream)))),
            None => Some(last.name.clone()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::model::{ModelDepot, ModelFault, Verb};
    use crate::fleet::head::{HeadOwner, HeadState};

    /// A depot whose connection breaks once while a person waits.
    struct BreaksOnce<'a>(&'a ModelDepot);

    impl ProgressListener for BreaksOnce<'_> {
        fn note(&self, _: &str) {
            self.0.fail_next(Verb::List, ModelFault::Unreachable);
        }

        fn progress(&self, _: u64, _: u64) {}
    }

    #[test]
    fn a_connection_that_breaks_ends_no_command_that_has_waited_for_a_while() {
        let depot = ModelDepot::new();
        let stream = StreamId::new(uuid::Uuid::now_v7());
        let head = Head::first(HeadState::Open, HeadOwner::default());
        depot.create(&name_of(&ObjectName::Head(stream)), &head.encode()).expect("it answers");
        let mut watch = HeadWatch::new(Duration::from_secs(1));
        let looked = watch.look_until_decided(&depot, |_| false, (&BreaksOnce(&depot), &Shutdown::new()));
        let free = looked.expect("a person has to begin again").expect("nobody interrupted it").free;
        assert_eq!(free.iter().map(|free| free.stream).collect::<Vec<_>>(), [stream]);
    }
}
