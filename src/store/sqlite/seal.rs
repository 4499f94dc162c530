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
//! Compression comes first; a body's codec says both. The checksum of a message ([`super::checksum`]) is sealed behind its
//! body, because a CRC tells something of what it covers: the tag says that nobody changed the body, and the checksum that
//! nothing else of the message was changed, or damaged. The associated data is the thing's [`Place`]: what is sealed for one
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

use std::borrow::Cow;
use std::fmt;

use chacha20poly1305::aead::{Aead, AeadInOut, Payload};
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use zeroize::Zeroizing;

use super::codec::Packed;
use super::fault::Fault;
use super::proof::Watch;
use super::{guard, queries, reseal};
use crate::store::encryption::key::{EncryptionKey, KeyId, Keys};
use crate::store::{Encryption, KeyState};

/// What a codec's number is raised by when the body is sealed.
pub(super) const SEALED: i64 = 16;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
/// What is sealed is larger by this.
pub(super) const SEAL_BYTES: usize = KeyId::LEN + NONCE_BYTES + TAG_BYTES;
/// Bytes of the checksum that stands behind a compressed body before both are sealed.
const CHECKSUM_BYTES: usize = 8;
/// What stands there when there is none; a CRC is never negative.
const NO_CHECKSUM: i64 = -1;
/// What stands sealed in the row of `sealing`.
const CHECK: &[u8] = b"opik-offline";

/// Where a sealed thing belongs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// The body of a message that goes there.
    Body { message: i64, codec: i64, encoding: i64, method: &'a str, path: &'a str },
    /// The path of a message.
    Path { message: i64 },
    /// The last answer to a message.
    Answer { message: i64 },
    /// A piece of an attachment, by its key.
    Piece { piece: i64 },
    /// The digest of an attachment, which ties the pieces to their message.
    Digest { message: i64, attachment: i64, bytes: i64 },
    /// A credential, by its digest.
    Credential { digest: &'a [u8] },
    /// A header set, by its digest.
    HeaderSet { digest: &'a [u8] },
    /// The row that says which key it is.
    Check,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body { message, .. } => write!(f, "body of message {message}"),
            Self::Path { message } => write!(f, "path of message {message}"),
            Self::Answer { message } => write!(f, "last answer to message {message}"),
            Self::Piece { piece } => write!(f, "piece {} of attachment {}", piece & 0xff_ffff, piece >> 24),
            Self::Digest { message, .. } => write!(f, "digest of the attachment of message {message}"),
            Self::Credential { .. } => f.write_str("credential of a lane"),
            Self::HeaderSet { .. } => f.write_str("header set of a message"),
            Self::Check => f.write_str("name of the key"),
        }
    }
}

impl Place<'_> {
    /// Returns the associated data: the kind, then numbers, then texts, each with its length before it.
    fn bytes(&self) -> Vec<u8> {
        let (kind, numbers, texts): (u8, &[i64], &[&[u8]]) = match self {
            Self::Body { message, codec, encoding, method, path } => {
                (1, &[*message, *codec, *encoding], &[method.as_bytes(), path.as_bytes()])
            }
            Self::Path { message } => (2, &[*message], &[]),
            Self::Answer { message } => (3, &[*message], &[]),
            Self::Piece { piece } => (4, &[*piece], &[]),
            Self::Digest { message, attachment, bytes } => (5, &[*message, *attachment, *bytes], &[]),
            Self::Credential { digest } => (6, &[], &[digest]),
            Self::HeaderSet { digest } => (7, &[], &[digest]),
            Self::Check => (8, &[], &[]),
        };
        let mut bytes = vec![kind];
        numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        for text in texts {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(*text);
        }
        bytes
    }
}

/// What is looked for by a digest.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Lookup {
    Credential = 1,
    HeaderSet = 2,
}

/// One key, ready for use. Everything secret in it is overwritten when it is dropped.
struct Cipher {
    id: KeyId,
    aead: XChaCha20Poly1305,
    lookup: Zeroizing<[u8; 32]>,
}

impl Cipher {
    fn new(key: &EncryptionKey) -> Self {
        let seal = Zeroizing::new(key.derive::<32>(b"seal"));
        let aead = XChaCha20Poly1305::new((&*seal).into());
        Self { id: key.id(), aead, lookup: Zeroizing::new(key.derive(b"look-up")) }
    }

