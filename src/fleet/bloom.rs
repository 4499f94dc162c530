//! A Bloom filter of entities: which bundles may be about one, without reading their records.
//!
//! Ten bits and seven hash functions for each key: 0.8 % false positives.

use super::json::{from_base64, to_base64};
use crate::message::EntityKey;

const BITS_PER_KEY: usize = 10;
const HASHES: u64 = 7;
/// The largest filter, in bytes: more keys make it less precise, not larger.
const BYTES_MAX: usize = 64 * 1024;

/// A set of entities that may answer "maybe" for one that is not in it, and never "no" for one that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntityFilter(Vec<u8>);

impl EntityFilter {
    /// Returns the filter of these entities.
    pub fn new(keys: &[EntityKey]) -> Self {
        let bytes = (keys.len() * BITS_PER_KEY).div_ceil(8).clamp(8, BYTES_MAX);
        let mut filter = Self(vec![0; bytes]);
        for key in keys {
            for bit in filter.bits(key) {
                filter.0[bit / 8] |= 1 << (bit % 8);
            }
        }
        filter
    }

    /// Returns whether an entity may be in the set.
    pub fn may_contain(&self, key: &EntityKey) -> bool {
        self.bits(key).all(|bit| self.0[bit / 8] & (1 << (bit % 8)) != 0)
    }

    /// Returns the bits of a key: the two halves of one hash, combined (Kirsch and Mitzenmacher).
    fn bits(&self, key: &EntityKey) -> impl Iterator<Item = usize> + use<> {
        let bits = self.0.len() as u64 * 8;
        let (mut first, mut second) = (0xcbf2_9ce4_8422_2325_u64, 0x9e37_79b9_7f4a_7c15_u64);
        for byte in key.as_bytes() {
            first = (first ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            second = (second.rotate_left(7) ^ u64::from(*byte)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        }
        let step = second | 1;
        (0..HASHES).map(move |number| (first.wrapping_add(number.wrapping_mul(step)) % bits) as usize)
    }

    /// Encodes it as text.
    pub(super) fn to_text(&self) -> String {
        to_base64(&self.0)
    }

    /// Parses the output of [`EntityFilter::to_text`].
    pub(super) fn from_text(text: &str) -> Option<Self> {
        from_base64(text).filter(|bytes| (8..=BYTES_MAX).contains(&bytes.len())).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::EntityKind;

    fn key(number: u32) -> EntityKey {
        EntityKey::new(EntityKind::Span, &format!("span {number}"))
    }

    #[test]
    fn a_filter_finds_every_entity_and_few_others() {
        let keys: Vec<EntityKey> = (0..2000).map(key).collect();
        let filter = EntityFilter::from_text(&EntityFilter::new(&keys).to_text()).expect("its own text");
        assert!(keys.iter().all(|key| filter.may_contain(key)), "a search would miss a stored message");
        let wrong = (10_000..20_000).map(key).filter(|key| filter.may_contain(key)).count();
        assert!(wrong < 250, "{wrong} of 10,000 other entities match: searches read bundles for nothing");
    }

    #[test]
    fn an_empty_filter_contains_nothing() {
        assert!(!EntityFilter::new(&[]).may_contain(&key(1)));
        assert_eq!(EntityFilter::from_text(""), None);
    }
}
