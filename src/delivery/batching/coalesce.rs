//! Coalescing: which claimed messages share a request, and in what order the requests are sent.
//!
//! Many single creates of traces or spans become one batch create. Nothing else is merged, and a create only if the
//! batch has exactly the effect of the single ones: it has `id` and `last_updated_at` (a batch create without the
//! latter is stamped by the server, protocol dossier, section f), it has no query, and no other item of the batch
//! creates the same entity.
//!
//! Small stored batch creates become larger ones in the same way: the effect of an item does not depend on the others.
//! If updates wait with them, these are folded into them instead ([`super::fold`]). Any other message is sent as
//! stored.
//!
//! An entity of which an update may have reached the server before its create ([`Claimed::ahead`]) is created singly:
//! a batch create would stay hidden behind the partial row that the update created, and a single one completes it. A
//! create that may be sent in one way only, because the other way's bucket is rate-limited, is sent in that way
//! ([`Way`]).
//!
//! A message joins an earlier request only past requests with which it does not conflict, so the order per entity is
//! kept. A refused request of several messages is divided ([`Shipment::parts`]) until the bad one is alone.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

use super::fold::Fold;
use crate::message::{
    Body, Claimed, Effect, Encoding, EntityKey, EntityKind, Footprint, HeaderSet, MessageType, Request, Touch, Way,
};
use crate::protocol::json::{JsonKind, NotJson, Scanner};

/// The most items in a batch request (OpenAPI: `maxItems` of every batch).
pub const ITEMS_MAX: usize = 1000;
/// The most bytes of content in a coalesced batch: a tenth of the SDK's limit, so that no large payload is buffered or
/// lost with one request.
pub const CONTENT_BYTES_MAX: usize = 5 * 1024 * 1024;
/// Contents larger than this are sent alone.
const SINGLE_CONTENT_BYTES_MAX: u64 = 1024 * 1024;
/// Stored batches of more items than this are sent as stored: parsing them costs more than it saves.
const SMALL_BATCH_ITEMS_MAX: u32 = 100;
/// How many earlier requests a message may join.
const LOOK_BACK: usize = 4;

/// One request and the messages that it carries, in order; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shipment {
    members: Vec<Member>,
    content_bytes: usize,
    /// The first member, a batch create, with all others folded into it.
    fold: Option<Box<Fold>>,
    /// Whether the contents of its members are gone, see [`Shipment::pack`].
    is_packed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    message: Claimed,
    /// The decoded object, or the items of a batch without their brackets, if they may share a batch with others.
    content: Option<Bytes>,
}

impl Shipment {
    /// Returns the messages, in order.
    pub fn messages(&self) -> impl Iterator<Item = &Claimed> + Clone {
        self.members.iter().map(|member| &member.message)
    }

    /// Returns its message when it carries one only.
    pub fn only(&self) -> Option<&Claimed> {
        match &*self.members {
            [member] => Some(&member.message),
            _ => None,
        }
    }

    /// Returns how many messages it carries.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns whether it carries none, which never happens.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Returns whether it has to be sent as a batch and can't: it waits until single creates are accepted again.
    pub fn has_no_way(&self) -> bool {
        matches!(&*self.members, [Member { message, content: None }] if message.way == Way::Batch)
    }

    /// Returns whether a single create is sent as a batch of one, because single creates are rate-limited.
    fn is_batch_of_one(&self) -> bool {
        matches!(&*self.members, [Member { message, content: Some(_) }] if message.way == Way::Batch)
    }

    /// Returns the type by which the server's answer is judged.
    pub fn message_type(&self) -> MessageType {
        if self.fold.is_some() {
            // A 409 means that a create is there already, and nothing about the updates: for these it is a refusal.
            return self.members[self.members.len() - 1].message.message_type;
        }
        match (self.members.len(), self.members[0].message.message_type) {
            (1, message_type) if !self.is_batch_of_one() => message_type,
            (_, MessageType::CreateTrace | MessageType::CreateTraceBatch) => MessageType::CreateTraceBatch,
            (_, _) => MessageType::CreateSpansBatch,
        }
    }

    /// Returns how many items it carries.
    fn items(&self) -> usize {
        self.members.iter().map(|member| member.message.items as usize).sum()
    }

    /// Returns the request to send: a single message's own one byte for byte, several as one batch.
    pub fn request(&self) -> Request {
        self.request_in_steps(&|| {})
    }

