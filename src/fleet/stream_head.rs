//! The head of a stream that this process owns, replaced by compare-and-swap.

use std::time::Duration;

use super::head::{Head, HeadFault, HeadOwner};
use super::names::{ObjectName, StreamId};
use super::object_names::depot_name;
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

    /// Writes the head with these changes, and returns when that began, by [`since_boot`].
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
        let mut next = self.head.clone();
        change(&mut next);
        next.renewed = next.renewed.saturating_add(1);
        let written = match depot.swap(&self.name, self.version.as_ref(), &next.encode()) {
            Ok(version) => {
                (self.head, self.version, self.written) = (next, Some(version), Some(began));
                return Ok((HeadWritten::Ours, began));
            }
            Err(DepotError::Lost { .. }) => self.find(depot, next)?,
            Err(error @ DepotError::UnknownOutcome { .. }) => match self.find(depot, next) {
                Ok(written) => written,
                Err(_) => return Err(error),
            },
            Err(error) => return Err(error),
        };
        match written {
            // It was written by this call or an earlier one, the answer was lost: the caller repeats from its version.
            Some(written) => Ok((written, began)),
            None => Err(DepotError::UnknownOutcome {
                at: depot.describe().url,
                name: self.name.clone(),
                reason: "it is as it was before".to_owned(),
            }),
        }
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
