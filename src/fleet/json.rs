//! The JSON inside of records, marks, heads: requests, answers and bytes as text.
//!
//! Readers ignore fields that they don't know, and a field that is absent has its default: so a later version may add
//! one without a new format.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::message::{Body, Encoding, HeaderSet, Request, Sha256, Touch};
use crate::store::LastAnswer;

/// Returns bytes as hexadecimal digits.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns bytes as base64.
pub(super) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Parses the output of [`to_base64`].
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Parses a digest of 64 hexadecimal digits.
pub(super) fn digest_from_hex(text: &str) -> Option<Sha256> {
    let digits = text.as_bytes();
    if digits.len() != 2 * Sha256::LEN || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; Sha256::LEN];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(Sha256::new(bytes))
}

/// A request without the bytes of its body.
#[derive(Serialize, Deserialize)]
pub(super) struct RequestFields {
    method: String,
    path: String,
    /// Names and values in wire order; each character of a value is one byte.
    #[serde(default)]
    headers: Vec<(String, String)>,
    /// The content encoding of the body, by its name in HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoding: Option<String>,
    /// [`Touch::to_bytes`], as base64.
    #[serde(default)]
    touches: String,
    items: u32,
}

impl RequestFields {
    /// Returns the fields of a request.
    pub(super) fn of(request: &Request, touches: &[Touch], items: u32) -> Self {
        let latin1 = |value: &[u8]| value.iter().copied().map(char::from).collect();
        Self {
            method: request.method.clone(),
            path: request.path.clone(),
            headers: request.headers.iter().map(|(name, value)| (name.to_owned(), latin1(value))).collect(),
            encoding: request.body.is_encoded().then(|| request.body.encoding.name().to_owned()),
            touches: to_base64(&Touch::to_bytes(touches)),
            items,
        }
    }

    /// Returns the request with this body, its touches and its items; the reason when a field can't be understood.
    pub(super) fn into_request(self, body: Vec<u8>) -> Result<(Request, Vec<Touch>, u32), &'static str> {
        let encoding = Encoding::from_header(self.encoding.as_deref()).ok_or("unknown content encoding")?;
        let touches = from_base64(&self.touches).and_then(|bytes| Touch::from_bytes(&bytes));
        let mut headers = Vec::with_capacity(self.headers.len());
        for (name, value) in self.headers {
            let value: Option<Vec<u8>> = value.chars().map(|c| u8::try_from(c).ok()).collect();
            headers.push((name, value.ok_or("unreadable header")?));
        }
        let request = Request {
            method: self.method,
            path: self.path,
            headers: HeaderSet::new(headers),
            body: Body::new(body, encoding),
        };
        Ok((request, touches.ok_or("unreadable entities")?, self.items))
    }
}

/// A server's answer.
#[derive(Serialize, Deserialize)]
pub(super) struct AnswerFields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(default)]
    text: String,
    #[serde(default)]
    at_ms: i64,
}

impl AnswerFields {
    /// Returns the fields of an answer.
    pub(super) fn of(answer: &LastAnswer) -> Self {
        Self { status: answer.status, text: answer.text_kept().to_owned(), at_ms: answer.at_ms }
    }

    /// Returns the answer.
    pub(super) fn into_answer(self) -> LastAnswer {
        let answer = LastAnswer { status: self.status, text: self.text, at_ms: self.at_ms };
        let text = answer.text_kept().to_owned();
        LastAnswer { text, ..answer }
    }
}

/// The id of an order as text.
pub(super) mod order_id {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};
    use uuid::Uuid;

    pub(in crate::fleet) fn serialize<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&id.hyphenated())
    }

    pub(in crate::fleet) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        Uuid::try_parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
