//! The names of a fleet's objects.
//!
//! ```text
//! v1/fleet.json
//! v1/heads/<stream>
//! v1/finished/<stream>
//! v1/bundles/<xx>/<stream>/<number>.<messages>.<bytes>.<oldest_ms>.<newest_ms>
//! v1/files/<xx>/<stream>/<message>/<number>
//! v1/marks/<xx>/<stream>/<epoch>.<number>
//! v1/rejected/<workspace>/<stream>/<number>.<status>.<message>
//! v1/orders/<order>
//! v1/dial
//! ```
//!
//! `xx` are the last two digits of the stream's id: they are random, so that object storage can spread the load over its
//! partitions. Numbers and epochs have ten digits, so that a listing, which is sorted by text, is sorted by number.
//!
//! A name has exactly one spelling. [`ObjectName::parse`] accepts nothing else, so that an object which a stranger put
//! beside ours is ignored and never deleted.

use std::fmt;

use ring::digest::{SHA256, digest};
use uuid::Uuid;

use super::json::to_hex;
use crate::message::Lane;

/// The version of the names. Another layout has another prefix, so that both can exist in one depot.
pub const ROOT: &str = "v1";

/// Workspaces whose encoded name is longer are named by a digest: object stores limit the length of a name.
const WORKSPACE_BYTES_MAX: usize = 160;

/// Names a stream: the messages that one store shipped during one outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(Uuid);

impl StreamId {
    /// Returns the stream with this id, which should be a UUIDv7.
    pub fn new(id: Uuid) -> Self {
        Self(id)
    }

    /// Parses the output of `Display`; `None` for any other spelling.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Self(Uuid::try_parse(text).ok()?);
        (id.to_string() == text).then_some(id)
    }

    /// Returns its id.
    pub fn uuid(&self) -> Uuid {
        self.0
    }

    /// Returns the two hexadecimal digits by which its objects are spread.
    fn shard(&self) -> String {
        format!("{:02x}", self.0.as_bytes()[15])
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.hyphenated())
    }
}

/// The last part of a bundle's name: its number in the stream, and what a listing tells without reading the bundle.
///
/// Ordered by number first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleName {
    /// Its number in the stream, from 0.
    pub number: u32,
    /// How many messages it has.
    pub messages: u32,
    /// Bytes of its records before compression and sealing.
    pub bytes: u64,
    /// When the oldest of them was accepted, in milliseconds since the Unix epoch.
    pub oldest_ms: u64,
    /// When the newest of them was accepted, in milliseconds since the Unix epoch.
    pub newest_ms: u64,
}

/// A workspace as a part of a name: letters and digits as they are, every other byte as `_` and two digits. A
/// hyphen would sort before the slash behind a shorter name, which breaks listings on some object stores.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkspaceName(String);

impl WorkspaceName {
    /// Returns the name of a lane's workspace.
    pub fn of(lane: &Lane) -> Self {
        let mut encoded = String::new();
        for byte in lane.workspace_name().bytes() {
            if byte.is_ascii_alphanumeric() {
                encoded.push(char::from(byte));
            } else {
                encoded.push_str(&format!("_{byte:02x}"));
            }
        }
        if encoded.is_empty() || encoded.len() > WORKSPACE_BYTES_MAX {
            let digest = digest(&SHA256, lane.workspace_name().as_bytes());
            encoded = format!("__{}", to_hex(&digest.as_ref()[..16]));
        }
        Self(encoded)
    }

    /// Parses a part of a name; `None` if no workspace is encoded like this.
    fn parse(text: &str) -> Option<Self> {
        let name = Self(text.to_owned());
        if let Some(digest) = text.strip_prefix("__") {
            return (digest.len() == 32 && digest.bytes().all(is_hex_digit)).then_some(name);
        }
        let is_canonical = !text.is_empty()
            && text.len() <= WORKSPACE_BYTES_MAX
            && name.decoded().is_some_and(|bytes| {
                let again: String = bytes
                    .iter()
                    .map(|byte| match byte {
                        byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
                        byte => format!("_{byte:02x}"),
                    })
                    .collect();
                again == text
            });
        is_canonical.then_some(name)
    }

    fn decoded(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut rest = self.0.as_bytes();
        while let Some((first, behind)) = rest.split_first() {
            if *first != b'_' {
                bytes.push(*first);
                rest = behind;
                continue;
            }
            let (digits, behind) = behind.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = behind;
        }
        Some(bytes)
    }

