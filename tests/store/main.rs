//! The store's promises: one story that every engine must pass, random histories against the model, and what only a
//! file can do (permissions, other people's files, processes, kills).

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot continue fails")]

mod committing;
mod damage;
mod file;
mod history;
mod locks;
#[path = "../support/memory_store.rs"]
mod memory_store;
mod messages;
#[path = "../support/model_store.rs"]
mod model_store;
#[path = "../support/not_run.rs"]
mod not_run;
mod orphans;
mod processes;
mod rejected_room;
mod sealing;
mod second_look;
mod shipped;
#[path = "../support/shipped_book.rs"]
mod shipped_book;
mod story;
