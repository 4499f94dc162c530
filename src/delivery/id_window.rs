//! The time window that a server may enforce on ids: it refuses creates whose ids have a timestamp outside it.
//!
//! With `UUID_VALIDATION_ENABLED` an Opik server refuses a create (single, batch or OTLP) if the timestamp in an id of
//! a trace or span is further from its own clock than `UUID_VALIDATION_WINDOW` (24 h by default, 12 h to 45 d), and
//! one such item fails its whole request. A backlog of a long outage has such ids. The messages are valid, so they are
//! *held*: a setting of the server lets them in.
//!
//! The answer contains the refused timestamp and the window. Which other ids are outside follows from these and from
//! the server's clock (the answer's `Date`), so that a backlog is divided by its ids' timestamps instead of being
//! halved until each old item is alone. The local clock is not used: if it were wrong, all of a backlog might look too
//! old.
//!
//! Sources: Opik's pull requests 7179, 7214, 7573 and 8311.

use std::time::Duration;

use serde_json::Value;

use crate::message::{Effect, MessageType, Touch};

/// The remedy, for people.
pub(crate) const REMEDY: &str = "widen UUID_VALIDATION_WINDOW on the Opik server (at most 45d), turn UUID_VALIDATION_ENABLED off, \
    or add the workspace's id to OPIK_UUID_VALIDATION_BYPASS_WORKSPACES there";
/// The server's default. Whether a server validates at all is unknown before it refuses.
#[cfg(test)]
const DEFAULT_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);
/// A create that has waited this long is worth a warning: before the ids expire, there is time left to act.
pub(crate) const WARN_AFTER: Duration = Duration::from_secs(18 * 60 * 60);
/// A held message of a lane is retried after this many times the retry interval (10 minutes by default).
pub(crate) const RETRY_FACTOR: u32 = 60;
/// The error's `message`, the same for an id that is not a UUIDv7.
const MESSAGE: &str = "Invalid UUID for id";
/// `Date` has whole seconds, and is read after the server validated the request.
const DATE_SLACK_MS: i64 = 2000;

/// The types that create traces and spans, whose ids the server validates.
pub(crate) const CREATES: [MessageType; 5] = [
    MessageType::CreateTrace,
    MessageType::CreateTraceBatch,
    MessageType::CreateSpan,
    MessageType::CreateSpansBatch,
    MessageType::OtlpTraces,
];

/// The server's refusal of an id whose timestamp is outside its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outside {
    /// Whether the id is too new, not too old.
    pub is_future: bool,
    /// The timestamp in the id, in milliseconds since the Unix epoch, if the answer contains it.
    pub id_time_ms: Option<i64>,
    /// The window, if the answer contains it.
    pub window: Option<Duration>,
}

/// Parses an answer that refuses an id for its timestamp; `None` if it is about something else.
///
/// Recognised by `message` and `details` together: the same message is used for an id that is not a UUIDv7, which no
/// setting lets in.
pub(crate) fn read(status: Option<u16>, text: &str) -> Option<Outside> {
    if status != Some(400) {
        return None;
    }
    let error: Value = serde_json::from_str(text).ok()?;
    if error["message"].as_str()?.trim() != MESSAGE {
        return None;
    }
    let details = error["details"].as_str()?;
    let is_future = match (details.contains("'too_old'"), details.contains("'too_far_future'")) {
        (true, false) => false,
        (false, true) => true,
        _ => return None,
    };
    let quoted = |before: &str| {
        let (_, behind) = details.split_once(before)?;
        behind.split_once('\'').map(|(quoted, _)| quoted)
    };
    Some(Outside {
        is_future,
        id_time_ms: quoted("timestamp '").and_then(instant_ms),
        window: quoted("window of '").and_then(duration),
    })
}

/// Parses an instant as Java writes it: `2026-11-28T03:04:05.678Z`, with any number of decimals.
fn instant_ms(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, separator| text.split(separator).map(|n| n.parse().ok()).collect::<Option<Vec<i64>>>();
    let [year, month, day] = numbers(date, '-')?[..] else { return None };
    let (time, decimals) = time.split_once('.').unwrap_or((time, ""));
    let (hour, minute, second) = match numbers(time, ':')?[..] {
        [hour, minute, second] => (hour, minute, second),
        [hour, minute] => (hour, minute, 0),
        _ => return None,
    };
    let millis: i64 = format!("{decimals:0<3}").get(..3)?.parse().ok()?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || !(1970..=9999).contains(&year) {
        return None;
    }
    // Days since the epoch, in years that begin in March.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + millis)
}