    fn seal(&self, place: &Place<'_>, plain: &[u8]) -> Result<Vec<u8>, Fault> {
        self.seal_joined(place, plain, &[])
    }

    /// Seals two texts as one.
    fn seal_joined(&self, place: &Place<'_>, plain: &[u8], end: &[u8]) -> Result<Vec<u8>, Fault> {
        self.seal_filled(place, plain.len() + end.len(), |bytes| {
            bytes.extend_from_slice(plain);
            bytes.extend_from_slice(end);
            Ok(())
        })
    }

    /// Seals what is put into the one buffer that is returned: a body may be large.
    fn seal_filled(
        &self,
        place: &Place<'_>,
        length: usize,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), Fault>,
    ) -> Result<Vec<u8>, Fault> {
        let mut nonce = [0; NONCE_BYTES];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Fault::Sealing("the system gives no random numbers"))?;
        let mut bytes = Vec::with_capacity(SEAL_BYTES + length);
        bytes.extend(self.id.0);
        bytes.extend(nonce);
        fill(&mut bytes)?;
        let text = (&mut bytes[KeyId::LEN + NONCE_BYTES..]).into();
        let tag = self.aead.encrypt_inout_detached(&XNonce::from(nonce), &place.bytes(), text);
        bytes.extend(tag.map_err(|_| Fault::Sealing("it is too large to be sealed"))?);
        Ok(bytes)
    }

    /// Opens what was sealed under this key.
    fn open(&self, place: &Place<'_>, sealed: Cow<'_, [u8]>) -> Result<Vec<u8>, Fault> {
        let changed =
            || Fault::Damaged(format!("the sealed {place} does not open: it was changed, or belongs to another place"));
        let sealed = match sealed {
            Cow::Borrowed(sealed) => sealed,
            // In its own buffer: it may be large.
            Cow::Owned(mut bytes) => {
                const HEAD: usize = KeyId::LEN + NONCE_BYTES;
                let (text, tag) = bytes.split_last_chunk_mut::<TAG_BYTES>().ok_or_else(changed)?;
                let (head, text) = text.split_first_chunk_mut::<HEAD>().ok_or_else(changed)?;
                let nonce = head.last_chunk::<NONCE_BYTES>().ok_or_else(changed)?;
                let (nonce, tag) = (XNonce::from(*nonce), Tag::from(*tag));
                let opened = self.aead.decrypt_inout_detached(&nonce, &place.bytes(), text.into(), &tag);
                opened.map_err(|_| changed())?;
                bytes.truncate(bytes.len() - TAG_BYTES);
                bytes.drain(..HEAD);
                return Ok(bytes);
            }
        };
        let opened = sealed.get(KeyId::LEN..).and_then(|rest| {
            let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>()?;
            self.aead.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &place.bytes() }).ok()
        });
        opened.ok_or_else(changed)
    }

    fn digest(&self, of: Lookup, value: &[u8]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.lookup[..]));
        context.update(&[of as u8]);
        context.update(value);
        context.sign().as_ref().to_vec()
    }

    fn mark(&self) -> Result<Mark, Fault> {
        Ok(Mark { id: self.id, check: self.seal(&Place::Check, CHECK)? })
    }
}

/// The keys of this process.
pub(super) struct KeyRing {
    ciphers: Vec<Cipher>,
    current: Option<KeyId>,
}

impl KeyRing {
    pub(super) fn new(keys: &Keys) -> Self {
        let ciphers = keys.current.iter().chain(&keys.previous).map(Cipher::new).collect();
        Self { ciphers, current: keys.current.as_ref().map(EncryptionKey::id) }
    }

    fn get(&self, id: KeyId) -> Option<&Cipher> {
        self.ciphers.iter().find(|cipher| cipher.id == id)
    }

    /// Returns the key that new things are to be sealed under.
    pub(super) fn current(&self) -> Option<KeyId> {
        self.current
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ciphers.is_empty()
    }

    /// Says why something can't be opened that needs this key.
    fn lacks(&self, needed: KeyId) -> Fault {
        match self.ciphers.first() {
            None => Fault::KeyMissing { needed },
            Some(given) => Fault::WrongKey { needed, given: given.id },
        }
    }
}

