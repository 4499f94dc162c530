//! Policy, pure: no clock, socket, disk or log. Everything that decides about delivery is a function that a test can
//! call.
//!
//! - [`admission`]: whether a protected write is forwarded, stored or refused.
//! - [`unprotected`]: which writes are forwarded while the message store can't be used.
//! - [`verdict`]: what an answer means, when forwarding and when replaying.
//! - [`batching`]: which messages share a request, and how a refused batch is divided.
//! - [`generation`]: the order of requests that needs the fewest commits between them.
//! - [`id_window`]: which ids a server refuses for their timestamps.
//! - [`lane_health`]: what a lane may do next, after which failures: a circuit breaker.
//! - [`concurrency`]: how many batches of a lane are in flight at once.
//! - [`blame`]: whether a fault counts against a message.
//! - [`backoff`]: how long a message waits after a failed attempt.
//! - [`drain_delay`]: when an edge begins to replay to a hub that is back.
//! - [`pacing`]: how fast a backlog is replayed.
//! - [`fleet_pacing`]: the same where many agents share a server.
//! - [`fleet_dial`]: what people decided about the pace of a whole fleet.
//! - [`unread`]: order among writes of which some are forwarded unread.
//! - [`eta`]: when a backlog will have reached the server.

pub(crate) mod admission;
pub(crate) mod backoff;
pub mod batching;
pub(crate) mod blame;
pub(crate) mod concurrency;
pub(crate) mod drain_delay;
pub(crate) mod eta;
pub mod fleet_dial;
pub mod fleet_pacing;
pub(crate) mod generation;
pub(crate) mod id_window;
pub(crate) mod lane_health;
pub mod pacing;
pub(crate) mod unprotected;
pub(crate) mod unread;
pub(crate) mod verdict;
