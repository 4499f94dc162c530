//! Streams the items of a batch from a payload that is never in memory as a whole.
//!
//! ```text
//! {"batch_group_id": 1, "spans": [ {…} , {…} ] , "z": {}}
//! └─────── head ───────┘           items       └─ tail ─┘
//! ```
//!
//! Two passes. [`Frame::survey`] locates the items and buffers the bytes around them; [`Pieces`] then returns as many
//! items at a time as fit into memory, each time as a complete payload with that frame around them: every byte of an
//! item, and of the frame, is as the client sent it. Separators between items (a comma and white space) are dropped.
//!
//! The tokenizer distinguishes only brackets, strings and commas, as needed to find the end of an item. Invalid JSON in
//! an item or in the frame is detected when a piece is inspected with [`super::json::Scanner`]: head, items and tail
//! are valid, each on its own, if and only if the payload is.

use std::io::{self, BufRead};
use std::sync::Arc;

use memchr::memchr2;
use thiserror::Error;

use super::inspection::ItemList;
use super::json::Scanner;

/// Why a payload can't be parsed as a list of items.
#[derive(Debug, Error)]
pub(crate) enum ItemsFault {
    /// It can't be read or decoded.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It is not valid JSON, detected at this byte.
    #[error("not JSON at byte {0}")]
    NotJson(u64),
    /// It has another shape: no list of items, two lists, or a frame above the limit.
    #[error("not one list of items")]
    NotListed,
}

/// The bytes around the items of a batch, and the number of items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Everything up to the opening bracket.
    head: Vec<u8>,
    /// Everything from the closing bracket.
    tail: Vec<u8>,
    /// Number of items.
    pub items: u64,
    /// Bytes of the largest item.
    pub item_bytes_max: usize,
}

impl Frame {
    /// Reads a payload to its end and returns its frame, `frame_bytes_max` bytes at most.
    ///
    /// # Errors
    ///
    /// [`ItemsFault::NotListed`] if the payload has no such list, or two of them: a server uses the last one.
    pub(crate) fn survey(content: impl BufRead, list: ItemList, frame_bytes_max: usize) -> Result<Self, ItemsFault> {
        let mut source = RecordingReader { content, at: 0, kept: Vec::new(), kept_max: frame_bytes_max, keeps: true };
        source.skip_byte_order_mark()?;
        source.skip_space()?;
        let mut frame = None;
        match (list, source.peek()?) {
            (ItemList::Body, Some(b'[')) => frame = Some(source.skip_items()?),
            (ItemList::Member(member), Some(b'{')) => source.skip_members(member, &mut frame)?,
            _ => return Err(ItemsFault::NotListed),
        }
        source.skip_space()?;
        if source.peek()?.is_some() {
            return Err(source.fault());
        }
        let frame = frame.ok_or(ItemsFault::NotListed)?;
        Ok(Self { tail: source.kept, ..frame })
    }

    /// Returns a payload without items.
    pub(crate) fn empty(&self) -> Vec<u8> {
        [&self.head[..], b"[]", &self.tail].concat()
    }

    /// Returns head and tail, for assembling a payload.
    pub(crate) fn around(&self) -> (&[u8], &[u8]) {
        (&self.head, &self.tail)
    }

    /// Strips this frame from a piece; returns its items without their brackets.
    pub(crate) fn items_of<'p>(&self, piece: &'p [u8]) -> &'p [u8] {
        piece.get(self.head.len() + 1..piece.len().saturating_sub(self.tail.len() + 1)).unwrap_or_default()
    }

    /// Returns the size of the frame in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.head.len() + self.tail.len() + 2
    }

    /// Returns an upper bound of the memory for a piece with this many bytes of items while it is read.
    pub(crate) fn piece_bytes_max(&self, items_bytes: usize) -> usize {
        self.bytes() + items_bytes.saturating_add(self.item_bytes_max)
    }
}

/// As many items of a batch as fit into the limit, with the frame of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The payload.
    pub content: Vec<u8>,
    /// Offset of the first item in the whole payload.
    pub at: u64,
}

/// Divides a surveyed payload into pieces.
pub(crate) struct Pieces<R> {
    source: RecordingReader<R>,
    frame: Arc<Frame>,
    items_bytes: usize,
    /// An item that did not fit into the last piece, and its offset.
    left: Option<(Vec<u8>, u64)>,
    is_begun: bool,
    is_done: bool,
}

