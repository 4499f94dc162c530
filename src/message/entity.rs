//! Entities: the traces, spans, threads ... that a message concerns, and the unit of order within a lane.

use std::collections::HashMap;

use uuid::Uuid;

/// The kinds of entity that messages create, change or refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EntityKind {
    /// A trace, by its UUID.
    Trace = 1,
    /// A span, by its UUID.
    Span = 2,
    /// A thread, by its free string.
    Thread = 3,
    /// An experiment, by its UUID.
    Experiment = 4,
    /// A dataset item, by its UUID.
    DatasetItem = 5,
    /// A trace of OpenTelemetry, by its 16 bytes.
    OtelTrace = 6,
    /// A dataset, by its UUID or by its name: writes use either.
    Dataset = 7,
    /// An item of an experiment, by its UUID.
    ExperimentItem = 8,
    /// An optimization, by its UUID.
    Optimization = 9,
    /// A comment, by its UUID.
    Comment = 10,
    /// An annotation queue, by its UUID.
    AnnotationQueue = 11,
    /// A job of a local runner, by its UUID.
    Job = 12,
}

/// Names one entity within a lane: 16 bytes of id and one of kind.
///
/// The id comes first because clients generate UUIDv7s: keys of messages accepted together are then adjacent in an
/// index, which keeps index writes cheap. Ids that are not UUIDs are hashed to 16 bytes; a collision only means that
/// two entities are kept in order with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityKey([u8; 17]);

impl EntityKey {
    /// Bytes of a key in a store.
    pub const LEN: usize = 17;

    /// Parses an id and returns the key of the entity of this kind.
    ///
    /// UUIDs are parsed without regard to case and hyphens, as the server does.
    pub fn new(kind: EntityKind, id: &str) -> Self {
        let id = match Uuid::try_parse(id) {
            Ok(uuid) => uuid.into_bytes(),
            Err(_) => fnv1a_128(id.as_bytes()),
        };
        Self::from_parts(kind, id)
    }

    /// Returns the key of the entity of this kind with these 16 bytes as its id.
    pub fn from_parts(kind: EntityKind, id: [u8; 16]) -> Self {
        let mut key = [0; Self::LEN];
        key[..16].copy_from_slice(&id);
        key[16] = kind as u8;
        Self(key)
    }

    /// Returns whether it names a trace or a span.
    pub fn is_trace_or_span(&self) -> bool {
        self.kind().is_some()
    }

    /// Returns its kind where it is a trace or a span.
    pub fn kind(&self) -> Option<EntityKind> {
        [EntityKind::Trace, EntityKind::Span].into_iter().find(|kind| *kind as u8 == self.0[16])
    }

    /// Returns the id of the trace that it names, as people copy it; `None` for everything else.
    pub fn trace_id(&self) -> Option<String> {
        match self.0[16] {
            kind if kind == EntityKind::Trace as u8 => Some(self.uuid().to_string()),
            kind if kind == EntityKind::OtelTrace as u8 => Some(self.uuid().simple().to_string()),
            _ => None,
        }
    }

    /// Returns its 16 bytes of id.
    pub fn uuid(&self) -> Uuid {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0[..16]);
        Uuid::from_bytes(id)
    }

    /// Returns the time in a UUIDv7, in milliseconds since the Unix epoch; `None` for any other id.
    pub fn made_at_ms(&self) -> Option<i64> {
        let mut time = [0; 8];
        time[2..].copy_from_slice(&self.0[..6]);
        (self.0[6] >> 4 == 7).then(|| i64::from_be_bytes(time))
    }

    /// Returns whether later writes to the entity are stranded while its create is rejected or held.
    ///
    /// False for OpenTelemetry traces: every export creates the trace again, and its spans are independent of each
    /// other. A rejected span must not block all later spans of its trace.
    pub fn can_strand(&self) -> bool {
        self.0[16] != EntityKind::OtelTrace as u8
    }

    /// Returns the time in the id of a trace or span, in milliseconds since the Unix epoch: the first 48 bits of a
    /// UUIDv7. The server reads it from an id of any version.
    pub fn id_time_ms(&self) -> Option<i64> {
        let kinds = [EntityKind::Trace as u8, EntityKind::Span as u8];
        kinds.contains(&self.0[16]).then(|| self.0[..6].iter().fold(0, |time, byte| time << 8 | i64::from(*byte)))
    }

    /// Returns the key as stored.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Returns the key that was stored as `bytes`, or `None` if their number is not [`EntityKey::LEN`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// The effect of a message on an entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Effect {
    /// Ends or summarises it: deletes or closes it, or scores a thread. Must be delivered after every earlier message
    /// that names the entity and before every later one: a late span would resurrect part of a deleted trace, and a
    /// thread that its traces have not created yet can't be closed or scored.
    End = 0,
    /// Creates it, or completes an earlier create (an upsert).
    Create = 1,
    /// Changes its fields (PATCH), or gives it a file. The one effect that a later create may overtake, see
    /// [`crate::store`].
    Update = 2,
    /// Adds to it: scores, guardrail and assertion results, items of an experiment.
    Annotate = 3,
    /// Only names it, as a span names its trace. Ordered only against its end: the server accepts create and reference
    /// in either order.
    Refer = 4,
}

