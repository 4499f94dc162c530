//! Keep-alive connections to the server.
//!
//! The request that uses a connection drives it: reading and writing happen when that request's task is polled, and the
//! connection is moved to the body of the answer and then back to the pool. So a request costs no second task, no wake-up
//! of one, and no timer. A write needs no hyper for that ([`super::direct`]). An idle connection is driven by nobody;
//! [`Pool::sweep`] closes those that have expired or that the server has closed.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Either;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::unconstrained;

use super::super::IDLE_AGE_MAX;
use super::super::half_open::HalfOpen;
use super::dial::ServerStream;
use super::direct::{self, Exchanged, ForwardBody};

/// Limits of a response's head: number of headers, bytes.
const ANSWER_HEADERS_MAX: usize = 1024;
const ANSWER_HEAD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// How often idle connections are checked. It is also the shortest timer of a busy worker: tokio makes a system call for
/// every timer that is set to expire before all others.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// A bare connection to the server. Boxed, because it is moved for every request.
pub(super) type ServerSocket = Box<HalfOpen<ServerStream>>;
type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send + Sync>>;

/// A connection to the server.
pub(super) struct ServerConnection {
    link: Link,
    /// Whether it has served a request: then the server may have closed it in the meantime.
    is_reused: bool,
    idle_since: Instant,
}

/// The client that reads and writes.
enum Link {
    /// Nobody yet, or [`direct`].
    Bare(ServerSocket),
    /// Hyper.
    Driven(DrivenLink),
}

/// A connection of hyper's.
struct DrivenLink {
    requests: SendRequest<ForwardBody>,
    /// Reads and writes; ends when the connection is closed.
    driver: Driver,
}

/// A request without an answer.
pub(super) enum NotSent {
    /// The connection was closed before any byte of the request was written to it, as a server closes an idle one.
    Unused(Box<Request<ForwardBody>>),
    /// The server may have received the request.
    Failed(hyper::Error),
}

impl DrivenLink {
    /// Leaves a connection to hyper.
    async fn begin(socket: ServerSocket) -> hyper::Result<Self> {
        let (requests, driver) = http1::Builder::new()
            // A server that responds has processed the request, even if the response is too large for us: it must not
            // be retried.
            .max_headers(ANSWER_HEADERS_MAX)
            .max_buf_size(ANSWER_HEAD_BYTES_MAX)
            .handshake(socket)
            .await?;
        Ok(Self { requests, driver: Box::pin(driver) })
    }

    /// Sends a request and waits for the head of its answer. `is_reused`: the connection has served another one.
    async fn send(
        mut self,
        request: Request<ForwardBody>,
        is_reused: bool,
        pool: &Arc<Pool>,
    ) -> Result<Response<ServerBody>, NotSent> {
        let is_streamed = matches!(request.body(), Either::Right(body) if !body.is_end_stream());
        // Only the driver makes an answer ready, and is polled right before it: so the answer needs no waker. Without
        // the limit of tokio's budget, which would count on one.
        let mut answer = pin!(unconstrained(self.requests.try_send_request(request)));
        let answered = poll_fn(|cx| {
            let driven = self.driver.as_mut().poll(cx);
            match (answer.as_mut().poll(&mut Context::from_waker(Waker::noop())), driven) {
                (Poll::Ready(answered), driven) => Poll::Ready(Some((answered, driven.is_ready()))),
                (Poll::Pending, Poll::Ready(_)) => Poll::Ready(None),
                (Poll::Pending, Poll::Pending) => Poll::Pending,
            }
        });
        let (answered, link) = match answered.await {
            Some((answered, is_closed)) => (answered, (!is_closed).then_some(self)),
            None => {
                // Returns a request that was not begun.
                drop(self);
                (answer.await, None)
            }
        };
        match answered {
            Ok(answer) => Ok(answer.map(|incoming| ServerBody::new(incoming, link, is_streamed, pool))),
            Err(mut error) => Err(match error.take_message().filter(|_| is_reused) {
                Some(request) => NotSent::Unused(Box::new(request)),
                None => NotSent::Failed(error.into_error()),
            }),
        }
    }

    /// Advances the connection without being woken for it; returns whether it is still open.
    fn is_open(&mut self) -> bool {
        self.driver.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }
}

