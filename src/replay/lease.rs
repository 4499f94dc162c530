//! The lease, renewed in time, and whether enough of it is left to send.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::state::lock;
use crate::store::{Lease, Owner, Store, StoreError, since_boot};

/// How long a lease lives without being renewed: the longest time that a killed replayer keeps others out.
pub const LEASE_TIME_TO_LIVE: Duration = Duration::from_secs(30);
/// How often it is renewed.
const LEASE_RENEW_INTERVAL: Duration = Duration::from_secs(5);
/// Nothing is sent with less than this left: a replayer that was suspended must not send beside its successor.
pub(super) const LEASE_MARGIN: Duration = Duration::from_secs(10);

/// Keeps the lease of a round, and returns whether a request may still be sent under it.
pub(super) struct LeaseKeeper<'a> {
    store: &'a dyn Store,
    pub lease: Lease,
    /// When it was renewed, by [`since_boot`].
    renewed: Mutex<Duration>,
    lost: AtomicBool,
}

impl<'a> LeaseKeeper<'a> {
    /// Acquires the lease.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseHeld`] while another process replays this store.
    pub(super) fn acquire(store: &'a dyn Store, owner: &Owner) -> Result<Self, StoreError> {
        // Read before the call: the lease may last longer than this, never shorter.
        let renewed = since_boot();
        let lease = store.acquire(owner, LEASE_TIME_TO_LIVE)?;
        Ok(Self { store, lease, renewed: Mutex::new(renewed), lost: AtomicBool::new(false) })
    }

    /// Returns whether enough of the lease is left to send one more request.
    pub(super) fn may_send(&self) -> bool {
        !self.lost.load(Ordering::Relaxed) && suffices(*lock(&self.renewed), since_boot())
    }

    /// Renews the lease every few seconds.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`] when another process took it: nothing more is sent.
    pub(super) fn renew_if_due(&self) -> Result<(), StoreError> {
        let now = since_boot();
        if now.saturating_sub(*lock(&self.renewed)) < LEASE_RENEW_INTERVAL {
            return Ok(());
        }
        let renewed = self.store.renew(&self.lease, LEASE_TIME_TO_LIVE);
        match &renewed {
            Ok(()) => *lock(&self.renewed) = now,
            Err(_) => self.lost.store(true, Ordering::Relaxed),
        }
        renewed
    }
}

/// Returns whether a lease renewed at `renewed` has more than its margin left at `now`, both by [`since_boot`].
fn suffices(renewed: Duration, now: Duration) -> bool {
    now.saturating_sub(renewed) < LEASE_TIME_TO_LIVE - LEASE_MARGIN
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::SqliteStore;
    use crate::store::{Limits, OpenMode, WhenFull};

    #[test]
    fn a_lease_suffices_until_only_its_margin_is_left() {
        let renewed = Duration::from_secs(1000);
        for (later, expected) in [(0, true), (19, true), (20, false), (30, false), (100_000, false)] {
            assert_eq!(
                suffices(renewed, renewed + Duration::from_secs(later)),
                expected,
                "{later} s after the renewal"
            );
        }
    }

    #[test]
    fn a_keeper_of_an_expired_lease_sends_no_more() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let limits = Limits { size_max: 1 << 24, disk_reserve: 0, when_full: WhenFull::Refuse };
        let path = folder.path().join("opik_messages.db");
        let store = SqliteStore::open(&path, OpenMode::CreateIfMissing, limits).expect("a new store");
        let keeper = LeaseKeeper::acquire(&store, &Owner::this_process("replay")).expect("nobody has it");
        assert!(keeper.may_send());
        // Suspended for as long as the lease lasts: another process may have it now.
        *lock(&keeper.renewed) = since_boot().saturating_sub(LEASE_TIME_TO_LIVE);
        assert!(!keeper.may_send(), "it sends beside its successor");
    }
}
