//! A row of an SDK's file as a message of the store.
//!
//! A row that no request can be made of is kept as rejected, with its text as the body: nothing is thrown away.

use std::path::Path;

use ring::digest::{Context, SHA256};
use uuid::Uuid;

use super::file::StoredRow;
use super::rows::{CONTENT_TYPE, SdkAttachment, SdkRow, SdkWrite, convert, sdk_type};
use super::trust::{AttachmentFolders, AttachmentRefusal};
use crate::message::{Body, Encoding, HeaderSet, Lane, Message, MessageType, Request, Sha256};
use crate::protocol::attachment::{START_PATH, Subject};
use crate::protocol::inspection::{inspect, with_ids};
use crate::protocol::routes::Protected;
use crate::store::{LastAnswer, SalvagedRow, now_ms};

/// The header in which a row of an unknown type keeps the name of its type.
pub(crate) const TYPE_HEADER: &str = "x-sdk-message-type";

/// The SDK's statuses.
const REGISTERED: i64 = 1;
pub(super) const DELIVERED: i64 = 2;
const FAILED: i64 = 3;

/// The request of a row.
pub(super) enum RowRequest {
    Write(SdkWrite),
    Attachment(SdkAttachment),
    /// Nothing that can be sent, and why.
    Invalid(String),
}

/// Reads the request of a row.
pub(super) fn request_of(stored: &StoredRow) -> RowRequest {
    if !matches!(stored.status, REGISTERED | FAILED) {
        return RowRequest::Invalid(format!("its status {} is unknown", stored.status));
    }
    let Some(json) = &stored.json else { return RowRequest::Invalid("its message_json is not text".into()) };
    match convert(&stored.message_type, json) {
        Ok(SdkRow::Write(write)) => RowRequest::Write(write),
        Ok(SdkRow::Attachment(attachment)) => RowRequest::Attachment(attachment),
        Err(fault) => RowRequest::Invalid(fault.to_string()),
    }
}

/// Returns the digest by which a row is deduplicated, in any copy of its file. It covers all of the row except its
/// status, which changes.
pub(super) fn digest(row: &StoredRow) -> Sha256 {
    let mut digest = Context::new(&SHA256);
    digest.update(&row.message_id.to_be_bytes());
    digest.update(&(row.message_type.len() as u64).to_be_bytes());
    digest.update(row.message_type.as_bytes());
    digest.update(row.json.as_deref().unwrap_or_default());
    finish(digest)
}

/// Returns the digest that records that the file of a row's attachment was not sent.
pub(super) fn digest_of_refusal(row: &Sha256) -> Sha256 {
    let mut digest = Context::new(&SHA256);
    digest.update(b"its file was not sent");
    digest.update(row.as_bytes());
    finish(digest)
}

fn finish(digest: Context) -> Sha256 {
    let mut bytes = [0; Sha256::LEN];
    bytes.copy_from_slice(digest.finish().as_ref());
    Sha256::new(bytes)
}

/// Returns the message of a write. An entity without an id gets one.
pub(super) fn write(row: Sha256, write: SdkWrite, lane: &Lane) -> SalvagedRow {
    let route = Protected { message_type: write.message_type, path_id: write.path_id };
    let mut body = write.body;
    // The scanner read all of it before, so it is JSON.
    let mut inspection = inspect(&route, &body).unwrap_or_default();
    if !inspection.missing_ids.is_empty() {
        body = with_ids(&body, &inspection.missing_ids, || Uuid::now_v7().to_string());
        inspection = inspect(&route, &body).unwrap_or_default();
    }
    let request = Request {
        method: write.method.to_owned(),
        path: write.path,
        headers: HeaderSet::new(vec![("content-type".into(), CONTENT_TYPE.into())]),
        body: Body::new(body, Encoding::Identity),
    };
    let message = Message {
        lane: lane.clone(),
        message_type: write.message_type,
        request,
        touches: inspection.touches,
        items: inspection.items,
        project: inspection.project,
        accepted_at_ms: now_ms(),
    };
    SalvagedRow::new(row, message, None)
}

