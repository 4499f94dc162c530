//! Intake: the HTTP interface that clients use instead of the Opik server's.
//!
//! # One write from socket to disk
//!
//! ```text
//! socket ─▶ listener ─▶ worker ─▶ conversation ─▶ router ─▶ accept ─▶ receive ─▶ prepare ─▶ entity locks ─▶ deliver
//!                                                                                                            │
//!    client ◀─ the server's own answer ◀─ verdict ◀────────────────────────────────────────── send ◀──────────┤
//!    client ◀─ acknowledgement ◀─ commit ◀─ committer ◀────────────────────────────────── register ◀──────────┘
//! ```
//!
//! 1. [`listener`] accepts the connection and asks [`connections`] for a seat; a thread of [`workers`] serves it to its
//!    end.
//! 2. [`conversation`] detects the version of HTTP ([`preface`]) and lets hyper parse requests, over [`http2`] or over
//!    a socket ([`wire`]) that validates how they are framed ([`framing`]).
//! 3. [`router`] checks the head: URL, [`guard`] (token), [`site`] (host and web page), path, media type. From here the
//!    request is an [`exchange::Exchange`].
//! 4. [`accept`] handles a protected write. [`accept`]'s `receive` reads the body into memory ([`body`]) or spools it
//!    to disk ([`spool`]), `prepare` decodes it and finds out which entities it is about. A small batch create of
//!    a connection that has shown its ids ([`evidence`]) skips this and the locks while all goes well.
//! 5. [`entity_locks`] makes it wait for earlier writes about the same entities, and [`unread`] for creates that nobody
//!    has read. Then `deliver` decides: forward, register or refuse, by [`crate::delivery::admission`] and what is
//!    queued already ([`backlog`]).
//! 6. `send` forwards it and judges the answer ([`server_answer`]); `register` hands the message to the committer and
//!    answers after the commit ([`commit_answers`]).
//!
//! # Invariants
//!
//! - *Acknowledged means durable*: a client gets a success only from the server itself, or after the commit. Before
//!   that it still has its data, and a crash loses nothing.
//! - *Nothing is overtaken*: two writes about one entity are decided in the order in which they arrived, and a write is
//!   forwarded only if no queued message conflicts with it. Concurrent are only byte-identical writes, and a create that
//!   nobody has read beside a write, if neither was answered when the other was sent ([`crate::delivery::unread`]).
//! - *A client that hangs up changes nothing*: once a body is received, the write continues ([`uncancelled`]).
//! - *Bounded memory*: bodies are in memory only within [`crate::memory`]'s budget. A larger one is spooled, encrypted,
//!   and read in pieces; one that can't be kept streams through, if the server is available and it overtakes nothing.
//! - *Writes don't block the runtime on the disk*: commits are the committer's, and other disk work is done by blocking
//!   threads. The exceptions are two indexed queries of the store, which are cheaper than a change of threads: which
//!   messages are ahead ([`backlog`]), and whether a create was seen ([`ahead_notes`]).
//!
//! # What else is answered here
//!
//! - `http://agent/X` means `http://server/X` for every path but the agent's own; the API is also found under `/api`,
//!   `/opik/api` and no prefix ([`crate::protocol::target`]). Everything that is not a protected write or an upload
//!   ([`attachments`]) passes through ([`pass_through`]).
//! - `is-alive/ping` reports on the agent itself, whatever the server's state: otherwise the Python SDK would park its
//!   messages in its own temporary store (protocol dossier, section b).
//! - A browser that follows a printed link is redirected to the server's own page ([`mod@links`]).
//! - `/-/`, `/-/healthy`, `/-/ready`, `/-/status.json`, `/metrics` and `/` are the agent's own ([`status_page`]), and
//!   so is `/-/flush` ([`mod@flush`]); all other paths below `/-/` are reserved for it.
//!
//! # Limits
//!
//! | of | limit | past it |
//! | --- | --- | --- |
//! | connections | `max_connections`, fewer when the system allows fewer files | the longest idle is closed, else 503 ([`connections`]) |
//! | a request's head | [`limits::HEAD_BYTES_MAX`], [`limits::HEADERS_MAX`] | 431 |
//! | its URL | [`limits::URL_BYTES_MAX`] | 414 |
//! | its framing | unambiguous for every parser ([`framing`]) | 400 |
//! | concurrent requests on an HTTP/2 connection | [`http2`] | refused there, and retried by the client |
//! | its host, and the page that sends it | the agent's own ([`site`]) | 403 |
//! | its path | no `..`, no malformed percent-encoding ([`crate::protocol::path`]) | 400 |
//! | its content type | what the server reads ([`crate::protocol::media`]) | 415 |
//! | time for the head, and between requests | `client_timeout` | closed |
//! | time for a piece of a body | `client_timeout`, and a kilobyte per second ([`pace`]) | 408 |
//! | time to take a piece of the answer | `client_timeout` | closed |
//! | bytes of a body that is kept, as sent and inflated | `max_body_size`, `max_inflated_size`, by default the server's own | streams through, else 413 |
//! | bytes of one that can't be divided | the memory for one body ([`body::Sizes`]) | streams through, else 413 |
//! | bytes of all bodies on disk | `max_size`, and the free-disk reserve ([`spool`]) | streams through, else 413 or 503 |
//! | bytes of an attachment | `max_attachment_size` | 413 |
//! | bytes of all bodies in memory | `memory_budget` ([`crate::memory`]) | a large one waits, then 503 |
//!
//! Each time a client exceeds one, this is counted (`opik_offline_intake_over_limit_total` and the two metrics about
//! connections) and logged. A connection that is idle between requests costs no thread and no buffer beyond hyper's. A
//! body that streams through is never in memory as a whole, so it has no size limit.

mod accept;
mod ahead_notes;
mod answering;
mod attachments;
mod backlog;
mod body;
mod commit_answers;
mod connections;
mod conversation;
mod deadline;
mod entity_locks;
mod evidence;
mod exchange;
mod flush;
mod flush_slots;
pub(crate) mod forward;
mod framing;
pub mod guard;
mod http2;
pub(crate) mod identity;
mod limits;
mod links;
mod listener;
mod monitoring;
mod pace;
mod pass_through;
mod preface;
mod recent_uploads;
mod router;
mod server_answer;
mod shared;
pub(crate) mod site;
pub(crate) mod spool;
mod status_page;
mod streams;
mod uncancelled;
mod unread;
mod wire;
pub(crate) mod workers;

pub use limits::IntakeLimits;
pub use shared::IntakeService;