    /// Returns the workspace's name for people; the digest of one whose name is too long for an object's name.
    pub fn shown(&self) -> String {
        if self.0.starts_with("__") {
            return self.0.clone();
        }
        self.decoded().map_or_else(|| self.0.clone(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl fmt::Display for WorkspaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of one object of a fleet, below the depot's prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// The fleet's id and recipients; created once.
    FleetFile,
    /// The owner of a stream.
    Head(StreamId),
    /// A stream that a replayer has finished and deleted: its agent, should it come back, delivers none of it.
    Finished(StreamId),
    /// A part of a stream.
    Bundle(StreamId, BundleName),
    /// A part of a file that belongs to a message: an attachment, or a body that is too large for a bundle.
    File {
        /// The message's stream.
        stream: StreamId,
        /// Its id in the origin store.
        message: u64,
        /// The number of the part, from 0.
        number: u32,
    },
    /// Which messages of a stream are settled.
    Marks {
        /// The stream.
        stream: StreamId,
        /// The epoch of the owner that wrote it.
        epoch: u32,
        /// Its number in that epoch, from 0.
        number: u32,
    },
    /// A message that the server refused, with its answer.
    Rejected {
        /// Its workspace.
        workspace: WorkspaceName,
        /// Its stream.
        stream: StreamId,
        /// Tells parts of one message apart, from 0.
        number: u32,
        /// The status of the server's answer; 0 when there was none.
        status: u16,
        /// Its id in the origin store.
        message: u64,
    },
    /// A decision of a person about the fleet.
    Order(Uuid),
    /// The purge of a stream whose owner is alive; exists while the command of a person waits for it.
    Purge(StreamId),
    /// The pace and the hold in force; changes by compare-and-swap.
    Dial,
}

impl ObjectName {
    /// Parses a name; `None` for one that this version does not write, which is left alone.
    pub fn parse(name: &str) -> Option<Self> {
        let parts: Vec<&str> = name.strip_prefix(ROOT)?.strip_prefix('/')?.splitn(6, '/').collect();
        let parsed = match parts[..] {
            ["fleet.json"] => Self::FleetFile,
            ["dial"] => Self::Dial,
            ["heads", stream] => Self::Head(StreamId::parse(stream)?),
            ["purges", stream] => Self::Purge(StreamId::parse(stream)?),
            ["finished", stream] => Self::Finished(StreamId::parse(stream)?),
            ["bundles", _, stream, last] => Self::Bundle(StreamId::parse(stream)?, parse_bundle(last)?),
            ["files", _, stream, message, last] => {
                Self::File { stream: StreamId::parse(stream)?, message: plain(message)?, number: padded(last)? }
            }
            ["marks", _, stream, last] => {
                let (epoch, number) = last.split_once('.')?;
                Self::Marks { stream: StreamId::parse(stream)?, epoch: padded(epoch)?, number: padded(number)? }
            }
            ["rejected", workspace, stream, last] => parse_rejected(workspace, stream, last)?,
            ["orders", order] => Self::Order(Uuid::try_parse(order).ok()?),
            _ => return None,
        };
        // One spelling each: the folder of another stream, upper case or a missing zero is not a name of ours.
        (parsed.to_string() == name).then_some(parsed)
    }

    /// Returns the stream that it belongs to.
    pub fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Head(stream) | Self::Finished(stream) | Self::Purge(stream) => Some(*stream),
            Self::Bundle(stream, _) => Some(*stream),
            Self::File { stream, .. } | Self::Marks { stream, .. } | Self::Rejected { stream, .. } => Some(*stream),
            Self::FleetFile | Self::Order(_) | Self::Dial => None,
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FleetFile => write!(f, "{ROOT}/fleet.json"),
            Self::Dial => write!(f, "{ROOT}/dial"),
            Self::Head(stream) => write!(f, "{ROOT}/heads/{stream}"),
            Self::Finished(stream) => write!(f, "{}/{stream}", finished()),
            Self::Bundle(stream, bundle) => {
                let BundleName { number, messages, bytes, oldest_ms, newest_ms } = bundle;
                write!(f, "{}/{number:010}.{messages}.{bytes}.{oldest_ms}.{newest_ms}", bundles_of(stream))
            }
            Self::File { stream, message, number } => write!(f, "{}/{number:010}", files_of(stream, *message)),
            Self::Marks { stream, epoch, number } => write!(f, "{}/{epoch:010}.{number:010}", marks_of(stream)),
            Self::Rejected { workspace, stream, number, status, message } => {
                write!(f, "{ROOT}/rejected/{workspace}/{stream}/{number:010}.{status}.{message}")
            }
            Self::Purge(stream) => write!(f, "{}/{stream}", purges()),
            Self::Order(order) => write!(f, "{ROOT}/orders/{}", order.hyphenated()),
        }
    }
}

/// Returns the folder of all heads, without a slash at its end, as are all folders here.
pub fn heads() -> String {
    format!("{ROOT}/heads")
}

/// Returns the folder of the records of finished streams.
pub fn finished() -> String {
    format!("{ROOT}/finished")
}

/// Returns the folder of all purges.
pub fn purges() -> String {
    format!("{ROOT}/purges")
}

/// Returns the folder of all bundles.
pub fn bundles() -> String {
    format!("{ROOT}/bundles")
}

/// Returns the folder of a stream's bundles.
pub fn bundles_of(stream: &StreamId) -> String {
    format!("{}/{}/{stream}", bundles(), stream.shard())
}

/// Returns the folder of a stream's marks.
pub fn marks_of(stream: &StreamId) -> String {
    format!("{ROOT}/marks/{}/{stream}", stream.shard())
}

/// Returns the folder of all files of a stream.
pub fn all_files_of(stream: &StreamId) -> String {
    format!("{ROOT}/files/{}/{stream}", stream.shard())
}

/// Returns the folder of a message's file.
pub fn files_of(stream: &StreamId, message: u64) -> String {
    format!("{}/{message}", all_files_of(stream))
}

/// Returns the folder of all rejected messages.
pub fn rejected() -> String {
    format!("{ROOT}/rejected")
}

/// Returns the folder of the rejected messages of a workspace.
pub fn rejected_in(workspace: &WorkspaceName) -> String {
    format!("{ROOT}/rejected/{workspace}")
}

/// Returns the folder of all orders.
pub fn orders() -> String {
    format!("{ROOT}/orders")
}

fn parse_bundle(text: &str) -> Option<BundleName> {
    let parts: Vec<&str> = text.splitn(6, '.').collect();
    let [number, messages, bytes, oldest_ms, newest_ms] = parts[..] else { return None };
    Some(BundleName {
        number: padded(number)?,
        messages: u32::try_from(plain(messages)?).ok()?,
        bytes: plain(bytes)?,
        oldest_ms: plain(oldest_ms)?,
        newest_ms: plain(newest_ms)?,
    })
}

fn parse_rejected(workspace: &str, stream: &str, last: &str) -> Option<ObjectName> {
    let parts: Vec<&str> = last.splitn(4, '.').collect();
    let [number, status, message] = parts[..] else { return None };
    Some(ObjectName::Rejected {
        workspace: WorkspaceName::parse(workspace)?,
        stream: StreamId::parse(stream)?,
        number: padded(number)?,
        status: u16::try_from(plain(status)?).ok()?,
        message: plain(message)?,
    })
}

fn is_hex_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Parses ten digits.
fn padded(text: &str) -> Option<u32> {
    (text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Parses a number; its spelling is checked with the whole name.
fn plain(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::samples::stream;

    fn workspace(name: &str) -> WorkspaceName {
        WorkspaceName::of(&Lane { workspace: Some(name.to_owned()), ..Lane::default() })
    }

    #[test]
    fn names_are_spelled_as_documented() {
        let stream = stream(0xab);
        let id = "01a20445-0b55-7feb-b47d-0000000000ab";
        let bundle = BundleName { number: 7, messages: 1000, bytes: 250_000, oldest_ms: 17, newest_ms: 18 };
        let rejected =
            ObjectName::Rejected { workspace: workspace("a b/ü"), stream, number: 0, status: 400, message: 9 };
        for (name, text) in [
            (ObjectName::FleetFile, "v1/fleet.json".to_owned()),
            (ObjectName::Head(stream), format!("v1/heads/{id}")),
            (ObjectName::Finished(stream), format!("v1/finished/{id}")),
            (ObjectName::Bundle(stream, bundle), format!("v1/bundles/ab/{id}/0000000007.1000.250000.17.18")),
            (ObjectName::File { stream, message: 12, number: 3 }, format!("v1/files/ab/{id}/12/0000000003")),
            (ObjectName::Marks { stream, epoch: 2, number: 3 }, format!("v1/marks/ab/{id}/0000000002.0000000003")),
            (rejected, format!("v1/rejected/a_20b_2f_c3_bc/{id}/0000000000.400.9")),
            (ObjectName::Order(stream.uuid()), format!("v1/orders/{id}")),
            (ObjectName::Dial, "v1/dial".to_owned()),
        ] {
            assert_eq!(name.to_string(), text);
            assert_eq!(ObjectName::parse(&text), Some(name));
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte)), "{text}");
        }
        assert_eq!(workspace("a b/ü").shown(), "a b/ü");
    }

