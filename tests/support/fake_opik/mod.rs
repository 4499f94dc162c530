//! A fake Opik server: real HTTP/1.1 on a loopback port, for synchronous tests.
//!
//! It checks what it receives as the server would ([`check`]), keeps the state the server would keep ([`state`]), logs
//! every request ([`log`]) and breaks on demand ([`script`]). One thread accepts, one serves each connection, and
//! everything they share is behind one mutex; a fault waits on its condition variable, so stopping the server or
//! clearing a fault ends every wait.
//!
//! The port stays reserved for the life of the value: while the server is stopped, connections are refused and nobody
//! else can get the port.

pub(crate) mod attachments;
pub(crate) mod check;
pub(crate) mod clock;
pub(crate) mod front;
mod id_window;
mod log;
pub(crate) mod otlp;
mod routes;
mod script;
mod server;
pub(crate) mod state;
pub(crate) mod wire;

use std::collections::{BTreeMap, HashMap};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::reserve_port;
use bytes::Bytes;
use check::{Key, Kind, Write};
use state::Entity;

pub(crate) use attachments::{FilesIn, StoredFile};
pub(crate) use log::{EarlyUpdate, Overlap, Received};
pub(crate) use routes::decompressed;
pub(crate) use script::{Answer, Then, When};

/// The server's data, by workspace.
pub(crate) type State = BTreeMap<String, BTreeMap<Key, Entity>>;

pub(crate) struct FakeOpik {
    inner: Arc<Inner>,
    address: SocketAddr,
    accepting: Mutex<Option<JoinHandle<()>>>,
    _reservation: tokio::net::TcpSocket,
}

struct Inner {
    shared: Mutex<Shared>,
    changed: Condvar,
}

#[derive(Default)]
struct Shared {
    running: bool,
    /// Counts starts, so that a thread of an earlier run knows that it is over.
    run: u64,
    /// Counts beginnings and ends of requests.
    step: u64,
    connections: HashMap<u64, TcpStream>,
    connections_count: u64,
    faults: Vec<Fault>,
    faults_count: u64,
    requests: Vec<Received>,
    unfinished: usize,
    state: State,
    violations: Vec<String>,
    conflicts: Vec<String>,
    early_updates: Vec<EarlyUpdate>,
    stream_allowance: Option<usize>,
    /// Entities that the next `n` reads don't show.
    hidden: HashMap<String, usize>,
    attachments: attachments::Attachments,
    id_window: Option<id_window::IdWindow>,
    otlp: otlp::Otlp,
}

struct Fault {
    id: u64,
    when: When,
    then: Then,
    /// `None`: until it is cleared.
    times_left: Option<usize>,
    cleared: bool,
    hits: usize,
    /// Decides before all others and stays when the script is cleared.
    always: bool,
}

/// A fault in the script. Dropping this leaves it in force.
pub(crate) struct Scripted<'a> {
    server: &'a FakeOpik,
    id: u64,
}

impl Scripted<'_> {
    /// Returns how many requests it has met.
    pub(crate) fn hits(&self) -> usize {
        self.server.lock().fault(self.id).hits
    }

    /// Ends the fault, and with it every request that hangs or is held by it.
    pub(crate) fn clear(self) {
        self.server.lock().fault(self.id).cleared = true;
        self.server.inner.changed.notify_all();
    }
}

impl Shared {
    fn fault(&mut self, id: u64) -> &mut Fault {
        self.faults.iter_mut().find(|fault| fault.id == id).expect("faults are never removed")
    }

    fn next_step(&mut self) -> u64 {
        self.step += 1;
        self.step
    }
}

impl FakeOpik {
    /// Starts a server on a free loopback port.
    pub(crate) fn start_new() -> Self {
        let reservation = reserve_port(0).expect("a loopback port is free");
        let address = reservation.local_addr().expect("a bound socket has an address");
        let inner = Arc::new(Inner { shared: Mutex::default(), changed: Condvar::new() });
        let server = Self { inner, address, accepting: Mutex::default(), _reservation: reservation };
        server.start();
        server
    }