/// A key in the row of `sealing`.
#[derive(Clone, Debug)]
struct Mark {
    id: KeyId,
    /// Something that only this key opens.
    check: Vec<u8>,
}

/// The row of `sealing`.
#[derive(Clone, Debug)]
pub(super) struct State {
    generation: i64,
    key: Option<Mark>,
    previous: Option<Mark>,
    /// Whether everything is kept under `key`, and nothing of before lies in free pages.
    is_complete: bool,
}

/// Returns the generation of the row of `sealing`: all that a transaction needs to see while nothing changes.
pub(super) fn generation(connection: &Connection) -> Result<i64, Fault> {
    Ok(connection.prepare_cached(queries::SEALING_GENERATION)?.query_row([], |row| row.get(0))?)
}

impl State {
    pub(super) fn read(connection: &Connection) -> Result<Self, Fault> {
        connection
            .prepare_cached(queries::SEALING)?
            .query_row([], |row| {
                let mark = |id: usize| -> rusqlite::Result<Option<Mark>> {
                    let bytes: Option<Vec<u8>> = row.get(id)?;
                    let id_read = bytes.as_deref().and_then(KeyId::from_bytes);
                    let check: Option<Vec<u8>> = row.get(id + 1)?;
                    Ok(id_read.map(|id| Mark { id, check: check.unwrap_or_default() }))
                };
                Ok(Self { generation: row.get(0)?, key: mark(1)?, previous: mark(3)?, is_complete: row.get(5)? })
            })
            .map_err(Fault::from)
    }

    /// Returns the row with this generation, whose keys have these names and checks; `None` when there is no such row.
    pub(super) fn of(
        generation: i64,
        [key, check, previous, previous_check]: [Option<&[u8]>; 4],
        is_complete: bool,
    ) -> Option<Self> {
        let mark = |name: Option<&[u8]>, check: Option<&[u8]>| match (name, check) {
            (None, None) => Some(None),
            (Some(name), Some(check)) => Some(Some(Mark { id: KeyId::from_bytes(name)?, check: check.to_vec() })),
            _ => None,
        };
        Some(Self { generation, key: mark(key, check)?, previous: mark(previous, previous_check)?, is_complete })
    }

    fn write(&self, tx: &Transaction<'_>) -> Result<(), Fault> {
        let columns = |mark: &Option<Mark>| match mark {
            Some(mark) => (Some(mark.id.0.to_vec()), Some(mark.check.clone())),
            None => (None, None),
        };
        let ((key, check), (previous, previous_check)) = (columns(&self.key), columns(&self.previous));
        let row = params![self.generation, key, check, previous, previous_check, self.is_complete];
        tx.prepare_cached(queries::SET_SEALING)?.execute(row)?;
        Ok(())
    }

    /// Returns the key that things are kept under.
    pub(super) fn key(&self) -> Option<KeyId> {
        self.key.as_ref().map(|mark| mark.id)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    fn marks(&self) -> impl Iterator<Item = &Mark> {
        self.key.iter().chain(&self.previous)
    }

    /// Looks whether the keys that the store needs are there and are the ones.
    fn verify(&self, ring: &KeyRing) -> Result<(), Fault> {
        for mark in self.marks() {
            let cipher = ring.get(mark.id).ok_or_else(|| ring.lacks(mark.id))?;
            cipher.open(&Place::Check, mark.check[..].into())?;
        }
        Ok(())
    }

    /// Returns the row in which things are kept under this key from now on, or `None` when they are already.
    ///
    /// # Errors
    ///
    /// [`Fault::KeyMissing`] and [`Fault::WrongKey`] when a key that is in use is not there, and
    /// [`Fault::TooManyKeys`] when there would be three.
    fn changed_to(&self, target: Option<KeyId>, ring: &KeyRing) -> Result<Option<Self>, Fault> {
        self.verify(ring)?;
        if self.key() == target {
            return Ok(None);
        }
        let mut others: Vec<&Mark> = self.marks().filter(|mark| Some(mark.id) != target).collect();
        let previous = others.pop().cloned();
        if !others.is_empty() {
            return Err(Fault::TooManyKeys);
        }
        let key = match target {
            Some(id) => Some(ring.get(id).ok_or_else(|| ring.lacks(id))?.mark()?),
            None => None,
        };
        Ok(Some(Self { generation: self.generation + 1, key, previous, is_complete: false }))
    }
}

/// Seals and opens, as one generation of the row of `sealing` says.
pub(super) struct Sealer {
    ring: std::sync::Arc<KeyRing>,
    state: State,
    /// Whether the keys are those that the store needs.
    is_locked: bool,
}

impl Sealer {
    /// Returns the sealer for this row. One whose key is not there still leaves everything readable that is not sealed.
    ///
    /// # Errors
    ///
    /// [`Fault::Damaged`] when the row does not fit the key that it names.
    pub(super) fn new(ring: &std::sync::Arc<KeyRing>, state: State) -> Result<Self, Fault> {
        let is_locked = match state.verify(ring) {
            Ok(()) => false,
            Err(Fault::KeyMissing { .. } | Fault::WrongKey { .. }) => true,
            Err(other) => return Err(other),
        };
        Ok(Self { ring: ring.clone(), state, is_locked })
    }

