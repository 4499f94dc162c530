//! The row of `sealing`: which keys a store uses.

use rusqlite::{Connection, Transaction, params};

use super::cipher::{KeyMark, KeyRing};
use super::context::SealContext;
use crate::store::encryption::key::KeyId;
use crate::store::sqlite::fault::Fault;
use crate::store::sqlite::queries;

/// The row of `sealing`.
#[derive(Clone, Debug)]
pub(crate) struct SealingState {
    pub(crate) generation: i64,
    pub(super) key: Option<KeyMark>,
    pub(super) previous: Option<KeyMark>,
    /// True once every value is encrypted with `key` and no free page holds older data.
    pub(super) is_complete: bool,
}

/// Returns the generation of the row of `sealing`: all that a transaction has to read while no key changes.
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

    /// Returns the row with this generation, these key names and these check values; `None` if no valid row has them.
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

    /// Returns the key that values are sealed with.
    pub(crate) fn key(&self) -> Option<KeyId> {
        self.key.as_ref().map(|mark| mark.id)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    fn marks(&self) -> impl Iterator<Item = &KeyMark> {
        self.key.iter().chain(&self.previous)
    }

    /// Checks that every key this store references is configured and correct.
    pub(crate) fn verify(&self, ring: &KeyRing) -> Result<(), Fault> {
        for mark in self.marks() {
            let cipher = ring.get(mark.id).ok_or_else(|| ring.lacks(mark.id))?;
            cipher.open(&SealContext::Check, mark.check[..].into())?;
        }
        Ok(())
    }

    /// Returns this row with this generation, once all values are kept as it says.
    pub(crate) fn completed(self, generation: i64) -> Self {
        Self { generation, previous: None, is_complete: true, ..self }
    }

    /// Returns the row that makes this the current key, or `None` if it already is.
    ///
    /// # Errors
    ///
    /// [`Fault::KeyMissing`] and [`Fault::WrongKey`] if a key in use is not configured, and [`Fault::TooManyKeys`] if a
    /// third key would be in use.
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

/// Checks the keys against a file that may still have an older schema: a store whose keys are missing is not written
/// to.
pub(crate) fn verify_before_writing(connection: &Connection, ring: &KeyRing) -> Result<(), Fault> {
    let has_table = connection.prepare(queries::HAS_SEALING)?.exists([])?;
    if has_table { SealingState::read(connection)?.verify(ring) } else { Ok(()) }
}
