//! The fleet: copies of a store's backlog in a depot that outlives the machine, and how others take it over.
//!
//! An agent whose server is away ships copies of what it stored, in sealed, numbered bundles that never change, to a
//! depot: object storage that its whole fleet reaches. While the agent is alive it delivers its messages itself. When it
//! is gone, a replayer takes its stream over, imports what is unsettled into a store of its own, and delivers it.
//!
//! # The formats
//!
//! | file | what it defines |
//! | --- | --- |
//! | [`names`] | the names of all objects, and which names in a listing are none |
//! | [`record`] | one message as it is shipped |
//! | [`bundle`] | a numbered, never changing part of a stream |
//! | [`mod@reference`] | a message whose secrets are named by fingerprints |
//! | [`marks`] | which messages of a stream are settled |
//! | [`head`] | the one object of a stream that changes: its owner and state |
//! | [`fleet_file`] | the fleet's id and the public keys of its replayers |
//! | [`dial`] | the pace and the hold that people have set |
//! | [`stream_purge`] | the purge of a stream whose owner is alive |
//!
//! # The policies
//!
//! | file | what it decides |
//! | --- | --- |
//! | [`schedule`] | when a bundle is shipped |
//! | [`takeover`] | when a stream may be taken, and until when its owner may send |
//! | [`import`] | which messages of a stream still have to be delivered, in which order |
//! | [`dial_watch`] | until when a hold lasts, and what is in force while the dial can't be read |
//!
//! # The agent's side
//!
//! | file | what it does |
//! | --- | --- |
//! | [`spooled`] | a store that tells the depot what becomes of its messages before it knows itself |
//! | [`ledger`] | what replay, intake and shipper of an agent know about its stream |
//! | [`shipper`] | the loop that makes bundles, and that keeps and closes the head |
//! | [`loading`], [`stream_head`], [`mark_writer`] | bundles and files, heads, and marks on their way to the depot |
//! | [`dial_reader`], [`dial_change`] | the dial on its way from and to the depot |
//! | [`orders`], `selection_flags` | what people decided, for the audit; what they selected, as they typed it |
//! | `parallel` | several requests at a time |
//! | [`seals`], [`object_names`] | for whom objects are sealed, and how a depot spells their names |
//!
//! Formats and policies are pure: no clock, socket, disk or log. They read what strangers may have written, so every reader has
//! bounds, reports damage instead of failing on it, and refuses what a newer version wrote by naming that version.
//!
//! # Invariants
//!
//! - **A name is written once.** Only heads change, by compare-and-swap; a retry writes the same name again.
//! - **Marks before settlement.** A mark is durable before its message is settled in the store that delivered it, so
//!   that no successor repeats an older write over a newer one.
//! - **No clocks of two machines are compared.** A successor measures silence on its own clock.

mod bloom;
pub mod bundle;
mod container;
pub mod dial;
pub mod dial_change;
pub mod dial_reader;
pub mod dial_watch;
pub mod finished;
pub mod fleet_file;
pub mod head;
pub mod import;
mod json;
pub mod ledger;
pub mod loading;
pub mod mark_writer;
pub mod marks;
pub mod names;
pub mod object_names;
pub mod orders;
pub(crate) mod parallel;
pub mod record;
pub mod reference;
#[cfg(test)]
pub(crate) mod samples;
pub mod schedule;
pub mod seals;
mod secret_header;
pub(crate) mod selection_flags;
pub mod shipper;
pub mod spooled;
pub mod stream_head;
pub mod stream_purge;
pub mod takeover;
