//! The dial of a fleet: the pace and the hold that a person has set, in one small object that changes.
//!
//! Senders read it while they deliver, and throttle themselves to their share of the ceiling. It says what is in force; who decided what,
//! and when, is kept for good in the orders ([`super::orders`]).
//!
//! Its times are of the clock of the machine on which the person decided. A hold is kept as a duration, so that no reader has
//! to compare clocks to know its deadline ([`super::dial_watch`]).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::json::order_id;
use crate::printable;

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u16 = 1;
/// The largest dial that is read, in bytes.
pub const BYTES_MAX: usize = 16 * 1024;
/// The timeout of the longest hold: a fleet that was forgotten delivers again by itself.
pub const HOLD_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// The highest ceiling, in messages per second: faster than any server takes them.
pub const CEILING_MAX: u64 = 1_000_000;
/// More senders than any fleet has.
const DRAINING_MAX: u64 = 10_000_000;
/// The longest name of a person, in characters; longer ones are cut.
const NAME_CHARS_MAX: usize = 256;

/// Who decided, when, and under which order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The order that says so: it tells two decisions apart.
    #[serde(with = "order_id")]
    pub order: Uuid,
    /// The person, as [`super::orders`] names them.
    pub by: String,
    /// By their machine's clock, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// A ceiling for the whole fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CeilingSet {
    /// Messages per second of all senders together.
    pub per_second: u64,
    /// Who set it.
    #[serde(flatten)]
    pub decided: Decided,
}

/// A hold of the whole fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldSet {
    /// How long it lasts, in milliseconds.
    pub for_ms: u64,
    /// Who set it.
    #[serde(flatten)]
    pub decided: Decided,
}

impl HoldSet {
    /// Returns when it ends, by the clock of who set it, in milliseconds since the Unix epoch.
    pub fn until_ms(&self) -> u64 {
        self.decided.at_ms.saturating_add(self.for_ms)
    }

    /// Returns how long it lasts.
    pub fn lasts(&self) -> Duration {
        Duration::from_millis(self.for_ms).min(HOLD_MAX)
    }
}

/// The dial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DialSetting {
    /// The ceiling, if there is one.
    pub ceiling: Option<CeilingSet>,
    /// The last hold that nobody has ended; it may have expired.
    pub hold: Option<HoldSet>,
    /// How many streams are being delivered, all senders together.
    pub draining: u64,
    /// Grows with every write, so that every version has other bytes.
    pub writes: u64,
}

/// Why a dial can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialFault {
    /// It is no dial.
    #[error("the dial of the fleet is not readable: {0}")]
    Unreadable(&'static str),
    /// A newer version wrote it.
    #[error("the dial of the fleet has format {0}; this version reads formats up to {FORMAT}")]
    TooNew(u16),
}

#[derive(Serialize, Deserialize)]
struct DialFields {
    format: u16,
    #[serde(default)]
    writes: u64,
    #[serde(default)]
    draining: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pace: Option<CeilingSet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hold: Option<HoldSet>,
}

#[derive(Deserialize)]
struct DialFormat {
    format: u16,
}

impl DialSetting {
    /// Encodes it; the schema is that of [`FORMAT`].
    pub fn encode(&self) -> Vec<u8> {
        let fields = DialFields {
            format: FORMAT,
            writes: self.writes,
            draining: self.draining,
            pace: self.ceiling.clone(),
            hold: self.hold.clone(),
        };
        let mut text = serde_json::to_vec_pretty(&fields).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Parses it. Fields that this version does not know are ignored, and values are validated or brought within their bounds.
    ///
    /// # Errors
    ///
    /// [`DialFault`] when it is not a dial, or one of a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self, DialFault> {
        let unreadable = DialFault::Unreadable;
        if bytes.len() > BYTES_MAX {
            return Err(unreadable("it is too large"));
        }
        let not_a_dial = |_| unreadable("it is not the JSON of a dial");
        let DialFormat { format } = serde_json::from_slice(bytes).map_err(not_a_dial)?;
        if format > FORMAT {
            return Err(DialFault::TooNew(format));
        }
        let fields: DialFields = serde_json::from_slice(bytes).map_err(not_a_dial)?;
        if fields.pace.as_ref().is_some_and(|pace| pace.per_second == 0) {
            return Err(unreadable("its pace is nothing, which is not a hold"));
        }
        let ceiling = fields
            .pace
            .map(|pace| CeilingSet { per_second: pace.per_second.min(CEILING_MAX), decided: harmless(pace.decided) });
        let longest = u64::try_from(HOLD_MAX.as_millis()).unwrap_or(u64::MAX);
        let hold =
            fields.hold.map(|hold| HoldSet { for_ms: hold.for_ms.min(longest), decided: harmless(hold.decided) });
        Ok(Self { ceiling, hold, draining: fields.draining.min(DRAINING_MAX), writes: fields.writes })
    }