impl<R: BufRead> Pieces<R> {
    /// Returns the pieces of the surveyed payload, from its beginning; each has `items_bytes` bytes of items at
    /// most, or one item.
    pub(crate) fn new(content: R, frame: Arc<Frame>, items_bytes: usize) -> Self {
        let source = RecordingReader { content, at: 0, kept: Vec::new(), kept_max: usize::MAX, keeps: false };
        Self { source, frame, items_bytes, left: None, is_begun: false, is_done: false }
    }

    /// Returns the next piece.
    ///
    /// # Errors
    ///
    /// Those of [`Frame::survey`], if the payload has changed.
    pub(crate) fn next_piece(&mut self) -> Result<Option<Piece>, ItemsFault> {
        if !std::mem::replace(&mut self.is_begun, true) {
            self.source.skip(self.frame.head.len())?;
            self.source.expect(b'[')?;
            self.source.skip_space()?;
            self.is_done = self.source.took(b']')?;
        }
        let mut content = Vec::with_capacity(self.frame.piece_bytes_max(self.items_bytes.min(self.left_bytes_max())));
        content.extend_from_slice(&self.frame.head);
        content.push(b'[');
        let begin = content.len();
        let mut first = None;
        if let Some((item, at)) = self.left.take() {
            content.extend_from_slice(&item);
            first = Some(at);
        }
        while !self.is_done && content.len() - begin < self.items_bytes {
            let before = content.len();
            if first.is_some() {
                content.push(b',');
            }
            let (item_at, item_begin) = (self.source.at_value()?, content.len());
            self.source.kept = content;
            self.source.keeps = true;
            let read = self.source.skip_value();
            self.source.keeps = false;
            content = std::mem::take(&mut self.source.kept);
            read?;
            self.source.skip_space()?;
            if !self.source.took(b',')? {
                self.source.expect(b']')?;
                self.is_done = true;
            }
            if first.is_some() && content.len() - begin > self.items_bytes {
                self.left = Some((content.split_off(item_begin), item_at));
                content.truncate(before);
                break;
            }
            first.get_or_insert(item_at);
        }
        let Some(at) = first else { return Ok(None) };
        content.push(b']');
        content.extend_from_slice(&self.frame.tail);
        Ok(Some(Piece { content, at }))
    }

    /// Returns an upper bound of the remaining bytes: a small batch needs no buffer for a large piece.
    fn left_bytes_max(&self) -> usize {
        let items = usize::try_from(self.frame.items).unwrap_or(usize::MAX);
        items.saturating_mul(self.frame.item_bytes_max.saturating_add(1))
    }
}

/// A forward-only reader that can record the bytes it passes.
struct RecordingReader<R> {
    content: R,
    at: u64,
    kept: Vec<u8>,
    kept_max: usize,
    keeps: bool,
}

impl<R: BufRead> RecordingReader<R> {
    fn fault(&self) -> ItemsFault {
        ItemsFault::NotJson(self.at)
    }

    fn peek(&mut self) -> Result<Option<u8>, ItemsFault> {
        Ok(self.content.fill_buf()?.first().copied())
    }

    /// Consumes this many of the buffered bytes.
    fn take(&mut self, bytes: usize) -> Result<(), ItemsFault> {
        if self.keeps {
            if self.kept.len().saturating_add(bytes) > self.kept_max {
                return Err(ItemsFault::NotListed);
            }
            let there = self.content.fill_buf()?;
            self.kept.extend_from_slice(&there[..bytes.min(there.len())]);
        }
        self.content.consume(bytes);
        self.at += bytes as u64;
        Ok(())
    }

    fn took(&mut self, byte: u8) -> Result<bool, ItemsFault> {
        let is_there = self.peek()? == Some(byte);
        if is_there {
            self.take(1)?;
        }
        Ok(is_there)
    }

    fn expect(&mut self, byte: u8) -> Result<(), ItemsFault> {
        if self.took(byte)? { Ok(()) } else { Err(self.fault()) }
    }

    fn skip(&mut self, bytes: usize) -> Result<(), ItemsFault> {
        let mut left = bytes;
        while left > 0 {
            let there = self.content.fill_buf()?.len().min(left);
            if there == 0 {
                return Err(self.fault());
            }
            self.take(there)?;
            left -= there;
        }
        Ok(())
    }

    /// Jackson skips it, so the server accepts such a payload.
    fn skip_byte_order_mark(&mut self) -> Result<(), ItemsFault> {
        if self.took(0xef)? {
            self.expect(0xbb)?;
            self.expect(0xbf)?;
        }
        Ok(())
    }

