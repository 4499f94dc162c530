//! `replay --verify`: delivered entities are read back from the server.
//!
//! The [`Verifier`] observes deliveries and keeps, per lane, which entities the server has to show ([`Expectations`]).
//! Once a lane has [`CHECK_AT`] of them it reads pages, between two requests of the lane, and forgets the entities
//! that are shown, so that memory stays bounded; [`Verifier::finish`] reads the rest. The server shows some writes
//! late (ClickHouse), so missing entities are read again, with a growing backoff, until the timeout: only an entity
//! that was read by its id after its delivery, and was not shown, is reported as missing. Entities that could not be
//! read are counted separately, as are requests that no read can show.
//!
//! A trace or span whose create was delivered in this run and that is shown without it is *partial*: an update that
//! reached the server first hides a batch create. A single create completes such a row and leaves a full one
//! unchanged, so the create is sent once more, singly, as it was delivered ([`CREATES_BYTES_MAX`] of them are kept
//! until they are shown). Then the entity is read again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::context::Observer;
use crate::delivery::batching::split::Divisible;
use crate::message::{Body, Lane, MessageType, Request};
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::readback::{
    DEFAULT_PROJECT, Expectations, Read, ReadableKind, behind, facts, one, page, shown, shown_in_page,
};
use crate::protocol::recognise::Endpoint;
use crate::shutdown::Shutdown;
use crate::upstream::Upstream;

/// Entities of a lane that are expected before pages are read in the middle of a replay.
const CHECK_AT: usize = 10_000;
/// The most entities of a lane that are kept; those beyond are not read back.
const KEPT_MAX: usize = 5 * CHECK_AT;
/// Bytes of creates that are kept until the server shows their entities, to complete partial rows; beyond it rows stay
/// partial.
const CREATES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The largest decoded body that is parsed.
const CONTENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The first and the longest wait before missing entities are read again.
const WAIT_FIRST: Duration = Duration::from_millis(200);
const WAIT_LONGEST: Duration = Duration::from_secs(5);

/// Reads back what a replay delivers.
pub(crate) struct Verifier<'a> {
    upstream: &'a Upstream,
    lanes: Mutex<HashMap<Lane, LaneReadback>>,
    /// Bytes of creates that are kept.
    kept: AtomicUsize,
}

#[derive(Default)]
struct LaneReadback {
    expected: Expectations,
    /// Entities that the server has shown completely.
    shown: u64,
    /// Size at which pages are read next.
    check_at: usize,
    /// Requests without anything that can be read back.
    not_readable: BTreeMap<MessageType, u64>,
    /// Entities beyond [`KEPT_MAX`].
    too_many: u64,
    /// Single creates of expected entities, as far as they are kept.
    creates: HashMap<(ReadableKind, String), Request>,
    /// Partial rows for which the create was sent again.
    repaired: u64,
}

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verified {
    /// Entities that the server shows, with all scores that were delivered for them.
    pub shown: u64,
    /// Entities, or their scores, that it does not show.
    pub missing: Vec<Missing>,
    /// Partial rows that were completed by a single create.
    pub repaired: u64,
    /// Entities that could not be read.
    pub unread: u64,
    /// Why not, for people; each reason once.
    pub reasons: Vec<String>,
    /// Requests, by type, of which nothing can be read back.
    pub not_readable: BTreeMap<MessageType, u64>,
}

impl Verified {
    /// Adds the result for another server.
    pub(crate) fn add(&mut self, other: Self) {
        let Self { shown, missing, repaired, unread, reasons, not_readable } = other;
        self.shown += shown;
        self.repaired += repaired;
        self.unread += unread;
        self.missing.extend(missing);
        let new = reasons.into_iter().filter(|reason| !self.reasons.contains(reason)).collect::<Vec<_>>();
        self.reasons.extend(new);
        for (message_type, requests) in not_readable {
            *self.not_readable.entry(message_type).or_default() += requests;
        }
    }
}

/// An entity that the server does not show, or not with these scores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    /// Its kind.
    pub kind: ReadableKind,
    /// Its id.
    pub id: String,
    /// The workspace.
    pub workspace: String,
    /// The project that its messages name.
    pub project: Option<String>,
    /// Missing scores; the entity itself exists if `is_shown`.
    pub scores: BTreeSet<String>,
    /// Whether the entity itself is shown.
    pub is_shown: bool,
    /// Whether it is shown without the content of its create.
    pub is_partial: bool,
}

