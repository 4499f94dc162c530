//! The end of a stream, and of the process.

use tracing::{debug, info, warn};

use super::{
    Depot, DepotError, HeadState, OBJECTS_STEP, ObjectName, ShipError, Shipper, Store, StreamId, Turns, all_files_of,
    bundles_of, depot_name, folder_name, marks_of,
};
use crate::message::MessageStatus;
use crate::store::{Filter, StreamState};

impl Shipper {
    /// Ends the stream once all that was shipped is settled.
    pub(super) fn finish_if_settled(&self, store: &dyn Store, turns: &mut Turns) -> Result<(), ShipError> {
        let Some(owned) = self.ledger.lock().owned.clone() else { return Ok(()) };
        let records = store.streams()?;
        let Some(record) = records.iter().find(|it| it.stream == owned.stream.uuid()) else { return Ok(()) };
        if record.state != StreamState::Open || record.is_outstanding {
            return Ok(());
        }
        if self.is_answer_new(turns) {
            return Ok(());
        }
        self.renew(store, turns, HeadState::Closed)?;
        store.end_stream(record.stream)?;
        self.ledger.change(|state| state.owned = None);
        turns.head = None;
        turns.schedule.outage_ended();
        let rejected = Filter { statuses: vec![MessageStatus::Rejected], ..Filter::default() };
        // A replayer puts rejected messages aside before it deletes their stream.
        let is_swept = store.backlog(&rejected)?.messages() == 0 && self.sweep(owned.stream);
        info!(
            target: "fleet",
            "all messages of stream {} are settled; its objects {}",
            owned.stream,
            if is_swept { "are deleted from the depot" } else { "are left in the depot for a replayer to delete" }
        );
        Ok(())
    }

    /// Deletes the objects of a finished stream, bundles before their marks, and returns whether all are deleted. Agents
    /// that may only write leave that to a replayer.
    fn sweep(&self, stream: StreamId) -> bool {
        let depot = self.ledger.depot.as_ref();
        let swept = [bundles_of(&stream), all_files_of(&stream), marks_of(&stream)]
            .iter()
            .try_for_each(|folder| delete_all(depot, folder))
            .and_then(|()| depot.delete(&[depot_name(&ObjectName::Head(stream))?]));
        match swept {
            Ok(()) => true,
            Err(error) => {
                debug!(target: "fleet", %error, "a replayer deletes the finished stream");
                false
            }
        }
    }

    /// Closes the head, so that a replayer need not wait, and says what stayed behind.
    pub(super) fn close(&self, turns: &mut Turns) {
        let unshipped = self.ledger.standing().unshipped.messages;
        if unshipped > 0 {
            let problem = self.ledger.standing().problem.unwrap_or_else(|| "there was not enough time".to_owned());
            warn!(
                target: "fleet",
                "{unshipped} messages are only in the local store, not in the depot {}: {problem}",
                self.ledger.depot.describe()
            );
        }
        let is_written = turns.head.as_ref().is_some_and(|head| head.written().is_some());
        let Some(store) = self.slot.get().ok().filter(|_| is_written) else { return };
        match self.renew(store.as_ref(), turns, HeadState::Closed) {
            Ok(()) => debug!(target: "fleet", "the head is closed"),
            Err(ShipError::Lost) => drop(self.lost(store.as_ref(), turns)),
            Err(error) => warn!(target: "fleet", "a replayer has to wait before it continues with the stream: {error}"),
        }
    }
}

fn delete_all(depot: &dyn Depot, folder: &str) -> Result<(), DepotError> {
    let folder = folder_name(folder)?;
    loop {
        let names: Vec<_> = depot.list(&folder, None, OBJECTS_STEP)?.into_iter().map(|entry| entry.name).collect();
        if names.is_empty() {
            return Ok(());
        }
        depot.delete(&names)?;
    }
}
