//! Keep Opik traces through an outage: a store-and-forward agent for every Opik client.
//!
//! # The life of a message
//!
//! ```text
//! client ─▶ intake ─┬─ forward ─▶ upstream ─▶ verdict ─▶ the server's own answer
//!                   └─ register ─▶ store (committed) ─▶ acknowledged
//! monitor ─ ping ─▶ upstream            restored ─▶ replay
//! replay: lease ─▶ claim from store ─▶ coalesce ─▶ upstream ─▶ verdict ─▶ settle in store
//! ```
//!
//! To an application, the agent is its Opik server. [`intake`] reads the whole write, [`protocol`] finds the entities
//! that it touches, and [`delivery`] decides: it is forwarded at once if the server is available and no queued message
//! of the same lane conflicts with it; otherwise it is registered in the [`store`] and acknowledged after the commit.
//! [`monitor`] pings the server; when it is back, [`replay`] takes the lease, claims queued messages in the order of
//! acceptance, sends them through [`upstream`], and deletes each message once the server confirmed it.
//!
//! Nothing acknowledged is ever only in memory: between any two steps either the client still has it (no answer yet),
//! or the disk has it, or the server has it.
//!
//! # The rooms
//!
//! | room | what it is for |
//! | --- | --- |
//! | [`message`] | the domain's vocabulary, as plain values: message, entity, lane |
//! | [`protocol`] | pure facts about Opik's HTTP interface |
//! | [`delivery`] | pure policy: admission, verdicts, batching, backoff, pacing, lane health |
//! | `sqlite_format` | SQLite's file format, read without SQLite |
//! | [`store`] | the durable queue: bytes that survive, behind six small traits |
//! | [`sdk`] | files that killed processes of the Python SDK left behind |
//! | [`sealing`] | values and files that only their recipients can open |
//! | [`fleet`] | copies of the backlog in a depot that outlives the machine, and their takeover |
//! | [`moving`] | the messages of a whole store, moved into another one or sealed for the way there |
//! | [`upstream`] | the only connections to the server |
//! | [`depot`] | where copies of stored messages outlive their agent: folders and object storage |
//! | [`monitor`] | whether the server is available |
//! | [`replay`] | delivers stored messages to the server |
//! | `takeover` | replays streams of agents that are gone, and shows what is in a depot |
//! | [`overview`] | the state of agent, server and store, gathered once for the page, JSON and `status` |
//! | [`diagnosis`] | pure policy: the verdict on a state, and its problems with their remedies |
//! | [`intake`] | the HTTP interface for clients; the only asynchronous room |
//! | [`export`] | stored messages as documents |
//! | [`health`] | checks of server, access, store and disk |
//! | [`agent`] | the composition root: builds, starts and stops the components in order |
//! | [`config`] | every setting once, with its source |
//! | [`telemetry`] | logs and metrics |
//! | [`translate`] | the configuration as the plain values that the rooms take |
//! | [`report`] | the reports of commands: documents for programs, text for people |
//! | [`completion`] | values for the shell's completions |
//! | `failure` | the message, hint and exit code of every error |
//! | [`cli`] | the command line |
//! | [`terminal`] | the only place that writes to stdout and stderr: tables, progress, the pager |
//! | [`shutdown`] | one value that tells every loop to stop |
//! | [`memory`] | one budget for the bodies that are in memory |
//! | [`liveness`] | which part of the agent has stalled |
//! | [`signals`] | what each signal means |
//! | [`figures`] | counts, sizes, times and durations as people read them |
//! | [`give_way`] | long work in the background that lets others run |
//! | [`hint`] | suggested commands, with the options that they have to repeat |
//! | [`printable`] | text from elsewhere, harmless for terminal, log and page |
//!
//! `tests/tidy` checks which room may import which; CONTRIBUTING.md gives the reasons.

pub(crate) mod agent;
pub mod cli;
pub(crate) mod completion;
pub mod config;
pub mod delivery;
pub mod depot;
pub(crate) mod diagnosis;
pub(crate) mod export;
pub(crate) mod failure;
pub(crate) mod figures;
pub mod fleet;
pub(crate) mod give_way;
pub(crate) mod health;
pub(crate) mod hint;
pub mod intake;
pub(crate) mod liveness;
pub mod memory;
pub mod message;
pub mod monitor;
pub(crate) mod moving;
pub(crate) mod overview;
pub(crate) mod printable;
pub(crate) mod private_folder;
pub mod protocol;
pub mod replay;
pub(crate) mod report;
pub mod sdk;
pub mod sealing;
pub mod shutdown;
pub(crate) mod signals;
pub(crate) mod sqlite_format;
pub mod store;
pub(crate) mod takeover;
pub mod telemetry;
pub(crate) mod terminal;
pub(crate) mod translate;
pub mod upstream;
