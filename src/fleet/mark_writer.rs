//! Writes marks into a depot: those of all threads that wait at one time share one object (group commit).
//!
//! ```text
//! settle ─┐
//! settle ─┼─▶ gathered ─▶ the first waiting thread writes all of them ─▶ each learns the result ─┐
//! settle ─┘       ▲                                                                              │
//!                 └──────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Each stream has objects of its own; those of several streams are written at the same time. An object of marks is
//! written once. After an error its number is not used again: the next object may repeat its
//! marks, which changes nothing.
//!
//! Numbers have no gaps: after an error, an object without marks is created under the number that may be missing before
//! the next number is used. So a reader whose listing lags behind finds every mark that was confirmed: it asks for one
//! number after the other. The empty object replaces no mark that was confirmed, also where conditions are ignored.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::marks::{Fate, Mark, encode_marks};
use super::names::{ObjectName, StreamId};
use super::object_names::depot_name;
use super::parallel::in_parallel;
use super::seals::Seals;
use crate::depot::{Created, Depot, DepotError};

/// Marks of one object at most, and bytes of bodies in them: those of divided messages carry their parts.
const MARKS_MAX: usize = 10_000;
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How many names are tried that exist already: another process wrote under the same epoch.
const TRIES: usize = 16;
/// Streams whose marks are written at a time.
const STREAMS_AT_ONCE: usize = 16;

/// Marks by their stream and the epoch under which this process owns, or owned, it.
pub type MarksOfStreams = Vec<((StreamId, u32), Vec<Mark>)>;

/// Writes marks for all threads of a process.
pub struct MarkWriter {
    depot: Arc<dyn Depot>,
    state: Mutex<WriterState>,
    changed: Condvar,
}

#[derive(Default)]
struct WriterState {
    gathered: MarksOfStreams,
    /// How many threads wait for the marks that are being gathered.
    members: usize,
    /// The number of the commit that is being gathered.
    commit: u64,
    is_writing: bool,
    /// Results of commits, with the number of threads that have not seen them yet.
    results: HashMap<u64, (Result<(), DepotError>, usize)>,
    /// The numbers of objects by stream and epoch.
    numbers: HashMap<(StreamId, u32), MarkNumbers>,
}

#[derive(Clone, Copy, Default)]
struct MarkNumbers {
    /// That of the next object.
    next: u32,
    /// The object of this number may be missing: its write was not confirmed.
    unconfirmed: Option<u32>,
}

/// Ends a commit with an error if its thread panics.
struct Writing<'a>(&'a MarkWriter, u64, usize);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.is_writing && !state.results.contains_key(&self.1) {
            let (at, reason) = (self.0.depot.describe().url, "internal error while writing marks".to_owned());
            state.results.insert(self.1, (Err(DepotError::Unreachable { at, reason }), self.2));
        }
        state.is_writing = false;
        drop(state);
        self.0.changed.notify_all();
    }
}

