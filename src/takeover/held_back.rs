//! The entities of messages that stay in the depot: what is newer about the same ones stays as well, so that no older
//! write is sent over it later.

use crate::message::{EntityKey, Footprint, Message, Touch};

/// The messages of a stream that stay behind, by what they touch.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldBack {
    entities: Footprint,
    /// Whether there was no room for all of them: then everything newer stays.
    is_full: bool,
}

impl HeldBack {
    /// Returns the entities of a stream of which nothing can be read: they may be any.
    pub(super) fn unknown() -> Self {
        Self { is_full: true, ..Self::default() }
    }

    /// Adds a message that stays. `room` is how many entities may be known in all.
    pub(super) fn add(&mut self, message: &Message, room: usize) {
        if self.entities.len() + message.touches.len() > room {
            self.is_full = true;
            return;
        }
        self.entities.add(&placed(message));
    }

    /// Adds what stays of an earlier stream.
    pub(super) fn inherit(&mut self, earlier: &Self) {
        self.entities.add_group(&earlier.entities);
        self.is_full |= earlier.is_full;
    }

    /// Returns whether this message is newer than one that stays, and about the same.
    pub(super) fn holds(&self, message: &Message) -> bool {
        self.is_full || !self.entities.is_empty() && self.entities.conflicts(&placed(message))
    }

    /// Returns how many entities it knows.
    pub(super) fn len(&self) -> usize {
        self.entities.len()
    }
}

/// Returns the touches of a message with keys that differ between servers and workspaces.
fn placed(message: &Message) -> Vec<Touch> {
    let place = message.lane.place().to_be_bytes();
    let of_place = |touch: &Touch| {
        let mut bytes = *touch.key.as_bytes();
        bytes.iter_mut().zip(place).for_each(|(byte, of_place)| *byte ^= of_place);
        Touch { key: EntityKey::from_bytes(&bytes).unwrap_or(touch.key), ..*touch }
    };
    message.touches.iter().map(of_place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Body, Effect, Encoding, EntityKind, HeaderSet, Lane, MessageType, Request};

    fn about(id: &str, workspace: &str, effect: Effect) -> Message {
        Message {
            lane: Lane { workspace: Some(workspace.to_owned()), ..Lane::default() },
            message_type: MessageType::UpdateTrace,
            request: Request {
                method: "PATCH".into(),
                path: "v1/private/traces".into(),
                headers: HeaderSet::default(),
                body: Body::new(b"{}".to_vec(), Encoding::Identity),
            },
            touches: vec![Touch { key: EntityKey::new(EntityKind::Trace, id), effect }],
            items: 1,
            project: None,
            accepted_at_ms: 1,
        }
    }

    #[test]
    fn newer_messages_about_the_same_entity_stay() {
        let mut back = HeldBack::default();
        assert!(!back.holds(&about("a", "one", Effect::Update)));
        back.add(&about("a", "one", Effect::Create), 10);
        assert!(back.holds(&about("a", "one", Effect::Update)), "an older write would be sent over it later");
        assert!(!back.holds(&about("a", "one", Effect::Refer)), "order does not depend on it");
        assert!(!back.holds(&about("b", "one", Effect::Update)), "another trace waits for nothing");
        assert!(!back.holds(&about("a", "two", Effect::Update)), "another workspace waits for nothing");
        back.add(&about("c", "one", Effect::Create), 1);
        assert!(back.holds(&about("d", "two", Effect::Update)), "it forgot what stays");
        assert_eq!(back.len(), 1);
    }
}