    /// The same in steps: `between` is called between two messages.
    pub(crate) fn request_in_steps(&self, between: &dyn Fn()) -> Request {
        let first = &self.members[0].message;
        if let Some(fold) = &self.fold {
            return batch_request(first, &first.request.path, &[&fold.content()], between);
        }
        if self.members.len() == 1 && !self.is_batch_of_one() {
            return first.request.clone();
        }
        let (path, member) = match first.message_type {
            MessageType::CreateTrace | MessageType::CreateTraceBatch => ("v1/private/traces/batch", "traces"),
            _ => ("v1/private/spans/batch", "spans"),
        };
        let mut content: Vec<&[u8]> = Vec::with_capacity(2 * self.members.len() + 4);
        content.extend([&b"{\""[..], member.as_bytes(), b"\":["]);
        for (index, object) in self.members.iter().filter_map(|member| member.content.as_ref()).enumerate() {
            content.extend((index > 0).then_some(&b","[..]));
            content.push(object);
        }
        content.push(b"]}");
        batch_request(first, path, &content, between)
    }

    /// Returns the request to send, in steps, and drops the contents that were joined in it: while it waits for its
    /// answer, they would be in memory once more. It has to be [unpacked](Self::unpack) before it is sent again.
    pub(crate) fn pack(&mut self, between: &dyn Fn()) -> Request {
        let request = self.request_in_steps(between);
        if self.members.len() > 1 && self.fold.is_none() {
            self.members.iter_mut().for_each(|member| member.content = None);
            self.is_packed = true;
        }
        request
    }

    /// Returns what has to be sent instead of one that was packed: the same, unless its messages can't be decoded
    /// again.
    pub(crate) fn unpack(self) -> Result<Shipment, Vec<Shipment>> {
        if self.is_packed { Err(planned(self.members)) } else { Ok(self) }
    }

    /// Returns smaller shipments with the same effect, in order, or the shipment itself if it has one message.
    ///
    /// A fold is undone: the create as stored, then each update. Others are halved.
    pub fn parts(mut self) -> Result<Vec<Shipment>, Shipment> {
        if self.members.len() < 2 {
            return Err(self);
        }
        if self.fold.is_some() {
            return Ok(self.members.into_iter().map(|member| Self::of(vec![member])).collect());
        }
        let second = self.members.split_off(self.members.len() / 2);
        if self.is_packed {
            return Ok([self.members, second].into_iter().flat_map(planned).collect());
        }
        Ok(vec![Self::of(self.members), Self::of(second)])
    }

    /// Removes messages, in order; returns the rest, if any, and the removed ones. A fold can only be undone as a
    /// whole, by [`Shipment::parts`], so nothing is removed from it.
    pub fn without(mut self, is_out: impl Fn(&Claimed) -> bool) -> (Option<Shipment>, Vec<Claimed>) {
        if !self.members.iter().any(|member| is_out(&member.message)) || self.fold.is_some() {
            return (Some(self), Vec::new());
        }
        let members = std::mem::take(&mut self.members);
        let (out, members): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| is_out(&member.message));
        let rest = (!members.is_empty()).then(|| Self { is_packed: self.is_packed, ..Self::of(members) });
        (rest, out.into_iter().map(|member| member.message).collect())
    }

    fn of(members: Vec<Member>) -> Self {
        let content_bytes = members.iter().filter_map(|member| member.content.as_ref()).map(Bytes::len).sum();
        Self { members, content_bytes, fold: None, is_packed: false }
    }

    fn takes(&self, message: &Claimed, content: &Bytes) -> bool {
        let first = &self.members[0];
        first.content.is_some()
            && first.message.message_type == message.message_type
            && self.items() + message.items as usize <= ITEMS_MAX
            && self.content_bytes + content.len() <= CONTENT_BYTES_MAX
            && shared_headers(&first.message.request.headers) == shared_headers(&message.request.headers)
    }
}

/// Plans the messages of a shipment anew, which decodes them again.
fn planned(members: Vec<Member>) -> Vec<Shipment> {
    plan(members.into_iter().map(|member| member.message))
}

/// Puts claimed messages, given in delivery order, into as few requests as order allows.
pub fn plan(messages: impl IntoIterator<Item = Claimed>) -> Vec<Shipment> {
    plan_in_steps(messages, &|| {})
}