    #[test]
    fn names_of_others_are_left_alone() {
        let id = "01a20445-0b55-7feb-b47d-0000000000ab";
        for text in [
            "",
            "v1",
            "v1/",
            "v2/fleet.json",
            "v1/fleet.json/",
            "/v1/fleet.json",
            "v1/heads/",
            "v1/heads/../fleet.json",
            "v1/heads/01A20445-0B55-7FEB-B47D-0000000000AB",
            "v1/heads/01a204450b557febb47d0000000000ab",
            &format!("v1/heads/{id}/x"),
            &format!("v1/heads/{id}\n"),
            &format!("v1/bundles/ac/{id}/0000000007.1.1.1.1"),
            &format!("v1/bundles/ab/{id}/7.1.1.1.1"),
            &format!("v1/bundles/ab/{id}/0000000007.01.1.1.1"),
            &format!("v1/bundles/ab/{id}/0000000007.+1.1.1.1"),
            &format!("v1/bundles/ab/{id}/0000000007.1.1.1"),
            &format!("v1/bundles/ab/{id}/0000000007.1.1.1.1.1"),
            &format!("v1/bundles/ab/{id}/9999999999.1.1.1.1"),
            &format!("v1/bundles/ab/{id}/0000000007.1.99999999999999999999.1.1"),
            &format!("v1/marks/ab/{id}/0000000001"),
            &format!("v1/marks/ab/{id}/0000000001.\u{661}000000000"),
            &format!("v1/rejected/_zz/{id}/0000000000.400.9"),
            &format!("v1/rejected/_61/{id}/0000000000.400.9"),
            &format!("v1/rejected/__00/{id}/0000000000.400.9"),
            &format!("v1/rejected/\u{1b}[31m/{id}/0000000000.400.9"),
            &format!("v1/rejected/a/{id}/0000000000.70000.9"),
            "v1/orders/now",
        ] {
            assert_eq!(ObjectName::parse(text), None, "{text:?} would be taken as ours, and deleted by a sweep");
        }
    }