    fn skip_space(&mut self) -> Result<(), ItemsFault> {
        self.skip_while(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t'))
    }

    fn skip_while(&mut self, is_skipped: impl Fn(u8) -> bool) -> Result<(), ItemsFault> {
        loop {
            let there = self.content.fill_buf()?;
            let skipped = there.iter().take_while(|byte| is_skipped(**byte)).count();
            let is_end = skipped < there.len() || there.is_empty();
            self.take(skipped)?;
            if is_end {
                return Ok(());
            }
        }
    }

    /// Returns the offset of the next value.
    fn at_value(&mut self) -> Result<u64, ItemsFault> {
        self.skip_space()?;
        Ok(self.at)
    }

    fn skip_string(&mut self) -> Result<(), ItemsFault> {
        self.expect(b'"')?;
        loop {
            let there = self.content.fill_buf()?;
            match memchr2(b'"', b'\\', there) {
                None if there.is_empty() => return Err(self.fault()),
                None => {
                    let all = there.len();
                    self.take(all)?;
                }
                Some(end) if there[end] == b'"' => return self.take(end + 1),
                Some(escape) => {
                    self.take(escape + 1)?;
                    self.skip(1)?;
                }
            }
        }
    }

    fn skip_value(&mut self) -> Result<(), ItemsFault> {
        match self.peek()? {
            Some(b'"') => self.skip_string(),
            Some(b'{' | b'[') => self.skip_nested(),
            _ => {
                let before = self.at;
                let is_part = |byte: u8| {
                    !matches!(byte, b',' | b':' | b'"' | b'{' | b'}' | b'[' | b']' | b' ' | b'\n' | b'\r' | b'\t')
                };
                self.skip_while(is_part)?;
                if self.at == before { Err(self.fault()) } else { Ok(()) }
            }
        }
    }

    /// Skips an object or an array. Iterative, so that nesting can't overflow the stack.
    fn skip_nested(&mut self) -> Result<(), ItemsFault> {
        let mut depth = 0_u64;
        loop {
            let there = self.content.fill_buf()?;
            if there.is_empty() {
                return Err(self.fault());
            }
            let next = there.iter().position(|byte| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']'));
            let (plain, byte) = (next.unwrap_or(there.len()), next.map(|next| there[next]));
            self.take(plain)?;
            match byte {
                None => {}
                Some(b'"') => self.skip_string()?,
                Some(b'{' | b'[') => {
                    depth += 1;
                    self.take(1)?;
                }
                Some(_) => {
                    depth -= 1;
                    self.take(1)?;
                    if depth == 0 {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Skips the array of items. The bytes recorded so far are the head of the frame; from here on its tail is
    /// recorded.
    fn skip_items(&mut self) -> Result<Frame, ItemsFault> {
        let mut frame = Frame { head: std::mem::take(&mut self.kept), tail: Vec::new(), items: 0, item_bytes_max: 0 };
        self.kept_max = self.kept_max.saturating_sub(frame.head.len());
        self.keeps = false;
        self.expect(b'[')?;
        self.skip_space()?;
        let mut is_done = self.took(b']')?;
        while !is_done {
            let begin = self.at_value()?;
            self.skip_value()?;
            frame.items += 1;
            let bytes = usize::try_from(self.at - begin).unwrap_or(usize::MAX);
            frame.item_bytes_max = frame.item_bytes_max.max(bytes);
            self.skip_space()?;
            if !self.took(b',')? {
                self.expect(b']')?;
                is_done = true;
            }
        }
        self.keeps = true;
        Ok(frame)
    }

    /// Skips an object, and the items in this member of it.
    fn skip_members(&mut self, member: &str, frame: &mut Option<Frame>) -> Result<(), ItemsFault> {
        self.expect(b'{')?;
        self.skip_space()?;
        if self.took(b'}')? {
            return Ok(());
        }
        loop {
            self.skip_space()?;
            let (begin, at) = (self.kept.len(), self.at);
            self.skip_string()?;
            let key = self.kept.get(begin..).unwrap_or_default();
            let key = Scanner::new(key).and_then(|mut key| key.string().map(|text| text == member));
            let is_member = key.map_err(|fault| ItemsFault::NotJson(at + fault.at as u64))?;
            self.skip_space()?;
            self.expect(b':')?;
            self.skip_space()?;
            if is_member && self.peek()? == Some(b'[') {
                if frame.is_some() {
                    return Err(ItemsFault::NotListed);
                }
                *frame = Some(self.skip_items()?);
            } else {
                self.skip_value()?;
            }
            self.skip_space()?;
            if self.took(b'}')? {
                return Ok(());
            }
            self.expect(b',')?;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::json::{JsonKind, NotJson};

    const SPANS: ItemList = ItemList::Member("spans");

    /// Returns a text in tiny reads: no result may depend on buffer boundaries.
    struct Drops<'t>(&'t [u8], usize);

    impl io::Read for Drops<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let there = self.fill_buf()?;
            let bytes = there.len().min(into.len());
            into[..bytes].copy_from_slice(&there[..bytes]);
            self.consume(bytes);
            Ok(bytes)
        }
    }

    impl BufRead for Drops<'_> {
        fn fill_buf(&mut self) -> io::Result<&[u8]> {
            Ok(&self.0[..self.0.len().min(self.1)])
        }

        fn consume(&mut self, bytes: usize) {
            self.0 = &self.0[bytes..];
        }
    }

    fn divided(text: &str, list: ItemList, drop: usize, piece: usize) -> Result<(Frame, Vec<Piece>), ItemsFault> {
        let frame = Arc::new(Frame::survey(Drops(text.as_bytes(), drop), list, 10_000)?);
        let mut pieces = Pieces::new(Drops(text.as_bytes(), drop), frame.clone(), piece);
        let mut all = Vec::new();
        while let Some(piece) = pieces.next_piece()? {
            assert!(
                text.as_bytes()[usize::try_from(piece.at).unwrap()..].starts_with(&frame.items_of(&piece.content)[..1])
            );
            all.push(piece);
        }
        Ok((Arc::unwrap_or_clone(frame), all))
    }

    /// Parses a whole text with the scanner of the rest of the program.
    fn whole(text: &[u8], list: ItemList) -> Result<Option<Vec<String>>, NotJson> {
        fn items(scanner: &mut Scanner<'_>, text: &[u8]) -> Result<Vec<String>, NotJson> {
            let mut items = Vec::new();
            scanner.array(|scanner| {
                let item = scanner.skip_value()?;
                items.push(String::from_utf8_lossy(&text[item]).into_owned());
                Ok(())
            })?;
            Ok(items)
        }
        let mut scanner = Scanner::new(text)?;
        let mut found = Vec::new();
        match (list, scanner.peek()?) {
            (ItemList::Body, JsonKind::Array) => found.push(items(&mut scanner, text)?),
            (ItemList::Member(member), JsonKind::Object) => {
                scanner.object(|key, scanner| {
                    if key == member && scanner.peek()? == JsonKind::Array {
                        found.push(items(scanner, text)?);
                        return Ok(());
                    }
                    scanner.skip_value().map(drop)
                })?;
            }
            _ => {
                scanner.skip_value()?;
            }
        }
        scanner.end()?;
        Ok(if found.len() == 1 { found.pop() } else { None })
    }

    #[test]
    fn pieces_keep_items_and_frame_byte_for_byte() {
        let text = " \n{\"batch_group_id\" : 1,\"sp\\u0061ns\" : [ {\"a\":[1,\"]}\\\"\"]} ,\tNaN,\"x\" , [ ] ] ,\"z\" : {\"spans\":[]}} ";
        for (drop, size) in [(1, 1), (3, 10), (1000, 25), (7, 1000)] {
            let (frame, pieces) = divided(text, SPANS, drop, size).unwrap();
            assert_eq!((frame.items, frame.item_bytes_max), (4, 16));
            assert_eq!(
                frame.empty(),
                " \n{\"batch_group_id\" : 1,\"sp\\u0061ns\" : [] ,\"z\" : {\"spans\":[]}} ".as_bytes()
            );
            let items: Vec<_> =
                pieces.iter().map(|piece| String::from_utf8_lossy(frame.items_of(&piece.content))).collect();
            assert_eq!(items.join(","), "{\"a\":[1,\"]}\\\"\"]},NaN,\"x\",[ ]", "{drop} {size}");
            assert_eq!(
                pieces.len(),
                [4, 3, 2, 1][[1, 10, 25, 1000].iter().position(|s| *s == size).unwrap()],
                "{size}"
            );
        }
    }

    #[test]
    fn json_without_a_list_differs_from_invalid_json() {
        for (text, list, is_json) in [
            ("{}", SPANS, true),
            ("[]", SPANS, true),
            ("{\"spans\":{}}", SPANS, true),
            ("{\"spans\":[1],\"spans\":[2]}", SPANS, true),
            ("{\"other\":[1]}", SPANS, true),
            ("\"text\"", ItemList::Body, true),
            ("{\"spans\":[1,]}", SPANS, false),
            ("{\"spans\":[1 2]}", SPANS, false),
            ("{\"spans\":[1]", SPANS, false),
            ("{\"spans\":[1]}x", SPANS, false),
            ("{\"spans\":[\"a", SPANS, false),
            ("{\"spans\":[{]", SPANS, false),
            ("[,1]", ItemList::Body, false),
        ] {
            let fault = divided(text, list, 2, 5).unwrap_err();
            assert_eq!(matches!(fault, ItemsFault::NotListed), is_json, "{text}: {fault}");
        }
        let long = format!("{{\"spans\":[1],\"x\":\"{}\"}}", "x".repeat(20_000));
        assert!(matches!(divided(&long, SPANS, 100, 5), Err(ItemsFault::NotListed)), "the frame is held without bound");
    }

    fn space() -> impl Strategy<Value = String> {
        "[ \n\r\t]{0,3}"
    }

    fn value() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("NaN".to_owned()),
            Just("-Infinity".to_owned()),
            Just("1e+22".to_owned()),
            Just("\"\"".to_owned()),
            Just("\"\\\"]},{[\\\\\"".to_owned()),
            Just("\"\\ud83d ü\"".to_owned()),
            Just("null".to_owned()),
            any::<i64>().prop_map(|number| number.to_string()),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            let member = (space(), prop_oneof![Just("spans"), Just("id"), Just("\\\"")], inner.clone());
            let members = prop::collection::vec(member, 0..4);
            prop_oneof![
                (space(), prop::collection::vec(inner, 0..4))
                    .prop_map(|(space, items)| format!("[{space}{}]", items.join(&format!("{space},")))),
                members.prop_map(|members| {
                    let members =
                        members.into_iter().map(|(space, key, value)| format!("{space}\"{key}\"{space}:{value}"));
                    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
                }),
            ]
        })
    }

