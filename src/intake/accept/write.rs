//! A protected write, ready to be delivered.

use std::sync::Arc;

use http::request::Parts;

use super::pieces::LargeBatch;
use crate::intake::exchange::ClientUrl;
use crate::intake::forward::ClientAnswer;
use crate::intake::shared::Shared;
use crate::message::Message;
use crate::protocol::inspection::NeedsAnswer;
use crate::protocol::otlp;
use crate::protocol::routes::Protected;

/// A protected write whose body was read and inspected.
pub(super) struct Write {
    pub(super) shared: Arc<Shared>,
    pub(super) client: ClientUrl,
    pub(super) route: Protected,
    /// The head as it goes to the server.
    pub(super) head: Parts,
    pub(super) id: Option<String>,
    pub(super) message: Message,
    /// Why it may not be stored, if so.
    pub(super) needs_answer: Option<NeedsAnswer>,
    /// The format in which an OTLP exporter expects its answer.
    pub(super) acknowledged_as: Option<otlp::Format>,
    /// Its body, if that is too large for the message.
    pub(super) large: Option<Arc<LargeBatch>>,
}

/// How long a forwarded write waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitFor {
    /// Until the timeout, or until the server is known to be unavailable. The timeout is shorter when memory is short.
    AnswerOrOutage,
    /// Until the timeout: the write can't be stored.
    Answer,
}

/// The outcome of a forwarded write.
pub(super) enum Forwarded {
    /// The server has decided.
    Answered(ClientAnswer),
    /// It has to be stored. If it can't be, its client gets the server's own answer, if there was one.
    Keep { fallback: Option<ClientAnswer> },
}
