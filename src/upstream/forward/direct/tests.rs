//! Every answer is the same as through hyper: for any answer of a server, in any pieces.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use http_body_util::BodyExt as _;
use proptest::prelude::*;

use super::super::super::UpstreamSettings;
use super::super::Forwarder;
use super::*;

/// What a client sees of an answer.
#[derive(Debug, PartialEq, Eq)]
struct SeenAnswer {
    status: u16,
    /// If it is not the usual one.
    reason: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
    body: Result<Bytes, String>,
}

/// What it sees of an exchange.
type SeenExchange = Result<SeenAnswer, String>;

/// Answers, and whether the server closes the connection after each.
fn answers() -> Vec<(Vec<u8>, bool)> {
    let many = "X-Many: 1\r\n".repeat(1000);
    let too_many = "X-Many: 1\r\n".repeat(1100);
    let long = "x".repeat(20_000);
    let open = [
        "HTTP/1.1 204 No Content\r\nX-Sink: 1\r\n\r\n".to_owned(),
        "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n".to_owned(),
        "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nX-Empty:\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive\r\n\r\nhello".to_owned(),
        "HTTP/1.1 201 Created\r\ncontent-length: 0\r\nSet-Cookie: a\r\nLocation: http://a/b\r\nset-cookie: b\r\n\r\n"
            .to_owned(),
        "HTTP/1.1 200 Fine\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 204\r\n\r\n".to_owned(),
        "HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned(),
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 2\r\n\r\nok"),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n{long}"),
        "HTTP/1.1 429 Too Many Requests\r\nRateLimit-Reset: 5\r\nContent-Length: 2\r\n\r\nno".to_owned(),
    ];
    let closed = [
        String::new(),
        "HTTP/1.1 2".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, close\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\n\r\nuntil the end".to_owned(),
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        "HTTP/2 200 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 700 Odd\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: a\r\n b\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok".to_owned(),
        "what?".to_owned(),
        format!("HTTP/1.1 200 OK\r\n{too_many}Content-Length: 2\r\n\r\nok"),
    ];
    let latin = (b"HTTP/1.1 200 OK\r\nX: \xe9\r\nContent-Length: 2\r\n\r\nok".to_vec(), false);
    let open = open.map(|answer| (answer.into_bytes(), false));
    let closed = closed.map(|answer| (answer.into_bytes(), true));
    open.into_iter().chain(closed).chain([latin]).collect()
}

/// Reads one request.
fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            let length: usize = length.and_then(|length| length.parse().ok()).expect("a length");
            if request.len() >= head.len() + 4 + length {
                return Some(request);
            }
        }
        match stream.read(&mut piece).ok()? {
            0 => return None,
            read => request.extend_from_slice(&piece[..read]),
        }
    }
}

