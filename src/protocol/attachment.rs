//! The upload flow of attachments: its requests, and the meaning of each response for the whole upload.
//!
//! ```text
//! upload-start ─▶ 200 {upload_id, pre_sign_urls} ─┬─ "BEMinIO": PUT the bytes to the one URL ─▶ 204
//!                                                 └─ else: PUT each part to its URL ─▶ 200 + ETag, upload-complete ─▶ 204
//! ```
//!
//! Facts come from the protocol dossier, section c, and the OpenAPI file (`StartMultipartUploadRequest`,
//! `CompleteMultipartUploadRequest`, `uploadAttachment`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::answers::{Answer, SendFailure};
pub use super::operations::Step;
use super::recognise::Recognised;
use crate::message::{Effect, EntityKey, EntityKind, Touch};

/// Path that starts an upload, below the server's base.
pub const START_PATH: &str = "v1/private/attachment/upload-start";
/// Path of the payload of a local upload.
pub const UPLOAD_PATH: &str = "v1/private/attachment/upload";
/// Path that completes a multi-part upload.
pub const COMPLETE_PATH: &str = "v1/private/attachment/upload-complete";
/// The `upload_id` of a server that takes the payload itself, in one request.
pub const LOCAL_UPLOAD_ID: &str = "BEMinIO";

/// Minimum size of a part in bytes, as in the Python SDK.
pub const PART_BYTES_MIN: u64 = 5 * 1024 * 1024;
/// Maximum number of parts; larger files get larger parts.
pub const PARTS_MAX: u64 = 10_000;

/// Characters that are not encoded in a query's values.
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Entity and name of a file: the members that all steps of an upload share.
///
/// Kept as the client's texts, in their order, with known members validated; so an unknown member of a newer client
/// still reaches the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject(Vec<(String, String)>);

/// A client's upload-start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Entity and name of the file.
    pub subject: Subject,
    /// The base URL that the client uses, if it can be decoded.
    pub client_url: Option<String>,
    /// The number of parts that the client would send.
    pub parts: u64,
}

/// A client's upload-complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complete {
    /// Entity and name of the file.
    pub subject: Subject,
    /// The upload that it completes.
    pub upload_id: String,
    /// The size of the file according to the client.
    pub file_bytes: u64,
    /// Whether the parts are numbered 1, 2, 3 ..., each once.
    pub has_all_parts: bool,
}

