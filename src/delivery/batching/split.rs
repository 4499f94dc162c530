//! Splitting: a refused batch is divided until the bad item is alone, also inside one stored body.
//!
//! A client's batch of 1,000 items with one bad item is one message. If the server refuses it, its items are sent in
//! halves of halves: the pieces that pass are delivered, and only the items that are refused alone are kept as
//! rejected, each as a message of its own. That costs at most 2 log2(n) requests for one bad item among n, and for b of
//! them at most b times that.
//!
//! Pieces are byte ranges of the content: every byte of an item is as the client sent it, and the other members of the
//! body (`entity_type`, `batch_group_id`) are in every piece. The items of an OTLP request are its spans; each keeps
//! its resource and its scope ([`otlp::piece`]).

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

use crate::message::{Body, Effect, Encoding, EntityKey, HeaderSet, MessageType, Request, Touch};
use crate::protocol::inspection::{ItemList, inspect, item_list};
use crate::protocol::json::{JsonKind, NotJson, Scanner};
use crate::protocol::otlp::{self, Format};
use crate::protocol::routes::{Protected, Route, classify};

/// Bodies larger than this when decoded are not divided.
const CONTENT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A stored batch that can be divided: its decoded content, and the ranges of its items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divisible {
    content: Bytes,
    items: ItemRanges,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ItemRanges {
    /// In one JSON array; its range includes the brackets.
    Listed { array: Range<usize>, items: Vec<Range<usize>> },
    /// `count` spans of an OTLP request.
    Spans { format: Format, count: usize },
}

impl Divisible {
    /// Finds the items of a batch; `None` if the message is not a batch of several items.
    pub fn of(message_type: MessageType, request: &Request) -> Option<Self> {
        Self::of_any(message_type, request).filter(|divisible| divisible.len() > 1)
    }

    /// Finds the items of a batch, even a single one; `None` if the message is not a batch.
    pub fn of_any(message_type: MessageType, request: &Request) -> Option<Self> {
        let items = |content: &[u8]| match message_type {
            MessageType::OtlpTraces => {
                let content_type = std::str::from_utf8(request.headers.get("content-type")?).ok()?;
                let format = Format::from_content_type(content_type)?;
                Some(ItemRanges::Spans { format, count: otlp::span_count(format, content).ok()? })
            }
            _ => {
                let (array, items) = find_items(content, item_list(message_type)?).ok()??;
                Some(ItemRanges::Listed { array, items })
            }
        };
        let content = request.body.decode(CONTENT_BYTES_MAX).ok()?;
        let divisible = Self { items: items(&content)?, content };
        (!divisible.is_empty()).then_some(divisible)
    }

    /// Returns how many items there are; at least one.
    pub fn len(&self) -> usize {
        match &self.items {
            ItemRanges::Listed { items, .. } => items.len(),
            ItemRanges::Spans { count, .. } => *count,
        }
    }

    /// Returns whether there are none, which never happens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the request with these items only, and otherwise the same as `whole`.
    pub fn piece(&self, whole: &Request, items: Range<usize>) -> Request {
        let content = match &self.items {
            ItemRanges::Listed { array, items: all } => self.listed(array, &all[items]),
            // It was parsed completely before. If that failed now, returning all of it would lose nothing.
            ItemRanges::Spans { format, .. } => {
                otlp::piece(*format, &self.content, items).unwrap_or_else(|_| self.content.to_vec())
            }
        };
        let headers = whole.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("content-encoding"));
        Request {
            method: whole.method.clone(),
            path: whole.path.clone(),
            headers: HeaderSet::new(headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect()),
            body: Body::new(content, Encoding::Identity),
        }
    }

    /// Returns the items that create these entities: of several items about one entity the last.
    pub fn creating(&self, message_type: MessageType, whole: &Request, entities: &[EntityKey]) -> Vec<usize> {
        let mut last: HashMap<EntityKey, usize> = HashMap::new();
        for index in 0..self.len() {
            let made = self.touches(message_type, &self.piece(whole, index..index + 1)).unwrap_or_default();
            let made = made.iter().filter(|touch| touch.effect == Effect::Create && entities.contains(&touch.key));
            last.extend(made.map(|touch| (touch.key, index)));
        }
        let mut indices: Vec<usize> = last.into_values().collect();
        indices.sort_unstable();
        indices
    }

    /// Returns the single create that is equivalent to one item of a batch create, and its type.
    pub fn single_create(
        &self,
        message_type: MessageType,
        whole: &Request,
        index: usize,
    ) -> Option<(MessageType, Request)> {
        let (single, path) = match message_type {
            MessageType::CreateTraceBatch => (MessageType::CreateTrace, "v1/private/traces"),
            MessageType::CreateSpansBatch => (MessageType::CreateSpan, "v1/private/spans"),
            _ => return None,
        };
        let ItemRanges::Listed { items, .. } = &self.items else { return None };
        let content = self.content.slice(items.get(index)?.clone());
        let piece = self.piece(whole, index..index + 1);
        let body = Body::new(content, Encoding::Identity);
        Some((single, Request { path: path.to_owned(), body, ..piece }))
    }

    /// Returns the request with these items only, which need not be adjacent; `None` for OTLP.
    pub fn pick(&self, whole: &Request, chosen: &[usize]) -> Option<Request> {
        let ItemRanges::Listed { array, items } = &self.items else { return None };
        let chosen: Vec<Range<usize>> = chosen.iter().filter_map(|item| items.get(*item).cloned()).collect();
        let body = Body::new(self.listed(array, &chosen), Encoding::Identity);
        Some(Request { body, ..self.piece(whole, 0..0) })
    }

    /// Returns the touches of a piece, parsed from the piece; `None` if it can't be parsed, which never happens.
    pub fn touches(&self, message_type: MessageType, piece: &Request) -> Option<Vec<Touch>> {
        match &self.items {
            ItemRanges::Listed { .. } => {
                // The id in the path is every piece's.
                let path = piece.path.split('?').next().unwrap_or_default();
                let path_id = match classify(&piece.method, path) {
                    Route::Protected(write) if write.message_type == message_type => write.path_id,
                    Route::Protected(_) | Route::Ping | Route::Upload(_) | Route::PassThrough => None,
                };
                let write = Protected { message_type, path_id };
                inspect(&write, &piece.body.bytes).ok().map(|found| found.touches)
            }
            ItemRanges::Spans { format, .. } => {
                otlp::Traces::read(*format, &piece.body.bytes).ok().map(|traces| traces.touches)
            }
        }
    }

    fn listed(&self, array: &Range<usize>, chosen: &[Range<usize>]) -> Vec<u8> {
        let bytes: usize = chosen.iter().map(|item| item.len() + 1).sum();
        let around = self.content.len() - array.len();
        let mut content = Vec::with_capacity(around + bytes + 2);
        content.extend_from_slice(&self.content[..array.start]);
        content.push(b'[');
        for (index, item) in chosen.iter().enumerate() {
            if index > 0 {
                content.push(b',');
            }
            content.extend_from_slice(&self.content[item.clone()]);
        }
        content.push(b']');
        content.extend_from_slice(&self.content[array.end..]);
        content
    }
}

