//! A session as others see it, and what its owner tells it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::error::TakeoverError;
use super::feeder::FeedState;
use super::watch::FreeStream;
use crate::fleet::names::StreamId;
use crate::monitor::connection::Connection;
use crate::shutdown::Shutdown;
use crate::store::StoreError;

/// The state of a session, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SessionStanding {
    /// Streams that are held.
    pub streams: u64,
    /// Messages of streams that were delivered.
    pub delivered: u64,
    /// Messages of streams that the server rejected.
    pub rejected: u64,
    /// Why no more streams can be taken over now.
    pub problem: Option<String>,
}

/// Returns the streams of the process that a session runs in: it never takes them.
pub(crate) type OwnStreams = Arc<dyn Fn() -> Result<Vec<StreamId>, Arc<StoreError>> + Send + Sync>;

/// Leaves the own streams of this process out of those that may be taken.
///
/// # Errors
///
/// [`TakeoverError::OwnStreams`] if they are not known: then none may be taken.
pub(super) fn spare(own: Option<&OwnStreams>, free: &mut Vec<FreeStream>) -> Result<(), TakeoverError> {
    if let Some(own) = own.filter(|_| !free.is_empty()) {
        let own = own().map_err(TakeoverError::OwnStreams)?;
        free.retain(|free| !own.contains(&free.stream));
    }
    Ok(())
}

/// Ends the threads of a session when the one that delivers ends, also by a panic: otherwise all would wait for ever.
pub(super) struct EndsAll<'a> {
    pub ended: &'a Shutdown,
    pub connection: &'a Connection,
}

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        self.ended.request();
        self.connection.wake();
    }
}

/// Ends the delivery if the feeder panics: otherwise no further stream would be taken over, unnoticed.
pub(super) struct FailsByPanic<'a>(pub &'a FeedState);

impl Drop for FailsByPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.has_failed.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_of_this_process_is_not_taken_and_none_is_while_these_are_unknown() {
        let [own, other] = [uuid::Uuid::now_v7(), uuid::Uuid::now_v7()].map(StreamId::new);
        // As the agent leaves its head when it stops, or finds it when it starts.
        let free = || vec![FreeStream { stream: own, head: None }, FreeStream { stream: other, head: None }];
        let spared = |streams: &OwnStreams| {
            let mut free = free();
            spare(Some(streams), &mut free).map(|()| free.iter().map(|free| free.stream).collect::<Vec<_>>())
        };
        let known: OwnStreams = Arc::new(move || Ok(vec![own]));
        assert_eq!(spared(&known).expect("they are known"), [other], "an agent would take its own stream");
        let unknown: OwnStreams = Arc::new(|| Err(Arc::new(StoreError::LeaseLost)));
        assert!(spared(&unknown).is_err(), "one of them may be its own");
    }
}