/// Returns the message of an attachment, or the reason for which the server would reject it.
pub(super) fn attachment(attachment: &SdkAttachment, lane: &Lane) -> Result<Message, String> {
    let members = [
        ("file_name", Some(&attachment.file_name)),
        ("mime_type", attachment.mime_type.as_ref()),
        ("project_name", attachment.project_name.as_ref()),
        ("entity_type", Some(&attachment.entity_type)),
        ("entity_id", Some(&attachment.entity_id)),
    ];
    let given = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.as_str().into())));
    let body = serde_json::Value::Object(given.collect()).to_string().into_bytes();
    let subject = Subject::from_body(&body)?;
    Ok(Message {
        lane: lane.clone(),
        message_type: MessageType::CreateAttachment,
        request: Request {
            method: "POST".into(),
            path: START_PATH.into(),
            headers: HeaderSet::default(),
            body: Body::new(subject.to_body(), Encoding::Identity),
        },
        touches: subject.touches(),
        items: 1,
        project: subject.project().map(str::to_owned),
        accepted_at_ms: now_ms(),
    })
}

/// Returns the message that keeps a row that cannot be sent: its text as the body, and the reason as the answer.
pub(super) fn rejected(row: Sha256, stored: &StoredRow, reason: &str, path: &Path, lane: &Lane) -> SalvagedRow {
    let name: String = stored.message_type.chars().filter(|c| !c.is_control()).take(200).collect();
    let message = Message {
        lane: lane.clone(),
        message_type: sdk_type(&stored.message_type).unwrap_or(MessageType::UnknownSdkRow),
        request: Request {
            // Without a method it cannot be sent, even if someone requeues it.
            method: String::new(),
            path: String::new(),
            headers: HeaderSet::new(vec![(TYPE_HEADER.into(), name.into())]),
            body: Body::new(stored.json.clone().unwrap_or_default(), Encoding::Identity),
        },
        touches: Vec::new(),
        items: 1,
        project: None,
        accepted_at_ms: now_ms(),
    };
    let text = format!("row {} of {}: {reason}", stored.message_id, path.display());
    let answer = LastAnswer { status: None, text, at_ms: now_ms() };
    SalvagedRow::new(row, message, Some(answer))
}

/// A row for people: the request that it becomes, or why it does not.
#[derive(Debug)]
pub(crate) struct RowSummary {
    /// The method of its request; `None` if no request can be made of it.
    pub method: Option<&'static str>,
    /// The path of its request.
    pub path: Option<String>,
    /// Why it cannot be sent.
    pub problem: Option<String>,
}

/// Describes a row without storing it. `folders` is where the files of attachments may be.
pub(crate) fn describe(stored: &StoredRow, folders: &AttachmentFolders) -> RowSummary {
    match convert(&stored.message_type, stored.json.as_deref().unwrap_or_default()) {
        Ok(SdkRow::Write(write)) => RowSummary { method: Some(write.method), path: Some(write.path), problem: None },
        Ok(SdkRow::Attachment(file)) => {
            let problem = match folders.open(Path::new(&file.file_path)) {
                Ok(_) => None,
                Err(AttachmentRefusal::Unreadable(_)) => Some(format!("its file {} is gone", file.file_path)),
                Err(AttachmentRefusal::Untrusted(why)) => {
                    Some(format!("its file {} is not sent: {why}", file.file_path))
                }
            };
            RowSummary { method: Some("POST"), path: Some("v1/private/attachment/upload-start".to_owned()), problem }
        }
        Err(fault) => RowSummary { method: None, path: None, problem: Some(fault.to_string()) },
    }
}

/// Returns the name of an SDK's status, or its number if it is unknown.
pub(crate) fn status_name(status: i64) -> String {
    match status {
        REGISTERED => "registered".to_owned(),
        DELIVERED => "delivered".to_owned(),
        FAILED => "failed".to_owned(),
        other => other.to_string(),
    }
}
