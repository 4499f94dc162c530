//! A real file system on a disk whose blocks fail for a moment, and whose power fails later.
//!
//! The disk is an image in memory that a small FUSE file system shows as a file ([`image`]); a loop device makes a
//! block device of it, and ext4 or XFS is on that. An agent stores live writes while the blocks of its write-ahead log
//! or of its database file fail for some tenths of a second. It continues; then the disk is copied as power cuts leave
//! it, each copy is mounted, and the store in it must have all that was acknowledged by then.
//!
//! Each test starts itself once more, in a mount and PID namespace of its own and with a time limit: however that
//! process ends, the kernel unmounts everything, aborts the FUSE connection and detaches the loop device. Where the
//! machine does not allow this, the test says `not run:` and why.
//!
//! `OPIK_OFFLINE_REAL_DISK=SEED:ROUNDS` sets the size. A seed decides when what fails, and what a cut keeps; it repeats
//! a failure often, not always, because the clients and the kernel have a say.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot continue fails")]

mod campaign;
#[allow(dead_code, reason = "each test binary uses another part of it")]
#[path = "../power/dice.rs"]
mod dice;
mod failing;
mod image;
mod steps;
#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code, reason = "each test binary uses another part of it")]
#[path = "../e2e/writes.rs"]
mod writes;