impl ServerConnection {
    /// Returns a connection that was just opened.
    pub(super) fn new(socket: ServerSocket) -> Self {
        Self::of(Link::Bare(socket))
    }

    fn of(link: Link) -> Self {
        Self { link, is_reused: false, idle_since: Instant::now() }
    }

    /// Sends a request and waits for the head of its answer. The body brings the connection back to the pool.
    pub(super) async fn send(
        self,
        mut request: Request<ForwardBody>,
        pool: &Arc<Pool>,
    ) -> Result<Response<ServerBody>, NotSent> {
        let mut socket = match self.link {
            Link::Driven(link) => return link.send(request, self.is_reused, pool).await,
            Link::Bare(socket) => socket,
        };
        let mut is_reused = self.is_reused;
        // Without the limit of tokio's budget, which would make a closed connection look open.
        if is_reused && unconstrained(poll_fn(|cx| Poll::Ready(direct::is_over(&mut *socket, cx)))).await {
            return Err(NotSent::Unused(Box::new(request)));
        }
        if let Some(body) = direct::prepare(&mut request) {
            match direct::exchange(&mut *socket, &request, body).await {
                Exchanged::Answered(answer) => {
                    if !socket.is_broken() {
                        pool.keep(Self::new(socket));
                    }
                    return Ok(answer.map(ServerBody::whole));
                }
                // A request that was begun is never sent again.
                Exchanged::Begun(begun) => {
                    socket.go_on(begun);
                    is_reused = false;
                }
            }
        }
        Box::pin(async move {
            let link = DrivenLink::begin(socket).await.map_err(NotSent::Failed)?;
            link.send(request, is_reused, pool).await
        })
        .await
    }

    /// Returns whether an idle connection is still open.
    fn is_open(&mut self) -> bool {
        match &mut self.link {
            Link::Bare(socket) => !direct::is_over(&mut **socket, &mut Context::from_waker(Waker::noop())),
            Link::Driven(link) => link.is_open(),
        }
    }
}

/// The idle connections, and the requests that wait for one.
pub(super) struct Pool {
    idle_max: usize,
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    /// The last one was used last.
    idle: Vec<ServerConnection>,
    waiting: VecDeque<oneshot::Sender<ServerConnection>>,
    is_swept: bool,
}

impl Pool {
    pub(super) fn new(idle_max: usize) -> Arc<Self> {
        Arc::new(Self { idle_max, state: Mutex::default() })
    }

    /// Takes the connection that was used last, if there is one of those that suit this request: a write needs no hyper,
    /// and any other request does. The server is least likely to have closed that one.
    pub(super) fn take(&self, request: &Request<ForwardBody>) -> Option<ServerConnection> {
        let is_suited = |connection: &ServerConnection| {
            matches!(connection.link, Link::Bare(_)) == matches!(request.body(), Either::Left(_))
        };
        let mut state = self.state();
        let suited = state.idle.iter().rposition(is_suited).or(state.idle.len().checked_sub(1))?;
        let connection = state.idle.remove(suited);
        drop(state);
        (connection.idle_since.elapsed() < IDLE_AGE_MAX).then_some(connection)
    }

    /// Waits for the next connection that another request no longer needs.
    pub(super) fn wait(&self) -> oneshot::Receiver<ServerConnection> {
        let (offer, offered) = oneshot::channel();
        let mut state = self.state();
        // Those whose own connection was opened, or failed, no longer wait.
        state.waiting.retain(|waiting| !waiting.is_closed());
        state.waiting.push_back(offer);
        offered
    }

    /// Takes back a connection whose answer was read.
    fn release(self: &Arc<Self>, mut link: DrivenLink) {
        if !link.is_open() {
            return;
        }
        match link.requests.is_ready() {
            true => self.keep(ServerConnection::of(Link::Driven(link))),
            // The server answered early: the rest of the request is still sent, so that its client gets to read the answer.
            false => self.drive(link),
        }
    }

