//! Secrets by reference: a record that names its secrets by fingerprints instead of holding them.
//!
//! The secrets of a message are the credential of its lane, and the values of those of its headers whose names say so
//! ([`is_secret_header`]): gateways and proxies take tokens of their own. A secret is replaced by its
//! [`fingerprint`]; who retries the message finds the secret itself elsewhere.
//!
//! Parts of a divided message are in marks, with their headers: these are replaced in the same way.

use uuid::Uuid;

use super::json::digest_from_hex;
use super::marks::{Fate, Mark};
use super::record::{FleetRecord, fingerprint};
use super::secret_header::is_secret_header;
use crate::message::{Credential, HeaderSet, Message, Sha256};

/// Begins the value of a header that names a secret: no header of a request can contain this character.
const REFERENCE: &[u8] = b"\x01opik-offline key ";
/// Returns the credential as it is fingerprinted; `None` for an empty one, which some clients send without a key.
fn named(fleet: Uuid, value: &[u8], may_name: impl Fn(&[u8]) -> bool) -> Option<Sha256> {
    (!value.is_empty() && may_name(value)).then(|| fingerprint(fleet, &Credential::new(value)))
}

/// Replaces the secrets of a record by their fingerprints, of those that `may_name` selects.
pub fn withhold(fleet: Uuid, record: &mut FleetRecord, may_name: impl Fn(&[u8]) -> bool) {
    let message = &mut record.message;
    if let Some(headers) = without_secrets(fleet, &message.request.headers, &may_name) {
        message.request.headers = headers;
    }
    let credential = message.lane.credential.as_ref();
    if let Some(name) = credential.and_then(|credential| named(fleet, credential.reveal(), &may_name)) {
        record.fingerprint = Some(name);
        message.lane.credential = None;
    }
}

/// Replaces the secrets in the parts of divided messages.
pub fn withhold_from_marks(fleet: Uuid, marks: &mut [Mark], may_name: impl Fn(&[u8]) -> bool) {
    for mark in marks {
        let Fate::Divided(parts) = &mut mark.fate else { continue };
        for part in parts {
            if let Some(headers) = without_secrets(fleet, &part.request.headers, &may_name) {
                part.request.headers = headers;
            }
        }
    }
}

/// Returns the headers with the secrets replaced; `None` if there are none.
fn without_secrets(fleet: Uuid, headers: &HeaderSet, may_name: impl Fn(&[u8]) -> bool) -> Option<HeaderSet> {
    let is_replaced = |(name, value): (&str, &[u8])| {
        is_secret_header(name) && !value.starts_with(REFERENCE) && !value.is_empty() && may_name(value)
    };
    if !headers.iter().any(is_replaced) {
        return None;
    }
    let replaced = headers.iter().map(|(name, value)| {
        let value = match is_replaced((name, value)).then(|| named(fleet, value, &may_name)).flatten() {
            Some(fingerprint) => [REFERENCE, fingerprint.to_string().as_bytes()].concat(),
            None => value.to_vec(),
        };
        (name.to_owned(), value)
    });
    Some(HeaderSet::new(replaced.collect()))
}

/// Returns the fingerprint that the value of a header stands for; `Some(None)` if that can't be read.
fn referred(value: &[u8]) -> Option<Option<Sha256>> {
    let digits = value.strip_prefix(REFERENCE)?;
    Some(std::str::from_utf8(digits).ok().and_then(digest_from_hex))
}

/// Returns whether a record names secrets instead of holding them.
pub fn is_by_reference(record: &FleetRecord) -> bool {
    let Message { lane, request, .. } = &record.message;
    record.fingerprint.is_some() && lane.credential.is_none()
        || request.headers.iter().any(|(_, value)| referred(value).is_some())
}

/// A secret that a record names was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingSecret(pub Sha256);