/// Why an entity could not be read.
enum Unreadable {
    /// The key is refused: a retry makes no difference.
    Refused(String),
    /// A retry may succeed, perhaps not before this time.
    Later(String, Option<Duration>),
}

/// The last readings of a verification: lanes whose entities are not all shown yet, and the others.
#[derive(Default)]
struct FinalReading {
    open: Vec<(Lane, LaneReadback)>,
    done: Vec<(Lane, LaneReadback)>,
    /// Why a lane of the last reading was not read, for people.
    reasons: Vec<String>,
    /// Why lanes are not read at all: the key is refused.
    refused: BTreeSet<String>,
}

impl FinalReading {
    /// Reads every open lane once, and returns how long the server asks to wait.
    fn read_open(&mut self, upstream: &Upstream, shutdown: &Shutdown) -> Duration {
        self.reasons.clear();
        let mut asked_wait = Duration::ZERO;
        for (lane, mut readback) in std::mem::take(&mut self.open) {
            let reader = EntityReader { upstream, lane: &lane, shutdown };
            let result = match shutdown.is_requested() {
                true => Err(Unreadable::Later("interrupted".to_owned(), None)),
                false => reader.check(&mut readback, true),
            };
            match result {
                Ok(()) if readback.expected.is_empty() => self.done.push((lane, readback)),
                Ok(()) => {
                    asked_wait = asked_wait.max(reader.repair(&mut readback));
                    self.open.push((lane, readback));
                }
                Err(Unreadable::Refused(reason)) => {
                    self.refused.insert(format!("{lane}: {reason}"));
                    self.done.push((lane, readback));
                }
                Err(Unreadable::Later(reason, asked)) => {
                    self.reasons.push(format!("{lane}: {reason}"));
                    asked_wait = asked_wait.max(asked.unwrap_or_default());
                    self.open.push((lane, readback));
                }
            }
        }
        asked_wait
    }

    /// Returns the result over all lanes.
    fn verified(mut self) -> Verified {
        let mut verified = Verified::default();
        self.done.append(&mut self.open);
        self.done.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (lane, readback) in self.done {
            verified.shown += readback.shown;
            verified.repaired += readback.repaired;
            for (message_type, requests) in readback.not_readable {
                *verified.not_readable.entry(message_type).or_default() += requests;
            }
            if readback.too_many > 0 {
                verified.unread += readback.too_many;
                self.reasons.push(format!("{lane}: too many entities are not shown to keep track of them all"));
            }
            for (kind, id, expected) in readback.expected.iter() {
                if !expected.was_missing {
                    verified.unread += 1;
                    continue;
                }
                verified.missing.push(Missing {
                    kind,
                    id: id.to_owned(),
                    workspace: lane.workspace_name().to_owned(),
                    project: expected.project.clone(),
                    scores: expected.scores.clone(),
                    is_shown: expected.was_shown,
                    is_partial: expected.is_partial,
                });
            }
        }
        self.reasons.extend(self.refused);
        self.reasons.sort();
        self.reasons.dedup();
        if verified.unread > 0 {
            verified.reasons = self.reasons;
        }
        verified
    }
}

impl<'a> Verifier<'a> {
    /// Returns a verifier without expectations that reads through `upstream`.
    pub(crate) fn new(upstream: &'a Upstream) -> Self {
        Self { upstream, lanes: Mutex::default(), kept: AtomicUsize::new(0) }
    }

