//! One agent in the background for a user, a server and a store: found, started, stopped.
//!
//! `agent --background` is idempotent: it starts the agent if there is none, and returns once it is ready. Any number of
//! concurrent processes may call it: shell profiles, notebooks, test workers. Everything that they need to know is in one private
//! folder per server and store:
//!
//! | file | what it is |
//! | --- | --- |
//! | `lock` | locked (`flock`) by the agent for as long as it runs; empty |
//! | `agent.json` | the port file ([`record`]): address, secret, what it serves; replaced atomically |
//! | `agent.log` | what the agent logs; the previous one is `agent.log.old` once it has grown |
//!
//! # Exactly one agent
//!
//! 1. A starter takes the lock, without waiting. Only one can.
//! 2. It starts the agent with the locked file as its standard input, and closes its own copy. The lock belongs to the
//!    open file, so it passes to the agent with no moment in between in which anybody else could take it, and the kernel
//!    releases it when the agent ends, however it ends. There is nothing to clean up after `kill -9`.
//! 3. All others find the lock taken, and poll the port file with backoff until the agent answers, or until the lock is
//!    free again because the start failed: then the next one retries, within its own deadline.
//!
//! A process id decides nothing. The port file is stale if the lock is free; it stays as a note of the last port, which
//! the next agent prefers, so that programs that have the address reach it again after a crash.
//!
//! # Whom a starter believes
//!
//! - The folder and its parents up to `opik-offline` belong to this user and nobody else can enter them; files are
//!   opened without following links. Another user's folder is refused.
//! - An address is the agent's only if it proves that it knows the port file's secret ([`crate::intake::identity`]): a
//!   stranger that got the port of a killed agent can't. An agent that is about to end says so, and is not reported.
//! - The folder's name covers server, store, host name and the namespaces of networks and processes: a home directory
//!   that several machines or containers share has one folder for each, because `127.0.0.1` is another place in each.
//!
//! The agent runs in a session of its own, without a terminal, in the directory of its starter, where relative paths in
//! settings mean what they meant. Descriptors above 2 that its starter leaves open stay open in it.

mod error;
mod folder;
mod instance;
mod record;
mod serve;
mod start;
mod stop;

pub(crate) use self::error::BackgroundError;
pub(crate) use self::instance::Instance;
pub(crate) use self::record::LaunchEnvironment;
pub(crate) use self::serve::{bind, enter};
pub(crate) use self::start::{Launched, start};
pub(crate) use self::stop::{StopEnd, stop};
