//! Takeover: replays the streams of agents that are gone, and shows what is in a depot.
//!
//! | file | what it does |
//! | --- | --- |
//! | [`session`] | takes streams and delivers them until nothing is left; what `replay --fleet` calls |
//! | `feeder` | takes free streams, imports them bundle by bundle, deletes what is finished |
//! | `watch` | which streams are free |
//! | [`behind`] | which of them wait for an earlier one of the same store |
//! | [`standing`] | a session as others see it, and the streams that it never takes |
//! | `holdings` | the heads that are held: taken, renewed, released, and whether anything may be sent |
//! | `ledger` | where each message comes from, and the marks that are made before it is settled |
//! | `reading`, `importer` | from bundles to messages of the scratch store |
//! | `taken_stream`, `record_sorter` | the bundles of a stream one by one, and which of their messages are delivered |
//! | [`dry_run`] | what would be taken and delivered: `replay --fleet --dry-run` |
//! | `selection`, `held_back` | which messages are left in the depot, and what is newer about the same |
//! | `key_folder` | the keys of messages that only name them |
//! | `scratch` | the scratch store |
//! | [`survey`] | the contents of a depot, by names and heads: `status --fleet` |
//! | [`requested_purges`] | the purges that owners have not carried out yet |
//! | [`browse`], [`purging`] | the messages of streams for people: `inspect --fleet`, `purge --fleet` |
//! | [`dialling`] | what people decide about the pace of the fleet |
//! | `rejected_copies`, [`resending`] | messages that the server rejected, and how they are sent again |
//! | `sweep` | deletes a stream of which everything is settled |
//! | [`named_message`] | a message as people name it |
//! | `founding`, `unreadable` | the fleet's file, and the error that names keys |
//! | `objects` | listings, and several requests at a time |
//!
//! # Invariants
//!
//! - *One owner*: a stream is sent only by who replaced its head last, and only while that head was renewed a short time
//!   ago on a clock that counts suspension.
//! - *Marks before settlement*: what was delivered is durable in the depot before the scratch store forgets it.
//! - *The scratch store is worth nothing*: everything in it is in the depot as well, so it is emptied at every start.
//! - *Nothing unknown is deleted*: a stream is deleted only if all its bundles were read and all their messages settled.

pub(crate) mod behind;
pub(crate) mod browse;
pub(crate) mod dialling;
pub(crate) mod dry_run;
pub(crate) mod error;
pub(crate) mod feeder;
pub(crate) mod founding;
mod held_back;
#[cfg(test)]
mod history;
pub(crate) mod holdings;
mod importer;
pub(crate) mod key_folder;
pub(crate) mod keys;
mod ledger;
pub(crate) mod named_message;
mod objects;
pub(crate) mod owner_purge;
pub(crate) mod purging;
pub(crate) mod reading;
mod record_sorter;
mod rejected_copies;
mod releasing;
pub(crate) mod requested_purges;
pub(crate) mod resending;
pub(crate) mod scratch;
pub(crate) mod selection;
pub(crate) mod session;
pub(crate) mod standing;
pub(crate) mod survey;
mod sweep;
mod taken_stream;
pub(crate) mod unreadable;
mod wanted;
pub(crate) mod watch;
