//! The head of a stream: the one object of it that changes, by compare-and-swap. The process that replaced it last owns
//! the stream.
//!
//! Its counter of renewals grows with every write, so that its version changes with every renewal, also where the depot
//! derives versions from the content. Times in it are of the owner's clock: for people, and never compared.

use serde::{Deserialize, Serialize};

use super::names::StreamId;
use super::stream_purge::PurgeAnswer;
use crate::printable;

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u16 = 1;
/// The largest head that is read, in bytes.
pub const BYTES_MAX: usize = 16 * 1024;
/// The longest text in a head, in characters; longer ones are cut.
const TEXT_CHARS_MAX: usize = 256;
/// Earlier streams that a head names at most, the last ones: more are never unfinished.
const AFTER_MAX: usize = 128;
/// Keys that a head names at most.
pub const MISSING_KEYS_MAX: usize = 16;

/// Whether a stream's owner still works with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadState {
    /// Its agent ships to it and delivers it.
    Open,
    /// Its owner has finished with it: it may be taken at once.
    Closed,
    /// A replayer has taken it over, and delivers it.
    Taken,
}

impl HeadState {
    /// Returns its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Taken => "taken",
        }
    }
}

/// The process that owns a stream. All texts are harmless to print.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeadOwner {
    /// The name of its host.
    pub host: String,
    /// Its pod, where the environment names one.
    pub pod: Option<String>,
    /// Its process id.
    pub pid: u32,
    /// Tells owners with one host and process id apart.
    pub nonce: String,
    /// Its version of opik-offline.
    pub version: String,
}

/// The content of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whether its owner works with it.
    pub state: HeadState,
    /// Grows by one with each owner: names of marks begin with it.
    pub epoch: u32,
    /// Who owns it.
    pub owner: HeadOwner,
    /// Bundles shipped: their numbers are lower than this, and a successor has to find all of them. 0 once everything that
    /// was shipped is settled: then they may be deleted already.
    pub bundles: u32,
    /// Messages shipped.
    pub shipped: u64,
    /// Messages that still wait, as far as the owner knows.
    pub waiting: u64,
    /// When the oldest of them was accepted, in milliseconds since the Unix epoch.
    pub oldest_ms: Option<u64>,
    /// How often this head was written. It must grow with every write.
    pub renewed: u64,
    /// When it was written, by its owner's clock, in milliseconds since the Unix epoch. For people only.
    pub renewed_at_ms: u64,
    /// How long its owner relies on being left alone after a renewal, in milliseconds: a successor waits at least this
    /// long, even if its own settings say less. 0 relies on the settings.
    pub silence_ms: u64,
    /// Keys that a replayer did not have when it released the stream, the ones that most messages wait for.
    pub missing_keys: Vec<MissingKey>,
    /// The last purge that the owner has carried out.
    pub purged: Option<PurgeAnswer>,
    /// Streams of the same store that began earlier and were taken over unfinished: their messages are older.
    pub after: Vec<StreamId>,
}

/// A key that messages wait for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingKey {
    /// The workspace of the messages, as people read it.
    pub workspace: String,
    /// The key's fingerprint, in hexadecimal digits.
    pub key: String,
    /// How many messages wait for it.
    pub messages: u64,
}

/// Why a head can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadFault {
    /// It is not a head.
    #[error("the head of the stream is not readable: {0}")]
    Unreadable(&'static str),
    /// A newer version wrote it; the stream is left alone.
    #[error(
        "the head of the stream has format {format}, written by opik-offline {program}; this version reads formats up to {FORMAT}"
    )]
    TooNew {
        /// Its format.
        format: u16,
        /// The version that wrote it, harmless to print.
        program: String,
    },
}

#[derive(Serialize, Deserialize)]
struct HeadFields {
    format: u16,
    state: HeadState,
    epoch: u32,
    #[serde(default)]
    owner: HeadOwner,
    #[serde(default)]
    bundles: u32,
    #[serde(default)]
    shipped: u64,
    #[serde(default)]
    waiting: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    oldest_ms: Option<u64>,
    #[serde(default)]
    renewed: u64,
    #[serde(default)]
    renewed_at_ms: u64,
    #[serde(default)]
    silence_ms: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    missing_keys: Vec<MissingKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    purged: Option<PurgeAnswer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    after: Vec<String>,
}