impl Effect {
    /// Returns the effect with this number, or `None`.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::End),
            1 => Some(Self::Create),
            2 => Some(Self::Update),
            3 => Some(Self::Annotate),
            4 => Some(Self::Refer),
            _ => None,
        }
    }

    /// Returns whether two effects on one entity must keep their order.
    pub fn conflicts(self, other: Effect) -> bool {
        let (either, both) = (|e| self == e || other == e, |e| self == e && other == e);
        !both(Self::Refer) && (either(Self::End) || !either(Self::Refer))
    }
}

/// One entity of a message and the message's effect on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Touch {
    /// Which entity.
    pub key: EntityKey,
    /// The effect on it.
    pub effect: Effect,
}

impl Touch {
    /// Returns whether the message is stranded while an earlier create of the entity is rejected or held.
    ///
    /// A later create is not: it creates the record on its own, and may be the corrected version of the rejected one.
    pub fn can_be_stranded(&self) -> bool {
        self.effect != Effect::Create && self.key.can_strand()
    }

    /// Bytes of a touch in a store.
    pub const LEN: usize = EntityKey::LEN + 1;

    /// Deduplicates and sorts by key; of two effects on one entity the strongest stays.
    pub fn distinct(mut touches: Vec<Touch>) -> Vec<Touch> {
        touches.sort_unstable();
        touches.dedup_by_key(|touch| touch.key);
        touches
    }

    /// Encodes touches for the store.
    pub fn to_bytes(touches: &[Touch]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(touches.len() * Self::LEN);
        for touch in touches {
            bytes.extend_from_slice(touch.key.as_bytes());
            bytes.push(touch.effect as u8);
        }
        bytes
    }

    /// Parses the output of [`Touch::to_bytes`]; `None` if the bytes are malformed.
    pub fn from_bytes(bytes: &[u8]) -> Option<Vec<Touch>> {
        if !bytes.len().is_multiple_of(Self::LEN) {
            return None;
        }
        bytes
            .chunks_exact(Self::LEN)
            .map(|chunk| {
                let key = EntityKey::from_bytes(&chunk[..EntityKey::LEN])?;
                Some(Touch { key, effect: Effect::from_code(chunk[EntityKey::LEN])? })
            })
            .collect()
    }
}

/// Returns whether two messages of one lane must reach the server in the order in which they were accepted.
///
/// True if they touch the same entity, unless one of them only refers to it and the other does not end it. Both lists
/// are sorted by key, as [`Touch::distinct`] leaves them.
pub fn conflict(a: &[Touch], b: &[Touch]) -> bool {
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        match a[i].key.cmp(&b[j].key) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                if a[i].effect.conflicts(b[j].effect) {
                    return true;
                }
                i += 1;
                j += 1;
            }
        }
    }
    false
}

/// The entities that a group of messages touches. Tests for [`conflict`] with the whole group at the price of one hash
/// look-up per entity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint(HashMap<EntityKey, Strongest>);

/// The strongest effect of a group on an entity, as far as order depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Strongest {
    Refers,
    Changes,
    Ends,
}

impl Footprint {
    /// Adds a message to the group.
    pub fn add(&mut self, touches: &[Touch]) {
        for touch in touches {
            let strength = match touch.effect {
                Effect::End => Strongest::Ends,
                Effect::Create | Effect::Update | Effect::Annotate => Strongest::Changes,
                Effect::Refer => Strongest::Refers,
            };
            let known = self.0.entry(touch.key).or_insert(strength);
            *known = strength.max(*known);
        }
    }

