//! The sealer: encrypts what is stored, decrypts what is read, as one generation of the row of `sealing` says.

use std::borrow::Cow;
use std::sync::Arc;

use rusqlite::Transaction;
use rusqlite::types::{ToSqlOutput, Value, ValueRef};

use super::cipher::{Cipher, KeyRing};
use super::context::{Destination, Lookup, SealContext, named};
use super::state::SealingState;
use crate::store::encryption::key::KeyId;
use crate::store::encryption::state::{Encryption, KeyState};
use crate::store::sqlite::codec::Packed;
use crate::store::sqlite::fault::Fault;

/// Added to the codec of a body that is sealed.
pub(crate) const SEALED: i64 = 16;

/// Bytes of the checksum that follows a compressed body before both are sealed.
const CHECKSUM_BYTES: usize = 8;

/// Stored in its place if there is none; a CRC is never negative.
const NO_CHECKSUM: i64 = -1;

/// Seals and opens values, as one generation of the row of `sealing` says.
pub(crate) struct Sealer {
    pub(super) ring: Arc<KeyRing>,
    pub(super) state: SealingState,
    /// Whether a key that the store needs is missing or wrong.
    pub(super) is_locked: bool,
}

impl Sealer {
    /// Returns the sealer for this row. Without its keys, everything that is not sealed stays readable.
    ///
    /// # Errors
    ///
    /// [`Fault::Damaged`] if the row does not match the key that it names.
    pub(crate) fn new(ring: &Arc<KeyRing>, state: SealingState) -> Result<Self, Fault> {
        let is_locked = match state.verify(ring) {
            Ok(()) => false,
            Err(Fault::KeyMissing { .. } | Fault::WrongKey { .. }) => true,
            Err(other) => return Err(other),
        };
        Ok(Self { ring: ring.clone(), state, is_locked })
    }

    /// Returns the sealer for recovering a damaged store: it opens what was sealed there, and seals everything with the
    /// key that was in use there. `rows` are the copies of its row of `sealing` that are left; without any, values are
    /// sealed as in a new store with these keys.
    ///
    /// # Errors
    ///
    /// [`Fault::KeyMissing`] and [`Fault::WrongKey`] if the row names a key that is not configured.
    pub(crate) fn recovering(ring: &Arc<KeyRing>, rows: &[SealingState]) -> Result<Self, Fault> {
        let newest = rows.iter().map(|row| row.generation).max();
        let (mut known, mut lacking) = (None, None);
        for row in rows.iter().filter(|row| Some(row.generation) == newest) {
            match row.verify(ring) {
                Ok(()) => known = Some(row),
                // One of several copies may be damaged; a damaged copy is ignored.
                Err(Fault::Damaged(_)) => {}
                Err(fault) => lacking = Some(fault),
            }
        }
        if let (None, Some(fault)) = (known, lacking) {
            return Err(fault);
        }
        let target = known.map_or(ring.current(), SealingState::key);
        let key = target.map(|id| ring.get(id).ok_or_else(|| ring.lacks(id))?.mark()).transpose()?;
        let generation = known.map_or(0, |row| row.generation).saturating_add(1);
        let state = SealingState { generation, key, previous: None, is_complete: true };
        // If it is unknown which keys were in use, a key that is not configured may have been among them.
        Ok(Self { ring: ring.clone(), state, is_locked: known.is_none() })
    }

    /// Writes the row of `sealing` of a new store.
    pub(crate) fn write_state(&self, tx: &Transaction<'_>) -> Result<(), Fault> {
        self.state.write(tx)
    }

    /// Returns the sealer of a store without encryption.
    #[cfg(test)]
    pub(crate) fn off() -> Self {
        let state = SealingState { generation: 0, key: None, previous: None, is_complete: true };
        Self { ring: Arc::new(KeyRing::new(&crate::store::encryption::key::Keys::default())), state, is_locked: false }
    }

    pub(crate) fn generation(&self) -> i64 {
        self.state.generation
    }

    pub(crate) fn state(&self) -> &SealingState {
        &self.state
    }

    /// Fails unless every key that the store needs is configured and correct.
    pub(crate) fn unlocked(&self) -> Result<(), Fault> {
        self.state.verify(&self.ring)
    }

    /// Returns whether values are sealed, or may have been.
    pub(crate) fn is_in_use(&self) -> bool {
        self.state.key.is_some() || !self.ring.is_empty()
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.is_locked
    }

    /// Returns the state of the encryption, for people.
    pub(crate) fn encryption(&self) -> Encryption {
        let key = match (self.is_locked, self.ring.is_empty()) {
            (false, _) => KeyState::Usable,
            (true, true) => KeyState::Missing,
            (true, false) => KeyState::Wrong,
        };
        let state = &self.state;
        let previous = state.previous.as_ref().map(|mark| mark.id);
        Encryption { sealed_with: state.key(), previous, is_complete: state.is_complete, key }
    }

    /// Returns the key that values are sealed with, or `None` if they are stored as plain text.
    pub(super) fn active(&self) -> Result<Option<&Cipher>, Fault> {
        // Values stored now must open later, and a look-up must find what exists.
        if self.is_locked {
            self.unlocked()?;
        }
        self.state.key().map(|id| self.ring.get(id).ok_or_else(|| self.ring.lacks(id))).transpose()
    }