    /// Returns the sealer of a new store that takes over what is left of a damaged one: it opens what was sealed there,
    /// and keeps everything under the key that was in use there. `rows` are what is left of its row of `sealing`; without
    /// any, things are kept as they are in a store that is made with these keys.
    ///
    /// # Errors
    ///
    /// [`Fault::KeyMissing`] and [`Fault::WrongKey`] when the row names a key that is not there.
    pub(super) fn recovering(ring: &std::sync::Arc<KeyRing>, rows: &[State]) -> Result<Self, Fault> {
        let newest = rows.iter().map(|row| row.generation).max();
        let (mut known, mut lacking) = (None, None);
        for row in rows.iter().filter(|row| Some(row.generation) == newest) {
            match row.verify(ring) {
                Ok(()) => known = Some(row),
                // Of several copies, one is damaged; of one that is damaged nothing is believed.
                Err(Fault::Damaged(_)) => {}
                Err(fault) => lacking = Some(fault),
            }
        }
        if let (None, Some(fault)) = (known, lacking) {
            return Err(fault);
        }
        let target = known.map_or(ring.current(), State::key);
        let key = target.map(|id| ring.get(id).ok_or_else(|| ring.lacks(id))?.mark()).transpose()?;
        let generation = known.map_or(0, |row| row.generation).saturating_add(1);
        let state = State { generation, key, previous: None, is_complete: true };
        // Where nobody knows which keys were in use, one that we don't have may have been.
        Ok(Self { ring: ring.clone(), state, is_locked: known.is_none() })
    }

    /// Writes the row of `sealing` of a new store.
    pub(super) fn put_down(&self, tx: &Transaction<'_>) -> Result<(), Fault> {
        self.state.write(tx)
    }

    /// Returns a sealer of a store that is not sealed.
    #[cfg(test)]
    pub(super) fn off() -> Self {
        let state = State { generation: 0, key: None, previous: None, is_complete: true };
        Self { ring: std::sync::Arc::new(KeyRing::new(&Keys::default())), state, is_locked: false }
    }

    pub(super) fn generation(&self) -> i64 {
        self.state.generation
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Fails unless everything that the store may hold can be opened.
    pub(super) fn unlocked(&self) -> Result<(), Fault> {
        self.state.verify(&self.ring)
    }

    /// Says whether things are sealed, or may have been.
    pub(super) fn is_in_use(&self) -> bool {
        self.state.key.is_some() || !self.ring.is_empty()
    }

    pub(super) fn is_locked(&self) -> bool {
        self.is_locked
    }

    /// Says how the store stands, for people.
    pub(super) fn encryption(&self) -> Encryption {
        let key = match (self.is_locked, self.ring.is_empty()) {
            (false, _) => KeyState::Usable,
            (true, true) => KeyState::Missing,
            (true, false) => KeyState::Wrong,
        };
        let state = &self.state;
        let previous = state.previous.as_ref().map(|mark| mark.id);
        Encryption { sealed_with: state.key(), previous, is_complete: state.is_complete, key }
    }

    /// Returns the key that things are kept under, or `None` when they are kept as they are.
    fn active(&self) -> Result<Option<&Cipher>, Fault> {
        // What is stored now must open later, and a look-up must find what is there.
        if self.is_locked {
            self.unlocked()?;
        }
        self.state.key().map(|id| self.ring.get(id).ok_or_else(|| self.ring.lacks(id))).transpose()
    }

    /// Returns bytes as they are to be kept, and whether they are sealed.
    pub(super) fn keep<'a>(&self, place: &Place<'_>, plain: &'a [u8]) -> Result<(Cow<'a, [u8]>, bool), Fault> {
        Ok(match self.active()? {
            Some(cipher) => (cipher.seal(place, plain)?.into(), true),
            None => (plain.into(), false),
        })
    }

