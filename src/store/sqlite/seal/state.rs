//! The row of `sealing`: which keys a store uses.

use rusqlite::{Connection, Transaction, params};

use super::cipher::{KeyMark, KeyRing};
use super::context::SealContext;
use crate::store::key::KeyId;
use crate::store::sqlite::fault::Fault;
use crate::store::sqlite::queries;

/// The row of `sealing`.
#[derive(Clone, Debug)]
pub(crate) struct SealingState {
    pub(crate) generation: i64,
    pub(super) key: Option<KeyMark>,
    pub(super) previous: Option<KeyMark>,
    /// Whether everything is kept under `key`, and nothing of before lies in free pages.
    pub(super) is_complete: bool,
}

/// Returns the generation of the row of `sealing`: all that a transaction needs to see while nothing changes.
pub(crate) fn generation(connection: &Connection) -> Result<i64, Fault> {
    Ok(connection.prepare_cached(queries::SEALING_GENERATION)?.query_row([], |row| row.get(0))?)
}

impl SealingState {
    pub(crate) fn read(connection: &Connection) -> Result<Self, Fault> {
        connection
            .prepare_cached(queries::SEALING)?
            .query_row([], |row| {
                let mark = |id: usize| -> rusqlite::Result<Option<KeyMark>> {
                    let bytes: Option<Vec<u8>> = row.get(id)?;
                    let id_read = bytes.as_deref().and_then(KeyId::from_bytes);
                    let check: Option<Vec<u8>> = row.get(id + 1)?;
                    Ok(id_read.map(|id| KeyMark { id, check: check.unwrap_or_default() }))
                };
                Ok(Self { generation: row.get(0)?, key: mark(1)?, previous: mark(3)?, is_complete: row.get(5)? })
            })
            .map_err(Fault::from)
    }

    /// Returns the row with this generation, whose keys have these names and checks; `None` when there is no such row.
    pub(crate) fn of(
        generation: i64,
        [key, check, previous, previous_check]: [Option<&[u8]>; 4],
        is_complete: bool,
    ) -> Option<Self> {
        let mark = |name: Option<&[u8]>, check: Option<&[u8]>| match (name, check) {
            (None, None) => Some(None),
            (Some(name), Some(check)) => Some(Some(KeyMark { id: KeyId::from_bytes(name)?, check: check.to_vec() })),
            _ => None,
        };
        Some(Self { generation, key: mark(key, check)?, previous: mark(previous, previous_check)?, is_complete })
    }

    pub(crate) fn write(&self, tx: &Transaction<'_>) -> Result<(), Fault> {
        let columns = |mark: &Option<KeyMark>| match mark {
            Some(mark) => (Some(mark.id.0.to_vec()), Some(mark.check.clone())),
            None => (None, None),
        };
        let ((key, check), (previous, previous_check)) = (columns(&self.key), columns(&self.previous));
        let row = params![self.generation, key, check, previous, previous_check, self.is_complete];
        tx.prepare_cached(queries::SET_SEALING)?.execute(row)?;
        Ok(())
    }

    /// Returns the key that things are kept under.
    pub(crate) fn key(&self) -> Option<KeyId> {
        self.key.as_ref().map(|mark| mark.id)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    fn marks(&self) -> impl Iterator<Item = &KeyMark> {
        self.key.iter().chain(&self.previous)
    }

    /// Looks whether the keys that the store needs are there and are the ones.
    pub(crate) fn verify(&self, ring: &KeyRing) -> Result<(), Fault> {
        for mark in self.marks() {
            let cipher = ring.get(mark.id).ok_or_else(|| ring.lacks(mark.id))?;
            cipher.open(&SealContext::Check, mark.check[..].into())?;
        }
        Ok(())
    }

    /// Returns this row with this generation, once everything is kept as it says.
    pub(crate) fn completed(self, generation: i64) -> Self {
        Self { generation, previous: None, is_complete: true, ..self }
    }

    /// Returns the row in which things are kept under this key from now on, or `None` when they are already.
    ///
    /// # Errors
    ///
    /// [`Fault::KeyMissing`] and [`Fault::WrongKey`] when a key that is in use is not there, and
    /// [`Fault::TooManyKeys`] when there would be three.
    pub(crate) fn changed_to(&self, target: Option<KeyId>, ring: &KeyRing) -> Result<Option<Self>, Fault> {
        self.verify(ring)?;
        if self.key() == target {
            return Ok(None);
        }
        let mut others: Vec<&KeyMark> = self.marks().filter(|mark| Some(mark.id) != target).collect();
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

/// Looks whether the keys are those of the store, in a file that may not have been brought up to date yet: what is locked
/// is not written to.
pub(crate) fn verify_before_writing(connection: &Connection, ring: &KeyRing) -> Result<(), Fault> {
    let has_table = connection.prepare(queries::HAS_SEALING)?.exists([])?;
    if has_table { SealingState::read(connection)?.verify(ring) } else { Ok(()) }
}
