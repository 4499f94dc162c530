//! Storing a write. Its client is answered after the commit, never before.

use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::warn;

use super::held::Held;
use super::not_stored::NotStored;
use super::write::Write;
use crate::intake::forward::{self, ClientAnswer};
use crate::intake::unread::RepeatUnreadable;
use crate::message::Message;
use crate::protocol::answers::success;
use crate::protocol::otlp;
use crate::store::now_ms;

impl Write {
    /// Stores the write, and acknowledges it once it is committed. Later writes may follow its ticket meanwhile.
    pub(super) async fn register(&self, held: &Held) -> Result<ClientAnswer, NotStored> {
        self.shared.ahead_notes.write_pending().await;
        let stored = match (held.flight.store_turn().await, &self.large) {
            (Err(RepeatUnreadable), _) => Err(NotStored::unreadable_repeat()),
            // A part of it may have been stored.
            (Ok(_), Some(batch)) => return self.register_pieces(batch).await,
            // Copies no body: its bytes are shared.
            (Ok(behind), None) => self.commit(self.message.clone(), behind, || held.queued()).await,
        };
        if let Err(not_stored) = stored {
            if !not_stored.is_uncertain {
                held.flight.not_stored();
            }
            return Err(not_stored);
        }
        Ok(forward::own_answer(match self.acknowledged_as {
            Some(format) => otlp::success(format),
            None => success(&self.route, &self.client.base(), self.id.as_deref()),
        }))
    }

    /// Stores a message with others `behind` it in the same commit, and returns once they are committed. Calls back when
    /// they are queued for that.
    pub(super) async fn commit(
        &self,
        message: Message,
        behind: Vec<Arc<Message>>,
        on_queued: impl FnOnce(),
    ) -> Result<(), NotStored> {
        let shared = &self.shared;
        let (done, committed) = oneshot::channel();
        let answers = shared.commit_answers.running();
        let (accepted_at_ms, count) = (now_ms(), 1 + behind.len() as u64);
        let behind = behind.into_iter().map(|other| Message { accepted_at_ms, ..Message::clone(&other) });
        let messages = std::iter::once(Message { accepted_at_ms, ..message }).chain(behind).collect();
        let is_queued = shared.committer.submit_all(messages, Box::new(move |result| Some(answers.add(done, result))));
        if is_queued {
            on_queued();
        }
        match committed.await {
            Ok(Ok(_)) => {
                shared.metrics.messages_registered.add(count);
                Ok(())
            }
            Ok(Err(error)) => Err(NotStored::record(shared, &error)),
            Err(_) => {
                warn!(target: "intake", "the committer stopped before it answered");
                Err(NotStored::stopping())
            }
        }
    }
}
