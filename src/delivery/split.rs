//! A refused batch, divided until the bad item stands alone, also inside one stored body.
//!
//! A client's batch of 1,000 items with one bad item is one message. When the server refuses it, its items are sent in
//! halves of halves: what passes is delivered, and only the items that are refused alone are kept as rejected, each as a
//! message of its own. That costs at most 2 log2(n) requests for one bad item among n, and for b of them at most b times
//! that.
//!
//! Pieces are cut out of the content where its items stand: every byte of an item is as the client sent it, and the other
//! members of the body (`entity_type`, `batch_group_id`) are in every piece.

use std::ops::Range;

use bytes::Bytes;

use crate::message::{Body, Encoding, HeaderSet, MessageType, Request};
use crate::protocol::inspection::items_member;
use crate::protocol::json::{Kind, NotJson, Scanner};

/// Bodies larger than this when decoded are not divided.
const CONTENT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A stored batch that can be divided: where its items stand in its decoded content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divisible {
    content: Bytes,
    /// The array with its brackets.
    array: Range<usize>,
    items: Vec<Range<usize>>,
}

impl Divisible {
    /// Finds the items of a batch; `None` when the message is no batch, or one of a single item.
    pub fn of(message_type: MessageType, request: &Request) -> Option<Self> {
        let member = items_member(message_type)?;
        let content = request.body.decode(CONTENT_BYTES_MAX).ok()?;
        let (array, items) = find_items(&content, member).ok()??;
        (items.len() > 1).then_some(Self { content, array, items })
    }

    /// Returns how many items there are; at least two.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Says whether there are none, which never happens.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Returns the request that carries only these items, and otherwise says what `whole` says.
    pub fn piece(&self, whole: &Request, items: Range<usize>) -> Request {
        let chosen = &self.items[items];
        let bytes: usize = chosen.iter().map(|item| item.len() + 1).sum();
        let around = self.content.len() - self.array.len();
        let mut content = Vec::with_capacity(around + bytes + 2);
        content.extend_from_slice(&self.content[..self.array.start]);
        content.push(b'[');
        for (index, item) in chosen.iter().enumerate() {
            if index > 0 {
                content.push(b',');
            }
            content.extend_from_slice(&self.content[item.clone()]);
        }
        content.push(b']');
        content.extend_from_slice(&self.content[self.array.end..]);
        let headers = whole.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("content-encoding"));
        Request {
            method: whole.method.clone(),
            path: whole.path.clone(),
            headers: HeaderSet::new(headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect()),
            body: Body::new(content, Encoding::Identity),
        }
    }
}

type Found = (Range<usize>, Vec<Range<usize>>);

/// Returns where the array of items and each item stand. Of an array that is there twice the last one counts, as for the
/// server's parser.
fn find_items(content: &[u8], member: &str) -> Result<Option<Found>, NotJson> {
    let mut scanner = Scanner::new(content)?;
    if scanner.peek()? != Kind::Object {
        return Ok(None);
    }
    let mut found = None;
    scanner.object(|key, scanner| {
        if key == member && scanner.peek()? == Kind::Array {
            let mut items = Vec::new();
            let array = scanner.array(|scanner| {
                items.push(scanner.skip_value()?);
                Ok(())
            })?;
            found = Some((array, items));
            return Ok(());
        }
        scanner.skip_value().map(drop)
    })?;
    Ok(found)
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
    fn a_piece_has_its_items_byte_for_byte_and_all_that_stands_around_them() {
        let content = r#" {"entity_type" : "TRACE", "assertion_results": [ {"a": NaN} , {"b":"x,]"},[1e+22] ] , "z":{}} "#;
        let whole = request(content);
        let divisible = Divisible::of(MessageType::AddAssertionResultsBatch, &whole).expect("three items");
        assert_eq!(divisible.len(), 3);
        let piece = |items| String::from_utf8(divisible.piece(&whole, items).body.bytes.to_vec()).expect("text");
        let around = |items: &str| format!(r#" {{"entity_type" : "TRACE", "assertion_results": [{items}] , "z":{{}}}} "#);
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

    proptest! {
        #[test]
        fn pieces_of_a_batch_are_the_batch(items in prop::collection::vec("[0-9]{1,4}", 2..40), at in 1_usize..39) {
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
            let numbers: Vec<String> = items.iter().map(|n| n.trim_start_matches('0').to_owned()).collect();
            prop_assume!(items.iter().all(|n| !n.starts_with('0')));
            prop_assert_eq!(found, numbers);
        }
    }
}
