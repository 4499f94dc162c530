//! Storing a write. Its client is answered after the commit, never before.

use tokio::sync::oneshot;
use tracing::warn;

use super::not_stored::NotStored;
use super::write::Write;
use crate::intake::entity_locks::Ticket;
use crate::intake::forward::{self, ClientAnswer};
use crate::message::Message;
use crate::protocol::answers::success;
use crate::protocol::otlp;
use crate::store::now_ms;

impl Write {
    /// Stores the write, and acknowledges it once it is committed. Later writes may follow the ticket meanwhile.
    pub(super) async fn register(&self, ticket: &Ticket) -> Result<ClientAnswer, NotStored> {
        self.shared.ahead_notes.write_pending().await;
        if let Some(batch) = &self.large {
            return self.register_pieces(batch).await;
        }
        // Copies no body: its bytes are shared.
        self.commit(self.message.clone(), || ticket.queued()).await?;
        Ok(forward::own_answer(match self.acknowledged_as {
            Some(format) => otlp::success(format),
            None => success(&self.route, &self.client.base(), self.id.as_deref()),
        }))
    }

    /// Stores a message, and returns once it is committed. Calls back when it is queued for that.
    pub(super) async fn commit(&self, message: Message, on_queued: impl FnOnce()) -> Result<(), NotStored> {
        let shared = &self.shared;
        let (done, committed) = oneshot::channel();
        let message = Message { accepted_at_ms: now_ms(), ..message };
        let is_queued = shared.committer.submit(
            message,
            // The receiver is dropped only with the runtime: then there is no client to answer.
            Box::new(move |result| drop(done.send(result))),
        );
        if is_queued {
            on_queued();
        }
        match committed.await {
            Ok(Ok(_)) => {
                shared.metrics.messages_registered.add(1);
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