    /// Reserves a port on which nothing answers until [`FakeOpik::start`].
    pub(crate) fn new_stopped() -> Self {
        let server = Self::start_new();
        server.stop();
        server
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns the base URL as a user would configure it: `http://127.0.0.1:PORT/api`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/api", self.address)
    }

    /// Listens again on the same port; what the server knew is still there.
    pub(crate) fn start(&self) {
        let mut accepting = self.accepting.lock().expect("no thread panicked");
        if accepting.is_some() {
            return;
        }
        let listener = listen_again(self.address);
        let run = {
            let mut shared = self.lock();
            shared.running = true;
            shared.run += 1;
            shared.run
        };
        let inner = Arc::clone(&self.inner);
        *accepting = Some(std::thread::spawn(move || server::accept(&inner, &listener, run)));
    }

    /// Goes away as a killed server does: the listener is closed, every connection is cut, nothing more is processed.
    pub(crate) fn stop(&self) {
        let mut accepting = self.accepting.lock().expect("no thread panicked");
        let Some(thread) = accepting.take() else {
            return;
        };
        {
            let mut shared = self.lock();
            shared.running = false;
            let step = shared.next_step();
            for request in &mut shared.requests {
                request.ended_step.get_or_insert(step);
            }
            for (_, connection) in shared.connections.drain() {
                // Fails only when the client was faster.
                let _ = connection.shutdown(Shutdown::Both);
            }
        }
        self.inner.changed.notify_all();
        // Wakes the accepting thread. The connection may be refused when the listener is already gone.
        drop(TcpStream::connect(self.address));
        thread.join().expect("the accepting thread did not panic");
    }

