//! The hold of the store as a replayer keeps to it: read at an interval, so that a person's decision takes effect within
//! it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing::info;

use crate::figures::time;
use crate::hint;
use crate::store::{ReplayHold, Store, StoreError, now_ms, since_boot};

/// How often the store is asked for its hold while messages are delivered.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Returns a sentence with the deadline of a hold and the person who set it.
pub(crate) fn held_text(hold: &ReplayHold) -> String {
    format!("replay is held until {} by {}", time(hold.ends_at_ms()), hold.by)
}

/// The hold that was found at the last look. Times are by [`since_boot`]: between two looks nobody sets the clock.
#[derive(Debug, Default)]
pub(super) struct HoldWatch {
    found: Mutex<FoundHold>,
}

#[derive(Debug, Default)]
struct FoundHold {
    looked: Option<Duration>,
    ends: Option<Duration>,
    /// The hold that was logged.
    hold: Option<ReplayHold>,
}

impl HoldWatch {
    /// Asks the store for its hold.
    ///
    /// # Errors
    ///
    /// The error that keeps the store from being read.
    pub(super) fn look(&self, store: &dyn Store) -> Result<(), StoreError> {
        let found = store.replay_hold()?;
        let now = since_boot();
        let mut known = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let left = found.as_ref().and_then(|hold| hold.left(now_ms()));
        let hold = found.filter(|_| left.is_some());
        match &hold {
            Some(hold) if known.hold.as_ref() != Some(hold) => {
                let (held, resume) = (held_text(hold), hint::command("replay --resume"));
                info!(target: "replay_manager", "{held}: nothing that waits is delivered; {resume} ends that");
            }
            None if known.hold.is_some() => info!(target: "replay_manager", "the hold of replay has ended"),
            _ => {}
        }
        *known = FoundHold { looked: Some(now), ends: left.map(|left| now.saturating_add(left)), hold };
        Ok(())
    }

    /// Asks the store again if the last look is too long ago.
    ///
    /// # Errors
    ///
    /// As [`Self::look`].
    pub(super) fn look_if_due(&self, store: &dyn Store) -> Result<(), StoreError> {
        let looked = self.found.lock().unwrap_or_else(PoisonError::into_inner).looked;
        let is_due = looked.is_none_or(|looked| since_boot().saturating_sub(looked) >= LOOK_INTERVAL);
        if is_due { self.look(store) } else { Ok(()) }
    }

    /// Returns how long nothing is sent; `None` while nothing is held.
    pub(super) fn held_for(&self) -> Option<Duration> {
        let ends = self.found.lock().unwrap_or_else(PoisonError::into_inner).ends?;
        ends.checked_sub(since_boot()).filter(|left| !left.is_zero())
    }
}