/// Sends two requests to a server that answers each in these pieces; returns what their client saw of them, what the
/// server got, and how many connections it took.
fn ask_twice(answer: &[u8], cuts: &[usize], closes: bool, is_direct: bool) -> (Vec<SeenExchange>, Vec<Vec<u8>>, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = mpsc::channel::<()>();
    let (answer, cuts) = (answer.to_vec(), cuts.to_vec());
    let server = thread::spawn(move || {
        let (mut got, mut connections) = (Vec::new(), 0);
        let serve = |mut stream: TcpStream| {
            let mut got = Vec::new();
            while let Some(request) = read_request(&mut stream) {
                got.push(request);
                let mut rest = &answer[..];
                for cut in &cuts {
                    let (piece, later) = rest.split_at((*cut).min(rest.len()));
                    if stream.write_all(piece).is_err() {
                        return got;
                    }
                    thread::yield_now();
                    rest = later;
                }
                if stream.write_all(rest).is_err() || closes {
                    return got;
                }
            }
            got
        };
        for stream in listener.incoming() {
            if stopped.try_recv().is_ok() {
                break;
            }
            connections += 1;
            let stream = stream.expect("a connection");
            stream.set_nodelay(true).expect("a socket option");
            got.extend(serve(stream));
        }
        (got, connections)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let seen = runtime.block_on(async {
        let settings = UpstreamSettings::plain(format!("http://{address}/api"), Duration::from_secs(20));
        let forwarder = Forwarder::several(&settings, 1, 4).remove(0);
        let mut seen = Vec::new();
        for _ in 0..2 {
            seen.push(ask(&forwarder, is_direct).await);
            if closes {
                // Whether the next request already sees the end would be chance.
                break;
            }
        }
        seen
    });
    drop(runtime);
    stop.send(()).expect("the server runs");
    drop(TcpStream::connect(address));
    let (got, connections) = server.join().expect("the server ends");
    // The port differs.
    let got = got.iter().map(|got| String::from_utf8_lossy(got).replace(&address.to_string(), "server").into_bytes());
    let of_all = |text: String| text.replace(&address.to_string(), "server");
    let seen = seen.into_iter().map(|seen| seen.map_err(of_all)).collect();
    (seen, got.collect(), connections)
}

async fn ask(forwarder: &Forwarder, is_direct: bool) -> SeenExchange {
    let mut request = Request::post(format!("{}/v1/private/traces?a=b", forwarder.base_url()))
        .header("Content-Type", "application/json")
        .header("X-Twice", "1")
        .header("host", "server")
        .header("x-twice", "2");
    if !is_direct {
        // Left to hyper.
        request = request.header("Content-Length", 9000);
    }
    let body = Full::new(Bytes::from("x".repeat(9000)));
    let request = request.body(ForwardBody::Left(body)).expect("a request");
    let answer = forwarder.send(request).await.map_err(|failure| failure.to_string())?;
    let (head, body) = answer.into_parts();
    let reason = head.extensions.get::<hyper::ext::ReasonPhrase>().map(|reason| reason.as_bytes().to_vec());
    let headers = head.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    let body = body.collect().await.map(|body| body.to_bytes()).map_err(|error| error.to_string());
    Ok(SeenAnswer { status: head.status.as_u16(), reason, headers, body })
}

fn check(answer: &[u8], cuts: &[usize], closes: bool) {
    let (direct, got, connections) = ask_twice(answer, cuts, closes, true);
    let (through_hyper, got_of_hyper, connections_of_hyper) = ask_twice(answer, cuts, closes, false);
    let name = String::from_utf8_lossy(&answer[..answer.len().min(80)]).into_owned();
    assert_eq!(direct, through_hyper, "{name:?} in pieces {cuts:?}");
    assert_eq!(got, got_of_hyper, "{name:?}: the server got something else");
    assert_eq!(connections, connections_of_hyper, "{name:?}: another number of connections");
}

#[test]
fn every_answer_is_the_same_as_through_hyper() {
    for (answer, closes) in answers() {
        check(&answer, &[], closes);
        check(&answer, &[1, 12, 3], closes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn answers_in_any_pieces_are_the_same_as_through_hyper(
        at in 0..answers().len(),
        cuts in proptest::collection::vec(0..60_usize, 0..6),
    ) {
        let (answer, closes) = answers().swap_remove(at);
        check(&answer, &cuts, closes);
    }
}

#[test]
fn usual_answers_need_no_hyper() {
    for answer in [
        "HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok",
    ] {
        for end in 1..answer.len() {
            let mut read = BytesMut::from(&answer.as_bytes()[..end]);
            assert!(matches!(parse(&mut read), Parsed::Partial), "{answer:?} up to {end}");
        }
        assert!(matches!(parse(&mut BytesMut::from(answer)), Parsed::Answer(_)), "{answer:?}");
        let mut more = BytesMut::from(answer);
        more.extend_from_slice(b"H");
        assert!(matches!(parse(&mut more), Parsed::Unusual), "{answer:?} and something that nobody asked for");
    }
}