impl Subject {
    /// Parses the query of the PUT, or returns the error.
    pub fn from_query(query: &str) -> Result<Self, String> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decoded(name)?, decoded(value)?))
        });
        Self(pairs.collect::<Result<_, String>>()?).checked("query param")
    }

    /// Parses the body of a stored message, which omits the members that depend on the server.
    pub fn from_body(content: &[u8]) -> Result<Self, String> {
        Self::of(&object(content)?)
    }

    /// Returns the query of the PUT.
    pub fn to_query(&self) -> String {
        let encoded = |text: &str| utf8_percent_encode(text, IN_QUERY).to_string();
        let pairs: Vec<String> =
            self.0.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        pairs.join("&")
    }

    /// Returns the body of the stored message: an upload-start without the members that depend on the server.
    pub fn to_body(&self) -> Vec<u8> {
        Value::Object(self.members()).to_string().into_bytes()
    }

    /// Returns an upload-start for the server at this base URL.
    pub fn start(&self, base_url: &str, parts: u64) -> Vec<u8> {
        let mut members = self.members();
        members.insert("num_of_file_parts".into(), parts.into());
        // The SDK sends it with a trailing slash.
        members.insert("path".into(), STANDARD.encode(format!("{base_url}/")).into());
        Value::Object(members).to_string().into_bytes()
    }

    /// Returns an upload-complete; the ETags are verbatim, in the order of their parts.
    pub fn complete(&self, upload_id: &str, file_bytes: u64, e_tags: &[String]) -> Vec<u8> {
        let mut members = self.members();
        let parts = e_tags.iter().enumerate().map(|(at, e_tag)| json!({ "e_tag": e_tag, "part_number": at + 1 }));
        members.insert("file_size".into(), file_bytes.into());
        members.insert("upload_id".into(), upload_id.into());
        members.insert("uploaded_file_parts".into(), parts.collect());
        Value::Object(members).to_string().into_bytes()
    }

    /// Returns the touches of an upload, for its order: it is delivered after the trace or span that it belongs to.
    ///
    /// An update of that entity, so that an upload which arrives before the create, like the SDK's, moves behind it.
    pub fn touches(&self) -> Vec<Touch> {
        let kind = if self.get("entity_type") == Some("span") { EntityKind::Span } else { EntityKind::Trace };
        vec![Touch { key: EntityKey::new(kind, self.entity().1), effect: Effect::Update }]
    }

    /// Returns the name of the file.
    pub fn file_name(&self) -> &str {
        self.get("file_name").unwrap_or_default()
    }

    /// Returns the MIME type, if known.
    pub fn mime_type(&self) -> Option<&str> {
        self.get("mime_type")
    }

    /// Returns the project, if there is one.
    pub fn project(&self) -> Option<&str> {
        self.get("project_name")
    }

    /// Returns kind and id of its entity: `trace` or `span`, and a UUID.
    pub fn entity(&self) -> (&str, &str) {
        (self.get("entity_type").unwrap_or_default(), self.get("entity_id").unwrap_or_default())
    }

    /// Returns whether both are the same file: a retry replaces the earlier upload.
    pub fn is_same_file(&self, other: &Self) -> bool {
        let id = |subject: &Self| Uuid::try_parse(subject.entity().1).ok();
        id(self) == id(other) && self.entity().0 == other.entity().0 && self.file_name() == other.file_name()
    }

    fn of(members: &Map<String, Value>) -> Result<Self, String> {
        const NOT_THE_FILES: [&str; 5] = ["path", "num_of_file_parts", "upload_id", "file_size", "uploaded_file_parts"];
        let mut texts = Vec::new();
        for (name, value) in members.iter().filter(|(name, _)| !NOT_THE_FILES.contains(&name.as_str())) {
            match value {
                Value::String(text) => texts.push((name.clone(), text.clone())),
                Value::Null => {}
                _ if KNOWN.contains(&name.as_str()) => return Err(format!("{name} must be a string")),
                other => texts.push((name.clone(), other.to_string())),
            }
        }
        Self(texts).checked("")
    }

    fn checked(self, what: &str) -> Result<Self, String> {
        let named = |name: &str| if what.is_empty() { name.to_owned() } else { format!("{what} {name}") };
        for name in ["file_name", "entity_type", "entity_id"] {
            if self.get(name).is_none_or(str::is_empty) {
                return Err(format!("{} must not be null or empty", named(name)));
            }
        }
        if self.0.iter().enumerate().any(|(at, (name, _))| self.0[..at].iter().any(|(other, _)| other == name)) {
            return Err(format!("{} is given twice", named("parameter")));
        }
        let (kind, id) = self.entity();
        if !matches!(kind, "trace" | "span") {
            return Err(format!("{} must be one of [trace, span]", named("entity_type")));
        }
        if Uuid::try_parse(id).is_err() {
            return Err(format!("{} is not a UUID", named("entity_id")));
        }
        if self.project().is_some_and(|project| project.trim().is_empty()) {
            return Err(format!("{} must not be blank", named("project_name")));
        }
        Ok(self)
    }

    fn members(&self) -> Map<String, Value> {
        self.0.iter().map(|(name, value)| (name.clone(), Value::String(value.clone()))).collect()
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Members with a type in the OpenAPI file.
const KNOWN: [&str; 5] = ["file_name", "entity_type", "entity_id", "mime_type", "project_name"];

impl Start {
    /// Parses an upload-start, or returns why the server would reject it.
    pub fn read(content: &[u8]) -> Result<Self, String> {
        let members = object(content)?;
        let subject = Subject::of(&members)?;
        let parts = members.get("num_of_file_parts").and_then(Value::as_i64);
        let parts = parts.ok_or("num_of_file_parts must not be null")?;
        let path = members.get("path").and_then(Value::as_str).filter(|path| !path.is_empty());
        let path = path.ok_or("path must not be null or empty")?;
        let client_url = STANDARD.decode(path).ok().and_then(|url| String::from_utf8(url).ok());
        Ok(Self { subject, client_url, parts: u64::try_from(parts).unwrap_or(0) })
    }
}

impl Complete {
    /// Parses an upload-complete, or returns why the server would reject it.
    pub fn read(content: &[u8]) -> Result<Self, String> {
        let members = object(content)?;
        let subject = Subject::of(&members)?;
        let upload_id = members.get("upload_id").and_then(Value::as_str).filter(|id| !id.is_empty());
        let upload_id = upload_id.ok_or("upload_id must not be null or empty")?.to_owned();
        let file_bytes = members.get("file_size").and_then(Value::as_u64).ok_or("file_size must not be null")?;
        let parts = members.get("uploaded_file_parts").and_then(Value::as_array);
        let parts = parts.ok_or("uploaded_file_parts must not be null")?;
        let mut numbers: Vec<u64> = parts.iter().filter_map(|part| part.get("part_number")?.as_u64()).collect();
        numbers.sort_unstable();
        let has_all_parts = numbers.len() == parts.len() && numbers.iter().copied().eq(1..=parts.len() as u64);
        Ok(Self { subject, upload_id, file_bytes, has_all_parts })
    }
}

/// Returns the response to an upload-start of a local upload at this base URL.
pub fn local_start(base_url: &str, subject: &Subject) -> String {
    let url = format!("{}/{UPLOAD_PATH}?{}", base_url.trim_end_matches('/'), subject.to_query());
    json!({ "upload_id": LOCAL_UPLOAD_ID, "pre_sign_urls": [url] }).to_string()
}

/// Rewrites the local URL in the response to an upload-start so that it leads through the agent; `None` if no change is
/// needed.
pub fn start_through(answer: &[u8], server_base: &str, client_base: &str) -> Option<Vec<u8>> {
    let mut answer: Value = serde_json::from_slice(answer).ok()?;
    if answer.get("upload_id")?.as_str()? != LOCAL_UPLOAD_ID {
        return None;
    }
    let mut is_changed = false;
    for url in answer.get_mut("pre_sign_urls")?.as_array_mut()? {
        if let Some(below) = url.as_str().and_then(|url| url.strip_prefix(server_base)) {
            *url = format!("{client_base}{below}").into();
            is_changed = true;
        }
    }
    is_changed.then(|| answer.to_string().into_bytes())
}

/// Returns the size of all parts but the last, and the number of parts, which is at least one.
pub fn parts_of(file_bytes: u64) -> (u64, u64) {
    let part_bytes = PART_BYTES_MIN.max(file_bytes.div_ceil(PARTS_MAX));
    (part_bytes, file_bytes.div_ceil(part_bytes).max(1))
}

/// How the payload is uploaded, from the server's response to upload-start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadRoute {
    /// In one request to the server.
    Local {
        /// Its URL.
        url: String,
    },
    /// In parts to an object store.
    Parts {
        /// The id of the multi-part upload.
        upload_id: String,
        /// The URL of each part.
        urls: Vec<String>,
    },
}