/// The fields of every format.
#[derive(Deserialize)]
struct FormatOnly {
    format: u16,
    #[serde(default)]
    owner: serde_json::Value,
}

impl Head {
    /// Returns the first head of a stream, of which nothing is known yet.
    pub fn first(state: HeadState, owner: HeadOwner) -> Self {
        Self {
            state,
            epoch: 1,
            owner,
            bundles: 0,
            shipped: 0,
            waiting: 0,
            oldest_ms: None,
            renewed: 0,
            renewed_at_ms: 0,
            silence_ms: 0,
            missing_keys: Vec::new(),
            purged: None,
            after: Vec::new(),
        }
    }

    /// Encodes it.
    pub fn encode(&self) -> Vec<u8> {
        let head = self.clone();
        let fields = HeadFields {
            format: FORMAT,
            state: head.state,
            epoch: head.epoch,
            owner: head.owner.harmless(),
            bundles: head.bundles,
            shipped: head.shipped,
            waiting: head.waiting,
            oldest_ms: head.oldest_ms,
            renewed: head.renewed,
            renewed_at_ms: head.renewed_at_ms,
            silence_ms: head.silence_ms,
            missing_keys: harmless_keys(head.missing_keys),
            purged: head.purged,
            after: head.after.iter().rev().take(AFTER_MAX).rev().map(StreamId::to_string).collect(),
        };
        serde_json::to_vec(&fields).unwrap_or_default()
    }

    /// Parses it. Fields that this version does not know are ignored.
    ///
    /// # Errors
    ///
    /// [`HeadFault`] when it is not a head, or one of a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeadFault> {
        if bytes.len() > BYTES_MAX {
            return Err(HeadFault::Unreadable("it is too large"));
        }
        let unreadable = |_| HeadFault::Unreadable("it is not the JSON of a head");
        let FormatOnly { format, owner } = serde_json::from_slice(bytes).map_err(unreadable)?;
        if format > FORMAT {
            let program = owner.get("version").and_then(serde_json::Value::as_str).unwrap_or("of an unknown version");
            return Err(HeadFault::TooNew { format, program: harmless(program) });
        }
        let fields: HeadFields = serde_json::from_slice(bytes).map_err(unreadable)?;
        Ok(Self {
            state: fields.state,
            epoch: fields.epoch,
            owner: fields.owner.harmless(),
            bundles: fields.bundles,
            shipped: fields.shipped,
            waiting: fields.waiting,
            oldest_ms: fields.oldest_ms,
            renewed: fields.renewed,
            renewed_at_ms: fields.renewed_at_ms,
            silence_ms: fields.silence_ms,
            missing_keys: harmless_keys(fields.missing_keys),
            purged: fields.purged,
            after: fields.after.iter().filter_map(|stream| StreamId::parse(stream)).collect(),
        })
    }

    /// Returns the head of the next owner: taken, with the next epoch.
    pub fn taken_by(&self, owner: HeadOwner) -> Self {
        Self {
            state: HeadState::Taken,
            epoch: self.epoch.saturating_add(1),
            owner,
            renewed: self.renewed.saturating_add(1),
            ..self.clone()
        }
    }
}

impl HeadOwner {
    /// Returns whether this is the same process.
    pub fn is_same_as(&self, other: &Self) -> bool {
        (&self.host, self.pid, &self.nonce) == (&other.host, other.pid, &other.nonce)
    }

    fn harmless(self) -> Self {
        Self {
            host: harmless(&self.host),
            pod: self.pod.map(|pod| harmless(&pod)),
            pid: self.pid,
            nonce: harmless(&self.nonce),
            version: harmless(&self.version),
        }
    }
}

impl std::fmt::Display for HeadOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "pod {pod} on {} (pid {})", self.host, self.pid),
            None => write!(f, "{} (pid {})", self.host, self.pid),
        }
    }
}

fn harmless_keys(keys: Vec<MissingKey>) -> Vec<MissingKey> {
    let harmless = |key: MissingKey| MissingKey {
        workspace: harmless(&key.workspace),
        key: harmless(&key.key),
        messages: key.messages,
    };
    keys.into_iter().take(MISSING_KEYS_MAX).map(harmless).collect()
}

