//! Requests that replace stored messages: messages joined and batches cut apart.

use std::ops::Range;

use opik_offline::delivery::batching::coalesce::{Shipment, plan};
use opik_offline::delivery::batching::split::{Divisible, Division, DivisionEnd};
use opik_offline::message::{Claimed, MessageId, MessageType, Touch, conflict};
use opik_offline::protocol::inspection::{Inspection, ItemList, inspect, item_list};
use opik_offline::protocol::json::{JsonKind, Scanner};
use opik_offline::protocol::otlp::{Format, Traces};
use opik_offline::protocol::routes::{Protected, Route, classify};

use super::{json_fault, protected};

/// More messages than this are not planned: the oracle looks at every pair.
const MESSAGES_MAX: usize = 64;

/// Lines of `METHOD path body`, each a stored message.
pub(crate) fn delivery(input: &[u8]) {
    let messages: Vec<Claimed> = input.split(|byte| *byte == b'\n').filter_map(message).take(MESSAGES_MAX).collect();
    let numbered = |(message, number): (Claimed, i64)| Claimed { id: MessageId(number), ..message };
    let messages: Vec<Claimed> = messages.into_iter().zip(1..).map(numbered).collect();
    let shipments = plan(messages.clone());

    let mut planned: Vec<&Claimed> = shipments.iter().flat_map(Shipment::messages).collect();
    for (at, later) in planned.iter().enumerate() {
        for earlier in &planned[..at] {
            let is_kept = earlier.id < later.id || !conflict(&earlier.touches, &later.touches);
            assert!(is_kept, "{} is sent before {}, which was accepted first", earlier.id, later.id);
        }
    }
    planned.sort_by_key(|message| message.id);
    assert!(planned.into_iter().eq(&messages), "messages get lost, change or are invented on their way");
    shipments.into_iter().for_each(shipment);
}

fn message(line: &[u8]) -> Option<Claimed> {
    let (Protected { message_type, path_id }, request) = protected(line)?;
    let found = match message_type {
        MessageType::OtlpTraces => return None,
        _ => inspect(&Protected { message_type, path_id }, &request.body.bytes).ok()?,
    };
    let Inspection { touches, items, .. } = found;
    Some(Claimed {
        id: MessageId(0),
        message_type,
        request,
        touches,
        items,
        attempts: 0,
        ahead: Vec::new(),
        is_unsure: false,
        way: Default::default(),
    })
}

/// Returns the contents of a request, piece by piece, until every message is alone.
fn shipment(shipment: Shipment) {
    let request = shipment.request();
    let content = request.body.decode(u64::MAX / 2).expect("our own encoding can be decoded");
    if let Some(only) = shipment.only() {
        assert_eq!(request, only.request, "a message that is sent alone is not as it was stored");
        return;
    }
    let messages: Vec<Claimed> = shipment.messages().cloned().collect();
    let is_folded =
        messages.iter().any(|m| matches!(m.message_type, MessageType::UpdateTrace | MessageType::UpdateSpan));
    let Route::Protected(write) = classify(&request.method, &request.path) else {
        panic!("{} is not a write", request.path)
    };
    let found = inspect(&write, &content).expect("a request that we make can be read");
    let creates: Vec<&Claimed> = if is_folded { vec![&messages[0]] } else { messages.iter().collect() };
    let items: u32 = creates.iter().map(|message| message.items).sum();
    assert_eq!(found.items, items, "{} messages have {items} items, and {} are sent", messages.len(), found.items);
    let list = item_list(write.message_type).expect("it is a batch");
    if is_folded {
        let touches = Touch::distinct(messages.iter().flat_map(|message| message.touches.clone()).collect());
        let keys = |touches: &[Touch]| touches.iter().map(|touch| touch.key).collect::<Vec<_>>();
        let named = keys(&touches);
        assert!(keys(&found.touches).iter().all(|key| named.contains(key)), "an entity is invented");
    } else {
        let stored: Vec<Vec<u8>> = creates
            .iter()
            .flat_map(|message| match item_list(message.message_type) {
                Some(list) => items_of(&message.request.body.bytes, list),
                None => vec![message.request.body.bytes.trim_ascii().to_vec()],
            })
            .map(|item| item.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&item).trim_ascii().to_vec())
            .collect();
        assert_eq!(items_of(&content, list), stored, "an item is not sent as its client wrote it");
    }
    let parts = shipment.parts().expect("it has several messages");
    let again: Vec<Claimed> = parts.iter().flat_map(|part| part.messages().cloned()).collect();
    assert_eq!(again, messages, "messages get lost when a request is divided");
    parts.into_iter().for_each(self::shipment);
}

