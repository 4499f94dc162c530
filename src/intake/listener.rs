//! The accept loop: gives each connection a seat and a worker, and drains them when the agent stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use super::connections::{Connections, Seat, SeatOffer};
use super::conversation::Client;
use super::limits::WARNING_PAUSE;
use super::shared::{IntakeService, Listener, Shared};
use super::workers::Workers;
use crate::protocol::answers::unavailable;
use crate::protocol::hub::{ANSWER_HEADER, OWN_ANSWER};
use crate::shutdown::Shutdown;
use crate::telemetry::metrics::Metrics;

/// How long a refused connection is kept open, so that its client can read why.
const LINGER: Duration = Duration::from_secs(5);
/// Concurrent refused connections that are kept open; the others are closed at once.
const LINGERING_MAX: usize = 64;
/// How long a client may be silent before the operating system probes whether its machine is still there, and how many
/// probes it sends. Without them the agent would wait for a client that is gone for as long as its request is answered.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBES: u32 = 4;
/// The interval of intake's heartbeat.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// How long the loop backs off after it failed to accept a connection.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

impl IntakeService {
    /// Serves until shutdown, then lets requests in flight finish for at most `grace`.
    ///
    /// Returns when the last of them has its answer or has timed out. A request that is cut off was not acknowledged.
    pub async fn serve(self, listener: TcpListener, workers: &Workers, shutdown: Shutdown, grace: Duration) {
        let state = Arc::<Listener>::default();
        let heartbeat = self.heartbeat.clone();
        let mut gate = ConnectionGate::new(self.limits.connections_max, self.metrics.clone());
        let per_worker = Shared::per_worker(self, &state);
        let graceful = GracefulShutdown::new();
        let mut heartbeats = tokio::time::interval(HEARTBEAT_INTERVAL);
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => break,
                _ = heartbeats.tick() => {
                    // Through every worker: it shows that connections are accepted and requests are processed.
                    let heartbeat = heartbeat.clone();
                    workers.when_all_are_through(move || heartbeat.beat());
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Mostly a lack of file descriptors, which passes: the loop retries.
                    warn!(target: "intake", "cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            let Some((stream, seat)) = gate.admit(stream) else { continue };
            let watcher = graceful.watcher();
            let (connections, per_worker) = (gate.connections.clone(), per_worker.clone());
            workers.give_connection(move |worker, load| {
                let Some(shared) = per_worker.get(worker).cloned() else { return };
                match TcpStream::from_std(stream) {
                    Ok(stream) => {
                        let client = Client { shared, connections, seat, load, watcher };
                        tokio::spawn(client.serve(stream));
                    }
                    Err(error) => warn!(target: "intake", "cannot serve a connection: {error}"),
                }
            });
        }
        // Closed before the wait: a client that connects now is refused at once and knows it.
        drop(listener);
        per_worker.iter().for_each(|shared| shared.ending.request());
        state.windows.close();
        info!(target: "intake", connections = gate.connections.open(), "no new requests are accepted");
        drain(graceful, &per_worker, grace).await;
    }
}

/// Waits for requests in flight, with `grace` as the timeout. Halfway, writes that still wait for the server are stored
/// and acknowledged instead.
async fn drain(graceful: GracefulShutdown, per_worker: &[Arc<Shared>], grace: Duration) {
    let mut finished = std::pin::pin!(graceful.shutdown());
    if tokio::time::timeout(grace / 2, finished.as_mut()).await.is_ok() {
        return;
    }
    per_worker.iter().for_each(|shared| shared.hurry.request());
    if tokio::time::timeout(grace / 2, finished).await.is_err() {
        warn!(target: "intake", "requests in flight did not finish within the shutdown timeout and were cut off unacknowledged");
    }
}

/// Admits and refuses connections.
struct ConnectionGate {
    connections: Arc<Connections>,
    connections_max: usize,
    metrics: Arc<Metrics>,
    /// Refused connections that are kept open.
    lingering: Arc<Semaphore>,
    /// When a lack of seats was last logged.
    warned: Option<Instant>,
}

impl ConnectionGate {
    fn new(connections_max: usize, metrics: Arc<Metrics>) -> Self {
        let connections = Arc::new(Connections::new(connections_max));
        let lingering = Arc::new(Semaphore::new(LINGERING_MAX));
        Self { connections, connections_max, metrics, lingering, warned: None }
    }

    /// Returns a connection that may stay, ready to move to its worker, with its seat.
    fn admit(&mut self, stream: TcpStream) -> Option<(std::net::TcpStream, Seat)> {
        let seat = match self.connections.admit() {
            SeatOffer::Free(seat) => seat,
            SeatOffer::FromIdle(seat) => {
                self.metrics.intake_connections_closed.add(1);
                self.warn("for each new one the connection that was idle for longest is closed (max_connections)");
                seat
            }
            SeatOffer::Full => {
                self.metrics.intake_connections_refused.add(1);
                self.warn("all are busy, and new ones get a 503 (max_connections)");
                refuse_connection(stream, &self.lingering);
                return None;
            }
        };
        self.metrics.intake_connections.set(self.connections.open() as f64);
        set_socket_options(&stream);
        match stream.into_std() {
            Ok(stream) => Some((stream, seat)),
            Err(error) => {
                warn!(target: "intake", "cannot serve a connection: {error}");
                None
            }
        }
    }

    /// Logs a lack of seats, at most once per [`WARNING_PAUSE`].
    fn warn(&mut self, consequence: &str) {
        if self.warned.is_none_or(|warned| warned.elapsed() >= WARNING_PAUSE) {
            self.warned = Some(Instant::now());
            warn!(target: "intake", limit = self.connections_max, "too many connections: {consequence}");
        }
    }
}

/// Sets the socket options of a client's connection. The connection is served even if that fails.
fn set_socket_options(stream: &TcpStream) {
    use rustix::net::sockopt;
    let set = stream.set_nodelay(true).and_then(|()| {
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
        sockopt::set_tcp_keepintvl(stream, PROBE_AFTER / PROBES)?;
        Ok(sockopt::set_tcp_keepcnt(stream, PROBES)?)
    });
    if let Err(error) = set {
        debug!(target: "intake", "cannot set the options of a connection: {error}");
    }
}

/// Tells a client that there is no seat for it.
///
/// A connection that is closed while its client still sends is reset, and the client would see that instead of the
/// answer: so a few of them are kept open and drained for a while.
fn refuse_connection(stream: TcpStream, lingering: &Arc<Semaphore>) {
    let reply = unavailable("opik-offline has as many busy connections as it may (max_connections)", LINGER);
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Retry-After: {}\r\n{ANSWER_HEADER}: {OWN_ANSWER}\r\nConnection: close\r\n\r\n",
        reply.body.len(),
        reply.retry_after_seconds.unwrap_or(1)
    );
    let answer = head + &reply.body;
    // Nothing was written to it before, so its buffer takes all of this at once or never will.
    if !matches!(stream.try_write(answer.as_bytes()), Ok(written) if written == answer.len()) {
        return;
    }
    let Ok(permit) = lingering.clone().try_acquire_owned() else { return };
    tokio::spawn(async move {
        let mut stream = stream;
        let mut discarded = [0; 4096];
        let reading = async { while matches!(stream.read(&mut discarded).await, Ok(1..)) {} };
        // It makes no difference whether the client has hung up by then.
        let _ = tokio::time::timeout(LINGER, reading).await;
        drop(permit);
    });
}
