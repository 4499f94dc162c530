//! `replay --verify`: what was delivered is read back from the server.
//!
//! The [`Verifier`] watches deliveries and keeps, per lane, which entities the server has to show
//! ([`Expectations`]). Once a lane has [`CHECK_AT`] of them it reads pages, between two requests of the lane, so that
//! what is shown is forgotten and memory stays bounded; [`Verifier::finish`] reads what is left. The server shows some
//! writes late (ClickHouse), so what is missing is asked for again, with growing waits, until the time given is over:
//! only what was asked for by its id after its delivery, and was not shown, is reported as missing. What could not be
//! asked for is counted apart, as is what no read can show.
//!
//! A trace or span whose create was delivered in this run and that is shown without it is *partial*: an update that reached
//! the server first hides a batch create. The server completes such a row by a single create and leaves a full one alone,
//! so the create is sent once more, singly, as it was delivered ([`CREATES_BYTES_MAX`] of them are kept until they are
//! shown). Then it is read again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::context::Observer;
use crate::delivery::batching::split::Divisible;
use crate::message::{Body, Lane, MessageType, Request};
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::readback::{
    DEFAULT_PROJECT, Expectations, Kind, Read, behind, facts, one, page, shown, shown_in_page,
};
use crate::protocol::recognise::Endpoint;
use crate::shutdown::Shutdown;
use crate::upstream::Upstream;

/// Entities of a lane that are expected before pages are read in the middle of a replay.
const CHECK_AT: usize = 10_000;
/// Entities of a lane that are kept at most; what comes beyond is not read back.
const KEPT_MAX: usize = 5 * CHECK_AT;
/// Bytes of creates that are kept until the server shows their entities, to complete partial rows; more can't be completed.
const CREATES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of a body that is looked at, decoded.
const CONTENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The first and the longest wait before what is missing is asked for again.
const WAIT_FIRST: Duration = Duration::from_millis(200);
const WAIT_LONGEST: Duration = Duration::from_secs(5);

/// Reads back what a replay delivers.
pub struct Verifier<'a> {
    upstream: &'a Upstream,
    lanes: Mutex<HashMap<Lane, Watched>>,
    /// Bytes of creates that are kept.
    kept: AtomicUsize,
}

#[derive(Default)]
struct Watched {
    expected: Expectations,
    /// Entities that the server has shown whole.
    shown: u64,
    /// Size at which pages are read next.
    check_at: usize,
    /// Requests that say nothing that can be read back.
    not_readable: BTreeMap<MessageType, u64>,
    /// Entities beyond [`KEPT_MAX`].
    too_many: u64,
    /// Single creates of what is expected, as far as they are kept.
    creates: HashMap<(Kind, String), Request>,
    /// Partial rows for which the create was sent again.
    repaired: u64,
}

/// What came of reading back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Entities that the server shows, with all scores that were delivered for them.
    pub shown: u64,
    /// Entities, or scores of them, that it does not show.
    pub missing: Vec<Missing>,
    /// Partial rows that were completed by a single create.
    pub repaired: u64,
    /// Entities that could not be asked for.
    pub unread: u64,
    /// Why not, for people; each reason once.
    pub reasons: Vec<String>,
    /// Requests by type of which nothing can be read back.
    pub not_readable: BTreeMap<MessageType, u64>,
}