/// Parses a duration as Java writes it: `PT24H`, `PT720H30M`, `PT90S`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix("PT")?;
    let mut seconds = 0_u64;
    while let Some(end) = rest.find(|c: char| !c.is_ascii_digit()) {
        let number: u64 = rest[..end].parse().ok()?;
        let unit = match rest.as_bytes()[end] {
            b'H' => 3600,
            b'M' => 60,
            b'S' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[end + 1..];
    }
    rest.is_empty().then_some(Duration::from_secs(seconds))
}

/// The ids that the server refuses for their timestamp, as far as known from its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdWindow {
    /// Ids with this timestamp and older ones are too old.
    too_old_ms: i64,
    /// Ids with this timestamp and newer ones are too new.
    too_new_ms: i64,
}

/// On which side of a window a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// All entities that it creates are inside, or no timestamp is known.
    Inside,
    /// All entities that it creates are outside.
    Outside,
    /// Some of them are outside.
    Both,
}

impl Default for IdWindow {
    fn default() -> Self {
        Self { too_old_ms: i64::MIN, too_new_ms: i64::MAX }
    }
}

impl IdWindow {
    /// Learns from a refusal. `server_ms` is the server's clock, by the answer's `Date`.
    ///
    /// Ids older than the refused one are too old as well; by the server's clock and its window, so are those between
    /// that id and the window's edge.
    pub(crate) fn learn(&mut self, outside: &Outside, server_ms: Option<i64>) {
        let window_ms = outside.window.and_then(|window| i64::try_from(window.as_millis()).ok());
        let edges = server_ms.zip(window_ms);
        let id_time_ms = outside.id_time_ms.into_iter();
        if outside.is_future {
            let edge = edges.map(|(now_ms, window_ms)| now_ms.saturating_add(window_ms).saturating_add(DATE_SLACK_MS));
            self.too_new_ms = id_time_ms.chain(edge).fold(self.too_new_ms, i64::min);
        } else {
            let edge = edges.map(|(now_ms, window_ms)| now_ms.saturating_sub(window_ms).saturating_sub(DATE_SLACK_MS));
            self.too_old_ms = id_time_ms.chain(edge).fold(self.too_old_ms, i64::max);
        }
    }

    /// Returns the side of the creates among these touches. Updates and references may be old.
    pub(crate) fn side(&self, touches: &[Touch]) -> Side {
        let creates = touches.iter().filter(|touch| touch.effect == Effect::Create);
        self.side_of(creates.filter_map(|touch| touch.key.id_time_ms()))
    }

