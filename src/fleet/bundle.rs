//! Bundles: numbered parts of a stream that never change.
//!
//! A bundle is a container (see `container.rs` for its layout) of [records](super::record), with a manifest that
//! describes them: counts by type, status and workspace, the first and the last message, and which
//! entities it may be about. The shipper encrypts it for the fleet's recipients; everything here is plain bytes.
//!
//! A bundle has at most [`MESSAGES_MAX`] messages and about [`BYTES_MAX`] bytes before compression; a single larger
//! message makes a bundle of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::bloom::EntityFilter;
pub use super::container::BadObject;
pub use super::container::BadRecord;
use super::container::{ContainerReader, ObjectKind, ReadLimit, write};
use super::names::BundleName;
use super::record::{FleetRecord, INLINE_BODY_BYTES_MAX, RECORD_BYTES_MAX, decode, encode};
use crate::message::EntityKey;

/// The newest format that this version reads, and the one that it writes.
pub const FORMAT: u16 = 1;
/// Messages of a bundle at most.
pub const MESSAGES_MAX: usize = 1000;
/// Bytes of a bundle's records before compression, unless it has only one.
pub const BYTES_MAX: usize = 4 * 1024 * 1024;

const KIND: ObjectKind = ObjectKind { magic: *b"OPIKFLTB", format: FORMAT, name: "a bundle" };
/// Upper bounds of the payload of honest bundles: all records, the manifest and the dictionary.
const LIMIT: ReadLimit = ReadLimit { piece: RECORD_BYTES_MAX, total: BYTES_MAX + 2 * RECORD_BYTES_MAX };
/// Groups that are counted separately; further ones are counted in the total only.
const GROUPS_MAX: usize = 1000;

/// Messages of one type, status and workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleGroup {
    /// The type, by its name.
    #[serde(rename = "type")]
    pub message_type: String,
    /// The status in which they were shipped, by its name.
    pub status: String,
    /// The workspace as people read it.
    pub workspace: String,
    /// How many.
    pub messages: u32,
}

/// The content of a bundle, in counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleManifest {
    /// How many messages.
    pub messages: u32,
    /// Bytes of its records before compression.
    pub bytes: u64,
    /// The lowest id of a message in it.
    pub first: u64,
    /// The highest.
    pub last: u64,
    /// When the oldest message was accepted, in milliseconds since the Unix epoch.
    pub oldest_ms: u64,
    /// When the newest message was accepted, in milliseconds since the Unix epoch.
    pub newest_ms: u64,
    /// Counts, in the order of their names.
    pub groups: Vec<BundleGroup>,
    /// Which entities the messages touch; `None` if the writer did not say.
    pub entities: Option<EntityFilter>,
}

impl BundleManifest {
    /// Returns the name of this bundle as the one with this number.
    pub fn name(&self, number: u32) -> BundleName {
        let Self { messages, bytes, oldest_ms, newest_ms, .. } = *self;
        BundleName { number, messages, bytes, oldest_ms, newest_ms }
    }

    /// Returns whether a message in it may be about this entity.
    pub fn may_be_about(&self, key: &EntityKey) -> bool {
        self.entities.as_ref().is_none_or(|entities| entities.may_contain(key))
    }
}

#[derive(Serialize, Deserialize)]
struct ManifestFields {
    messages: u32,
    bytes: u64,
    first: u64,
    last: u64,
    oldest_ms: u64,
    newest_ms: u64,
    #[serde(default)]
    groups: Vec<BundleGroup>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entities: Option<String>,
}

/// A bundle before sealing.
#[derive(Clone, PartialEq, Eq)]
pub struct PlainBundle {
    /// Its content, in counts.
    pub manifest: BundleManifest,
    /// Its bytes: bodies and credentials in plain.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for PlainBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlainBundle").field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

/// A record is too large for any bundle: its body has to be shipped as a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message {message} has {bytes} bytes, more than a bundle can hold")]
pub struct RecordTooLarge {
    /// The message's id.
    pub message: u64,
    /// The bytes of its record.
    pub bytes: usize,
}

/// Whether a bundle took a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is part of the bundle.
    Taken,
    /// The bundle is full: it belongs into the next one.
    Full,
}

/// Collects the records of one bundle.
#[derive(Default)]
pub struct BundleBuilder {
    records: Vec<Vec<u8>>,
    bytes: usize,
    span: Option<BundleSpan>,
    groups: BTreeMap<(&'static str, &'static str, String), u32>,
    entities: Vec<EntityKey>,
}

#[derive(Clone, Copy)]
struct BundleSpan {
    first: u64,
    last: u64,
    oldest_ms: u64,
    newest_ms: u64,
}