/// The division of one batch in progress. Pure: it returns the items to send next and takes their results.
#[derive(Clone, Debug)]
pub struct Division<Answer> {
    len: usize,
    /// Pieces to send, the next one last.
    open: Vec<Range<usize>>,
    kept: Vec<Range<usize>>,
    refused: Vec<(Range<usize>, Answer)>,
    /// Pieces of several items that were refused and are divided no further unless a piece passes.
    given_up: Vec<(Range<usize>, Answer)>,
    passed: usize,
    refused_alone: usize,
}

/// The result of a division.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DivisionEnd<Answer> {
    /// Every piece was delivered.
    AllPassed,
    /// Every piece was refused: no single item is to blame.
    AllRefused,
    /// No piece was delivered or refused.
    NothingDecided,
    /// The remaining pieces, in order: refused ones, with the answer, and waiting ones.
    Parts(Vec<(Range<usize>, Option<Answer>)>),
}

/// Items refused alone, without one that passed, before the remaining pieces are sent once and divided no further: a
/// server that refuses everything must not be asked about every item of every batch. If one of those pieces passes
/// after all, the others are divided as well.
const REFUSED_ALONE_MAX: usize = 32;

impl<Answer: Clone> Division<Answer> {
    /// Begins with the halves of a refused batch of `len` items, two at least.
    pub fn of(len: usize) -> Self {
        let mut division = Self {
            len,
            open: Vec::new(),
            kept: Vec::new(),
            refused: Vec::new(),
            given_up: Vec::new(),
            passed: 0,
            refused_alone: 0,
        };
        division.halve(0..len);
        division
    }