    #[test]
    fn a_listing_sorted_by_text_is_sorted_by_number() {
        let stream = stream(1);
        let numbers = [0, 9, 10, 99, 100, 4_000_000_000];
        let bundles: Vec<String> = numbers
            .map(|number| BundleName { number, messages: 1, bytes: 1, oldest_ms: 1, newest_ms: 1 })
            .map(|bundle| ObjectName::Bundle(stream, bundle).to_string())
            .into();
        assert!(bundles.is_sorted(), "bundles would be imported out of order");
        let marks: Vec<String> = numbers
            .iter()
            .flat_map(|epoch| numbers.map(|number| ObjectName::Marks { stream, epoch: *epoch, number }.to_string()))
            .collect();
        assert!(marks.is_sorted(), "marks would be applied out of order");
    }

    #[test]
    fn long_workspaces_have_short_names_that_differ() {
        let (long, other) = (workspace(&"ü".repeat(300)), workspace(&"ü".repeat(301)));
        assert!(long.to_string().len() < 64 && long != other);
        assert_eq!(WorkspaceName::parse(&long.to_string()), Some(long.clone()));
        assert_eq!(long.shown(), long.to_string());
    }

    proptest! {
        #[test]
        fn every_workspace_has_one_name(name in ".{0,60}") {
            let encoded = workspace(&name);
            prop_assert_eq!(WorkspaceName::parse(&encoded.to_string()), Some(encoded.clone()));
            if !encoded.to_string().starts_with("__") {
                prop_assert_eq!(encoded.shown(), crate::message::workspace_shown(&name));
            }
        }

        #[test]
        fn whatever_parses_is_spelled_the_same(text in "v1/(heads|bundles|marks|files|rejected|orders)/[0-9a-f_./-]{0,90}") {
            if let Some(name) = ObjectName::parse(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