    /// Reads everything that is left, repeatedly until the server shows all of it, `timeout` is over, or shutdown is
    /// requested.
    pub(crate) fn finish(self, timeout: Duration, shutdown: &Shutdown) -> Verified {
        let started = Instant::now();
        let mut lanes = self.lanes.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut reading = FinalReading { open: lanes.drain().collect(), ..FinalReading::default() };
        let mut wait = WAIT_FIRST;
        loop {
            let asked_wait = reading.read_open(self.upstream, shutdown);
            let pause = wait.max(asked_wait);
            wait = wait.saturating_mul(2).min(WAIT_LONGEST);
            let left = timeout.saturating_sub(started.elapsed());
            // The last reading comes at the end of the time, unless the server asked for a longer wait.
            let is_over = reading.open.is_empty() || left.is_zero() || asked_wait > left;
            if is_over || shutdown.sleep(pause.min(left)) {
                return reading.verified();
            }
        }
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<Lane, LaneReadback>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Verifier<'_> {
    fn delivered(&self, lane: &Lane, message_type: MessageType, request: &Request) {
        let content = request.body.decode(CONTENT_BYTES_MAX).ok();
        let found = content.and_then(|content| facts(message_type, &request.method, &request.path, &content));
        let creates = single_creates(message_type, request);
        // A lane has one worker, so no other thread needs its entry while it is out of the map; no lock is held while
        // reading.
        let mut readback = self.lanes().remove(lane).unwrap_or_default();
        match found {
            None => *readback.not_readable.entry(message_type).or_default() += 1,
            Some(found) => {
                for fact in found {
                    if readback.expected.len() < KEPT_MAX || readback.expected.get(fact.kind, &fact.id).is_some() {
                        readback.expected.note(fact);
                    } else {
                        readback.too_many += 1;
                    }
                }
            }
        }
        for (key, create) in creates {
            let bytes = create.body.bytes.len();
            if readback.expected.get(key.0, &key.1).is_some()
                && self.kept.load(Ordering::Relaxed).saturating_add(bytes) <= CREATES_BYTES_MAX
            {
                self.kept.fetch_add(bytes, Ordering::Relaxed);
                let earlier = readback.creates.insert(key, create);
                self.kept.fetch_sub(earlier.map_or(0, |earlier| earlier.body.bytes.len()), Ordering::Relaxed);
            }
        }
        if readback.expected.len() >= readback.check_at.max(CHECK_AT) {
            // An entity that can't be read now is read at the end, where failures are reported.
            let reader = EntityReader { upstream: self.upstream, lane, shutdown: &Shutdown::new() };
            let _ = reader.check(&mut readback, false);
            readback.check_at = readback.expected.len() + CHECK_AT;
            let LaneReadback { expected, creates, .. } = &mut readback;
            creates.retain(|(kind, id), create| {
                let is_kept = expected.get(*kind, id).is_some();
                let bytes = if is_kept { 0 } else { create.body.bytes.len() };
                self.kept.fetch_sub(bytes, Ordering::Relaxed);
                is_kept
            });
        }
        self.lanes().insert(lane.clone(), readback);
    }
}

/// Returns the creates of a delivered request, each as a single one.
fn single_creates(message_type: MessageType, request: &Request) -> Vec<((ReadableKind, String), Request)> {
    let named = |message_type: MessageType, create: Request| {
        let content = create.body.decode(CONTENT_BYTES_MAX).ok()?;
        let fact = facts(message_type, &create.method, &create.path, &content)?.pop()?;
        Some(((fact.kind, fact.id), create))
    };
    if message_type.is_single_create() {
        return named(message_type, request.clone()).into_iter().collect();
    }
    if !message_type.is_batch_create() {
        return Vec::new();
    }
    let Some(batch) = Divisible::of_any(message_type, request) else { return Vec::new() };
    let single = |index| {
        let (message_type, create) = batch.single_create(message_type, request, index)?;
        // Copied: a slice would keep the whole batch in memory.
        let body = Body::new(create.body.bytes.to_vec(), create.body.encoding);
        named(message_type, Request { body, ..create })
    };
    (0..batch.len()).filter_map(single).collect()
}

/// Reads the entities of one lane.
struct EntityReader<'a> {
    upstream: &'a Upstream,
    lane: &'a Lane,
    shutdown: &'a Shutdown,
}