    /// Returns it with this ceiling; the hold stays.
    #[must_use]
    pub fn paced(self, ceiling: Option<CeilingSet>) -> Self {
        Self { ceiling, ..self }
    }

    /// Returns it with this hold; the ceiling stays.
    #[must_use]
    pub fn held(self, hold: Option<HoldSet>) -> Self {
        Self { hold, ..self }
    }

    /// Returns the hold that is in force by this clock, which is for people: senders measure it themselves.
    pub fn hold_at(&self, now_ms: u64) -> Option<&HoldSet> {
        self.hold.as_ref().filter(|hold| hold.until_ms() > now_ms)
    }

    /// Returns whether so many senders are worth another write: a tenth more or fewer than it says.
    pub fn is_outdated(&self, draining: u64) -> bool {
        self.draining.abs_diff(draining) * 10 > self.draining
    }
}

/// The id of an order as text.
/// Returns who decided, harmless to print.
fn harmless(decided: Decided) -> Decided {
    let short: String = decided.by.chars().take(NAME_CHARS_MAX).collect();
    Decided { by: printable::line(&short).into_owned(), ..decided }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decided(by: &str) -> Decided {
        Decided { order: Uuid::from_u128(7), by: by.to_owned(), at_ms: 1_000 }
    }

    #[test]
    fn a_dial_round_trips_and_ignores_later_fields() {
        let dial = DialSetting {
            ceiling: Some(CeilingSet { per_second: 20_000, decided: decided("ana on host-a") }),
            hold: Some(HoldSet { for_ms: 1_800_000, decided: decided("ben on host-b") }),
            draining: 212,
            writes: 3,
        };
        assert_eq!(DialSetting::decode(&dial.encode()), Ok(dial.clone()));
        let later = String::from_utf8(dial.encode()).expect("JSON").replacen('{', "{\"later\": [1],", 1);
        assert_eq!(DialSetting::decode(later.as_bytes()), Ok(dial.clone()));
        assert_eq!(dial.hold_at(1_801_000), None);
        assert!(dial.hold_at(1_800_999).is_some());
        assert_eq!(DialSetting::decode(&DialSetting::default().encode()), Ok(DialSetting::default()));
    }

    #[test]
    fn a_dial_cannot_hold_a_fleet_for_ever_nor_write_on_a_terminal() {
        let dial = DialSetting {
            ceiling: Some(CeilingSet { per_second: u64::MAX, decided: decided("\u{1b}[2Jana") }),
            hold: Some(HoldSet { for_ms: u64::MAX, decided: decided(&"x".repeat(9_000)) }),
            draining: u64::MAX,
            writes: u64::MAX,
        };
        let read = DialSetting::decode(&dial.encode()).expect("it is a dial");
        let hold = read.hold.clone().expect("a hold");
        assert_eq!((hold.lasts(), hold.decided.by.len()), (HOLD_MAX, NAME_CHARS_MAX));
        assert_eq!((hold.until_ms(), read.draining), (1_000 + 604_800_000, DRAINING_MAX));
        let ceiling = read.ceiling.expect("a ceiling");
        assert_eq!((ceiling.per_second, ceiling.decided.by.contains('\u{1b}')), (CEILING_MAX, false));
    }

    #[test]
    fn unusable_dials_are_refused_with_the_reason() {
        assert_eq!(DialSetting::decode(b"{\"format\": 2, \"hold\": \"later\"}"), Err(DialFault::TooNew(2)));
        for bytes in [
            &b""[..],
            b"<html>",
            b"{\"format\":1,\"draining\":-1}",
            b"{\"format\":1,\"hold\":{\"for_ms\":1}}",
            br#"{"format":1,"pace":{"per_second":0,"order":"01a20445-0b55-7feb-b47d-9a6087614672","by":"a","at_ms":1}}"#,
            &[b' '; BYTES_MAX + 1],
        ] {
            assert!(matches!(DialSetting::decode(bytes), Err(DialFault::Unreadable(_))));
        }
    }

    #[test]
    fn a_count_is_written_again_when_a_tenth_has_changed() {
        let dial = DialSetting { draining: 100, ..DialSetting::default() };
        assert!(!dial.is_outdated(100) && !dial.is_outdated(110) && !dial.is_outdated(90));
        assert!(dial.is_outdated(111) && dial.is_outdated(89) && DialSetting::default().is_outdated(1));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_fail(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = DialSetting::decode(&bytes);
        }
    }
}
