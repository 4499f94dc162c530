//! Attachments on the fake server: its own storage, or an object store with presigned URLs on the same port.
//!
//! Bytes are not kept, only their digests. Anything that the real ones would refuse is a violation: a key or a
//! workspace at the object store, a part without a length, parts that are not what was announced, an ETag that is not
//! the one given.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ring::digest::{Context, SHA256, digest};
use serde_json::json;

use super::Shared;
use super::check::{Key, Kind};
use super::log::Received;
use super::script::Answer;

const PART_BYTES: usize = 5 * 1024 * 1024;

/// Where a server keeps files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FilesIn {
    /// With itself: the local flow.
    #[default]
    Itself,
    /// In an object store: the presigned flow.
    ObjectStore,
}

/// A file that is there, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredFile {
    pub bytes: u64,
    pub sha256: String,
    pub mime_type: Option<String>,
    pub project: Option<String>,
    pub authorization: Option<String>,
    /// Whether the trace or span that it belongs to was there when its upload began.
    pub after_entity: bool,
}

/// Entity id and file name, in a workspace.
pub(crate) type FileKey = (String, String, String);

#[derive(Default)]
pub(crate) struct Attachments {
    pub files_in: FilesIn,
    uploads: BTreeMap<String, Multipart>,
    uploads_count: u64,
    pub files: BTreeMap<FileKey, StoredFile>,
}

struct Multipart {
    announced: usize,
    parts: BTreeMap<usize, (String, Bytes)>,
    after_entity: bool,
}