    /// Adds all messages of another group.
    pub fn add_group(&mut self, other: &Self) {
        for (key, strength) in &other.0 {
            let known = self.0.entry(*key).or_insert(*strength);
            *known = (*strength).max(*known);
        }
    }

    /// Returns whether a message with these touches must keep its order relative to one of the group.
    pub fn conflicts(&self, touches: &[Touch]) -> bool {
        touches.iter().any(|touch| match (self.0.get(&touch.key), touch.effect) {
            (None, _) => false,
            (Some(_), Effect::End) => true,
            (Some(strongest), Effect::Refer) => *strongest == Strongest::Ends,
            (Some(strongest), Effect::Create | Effect::Update | Effect::Annotate) => *strongest > Strongest::Refers,
        })
    }

    /// Returns how many entities the group touches.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the group touches no entity.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// 128-bit FNV-1a: stable across versions, unlike the standard library's hasher.
fn fnv1a_128(bytes: &[u8]) -> [u8; 16] {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in bytes {
        hash ^= u128::from(*byte);
        hash = hash.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    hash.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn touch(id: &str, effect: Effect) -> Touch {
        Touch { key: EntityKey::new(EntityKind::Trace, id), effect }
    }

    #[test]
    fn keys_ignore_the_spelling_of_a_uuid_and_differ_by_kind() {
        let id = "01a20445-0b55-7feb-b47d-9a6087614672";
        assert_eq!(EntityKey::new(EntityKind::Span, id), EntityKey::new(EntityKind::Span, &id.to_uppercase()));
        assert_ne!(EntityKey::new(EntityKind::Span, id), EntityKey::new(EntityKind::Trace, id));
        assert_ne!(EntityKey::new(EntityKind::Thread, "a"), EntityKey::new(EntityKind::Thread, "b"));
    }

    #[test]
    fn the_strongest_effect_on_an_entity_stays() {
        let touches =
            Touch::distinct(vec![touch("b", Effect::Refer), touch("a", Effect::Update), touch("b", Effect::Create)]);
        assert_eq!(touches.len(), 2);
        assert!(touches.contains(&touch("b", Effect::Create)));
        assert_eq!(Touch::from_bytes(&Touch::to_bytes(&touches)), Some(touches));
        assert_eq!(Touch::from_bytes(&[0; 5]), None);
    }

    #[test]
    fn references_are_ordered_only_against_an_end() {
        let cases = [
            (Effect::Create, Effect::Update, true),
            (Effect::Create, Effect::Create, true),
            (Effect::Update, Effect::Annotate, true),
            (Effect::Refer, Effect::Create, false),
            (Effect::Update, Effect::Refer, false),
            (Effect::Refer, Effect::Refer, false),
            (Effect::End, Effect::Refer, true),
            (Effect::Refer, Effect::End, true),
            (Effect::End, Effect::Create, true),
            (Effect::End, Effect::End, true),
        ];
        for (a, b, expected) in cases {
            let mut group = Footprint::default();
            group.add(&[touch("t", a)]);
            assert_eq!(group.conflicts(&[touch("t", b)]), expected, "a group of {a:?}, {b:?}");
            assert_eq!(conflict(&[touch("t", a)], &[touch("t", b)]), expected, "{a:?} {b:?}");
        }
        assert!(!conflict(&[touch("t", Effect::Create)], &[touch("u", Effect::Create)]));
    }

    fn any_touches() -> impl Strategy<Value = Vec<Touch>> {
        let any_touch = (0_u8..4, 0_u8..5).prop_map(|(id, code)| {
            let key = EntityKey::from_parts(EntityKind::Span, [id; 16]);
            Touch { key, effect: Effect::from_code(code).expect("it exists") }
        });
        prop::collection::vec(any_touch, 0..4).prop_map(Touch::distinct)
    }

    proptest! {
        #[test]
        fn a_footprint_answers_for_each_message_of_its_group(
            group in prop::collection::vec(any_touches(), 0..5),
            message in any_touches(),
        ) {
            let mut footprint = Footprint::default();
            group.iter().for_each(|touches| footprint.add(touches));
            let expected = group.iter().any(|touches| conflict(touches, &message));
            prop_assert_eq!(footprint.conflicts(&message), expected);
            prop_assert!(group.iter().all(|touches| conflict(touches, &message) == conflict(&message, touches)));
        }
    }
}
