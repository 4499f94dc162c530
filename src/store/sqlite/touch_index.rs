//! The index that finds messages by the entities that they create, change, add to or end.

use crate::message::{Effect, Touch};

/// Returns whether this touch is in the index.
pub(super) fn is_indexed(touch: &Touch) -> bool {
    touch.effect != Effect::Refer
}
