//! The lease, which is the right to replay: one row, read and written under the write lock.
//!
//! It expires on a clock that nobody sets and that keeps running while the machine sleeps ([`since_boot`]); the id of
//! this boot is stored beside it, and a lease of an earlier boot has expired. Systems other than Linux have neither:
//! the monotonic clock is used there, and a lease granted at a later reading than now counts as one of an earlier boot.
//!
//! Every grant has a new epoch, which is the fencing token: everything a replayer writes (claim, settle, hold) is
//! written in a transaction that verifies the epoch. A replayer that was suspended past the end of its lease changes
//! nothing that its successor has taken over.
//!
//! A lease also ends with its process, if that can be known: the pid has to mean the same to both, so both have to be
//! in one pid namespace. An agent that was killed and restarted then resumes at once.

use std::sync::OnceLock;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::fault::Fault;
use super::queries;
use crate::store::clock::since_boot;
use crate::store::error::StoreError;
use crate::store::work::{Lease, Owner};

/// A reading of the clock that leases expire on.
pub(super) struct Reading {
    pub(super) boot: &'static str,
    pub(super) ms: i64,
}

impl Reading {
    pub(super) fn now() -> Self {
        static BOOT: OnceLock<String> = OnceLock::new();
        let boot = BOOT.get_or_init(|| {
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .map(|id| id.trim().to_owned())
                .unwrap_or_default()
        });
        Self { boot, ms: i64::try_from(since_boot().as_millis()).unwrap_or(i64::MAX) }
    }
}

/// Returns the holder of the lease, unless it has expired.
pub(super) fn holder(connection: &Connection) -> Result<Option<Owner>, Fault> {
    let now = Reading::now();
    let found = connection
        .prepare_cached(queries::LIVING_LEASE)?
        .query_row(params![now.boot, now.ms], |row| {
            let owner = Owner { role: row.get(0)?, pid: row.get(1)?, nonce: row.get(2)? };
            Ok((owner, row.get::<_, Option<String>>(3)?))
        })
        .optional()?;
    Ok(found.filter(|(owner, namespace)| !is_gone(owner.pid, namespace.as_deref())).map(|(owner, _)| owner))
}

/// Returns the name of this process's pid namespace, or `None` where there are none.
pub(super) fn pid_namespace() -> Option<&'static str> {
    static NAMESPACE: OnceLock<Option<String>> = OnceLock::new();
    let read = || std::fs::read_link("/proc/self/ns/pid").ok()?.into_os_string().into_string().ok();
    NAMESPACE.get_or_init(read).as_deref()
}

/// Returns whether a process is known to have ended. A pid that was reused counts as alive: the lease then ends when it
/// expires.
pub(super) fn is_gone(pid: u32, namespace: Option<&str>) -> bool {
    if namespace.is_none() || namespace != pid_namespace() {
        return false;
    }
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// Grants the lease to this owner under a new epoch, unless another owner holds it.
pub(super) fn acquire(tx: &Transaction, owner: &Owner, time_to_live: Duration) -> Result<Lease, Fault> {
    if let Some(holder) = holder(tx)?.filter(|holder| holder != owner) {
        return Err(StoreError::LeaseHeld { owner: holder }.into());
    }
    let now = Reading::now();
    let until_ms = end(&now, time_to_live);
    let epoch = tx
        .prepare_cached(queries::GRANT_LEASE)?
        .query_row(params![owner.role, owner.pid, owner.nonce, now.boot, now.ms, until_ms, pid_namespace()], |row| {
            row.get(0)
        })?;
    Ok(Lease { owner: owner.clone(), epoch })
}

/// Extends the lease from now.
pub(super) fn renew(tx: &Transaction, lease: &Lease, time_to_live: Duration) -> Result<(), Fault> {
    let now = Reading::now();
    let until_ms = end(&now, time_to_live);
    let renewed = tx.prepare_cached(queries::RENEW_LEASE)?.execute(params![
        lease.epoch,
        lease.owner.nonce,
        now.boot,
        now.ms,
        until_ms
    ])?;
    if renewed == 0 { Err(StoreError::LeaseLost.into()) } else { Ok(()) }
}

/// Releases the lease, if it is still this one.
pub(super) fn release(tx: &Transaction, lease: &Lease) -> Result<(), Fault> {
    tx.prepare_cached(queries::RELEASE_LEASE)?.execute(params![lease.epoch, lease.owner.nonce])?;
    Ok(())
}

/// Fails with [`StoreError::LeaseLost`] unless the lease is still this one.
///
/// A lease that has expired but was not taken by another owner is still ours: no other process can have claimed
/// anything.
pub(super) fn verify(tx: &Transaction, lease: &Lease) -> Result<(), Fault> {
    let ours = tx.prepare_cached(queries::LEASE_IS_OURS)?.exists(params![lease.epoch, lease.owner.nonce])?;
    if ours { Ok(()) } else { Err(StoreError::LeaseLost.into()) }
}

fn end(now: &Reading, time_to_live: Duration) -> i64 {
    now.ms.saturating_add(i64::try_from(time_to_live.as_millis()).unwrap_or(i64::MAX))
}
