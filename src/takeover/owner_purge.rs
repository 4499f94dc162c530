//! Purging streams whose owner is alive: an agent deletes the messages itself, a replayer releases the stream.
//!
//! The request is one small object for each stream ([`StreamPurge`]), which the owner reads within seconds: an agent answers
//! in the head that it renews, a replayer closes the head. The object is deleted when the command ends or fails, so that the
//! next command and the next replayer find none.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tracing::{debug, warn};

use super::browse::FleetSelection;
use super::error::TakeoverError;
use super::holdings::Holdings;
use super::purging::{FleetPurge, FleetPurged, OwnedElsewhere, PurgeSelection};
use super::watch::{FreeStream, list_heads, read_heads};
use crate::depot::Version;
use crate::figures::{count, short_duration};
use crate::fleet::head::{Head, HeadState};
use crate::fleet::names::{ObjectName, StreamId};
use crate::fleet::stream_purge::{PATIENCE_MIN, PurgeAnswer, StreamPurge};
use crate::message::MessageStatus;
use crate::replay::session::ProgressListener;
use crate::shutdown::Shutdown;
use crate::store::{BacklogGroup, now_ms, since_boot};

/// The interval at which the heads are polled.
const POLL: Duration = Duration::from_millis(500);

/// A stream whose owner has to delete messages.
#[derive(Clone, Debug)]
pub(crate) struct AskedStream {
    pub owned: OwnedElsewhere,
    /// The selected messages, counted.
    pub groups: Vec<BacklogGroup>,
    purge: StreamPurge,
}

impl AskedStream {
    /// Returns the purge of a stream by its owner; `None` if nothing is selected.
    ///
    /// Rejected messages are excluded: their agent has settled them, and keeps them for its own commands.
    pub(super) fn of(
        purge: &FleetPurge,
        owned: OwnedElsewhere,
        selected: &mut FleetSelection,
        (is_whole, is_readable): (bool, bool),
    ) -> Option<Self> {
        let is_rejected = |status: MessageStatus| status == MessageStatus::Rejected;
        selected.groups.retain(|group| !is_rejected(group.status));
        // An owner deletes all parts of a message, so a part is requested only together with all others.
        let is_all = selected.others == 0;
        let waiting = selected.messages.iter().filter(|message| !is_rejected(message.listed.status));
        let whole = waiting.filter(|message| is_all || message.reference.part.is_none());
        let messages: BTreeSet<u64> = whole.map(|message| message.reference.message).collect();
        let by = purge.person.to_string();
        // The ids of messages that can't be read are unknown.
        let of_selected = match is_whole && !is_readable {
            true => StreamPurge::of_all(purge.order, by),
            false => StreamPurge::of(purge.order, by, &messages).0,
        };
        if messages.is_empty() && !is_whole {
            return None;
        }
        Some(Self { owned, groups: std::mem::take(&mut selected.groups), purge: of_selected })
    }

    /// Returns how many messages are selected.
    pub(crate) fn selected(&self) -> u64 {
        self.groups.iter().map(|group| group.messages).sum()
    }

    fn left_alone(self, why: &str) -> OwnedElsewhere {
        OwnedElsewhere { why: Some(why.to_owned()), ..self.owned }
    }
}

/// The state of a purge by the head of its stream.
enum HeadSays {
    Nothing,
    /// Its owner has carried it out.
    Answered(PurgeAnswer),
    /// Its owner has released it.
    Free(Box<FreeStream>),
    /// The stream was finished.
    Gone,
}

/// Requests purges from owners, and waits for their answers.
pub(super) struct OwnersAsked<'a> {
    pub purge: &'a FleetPurge,
    pub selection: &'a PurgeSelection,
    pub holdings: &'a Holdings,
    pub shutdown: &'a Shutdown,
    pub listener: &'a dyn ProgressListener,
}

