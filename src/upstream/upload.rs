//! The attachment upload flow for both kinds of server: with its own storage, or with an object store and presigned
//! URLs.
//!
//! [`crate::protocol::attachment`] interprets the responses; this module does the I/O. The payload is read while it is
//! sent, from a reader that the caller opens for each range, so a file is never in memory as a whole.
//!
//! The key is sent only to the configured server's origin, never to an object store, which authenticates by the
//! presigned URL alone. Connections, proxy and TLS settings are those of [`Upstream`].

use std::io::Read;
use std::ops::Range;
use std::time::Duration;

use ureq::SendBody;

use super::{AGENT_HEADER, Upstream, expecting, heard, with_lane};
use crate::message::{HeaderSet, Lane};
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::attachment::{
    COMPLETE_PATH, PartVerdict, START_PATH, Subject, UploadRoute, completed, is_same_origin, part_verdict, parts_of,
    way,
};
use crate::protocol::recognise::Endpoint;

/// Attempts per part before the upload is restarted (protocol dossier, section c: the SDK's number).
const PART_TRIES_MAX: u32 = 3;
/// Backoff after a failed attempt, multiplied by the number of attempts so far.
const PART_PAUSE: Duration = Duration::from_millis(300);
/// Minimum throughput in bytes per second; a slower connection times out.
const RATE_MIN: u64 = 64 * 1024;

/// Limit of the response to upload-start, in bytes: 10,000 presigned URLs of a kilobyte and more.
const START_ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A stored file to upload.
pub struct UploadFile<'a> {
    /// Its name and entity.
    pub subject: &'a Subject,
    /// The client's headers, without those of the lane.
    pub headers: &'a HeaderSet,
    /// Its size.
    pub bytes: u64,
    /// Timeout of a response, in addition to the time for the payload.
    pub answer_timeout: Duration,
    /// Opens a range of it. Reading fails if the upload must stop.
    pub open: &'a dyn Fn(Range<u64>) -> Box<dyn Read + 'a>,
    /// Returns whether the next request may be sent.
    pub may_send: &'a dyn Fn() -> bool,
}

impl Upstream {
    /// Uploads a file and returns the decisive response: of the first failed step, or of the last one.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] if a step got no complete response, and for any failure of an object store: that is not the
    /// server's verdict on the file, so the upload is retried later.
    pub fn upload(&self, lane: &Lane, file: &UploadFile<'_>) -> Result<Answer, SendFailure> {
        let (part_bytes, parts) = parts_of(file.bytes);
        let start = file.subject.start(&self.base_url, parts);
        let answer = self.step(lane, file, Endpoint::UploadStart, &start, START_ANSWER_BYTES_MAX)?;
        match way(answer, parts) {
            Err(answer) => Ok(answer),
            Ok(UploadRoute::Local { url }) => self.put_whole(lane, file, &url),
            Ok(UploadRoute::Parts { upload_id, urls }) => {
                let mut e_tags = Vec::new();
                let starts = (0..parts).map(|part| part * part_bytes);
                for (start, url) in starts.zip(&urls) {
                    e_tags.push(self.put_part(file, start..file.bytes.min(start + part_bytes), url)?);
                }
                let complete = file.subject.complete(&upload_id, file.bytes, &e_tags);
                self.step(lane, file, Endpoint::Upload, &complete, Answer::TEXT_BYTES_MAX).map(completed)
            }
        }
    }

    /// Sends a JSON step.
    fn step(
        &self,
        lane: &Lane,
        file: &UploadFile<'_>,
        endpoint: Endpoint,
        body: &[u8],
        answer_bytes_max: usize,
    ) -> Result<Answer, SendFailure> {
        self.allowed(file)?;
        let path = if endpoint == Endpoint::UploadStart { START_PATH } else { COMPLETE_PATH };
        let request = http::Request::builder().method("POST").uri(format!("{}/{path}", self.base_url));
        let request = self.as_client(request, lane, file.headers).header("content-type", "application/json");
        self.finish(request, endpoint, body, file.answer_timeout, answer_bytes_max)
    }

