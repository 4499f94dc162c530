//! `fleet.json`: the fleet's id and the public keys of its replayers. Created once, read by everybody; holds no secret.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u16 = 1;
/// The largest file that is read, in bytes.
pub const BYTES_MAX: usize = 64 * 1024;
const RECIPIENTS_MAX: usize = 64;
const RECIPIENT_BYTES_MAX: usize = 512;

/// The content of `fleet.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetFile {
    /// Names the fleet; fingerprints of credentials depend on it.
    pub fleet: Uuid,
    /// The public keys (`age1...`) for which everything is sealed; none where the fleet is kept in plain.
    pub recipients: Vec<String>,
}

/// Why `fleet.json` can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FleetFileFault {
    /// It is no such file.
    #[error("fleet.json is not readable: {0}")]
    Unreadable(&'static str),
    /// A newer version wrote it.
    #[error("fleet.json has format {0}; this version reads formats up to {FORMAT}")]
    TooNew(u16),
}

#[derive(Serialize, Deserialize)]
struct FleetFileFields {
    format: u16,
    #[serde(default)]
    fleet: String,
    #[serde(default)]
    recipients: Vec<String>,
}

impl FleetFile {
    /// Encodes it.
    pub fn encode(&self) -> Vec<u8> {
        let fields = FleetFileFields {
            format: FORMAT,
            fleet: self.fleet.hyphenated().to_string(),
            recipients: self.recipients.clone(),
        };
        let mut text = serde_json::to_vec_pretty(&fields).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Parses it. FleetFileFields that this version does not know are ignored.
    ///
    /// # Errors
    ///
    /// [`FleetFileFault`] when it is not such a file, or one of a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self, FleetFileFault> {
        let unreadable = FleetFileFault::Unreadable;
        if bytes.len() > BYTES_MAX {
            return Err(unreadable("it is too large"));
        }
        let fields: FleetFileFields =
            serde_json::from_slice(bytes).map_err(|_| unreadable("it is not the JSON of a fleet"))?;
        if fields.format > FORMAT {
            return Err(FleetFileFault::TooNew(fields.format));
        }
        let is_key = |text: &String| {
            (1..=RECIPIENT_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if fields.recipients.len() > RECIPIENTS_MAX || !fields.recipients.iter().all(is_key) {
            return Err(unreadable("its recipients are not public keys"));
        }
        let fleet = Uuid::try_parse(&fields.fleet).map_err(|_| unreadable("it has no fleet id"))?;
        Ok(Self { fleet, recipients: fields.recipients })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_file_round_trips_and_ignores_later_fields() {
        let file = FleetFile { fleet: Uuid::from_u128(7), recipients: vec!["age1qqqq".to_owned()] };
        assert_eq!(FleetFile::decode(&file.encode()), Ok(file.clone()));
        let later = String::from_utf8(file.encode()).expect("JSON").replacen('{', "{\"later\": [1],", 1);
        assert_eq!(FleetFile::decode(later.as_bytes()), Ok(file));
    }

    #[test]
    fn unusable_fleet_files_are_refused_with_the_reason() {
        assert_eq!(FleetFile::decode(b"{\"format\": 2}"), Err(FleetFileFault::TooNew(2)));
        for bytes in [
            &b"<html>"[..],
            b"{\"format\":1,\"fleet\":\"x\"}",
            b"{\"format\":1,\"fleet\":\"01a20445-0b55-7feb-b47d-9a6087614672\",\"recipients\":[\"a\\u001b[31m\"]}",
            &[b' '; BYTES_MAX + 1],
        ] {
            assert!(matches!(FleetFile::decode(bytes), Err(FleetFileFault::Unreadable(_))));
        }
    }
}
