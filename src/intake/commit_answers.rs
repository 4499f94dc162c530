//! Passes the results of commits on to the tasks of one worker: its thread is woken once per commit.
//!
//! Waking a task from another thread is a system call, and the committing thread answers many tasks at once. So it adds
//! the results to a list, and wakes one task here, which wakes the others on their own thread, without the system.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use tokio::sync::{Notify, oneshot};

use crate::message::MessageId;
use crate::store::committer::CommitError;

/// The result of storing a message.
type Stored = Result<MessageId, CommitError>;

/// Results of one worker's messages that are not passed on yet.
#[derive(Default)]
pub(super) struct CommitAnswers {
    ready: Mutex<Vec<(oneshot::Sender<Stored>, Stored)>>,
    changed: Notify,
    is_running: AtomicBool,
}

impl CommitAnswers {
    /// Returns the list, and starts the task that passes it on, on this worker's runtime, if it is the first call.
    pub(super) fn running(self: &Arc<Self>) -> Arc<Self> {
        if !self.is_running.load(Ordering::Relaxed) && !self.is_running.swap(true, Ordering::Relaxed) {
            tokio::spawn(self.clone().pass_on());
        }
        self.clone()
    }

    /// Adds a result; returns what wakes the task that passes it on.
    pub(super) fn add(self: Arc<Self>, to: oneshot::Sender<Stored>, result: Stored) -> Waker {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push((to, result));
        self.into()
    }

    async fn pass_on(self: Arc<Self>) {
        loop {
            self.changed.notified().await;
            let ready = std::mem::take(&mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner));
            for (to, result) in ready {
                // The receiver is dropped only with the runtime: then there is no client to answer.
                let _ = to.send(result);
            }
        }
    }
}

impl Wake for CommitAnswers {
    fn wake(self: Arc<Self>) {
        self.changed.notify_one();
    }
}