    /// Opens what is sealed, under whichever of our keys.
    pub(super) fn open<'a>(&self, place: &Place<'_>, sealed: impl Into<Cow<'a, [u8]>>) -> Result<Vec<u8>, Fault> {
        let sealed = sealed.into();
        let id = sealed.get(..KeyId::LEN).and_then(KeyId::from_bytes);
        let id = id.ok_or_else(|| Fault::Damaged(format!("the sealed {place} is cut off")))?;
        let cipher = self.ring.get(id).ok_or_else(|| match self.is_locked {
            true => self.ring.lacks(id),
            // We have all keys of the store, so this one is none of them.
            false => Fault::Damaged(format!("the sealed {place} names the key {id}, which the store does not use")),
        })?;
        cipher.open(place, sealed)
    }

    /// Returns what a value is looked up by: itself, or its digest where values are sealed.
    pub(super) fn lookup<'a>(&self, of: Lookup, value: &'a [u8]) -> Result<Cow<'a, [u8]>, Fault> {
        Ok(match self.active()? {
            Some(cipher) => cipher.digest(of, value).into(),
            None => value.into(),
        })
    }

    /// Returns a compressed body as it is to be kept.
    pub(super) fn keep_body<'a>(
        &self,
        message: i64,
        to: &Destination<'_>,
        packed: KeptBody<'a>,
    ) -> Result<KeptBody<'a>, Fault> {
        let Some(cipher) = self.active()? else { return Ok(packed) };
        let KeptBody { bytes, codec, checksum } = packed;
        let checksum = checksum.unwrap_or(NO_CHECKSUM).to_le_bytes();
        let sealed = cipher.seal_joined(&to.place(message, codec), &bytes, &checksum)?;
        Ok(KeptBody { bytes: sealed.into(), codec: codec + SEALED, checksum: None })
    }

    /// Returns a body that is compressed while it is written as it is to be kept, or `None` when nothing is sealed.
    pub(super) fn keep_streamed(
        &self,
        message: i64,
        to: &Destination<'_>,
        packed: &Packed,
        checksum: i64,
    ) -> Result<Option<KeptBody<'static>>, Fault> {
        let Some(cipher) = self.active()? else { return Ok(None) };
        let codec = packed.codec as i64;
        let sealed = cipher.seal_filled(&to.place(message, codec), packed.len() + CHECKSUM_BYTES, |bytes| {
            packed.stream(&mut *bytes).map_err(|_| Fault::Sealing("it can't be compressed"))?;
            bytes.extend(checksum.to_le_bytes());
            Ok(())
        })?;
        Ok(Some(KeptBody { bytes: sealed.into(), codec: codec + SEALED, checksum: None }))
    }

    /// Returns a body as it was before it was sealed: compressed, with its message's checksum.
    pub(super) fn open_body<'a>(
        &self,
        message: i64,
        to: &Destination<'_>,
        kept: KeptBody<'a>,
    ) -> Result<KeptBody<'a>, Fault> {
        if kept.codec < SEALED {
            return Ok(kept);
        }
        let codec = kept.codec - SEALED;
        let mut bytes = self.open(&to.place(message, codec), kept.bytes)?;
        let checksum = bytes.split_last_chunk().map(|(_, last)| i64::from_le_bytes(*last));
        let checksum =
            checksum.ok_or_else(|| Fault::Damaged(format!("the sealed body of message {message} is cut off")))?;
        bytes.truncate(bytes.len() - CHECKSUM_BYTES);
        Ok(KeptBody { bytes: bytes.into(), codec, checksum: Some(checksum).filter(|found| *found != NO_CHECKSUM) })
    }

    /// Returns text as it is to be kept: sealed text is a blob.
    pub(super) fn keep_text<'a>(&self, place: &Place<'_>, text: &'a str) -> Result<ToSqlOutput<'a>, Fault> {
        Ok(match self.active()? {
            Some(cipher) => ToSqlOutput::Owned(Value::Blob(cipher.seal(place, text.as_bytes())?)),
            None => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
        })
    }

    /// Returns a message's path as it is to be kept: sealed when it has a query, which may say anything.
    pub(super) fn keep_path<'a>(&self, message: i64, path: &'a str) -> Result<ToSqlOutput<'a>, Fault> {
        match path.contains('?') {
            true => self.keep_text(&Place::Path { message }, path),
            false => Ok(ToSqlOutput::Borrowed(ValueRef::Text(path.as_bytes()))),
        }
    }

    /// Returns text as it was given, `None` for NULL.
    pub(super) fn text(&self, place: &Place<'_>, kept: ValueRef<'_>) -> Result<Option<String>, Fault> {
        let bytes = match kept {
            ValueRef::Null => return Ok(None),
            ValueRef::Text(text) => text.to_vec(),
            ValueRef::Blob(sealed) => self.open(place, sealed)?,
            ValueRef::Integer(_) | ValueRef::Real(_) => return Err(Fault::Damaged(format!("the {place} is no text"))),
        };
        String::from_utf8(bytes).map(Some).map_err(|_| Fault::Damaged(format!("the {place} is no text")))
    }

    /// Returns a message's path.
    pub(super) fn path(&self, message: i64, kept: ValueRef<'_>) -> Result<String, Fault> {
        let path = self.text(&Place::Path { message }, kept)?;
        path.ok_or_else(|| Fault::Damaged(format!("message {message} has no path")))
    }

    /// Returns a credential or header set as it was given, from the column that it is looked up by and the sealed one.
    pub(super) fn value(&self, of: Lookup, looked_up_by: Vec<u8>, sealed: Option<&[u8]>) -> Result<Vec<u8>, Fault> {
        match sealed {
            None => Ok(looked_up_by),
            Some(sealed) => self.open(&named(of, &looked_up_by), sealed),
        }
    }

    /// Returns what a credential or header set is looked up by, and what is kept beside it.
    pub(super) fn keep_value(&self, of: Lookup, value: &[u8]) -> Result<(Vec<u8>, Option<Vec<u8>>), Fault> {
        let by = self.lookup(of, value)?.into_owned();
        let (kept, is_sealed) = self.keep(&named(of, &by), value)?;
        let sealed = is_sealed.then(|| kept.into_owned());
        Ok((by, sealed))
    }
}