/// Parses the server's response to upload-start.
///
/// # Errors
///
/// The response that decides the whole upload if the payload can't be sent: the server's own rejection, or, if it can't
/// be parsed, one that leads to a retry.
pub fn way(answer: Answer, parts: u64) -> Result<UploadRoute, Answer> {
    if !answer.is_confirmed() {
        return Err(answer);
    }
    let begins: String = answer.text.chars().take(200).collect();
    let odd =
        |why: &str| Answer { text: format!("the answer to upload-start {why}: {begins}"), ..Answer::of_status(500) };
    let Ok(body) = serde_json::from_str::<Value>(&answer.text) else { return Err(odd("is not JSON")) };
    let Some(upload_id) = body.get("upload_id").and_then(Value::as_str) else { return Err(odd("has no upload_id")) };
    let urls: Vec<String> = body
        .get("pre_sign_urls")
        .and_then(Value::as_array)
        .map(|urls| urls.iter().filter_map(|url| url.as_str().map(str::to_owned)).collect())
        .unwrap_or_default();
    match (upload_id, urls.len() as u64) {
        (LOCAL_UPLOAD_ID, 1..) => Ok(UploadRoute::Local { url: urls.into_iter().next().unwrap_or_default() }),
        (_, found) if found >= parts && found > 0 => Ok(UploadRoute::Parts { upload_id: upload_id.to_owned(), urls }),
        _ => Err(odd(&format!("has {} URLs for {parts} parts", urls.len()))),
    }
}

