//! Marks: which messages of a stream are settled.
//!
//! A mark is durable before its message is settled in the store that delivered it. An object of marks has those of one
//! or more commits, in their order; its name has the epoch of its writer and a number. So the marks of a stream, read in
//! the order of their names, are in the order in which they were written.
//!
//! Marks of a division carry the remaining parts, bodies included: they are sealed like bundles.

use serde::{Deserialize, Serialize};

use super::container::{BadObject, BadRecord, ContainerReader, ObjectKind, ReadLimit, write};
use super::json::{AnswerFields, RequestFields, digest_from_hex};
use super::record::{MessageRef, header_and_rest, with_header};
use crate::message::MessageStatus;
use crate::store::{LastAnswer, Part};

/// The newest format that this version reads, and the one that it writes.
pub const FORMAT: u16 = 1;

const KIND: ObjectKind = ObjectKind { magic: *b"OPIKFLTM", format: FORMAT, name: "a file of marks" };
/// The largest mark, decoded, in bytes: all parts of the largest message.
const MARK_BYTES_MAX: usize = 64 * 1024 * 1024;
const LIMIT: ReadLimit = ReadLimit { piece: MARK_BYTES_MAX, total: 2 * MARK_BYTES_MAX };

/// The final outcome of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The server confirmed it.
    Delivered,
    /// The server refused it permanently, with this answer.
    Rejected(LastAnswer),
    /// A person deleted it.
    Deleted,
    /// It was dropped for its age, or to make room.
    Expired,
    /// It was divided: everything outside these parts was delivered. Never empty.
    Divided(Vec<Part>),
}

impl Fate {
    /// Returns whether the message is settled as a whole, regardless of other marks.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Delivered | Self::Deleted | Self::Expired)
    }
}

/// That a message of a stream is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which message, or which part of one.
    pub reference: MessageRef,
    /// Its outcome.
    pub fate: Fate,
}

#[derive(Serialize, Deserialize)]
struct MarkFields {
    message: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<String>,
    fate: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<AnswerFields>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parts: Vec<PartFields>,
}

#[derive(Serialize, Deserialize)]
struct PartFields {
    #[serde(flatten)]
    request: RequestFields,
    body_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejected: Option<AnswerFields>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<AnswerFields>,
}

#[derive(Serialize, Deserialize)]
struct MarksManifest {
    marks: u64,
}

impl PartFields {
    fn of(part: &Part) -> Self {
        let (status, answer) = part.status();
        let answer = |wanted| answer.filter(|_| status == wanted).map(AnswerFields::of);
        Self {
            request: RequestFields::of(&part.request, &part.touches, part.items),
            body_bytes: part.request.body.bytes.len() as u64,
            rejected: answer(MessageStatus::Rejected),
            held: answer(MessageStatus::Held),
        }
    }

    fn into_part(self, body: Vec<u8>) -> Result<Part, &'static str> {
        let (request, touches, items) = self.request.into_request(body)?;
        let answer = |fields: Option<AnswerFields>| fields.map(AnswerFields::into_answer);
        Ok(Part { request, touches, items, rejected: answer(self.rejected), held: answer(self.held) })
    }
}

/// Encodes marks, in this order, as one object before sealing.
pub fn encode_marks(marks: &[Mark]) -> Vec<u8> {
    let records: Vec<Vec<u8>> = marks.iter().map(encode).collect();
    let manifest = MarksManifest { marks: marks.len() as u64 };
    write(KIND, &serde_json::to_vec(&manifest).unwrap_or_default(), &records)
}

fn encode(mark: &Mark) -> Vec<u8> {
    let (fate, answer, parts): (_, _, &[Part]) = match &mark.fate {
        Fate::Delivered => ("delivered", None, &[]),
        Fate::Rejected(answer) => ("rejected", Some(AnswerFields::of(answer)), &[]),
        Fate::Deleted => ("deleted", None, &[]),
        Fate::Expired => ("expired", None, &[]),
        Fate::Divided(parts) => ("divided", None, parts),
    };
    let fields = MarkFields {
        message: mark.reference.message,
        part: mark.reference.part.map(|part| part.to_string()),
        fate: fate.to_owned(),
        answer,
        parts: parts.iter().map(PartFields::of).collect(),
    };
    let bodies: Vec<&[u8]> = parts.iter().map(|part| &part.request.body.bytes[..]).collect();
    with_header(&fields, &bodies)
}

