//! Request bodies like those of the SDKs, different from each other and the same in every run.

use std::fmt::Write as _;
use std::io::Write as _;

use uuid::Uuid;

/// How a body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// As the Python SDK sends it: `spans/batch`, JSON with spaces, gzip.
    Python,
    /// As the TypeScript SDK sends it: `spans/batch`, compact JSON, uncompressed.
    TypeScript,
    /// The Python SDK's body, sent by a client that does not say who it is.
    Plain,
}

/// A source of numbers that gives the same ones in every run (splitmix64).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Words of ordinary texts; what an LLM is asked and answers compresses about as well as these.
const WORDS: &str = "the of and to in a is that for it as was with be by on not he his but at are this have from or had an \
    they which one you were all her she there would their we him been has when who will no more if out so up said what its \
    about than into them can only other time new some could these two may first then do any like my now over such our man \
    me even most made after also did many off before must well back through years much where your way down should because \
    long each just state those people too mister how little good world make very year still see own work men day get here \
    old between both life being under three never know same last another while us might great go come since against right \
    came take used himself few house american use place during high without again home around small however found missus \
    thought went say part once general upon school every does got united left number course war until always away something \
    fact water though less public put think almost hand enough took far head yet government system set better told nothing \
    night end why called find going look asked later knew point next city business case group days young document question \
    answer retrieval context embedding model token prompt completion customer invoice refund policy shipping delivery order";

/// Returns text of at least this many bytes.
fn text(numbers: &mut Numbers, words: &[&str], bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        // Small numbers are likelier, as the common words come first.
        let (a, b) = (numbers.below(words.len() as u64), numbers.below(words.len() as u64));
        text.push_str(words[a.min(b) as usize]);
        match numbers.below(12) {
            0 => text.push_str(". "),
            1 => write!(text, " {} ", numbers.below(10_000)).expect("a string can be written"),
            _ => text.push(' '),
        }
    }
    text.truncate(bytes);
    text
}

/// Returns one span as the SDK writes it, of about this many bytes.
fn span(numbers: &mut Numbers, words: &[&str], bytes: usize, sent: Sent) -> String {
    let ids = format!(
        r#"{{"id": "{}", "project_name": "demo-project", "trace_id": "{}", "parent_span_id": "{}""#,
        Uuid::now_v7(),
        Uuid::now_v7(),
        Uuid::now_v7()
    );
    let span = ids + &rest_of_span(numbers, words, bytes);
    match sent {
        Sent::Python | Sent::Plain => span,
        Sent::TypeScript => span.replace("\": ", "\":").replace(", \"", ",\""),
    }
}

/// Returns what follows the ids in a span of about this many bytes.
fn rest_of_span(numbers: &mut Numbers, words: &[&str], bytes: usize) -> String {
    let (hour, micros) = (numbers.below(24), numbers.below(1_000_000));
    // The part that is not text has about 700 bytes.
    let text_bytes = bytes.saturating_sub(700);
    let (asked, answered) = (text(numbers, words, text_bytes * 2 / 3), text(numbers, words, text_bytes / 3));
    let (prompt, completion) = (numbers.below(4000), numbers.below(900));
    let total = prompt + completion;
    format!(
        r#", "name": "chat_completion_create", "type": "llm", "start_time": "2026-11-22T{hour:02}:19:23.{micros:06}Z", "end_time": "2026-11-22T{hour:02}:19:24.{micros:06}Z", "input": {{"messages": [{{"role": "system", "content": "You are a helpful assistant."}}, {{"role": "user", "content": "{asked}"}}]}}, "output": {{"choices": [{{"message": {{"role": "assistant", "content": "{answered}"}}}}]}}, "metadata": {{"temperature": 0.{}, "created_from": "openai"}}, "tags": ["openai"], "model": "gpt-4o-mini", "provider": "openai", "usage": {{"prompt_tokens": {prompt}, "completion_tokens": {completion}, "total_tokens": {total}}}, "last_updated_at": "2026-11-22T{hour:02}:19:24.{micros:06}Z", "source": "sdk"}}"#,
        numbers.below(10),
    )
}

/// Returns the start of a body of one span, up to its ids.
pub(crate) fn span_start(span: Uuid, trace: Uuid, parent: Uuid) -> String {
    format!(
        r#"{{"spans": [{{"id": "{span}", "project_name": "demo-project", "trace_id": "{trace}", "parent_span_id": "{parent}""#
    )
}

