//! Messages to store, short to write.

use opik_offline::message::{
    Body, Credential, Effect, Encoding, EntityKey, EntityKind, HeaderSet, Lane, Message, MessageType, Request, Server,
    Touch,
};

pub(crate) fn lane(workspace: &str) -> Lane {
    Lane {
        server: Some(Server::new("http://opik.example/api")),
        workspace: Some(workspace.into()),
        credential: Some(Credential::new("made-up-key-0123456789")),
    }
}

pub(crate) fn touch(kind: EntityKind, id: &str, effect: Effect) -> Touch {
    Touch { key: EntityKey::new(kind, id), effect }
}

/// A message that attaches a file to a trace.
pub(crate) fn attachment(lane: &Lane, trace: &str, accepted_at_ms: i64) -> Message {
    let mut message = about_trace(lane, trace, Effect::Annotate, accepted_at_ms);
    message.message_type = MessageType::CreateAttachment;
    message.request.method = "POST".into();
    message.request.path = "v1/private/attachment/upload-start".into();
    message
}

/// Bytes that differ from place to place and from file to file.
pub(crate) fn file(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(bytes)
    .collect()
}

/// A message of one effect on one trace; the body names it.
pub(crate) fn about_trace(lane: &Lane, id: &str, effect: Effect, accepted_at_ms: i64) -> Message {
    let (message_type, method, path) = match effect {
        Effect::Create => (MessageType::CreateTrace, "POST", "v1/private/traces".to_owned()),
        Effect::Update => (MessageType::UpdateTrace, "PATCH", format!("v1/private/traces/{id}")),
        Effect::Annotate => {
            (MessageType::AddTraceFeedbackScoresBatch, "PUT", "v1/private/traces/feedback-scores".to_owned())
        }
        Effect::End => (MessageType::DeleteTrace, "DELETE", format!("v1/private/traces/{id}")),
        Effect::Refer => (MessageType::CreateSpan, "POST", "v1/private/spans".to_owned()),
    };
    Message {
        lane: lane.clone(),
        message_type,
        request: Request {
            method: method.into(),
            path,
            headers: HeaderSet::new(vec![("content-type".into(), b"application/json".to_vec())]),
            body: Body::new(format!("{{\"id\":\"{id}\",\"at\":{accepted_at_ms}}}"), Encoding::Identity),
        },
        touches: vec![touch(EntityKind::Trace, id, effect)],
        items: 1,
        project: Some("project".into()),
        accepted_at_ms,
    }
}
