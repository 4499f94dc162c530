//! Encryption: what of a store is sealed, with which key, and how.
//!
//! # What is sealed
//!
//! Sealed are bodies, the bytes and digests of attachments, paths with a query, stored answers, header sets and
//! credentials. Everything that a store is searched, counted or ordered by stays readable: ids of messages and
//! entities, types, statuses, counts, sizes, times, methods, paths without a query, workspaces, project names, the
//! reasons of holds, and the digests that identify rows of SDK files. A credential or header set is looked up by a
//! keyed digest (HMAC), which replaces its value in a sealed store, so that the same statements find it.
//!
//! # How
//!
//! XChaCha20-Poly1305, from RustCrypto: several processes seal for one store and cannot share a counter. A random nonce
//! of 192 bits never repeats, whereas the 96-bit nonces of ring's AEADs are safe for 2^32 messages per key. The keys
//! for sealing, for look-ups and for the key's name are derived from the user's key with HKDF.
//!
//! ```text
//! sealed: name of the key (8) | nonce (24) | ciphertext | tag (16)
//! ```
//!
//! Compression comes first; the codec of a body records both. The checksum of a message ([`super::record`]) is sealed
//! behind its body, because a CRC reveals something about what it covers: the tag proves that nobody changed the body,
//! and the checksum that nothing else of the message was changed or damaged. The associated data is the
//! [`SealContext`]: what is sealed for one message does not open as another's. It contains only what stays unchanged
//! for the life of a message and survives a recovery from a damaged file; a part of a divided message is a message of
//! its own and is sealed anew.
//!
//! This protects against someone who reads the file. Someone who writes to it can still remove, repeat and add
//! messages, or move one to another lane.
//!
//! # Key rotation
//!
//! The row of `sealing` names the key that new values are sealed with (or none), and the previous key that some values
//! may still be sealed with. Its `generation` is raised with every change. Every transaction reads it first, so that a
//! process that has the store open continues with the new key if it has that key, and touches nothing if it does not.
//!
//! # Invariants
//!
//! - A lane is always found: credentials are re-encrypted in the transaction that changes the key
//!   ([`super::key_change`]).
//! - At most two keys are in use: a third is refused until everything is sealed with the current one
//!   ([`mod@super::reseal`]).
//! - A reader that lacks a key of the store never reports damage: it cannot tell a damaged value from one that it may
//!   not read.

mod cipher;
mod context;
mod sealer;
mod state;