/// Puts secrets back into a record that names them.
///
/// # Errors
///
/// [`MissingSecret`] for the first that `find` does not know: such a message must not be sent.
pub fn restore(
    record: &FleetRecord,
    find: impl Fn(&Sha256) -> Option<Credential>,
) -> Result<FleetRecord, MissingSecret> {
    let mut restored = record.clone();
    if let (Some(name), None) = (record.fingerprint, &record.message.lane.credential) {
        restored.message.lane.credential = Some(find(&name).ok_or(MissingSecret(name))?);
    }
    let mut headers = Vec::new();
    for (header, value) in record.message.request.headers.iter() {
        let value = match referred(value) {
            None => value.to_vec(),
            Some(name) => {
                let name = name.unwrap_or(Sha256::new([0; Sha256::LEN]));
                find(&name).ok_or(MissingSecret(name))?.reveal().to_vec()
            }
        };
        headers.push((header.to_owned(), value));
    }
    restored.message.request.headers = HeaderSet::new(headers);
    Ok(restored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::bundle::{BundleReader, encode_bundle};
    use crate::fleet::marks::encode_marks;
    use crate::fleet::record::{MessageRef, part_digest};
    use crate::fleet::samples::{message, part};

    const KEY: &[u8] = b"canary-key-of-the-lane";
    const TOKEN: &[u8] = b"canary-token-of-the-gateway";

    fn record() -> FleetRecord {
        let mut message = message(7);
        message.lane.credential = Some(Credential::new(KEY));
        message.request.headers = headers();
        FleetRecord::waiting(7, message)
    }

    fn headers() -> HeaderSet {
        HeaderSet::new(vec![
            ("content-type".into(), b"application/json".to_vec()),
            ("X-Gateway-Token".into(), TOKEN.to_vec()),
            ("Cookie".into(), Vec::new()),
        ])
    }

    fn holds(bytes: &[u8], secret: &[u8]) -> bool {
        bytes.windows(secret.len()).any(|window| window == secret)
    }

    #[test]
    fn a_record_by_reference_holds_no_secret_and_gets_all_of_them_back() {
        let (fleet, whole) = (Uuid::from_u128(7), record());
        let mut withheld = whole.clone();
        withhold(fleet, &mut withheld, |_| true);
        let text = format!("{withheld:?}");
        assert!(is_by_reference(&withheld) && !is_by_reference(&whole));
        assert!(!text.contains("canary") && withheld.message.lane.credential.is_none(), "{text}");
        let bundle = encode_bundle(std::slice::from_ref(&withheld)).expect("it fits").expect("one record");
        let records: Vec<FleetRecord> =
            BundleReader::open(&bundle.bytes).expect("whole").map(|record| record.expect("whole")).collect();
        assert_eq!(records, [withheld]);
        let secrets = [KEY, TOKEN].map(Credential::new);
        let find = |name: &Sha256| secrets.iter().find(|secret| fingerprint(fleet, secret) == *name).cloned();
        let restored = restore(&records[0], find).expect("both are known");
        assert_eq!(restored.message, whole.message);
        for unknown in &secrets {
            let find = |name: &Sha256| find(name).filter(|secret| secret != unknown);
            assert_eq!(restore(&records[0], find), Err(MissingSecret(fingerprint(fleet, unknown))));
        }
        let elsewhere =
            |name: &Sha256| secrets.iter().find(|secret| fingerprint(Uuid::nil(), secret) == *name).cloned();
        assert!(restore(&records[0], elsewhere).is_err(), "fingerprints of two fleets can be matched");
    }

    #[test]
    fn parts_in_marks_hold_no_secret_and_keep_their_names() {
        let fleet = Uuid::from_u128(7);
        let mut piece = part("{}");
        piece.request.headers = headers();
        let digest = part_digest(&piece.request);
        let mut marks = vec![Mark { reference: MessageRef::whole(1), fate: Fate::Divided(vec![piece]) }];
        withhold_from_marks(fleet, &mut marks, |_| true);
        assert!(!holds(&encode_marks(&marks), TOKEN), "a token is in a mark");
        let Fate::Divided(parts) = &marks[0].fate else { panic!("it is divided") };
        assert_eq!(part_digest(&parts[0].request), digest, "marks of its parts would not be found");
    }
}
