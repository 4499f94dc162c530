//! Purging the own stream at the command of a person, who left it in the depot.

use std::time::Duration;

use tracing::{debug, info};

use super::super::spooled::Removal;
use super::super::stream_purge::{PurgeAnswer, StreamPurge};
use super::{DELETE_STEP, Filter, HeadState, MessageId, Page, ShipError, Shipper, Store, StreamId, Turns, since_boot};
use crate::store::{StoreError, now_ms};

/// The duration of one step of a purge: meanwhile nothing is shipped.
const TURN_MAX: Duration = Duration::from_secs(1);
/// How long the head of an empty stream shows the answer: the command polls it every half second.
const ANSWER_SHOWN: Duration = Duration::from_secs(5);

/// A purge in progress.
#[derive(Clone, Debug)]
pub(super) struct Purging {
    stream: StreamId,
    purge: StreamPurge,
    /// The last message that was examined.
    after: Option<MessageId>,
    answer: PurgeAnswer,
}

impl Shipper {
    /// Reads the purge that a person has left for the stream.
    pub(super) fn look_for_purge(&self, turns: &mut Turns) {
        let Some(stream) = self.ledger.lock().owned.as_ref().map(|owned| owned.stream) else { return };
        let purge = match StreamPurge::read(self.ledger.depot.as_ref(), stream) {
            Ok(purge) => purge,
            // Without a right to list, a purge that does not exist is an error as well.
            Err(error) => return debug!(target: "fleet", %error, "the purge of the stream can't be read"),
        };
        let answered = turns.head.as_ref().and_then(|head| head.head().purged).map(|answer| answer.order);
        let is_begun = |purge: &StreamPurge| turns.purging.as_ref().is_some_and(|it| it.purge.order == purge.order);
        let now = Duration::from_millis(u64::try_from(now_ms()).unwrap_or(0));
        let is_new = |purge: &StreamPurge| answered != Some(purge.order) && !is_begun(purge) && !purge.is_outdated(now);
        if let Some(purge) = purge.filter(is_new) {
            info!(target: "fleet", "deletes messages of stream {stream}: ordered by {}", crate::printable::line(&purge.by));
            let answer = PurgeAnswer { order: purge.order, deleted: 0, kept: 0 };
            turns.purging = Some(Purging { stream, purge, after: None, answer });
        }
    }

    /// Continues a purge; answers in the head once it is complete.
    pub(super) fn carry_out_purge(&self, store: &dyn Store, turns: &mut Turns) -> Result<(), ShipError> {
        let Some(purging) = &mut turns.purging else { return Ok(()) };
        if self.ledger.lock().owned.as_ref().map(|owned| owned.stream) != Some(purging.stream) {
            // The new owner carries it out.
            turns.purging = None;
            return Ok(());
        }
        let until = since_boot() + TURN_MAX;
        while purging.step(store)? {
            if since_boot() >= until {
                self.ledger.wake();
                return Ok(());
            }
        }
        // The answer promises that no replayer delivers them, so their marks come first.
        self.ledger.mark_gone(store, Removal::Purged)?;
        let answer = purging.answer;
        turns.purged = Some((answer, since_boot()));
        turns.purging = None;
        self.renew(store, turns, HeadState::Open)?;
        info!(target: "fleet", "deleted {} messages; {} are being sent and were kept", answer.deleted, answer.kept);
        Ok(())
    }

    /// Returns whether the head has to show the answer to a purge for longer.
    pub(super) fn is_answer_new(&self, turns: &Turns) -> bool {
        turns.purged.is_some_and(|(_, at)| since_boot().saturating_sub(at) < ANSWER_SHOWN)
    }
}

impl Purging {
    /// Deletes the next messages; returns whether more may follow.
    fn step(&mut self, store: &dyn Store) -> Result<bool, StoreError> {
        let page = Page { after: self.after, limit: DELETE_STEP, newest_first: false };
        let ids: Vec<MessageId> = store.list(&Filter::default(), &page)?.iter().map(|listed| listed.id).collect();
        let Some(last) = ids.last() else { return Ok(false) };
        // Also the parts of divided messages, which have ids of their own.
        let mut found = store.outstanding(&ids)?;
        found.retain(|message| message.stream == self.stream.uuid() && self.purge.has(message.origin));
        let found: Vec<MessageId> = found.iter().map(|message| message.id).collect();
        if !found.is_empty() {
            let all = found.len();
            let deleted = store.purge(&Filter { ids: found, ..Filter::default() }, all)?.messages;
            self.answer.deleted += deleted;
            self.answer.kept += (all as u64).saturating_sub(deleted);
        }
        self.after = Some(*last);
        Ok(true)
    }
}