impl Verified {
    /// Adds what another server shows.
    pub fn add(&mut self, other: Self) {
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
pub struct Missing {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// The workspace.
    pub workspace: String,
    /// The project that its messages name.
    pub project: Option<String>,
    /// Scores that are missing; the entity itself is there when `is_shown`.
    pub scores: BTreeSet<String>,
    /// Whether the entity itself is shown.
    pub is_shown: bool,
    /// Whether it is shown without what its create says.
    pub is_partial: bool,
}

/// Why the server could not be asked.
enum Unreadable {
    /// The key is refused: asking again makes no difference.
    Refused(String),
    /// It may answer later, perhaps not before this time.
    Later(String, Option<Duration>),
}

impl<'a> Verifier<'a> {
    /// Returns one that has seen nothing yet and reads through `upstream`.
    pub fn new(upstream: &'a Upstream) -> Self {
        Self { upstream, lanes: Mutex::default(), kept: AtomicUsize::new(0) }
    }

    /// Reads all that is left, again and again until everything is shown or `timeout` is over, or shutdown is requested.
    pub fn finish(self, timeout: Duration, shutdown: &Shutdown) -> Verified {
        let started = Instant::now();
        let mut verified = Verified::default();
        let mut lanes = self.lanes.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut wait = WAIT_FIRST;
        let mut refused: BTreeMap<String, u64> = BTreeMap::new();
        let mut open: Vec<(Lane, Watched)> = lanes.drain().collect();
        let mut done: Vec<(Lane, Watched)> = Vec::new();
        let mut reasons: Vec<String>;
        loop {
            reasons = Vec::new();
            let mut asked_wait = Duration::ZERO;
            let mut still_open = Vec::new();
            for (lane, mut watched) in open {
                let result = if shutdown.is_requested() {
                    Err(Unreadable::Later("interrupted".to_owned(), None))
                } else {
                    check(self.upstream, &lane, &mut watched, true, shutdown)
                };
                match result {
                    Ok(()) if watched.expected.is_empty() => done.push((lane, watched)),
                    Ok(()) => {
                        asked_wait = asked_wait.max(repair(self.upstream, &lane, &mut watched, shutdown));
                        still_open.push((lane, watched));
                    }
                    Err(Unreadable::Refused(reason)) => {
                        *refused.entry(format!("{lane}: {reason}")).or_default() += 1;
                        done.push((lane, watched));
                    }
                    Err(Unreadable::Later(reason, asked)) => {
                        reasons.push(format!("{lane}: {reason}"));
                        asked_wait = asked_wait.max(asked.unwrap_or_default());
                        still_open.push((lane, watched));
                    }
                }
            }
            open = still_open;
            let pause = wait.max(asked_wait);
            wait = wait.saturating_mul(2).min(WAIT_LONGEST);
            let left = timeout.saturating_sub(started.elapsed());
            // A last look comes at the end of the time, unless the server asked for more than that.
            if open.is_empty() || left.is_zero() || asked_wait > left || shutdown.sleep(pause.min(left)) {
                break;
            }
        }
        done.append(&mut open);
        done.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (lane, watched) in done {
            verified.shown += watched.shown;
            verified.repaired += watched.repaired;
            for (message_type, requests) in watched.not_readable {
                *verified.not_readable.entry(message_type).or_default() += requests;
            }
            if watched.too_many > 0 {
                verified.unread += watched.too_many;
                reasons.push(format!("{lane}: too many entities are not shown to keep track of them all"));
            }
            for (kind, id, expected) in watched.expected.iter() {
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
        reasons.extend(refused.into_keys());
        reasons.sort();
        reasons.dedup();
        if verified.unread > 0 {
            verified.reasons = reasons;
        }
        verified
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<Lane, Watched>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Verifier<'_> {
    fn delivered(&self, lane: &Lane, message_type: MessageType, request: &Request) {
        let content = request.body.decode(CONTENT_BYTES_MAX).ok();
        let found = content.and_then(|content| facts(message_type, &request.method, &request.path, &content));
        let creates = single_creates(message_type, request);
        // A lane has one worker, so nobody else looks for it while it is out of the map; no lock is held while reading.
        let mut watched = self.lanes().remove(lane).unwrap_or_default();
        match found {
            None => *watched.not_readable.entry(message_type).or_default() += 1,
            Some(found) => {
                for fact in found {
                    if watched.expected.len() < KEPT_MAX || watched.expected.get(fact.kind, &fact.id).is_some() {
                        watched.expected.note(fact);
                    } else {
                        watched.too_many += 1;
                    }
                }
            }
        }
        for (key, create) in creates {
            let bytes = create.body.bytes.len();
            if watched.expected.get(key.0, &key.1).is_some()
                && self.kept.load(Ordering::Relaxed).saturating_add(bytes) <= CREATES_BYTES_MAX
            {
                self.kept.fetch_add(bytes, Ordering::Relaxed);
                let earlier = watched.creates.insert(key, create);
                self.kept.fetch_sub(earlier.map_or(0, |earlier| earlier.body.bytes.len()), Ordering::Relaxed);
            }
        }
        if watched.expected.len() >= watched.check_at.max(CHECK_AT) {
            // What can't be read now is read at the end, where failures are told.
            let _ = check(self.upstream, lane, &mut watched, false, &Shutdown::new());
            watched.check_at = watched.expected.len() + CHECK_AT;
            let Watched { expected, creates, .. } = &mut watched;
            creates.retain(|(kind, id), create| {
                let is_kept = expected.get(*kind, id).is_some();
                let bytes = if is_kept { 0 } else { create.body.bytes.len() };
                self.kept.fetch_sub(bytes, Ordering::Relaxed);
                is_kept
            });
        }
        self.lanes().insert(lane.clone(), watched);
    }
}

/// Returns the creates of a delivered request, each as a single one.
fn single_creates(message_type: MessageType, request: &Request) -> Vec<((Kind, String), Request)> {
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
        // A copy: a slice would keep the whole batch in memory.
        let body = Body::new(create.body.bytes.to_vec(), create.body.encoding);
        named(message_type, Request { body, ..create })
    };
    (0..batch.len()).filter_map(single).collect()
}

/// Sends the creates of partial rows once more, singly; returns how long the server asks to wait.
fn repair(upstream: &Upstream, lane: &Lane, watched: &mut Watched, shutdown: &Shutdown) -> Duration {
    let partial = watched.expected.iter().filter(|(.., expected)| expected.is_partial);
    let partial: Vec<(Kind, String)> = partial.map(|(kind, id, _)| (kind, id.to_owned())).collect();
    for key in partial {
        if shutdown.is_requested() {
            break;
        }
        let Some(create) = watched.creates.get(&key) else { continue };
        let message_type = if key.0 == Kind::Trace { MessageType::CreateTrace } else { MessageType::CreateSpan };
        match upstream.send(lane, Endpoint::Write(message_type), create) {
            Ok(answer) if answer.is_confirmed() => watched.repaired += 1,
            Ok(answer) if answer.status == 429 => return answer.asked_wait.unwrap_or_default(),
            // A front's word; the create is needed for the next look.
            Ok(answer) if answer.recognised.foreign().is_some() => continue,
            // Full by now, or refused: reading it again says which.
            Ok(_) => {}
            // Perhaps it arrived; the next look tells, and it is sent again if not.
            Err(_) => continue,
        }
        watched.creates.remove(&key);
    }
    Duration::ZERO
}

/// Asks for all that is expected: page by page where there are pages, and then `by_id`.
fn check(
    upstream: &Upstream,
    lane: &Lane,
    watched: &mut Watched,
    by_id: bool,
    shutdown: &Shutdown,
) -> Result<(), Unreadable> {
    let mut wanted: BTreeMap<(Kind, String), Vec<String>> = BTreeMap::new();
    for (kind, id, expected) in watched.expected.iter().filter(|(kind, ..)| kind.has_pages()) {
        let project = expected.project.clone().unwrap_or_else(|| DEFAULT_PROJECT.to_owned());
        wanted.entry((kind, project)).or_default().push(id.to_owned());
    }
    for ((kind, project), ids) in wanted {
        read_pages(upstream, lane, watched, kind, &project, ids)?;
    }
    if !by_id {
        return Ok(());
    }
    let left: Vec<(Kind, String, Option<String>)> =
        watched.expected.iter().map(|(kind, id, expected)| (kind, id.to_owned(), expected.project.clone())).collect();
    for (kind, id, project) in left {
        if shutdown.is_requested() {
            return Err(Unreadable::Later("interrupted".to_owned(), None));
        }
        let answer = read(upstream, lane, &one(kind, &id, project.as_deref()))?;
        if let Some(answer) = answer {
            let found = shown(answer.text.as_bytes());
            let has_scores = watched.expected.get(kind, &id).is_some_and(|expected| !expected.scores.is_empty());
            if found.is_none() && has_scores {
                // Too large to be read whole: it is there, and its scores can't be seen.
                continue;
            }
            let mut found = found.unwrap_or_default();
            found.id.clone_from(&id);
            if watched.expected.saw(kind, &found) {
                watched.shown += 1;
                continue;
            }
        }
        watched.expected.missed(kind, &id);
    }
    Ok(())
}

/// Reads pages of a project as long as they show something that is wanted. `ids` are ascending.
fn read_pages(
    upstream: &Upstream,
    lane: &Lane,
    watched: &mut Watched,
    kind: Kind,
    project: &str,
    mut ids: Vec<String>,
) -> Result<(), Unreadable> {
    while let Some(highest) = ids.last() {
        let Some(request) = page(kind, project, behind(highest).as_deref()) else { return Ok(()) };
        // A project that is not there, or a server that knows no such read.
        let Some(answer) = read(upstream, lane, &request)? else { return Ok(()) };
        let found = shown_in_page(answer.text.as_bytes());
        let mut useful = false;
        for entity in &found {
            useful |= watched.expected.get(kind, &entity.id).is_some();
            watched.shown += u64::from(watched.expected.saw(kind, entity));
        }
        let Some(lowest) = found.iter().map(|entity| &entity.id).min() else { return Ok(()) };
        if !useful {
            return Ok(());
        }
        ids.retain(|id| id < lowest);
    }
    Ok(())
}

/// Reads once; `None` when the server says that there is nothing.
fn read(upstream: &Upstream, lane: &Lane, request: &Read) -> Result<Option<Answer>, Unreadable> {
    let answer = match upstream.read_back(lane, request, ANSWER_BYTES_MAX) {
        Ok(answer) => answer,
        Err(failure @ (SendFailure::Connect { .. } | SendFailure::Broken { .. } | SendFailure::Timeout { .. })) => {
            return Err(Unreadable::Later(failure.to_string(), None));
        }
    };
    if let Some(foreign) = answer.recognised.foreign() {
        // Neither "nothing there" nor "no such key": Opik was not asked.
        return Err(Unreadable::Later(foreign.to_string(), answer.asked_wait));
    }
    match answer.status {
        200..=299 => Ok(Some(answer)),
        404 => Ok(None),
        // An older server may not take all of a search; every entity can still be read by its id.
        400 | 405 | 415 | 422 if request.body.is_some() && request.path.ends_with("/search") => Ok(None),
        status @ 401..=403 => Err(Unreadable::Refused(format!("the server answers reads with {status}"))),
        status => Err(Unreadable::Later(format!("the server answers reads with {status}"), answer.asked_wait)),
    }
}
