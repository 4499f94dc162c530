//! Keep-alive connections to the server.
//!
//! The request that uses a connection drives it: reading and writing happen when that request's task is polled, and the
//! connection is moved to the body of the answer and then back to the pool. So a request costs no second task, no wake-up
//! of one, and no timer. An idle connection is driven by nobody; [`Pool::sweep`] closes those that have expired or that
//! the server has closed.

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
use hyper::client::conn::http1::SendRequest;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::unconstrained;

use super::super::IDLE_AGE_MAX;
use super::ForwardBody;

/// How often idle connections are checked. It is also the shortest timer of a busy worker: tokio makes a system call for
/// every timer that is set to expire before all others.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send + Sync>>;

/// A connection to the server.
pub(super) struct ServerConnection {
    requests: SendRequest<ForwardBody>,
    /// Reads and writes; ends when the connection is closed.
    driver: Driver,
    /// Whether it has served a request: then the server may have closed it in the meantime.
    is_reused: bool,
    idle_since: Instant,
}

/// A request without an answer.
pub(super) enum NotSent {
    /// The connection was closed before any byte of the request was written to it, as a server closes an idle one.
    Unused(Box<Request<ForwardBody>>),
    /// The server may have received the request.
    Failed(hyper::Error),
}

impl ServerConnection {
    pub(super) fn new(
        requests: SendRequest<ForwardBody>,
        driver: impl Future<Output = hyper::Result<()>> + Send + Sync + 'static,
    ) -> Self {
        let driver = Box::pin(driver);
        Self { requests, driver, is_reused: false, idle_since: Instant::now() }
    }

    /// Sends a request and waits for the head of its answer. The body brings the connection back to the pool.
    pub(super) async fn send(
        mut self,
        request: Request<ForwardBody>,
        pool: &Arc<Pool>,
    ) -> Result<Response<ServerBody>, NotSent> {
        let is_reused = self.is_reused;
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
        let (answered, connection) = match answered.await {
            Some((answered, is_closed)) => (answered, (!is_closed).then_some(self)),
            None => {
                // Returns a request that was not begun.
                drop(self);
                (answer.await, None)
            }
        };
        match answered {
            Ok(answer) => Ok(answer.map(|incoming| ServerBody::new(incoming, connection, is_streamed, pool))),
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

    /// Takes the connection that was used last. The server is least likely to have closed that one.
    pub(super) fn take(&self) -> Option<ServerConnection> {
        let connection = self.state().idle.pop()?;
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
    fn release(self: &Arc<Self>, mut connection: ServerConnection) {
        if !connection.is_open() {
            return;
        }
        match connection.requests.is_ready() {
            true => self.keep(connection),
            // The server answered early: the rest of the request is still sent, so that its client gets to read the answer.
            false => self.drive(connection),
        }
    }

    /// Drives a connection in a task of its own until it is ready for another request.
    fn drive(self: &Arc<Self>, mut connection: ServerConnection) {
        let pool = self.clone();
        spawn(async move {
            let is_done = poll_fn(|cx| match connection.driver.as_mut().poll(cx) {
                Poll::Ready(_) => Poll::Ready(false),
                Poll::Pending if connection.requests.is_ready() => Poll::Ready(true),
                Poll::Pending => Poll::Pending,
            });
            if is_done.await {
                pool.keep(connection);
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
pub(crate) struct ServerBody {
    incoming: Incoming,
    connection: Option<ServerConnection>,
    pool: Arc<Pool>,
}

impl ServerBody {
    /// `is_streamed`: the body of the request came from its client piece by piece, and may not have been sent whole.
    fn new(incoming: Incoming, connection: Option<ServerConnection>, is_streamed: bool, pool: &Arc<Pool>) -> Self {
        let mut body = Self { incoming, connection, pool: pool.clone() };
        if body.incoming.is_end_stream() {
            body.finish();
        } else if is_streamed && let Some(connection) = body.connection.take() {
            // A client that sends all of its body before it reads an answer waits for the upload, and this body is not
            // polled meanwhile.
            pool.drive(connection);
        }
        body
    }

    /// Gives the connection back: the answer was read to its end.
    fn finish(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.release(connection);
        }
    }
}

impl Body for ServerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        // As for the head: only the driver makes a frame ready.
        let mut unwoken = Context::from_waker(Waker::noop());
        let mut frame = match this.connection {
            Some(_) => Pin::new(&mut this.incoming).poll_frame(&mut unwoken),
            None => Pin::new(&mut this.incoming).poll_frame(cx),
        };
        if let (Poll::Pending, Some(connection)) = (&frame, &mut this.connection) {
            if connection.driver.as_mut().poll(cx).is_ready() {
                this.connection = None;
            }
            frame = Pin::new(&mut this.incoming).poll_frame(&mut unwoken);
        }
        if matches!(frame, Poll::Ready(None)) {
            this.finish();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for ServerBody {
    fn drop(&mut self) {
        // An answer that was not read to its end closes its connection.
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }
}
