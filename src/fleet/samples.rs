//! Messages for the tests of this room.

use bytes::Bytes;
use proptest::prelude::*;

use super::names::StreamId;
use super::record::{FileContent, FleetRecord, RecordState, ShippedFile};
use crate::message::{
    Attachment, Body, Credential, Effect, Encoding, EntityKey, EntityKind, HeaderSet, Lane, Message, MessageType,
    Request, Server, Sha256, Touch,
};
use crate::store::{LastAnswer, Part};

pub(crate) fn stream(number: u128) -> StreamId {
    StreamId::new(uuid::Uuid::from_u128(0x01a2_0445_0b55_7feb_b47d_0000_0000_0000 + number))
}

pub(super) fn request(body: impl Into<Bytes>) -> Request {
    Request {
        method: "POST".to_owned(),
        path: "v1/private/spans".to_owned(),
        headers: HeaderSet::new(vec![("content-type".to_owned(), b"application/json".to_vec())]),
        body: Body::new(body, Encoding::Identity),
    }
}

pub(super) fn message(number: u64) -> Message {
    let id = format!("01a20440-760f-72f8-b5dd-{number:012x}");
    let body = format!(r#"{{"id":"{id}","name":"llm","type":"llm","input":{{"messages":["question {number}"]}}}}"#);
    let touch = |kind, effect| Touch { key: EntityKey::new(kind, &id), effect };
    Message {
        lane: Lane {
            server: Some(Server::new("https://opik.example/api")),
            workspace: Some("research".to_owned()),
            credential: Some(Credential::new("secret-key-of-the-lane")),
        },
        message_type: MessageType::CreateSpan,
        request: request(body),
        touches: Touch::distinct(vec![
            touch(EntityKind::Span, Effect::Create),
            touch(EntityKind::Trace, Effect::Refer),
        ]),
        items: 1,
        project: Some("demo".to_owned()),
        accepted_at_ms: 1_790_000_000_000 + number as i64,
    }
}

pub(crate) fn record(number: u64) -> FleetRecord {
    FleetRecord::waiting(number, message(number))
}

pub(super) fn answer(text: &str) -> LastAnswer {
    LastAnswer { status: Some(400), text: text.to_owned(), at_ms: 1_790_000_000_000 }
}

pub(super) fn part(body: &str) -> Part {
    Part { request: request(body.to_owned()), touches: message(1).touches, items: 1, rejected: None, held: None }
}

fn any_bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..max)
}

fn any_answer() -> impl Strategy<Value = LastAnswer> {
    (any::<Option<u16>>(), ".{0,40}", any::<i64>()).prop_map(|(status, text, at_ms)| LastAnswer { status, text, at_ms })
}

fn any_request() -> impl Strategy<Value = Request> {
    let headers = prop::collection::vec(("[A-Za-z-]{1,12}", any_bytes(20)), 0..4);
    let encoding = prop::sample::select(vec![Encoding::Identity, Encoding::Gzip, Encoding::Deflate]);
    ("[A-Z]{3,6}", "v1/.{0,30}", headers, any_bytes(300), encoding).prop_map(
        |(method, path, headers, body, encoding)| Request {
            method,
            path,
            headers: HeaderSet::new(headers),
            body: Body::new(body, encoding),
        },
    )
}

fn any_touches() -> impl Strategy<Value = Vec<Touch>> {
    let touch = (any::<[u8; 16]>(), 0_u8..5).prop_map(|(id, code)| Touch {
        key: EntityKey::from_parts(EntityKind::Trace, id),
        effect: Effect::from_code(code).expect("it exists"),
    });
    prop::collection::vec(touch, 0..5).prop_map(Touch::distinct)
}

pub(super) fn any_part() -> impl Strategy<Value = Part> {
    let refusal = prop::option::of((any::<bool>(), any_answer()));
    (any_request(), any_touches(), any::<u32>(), refusal).prop_map(|(request, touches, items, refusal)| {
        let (rejected, held) = match refusal {
            Some((true, answer)) => (Some(answer), None),
            Some((false, answer)) => (None, Some(answer)),
            None => (None, None),
        };
        Part { request, touches, items, rejected, held }
    })
}

pub(super) fn any_record() -> impl Strategy<Value = FleetRecord> {
    let lane = (any::<bool>(), any::<Option<String>>(), prop::option::of(any_bytes(40))).prop_map(
        |(has_server, workspace, credential)| Lane {
            server: has_server.then(|| Server::new("http://localhost:5173/api")),
            workspace,
            credential: credential.map(Credential::new),
        },
    );
    let message = (lane, prop::sample::select(MessageType::ALL), any_request(), any_touches(), any::<Option<String>>());
    let state = (0..3, any_answer()).prop_map(|(state, answer)| match state {
        0 => RecordState::Waiting,
        1 => RecordState::Held(answer),
        _ => RecordState::Rejected(answer),
    });
    let file = prop::option::of((any::<u32>(), any::<bool>(), any::<[u8; 32]>())).prop_map(|file| {
        file.map(|(bytes, is_body, digest)| {
            let content = if is_body { FileContent::Body } else { FileContent::Attachment };
            ShippedFile::new(content, Attachment { bytes: bytes.into(), sha256: Sha256::new(digest) })
        })
    });
    let numbers = (0..u64::MAX / 4, any::<i64>(), any::<u32>(), any::<u32>(), any::<Option<i64>>());
    (message, state, file, numbers).prop_map(
        |((lane, message_type, request, touches, project), state, file, numbers)| {
            let (id, accepted_at_ms, items, attempts, position) = numbers;
            let message = Message { lane, message_type, request, touches, items, project, accepted_at_ms };
            let waiting = FleetRecord::waiting(id, message);
            FleetRecord { attempts, state, file, position: position.unwrap_or(waiting.position), ..waiting }
        },
    )
}
