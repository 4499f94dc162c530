//! The uploads that finished last, for the upload-complete that may follow.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use crate::message::Lane;
use crate::protocol::attachment::Subject;

/// Uploads that are remembered.
pub(super) const RECENT_MAX: usize = 1000;

/// The uploads that finished last, with their sizes.
#[derive(Default)]
pub(super) struct RecentUploads(Mutex<VecDeque<(Lane, Subject, u64)>>);

impl RecentUploads {
    /// Remembers an upload of this many bytes, and forgets the oldest if there are too many.
    pub(super) fn add(&self, lane: Lane, subject: Subject, bytes: u64) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back((lane, subject, bytes));
    }

    /// Returns how many bytes the latest upload of a file had.
    pub(super) fn bytes_of(&self, lane: &Lane, subject: &Subject) -> Option<u64> {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |known: &&(Lane, Subject, u64)| known.0 == *lane && known.1.is_same_file(subject);
        recent.iter().rev().find(is_same).map(|(_, _, bytes)| *bytes)
    }
}