/// The meaning of an object store's response to a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartVerdict {
    /// The part is stored, with this ETag.
    Taken {
        /// Verbatim, quotes included.
        e_tag: String,
    },
    /// Transient: the same request may succeed later.
    Again(String),
    /// A new upload is needed: the signature has expired, or the upload no longer exists.
    StartOver(String),
}

/// Interprets an object store's response to a part: `Ok` has the status and the ETag.
pub fn part_verdict(result: Result<(u16, Option<String>), &SendFailure>) -> PartVerdict {
    match result {
        Ok((200..=299, Some(e_tag))) if !e_tag.is_empty() => PartVerdict::Taken { e_tag },
        Ok((200..=299, _)) => PartVerdict::StartOver("the object store gave a part no ETag".to_owned()),
        Ok((status @ (408 | 425 | 429 | 500 | 502..=504), _)) => {
            PartVerdict::Again(format!("the object store answered {status}"))
        }
        Ok((status, _)) => PartVerdict::StartOver(format!("the object store answered {status}")),
        Err(failure) => PartVerdict::Again(failure.to_string()),
    }
}

/// Returns the response that decides the whole upload after its last step.
///
/// A multi-part upload that the server no longer knows has expired, which is not a verdict on the file: it is
/// restarted.
pub fn completed(answer: Answer) -> Answer {
    match answer.status {
        404 | 410 if answer.recognised == Recognised::Refused => {
            Answer { text: format!("the upload is gone: {}", answer.text), status: 500, ..answer }
        }
        _ => answer,
    }
}

/// Returns whether two URLs have the same origin: the key is sent only there.
pub fn is_same_origin(url: &str, base_url: &str) -> bool {
    fn origin(url: &str) -> Option<(String, String, u16)> {
        let uri: http::Uri = url.parse().ok()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        // User information is not part of the origin, and we never send a key to such a URL.
        let is_plain = !uri.authority()?.as_str().contains('@');
        is_plain.then(|| (scheme, uri.host().unwrap_or_default().to_ascii_lowercase(), port))
    }
    origin(url).is_some_and(|url| Some(url) == origin(base_url))
}

fn object(content: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(content) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err("the body is not a JSON object".to_owned()),
        Err(why) => Err(format!("Unable to process JSON: {why}")),
    }
}