/// The long part of a presigned URL: real ones have several hundred bytes.
fn signature() -> String {
    format!("X-Amz-Signature={}&x=%2F", "5ec2e7".repeat(120))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Shared {
    /// Answers a request of the upload flow; `None` for all others.
    pub(super) fn attachment(&mut self, seq: usize) -> Option<Answer> {
        let request = self.requests[seq].clone();
        if let Some(below) = request.path.strip_prefix("/object-store/") {
            return Some(self.part(&request, below));
        }
        match (request.method.as_str(), request.route()) {
            ("POST", "/v1/private/attachment/upload-start") => Some(self.upload_start(&request)),
            ("PUT", "/v1/private/attachment/upload") => Some(self.upload_put(&request)),
            ("POST", "/v1/private/attachment/upload-complete") => Some(self.upload_complete(&request)),
            _ => None,
        }
    }

    fn violation(&mut self, request: &Received, what: &str) -> Answer {
        self.violations.push(format!("request {} {} {}: {what}", request.seq, request.method, request.path));
        Answer::error(400, what)
    }

    fn upload_start(&mut self, request: &Received) -> Answer {
        let Some(body) = request.json.clone() else { return self.violation(request, "no JSON") };
        let host = request.header("Host").unwrap_or_default().to_owned();
        let path = body["path"].as_str().and_then(|path| STANDARD.decode(path).ok()).unwrap_or_default();
        // TLS may end in front of us.
        let scheme = if path.starts_with(b"https:") { "https" } else { "http" };
        if path != format!("{scheme}://{host}/api/").as_bytes() {
            return self.violation(request, &format!("path leads to {:?}", String::from_utf8_lossy(&path)));
        }
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        if ["file_name", "entity_type", "entity_id"].iter().any(|name| text(name).is_empty()) {
            return self.violation(request, "a member is missing");
        }
        let parts = body["num_of_file_parts"].as_u64().unwrap_or(0) as usize;
        if parts == 0 {
            return self.violation(request, "num_of_file_parts is not a number of parts");
        }
        if self.attachments.files_in == FilesIn::Itself {
            let mut query = format!(
                "file_name={}&entity_type={}&entity_id={}",
                text("file_name").replace(' ', "+"),
                text("entity_type"),
                text("entity_id")
            );
            for name in ["mime_type", "project_name"] {
                if !text(name).is_empty() {
                    query += &format!("&{name}={}", text(name));
                }
            }
            let url = format!("{scheme}://{host}/api/v1/private/attachment/upload?{query}");
            return Answer::json(200, &json!({ "upload_id": "BEMinIO", "pre_sign_urls": [url] }));
        }
        self.attachments.uploads_count += 1;
        let id = format!("upload-{}", self.attachments.uploads_count);
        let urls: Vec<String> =
            (1..=parts).map(|part| format!("{scheme}://{host}/object-store/{id}/{part}?{}", signature())).collect();
        let after_entity = self.knows(&request.workspace, &text("entity_id"));
        let upload = Multipart { announced: parts, parts: BTreeMap::new(), after_entity };
        self.attachments.uploads.insert(id.clone(), upload);
        Answer::json(200, &json!({ "upload_id": id, "pre_sign_urls": urls }))
    }

    fn upload_put(&mut self, request: &Received) -> Answer {
        self.requests[request.seq].body = Bytes::new();
        let query: BTreeMap<&str, &str> =
            request.query.as_deref().unwrap_or("").split('&').filter_map(|pair| pair.split_once('=')).collect();
        let of = |name: &str| query.get(name).map(|value| value.replace('+', " "));
        let (Some(name), Some(id), Some(_)) = (of("file_name"), of("entity_id"), of("entity_type")) else {
            return self.violation(request, "a query parameter is missing");
        };
        let file = StoredFile {
            bytes: request.body.len() as u64,
            sha256: sha256(&request.body),
            mime_type: of("mime_type"),
            project: of("project_name"),
            authorization: request.authorization.clone(),
            after_entity: self.knows(&request.workspace, &id),
        };
        self.attachments.files.insert((request.workspace.clone(), id, name), file);
        Answer::empty(204)
    }

    fn part(&mut self, request: &Received, below: &str) -> Answer {
        self.requests[request.seq].body = Bytes::new();
        for name in ["Authorization", "Comet-Workspace", "X-Opik-Offline-Agent", "Transfer-Encoding", "Content-Type"] {
            if request.header(name).is_some() {
                return self.violation(request, &format!("{name} at the object store"));
            }
        }
        if request.query.as_deref() != Some(signature().as_str()) {
            return self.violation(request, "the URL was changed");
        }
        let Some((upload, part)) = below.split_once('/') else { return Answer::empty(404) };
        let part: usize = part.parse().unwrap_or(0);
        let e_tag = format!("\"W/{upload}-{part}-{}\"", sha256(&request.body));
        let Some(upload) = self.attachments.uploads.get_mut(upload) else { return Answer::empty(404) };
        upload.parts.insert(part, (e_tag.clone(), request.body.clone()));
        Answer::empty(200).with("ETag", &e_tag)
    }

    fn upload_complete(&mut self, request: &Received) -> Answer {
        let Some(body) = request.json.clone() else { return self.violation(request, "no JSON") };
        let id = body["upload_id"].as_str().unwrap_or_default();
        let Some(upload) = self.attachments.uploads.remove(id) else { return Answer::error(404, "no such upload") };
        let given: Vec<(usize, &str)> = body["uploaded_file_parts"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|part| (part["part_number"].as_u64().unwrap_or(0) as usize, part["e_tag"].as_str().unwrap_or("")))
            .collect();
        let kept: Vec<(usize, &str)> = upload.parts.iter().map(|(part, (e_tag, _))| (*part, e_tag.as_str())).collect();
        if given != kept || kept.len() != upload.announced {
            return self.violation(request, &format!("parts {given:?}, and there are {kept:?}"));
        }
        let whole = upload.parts.len();
        if upload.parts.iter().any(|(part, (_, bytes))| bytes.len() != PART_BYTES && *part != whole) {
            return self.violation(request, "a part but the last is not 5 MiB");
        }
        let bytes: usize = upload.parts.values().map(|(_, bytes)| bytes.len()).sum();
        if body["file_size"].as_u64() != Some(bytes as u64) {
            return self.violation(request, &format!("file_size {}, and there are {bytes}", body["file_size"]));
        }
        let mut digest = Context::new(&SHA256);
        upload.parts.values().for_each(|(_, bytes)| digest.update(bytes));
        let text = |name: &str| body[name].as_str().map(str::to_owned);
        let file = StoredFile {
            bytes: bytes as u64,
            sha256: hex(digest.finish().as_ref()),
            mime_type: text("mime_type"),
            project: text("project_name"),
            authorization: request.authorization.clone(),
            after_entity: upload.after_entity,
        };
        let key =
            (request.workspace.clone(), text("entity_id").unwrap_or_default(), text("file_name").unwrap_or_default());
        self.attachments.files.insert(key, file);
        Answer::empty(204)
    }

    fn knows(&self, workspace: &str, id: &str) -> bool {
        let entities = self.state.get(workspace);
        [Kind::Trace, Kind::Span].into_iter().any(|kind| {
            let key = Key { kind, id: id.to_owned() };
            entities.and_then(|entities| entities.get(&key)).is_some_and(|entity| entity.record.is_some())
        })
    }
}