fn named(of: Lookup, digest: &[u8]) -> Place<'_> {
    match of {
        Lookup::Credential => Place::Credential { digest },
        Lookup::HeaderSet => Place::HeaderSet { digest },
    }
}

/// A body as the columns of `bodies` have it, sealed or only compressed.
#[derive(Clone, Debug)]
pub(super) struct KeptBody<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    pub(super) codec: i64,
    /// The checksum of the message ([`super::checksum`]). `None` where the message was stored without one, and where the
    /// body is sealed: it lies inside then, because it would tell something of the content.
    pub(super) checksum: Option<i64>,
}

impl KeptBody<'_> {
    /// Returns the same without a copy of the bytes.
    pub(super) fn borrowed(&self) -> KeptBody<'_> {
        KeptBody { bytes: (&self.bytes[..]).into(), codec: self.codec, checksum: self.checksum }
    }
}

/// Where a body goes and how its bytes are to be read there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Destination<'a> {
    pub(super) encoding: i64,
    pub(super) method: &'a str,
    pub(super) path: &'a str,
}

impl<'a> Destination<'a> {
    pub(super) fn place(&self, message: i64, codec: i64) -> Place<'a> {
        let Self { encoding, method, path } = *self;
        Place::Body { message, codec, encoding, method, path }
    }
}

/// Looks whether the keys are those of the store, in a file that may not have been brought up to date yet: what is locked
/// is not written to.
pub(super) fn verify_before_writing(connection: &Connection, ring: &KeyRing) -> Result<(), Fault> {
    let has_table = connection.prepare(queries::HAS_SEALING)?.exists([])?;
    if has_table { State::read(connection)?.verify(ring) } else { Ok(()) }
}