/// Returns what follows [`span_start`] in a body of about this many bytes.
pub(crate) fn span_rest(numbers: &mut Numbers, bytes: usize) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    rest_of_span(numbers, &words, bytes) + "]}"
}

/// Returns the request that the Python SDK sends at the end of a span, with this number in it: two requests that are
/// alike may be taken for one that is repeated.
pub(crate) fn update(span: Uuid, trace: Uuid, number: usize) -> Vec<u8> {
    let body = format!(
        r#"{{"project_name": "demo-project", "trace_id": "{trace}", "end_time": "2026-11-22T17:19:23.532620Z", "output": {{"answer": "done", "number": {number}}}, "source": "sdk"}}"#
    );
    whole_request(&format!("PATCH /api/v1/private/spans/{span}"), body.as_bytes(), Sent::Python, false)
}

/// Returns the request by which the Python SDK scores a span.
pub(crate) fn score(span: Uuid) -> Vec<u8> {
    let body = format!(
        r#"{{"scores": [{{"project_name": "demo-project", "name": "rel", "value": 1.0, "source": "sdk", "id": "{span}", "category_name": null, "reason": null}}]}}"#
    );
    whole_request("PUT /api/v1/private/spans/feedback-scores", body.as_bytes(), Sent::Python, false)
}

/// Returns bodies of `spans/batch`, each of this many spans of about this many bytes, as an SDK sends them.
pub(crate) fn span_batches(seed: u64, count: usize, spans: usize, bytes: usize, sent: Sent) -> Vec<Vec<u8>> {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut numbers = Numbers::new(seed);
    let mut bodies = Vec::with_capacity(count);
    for _ in 0..count {
        let spans: Vec<String> = (0..spans).map(|_| span(&mut numbers, &words, bytes, sent)).collect();
        bodies.push(match sent {
            Sent::Python | Sent::Plain => gzip(format!(r#"{{"spans": [{}]}}"#, spans.join(", ")).as_bytes()),
            Sent::TypeScript => format!(r#"{{"spans":[{}]}}"#, spans.join(",")).into_bytes(),
        });
    }
    bodies
}

/// Compresses as the Python SDK does (`gzip.compress`, level 9 would be its default; httpx bodies use 6).
fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(content).expect("memory can be written");
    encoder.finish().expect("memory can be written")
}

/// Returns the whole HTTP request that carries a body of `spans/batch`, with the headers of its SDK.
pub(crate) fn request(body: &[u8], sent: Sent) -> Vec<u8> {
    whole_request("POST /api/v1/private/spans/batch", body, sent, sent != Sent::TypeScript)
}

/// Returns a whole HTTP request; `target` is its method and path.
fn whole_request(target: &str, body: &[u8], sent: Sent, is_gzip: bool) -> Vec<u8> {
    let headers = match sent {
        // As captured: shared headers of httpx, then the SDK's own.
        Sent::Python => {
            "Accept: */*\r\nConnection: keep-alive\r\nUser-Agent: python-httpx/0.28.1\r\n\
             X-OPIK-DEBUG-SDK-VERSION: 2.2.122\r\nX-OPIK-DEBUG-PY-VERSION: 3.11.7\r\nAccept-Encoding: gzip\r\n\
             X-Opik-Client-Id: 0000000000000000000000000000000000000000000000000000000000000000\r\n\
             Comet-Workspace: default\r\nAuthorization: made-up-key\r\nX-Fern-Language: Python\r\n"
        }
        Sent::TypeScript => {
            "Accept: */*\r\nConnection: keep-alive\r\nx-fern-language: JavaScript\r\nx-fern-runtime: node\r\n\
             comet-workspace: default\r\nauthorization: made-up-key\r\naccept-language: *\r\nsec-fetch-mode: cors\r\n\
             user-agent: node\r\naccept-encoding: gzip, deflate\r\n"
        }
        Sent::Plain => "Comet-Workspace: default\r\nAuthorization: made-up-key\r\n",
    };
    let encoding = if is_gzip { "Content-Encoding: gzip\r\n" } else { "" };
    let mut request = format!(
        "{target} HTTP/1.1\r\nHost: localhost\r\n{headers}content-type: application/json\r\n{encoding}\
         Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}