/// The same in steps: `between` is called between two messages.
pub(crate) fn plan_in_steps(messages: impl IntoIterator<Item = Claimed>, between: &dyn Fn()) -> Vec<Shipment> {
    let mut shipments: Vec<Shipment> = Vec::new();
    // The entities of each shipment, and those that it creates.
    let mut about: Vec<(Footprint, Footprint)> = Vec::new();
    let messages: Vec<Claimed> = messages.into_iter().collect();
    let has_updates = messages.iter().any(|message| Fold::entity_of_update(message).is_some());
    let has_batches = messages.iter().any(|message| Fold::kind_of_create(message).is_some());
    let mut folding = (has_updates && has_batches).then(Folding::default);
    for message in messages {
        between();
        if let Some(folding) = &mut folding
            && let Some(index) = folding.take(&shipments, &message)
        {
            about[index].0.add(&message.touches);
            shipments[index].members.push(Member { message, content: None });
            continue;
        }
        let content = match folding.is_none() {
            true => batch_content(&message).or_else(|| items_of_batch(&message)),
            // No update can be folded into a batch of several messages.
            false => batch_content(&message),
        };
        let touches = message.touches.clone();
        let made: Vec<Touch> = touches.iter().copied().filter(|touch| touch.effect == Effect::Create).collect();
        let mut joined = None;
        if let Some(content) = &content {
            for index in (0..shipments.len()).rev().take(LOOK_BACK) {
                // A batch keeps the order of its items, so only the created entities must differ: traces of one thread
                // share a batch.
                if shipments[index].takes(&message, content) && !about[index].1.conflicts(&made) {
                    joined = Some(index);
                    break;
                }
                if about[index].0.conflicts(&touches) {
                    break;
                }
            }
        }
        let index = match joined {
            Some(index) => {
                shipments[index].content_bytes += content.as_ref().map_or(0, Bytes::len);
                shipments[index].members.push(Member { message, content });
                index
            }
            None => {
                shipments.push(Shipment::of(vec![Member { message, content }]));
                about.push(Default::default());
                about.len() - 1
            }
        };
        about[index].0.add(&touches);
        about[index].1.add(&made);
        if let Some(folding) = &mut folding {
            folding.placed(index, &shipments[index].members[0].message, &touches);
        }
    }
    for (index, fold) in folding.into_iter().flat_map(|folding| folding.folds) {
        shipments[index].fold = fold.filter(|_| shipments[index].members.len() > 1).map(Box::new);
    }
    shipments
}

/// The shipments into which updates may be folded.
#[derive(Default)]
struct Folding {
    /// Which shipment has the last batch create of an entity.
    creates: HashMap<EntityKey, usize>,
    /// Batch creates that were parsed for an update; `None` for one that can't take any.
    folds: HashMap<usize, Option<Fold>>,
    /// The last shipment that ends an entity, creates or changes it, or refers to it.
    last: HashMap<EntityKey, [Option<usize>; 3]>,
}

impl Folding {
    /// Folds an update, and returns the shipment that has it now.
    fn take(&mut self, shipments: &[Shipment], message: &Claimed) -> Option<usize> {
        let index = *self.creates.get(&Fold::entity_of_update(message)?)?;
        let create = &shipments[index].members[0].message;
        if self.conflicts_behind(index, &message.touches)
            || !are_compatible(&create.request.headers, &message.request.headers)
        {
            return None;
        }
        let fold = self.folds.entry(index).or_insert_with(|| Fold::of(create, CONTENT_BYTES_MAX)).as_mut()?;
        if !fold.take(message) {
            return None;
        }
        self.note(index, &message.touches);
        Some(index)
    }

    /// Notes that a message went into a shipment, of which this is the first.
    fn placed(&mut self, index: usize, first: &Claimed, touches: &[Touch]) {
        // An entity with an update ahead is taken out and created singly.
        if first.ahead.is_empty() && Fold::kind_of_create(first).is_some() {
            self.creates.extend(touches.iter().filter(|t| t.effect == Effect::Create).map(|t| (t.key, index)));
        }
        self.note(index, touches);
    }

    fn note(&mut self, index: usize, touches: &[Touch]) {
        for touch in touches {
            let last = &mut self.last.entry(touch.key).or_default()[strength(touch.effect)];
            *last = (*last).max(Some(index));
        }
    }