    fn batch() -> impl Strategy<Value = String> {
        let items = prop::collection::vec((space(), value(), space()), 0..8);
        let others = || prop::collection::vec((prop_oneof![Just("a"), Just("spans "), Just("items")], value()), 0..3);
        (space(), others(), items, others(), any::<bool>()).prop_map(|(space, before, items, after, has_mark)| {
            let other = |(key, value)| format!("{space}\"{key}\"{space}:{space}{value}{space}");
            let items: Vec<_> = items.into_iter().map(|(a, item, b)| format!("{a}{item}{b}")).collect();
            let mut members: Vec<String> = before.into_iter().map(other).collect();
            members.push(format!("\"spans\":{space}[{space}{}{space}]", items.join(",")));
            members.extend(after.into_iter().map(other));
            format!("{}{space}{{{space}{}{space}}}{space}", if has_mark { "\u{feff}" } else { "" }, members.join(","))
        })
    }

    proptest! {
        #[test]
        fn pieces_preserve_items_and_order(text in batch(), drop in 1_usize..9, size in 1_usize..80) {
            let expected = whole(text.as_bytes(), SPANS).expect("it is JSON").expect("it has items");
            let (frame, pieces) = divided(&text, SPANS, drop, size).expect("it can be divided");
            prop_assert_eq!(whole(&frame.empty(), SPANS).expect("the frame is JSON"), Some(Vec::new()));
            let mut found = Vec::new();
            for piece in pieces {
                let items = whole(&piece.content, SPANS).expect("a piece is JSON").expect("it has items");
                let bytes = frame.items_of(&piece.content).len();
                prop_assert!(bytes <= size || items.len() == 1, "{} bytes of {}", bytes, size);
                found.extend(items);
            }
            prop_assert_eq!(frame.items, expected.len() as u64);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn pieces_are_valid_if_and_only_if_the_whole_is(
            text in "(\\{\"spans\":\\[)?[\\[\\]{}\",:\\\\ truen01.]{0,12}(\\]\\})?", drop in 1_usize..5, size in 1_usize..9,
        ) {
            let expected = whole(text.as_bytes(), SPANS);
            let divided = divided(&text, SPANS, drop, size);
            let are_valid = |frame: &Frame, pieces: &[Piece]| {
                let mut all = pieces.iter().map(|piece| &piece.content[..]).chain([&frame.empty()[..]]).map(|text| whole(text, SPANS)).collect::<Vec<_>>().into_iter();
                all.all(|read| read.is_ok())
            };
            match (&expected, &divided) {
                (Ok(Some(_)), Ok((frame, pieces))) => prop_assert!(are_valid(frame, pieces), "{}", text),
                (Ok(None), Err(ItemsFault::NotListed)) => {}
                (Err(_), Err(_)) => {}
                (Err(_), Ok((frame, pieces))) => prop_assert!(!are_valid(frame, pieces), "{}", text),
                (expected, divided) => prop_assert!(false, "{}: {:?} and {:?}", text, expected, divided),
            }
        }
    }
}
