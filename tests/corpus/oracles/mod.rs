//! Properties that must hold for every input from strangers: one function for each fuzz target.
//!
//! An oracle takes any bytes and panics when a promise is broken. The fuzzers of `fuzz/` and the plain tests of
//! `tests/corpus/main.rs` share these functions, so every input that was ever worth keeping is tried by `cargo test`.
//! Inputs are texts where they can be, so that a seed can be written by hand.

mod content;
mod files;
mod fleet;
mod requests;
mod settings;
mod shipping;

use opik_offline::message::{Body, Encoding, HeaderSet, Request};
use opik_offline::protocol::json::{NotJson, Scanner};
use opik_offline::protocol::routes::{Protected, Route, classify};

pub(crate) use content::{answers, bodies, inspection, otlp, sdk_rows};
pub(crate) use files::{own_files, sdk_files};
pub(crate) use fleet::fleet_objects;
pub(crate) use requests::requests;
pub(crate) use settings::settings;
pub(crate) use shipping::{delivery, division};

/// A fuzz target by its name, which is also the name of its corpus.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const TARGETS: [Target; 12] = [
    ("answers", answers),
    ("bodies", bodies),
    ("delivery", delivery),
    ("division", division),
    ("fleet_objects", fleet_objects),
    ("inspection", inspection),
    ("otlp", otlp),
    ("own_files", own_files),
    ("requests", requests),
    ("sdk_files", sdk_files),
    ("sdk_rows", sdk_rows),
    ("settings", settings),
];

/// Returns the error of a text that should be one JSON value.
fn json_fault(content: &[u8]) -> Result<(), NotJson> {
    let mut scanner = Scanner::new(content)?;
    scanner.skip_value()?;
    scanner.end()
}

/// Reads `METHOD path body`; `None` if it is not a protected write.
fn protected(input: &[u8]) -> Option<(Protected, Request)> {
    let mut parts = input.splitn(3, |byte| *byte == b' ');
    let method = std::str::from_utf8(parts.next()?).ok()?;
    let path = std::str::from_utf8(parts.next()?).ok()?;
    let body = parts.next().unwrap_or_default();
    let Route::Protected(write) = classify(method, path.split('?').next().unwrap_or_default()) else { return None };
    // A binary body is OTLP's other format.
    let content_type = if json_fault(body).is_ok() { "application/json" } else { "application/x-protobuf" };
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        headers: HeaderSet::new(vec![("Content-Type".to_owned(), content_type.as_bytes().to_vec())]),
        body: Body::new(body.to_vec(), Encoding::Identity),
    };
    Some((write, request))
}
