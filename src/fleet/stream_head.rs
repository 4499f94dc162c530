//! The head of a stream that this process owns, replaced by compare-and-swap.

use std::time::Duration;

use super::head::{Head, HeadFault, HeadOwner};
use super::names::{ObjectName, StreamId};
use super::object_names::depot_name;
use super::takeover::SEND_WITHIN;
use crate::depot::{Depot, DepotError, Name, Version};
use crate::store::since_boot;

/// A head as the depot has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadRead {
    /// Its content.
    pub head: Head,
    /// Its version.
    pub version: Version,
}

/// Reads the head of a stream; `None` if it has none.
///
/// # Errors
///
/// The depot's, and [`DepotError::TooNew`] or [`DepotError::Damaged`] for a head that this version can't read.
pub fn read_head(depot: &dyn Depot, stream: StreamId) -> Result<Option<HeadRead>, DepotError> {
    let name = depot_name(&ObjectName::Head(stream))?;
    let Some((bytes, version)) = depot.get(&name)? else { return Ok(None) };
    match Head::decode(&bytes) {
        Ok(head) => Ok(Some(HeadRead { head, version })),
        Err(fault) => {
            let (at, reason) = (depot.describe().url, fault.to_string());
            Err(match fault {
                HeadFault::TooNew { .. } => DepotError::TooNew { at, name, reason },
                HeadFault::Unreadable(_) => DepotError::Damaged { at, name, reason },
            })
        }
    }
}

/// The result of a write of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadWritten {
    /// The depot has it.
    Ours,
    /// Another process has replaced or deleted it.
    Lost,
}

/// A head that this process owns, or is about to.
#[derive(Clone, Debug)]
pub struct StreamHead {
    name: Name,
    stream: StreamId,
    head: Head,
    /// `None` until it exists.
    version: Option<Version>,
    /// When the last successful write began, by [`since_boot`].
    written: Option<Duration>,
}

impl StreamHead {
    /// Returns a head that is not written yet: it replaces this version, or must not exist.
    ///
    /// # Errors
    ///
    /// [`DepotError::Unusable`] never in practice: the name of a head is a name.
    pub fn new(stream: StreamId, head: Head, version: Option<Version>) -> Result<Self, DepotError> {
        Ok(Self { name: depot_name(&ObjectName::Head(stream))?, stream, head, version, written: None })
    }

    /// Returns its content as far as it was written, or as the first write will have it.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Returns when the last successful write began, by [`since_boot`].
    pub fn written(&self) -> Option<Duration> {
        self.written
    }

    /// Writes the head with these changes, and returns when that began, by [`since_boot`]. After a time in which it may have
    /// been taken over, it looks first.
    ///
    /// # Errors
    ///
    /// The depot's: whether it was written may be unknown, which the next write finds out.
    pub fn write(
        &mut self,
        depot: &dyn Depot,
        change: impl FnOnce(&mut Head),
    ) -> Result<(HeadWritten, Duration), DepotError> {
        let began = since_boot();
        // It may have been taken over since, and a depot that ignores conditions would let us write over that.
        if self.written.is_some_and(|written| began.saturating_sub(written) >= SEND_WITHIN) && self.is_taken(depot)? {
            return Ok((HeadWritten::Lost, began));
        }
        let mut next = self.head.clone();
        change(&mut next);
        next.renewed = next.renewed.saturating_add(1);
        let written = match depot.swap(&self.name, self.version.as_ref(), &next.encode()) {
            Ok(version) => {
                (self.head, self.version, self.written) = (next, Some(version), Some(began));
                return Ok((HeadWritten::Ours, began));
            }
            Err(error @ DepotError::Lost { .. }) => (self.find(depot, next)?, error),
            Err(error @ DepotError::UnknownOutcome { .. }) => match self.find(depot, next) {
                Ok(written) => (written, error),
                Err(_) => return Err(error),
            },
            Err(error) => return Err(error),
        };
        match written {
            // It was written by this call or an earlier one, the answer was lost: the caller repeats from its version.
            (Some(HeadWritten::Ours), _) => {
                // Otherwise it would look as if it was never written, and would not be renewed.
                self.written = Some(began);
                Ok((HeadWritten::Ours, began))
            }
            (Some(HeadWritten::Lost), _) => Ok((HeadWritten::Lost, began)),
            (None, error @ DepotError::UnknownOutcome { .. }) => Err(error),
            (None, _) => Err(DepotError::UnknownOutcome {
                at: depot.describe().url,
                name: self.name.clone(),
                reason: "it is as it was before".to_owned(),
            }),
        }
    }

