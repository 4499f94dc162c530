//! The limits and timeouts of clients. The table in the head of [`super`] has the consequence of each.

use std::time::Duration;

/// The limits that the configuration sets.
#[derive(Clone, Copy, Debug)]
pub struct IntakeLimits {
    /// Concurrent connections.
    pub connections_max: usize,
    /// Bytes of one body as sent.
    pub body_bytes_max: u64,
    /// Bytes of one body when decoded.
    pub inflated_bytes_max: u64,
    /// Bytes of an attachment's file.
    pub attachment_bytes_max: u64,
    /// The timeout of a silent client: between requests, within a request's head or body, and while it takes its
    /// answer.
    pub client_timeout: Duration,
    /// The timeout of a forwarded write, which is then stored instead.
    pub forward_timeout: Duration,
    /// The interval of pings while the server is unavailable. A client whose read fails is asked to retry after this.
    pub ping_interval: Duration,
    /// The longest hold of a lane that the server rate-limits without a `Retry-After`.
    pub retry_interval: Duration,
}

/// Bytes of a request's head at most.
pub(super) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Headers of a request at most. nginx limits their bytes only.
pub(super) const HEADERS_MAX: usize = 1024;
/// Bytes of a request's path and query at most. Servers and proxies take 8 KiB by default.
pub(super) const URL_BYTES_MAX: usize = 16 * 1024;
/// The timeout of a server that was unavailable at the last ping, for an answer that only it can give. It may be back,
/// so the request is sent; if the server hangs, the client learns it soon.
pub(super) const AWAY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one warning that every connection or request could cause is not repeated.
pub(super) const WARNING_PAUSE: Duration = Duration::from_secs(60);