    /// Sends the whole payload to the server.
    fn put_whole(&self, lane: &Lane, file: &UploadFile<'_>, url: &str) -> Result<Answer, SendFailure> {
        self.allowed(file)?;
        let mut request = http::Request::builder().method("PUT").uri(url).header("content-length", file.bytes);
        if is_same_origin(url, &self.base_url) {
            request = self.with_own_headers(self.as_client(request, lane, file.headers));
        }
        let request = request.header("content-type", "application/octet-stream");
        let timeout = timeout_for(file, file.bytes);
        let head = self.head(request, timeout)?;
        let put = |head| {
            let mut bytes = (file.open)(0..file.bytes);
            let request = http::Request::from_parts(head, SendBody::from_reader(&mut bytes));
            self.run(request, Endpoint::Upload, timeout, Answer::TEXT_BYTES_MAX)
        };
        let first = put(head.clone());
        if first.is_ok() || !heard::broke_off() {
            return first;
        }
        // As for any other body, see `Upstream::finish`.
        self.allowed(file)?;
        match put(expecting(head)) {
            Ok(Answer { status: 417, .. }) => first,
            second => second,
        }
    }

    /// Sends a part to an object store, without any of our headers, and returns its ETag.
    fn put_part(&self, file: &UploadFile<'_>, range: Range<u64>, url: &str) -> Result<String, SendFailure> {
        let bytes = range.end - range.start;
        let place = place(url);
        let mut tries = 0;
        loop {
            self.allowed(file)?;
            let timeout = timeout_for(file, bytes);
            let mut part = (file.open)(range.clone());
            let request = http::Request::builder()
                .method("PUT")
                .uri(url)
                .header("content-length", bytes)
                .body(SendBody::from_reader(&mut part));
            let result = request.map_err(ureq::Error::Http).and_then(|request| {
                let request = self.agent.configure_request(request).timeout_global(Some(timeout)).build();
                let answer = self.agent.run(request)?;
                let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
                // An HTML page may have an ETag too.
                let is_page =
                    header("content-type").is_some_and(|essence| essence.trim_start().starts_with("text/html"));
                let e_tag = header("etag").filter(|_| !is_page).map(str::to_owned);
                Ok((answer.status().as_u16(), e_tag))
            });
            let result = result.map_err(|error| self.failure(&place, timeout, error));
            tries += 1;
            let seen = match &result {
                Ok(answer) => Ok(answer.clone()),
                Err(failure) => Err(failure),
            };
            match part_verdict(seen) {
                PartVerdict::Taken { e_tag } => return Ok(e_tag),
                PartVerdict::Again(_) if tries < PART_TRIES_MAX => std::thread::sleep(PART_PAUSE * tries),
                PartVerdict::Again(reason) | PartVerdict::StartOver(reason) => {
                    return Err(SendFailure::Broken { url: place, reason });
                }
            }
        }
    }

    fn allowed(&self, file: &UploadFile<'_>) -> Result<(), SendFailure> {
        if (file.may_send)() {
            return Ok(());
        }
        Err(SendFailure::Broken { url: self.base_url.clone(), reason: "the upload was stopped".to_owned() })
    }

    /// Adds the headers that the client would send to the server with any body.
    fn as_client(
        &self,
        mut request: http::request::Builder,
        lane: &Lane,
        headers: &HeaderSet,
    ) -> http::request::Builder {
        for (name, value) in headers.iter() {
            if !["content-type", "content-encoding"].iter().any(|own| name.eq_ignore_ascii_case(own)) {
                request = request.header(name, value);
            }
        }
        if let Some(mark) = &self.agent_mark {
            request = request.header(AGENT_HEADER, mark);
        }
        with_lane(request, lane)
    }
}

fn timeout_for(file: &UploadFile<'_>, bytes: u64) -> Duration {
    file.answer_timeout + Duration::from_secs(bytes / RATE_MIN)
}

/// Returns a presigned URL without its query, which is a secret.
fn place(url: &str) -> String {
    match url.parse::<http::Uri>() {
        Ok(uri) => format!("{}://{}", uri.scheme_str().unwrap_or("http"), uri.host().unwrap_or("?")),
        Err(_) => "the object store".to_owned(),
    }
}
