//! A server whose every answer a test chooses: what storage and networks do on a bad day.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opik_offline::depot::{Depot, DepotSettings, ObjectService, open};

use crate::support::depots::{Variables, settings};

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) method: String,
    pub(crate) path: String,
    /// All lines of the head, in lower case names.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Arrived {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// The response to a request.
#[derive(Clone, Debug)]
pub(crate) enum Then {
    /// A whole answer: status, headers (each with its line end), body.
    Answer(u16, String, Vec<u8>),
    /// The connection is closed without an answer.
    Close,
    /// The head of an answer, half of its body, and the end.
    Half(Vec<u8>),
    /// No answer.
    Silence,
}

impl Then {
    pub(crate) fn status(status: u16, body: &str) -> Self {
        Self::Answer(status, String::new(), body.as_bytes().to_vec())
    }

    /// An answer that means: written, as this version.
    pub(crate) fn written(e_tag: &str) -> Self {
        Self::Answer(200, format!("etag: \"{e_tag}\"\r\n"), Vec::new())
    }

    pub(crate) fn refusal(status: u16, code: &str) -> Self {
        Self::status(status, &format!("<Error><Code>{code}</Code><Message>Not today.</Message></Error>"))
    }
}

/// The server. It ends with the test's process.
pub(crate) struct Scripted {
    port: u16,
    arrived: Arc<Mutex<Vec<Arrived>>>,
}

impl Scripted {
    /// Answers every request as `answer` says, which also gets how many came before.
    pub(crate) fn start(answer: impl Fn(&Arrived, usize) -> Then + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (arrived, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let all = Arc::clone(&arrived);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (all, answer) = (Arc::clone(&all), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &all, answer.as_ref()));
            }
        });
        Self { port, arrived }
    }

    /// Answers with these in turn, the last one again and again.
    pub(crate) fn with(answers: Vec<Then>) -> Self {
        Self::start(move |_, before| answers[before.min(answers.len() - 1)].clone())
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns what arrived until now.
    pub(crate) fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().unwrap().clone()
    }

    /// Returns an S3 depot there, with keys.
    pub(crate) fn s3(&self) -> Arc<dyn Depot> {
        open(&self.s3_settings()).unwrap()
    }

    pub(crate) fn s3_settings(&self) -> DepotSettings {
        let url = self.url();
        let keys = [("AWS_ENDPOINT_URL", url.as_str()), ("AWS_ACCESS_KEY_ID", "me"), ("AWS_SECRET_ACCESS_KEY", SECRET)];
        let settings = settings(ObjectService::S3, "prod", variables(&keys));
        DepotSettings { timeout: Duration::from_secs(2), ..settings }
    }
}

/// A secret that no error may contain.
pub(crate) const SECRET: &str = "canary-of-a-secret";

pub(crate) fn variables(pairs: &[(&str, &str)]) -> Variables {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn serve(stream: TcpStream, all: &Mutex<Vec<Arrived>>, answer: &(dyn Fn(&Arrived, usize) -> Then + Send + Sync)) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(request) = read(&mut reader) {
        let before = {
            let mut all = all.lock().unwrap();
            all.push(request.clone());
            all.len() - 1
        };
        let is_head = request.method == "HEAD";
        match answer(&request, before) {
            Then::Answer(status, headers, body) => {
                let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
                let body = if is_head { &[][..] } else { &body };
                if stream.write_all(&[head.as_bytes(), body].concat()).is_err() {
                    return;
                }
            }
            Then::Half(body) => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\netag: \"v\"\r\nlast-modified: Mon, 30 Nov 2026 00:00:00 GMT\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(&[head.as_bytes(), &body[..body.len() / 2]].concat());
                return;
            }
            Then::Close => return,
            Then::Silence => std::thread::sleep(Duration::from_secs(600)),
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Arrived> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if line == "\r\n" {
            break;
        }
        head.push_str(&line.replace("\r\n", "\n"));
    }
    let mut first = head.lines().next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let mut arrived = Arrived { method, path, head, body: Vec::new() };
    let length: usize = arrived.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    arrived.body = vec![0; length];
    reader.read_exact(&mut arrived.body).ok()?;
    Some(arrived)
}
