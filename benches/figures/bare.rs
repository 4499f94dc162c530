//! The least that a proxy of hyper's can do: one current-thread runtime a core, each with its own listener
//! (`SO_REUSEPORT`) and its own connections to the server; nothing is shared between threads.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};

use crate::process::{Process, end_with_parent};

/// The argument that makes this program a bare proxy.
pub(crate) const ARGUMENT: &str = "--serve-bare-proxy";

/// Whether a body is passed on as it comes, or once it is whole.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passing {
    Streamed,
    Collected,
}

type Outgoing = Either<Incoming, Full<Bytes>>;
/// The idle connections of one thread to the server.
type Idle = Rc<RefCell<Vec<SendRequest<Outgoing>>>>;

/// Starts a bare proxy in front of the sink.
pub(crate) fn start(home: &Path, sink: SocketAddr, passing: Passing) -> Process {
    let passing = if passing == Passing::Streamed { "streamed" } else { "collected" };
    Process::start_own(home, ARGUMENT, &[&sink.to_string(), passing])
}

/// Serves at this address until the process is killed.
pub(crate) fn serve(mut args: impl Iterator<Item = String>) {
    end_with_parent();
    let mut address = || args.next().and_then(|address| address.parse().ok()).expect("an address");
    let (address, sink): (SocketAddr, SocketAddr) = (address(), address());
    let passing = if args.next().as_deref() == Some("streamed") { Passing::Streamed } else { Passing::Collected };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                tokio::task::LocalSet::new().block_on(&runtime, accept(address, sink, passing));
            });
        }
    });
}

async fn accept(address: SocketAddr, sink: SocketAddr, passing: Passing) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseport(true).expect("a socket option");
    socket.bind(address).expect("a free port");
    let listener = socket.listen(1024).expect("a free port");
    let idle = Idle::default();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("a socket option");
        let idle = idle.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(|request| pass(request, sink, passing, &idle));
            // A client that is gone ends its connection.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn pass(
    request: Request<Incoming>,
    sink: SocketAddr,
    passing: Passing,
    idle: &Idle,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = match passing {
        Passing::Streamed => Either::Left(body),
        Passing::Collected => Either::Right(Full::new(body.collect().await.expect("a whole body").to_bytes())),
    };
    let kept = idle.borrow_mut().pop();
    let mut sender = match kept {
        Some(sender) => sender,
        None => connect(sink).await,
    };
    sender.ready().await.expect("the sink keeps connections");
    let answer = sender.send_request(Request::from_parts(head, body)).await.expect("the sink answers");
    let (head, body) = answer.into_parts();
    let body = body.collect().await.expect("a whole answer").to_bytes();
    idle.borrow_mut().push(sender);
    Ok(Response::from_parts(head, Full::new(body)))
}

async fn connect(sink: SocketAddr) -> SendRequest<Outgoing> {
    let stream = TcpStream::connect(sink).await.expect("the sink listens");
    stream.set_nodelay(true).expect("a socket option");
    let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("a new connection");
    tokio::task::spawn_local(connection);
    sender
}
