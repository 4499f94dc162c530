//! The SQLite engine: a store in one file, beside its write-ahead log.
//!
//! # How it keeps its promises
//!
//! - **Durable**: WAL with `synchronous=FULL`, so a commit returns after an fsync of the log. The folder entry is
//!   synced when the file is created. Every commit of new messages checks whether the path still leads to the open
//!   file: a message in a deleted file is not stored.
//! - **Concurrent**: reads use connections of their own and do not wait for a commit; commits do not wait for reads.
//!   Writes are short, and long work (purge, compact) is split into steps.
//! - **Constant cost**: the summary is updated in the transactions that change it, so counting does not scan. Claims
//!   walk an index of waiting messages only.
//! - **Bounded memory**: a few MiB of page cache per connection, whatever the backlog; a claim is bounded by its
//!   limits.
//!
//! # Locking
//!
//! One writer and two readers, each behind its own mutex; the first reader answers `ahead` only, so that intake never
//! waits for a list. A thread holds at most one of these mutexes at a time, except that claims take `claiming` first.
//! Between processes SQLite's locks do the same; a process that waits longer than ten seconds gets
//! [`Busy`](crate::store::error::StoreError::Busy).
//!
//! # Where things are
//!
//! A write arrives in [`verbs`], begins its transaction in [`guard`], and ends in the file that owns its subject; what
//! it stores is a [`record`]. Imports point down only, in this order: files and errors ([`access`], [`mod@unproven`],
//! [`fault`], [`schema`], [`connect`]), encryption ([`seal`]), rows ([`lanes`], [`header_sets`], [`record`],
//! [`summary`]), verbs by subject ([`register`], [`claim`], [`settle`], [`browse`], [`space`]), opening ([`place`],
//! [`recovery`], [`proof`], [`upgrade`], [`open`]), and the [`store`] itself.

mod access;
mod ahead;
mod attachments;
mod ballast;
mod browse;
mod checkpoint;
mod claim;
mod codec;
mod connect;
mod counters;
mod damaged;
mod delete;
mod erasure;
mod fault;
mod files;
mod folder_lock;
mod guard;
mod header_sets;
mod hold;
mod in_place;
mod key_change;
mod lanes;
mod large;
mod lease;
mod log_end;
mod open;
mod place;
mod proof;
mod queries;
mod queue_ahead;
mod quick_check;
mod quick_reader;
mod reassign;
mod record;
mod recovery;
mod register;
mod rejected;
mod rejected_share;
mod request_reader;
mod reseal;
mod rows;
mod salvaged;
mod schema;
mod seal;
mod settle;
mod shipped;
mod snapshot;
mod space;
mod standing;
mod store;
mod stranded;
mod summary;
mod touch_index;
mod unproven;
mod upgrade;
mod verbs;
mod view;

pub(crate) use self::connect::immutable_uri;
pub(crate) use self::open::prove;
pub(crate) use self::recovery::{is_ours, is_set_aside};
pub(crate) use self::reseal::reseal;
pub(crate) use self::schema::APPLICATION_ID;
pub use self::snapshot::{SnapshotMessage, SnapshotStep, StoreSnapshot};
pub use self::store::SqliteStore;
pub(crate) use self::unproven::{errors as io_errors, unproven};
pub(crate) use self::view::BacklogView;
