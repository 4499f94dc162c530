//! The index that finds messages by the entities that they create, change, add to or end.

use rusqlite::{Transaction, params};

use super::fault::Fault;
use super::queries;
use crate::message::{Effect, Touch};

/// Adds the index entries of a message.
pub(super) fn add_touches(tx: &Transaction<'_>, id: i64, touches: &[Touch]) -> Result<(), Fault> {
    let mut add_touch = tx.prepare_cached(queries::ADD_TOUCH)?;
    for touch in touches.iter().filter(|touch| is_indexed(touch)) {
        add_touch.execute(params![touch.effect as u8, &touch.key.as_bytes()[..], id])?;
    }
    Ok(())
}

/// Returns whether this touch is in the index.
pub(super) fn is_indexed(touch: &Touch) -> bool {
    touch.effect != Effect::Refer
}
