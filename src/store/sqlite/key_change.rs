//! Key rotation: making another key the current one, and recording that a rotation is complete.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use zeroize::Zeroizing;

use super::fault::Fault;
use super::seal::{KeyRing, Lookup, Sealer, SealingState};
use super::unproven::UnprovenWatch;
use super::{guard, header_sets, queries};
use crate::store::encryption::key::KeyId;

/// Makes this key the current one (or none), in one transaction with the credentials: a lane that is not found is a
/// lane whose order is not kept. The first header sets are re-encrypted with it, so that hardly any is stored twice.
/// Returns whether anything changed.
pub(super) fn change_key(
    connection: &mut Connection,
    watch: &UnprovenWatch,
    ring: &Arc<KeyRing>,
    target: Option<KeyId>,
) -> Result<bool, Fault> {
    if SealingState::read(connection)?.changed_to(target, ring)?.is_none() {
        return Ok(false);
    }
    let tx = guard::begin(connection, watch)?;
    let before = SealingState::read(&tx)?;
    // Another process may have changed it meanwhile.
    let Some(mut state) = before.changed_to(target, ring)? else { return Ok(false) };
    // A store that never held a message needs no rotation.
    if !tx.prepare(queries::EVER_USED)?.exists([])? {
        let generation = state.generation;
        state = state.completed(generation);
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
        let (by, sealed) = sealer.seal_value(Lookup::Credential, &value)?;
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
    header_sets::reseal_first_header_sets(&tx, &sealer)?;
    tx.commit()?;
    Ok(true)
}

/// Records that the rotation is complete: every value is stored as configured and no older data is left. Returns
/// `false` if the key changed meanwhile.
pub(super) fn note_complete(
    connection: &mut Connection,
    watch: &UnprovenWatch,
    generation_seen: i64,
) -> Result<bool, Fault> {
    let tx = guard::begin(connection, watch)?;
    let state = SealingState::read(&tx)?;
    if state.generation != generation_seen {
        return Ok(false);
    }
    state.completed(generation_seen + 1).write(&tx)?;
    tx.commit()?;
    Ok(true)
}