    /// Begins with a batch that is cut: each of these items alone, in ascending order, and what lies between them.
    pub fn cut(len: usize, alone: &[usize]) -> Self {
        let mut division = Self::of(len);
        division.open.clear();
        let mut start = 0;
        for index in alone.iter().copied().filter(|index| *index < len) {
            division.open.extend((start < index).then_some(start..index));
            division.open.push(index..index + 1);
            start = index + 1;
        }
        division.open.extend((start < len).then_some(start..len));
        division.open.reverse();
        division
    }

    /// Returns the items to send next, in order.
    #[expect(clippy::should_implement_trait, reason = "the next piece depends on the result of the last one")]
    pub fn next(&mut self) -> Option<Range<usize>> {
        self.open.pop()
    }

    /// Notes that a piece was delivered.
    pub fn passed(&mut self, items: Range<usize>) {
        self.passed += items.len();
        for (items, _) in std::mem::take(&mut self.given_up).into_iter().rev() {
            self.halve(items);
        }
    }

    /// Notes that a piece failed transiently: it is divided, or it is a single item and waits for a retry.
    ///
    /// Its halves come last: each may time out again, and the other pieces may well pass.
    pub fn faltered(&mut self, items: Range<usize>) {
        if items.len() == 1 {
            self.keep(items);
        } else {
            let middle = items.start + items.len() / 2;
            self.open.splice(0..0, [middle..items.end, items.start..middle]);
        }
    }

    /// Notes that a piece was refused: it is divided, or it is a single item and stays.
    pub fn refused(&mut self, items: Range<usize>, answer: Answer) {
        if items.len() == 1 {
            self.refused_alone += 1;
            self.refused.push((items, answer));
        } else if self.passed == 0 && self.refused_alone >= REFUSED_ALONE_MAX {
            self.given_up.push((items, answer));
        } else {
            self.halve(items);
        }
    }

    /// Notes that a piece is not sent now.
    pub fn keep(&mut self, items: Range<usize>) {
        self.kept.push(items);
    }

    /// Returns whether any piece was delivered.
    pub fn anything_passed(&self) -> bool {
        self.passed > 0
    }

    /// Returns whether any piece waits for a retry.
    pub fn has_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Returns the result, once there is nothing to send next.
    pub fn end(mut self) -> DivisionEnd<Answer> {
        self.refused.append(&mut self.given_up);
        match (self.passed == self.len, self.kept.is_empty(), self.refused.is_empty()) {
            (true, _, _) => DivisionEnd::AllPassed,
            (false, true, false) if self.passed == 0 => DivisionEnd::AllRefused,
            (false, false, true) if self.passed == 0 => DivisionEnd::NothingDecided,
            _ => {
                // Adjacent waiting pieces become one.
                self.kept.sort_by_key(|items| items.start);
                let mut kept: Vec<Range<usize>> = Vec::new();
                for items in self.kept {
                    match kept.last_mut() {
                        Some(last) if last.end == items.start => last.end = items.end,
                        _ => kept.push(items),
                    }
                }
                let kept = kept.into_iter().map(|items| (items, None));
                let refused = self.refused.into_iter().map(|(items, answer)| (items, Some(answer)));
                let mut parts: Vec<_> = kept.chain(refused).collect();
                parts.sort_by_key(|(items, _)| items.start);
                DivisionEnd::Parts(parts)
            }
        }
    }