    /// Seals bytes where the store is encrypted, and returns whether they are sealed.
    pub(crate) fn seal<'a>(&self, place: &SealContext<'_>, plain: &'a [u8]) -> Result<(Cow<'a, [u8]>, bool), Fault> {
        Ok(match self.active()? {
            Some(cipher) => (cipher.seal(place, plain)?.into(), true),
            None => (plain.into(), false),
        })
    }

    /// Opens a value that was sealed with any of the configured keys.
    pub(crate) fn open<'a>(&self, place: &SealContext<'_>, sealed: impl Into<Cow<'a, [u8]>>) -> Result<Vec<u8>, Fault> {
        let sealed = sealed.into();
        let id = sealed.get(..KeyId::LEN).and_then(KeyId::from_bytes);
        let id = id.ok_or_else(|| Fault::Damaged(format!("the sealed {place} is cut off")))?;
        let cipher = self.ring.get(id).ok_or_else(|| match self.is_locked {
            true => self.ring.lacks(id),
            // All keys of the store are configured, and this is none of them.
            false => Fault::Damaged(format!("the sealed {place} names the key {id}, which the store does not use")),
        })?;
        cipher.open(place, sealed)
    }

    /// Returns what a value is looked up by: the value itself, or its digest where values are sealed.
    pub(crate) fn lookup<'a>(&self, of: Lookup, value: &'a [u8]) -> Result<Cow<'a, [u8]>, Fault> {
        Ok(match self.active()? {
            Some(cipher) => cipher.digest(of, value).into(),
            None => value.into(),
        })
    }

    /// Seals a compressed body, with its message's checksum, where the store is encrypted.
    pub(crate) fn seal_body<'a>(
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

    /// Compresses a streamed body into one buffer and seals it there; returns `None` where the store is not encrypted.
    pub(crate) fn seal_streamed(
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

    /// Opens a body: compressed, with its message's checksum.
    pub(crate) fn open_body<'a>(
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

    /// Seals text where the store is encrypted. Sealed text is a blob.
    pub(crate) fn seal_text<'a>(&self, place: &SealContext<'_>, text: &'a str) -> Result<ToSqlOutput<'a>, Fault> {
        Ok(match self.active()? {
            Some(cipher) => ToSqlOutput::Owned(Value::Blob(cipher.seal(place, text.as_bytes())?)),
            None => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
        })
    }

    /// Seals a message's path if it has a query, which may contain anything.
    pub(crate) fn seal_path<'a>(&self, message: i64, path: &'a str) -> Result<ToSqlOutput<'a>, Fault> {
        match path.contains('?') {
            true => self.seal_text(&SealContext::Path { message }, path),
            false => Ok(ToSqlOutput::Borrowed(ValueRef::Text(path.as_bytes()))),
        }
    }

    /// Returns the plain text of a column, `None` for NULL.
    pub(crate) fn text(&self, place: &SealContext<'_>, kept: ValueRef<'_>) -> Result<Option<String>, Fault> {
        let bytes = match kept {
            ValueRef::Null => return Ok(None),
            ValueRef::Text(text) => text.to_vec(),
            ValueRef::Blob(sealed) => self.open(place, sealed)?,
            ValueRef::Integer(_) | ValueRef::Real(_) => return Err(Fault::Damaged(format!("the {place} is not text"))),
        };
        String::from_utf8(bytes).map(Some).map_err(|_| Fault::Damaged(format!("the {place} is not text")))
    }

    /// Returns the plain text of a message's path.
    pub(crate) fn path(&self, message: i64, kept: ValueRef<'_>) -> Result<String, Fault> {
        let path = self.text(&SealContext::Path { message }, kept)?;
        path.ok_or_else(|| Fault::Damaged(format!("message {message} has no path")))
    }

    /// Returns the plain value of a credential or header set, from its look-up column and its sealed column.
    pub(crate) fn value(&self, of: Lookup, looked_up_by: Vec<u8>, sealed: Option<&[u8]>) -> Result<Vec<u8>, Fault> {
        match sealed {
            None => Ok(looked_up_by),
            Some(sealed) => self.open(&named(of, &looked_up_by), sealed),
        }
    }

    /// Returns the look-up column and the sealed column of a credential or header set.
    pub(crate) fn seal_value(&self, of: Lookup, value: &[u8]) -> Result<(Vec<u8>, Option<Vec<u8>>), Fault> {
        let by = self.lookup(of, value)?.into_owned();
        let (kept, is_sealed) = self.seal(&named(of, &by), value)?;
        let sealed = is_sealed.then(|| kept.into_owned());
        Ok((by, sealed))
    }
}

/// A body as the columns of `bodies` hold it, sealed or only compressed.
#[derive(Clone, Debug)]
pub(crate) struct KeptBody<'a> {
    pub(crate) bytes: Cow<'a, [u8]>,
    pub(crate) codec: i64,
    /// The checksum of the message ([`crate::store::sqlite::record`]). `None` for a message that was stored without
    /// one, and for a sealed body, which contains it: a readable checksum would reveal something about the content.
    pub(crate) checksum: Option<i64>,
}

impl KeptBody<'_> {
    /// Returns the same body without copying its bytes.
    pub(crate) fn borrowed(&self) -> KeptBody<'_> {
        KeptBody { bytes: (&self.bytes[..]).into(), codec: self.codec, checksum: self.checksum }
    }
}