/// Returns a text from elsewhere as one short line that can't control a terminal.
fn harmless(text: &str) -> String {
    let short: String = text.chars().take(TEXT_CHARS_MAX).collect();
    printable::line(&short).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            state: HeadState::Open,
            epoch: 3,
            owner: HeadOwner {
                host: "node-7".to_owned(),
                pod: Some("job-x2".to_owned()),
                pid: 1,
                nonce: "9f3c".to_owned(),
                version: "0.1.0".to_owned(),
            },
            bundles: 4,
            shipped: 900,
            waiting: 250,
            oldest_ms: Some(1_790_000_000_000),
            renewed: 17,
            renewed_at_ms: 1_790_000_060_000,
            silence_ms: 90_000,
            missing_keys: vec![MissingKey { workspace: "research".to_owned(), key: "9f3c".to_owned(), messages: 3 }],
            purged: Some(PurgeAnswer { order: uuid::Uuid::nil(), deleted: 3, kept: 1 }),
            after: vec![StreamId::new(uuid::Uuid::nil())],
        }
    }

    #[test]
    fn a_head_round_trips_and_ignores_later_fields() {
        assert_eq!(Head::decode(&head().encode()), Ok(head()));
        let later = String::from_utf8(head().encode()).expect("JSON").replacen('{', "{\"later\":{\"deep\":[1]},", 1);
        assert_eq!(Head::decode(later.as_bytes()), Ok(head()));
        let least =
            Head::decode(br#"{"format":1,"state":"closed","epoch":1}"#).expect("an early head has fewer fields");
        assert_eq!((least.state, least.bundles, least.oldest_ms), (HeadState::Closed, 0, None));
    }

    #[test]
    fn a_head_with_more_earlier_streams_than_it_has_room_for_can_be_read() {
        let after: Vec<StreamId> = (0..5000).map(|_| StreamId::new(uuid::Uuid::now_v7())).collect();
        let read = Head::decode(&Head { after: after.clone(), ..head() }.encode()).expect("nobody could deliver it");
        assert_eq!(read.after, after[after.len() - AFTER_MAX..]);
    }

    #[test]
    fn every_renewal_changes_the_bytes() {
        let renewed = Head { renewed: 18, ..head() };
        assert_ne!(head().encode(), renewed.encode(), "the owner looks silent where versions come from the content");
        let taken = head().taken_by(HeadOwner { nonce: "other".to_owned(), ..head().owner });
        assert_eq!((taken.state, taken.epoch, taken.renewed), (HeadState::Taken, 4, 18));
        assert!(!taken.owner.is_same_as(&head().owner));
    }

    #[test]
    fn a_head_that_cannot_be_used_is_refused_with_the_reason() {
        let newer = br#"{"format":2,"state":{"new":1},"owner":{"version":"1.4.0\u001b[2J"}}"#;
        let error = Head::decode(newer).expect_err("it is too new");
        assert!(error.to_string().contains("1.4.0") && !error.to_string().contains('\u{1b}'), "{error}");
        assert!(matches!(error, HeadFault::TooNew { format: 2, .. }));
        for bytes in [
            &b""[..],
            b"null",
            b"{}",
            br#"{"format":1,"state":"asleep","epoch":1}"#,
            br#"{"format":1,"state":"open","epoch":-1}"#,
            &[b'['; 10_000],
            &[b' '; BYTES_MAX + 1],
        ] {
            assert!(matches!(Head::decode(bytes), Err(HeadFault::Unreadable(_))));
        }
    }

    #[test]
    fn texts_in_a_head_cannot_control_a_terminal_and_are_short() {
        let mut hostile = head();
        hostile.owner.host = format!("\u{1b}]0;x\u{7}\n\u{202e}{}", "h".repeat(9000));
        for read in
            [Head::decode(&hostile.encode()).expect("it is short"), Head::decode(&head().encode()).expect("own")]
        {
            let shown = read.owner.to_string();
            assert!(shown.chars().all(|c| !printable::is_hazardous(c)) && shown.len() < 2000, "{shown}");
        }
    }
}
