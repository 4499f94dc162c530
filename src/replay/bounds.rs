//! How much memory a body takes on its way from the store to the server. Pure.
//!
//! Measured with bodies of 60 MB: a large body is read directly into the buffer from which it is sent, compressed or
//! not (once its size). In an encrypted store, a compressed body is in memory a second time while it is claimed, and
//! claims are serialized. Small bodies are decoded, joined into a batch and compressed again.

use crate::message::Body;

/// Bodies up to this size are decoded to be joined with others ([`crate::delivery::batching::coalesce`]); larger ones
/// are sent as stored.
const JOINED_BYTES_MAX: u64 = 1024 * 1024;
/// Contents larger than this are not divided ([`crate::delivery::batching::split`]).
const DIVIDED_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How far a claim of small bodies may grow: as stored, decoded, joined, and room for bodies that compress well.
const CLAIM_FACTOR: u64 = 4;

/// Returns how many bytes of bodies a claim may take if there is enough memory, and the memory for it.
pub(super) fn of_claim(wanted: u64, budget: u64) -> (u64, u64) {
    let bytes = wanted.min(budget / 32);
    (bytes, bytes.saturating_mul(CLAIM_FACTOR))
}

/// Returns the same for a claim of small bodies only, which need not queue behind requests for much memory.
pub(super) fn of_small_claim(wanted: u64, budget: u64) -> (u64, u64) {
    let memory = budget / 64;
    (wanted.min(memory / CLAIM_FACTOR), memory)
}

/// Returns the memory for one body of this size, or for several that are claimed together.
pub(super) fn of_large(bytes: u64) -> u64 {
    bytes.saturating_add(JOINED_BYTES_MAX)
}

/// Returns the memory that a body takes until it is settled.
pub(super) fn of_message(body: &Body) -> u64 {
    let bytes = body.bytes.len() as u64;
    match bytes > JOINED_BYTES_MAX {
        true => of_large(bytes),
        false => bytes + 2 * body.content_bytes_max().min(JOINED_BYTES_MAX),
    }
}

/// Returns the additional memory that a body takes while it is divided: its content, a piece, and the remaining pieces.
pub(super) fn of_division(body: &Body) -> u64 {
    let content = body.content_bytes_max().min(DIVIDED_BYTES_MAX);
    let decoded = if body.is_encoded() { content } else { 0 };
    decoded + 2 * content
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Encoding;

    #[test]
    fn a_body_is_counted_as_often_as_it_is_held() {
        const MIB: u64 = 1 << 20;
        let plain = |bytes: u64| Body::new(vec![b' '; bytes as usize], Encoding::Identity);
        for (body, message, division) in [
            (plain(1000), 3000, 2000),
            (plain(MIB), 3 * MIB, 2 * MIB),
            (plain(4 * MIB), 5 * MIB, 8 * MIB),
            (Body::new(vec![0; 10], Encoding::Deflate), 10 + 2 * 10_400, 3 * 10_400),
        ] {
            assert_eq!((of_message(&body), of_division(&body)), (message, division));
        }
        assert_eq!(of_claim(8 * MIB, 256 * MIB), (8 * MIB, 32 * MIB));
        assert_eq!(of_claim(8 * MIB, 96 * MIB), (3 * MIB, 12 * MIB));
        assert_eq!(of_small_claim(8 * MIB, 256 * MIB), (MIB, 4 * MIB));
    }
}