/// Returns the items of a batch as written.
pub(super) fn items_of(content: &[u8], list: ItemList) -> Vec<Vec<u8>> {
    let mut items = Vec::new();
    let mut scanner = Scanner::new(content).expect("it was read before");
    let mut read = |scanner: &mut Scanner<'_>| {
        // Of a list that is there twice the last one counts.
        items.clear();
        let item = |scanner: &mut Scanner<'_>| scanner.skip_value().map(|item| items.push(content[item].to_vec()));
        scanner.array(item).map(drop)
    };
    match list {
        ItemList::Body => read(&mut scanner),
        ItemList::Member(member) => scanner
            .object(|key, scanner| match key == member && scanner.peek()? == JsonKind::Array {
                true => read(scanner),
                false => scanner.skip_value().map(drop),
            })
            .map(drop),
    }
    .expect("it was read before");
    items
}

/// `METHOD path body`, whose last byte selects the bad items; it may belong to the body, too.
pub(crate) fn division(input: &[u8]) {
    let Some((write, request)) = protected(input) else { return };
    let Some(divisible) = Divisible::of(write.message_type, &request) else { return };
    let len = divisible.len();
    assert!(len > 1, "a single item is divided");
    let halves = [0..len / 2, len / 2..len].map(|half| divisible.piece(&request, half));
    if let Some(list) = item_list(write.message_type) {
        let all = items_of(&request.body.bytes, list);
        let pieces: Vec<_> = halves.iter().flat_map(|half| items_of(&half.body.bytes, list)).collect();
        assert_eq!(pieces, all, "the halves together are not the whole");
    }
    let whole = match write.message_type {
        MessageType::OtlpTraces => {
            let format = request.headers.get("content-type").and_then(|value| std::str::from_utf8(value).ok());
            let format = format.and_then(Format::from_content_type).expect("it has one");
            Traces::read(format, &request.body.bytes).expect("it is divided").touches
        }
        _ => inspect(&write, &request.body.bytes).map_or_else(|_| Vec::new(), |found| found.touches),
    };
    for half in &halves {
        let touches = divisible.touches(write.message_type, half).expect("a piece can be read");
        let is_known = |touch: &Touch| whole.iter().any(|known| known.key == touch.key);
        assert!(whole.is_empty() || touches.iter().all(is_known), "a piece is about what the whole is not about");
    }
    let first = divisible.piece(&request, 0..1);
    assert_eq!(Divisible::of(write.message_type, &first), None, "a piece of one item has several");
    if request.headers.get("content-type") == Some(b"application/json") {
        assert_eq!(json_fault(&first.body.bytes), Ok(()), "a piece can't be read");
    }
    divide(len, input.last().copied().unwrap_or_default());
}

/// Divides a batch of this many items for a server that accepts some of them.
fn divide(len: usize, seed: u8) {
    let is_bad = |item: usize| seed >> (item % 7) & 1 == 1;
    let falters = seed & 0x80 != 0;
    let mut division = Division::of(len);
    let mut passed: Vec<Range<usize>> = Vec::new();
    let mut requests = 0;
    while let Some(items) = division.next() {
        requests += 1;
        assert!(requests <= 4 * len + 4, "a division of {len} items does not terminate");
        if !items.clone().any(is_bad) {
            division.passed(items.clone());
            passed.push(items);
        } else if falters && items.start % 3 == 0 {
            division.faltered(items);
        } else {
            division.refused(items, ());
        }
    }
    let mut seen = passed.clone();
    match division.end() {
        DivisionEnd::AllPassed => {}
        DivisionEnd::AllRefused | DivisionEnd::NothingDecided => {
            assert!(passed.is_empty(), "a delivered item is sent again");
            return;
        }
        DivisionEnd::Parts(parts) => seen.extend(parts.into_iter().map(|(items, _)| items)),
    }
    seen.sort_by_key(|items| items.start);
    let covered = seen.iter().try_fold(0, |end, items| (items.start == end).then_some(items.end));
    assert_eq!(covered, Some(len), "an item gets lost in a division, or is kept after it was delivered: {seen:?}");
}