impl MarkWriter {
    /// Returns a writer into this depot.
    pub fn new(depot: Arc<dyn Depot>) -> Self {
        Self { depot, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Makes marks of a stream durable. The epoch is that under which this process owns, or owned, the stream.
    ///
    /// # Errors
    ///
    /// As [`MarkWriter::mark_all`].
    pub fn mark(&self, seals: &Seals, stream: StreamId, epoch: u32, marks: Vec<Mark>) -> Result<(), DepotError> {
        self.mark_all(seals, vec![((stream, epoch), marks)])
    }

    /// Makes marks of several streams durable, with one commit.
    ///
    /// # Errors
    ///
    /// The depot's error: some of the marks may be durable nonetheless.
    pub fn mark_all(&self, seals: &Seals, marks: MarksOfStreams) -> Result<(), DepotError> {
        if marks.iter().all(|(_, marks)| marks.is_empty()) {
            return Ok(());
        }
        let mut state = self.lock();
        state.gathered.extend(marks);
        state.members += 1;
        let mine = state.commit;
        loop {
            if let Some((result, left)) = state.results.get_mut(&mine) {
                let result = result.clone();
                *left -= 1;
                if *left == 0 {
                    state.results.remove(&mine);
                }
                return result;
            }
            if state.is_writing {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // Nobody writes, so what is gathered is the commit that these marks are in.
            state.is_writing = true;
            state.commit += 1;
            let gathered = std::mem::take(&mut state.gathered);
            let members = std::mem::take(&mut state.members);
            drop(state);
            let writing = Writing(self, mine, members);
            let result = self.write(seals, gathered);
            self.lock().results.insert(mine, (result, members));
            drop(writing);
            state = self.lock();
        }
    }

    fn write(&self, seals: &Seals, gathered: MarksOfStreams) -> Result<(), DepotError> {
        let mut of_streams: BTreeMap<(StreamId, u32), Vec<Mark>> = BTreeMap::new();
        for (stream, marks) in gathered.into_iter().filter(|(_, marks)| !marks.is_empty()) {
            of_streams.entry(stream).or_default().extend(marks);
        }
        let of_streams: MarksOfStreams = of_streams.into_iter().collect();
        let written = in_parallel(&of_streams, STREAMS_AT_ONCE, |((stream, epoch), marks)| {
            objects(marks).into_iter().try_for_each(|object| self.write_object(seals, *stream, *epoch, object))
        });
        written.into_iter().collect()
    }

    fn write_object(&self, seals: &Seals, stream: StreamId, epoch: u32, marks: &[Mark]) -> Result<(), DepotError> {
        let unusable = |reason: String| DepotError::Unusable { at: self.depot.describe().url, reason };
        let sealed = |marks: &[Mark]| match seals.seal(&encode_marks(marks)) {
            Ok(sealed) => Ok(sealed.into_owned()),
            Err(error) => Err(unusable(error.to_string())),
        };
        let bytes = sealed(marks)?;
        let unconfirmed = self.with_numbers(stream, epoch, |numbers| numbers.unconfirmed);
        if let Some(number) = unconfirmed {
            self.create((stream, epoch, number), &sealed(&[])?)?;
        }
        for _ in 0..TRIES {
            let number = self.with_numbers(stream, epoch, |numbers| {
                let number = numbers.next;
                *numbers = MarkNumbers { next: number.saturating_add(1), unconfirmed: Some(number) };
                number
            });
            match self.create((stream, epoch, number), &bytes)? {
                Created::New => return Ok(()),
                // Another process uses this epoch, or an answer was lost below us. Its marks are not known to be these.
                Created::AlreadyThere => {}
            }
        }
        Err(unusable(format!("objects of marks of stream {stream} are there that this process did not write")))
    }

    /// Creates an object; if there is no error, it exists.
    fn create(&self, (stream, epoch, number): (StreamId, u32, u32), bytes: &[u8]) -> Result<Created, DepotError> {
        let name = depot_name(&ObjectName::Marks { stream, epoch, number })?;
        let created = self.depot.create(&name, bytes)?;
        self.with_numbers(stream, epoch, |numbers| numbers.unconfirmed = None);
        Ok(created)
    }

    fn with_numbers<T>(&self, stream: StreamId, epoch: u32, change: impl FnOnce(&mut MarkNumbers) -> T) -> T {
        change(self.lock().numbers.entry((stream, epoch)).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, WriterState> {
        // Every critical section leaves it consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Divides marks into objects of bounded size, in their order.
fn objects(marks: &[Mark]) -> Vec<&[Mark]> {
    let (mut objects, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (index, mark) in marks.iter().enumerate() {
        let own = match &mark.fate {
            Fate::Divided(parts) => parts.iter().map(|part| part.request.body.bytes.len()).sum(),
            Fate::Delivered | Fate::Rejected(_) | Fate::Deleted | Fate::Expired => 0,
        };
        if index > begin && (index - begin >= MARKS_MAX || bytes + own > BODY_BYTES_MAX) {
            objects.push(&marks[begin..index]);
            (begin, bytes) = (index, 0);
        }
        bytes += own;
    }
    objects.push(&marks[begin..]);
    objects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::model::{ModelDepot, ModelFault, Verb};
    use crate::fleet::record::MessageRef;

    #[test]
    fn numbers_have_no_gaps_after_errors() {
        let (depot, stream) = (Arc::new(ModelDepot::new()), StreamId::new(uuid::Uuid::now_v7()));
        let writer = MarkWriter::new(depot.clone());
        let mark = |message| {
            let marks = vec![Mark { reference: MessageRef::whole(message), fate: Fate::Delivered }];
            writer.mark(&Seals::Plain, stream, 1, marks)
        };
        mark(1).expect("the depot is well");
        for fault in [ModelFault::DoneUnanswered, ModelFault::NotDoneUnanswered, ModelFault::Unreachable] {
            depot.fail_next(Verb::Create, fault);
            // The object that fills the gap may fail as well.
            depot.fail_next(Verb::Create, fault);
            mark(2).expect_err("its write fails");
            mark(2).expect_err("the empty object fails");
            mark(2).expect("the depot is well");
        }
        let expected: Vec<_> =
            (0..7).map(|number| depot_name(&ObjectName::Marks { stream, epoch: 1, number }).expect("a name")).collect();
        assert_eq!(depot.names(), expected, "a listing that lags behind would hide marks behind a gap");
    }

    #[test]
    fn marks_of_many_streams_are_all_durable_or_the_commit_fails() {
        let depot = Arc::new(ModelDepot::new());
        let writer = MarkWriter::new(depot.clone());
        let streams: Vec<_> = (0..40).map(|_| StreamId::new(uuid::Uuid::now_v7())).collect();
        let marks = |message| -> MarksOfStreams {
            let mark = Mark { reference: MessageRef::whole(message), fate: Fate::Delivered };
            streams.iter().map(|stream| ((*stream, 1), vec![mark.clone()])).collect()
        };
        writer.mark_all(&Seals::Plain, marks(1)).expect("the depot is well");
        assert_eq!(depot.names().len(), streams.len(), "a stream has no mark of what was settled");
        depot.fail_next(Verb::Create, ModelFault::Unreachable);
        writer.mark_all(&Seals::Plain, marks(2)).expect_err("a stream has no mark: nothing may be settled");
        writer.mark_all(&Seals::Plain, marks(2)).expect("the depot is well");
        writer.mark_all(&Seals::Plain, Vec::new()).expect("there is nothing to write");
    }
}