fn decode(piece: &[u8]) -> Result<Mark, (Option<u64>, &'static str)> {
    let (header, mut rest) = header_and_rest(piece).ok_or((None, "its header is cut short"))?;
    let fields: MarkFields = serde_json::from_slice(header).map_err(|_| (None, "its header is not understood"))?;
    let message = fields.message;
    let bad = |reason| (Some(message), reason);
    let mut parts = Vec::with_capacity(fields.parts.len().min(piece.len()));
    for part in fields.parts {
        let length = usize::try_from(part.body_bytes).map_err(|_| bad("a part is cut short"))?;
        let (body, behind) = rest.split_at_checked(length).ok_or(bad("a part is cut short"))?;
        rest = behind;
        parts.push(part.into_part(body.to_vec()).map_err(bad)?);
    }
    let part = match fields.part {
        Some(text) => Some(digest_from_hex(&text).ok_or(bad("unreadable digest"))?),
        None => None,
    };
    let fate = match (fields.fate.as_str(), fields.answer) {
        ("delivered", _) => Fate::Delivered,
        ("rejected", Some(answer)) => Fate::Rejected(answer.into_answer()),
        ("deleted", _) => Fate::Deleted,
        ("expired", _) => Fate::Expired,
        ("divided", _) if !parts.is_empty() => Fate::Divided(parts),
        _ => return Err(bad("unknown fate: a newer version wrote it")),
    };
    Ok(Mark { reference: MessageRef { message, part }, fate })
}

/// Reads marks one by one, in their order.
pub struct MarksReader<'bytes> {
    container: ContainerReader<'bytes>,
}

impl<'bytes> MarksReader<'bytes> {
    /// Opens an object of marks.
    ///
    /// # Errors
    ///
    /// As [`super::bundle::BundleReader::open`]. A stream whose marks can't be read must not be imported: what they
    /// settled would be sent again, over newer writes.
    pub fn open(bytes: &'bytes [u8]) -> Result<Self, BadObject> {
        Ok(Self { container: ContainerReader::open(KIND, bytes, LIMIT)? })
    }
}

impl Iterator for MarksReader<'_> {
    type Item = Result<Mark, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        self.container.next_decoded(decode)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::samples::{answer, any_part, part};

    fn read(bytes: &[u8]) -> Vec<Result<Mark, BadRecord>> {
        MarksReader::open(bytes).expect("they are marks").collect()
    }

    fn examples() -> Vec<Mark> {
        let refused = Part { rejected: Some(answer("no")), ..part("{\"b\":2}") };
        let fates = [
            Fate::Delivered,
            Fate::Rejected(answer("bad name")),
            Fate::Deleted,
            Fate::Expired,
            Fate::Divided(vec![part("{\"a\":1}"), refused]),
        ];
        let whole = |(number, fate)| Mark { reference: MessageRef::whole(number), fate };
        let mut marks: Vec<Mark> = (1..).zip(fates).map(whole).collect();
        let reference = MessageRef::whole(5).part(&part("{\"a\":1}").request);
        marks.push(Mark { reference, fate: Fate::Delivered });
        marks
    }

    #[test]
    fn marks_of_the_first_format_stay_readable() {
        let kept = include_bytes!("../../tests/fixtures/fleet/marks-format-1.bin");
        let expected: Vec<_> = examples().into_iter().map(Ok).collect();
        assert_eq!(read(kept), expected, "delivered messages would be retried, over newer writes");
    }

    #[test]
    fn a_thousand_deliveries_take_little_room() {
        let marks: Vec<Mark> =
            (0..1000).map(|n| Mark { reference: MessageRef::whole(n), fate: Fate::Delivered }).collect();
        let bytes = encode_marks(&marks);
        assert!(bytes.len() < 64_000, "{} bytes for a thousand marks", bytes.len());
        assert_eq!(read(&bytes), marks.into_iter().map(Ok).collect::<Vec<_>>());
    }

    #[test]
    fn an_unknown_fate_is_reported_and_counts_as_none() {
        let unknown = with_header(&serde_json::json!({"message": 4, "fate": "postponed"}), &[]);
        let empty = with_header(&serde_json::json!({"message": 5, "fate": "divided"}), &[]);
        let read = read(&write(KIND, b"{}", &[unknown, empty, encode(&examples()[0])]));
        assert_eq!(read[0].as_ref().expect_err("it is not known").message, Some(4));
        assert_eq!(read[1].as_ref().expect_err("a division leaves parts").message, Some(5));
        assert_eq!(read[2], Ok(examples()[0].clone()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn every_division_comes_back_as_it_was(parts in prop::collection::vec(any_part(), 1..6), number: u64) {
            let mark = Mark { reference: MessageRef::whole(number), fate: Fate::Divided(parts) };
            prop_assert_eq!(read(&encode_marks(std::slice::from_ref(&mark))), [Ok(mark)]);
        }
    }
}