    /// Returns whether a shipment behind this one conflicts with these touches.
    fn conflicts_behind(&self, index: usize, touches: &[Touch]) -> bool {
        touches.iter().any(|touch| {
            let last = self.last.get(&touch.key).copied().unwrap_or_default();
            [Effect::End, Effect::Create, Effect::Refer]
                .into_iter()
                .any(|other| last[strength(other)] > Some(index) && touch.effect.conflicts(other))
        })
    }
}

/// Groups effects that conflict with the same ones.
fn strength(effect: Effect) -> usize {
    match effect {
        Effect::End => 0,
        Effect::Create | Effect::Update | Effect::Annotate => 1,
        Effect::Refer => 2,
    }
}

/// Returns a request for a batch with the headers of its first message, and with this content, given in pieces.
fn batch_request(first: &Claimed, path: &str, content: &[&[u8]], between: &dyn Fn()) -> Request {
    let (body, encoded) = gzip(content, between);
    let mut headers = shared_headers(&first.request.headers);
    if encoded {
        headers.push(("Content-Encoding".to_owned(), b"gzip".to_vec()));
    }
    Request { method: "POST".to_owned(), path: path.to_owned(), headers: HeaderSet::new(headers), body }
}

/// Returns whether the headers of two requests have the same effect; which form of answer a client prefers does not
/// matter for the server's record.
fn are_compatible(a: &HeaderSet, b: &HeaderSet) -> bool {
    let counts = |(name, _): &(&str, &[u8])| {
        !["content-encoding", "accept", "accept-language"].iter().any(|other| name.eq_ignore_ascii_case(other))
    };
    a == b || a.iter().filter(counts).eq(b.iter().filter(counts))
}

/// Returns the object of a create that may be an item of a batch.
fn batch_content(message: &Claimed) -> Option<Bytes> {
    let single_path = match message.message_type {
        MessageType::CreateTrace => "v1/private/traces",
        MessageType::CreateSpan => "v1/private/spans",
        _ => return None,
    };
    if message.way == Way::Single || !message.ahead.is_empty() {
        return None;
    }
    if message.request.path != single_path {
        return None;
    }
    let content = message.request.body.decode(SINGLE_CONTENT_BYTES_MAX).ok()?;
    let object = whole_object(&content).ok()??;
    Some(content.slice(object))
}

/// Returns the items of a small batch create, without their brackets.
///
/// With or without `last_updated_at`: the server processes each item as in its original request, and stamps those
/// without on arrival.
fn items_of_batch(message: &Claimed) -> Option<Bytes> {
    let list = match Fold::kind_of_create(message)? {
        EntityKind::Trace => "traces",
        EntityKind::Span => "spans",
        _ => return None,
    };
    if message.items == 0 || message.items > SMALL_BATCH_ITEMS_MAX || !message.ahead.is_empty() {
        return None;
    }
    let content = message.request.body.decode(SINGLE_CONTENT_BYTES_MAX).ok()?;
    let array = only_list(&content, list).ok()??;
    Some(content.slice(array.start + 1..array.end - 1))
}

/// Returns the range of the array in an object that has this one member only.
fn only_list(content: &[u8], list: &str) -> Result<Option<Range<usize>>, NotJson> {
    let mut scanner = Scanner::new(content)?;
    if scanner.peek()? != JsonKind::Object {
        return Ok(None);
    }
    let (mut found, mut members) = (None, 0);
    scanner.object(|key, scanner| {
        members += 1;
        if key == list && scanner.peek()? == JsonKind::Array {
            found = Some(scanner.skip_value()?);
            return Ok(());
        }
        scanner.skip_value().map(drop)
    })?;
    Ok(found.filter(|_| members == 1))
}

/// Returns the range of an object that has both members which a batch item needs.
fn whole_object(content: &[u8]) -> Result<Option<Range<usize>>, NotJson> {
    let mut scanner = Scanner::new(content)?;
    if scanner.peek()? != JsonKind::Object {
        return Ok(None);
    }
    let (mut has_id, mut has_time) = (false, false);
    let range = scanner.object(|key, scanner| {
        let is_text = scanner.peek()? == JsonKind::String;
        has_id |= is_text && key == "id";
        has_time |= is_text && key == "last_updated_at";
        scanner.skip_value().map(drop)
    })?;
    Ok((has_id && has_time).then_some(range))
}