    fn side_of(&self, id_times_ms: impl Iterator<Item = i64>) -> Side {
        let (mut inside, mut outside) = (false, false);
        for id_time_ms in id_times_ms {
            let is_outside = id_time_ms <= self.too_old_ms || id_time_ms >= self.too_new_ms;
            inside |= !is_outside;
            outside |= is_outside;
        }
        match (inside, outside) {
            (_, false) => Side::Inside,
            (false, true) => Side::Outside,
            (true, true) => Side::Both,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{EntityKey, EntityKind};

    const HOUR_MS: i64 = 60 * 60 * 1000;

    fn answer(details: &str) -> String {
        serde_json::json!({ "code": 400, "message": "Invalid UUID for id", "details": details }).to_string()
    }

    fn details(time: &str, window: &str, reason: &str) -> String {
        format!(
            "id with timestamp '{time}' must be in the allowed ingestion window of '{window}' around now, reason '{reason}'"
        )
    }

    #[test]
    fn a_refusal_is_recognised_by_message_and_details_together() {
        let old = answer(&details("2026-11-28T03:04:05.678Z", "PT24H", "too_old"));
        let expected = Outside { is_future: false, id_time_ms: Some(1_795_835_045_678), window: Some(DEFAULT_WINDOW) };
        assert_eq!(read(Some(400), &old), Some(expected));
        let new = answer(&details("2027-01-01T00:00:00Z", "PT720H30M", "too_far_future"));
        let window = Some(Duration::from_secs(720 * 3600 + 1800));
        let expected = Outside { is_future: true, id_time_ms: Some(1_798_761_600_000), window };
        assert_eq!(read(Some(400), &new), Some(expected));
        let bare = Outside { is_future: false, id_time_ms: None, window: None };
        assert_eq!(read(Some(400), &answer("reason 'too_old'")), Some(bare), "worded in another way");
        for (status, text, what) in [
            (Some(400), answer("trace id must be a version 7 UUID"), "no UUIDv7"),
            (Some(422), old.clone(), "another status"),
            (None, old.clone(), "no answer"),
            (Some(400), old.replace("Invalid UUID for id", "Bad input"), "another message"),
            (Some(400), r#"{"code":400,"message":"Invalid UUID for id"}"#.to_owned(), "no details"),
            (Some(400), r#"{"code":400,"message":"Invalid UUID for id","details":["too_old"]}"#.to_owned(), "a list"),
            (Some(400), format!("<html>{old}"), "no JSON"),
            (Some(400), answer("the field 'too_old' and 'too_far_future' are unknown"), "both"),
        ] {
            assert_eq!(read(status, &text), None, "{what}");
        }
    }

    #[test]
    fn javas_times_are_parsed() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:00:00.5Z", Some(951_825_600_500)),
            ("2024-12-31T23:59:59.999999999Z", Some(1_735_689_599_999)),
            ("2026-03-01T00:00Z", Some(1_772_323_200_000)),
            ("2026-13-01T00:00:00Z", None),
            ("+10000-01-01T00:00:00Z", None),
            ("yesterday", None),
        ] {
            assert_eq!(instant_ms(text), expected, "{text}");
        }
        for (text, seconds) in
            [("PT24H", Some(86_400)), ("PT36H1M2S", Some(129_662)), ("24h", None), ("PT1.5S", None), ("PT5", None)]
        {
            assert_eq!(duration(text), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn one_refusal_tells_which_ids_are_outside() {
        let now = 1_000 * HOUR_MS;
        let old = |hours: i64, window: Option<u64>| Outside {
            is_future: false,
            id_time_ms: Some(now - hours * HOUR_MS),
            window: window.map(|hours| Duration::from_secs(hours * 3600)),
        };
        let new = Outside { is_future: true, ..old(-50, Some(24)) };
        for (refused, server_ms, age_hours, expected, what) in [
            (old(40, Some(24)), Some(now), 41, Side::Outside, "older than what was refused"),
            (old(40, Some(24)), Some(now), 30, Side::Outside, "between that and the edge"),
            (old(40, Some(24)), Some(now), 23, Side::Inside, "young"),
            (old(40, Some(24)), None, 30, Side::Inside, "without the server's clock only the refused id is known"),
            (old(40, Some(24)), None, 40, Side::Outside, "the refused id itself"),
            (old(40, None), Some(now), 39, Side::Inside, "without the window"),
            (new, Some(now), -30, Side::Outside, "too new"),
            (new, Some(now), -23, Side::Inside, "not too new"),
            (new, Some(now), 90, Side::Inside, "old ids were not refused"),
        ] {
            let mut window = IdWindow::default();
            window.learn(&refused, server_ms);
            assert_eq!(window.side_of(std::iter::once(now - age_hours * HOUR_MS)), expected, "{what}");
        }
    }

    #[test]
    fn only_creates_of_traces_and_spans_have_a_side() {
        let mut window = IdWindow::default();
        window.learn(&Outside { is_future: false, id_time_ms: Some(100 * HOUR_MS), window: None }, None);
        let touch = |kind, hours: i64, effect| {
            let mut id = [0; 16];
            id[..6].copy_from_slice(&(hours * HOUR_MS).to_be_bytes()[2..]);
            Touch { key: EntityKey::from_parts(kind, id), effect }
        };
        let (old, young) = (99, 101);
        for (touches, expected) in [
            (vec![touch(EntityKind::Trace, old, Effect::Create)], Side::Outside),
            (
                vec![touch(EntityKind::Span, young, Effect::Create), touch(EntityKind::Trace, old, Effect::Refer)],
                Side::Inside,
            ),
            (
                vec![touch(EntityKind::Span, young, Effect::Create), touch(EntityKind::Span, old, Effect::Create)],
                Side::Both,
            ),
            (vec![touch(EntityKind::Trace, old, Effect::Update)], Side::Inside),
            (vec![touch(EntityKind::Dataset, old, Effect::Create)], Side::Inside),
            (vec![touch(EntityKind::OtelTrace, old, Effect::Create)], Side::Inside),
        ] {
            assert_eq!(window.side(&touches), expected, "{touches:?}");
        }
        assert_eq!(IdWindow::default().side(&[touch(EntityKind::Trace, 0, Effect::Create)]), Side::Inside);
    }
}
