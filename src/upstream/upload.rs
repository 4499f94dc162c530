//! The attachment upload flow against either kind of server: its own storage, or an object store with presigned URLs.
//!
//! What each answer means is decided by [`crate::protocol::attachment`]; here it is done. The bytes are read as they are
//! sent, from a reader that the caller gives for each range, so no file is ever in memory.
//!
//! A key goes to the configured server's own origin only, never to an object store: a presigned URL is all that it asks
//! for. Connections, proxy and TLS settings are those of [`Upstream`].

use std::io::Read;
use std::ops::Range;
use std::time::Duration;

use ureq::SendBody;

use super::{AGENT_HEADER, Upstream, expecting, heard, with_lane};
use crate::message::{HeaderSet, Lane};
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::attachment::{
    COMPLETE_PATH, PartVerdict, START_PATH, Subject, Way, completed, is_same_origin, part_verdict, parts_of, way,
};
use crate::protocol::recognise::Endpoint;

/// Tries of one part before the upload starts over (protocol dossier, section c: the SDK's own number).
const PART_TRIES_MAX: u32 = 3;
/// The pause after a failed try of a part, times the number of tries so far.
const PART_PAUSE: Duration = Duration::from_millis(300);
/// A connection slower than so many bytes a second is given up.
const RATE_MIN: u64 = 64 * 1024;

/// Bytes of an answer to upload-start: 10,000 presigned URLs of a kilobyte and more.
const START_ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A stored file on its way, as whoever keeps it gives it out.
pub struct File<'a> {
    /// What it is called and what it belongs to.
    pub subject: &'a Subject,
    /// The client's headers, without those of the lane.
    pub headers: &'a HeaderSet,
    /// Its size.
    pub bytes: u64,
    /// How long an answer may take, beside the time for the bytes.
    pub answer_timeout: Duration,
    /// Opens a range of it. A read fails when it may not be sent any more.
    pub open: &'a dyn Fn(Range<u64>) -> Box<dyn Read + 'a>,
    /// Says whether the next request may be sent.
    pub may_send: &'a dyn Fn() -> bool,
}

impl Upstream {
    /// Uploads a file, and returns the answer that decides about it: of the first step that failed, or of the last.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] when a step got no whole answer, and for whatever an object store does: that is no word of the
    /// server's about the file, so the upload starts over later.
    pub fn upload(&self, lane: &Lane, file: &File<'_>) -> Result<Answer, SendFailure> {
        let (part_bytes, parts) = parts_of(file.bytes);
        let start = file.subject.start(&self.base_url, parts);
        let answer = self.step(lane, file, Endpoint::UploadStart, &start, START_ANSWER_BYTES_MAX)?;
        match way(answer, parts) {
            Err(answer) => Ok(answer),
            Ok(Way::Local { url }) => self.put_whole(lane, file, &url),
            Ok(Way::Parts { upload_id, urls }) => {
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

    /// Sends one of the steps that are JSON.
    fn step(
        &self,
        lane: &Lane,
        file: &File<'_>,
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

    /// Sends all bytes to the server itself.
    fn put_whole(&self, lane: &Lane, file: &File<'_>, url: &str) -> Result<Answer, SendFailure> {
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
        // As for every other body, see `Upstream::finish`.
        self.allowed(file)?;
        match put(expecting(head)) {
            Ok(Answer { status: 417, .. }) => first,
            second => second,
        }
    }

    /// Sends a part to an object store, which gets nothing but the bytes, and returns its ETag.
    fn put_part(&self, file: &File<'_>, range: Range<u64>, url: &str) -> Result<String, SendFailure> {
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
                // A page may have an ETag, too.
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

    fn allowed(&self, file: &File<'_>) -> Result<(), SendFailure> {
        if (file.may_send)() {
            return Ok(());
        }
        Err(SendFailure::Broken { url: self.base_url.clone(), reason: "the upload was stopped".to_owned() })
    }

    /// Adds what the client would send to the server itself with any body.
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

fn timeout_for(file: &File<'_>, bytes: u64) -> Duration {
    file.answer_timeout + Duration::from_secs(bytes / RATE_MIN)
}

/// Returns a presigned URL as it may be shown: its query is a key.
fn place(url: &str) -> String {
    match url.parse::<http::Uri>() {
        Ok(uri) => format!("{}://{}", uri.scheme_str().unwrap_or("http"), uri.host().unwrap_or("?")),
        Err(_) => "the object store".to_owned(),
    }
}
