//! The record of a finished stream: which of its messages a replayer had, which its agent may not know.
//!
//! An agent that was killed between the write of a bundle and its own commit does not know whether the bundle is in the
//! depot. Once a replayer has delivered and deleted the stream, only this record tells.

use serde::{Deserialize, Serialize};

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u16 = 1;
/// The largest record that is read, in bytes.
pub const BYTES_MAX: usize = 256 * 1024;
/// Ranges of a record: those of the last messages, which the agent may not know of.
const RANGES_MAX: usize = 4096;

/// The messages of a finished stream that its bundles had, or of which a mark said that they are settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FinishedStream {
    /// Ranges of ids in the origin store, ascending; where there are too many, the last ones.
    had: Vec<(u64, u64)>,
}

#[derive(Serialize, Deserialize)]
struct FinishedFields {
    #[serde(default)]
    format: u16,
    /// First and last id of each range.
    #[serde(default)]
    had: Vec<(u64, u64)>,
}

impl FinishedStream {
    /// Returns the record of a stream of which these ranges of messages are settled, ascending.
    pub fn with(ranges: impl DoubleEndedIterator<Item = (u64, u64)>) -> Self {
        let mut had: Vec<_> = ranges.rev().take(RANGES_MAX).collect();
        had.reverse();
        Self { had }
    }

    /// Returns whether this message was certainly settled.
    pub fn had(&self, message: u64) -> bool {
        self.had.iter().any(|(first, last)| (first..=last).contains(&&message))
    }

    /// Returns the ranges, each with its last id.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.had.iter().copied()
    }

    /// Encodes it.
    pub fn encode(&self) -> Vec<u8> {
        let fields = FinishedFields { format: FORMAT, had: self.had.clone() };
        let mut text = serde_json::to_vec(&fields).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Parses it. That the record exists says that the stream is finished; one that this version can't read says
    /// nothing about single messages.
    pub fn decode(bytes: &[u8]) -> Self {
        let fields = match bytes.len() > BYTES_MAX {
            true => None,
            false => serde_json::from_slice::<FinishedFields>(bytes).ok(),
        };
        let had = fields.filter(|fields| fields.format <= FORMAT).map(|fields| fields.had).unwrap_or_default();
        Self { had }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_tells_which_messages_the_bundles_had() {
        let record = FinishedStream::with([(1, 4), (7, 7)].into_iter());
        let read = FinishedStream::decode(&record.encode());
        assert_eq!(read, record);
        let had: Vec<u64> = (0..9).filter(|message| read.had(*message)).collect();
        assert_eq!(had, [1, 2, 3, 4, 7], "a message that nobody delivered would be deleted, or one be sent again");
    }

    #[test]
    fn a_record_that_cannot_be_read_claims_nothing_and_a_long_one_keeps_its_end() {
        for bytes in [&b"{}\n"[..], b"", b"<html>", br#"{"format":2,"had":[[0,9]]}"#, &[b' '; BYTES_MAX + 1]] {
            assert!(!FinishedStream::decode(bytes).had(5), "a message would be deleted that nobody delivered");
        }
        let long = FinishedStream::with((0..10_000).map(|number| (2 * number, 2 * number)));
        let read = FinishedStream::decode(&long.encode());
        assert!(read.had(19_998) && !read.had(0) && long.encode().len() <= BYTES_MAX);
    }

    proptest! {
        #[test]
        fn no_bytes_make_an_agent_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = FinishedStream::decode(&bytes);
        }
    }
}