impl BundleBuilder {
    /// Returns an empty bundle.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a record if there is room for it. An empty bundle takes any record that is allowed.
    ///
    /// # Errors
    ///
    /// [`RecordTooLarge`] if no bundle can take it; the bundle is unchanged.
    pub fn push(&mut self, record: &FleetRecord) -> Result<Pushed, RecordTooLarge> {
        let message = record.reference.message;
        let body_bytes = record.message.request.body.bytes.len();
        if body_bytes > INLINE_BODY_BYTES_MAX {
            return Err(RecordTooLarge { message, bytes: body_bytes });
        }
        if self.is_full() || !self.is_empty() && self.bytes + body_bytes > BYTES_MAX {
            return Ok(Pushed::Full);
        }
        let encoded = encode(record);
        if encoded.len() > RECORD_BYTES_MAX {
            return Err(RecordTooLarge { message, bytes: encoded.len() });
        }
        if !self.is_empty() && self.bytes + encoded.len() > BYTES_MAX {
            return Ok(Pushed::Full);
        }
        self.count(record);
        self.bytes += encoded.len();
        self.records.push(encoded);
        Ok(Pushed::Taken)
    }

    /// Returns whether it takes no further record.
    pub fn is_full(&self) -> bool {
        self.records.len() >= MESSAGES_MAX || self.bytes >= BYTES_MAX
    }

    /// Returns whether it has no record.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns how many records it has.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    fn count(&mut self, record: &FleetRecord) {
        let message = &record.message;
        let accepted_ms = u64::try_from(message.accepted_at_ms).unwrap_or(0);
        let id = record.reference.message;
        let span =
            self.span.unwrap_or(BundleSpan { first: id, last: id, oldest_ms: accepted_ms, newest_ms: accepted_ms });
        self.span = Some(BundleSpan {
            first: span.first.min(id),
            last: span.last.max(id),
            oldest_ms: span.oldest_ms.min(accepted_ms),
            newest_ms: span.newest_ms.max(accepted_ms),
        });
        let workspace = message.lane.workspace_name().to_owned();
        let group = (message.message_type.name(), record.state.status().name(), workspace);
        *self.groups.entry(group).or_default() += 1;
        self.entities.extend(message.touches.iter().map(|touch| touch.key));
    }

    /// Returns the bundle; `None` if it has no record.
    pub fn finish(mut self) -> Option<PlainBundle> {
        let BundleSpan { first, last, oldest_ms, newest_ms } = self.span?;
        let group = |((message_type, status, workspace), messages): ((&str, &str, String), u32)| BundleGroup {
            message_type: message_type.to_owned(),
            status: status.to_owned(),
            workspace,
            messages,
        };
        self.entities.sort_unstable();
        self.entities.dedup();
        let manifest = BundleManifest {
            messages: self.records.len() as u32,
            bytes: self.bytes as u64,
            first,
            last,
            oldest_ms,
            newest_ms,
            groups: self.groups.into_iter().take(GROUPS_MAX).map(group).collect(),
            entities: Some(EntityFilter::new(&self.entities)),
        };
        let fields = ManifestFields {
            messages: manifest.messages,
            bytes: manifest.bytes,
            first,
            last,
            oldest_ms,
            newest_ms,
            groups: manifest.groups.clone(),
            entities: manifest.entities.as_ref().map(EntityFilter::to_text),
        };
        let bytes = write(KIND, &serde_json::to_vec(&fields).unwrap_or_default(), &self.records);
        Some(PlainBundle { manifest, bytes })
    }
}

/// Encodes records as one bundle, whatever their number; `None` without any.
///
/// # Errors
///
/// [`RecordTooLarge`] for the first record that is too large, or that no longer fits.
pub fn encode_bundle(records: &[FleetRecord]) -> Result<Option<PlainBundle>, RecordTooLarge> {
    let mut builder = BundleBuilder::new();
    for record in records {
        if builder.push(record)? == Pushed::Full {
            let bytes = record.message.request.body.bytes.len();
            return Err(RecordTooLarge { message: record.reference.message, bytes });
        }
    }
    Ok(builder.finish())
}

/// Reads the records of a bundle, one by one, in their order.
///
/// Uses no more memory than one record takes, whatever the bundle claims.
pub struct BundleReader<'bytes> {
    container: ContainerReader<'bytes>,
    manifest: BundleManifest,
}

impl<'bytes> BundleReader<'bytes> {
    /// Opens a bundle.
    ///
    /// # Errors
    ///
    /// [`BadObject::TooNew`] for a format that only a newer version reads: leave such a bundle as it is.
    /// [`BadObject::NotOurs`] and [`BadObject::Damaged`] when it is unreadable as a whole.
    pub fn open(bytes: &'bytes [u8]) -> Result<Self, BadObject> {
        let container = ContainerReader::open(KIND, bytes, LIMIT)?;
        let unreadable = || BadObject::Damaged { reason: "its manifest is not understood" };
        let fields: ManifestFields = serde_json::from_slice(container.manifest()).map_err(|_| unreadable())?;
        let ManifestFields { messages, bytes, first, last, oldest_ms, newest_ms, mut groups, entities } = fields;
        groups.truncate(GROUPS_MAX);
        let entities = entities.as_deref().and_then(EntityFilter::from_text);
        let manifest = BundleManifest { messages, bytes, first, last, oldest_ms, newest_ms, groups, entities };
        Ok(Self { container, manifest })
    }

    /// Returns the manifest, as the bundle has it.
    pub fn manifest(&self) -> &BundleManifest {
        &self.manifest
    }
}

impl Iterator for BundleReader<'_> {
    type Item = Result<FleetRecord, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        self.container.next_decoded(decode)
    }
}

#[cfg(test)]
mod tests;