    /// Puts a fault into the script until it is cleared. The newest one that matches a request decides.
    pub(crate) fn script(&self, when: When, then: Then) -> Scripted<'_> {
        self.add_fault(when, then, None)
    }

    /// Adds a fault for `n` requests to the script.
    pub(crate) fn script_times(&self, times: usize, when: When, then: Then) -> Scripted<'_> {
        self.add_fault(when, then, Some(times))
    }

    /// Sets the server's reaction to a request in any case: before every fault, and after the script was cleared, too.
    pub(crate) fn always(&self, when: When, then: Then) -> Scripted<'_> {
        let scripted = self.add_fault(when, then, None);
        self.lock().fault(scripted.id).always = true;
        scripted
    }

    fn add_fault(&self, when: When, then: Then, times_left: Option<usize>) -> Scripted<'_> {
        let mut shared = self.lock();
        shared.faults_count += 1;
        let id = shared.faults_count;
        shared.faults.push(Fault { id, when, then, times_left, cleared: false, hits: 0, always: false });
        drop(shared);
        Scripted { server: self, id }
    }

    /// Answers nothing, not even pings, until the fault is cleared.
    pub(crate) fn hang_all(&self) -> Scripted<'_> {
        self.script(When::any(), Then::Hang)
    }

    /// Answers everything with this status, the ping included.
    pub(crate) fn status_all(&self, status: u16) -> Scripted<'_> {
        self.script(When::any(), Then::status(status))
    }

    /// Refuses every request that writes one of these entities as the server refuses bad data.
    pub(crate) fn reject_ids<S: Into<String>>(&self, ids: impl IntoIterator<Item = S>) -> Scripted<'_> {
        self.script(When::ids(ids), Then::status(400))
    }

    /// Refuses creates whose ids name a time further from now than this, but for these workspaces; `None` takes all.
    pub(crate) fn set_id_window(&self, window: Option<std::time::Duration>, bypass: &[&str]) {
        let bypass = bypass.iter().map(|workspace| (*workspace).to_owned()).collect();
        self.lock().id_window = window.map(|window| id_window::IdWindow { window, bypass });
    }

    /// Refuses the creates of one trace with this status.
    pub(crate) fn refuse_creates_of(&self, id: &str, status: u16) -> Scripted<'_> {
        let id = id.to_owned();
        let creates = When::path("/v1/private/traces*").method("POST");
        let when = creates.and(move |request| request.writes.iter().any(|write| write.key.id == id));
        self.script(when, Then::Answer(Answer::error(status, "this one is refused")))
    }

    /// Takes entities without ever showing them, as a server that loses what it confirmed.
    pub(crate) fn swallow<S: Into<String>>(&self, ids: impl IntoIterator<Item = S>) {
        self.show_after(usize::MAX, ids);
    }

    /// Shows entities only after `n` reads of each that did not.
    pub(crate) fn show_after<S: Into<String>>(&self, reads: usize, ids: impl IntoIterator<Item = S>) {
        self.lock().hidden.extend(ids.into_iter().map(|id| (id.into(), reads)));
    }

    /// Clears the whole script, but for what the server always does.
    pub(crate) fn clear_script(&self) {
        for fault in &mut self.lock().faults {
            fault.cleared = !fault.always;
        }
        self.inner.changed.notify_all();
    }

    /// Lets streamed answers send only their first `chunks` chunks, until [`FakeOpik::release_streams`].
    pub(crate) fn hold_streams_after(&self, chunks: usize) {
        self.lock().stream_allowance = Some(chunks);
    }

    pub(crate) fn release_streams(&self) {
        self.lock().stream_allowance = None;
        self.inner.changed.notify_all();
    }

    /// Returns every request that was read whole, in that order.
    pub(crate) fn requests(&self) -> Vec<Received> {
        self.lock().requests.clone()
    }

    /// Returns the requests to one method and path after the prefix, `*` standing for anything.
    pub(crate) fn requests_to(&self, method: &str, path: &str) -> Vec<Received> {
        let when = When::path(path).method(method);
        self.lock().requests.iter().filter(|request| when.matches(request)).cloned().collect()
    }

    /// Returns the requests that write one entity, in the order received.
    pub(crate) fn sequence_for(&self, id: &str) -> Vec<Received> {
        self.lock().requests.iter().filter(|request| request.touches_id(id)).cloned().collect()
    }

    /// Returns how many requests broke off before they were read whole.
    pub(crate) fn unfinished(&self) -> usize {
        self.lock().unfinished
    }

    /// Returns how many requests that match are in progress: read whole, and neither answered nor broken off.
    pub(crate) fn open(&self, when: &When) -> usize {
        let shared = self.lock();
        shared.requests.iter().filter(|request| request.ended_step.is_none() && when.matches(request)).count()
    }

    /// Returns how many requests that match were in progress at once, at most.
    pub(crate) fn open_at_once(&self, when: &When) -> usize {
        let shared = self.lock();
        let mut steps: Vec<(u64, i64)> = Vec::new();
        for request in shared.requests.iter().filter(|request| when.matches(request)) {
            steps.push((request.began_step, 1));
            steps.extend(request.ended_step.map(|ended| (ended, -1)));
        }
        steps.sort_unstable();
        let mut open = 0;
        let most = steps.iter().map(|(_, change)| {
            open += change;
            open
        });
        most.max().unwrap_or(0).try_into().expect("a request ends after it began")
    }

    /// Returns what the server would have refused as malformed.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Returns what was refused with 409.
    pub(crate) fn conflicts(&self) -> Vec<String> {
        self.lock().conflicts.clone()
    }

    /// Returns the updates that made a partial record.
    pub(crate) fn early_updates(&self) -> Vec<EarlyUpdate> {
        self.lock().early_updates.clone()
    }

    /// Returns the pairs of requests of one workspace and key that were in flight at once and write the same entity.
    ///
    /// A request is in flight from when it was read whole until just before its answer is sent, or until its
    /// connection is gone.
    pub(crate) fn overlaps(&self) -> Vec<Overlap> {
        let shared = self.lock();
        let mut last: HashMap<(&str, Option<&str>, &Key), Vec<&Received>> = HashMap::new();
        let mut found = Vec::new();
        for request in &shared.requests {
            for write in &request.writes {
                let lane = (request.workspace.as_str(), request.authorization.as_deref(), &write.key);
                let earlier = last.entry(lane).or_default();
                earlier.retain(|earlier| earlier.ended_step.is_none_or(|ended| ended > request.began_step));
                found.extend(earlier.iter().filter(|earlier| earlier.seq != request.seq).map(|earlier| Overlap {
                    first: earlier.seq,
                    second: request.seq,
                    workspace: request.workspace.clone(),
                    key: write.key.clone(),
                }));
                earlier.push(request);
            }
        }
        found
    }

    /// Lets OTLP be taken as this version of the server takes it, and its traces be read so.
    pub(crate) fn takes_otlp_like(&self, version: otlp::Version) {
        self.lock().otlp.version = version;
    }

    /// Forgets under which ids OTel traces are known, as the server's cache does in time.
    pub(crate) fn forget_otel_ids(&self) {
        self.lock().otlp.forget();
    }

    /// Returns the OTLP spans of a workspace by trace and id, as [`Kind::OtelSpan`] names them.
    pub(crate) fn otel_spans(&self, workspace: &str) -> BTreeMap<String, otlp::StoredSpan> {
        self.lock().otlp.spans_of(workspace)
    }

    /// Returns how many traces OTLP made in a workspace.
    pub(crate) fn otel_traces(&self, workspace: &str) -> usize {
        self.lock().otlp.traces_of(workspace)
    }

    /// Sets where files are kept from now on.
    pub(crate) fn keep_files_in(&self, place: FilesIn) {
        self.lock().attachments.files_in = place;
    }

    /// Returns the files that are there whole.
    pub(crate) fn files(&self) -> BTreeMap<attachments::FileKey, StoredFile> {
        self.lock().attachments.files.clone()
    }

    pub(crate) fn state(&self) -> State {
        self.lock().state.clone()
    }

    /// Returns what the server knows about one entity.
    pub(crate) fn entity(&self, workspace: &str, kind: Kind, id: &str) -> Option<Entity> {
        let key = Key { kind, id: id.to_owned() };
        self.lock().state.get(workspace)?.get(&key).cloned()
    }

    /// Counts the records of one kind in a workspace.
    pub(crate) fn count(&self, workspace: &str, kind: Kind) -> usize {
        let shared = self.lock();
        let entities = shared.state.get(workspace).into_iter().flatten();
        entities.filter(|(key, entity)| key.kind == kind && entity.record.is_some()).count()
    }

    #[track_caller]
    pub(crate) fn assert_no_violations(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "the server would have refused:\n{}", violations.join("\n"));
    }

    #[track_caller]
    pub(crate) fn assert_no_update_before_create(&self) {
        let early = self.early_updates();
        let lines: Vec<String> = early.iter().map(|e| format!("request {}: {}", e.seq, e.key)).collect();
        assert!(
            lines.is_empty(),
            "updates reached the server before their create and hide its fields:\n{}",
            lines.join("\n")
        );
    }

    #[track_caller]
    pub(crate) fn assert_no_overlaps(&self) {
        let overlaps = self.overlaps();
        let lines: Vec<String> =
            overlaps.iter().map(|o| format!("requests {} and {}: {}", o.first, o.second, o.key)).collect();
        assert!(
            lines.is_empty(),
            "requests about one entity were in flight at once, their order is luck:\n{}",
            lines.join("\n")
        );
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.inner.lock()
    }
}

/// Returns what a request asks of a message endpoint, or why the server would refuse it. A request to another endpoint
/// asks for nothing.
pub(crate) fn writes_of(
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> Result<Vec<Write>, String> {
    let target = if path.contains("/api/") { path.to_owned() } else { format!("/api{path}") };
    let head = wire::Head { method: method.to_owned(), target, headers: headers.to_vec() };
    let mut request = routes::received(&head, Bytes::copy_from_slice(body));
    match routes::read(&mut request) {
        routes::Reading::Refused { message, .. } => Err(message),
        routes::Reading::Write(_) | routes::Reading::Other => Ok(request.writes),
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for FakeOpik {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Listens on a port that was closed a moment ago: a connection of another test may hold it for a while.
fn listen_again(address: SocketAddr) -> TcpListener {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(error) if Instant::now() > end => panic!("{address} can't be listened on again: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