impl EntityReader<'_> {
    /// Sends the creates of partial rows again, singly; returns how long the server asks to wait.
    fn repair(&self, readback: &mut LaneReadback) -> Duration {
        let partial = readback.expected.iter().filter(|(.., expected)| expected.is_partial);
        let partial: Vec<(ReadableKind, String)> = partial.map(|(kind, id, _)| (kind, id.to_owned())).collect();
        for key in partial {
            if self.shutdown.is_requested() {
                break;
            }
            let Some(create) = readback.creates.get(&key) else { continue };
            let message_type =
                if key.0 == ReadableKind::Trace { MessageType::CreateTrace } else { MessageType::CreateSpan };
            match self.upstream.send(self.lane, Endpoint::Write(message_type), create) {
                Ok(answer) if answer.is_confirmed() => readback.repaired += 1,
                Ok(answer) if answer.status == 429 => return answer.asked_wait.unwrap_or_default(),
                // A front answered; the create is needed for the next attempt.
                Ok(answer) if answer.recognised.foreign().is_some() => continue,
                // The row is full now, or the create is refused: reading it again tells which.
                Ok(_) => {}
                // Perhaps it arrived; the next reading tells, and if not it is sent again.
                Err(_) => continue,
            }
            readback.creates.remove(&key);
        }
        Duration::ZERO
    }

    /// Reads all expected entities: page by page where there are pages, and then `by_id`.
    fn check(&self, readback: &mut LaneReadback, by_id: bool) -> Result<(), Unreadable> {
        let mut wanted: BTreeMap<(ReadableKind, String), Vec<String>> = BTreeMap::new();
        for (kind, id, expected) in readback.expected.iter().filter(|(kind, ..)| kind.has_pages()) {
            let project = expected.project.clone().unwrap_or_else(|| DEFAULT_PROJECT.to_owned());
            wanted.entry((kind, project)).or_default().push(id.to_owned());
        }
        for ((kind, project), ids) in wanted {
            self.read_pages(readback, kind, &project, ids)?;
        }
        if !by_id {
            return Ok(());
        }
        let left: Vec<(ReadableKind, String, Option<String>)> = readback
            .expected
            .iter()
            .map(|(kind, id, expected)| (kind, id.to_owned(), expected.project.clone()))
            .collect();
        for (kind, id, project) in left {
            if self.shutdown.is_requested() {
                return Err(Unreadable::Later("interrupted".to_owned(), None));
            }
            let answer = self.read(&one(kind, &id, project.as_deref()))?;
            if let Some(answer) = answer {
                let found = shown(answer.text.as_bytes());
                let has_scores = readback.expected.get(kind, &id).is_some_and(|expected| !expected.scores.is_empty());
                if found.is_none() && has_scores {
                    // The answer is truncated: the entity exists, and its scores can't be parsed.
                    continue;
                }
                let mut found = found.unwrap_or_default();
                found.id.clone_from(&id);
                if readback.expected.saw(kind, &found) {
                    readback.shown += 1;
                    continue;
                }
            }
            readback.expected.missed(kind, &id);
        }
        Ok(())
    }

    /// Reads pages of a project as long as they show expected entities. `ids` are ascending.
    fn read_pages(
        &self,
        readback: &mut LaneReadback,
        kind: ReadableKind,
        project: &str,
        mut ids: Vec<String>,
    ) -> Result<(), Unreadable> {
        while let Some(highest) = ids.last() {
            let Some(request) = page(kind, project, behind(highest).as_deref()) else { return Ok(()) };
            // The project does not exist, or the server does not support this read.
            let Some(answer) = self.read(&request)? else { return Ok(()) };
            let found = shown_in_page(answer.text.as_bytes());
            let mut useful = false;
            for entity in &found {
                useful |= readback.expected.get(kind, &entity.id).is_some();
                readback.shown += u64::from(readback.expected.saw(kind, entity));
            }
            let Some(lowest) = found.iter().map(|entity| &entity.id).min() else { return Ok(()) };
            if !useful {
                return Ok(());
            }
            ids.retain(|id| id < lowest);
        }
        Ok(())
    }

    /// Reads once; `None` if the server has no such entity.
    fn read(&self, request: &Read) -> Result<Option<Answer>, Unreadable> {
        let answer = match self.upstream.read_back(self.lane, request, ANSWER_BYTES_MAX) {
            Ok(answer) => answer,
            Err(failure @ (SendFailure::Connect { .. } | SendFailure::Broken { .. } | SendFailure::Timeout { .. })) => {
                return Err(Unreadable::Later(failure.to_string(), None));
            }
        };
        if let Some(foreign) = answer.recognised.foreign() {
            // Neither "not found" nor "key refused": Opik was not asked.
            return Err(Unreadable::Later(foreign.to_string(), answer.asked_wait));
        }
        match answer.status {
            200..=299 => Ok(Some(answer)),
            404 => Ok(None),
            // An older server may not support all of a search; every entity can still be read by its id.
            400 | 405 | 415 | 422 if request.body.is_some() && request.path.ends_with("/search") => Ok(None),
            status @ 401..=403 => Err(Unreadable::Refused(format!("the server answers reads with {status}"))),
            status => Err(Unreadable::Later(format!("the server answers reads with {status}"), answer.asked_wait)),
        }
    }
}
