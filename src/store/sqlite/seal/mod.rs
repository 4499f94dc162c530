//! What of a store is sealed, under which key, and how.
//!
//! # What is sealed
//!
//! Bodies, the bytes and digests of attachments, paths that have a query, kept answers, header sets and credentials. What a
//! store is searched, counted and ordered by stays readable: ids of messages and entities, types, statuses, counts, sizes,
//! times, methods, paths without a query, workspaces, project names, why a lane is held, and the digests by which rows of
//! SDK files are recognised. A credential or header set is found by a keyed digest (HMAC) that stands where its value
//! stands in a store that is not sealed, so that the same statements find it.
//!
//! # How
//!
//! XChaCha20-Poly1305, of RustCrypto: several processes seal for one store, none of which could keep a counter for all,
//! and a random nonce of 192 bits never comes twice, whereas the 96 bits that ring's AEADs have are good for 2^32 messages
//! of a key. The keys for sealing, for look-ups and for the key's name are derived from the user's by HKDF.
//!
//! ```text
//! sealed: name of the key (8) | nonce (24) | ciphertext | tag (16)
//! ```
//!
//! Compression comes first; a body's codec says both. The checksum of a message ([`super::record`]) is sealed behind its
//! body, because a CRC tells something of what it covers: the tag says that nobody changed the body, and the checksum that
//! nothing else of the message was changed, or damaged. The associated data is the thing's [`SealContext`]: what is sealed for one
//! message does not open as another's. It names only what stays as it is for the life of a message and what a recovery
//! from a damaged file keeps; a part of a divided message is a message of its own and sealed anew.
//!
//! It is kept from someone who reads the file. Someone who writes to it can still remove, repeat and add messages, or
//! point one at another lane.
//!
//! # Which key
//!
//! The row of `sealing` says under which key new things are kept (or none), and under which other one there may still be
//! some. Its `generation` is raised with every change of that. Every transaction looks at it first, so that a process that
//! has the store open goes on with the new key if it has it, and touches nothing if it does not.

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
    use crate::store::key::{EncryptionKey, Keys};
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
        sealer.keep_body(message, &TO, plain).expect("it is sealed")
    }

    fn sealed(codec: i64, bytes: &[u8]) -> KeptBody<'_> {
        KeptBody { bytes: bytes.into(), codec, checksum: None }
    }

    const TO: Destination<'static> = Destination { encoding: 0, method: "POST", path: "v1/private/traces" };

    #[test]
    fn nothing_opens_in_another_place_and_the_error_names_the_message() {
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
        assert!(sealer.open(&SealContext::Path { message: 12 }, &answer).is_err(), "an answer is no path");
    }

    #[test]
    fn another_key_is_named_and_opens_nothing() {
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
    fn a_row_that_names_a_key_is_believed_only_when_the_key_opens_it() {
        let ring = std::sync::Arc::new(KeyRing::new(&keys(1)));
        let mut mark = ring.ciphers[0].mark().expect("a mark");
        mark.check[40] ^= 1;
        let state = SealingState { generation: 1, key: Some(mark), previous: None, is_complete: true };
        assert!(matches!(Sealer::new(&ring, state).map(|_| ()), Err(Fault::Damaged(_))));
    }

    #[test]
    fn places_are_told_apart_whatever_their_texts_are() {
        let body = |method, path| SealContext::Body { message: 1, codec: 0, encoding: 0, method, path }.bytes();
        assert_ne!(body("PO", "STv1"), body("POST", "v1"));
        let bytes = [0; 8];
        assert_ne!(
            SealContext::Credential { digest: &bytes }.bytes(),
            SealContext::HeaderSet { digest: &bytes }.bytes()
        );
    }

    #[test]
    fn a_store_of_an_earlier_release_keeps_its_digests() {
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
        fn what_is_sealed_opens_as_it_was_and_not_when_a_bit_of_it_changes(
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
