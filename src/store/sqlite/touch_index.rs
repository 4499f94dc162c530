//! By what messages are found: the index of the entities that they touch.

use rusqlite::{Transaction, params};

use super::fault::Fault;
use super::queries;
use crate::message::{Effect, Touch};

/// Stores by what a message is found.
pub(super) fn add_touches(tx: &Transaction<'_>, id: i64, touches: &[Touch]) -> Result<(), Fault> {
    let mut add_touch = tx.prepare_cached(queries::ADD_TOUCH)?;
    for touch in touches.iter().filter(|touch| is_looked_up(touch)) {
        add_touch.execute(params![touch.effect as u8, &touch.key.as_bytes()[..], id])?;
    }
    Ok(())
}

/// Says whether messages are found by this touch.
pub(super) fn is_looked_up(touch: &Touch) -> bool {
    touch.effect != Effect::Refer
}