/// Parses a query component as servers do: `+` is a space.
fn decoded(text: &str) -> Result<String, String> {
    let text = text.replace('+', " ");
    let decoded = percent_decode_str(&text).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| "the query is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01a20445-0bc6-7440-ae78-c6eb543662e9";

    fn start(change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut body = json!({
            "file_name": "räp ort&1.pdf", "num_of_file_parts": 2, "mime_type": "application/pdf", "project_name": "p+q",
            "entity_type": "trace", "entity_id": ID, "path": "aHR0cDovL2xvY2FsaG9zdDo1MTczL2FwaS8=",
        });
        change(&mut body);
        body.to_string().into_bytes()
    }

    #[test]
    fn upload_start_round_trips_through_the_url_of_the_put() {
        let read = Start::read(&start(|body| body["note"] = "new".into())).expect("a start");
        assert_eq!((read.client_url.as_deref(), read.parts), (Some("http://localhost:5173/api/"), 2));
        let answer: Value = serde_json::from_str(&local_start("http://a:6745/opik/api/", &read.subject)).expect("JSON");
        assert_eq!(answer["upload_id"], LOCAL_UPLOAD_ID);
        let url = answer["pre_sign_urls"][0].as_str().expect("a URL");
        let (before, query) = url.split_once('?').expect("a query");
        assert_eq!(before, "http://a:6745/opik/api/v1/private/attachment/upload");
        assert!(url.is_ascii() && !query.contains(' '), "{url}");
        let put = Subject::from_query(query).expect("a query");
        assert_eq!(put, read.subject);
        assert_eq!(Subject::from_body(&put.to_body()), Ok(put.clone()));
        let again = Start::read(&put.start("https://server/opik/api", 7)).expect("a start");
        assert_eq!((again.subject, again.parts), (read.subject, 7));
        assert_eq!(again.client_url.as_deref(), Some("https://server/opik/api/"));
        // As encoded by the real local server.
        let recorded = format!("file_name=report.pdf&entity_type=trace&entity_id={ID}&mime_type=application/pdf");
        assert_eq!(Subject::from_query(&recorded).expect("a query").to_query(), recorded);
    }

    #[test]
    fn invalid_steps_are_rejected_as_by_the_server() {
        for (change, expected) in [
            (json!({"file_name": ""}), "file_name"),
            (json!({"file_name": null}), "file_name"),
            (json!({"file_name": 7}), "file_name"),
            (json!({"entity_type": "thread"}), "entity_type"),
            (json!({"entity_id": "7"}), "entity_id"),
            (json!({"num_of_file_parts": "two"}), "num_of_file_parts"),
            (json!({"path": null}), "path"),
            (json!({"project_name": "  "}), "project_name"),
        ] {
            let body = start(|body| change.as_object().into_iter().flatten().for_each(|(k, v)| body[k] = v.clone()));
            let refusal = Start::read(&body).expect_err(expected);
            assert!(refusal.contains(expected), "{change}: {refusal}");
        }
        for query in ["", "file_name=a", &format!("file_name=a&file_name=b&entity_type=span&entity_id={ID}"), "%ff=%ff"]
        {
            assert!(Subject::from_query(query).is_err(), "{query}");
        }
        assert!(Start::read(b"[]").is_err() && Start::read(b"{").is_err());
    }

    #[test]
    fn completion_needs_every_part_exactly_once() {
        for (numbers, expected) in
            [(&[][..], true), (&[1], true), (&[2, 1, 3], true), (&[1, 1], false), (&[1, 3], false), (&[0, 1], false)]
        {
            let parts: Vec<Value> = numbers.iter().map(|n| json!({ "e_tag": "\"x\"", "part_number": n })).collect();
            let body = start(|body| {
                body["uploaded_file_parts"] = parts.into();
                body["upload_id"] = "u".into();
                body["file_size"] = 5.into();
            });
            assert_eq!(Complete::read(&body).expect("it can be read").has_all_parts, expected, "{numbers:?}");
        }
        let subject = Subject::from_body(&start(|_| {})).expect("a subject");
        let made = subject.complete("u", 9, &["\"1\"".into(), "W/\"2\"".into()]);
        let read: Value = serde_json::from_slice(&made).expect("JSON");
        assert_eq!(read["uploaded_file_parts"][1], json!({ "e_tag": "W/\"2\"", "part_number": 2 }));
        let read = Complete::read(&made).expect("ours");
        assert_eq!((read.file_bytes, read.has_all_parts, read.subject.is_same_file(&subject)), (9, true, true));
    }

    #[test]
    fn part_sizes_match_the_sdk() {
        const MIB: u64 = 1024 * 1024;
        for (bytes, expected) in [
            (0, (5 * MIB, 1)),
            (1, (5 * MIB, 1)),
            (5 * MIB, (5 * MIB, 1)),
            (6 * MIB, (5 * MIB, 2)),
            (50_000 * MIB, (5 * MIB, 10_000)),
            (50_000 * MIB + 1, (5 * MIB + 1, 10_000)),
        ] {
            assert_eq!(parts_of(bytes), expected, "{bytes}");
        }
    }

    #[test]
    fn responses_of_steps_decide_the_whole_upload() {
        let said = |status, text: &str| Answer { text: text.into(), ..Answer::of_status(status) };
        let local = said(200, r#"{"upload_id":"BEMinIO","pre_sign_urls":["http://s/u"]}"#);
        assert_eq!(way(local, 3), Ok(UploadRoute::Local { url: "http://s/u".into() }));
        let two = said(200, r#"{"upload_id":"x","pre_sign_urls":["a","b"]}"#);
        assert!(
            matches!(way(two.clone(), 2), Ok(UploadRoute::Parts { upload_id, urls }) if upload_id == "x" && urls.len() == 2)
        );
        for (answer, status) in [(two, 500), (said(200, "ok"), 500), (said(200, "{}"), 500), (said(401, ""), 401)] {
            assert_eq!(way(answer, 3).expect_err("no way").status, status);
        }
        let gone = SendFailure::Broken { url: "u".into(), reason: "reset".into() };
        for (result, is_again, is_over) in [
            (Ok((200, Some("\"e\"".into()))), false, false),
            (Ok((200, None)), false, true),
            (Ok((403, None)), false, true),
            (Ok((404, None)), false, true),
            (Ok((503, Some("\"e\"".into()))), true, false),
            (Err(&gone), true, false),
        ] {
            let verdict = part_verdict(result.clone());
            assert_eq!(matches!(verdict, PartVerdict::Again(_)), is_again, "{result:?}");
            assert_eq!(matches!(verdict, PartVerdict::StartOver(_)), is_over, "{result:?}");
        }
        for (status, expected) in [(204, 204), (400, 400), (403, 403), (404, 500), (503, 503)] {
            assert_eq!(completed(said(status, "")).status, expected);
        }
    }

    #[test]
    fn keys_are_sent_only_to_the_servers_origin() {
        let base = "https://opik.example/api";
        for (url, expected) in [
            ("https://opik.example/api/v1/private/attachment/upload?x", true),
            ("https://OPIK.example:443/other", true),
            ("http://opik.example/api", false),
            ("https://opik.example:8443/api", false),
            ("https://opik.example.evil/api", false),
            ("https://user@opik.example/api", false),
            ("/api/relative", false),
        ] {
            assert_eq!(is_same_origin(url, base), expected, "{url}");
        }
    }

    #[test]
    fn local_upload_urls_lead_through_the_agent() {
        let body = br#"{"upload_id":"BEMinIO","pre_sign_urls":["http://s/api/v1/private/attachment/upload?a=b"]}"#;
        let through = start_through(body, "http://s/api", "http://a:1/api").expect("it is changed");
        assert!(String::from_utf8_lossy(&through).contains("http://a:1/api/v1/private/attachment/upload?a=b"));
        assert_eq!(start_through(body, "http://other/api", "http://a:1/api"), None);
        let presigned = br#"{"upload_id":"x","pre_sign_urls":["http://s/api/part"]}"#;
        assert_eq!(start_through(presigned, "http://s/api", "http://a:1/api"), None);
    }
}
