//! A client's batch in parts: when the server refuses it for one item, the others need not share its fate.
//!
//! The items stand in each part exactly as the client wrote them, and so does what stands beside them.

use std::ops::Range;

use bytes::Bytes;

use super::inspection::{ItemList, item_list};
use super::json::{Kind, NotJson, Scanner};
use crate::message::{Body, Encoding, HeaderSet, MessageType, Request};

/// A batch whose items were found.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    request: &'a Request,
    content: Bytes,
    items: Vec<Range<usize>>,
}

/// Says whether an answer to a batch may be about one of its items only: the others can be tried without it.
pub fn may_be_about_one_item(status: u16) -> bool {
    // 413 is about all of them, and mends with fewer.
    matches!(status, 400 | 409 | 413 | 422)
}

impl<'a> Batch<'a> {
    /// Finds the items of a request; `None` when it is no batch, or has fewer than two.
    ///
    /// `content_bytes_max` bounds the decoded body.
    pub fn of(message_type: MessageType, request: &'a Request, content_bytes_max: u64) -> Option<Self> {
        let list = item_list(message_type)?;
        let content = request.body.decode(content_bytes_max).ok()?;
        let items = find_items(&content, list).ok()?;
        (items.len() > 1).then_some(Self { request, content, items })
    }

    /// Returns how many items it has: two at least.
    pub fn items(&self) -> usize {
        self.items.len()
    }

    /// Returns a request with these of its items only, uncompressed.
    ///
    /// # Panics
    ///
    /// When the range is empty or goes past [`Batch::items`].
    pub fn part(&self, items: Range<usize>) -> Request {
        let (first, last) = (&self.items[0], &self.items[self.items.len() - 1]);
        let mut body = self.content[..first.start].to_vec();
        body.extend_from_slice(&self.content[self.items[items.start].start..self.items[items.end - 1].end]);
        body.extend_from_slice(&self.content[last.end..]);
        let headers = self.request.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("content-encoding"));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
        Request {
            headers: HeaderSet::new(headers),
            body: Body::new(body, Encoding::Identity),
            method: self.request.method.clone(),
            path: self.request.path.clone(),
        }
    }
}

fn find_items(content: &[u8], list: ItemList) -> Result<Vec<Range<usize>>, NotJson> {
    let mut items = Vec::new();
    let mut lists = 0;
    let mut scanner = Scanner::new(content)?;
    let mut collect = |scanner: &mut Scanner<'_>| {
        lists += 1;
        scanner.array(|scanner| {
            items.push(scanner.skip_value()?);
            Ok(())
        })
    };
    match (list, scanner.peek()?) {
        (ItemList::Body, Kind::Array) => collect(&mut scanner).map(drop)?,
        (ItemList::Member(member), Kind::Object) => {
            scanner.object(|key, scanner| {
                if key == member && scanner.peek()? == Kind::Array {
                    return collect(scanner).map(drop);
                }
                scanner.skip_value().map(drop)
            })?;
        }
        _ => {}
    }
    // A member that stands there twice: readers differ in which one counts.
    Ok(if lists == 1 { items } else { Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(content: &str) -> Request {
        let headers = vec![("content-encoding".to_owned(), b"gzip".to_vec()), ("X-A".to_owned(), b"1".to_vec())];
        Request {
            method: "POST".into(),
            path: "v1/private/x".into(),
            headers: HeaderSet::new(headers),
            body: Body::new(content.to_owned(), Encoding::Identity),
        }
    }

    #[test]
    fn a_part_is_the_batch_with_fewer_items_and_not_a_byte_else_changed() {
        let whole = request(r#"{"x": 1, "traces" : [ {"a":1e+22}, {"b":NaN} ,{"c":[1,2]} ], "y": [3]}"#);
        let batch = Batch::of(MessageType::CreateTraceBatch, &whole, 1000).expect("three items");
        assert_eq!(batch.items(), 3);
        for (items, expected) in [
            (0..1, r#"{"x": 1, "traces" : [ {"a":1e+22} ], "y": [3]}"#),
            (1..3, r#"{"x": 1, "traces" : [ {"b":NaN} ,{"c":[1,2]} ], "y": [3]}"#),
            (0..3, r#"{"x": 1, "traces" : [ {"a":1e+22}, {"b":NaN} ,{"c":[1,2]} ], "y": [3]}"#),
        ] {
            let part = batch.part(items);
            assert_eq!(String::from_utf8_lossy(&part.body.bytes), expected);
            assert_eq!(part.headers.iter().count(), 1, "it is not compressed any more");
        }
    }

    #[test]
    fn only_batches_have_parts() {
        for (message_type, content) in [
            (MessageType::CreateTrace, r#"{"traces":[1,2]}"#),
            (MessageType::CreateTraceBatch, r#"{"traces":[1]}"#),
            (MessageType::CreateTraceBatch, r#"{"spans":[1,2]}"#),
            (MessageType::CreateTraceBatch, r#"{"traces":[1,2],"traces":[3,4]}"#),
            (MessageType::CreateTraceBatch, r#"{"traces":"#),
            (MessageType::OtlpTraces, r#"{"resourceSpans":[1,2]}"#),
        ] {
            assert!(Batch::of(message_type, &request(content), 1000).is_none(), "{message_type} {content}");
        }
        assert!(Batch::of(MessageType::DeleteTraces, &request(r#"{"ids":["a","b"]}"#), 1000).is_some());
        assert!(Batch::of(MessageType::AppendJobLogs, &request("[1,2]"), 1000).is_some());
    }
}