/// Returns the headers that a batch shares with its members: all but those that describe the one body.
fn shared_headers(headers: &HeaderSet) -> Vec<(String, Vec<u8>)> {
    headers
        .iter()
        .filter(|(name, _)| !name.eq_ignore_ascii_case("content-encoding"))
        .map(|(name, value)| (name.to_owned(), value.to_vec()))
        .collect()
}

/// Compresses at the fastest level; returns whether it did. Small contents are cheaper uncompressed.
///
/// The pieces are not joined first, which would hold the content a second time.
fn gzip(content: &[&[u8]], between: &dyn Fn()) -> (Body, bool) {
    use std::io::{BufWriter, Write};
    /// Up to this a body leaves in one flight of a new connection (RFC 6928: ten segments), compressed or not, and
    /// compressing it costs more than all the rest of its request.
    const CONTENT_BYTES_MIN: usize = 8 * 1024;
    /// How much is compressed at once.
    const STEP_BYTES: usize = 32 * 1024;
    let bytes: usize = content.iter().map(|piece| piece.len()).sum();
    if bytes < CONTENT_BYTES_MIN {
        return (Body::new(content.concat(), Encoding::Identity), false);
    }
    let encoder = flate2::write::GzEncoder::new(Vec::with_capacity(bytes / 4), flate2::Compression::fast());
    let mut encoder = BufWriter::with_capacity(STEP_BYTES, encoder);
    let written = content.iter().try_for_each(|piece| {
        between();
        encoder.write_all(piece)
    });
    let encoded = written.and_then(|()| encoder.into_inner().map_err(std::io::IntoInnerError::into_error)?.finish());
    match encoded {
        Ok(bytes) => (Body::new(bytes, Encoding::Gzip), true),
        // Writing to memory does not fail; if it did, the plain content would be as good.
        Err(_) => (Body::new(content.concat(), Encoding::Identity), false),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{MessageId, conflict};
    use crate::protocol::inspection::inspect;
    use crate::protocol::routes::{Route, classify};

    fn claimed(id: i64, method: &str, path: &str, content: &str) -> Claimed {
        let Route::Protected(write) = classify(method, path) else { panic!("{path} is protected") };
        let inspection = inspect(&write, content.as_bytes()).expect("JSON");
        Claimed {
            id: MessageId(id),
            message_type: write.message_type,
            request: Request {
                method: method.into(),
                path: path.into(),
                headers: HeaderSet::new(vec![("content-type".into(), b"application/json".to_vec())]),
                body: Body::new(content.to_owned(), Encoding::Identity),
            },
            touches: inspection.touches,
            items: inspection.items,
            attempts: 0,
            ahead: Vec::new(),
            is_unsure: false,
            way: Default::default(),
        }
    }

    fn create(id: i64, kind: &str, entity: u32) -> Claimed {
        let content = format!(r#"  {{"id":"{entity}","trace_id":"t","last_updated_at":"2026-01-01T00:00:00Z"}}  "#);
        claimed(id, "POST", &format!("v1/private/{kind}"), &content)
    }

    fn update(id: i64, kind: &str, entity: u32) -> Claimed {
        claimed(id, "PATCH", &format!("v1/private/{kind}/{entity}"), "{}")
    }

    fn ids(shipment: &Shipment) -> Vec<i64> {
        shipment.messages().map(|message| message.id.0).collect()
    }

    #[test]
    fn creates_of_traces_and_spans_become_two_requests_whose_bodies_are_the_objects_as_sent() {
        let shipments = plan([create(1, "traces", 1), create(2, "spans", 2), create(3, "traces", 3)]);
        assert_eq!(shipments.iter().map(ids).collect::<Vec<_>>(), [vec![1, 3], vec![2]]);
        let request = shipments[0].request();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "v1/private/traces/batch"));
        let object = |entity| format!(r#"{{"id":"{entity}","trace_id":"t","last_updated_at":"2026-01-01T00:00:00Z"}}"#);
        let content = request.body.decode(10_000).expect("whole");
        assert_eq!(String::from_utf8_lossy(&content), format!(r#"{{"traces":[{},{}]}}"#, object(1), object(3)));
        assert_eq!(shipments[0].message_type(), MessageType::CreateTraceBatch);
        assert_eq!(shipments[1].request(), create(2, "spans", 2).request);
        assert_eq!(shipments[1].message_type(), MessageType::CreateSpan);
    }

    fn batch(id: i64, kind: &str, entities: &[u32]) -> Claimed {
        let items: Vec<String> =
            entities.iter().map(|entity| format!(r#"{{"id":"{entity}","trace_id":"t"}}"#)).collect();
        claimed(
            id,
            "POST",
            &format!("v1/private/{kind}/batch"),
            &format!(r#" {{"{kind}": [ {} ]}}"#, items.join(" , ")),
        )
    }

    #[test]
    fn small_batches_become_larger_ones_and_keep_every_item_in_its_order() {
        let shipments = plan([batch(1, "spans", &[1, 2]), batch(2, "traces", &[7]), batch(3, "spans", &[3])]);
        assert_eq!(shipments.iter().map(ids).collect::<Vec<_>>(), [vec![1, 3], vec![2]]);
        let content = shipments[0].request().body.decode(10_000).expect("whole");
        let value: serde_json::Value = serde_json::from_slice(&content).expect("JSON");
        let sent: Vec<&str> =
            value["spans"].as_array().expect("a list").iter().filter_map(|i| i["id"].as_str()).collect();
        assert_eq!(sent, ["1", "2", "3"]);
        assert_eq!(shipments[0].message_type(), MessageType::CreateSpansBatch);
        assert_eq!(shipments[1].request(), batch(2, "traces", &[7]).request, "a single batch is sent unchanged");
    }

    #[test]
    fn batches_that_would_have_another_effect_together_stay_separate() {
        let large: Vec<u32> = (100..201).collect();
        let half: Vec<u32> = (1000..1090).collect();
        let twice = plan([batch(1, "spans", &[1]), batch(2, "spans", &[1])]);
        assert_eq!(twice.len(), 2, "of two creates of one entity the later one must win");
        assert_eq!(plan([batch(1, "spans", &[1]), batch(2, "spans", &large)]).len(), 2);
        let odd = claimed(2, "POST", "v1/private/spans/batch", r#"{"spans":[{"id":"9"}],"more":1}"#);
        assert_eq!(plan([batch(1, "spans", &[1]), odd]).len(), 2);
        let many = (0..12).map(|id| {
            let entities: Vec<u32> = half.iter().map(|entity| entity + 1000 * id).collect();
            batch(i64::from(id) + 1, "spans", &entities)
        });
        let sizes: Vec<usize> = plan(many).iter().map(Shipment::items).collect();
        assert_eq!(sizes, [990, 90], "the server takes a thousand items");
        let folded = plan([batch(1, "spans", &[1]), batch(2, "spans", &[2]), update(3, "spans", 1)]);
        assert_eq!(folded.iter().map(ids).collect::<Vec<_>>().concat().len(), 3);
    }

    #[test]
    fn a_create_that_a_batch_would_change_is_sent_alone() {
        let odd = [
            claimed(2, "POST", "v1/private/traces", r#"{"id":"2"}"#),
            claimed(3, "POST", "v1/private/traces", r#"{"id":"3","last_updated_at":null}"#),
            claimed(4, "POST", "v1/private/traces", "[]"),
        ];
        let shipments = plan([create(1, "traces", 1)].into_iter().chain(odd));
        assert_eq!(shipments.len(), 4);
    }

    #[test]
    fn traces_of_one_thread_share_a_request_and_none_overtakes_the_threads_end() {
        let of_thread = |id, entity| {
            let content = format!(r#"{{"id":"{entity}","thread_id":"th","last_updated_at":"2026-01-01T00:00:00Z"}}"#);
            claimed(id, "POST", "v1/private/traces", &content)
        };
        let close = claimed(3, "PUT", "v1/private/traces/threads/close", r#"{"thread_id":"th"}"#);
        let shipments = plan([of_thread(1, 1), of_thread(2, 2), close, of_thread(4, 4)]);
        assert_eq!(shipments.iter().map(ids).collect::<Vec<_>>(), [vec![1, 2], vec![3], vec![4]]);
    }

    #[test]
    fn a_span_does_not_overtake_the_deletion_of_its_trace() {
        let delete = claimed(2, "DELETE", "v1/private/traces/t", "");
        let shipments = plan([create(1, "spans", 1), delete, create(3, "spans", 3), create(4, "traces", 4)]);
        assert_eq!(shipments.iter().map(ids).collect::<Vec<_>>(), [vec![1], vec![2], vec![3], vec![4]]);
    }

    #[test]
    fn a_second_create_of_an_entity_does_not_join_the_first() {
        let shipments = plan([create(1, "traces", 1), create(2, "traces", 1)]);
        assert_eq!(shipments.len(), 2);
    }

    #[test]
    fn halving_ends_with_single_messages_in_their_order() {
        let mut queue = plan((0..5).map(|n| create(n.into(), "spans", n)));
        assert_eq!(queue.len(), 1);
        let mut singles = Vec::new();
        while let Some(shipment) = queue.pop() {
            match shipment.parts() {
                Ok(parts) => queue.extend(parts.into_iter().rev()),
                Err(single) => singles.extend(ids(&single)),
            }
        }
        assert_eq!(singles, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_packed_shipment_is_divided_and_sent_again_as_it_was() {
        let contents: [fn(u32) -> Claimed; 2] =
            [|n| create(n.into(), "spans", n), |n| batch(n.into(), "spans", &[2 * n, 2 * n + 1])];
        for content in contents {
            let shipment = || plan((0..5).map(content)).remove(0);
            let mut packed = shipment();
            assert_eq!(packed.pack(&|| {}), shipment().request());
            let requests = |parts: Vec<Shipment>| parts.iter().map(Shipment::request).collect::<Vec<_>>();
            let halves = packed.clone().parts().expect("several messages");
            assert_eq!(requests(halves), requests(shipment().parts().expect("several messages")));
            let (rest, out) = packed.without(|message| message.id == MessageId(2));
            let again = rest.expect("four are left").unpack().expect_err("it is packed");
            let (expected, expected_out) = shipment().without(|message| message.id == MessageId(2));
            assert_eq!((requests(again), out), (vec![expected.expect("four are left").request()], expected_out));
        }
        let mut alone = plan([create(1, "spans", 1)]).remove(0);
        assert_eq!(alone.pack(&|| {}), create(1, "spans", 1).request);
        assert!(alone.unpack().is_ok());
    }

    #[test]
    fn a_batch_stops_at_the_servers_limit() {
        let shipments = plan((0..1001).map(|n| create(n.into(), "spans", n)));
        assert_eq!(shipments.iter().map(Shipment::len).collect::<Vec<_>>(), [1000, 1]);
    }

    proptest! {
        #[test]
        fn messages_about_one_entity_keep_their_order(
            steps in prop::collection::vec((0..10, 0_u32..6), 1..60),
        ) {
            let at = r#""last_updated_at":"2026-01-01T00:00:00Z""#;
            let messages: Vec<Claimed> = steps
                .iter()
                .zip(0..)
                .map(|((step, entity), id)| match step {
                    0 | 1 => {
                        let thread = entity % 2;
                        let content = format!(r#"{{"id":"{entity}","thread_id":"th-{thread}",{at}}}"#);
                        claimed(id, "POST", "v1/private/traces", &content)
                    }
                    2 | 3 => {
                        let trace = entity / 2;
                        let content = format!(r#"{{"id":"{entity}","trace_id":"{trace}",{at}}}"#);
                        claimed(id, "POST", "v1/private/spans", &content)
                    }
                    4 => create(id, "traces", *entity),
                    5 => update(id, "traces", *entity),
                    6 => update(id, "spans", *entity),
                    7 => claimed(id, "DELETE", &format!("v1/private/traces/{entity}"), ""),
                    8 => claimed(id, "PUT", "v1/private/traces/threads/close", r#"{"thread_id":"th-1"}"#),
                    _ => create(id, "spans", *entity),
                })
                .collect();
            let sent: Vec<Claimed> = plan(messages.clone()).iter().flat_map(|s| s.messages().cloned().collect::<Vec<_>>()).collect();
            prop_assert_eq!(sent.len(), messages.len());
            for (index, later) in sent.iter().enumerate() {
                for earlier in &sent[..index] {
                    let swapped = earlier.id > later.id;
                    prop_assert!(!(swapped && conflict(&earlier.touches, &later.touches)), "{} before {}", earlier.id, later.id);
                }
            }
        }
    }
}
