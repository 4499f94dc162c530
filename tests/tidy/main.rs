//! The house rules as tests.
//!
//! | module | what it checks |
//! | --- | --- |
//! | `rooms` | which room may import which, and which names only one room may use |
//! | `circles` | that files of a room do not import each other in circles |
//! | `shape` | lengths of functions, parameters and files; one name, one type; the store's traits |
//! | `promises` | that each promise has tests, and a mutation that they notice |
//! | `language` | standard terms instead of paraphrases, in comments, messages, test names and documents |
//! | `pages` | links, anchors and sizes of the documents |
//! | `repository` | that no build product is committed |
//!
//! The rooms and the reasons for them are described at the head of `src/lib.rs` and in CONTRIBUTING.md. `source` reads Rust
//! files as text, with comments and strings separated from the code; that is enough for rules about names and sizes.
//!
//! A list of exceptions only shrinks: an entry that is no longer needed fails the test that uses it.

mod circles;
mod language;
#[path = "../support/not_run.rs"]
mod not_run;
mod pages;
mod promises;
mod repository;
mod rooms;
mod shape;
mod source;