    fn halve(&mut self, items: Range<usize>) {
        let middle = items.start + items.len() / 2;
        self.open.push(middle..items.end);
        self.open.push(items.start..middle);
    }
}

type ArrayAndItems = (Range<usize>, Vec<Range<usize>>);

/// Returns the ranges of the array and of each item. If the array occurs twice the last one counts, as for the
/// server's parser.
fn find_items(content: &[u8], list: ItemList) -> Result<Option<ArrayAndItems>, NotJson> {
    let mut scanner = Scanner::new(content)?;
    let found = match (list, scanner.peek()?) {
        (ItemList::Body, JsonKind::Array) => Some(items_of(&mut scanner)?),
        (ItemList::Member(member), JsonKind::Object) => {
            let mut found = None;
            scanner.object(|key, scanner| {
                if key == member && scanner.peek()? == JsonKind::Array {
                    found = Some(items_of(scanner)?);
                    return Ok(());
                }
                scanner.skip_value().map(drop)
            })?;
            found
        }
        _ => return Ok(None),
    };
    // Trailing bytes would follow every piece, and make each of them as invalid as the whole.
    scanner.end()?;
    Ok(found)
}

fn items_of(scanner: &mut Scanner<'_>) -> Result<ArrayAndItems, NotJson> {
    let mut items = Vec::new();
    let array = scanner.array(|scanner| {
        items.push(scanner.skip_value()?);
        Ok(())
    })?;
    Ok((array, items))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(content: &str) -> Request {
        Request {
            method: "PUT".into(),
            path: "v1/private/assertion-results".into(),
            headers: HeaderSet::new(vec![
                ("content-type".into(), b"application/json".to_vec()),
                ("content-encoding".into(), b"gzip".to_vec()),
            ]),
            body: Body::new(content.to_owned(), Encoding::Identity),
        }
    }

    #[test]
    fn a_batch_with_something_behind_it_stays_whole() {
        let content = r#"{"assertion_results": [{"name": "a"}, {"name": "b"}]} x"#;
        let divisible = Divisible::of(MessageType::AddAssertionResultsBatch, &request(content));
        assert_eq!(divisible, None, "no piece of it could be read, and what it is about would be lost");
    }

    #[test]
    fn a_piece_has_its_items_byte_for_byte_and_all_that_stands_around_them() {
        let content =
            r#" {"entity_type" : "TRACE", "assertion_results": [ {"a": NaN} , {"b":"x,]"},[1e+22] ] , "z":{}} "#;
        let whole = request(content);
        let divisible = Divisible::of(MessageType::AddAssertionResultsBatch, &whole).expect("three items");
        assert_eq!(divisible.len(), 3);
        let piece = |items| String::from_utf8(divisible.piece(&whole, items).body.bytes.to_vec()).expect("text");
        let around =
            |items: &str| format!(r#" {{"entity_type" : "TRACE", "assertion_results": [{items}] , "z":{{}}}} "#);
        assert_eq!(piece(0..1), around(r#"{"a": NaN}"#));
        assert_eq!(piece(1..3), around(r#"{"b":"x,]"},[1e+22]"#));
        assert_eq!(divisible.piece(&whole, 0..1).headers.get("content-encoding"), None);
    }

    #[test]
    fn what_has_no_two_items_is_not_divided() {
        for (message_type, content) in [
            (MessageType::AddAssertionResultsBatch, r#"{"assertion_results": [1]}"#),
            (MessageType::AddAssertionResultsBatch, r#"{"assertion_results": {}}"#),
            (MessageType::AddAssertionResultsBatch, "[]"),
            (MessageType::AddAssertionResultsBatch, r#"{"assertion_results": [1,"#),
            (MessageType::CreateTrace, r#"{"assertion_results": [1,2]}"#),
        ] {
            assert_eq!(Divisible::of(message_type, &request(content)), None, "{content}");
        }
    }

    #[test]
    fn a_piece_is_about_its_own_items_and_about_what_its_path_names() {
        let queue = "01a20445-0b53-7443-881b-86277651b901";
        let (one, other) = ("01a20445-0b53-7443-881b-86277651b902", "01a20445-0b53-7443-881b-86277651b903");
        let whole = Request {
            method: "POST".into(),
            path: format!("v1/private/annotation-queues/{queue}/items/add?x=y"),
            ..request(&format!(r#"{{"ids":["{one}","{other}"]}}"#))
        };
        let divisible = Divisible::of(MessageType::AddQueueItems, &whole).expect("two items");
        let touches = divisible.touches(MessageType::AddQueueItems, &divisible.piece(&whole, 1..2)).expect("JSON");
        let key = |kind, id| crate::message::EntityKey::new(kind, id);
        let names = |key| touches.iter().any(|touch| touch.key == key);
        use crate::message::EntityKind::{AnnotationQueue, Trace};
        assert!(names(key(AnnotationQueue, queue)), "a part would overtake what waits for its queue");
        assert!(names(key(Trace, other)) && !names(key(Trace, one)));
    }

    fn divide(len: usize, bad: &[usize]) -> (DivisionEnd<()>, usize) {
        let mut division = Division::of(len);
        let mut requests = 0;
        while let Some(items) = division.next() {
            requests += 1;
            if bad.iter().any(|bad| items.contains(bad)) {
                division.refused(items, ());
            } else {
                division.passed(items);
            }
        }
        (division.end(), requests)
    }

    #[test]
    fn one_bad_item_of_a_thousand_stands_alone_after_twenty_requests() {
        for bad in [0, 1, 499, 500, 999] {
            let (end, requests) = divide(1000, &[bad]);
            assert_eq!(end, DivisionEnd::Parts(vec![(bad..bad + 1, Some(()))]), "{bad}");
            assert!(requests <= 20, "{requests} requests");
        }
    }

    #[test]
    fn a_server_that_refuses_everything_is_not_asked_about_every_item() {
        let all: Vec<usize> = (0..1000).collect();
        let (end, requests) = divide(1000, &all);
        assert_eq!(end, DivisionEnd::AllRefused);
        assert!(requests < 100, "{requests} requests");
    }

    #[test]
    fn many_bad_items_at_the_front_cost_no_good_one() {
        let bad: Vec<usize> = (0..200).collect();
        let (end, requests) = divide(1000, &bad);
        let DivisionEnd::Parts(parts) = end else { panic!("the good items were not delivered: {end:?}") };
        let left: Vec<usize> = parts.into_iter().flat_map(|(items, _)| items).collect();
        assert_eq!(left, bad, "good items are kept as rejected");
        assert!(requests < 2 * 200 + 40, "{requests} requests");
    }

    #[test]
    fn what_can_not_be_said_now_waits_in_one_piece() {
        let mut division = Division::of(8);
        assert_eq!(division.next(), Some(0..4));
        division.refused(0..4, "no");
        assert_eq!(division.next(), Some(0..2));
        division.passed(0..2);
        assert_eq!(division.next(), Some(2..4));
        division.keep(2..4);
        assert_eq!(division.next(), Some(4..8));
        division.keep(4..8);
        assert_eq!(division.next(), None);
        assert_eq!(division.end(), DivisionEnd::Parts(vec![(2..8, None)]));
        let mut division: Division<()> = Division::of(2);
        while let Some(items) = division.next() {
            division.keep(items);
        }
        assert_eq!(division.end(), DivisionEnd::NothingDecided);
    }

    proptest! {
        #[test]
        fn whatever_becomes_of_pieces_every_item_has_one_end(
            len in 2_usize..200,
            bad in prop::collection::btree_set(0_usize..200, 0..9),
            sick in prop::collection::btree_set(0_usize..200, 0..9),
            stops_after in 0_usize..60,
        ) {
            let mut division = Division::of(len);
            let (mut passed, mut requests) = (Vec::new(), 0);
            while let Some(items) = division.next() {
                requests += 1;
                if requests > stops_after {
                    division.keep(items);
                } else if items.clone().any(|item| sick.contains(&item)) {
                    division.faltered(items);
                } else if items.clone().any(|item| bad.contains(&item)) {
                    division.refused(items, ());
                } else {
                    passed.extend(items.clone());
                    division.passed(items);
                }
            }
            let (mut kept, mut refused) = (Vec::new(), Vec::new());
            match division.end() {
                DivisionEnd::AllPassed => {}
                DivisionEnd::AllRefused => refused.extend(0..len),
                DivisionEnd::NothingDecided => kept.extend(0..len),
                DivisionEnd::Parts(parts) => {
                    prop_assert!(parts.is_sorted_by_key(|(items, _)| items.start));
                    for (items, answer) in parts {
                        if answer.is_some() { refused.extend(items) } else { kept.extend(items) }
                    }
                }
            }
            prop_assert!(refused.iter().all(|item| bad.contains(item)), "a good item is rejected");
            prop_assert!(passed.iter().all(|item| !bad.contains(item) && !sick.contains(item)));
            if stops_after == 59 && requests <= stops_after {
                prop_assert!(kept.iter().all(|item| sick.contains(item)), "a good item waits for a sick one");
            }
            let mut all = [passed, kept, refused].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..len).collect::<Vec<_>>(), "an item is lost or doubled");
        }

        #[test]
        fn exactly_the_bad_items_are_left(len in 2_usize..300, bad in prop::collection::btree_set(0_usize..300, 0..120)) {
            let bad: Vec<usize> = bad.into_iter().filter(|bad| *bad < len).collect();
            prop_assume!(bad.len() < len);
            let (end, requests) = divide(len, &bad);
            match end {
                DivisionEnd::AllPassed => prop_assert!(bad.is_empty()),
                DivisionEnd::Parts(parts) => {
                    let left: Vec<usize> = parts.into_iter().flat_map(|(items, _)| items).collect();
                    prop_assert_eq!(&left, &bad);
                }
                other => prop_assert!(false, "{:?}", other),
            }
            let depth = len.ilog2() as usize + 1;
            prop_assert!(requests <= 2 * depth * bad.len().max(1), "{} requests", requests);
        }

        #[test]
        fn pieces_of_a_batch_are_the_batch(items in prop::collection::vec("[1-9][0-9]{0,3}", 2..40), at in 1_usize..39) {
            let at = at.min(items.len() - 1);
            let whole = request(&format!(r#"{{"assertion_results":[{}]}}"#, items.join(" , ")));
            let divisible = Divisible::of(MessageType::AddAssertionResultsBatch, &whole).expect("two items or more");
            let both = [divisible.piece(&whole, 0..at), divisible.piece(&whole, at..items.len())];
            let mut found = Vec::new();
            for piece in &both {
                let value: serde_json::Value = serde_json::from_slice(&piece.body.bytes).expect("JSON");
                let array = value["assertion_results"].as_array().expect("an array").clone();
                found.extend(array.iter().map(ToString::to_string));
            }
            prop_assert_eq!(found, items);
        }
    }
}