impl OwnersAsked<'_> {
    /// Requests these purges, and waits until each owner has answered, or for the timeout.
    ///
    /// # Errors
    ///
    /// If the depot can't be used; requests without an answer are withdrawn as far as possible.
    pub(super) fn ask(&self, asked: Vec<AskedStream>, purged: &mut FleetPurged) -> Result<(), TakeoverError> {
        let now = Duration::from_millis(u64::try_from(now_ms()).unwrap_or(0));
        let mut waiting = Vec::new();
        let mut result = Ok(());
        for asked in asked {
            let stream = asked.owned.stream;
            match result.is_ok().then(|| asked.purge.leave(&*self.purge.depot, stream, now)) {
                Some(Ok(true)) => waiting.push(asked),
                Some(Ok(false)) => {
                    let why = format!(
                        "another purge of it waits for its owner; if its command was killed, delete {}",
                        ObjectName::Purge(stream)
                    );
                    purged.owned.push(asked.left_alone(&why));
                }
                Some(Err(error)) => {
                    // It may be there all the same.
                    self.withdraw(stream);
                    result = Err(error.into());
                }
                None => {}
            }
        }
        let patience = patience(&waiting);
        let result = result.and_then(|()| self.wait(patience, &mut waiting, purged));
        let why = match self.shutdown.is_requested() {
            true => "it was not waited for its owner".to_owned(),
            false => format!("its owner has not answered within {}", short_duration(patience)),
        };
        for asked in waiting {
            self.withdraw(asked.owned.stream);
            purged.owned.push(asked.left_alone(&why));
        }
        result
    }

    fn wait(
        &self,
        patience: Duration,
        waiting: &mut Vec<AskedStream>,
        purged: &mut FleetPurged,
    ) -> Result<(), TakeoverError> {
        if waiting.is_empty() {
            return Ok(());
        }
        let (owners, longest) = (count(waiting.len() as u64, "stream"), short_duration(patience));
        self.listener
            .note(&format!("waiting for up to {longest} until the owners of {owners} have deleted the messages"));
        let until = since_boot() + patience;
        let mut seen = HashMap::new();
        while !waiting.is_empty() && since_boot() < until && !self.shutdown.sleep(POLL) {
            match self.poll(waiting, &mut seen, purged) {
                // Owners answer all the same.
                Err(TakeoverError::Depot(error)) if error.is_passing() => {
                    debug!(target: "fleet", %error, "the answers of owners are read again");
                }
                polled => polled?,
            }
        }
        Ok(())
    }

    /// Polls the heads once; removes the streams whose owners have answered.
    fn poll(
        &self,
        waiting: &mut Vec<AskedStream>,
        seen: &mut HashMap<StreamId, Version>,
        purged: &mut FleetPurged,
    ) -> Result<(), TakeoverError> {
        let listed: HashMap<StreamId, Version> = list_heads(&*self.purge.depot)?.into_iter().collect();
        // Also those that a stale listing does not show.
        let is_new = |stream: &StreamId| !listed.contains_key(stream) || listed.get(stream) != seen.get(stream);
        let new: Vec<StreamId> = waiting.iter().map(|asked| asked.owned.stream).filter(is_new).collect();
        for (stream, read) in new.iter().zip(read_heads(&*self.purge.depot, &new)) {
            let read = read?;
            let Some(at) = waiting.iter().position(|asked| asked.owned.stream == *stream) else { continue };
            if let Some((version, _)) = &read {
                seen.insert(*stream, version.clone());
            }
            let says = match read {
                None => HeadSays::Gone,
                Some((version, Ok(head))) => says(*stream, head, version, &waiting[at].purge),
                Some((_, Err(_))) => HeadSays::Nothing,
            };
            if matches!(says, HeadSays::Nothing) {
                continue;
            }
            let asked = waiting.swap_remove(at);
            let done = self.settle(asked, says, purged);
            self.withdraw(*stream);
            done?;
        }
        Ok(())
    }

    fn settle(&self, asked: AskedStream, says: HeadSays, purged: &mut FleetPurged) -> Result<(), TakeoverError> {
        match says {
            HeadSays::Nothing => {}
            HeadSays::Answered(answer) => {
                purged.add_answer(asked.groups.clone(), answer.deleted);
                let selected = asked.selected().max(answer.deleted.saturating_add(answer.kept));
                let left = selected.saturating_sub(answer.deleted);
                if left > 0 {
                    let messages = count(left, "selected message");
                    let why = format!(
                        "{messages} of it were kept: they are being sent or delivered already, or parts of others"
                    );
                    purged.owned.push(asked.left_alone(&why));
                }
            }
            HeadSays::Free(free) => self.purge.purge_stream(&free, self.holdings, self.selection, purged)?,
            HeadSays::Gone => purged.owned.push(asked.left_alone("it was finished meanwhile: all of it is settled")),
        }
        Ok(())
    }

    fn withdraw(&self, stream: StreamId) {
        if let Err(error) = StreamPurge::withdraw(&*self.purge.depot, stream) {
            warn!(target: "fleet", %stream, "cannot delete the purge of a stream: {error}");
        }
    }
}

/// Returns the timeout for these owners. An agent reads its purge at each renewal of its head, four times in the time to a
/// takeover; a replayer reads it more often, and ends its requests before it releases a stream.
fn patience(asked: &[AskedStream]) -> Duration {
    let longest = asked.iter().map(|asked| asked.owned.silence).max().unwrap_or_default();
    (longest * 2 / 3).max(PATIENCE_MIN)
}

fn says(stream: StreamId, head: Head, version: Version, purge: &StreamPurge) -> HeadSays {
    match head.purged.filter(|answer| answer.order == purge.order) {
        Some(answer) => HeadSays::Answered(answer),
        None if head.state == HeadState::Closed => {
            HeadSays::Free(Box::new(FreeStream { stream, head: Some((head, version)) }))
        }
        None => HeadSays::Nothing,
    }
}
