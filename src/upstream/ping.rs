//! The connection monitor's ping: what it met on its way, besides its answer.
//!
//! A ping opens a connection only if the pool has none, and sends nothing before the connection is made. So a ping to a
//! closed port costs no more than a bare connect would, and no connect that leads nowhere (a proxy's, a load
//! balancer's) is mistaken for a server.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::route::{PeerAddress, ServerRoute};
use super::{Pong, Timeouts, Upstream, is_connect_error, with_lane};
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::hub::EDGE_HEADER;
use crate::protocol::recognise::Endpoint;

/// How far a failed ping came: how much it cost others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// Nobody: the connection was refused, there is no route, or no answer to a plain connect.
    Nobody,
    /// Somebody who worked for it: a front that answers for the server, a proxy, a resolver that answered, the other
    /// side of a TLS handshake.
    Somebody,
    /// Somebody who accepted the request and did not answer in time, or a resolver that did not.
    Silence,
}

/// Why there is no answer to a ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PingFailure {
    /// The failure, for people.
    pub failure: SendFailure,
    /// How far it came.
    pub met: Met,
}

impl Upstream {
    /// Pings the server (`is-alive/ping`) for the connection monitor. `connect`: the timeout of opening a connection,
    /// if it is shorter than usual; `answer`: of the whole ping.
    ///
    /// # Errors
    ///
    /// [`PingFailure`] without a response.
    pub fn ping_within(&self, connect: Option<Duration>, answer: Duration) -> Result<Pong, PingFailure> {
        let was_hub = self.is_behind_hub.load(Ordering::Relaxed);
        let pong = self.ping_once(connect, answer, was_hub)?;
        let is_hub = pong.hub.is_some();
        self.is_behind_hub.store(is_hub, Ordering::Relaxed);
        if is_hub && !was_hub && self.edge.is_some() {
            // At once, so that a hub knows an edge that lives for less than the interval of pings.
            return self.ping_once(connect, answer, true);
        }
        Ok(pong)
    }

    /// Pings once; `introduces` this agent to a hub.
    fn ping_once(&self, connect: Option<Duration>, answer: Duration, introduces: bool) -> Result<Pong, PingFailure> {
        let started = Instant::now();
        let mut request = http::Request::builder().method("GET").uri(format!("{}/is-alive/ping", self.base_url));
        if let Some(edge) = self.edge.as_ref().filter(|_| introduces) {
            request = request.header(EDGE_HEADER, edge().to_header());
        }
        let request = self.with_own_headers(with_lane(request, &self.asks_as)).body(());
        let timeouts = Timeouts { connect, whole: answer };
        let bytes_max = Answer::TEXT_BYTES_MAX;
        let result = request.map_err(ureq::Error::Http);
        let result = result.and_then(|request| self.exchange(request, Endpoint::Ping, timeouts, bytes_max));
        let answer = result.map_err(|error| PingFailure {
            met: self.met(&error),
            failure: self.failure(&self.base_url, answer, error),
        })?;
        Ok(Pong::of(answer, started.elapsed()))
    }

    fn met(&self, error: &ureq::Error) -> Met {
        match error {
            ureq::Error::Io(io) if is_connect_error(io) => Met::Nobody,
            // With TLS or a proxy, somebody may have accepted the connection.
            ureq::Error::Timeout(ureq::Timeout::Connect) if self.connects_plainly() => Met::Nobody,
            ureq::Error::Timeout(ureq::Timeout::Connect) => Met::Somebody,
            // A resolver that hangs keeps a thread of this process for each query.
            ureq::Error::Timeout(_) => Met::Silence,
            _ => Met::Somebody,
        }
    }

    /// Returns whether a connection to the server is a TCP connection to it and nothing else.
    fn connects_plainly(&self) -> bool {
        let target = self.base_url.parse().ok().and_then(|uri| PeerAddress::of(&uri));
        target
            .is_some_and(|target| !target.is_https && matches!(self.proxies.route_to(&target), Ok(ServerRoute::Direct)))
    }
}