/// Keeps everything under this key (or as it is) from now on, in one transaction with the credentials: a lane that is not
/// found is a lane whose order is not kept. Header sets are taken along, so that hardly any comes twice. Says whether there was anything to change.
pub(super) fn change_key(
    connection: &mut Connection,
    watch: &Watch,
    ring: &std::sync::Arc<KeyRing>,
    target: Option<KeyId>,
) -> Result<bool, Fault> {
    if State::read(connection)?.changed_to(target, ring)?.is_none() {
        return Ok(false);
    }
    let tx = guard::begin(connection, watch)?;
    let before = State::read(&tx)?;
    // Another process may have been faster.
    let Some(mut state) = before.changed_to(target, ring)? else { return Ok(false) };
    // In a store that never had anything there is nothing to be made good.
    state.is_complete = !tx.prepare(queries::EVER_USED)?.exists([])?;
    if state.is_complete {
        state.previous = None;
    }
    state.write(&tx)?;
    let sealer = Sealer::new(ring, state)?;
    let sealer_before = Sealer::new(ring, before)?;
    let credentials = {
        let mut statement = tx.prepare(queries::CREDENTIALS)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect::<rusqlite::Result<Vec<(i64, Vec<u8>, Option<Vec<u8>>)>>>()?
    };
    for (id, by, sealed) in credentials {
        let value = Zeroizing::new(sealer_before.value(Lookup::Credential, by, sealed.as_deref())?);
        let (by, sealed) = sealer.keep_value(Lookup::Credential, &value)?;
        let twin: Option<i64> =
            tx.prepare_cached(queries::CREDENTIAL_ID)?.query_row([&by], |row| row.get(0)).optional()?;
        match twin.filter(|twin| *twin != id) {
            Some(twin) => {
                tx.execute(queries::REPLACE_CREDENTIAL, [id, twin])?;
                tx.execute(queries::DROP_CREDENTIAL, [id])?;
            }
            None => {
                tx.execute(queries::SET_CREDENTIAL, params![id, by, sealed])?;
            }
        }
    }
    reseal::keep_first_header_sets(&tx, &sealer)?;
    tx.commit()?;
    Ok(true)
}

/// Notes that everything is kept as asked, and nothing of before is left. Says `false` when the key was changed meanwhile.
pub(super) fn note_complete(connection: &mut Connection, watch: &Watch, generation_seen: i64) -> Result<bool, Fault> {
    let tx = guard::begin(connection, watch)?;
    let state = State::read(&tx)?;
    if state.generation != generation_seen {
        return Ok(false);
    }
    State { generation: generation_seen + 1, previous: None, is_complete: true, ..state }.write(&tx)?;
    tx.commit()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Body, Encoding};
    use crate::store::sqlite::codec::{Packer, Unpacker};

    fn keys(byte: u8) -> Keys {
        let text = format!("{byte:02x}{}", "5a".repeat(31));
        Keys { current: Some(EncryptionKey::parse(&text, "a test").expect("a key")), previous: None }
    }

    fn sealer(byte: u8) -> Sealer {
        let ring = std::sync::Arc::new(KeyRing::new(&keys(byte)));
        let key = Some(ring.ciphers[0].mark().expect("a mark"));
        let state = State { generation: 1, key, previous: None, is_complete: true };
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
        let answer = sealer.cipher().seal(&Place::Answer { message: 12 }, b"no").expect("it is sealed");
        assert!(sealer.open(&Place::Path { message: 12 }, &answer).is_err(), "an answer is no path");
    }

    #[test]
    fn another_key_is_named_and_opens_nothing() {
        let sealed = sealer(1).cipher().seal(&Place::Answer { message: 1 }, b"text").expect("it is sealed");
        let place = Place::Answer { message: 1 };
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
        let state = State { generation: 1, key: Some(mark), previous: None, is_complete: true };
        assert!(matches!(Sealer::new(&ring, state).map(|_| ()), Err(Fault::Damaged(_))));
    }

    #[test]
    fn places_are_told_apart_whatever_their_texts_are() {
        let body = |method, path| Place::Body { message: 1, codec: 0, encoding: 0, method, path }.bytes();
        assert_ne!(body("PO", "STv1"), body("POST", "v1"));
        let bytes = [0; 8];
        assert_ne!(Place::Credential { digest: &bytes }.bytes(), Place::HeaderSet { digest: &bytes }.bytes());
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
