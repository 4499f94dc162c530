//! Pure facts about Opik's HTTP interface, as far as delivery depends on them.
//!
//! Each fact names its source: the protocol dossier (our notes, not part of this repository), the server's OpenAPI
//! file (`tests/fixtures/openapi.yaml`), or what the published SDKs were seen to send. No clock, socket, disk or log.

pub mod answers;
pub mod attachment;
pub mod fallback;
pub mod hub;
pub mod inspection;
pub(crate) mod item_stream;
pub mod json;
pub(crate) mod links;
pub(crate) mod media;
pub(crate) mod merge_rules;
pub mod operations;
pub mod otlp;
pub(crate) mod partial;
pub(crate) mod partial_rows;
pub mod path;
pub mod readback;
pub(crate) mod recognise;
pub(crate) mod reply;
pub mod routes;
pub mod target;