    /// Drives a connection in a task of its own until it is ready for another request.
    fn drive(self: &Arc<Self>, mut link: DrivenLink) {
        let pool = self.clone();
        spawn(async move {
            let is_done = poll_fn(|cx| match link.driver.as_mut().poll(cx) {
                Poll::Ready(_) => Poll::Ready(false),
                Poll::Pending if link.requests.is_ready() => Poll::Ready(true),
                Poll::Pending => Poll::Pending,
            });
            if is_done.await {
                pool.keep(ServerConnection::of(Link::Driven(link)));
            }
        });
    }

    /// Keeps a connection that is ready for a request, or gives it to one that waits.
    pub(super) fn keep(self: &Arc<Self>, mut connection: ServerConnection) {
        connection.is_reused = true;
        connection.idle_since = Instant::now();
        let mut state = self.state();
        while let Some(waiting) = state.waiting.pop_front() {
            match waiting.send(connection) {
                Ok(()) => return,
                Err(unwanted) => connection = unwanted,
            }
        }
        if self.idle_max == 0 {
            return;
        }
        if state.idle.len() >= self.idle_max {
            // The one that was used longest ago: the server is likeliest to close that one.
            state.idle.remove(0);
        }
        state.idle.push(connection);
        if !std::mem::replace(&mut state.is_swept, true) {
            let pool = Arc::downgrade(self);
            drop(state);
            spawn(Self::sweep_until_empty(pool));
        }
    }

    async fn sweep_until_empty(pool: Weak<Self>) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            if !pool.upgrade().is_some_and(|pool| pool.sweep()) {
                return;
            }
        }
    }

    /// Closes the idle connections that have expired or that the server has closed; returns whether any is left.
    fn sweep(&self) -> bool {
        let mut state = self.state();
        state.idle.retain_mut(|connection| connection.idle_since.elapsed() < IDLE_AGE_MAX && connection.is_open());
        state.is_swept = !state.idle.is_empty();
        state.is_swept
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a task, unless the runtime has ended: then nobody needs it.
pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(task);
    }
}

/// The body of an answer, which drives its connection.
pub(crate) struct ServerBody(BodyContent);

enum BodyContent {
    /// All of it; empty once it was taken.
    Whole(Bytes),
    Streamed(StreamedContent),
}

struct StreamedContent {
    incoming: Incoming,
    link: Option<DrivenLink>,
    pool: Arc<Pool>,
}

impl ServerBody {
    fn whole(bytes: Bytes) -> Self {
        Self(BodyContent::Whole(bytes))
    }

    /// `is_streamed`: the body of the request came from its client piece by piece, and may not have been sent whole.
    fn new(incoming: Incoming, link: Option<DrivenLink>, is_streamed: bool, pool: &Arc<Pool>) -> Self {
        let mut content = StreamedContent { incoming, link, pool: pool.clone() };
        if content.incoming.is_end_stream() {
            content.finish();
        } else if is_streamed && let Some(link) = content.link.take() {
            // A client that sends all of its body before it reads an answer waits for the upload, and this body is not
            // polled meanwhile.
            pool.drive(link);
        }
        Self(BodyContent::Streamed(content))
    }
}

impl StreamedContent {
    /// Gives the connection back: the answer was read to its end.
    fn finish(&mut self) {
        if let Some(link) = self.link.take() {
            self.pool.release(link);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // As for the head: only the driver makes a frame ready.
        let mut unwoken = Context::from_waker(Waker::noop());
        let mut frame = match self.link {
            Some(_) => Pin::new(&mut self.incoming).poll_frame(&mut unwoken),
            None => Pin::new(&mut self.incoming).poll_frame(cx),
        };
        if let (Poll::Pending, Some(link)) = (&frame, &mut self.link) {
            if link.driver.as_mut().poll(cx).is_ready() {
                self.link = None;
            }
            frame = Pin::new(&mut self.incoming).poll_frame(&mut unwoken);
        }
        if matches!(frame, Poll::Ready(None)) {
            self.finish();
        }
        frame
    }
}

impl Body for ServerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            BodyContent::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            BodyContent::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            BodyContent::Streamed(content) => content.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            BodyContent::Whole(bytes) => bytes.is_empty(),
            BodyContent::Streamed(content) => content.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            BodyContent::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            BodyContent::Streamed(content) => content.incoming.size_hint(),
        }
    }
}

impl Drop for StreamedContent {
    fn drop(&mut self) {
        // An answer that was not read to its end closes its connection.
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }
}