    /// Returns whether the head that is there is certainly that of another process.
    fn is_taken(&self, depot: &dyn Depot) -> Result<bool, DepotError> {
        let read = read_head(depot, self.stream)?;
        Ok(read.is_none_or(|read| Some(&read.version) != self.version.as_ref() && !is_by(&read.head, &self.head)))
    }

    /// Finds out who wrote the head that is there: `None` if it is the one that was to be replaced.
    fn find(&mut self, depot: &dyn Depot, wanted: Head) -> Result<Option<HeadWritten>, DepotError> {
        let Some(HeadRead { head, version }) = read_head(depot, self.stream)? else {
            return Ok(if self.version.is_none() { None } else { Some(HeadWritten::Lost) });
        };
        if Some(&version) == self.version.as_ref() {
            return Ok(None);
        }
        if !is_by(&head, &wanted) {
            return Ok(Some(HeadWritten::Lost));
        }
        // Renewed by an earlier call whose answer was lost; what counts is when this one began.
        let is_this_one = head == wanted;
        (self.head, self.version) = (head, Some(version));
        Ok(if is_this_one { Some(HeadWritten::Ours) } else { None })
    }
}

/// Returns whether the same owner wrote both under the same epoch.
fn is_by(head: &Head, other: &Head) -> bool {
    head.epoch == other.epoch && head.owner.is_same_as(&other.owner)
}

/// Returns this process as the owner of a head.
pub fn this_process(nonce: &str) -> HeadOwner {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    HeadOwner {
        host: host.trim().to_owned(),
        pod: None,
        pid: std::process::id(),
        nonce: nonce.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::model::ModelDepot;
    use crate::fleet::head::HeadState;

    fn head() -> Head {
        Head::first(HeadState::Open, this_process("an agent"))
    }

    /// Time is all that fences a depot that ignores conditions.
    #[test]
    fn a_head_that_may_have_been_taken_over_is_not_written_over() {
        let depot = ModelDepot::new();
        depot.set(|faults| faults.ignores_conditions = true);
        let stream = StreamId::new(uuid::Uuid::now_v7());
        let mut head = StreamHead::new(stream, head(), None).expect("a name");
        let write = |head: &mut StreamHead| head.write(&depot, |_| {}).expect("the depot is there").0;
        assert_eq!(write(&mut head), HeadWritten::Ours);
        let read = read_head(&depot, stream).expect("the depot is there").expect("it was written");
        let long_ago = since_boot().saturating_sub(SEND_WITHIN * 2);
        // Suspended, and nobody has taken it.
        head.written = Some(long_ago);
        assert_eq!(write(&mut head), HeadWritten::Ours, "a laptop that slept loses its stream to nobody");
        let taken = read.head.taken_by(this_process("a replayer"));
        let name = depot_name(&ObjectName::Head(stream)).expect("a name");
        depot.swap(&name, None, &taken.encode()).expect("this depot takes every write");
        head.written = Some(long_ago);
        assert_eq!(write(&mut head), HeadWritten::Lost, "two senders deliver one stream");
        let now = read_head(&depot, stream).expect("the depot is there").expect("it is there").head;
        assert_eq!((now.state, now.epoch), (HeadState::Taken, taken.epoch), "the new owner would be written over");
    }
}