pub(super) use self::cipher::{KeyRing, SEAL_BYTES};
pub(super) use self::context::{Destination, Lookup, SealContext};
pub(super) use self::sealer::{KeptBody, SEALED, Sealer};
pub(super) use self::state::{SealingState, generation, verify_before_writing};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::cipher::Cipher;
    use super::*;
    use crate::message::{Body, Encoding};
    use crate::store::encryption::key::{EncryptionKey, Keys};
    use crate::store::sqlite::codec::{Packed, Packer, Unpacker};
    use crate::store::sqlite::fault::Fault;

    fn keys(byte: u8) -> Keys {
        let text = format!("{byte:02x}{}", "5a".repeat(31));
        Keys { current: Some(EncryptionKey::parse(&text, "a test").expect("a key")), previous: None }
    }

    fn sealer(byte: u8) -> Sealer {
        let ring = std::sync::Arc::new(KeyRing::new(&keys(byte)));
        let key = Some(ring.ciphers[0].mark().expect("a mark"));
        let state = SealingState { generation: 1, key, previous: None, is_complete: true };
        Sealer::new(&ring, state).expect("the key is its own")
    }

    fn keep<'a>(sealer: &Sealer, message: i64, packed: &'a Packed, checksum: Option<i64>) -> KeptBody<'a> {
        let plain = KeptBody { bytes: packed.bytes.as_ref().into(), codec: packed.codec as i64, checksum };
        sealer.seal_body(message, &TO, plain).expect("it is sealed")
    }

    fn sealed(codec: i64, bytes: &[u8]) -> KeptBody<'_> {
        KeptBody { bytes: bytes.into(), codec, checksum: None }
    }

    const TO: Destination<'static> = Destination { encoding: 0, method: "POST", path: "v1/private/traces" };

    #[test]
    fn sealed_values_open_only_in_their_own_context() {
        let sealer = sealer(1);
        let packed = Packer::new().pack(&Body::new("{\"input\": \"a secret of the user\"}", Encoding::Identity));
        let KeptBody { bytes: kept, codec, .. } = keep(&sealer, 12, &packed, Some(7));
        assert!(codec >= SEALED && !kept.windows(6).any(|window| window == b"secret"));
        assert!(sealer.open_body(12, &TO, sealed(codec, &kept)).is_ok());
        let other_path = Destination { path: "v1/private/spans", ..TO };
        let other_method = Destination { method: "PATCH", ..TO };
        let other_encoding = Destination { encoding: 1, ..TO };
        for (message, to, codec) in [
            (13, &TO, codec),
            (12, &other_path, codec),
            (12, &other_method, codec),
            (12, &other_encoding, codec),
            (12, &TO, codec ^ 1),
        ] {
            let refused =
                sealer.open_body(message, to, sealed(codec, &kept)).map(|_| ()).expect_err("it is another place");
            let Fault::Damaged(reason) = refused else { panic!("{refused:?}") };
            assert!(reason.contains(&format!("body of message {message} does not open")), "{reason}");
        }
        let answer = sealer.cipher().seal(&SealContext::Answer { message: 12 }, b"no").expect("it is sealed");
        assert!(sealer.open(&SealContext::Path { message: 12 }, &answer).is_err(), "an answer opened as a path");
    }

    #[test]
    fn a_wrong_key_is_reported_and_opens_nothing() {
        let sealed = sealer(1).cipher().seal(&SealContext::Answer { message: 1 }, b"text").expect("it is sealed");
        let place = SealContext::Answer { message: 1 };
        let locked = |sealer: Sealer| Sealer { is_locked: true, ..sealer };
        let refused = locked(sealer(2)).open(&place, &sealed);
        assert!(matches!(refused, Err(Fault::WrongKey { .. })), "{refused:?}");
        let refused = locked(Sealer::off()).open(&place, &sealed);
        assert!(matches!(refused, Err(Fault::KeyMissing { .. })), "{refused:?}");
        // A store whose keys are all there has nothing under another one: that is this thing's damage, not the store's.
        for unlocked in [sealer(2), Sealer::off()] {
            let refused = unlocked.open(&place, &sealed);
            assert!(matches!(refused, Err(Fault::Damaged(_))), "{refused:?}");
        }
    }

    #[test]
    fn a_damaged_check_value_of_a_key_is_damage() {
        let ring = std::sync::Arc::new(KeyRing::new(&keys(1)));
        let mut mark = ring.ciphers[0].mark().expect("a mark");
        mark.check[40] ^= 1;
        let state = SealingState { generation: 1, key: Some(mark), previous: None, is_complete: true };
        assert!(matches!(Sealer::new(&ring, state).map(|_| ()), Err(Fault::Damaged(_))));
    }

    #[test]
    fn contexts_differ_even_if_their_concatenated_texts_do_not() {
        let body = |method, path| SealContext::Body { message: 1, codec: 0, encoding: 0, method, path }.bytes();
        assert_ne!(body("PO", "STv1"), body("POST", "v1"));
        let bytes = [0; 8];
        assert_ne!(
            SealContext::Credential { digest: &bytes }.bytes(),
            SealContext::HeaderSet { digest: &bytes }.bytes()
        );
    }

    #[test]
    fn digests_are_those_of_earlier_releases() {
        // Made with Python's hmac and hashlib by RFC 5869: a change here would lose the lanes of every sealed store.
        let key = keys(0x5a ^ 1);
        let cipher = Cipher::new(key.current.as_ref().expect("a key"));
        assert_eq!(cipher.id.to_string(), PYTHON_ID);
        let digest: String = cipher.digest(Lookup::Credential, b"key").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digest, PYTHON_DIGEST);
    }

    const PYTHON_ID: &str = "ae9713f86aea25bd";
    const PYTHON_DIGEST: &str = "e66b5851e901074fa6c0c958c19722e815a67400a30b52c7c0299916fd406e26";

    impl Sealer {
        fn cipher(&self) -> &Cipher {
            self.active().expect("not locked").expect("sealed")
        }
    }

    proptest! {
        #[test]
        fn sealed_bodies_round_trip_and_detect_every_changed_bit(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            checksum in prop::option::of(0..=i64::from(u32::MAX)),
            flip in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let sealer = sealer(1);
            let body = Body::new(bytes, Encoding::Identity);
            let packed = Packer::new().pack(&body);
            let KeptBody { bytes: kept, codec, checksum: beside } = keep(&sealer, 7, &packed, checksum);
            prop_assert_eq!(beside, None, "the checksum can be read");
            let opened = sealer.open_body(7, &TO, sealed(codec, &kept)).expect("it opens");
            prop_assert_eq!(opened.checksum, checksum);
            let back = Unpacker::default().unpack(opened.codec, opened.bytes[..].into(), body.bytes.len() as u64);
            prop_assert_eq!(back.ok(), Some(body.bytes));
            let again = keep(&sealer, 7, &packed, checksum);
            prop_assert_ne!(&again.bytes, &kept, "the same bytes look the same");
            let mut changed = kept.to_vec();
            let bit = flip.index(changed.len() * 8);
            changed[bit / 8] ^= 1 << (bit % 8);
            let refused = sealer.open_body(7, &TO, sealed(codec, &changed));
            prop_assert!(matches!(refused, Err(Fault::Damaged(_))), "{:?}", refused);
            prop_assert!(sealer.open_body(7, &TO, sealed(codec, &kept[..cut.index(kept.len())])).is_err());
        }
    }
}
